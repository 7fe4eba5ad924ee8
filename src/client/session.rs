//! The work of a consumer: one stream after the other, and the handlers that outlive them.
//!
//! 1. Each delivery has a handler at once: the credit that is given is what handlers are free for.
//! 2. Handlers and leases outlive a stream that breaks; endings go to the server on the next one.
//! 3. A stream on which nothing comes for three heartbeats is given up.
//! 4. When it stops: nothing more is granted, what still comes is released, and the stream is closed when every
//!    ending is answered.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

use tokio::sync::{mpsc, watch};
use tokio::task::{Id, JoinError, JoinSet};
use tokio::time::{Instant, Interval, MissedTickBehavior, interval};
use tokio_stream::wrappers::UnboundedReceiverStream;
use tonic::transport::Channel;
use tonic::{Status, Streaming};

use super::consumer::{ConsumerOptions, Delivery, Ending};
use super::error::ClientError;
use super::lease::{Keeper, Lease};
use super::retry::{Backoff, is_retryable};
use super::settling::{Settling, duration, wire};
use crate::limits::{ACK_IDS_MAX, CREDIT_BYTES_MAX, HEARTBEAT_US, LEASE_US_DEFAULT};
use crate::proto::v1::message_service_client::MessageServiceClient;
use crate::proto::v1::subscribe_request::{Credit, Open, Request as Up};
use crate::proto::v1::subscribe_response::{Opened, Response as Down};
use crate::proto::v1::{NackEntry, NackRequest, ReceivedMessage, SubscribeRequest, SubscribeResponse};

/// When an ending that the server could not take is sent again.
const RETRY_INTERVAL: Duration = Duration::from_millis(200);
/// Heartbeats that may be missing before a stream is given up.
const HEARTBEATS_MISSED: u32 = 3;
/// How often a heartbeat comes, until the server has said so.
const HEARTBEAT_DEFAULT: Duration = Duration::from_micros(HEARTBEAT_US);

/// A delivery with its handler at work.
#[derive(Debug)]
struct Running {
    keeper: Keeper,
    /// The server has given the lease up.
    lost: bool,
    body_bytes: u64,
}

/// See the module's header.
pub struct Session<F> {
    client: MessageServiceClient<Channel>,
    subscription: String,
    options: ConsumerOptions,
    handler: Arc<F>,
    handlers: JoinSet<Ending>,
    /// By the handler's task.
    ack_ids: HashMap<Id, String>,
    /// By ack id.
    running: HashMap<String, Running>,
    settling: Settling,
    stopping: bool,
}

/// One stream.
struct Stream {
    up: mpsc::UnboundedSender<SubscribeRequest>,
    down: Streaming<SubscribeResponse>,
    lease: Duration,
    silence_max: Duration,
    /// When something came last.
    heard: Instant,
    /// Credit to give with the next request.
    owed: Credit,
}

impl Stream {
    /// Should the stream have ended, its answers say so.
    fn send(&self, request: Up) {
        let _ = self.up.send(SubscribeRequest { request: Some(request) });
    }

    fn opened(&mut self, opened: Opened) {
        let std_duration = |one: Option<prost_types::Duration>| one.and_then(|one| one.try_into().ok());
        self.lease = std_duration(opened.lease).unwrap_or(self.lease);
        let heartbeat: Duration = std_duration(opened.heartbeat_interval).unwrap_or(HEARTBEAT_DEFAULT);
        self.silence_max = heartbeat * HEARTBEATS_MISSED;
    }

    async fn next(&mut self) -> Result<Option<Down>, Status> {
        let silent = |_| Status::unavailable("the server has gone silent");
        let deadline = self.heard + self.silence_max;
        let answer = tokio::time::timeout_at(deadline, self.down.message()).await.map_err(silent)??;
        self.heard = Instant::now();
        Ok(answer.and_then(|answer| answer.response))
    }
}

impl<F, R> Session<F>
where
    F: Fn(Delivery) -> R + Send + Sync + 'static,
    R: Future<Output = Ending> + Send + 'static,
{
    pub fn new(
        client: MessageServiceClient<Channel>,
        subscription: String,
        options: ConsumerOptions,
        handler: F,
    ) -> Self {
        let concurrency = options.concurrency.clamp(1, ACK_IDS_MAX as u32);
        Self {
            client,
            subscription,
            options: ConsumerOptions { concurrency, ..options },
            handler: Arc::new(handler),
            handlers: JoinSet::new(),
            ack_ids: HashMap::new(),
            running: HashMap::new(),
            settling: Settling::default(),
            stopping: false,
        }
    }

    /// Works until it is stopped, or fails for good.
    pub async fn run(mut self, mut stop: watch::Receiver<bool>) -> Result<(), ClientError> {
        let mut backoff = Backoff::default();
        loop {
            let status = match self.stream(&mut stop, &mut backoff).await {
                Ok(()) => return Ok(()),
                Err(status) if is_retryable(&status) => status,
                Err(status) => return Err(status.into()),
            };
            self.settling.reconnected();
            if self.stopping && self.is_done() {
                return Ok(());
            }
            tokio::time::sleep(backoff.wait(&status)).await;
        }
    }

    /// Nothing runs, and the server knows of every ending.
    fn is_done(&self) -> bool {
        self.handlers.is_empty() && self.settling.is_done()
    }

    async fn open(&mut self) -> Result<Stream, Status> {
        let lease = self.options.lease;
        let free = u64::from(self.options.concurrency).saturating_sub(self.handlers.len() as u64);
        let used: u64 = self.running.values().map(|running| running.body_bytes).sum();
        let bytes = self.options.bytes.min(CREDIT_BYTES_MAX).saturating_sub(used);
        let credit = if self.stopping { Credit::default() } else { Credit { messages: free, bytes } };
        let open = Open {
            subscription: self.subscription.clone(),
            lease: lease.map(duration),
            credit: Some(credit),
        };
        let (up, requests) = mpsc::unbounded_channel();
        let _ = up.send(SubscribeRequest { request: Some(Up::Open(open)) });
        let down = self.client.subscribe(UnboundedReceiverStream::new(requests)).await?.into_inner();
        let lease = lease.unwrap_or(Duration::from_micros(LEASE_US_DEFAULT));
        let silence_max = HEARTBEAT_DEFAULT * HEARTBEATS_MISSED;
        Ok(Stream { up, down, lease, silence_max, heard: Instant::now(), owed: Credit::default() })
    }

    /// Works on one stream. Returns when it was stopped and all is done, or fails as the stream did.
    async fn stream(
        &mut self,
        stop: &mut watch::Receiver<bool>,
        backoff: &mut Backoff,
    ) -> Result<(), Status> {
        let mut stream = self.open().await?;
        match stream.next().await? {
            Some(Down::Opened(opened)) => stream.opened(opened),
            _ => return Err(Status::unavailable("the server did not open the stream")),
        }
        backoff.reset();
        let mut retry = interval(RETRY_INTERVAL);
        let mut extend = extensions(stream.lease);
        self.extend(&stream);
        loop {
            self.flush(&mut stream);
            if self.stopping && self.is_done() {
                return self.close(stream).await;
            }
            tokio::select! {
                down = stream.next() => match down? {
                    Some(down) => self.take(&mut stream, down),
                    None => return Err(Status::unavailable("the server ended the stream")),
                },
                Some(ended) = self.handlers.join_next_with_id() => {
                    self.ended(&mut stream, ended);
                    while let Some(ended) = self.handlers.try_join_next_with_id() {
                        self.ended(&mut stream, ended);
                    }
                }
                _ = extend.tick() => self.extend(&stream),
                _ = retry.tick(), if self.settling.has_later() => self.settling.retry(),
                // Fails when the consumer was dropped; then this task is, too.
                _ = stop.wait_for(|stop| *stop), if !self.stopping => self.stopping = true,
            }
        }
    }

    /// Sends what has gathered: credit and endings.
    fn flush(&mut self, stream: &mut Stream) {
        let owed = std::mem::take(&mut stream.owed);
        if !self.stopping && (owed.messages > 0 || owed.bytes > 0) {
            stream.send(Up::Credit(owed));
        }
        while let Some(acks) = self.settling.next() {
            stream.send(Up::Acks(acks));
        }
    }

    fn take(&mut self, stream: &mut Stream, down: Down) {
        match down {
            Down::Deliveries(deliveries) if self.stopping => {
                for received in deliveries.messages {
                    self.settling.add(received.ack_id, Ending::Release);
                }
            }
            Down::Deliveries(deliveries) => {
                for received in deliveries.messages {
                    self.deliver(stream, received);
                }
            }
            Down::AckResults(results) => {
                let extended = self.settling.results(results);
                for (ack_id, at) in extended.kept {
                    if let Some(running) = self.running.get(&ack_id) {
                        running.keeper.extend(at + stream.lease);
                    }
                }
                for ack_id in extended.lost {
                    if let Some(running) = self.running.get_mut(&ack_id) {
                        running.keeper.lose();
                        running.lost = true;
                    }
                }
            }
            // A draining server ends the stream by itself.
            Down::Opened(_) | Down::Notice(_) | Down::Heartbeat(_) => {}
        }
    }

    /// Starts the handler of a message.
    fn deliver(&mut self, stream: &Stream, received: ReceivedMessage) {
        let ReceivedMessage { ack_id, message, attempt, .. } = received;
        let message = message.unwrap_or_default();
        let (keeper, lease) = Lease::until(Instant::now() + stream.lease);
        let body_bytes = message.body.len() as u64;
        let (handler, delivery) = (Arc::clone(&self.handler), Delivery { message, attempt, lease });
        // Called in its own task, where a panic is its own.
        let task = self.handlers.spawn(async move { handler(delivery).await });
        self.ack_ids.insert(task.id(), ack_id.clone());
        self.running.insert(ack_id, Running { keeper, lost: false, body_bytes });
    }

    /// A handler has ended: by itself, or by a panic.
    fn ended(&mut self, stream: &mut Stream, ended: Result<(Id, Ending), JoinError>) {
        let (id, ending) = match ended {
            Ok(ended) => ended,
            Err(panic) => (panic.id(), Ending::Retry { delay: None }),
        };
        let ack_id = self.ack_ids.remove(&id).expect("each handler has its delivery");
        let running = self.running.remove(&ack_id).expect("it was running");
        stream.owed.messages += 1;
        stream.owed.bytes += running.body_bytes;
        if !running.lost {
            self.settling.add(ack_id, ending);
        }
    }

    /// Asks for more time for all that is being handled.
    fn extend(&mut self, stream: &Stream) {
        let kept = self.running.iter().filter(|(_, running)| !running.lost);
        let ack_ids: Vec<String> = kept.map(|(ack_id, _)| ack_id.clone()).collect();
        if !ack_ids.is_empty() {
            let acks = self.settling.extend(ack_ids, stream.lease, Instant::now());
            stream.send(Up::Acks(acks));
        }
    }

    /// Ends the stream. What was on its way is released; what was not sent, the server releases.
    async fn close(&mut self, stream: Stream) -> Result<(), Status> {
        let Stream { up, mut down, .. } = stream;
        drop(up);
        let mut entries = Vec::new();
        // A stream that breaks now has nothing more to tell.
        while let Ok(Some(answer)) = down.message().await {
            if let Some(Down::Deliveries(deliveries)) = answer.response {
                let release = |received: ReceivedMessage| {
                    let ending = wire(Ending::Release);
                    NackEntry { ack_id: received.ack_id, ending }
                };
                entries.extend(deliveries.messages.into_iter().map(release));
            }
        }
        if !entries.is_empty() {
            let request = NackRequest { subscription: self.subscription.clone(), entries };
            // Should it fail, the leases run out by themselves.
            let _ = self.client.nack(request).await;
        }
        Ok(())
    }
}

/// Ticks at a third of a lease, from now on.
fn extensions(lease: Duration) -> Interval {
    let mut extend = interval(lease / 3);
    extend.reset();
    extend.set_missed_tick_behavior(MissedTickBehavior::Delay);
    extend
}

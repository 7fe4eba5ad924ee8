//! Consumers of stamped messages: each subscription and each connection has a stream, each delivery is acknowledged at once.

use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use forebay::proto::v1::subscribe_request::{Acks, Credit, Open, Request as Up};
use forebay::proto::v1::subscribe_response::{Deliveries, Response as Down};
use forebay::proto::v1::{SubscribeRequest, SubscribeResponse};
use forebay_testkit::Clients;
use tokio::sync::{Semaphore, mpsc};
use tokio::task::JoinSet;
use tokio_stream::wrappers::UnboundedReceiverStream;
use tonic::Streaming;

use crate::Failure;
use crate::bodies::stamp;
use crate::progress::Progress;
use crate::samples::{Samples, Window, lock};
use crate::take::all_ok;

/// Credit in bytes that never runs out within a run.
const BYTES_CREDIT: u64 = 1 << 40;
/// Messages that a stream may be sent ahead of its acks: as many as a subscription has in flight by default.
const CREDIT: u64 = 10_000;
/// How often it is looked whether all is finished.
const LOOK: Duration = Duration::from_millis(5);
/// What does not come within this time does not come.
const STALL: Duration = Duration::from_secs(20);

/// An open stream of a subscription.
pub struct Stream {
    up: mpsc::UnboundedSender<SubscribeRequest>,
    answers: Streaming<SubscribeResponse>,
}

impl Stream {
    /// Opens each of the subscriptions, over each of the connections, both in turn.
    pub async fn open(connections: &[Clients], subscriptions: &[String]) -> Result<Vec<Self>, Failure> {
        let mut streams = Vec::new();
        let pairs = subscriptions.iter().cycle().zip(connections.iter().cycle());
        for (subscription, clients) in pairs.take(subscriptions.len().max(connections.len())) {
            let (up, requests) = mpsc::unbounded_channel();
            let credit = Credit { messages: CREDIT, bytes: BYTES_CREDIT };
            let open = Open { subscription: subscription.clone(), credit: Some(credit), ..Open::default() };
            up.send(SubscribeRequest { request: Some(Up::Open(open)) })?;
            let requests = UnboundedReceiverStream::new(requests);
            let mut answers = clients.messages.clone().subscribe(requests).await?.into_inner();
            match answers.message().await? {
                Some(SubscribeResponse { response: Some(Down::Opened(_)) }) => {}
                other => return Err(format!("a stream began with {other:?}").into()),
            }
            streams.push(Self { up, answers });
        }
        Ok(streams)
    }

    /// Takes what comes, without end.
    async fn take(mut self, seen: Arc<Seen>) -> Result<(), Failure> {
        while let Some(SubscribeResponse { response }) = self.answers.message().await? {
            match response {
                Some(Down::Deliveries(deliveries)) => {
                    seen.delivered(&deliveries)?;
                    let ack_ids: Vec<String> =
                        deliveries.messages.into_iter().map(|message| message.ack_id).collect();
                    let credit = Credit { messages: ack_ids.len() as u64, bytes: 0 };
                    for request in [Up::Credit(credit), Up::Acks(Acks { ack_ids, ..Acks::default() })] {
                        self.up.send(SubscribeRequest { request: Some(request) })?;
                    }
                }
                Some(Down::AckResults(results)) => {
                    all_ok(&results.acks)?;
                    seen.finished(results.acks.len() as u64);
                }
                _ => {}
            }
        }
        Err("the server ended the stream".into())
    }
}

/// What consumers have seen.
struct Seen {
    window: Window,
    samples: Mutex<Samples>,
    progress: Progress,
    /// A permit for each message that was finished.
    finished: Arc<Semaphore>,
}

impl Seen {
    fn delivered(&self, deliveries: &Deliveries) -> Result<(), Failure> {
        let (mut samples, now) = (lock(&self.samples), Instant::now());
        for message in deliveries.messages.iter().filter_map(|received| received.message.as_ref()) {
            let stamp = stamp(&message.body).ok_or("a message came that was not published here")?;
            samples.took(self.window.start + stamp, now);
        }
        Ok(())
    }

    fn finished(&self, messages: u64) {
        lock(&self.samples).done(messages, Instant::now());
        self.progress.add(messages);
        self.finished.add_permits(messages as usize);
    }
}

/// Consumers at work. They end when this is dropped.
pub struct Consumers {
    workers: JoinSet<Result<(), Failure>>,
    seen: Arc<Seen>,
}

impl Consumers {
    /// Begins to take what comes on the streams. Stamps count from the window's start.
    pub fn start(streams: Vec<Stream>, window: Window) -> Self {
        let samples = Samples::new(window).into();
        let progress = Progress::start("consuming", 0);
        let seen = Arc::new(Seen { window, samples, progress, finished: Arc::new(Semaphore::new(0)) });
        let workers = streams.into_iter().map(|stream| stream.take(Arc::clone(&seen))).collect();
        Self { workers, seen }
    }

    /// Has a permit for each message that is finished: who takes them does not run ahead.
    pub fn finished(&self) -> Arc<Semaphore> {
        Arc::clone(&self.seen.finished)
    }

    /// Waits until `total` messages are finished; what was seen: latencies of deliveries, counts of answered acks.
    pub async fn finish(mut self, total: u64) -> Result<Samples, Failure> {
        let (mut done, mut since) = (self.seen.progress.done(), Instant::now());
        while done < total {
            tokio::select! {
                Some(worker) = self.workers.join_next() => worker??,
                () = tokio::time::sleep(LOOK) => {}
            }
            let now = self.seen.progress.done();
            if now > done {
                (done, since) = (now, Instant::now());
            } else if since.elapsed() > STALL {
                return Err(format!("nothing came after {done} of {total} messages").into());
            }
        }
        if done > total {
            return Err(format!("{done} messages were finished, {total} published").into());
        }
        Ok(lock(&self.seen.samples).clone())
    }
}

//! The clients of a run: producers that want all memory, consumers that give nothing back, and one that reads all.

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use forebay::client::is_lost_connection;
use forebay::proto::v1::subscribe_request::{Acks, Credit, Open, Request as Up};
use forebay::proto::v1::subscribe_response::{Deliveries, Response as Down};
use forebay::proto::v1::{Message, PublishRequest, SubscribeRequest, SubscribeResponse};
use forebay_testkit::{Clients, queue, subscription};
use tokio::sync::mpsc::{UnboundedSender, unbounded_channel};
use tokio::sync::watch;
use tokio_stream::wrappers::UnboundedReceiverStream;
use tonic::{Code, Status, Streaming};
use tonic_types::StatusExt as _;

use super::ledger::Ledger;

pub const QUEUE: &str = "large";
/// How long clients rest after a failure that names no delay.
const REST: Duration = Duration::from_millis(200);
/// Messages that the consumer of everything may be ahead.
const CREDIT: u64 = 8;
const BYTES: u64 = 1 << 32;

/// Publishes until every message is acknowledged, whatever happens to the server at `address`.
pub async fn produce(ledger: Arc<Ledger>, address: watch::Receiver<String>) -> Result<(), String> {
    while let Some(number) = ledger.take() {
        let mut clients = Clients::of(&address.borrow());
        loop {
            let messages = vec![Message { body: ledger.body(number).into(), ..Message::default() }];
            let request = PublishRequest { queue: queue(QUEUE), messages, ..PublishRequest::default() };
            let Err(status) = clients.messages.publish(request).await else { break };
            match refusal(&status) {
                Some(delay) => {
                    ledger.refused.fetch_add(1, Ordering::Relaxed);
                    tokio::time::sleep(delay).await;
                }
                None if is_lost_connection(&status) => {
                    ledger.unknown.fetch_add(1, Ordering::Relaxed);
                    tokio::time::sleep(REST).await;
                    clients = Clients::of(&address.borrow());
                }
                None => return Err(format!("a publish failed: {status}")),
            }
        }
        ledger.acknowledge(number);
    }
    Ok(())
}

/// The delay after which what was refused for want of memory may be tried again.
fn refusal(status: &Status) -> Option<Duration> {
    let details = status.get_error_details();
    let reason = details.error_info().map(|info| info.reason.as_str());
    if status.code() != Code::ResourceExhausted || reason != Some("MEMORY_BUDGET") {
        return None;
    }
    details.retry_info()?.retry_delay
}

/// How a consumer is slow.
#[derive(Clone, Copy, Debug)]
pub enum Slow {
    /// It gives credit and never reads.
    Never,
    /// It takes one message a second, and acknowledges it.
    Little,
    /// It gives much credit, reads now and then and leaves it at that.
    Late,
}

impl Slow {
    pub const ALL: [Self; 3] = [Self::Never, Self::Little, Self::Late];

    fn credit(self) -> u64 {
        match self {
            Self::Never => 4,
            Self::Little => 1,
            Self::Late => 1_000,
        }
    }
}

struct Stream {
    up: UnboundedSender<SubscribeRequest>,
    down: Streaming<SubscribeResponse>,
}

impl Stream {
    async fn open(clients: &mut Clients, subscription: &str, messages: u64) -> Result<Self, Status> {
        let (up, requests) = unbounded_channel();
        let credit = Some(Credit { messages, bytes: BYTES });
        let open = Open { subscription: subscription.to_owned(), credit, ..Open::default() };
        let _ = up.send(SubscribeRequest { request: Some(Up::Open(open)) });
        let answers = clients.messages.subscribe(UnboundedReceiverStream::new(requests)).await?;
        Ok(Self { up, down: answers.into_inner() })
    }

    /// The next messages.
    async fn next(&mut self) -> Result<Deliveries, Status> {
        loop {
            match self.down.message().await?.and_then(|answer| answer.response) {
                Some(Down::Deliveries(deliveries)) => return Ok(deliveries),
                Some(_) => {}
                None => return Err(Status::unavailable("the stream has ended")),
            }
        }
    }

    /// Finishes messages and asks for as many more.
    fn ack(&self, deliveries: Deliveries) {
        let ack_ids: Vec<String> = deliveries.messages.into_iter().map(|received| received.ack_id).collect();
        let bytes = ack_ids.len() as u64 * super::ledger::BODY_BYTES as u64;
        let credit = Credit { messages: ack_ids.len() as u64, bytes };
        // Should it fail, reading fails too.
        for request in [Up::Acks(Acks { ack_ids, ..Acks::default() }), Up::Credit(credit)] {
            let _ = self.up.send(SubscribeRequest { request: Some(request) });
        }
    }
}

/// Consumes slowly for ever.
pub async fn dawdle(ledger: Arc<Ledger>, mut clients: Clients, subscription: String, slow: Slow) {
    loop {
        if let Ok(mut stream) = Stream::open(&mut clients, &subscription, slow.credit()).await {
            let _ended: Status = match slow {
                Slow::Never => std::future::pending().await,
                Slow::Little => loop {
                    match stream.next().await {
                        Ok(deliveries) => stream.ack(deliveries),
                        Err(status) => break status,
                    }
                    tokio::time::sleep(Duration::from_secs(1)).await;
                },
                Slow::Late => loop {
                    if let Err(status) = stream.next().await {
                        break status;
                    }
                    tokio::time::sleep(Duration::from_secs(3)).await;
                },
            };
            ledger.cut.fetch_add(1, Ordering::Relaxed);
        }
        tokio::time::sleep(REST).await;
    }
}

/// Reads and finishes all that was acknowledged.
pub async fn take_all(ledger: Arc<Ledger>, mut clients: Clients) -> Result<(), String> {
    let mut stream = None;
    while ledger.missing() > 0 {
        let open = match &mut stream {
            Some(open) => open,
            closed => {
                let opened = Stream::open(&mut clients, &subscription(QUEUE), CREDIT).await;
                closed.insert(opened.map_err(|status| format!("the queue cannot be read: {status}"))?)
            }
        };
        match open.next().await {
            Ok(deliveries) => {
                for received in &deliveries.messages {
                    let message = received.message.as_ref().ok_or("a delivery has no message")?;
                    ledger.receive(&message.body)?;
                }
                open.ack(deliveries);
            }
            // Cut off, as this reader was slow while others waited.
            Err(status) if status.code() == Code::ResourceExhausted => {
                ledger.cut.fetch_add(1, Ordering::Relaxed);
                stream = None;
            }
            Err(status) => return Err(format!("reading failed: {status}")),
        }
    }
    Ok(())
}

//! One `Subscribe` stream.
//!
//! 1. The first request is Open, within [`OPEN_WAIT`] and what it waits for memory; there is no second one.
//! 2. Requests have memory before they are read, until they are answered. Deliveries wait for credit and for memory at
//!    the broker, never here: what is buffered for a consumer is bounded by the credit that it gave, and counts in the
//!    memory budget until HTTP/2 has sent it.
//! 3. Batches of acks are worked on side by side and answered in the order in which they came. At most
//!    [`UNANSWERED_ACKS_MAX`] are without an answer; beyond that the stream is not read. Their results take memory from
//!    what goes out before they are in line, and count there until HTTP/2 has sent them, as deliveries do.
//! 4. An error ends the stream with its status. Leases outlive it.
//! 5. A client that ends its side gets the results of its acks, then the end. A draining server says so with a
//!    Notice, then ends the stream with UNAVAILABLE.
//! 6. Deliveries that were leased and of which HTTP/2 has taken nothing are released at the end ([`super::unsent`]).

use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;

use bytes::Bytes;
use tokio::sync::mpsc;
use tokio::time::Interval;
use tokio_stream::wrappers::ReceiverStream;
use tokio_stream::{Stream, StreamExt};
use tonic::{Status, body};

use super::caught::caught;
use super::check;
use super::explain::unreadable;
use super::incoming::{Incoming, IncomingStream};
use super::outgoing::{self, Content};
use super::settling::{Batch, Settling};
use super::status::Refusal;
use super::unsent::Unsent;
use super::wire::subscribe::{self as wire, Gathered, Ready, Request};
use super::{Shared, time};
use crate::admission::{Held, Outlet, Permit, answer_memory};
use crate::broker::api::{AckId, BrokerError, Consumer, Delivery, DeliveryBatch, SubscribeOptions};
use crate::clock;
use crate::limits::*;
use crate::names::SubscriptionName;
use crate::proto::v1::subscribe_request::{Credit, Open, Request as Asked};
use crate::proto::v1::subscribe_response::{Heartbeat, Notice, Opened, Response as Down, notice};
use crate::proto::v1::{SubscribeRequest, SubscribeResponse};

/// How long a stream may stay without its Open.
const OPEN_WAIT: Duration = Duration::from_secs(10);
/// Answers that wait for the network.
const ANSWERS_MAX: usize = 4;
/// A response is closed once it has this many bytes, so that clients with the usual limit of 4 MiB can read it.
const RESPONSE_BYTES: usize = 1 << 20;

/// Where streams are opened.
pub const PATH: &str = "/forebay.v1.MessageService/Subscribe";

pub type Answer = Result<Held<Content>, Status>;

/// A request, and the memory that it takes until it is answered.
pub struct Up {
    pub request: Request,
    pub memory: Option<Permit>,
}

/// Requests, which are read ahead while none is asked for.
pub trait Requests: Stream<Item = Result<Up, Status>> + Send + Unpin {
    /// Ready when the stream is to end.
    fn poll_ahead(&mut self, cx: &mut Context<'_>) -> Poll<Status>;

    /// Whether the next request is there as far as the client can tell, and waits for memory.
    fn awaits_memory(&self) -> bool;
}

/// The requests of a body.
struct BodyRequests<B>(IncomingStream<B>);

impl<B> Requests for BodyRequests<B>
where
    B: http_body::Body<Data = Bytes> + Send + Unpin,
{
    fn poll_ahead(&mut self, cx: &mut Context<'_>) -> Poll<Status> {
        self.0.poll_ahead(cx)
    }

    fn awaits_memory(&self) -> bool {
        self.0.awaits_memory()
    }
}

impl<B> Stream for BodyRequests<B>
where
    B: http_body::Body<Data = Bytes> + Unpin,
{
    type Item = Result<Up, Status>;

    fn poll_next(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Self::Item>> {
        let read = |Incoming { bytes, memory }| Ok(Up { request: wire::read(&bytes)?, memory: Some(memory) });
        self.0.poll_next(cx).map(|incoming| incoming.map(|incoming| incoming.and_then(read)))
    }
}

/// Serves a stream whose requests are in `body`.
pub fn serve<B>(shared: Shared, body: B) -> http::Response<body::Body>
where
    B: http_body::Body<Data = Bytes> + Send + Unpin + 'static,
{
    let outlet = shared.outflow.outlet();
    let requests = BodyRequests(IncomingStream::new(body, shared.budgets.others.clone()));
    outgoing::contents(open(shared, outlet.clone(), requests), outlet)
}

/// The other side has gone; nobody is left to tell.
struct Gone;

/// Serves a stream in a task of its own; the answers come from what is returned.
pub fn open(shared: Shared, outlet: Outlet, requests: impl Requests + 'static) -> ReceiverStream<Answer> {
    let (answers, stream) = mpsc::channel(ANSWERS_MAX);
    tokio::spawn(async move {
        let served = tokio::select! {
            served = caught(talk(shared, outlet, requests, answers.clone())) => served,
            // The client has gone: its deliveries end now, not when the next answer fails.
            () = answers.closed() => return,
        };
        if let Err(status) = served.map_err(Status::from).flatten() {
            let _ = answers.send(Err(status)).await;
        }
    });
    ReceiverStream::new(stream)
}

async fn talk(
    shared: Shared,
    outlet: Outlet,
    mut requests: impl Requests,
    answers: mpsc::Sender<Answer>,
) -> Result<(), Status> {
    let Some(first) = first(&mut requests).await? else { return Ok(()) };
    let Request::Any(SubscribeRequest { request: Some(Asked::Open(open)) }) =
        first.map_err(unreadable)?.request
    else {
        return Err(Refusal::Stream { why: "the stream's first request must be Open" }.into());
    };
    let mut session = Session::start(shared, outlet, open, answers).await?;
    // Gone is no error: there is nobody to hear of it.
    session.run(requests).await.unwrap_or(Ok(()))
}

/// The first request, if it comes in time; while it waits for memory, the client is not late.
async fn first(requests: &mut impl Requests) -> Result<Option<Result<Up, Status>>, Refusal> {
    loop {
        match tokio::time::timeout(OPEN_WAIT, requests.next()).await {
            Ok(first) => return Ok(first),
            Err(_) if requests.awaits_memory() => {}
            Err(_) => {
                return Err(Refusal::Stream {
                    why: "the stream's first request, Open, did not come in time",
                });
            }
        }
    }
}

/// The next request; while none is asked for, only what ends the stream.
async fn next(requests: &mut impl Requests, is_asked_for: bool) -> Option<Result<Up, Status>> {
    std::future::poll_fn(|cx| match is_asked_for {
        true => Pin::new(&mut *requests).poll_next(cx),
        false => requests.poll_ahead(cx).map(|status| Some(Err(status))),
    })
    .await
}

struct Session {
    shared: Shared,
    outlet: Outlet,
    name: SubscriptionName,
    unsent: Arc<Unsent>,
    consumer: Consumer,
    deliveries: mpsc::UnboundedReceiver<DeliveryBatch>,
    unspent: Unspent,
    settling: Settling,
    answers: mpsc::Sender<Answer>,
    heartbeat: Interval,
}

/// Credit that was granted and not used, as the client counts it.
#[derive(Debug, Default)]
struct Unspent {
    messages: u64,
    /// Below 0 if the last message overdrew it.
    bytes: i64,
}

impl Unspent {
    /// Takes a grant, unless all that is unspent would be too much.
    fn grant(&mut self, field: &str, credit: &Credit) -> Result<(), Refusal> {
        let messages = self.messages.saturating_add(credit.messages);
        let bytes = self.bytes.saturating_add_unsigned(credit.bytes);
        let limits = [
            ("messages", messages, CREDIT_MESSAGES_MAX),
            ("bytes", u64::try_from(bytes).unwrap_or(0), CREDIT_BYTES_MAX),
        ];
        for (unit, actual, limit) in limits {
            if actual > limit {
                return Err(Refusal::Limit { field: format!("{field}.{unit}"), unit, actual, limit });
            }
        }
        *self = Self { messages, bytes };
        Ok(())
    }

    fn spend(&mut self, messages: u64, bytes: u64) {
        self.messages = self.messages.saturating_sub(messages);
        self.bytes = self.bytes.saturating_sub_unsigned(bytes);
    }
}

/// What the stream does next, or how it ends.
type Step = Result<Result<(), Status>, Gone>;

impl Session {
    async fn start(
        shared: Shared,
        outlet: Outlet,
        open: Open,
        answers: mpsc::Sender<Answer>,
    ) -> Result<Self, Status> {
        let name = check::subscription_name("open.subscription", &open.subscription)?;
        let lease_us = check::lease_if_set("open.lease", open.lease.as_ref())?;
        let credit = open.credit.unwrap_or_default();
        let mut unspent = Unspent::default();
        unspent.grant("open.credit", &credit)?;
        let view = shared.broker.get_subscription(name.clone()).await?;
        let (sink, deliveries) = mpsc::unbounded_channel();
        let options = SubscribeOptions { lease_us, outlet: outlet.clone(), sink };
        let consumer = shared.broker.subscribe(name.clone(), options).await?;
        let mut heartbeat = tokio::time::interval(Duration::from_micros(HEARTBEAT_US));
        heartbeat.reset();
        let settling = Settling::default();
        let unsent = Arc::new(Unsent { broker: shared.broker.clone(), name: name.clone() });
        let session = Self {
            shared,
            outlet,
            name,
            unsent,
            consumer,
            deliveries,
            unspent,
            settling,
            answers,
            heartbeat,
        };
        let opened = Opened {
            lease: Some(time::duration(lease_us.unwrap_or(view.config.lease_us))),
            heartbeat_interval: Some(time::duration(HEARTBEAT_US)),
        };
        // Should the client have gone already, the first answer of `run` notices.
        let _ = session.answers.send(Ok(Held::free(content(Down::Opened(opened))))).await;
        session.grant(credit);
        Ok(session)
    }

    fn grant(&self, credit: Credit) {
        if credit.messages > 0 || credit.bytes > 0 {
            self.consumer.add_credit(credit.messages, credit.bytes);
        }
    }

    async fn run(&mut self, mut requests: impl Requests) -> Step {
        let readiness = self.shared.readiness.clone();
        let mut draining = std::pin::pin!(readiness.draining());
        loop {
            let step = tokio::select! {
                request = next(&mut requests, self.settling.has_room()) => match request {
                    Some(Ok(request)) => Ok(self.take(request)),
                    Some(Err(status)) => Ok(Err(unreadable(status))),
                    None => return self.finish().await,
                },
                Some(results) = self.settling.next() => self.send_results(results).await,
                deliveries = self.deliveries.recv() => match deliveries {
                    Some(deliveries) => {
                        let sent = self.send_deliveries(deliveries).await;
                        self.consumer.taken();
                        sent
                    }
                    None => Ok(Err(self.why_it_ended().await)),
                },
                _ = self.heartbeat.tick() => self.send(Down::Heartbeat(Heartbeat {})).await,
                () = &mut draining => self.send_away().await,
            };
            if !matches!(step, Ok(Ok(()))) {
                return step;
            }
        }
    }

    /// Takes one request of the client.
    fn take(&mut self, Up { request, memory }: Up) -> Result<(), Status> {
        let request = match request {
            Request::Acks { correlation_id, ack_ids } => {
                let batch = Batch::of_acks(correlation_id, ack_ids)?;
                self.settle(batch, memory);
                return Ok(());
            }
            Request::Any(request) => request.request,
        };
        match request {
            Some(Asked::Credit(credit)) => {
                self.unspent.grant("credit", &credit)?;
                self.grant(credit);
            }
            Some(Asked::Acks(acks)) => self.settle(Batch::check(acks)?, memory),
            Some(Asked::Open(_)) => {
                return Err(Refusal::Stream { why: "the stream is open already; send Credit or Acks" }.into());
            }
            None => {
                let why = "a request of the stream is empty or newer than this server; send Credit or Acks";
                return Err(Refusal::Stream { why }.into());
            }
        }
        Ok(())
    }

    fn settle(&mut self, batch: Batch, memory: Option<Permit>) {
        let settled = batch.settle(self.shared.clone(), self.name.clone());
        let outlet = self.outlet.clone();
        self.settling.push(async move {
            let results = content(Down::AckResults(settled.await?));
            let of_results = outlet.wait(answer_memory(results.len() as u64)).await;
            drop(memory);
            Ok(Held { value: results, memory: Some(of_results) })
        });
    }

    async fn send(&mut self, down: Down) -> Step {
        self.send_held(Held::free(content(down))).await
    }

    async fn send_held(&mut self, content: Held<Content>) -> Step {
        self.heartbeat.reset();
        self.answers.send(Ok(content)).await.map(Ok).map_err(|_| Gone)
    }

    async fn send_results(&mut self, results: Answer) -> Step {
        match results {
            Ok(results) => self.send_held(results).await,
            Err(status) => Ok(Err(status)),
        }
    }

    async fn send_deliveries(&mut self, batch: DeliveryBatch) -> Step {
        match self.responses(batch) {
            Ok(responses) => {
                for response in responses {
                    self.send_held(response).await?.ok();
                }
                Ok(Ok(()))
            }
            Err(status) => Ok(Err(status)),
        }
    }

    /// Responses with these deliveries; should one not be readable, the others go back.
    fn responses(&mut self, batch: DeliveryBatch) -> Result<Vec<Held<Content>>, Status> {
        let Held { value: deliveries, mut memory } = batch;
        let now_us = clock::wall_us();
        let mut responses = Vec::with_capacity(1);
        let mut gathered = Gathered::with_capacity(deliveries.len());
        let mut deliveries = deliveries.into_iter();
        while let Some(delivery) = deliveries.next() {
            self.unspent.spend(1, delivery.message.body.len() as u64);
            let ready = match Ready::new(&self.name.queue, delivery, now_us) {
                Ok(ready) => ready,
                Err(status) => {
                    drop(gathered.close(now_us, self.unsent.clone()));
                    self.unsent.give_back(ack_ids(deliveries));
                    return Err(status);
                }
            };
            let bytes = gathered.length();
            if bytes + ready.length() > RESPONSE_BYTES && !gathered.is_empty() {
                let memory = memory.as_mut().and_then(|memory| memory.split(answer_memory(bytes as u64)));
                let closed = std::mem::take(&mut gathered).close(now_us, self.unsent.clone());
                responses.push(Held { value: Content::deliveries(closed), memory });
            }
            gathered.push(ready);
        }
        if !gathered.is_empty() {
            let value = Content::deliveries(gathered.close(now_us, self.unsent.clone()));
            responses.push(Held { value, memory });
        }
        Ok(responses)
    }

    /// The client has ended its side: it still gets the results of its acks.
    async fn finish(&mut self) -> Step {
        while let Some(results) = self.settling.next().await {
            if let Err(status) = self.send_results(results).await? {
                return Ok(Err(status));
            }
        }
        Ok(Ok(()))
    }

    async fn send_away(&mut self) -> Step {
        let kind = notice::Kind::Draining.into();
        let detail = "the server is draining; reconnect after its restart".to_owned();
        self.send(Down::Notice(Notice { kind, detail })).await?.ok();
        if let Err(status) = self.finish().await? {
            return Ok(Err(status));
        }
        Ok(Err(Refusal::Draining.into()))
    }

    /// Why the broker has ended the deliveries: the subscription is gone, or the broker itself.
    async fn why_it_ended(&self) -> Status {
        match self.shared.broker.get_subscription(self.name.clone()).await {
            Err(error) => error.into(),
            Ok(_) => BrokerError::SubscriptionDeleted.into(),
        }
    }
}

/// What was leased for this consumer and not sent goes back at once, without a burnt attempt.
impl Drop for Session {
    fn drop(&mut self) {
        self.deliveries.close();
        while let Ok(batch) = self.deliveries.try_recv() {
            self.unsent.give_back(ack_ids(batch.value));
        }
    }
}

fn ack_ids(deliveries: impl IntoIterator<Item = Delivery>) -> Vec<AckId> {
    deliveries.into_iter().map(|delivery| delivery.ack_id).collect()
}

fn content(down: Down) -> Content {
    Content::encoded(&SubscribeResponse { response: Some(down) })
}

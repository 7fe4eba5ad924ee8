//! One `Subscribe` stream.
//!
//! 1. The first request is Open, within [`OPEN_WAIT`]; there is no second one.
//! 2. Deliveries wait for credit and for memory at the broker, never here: what is buffered for a consumer is bounded by
//!    the credit that it gave, and counts in the memory budget until HTTP/2 has sent it.
//! 3. Batches of acks are worked on side by side and answered in the order in which they came. At most
//!    [`UNANSWERED_ACKS_MAX`] are without an answer; beyond that the stream is not read.
//! 4. An error ends the stream with its status. Leases outlive it.
//! 5. A client that ends its side gets the results of its acks, then the end. A draining server says so with a
//!    Notice, then ends the stream with UNAVAILABLE.
//! 6. Deliveries that were leased and never sent are released at the end.

use std::collections::VecDeque;
use std::time::Duration;

use prost::Message as _;
use tokio::sync::mpsc;
use tokio::task::{JoinError, JoinHandle};
use tokio::time::Interval;
use tokio_stream::wrappers::ReceiverStream;
use tokio_stream::{Stream, StreamExt};
use tonic::Status;

use super::check::{self, at_most, invalid};
use super::explain::unreadable;
use super::status::Refusal;
use super::{Shared, ending, message, time};
use crate::admission::{Held, Outlet, Permit, answer_memory};
use crate::broker::api::{BrokerError, Consumer, DeliveryBatch, Settlement, SubscribeOptions};
use crate::clock;
use crate::core::types::Settled;
use crate::limits::*;
use crate::names::SubscriptionName;
use crate::proto::v1::subscribe_request::{Acks, Credit, Open, Request as Up};
use crate::proto::v1::subscribe_response::{
    AckResults, Deliveries, Heartbeat, Notice, Opened, Response as Down, notice,
};
use crate::proto::v1::{ReceivedMessage, SubscribeRequest, SubscribeResponse};

/// How long a stream may stay without its Open.
const OPEN_WAIT: Duration = Duration::from_secs(10);
/// Answers that wait for the network.
const ANSWERS_MAX: usize = 4;
/// A response is closed once it has this many bytes, so that clients with the usual limit of 4 MiB can read it.
const RESPONSE_BYTES: usize = 1 << 20;

type Answer = Result<Held<SubscribeResponse>, Status>;

/// The other side has gone; nobody is left to tell.
struct Gone;

/// Serves a stream in a task of its own; the answers come from what is returned.
pub fn open(
    shared: Shared,
    outlet: Outlet,
    requests: impl Stream<Item = Result<SubscribeRequest, Status>> + Send + Unpin + 'static,
) -> ReceiverStream<Answer> {
    let (answers, stream) = mpsc::channel(ANSWERS_MAX);
    tokio::spawn(async move {
        let served = tokio::select! {
            served = serve(shared, outlet, requests, answers.clone()) => served,
            // The client has gone: its deliveries end now, not when the next answer fails.
            () = answers.closed() => return,
        };
        if let Err(status) = served {
            let _ = answers.send(Err(status)).await;
        }
    });
    ReceiverStream::new(stream)
}

async fn serve(
    shared: Shared,
    outlet: Outlet,
    mut requests: impl Stream<Item = Result<SubscribeRequest, Status>> + Send + Unpin,
    answers: mpsc::Sender<Answer>,
) -> Result<(), Status> {
    let late = |_| Refusal::Stream { why: "the stream's first request, Open, did not come in time" };
    let Some(first) = tokio::time::timeout(OPEN_WAIT, requests.next()).await.map_err(late)? else {
        return Ok(());
    };
    let Some(Up::Open(open)) = first.map_err(unreadable)?.request else {
        return Err(Refusal::Stream { why: "the stream's first request must be Open" }.into());
    };
    let mut session = Session::start(shared, outlet, open, answers).await?;
    // Gone is no error: there is nobody to hear of it.
    session.run(requests).await.unwrap_or(Ok(()))
}

struct Session {
    shared: Shared,
    name: SubscriptionName,
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

/// Batches of acks under way, oldest first. They go on should the stream end before they are done.
#[derive(Debug, Default)]
struct Settling(VecDeque<JoinHandle<Result<AckResults, Status>>>);

impl Settling {
    fn has_room(&self) -> bool {
        self.0.len() < UNANSWERED_ACKS_MAX
    }

    fn push(&mut self, work: impl Future<Output = Result<AckResults, Status>> + Send + 'static) {
        self.0.push_back(tokio::spawn(work));
    }

    /// Waits for the oldest; none if there is none. Waiting may be given up and begun again.
    async fn next(&mut self) -> Option<Result<AckResults, Status>> {
        let results = self.0.front_mut()?.await;
        self.0.pop_front();
        let failed = |_: JoinError| Err(Refusal::Internal { why: "acknowledging failed" }.into());
        Some(results.unwrap_or_else(failed))
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
        let consumer =
            shared.broker.subscribe(name.clone(), SubscribeOptions { lease_us, outlet, sink }).await?;
        let mut heartbeat = tokio::time::interval(Duration::from_micros(HEARTBEAT_US));
        heartbeat.reset();
        let settling = Settling::default();
        let session = Self { shared, name, consumer, deliveries, unspent, settling, answers, heartbeat };
        let opened = Opened {
            lease: Some(time::duration(lease_us.unwrap_or(view.config.lease_us))),
            heartbeat_interval: Some(time::duration(HEARTBEAT_US)),
        };
        // Should the client have gone already, the first answer of `run` notices.
        let _ = session.answers.send(Ok(Held::free(answer(Down::Opened(opened))))).await;
        session.grant(credit);
        Ok(session)
    }

    fn grant(&self, credit: Credit) {
        if credit.messages > 0 || credit.bytes > 0 {
            self.consumer.add_credit(credit.messages, credit.bytes);
        }
    }

    async fn run(
        &mut self,
        mut requests: impl Stream<Item = Result<SubscribeRequest, Status>> + Send + Unpin,
    ) -> Step {
        let readiness = self.shared.readiness.clone();
        let mut draining = std::pin::pin!(readiness.draining());
        loop {
            let step = tokio::select! {
                request = requests.next(), if self.settling.has_room() => match request {
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
    fn take(&mut self, request: SubscribeRequest) -> Result<(), Status> {
        match request.request {
            Some(Up::Credit(credit)) => {
                self.unspent.grant("credit", &credit)?;
                self.grant(credit);
            }
            Some(Up::Acks(acks)) => {
                let batch = Batch::check(acks)?;
                self.settling.push(batch.settle(self.shared.clone(), self.name.clone()));
            }
            Some(Up::Open(_)) => {
                return Err(Refusal::Stream { why: "the stream is open already; send Credit or Acks" }.into());
            }
            None => {
                let why = "a request of the stream is empty or newer than this server; send Credit or Acks";
                return Err(Refusal::Stream { why }.into());
            }
        }
        Ok(())
    }

    async fn send(&mut self, down: Down) -> Step {
        self.send_held(Held::free(down)).await
    }

    async fn send_held(&mut self, down: Held<Down>) -> Step {
        self.heartbeat.reset();
        self.answers.send(Ok(down.map(answer))).await.map(Ok).map_err(|_| Gone)
    }

    async fn send_results(&mut self, results: Result<AckResults, Status>) -> Step {
        match results {
            Ok(results) => self.send(Down::AckResults(results)).await,
            Err(status) => Ok(Err(status)),
        }
    }

    async fn send_deliveries(&mut self, batch: DeliveryBatch) -> Step {
        let Held { value: deliveries, mut memory } = batch;
        let now_us = clock::wall_us();
        let (mut messages, mut bytes) = (Vec::new(), 0);
        for delivery in deliveries {
            self.unspent.spend(1, delivery.message.body.len() as u64);
            let received = match message::to_deliver(&self.name.queue, delivery, now_us) {
                Ok(received) => received,
                Err(status) => return Ok(Err(status)),
            };
            let more = received.encoded_len();
            if bytes + more > RESPONSE_BYTES && !messages.is_empty() {
                let memory = memory.as_mut().and_then(|memory| memory.split(answer_memory(bytes as u64)));
                self.send_messages(std::mem::take(&mut messages), memory).await?.ok();
                bytes = 0;
            }
            bytes += more;
            messages.push(received);
        }
        if messages.is_empty() { Ok(Ok(())) } else { self.send_messages(messages, memory).await }
    }

    async fn send_messages(&mut self, messages: Vec<ReceivedMessage>, memory: Option<Permit>) -> Step {
        let value = Down::Deliveries(Deliveries { messages });
        self.send_held(Held { value, memory }).await
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
        let mut unsent = Vec::new();
        while let Ok(batch) = self.deliveries.try_recv() {
            unsent.extend(batch.value);
        }
        if !unsent.is_empty() {
            self.shared.broker.release(self.name.clone(), unsent);
        }
    }
}

fn answer(down: Down) -> SubscribeResponse {
    SubscribeResponse { response: Some(down) }
}

/// One checked Acks request.
struct Batch {
    correlation_id: u64,
    acks: usize,
    /// Acks first, then nacks.
    settlements: Vec<Settlement>,
    extend: Vec<String>,
    extend_us: u64,
    bytes: u64,
}

impl Batch {
    fn check(request: Acks) -> Result<Self, Refusal> {
        let bytes = request.encoded_len() as u64;
        let ids = request.ack_ids.len() + request.nacks.len() + request.extend_ack_ids.len();
        if ids == 0 {
            return Err(invalid("acks", format!("has no ack ids; give 1 to {ACK_IDS_MAX}")));
        }
        at_most("acks", "ack ids", ids, ACK_IDS_MAX)?;
        let extend_us = match (&request.extend_lease, request.extend_ack_ids.is_empty()) {
            (Some(lease), _) => check::lease("acks.extend_lease", lease)?,
            (None, true) => 0,
            (None, false) => {
                return Err(invalid("acks.extend_lease", "is required with extend_ack_ids"));
            }
        };
        let acks = request.ack_ids.len();
        let mut settlements: Vec<_> = ending::acks(request.ack_ids).collect();
        settlements.extend(ending::nacks("acks.nacks", request.nacks)?);
        let correlation_id = request.correlation_id;
        Ok(Self { correlation_id, acks, settlements, extend: request.extend_ack_ids, extend_us, bytes })
    }

    async fn settle(self, shared: Shared, name: SubscriptionName) -> Result<AckResults, Status> {
        let _permit = match shared.admission.admit(self.bytes).await {
            Ok(permit) => permit,
            Err(used_up) => return Ok(self.put_off(&used_up.to_string())),
        };
        let settle = async {
            match self.settlements.is_empty() {
                true => Ok(Vec::new()),
                false => shared.broker.settle(name.clone(), self.settlements).await,
            }
        };
        let extend = async {
            match self.extend.is_empty() {
                true => Ok(Vec::new()),
                false => shared.broker.extend(name.clone(), self.extend, self.extend_us).await,
            }
        };
        let (settled, extended) = tokio::join!(settle, extend);
        Ok(results(self.correlation_id, self.acks, settled?, extended?))
    }

    /// Nothing is done now; every id may be sent again.
    fn put_off(&self, why: &str) -> AckResults {
        let transient = |count| vec![Settled::Transient { why: why.to_owned() }; count];
        let (settled, extended) = (transient(self.settlements.len()), transient(self.extend.len()));
        results(self.correlation_id, self.acks, settled, extended)
    }
}

fn results(
    correlation_id: u64,
    acks: usize,
    mut settled: Vec<Settled>,
    extended: Vec<Settled>,
) -> AckResults {
    let nacked = settled.split_off(acks.min(settled.len()));
    AckResults {
        correlation_id,
        acks: ending::results(settled),
        nacks: ending::results(nacked),
        extensions: ending::results(extended),
    }
}

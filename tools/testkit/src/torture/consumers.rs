//! Consumers: they pull or subscribe, and end deliveries in every way there is.

use std::collections::{HashSet, VecDeque};
use std::time::Duration;

use forebay::proto::v1::nack_entry::{self, Reject, Release, Retry};
use forebay::proto::v1::subscribe_request::{self, Acks, Credit, Open};
use forebay::proto::v1::subscribe_response::{self, AckResults};
use forebay::proto::v1::{
    AckResult, AcknowledgeRequest, NackEntry, NackRequest, PullRequest, ReceivedMessage, SubscribeRequest,
    ack_result,
};
use forebay_checker::format::{Answer, Delivery, Ending, Event, How, Moment, Op, Settled};
use tokio::sync::mpsc::{UnboundedSender, unbounded_channel};
use tokio_stream::wrappers::UnboundedReceiverStream;
use tonic::Status;

use super::history::{History, QueueName, hash};
use super::target::{ANSWER_WITHIN, Target, judge};
use crate::payload::Random;
use crate::{Clients, subscription};

/// The shortest lease there is, so that those that are left run out.
const LEASE: Duration = Duration::from_secs(1);
const DRAIN_LEASE: Duration = Duration::from_secs(30);
const RETRY_STEP_NS: u64 = 20_000_000;
const LONG_RETRY_NS: u64 = 600_000_000;
/// Messages that a stream may be ahead.
const CREDIT: u64 = 24;

/// How a consumer gets its messages.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Way {
    Pull,
    Subscribe,
}

/// One consumer.
#[derive(Debug)]
pub struct Consumer {
    pub target: Target,
    pub queue: QueueName,
    pub way: Way,
    pub random: Random,
}

/// A delivery that is to be ended.
struct Held {
    offset: u64,
    ack_id: String,
    /// Its line in the history.
    delivery: u64,
}

/// A consumer on a connection to a server, and the lease that it asks for.
#[derive(Clone, Copy, Debug)]
struct Session {
    number: u64,
    /// The server's life.
    life: u64,
    lease: Duration,
}

impl Session {
    fn new(history: &History, life: u64, lease: Duration) -> Self {
        Self { number: history.number(), life, lease }
    }
}

impl Consumer {
    /// Consumes until it is over.
    pub async fn run(mut self) {
        while let Some(clients) = self.target.clients().await {
            let ended = match self.way {
                Way::Pull => self.pull(clients).await,
                Way::Subscribe => self.subscribe(clients).await,
            };
            if let Err(status) = ended {
                self.target.failed("consume", &status).await;
            }
        }
    }

    /// Pulls until the server goes away.
    async fn pull(&mut self, mut clients: Clients) -> Result<(), Status> {
        let session = Session::new(&self.target.history, self.target.life(), LEASE);
        while !self.target.is_over() {
            let request = PullRequest {
                subscription: subscription(&self.queue),
                max_messages: 1 + self.random.below(40) as u32,
                wait: duration(Duration::from_millis(self.random.below(60))),
                lease: duration(LEASE),
                ..PullRequest::default()
            };
            let held = pull_once(&self.target.history, &mut clients, &self.queue, request, session).await?;
            let endings = self.choose_all(held);
            settle(&self.target.history, &mut clients, &self.queue, session, endings).await?;
        }
        Ok(())
    }

    /// Follows one stream until the server goes away.
    async fn subscribe(&mut self, mut clients: Clients) -> Result<(), Status> {
        let (sender, receiver) = unbounded_channel();
        let credit = Credit { messages: CREDIT, bytes: 1 << 40 };
        let open =
            Open { subscription: subscription(&self.queue), lease: duration(LEASE), credit: Some(credit) };
        send(&sender, subscribe_request::Request::Open(open));
        let history = self.target.history.clone();
        let session = Session::new(&history, self.target.life(), LEASE);
        // When each message that may still come was allowed to.
        let mut allowed = VecDeque::from([(CREDIT, history.now())]);
        let mut calls = HashSet::new();
        let requests = UnboundedReceiverStream::new(receiver);
        let mut stream = clients.messages.subscribe(requests).await?.into_inner();
        while let Some(response) = stream.message().await? {
            match response.response {
                Some(subscribe_response::Response::Deliveries(deliveries)) => {
                    let count = deliveries.messages.len() as u64;
                    let mut held = Vec::new();
                    for received in deliveries.messages {
                        let after = take_one(&mut allowed, &history);
                        held.extend(seen(&history, &self.queue, received, after, session));
                    }
                    let endings = self.choose_all(held);
                    stream_settle(&history, &self.queue, session, endings, &mut calls, &sender);
                    allowed.push_back((count, history.now()));
                    send(&sender, subscribe_request::Request::Credit(Credit { messages: count, bytes: 0 }));
                }
                Some(subscribe_response::Response::AckResults(results)) => {
                    stream_settled(&history, results, &mut calls);
                }
                _ => {}
            }
            if self.target.is_over() {
                return Ok(());
            }
        }
        Ok(())
    }

    fn choose_all(&mut self, held: Vec<Held>) -> Vec<(How, Held)> {
        held.into_iter().filter_map(|held| Some((self.choose()?, held))).collect()
    }

    /// How to end a delivery; none: leave it until its lease runs out.
    fn choose(&mut self) -> Option<How> {
        match self.random.below(100) {
            0..80 => Some(How::Ack),
            80..87 => Some(How::Retry { delay_ns: self.random.below(3) * RETRY_STEP_NS }),
            // Long enough to be seen if it does not wait, and to be met by a kill.
            87 => Some(How::Retry { delay_ns: LONG_RETRY_NS }),
            88..93 => Some(How::Release),
            93..95 => Some(How::Reject),
            _ => None,
        }
    }
}

/// Pulls and acknowledges everything until the subscription is empty; whether that came to pass in `patience`.
pub async fn drain(
    history: &History,
    clients: &mut Clients,
    queue: &QueueName,
    life: u64,
    patience: Duration,
) -> Result<bool, Status> {
    let start = std::time::Instant::now();
    let session = Session::new(history, life, DRAIN_LEASE);
    while start.elapsed() < patience {
        let request = PullRequest {
            subscription: subscription(queue),
            max_messages: 500,
            wait: duration(Duration::from_millis(200)),
            lease: duration(DRAIN_LEASE),
            ..PullRequest::default()
        };
        let held = pull_once(history, clients, queue, request, session).await?;
        if held.is_empty() && backlog(clients, queue).await? == 0 {
            history.record(Event::Waiting { queue: queue.to_string(), ranges: Vec::new() });
            return Ok(true);
        }
        let endings = held.into_iter().map(|held| (How::Ack, held)).collect();
        settle(history, clients, queue, session, endings).await?;
    }
    Ok(false)
}

async fn backlog(clients: &mut Clients, queue: &QueueName) -> Result<u64, Status> {
    let request = forebay::proto::v1::GetSubscriptionRequest { name: subscription(queue) };
    let subscription = clients.queues.get_subscription(request).await?.into_inner();
    Ok(subscription.stats.map_or(0, |stats| stats.backlog_messages))
}

async fn pull_once(
    history: &History,
    clients: &mut Clients,
    queue: &QueueName,
    request: PullRequest,
    session: Session,
) -> Result<Vec<Held>, Status> {
    let after = history.now();
    let pulled = tokio::time::timeout(ANSWER_WITHIN, clients.messages.pull(request)).await;
    let Ok(pulled) = pulled else {
        history.unexpected(format!("{queue}: a pull was not answered in time"));
        return Ok(Vec::new());
    };
    let messages = pulled?.into_inner().messages;
    Ok(messages.into_iter().filter_map(|received| seen(history, queue, received, after, session)).collect())
}

/// Records a delivery.
fn seen(
    history: &History,
    queue: &QueueName,
    received: ReceivedMessage,
    after: Moment,
    session: Session,
) -> Option<Held> {
    let Some(message) = received.message else {
        history.unexpected(format!("{queue}: a delivery without a message"));
        return None;
    };
    // No message has the id 0.
    let id = message.attributes.get("id").and_then(|id| id.parse().ok()).unwrap_or(0);
    let origin = message.dead_letter.map(|letter| {
        let name = letter.queue.rsplit('/').next().unwrap_or_default();
        (name.to_owned(), letter.offset)
    });
    let delivery = history.record(Event::Delivered(Delivery {
        queue: queue.to_string(),
        offset: message.offset,
        id,
        length: message.body.len() as u32,
        hash: hash(&message.body),
        attempt: received.attempt,
        after,
        lease_ns: session.lease.as_nanos() as u64,
        session: session.number,
        life: session.life,
        origin,
    }));
    Some(Held { offset: message.offset, ack_id: received.ack_id, delivery })
}

/// Ends deliveries by single calls, those that are acknowledged apart from the others.
async fn settle(
    history: &History,
    clients: &mut Clients,
    queue: &QueueName,
    session: Session,
    endings: Vec<(How, Held)>,
) -> Result<(), Status> {
    let (acked, others): (Vec<_>, Vec<_>) = endings.into_iter().partition(|(how, _)| *how == How::Ack);
    if !acked.is_empty() {
        let call = invoked(history, queue, session, &acked);
        let ack_ids = acked.into_iter().map(|(_, held)| held.ack_id).collect();
        let request = AcknowledgeRequest { subscription: subscription(queue), ack_ids };
        let answer = clients.messages.acknowledge(request).await.map(|answer| answer.into_inner().results);
        settled(history, call, answer)?;
    }
    if !others.is_empty() {
        let call = invoked(history, queue, session, &others);
        let entries = others.into_iter().map(|(how, held)| entry(how, held)).collect();
        let request = NackRequest { subscription: subscription(queue), entries };
        let answer = clients.messages.nack(request).await.map(|answer| answer.into_inner().results);
        settled(history, call, answer)?;
    }
    Ok(())
}

fn invoked(history: &History, queue: &QueueName, session: Session, endings: &[(How, Held)]) -> u64 {
    let ending =
        |(how, held): &(How, Held)| Ending { offset: held.offset, delivery: held.delivery, how: *how };
    let endings = endings.iter().map(ending).collect();
    history.invoke(Op::Settle { queue: queue.to_string(), life: session.life, endings })
}

fn settled(history: &History, call: u64, answer: Result<Vec<AckResult>, Status>) -> Result<(), Status> {
    let (event, failed) = match answer {
        Ok(results) => {
            let results = results.iter().map(outcome).collect();
            (Event::Ok { call, answer: Answer::Settled { results } }, Ok(()))
        }
        Err(status) => (Event::Unknown { call }, Err(status)),
    };
    history.record(event);
    failed
}

fn stream_settle(
    history: &History,
    queue: &QueueName,
    session: Session,
    endings: Vec<(How, Held)>,
    calls: &mut HashSet<u64>,
    sender: &UnboundedSender<SubscribeRequest>,
) {
    let (acked, others): (Vec<_>, Vec<_>) = endings.into_iter().partition(|(how, _)| *how == How::Ack);
    for endings in [acked, others] {
        if endings.is_empty() {
            continue;
        }
        let correlation_id = invoked(history, queue, session, &endings);
        calls.insert(correlation_id);
        let mut acks = Acks { correlation_id, ..Acks::default() };
        for (how, held) in endings {
            match how {
                How::Ack => acks.ack_ids.push(held.ack_id),
                other => acks.nacks.push(entry(other, held)),
            }
        }
        send(sender, subscribe_request::Request::Acks(acks));
    }
}

fn stream_settled(history: &History, results: AckResults, calls: &mut HashSet<u64>) {
    let call = results.correlation_id;
    if !calls.remove(&call) {
        return history.unexpected(format!("results of acks {call}, which were not sent or are answered"));
    }
    let results = results.acks.iter().chain(&results.nacks).map(outcome).collect();
    history.record(Event::Ok { call, answer: Answer::Settled { results } });
}

/// When the next message of a stream was allowed to be sent, at the latest.
fn take_one(allowed: &mut VecDeque<(u64, Moment)>, history: &History) -> Moment {
    while let Some((count, moment)) = allowed.front_mut() {
        if *count > 0 {
            *count -= 1;
            return *moment;
        }
        allowed.pop_front();
    }
    history.unexpected("a stream got more messages than it had credit for");
    Moment { i: 0, t: 0 }
}

fn entry(how: How, held: Held) -> NackEntry {
    let ending = match how {
        How::Retry { delay_ns } => {
            let delay = duration(Duration::from_nanos(delay_ns));
            nack_entry::Ending::Retry(Retry { delay, ..Retry::default() })
        }
        How::Release => nack_entry::Ending::Release(Release {}),
        How::Reject => nack_entry::Ending::Reject(Reject { error: "not wanted".to_owned() }),
        How::Ack | How::Extend { .. } => unreachable!("they have lists of their own"),
    };
    NackEntry { ack_id: held.ack_id, ending: Some(ending) }
}

fn outcome(result: &AckResult) -> Settled {
    match result.status() {
        ack_result::Status::Ok => Settled::Ok,
        ack_result::Status::Stale => Settled::Stale,
        ack_result::Status::Transient => Settled::Transient,
        ack_result::Status::Refused => Settled::Refused,
        ack_result::Status::Invalid | ack_result::Status::Unspecified => Settled::Invalid,
    }
}

fn send(sender: &UnboundedSender<SubscribeRequest>, request: subscribe_request::Request) {
    // A stream that has ended is noticed by its reader.
    let _ = sender.send(SubscribeRequest { request: Some(request) });
}

#[expect(clippy::unnecessary_wraps, reason = "fields of messages are optional")]
fn duration(duration: Duration) -> Option<prost_types::Duration> {
    Some(prost_types::Duration { seconds: duration.as_secs() as i64, nanos: duration.subsec_nanos() as i32 })
}

/// Judges an error of a drain, which has no server that goes away.
pub fn drain_failed(history: &History, status: &Status) {
    judge(history, "drain", status);
    history.unexpected(format!("a drain failed: {status}"));
}

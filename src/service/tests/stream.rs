//! Subscribe streams.

use std::task::{Context, Poll};

use prost::Message as _;
use tokio_stream::StreamExt;
use tokio_stream::wrappers::ReceiverStream;
use tonic::Status;

use super::*;
use crate::broker::api::DeliveryBatch;
use crate::observe::readiness::Phase;
use crate::proto::v1::subscribe_request::{Acks, Credit, Open, Request as Up};
use crate::proto::v1::subscribe_response::Response as Down;
use crate::service::admit::PREFIX_BYTES;
use crate::service::outgoing::Content;
use crate::service::{subscribe, wire};

type Sink = mpsc::UnboundedSender<DeliveryBatch>;

/// What the played broker tells the test.
#[derive(Debug)]
pub(super) enum Seen {
    Subscribed(Sink),
    Credit(u64, u64),
    Taken,
    Unsubscribed,
    Released(Vec<String>),
}

impl subscribe::Requests for ReceiverStream<Result<subscribe::Up, Status>> {
    fn poll_ahead(&mut self, _: &mut Context<'_>) -> Poll<Status> {
        Poll::Pending
    }

    fn awaits_memory(&self) -> bool {
        false
    }
}

struct Stream {
    up: mpsc::Sender<Result<subscribe::Up, Status>>,
    down: ReceiverStream<Result<Held<Content>, Status>>,
    seen: mpsc::UnboundedReceiver<Seen>,
    shared: Shared,
}

pub(super) fn play(seen: mpsc::UnboundedSender<Seen>) -> Broker {
    broker(move |call| match call {
        Call::GetSubscription { name, reply } => {
            let config = SubscriptionConfig {
                lease_us: 20_000_000,
                in_flight_max: 1,
                ..SubscriptionConfig::default()
            };
            let (uid, stats) = (Uid([2; 16]), SubscriptionStats::default());
            reply
                .send(Ok(SubscriptionView {
                    name,
                    uid,
                    config,
                    create_time_us: 0,
                    update_time_us: 0,
                    revision: 0,
                    pause: None,
                    stats,
                }))
                .unwrap();
        }
        Call::Subscribe { options, reply, .. } => {
            let _ = seen.send(Seen::Subscribed(options.sink));
            reply.send(Ok(())).unwrap();
        }
        Call::Credit { messages, bytes, .. } => drop(seen.send(Seen::Credit(messages, bytes))),
        Call::Taken { .. } => drop(seen.send(Seen::Taken)),
        Call::Leave { .. } => drop(seen.send(Seen::Unsubscribed)),
        Call::Settle { settlements, reply, .. } => {
            let released = settlements.iter().filter(|one| one.ending == Ending::Release);
            let released: Vec<String> = released.map(|one| one.ack_id.as_str().to_owned()).collect();
            if !released.is_empty() {
                let _ = seen.send(Seen::Released(released));
            }
            let settle = |one: crate::broker::api::Settlement| match one.ending {
                Ending::Ack => Settled::Ok,
                _ => Settled::Stale,
            };
            // Nobody waits for the answer to a release.
            let _ = reply.send(Ok(settlements.into_iter().map(settle).collect()));
        }
        Call::Extend { ack_ids, reply, .. } => {
            reply.send(Ok(vec![Settled::Invalid; ack_ids.len()])).unwrap();
        }
        call => panic!("{call:?}"),
    })
}

impl Stream {
    fn start() -> Self {
        let (tell, seen) = mpsc::unbounded_channel();
        let shared = shared(play(tell));
        let (up, requests) = mpsc::channel(4);
        let outlet = shared.outflow.outlet();
        let down = subscribe::open(shared.clone(), outlet, ReceiverStream::new(requests));
        Self { up, down, seen, shared }
    }

    async fn opened(credit: Option<Credit>) -> (Self, Sink) {
        let mut stream = Self::start();
        let subscription = SUBSCRIPTION.to_owned();
        stream.send(Up::Open(Open { subscription, lease: None, credit })).await;
        let Down::Opened(opened) = stream.next().await.unwrap() else { panic!("not opened") };
        assert_eq!(opened.lease.unwrap().seconds, 20);
        let Some(Seen::Subscribed(sink)) = stream.seen.recv().await else { panic!("not subscribed") };
        (stream, sink)
    }

    async fn send(&self, up: Up) {
        let request = v1::SubscribeRequest { request: Some(up) }.encode_to_vec().into();
        let request = wire::subscribe::read(&request).unwrap();
        self.up.send(Ok(subscribe::Up { request, memory: None })).await.unwrap();
    }

    async fn next(&mut self) -> Result<Down, Status> {
        self.next_or_end().await.expect("the stream has ended")
    }

    async fn next_or_end(&mut self) -> Option<Result<Down, Status>> {
        let shown = |answer: Held<Content>| {
            let answer = v1::SubscribeResponse::decode(&answer.value.into_bytes()[PREFIX_BYTES..]);
            answer.unwrap().response.unwrap()
        };
        self.down.next().await.map(|answer| answer.map(shown))
    }
}

#[tokio::test]
async fn credit_goes_to_the_broker_and_deliveries_come_back() {
    let credit = |messages, bytes| Credit { messages, bytes };
    let (mut stream, sink) = Stream::opened(Some(credit(5, 500))).await;
    assert!(matches!(stream.seen.recv().await, Some(Seen::Credit(5, 500))));
    stream.send(Up::Credit(credit(1, 0))).await;
    assert!(matches!(stream.seen.recv().await, Some(Seen::Credit(1, 0))));
    // Three messages of 600 KiB: one response holds no two of them.
    sink.send(Held::free((0..3).map(|offset| delivery(offset, 600 << 10)).collect())).unwrap();
    sink.send(Held::free((3..6).map(|offset| delivery(offset, 1)).collect())).unwrap();
    let mut sizes = Vec::new();
    while sizes.iter().sum::<usize>() < 6 {
        let Down::Deliveries(deliveries) = stream.next().await.unwrap() else { panic!("no deliveries") };
        sizes.push(deliveries.messages.len());
    }
    assert_eq!(sizes, [1, 1, 1, 3]);
    // Without its word the broker would send no more.
    for _ in 0..2 {
        assert!(matches!(stream.seen.recv().await, Some(Seen::Taken)));
    }
}

#[tokio::test]
async fn acks_are_answered_with_their_correlation_id() {
    let (mut stream, _sink) = Stream::opened(None).await;
    let release = Some(v1::nack_entry::Ending::Release(v1::nack_entry::Release {}));
    let acks = Acks {
        correlation_id: 42,
        ack_ids: vec!["a".into(), "b".into()],
        nacks: vec![v1::NackEntry { ack_id: "c".into(), ending: release }],
        extend_ack_ids: vec!["d".into()],
        extend_lease: Some(prost_types::Duration { seconds: 5, nanos: 0 }),
    };
    stream.send(Up::Acks(acks)).await;
    let Down::AckResults(results) = stream.next().await.unwrap() else { panic!("no results") };
    let statuses = |list: &[v1::AckResult]| list.iter().map(|one| one.status).collect::<Vec<_>>();
    assert_eq!(results.correlation_id, 42);
    assert_eq!(statuses(&results.acks), [1, 1]);
    assert_eq!(statuses(&results.nacks), [2]);
    assert_eq!(statuses(&results.extensions), [3]);
}

#[tokio::test]
async fn a_client_that_ends_its_side_still_gets_its_results() {
    let (mut stream, _sink) = Stream::opened(None).await;
    for correlation_id in 0..3 {
        let ack_ids = vec!["a".to_owned()];
        stream.send(Up::Acks(Acks { correlation_id, ack_ids, ..Acks::default() })).await;
    }
    let (closed, _) = mpsc::channel(1);
    stream.up = closed;
    let mut ids = Vec::new();
    while let Some(answer) = stream.next_or_end().await {
        let Down::AckResults(results) = answer.unwrap() else { panic!("no results") };
        ids.push(results.correlation_id);
    }
    ids.sort();
    assert_eq!(ids, [0, 1, 2]);
    assert!(matches!(stream.seen.recv().await, Some(Seen::Unsubscribed)));
}

#[tokio::test]
async fn a_client_that_is_gone_is_unsubscribed() {
    let (mut stream, _sink) = Stream::opened(None).await;
    let (_, down) = mpsc::channel(1);
    stream.down = ReceiverStream::new(down);
    assert!(matches!(stream.seen.recv().await, Some(Seen::Unsubscribed)));
}

#[tokio::test]
async fn wrong_requests_end_the_stream_with_their_status() {
    let credit = Up::Credit(Credit { messages: 1, bytes: 1 });
    let mut stream = Stream::start();
    stream.send(credit.clone()).await;
    assert_eq!(reason(&stream.next().await.unwrap_err()), "STREAM_PROTOCOL");
    assert!(stream.down.next().await.is_none());

    let mut stream = Stream::start();
    stream.send(Up::Open(Open { subscription: "s".into(), ..Open::default() })).await;
    assert_eq!(reason(&stream.next().await.unwrap_err()), "INVALID_FIELD");

    let open = Up::Open(Open { subscription: SUBSCRIPTION.into(), ..Open::default() });
    let many = Up::Credit(Credit { messages: (1 << 32) + 1, bytes: 0 });
    let no_lease = Up::Acks(Acks { extend_ack_ids: vec!["a".into()], ..Acks::default() });
    for (wrong, expected) in [
        (open, "STREAM_PROTOCOL"),
        (many, "LIMIT_EXCEEDED"),
        (no_lease, "INVALID_FIELD"),
        (Up::Acks(Acks::default()), "INVALID_FIELD"),
    ] {
        let (mut stream, _sink) = Stream::opened(None).await;
        stream.send(wrong).await;
        assert_eq!(reason(&stream.next().await.unwrap_err()), expected);
        assert!(stream.down.next().await.is_none());
    }
}

#[tokio::test]
async fn a_draining_server_sends_its_streams_away() {
    let (mut stream, _sink) = Stream::opened(None).await;
    stream.shared.readiness.set(Phase::Draining);
    let Down::Notice(notice) = stream.next().await.unwrap() else { panic!("no notice") };
    assert_eq!(notice.kind(), v1::subscribe_response::notice::Kind::Draining);
    let status = stream.next().await.unwrap_err();
    assert_eq!((status.code(), reason(&status)), (Code::Unavailable, "DRAINING".to_owned()));
    assert!(status.get_error_details().retry_info().is_some());
}

#[tokio::test]
async fn a_subscription_that_goes_ends_its_streams() {
    let (mut stream, sink) = Stream::opened(None).await;
    drop(sink);
    assert_eq!(reason(&stream.next().await.unwrap_err()), "SUBSCRIPTION_NOT_FOUND");
}

#[tokio::test]
async fn what_was_leased_and_not_sent_is_released() {
    let (mut stream, sink) = Stream::opened(None).await;
    // More responses than wait for the network, so the last ones are never taken.
    for offset in 0..20 {
        sink.send(Held::free(vec![delivery(offset, 1)])).unwrap();
    }
    while stream.down.as_ref().len() < 4 {
        tokio::task::yield_now().await;
    }
    let (_, down) = mpsc::channel(1);
    stream.down = ReceiverStream::new(down);
    let mut released = Vec::new();
    // Those that were ready to be taken too.
    while released.len() < 20 {
        match stream.seen.recv().await.unwrap() {
            Seen::Released(ids) => released.extend(ids),
            Seen::Taken | Seen::Unsubscribed => {}
            other => panic!("{other:?}"),
        }
    }
    released.sort_unstable();
    let mut all: Vec<String> = (0..20).map(|offset| format!("ack-{offset}")).collect();
    all.sort_unstable();
    assert_eq!(released, all);
    assert!(sink.send(Held::free(vec![])).is_err());
}

#[tokio::test(start_paused = true)]
async fn an_idle_stream_has_heartbeats() {
    let (mut stream, _sink) = Stream::opened(None).await;
    let start = tokio::time::Instant::now();
    for _ in 0..3 {
        assert!(matches!(stream.next().await.unwrap(), Down::Heartbeat(_)));
    }
    assert_eq!(start.elapsed().as_secs(), 30);
}

#[tokio::test(start_paused = true)]
async fn a_stream_without_open_ends() {
    let start = tokio::time::Instant::now();
    let mut stream = Stream::start();
    assert_eq!(reason(&stream.next().await.unwrap_err()), "STREAM_PROTOCOL");
    assert_eq!(start.elapsed().as_secs(), 10);
    assert!(stream.down.next().await.is_none());
}

#[tokio::test]
async fn results_count_until_they_have_gone_and_wait_for_memory_without_holding_up_the_stream() {
    let (mut stream, _sink) = Stream::opened(None).await;
    let outflow = stream.shared.outflow.clone();
    let acks = |count| Up::Acks(Acks { ack_ids: vec!["a".into(); count], ..Acks::default() });
    stream.send(acks(1_000)).await;
    stream.send(acks(1_000)).await;
    while outflow.used_bytes() < 2 * 6_000 {
        tokio::task::yield_now().await;
    }
    for _ in 0..2 {
        let Down::AckResults(results) = stream.next().await.unwrap() else { panic!("no results") };
        assert_eq!(results.acks.len(), 1_000);
    }
    assert_eq!(outflow.used_bytes(), 0, "they have gone");

    let all = outflow.outlet().try_take(outflow.budget_bytes()).unwrap();
    stream.send(acks(1)).await;
    stream.send(Up::Credit(Credit { messages: 3, bytes: 4 })).await;
    assert!(matches!(stream.seen.recv().await, Some(Seen::Credit(3, 4))), "the stream goes on");
    while !outflow.outlet().is_wanted() {
        tokio::task::yield_now().await;
    }
    assert_eq!(stream.down.as_ref().len(), 0);
    drop(all);
    assert!(matches!(stream.next().await.unwrap(), Down::AckResults(_)));
}

/// An Open that waits for memory at first.
struct Waiting(std::pin::Pin<Box<tokio::time::Sleep>>);

impl tokio_stream::Stream for Waiting {
    type Item = Result<subscribe::Up, Status>;

    fn poll_next(mut self: std::pin::Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Self::Item>> {
        std::task::ready!(self.0.as_mut().poll(cx));
        Poll::Ready(None)
    }
}

impl subscribe::Requests for Waiting {
    fn poll_ahead(&mut self, _: &mut Context<'_>) -> Poll<Status> {
        Poll::Pending
    }

    fn awaits_memory(&self) -> bool {
        !self.0.is_elapsed()
    }
}

#[tokio::test(start_paused = true)]
async fn an_open_that_waits_for_memory_is_not_late() {
    let shared = shared(nobody());
    let outlet = shared.outflow.outlet();
    let wait = Duration::from_secs(95);
    let mut answers = subscribe::open(shared, outlet, Waiting(Box::pin(tokio::time::sleep(wait))));
    assert!(answers.next().await.is_none(), "it ends as its client does");
}

#[tokio::test]
async fn the_memory_of_acks_is_held_until_they_are_answered() {
    let (mut stream, _sink) = Stream::opened(None).await;
    let admission = stream.shared.budgets.others.clone();
    let memory = admission.try_admit(4 << 10);
    let request = wire::subscribe::Request::Acks { correlation_id: 1, ack_ids: vec!["a".into()] };
    stream.up.send(Ok(subscribe::Up { request, memory })).await.unwrap();
    assert_eq!(admission.used_bytes(), 4 << 10);
    let Down::AckResults(_) = stream.next().await.unwrap() else { panic!("no results") };
    assert_eq!(admission.used_bytes(), 0);
}

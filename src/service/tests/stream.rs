//! Subscribe streams.

use tokio_stream::StreamExt;
use tokio_stream::wrappers::ReceiverStream;
use tonic::Status;

use super::*;
use crate::broker::api::DeliveryBatch;
use crate::observe::readiness::Phase;
use crate::proto::v1::subscribe_request::{Acks, Credit, Open, Request as Up};
use crate::proto::v1::subscribe_response::Response as Down;
use crate::service::subscribe;

type Sink = mpsc::UnboundedSender<DeliveryBatch>;

/// What the played broker tells the test.
#[derive(Debug)]
enum Seen {
    Subscribed(Sink),
    Credit(u64, u64),
    Taken,
    Unsubscribed,
    Released(Vec<String>),
}

struct Stream {
    up: mpsc::Sender<Result<v1::SubscribeRequest, Status>>,
    down: ReceiverStream<Result<Held<v1::SubscribeResponse>, Status>>,
    seen: mpsc::UnboundedReceiver<Seen>,
    shared: Shared,
}

fn play(seen: mpsc::UnboundedSender<Seen>) -> Broker {
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
            let released: Vec<String> = released.map(|one| one.ack_id.clone()).collect();
            if !released.is_empty() {
                let _ = seen.send(Seen::Released(released));
            }
            let settle = |one: crate::broker::api::Settlement| match one.ending {
                Ending::Ack => Settled::Ok,
                _ => Settled::Stale,
            };
            reply.send(Ok(settlements.into_iter().map(settle).collect())).unwrap();
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
        self.up.send(Ok(v1::SubscribeRequest { request: Some(up) })).await.unwrap();
    }

    async fn next(&mut self) -> Result<Down, Status> {
        let answer = self.down.next().await.expect("the stream has ended")?;
        Ok(answer.value.response.unwrap())
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
    while let Some(answer) = stream.down.next().await {
        let Some(Down::AckResults(results)) = answer.unwrap().value.response else { panic!("no results") };
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
    while released.len() < 15 {
        match stream.seen.recv().await.unwrap() {
            Seen::Released(ids) => released.extend(ids),
            Seen::Taken | Seen::Unsubscribed => {}
            other => panic!("{other:?}"),
        }
    }
    assert_eq!(released.last().unwrap(), "ack-19");
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

#[tokio::test(start_paused = true)]
async fn acks_beyond_the_memory_budget_may_come_again() {
    let (mut stream, _sink) = Stream::opened(None).await;
    let _all = stream.shared.admission.admit(u64::MAX).await.unwrap();
    let ack_ids = vec!["a".to_owned()];
    stream.send(Up::Acks(Acks { ack_ids, ..Acks::default() })).await;
    let Down::AckResults(results) = stream.next().await.unwrap() else { panic!("no results") };
    assert_eq!(results.acks[0].status(), v1::ack_result::Status::Transient);
    assert!(results.acks[0].detail.contains("memory budget"));
}

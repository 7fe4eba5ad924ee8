//! The services against a broker that the test plays itself.

mod network;
mod publish_call;
mod publish_stream;
mod stream;
mod tail;

use std::sync::{Arc, Mutex};
use std::time::Duration;

use bytes::Bytes;
use tokio::sync::mpsc;
use tonic::{Code, Request};
use tonic_types::StatusExt;

use super::messages::Messages;
use super::queues::Queues;
use super::*;
use crate::admission::{Admission, Held};
use crate::broker::api::{BrokerError, Delivery, Fetched, Published, Request as Call, StoredMessage};
use crate::broker::pipeline::Publish;
use crate::core::types::*;
use crate::ids::Offset;
use crate::names::{Name, QueueName};
use crate::observe::metrics::Metrics;
use crate::proto::v1;
use crate::proto::v1::message_service_server::MessageService;
use crate::proto::v1::queue_service_server::QueueService;
use crate::record::Lane;

const QUEUE: &str = "namespaces/default/queues/q";
const SUBSCRIPTION: &str = "namespaces/default/queues/q/subscriptions/s";

/// A broker whose calls are answered by a function.
fn broker(mut answer: impl FnMut(Call) + Send + 'static) -> Broker {
    let (requests, mut calls) = mpsc::unbounded_channel();
    tokio::spawn(async move {
        while let Some(call) = calls.recv().await {
            answer(call);
        }
    });
    Broker::new(requests, Default::default())
}

fn parts(broker: Broker) -> server::Parts {
    server::Parts {
        broker,
        budgets: Budgets::default(),
        outflow: Outflow::default(),
        metrics: Metrics::default(),
        readiness: Readiness::default(),
        identity: Identity { cluster_uid: Uid([0xab; 16]), incarnation: 3, start_time_us: 5_000_000 },
        connections: Bounds { all: 1_024, per_address: 1_024 },
    }
}

fn shared(broker: Broker) -> Shared {
    let parts = parts(broker);
    let (budgets, outflow, readiness) = (parts.budgets, parts.outflow, parts.readiness);
    Shared::new(Common { broker: parts.broker, budgets, outflow, readiness, identity: parts.identity })
}

/// A broker that must not be called.
fn nobody() -> Broker {
    broker(|call| panic!("the broker was called: {call:?}"))
}

fn queue_view(name: QueueName, config: QueueConfig) -> QueueView {
    let (first_offset, next_offset) = (Offset(2), Offset(5));
    QueueView {
        name,
        uid: Uid([1; 16]),
        config,
        create_time_us: 1_000_000,
        update_time_us: 1_000_000,
        revision: 0,
        pause: None,
        first_offset,
        next_offset,
    }
}

fn stored(offset: u64, body: usize) -> StoredMessage {
    StoredMessage {
        queue_uid: Uid([1; 16]),
        offset: Offset(offset),
        lane: Lane::default(),
        publish_time_us: 7,
        meta: Bytes::new(),
        body: Bytes::from(vec![b'x'; body]),
    }
}

fn delivery(offset: u64, body: usize) -> Delivery {
    let message = stored(offset, body);
    Delivery { ack_id: format!("ack-{offset}").into(), attempt: 1, lease_us: 30_000_000, message }
}

fn reason(status: &tonic::Status) -> String {
    status.get_error_details().error_info().map(|info| info.reason.clone()).unwrap_or_default()
}

fn named(name: &str) -> Option<v1::Queue> {
    Some(v1::Queue { name: name.to_owned(), ..v1::Queue::default() })
}

#[tokio::test]
async fn a_queue_is_made_as_asked() {
    let broker = broker(|call| match call {
        Call::CreateQueue { name, config, default_subscription, reply } => {
            assert!(!default_subscription);
            reply.send(Ok(queue_view(name, config))).unwrap();
        }
        call => panic!("{call:?}"),
    });
    let labels = [("b".to_owned(), "2".to_owned()), ("a".to_owned(), "1".to_owned())];
    let request = v1::CreateQueueRequest {
        queue: named(QUEUE).map(|queue| v1::Queue { labels: labels.clone().into(), ..queue }),
        skip_default_subscription: true,
        ..v1::CreateQueueRequest::default()
    };
    let queue =
        Queues { shared: shared(broker) }.create_queue(Request::new(request)).await.unwrap().into_inner();
    assert_eq!((queue.name.as_str(), queue.uid.as_str()), (QUEUE, "01".repeat(16).as_str()));
    assert_eq!(queue.labels, labels.into());
    assert_eq!((queue.first_offset, queue.next_offset), (2, 5));
}

#[tokio::test]
async fn what_is_not_built_is_refused_by_its_path() {
    let queues = Queues { shared: shared(nobody()) };
    let create = async |request: v1::CreateQueueRequest| {
        let status = queues.create_queue(Request::new(request)).await.unwrap_err();
        assert_eq!(status.code(), Code::Unimplemented);
        status.get_error_details().error_info().unwrap().metadata["field"].clone()
    };
    let quota = named(QUEUE).map(|queue| v1::Queue { disk_quota: Some(Default::default()), ..queue });
    let request = v1::CreateQueueRequest { queue: quota, ..Default::default() };
    assert_eq!(create(request).await, "queue.disk_quota");
    let request = v1::CreateQueueRequest { queue: named(QUEUE), validate_only: true, ..Default::default() };
    assert_eq!(create(request).await, "validate_only");
    let request =
        v1::CreateQueueRequest { queue: named(QUEUE), request_id: "r".into(), ..Default::default() };
    assert_eq!(create(request).await, "request_id");
    let etag = v1::DeleteQueueRequest { name: QUEUE.into(), etag: "e".into(), ..Default::default() };
    assert_eq!(reason(&queues.delete_queue(Request::new(etag)).await.unwrap_err()), "INVALID_FIELD");
    let status = queues.seek(Request::new(v1::SeekRequest::default())).await.unwrap_err();
    assert_eq!((status.code(), reason(&status)), (Code::Unimplemented, "RPC_NOT_BUILT".to_owned()));
    assert!(status.message().starts_with("QueueService.Seek is not built"));
}

#[tokio::test]
async fn a_subscription_has_its_defaults_and_bounds() {
    let made: Arc<Mutex<Vec<(SubscriptionConfig, Start)>>> = Arc::default();
    let seen = made.clone();
    let broker = broker(move |call| match call {
        Call::CreateSubscription { name, config, start, reply } => {
            seen.lock().unwrap().push((config.clone(), start));
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
        call => panic!("{call:?}"),
    });
    let queues = Queues { shared: shared(broker) };
    let create = async |max_in_flight, position: Option<v1::position::Position>| {
        let name = SUBSCRIPTION.to_owned();
        let subscription = Some(v1::Subscription { name, max_in_flight, ..Default::default() });
        let start = position.map(|position| v1::Position { position: Some(position) });
        let request = v1::CreateSubscriptionRequest { subscription, start, ..Default::default() };
        queues.create_subscription(Request::new(request)).await
    };
    use v1::position::Position;
    let shown = create(0, None).await.unwrap().into_inner();
    assert_eq!(shown.lease_duration, Some(prost_types::Duration { seconds: 30, nanos: 0 }));
    assert_eq!(shown.max_in_flight, 10_000);
    assert_eq!((shown.max_attempts, shown.retry_policy), (Some(16), None));
    create(7, Some(Position::Offset(9))).await.unwrap();
    let made = made.lock().unwrap().clone();
    assert_eq!(
        made[0],
        (SubscriptionConfig { lease_us: 30_000_000, ..SubscriptionConfig::default() }, Start::Earliest)
    );
    assert_eq!(
        made[1],
        (SubscriptionConfig { in_flight_max: 7, ..SubscriptionConfig::default() }, Start::Offset(Offset(9)))
    );
    assert_eq!(reason(&create(10_001, None).await.unwrap_err()), "INVALID_FIELD");
    let snapshot = create(1, Some(Position::Snapshot("s".into()))).await.unwrap_err();
    assert_eq!((reason(&snapshot), snapshot.code()), ("FIELD_NOT_BUILT".to_owned(), Code::Unimplemented));
}

#[tokio::test]
async fn listings_go_on_by_token() {
    let names = ["a", "b", "c", "d", "e"];
    let broker = broker(move |call| match call {
        Call::ListQueues { namespace, after, limit, reply } => {
            let later =
                names.iter().filter(|name| after.as_ref().is_none_or(|after| **name > after.as_str()));
            let view = |name: &&str| {
                let name = QueueName { namespace: namespace.clone(), queue: Name::new(name).unwrap() };
                queue_view(name, QueueConfig::default())
            };
            reply.send(Ok(later.take(limit).map(view).collect())).unwrap();
        }
        call => panic!("{call:?}"),
    });
    let queues = Queues { shared: shared(broker) };
    let (mut token, mut pages) = (String::new(), Vec::new());
    loop {
        let parent = "namespaces/default".to_owned();
        let request = v1::ListQueuesRequest { parent, page_size: 2, page_token: token };
        let page = queues.list_queues(Request::new(request)).await.unwrap().into_inner();
        pages.push(page.queues.iter().map(|queue| queue.name.clone()).collect::<Vec<_>>());
        token = page.next_page_token;
        if token.is_empty() {
            break;
        }
    }
    assert_eq!(pages.iter().map(Vec::len).collect::<Vec<_>>(), [2, 2, 1]);
    assert_eq!(pages[2], ["namespaces/default/queues/e"]);
}

#[tokio::test]
async fn a_pull_waits_no_longer_than_its_caller() {
    let broker = broker(|call| match call {
        Call::Pull { options, reply, .. } => {
            assert_eq!(options.wait, Duration::from_millis(1_800));
            assert_eq!((options.messages_max, options.bytes_max), (10, 8 << 20));
            assert_eq!(options.lease_us, Some(5_000_000));
            reply.send(Ok(Held::free(vec![delivery(4, 3)]))).unwrap();
        }
        call => panic!("{call:?}"),
    });
    let wait = Some(prost_types::Duration { seconds: 60, nanos: 0 });
    let lease = Some(prost_types::Duration { seconds: 5, nanos: 0 });
    let subscription = SUBSCRIPTION.to_owned();
    let mut request =
        Request::new(v1::PullRequest { subscription, wait, lease, ..v1::PullRequest::default() });
    request.metadata_mut().insert("grpc-timeout", "2S".parse().unwrap());
    let answer = Messages { shared: shared(broker) }.pull(request).await.unwrap().into_inner();
    let received = &answer.messages[0];
    assert_eq!((received.ack_id.as_str(), received.attempt), ("ack-4", 1));
    assert_eq!(received.message.as_ref().unwrap().offset, 4);
    assert!(received.lease_expire_time.is_some());
}

#[tokio::test]
async fn endings_answer_for_each_id() {
    let broker = broker(|call| match call {
        Call::Settle { settlements, reply, .. } => {
            let settle = |one: &crate::broker::api::Settlement| match one.ending {
                Ending::Ack => Settled::Ok,
                _ => Settled::Stale,
            };
            reply.send(Ok(settlements.iter().map(settle).collect())).unwrap();
        }
        Call::Extend { ack_ids, lease_us, reply, .. } => {
            assert_eq!(lease_us, 1_000_000);
            reply.send(Ok(vec![Settled::Invalid; ack_ids.len()])).unwrap();
        }
        call => panic!("{call:?}"),
    });
    let messages = Messages { shared: shared(broker) };
    let subscription = || SUBSCRIPTION.to_owned();
    let ack_ids = || vec!["a".to_owned(), "b".to_owned()];
    let request = v1::AcknowledgeRequest { subscription: subscription(), ack_ids: ack_ids() };
    let acked = messages.acknowledge(Request::new(request)).await.unwrap().into_inner().results;
    assert_eq!(acked.iter().map(|one| (one.index, one.status)).collect::<Vec<_>>(), [(0, 1), (1, 1)]);
    let ending = Some(v1::nack_entry::Ending::Release(v1::nack_entry::Release {}));
    let entries = vec![v1::NackEntry { ack_id: "a".into(), ending }];
    let request = v1::NackRequest { subscription: subscription(), entries };
    let nacked = messages.nack(Request::new(request)).await.unwrap().into_inner().results;
    assert_eq!(nacked[0].status(), v1::ack_result::Status::Stale);
    let lease = Some(prost_types::Duration { seconds: 1, nanos: 0 });
    let request = v1::ExtendLeaseRequest { subscription: subscription(), ack_ids: ack_ids(), lease };
    let extended = messages.extend_lease(Request::new(request)).await.unwrap().into_inner().results;
    assert_eq!(extended[1].status(), v1::ack_result::Status::Invalid);
    let request = v1::ExtendLeaseRequest { subscription: subscription(), ack_ids: ack_ids(), lease: None };
    let status = messages.extend_lease(Request::new(request)).await.unwrap_err();
    assert_eq!(status.message(), "lease: is required");
    let request = v1::AcknowledgeRequest { subscription: subscription(), ack_ids: vec![] };
    assert_eq!(reason(&messages.acknowledge(Request::new(request)).await.unwrap_err()), "INVALID_FIELD");
}

#[tokio::test]
async fn many_results_count_until_they_have_gone() {
    let broker = broker(|call| match call {
        Call::Settle { settlements, reply, .. } => {
            reply.send(Ok(vec![Settled::Ok; settlements.len()])).unwrap();
        }
        call => panic!("{call:?}"),
    });
    let messages = Messages { shared: shared(broker) };
    let outflow = messages.shared.outflow.clone();
    for (count, bytes) in [(10, 0), (10_000, 10_000 * size_of::<v1::AckResult>() as u64)] {
        let request =
            v1::AcknowledgeRequest { subscription: SUBSCRIPTION.into(), ack_ids: vec!["a".into(); count] };
        let answer = messages.acknowledge(Request::new(request)).await.unwrap();
        assert_eq!(outflow.used_bytes() > 0, bytes > 0);
        assert!(outflow.used_bytes() >= bytes);
        drop(answer);
        assert_eq!(outflow.used_bytes(), 0);
    }
}

#[tokio::test]
async fn a_peek_shows_messages_and_errors() {
    let broker = broker(|call| match call {
        Call::Peek { from: Some(Offset(3)), reply, .. } => {
            reply.send(Ok(Fetched::Whole(Held::free(vec![stored(3, 1)])))).unwrap()
        }
        Call::Peek { queue, reply, .. } => {
            reply.send(Err(BrokerError::DataLoss { queue, offset: Offset(1) })).unwrap()
        }
        call => panic!("{call:?}"),
    });
    let messages = Messages { shared: shared(broker) };
    let peek = async |from_offset| {
        let request = v1::PeekRequest { queue: QUEUE.into(), from_offset, ..Default::default() };
        messages.peek(Request::new(request)).await
    };
    assert_eq!(peek(Some(3)).await.unwrap().into_inner().messages[0].offset, 3);
    assert_eq!(peek(None).await.unwrap_err().code(), Code::DataLoss);
}

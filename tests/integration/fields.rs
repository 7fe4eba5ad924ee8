//! Fields and calls that are not built are named in the error, and so are fields that only the server sets.

use forebay::proto::v1::*;
use forebay_testkit::queue;
use tonic::Code;

use crate::bad_input::{Bench, duration};
use crate::support::*;

/// A field, and how to set it.
type Change<T> = (&'static str, fn(&mut T));

#[tokio::test]
async fn fields_that_are_not_built_are_named_and_fields_of_the_server_are_refused() {
    let mut bench = Bench::new().await;
    let now = || Some(prost_types::Timestamp::default());
    use message::{Delivery, Expiry};
    let not_built: [Change<Message>; 9] = [
        ("ordering_key", |m| m.ordering_key = "k".into()),
        ("priority", |m| m.priority = Some(0)),
        ("delay", |m| m.delivery = Some(Delivery::Delay(seconds(1)))),
        ("deliver_time", |m| m.delivery = Some(Delivery::DeliverTime(Default::default()))),
        ("ttl", |m| m.expiry = Some(Expiry::Ttl(seconds(1)))),
        ("expire_time", |m| m.expiry = Some(Expiry::ExpireTime(Default::default()))),
        ("dedupe_id", |m| m.dedupe_id = "d".into()),
        ("caused_by", |m| m.caused_by = vec!["c".into()]),
        ("new_origin", |m| m.new_origin = true),
    ];
    for (field, change) in not_built {
        let error = bench.publish_one(change).await;
        check_field(&error, "FIELD_NOT_BUILT", &format!("messages[0].{field}"));
    }
    let output: [Change<Message>; 4] = [
        ("message_id", |m| m.message_id = "i".into()),
        ("offset", |m| m.offset = 1),
        ("publish_time", |m| m.publish_time = Some(Default::default())),
        ("dead_letter", |m| m.dead_letter = Some(DeadLetter::default())),
    ];
    for (field, change) in output {
        let error = bench.publish_one(change).await;
        check_field(&error, "OUTPUT_ONLY_FIELD", &format!("messages[0].{field}"));
    }
    let conditional = PublishRequest {
        queue: queue("q"),
        messages: vec![message("m")],
        expected_next_offset: Some(3),
        ..Default::default()
    };
    let error = bench.clients.messages.publish(conditional).await.unwrap_err();
    check_field(&error, "FIELD_NOT_BUILT", "expected_next_offset");

    let made = |change: fn(&mut Queue)| {
        let mut queue = Queue { name: queue("new"), ..Default::default() };
        change(&mut queue);
        CreateQueueRequest { queue: Some(queue), ..Default::default() }
    };
    let cases: [Change<Queue>; 4] = [
        ("retention", |q| q.retention = Some(Default::default())),
        ("disk_quota", |q| q.disk_quota = Some(Default::default())),
        ("max_hops", |q| q.max_hops = Some(1)),
        ("dead_letter_queue", |q| q.dead_letter_queue = queue("d")),
    ];
    for (field, change) in cases {
        let error = bench.clients.queues.create_queue(made(change)).await.unwrap_err();
        check_field(&error, "FIELD_NOT_BUILT", &format!("queue.{field}"));
    }
    let set = Queue { name: queue("new"), create_time: now(), ..Default::default() };
    let request = CreateQueueRequest { queue: Some(set), ..Default::default() };
    let error = bench.clients.queues.create_queue(request).await.unwrap_err();
    check_field(&error, "OUTPUT_ONLY_FIELD", "queue.create_time");
    let checked = CreateQueueRequest { validate_only: true, ..made(|_| {}) };
    let error = bench.clients.queues.create_queue(checked).await.unwrap_err();
    check_field(&error, "FIELD_NOT_BUILT", "validate_only");
    let request = DeleteQueueRequest { name: queue("q"), etag: "e".into(), ..Default::default() };
    check_field(&bench.clients.queues.delete_queue(request).await.unwrap_err(), "INVALID_FIELD", "etag");
    let request = PauseRequest { name: queue("q"), source: "s".into(), ..Default::default() };
    check_field(&bench.clients.queues.pause(request).await.unwrap_err(), "FIELD_NOT_BUILT", "source");

    let cases: [Change<Subscription>; 2] = [
        ("filter", |s| s.filter = "f".into()),
        ("exactly_once_delivery", |s| s.exactly_once_delivery = true),
    ];
    for (field, change) in cases {
        let mut made = Subscription { name: format!("{}/subscriptions/s", queue("q")), ..Default::default() };
        change(&mut made);
        let request = CreateSubscriptionRequest { subscription: Some(made), ..Default::default() };
        let error = bench.clients.queues.create_subscription(request).await.unwrap_err();
        check_field(&error, "FIELD_NOT_BUILT", &format!("subscription.{field}"));
    }
    bench.check_unchanged().await;
}

#[tokio::test]
async fn retry_policies_are_checked() {
    let mut bench = Bench::new().await;
    let policy = |min: Option<_>, max: Option<_>| Some(RetryPolicy { min_backoff: min, max_backoff: max });
    let short = || duration(0, 999_000);
    let long = || duration(604_800, 1);
    let mut cases = vec![
        ("max_attempts", Subscription { max_attempts: Some(0), ..Default::default() }),
        ("max_attempts", Subscription { max_attempts: Some(1_000_001), ..Default::default() }),
        ("dead_letter_queue", Subscription { dead_letter_queue: "lost".into(), ..Default::default() }),
        // Back to itself.
        ("dead_letter_queue", Subscription { dead_letter_queue: queue("q"), ..Default::default() }),
    ];
    for (field, retry_policy) in [
        ("retry_policy.min_backoff", policy(short(), None)),
        ("retry_policy.min_backoff", policy(long(), None)),
        ("retry_policy.max_backoff", policy(None, short())),
        ("retry_policy.max_backoff", policy(None, long())),
        ("retry_policy.max_backoff", policy(duration(5, 0), duration(4, 0))),
    ] {
        cases.push((field, Subscription { retry_policy, ..Default::default() }));
    }
    for (field, made) in cases {
        let made = Subscription { name: format!("{}/subscriptions/s", queue("q")), ..made };
        let request = CreateSubscriptionRequest { subscription: Some(made), ..Default::default() };
        let error = bench.clients.queues.create_subscription(request).await.unwrap_err();
        check_field(&error, "INVALID_FIELD", &format!("subscription.{field}"));
    }
    bench.check_unchanged().await;
}

#[tokio::test]
async fn calls_that_are_not_built_say_so() {
    let mut bench = Bench::new().await;
    let clients = &mut bench.clients;
    let errors = [
        ("QueueService.Seek", clients.queues.seek(SeekRequest::default()).await.unwrap_err()),
        ("MessageService.Commit", clients.messages.commit(CommitRequest::default()).await.unwrap_err()),
        ("AdminService.Backup", clients.admin.backup(BackupRequest::default()).await.unwrap_err()),
        ("AdminService.Drain", clients.admin.drain(DrainRequest::default()).await.unwrap_err()),
    ];
    for (rpc, error) in errors {
        let details = check_error(&error, Code::Unimplemented, "RPC_NOT_BUILT");
        assert_eq!(details.error_info().unwrap().metadata["rpc"], rpc);
    }
    bench.check_unchanged().await;
}

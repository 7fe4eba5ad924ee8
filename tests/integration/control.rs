//! Changes of queues and subscriptions, pauses, and subscriptions that start at a time.

use std::time::Duration;

use forebay::proto::v1::position::Position as Place;
use forebay::proto::v1::*;
use forebay_testkit::{Clients, queue, subscription};
use prost_types::FieldMask;
use tonic::{Code, Status};

use crate::support::*;

async fn update(clients: &mut Clients, change: Subscription, paths: &[&str]) -> Result<Subscription, Status> {
    let update_mask = Some(FieldMask { paths: paths.iter().map(|&path| path.to_owned()).collect() });
    let subscription = Some(Subscription { name: subscription("q"), ..change });
    let request = UpdateSubscriptionRequest { subscription, update_mask, ..Default::default() };
    clients.queues.update_subscription(request).await.map(tonic::Response::into_inner)
}

async fn pause(clients: &mut Clients, name: &str, publish: PausePublish) -> PauseState {
    let request = PauseRequest {
        name: name.to_owned(),
        publish: publish.into(),
        reason: "drill".into(),
        ..Default::default()
    };
    clients.queues.pause(request).await.unwrap().into_inner().state.unwrap()
}

async fn resume(clients: &mut Clients, name: &str) -> u64 {
    let request = ResumeRequest { name: name.to_owned(), ..Default::default() };
    clients.queues.resume(request).await.unwrap().into_inner().held_messages
}

#[tokio::test]
async fn an_update_changes_what_its_mask_names_and_survives_a_restart() {
    let (site, server, mut clients) = with_queue().await;
    let wanted = Subscription { max_in_flight: 3, max_attempts: Some(9), ..Default::default() };
    let made = update(&mut clients, wanted.clone(), &["max_in_flight"]).await.unwrap();
    assert_eq!((made.max_in_flight, made.max_attempts), (3, Some(16)));
    let part = RetryPolicy { min_backoff: Some(seconds(2)), max_backoff: None };
    let with_policy = Subscription { retry_policy: Some(part), ..wanted };
    let changed = update(&mut clients, with_policy, &["retry_policy.min_backoff"]).await.unwrap();
    assert_eq!((changed.max_in_flight, changed.retry_policy.unwrap().min_backoff), (3, part.min_backoff));
    assert_ne!(changed.etag, made.etag);
    // What is read and sent back without a mask changes nothing.
    let request = UpdateSubscriptionRequest { subscription: Some(changed.clone()), ..Default::default() };
    let same = clients.queues.update_subscription(request).await.unwrap().into_inner();
    assert_eq!(same, changed);
    let stale = Subscription { etag: made.etag, max_in_flight: 7, ..Default::default() };
    let error = update(&mut clients, stale, &["*"]).await.unwrap_err();
    check_error(&error, Code::Aborted, "ETAG_MISMATCH");
    publish(&mut clients, "q", &bodies(5)).await;
    assert_eq!(pull(&mut clients, "q", 5).await.len(), 3, "three may be in flight");
    let labels: std::collections::BTreeMap<_, _> = [("team".to_owned(), "mail".to_owned())].into();
    let named = Queue { name: queue("q"), labels: labels.clone(), ..Default::default() };
    let request = UpdateQueueRequest { queue: Some(named), ..Default::default() };
    clients.queues.update_queue(request).await.unwrap();
    server.kill();
    let server = site.start();
    let mut clients = server.clients();
    assert_eq!(get_queue(&mut clients, "q").await.labels, labels);
    let request = GetSubscriptionRequest { name: subscription("q") };
    let read = clients.queues.get_subscription(request).await.unwrap().into_inner();
    assert_eq!((read.etag, read.max_in_flight), (changed.etag, 3));
}

#[tokio::test]
async fn what_cannot_be_changed_is_refused_by_name() {
    let (_site, _server, mut clients) = with_queue().await;
    for (path, reason, field) in [
        ("filter", "INVALID_FIELD", "subscription.filter"),
        ("name", "INVALID_FIELD", "subscription.name"),
        ("stats", "OUTPUT_ONLY_FIELD", "subscription.stats"),
        ("max_backlog", "FIELD_NOT_BUILT", "subscription.max_backlog"),
        ("colour", "INVALID_FIELD", "update_mask"),
    ] {
        let error = update(&mut clients, Subscription::default(), &[path]).await.unwrap_err();
        check_field(&error, reason, field);
    }
    let exact = Subscription { exactly_once_delivery: true, ..Default::default() };
    let error = update(&mut clients, exact, &[]).await.unwrap_err();
    check_field(&error, "FIELD_NOT_BUILT", "subscription.exactly_once_delivery");
    let long = Subscription { max_in_flight: 10_001, ..Default::default() };
    let error = update(&mut clients, long, &["max_in_flight"]).await.unwrap_err();
    check_field(&error, "INVALID_FIELD", "subscription.max_in_flight");
}

#[tokio::test]
async fn a_paused_queue_holds_its_messages_over_a_restart() {
    let (site, server, mut clients) = with_queue().await;
    publish(&mut clients, "q", &bodies(3)).await;
    let held = pull_from(&mut clients, &subscription("q"), 1, 0, Some(1)).await;
    let mut stream = Stream::open(&mut clients, &subscription("q"), 1, 1 << 20).await;
    let streamed = stream.take(1).await;
    pause(&mut clients, &queue("q"), PausePublish::Unspecified).await;
    stream.credit(10, 0);
    let request = PublishRequest { queue: queue("q"), messages: vec![message("x")], ..Default::default() };
    let published = clients.messages.publish(request).await.unwrap().into_inner();
    assert!(published.results[0].held);
    // The lease of the first has run out by then; it is not handed out again either.
    assert!(pull_from(&mut clients, &subscription("q"), 5, 2, None).await.is_empty());
    assert_eq!(ack(&mut clients, &subscription("q"), ack_ids(&streamed)).await, [ack_result::Status::Ok]);
    server.kill();
    let server = site.start();
    let mut clients = server.clients();
    let pauses = get_queue(&mut clients, "q").await.pauses;
    assert_eq!((pauses.len(), pauses[0].reason.as_str()), (1, "drill"));
    assert!(pull(&mut clients, "q", 5).await.is_empty());
    let waiting = tokio::spawn({
        let mut clients = clients.clone();
        async move { pull_from(&mut clients, &subscription("q"), 5, 30, None).await }
    });
    while server_stats(&mut clients).await.consumers == 0 {
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    assert_eq!(resume(&mut clients, &queue("q")).await, 1);
    assert_eq!(offsets(&waiting.await.unwrap()), [0, 2, 3], "whoever waits is served");
    assert_eq!(offsets(&held), [0]);
    assert!(get_queue(&mut clients, "q").await.pauses.is_empty());
}

#[tokio::test]
async fn a_paused_queue_refuses_if_asked_to_and_subscriptions_pause_alone() {
    let (_site, _server, mut clients) = with_queue().await;
    let other = subscribe_to(&mut clients, "q", "other", None, 0).await;
    let state = pause(&mut clients, &queue("q"), PausePublish::Refuse).await;
    assert_eq!(state.publish(), PausePublish::Refuse);
    let request = PublishRequest { queue: queue("q"), messages: vec![message("x")], ..Default::default() };
    let error = clients.messages.publish(request).await.unwrap_err();
    check_error(&error, Code::FailedPrecondition, "PAUSED");
    assert!(error.message().contains("drill"));
    assert_eq!(resume(&mut clients, &queue("q")).await, 0);
    pause(&mut clients, &other, PausePublish::Unspecified).await;
    publish(&mut clients, "q", &bodies(2)).await;
    assert!(pull_from(&mut clients, &other, 5, 0, None).await.is_empty());
    assert_eq!(pull(&mut clients, "q", 5).await.len(), 2);
    assert_eq!(resume(&mut clients, &other).await, 2);
    assert_eq!(pull_from(&mut clients, &other, 5, 0, None).await.len(), 2);
    let request = PauseRequest { name: other, publish: PausePublish::Refuse.into(), ..Default::default() };
    let error = clients.queues.pause(request).await.unwrap_err();
    check_field(&error, "INVALID_FIELD", "publish");
}

#[tokio::test]
async fn a_subscription_starts_at_the_first_message_of_a_time() {
    let (site, server, mut clients) = with_queue().await;
    for chunk in bodies(60).chunks(3) {
        publish(&mut clients, "q", chunk).await;
        tokio::time::sleep(Duration::from_millis(2)).await;
    }
    server.kill();
    let server = site.start();
    let mut clients = server.clients();
    publish(&mut clients, "q", &bodies(3)).await;
    let request = PeekRequest { queue: queue("q"), max_messages: 100, ..Default::default() };
    let all = clients.messages.peek(request).await.unwrap().into_inner().messages;
    assert_eq!(all.len(), 63);
    let us = |time: &prost_types::Timestamp| time.seconds as u64 * 1_000_000 + time.nanos as u64 / 1_000;
    let times: Vec<u64> = all.iter().map(|message| us(message.publish_time.as_ref().unwrap())).collect();
    let last = *times.last().unwrap();
    let wanted = [0, times[0], times[0] + 1, times[31], times[31] + 1, times[60], last, last + 1];
    for (number, time_us) in wanted.into_iter().enumerate() {
        let time = prost_types::Timestamp {
            seconds: (time_us / 1_000_000) as i64,
            nanos: (time_us % 1_000_000) as i32 * 1_000,
        };
        let name = subscribe_to(&mut clients, "q", &format!("s{number}"), Some(Place::Time(time)), 0).await;
        let expected = times.iter().filter(|time| **time < time_us).count() as u64;
        assert_eq!(stats_of(&mut clients, &name).await.ack_floor, expected, "{time_us} of {times:?}");
    }
    let request = CreateSubscriptionRequest {
        subscription: Some(Subscription {
            name: format!("{}/subscriptions/late", queue("q")),
            ..Default::default()
        }),
        start: Some(Position {
            position: Some(Place::Time(prost_types::Timestamp { seconds: 1 << 33, nanos: 0 })),
        }),
        ..Default::default()
    };
    let error = clients.queues.create_subscription(request).await.unwrap_err();
    check_field(&error, "INVALID_FIELD", "start.time");
}

//! What callers get wrong: each answered with its typed error, and nothing of it done.

use forebay::proto::v1::ack_result::Status as Outcome;
use forebay::proto::v1::nack_entry::{Ending, Retry};
use forebay::proto::v1::subscribe_request::{Acks, Credit, Open, Request as Up};
use forebay::proto::v1::*;
use forebay_testkit::{Clients, Server, ServerOptions, queue, subscription};
use tonic::{Code, Status};

use crate::support::*;

/// A server with a queue that has waiting and finished messages, and all that a caller can see of it.
pub struct Bench {
    _site: Site,
    _server: Server,
    pub clients: Clients,
    before: Vec<(String, u64, SubscriptionStats)>,
}

impl Bench {
    pub async fn new() -> Self {
        Self::on(Site::new()).await
    }

    pub async fn on(site: Site) -> Self {
        let server = site.start();
        let mut clients = server.clients();
        create(&mut clients, "q").await;
        publish(&mut clients, "q", &bodies(3)).await;
        let first = pull(&mut clients, "q", 1).await;
        ack(&mut clients, &subscription("q"), ack_ids(&first)).await;
        let before = visible(&mut clients).await;
        assert_eq!(before[0].1, 3);
        Self { _site: site, _server: server, clients, before }
    }

    /// Checks that nothing has changed since the beginning.
    pub async fn check_unchanged(&mut self) {
        assert_eq!(visible(&mut self.clients).await, self.before);
    }

    pub async fn publish(&mut self, messages: Vec<Message>) -> Status {
        let request = PublishRequest { queue: queue("q"), messages, ..PublishRequest::default() };
        self.clients.messages.publish(request).await.unwrap_err()
    }

    pub async fn publish_one(&mut self, change: impl FnOnce(&mut Message)) -> Status {
        let mut bad = message("bad");
        change(&mut bad);
        self.publish(vec![bad]).await
    }
}

/// Every queue with its next offset and the figures of its subscription.
async fn visible(clients: &mut Clients) -> Vec<(String, u64, SubscriptionStats)> {
    let request = ListQueuesRequest { parent: "namespaces/default".into(), ..ListQueuesRequest::default() };
    let queues = clients.queues.list_queues(request).await.unwrap().into_inner().queues;
    let mut seen = Vec::new();
    for queue in queues {
        let mut stats = stats_of(clients, &format!("{}/subscriptions/default", queue.name)).await;
        stats.oldest_age = None;
        seen.push((queue.name, queue.next_offset, stats));
    }
    seen
}

#[tokio::test]
async fn what_does_not_exist_is_not_found() {
    let mut bench = Bench::new().await;
    let (no_queue, no_subscription) = (queue("none"), format!("{}/subscriptions/none", queue("q")));
    let clients = &mut bench.clients;

    let request =
        PublishRequest { queue: no_queue.clone(), messages: vec![message("m")], ..Default::default() };
    let error = clients.messages.publish(request).await.unwrap_err();
    let details = check_error(&error, Code::NotFound, "QUEUE_NOT_FOUND");
    assert_eq!(details.resource_info().unwrap().resource_name, no_queue);
    let error = clients.queues.get_queue(GetQueueRequest { name: no_queue.clone() }).await.unwrap_err();
    check_error(&error, Code::NotFound, "QUEUE_NOT_FOUND");
    let request = DeleteQueueRequest { name: no_queue.clone(), ..Default::default() };
    check_error(&clients.queues.delete_queue(request).await.unwrap_err(), Code::NotFound, "QUEUE_NOT_FOUND");
    let request = PeekRequest { queue: no_queue.clone(), ..Default::default() };
    check_error(&clients.messages.peek(request).await.unwrap_err(), Code::NotFound, "QUEUE_NOT_FOUND");
    let request = GetStatsRequest { queue: no_queue.clone() };
    check_error(&clients.admin.get_stats(request).await.unwrap_err(), Code::NotFound, "QUEUE_NOT_FOUND");
    let missing = Subscription { name: format!("{no_queue}/subscriptions/s"), ..Default::default() };
    let request = CreateSubscriptionRequest { subscription: Some(missing), ..Default::default() };
    let error = clients.queues.create_subscription(request).await.unwrap_err();
    check_error(&error, Code::NotFound, "QUEUE_NOT_FOUND");

    let name = no_subscription.clone();
    let request = PullRequest { subscription: name.clone(), ..Default::default() };
    let error = clients.messages.pull(request).await.unwrap_err();
    let details = check_error(&error, Code::NotFound, "SUBSCRIPTION_NOT_FOUND");
    assert_eq!(details.resource_info().unwrap().resource_name, no_subscription);
    let request = AcknowledgeRequest { subscription: name.clone(), ack_ids: vec!["x".into()] };
    let error = clients.messages.acknowledge(request).await.unwrap_err();
    check_error(&error, Code::NotFound, "SUBSCRIPTION_NOT_FOUND");
    let entries = vec![NackEntry { ack_id: "x".into(), ending: Some(release()) }];
    let error = clients.messages.nack(NackRequest { subscription: name.clone(), entries }).await.unwrap_err();
    check_error(&error, Code::NotFound, "SUBSCRIPTION_NOT_FOUND");
    let request =
        ExtendLeaseRequest { subscription: name.clone(), ack_ids: vec!["x".into()], lease: Some(seconds(5)) };
    let error = clients.messages.extend_lease(request).await.unwrap_err();
    check_error(&error, Code::NotFound, "SUBSCRIPTION_NOT_FOUND");
    let request = DeleteSubscriptionRequest { name: name.clone(), ..Default::default() };
    let error = clients.queues.delete_subscription(request).await.unwrap_err();
    check_error(&error, Code::NotFound, "SUBSCRIPTION_NOT_FOUND");
    let error = stream_error(clients, Up::Open(Open { subscription: name, ..Default::default() })).await;
    check_error(&error, Code::NotFound, "SUBSCRIPTION_NOT_FOUND");
    bench.check_unchanged().await;
}

#[tokio::test]
async fn what_exists_is_not_made_again() {
    let mut bench = Bench::new().await;
    let again = Queue { name: queue("q"), ..Default::default() };
    let request = CreateQueueRequest { queue: Some(again), ..Default::default() };
    let error = bench.clients.queues.create_queue(request).await.unwrap_err();
    check_error(&error, Code::AlreadyExists, "QUEUE_EXISTS");
    let again = Subscription { name: subscription("q"), ..Default::default() };
    let request = CreateSubscriptionRequest { subscription: Some(again), ..Default::default() };
    let error = bench.clients.queues.create_subscription(request).await.unwrap_err();
    check_error(&error, Code::AlreadyExists, "SUBSCRIPTION_EXISTS");
    let late = Subscription { name: format!("{}/subscriptions/late", queue("q")), ..Default::default() };
    let start = Some(Position { position: Some(position::Position::Offset(4)) });
    let request = CreateSubscriptionRequest { subscription: Some(late.clone()), start, ..Default::default() };
    let error = bench.clients.queues.create_subscription(request).await.unwrap_err();
    let details = check_error(&error, Code::OutOfRange, "OFFSET_OUT_OF_RANGE");
    assert_eq!(details.error_info().unwrap().metadata["next_offset"], "3");
    let error = bench.clients.queues.get_subscription(GetSubscriptionRequest { name: late.name }).await;
    check_error(&error.unwrap_err(), Code::NotFound, "SUBSCRIPTION_NOT_FOUND");
    bench.check_unchanged().await;
}

#[tokio::test]
async fn names_that_are_none_are_refused_wherever_they_come() {
    let mut bench = Bench::new().await;
    let long = "n".repeat(256);
    // The queue of the sixth is spelled with a Cyrillic letter, that of the seventh with a full-width one.
    let names =
        ["..", ".", "", "a\0b", long.as_str(), "\u{43e}rders", "\u{ff51}", "a/b", "../q", "a b", "q\n"];
    for bad in names {
        let clients = &mut bench.clients;
        let name = queue(bad);
        let made = Queue { name: name.clone(), ..Default::default() };
        let request = CreateQueueRequest { queue: Some(made), ..Default::default() };
        let error = clients.queues.create_queue(request).await.unwrap_err();
        check_field(&error, "INVALID_FIELD", "queue.name");
        let error = clients.queues.get_queue(GetQueueRequest { name: name.clone() }).await.unwrap_err();
        check_field(&error, "INVALID_FIELD", "name");
        let request = DeleteQueueRequest { name: name.clone(), ..Default::default() };
        check_field(&clients.queues.delete_queue(request).await.unwrap_err(), "INVALID_FIELD", "name");
        let request =
            PublishRequest { queue: name.clone(), messages: vec![message("m")], ..Default::default() };
        check_field(&clients.messages.publish(request).await.unwrap_err(), "INVALID_FIELD", "queue");
        let full = format!("{}/subscriptions/{bad}", queue("q"));
        let made = Subscription { name: full.clone(), ..Default::default() };
        let request = CreateSubscriptionRequest { subscription: Some(made), ..Default::default() };
        let error = clients.queues.create_subscription(request).await.unwrap_err();
        check_field(&error, "INVALID_FIELD", "subscription.name");
        let request = PullRequest { subscription: full, ..Default::default() };
        check_field(&clients.messages.pull(request).await.unwrap_err(), "INVALID_FIELD", "subscription");
        let request = ListQueuesRequest { parent: format!("namespaces/{bad}"), ..Default::default() };
        check_field(&clients.queues.list_queues(request).await.unwrap_err(), "INVALID_FIELD", "parent");
    }
    bench.check_unchanged().await;
}

#[tokio::test]
async fn the_longest_and_strangest_allowed_name_works() {
    let (site, server, mut clients) = with_queue().await;
    let longest = format!("{}-_.~+%", "n".repeat(249));
    for name in [longest.as_str(), "...", "%2e%2e", "~"] {
        create(&mut clients, name).await;
        publish(&mut clients, name, &["kept"]).await;
    }
    server.kill();
    let server = site.start();
    for name in [longest.as_str(), "...", "%2e%2e", "~"] {
        assert_eq!(drain(&mut server.clients(), name).await, [b"kept"]);
    }
}

#[tokio::test]
async fn messages_beyond_a_limit_are_refused_and_those_at_it_are_not() {
    // The largest request needs a log file of the usual size.
    let mut bench = Bench::on(Site { options: ServerOptions::default(), ..Site::new() }).await;
    let pairs = |count: usize| (0..count).map(|n| (format!("key{n}"), String::new())).collect();

    let error = bench.publish_one(|m| m.body = vec![7; (8 << 20) + 1].into()).await;
    check_field(&error, "LIMIT_EXCEEDED", "messages[0].body");
    let error = bench.publish_one(|m| m.attributes = pairs(101)).await;
    check_field(&error, "LIMIT_EXCEEDED", "messages[0].attributes");
    let error = bench.publish_one(|m| m.attributes = [("k".repeat(257), String::new())].into()).await;
    check_field(&error, "LIMIT_EXCEEDED", "messages[0].attributes (a key)");
    let error = bench.publish_one(|m| m.attributes = [("k".into(), "v".repeat(1_025))].into()).await;
    check_field(&error, "LIMIT_EXCEEDED", "messages[0].attributes[\"k\"]");
    let error = bench.publish_one(|m| m.attributes = [(String::new(), "v".into())].into()).await;
    check_field(&error, "INVALID_FIELD", "messages[0].attributes");
    let error = bench.publish_one(|m| m.source = "s".repeat(256)).await;
    check_field(&error, "LIMIT_EXCEEDED", "messages[0].source");
    let error = bench.publish(vec![message("m"); 1_001]).await;
    check_field(&error, "LIMIT_EXCEEDED", "messages");
    let error = bench.publish(Vec::new()).await;
    check_field(&error, "INVALID_FIELD", "messages");
    let error = bench.publish(vec![message(vec![1; 3 << 20]); 3]).await;
    check_field(&error, "LIMIT_EXCEEDED", "request");
    let error = bench
        .publish(vec![message(vec![1; 3 << 20]), message(vec![1; 3 << 20]), message(vec![1; 5 << 19])])
        .await;
    check_field(&error, "LIMIT_EXCEEDED", "messages");
    bench.check_unchanged().await;

    // What is exactly at the limits is taken, and comes back whole.
    let clients = &mut bench.clients;
    create(clients, "full").await;
    let attributes = (0..100).map(|n| (format!("{n:0>256}"), format!("{n:0>1024}"))).collect();
    let full = Message { attributes, source: "s".repeat(255), ..message("") };
    let largest = message(vec![9; 8 << 20]);
    for messages in [vec![full.clone()], vec![largest.clone()], vec![message("m"); 1_000]] {
        let request = PublishRequest { queue: queue("full"), messages, ..Default::default() };
        clients.messages.publish(request).await.unwrap();
    }
    let request = PeekRequest { queue: queue("full"), max_messages: 1_000, ..Default::default() };
    let peeked = clients.messages.peek(request).await.unwrap().into_inner().messages;
    assert_eq!((&peeked[0].attributes, &peeked[0].source), (&full.attributes, &full.source));
    let request =
        PeekRequest { queue: queue("full"), from_offset: Some(1), max_messages: 1, ..Default::default() };
    let peeked = clients.messages.peek(request).await.unwrap().into_inner().messages;
    assert!(peeked[0].body == largest.body, "the largest body comes back whole");
    assert_eq!(get_queue(clients, "full").await.next_offset, 1_002);
}

#[tokio::test]
async fn one_bad_message_among_ten_stores_none() {
    let mut bench = Bench::new().await;
    for change in [
        |m: &mut Message| m.attributes = [(String::new(), "v".into())].into(),
        |m: &mut Message| m.source = "s".repeat(256),
        |m: &mut Message| m.offset = 7,
        |m: &mut Message| m.priority = Some(3),
    ] {
        let mut messages: Vec<Message> = bodies(10).iter().map(message).collect();
        change(&mut messages[9]);
        let error = bench.publish(messages).await;
        let info = error.message();
        assert!(info.starts_with("messages[9]."), "{info}");
        bench.check_unchanged().await;
    }
}

#[tokio::test]
async fn producers_are_checked() {
    let mut bench = Bench::new().await;
    let cases = [
        ("", 1, 1, "INVALID_FIELD", "producer.producer_id"),
        (&"p".repeat(256), 1, 1, "LIMIT_EXCEEDED", "producer.producer_id"),
        ("p", 0, 1, "INVALID_FIELD", "producer.epoch"),
        ("p", 1, 0, "INVALID_FIELD", "producer.sequence"),
    ];
    for (id, epoch, sequence, reason, field) in cases {
        let producer = Some(Producer { producer_id: id.to_string(), epoch, sequence });
        let messages = vec![message("m")];
        let request = PublishRequest { queue: queue("q"), messages, producer, ..Default::default() };
        check_field(&bench.clients.messages.publish(request).await.unwrap_err(), reason, field);
    }
    bench.check_unchanged().await;
}

#[tokio::test]
async fn ack_ids_count_for_their_own_delivery_alone() {
    let (_site, _server, mut clients) = with_queue().await;
    let clients = &mut clients;
    create(clients, "other").await;
    let second = subscribe_to(clients, "q", "second", None, 0).await;
    publish(clients, "q", &["a"]).await;
    publish(clients, "other", &["b"]).await;
    let (own, other) = (subscription("q"), subscription("other"));
    let mine = ack_ids(&pull(clients, "q", 1).await).remove(0);
    let foreign = ack_ids(&pull_from(clients, &second, 1, 0, None).await).remove(0);
    let elsewhere = ack_ids(&pull(clients, "other", 1).await).remove(0);
    let mut altered = mine.clone().into_bytes();
    altered[20] = if altered[20] == b'A' { b'B' } else { b'A' };
    let altered = String::from_utf8(altered).unwrap();
    let wrong = ["", "no ack id", &foreign, &elsewhere, &altered, &mine[1..], &format!("{mine}A")];
    let wrong: Vec<String> = wrong.iter().map(|id| id.to_string()).collect();
    let invalid = vec![Outcome::Invalid; wrong.len()];

    assert_eq!(ack(clients, &own, wrong.clone()).await, invalid);
    assert_eq!(extend(clients, &own, wrong.clone(), 60).await, invalid);
    for ending in [release(), retry(1), reject("no")] {
        assert_eq!(outcomes(&nack(clients, &own, wrong.clone(), ending).await), invalid);
    }
    for name in [&own, &second, &other] {
        let stats = stats_of(clients, name).await;
        assert_eq!((stats.ack_floor, stats.leased_messages, stats.backlog_messages), (0, 1, 1), "{name}");
    }

    // A wrong id among right ones does not stop them.
    assert_eq!(ack(clients, &own, vec![altered, mine.clone()]).await, [Outcome::Invalid, Outcome::Ok]);
    assert_eq!(stats_of(clients, &own).await.ack_floor, 1);
    // A repeated ack is no error; to retry what is finished is.
    assert_eq!(ack(clients, &own, vec![mine.clone()]).await, [Outcome::Ok]);
    assert_eq!(outcomes(&nack(clients, &own, vec![mine], retry(0)).await), [Outcome::Stale]);
}

#[tokio::test]
async fn an_ack_id_is_stale_once_its_message_is_handed_out_again() {
    let (_site, _server, mut clients) = with_queue().await;
    let clients = &mut clients;
    publish(clients, "q", &["a"]).await;
    let own = subscription("q");
    let first = ack_ids(&pull(clients, "q", 1).await);
    assert_eq!(outcomes(&nack(clients, &own, first.clone(), retry(0)).await), [Outcome::Ok]);
    let again = pull_one(clients, "q").await;
    assert_eq!(again.attempt, 2);
    assert_eq!(ack(clients, &own, first.clone()).await, [Outcome::Stale]);
    assert_eq!(extend(clients, &own, first.clone(), 60).await, [Outcome::Stale]);
    for ending in [release(), retry(1), reject("no")] {
        assert_eq!(outcomes(&nack(clients, &own, first.clone(), ending).await), [Outcome::Stale]);
    }
    let stats = stats_of(clients, &own).await;
    assert_eq!((stats.ack_floor, stats.leased_messages), (0, 1));
    assert_eq!(ack(clients, &own, vec![again.ack_id]).await, [Outcome::Ok]);
}

pub fn duration(seconds: i64, nanos: i32) -> Option<prost_types::Duration> {
    Some(prost_types::Duration { seconds, nanos })
}

/// Durations that are none, wherever one is asked for.
fn no_durations() -> [Option<prost_types::Duration>; 6] {
    [
        duration(-1, 0),
        duration(5, -1),
        duration(i64::MIN, i32::MIN),
        duration(i64::MAX, 0),
        duration(5, 1_000_000_000),
        duration(5, i32::MAX),
    ]
}

#[tokio::test]
async fn durations_out_of_range_are_refused() {
    let mut bench = Bench::new().await;
    let clients = &mut bench.clients;
    let own = subscription("q");
    let leases = [duration(0, 0), duration(0, 999_999_000), duration(43_200, 1), duration(43_201, 0)];
    for lease in leases.into_iter().chain(no_durations()) {
        let request = PullRequest { subscription: own.clone(), lease, ..Default::default() };
        check_field(&clients.messages.pull(request).await.unwrap_err(), "INVALID_FIELD", "lease");
        let ids = vec!["x".to_owned()];
        let request = ExtendLeaseRequest { subscription: own.clone(), ack_ids: ids.clone(), lease };
        check_field(&clients.messages.extend_lease(request).await.unwrap_err(), "INVALID_FIELD", "lease");
        let name = format!("{}/subscriptions/s", queue("q"));
        let made = Subscription { name, lease_duration: lease, ..Default::default() };
        let request = CreateSubscriptionRequest { subscription: Some(made), ..Default::default() };
        let error = clients.queues.create_subscription(request).await.unwrap_err();
        check_field(&error, "INVALID_FIELD", "subscription.lease_duration");
        let open = Open { subscription: own.clone(), lease, credit: None };
        check_field(&stream_error(clients, Up::Open(open)).await, "INVALID_FIELD", "open.lease");
    }
    for delay in [duration(604_800, 1), duration(604_801, 0)].into_iter().chain(no_durations()) {
        let ending = Some(Ending::Retry(Retry { delay, error: String::new() }));
        let entries = vec![NackEntry { ack_id: "x".into(), ending }];
        let request = NackRequest { subscription: own.clone(), entries };
        let error = clients.messages.nack(request).await.unwrap_err();
        check_field(&error, "INVALID_FIELD", "entries[0].retry.delay");
    }
    for wait in [duration(60, 1), duration(61, 0)].into_iter().chain(no_durations()) {
        let request = PullRequest { subscription: own.clone(), wait, ..Default::default() };
        check_field(&clients.messages.pull(request).await.unwrap_err(), "INVALID_FIELD", "wait");
    }
    bench.check_unchanged().await;
}

/// The status with which a stream ends that sends this as its first request.
async fn stream_error(clients: &mut Clients, first: Up) -> Status {
    stream_errors(clients, vec![first]).await
}

async fn stream_errors(clients: &mut Clients, requests: Vec<Up>) -> Status {
    let requests: Vec<_> = requests.into_iter().map(|up| SubscribeRequest { request: Some(up) }).collect();
    let requests = tokio_stream::StreamExt::chain(tokio_stream::iter(requests), tokio_stream::pending());
    let mut answers = match clients.messages.subscribe(requests).await {
        Ok(answers) => answers.into_inner(),
        Err(status) => return status,
    };
    loop {
        match answers.message().await {
            Ok(Some(_)) => {}
            Ok(None) => panic!("the stream ended without an error"),
            Err(status) => return status,
        }
    }
}

#[tokio::test]
async fn streams_that_break_the_protocol_end_with_the_reason() {
    let mut bench = Bench::new().await;
    let clients = &mut bench.clients;
    let open = || Up::Open(Open { subscription: subscription("q"), ..Default::default() });
    let credit = |messages, bytes| Credit { messages, bytes };
    for requests in [vec![Up::Credit(credit(1, 1))], vec![Up::Acks(Acks::default())], vec![open(), open()]] {
        check_error(&stream_errors(clients, requests).await, Code::InvalidArgument, "STREAM_PROTOCOL");
    }
    let none = Acks { correlation_id: 1, ..Acks::default() };
    let error = stream_errors(clients, vec![open(), Up::Acks(none)]).await;
    check_field(&error, "INVALID_FIELD", "acks");
    let unlimited = Acks { extend_ack_ids: vec!["x".into()], ..Acks::default() };
    let error = stream_errors(clients, vec![open(), Up::Acks(unlimited)]).await;
    check_field(&error, "INVALID_FIELD", "acks.extend_lease");
    let error = stream_errors(clients, vec![open(), Up::Credit(credit(1 << 33, 1))]).await;
    check_field(&error, "LIMIT_EXCEEDED", "credit.messages");
    let error = stream_errors(clients, vec![open(), Up::Credit(credit(1, u64::MAX))]).await;
    check_field(&error, "LIMIT_EXCEEDED", "credit.bytes");
    let half = || Up::Credit(credit(1 << 31, 1));
    let error = stream_errors(clients, vec![open(), half(), half(), half()]).await;
    check_field(&error, "LIMIT_EXCEEDED", "credit.messages");
    bench.check_unchanged().await;
}

#[tokio::test]
async fn lists_of_ids_and_endings_are_checked() {
    let mut bench = Bench::new().await;
    let clients = &mut bench.clients;
    let own = subscription("q");
    for (ack_ids, reason) in [(vec![], "INVALID_FIELD"), (vec!["x".to_owned(); 10_001], "LIMIT_EXCEEDED")] {
        let request = AcknowledgeRequest { subscription: own.clone(), ack_ids };
        check_field(&clients.messages.acknowledge(request).await.unwrap_err(), reason, "ack_ids");
    }
    let entry = |ending| NackEntry { ack_id: "x".into(), ending };
    let long = "e".repeat(1_025);
    let noted = Ending::Retry(Retry { delay: None, error: long.clone() });
    let cases = [
        (vec![entry(Some(release())), entry(None)], "INVALID_FIELD", "entries[1].ending"),
        (vec![entry(Some(reject(&long)))], "LIMIT_EXCEEDED", "entries[0].reject.error"),
        (vec![entry(Some(noted))], "LIMIT_EXCEEDED", "entries[0].retry.error"),
        (vec![], "INVALID_FIELD", "entries"),
    ];
    for (entries, reason, field) in cases {
        let request = NackRequest { subscription: own.clone(), entries };
        check_field(&clients.messages.nack(request).await.unwrap_err(), reason, field);
    }
    let request =
        ListQueuesRequest { parent: "namespaces/default".into(), page_size: -1, ..Default::default() };
    check_field(&clients.queues.list_queues(request).await.unwrap_err(), "INVALID_FIELD", "page_size");
    let page_token = "made up".to_owned();
    let request = ListQueuesRequest { parent: "namespaces/default".into(), page_token, ..Default::default() };
    check_field(&clients.queues.list_queues(request).await.unwrap_err(), "INVALID_PAGE_TOKEN", "page_token");
    bench.check_unchanged().await;
}

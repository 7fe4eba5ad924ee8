//! Retry policies: delays between deliveries, and dead letters after the last one.

use std::time::Duration;

use forebay::proto::v1::ack_result::Status as Outcome;
use forebay::proto::v1::dead_letter::Reason;
use forebay::proto::v1::nack_entry::{Ending, Retry};
use forebay::proto::v1::*;
use forebay_testkit::{Clients, queue, subscription};

use crate::support::*;

/// A retry as the policy says.
fn failed(error: &str) -> Ending {
    Ending::Retry(Retry { delay: None, error: error.to_owned() })
}

/// A subscription of `q` that gives up to `lost`; gives its full name.
async fn subscribe(clients: &mut Clients, max_attempts: u32, backoff_s: Option<i64>) -> String {
    let name = format!("{}/subscriptions/s", queue("q"));
    let backoff = backoff_s.map(seconds);
    let retry_policy = backoff.map(|_| RetryPolicy { min_backoff: backoff, max_backoff: backoff });
    let made = Subscription {
        name: name.clone(),
        max_attempts: Some(max_attempts),
        retry_policy,
        dead_letter_queue: queue("lost"),
        ..Default::default()
    };
    let request = CreateSubscriptionRequest { subscription: Some(made.clone()), ..Default::default() };
    let shown = clients.queues.create_subscription(request).await.unwrap().into_inner();
    assert_eq!(
        (shown.max_attempts, shown.retry_policy, shown.dead_letter_queue),
        (made.max_attempts, made.retry_policy, made.dead_letter_queue)
    );
    name
}

/// The subscription's figures as soon as they are so.
async fn stats_once(
    clients: &mut Clients,
    name: &str,
    are_so: impl Fn(&SubscriptionStats) -> bool,
) -> SubscriptionStats {
    let wait = async {
        loop {
            let stats = stats_of(clients, name).await;
            if are_so(&stats) {
                return stats;
            }
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    };
    tokio::time::timeout(PATIENCE, wait).await.expect("the figures come")
}

#[tokio::test]
async fn after_its_last_attempt_a_message_is_a_dead_letter() {
    let (site, server, mut clients) = with_queue().await;
    let own = subscribe(&mut clients, 2, None).await;
    publish(&mut clients, "q", &["first", "second"]).await;
    for (attempt, error) in [(1, "no luck"), (2, "no luck again")] {
        let received = pull_from(&mut clients, &own, 1, 30, None).await;
        assert_eq!((offsets(&received), attempts(&received)), (vec![0], vec![attempt]));
        let outcome = nack(&mut clients, &own, ack_ids(&received), failed(error)).await;
        assert_eq!(outcomes(&outcome), [Outcome::Ok]);
    }
    let stats = stats_of(&mut clients, &own).await;
    assert_eq!((stats.ack_floor, stats.backlog_messages), (1, 1));
    drop(server);

    let server = site.start();
    let mut clients = server.clients();
    let dead = pull(&mut clients, "lost", 10).await;
    assert_eq!(dead.len(), 1);
    assert_eq!(body(&dead[0]), b"first");
    let story = dead[0].message.clone().unwrap().dead_letter.unwrap();
    assert_eq!(story.reason(), Reason::AttemptsExhausted);
    assert_eq!((story.error.as_str(), story.queue, story.offset), ("no luck again", queue("q"), 0));
    assert_eq!((story.subscription, story.attempts), (own.clone(), 2));
    // Its other subscription still has it.
    assert_eq!(offsets(&pull(&mut clients, "q", 10).await), [0, 1]);
    // A dead letter itself is never given up.
    for attempt in 2..=20 {
        let received = if attempt == 2 { dead.clone() } else { pull(&mut clients, "lost", 1).await };
        let ids = ack_ids(&received);
        let outcome = nack(&mut clients, &subscription("lost"), ids, failed("")).await;
        assert_eq!(outcomes(&outcome), [Outcome::Ok], "attempt {attempt}");
    }
    assert_eq!(attempts(&pull(&mut clients, "lost", 1).await), [20]);
}

/// Nobody nacks: their consumer is gone, and so is the server for a while.
#[tokio::test]
async fn a_lease_that_ends_can_be_the_last_attempt() {
    let (site, server, mut clients) = with_queue().await;
    let own = subscribe(&mut clients, 1, None).await;
    let count = 300;
    publish_numbered(&mut clients, "q", count).await;
    let leased = pull_from(&mut clients, &own, 200, 0, Some(1)).await;
    assert_eq!(leased.len(), 200);
    // Leases are recorded with the next commit.
    publish(&mut clients, "q", &["later"]).await;
    drop(server);

    let server = site.start();
    let mut clients = server.clients();
    let stats = stats_once(&mut clients, &own, |stats| stats.backlog_messages == 101).await;
    assert_eq!((stats.ack_floor, stats.backlog_messages, stats.delayed_messages), (200, 101, 0));
    let dead = pull(&mut clients, "lost", 1_000).await;
    let mut origins: Vec<u64> = Vec::new();
    for letter in &dead {
        let story = letter.message.clone().unwrap().dead_letter.unwrap();
        assert_eq!((story.reason(), story.attempts), (Reason::AttemptsExhausted, 1));
        assert_eq!(body(letter), format!("message {}", story.offset).as_bytes());
        origins.push(story.offset);
    }
    origins.sort_unstable();
    assert_eq!(origins, (0..200).collect::<Vec<_>>(), "each once");
    // Too late.
    assert_eq!(ack(&mut clients, &own, ack_ids(&leased[..1])).await, [Outcome::Ok], "finished already");
    let late = nack(&mut clients, &own, ack_ids(&leased[..1]), retry(0)).await;
    assert_eq!(outcomes(&late), [Outcome::Stale]);
}

#[tokio::test]
async fn the_policys_delay_holds_where_the_consumer_names_none() {
    let (_site, _server, mut clients) = with_queue().await;
    let own = subscribe(&mut clients, 5, Some(3_600)).await;
    publish(&mut clients, "q", &bodies(3)).await;
    let received = ack_ids(&pull_from(&mut clients, &own, 3, 0, Some(1)).await);
    nack(&mut clients, &own, vec![received[0].clone()], failed("")).await;
    nack(&mut clients, &own, vec![received[1].clone()], retry(0)).await;
    let again = pull_from(&mut clients, &own, 3, 0, None).await;
    assert_eq!((offsets(&again), attempts(&again)), (vec![1], vec![2]));
    // The third one's lease ends by itself.
    let stats = stats_once(&mut clients, &own, |stats| stats.leased_messages == 1).await;
    assert_eq!(stats.delayed_messages, 2);
    assert!(pull_from(&mut clients, &own, 3, 0, None).await.is_empty());
}

/// More of them than a server keeps in memory; it is killed while they wait.
#[tokio::test]
async fn delayed_messages_come_back_once_each_after_a_kill() {
    let (site, server, mut clients) = with_queue().await;
    let (own, count) = (subscription("q"), 6_000);
    publish_numbered(&mut clients, "q", count).await;
    let mut delayed = 0;
    while delayed < count {
        let received = pull_from(&mut clients, &own, 1_000, 30, None).await;
        delayed += received.len();
        nack(&mut clients, &own, ack_ids(&received), retry(6)).await;
    }
    assert_eq!(stats_of(&mut clients, &own).await.delayed_messages, count as u64);
    server.kill();

    let server = site.start();
    let mut clients = server.clients();
    let mut seen = Vec::new();
    while seen.len() < count {
        let received = pull_from(&mut clients, &own, 1_000, 60, None).await;
        assert!(!received.is_empty(), "{} of {count} have come", seen.len());
        assert!(attempts(&received).iter().all(|attempt| *attempt == 2));
        seen.extend(offsets(&received));
        ack(&mut clients, &own, ack_ids(&received)).await;
    }
    seen.sort_unstable();
    assert_eq!(seen, (0..count as u64).collect::<Vec<_>>());
    assert_eq!(stats_of(&mut clients, &own).await.backlog_messages, 0);
}

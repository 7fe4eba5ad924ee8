//! The library on a temporary directory. Times are bounds to wait for, never asserted.

use std::path::Path;

use super::*;
use crate::log::{DirectoryError, LogError};

const WAIT: std::time::Duration = std::time::Duration::from_secs(60);
const NOW: std::time::Duration = std::time::Duration::ZERO;

fn messages(bodies: &[&'static str]) -> Vec<Message> {
    bodies.iter().map(|body| Message::new(*body)).collect()
}

fn bodies(deliveries: &[Delivery]) -> Vec<&str> {
    deliveries.iter().map(|delivery| std::str::from_utf8(&delivery.message.body).unwrap()).collect()
}

/// A queue of a new data directory with these messages, and its default subscription.
async fn queue(dir: &Path, bodies: &[&'static str]) -> (Forebay, Queue, Subscription) {
    let forebay = Forebay::open(dir).await.unwrap();
    let queue = forebay.create_queue("q").await.unwrap();
    if !bodies.is_empty() {
        queue.publish_batch(messages(bodies)).await.unwrap();
    }
    let subscription = queue.subscription("default").await.unwrap();
    (forebay, queue, subscription)
}

#[tokio::test]
async fn what_was_reported_is_there_again_after_opening() {
    let dir = tempfile::tempdir().unwrap();
    let (forebay, queue, subscription) = queue(dir.path(), &["a", "b"]).await;
    assert_eq!(forebay.recovery().waiting_messages, 0);
    let sent =
        [queue.send(messages(&["c"])).await.unwrap(), queue.send(messages(&["d", "e"])).await.unwrap()];
    let first = subscription.pull(1, NOW).await.unwrap();
    first[0].ack().await.unwrap();
    forebay.close().await.unwrap();
    // What was under way was answered.
    let [c, d_e] = sent;
    assert_eq!((c.await.unwrap().offsets, d_e.await.unwrap().offsets), (2..3, 3..5));
    assert_eq!(queue.publish(Message::new("f")).await, Err(Error::Closed));
    assert_eq!(first[0].ack().await, Err(Error::Closed));

    let again = Forebay::open(dir.path()).await.unwrap();
    assert_eq!(again.recovery().waiting_messages, 4);
    let queue = again.queue_or_create("namespaces/default/queues/q").await.unwrap();
    let rest = queue.subscription("default").await.unwrap().pull(10, WAIT).await.unwrap();
    assert_eq!(bodies(&rest), ["b", "c", "d", "e"]);
    again.close().await.unwrap();
}

#[tokio::test]
async fn a_data_directory_is_open_once() {
    let dir = tempfile::tempdir().unwrap();
    let (forebay, queue, _) = queue(dir.path(), &["a"]).await;
    let locked = |error: &OpenError| {
        let OpenError::Log(LogError::Directory(DirectoryError::Locked { pid, .. })) = error else {
            return false;
        };
        *pid == Some(std::process::id())
    };
    assert!(locked(&Forebay::open(dir.path()).await.unwrap_err()));
    drop(forebay);
    // A handle that is left keeps it open.
    queue.publish(Message::new("b")).await.unwrap();
    assert!(locked(&Forebay::open(dir.path()).await.unwrap_err()));
    drop(queue);
    let again = loop {
        match Forebay::open(dir.path()).await {
            Ok(again) => break again,
            // The last handle closes in the background.
            Err(error) => assert!(locked(&error), "{error}"),
        }
        tokio::time::sleep(std::time::Duration::from_millis(10)).await;
    };
    assert_eq!(again.recovery().waiting_messages, 2);
}

#[tokio::test]
async fn each_ending_does_what_it_says() {
    let dir = tempfile::tempdir().unwrap();
    let (forebay, _, subscription) = queue(dir.path(), &["a", "b", "c", "d", "e"]).await;
    let taken = subscription.pull(5, WAIT).await.unwrap();
    taken[0].retry(Some(NOW), "later").await.unwrap();
    taken[1].release().await.unwrap();
    taken[2].reject("no").await.unwrap();
    taken[3].retry(Some(WAIT), "much later").await.unwrap();
    taken[4].extend(WAIT).await.unwrap();
    let again = subscription.pull(5, WAIT).await.unwrap();
    let attempts: Vec<u32> = again.iter().map(|delivery| delivery.attempt).collect();
    assert_eq!((bodies(&again), attempts), (vec!["a", "b"], vec![2, 1]));
    // The first handing out of "a" has ended; the second goes on.
    assert_eq!(taken[0].retry(None, "").await, Err(Error::LeaseLost));
    assert_eq!(taken[0].extend(WAIT).await, Err(Error::LeaseLost));
    let acked =
        subscription.ack_batch(&[again[0].clone(), taken[4].clone(), taken[0].clone()]).await.unwrap();
    assert_eq!(acked[..2], [Ok(()), Ok(())]);
    let dead = forebay.queue("q-dead").await.unwrap().subscription("default").await.unwrap();
    let dead = dead.pull(1, WAIT).await.unwrap().remove(0);
    let letter = dead.dead_letter.as_ref().unwrap();
    assert_eq!((bodies(std::slice::from_ref(&dead)), letter.error.as_str()), (vec!["c"], "no"));
    assert_eq!(letter.offset.0, 2);
    assert!(matches!(dead.reject("again").await, Err(Error::NotPossible { .. })));
    dead.ack().await.unwrap();
}

#[tokio::test]
async fn a_stream_takes_no_more_than_it_was_asked_for() {
    let dir = tempfile::tempdir().unwrap();
    let (_forebay, queue, subscription) = queue(dir.path(), &["a", "b", "c", "d", "e"]).await;
    let mut deliveries = subscription.subscribe(2).await.unwrap();
    let first = deliveries.next().await.unwrap().unwrap();
    assert_eq!(bodies(std::slice::from_ref(&first)), ["a"]);
    // One given out and two ahead, so two are left for others.
    assert_eq!(bodies(&subscription.pull(10, NOW).await.unwrap()), ["d", "e"]);
    drop(deliveries);
    let released = subscription.pull(10, WAIT).await.unwrap();
    assert_eq!(bodies(&released), ["b", "c"]);
    assert!(released.iter().all(|delivery| delivery.attempt == 1));
    first.ack().await.unwrap();

    // Whoever stops waiting loses nothing.
    let mut deliveries = subscription.subscribe(0).await.unwrap();
    let next = tokio::time::timeout(std::time::Duration::from_millis(1), deliveries.next()).await;
    assert!(next.is_err(), "nothing waits");
    queue.publish(Message::new("f")).await.unwrap();
    assert_eq!(bodies(&[deliveries.next().await.unwrap().unwrap()]), ["f"]);

    // It goes on for as long as it is asked, whatever is ahead.
    queue.publish_batch(messages(&["g"; 10])).await.unwrap();
    let mut ahead = subscription.subscribe(2).await.unwrap();
    for _ in 0..10 {
        let next = tokio::time::timeout(WAIT, async {
            tokio::select! {
                next = deliveries.next() => next,
                next = ahead.next() => next,
            }
        });
        next.await.expect("a message waits").unwrap().unwrap().ack().await.unwrap();
    }
}

#[tokio::test]
async fn streams_and_pulls_end_with_what_they_read() {
    let dir = tempfile::tempdir().unwrap();
    let (forebay, queue, subscription) = queue(dir.path(), &[]).await;
    let side = queue.create_subscription("side", SubscriptionOptions::default()).await.unwrap();
    let mut deliveries = side.subscribe(0).await.unwrap();
    side.clone().delete().await.unwrap();
    assert!(matches!(deliveries.next().await, Some(Err(Error::SubscriptionDeleted))));
    assert!(deliveries.next().await.is_none());
    assert!(matches!(side.subscribe(0).await, Err(Error::Refused(Reject::SubscriptionNotFound(_)))));

    let mut deliveries = subscription.subscribe(0).await.unwrap();
    let pull = tokio::spawn(async move { subscription.pull(1, WAIT).await });
    // The pull is in line.
    while forebay.shared.broker.server_stats().await.unwrap().consumers < 2 {
        tokio::task::yield_now().await;
    }
    forebay.close().await.unwrap();
    assert!(pull.await.unwrap().unwrap().is_empty());
    assert!(deliveries.next().await.is_none());
    assert_eq!(queue.delete().await, Err(Error::Closed));
}

#[tokio::test]
async fn a_pull_that_is_given_up_takes_nothing_with_it() {
    let dir = tempfile::tempdir().unwrap();
    let (_forebay, queue, subscription) = queue(dir.path(), &[]).await;
    for round in 0..100 {
        // Publish and pull race; the pull is dropped when the publish is done, whether it got the message or not.
        let pulled = tokio::select! {
            biased;
            stored = queue.publish(Message::new("a")) => stored.map(|_| Vec::new()).unwrap(),
            pulled = subscription.pull(1, WAIT) => pulled.unwrap(),
        };
        let pulled = if pulled.is_empty() { subscription.pull(1, WAIT).await.unwrap() } else { pulled };
        assert_eq!((pulled[0].offset, pulled[0].attempt), (round, 1));
        pulled[0].ack().await.unwrap();
    }
}

#[tokio::test]
async fn what_does_not_fit_is_refused_with_its_reason() {
    let dir = tempfile::tempdir().unwrap();
    let (forebay, queue, subscription) = queue(dir.path(), &[]).await;
    assert!(matches!(forebay.create_queue("a b").await, Err(Error::Name(_))));
    assert!(matches!(forebay.create_queue("q").await, Err(Error::Refused(Reject::QueueExists(_)))));
    assert!(matches!(forebay.queue("none").await, Err(Error::Refused(Reject::QueueNotFound(_)))));
    let text = |error: Error| error.to_string();
    assert_eq!(
        text(queue.publish_batch(vec![]).await.unwrap_err()),
        "messages is empty; give 1 to 1000 messages"
    );
    let long = Message::new("").source("s".repeat(256));
    let refused = text(queue.publish(long).await.unwrap_err());
    assert_eq!(refused, "source has 256 bytes; at most 255 are allowed");
    let refused = |options| async { text(queue.create_subscription("s", options).await.unwrap_err()) };
    let lease = SubscriptionOptions { lease: NOW, ..Default::default() };
    assert_eq!(refused(lease).await, "the lease is 0ns; give 1s to 43200s");
    let attempts = SubscriptionOptions { attempts_max: 0, ..Default::default() };
    assert_eq!(refused(attempts).await, "attempts_max is 0; give 1 to 1000000");
    let backoff = SubscriptionOptions { backoff: Some(WAIT..=WAIT / 2), ..Default::default() };
    assert_eq!(refused(backoff).await, "the longest backoff is 30s; give 60s to 604800s");
    queue.publish(Message::new("a")).await.unwrap();
    let taken = subscription.pull(1, WAIT).await.unwrap();
    assert_eq!(text(taken[0].extend(NOW).await.unwrap_err()), "the lease is 0ns; give 1s to 43200s");
    let refused = text(taken[0].reject(&"e".repeat(1025)).await.unwrap_err());
    assert_eq!(refused, "error has 1025 bytes; at most 1024 are allowed");
    taken[0].ack().await.unwrap();
}

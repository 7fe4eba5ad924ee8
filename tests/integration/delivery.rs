//! Delivery by pulls: order, leases and their endings, dead letters, starts, long polls, and all of it after a kill.

use std::time::Duration;

use forebay::proto::v1::ack_result::Status as Outcome;
use forebay::proto::v1::dead_letter::Reason;
use forebay::proto::v1::position::Position as Place;
use forebay::proto::v1::*;
use forebay_testkit::{Clients, queue, subscription};
use tonic::{Code, Status};

use crate::support::*;

#[tokio::test]
async fn order_is_kept_across_batches_and_pulls() {
    let (_site, _server, mut clients) = with_queue().await;
    let all = bodies(70);
    for batch in all.chunks(7) {
        publish(&mut clients, "q", batch).await;
    }
    let mut received = Vec::new();
    for most in [1, 3, 20, 46, 10] {
        received.extend(pull(&mut clients, "q", most).await);
    }
    assert_eq!(offsets(&received), (0..70).collect::<Vec<_>>());
    assert!(received.iter().zip(&all).all(|(received, expected)| body(received) == expected));
    assert_eq!(attempts(&received), [1; 70]);
}

#[tokio::test]
async fn a_pull_takes_as_many_messages_as_their_bodies_fit() {
    let (_site, _server, mut clients) = with_queue().await;
    let mut mixed = vec![vec![1; 10]; 9];
    mixed.push(vec![2; 60_000]);
    publish(&mut clients, "q", &mixed).await;
    let mut most = async |max_bytes| {
        let request = PullRequest {
            subscription: subscription("q"),
            max_messages: 100,
            max_bytes,
            ..Default::default()
        };
        clients.messages.pull(request).await.unwrap().into_inner().messages.len()
    };
    // At least one message always comes, and never more than fit; a larger one comes alone.
    assert_eq!(most(1).await, 1);
    assert_eq!(most(5).await, 1);
    let mut left = 7;
    while left > 0 {
        let got = most(50_000).await;
        assert!((1..=left).contains(&got), "{got} of {left}");
        left -= got;
    }
    assert_eq!(most(50_000).await, 1);
    assert_eq!(most(50_000).await, 0);
}

#[tokio::test]
async fn a_lease_that_ends_gives_its_message_to_the_next() {
    let (_site, _server, mut clients) = with_queue().await;
    let own = subscription("q");
    publish(&mut clients, "q", &["a"]).await;
    let first = pull_from(&mut clients, &own, 1, 0, Some(1)).await;
    assert_eq!(attempts(&first), [1]);
    assert!(pull(&mut clients, "q", 1).await.is_empty(), "it is leased");
    let again = pull_one(&mut clients, "q").await;
    assert_eq!((again.attempt, body(&again)), (2, &b"a"[..]));
    assert_eq!(ack(&mut clients, &own, ack_ids(&first)).await, [Outcome::Stale]);
    assert_eq!(ack(&mut clients, &own, vec![again.ack_id]).await, [Outcome::Ok]);
}

#[tokio::test]
async fn an_ack_after_the_lease_counts_while_nobody_else_has_the_message() {
    let (_site, _server, mut clients) = with_queue().await;
    let own = subscription("q");
    publish(&mut clients, "q", &["a"]).await;
    let first = pull_from(&mut clients, &own, 1, 0, Some(1)).await;
    while stats_of(&mut clients, &own).await.leased_messages > 0 {
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    assert_eq!(ack(&mut clients, &own, ack_ids(&first)).await, [Outcome::Ok]);
    assert_eq!(stats_of(&mut clients, &own).await.ack_floor, 1);
    assert!(pull(&mut clients, "q", 1).await.is_empty());
}

#[tokio::test]
async fn an_extended_lease_holds_beyond_its_first_end() {
    let (_site, _server, mut clients) = with_queue().await;
    let own = subscription("q");
    publish(&mut clients, "q", &["a"]).await;
    let first = ack_ids(&pull_from(&mut clients, &own, 1, 0, Some(1)).await);
    assert_eq!(extend(&mut clients, &own, first.clone(), 60).await, [Outcome::Ok]);
    assert!(pull_from(&mut clients, &own, 1, 2, None).await.is_empty(), "the lease was extended");
    assert_eq!(ack(&mut clients, &own, first.clone()).await, [Outcome::Ok]);
    assert_eq!(extend(&mut clients, &own, first, 60).await, [Outcome::Stale]);
}

#[tokio::test]
async fn a_retry_waits_its_delay_and_counts_and_holds_up_nobody() {
    let (_site, _server, mut clients) = with_queue().await;
    let own = subscription("q");
    publish(&mut clients, "q", &["a", "b"]).await;
    let first = pull(&mut clients, "q", 1).await;
    assert_eq!(outcomes(&nack(&mut clients, &own, ack_ids(&first), retry(2)).await), [Outcome::Ok]);
    let stats = stats_of(&mut clients, &own).await;
    assert_eq!((stats.delayed_messages, stats.leased_messages, stats.backlog_messages), (1, 0, 2));
    let next = pull(&mut clients, "q", 10).await;
    assert_eq!((offsets(&next), attempts(&next)), (vec![1], vec![1]));
    let again = pull_one(&mut clients, "q").await;
    assert_eq!((body(&again), again.attempt), (&b"a"[..], 2));
}

#[tokio::test]
async fn a_release_does_not_count_and_keeps_the_order() {
    let (_site, _server, mut clients) = with_queue().await;
    let own = subscription("q");
    publish(&mut clients, "q", &bodies(5)).await;
    for _ in 0..3 {
        let received = pull(&mut clients, "q", 3).await;
        assert_eq!((offsets(&received), attempts(&received)), (vec![0, 1, 2], vec![1; 3]));
        let released = nack(&mut clients, &own, ack_ids(&received), release()).await;
        assert_eq!(outcomes(&released), [Outcome::Ok; 3]);
    }
    let received = pull(&mut clients, "q", 10).await;
    assert_eq!((offsets(&received), attempts(&received)), ((0..5).collect(), vec![1; 5]));
}

#[tokio::test]
async fn a_rejected_message_goes_to_the_dead_letter_queue_with_its_story() {
    let (site, server, mut clients) = with_queue().await;
    let own = subscription("q");
    let made = get_queue(&mut clients, "q").await;
    let attributes = [("k".to_owned(), "v".to_owned())].into();
    let messages = vec![message("good"), Message { attributes, source: "s".into(), ..message("bad") }];
    let request = PublishRequest { queue: queue("q"), messages, ..Default::default() };
    clients.messages.publish(request).await.unwrap();
    let received = ack_ids(&pull(&mut clients, "q", 2).await);
    nack(&mut clients, &own, vec![received[1].clone()], retry(0)).await;
    let second = pull_one(&mut clients, "q").await;
    let rejected = nack(&mut clients, &own, vec![second.ack_id.clone()], reject("cannot be parsed")).await;
    assert_eq!(outcomes(&rejected), [Outcome::Ok]);
    let stats = stats_of(&mut clients, &own).await;
    assert_eq!((stats.ack_floor, stats.backlog_messages, stats.leased_messages), (0, 1, 1));
    assert_eq!(ack(&mut clients, &own, vec![received[0].clone()]).await, [Outcome::Ok]);
    assert_eq!(stats_of(&mut clients, &own).await.ack_floor, 2, "a dead letter is finished here");
    // What is finished is rejected no more.
    let again = nack(&mut clients, &own, vec![second.ack_id], reject("again")).await;
    assert_eq!(outcomes(&again), [Outcome::Stale]);
    drop(server);

    let server = site.start();
    assert_eq!(server.recovered_messages, 1);
    let mut clients = server.clients();
    let dead = pull(&mut clients, "q-dead", 10).await;
    assert_eq!(dead.len(), 1);
    let letter = dead[0].message.clone().unwrap();
    assert_eq!((&letter.body[..], letter.offset, letter.source.as_str()), (&b"bad"[..], 0, "s"));
    assert_eq!(letter.attributes["k"], "v");
    let story = letter.dead_letter.unwrap();
    assert_eq!(story.reason(), Reason::Rejected);
    assert_eq!(
        (story.error.as_str(), story.queue, story.queue_uid),
        ("cannot be parsed", queue("q"), made.uid)
    );
    assert_eq!((story.offset, story.subscription, story.attempts), (1, own, 2));
    assert!(story.dead_letter_time.is_some());

    // A dead-letter queue has none of its own: the lease goes on, the message can be acknowledged.
    let refused = nack(&mut clients, &subscription("q-dead"), ack_ids(&dead), reject("again")).await;
    assert_eq!(outcomes(&refused), [Outcome::Refused]);
    assert!(refused[0].detail.contains("holds dead letters"), "{}", refused[0].detail);
    assert_eq!(ack(&mut clients, &subscription("q-dead"), ack_ids(&dead)).await, [Outcome::Ok]);
    let missing = clients.queues.get_queue(GetQueueRequest { name: queue("q-dead-dead") }).await;
    check_error(&missing.unwrap_err(), Code::NotFound, "QUEUE_NOT_FOUND");
}

#[tokio::test]
async fn many_rejections_in_one_call_each_become_one_dead_letter() {
    let (_site, _server, mut clients) = with_queue().await;
    publish(&mut clients, "q", &bodies(50)).await;
    let received = pull(&mut clients, "q", 50).await;
    let results = nack(&mut clients, &subscription("q"), ack_ids(&received), reject("no")).await;
    assert_eq!(outcomes(&results), [Outcome::Ok; 50]);
    let mut dead = drain(&mut clients, "q-dead").await;
    dead.sort();
    let mut expected = bodies(50);
    expected.sort();
    assert_eq!(dead, expected);
    assert_eq!(stats_of(&mut clients, &subscription("q")).await.ack_floor, 50);
}

#[tokio::test]
async fn subscriptions_do_not_share_and_start_where_they_were_told_to() {
    let (site, server, mut clients) = with_queue().await;
    publish(&mut clients, "q", &bodies(10)).await;
    let mut expected = vec![(subscription("q"), 0)];
    for (name, start, first) in [
        ("unsaid", None, 0),
        ("earliest", Some(Place::Earliest(())), 0),
        ("latest", Some(Place::Latest(())), 10),
        ("offset", Some(Place::Offset(7)), 7),
        ("end", Some(Place::Offset(10)), 10),
    ] {
        expected.push((subscribe_to(&mut clients, "q", name, start, 0).await, first));
    }
    publish(&mut clients, "q", &bodies(5)).await;
    let (first_half, second_half) = expected.split_at(3);
    for (name, first) in first_half {
        let received = pull_from(&mut clients, name, 100, 0, None).await;
        assert_eq!(offsets(&received), (*first..15).collect::<Vec<_>>(), "{name}");
        assert!(ack(&mut clients, name, ack_ids(&received)).await.iter().all(|o| *o == Outcome::Ok));
    }
    server.kill();
    let server = site.start();
    let mut clients = server.clients();
    for (name, first) in second_half {
        let received = pull_from(&mut clients, name, 100, 0, None).await;
        assert_eq!(offsets(&received), (*first..15).collect::<Vec<_>>(), "{name} after a kill");
        assert!(ack(&mut clients, name, ack_ids(&received)).await.iter().all(|o| *o == Outcome::Ok));
    }
    for (name, _) in &expected {
        let stats = stats_of(&mut clients, name).await;
        assert_eq!((stats.ack_floor, stats.backlog_messages), (15, 0), "{name}");
    }
}

#[tokio::test]
async fn no_more_than_the_limit_is_in_flight() {
    let (_site, _server, mut clients) = with_queue().await;
    let narrow = subscribe_to(&mut clients, "q", "narrow", None, 3).await;
    publish(&mut clients, "q", &bodies(10)).await;
    let held = pull_from(&mut clients, &narrow, 10, 0, None).await;
    assert_eq!(offsets(&held), [0, 1, 2]);
    assert!(pull_from(&mut clients, &narrow, 10, 0, None).await.is_empty());
    assert_eq!(ack(&mut clients, &narrow, vec![held[1].ack_id.clone()]).await, [Outcome::Ok]);
    let next = pull_from(&mut clients, &narrow, 10, 0, None).await;
    assert_eq!(offsets(&next), [3], "one place is free");
    // A long poll waits for a place, not for a message.
    let waiting = tokio::spawn({
        let (mut clients, narrow) = (clients.clone(), narrow.clone());
        async move { pull_from(&mut clients, &narrow, 10, 30, None).await }
    });
    wait_for_consumers(&mut clients, 1).await;
    nack(&mut clients, &narrow, vec![held[0].ack_id.clone()], release()).await;
    assert_eq!(offsets(&waiting.await.unwrap()), [0]);
}

/// Waits until this many consumers, long polls included, are there.
async fn wait_for_consumers(clients: &mut Clients, count: u64) {
    while server_stats(clients).await.consumers != count {
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
}

#[tokio::test]
async fn a_long_poll_is_answered_by_a_message_or_before_its_callers_deadline() {
    let (_site, _server, mut clients) = with_queue().await;
    let waiting = tokio::spawn({
        let mut clients = clients.clone();
        async move { pull_from(&mut clients, &subscription("q"), 10, 30, None).await }
    });
    wait_for_consumers(&mut clients, 1).await;
    publish(&mut clients, "q", &["a"]).await;
    assert_eq!(offsets(&waiting.await.unwrap()), [0]);

    // The caller gives up after 1 s, and would see an error then; the server answers before.
    let wait = Some(seconds(30));
    let mut request =
        tonic::Request::new(PullRequest { subscription: subscription("q"), wait, ..Default::default() });
    request.set_timeout(Duration::from_secs(1));
    assert!(clients.messages.pull(request).await.unwrap().into_inner().messages.is_empty());
}

#[tokio::test]
async fn a_caller_that_has_gone_takes_nothing_with_it() {
    let (_site, _server, mut clients) = with_queue().await;
    let own = subscription("q");
    let (mut gone, mut too_late) = (0, 0);
    for round in 0..60 {
        let waiting = tokio::spawn({
            let mut clients = clients.clone();
            async move { pull_from(&mut clients, &subscription("q"), 1, 30, None).await }
        });
        wait_for_consumers(&mut clients, 1).await;
        // Sometimes the caller goes before its message comes, sometimes about when it does.
        if round % 3 == 0 {
            waiting.abort();
            publish(&mut clients, "q", &["a"]).await;
        } else {
            let mut clients = clients.clone();
            let publishing = tokio::spawn(async move { publish(&mut clients, "q", &["a"]).await });
            if round % 3 == 1 {
                tokio::task::yield_now().await;
            }
            waiting.abort();
            publishing.await.unwrap();
        }
        let taken = match waiting.await {
            Ok(received) => received,
            Err(_) => {
                gone += 1;
                vec![pull_one(&mut clients, "q").await]
            }
        };
        assert_eq!(offsets(&taken), [round]);
        // The message may have been on its way to the caller: then only the end of its lease brings it back.
        too_late += u64::from(attempts(&taken) != [1]);
        assert_eq!(ack(&mut clients, &own, ack_ids(&taken)).await, [Outcome::Ok]);
        wait_for_consumers(&mut clients, 0).await;
    }
    assert!(gone >= 20, "{gone} callers have gone");
    assert!(too_late <= gone / 4, "{too_late} of {gone} messages went with their callers");
}

#[tokio::test]
async fn a_queue_made_again_is_a_new_one() {
    let (site, server, mut clients) = with_queue().await;
    let own = subscription("q");
    let old = get_queue(&mut clients, "q").await;
    let stamp = |sequence| Some(Producer { producer_id: "p".into(), epoch: 1, sequence });
    publish_as(&mut clients, stamp(1), 3).await.unwrap();
    let leased = ack_ids(&pull(&mut clients, "q", 1).await);
    delete(&mut clients, "q").await;
    let missing = clients.queues.get_queue(GetQueueRequest { name: queue("q") }).await.unwrap_err();
    check_error(&missing, Code::NotFound, "QUEUE_NOT_FOUND");
    create(&mut clients, "q").await;
    let new = get_queue(&mut clients, "q").await;
    assert!(new.uid != old.uid && new.uid.len() == 32);
    assert_eq!(new.next_offset, 0);
    assert_eq!(ack(&mut clients, &own, leased.clone()).await, [Outcome::Invalid]);
    assert!(pull(&mut clients, "q", 10).await.is_empty());
    // Its producers are forgotten, too.
    let published = publish_as(&mut clients, stamp(1), 1).await.unwrap();
    assert_eq!((published.results[0].offset, published.results[0].duplicate), (0, false));
    server.kill();

    let server = site.start();
    assert_eq!(server.recovered_messages, 1);
    let mut clients = server.clients();
    assert_eq!(get_queue(&mut clients, "q").await.uid, new.uid);
    assert_eq!(ack(&mut clients, &own, leased).await, [Outcome::Invalid]);
    assert_eq!(drain(&mut clients, "q").await, bodies(1));
}

/// Publishes numbered messages to `q` as a producer.
async fn publish_as(
    clients: &mut Clients,
    producer: Option<Producer>,
    count: usize,
) -> Result<PublishResponse, Status> {
    let messages = bodies(count).iter().map(message).collect();
    let request = PublishRequest { queue: queue("q"), messages, producer, ..Default::default() };
    Ok(clients.messages.publish(request).await?.into_inner())
}

#[tokio::test]
async fn all_of_the_delivery_state_survives_a_kill() {
    let (site, server, mut clients) = with_queue().await;
    let own = subscription("q");
    publish(&mut clients, "q", &bodies(6)).await;
    let held = ack_ids(&pull_from(&mut clients, &own, 5, 0, Some(600)).await);
    let at = |offsets: &[usize]| offsets.iter().map(|offset| held[*offset].clone()).collect::<Vec<_>>();
    assert_eq!(ack(&mut clients, &own, at(&[0, 1, 3])).await, [Outcome::Ok; 3]);
    assert_eq!(outcomes(&nack(&mut clients, &own, at(&[4]), retry(3_600)).await), [Outcome::Ok]);
    let before = SubscriptionStats { oldest_age: None, ..stats_of(&mut clients, &own).await };
    assert_eq!((before.ack_floor, before.backlog_messages), (2, 3));
    assert_eq!((before.leased_messages, before.delayed_messages), (1, 1));
    server.kill();

    let server = site.start();
    assert_eq!(server.recovered_messages, 3);
    let mut clients = server.clients();
    let after = SubscriptionStats { oldest_age: None, ..stats_of(&mut clients, &own).await };
    assert_eq!(after, before);
    let waiting = pull(&mut clients, "q", 10).await;
    assert_eq!(
        (offsets(&waiting), attempts(&waiting)),
        (vec![5], vec![1]),
        "the others are leased or delayed"
    );
    // Ids of before the kill count.
    assert_eq!(extend(&mut clients, &own, at(&[2]), 600).await, [Outcome::Ok]);
    assert_eq!(ack(&mut clients, &own, at(&[2])).await, [Outcome::Ok]);
    assert_eq!(ack(&mut clients, &own, at(&[0, 4])).await, [Outcome::Ok; 2]);
    assert_eq!(ack(&mut clients, &own, ack_ids(&waiting)).await, [Outcome::Ok]);
    server.kill();
    let server = site.start();
    assert_eq!(server.recovered_messages, 0);
    assert_eq!(stats_of(&mut server.clients(), &own).await.ack_floor, 6);
}

#[tokio::test]
async fn leases_and_delays_of_before_a_kill_end_after_it() {
    let (site, server, mut clients) = with_queue().await;
    let own = subscription("q");
    publish(&mut clients, "q", &bodies(2)).await;
    let held = pull_from(&mut clients, &own, 2, 0, Some(1)).await;
    nack(&mut clients, &own, vec![held[1].ack_id.clone()], retry(1)).await;
    server.kill();
    let server = site.start();
    let mut clients = server.clients();
    let mut again = Vec::new();
    while again.len() < 2 {
        again.extend(pull_from(&mut clients, &own, 1, 30, Some(600)).await);
    }
    let mut seen: Vec<_> = offsets(&again).into_iter().zip(attempts(&again)).collect();
    seen.sort();
    assert_eq!(seen, [(0, 2), (1, 2)]);
}

#[tokio::test]
async fn a_repeated_publish_gets_its_first_answer_also_after_a_kill() {
    let (site, mut server, mut clients) = with_queue().await;
    let stamp = |epoch, sequence| Some(Producer { producer_id: "p".into(), epoch, sequence });
    let first = publish_as(&mut clients, stamp(1, 1), 3).await.unwrap();
    let second = publish_as(&mut clients, stamp(1, 2), 2).await.unwrap();
    assert!(!first.results.iter().chain(&second.results).any(|result| result.duplicate));
    for _ in 0..2 {
        for (sequence, original) in [(1, &first), (2, &second)] {
            let again = publish_as(&mut clients, stamp(1, sequence), original.results.len()).await.unwrap();
            assert_eq!(again.publish_time, original.publish_time);
            assert!(again.results.iter().all(|result| result.duplicate));
            let ids = |answer: &PublishResponse| -> Vec<(String, u64)> {
                answer.results.iter().map(|result| (result.message_id.clone(), result.offset)).collect()
            };
            assert_eq!(ids(&again), ids(original));
        }
        let gap = publish_as(&mut clients, stamp(1, 4), 1).await.unwrap_err();
        let details = check_error(&gap, Code::Aborted, "SEQUENCE_GAP");
        assert_eq!(details.error_info().unwrap().metadata["expected_sequence"], "3");
        assert_eq!(get_queue(&mut clients, "q").await.next_offset, 5);
        server.kill();
        server = site.start();
        clients = server.clients();
    }
    // A higher epoch begins anew and shuts the lower one out, for good.
    let gap = publish_as(&mut clients, stamp(2, 3), 1).await.unwrap_err();
    check_error(&gap, Code::Aborted, "SEQUENCE_GAP");
    let taken_over = publish_as(&mut clients, stamp(2, 1), 1).await.unwrap();
    assert_eq!((taken_over.results[0].offset, taken_over.results[0].duplicate), (5, false));
    server.kill();
    let server = site.start();
    let mut clients = server.clients();
    for sequence in [1, 2, 3] {
        let fenced = publish_as(&mut clients, stamp(1, sequence), 1).await.unwrap_err();
        let details = check_error(&fenced, Code::Aborted, "PRODUCER_FENCED");
        assert_eq!(details.error_info().unwrap().metadata["current_epoch"], "2");
    }
    assert_eq!(get_queue(&mut clients, "q").await.next_offset, 6);
    assert_eq!(drain(&mut clients, "q").await.len(), 6);
}

#[tokio::test]
async fn an_answer_is_kept_for_the_last_64_requests() {
    let (_site, _server, mut clients) = with_queue().await;
    let stamp = |sequence| Some(Producer { producer_id: "p".into(), epoch: 1, sequence });
    for sequence in 1..=65 {
        publish_as(&mut clients, stamp(sequence), 1).await.unwrap();
    }
    let old = publish_as(&mut clients, stamp(1), 1).await.unwrap_err();
    check_error(&old, Code::Aborted, "SEQUENCE_TOO_OLD");
    let kept = publish_as(&mut clients, stamp(2), 1).await.unwrap();
    assert_eq!((kept.results[0].offset, kept.results[0].duplicate), (1, true));
    assert_eq!(get_queue(&mut clients, "q").await.next_offset, 65);
}

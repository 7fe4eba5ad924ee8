//! Delivery by Subscribe streams: credit, acks on the stream, and ends.

use std::time::Duration;

use forebay::proto::v1::ack_result::Status as Outcome;
use forebay::proto::v1::subscribe_request::{Acks, Request as Up};
use forebay::proto::v1::subscribe_response::Response as Down;
use forebay::proto::v1::*;
use forebay_testkit::{queue, subscription};
use tonic::Code;

use crate::support::*;

/// Checks that the stream sends nothing of itself: the next thing that comes is the answer to a question.
async fn check_silent(stream: &mut Stream, held: &ReceivedMessage) {
    let question = Acks {
        correlation_id: 77,
        extend_ack_ids: vec![held.ack_id.clone()],
        extend_lease: Some(seconds(60)),
        ..Acks::default()
    };
    let results = stream.settle(question).await;
    assert_eq!((results.correlation_id, outcomes(&results.extensions)), (77, vec![Outcome::Ok]));
}

#[tokio::test]
async fn credit_in_messages_is_kept_exactly() {
    let (_site, _server, mut clients) = with_queue().await;
    publish_numbered(&mut clients, "q", 200).await;
    let mut stream = Stream::open(&mut clients, &subscription("q"), 10, 1 << 30).await;
    let mut received = stream.take(10).await;
    check_silent(&mut stream, &received[0]).await;
    for credit in [1, 1, 1, 7, 1, 30] {
        stream.credit(credit, 0);
        received.extend(stream.take(credit as usize).await);
        check_silent(&mut stream, &received[0]).await;
    }
    assert_eq!(offsets(&received), (0..51).collect::<Vec<_>>());
    assert_eq!(stats_of(&mut clients, &subscription("q")).await.leased_messages, 51);
}

#[tokio::test]
async fn credit_in_bytes_is_kept_exactly_and_counts_bodies() {
    let (_site, _server, mut clients) = with_queue().await;
    let attributes = || [("key".to_owned(), "v".repeat(100))].into();
    let messages = (0..30).map(|_| Message { attributes: attributes(), ..message([7; 10]) }).collect();
    let request = PublishRequest { queue: queue("q"), messages, ..Default::default() };
    clients.messages.publish(request).await.unwrap();
    let mut stream = Stream::open(&mut clients, &subscription("q"), 1_000, 25).await;
    // The third overdraws: 5 are owed.
    let mut received = stream.take(3).await;
    check_silent(&mut stream, &received[0]).await;
    for (credit, expected) in [(5, 0), (1, 1), (9, 0), (1, 1), (9 + 100, 10)] {
        stream.credit(0, credit);
        received.extend(stream.take(expected).await);
        check_silent(&mut stream, &received[0]).await;
    }
    assert_eq!(offsets(&received), (0..15).collect::<Vec<_>>());
}

#[tokio::test]
async fn a_large_backlog_flows_in_order_as_credit_is_given_back() {
    let (site, server, mut clients) = with_queue().await;
    publish_numbered(&mut clients, "q", 3_000).await;
    // Half of it comes from memory, half from disk.
    server.kill();
    let server = site.start();
    let mut clients = server.clients();
    publish_numbered(&mut clients, "q", 2_000).await;
    let mut stream = Stream::open(&mut clients, &subscription("q"), 500, 1 << 30).await;
    let (mut received, mut acknowledged) = (0, 0);
    while acknowledged < 5_000 {
        match stream.next().await {
            Ok(Some(Down::Deliveries(deliveries))) => {
                let count = deliveries.messages.len() as u64;
                assert_eq!(offsets(&deliveries.messages), (received..received + count).collect::<Vec<_>>());
                received += count;
                stream.credit(count, 0);
                stream.send(Up::Acks(Acks { ack_ids: ack_ids(&deliveries.messages), ..Acks::default() }));
            }
            Ok(Some(Down::AckResults(results))) => {
                assert!(outcomes(&results.acks).iter().all(|outcome| *outcome == Outcome::Ok));
                acknowledged += results.acks.len() as u64;
            }
            other => panic!("deliveries or results expected, not {other:?}"),
        }
    }
    assert_eq!(received, 5_000);
    let stats = stats_of(&mut clients, &subscription("q")).await;
    assert_eq!((stats.ack_floor, stats.backlog_messages, stats.leased_messages), (5_000, 0, 0));
}

#[tokio::test]
async fn acks_on_the_stream_are_answered_one_by_one() {
    let (_site, _server, mut clients) = with_queue().await;
    publish(&mut clients, "q", &bodies(6)).await;
    let own = subscription("q");
    let mut stream = Stream::open(&mut clients, &own, 6, 1 << 20).await;
    let ids = ack_ids(&stream.take(6).await);
    let nack = |at: usize, ending| NackEntry { ack_id: ids[at].clone(), ending: Some(ending) };
    let results = stream
        .settle(Acks {
            correlation_id: 42,
            ack_ids: vec![ids[0].clone(), "made up".into(), ids[1].clone()],
            nacks: vec![nack(2, retry(3_600)), nack(3, reject("no"))],
            extend_ack_ids: vec![ids[4].clone(), String::new()],
            extend_lease: Some(seconds(100)),
        })
        .await;
    assert_eq!(results.correlation_id, 42);
    assert_eq!(outcomes(&results.acks), [Outcome::Ok, Outcome::Invalid, Outcome::Ok]);
    assert_eq!(outcomes(&results.nacks), [Outcome::Ok, Outcome::Ok]);
    assert_eq!(outcomes(&results.extensions), [Outcome::Ok, Outcome::Invalid]);
    let stats = stats_of(&mut clients, &own).await;
    assert_eq!((stats.ack_floor, stats.delayed_messages, stats.leased_messages), (2, 1, 2));
    assert_eq!(get_queue(&mut clients, "q-dead").await.next_offset, 1);
}

#[tokio::test]
async fn acks_are_answered_in_the_order_in_which_they_were_sent() {
    let (_site, _server, mut clients) = with_queue().await;
    publish_numbered(&mut clients, "q", 100).await;
    let mut stream = Stream::open(&mut clients, &subscription("q"), 100, 1 << 20).await;
    let ids = ack_ids(&stream.take(100).await);
    for (correlation_id, id) in (0..).zip(ids) {
        // A rejection takes a read and a commit more than an ack does.
        let (ack_ids, nacks) = match correlation_id % 2 {
            0 => (vec![], vec![NackEntry { ack_id: id, ending: Some(reject("no")) }]),
            _ => (vec![id], vec![]),
        };
        stream.send(Up::Acks(Acks { correlation_id, ack_ids, nacks, ..Acks::default() }));
    }
    for expected in 0..100 {
        match stream.next().await {
            Ok(Some(Down::AckResults(results))) => {
                let all: Vec<AckResult> = [results.acks, results.nacks].concat();
                assert_eq!((results.correlation_id, outcomes(&all)), (expected, vec![Outcome::Ok]));
            }
            other => panic!("ack results expected, not {other:?}"),
        }
    }
    assert_eq!(stats_of(&mut clients, &subscription("q")).await.ack_floor, 100);
}

#[tokio::test]
async fn credit_that_was_spent_may_be_granted_again() {
    let (_site, _server, mut clients) = with_queue().await;
    publish_numbered(&mut clients, "q", 30).await;
    let mut stream = Stream::open(&mut clients, &subscription("q"), 1 << 32, 1 << 40).await;
    let mut received = stream.take(30).await;
    let bytes = received.iter().map(|received| body(received).len() as u64).sum();
    stream.credit(30, bytes);
    publish_numbered(&mut clients, "q", 1).await;
    received.extend(stream.take(1).await);
    assert_eq!(offsets(&received), (0..31).collect::<Vec<_>>());
}

/// What a client may have unread is bounded by the stream's buffers, whatever credit it gave; the rest is for others.
#[tokio::test]
async fn a_client_that_never_reads_holds_a_bounded_part_and_others_get_the_rest() {
    const MESSAGES: usize = 640;
    const BODY_BYTES: usize = 64 << 10;
    let (_site, _server, mut clients) = with_queue().await;
    let own = subscription("q");
    let _silent = Stream::open(&mut clients, &own, 1 << 32, 1 << 40).await;
    for _ in 0..MESSAGES / 8 {
        publish(&mut clients, "q", &vec![vec![7; BODY_BYTES]; 8]).await;
    }
    let mut reader = Stream::open(&mut clients, &own, 1 << 32, 1 << 40).await;
    let mut received = 0;
    loop {
        match tokio::time::timeout(Duration::from_millis(100), reader.next()).await {
            Ok(Ok(Some(Down::Deliveries(deliveries)))) => received += deliveries.messages.len(),
            Ok(other) => panic!("deliveries expected, not {other:?}"),
            Err(_) if stats_of(&mut clients, &own).await.leased_messages == MESSAGES as u64 => break,
            Err(_) => {}
        }
    }
    let held = (MESSAGES - received) * BODY_BYTES;
    assert!(held <= 16 << 20, "{held} bytes are held for a client that never reads");
}

#[tokio::test]
async fn leases_outlive_their_stream() {
    let (_site, _server, mut clients) = with_queue().await;
    publish(&mut clients, "q", &bodies(5)).await;
    let own = subscription("q");
    let mut stream = Stream::open(&mut clients, &own, 3, 1 << 20).await;
    let received = stream.take(3).await;
    drop(stream);
    while server_stats(&mut clients).await.consumers > 0 {
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    assert_eq!(stats_of(&mut clients, &own).await.leased_messages, 3);
    assert_eq!(offsets(&pull(&mut clients, "q", 10).await), [3, 4]);
    assert_eq!(ack(&mut clients, &own, ack_ids(&received)).await, [Outcome::Ok; 3]);
    assert_eq!(stats_of(&mut clients, &own).await.ack_floor, 3);
}

#[tokio::test]
async fn streams_share_what_comes_and_each_message_goes_to_one() {
    let (_site, _server, mut clients) = with_queue().await;
    let own = subscription("q");
    let mut streams = Vec::new();
    for _ in 0..3 {
        streams.push(Stream::open(&mut clients, &own, 20, 1 << 20).await);
    }
    publish(&mut clients, "q", &bodies(60)).await;
    let mut all = Vec::new();
    for stream in &mut streams {
        all.extend(offsets(&stream.take(20).await));
    }
    all.sort();
    assert_eq!(all, (0..60).collect::<Vec<_>>());
}

#[tokio::test]
async fn a_stream_ends_when_its_queue_or_subscription_is_deleted() {
    let (_site, _server, mut clients) = with_queue().await;
    let second = subscribe_to(&mut clients, "q", "second", None, 0).await;
    let mut first_stream = Stream::open(&mut clients, &subscription("q"), 1, 1).await;
    let mut second_stream = Stream::open(&mut clients, &second, 1, 1).await;
    let request = DeleteSubscriptionRequest { name: second, ..Default::default() };
    clients.queues.delete_subscription(request).await.unwrap();
    let ended = second_stream.next().await.unwrap_err();
    check_error(&ended, Code::NotFound, "SUBSCRIPTION_NOT_FOUND");
    let waiting = tokio::spawn({
        let mut clients = clients.clone();
        let wait = Some(seconds(30));
        let request = PullRequest { subscription: subscription("q"), wait, ..Default::default() };
        async move { clients.messages.pull(request).await }
    });
    while server_stats(&mut clients).await.consumers < 2 {
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    delete(&mut clients, "q").await;
    let ended = first_stream.next().await.unwrap_err();
    assert_eq!(ended.code(), Code::NotFound, "{ended:?}");
    let ended = waiting.await.unwrap().unwrap_err();
    assert_eq!(ended.code(), Code::NotFound, "{ended:?}");
}

#[tokio::test]
async fn a_client_that_ends_its_side_gets_its_results_and_then_the_end() {
    let (_site, _server, mut clients) = with_queue().await;
    publish(&mut clients, "q", &bodies(2)).await;
    let mut stream = Stream::open(&mut clients, &subscription("q"), 2, 1 << 20).await;
    let ids = ack_ids(&stream.take(2).await);
    stream.send(Up::Acks(Acks { ack_ids: ids, ..Acks::default() }));
    let mut rest = stream.end_requests();
    match rest.next().await {
        Ok(Some(Down::AckResults(results))) => assert_eq!(outcomes(&results.acks), [Outcome::Ok; 2]),
        other => panic!("ack results expected, not {other:?}"),
    }
    assert!(matches!(rest.next().await, Ok(None)));
}

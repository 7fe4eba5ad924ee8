//! The Rust client against servers that are killed, started again, drained, and in good health.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use forebay::client::{Client, ClientError, ConsumerOptions, Delivery, Ending, Publisher, Refused};
use forebay::proto::v1::*;
use forebay_testkit::{Server, queue, subscription};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{Semaphore, mpsc, watch};
use tonic::Code;

use crate::support::*;

/// One address for a server that comes back on other ports.
struct Front {
    url: String,
    server: watch::Sender<String>,
}

impl Front {
    async fn of(server: &Server) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let url = format!("http://{}", listener.local_addr().unwrap());
        let (address, current) = watch::channel(server.grpc.clone());
        tokio::spawn(async move {
            loop {
                let (mut near, _) = listener.accept().await.unwrap();
                let address = current.borrow().clone();
                tokio::spawn(async move {
                    if let Ok(mut far) = TcpStream::connect(&address).await {
                        let _ = tokio::io::copy_bidirectional(&mut near, &mut far).await;
                    }
                });
            }
        });
        Self { url, server: address }
    }

    /// Kills the server and starts another one on its data.
    async fn kill(&self, site: &Site, server: Server) -> Server {
        let server = tokio::task::block_in_place(|| {
            server.kill();
            site.start()
        });
        self.server.send_replace(server.grpc.clone());
        server
    }
}

fn refused(error: ClientError) -> Refused {
    match error {
        ClientError::Refused(refused) => *refused,
        other => panic!("a refusal expected, not {other:?}"),
    }
}

/// Sends numbered messages, to queue `a` the odd ones and to `b` the even ones, counting the answers.
async fn publish_all(publisher: Publisher, count: u64, answered: Arc<AtomicU64>) {
    let mut receipts = Vec::new();
    for number in 1..=count {
        let name = if number % 2 == 0 { "b" } else { "a" };
        let receipt = publisher.send(&queue(name), vec![message(number.to_string())]).await.unwrap();
        let answered = answered.clone();
        receipts.push(tokio::spawn(async move {
            let response = receipt.await.unwrap();
            answered.fetch_add(1, Ordering::Relaxed);
            (number, response.results[0].offset)
        }));
    }
    for receipt in receipts {
        let (number, offset) = receipt.await.unwrap();
        assert_eq!(offset, (number - 1) / 2, "each queue has its messages in order, once");
    }
}

async fn reaches(counter: &AtomicU64, count: u64) {
    let reached = async {
        while counter.load(Ordering::Relaxed) < count {
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
    };
    tokio::time::timeout(PATIENCE, reached).await.unwrap_or_else(|_| panic!("{counter:?} of {count}"));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_publisher_loses_nothing_and_stores_nothing_twice_over_kills() {
    const COUNT: u64 = 6_000;
    let site = Site::new();
    let mut server = site.start();
    for name in ["a", "b"] {
        create(&mut server.clients(), name).await;
    }
    let front = Front::of(&server).await;
    let client = Client::connect(&front.url).await.unwrap();
    let answered = Arc::new(AtomicU64::new(0));
    let publishing = tokio::spawn(publish_all(client.publisher(), COUNT, answered.clone()));
    for kill in 1..=4 {
        reaches(&answered, kill * COUNT / 6).await;
        server = front.kill(&site, server).await;
    }
    publishing.await.unwrap();
    let mut clients = server.clients();
    for (name, first) in [("a", 1), ("b", 2)] {
        let expected: Vec<Vec<u8>> =
            (first..=COUNT).step_by(2).map(|number| number.to_string().into_bytes()).collect();
        assert_eq!(drain(&mut clients, name).await, expected, "queue {name}");
    }
}

#[tokio::test]
async fn a_refused_request_does_not_hold_back_those_after_it() {
    let (_site, server, mut clients) = with_queue().await;
    let client = Client::connect(&format!("http://{}", server.grpc)).await.unwrap();
    let publisher = client.publisher();
    let mut receipts = Vec::new();
    for number in 0..60 {
        let messages = match number {
            20 => Vec::new(),
            40 => vec![Message { new_origin: true, ..message("x") }],
            _ => vec![message(number.to_string())],
        };
        let name = if number == 30 { "missing" } else { "q" };
        receipts.push(publisher.send(&queue(name), messages).await.unwrap());
    }
    let mut reasons = BTreeMap::new();
    for (number, receipt) in receipts.into_iter().enumerate() {
        if let Err(error) = receipt.await {
            reasons.insert(number, refused(error).reason);
        }
    }
    let expected = [(20, "INVALID_FIELD"), (30, "QUEUE_NOT_FOUND"), (40, "FIELD_NOT_BUILT")];
    assert_eq!(reasons, expected.map(|(number, reason)| (number, reason.to_owned())).into());
    let stored = (0..60).filter(|number| ![20, 30, 40].contains(number));
    let stored: Vec<Vec<u8>> = stored.map(|number: u32| number.to_string().into_bytes()).collect();
    assert_eq!(drain(&mut clients, "q").await, stored);
    let large = publisher.publish(&queue("q"), vec![message(vec![0; 10 << 20])]).await.unwrap_err();
    assert!(matches!(large, ClientError::TooLarge { bytes: 10_485_760.., .. }), "{large:?}");
}

#[tokio::test]
async fn a_queue_that_was_made_anew_is_published_to() {
    let (_site, server, mut clients) = with_queue().await;
    let client = Client::connect(&format!("http://{}", server.grpc)).await.unwrap();
    let publisher = client.publisher();
    for _ in 0..3 {
        for offset in 0..3 {
            let published = publisher.publish(&queue("q"), vec![message("x")]).await.unwrap();
            assert_eq!(published.results[0].offset, offset);
        }
        delete(&mut clients, "q").await;
        create(&mut clients, "q").await;
    }
    // Who drops the publisher may still wait for what it sent.
    let receipt = publisher.send(&queue("q"), vec![message("x")]).await.unwrap();
    drop(publisher);
    assert_eq!(receipt.await.unwrap().results[0].offset, 0);
}

#[tokio::test]
async fn no_server_and_no_subscription_are_said() {
    let error = Client::connect("not a url").await.unwrap_err();
    assert!(matches!(&error, ClientError::Url { .. }), "{error:?}");
    let error = Client::connect("http://127.0.0.1:1").await.unwrap_err();
    assert!(matches!(&error, ClientError::Connect { .. }), "{error:?}");
    let (_site, server, _) = with_queue().await;
    let client = Client::connect(&format!("http://{}", server.grpc)).await.unwrap();
    let options = ConsumerOptions::default();
    let mut consumer = client.consume(&subscription("missing"), options, |_| async { Ending::Ack });
    let refused = refused(consumer.ended().await.unwrap_err());
    assert_eq!((refused.code, refused.reason.as_str()), (Code::NotFound, "QUEUE_NOT_FOUND"));
}

fn body_of(delivery: &Delivery) -> String {
    String::from_utf8(delivery.message.body.to_vec()).unwrap()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_consumer_finishes_everything_over_kills() {
    const COUNT: usize = 3_000;
    let (site, mut server, mut clients) = with_queue().await;
    publish_numbered(&mut clients, "q", COUNT).await;
    let front = Front::of(&server).await;
    let client = Client::connect(&front.url).await.unwrap();
    let (handled, handlers) = (Arc::new(AtomicU64::new(0)), Arc::new(Mutex::new((0_u32, 0_u32))));
    let seen = Arc::new(Mutex::new(BTreeMap::<String, u32>::new()));
    // What a killed server had sent into the void comes again when its lease ends.
    let lease = Some(Duration::from_secs(2));
    let options = ConsumerOptions { concurrency: 20, lease, ..ConsumerOptions::default() };
    let consumer = client.consume(&subscription("q"), options, {
        let (handled, handlers, seen) = (handled.clone(), handlers.clone(), seen.clone());
        move |delivery| {
            let (handled, handlers, seen) = (handled.clone(), handlers.clone(), seen.clone());
            async move {
                {
                    let mut handlers = handlers.lock().unwrap();
                    handlers.0 += 1;
                    handlers.1 = handlers.1.max(handlers.0);
                }
                tokio::time::sleep(Duration::from_millis(2)).await;
                handlers.lock().unwrap().0 -= 1;
                if seen.lock().unwrap().insert(body_of(&delivery), delivery.attempt).is_none() {
                    handled.fetch_add(1, Ordering::Relaxed);
                }
                Ending::Ack
            }
        }
    });
    for kill in 1..=3 {
        reaches(&handled, kill * COUNT as u64 / 5).await;
        server = front.kill(&site, server).await;
    }
    reaches(&handled, COUNT as u64).await;
    let finished = async {
        while stats_of(&mut server.clients(), &subscription("q")).await.backlog_messages > 0 {
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    };
    tokio::time::timeout(PATIENCE, finished).await.expect("every message is finished");
    consumer.stop().await.unwrap();
    let expected: Vec<Vec<u8>> = bodies(COUNT);
    let mut expected: Vec<String> =
        expected.into_iter().map(|body| String::from_utf8(body).unwrap()).collect();
    expected.sort();
    assert_eq!(seen.lock().unwrap().keys().cloned().collect::<Vec<_>>(), expected);
    assert_eq!(handlers.lock().unwrap().1, 20, "as many at once as asked for");
    assert_eq!(stats_of(&mut server.clients(), &subscription("q")).await.ack_floor, COUNT as u64);
}

#[tokio::test]
async fn a_lease_is_extended_while_its_handler_runs() {
    let (_site, server, mut clients) = with_queue().await;
    publish(&mut clients, "q", &["x"]).await;
    let client = Client::connect(&format!("http://{}", server.grpc)).await.unwrap();
    let (tell, mut ended) = mpsc::unbounded_channel();
    let options = ConsumerOptions { lease: Some(Duration::from_secs(1)), ..ConsumerOptions::default() };
    let consumer = client.consume(&subscription("q"), options, move |delivery| {
        let tell = tell.clone();
        async move {
            let kept = tokio::time::timeout(Duration::from_secs(3), delivery.lease.lost()).await.is_err();
            tell.send((delivery.attempt, kept, delivery.lease.is_lost())).unwrap();
            Ending::Ack
        }
    });
    assert_eq!(ended.recv().await, Some((1, true, false)));
    consumer.stop().await.unwrap();
    assert!(ended.try_recv().is_err(), "it came once");
    assert_eq!(stats_of(&mut clients, &subscription("q")).await.ack_floor, 1);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_lease_is_lost_when_its_server_is() {
    let (_site, server, mut clients) = with_queue().await;
    publish(&mut clients, "q", &["x"]).await;
    let client = Client::connect(&format!("http://{}", server.grpc)).await.unwrap();
    let (tell, mut told) = mpsc::unbounded_channel();
    let options = ConsumerOptions { lease: Some(Duration::from_secs(1)), ..ConsumerOptions::default() };
    let _consumer = client.consume(&subscription("q"), options, move |delivery| {
        let tell = tell.clone();
        async move {
            tell.send("began").unwrap();
            delivery.lease.lost().await;
            assert!(delivery.lease.is_lost());
            tell.send("lost").unwrap();
            Ending::Ack
        }
    });
    assert_eq!(told.recv().await, Some("began"));
    tokio::task::block_in_place(|| server.kill());
    let lost = tokio::time::timeout(PATIENCE, told.recv()).await;
    assert_eq!(lost.expect("a lost lease is told"), Some("lost"));
}

#[tokio::test]
async fn a_stop_finishes_what_runs_and_releases_the_rest() {
    let (_site, server, mut clients) = with_queue().await;
    publish_numbered(&mut clients, "q", 10).await;
    let client = Client::connect(&format!("http://{}", server.grpc)).await.unwrap();
    let (running, go) = (Arc::new(AtomicU64::new(0)), Arc::new(Semaphore::new(0)));
    let options = ConsumerOptions { concurrency: 2, ..ConsumerOptions::default() };
    let consumer = client.consume(&subscription("q"), options, {
        let (running, go) = (running.clone(), go.clone());
        move |_| {
            let (running, go) = (running.clone(), go.clone());
            async move {
                running.fetch_add(1, Ordering::Relaxed);
                go.acquire().await.unwrap().forget();
                Ending::Ack
            }
        }
    });
    reaches(&running, 2).await;
    let stopping = tokio::spawn(consumer.stop());
    tokio::time::sleep(Duration::from_millis(100)).await;
    assert!(!stopping.is_finished(), "handlers still run");
    go.add_permits(10);
    stopping.await.unwrap().unwrap();
    assert_eq!(running.load(Ordering::Relaxed), 2);
    let stats = stats_of(&mut clients, &subscription("q")).await;
    assert_eq!((stats.ack_floor, stats.leased_messages), (2, 0));
    let rest = pull(&mut clients, "q", 10).await;
    assert_eq!((offsets(&rest), attempts(&rest)), ((2..10).collect(), vec![1; 8]));
}

#[tokio::test]
async fn each_ending_ends_the_delivery_its_way() {
    let (_site, server, mut clients) = with_queue().await;
    publish(&mut clients, "q", &["ack", "retry", "delay", "release", "reject", "panic"]).await;
    let client = Client::connect(&format!("http://{}", server.grpc)).await.unwrap();
    let (tell, mut told) = mpsc::unbounded_channel();
    let consumer = client.consume(&subscription("q"), ConsumerOptions::default(), move |delivery| {
        let tell = tell.clone();
        async move {
            let body = body_of(&delivery);
            tell.send((body.clone(), delivery.attempt)).unwrap();
            match (body.as_str(), delivery.attempt) {
                ("retry", 1) => Ending::Retry { delay: None },
                ("delay", _) => Ending::Retry { delay: Some(Duration::from_secs(3_600)) },
                ("reject", _) => Ending::Reject { error: "no good".into() },
                ("panic", 1) => panic!("a handler may panic"),
                ("release", _) => {
                    // Given back for others to take: this consumer must not take it over and over.
                    tokio::time::sleep(Duration::from_millis(50)).await;
                    Ending::Release
                }
                _ => Ending::Ack,
            }
        }
    });
    let mut seen = BTreeMap::<String, Vec<u32>>::new();
    while seen.get("retry").is_none_or(|attempts| attempts.len() < 2)
        || seen.get("panic").is_none_or(|attempts| attempts.len() < 2)
        || seen.get("release").is_none_or(|attempts| attempts.len() < 3)
        || seen.len() < 6
    {
        let next = tokio::time::timeout(PATIENCE, told.recv()).await.unwrap_or_else(|_| panic!("{seen:?}"));
        let (body, attempt) = next.unwrap();
        seen.entry(body).or_default().push(attempt);
    }
    consumer.stop().await.unwrap();
    assert_eq!(seen["retry"], [1, 2]);
    assert_eq!(seen["panic"], [1, 2]);
    assert!(seen["release"].iter().all(|attempt| *attempt == 1), "{seen:?}");
    assert_eq!([&seen["ack"], &seen["delay"], &seen["reject"]], [&[1], &[1], &[1]]);
    // The rejected one is leased until it is in the dead-letter queue.
    let ended = async {
        loop {
            let stats = stats_of(&mut clients, &subscription("q")).await;
            if stats.leased_messages == 0 {
                return stats;
            }
        }
    };
    let stats = tokio::time::timeout(PATIENCE, ended).await.expect("all deliveries end");
    assert_eq!((stats.backlog_messages, stats.delayed_messages), (2, 1));
    let dead = drain(&mut clients, "q-dead").await;
    assert_eq!(dead, [b"reject"]);
}

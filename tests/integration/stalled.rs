//! Readers that never read: what waits for them is bounded, others go on, and all is free when they have gone.

use std::time::Duration;

use forebay::limits::TAILS_MAX;
use forebay::proto::v1::position::Position as Place;
use forebay::proto::v1::subscribe_request::{Acks, Request as Up};
use forebay::proto::v1::subscribe_response::Response as Down;
use forebay::proto::v1::*;
use forebay_testkit::{Clients, Server, queue, subscription};
use tonic::{Code, Streaming};

use crate::support::*;

const LARGE: usize = 3 << 20;
const SMALL: usize = 1 << 10;
const CONSUMERS: usize = 200;
/// What `offset` has: few large messages, each among many small ones.
fn length(offset: u64) -> usize {
    if offset % 100 == 50 { LARGE } else { SMALL }
}

/// A server that takes large messages, with one queue `q`.
async fn with_large_segments() -> (Site, Server, Clients) {
    let mut site = Site::new();
    site.options.config = format!("segment_bytes = {}\n", 16 << 20);
    let server = site.start();
    let mut clients = server.clients();
    create(&mut clients, "q").await;
    (site, server, clients)
}

async fn publish_mixed(clients: &mut Clients, first: u64, end: u64) {
    for chunk in (first..end).collect::<Vec<_>>().chunks(50) {
        let bodies: Vec<Vec<u8>> = chunk.iter().map(|offset| vec![*offset as u8; length(*offset)]).collect();
        assert_eq!(publish(clients, "q", &bodies).await, chunk[0]);
    }
}

#[track_caller]
fn check_mixed(message: &Message, offset: u64) {
    assert_eq!((message.offset, message.body.len()), (offset, length(offset)));
    assert!(message.body.iter().all(|byte| *byte == offset as u8), "{offset}");
}

/// Streams that were opened and are not read, each on a connection of its own.
#[derive(Default)]
struct Stalled {
    tails: Vec<Streaming<TailResponse>>,
    consumers: Vec<Stream>,
}

impl Stalled {
    async fn open(server: &Server, tails: usize, consumers: usize) -> Self {
        let mut stalled = Self::default();
        for _ in 0..tails {
            let start = Some(Position { position: Some(Place::Earliest(())) });
            let request = TailRequest { queue: queue("q"), start, ..TailRequest::default() };
            stalled.tails.push(server.clients().messages.tail(request).await.unwrap().into_inner());
        }
        let mut clients = server.clients();
        for at in 0..consumers {
            let name =
                subscribe_to(&mut clients, "q", &format!("s{at}"), Some(Place::Earliest(())), 10_000).await;
            stalled.consumers.push(Stream::open(&mut server.clients(), &name, 1_000, 1 << 30).await);
        }
        stalled
    }
}

/// Takes messages of the honest consumer, acknowledges them, and notes how much memory the server has meanwhile.
async fn take(consumer: &mut Stream, next: &mut u64, end: u64, server: &Server) -> u64 {
    let mut most_kib = 0;
    while *next < end {
        match consumer.next().await.unwrap().expect("the stream goes on") {
            Down::Deliveries(deliveries) => {
                for received in &deliveries.messages {
                    check_mixed(received.message.as_ref().unwrap(), *next);
                    *next += 1;
                }
                let ack_ids = ack_ids(&deliveries.messages);
                consumer.send(Up::Acks(Acks { ack_ids, ..Acks::default() }));
            }
            Down::AckResults(_) => {}
            other => panic!("{other:?}"),
        }
        most_kib = most_kib.max(resident_kib(server));
    }
    most_kib
}

#[tokio::test]
async fn readers_that_never_read_are_bounded_and_hold_up_nobody() {
    let (_site, server, mut clients) = with_large_segments().await;
    publish_mixed(&mut clients, 0, 1_000).await;
    let (mut honest, mut next) = (Stream::open(&mut clients, &subscription("q"), 100_000, 1 << 40).await, 0);
    take(&mut honest, &mut next, 1_000, &server).await;
    let before_kib = resident_kib(&server);

    let stalled = Stalled::open(&server, TAILS_MAX, CONSUMERS).await;
    publish_mixed(&mut clients, 1_000, 1_300).await;
    let most_kib = take(&mut honest, &mut next, 1_300, &server).await;
    let used = metric(&server, "forebay_outflow_used_bytes").await;
    assert!((1..=metric(&server, "forebay_outflow_budget_bytes").await).contains(&used), "{used}");
    let growth_mib = most_kib.saturating_sub(before_kib) >> 10;
    assert!(growth_mib < 64, "{growth_mib} MiB");

    drop(stalled);
    while metric(&server, "forebay_outflow_used_bytes").await > 0 {
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    publish_mixed(&mut clients, 1_300, 1_400).await;
    take(&mut honest, &mut next, 1_400, &server).await;
}

#[tokio::test]
async fn a_reader_that_comes_late_gets_through_as_those_that_do_not_read_are_cut_off() {
    let (_site, server, mut clients) = with_large_segments().await;
    publish_mixed(&mut clients, 0, 200).await;
    let mut stalled = Stalled::open(&server, 6, 6).await;
    let (mut late, mut next) = (Stream::open(&mut clients, &subscription("q"), 1_000, 1 << 40).await, 0);
    take(&mut late, &mut next, 200, &server).await;
    assert!(metric(&server, "forebay_outflow_readers_cut_total").await > 0);
    // Who was cut off learns it when it reads on; those that were not go on to the end of the queue, and wait there.
    let mut told = 0;
    for tail in &mut stalled.tails {
        while let Ok(answer) = tokio::time::timeout(Duration::from_secs(1), tail.message()).await {
            if let Err(status) = answer {
                check_error(&status, Code::ResourceExhausted, "MEMORY_BUDGET");
                told += 1;
                break;
            }
        }
    }
    assert!(told > 0, "of {} tails", stalled.tails.len());
}

//! Following a queue by Tail: every message once, whatever consumers, purges and restarts do.

use forebay::proto::v1::position::Position as Place;
use forebay::proto::v1::tail_response::gap::Reason;
use forebay::proto::v1::*;
use forebay_testkit::{Clients, queue};
use tonic::{Code, Status, Streaming};

use crate::support::*;

/// One Tail stream, and the place behind what it has told.
struct Tail {
    down: Streaming<TailResponse>,
    token: String,
}

impl Tail {
    /// Opens a tail of the queue `q`, and takes its first answer.
    async fn open(clients: &mut Clients, request: TailRequest) -> Result<Self, Status> {
        let request = TailRequest { queue: queue("q"), ..request };
        let down = clients.messages.tail(request).await?.into_inner();
        let mut tail = Self { down, token: String::new() };
        let first = tail.next().await?;
        assert_eq!((first.messages.len(), first.gap), (0, None));
        Ok(tail)
    }

    async fn from(clients: &mut Clients, place: Place) -> Self {
        let start = Some(Position { position: Some(place) });
        Self::open(clients, TailRequest { start, ..Default::default() }).await.unwrap()
    }

    async fn resumed(clients: &mut Clients, token: &str) -> Result<Self, Status> {
        Self::open(clients, TailRequest { resume_token: token.to_owned(), ..Default::default() }).await
    }

    async fn next(&mut self) -> Result<TailResponse, Status> {
        let answer = tokio::time::timeout(PATIENCE, self.down.message()).await.expect("the tail goes on");
        let answer = answer?.expect("a tail ends with an error");
        assert_ne!(answer.resume_token, "");
        self.token.clone_from(&answer.resume_token);
        Ok(answer)
    }

    /// Takes messages until there are this many or more, and no gap.
    async fn take(&mut self, count: usize) -> Vec<Message> {
        let mut messages = Vec::new();
        while messages.len() < count {
            let answer = self.next().await.unwrap();
            assert_eq!(answer.gap, None);
            messages.extend(answer.messages);
        }
        messages
    }

    /// The next gap; messages may come with it, not before it.
    async fn gap(&mut self) -> (u64, u64, Reason, Vec<Message>) {
        loop {
            let answer = self.next().await.unwrap();
            let Some(gap) = answer.gap else {
                assert_eq!(answer.messages, [], "a gap is told before what follows");
                continue;
            };
            return (gap.first_offset, gap.end_offset, gap.reason(), answer.messages);
        }
    }

    async fn error(&mut self) -> Status {
        loop {
            if let Err(status) = self.next().await {
                return status;
            }
        }
    }
}

/// Checks that these are the numbered messages `first..end`.
#[track_caller]
fn check_numbered(messages: &[Message], first: u64, end: u64) {
    assert_eq!(messages.iter().map(|m| m.offset).collect::<Vec<_>>(), (first..end).collect::<Vec<_>>());
    let bodies = bodies(end as usize);
    assert!(messages.iter().all(|m| m.body == bodies[m.offset as usize]));
}

#[tokio::test]
async fn a_tail_gets_what_is_published_though_consumers_finish_it_first() {
    let (_site, server, mut clients) = with_queue().await;
    publish(&mut clients, "q", &bodies(7)).await;
    let mut late = Tail::open(&mut clients, TailRequest::default()).await.unwrap();
    let publishing = tokio::spawn({
        let mut clients = server.clients();
        async move {
            for chunk in bodies(900)[7..].chunks(40) {
                publish(&mut clients, "q", chunk).await;
                drain(&mut clients, "q").await;
            }
        }
    });
    check_numbered(&late.take(893).await, 7, 900);
    publishing.await.unwrap();
    // All are finished, and still there.
    let mut early = Tail::from(&mut clients, Place::Offset(0)).await;
    check_numbered(&early.take(900).await, 0, 900);
    assert_eq!(stats_of(&mut clients, &forebay_testkit::subscription("q")).await.leased_messages, 0);
}

#[tokio::test]
async fn a_token_goes_on_behind_its_answer_after_a_kill() {
    let (site, server, mut clients) = with_queue().await;
    publish_numbered(&mut clients, "q", 1_000).await;
    let mut tail = Tail::from(&mut clients, Place::Earliest(())).await;
    let begun = tail.token.clone();
    let mut messages = tail.take(300).await;
    server.kill();
    let server = site.start();
    let mut clients = server.clients();
    let mut tail = Tail::resumed(&mut clients, &tail.token).await.unwrap();
    messages.extend(tail.take(1_000 - messages.len()).await);
    check_numbered(&messages, 0, 1_000);
    let mut tail = Tail::resumed(&mut clients, &begun).await.unwrap();
    check_numbered(&tail.take(1_000).await, 0, 1_000);
}

#[tokio::test]
async fn what_was_purged_is_told_as_a_gap_after_a_restart_too() {
    let (site, server, mut clients) = with_queue().await;
    publish_numbered(&mut clients, "q", 500).await;
    drain(&mut clients, "q").await;
    publish_numbered(&mut clients, "q", 100).await;
    let purge = PurgeRequest { name: queue("q"), end_offset: Some(550), ..Default::default() };
    clients.queues.purge(purge).await.unwrap();
    let mut tail = Tail::from(&mut clients, Place::Offset(120)).await;
    let (first, end, reason, _) = tail.gap().await;
    assert_eq!((first, end, reason), (120, 550, Reason::Purged));
    assert_eq!(tail.take(50).await[0].offset, 550);
    drop(server);
    let server = site.start();
    let mut tail = Tail::from(&mut server.clients(), Place::Offset(0)).await;
    let (first, end, reason, _) = tail.gap().await;
    assert_eq!((first, end, reason), (0, 550, Reason::Purged));
}

#[tokio::test]
async fn what_the_log_has_given_up_is_told_as_a_gap() {
    let site = tiny_segments();
    let server = site.start();
    let mut clients = server.clients();
    create(&mut clients, "q").await;
    let mut next = 0;
    // Segments leave with the checkpoints that come with new ones.
    let (first, end) = loop {
        assert!(next < 20_000, "segments leave");
        for _ in 0..10 {
            next = publish(&mut clients, "q", &[[7; 30_000]]).await + 1;
        }
        drain(&mut clients, "q").await;
        let mut tail = Tail::from(&mut clients, Place::Offset(0)).await;
        let answer = tail.next().await.unwrap();
        if let Some(gap) = answer.gap {
            assert_eq!(gap.reason(), Reason::Reclaimed);
            break (gap.first_offset, gap.end_offset);
        }
    };
    assert!(first == 0 && end > 0 && end < next, "{first} {end} {next}");
}

#[tokio::test]
async fn a_tail_ends_with_its_queue_whose_tokens_are_no_good_for_another() {
    let (_site, _server, mut clients) = with_queue().await;
    publish(&mut clients, "q", &bodies(3)).await;
    let mut tail = Tail::from(&mut clients, Place::Earliest(())).await;
    tail.take(3).await;
    delete(&mut clients, "q").await;
    check_error(&tail.error().await, Code::NotFound, "QUEUE_NOT_FOUND");
    let gone = Tail::resumed(&mut clients, &tail.token).await.map(drop).unwrap_err();
    check_error(&gone, Code::NotFound, "QUEUE_NOT_FOUND");
    create(&mut clients, "q").await;
    let other = Tail::resumed(&mut clients, &tail.token).await.map(drop).unwrap_err();
    check_field(&other, "INVALID_RESUME_TOKEN", "resume_token");
    let request =
        TailRequest { start: Some(Position { position: Some(Place::Offset(1)) }), ..TailRequest::default() };
    let beyond = Tail::open(&mut clients, request).await.map(drop).unwrap_err();
    check_error(&beyond, Code::OutOfRange, "OFFSET_OUT_OF_RANGE");
}

#[tokio::test]
async fn a_tail_that_nobody_reads_holds_up_nobody() {
    let (_site, server, mut clients) = with_queue().await;
    let mut idle = Tail::from(&mut server.clients(), Place::Earliest(())).await;
    let mut other = Tail::from(&mut clients, Place::Earliest(())).await;
    let large: Vec<Vec<u8>> = (0..20_u8).map(|n| vec![n; 900_000]).collect();
    for body in &large {
        publish(&mut clients, "q", &[body]).await;
    }
    let check = |messages: &[Message]| {
        assert!(messages.iter().map(|m| &m.body[..]).eq(large.iter().map(|body| &body[..])));
    };
    check(&other.take(20).await);
    assert_eq!(drain(&mut clients, "q").await, large);
    check(&idle.take(20).await);
}

#[tokio::test]
async fn there_are_only_so_many_tails() {
    let (_site, _server, mut clients) = with_queue().await;
    let mut tails = Vec::new();
    for _ in 0..forebay::limits::TAILS_MAX {
        tails.push(Tail::open(&mut clients, TailRequest::default()).await.unwrap());
    }
    let full = Tail::open(&mut clients, TailRequest::default()).await.map(drop).unwrap_err();
    let details = check_error(&full, Code::ResourceExhausted, "TOO_MANY_TAILS");
    assert!(details.retry_info().is_some());
    tails.pop();
    while Tail::open(&mut clients, TailRequest::default()).await.is_err() {
        tokio::task::yield_now().await;
    }
}

#[tokio::test]
async fn a_draining_server_sends_its_tails_away() {
    let (site, server, mut clients) = with_queue().await;
    publish(&mut clients, "q", &bodies(3)).await;
    let mut tail = Tail::from(&mut clients, Place::Earliest(())).await;
    tail.take(3).await;
    let ending = tokio::spawn(end(server));
    let status = tail.error().await;
    let details = check_error(&status, Code::Unavailable, "DRAINING");
    assert!(details.retry_info().is_some());
    let (status, stderr) = ending.await.unwrap();
    assert_eq!(status.code(), Some(0), "{stderr}");
    assert!(!stderr.contains("connections did not end in time"), "{stderr}");
    let server = site.start();
    let mut clients = server.clients();
    let mut tail = Tail::resumed(&mut clients, &tail.token).await.unwrap();
    publish(&mut clients, "q", &["after"]).await;
    assert_eq!(tail.take(1).await[0].body, "after");
}

//! Publishing by streams: order, errors between, repeats, clients that do not read, and the server's end.

use std::sync::Arc;
use std::time::Duration;

use forebay::limits::PUBLISH_STREAM_REQUESTS_MAX;
use forebay::proto::v1::message_service_client::MessageServiceClient;
use forebay::proto::v1::publish_stream_response::Result as Shown;
use forebay::proto::v1::*;
use forebay_testkit::{Clients, queue};
use tokio::sync::{Semaphore, mpsc};
use tokio_stream::wrappers::{ReceiverStream, UnboundedReceiverStream};
use tonic::transport::Endpoint;
use tonic::{Code, Status, Streaming};

use crate::support::*;

/// One PublishStream.
struct Publishing {
    up: mpsc::UnboundedSender<PublishStreamRequest>,
    down: Streaming<PublishStreamResponse>,
}

impl Publishing {
    async fn open(clients: &mut Clients) -> Self {
        let (up, requests) = mpsc::unbounded_channel();
        let answers = clients.messages.publish_stream(UnboundedReceiverStream::new(requests)).await.unwrap();
        Self { up, down: answers.into_inner() }
    }

    fn send(&self, correlation_id: u64, publish: PublishRequest) {
        self.up.send(PublishStreamRequest { correlation_id, publish: Some(publish) }).unwrap();
    }

    /// The next answer, or how the stream ended.
    async fn next(&mut self) -> Result<Option<(u64, Result<PublishResponse, Status>)>, Status> {
        let answer =
            tokio::time::timeout(PATIENCE, self.down.message()).await.expect("the stream goes on")?;
        Ok(answer.map(|answer| {
            let result = match answer.result.expect("an answer is not empty") {
                Shown::Response(response) => Ok(response),
                Shown::Error(error) => {
                    Err(Status::with_details(error.code.into(), error.message, error.status))
                }
            };
            (answer.correlation_id, result)
        }))
    }

    /// The next answer, which must be a success: its id, first offset and whether it is a duplicate.
    async fn stored(&mut self) -> (u64, u64, bool) {
        let (id, response) = self.next().await.unwrap().expect("the stream goes on");
        let first = &response.unwrap().results[0];
        (id, first.offset, first.duplicate)
    }
}

fn one(name: &str, body: impl AsRef<[u8]>) -> PublishRequest {
    PublishRequest { queue: queue(name), messages: vec![message(body)], ..PublishRequest::default() }
}

fn sequenced(name: &str, sequence: u64) -> PublishRequest {
    let producer = Some(Producer { producer_id: "p".into(), epoch: 1, sequence });
    PublishRequest { producer, ..one(name, sequence.to_string()) }
}

#[tokio::test]
async fn requests_are_stored_and_answered_in_their_order() {
    let (_site, _server, mut clients) = with_queue().await;
    create(&mut clients, "other").await;
    let mut stream = Publishing::open(&mut clients).await;
    for id in 0..2_000 {
        let name = if id % 3 == 0 { "other" } else { "q" };
        stream.send(id, one(name, id.to_string()));
    }
    for id in 0..2_000 {
        let offset = if id % 3 == 0 { id / 3 } else { id - id / 3 - 1 };
        assert_eq!(stream.stored().await, (id, offset, false));
    }
    let in_order = |wanted: fn(&u64) -> bool| -> Vec<Vec<u8>> {
        (0..2_000).filter(wanted).map(|id| id.to_string().into_bytes()).collect()
    };
    assert_eq!(drain(&mut clients, "other").await, in_order(|id| id % 3 == 0));
    assert_eq!(drain(&mut clients, "q").await, in_order(|id| id % 3 != 0));
    let commits = server_stats(&mut clients).await.commits;
    assert!(commits < 1_000, "requests share commits: {commits} for 2,000 of them");
}

#[tokio::test]
async fn a_refused_request_is_answered_and_the_stream_goes_on() {
    let (_site, _server, mut clients) = with_queue().await;
    let mut stream = Publishing::open(&mut clients).await;
    stream.send(1, one("q", "a"));
    stream.send(2, one("missing", "b"));
    stream.send(3, PublishRequest { queue: queue("q"), ..PublishRequest::default() });
    stream.up.send(PublishStreamRequest { correlation_id: 4, publish: None }).unwrap();
    let unbuilt = Message { new_origin: true, ..message("c") };
    stream.send(5, PublishRequest { messages: vec![unbuilt], ..one("q", "") });
    stream.send(6, one("q", "d"));
    assert_eq!(stream.stored().await, (1, 0, false));
    let mut refused = async |expected: u64| {
        let (id, result) = stream.next().await.unwrap().unwrap();
        assert_eq!(id, expected);
        result.unwrap_err()
    };
    check_error(&refused(2).await, Code::NotFound, "QUEUE_NOT_FOUND");
    check_field(&refused(3).await, "INVALID_FIELD", "messages");
    check_field(&refused(4).await, "INVALID_FIELD", "publish");
    check_field(&refused(5).await, "FIELD_NOT_BUILT", "messages[0].new_origin");
    assert_eq!(stream.stored().await, (6, 1, false));
    stream.up = mpsc::unbounded_channel().0;
    assert!(stream.next().await.unwrap().is_none());
    assert_eq!(drain(&mut clients, "q").await, [b"a", b"d"]);
}

#[tokio::test]
async fn a_repeated_sequence_has_its_first_answer_and_a_gap_is_refused() {
    let (_site, _server, mut clients) = with_queue().await;
    let mut stream = Publishing::open(&mut clients).await;
    for (id, sequence) in [1, 2, 2, 1, 4, 3].into_iter().enumerate() {
        stream.send(id as u64, sequenced("q", sequence));
    }
    let expected = [(0, 0, false), (1, 1, false), (2, 1, true), (3, 0, true)];
    for answer in expected {
        assert_eq!(stream.stored().await, answer);
    }
    let (id, gap) = stream.next().await.unwrap().unwrap();
    assert_eq!(id, 4);
    let details = check_error(&gap.unwrap_err(), Code::Aborted, "SEQUENCE_GAP");
    assert_eq!(details.error_info().unwrap().metadata["expected_sequence"], "3");
    assert_eq!(stream.stored().await, (5, 2, false));
    assert_eq!(drain(&mut clients, "q").await, [b"1", b"2", b"3"]);
}

#[tokio::test]
async fn a_request_beyond_the_limits_ends_the_stream_after_the_answers() {
    let (_site, _server, mut clients) = with_queue().await;
    let mut stream = Publishing::open(&mut clients).await;
    stream.send(1, one("q", "a"));
    stream.send(2, one("q", vec![0; 10 << 20]));
    assert_eq!(stream.stored().await, (1, 0, false));
    check_error(&stream.next().await.unwrap_err(), Code::InvalidArgument, "LIMIT_EXCEEDED");
}

/// The queue's next offset, once it has stood still.
async fn settled_offset(clients: &mut Clients) -> u64 {
    let mut seen = (0, 0);
    while seen.1 < 10 {
        let offset = get_queue(clients, "q").await.next_offset;
        seen = if offset > 0 && offset == seen.0 { (offset, seen.1 + 1) } else { (offset, 0) };
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    seen.0
}

#[tokio::test]
async fn clients_that_never_read_their_answers_are_stopped_in_bounded_memory() {
    const STREAMS: u64 = 4;
    const BODY_BYTES: usize = 32 << 10;
    let (_site, server, mut clients) = with_queue().await;
    let before_kib = resident_kib(&server);
    let mut unread = Vec::new();
    for _ in 0..STREAMS {
        // Each on a connection of its own, with a window for a few answers.
        let endpoint = Endpoint::from_shared(format!("http://{}", server.grpc)).unwrap();
        let channel = endpoint.initial_stream_window_size(1 << 10).connect_lazy();
        let (up, requests) = mpsc::channel(1);
        tokio::spawn(async move {
            let request =
                PublishStreamRequest { correlation_id: 1, publish: Some(one("q", [7; BODY_BYTES])) };
            while up.send(request.clone()).await.is_ok() {}
        });
        let mut messages = MessageServiceClient::new(channel);
        unread.push(messages.publish_stream(ReceiverStream::new(requests)).await.unwrap());
    }
    let stored = settled_offset(&mut clients).await;
    // Beside the places, a few answers are in the encoder's buffer and in the window.
    let most = STREAMS * (PUBLISH_STREAM_REQUESTS_MAX as u64 + 1_000);
    assert!(stored >= STREAMS * PUBLISH_STREAM_REQUESTS_MAX as u64, "{stored}");
    assert!(stored <= most, "{stored} were stored for clients that read nothing");
    let growth_mib = resident_kib(&server).saturating_sub(before_kib) >> 10;
    assert!(growth_mib < 128, "{growth_mib} MiB");
    // Others are served.
    assert_eq!(publish(&mut clients, "q", &["x"]).await, stored);
    drop(unread);
}

#[tokio::test]
async fn a_draining_server_answers_what_it_stored_and_ends_the_stream() {
    let (site, server, mut clients) = with_queue().await;
    let mut stream = Publishing::open(&mut clients).await;
    let up = stream.up.clone();
    // As many as a client may have under way without being taken for one that waits for no answer.
    let under_way = Arc::new(Semaphore::new(500));
    let answers = under_way.clone();
    let feeding = tokio::spawn(async move {
        for sequence in 1.. {
            under_way.acquire().await.expect("never closed").forget();
            let publish = Some(sequenced("q", sequence));
            if up.send(PublishStreamRequest { correlation_id: sequence, publish }).is_err() {
                return;
            }
            tokio::task::yield_now().await;
        }
    });
    for sequence in 1..=100 {
        assert_eq!(stream.stored().await, (sequence, sequence - 1, false));
        answers.add_permits(1);
    }
    let ending = tokio::spawn(end(server));
    let mut answered = 100;
    let status = loop {
        match stream.next().await {
            Ok(Some((id, Ok(_)))) => {
                answered += 1;
                answers.add_permits(1);
                assert_eq!(id, answered);
            }
            // Read before the drain, and taken by the broker after it.
            Ok(Some((_, Err(status)))) => drop(check_error(&status, Code::Unavailable, "DRAINING")),
            Ok(None) => panic!("the stream ended without a word"),
            Err(status) => break status,
        }
    };
    check_error(&status, Code::Unavailable, "DRAINING");
    drop(stream);
    answers.add_permits(Semaphore::MAX_PERMITS / 2);
    feeding.await.unwrap();
    assert!(ending.await.unwrap().0.success());
    let server = site.start();
    let mut clients = server.clients();
    assert_eq!(get_queue(&mut clients, "q").await.next_offset, answered, "what was stored was answered");
}

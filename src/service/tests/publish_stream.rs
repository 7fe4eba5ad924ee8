//! Publish streams against a broker that the test plays.

use std::pin::{Pin, pin};
use std::task::{Context, Poll, ready};

use bytes::{Buf, BufMut, BytesMut};
use http_body::{Body as _, Frame};
use prost::Message as _;
use tokio::sync::oneshot;
use tokio_stream::wrappers::ReceiverStream;
use tokio_stream::{Stream, StreamExt};
use tonic::Status;

use super::*;
use crate::admission::Permit;
use crate::broker::pipeline::PublishResults;
use crate::limits::PUBLISH_STREAM_REQUESTS_MAX;
use crate::observe::readiness::Phase;
use crate::proto::v1::publish_stream_response::Result as Shown;
use crate::service::publish_stream;

/// A request's body, made of gRPC messages.
struct Requests<S>(S);

impl<S: Stream<Item = Result<Vec<u8>, Status>> + Unpin> http_body::Body for Requests<S> {
    type Data = Bytes;
    type Error = Status;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, Status>>> {
        let message = ready!(Pin::new(&mut self.0).poll_next(cx));
        Poll::Ready(message.map(|message| {
            let message = message?;
            let mut framed = BytesMut::new();
            framed.put_u8(0);
            framed.put_u32(message.len() as u32);
            framed.put_slice(&message);
            Ok(Frame::data(framed.freeze()))
        }))
    }
}

fn open(
    shared: Shared,
    requests: impl Stream<Item = v1::PublishStreamRequest> + Send + Unpin + 'static,
) -> Answers {
    open_bytes(shared, requests.map(|request| Ok(request.encode_to_vec())))
}

fn open_bytes(
    shared: Shared,
    requests: impl Stream<Item = Result<Vec<u8>, Status>> + Send + Unpin + 'static,
) -> Answers {
    Answers { body: publish_stream::open(shared, Requests(requests)), came: BytesMut::new() }
}

/// What comes back, decoded.
struct Answers {
    body: publish_stream::Answers,
    came: BytesMut,
}

impl Answers {
    /// The next answer, or the status of the end.
    async fn next(&mut self) -> Result<v1::PublishStreamResponse, Status> {
        loop {
            if self.came.len() >= 5 {
                let length = (&self.came[1..5]).get_u32() as usize;
                let message = self.came.split_to(5 + length);
                return Ok(v1::PublishStreamResponse::decode(&message[5..]).unwrap());
            }
            let mut body = pin!(&mut self.body);
            let frame = std::future::poll_fn(|cx| body.as_mut().poll_frame(cx)).await;
            match frame.expect("the stream goes on").unwrap().into_data() {
                Ok(data) => self.came.extend_from_slice(&data),
                Err(frame) => {
                    return Err(Status::from_header_map(frame.trailers_ref().unwrap()).unwrap());
                }
            }
        }
    }
}

/// Bytes of the first body of each publish that came in one turn, and whom to answer.
struct Turn {
    bytes: Vec<usize>,
    memory: Option<Permit>,
    reply: oneshot::Sender<PublishResults>,
}

type Seen = mpsc::UnboundedReceiver<Turn>;

/// A broker that tells what comes.
fn turns() -> (Broker, Seen) {
    let (tell, seen) = mpsc::unbounded_channel();
    let broker = broker(move |call| match call {
        Call::PublishAll { publishes, memory, reply } => {
            let bytes = publishes.iter().map(|publish| publish.messages[0].parts.body.len()).collect();
            tell.send(Turn { bytes, memory, reply }).unwrap();
        }
        call => panic!("{call:?}"),
    });
    (broker, seen)
}

impl Turn {
    /// Answers with offsets from here on.
    fn answer(self, offset: u64) {
        drop(self.memory);
        let results = (offset..).take(self.bytes.len()).map(|offset| Ok(published(offset))).collect();
        self.reply.send(results).unwrap();
    }
}

fn published(offset: u64) -> Published {
    let (queue_uid, first_offset) = (Uid([1; 16]), Offset(offset));
    Published { queue_uid, first_offset, count: 1, publish_time_us: 0, duplicate: false, held: false }
}

fn request(correlation_id: u64, body: usize) -> v1::PublishStreamRequest {
    let message = v1::Message { body: Bytes::from(vec![0; body]), ..v1::Message::default() };
    let publish =
        v1::PublishRequest { queue: QUEUE.into(), messages: vec![message], ..v1::PublishRequest::default() };
    v1::PublishStreamRequest { correlation_id, publish: Some(publish) }
}

/// The correlation id, and the offset or the reason of the error.
async fn next(answers: &mut Answers) -> (u64, Result<u64, String>) {
    let answer = answers.next().await.unwrap();
    let result = match answer.result.unwrap() {
        Shown::Response(response) => Ok(response.results[0].offset),
        Shown::Error(error) => {
            let status = Status::with_details(error.code.into(), error.message, error.status);
            Err(reason(&status))
        }
    };
    (answer.correlation_id, result)
}

#[tokio::test]
async fn what_is_there_together_reaches_the_broker_in_one_turn() {
    let (broker, mut seen) = turns();
    let requests = (0..10).map(|id| request(id, 1));
    let mut answers = open(shared(broker), tokio_stream::iter(requests));
    let turn = seen.recv().await.unwrap();
    assert_eq!(turn.bytes, [1; 10]);
    turn.answer(0);
    for id in 0..10 {
        assert_eq!(next(&mut answers).await, (id, Ok(id)));
    }
    assert_eq!(answers.next().await.unwrap_err().code(), Code::Ok);
}

#[tokio::test]
async fn errors_are_answers_in_their_place() {
    let (broker, mut seen) = turns();
    let no_queue = v1::PublishRequest { queue: "q".into(), ..v1::PublishRequest::default() };
    let requests = [
        request(7, 1),
        v1::PublishStreamRequest { correlation_id: 8, publish: None },
        v1::PublishStreamRequest { correlation_id: 9, publish: Some(no_queue) },
        request(10, 1),
        request(10, 1),
    ];
    let mut answers = open(shared(broker), tokio_stream::iter(requests));
    let turn = seen.recv().await.unwrap();
    let results = vec![Ok(published(4)), Err(BrokerError::QueueDeleted), Ok(published(5))];
    turn.reply.send(results).unwrap();
    assert_eq!(next(&mut answers).await, (7, Ok(4)));
    assert_eq!(next(&mut answers).await, (8, Err("INVALID_FIELD".into())));
    assert_eq!(next(&mut answers).await, (9, Err("INVALID_FIELD".into())));
    assert_eq!(next(&mut answers).await, (10, Err("QUEUE_NOT_FOUND".into())));
    assert_eq!(next(&mut answers).await, (10, Ok(5)));
}

#[tokio::test]
async fn a_client_that_does_not_read_is_not_read_from() {
    let (broker, mut seen) = turns();
    let (up, requests) = mpsc::channel(1);
    let offered = tokio::spawn(async move {
        for offered in 0..600 {
            up.send(request(offered, 1)).await.unwrap();
        }
        up
    });
    let mut answers = open(shared(broker), ReceiverStream::new(requests));
    let mut taken = 0;
    while taken < PUBLISH_STREAM_REQUESTS_MAX {
        let turn = seen.recv().await.unwrap();
        let count = turn.bytes.len();
        turn.answer(taken as u64);
        taken += count;
    }
    for _ in 0..100 {
        tokio::task::yield_now().await;
    }
    assert_eq!((taken, seen.len()), (PUBLISH_STREAM_REQUESTS_MAX, 0));
    // The others were read ahead, for they are small. Answers that are taken make room for them.
    drop(offered.await.unwrap());
    assert_eq!(seen.len(), 0);
    assert_eq!(next(&mut answers).await, (0, Ok(0)));
    assert!(!seen.recv().await.unwrap().bytes.is_empty());
}

#[tokio::test]
async fn memory_is_given_back_when_the_broker_has_answered() {
    let (broker, mut seen) = turns();
    let parts = parts(broker);
    let admission = parts.budgets.publishes.clone();
    let served = super::network::serve(parts).await;
    let mut client = v1::message_service_client::MessageServiceClient::new(served.channel.clone());
    let (up, requests) = mpsc::channel(4);
    up.send(request(0, 3 << 20)).await.unwrap();
    let answers = client.publish_stream(ReceiverStream::new(requests)).await.unwrap();
    let first = seen.recv().await.unwrap();
    up.send(request(1, 1 << 20)).await.unwrap();
    let second = seen.recv().await.unwrap();
    assert_eq!((&first.bytes[..], &second.bytes[..]), (&[3 << 20][..], &[1 << 20][..]));
    assert_eq!(admission.used_bytes() >> 20, 4);
    first.answer(0);
    second.answer(1);
    // Nobody has read an answer.
    while admission.used_bytes() > 0 {
        tokio::task::yield_now().await;
    }
    drop(answers);
}

#[tokio::test]
async fn a_draining_server_answers_what_it_has_read() {
    let (broker, mut seen) = turns();
    let (up, requests) = mpsc::channel(1);
    let shared = shared(broker);
    let mut answers = open(shared.clone(), ReceiverStream::new(requests));
    up.send(request(1, 1)).await.unwrap();
    let turn = seen.recv().await.unwrap();
    shared.readiness.set(Phase::Draining);
    turn.answer(3);
    assert_eq!(next(&mut answers).await, (1, Ok(3)));
    let status = answers.next().await.unwrap_err();
    assert_eq!((status.code(), reason(&status)), (Code::Unavailable, "DRAINING".to_owned()));
}

#[tokio::test]
async fn what_cannot_be_read_ends_the_stream_after_the_answers() {
    let (broker, mut seen) = turns();
    let requests = [request(1, 1).encode_to_vec(), vec![0xff], request(2, 1).encode_to_vec()];
    let mut answers = open_bytes(shared(broker), tokio_stream::iter(requests.map(Ok)));
    let turn = seen.recv().await.unwrap();
    assert_eq!(turn.bytes, [1]);
    turn.answer(3);
    assert_eq!(next(&mut answers).await, (1, Ok(3)));
    let status = answers.next().await.unwrap_err();
    assert_eq!((status.code(), reason(&status)), (Code::InvalidArgument, "INVALID_FIELD".to_owned()));
    assert!(seen.try_recv().is_err(), "what follows was published");
}

#[tokio::test]
async fn a_broker_that_has_ended_is_told_to_each() {
    let (requests, calls) = mpsc::unbounded_channel();
    drop(calls);
    let broker = Broker::new(requests, Default::default());
    let mut answers = open(shared(broker), tokio_stream::iter([request(1, 1), request(2, 1)]));
    assert_eq!(next(&mut answers).await, (1, Err("LOG_STOPPED".into())));
    assert_eq!(next(&mut answers).await, (2, Err("LOG_STOPPED".into())));
}

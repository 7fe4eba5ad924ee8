//! A publish stream as a lean client speaks it, so that the cores are the server's.
//!
//! Requests are written straight into the connection's buffer when HTTP/2 asks for more, their messages encoded before
//! if they are all alike. Of an answer only what is judged is read: how many results it has, or its error. On the wire
//! it is what the generated client sends and reads.

use std::collections::VecDeque;
use std::pin::Pin;
use std::sync::{Arc, Mutex};
use std::task::{Context, Poll, Waker};
use std::time::Instant;

use bytes::{BufMut, Bytes};
use forebay::proto::v1::CallError;
use forebay_testkit::Clients;
use http::uri::PathAndQuery;
use prost::Message;
use prost::encoding::{WireType, encode_key, encode_varint, encoded_len_varint};
use tokio_stream::Stream;
use tonic::client::Grpc;
use tonic::codec::{Codec, DecodeBuf, Decoder, EncodeBuf, Encoder};
use tonic::{IntoStreamingRequest, Status};

use crate::Failure;
use crate::fill::Load;
use crate::samples::lock;

const PATH: &str = "/forebay.v1.MessageService/PublishStream";
/// Fields of `PublishStreamRequest` and `PublishRequest`.
const PUBLISH: u32 = 2;
const QUEUE: u32 = 1;

/// Publishes by one stream with this many requests under way.
pub async fn by_stream(clients: Clients, load: Arc<Load>, in_flight: usize) -> Result<(), Failure> {
    let under_way = Arc::new(UnderWay { in_flight, state: Mutex::default() });
    let requests = Requests { load: Arc::clone(&load), under_way: Arc::clone(&under_way) };
    let mut client = Grpc::new(clients.channel);
    client.ready().await?;
    let path = PathAndQuery::from_static(PATH);
    let answers = client.streaming(requests.into_streaming_request(), path, Lean).await?;
    let mut answers = answers.into_inner();
    while let Some(Answer { response, error }) = answers.message().await? {
        let (began, messages) = under_way.answered().ok_or("an answer to no request")?;
        if response.map(|response| response.results.len() as u64) != Some(messages) {
            return Err(format!("a publish of {messages} messages failed: {error:?}").into());
        }
        load.answered(began, messages);
    }
    if under_way.answered().is_some() { Err("the server ended the stream".into()) } else { Ok(()) }
}

/// Requests without an answer.
struct UnderWay {
    in_flight: usize,
    state: Mutex<State>,
}

#[derive(Default)]
struct State {
    /// When each began, and its messages.
    requests: VecDeque<(Instant, u64)>,
    /// Waits for an answer to send the next request.
    sender: Option<Waker>,
}

impl UnderWay {
    /// The first of them is answered.
    fn answered(&self) -> Option<(Instant, u64)> {
        let mut state = lock(&self.state);
        let (first, sender) = (state.requests.pop_front(), state.sender.take());
        drop(state);
        sender.into_iter().for_each(Waker::wake);
        first
    }
}

/// The requests of a load, as many at a time as may be under way.
struct Requests {
    load: Arc<Load>,
    under_way: Arc<UnderWay>,
}

impl Stream for Requests {
    type Item = Request;

    fn poll_next(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Request>> {
        let mut state = lock(&self.under_way.state);
        if state.requests.len() >= self.under_way.in_flight {
            state.sender = Some(cx.waker().clone());
            return Poll::Pending;
        }
        let now = Instant::now();
        let Some((request, messages)) = self.load.next_encoded(now) else { return Poll::Ready(None) };
        state.requests.push_back((now, messages));
        Poll::Ready(Some(request))
    }
}

/// A `PublishStreamRequest` with a queue, and its messages encoded one behind the other.
pub struct Request {
    pub queue: Arc<str>,
    pub messages: Bytes,
}

impl Request {
    fn put(&self, out: &mut impl BufMut) {
        let queue = self.queue.as_bytes();
        let publish = 1 + encoded_len_varint(queue.len() as u64) + queue.len() + self.messages.len();
        encode_key(PUBLISH, WireType::LengthDelimited, out);
        encode_varint(publish as u64, out);
        encode_key(QUEUE, WireType::LengthDelimited, out);
        encode_varint(queue.len() as u64, out);
        out.put_slice(queue);
        out.put_slice(&self.messages);
    }
}

/// A `PublishStreamResponse`, as far as it is judged.
#[derive(Clone, PartialEq, Message)]
struct Answer {
    #[prost(message, optional, tag = "2")]
    response: Option<Response>,
    #[prost(message, optional, tag = "3")]
    error: Option<CallError>,
}

/// A `PublishResponse` whose results are counted, not read.
#[derive(Clone, PartialEq, Message)]
struct Response {
    #[prost(message, repeated, tag = "1")]
    results: Vec<()>,
}

/// See the module's header.
struct Lean;

impl Codec for Lean {
    type Encode = Request;
    type Decode = Answer;
    type Encoder = Self;
    type Decoder = Self;

    fn encoder(&mut self) -> Self {
        Self
    }

    fn decoder(&mut self) -> Self {
        Self
    }
}

impl Encoder for Lean {
    type Item = Request;
    type Error = Status;

    fn encode(&mut self, request: Request, out: &mut EncodeBuf<'_>) -> Result<(), Status> {
        request.put(out);
        Ok(())
    }
}

impl Decoder for Lean {
    type Item = Answer;
    type Error = Status;

    fn decode(&mut self, bytes: &mut DecodeBuf<'_>) -> Result<Option<Answer>, Status> {
        Answer::decode(bytes).map(Some).map_err(|error| Status::internal(error.to_string()))
    }
}

#[cfg(test)]
mod tests {
    use forebay::proto::v1::publish_stream_response::Result as Shown;
    use forebay::proto::v1::{
        PublishRequest, PublishResponse, PublishResult, PublishStreamRequest, PublishStreamResponse,
    };

    use super::*;
    use crate::fill::{Content, Length, same_body};

    #[test]
    fn requests_are_those_of_the_generated_client() {
        let names = ["a".to_owned(), "b".to_owned()];
        let each = Content::Each(Box::new(|number| vec![7; number as usize].into()));
        for (content, batch) in [(same_body(300), 3), (same_body(0), 1), (each, 2)] {
            let lean = Load::new("any", &names, content, batch, Length::Messages(7));
            let mut numbers = 7;
            for turn in 0.. {
                let Some((request, messages)) = lean.next_encoded(Instant::now()) else { break };
                let mut bytes = Vec::new();
                request.put(&mut bytes);
                let decoded = PublishStreamRequest::decode(&bytes[..]).unwrap();
                let PublishRequest { queue, messages: sent, .. } = decoded.publish.clone().unwrap();
                assert_eq!(queue, forebay_testkit::queue(&names[turn % 2]));
                assert_eq!((sent.len() as u64, messages), (batch.min(numbers), batch.min(numbers)));
                numbers -= messages;
                assert_eq!(bytes, decoded.encode_to_vec());
            }
            assert_eq!(numbers, 0);
        }
    }

    #[test]
    fn answers_are_counted_and_errors_are_read() {
        let results = vec![PublishResult { message_id: "x".into(), offset: 7, ..Default::default() }; 3];
        let response = Shown::Response(PublishResponse { results, publish_time: None });
        let error = CallError { code: 5, message: "no such queue".into(), ..CallError::default() };
        let read = |result| {
            let answer = PublishStreamResponse { correlation_id: 9, result: Some(result) };
            Answer::decode(&answer.encode_to_vec()[..]).unwrap()
        };
        assert_eq!(read(response).response.unwrap().results.len(), 3);
        let refused = read(Shown::Error(error.clone()));
        assert_eq!((refused.response, refused.error), (None, Some(error)));
    }
}

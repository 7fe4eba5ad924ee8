//! Publishes by calls of their own.

use std::collections::VecDeque;
use std::pin::Pin;
use std::task::{Context, Poll};

use bytes::Bytes;
use http_body::{Body as _, Frame};
use prost::Message as _;

use super::*;
use crate::observe::connections::Connections;
use crate::service::admit::{PREFIX_BYTES, Slot};
use crate::service::places::Places;
use crate::service::publish_call;

/// Bytes as DATA frames.
struct Chunks(VecDeque<Bytes>);

impl http_body::Body for Chunks {
    type Data = Bytes;
    type Error = Status;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        _: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, Status>>> {
        Poll::Ready(self.0.pop_front().map(|chunk| Ok(Frame::data(chunk))))
    }
}

fn framed(message: &[u8]) -> Vec<u8> {
    let length = (message.len() as u32).to_be_bytes();
    [&[0], &length[..], message].concat()
}

/// What a call with this body is answered, in frames of `chunk` bytes.
async fn call(broker: Broker, body: &[u8], chunk: usize) -> Result<v1::PublishResponse, Status> {
    let chunks = body.chunks(chunk).map(Bytes::copy_from_slice).collect();
    let places = Places::new(Bounds { all: 1, per_address: 1 }, Connections::new(&Metrics::default()));
    let place = places.take([127, 0, 0, 1].into()).await;
    let (slot, under_way) = (Slot::default(), place.work().begin());
    let answer = publish_call::serve(shared(broker), Chunks(chunks), slot, under_way).await;
    if let Some(status) = Status::from_header_map(answer.headers()) {
        return Err(status);
    }
    assert!(place.work().idle().is_none(), "its answer has not gone");
    let mut body = answer.into_body();
    let mut frames = Vec::new();
    while let Some(frame) = std::future::poll_fn(|cx| Pin::new(&mut body).poll_frame(cx)).await {
        frames.push(frame?);
    }
    let trailers = frames.pop().unwrap().into_trailers().unwrap();
    assert_eq!(Status::from_header_map(&trailers).unwrap().code(), Code::Ok);
    let bytes = frames.pop().unwrap().into_data().unwrap();
    assert!(frames.is_empty());
    drop(body);
    assert!(place.work().idle().is_some());
    assert_eq!(framed(&bytes[PREFIX_BYTES..]), bytes);
    Ok(v1::PublishResponse::decode(&bytes[PREFIX_BYTES..]).unwrap())
}

fn request() -> v1::PublishRequest {
    v1::PublishRequest {
        queue: QUEUE.into(),
        messages: vec![v1::Message { body: vec![7; 100].into(), ..v1::Message::default() }; 2],
        ..v1::PublishRequest::default()
    }
}

#[tokio::test]
async fn each_published_message_has_its_result() {
    let stamp = v1::Producer { producer_id: "p".into(), epoch: 1, sequence: 4 };
    let stamped = v1::PublishRequest { producer: Some(stamp), ..request() };
    for (request, is_stamped) in [(request(), false), (stamped, true)] {
        for chunk in [1, 3, 7, 1_000] {
            let broker = broker(move |call| match call {
                Call::Publish { publish: Publish { messages, producer, .. }, reply, .. } => {
                    assert_eq!(
                        messages.iter().map(|one| one.parts.body.len()).collect::<Vec<_>>(),
                        [100, 100]
                    );
                    let stamp = ProducerStamp { id: "p".into(), epoch: 1, sequence: 4 };
                    assert_eq!(producer, Some(stamp).filter(|_| is_stamped));
                    let (first_offset, count) = (Offset(10), 2);
                    let (queue_uid, publish_time_us) = (Uid([1; 16]), 1_000_000);
                    let (duplicate, held) = (true, true);
                    let published =
                        Published { queue_uid, first_offset, count, publish_time_us, duplicate, held };
                    reply.send(Ok(published)).unwrap();
                }
                call => panic!("{call:?}"),
            });
            let answer = call(broker, &framed(&request.encode_to_vec()), chunk).await.unwrap();
            let results: Vec<(u64, bool)> =
                answer.results.iter().map(|one| (one.offset, one.duplicate)).collect();
            assert_eq!(results, [(10, true), (11, true)]);
            assert_eq!(answer.results[1].message_id, token::message_id(Uid([1; 16]), Offset(11)));
        }
    }
}

#[tokio::test]
async fn what_is_no_publish_is_refused_with_its_reason() {
    let conditional = v1::PublishRequest { expected_next_offset: Some(0), ..request() };
    let whole = framed(&request().encode_to_vec());
    let compressed = [&[1], &whole[1..]].concat();
    for (body, why) in [
        (framed(&conditional.encode_to_vec()), "expected_next_offset is not built"),
        (Vec::new(), "request: is missing, or ends within a message"),
        (whole[..3].to_vec(), "request: is missing, or ends within a message"),
        (whole[..100].to_vec(), "request: is not one whole message"),
        ([whole.clone(), whole.clone()].concat(), "request: is not one whole message"),
        (compressed, "the request is compressed"),
        (framed(&[0xff; 3]), "request: cannot be decoded"),
        (framed(&[]), "queue"),
    ] {
        let status = call(nobody(), &body, 64).await.unwrap_err();
        assert!(status.message().starts_with(why), "{status:?}");
        assert!(status.get_error_details().error_info().is_some(), "{status:?}");
    }
}

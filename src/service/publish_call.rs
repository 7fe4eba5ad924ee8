//! One `Publish`, served straight from HTTP/2 like a stream: of a small publish the generated code's request, its
//! buffers of 8 KiB and its headers were the larger part.

use std::pin::Pin;
use std::task::{Context, Poll};

use bytes::{Buf, Bytes, BytesMut};
use http_body::{Body, Frame};
use tonic::{Status, body};

use super::Shared;
use super::admit::{PREFIX_BYTES, Slot, length_of};
use super::check::invalid;
use super::explain::unreadable;
use super::outgoing::{self, trailers};
use super::places::UnderWay;
use super::wire::publish::{self, CallAnswer};
use crate::limits::REQUEST_BYTES_MAX;

/// Where calls are made.
pub const PATH: &str = "/forebay.v1.MessageService/Publish";

/// An answer goes out in pieces of this size: more than a few results are rare.
const PIECE_BYTES: usize = 4 << 10;

/// Serves a call whose request is in `body`, for which there is memory in `slot` when it has come. The call is under way
/// until its answer has gone.
pub async fn serve<B>(shared: Shared, body: B, slot: Slot, under_way: UnderWay) -> http::Response<body::Body>
where
    B: Body<Data = Bytes, Error = Status> + Unpin,
{
    match answer(&shared, body, &slot).await {
        Ok(answer) => {
            let rest = Rest::Results(answer);
            outgoing::http(body::Body::new(Answer { rest, _under_way: under_way }))
        }
        Err(status) => status.into_http(),
    }
}

async fn answer<B>(shared: &Shared, body: B, slot: &Slot) -> Result<CallAnswer, Status>
where
    B: Body<Data = Bytes, Error = Status> + Unpin,
{
    let request = message(body).await.map_err(unreadable)?;
    let publish = publish::read_call(&request)?;
    // The broker has the bodies for as long as it takes, whether or not the caller waits.
    Ok(CallAnswer::new(shared.broker.publish_held(publish, slot.take()).await?))
}

/// The only gRPC message of a body. What lies within one frame is not copied.
async fn message<B>(mut body: B) -> Result<Bytes, Status>
where
    B: Body<Data = Bytes, Error = Status> + Unpin,
{
    let (mut first, mut whole) = (Bytes::new(), BytesMut::new());
    while let Some(frame) = std::future::poll_fn(|cx| Pin::new(&mut body).poll_frame(cx)).await {
        // Trailers say nothing here.
        let Ok(data) = frame?.into_data() else { continue };
        if first.is_empty() && whole.is_empty() {
            first = data;
            continue;
        }
        if whole.is_empty() {
            whole.reserve(missing(&first));
            whole.extend_from_slice(&std::mem::take(&mut first));
        }
        whole.extend_from_slice(&data);
    }
    let mut bytes = if whole.is_empty() { first } else { whole.freeze() };
    let Some(prefix) = bytes.first_chunk::<PREFIX_BYTES>() else {
        return Err(invalid("request", "is missing, or ends within a message").into());
    };
    let length = length_of(prefix, REQUEST_BYTES_MAX as u64)?;
    bytes.advance(PREFIX_BYTES);
    if bytes.len() as u64 != length {
        return Err(invalid("request", "is not one whole message").into());
    }
    Ok(bytes)
}

/// Bytes of the whole that begins like this.
fn missing(first: &[u8]) -> usize {
    let length = first
        .first_chunk::<PREFIX_BYTES>()
        .and_then(|prefix| length_of(prefix, REQUEST_BYTES_MAX as u64).ok());
    PREFIX_BYTES + length.and_then(|length| usize::try_from(length).ok()).unwrap_or(first.len())
}

/// The body of an answer, whose call is under way until it has gone.
struct Answer {
    rest: Rest,
    _under_way: UnderWay,
}

/// What is left of an answer: its message, then how the call has ended.
enum Rest {
    Results(CallAnswer),
    End,
    Over,
}

impl Body for Answer {
    type Data = Bytes;
    type Error = Status;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        _: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, Status>>> {
        if let Rest::Results(answer) = &mut self.rest {
            if let Some(piece) = answer.next_piece(PIECE_BYTES) {
                return Poll::Ready(Some(Ok(Frame::data(piece))));
            }
            self.rest = Rest::End;
        }
        Poll::Ready(match std::mem::replace(&mut self.rest, Rest::Over) {
            Rest::Over => None,
            _ => Some(Ok(Frame::trailers(trailers(&Status::ok(""))))),
        })
    }

    fn is_end_stream(&self) -> bool {
        matches!(self.rest, Rest::Over)
    }
}

//! Admission of requests before their bodies are read.
//!
//! Every gRPC message begins with 5 bytes: compressed flag, then the length, big-endian. The first length of a unary
//! request is read off its first DATA frame, and memory for the whole message is taken from the budget before the
//! body is read on; until then HTTP/2's window holds the sender back, and where that first frame would be too much with
//! those of others that wait, the request is refused at once. A sender that has memory and brings nothing for a while is
//! refused if others wait for it ([`Stall`]). The permit is held until the handler has
//! answered. A publish stream is admitted message by message ([`super::incoming`]); other streams' handlers account
//! for each message.

use std::pin::Pin;
use std::sync::{Arc, Mutex};
use std::task::{Context, Poll, ready};

use bytes::Bytes;
use http_body::{Body, Frame, SizeHint};
use tonic::Status;

use super::status::Refusal;
use crate::admission::{Admission, BudgetUsedUp, Early, Permit, Stall};
use crate::limits::REQUEST_BYTES_MAX;

/// Bytes before each gRPC message.
pub(super) const PREFIX_BYTES: usize = 5;
/// Paths of calls whose requests are streams, or small and never to be refused for memory.
const STREAMS: [&str; 2] = ["/Subscribe", "/PublishLarge"];
const PACKAGE: &str = "/forebay.v1.";

/// Where the permit waits for the end of the call. Locked for a move only.
pub type Slot = Arc<Mutex<Option<Permit>>>;
/// Why a body could not be read.
pub type BodyError = Box<dyn std::error::Error + Send + Sync>;

/// The body of a request, read no further than there is memory for.
#[expect(clippy::large_enum_variant, reason = "a connection's own body is about as large")]
pub enum Admitted<B> {
    /// Of a unary call.
    Whole(AdmittedBody<B>),
    /// Of a call that is not to be refused for memory.
    Free(B),
}

/// Puts admission before a request's body; the slot is to be kept until the call is answered.
pub fn admit<B>(request: http::Request<B>, admission: &Admission) -> (http::Request<Admitted<B>>, Slot) {
    let slot = Slot::default();
    let (parts, inner) = request.into_parts();
    let path = parts.uri.path();
    let body = if !path.starts_with(PACKAGE) || STREAMS.iter().any(|stream| path.ends_with(stream)) {
        Admitted::Free(inner)
    } else {
        let state = State::Prefix { seen: [0; PREFIX_BYTES], count: 0 };
        let (admission, slot, stall) = (admission.clone(), slot.clone(), Stall::default());
        Admitted::Whole(AdmittedBody { inner, admission, slot, state, wanted: 0, passed: 0, stall })
    };
    (http::Request::from_parts(parts, body), slot)
}

impl<B> Body for Admitted<B>
where
    B: Body<Data = Bytes, Error: Into<BodyError>> + Unpin,
{
    type Data = Bytes;
    type Error = Status;

    fn poll_frame(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, Status>>> {
        match self.get_mut() {
            Self::Whole(body) => Pin::new(body).poll_frame(cx),
            Self::Free(body) => {
                Pin::new(body).poll_frame(cx).map_err(|error| Status::from_error(error.into()))
            }
        }
    }

    fn is_end_stream(&self) -> bool {
        match self {
            Self::Whole(body) => body.is_end_stream(),
            Self::Free(body) => body.is_end_stream(),
        }
    }

    fn size_hint(&self) -> SizeHint {
        match self {
            Self::Whole(body) => body.size_hint(),
            Self::Free(body) => body.size_hint(),
        }
    }
}

enum State {
    /// Not all of the prefix has come.
    Prefix {
        seen: [u8; PREFIX_BYTES],
        count: usize,
    },
    /// The frame waits for memory.
    Waiting {
        frame: Option<Frame<Bytes>>,
        _early: Early,
        permit: Pin<Box<dyn Future<Output = Result<Permit, BudgetUsedUp>> + Send>>,
    },
    Admitted,
}

/// The length of the message after this prefix, if it is one that the server decodes.
pub(super) fn length_of(prefix: &[u8; PREFIX_BYTES]) -> Result<u64, Refusal> {
    let [_compressed, length @ ..] = *prefix;
    let (actual, limit) = (u64::from(u32::from_be_bytes(length)), REQUEST_BYTES_MAX as u64);
    if actual > limit {
        return Err(Refusal::Limit { field: "request".to_owned(), unit: "bytes", actual, limit });
    }
    Ok(actual)
}

/// The body of a unary call: beyond its first prefix it passes on when there is memory for all of it.
pub struct AdmittedBody<B> {
    inner: B,
    admission: Admission,
    slot: Slot,
    state: State,
    /// Bytes of the message and its prefix, as soon as they are known, and bytes that have passed.
    wanted: u64,
    passed: u64,
    stall: Stall,
}

impl<B> AdmittedBody<B> {
    fn pass(&mut self, frame: Frame<Bytes>) -> Frame<Bytes> {
        self.passed += frame.data_ref().map_or(0, |data| data.len() as u64);
        self.stall.moved();
        frame
    }

    /// It has memory, and not all of it has come.
    fn is_begun(&self) -> bool {
        matches!(self.state, State::Admitted) && self.passed < self.wanted
    }

    fn keep(&mut self, permit: Permit) {
        *self.slot.lock().unwrap_or_else(|poisoned| poisoned.into_inner()) = Some(permit);
        self.state = State::Admitted;
    }

    /// Looks at a frame that came while the prefix was not whole. True: it may pass on.
    fn look(&mut self, frame: &Frame<Bytes>) -> Result<bool, Refusal> {
        let State::Prefix { seen, count } = &mut self.state else { return Ok(true) };
        let data = frame.data_ref().map_or(&[][..], |data| data.as_ref());
        let take = data.len().min(PREFIX_BYTES - *count);
        seen[*count..*count + take].copy_from_slice(&data[..take]);
        *count += take;
        if *count < PREFIX_BYTES {
            return Ok(true);
        }
        let length = length_of(seen)?;
        self.wanted = PREFIX_BYTES as u64 + length;
        match self.admission.try_admit(length) {
            Some(permit) => {
                self.keep(permit);
                Ok(true)
            }
            None => {
                let _early = self.admission.keep_early(data.len() as u64, length)?;
                let admission = self.admission.clone();
                let permit = Box::pin(async move { admission.admit(length).await });
                self.state = State::Waiting { frame: None, _early, permit };
                Ok(false)
            }
        }
    }
}

impl<B> Body for AdmittedBody<B>
where
    B: Body<Data = Bytes, Error: Into<BodyError>> + Unpin,
{
    type Data = Bytes;
    type Error = Status;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, Status>>> {
        let this = &mut *self;
        if let State::Waiting { frame, permit, .. } = &mut this.state {
            let Poll::Ready(permit) = permit.as_mut().poll(cx) else { return Poll::Pending };
            let frame = frame.take();
            return Poll::Ready(match permit {
                Ok(permit) => {
                    this.keep(permit);
                    frame.map(|frame| Ok(this.pass(frame)))
                }
                Err(used_up) => {
                    this.state = State::Admitted;
                    Some(Err(Refusal::from(used_up).into()))
                }
            });
        }
        match Pin::new(&mut this.inner).poll_frame(cx) {
            Poll::Ready(Some(Ok(frame))) => {
                match this.look(&frame) {
                    Ok(true) => return Poll::Ready(Some(Ok(this.pass(frame)))),
                    Ok(false) => {}
                    Err(refusal) => return Poll::Ready(Some(Err(refusal.into()))),
                }
                if let State::Waiting { frame: place, .. } = &mut this.state {
                    *place = Some(frame);
                }
                self.poll_frame(cx)
            }
            Poll::Ready(Some(Err(error))) => Poll::Ready(Some(Err(Status::from_error(error.into())))),
            Poll::Ready(None) => Poll::Ready(None),
            Poll::Pending if this.is_begun() => {
                ready!(this.stall.poll(&this.admission, cx));
                Poll::Ready(Some(Err(Refusal::SlowSender.into())))
            }
            Poll::Pending => Poll::Pending,
        }
    }

    fn is_end_stream(&self) -> bool {
        !matches!(self.state, State::Waiting { .. }) && self.inner.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.inner.size_hint()
    }
}

//! Admission of requests before their bodies are read.
//!
//! Every gRPC message begins with 5 bytes: compressed flag, then the length, big-endian. The first length of a unary
//! request is read off its first DATA frame, and memory for the whole message is taken from the budget before the
//! body is read on; until then HTTP/2's window holds the sender back, and where that first frame would be too much with
//! those of others that wait, the request is refused at once. A sender that has memory and brings little for a while is
//! refused if others wait for it ([`Stall`]).
//!
//! Publishes have one budget, all other calls another, and smaller requests: generated code can make dozens of bytes of
//! each of theirs. The permit of a publish goes to the broker with it; that of acks is held until the handler has answered,
//! others until the request is decoded. Streams are admitted message by message ([`super::incoming`]). Health and
//! reflection have no memory taken for them: their requests are a few KiB at most, and are to come as others are.

use std::pin::Pin;
use std::sync::{Arc, Mutex};
use std::task::{Context, Poll, ready};

use bytes::Bytes;
use http_body::{Body, Frame, SizeHint};
use tonic::Status;

use super::publish_call;
use super::status::Refusal;
use crate::admission::{Admission, BudgetUsedUp, Budgets, Early, Permit, Stall};

/// Bytes before each gRPC message.
pub(super) const PREFIX_BYTES: usize = 5;
/// The path of a call that is refused before its requests are read.
const UNREAD: &str = "/PublishLarge";
const PACKAGE: &str = "/forebay.v1.";
/// Paths of calls that keep what they were asked until the broker has answered. What others keep of their requests is
/// names: the memory of those goes with their body, so that long polls hold nothing that acks need.
const SETTLING: [&str; 3] = ["/Acknowledge", "/Nack", "/ExtendLease"];

/// Where the permit of a call waits for its end, or for who takes it on. Locked for a move only.
#[derive(Clone, Default)]
pub struct Slot(Arc<Mutex<Option<Permit>>>);

impl Slot {
    fn put(&self, permit: Permit) {
        *self.0.lock().unwrap_or_else(|poisoned| poisoned.into_inner()) = Some(permit);
    }

    /// The permit, if memory was taken.
    pub fn take(&self) -> Option<Permit> {
        self.0.lock().unwrap_or_else(|poisoned| poisoned.into_inner()).take()
    }
}

/// The status of a request that was given up, or whose connection broke, before all of it was there. Nobody hears it, so
/// it costs little: a connection that ends takes all of its calls with it at one time. CANCELLED is what the generated
/// code takes for a body's end.
pub fn broken_off() -> Status {
    Status::unknown("the request broke off")
}

/// The body of a request, read no further than there is memory for.
pub enum Admitted<B> {
    /// Of a unary call.
    Whole(AdmittedBody<B>),
    /// Of a call that needs no memory to speak of.
    Free(FreeBody<B>),
}

/// The body of a call for which no memory is taken; it ends as others do when its sender brings nothing for a while and
/// there are too many calls.
pub struct FreeBody<B> {
    inner: B,
    admission: Admission,
    stall: Stall,
}

impl<B> Body for FreeBody<B>
where
    B: Body<Data = Bytes> + Unpin,
{
    type Data = Bytes;
    type Error = Status;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, Status>>> {
        let Self { inner, admission, stall } = &mut *self;
        match Pin::new(inner).poll_frame(cx) {
            Poll::Ready(frame) => {
                let bytes = frame.as_ref().and_then(|frame| frame.as_ref().ok()).and_then(Frame::data_ref);
                stall.brought(bytes.map_or(0, |data| data.len() as u64));
                Poll::Ready(frame.map(|frame| frame.map_err(|_| broken_off())))
            }
            Poll::Pending => {
                ready!(stall.poll(admission, cx));
                Poll::Ready(Some(Err(Refusal::SlowSender.into())))
            }
        }
    }

    fn is_end_stream(&self) -> bool {
        self.inner.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.inner.size_hint()
    }
}

/// Puts admission before a request's body; the slot is to be kept until the call is answered.
pub fn admit<B>(request: http::Request<B>, budgets: &Budgets) -> (http::Request<Admitted<B>>, Slot) {
    let slot = Slot::default();
    let (parts, inner) = request.into_parts();
    let path = parts.uri.path();
    let body = if !path.starts_with(PACKAGE) || path.ends_with(UNREAD) {
        let (admission, stall) = (budgets.others.clone(), Stall::default());
        Admitted::Free(FreeBody { inner, admission, stall })
    } else {
        let is_publish = path == publish_call::PATH;
        let admission = if is_publish { &budgets.publishes } else { &budgets.others }.clone();
        let is_held = is_publish || SETTLING.iter().any(|settling| path.ends_with(settling));
        let slot = if is_held { slot.clone() } else { Slot::default() };
        let state = State::Prefix { seen: [0; PREFIX_BYTES], count: 0 };
        let stall = Stall::default();
        Admitted::Whole(AdmittedBody { inner, admission, slot, state, wanted: 0, passed: 0, stall })
    };
    (http::Request::from_parts(parts, body), slot)
}

impl<B> Body for Admitted<B>
where
    B: Body<Data = Bytes> + Unpin,
{
    type Data = Bytes;
    type Error = Status;

    fn poll_frame(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, Status>>> {
        match self.get_mut() {
            Self::Whole(body) => Pin::new(body).poll_frame(cx),
            Self::Free(body) => Pin::new(body).poll_frame(cx),
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

/// The length of the message after this prefix, if it is one that the server decodes, of no more than `limit` bytes.
/// What is compressed is not even read: it could be a thousand times as large as it says.
pub(super) fn length_of(prefix: &[u8; PREFIX_BYTES], limit: u64) -> Result<u64, Refusal> {
    let [compressed, length @ ..] = *prefix;
    if compressed != 0 {
        return Err(Refusal::Compressed);
    }
    let actual = u64::from(u32::from_be_bytes(length));
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
    /// Nothing passes that no memory was taken for.
    fn pass(&mut self, frame: Frame<Bytes>) -> Result<Frame<Bytes>, Status> {
        let bytes = frame.data_ref().map_or(0, |data| data.len() as u64);
        self.passed += bytes;
        self.stall.brought(bytes);
        if matches!(self.state, State::Admitted) && self.passed > self.wanted {
            let why = "has more bytes than its one message".to_owned();
            return Err(Refusal::Invalid { field: "request".to_owned(), why }.into());
        }
        Ok(frame)
    }

    /// More of it must come: of its prefix, of what it has memory for, or its end.
    fn is_begun(&self) -> bool {
        match self.state {
            State::Prefix { .. } => true,
            State::Waiting { .. } => false,
            // Its end, at least.
            State::Admitted => true,
        }
    }

    fn keep(&mut self, permit: Permit) {
        self.slot.put(permit);
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
        let length = length_of(seen, self.admission.request_bytes_max())?;
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
    B: Body<Data = Bytes> + Unpin,
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
                    frame.map(|frame| this.pass(frame))
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
                    Ok(true) => return Poll::Ready(Some(this.pass(frame))),
                    Ok(false) => {}
                    Err(refusal) => return Poll::Ready(Some(Err(refusal.into()))),
                }
                if let State::Waiting { frame: place, .. } = &mut this.state {
                    *place = Some(frame);
                }
                self.poll_frame(cx)
            }
            Poll::Ready(Some(Err(_))) => Poll::Ready(Some(Err(broken_off()))),
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

//! Admission of requests before their bodies are read.
//!
//! Every gRPC message begins with 5 bytes: compressed flag, then the length, big-endian. The first length of a unary
//! request is read off its first DATA frame, and memory for the whole message is taken from the budget before the
//! body is read on; until then HTTP/2's window holds the sender back. The permit is held until the handler has
//! answered. A publish stream is admitted message by message ([`super::admit_stream`]); other streams' handlers account
//! for each message.

use std::pin::Pin;
use std::sync::{Arc, Mutex};
use std::task::{Context, Poll};

use bytes::Bytes;
use http_body::{Frame, SizeHint};
use tonic::Status;
use tonic::body::Body;
use tower::{Layer, Service};

use super::admit_stream::{AdmittedStream, Permits};
use super::status::Refusal;
use crate::admission::{Admission, BudgetUsedUp, Permit};
use crate::limits::REQUEST_BYTES_MAX;

/// Bytes before each gRPC message.
pub(super) const PREFIX_BYTES: usize = 5;
/// Streams whose messages are admitted one by one.
const PUBLISH_STREAM: &str = "/forebay.v1.MessageService/PublishStream";
/// Paths of calls whose requests are streams, or small and never to be refused for memory.
const STREAMS: [&str; 3] = ["/Subscribe", "/PublishStream", "/PublishLarge"];
const PACKAGE: &str = "/forebay.v1.";

/// Where the permit waits for the end of the call. Locked for a move only.
type Slot = Arc<Mutex<Option<Permit>>>;

/// Puts admission before services.
#[derive(Clone, Debug)]
pub struct AdmitLayer {
    pub admission: Admission,
}

impl<S> Layer<S> for AdmitLayer {
    type Service = Admit<S>;

    fn layer(&self, inner: S) -> Admit<S> {
        Admit { inner, admission: self.admission.clone() }
    }
}

/// See [`AdmitLayer`].
#[derive(Clone, Debug)]
pub struct Admit<S> {
    inner: S,
    admission: Admission,
}

impl<S, B> Service<http::Request<Body>> for Admit<S>
where
    S: Service<http::Request<Body>, Response = http::Response<B>>,
    S::Future: Send + 'static,
    S::Error: Send,
    B: Send,
{
    type Response = http::Response<B>;
    type Error = S::Error;
    type Future = Pin<Box<dyn Future<Output = Result<Self::Response, S::Error>> + Send>>;

    fn poll_ready(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), S::Error>> {
        self.inner.poll_ready(cx)
    }

    fn call(&mut self, mut request: http::Request<Body>) -> Self::Future {
        let path = request.uri().path();
        if path == PUBLISH_STREAM {
            let (admission, permits) = (self.admission.clone(), Permits::default());
            request.extensions_mut().insert(permits.clone());
            let request = request.map(|inner| Body::new(AdmittedStream::new(inner, admission, permits)));
            return Box::pin(self.inner.call(request));
        }
        if !path.starts_with(PACKAGE) || STREAMS.iter().any(|stream| path.ends_with(stream)) {
            return Box::pin(self.inner.call(request));
        }
        let slot = Slot::default();
        let admission = self.admission.clone();
        let state = State::Prefix { seen: [0; PREFIX_BYTES], count: 0 };
        let request =
            request.map(|inner| Body::new(AdmittedBody { inner, admission, slot: slot.clone(), state }));
        let answer = self.inner.call(request);
        Box::pin(async move {
            let answered = answer.await;
            drop(slot);
            answered
        })
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

struct AdmittedBody {
    inner: Body,
    admission: Admission,
    slot: Slot,
    state: State,
}

impl AdmittedBody {
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
        match self.admission.try_admit(length) {
            Some(permit) => {
                self.keep(permit);
                Ok(true)
            }
            None => {
                let admission = self.admission.clone();
                let permit = Box::pin(async move { admission.admit(length).await });
                self.state = State::Waiting { frame: None, permit };
                Ok(false)
            }
        }
    }
}

impl http_body::Body for AdmittedBody {
    type Data = Bytes;
    type Error = Status;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, Status>>> {
        let this = &mut *self;
        if let State::Waiting { frame, permit } = &mut this.state {
            let Poll::Ready(permit) = permit.as_mut().poll(cx) else { return Poll::Pending };
            let frame = frame.take();
            return Poll::Ready(match permit {
                Ok(permit) => {
                    this.keep(permit);
                    frame.map(Ok)
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
                    Ok(true) => return Poll::Ready(Some(Ok(frame))),
                    Ok(false) => {}
                    Err(refusal) => return Poll::Ready(Some(Err(refusal.into()))),
                }
                if let State::Waiting { frame: place, .. } = &mut this.state {
                    *place = Some(frame);
                }
                self.poll_frame(cx)
            }
            other => other,
        }
    }

    fn is_end_stream(&self) -> bool {
        !matches!(self.state, State::Waiting { .. }) && self.inner.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.inner.size_hint()
    }
}

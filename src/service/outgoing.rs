//! Bodies of answers that carry messages, and the memory of those answers until it is free again.
//!
//! 1. An answer's memory was taken before its messages were read ([`crate::admission::Outflow`]); it counts until HTTP/2
//!    has dropped the answer's last byte.
//! 2. Answers of streams are encoded here, each in room of its own: tonic's encoder keeps the room of a stream's
//!    largest answer for as long as the stream lasts. Where an answer is encoded it is there twice for that moment.
//! 3. What is larger than [`PIECE_BYTES`] goes out in copied pieces, so that the rest can be taken back. At most
//!    [`SEND_BYTES`] and a piece more of a body are in HTTP/2's hands, whatever window the client gives.
//! 4. A reader that takes nothing for [`STALLED_AFTER`] while others wait for memory is cut off: what it was not handed
//!    is dropped, and a stream's task ends as if its client had gone. When it reads on it gets RESOURCE_EXHAUSTED; until
//!    then what HTTP/2 has of it still counts.
//!
//! Worst case: all bodies hold [`crate::admission::OUTFLOW_BYTES`], in whatever number of streams (1,024 connections
//! with 1,024 streams each); without permits 64 tails alone could hold 64 × 2 answers of 8 MiB.

use std::pin::Pin;
use std::sync::{Arc, Mutex, MutexGuard, Weak};
use std::task::{Context, Poll, Waker, ready};
use std::time::Duration;

use bytes::{BufMut, Bytes};
use http::HeaderMap;
use http_body::{Body as _, Frame};
use tokio::time::Instant;
use tokio_stream::{Stream, StreamExt};
use tonic::body::Body;
use tonic::{Response, Status};

use super::admit::PREFIX_BYTES;
use super::status::Refusal;
use crate::admission::{Held, Outlet, PIECE_BYTES, Permit, SEND_BYTES, answer_memory};

/// How long a reader may take nothing while others wait for memory.
const STALLED_AFTER: Duration = Duration::from_secs(2);
/// How often stalled readers are looked for.
const LOOK_EVERY: Duration = Duration::from_millis(500);

/// A stream of answers of a service.
pub type Answers<T> = Pin<Box<dyn Stream<Item = Result<T, Status>> + Send>>;

/// An answer in its gRPC frame.
struct Encoded {
    bytes: Bytes,
    memory: Option<Permit>,
    in_pieces: bool,
}

impl Encoded {
    fn new(bytes: Bytes, mut memory: Option<Permit>) -> Self {
        if let Some(memory) = &mut memory {
            memory.shrink_to(answer_memory(bytes.len() as u64));
        }
        let in_pieces = bytes.len() > PIECE_BYTES;
        Self { bytes, memory, in_pieces }
    }

    fn of<T: prost::Message>(answer: Held<T>) -> Self {
        let Held { value, memory } = answer;
        let length = value.encoded_len();
        let mut bytes = Vec::with_capacity(PREFIX_BYTES + length);
        bytes.put_u8(0);
        bytes.put_u32(u32::try_from(length).expect("an answer is far below 4 GiB"));
        value.encode(&mut bytes).expect("a vector has room");
        Self::new(bytes.into(), memory)
    }
}

/// What a body is made of.
enum Source {
    /// The answers of a stream.
    Stream(Pin<Box<dyn Stream<Item = Result<Encoded, Status>> + Send>>),
    /// The only answer of a call, as tonic encodes it.
    Call(Body, Option<Permit>),
}

enum Next {
    Answer(Encoded),
    End(HeaderMap),
}

impl Source {
    fn poll_next(&mut self, cx: &mut Context<'_>) -> Poll<Next> {
        match self {
            Source::Stream(answers) => Poll::Ready(match ready!(answers.as_mut().poll_next(cx)) {
                Some(Ok(answer)) => Next::Answer(answer),
                Some(Err(status)) => Next::End(trailers(&status)),
                None => Next::End(trailers(&Status::ok(""))),
            }),
            Source::Call(body, memory) => {
                Poll::Ready(match ready!(Pin::new(body).poll_frame(cx)).transpose() {
                    Ok(Some(frame)) => match frame.into_data() {
                        Ok(bytes) => Next::Answer(Encoded::new(bytes, memory.take())),
                        Err(frame) => Next::End(frame.into_trailers().unwrap_or_default()),
                    },
                    Ok(None) => Next::End(trailers(&Status::ok(""))),
                    Err(status) => Next::End(trailers(&status)),
                })
            }
        }
    }
}

/// How a body says its status.
pub fn trailers(status: &Status) -> HeaderMap {
    let mut trailers = HeaderMap::new();
    // What is written fits headers: reasons are ASCII, the message is percent-encoded.
    let _ = status.add_header(&mut trailers);
    trailers
}

/// A body on its way, shared with its pieces and with who cuts it off.
struct Flow {
    outlet: Outlet,
    /// Locked for a poll or a move only.
    state: Mutex<State>,
}

struct State {
    source: Option<Source>,
    /// The answer that is going out, without what is out.
    answer: Option<Encoded>,
    /// Bytes in HTTP/2's hands.
    out_bytes: usize,
    /// When the reader last took something, or something was there for it after nothing had been.
    moved: Instant,
    is_cut: bool,
    /// Of an answer that was cut off: of its pieces that are out.
    cut_memory: Option<Permit>,
    waker: Option<Waker>,
}

impl Flow {
    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(|poisoned| poisoned.into_inner())
    }

    fn poll_frame(self: &Arc<Self>, cx: &mut Context<'_>) -> Poll<Option<Frame<Bytes>>> {
        let mut state = self.lock();
        let frame = self.next_frame(&mut state, cx);
        if frame.is_pending() {
            state.waker = Some(cx.waker().clone());
        }
        frame
    }

    fn next_frame(self: &Arc<Self>, state: &mut State, cx: &mut Context<'_>) -> Poll<Option<Frame<Bytes>>> {
        if std::mem::take(&mut state.is_cut) {
            return Poll::Ready(Some(Frame::trailers(trailers(&Refusal::SlowReader.into()))));
        }
        if state.out_bytes >= SEND_BYTES {
            return Poll::Pending;
        }
        if state.answer.is_none() {
            let Some(source) = &mut state.source else { return Poll::Ready(None) };
            match ready!(source.poll_next(cx)) {
                Next::Answer(answer) => state.answer = Some(answer),
                Next::End(trailers) => {
                    state.source = None;
                    return Poll::Ready(Some(Frame::trailers(trailers)));
                }
            }
        }
        Poll::Ready(Some(Frame::data(self.piece(state))))
    }

    /// The next piece of the answer. The last one takes the answer's memory with it.
    fn piece(self: &Arc<Self>, state: &mut State) -> Bytes {
        let mut answer = state.answer.take().expect("the caller has looked");
        let part = answer.bytes.split_to(answer.bytes.len().min(PIECE_BYTES));
        let bytes = if answer.in_pieces { Bytes::copy_from_slice(&part) } else { part };
        let mut memory = None;
        if answer.bytes.is_empty() {
            memory = answer.memory;
            if let Some(memory) = memory.as_mut().filter(|_| answer.in_pieces) {
                memory.shrink_to(SEND_BYTES as u64);
            }
        } else {
            state.answer = Some(answer);
        }
        if state.out_bytes == 0 {
            state.moved = Instant::now();
        }
        state.out_bytes += bytes.len();
        Bytes::from_owner(Piece { bytes, flow: self.clone(), _memory: memory })
    }

    /// A piece was taken.
    fn taken(&self, bytes: usize) {
        let (waker, cut_memory) = {
            let mut state = self.lock();
            state.out_bytes -= bytes;
            state.moved = Instant::now();
            self.outlet.took(bytes as u64);
            let all_gone = state.out_bytes == 0;
            (state.waker.take(), state.cut_memory.take_if(|_| all_gone))
        };
        drop(cut_memory);
        waker.into_iter().for_each(Waker::wake);
    }

    /// Takes back what the reader was not handed, if it takes nothing and others wait.
    fn cut_if_stalled(&self) {
        let (source, answer, waker) = {
            let mut state = self.lock();
            let is_stalled = state.out_bytes > 0 && state.moved.elapsed() >= STALLED_AFTER;
            if !is_stalled || state.source.is_none() || !self.outlet.is_wanted() {
                return;
            }
            state.is_cut = true;
            let mut answer = state.answer.take();
            let out_bytes = state.out_bytes as u64;
            state.cut_memory = answer.as_mut().and_then(|answer| answer.memory.take());
            state.cut_memory.iter_mut().for_each(|memory| memory.shrink_to(out_bytes));
            (state.source.take(), answer, state.waker.take())
        };
        self.outlet.cut();
        drop((source, answer));
        waker.into_iter().for_each(Waker::wake);
    }
}

/// Bytes in HTTP/2's hands.
struct Piece {
    bytes: Bytes,
    flow: Arc<Flow>,
    _memory: Option<Permit>,
}

impl AsRef<[u8]> for Piece {
    fn as_ref(&self) -> &[u8] {
        &self.bytes
    }
}

impl Drop for Piece {
    fn drop(&mut self) {
        self.flow.taken(self.bytes.len());
    }
}

struct OutgoingBody(Arc<Flow>);

impl http_body::Body for OutgoingBody {
    type Data = Bytes;
    type Error = Status;

    fn poll_frame(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, Status>>> {
        self.0.poll_frame(cx).map(|frame| frame.map(Ok))
    }
}

/// What is not handed to HTTP/2 any more is dropped, though pieces that are live on.
impl Drop for OutgoingBody {
    fn drop(&mut self) {
        let (source, answer) = {
            let mut state = self.0.lock();
            (state.source.take(), state.answer.take())
        };
        drop((source, answer));
    }
}

/// What a handler leaves to [`Bodies`], in its response's extensions.
#[derive(Clone)]
struct Leaving(Arc<Mutex<Option<Left>>>);

struct Left {
    outlet: Outlet,
    /// None stands for tonic's own body.
    source: Option<Source>,
    memory: Option<Permit>,
}

fn leave<T>(
    mut response: Response<T>,
    outlet: Outlet,
    source: Option<Source>,
    memory: Option<Permit>,
) -> Response<T> {
    response.extensions_mut().insert(Leaving(Arc::new(Mutex::new(Some(Left { outlet, source, memory })))));
    response
}

/// The response of a call whose answer holds memory.
pub fn call<T>(answer: Held<T>, outlet: Outlet) -> Response<T> {
    leave(Response::new(answer.value), outlet, None, answer.memory)
}

/// The response of a call whose answers hold memory. Its own stream is empty: the body is made of `answers` here.
pub fn stream<T: prost::Message + 'static>(
    answers: impl Stream<Item = Result<Held<T>, Status>> + Send + 'static,
    outlet: Outlet,
) -> Response<Answers<T>> {
    let encoded = answers.map(|answer| answer.map(Encoded::of));
    let response: Response<Answers<T>> = Response::new(Box::pin(tokio_stream::empty()));
    leave(response, outlet, Some(Source::Stream(Box::pin(encoded))), None)
}

/// Gives answers with memory their bodies, and watches over those.
#[derive(Clone)]
pub struct Bodies {
    flows: Arc<Mutex<Vec<Weak<Flow>>>>,
}

impl Bodies {
    /// Their watch ends with this.
    pub fn new() -> Self {
        let flows = Arc::<Mutex<Vec<Weak<Flow>>>>::default();
        tokio::spawn(watch(Arc::downgrade(&flows)));
        Self { flows }
    }

    /// Gives an answer its body, if its handler has left one.
    pub fn dress(&self, answer: &mut http::Response<Body>) {
        if let Some(leaving) = answer.extensions_mut().remove::<Leaving>() {
            let inner = std::mem::take(answer.body_mut());
            *answer.body_mut() = self.body(inner, &leaving);
        }
    }

    fn body(&self, inner: Body, leaving: &Leaving) -> Body {
        let taken = leaving.0.lock().unwrap_or_else(|poisoned| poisoned.into_inner()).take();
        let Some(Left { outlet, source, memory }) = taken else { return inner };
        let source = source.unwrap_or(Source::Call(inner, memory));
        let (moved, out_bytes) = (Instant::now(), 0);
        let (answer, cut_memory, waker) = (None, None, None);
        let source = Some(source);
        let state = State { source, answer, out_bytes, moved, is_cut: false, cut_memory, waker };
        let flow = Arc::new(Flow { outlet, state: Mutex::new(state) });
        self.flows.lock().unwrap_or_else(|poisoned| poisoned.into_inner()).push(Arc::downgrade(&flow));
        Body::new(OutgoingBody(flow))
    }
}

async fn watch(flows: Weak<Mutex<Vec<Weak<Flow>>>>) {
    let mut ticks = tokio::time::interval(LOOK_EVERY);
    loop {
        ticks.tick().await;
        let Some(flows) = flows.upgrade() else { return };
        let living: Vec<Arc<Flow>> = {
            let mut flows = flows.lock().unwrap_or_else(|poisoned| poisoned.into_inner());
            flows.retain(|flow| flow.strong_count() > 0);
            flows.iter().filter_map(Weak::upgrade).collect()
        };
        living.iter().for_each(|flow| flow.cut_if_stalled());
    }
}

#[cfg(test)]
#[path = "outgoing_tests.rs"]
mod tests;

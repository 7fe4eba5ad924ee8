//! Bodies of answers that carry messages, and the memory of those answers until it is free again.
//!
//! 1. An answer's memory was taken before its messages were read ([`crate::admission::Outflow`]); it counts until HTTP/2
//!    has dropped the answer's last byte.
//! 2. Answers of streams are encoded here, each in room of its own: tonic's encoder keeps the room of a stream's
//!    largest answer for as long as the stream lasts. Deliveries are written piece by piece; where another answer is
//!    encoded it is there twice for that moment.
//! 3. What is larger than [`PIECE_BYTES`] goes out in pieces of their own, so that the rest can be taken back. At most
//!    [`SEND_BYTES`] and a piece more of a body are in HTTP/2's hands, whatever window the client gives.
//! 4. A reader that takes nothing for [`STALLED_AFTER`], or gives no window, while others wait for memory is cut off: what
//!    it was not handed is dropped, and a stream's task ends as if its client had gone. When it reads on it gets RESOURCE_EXHAUSTED; until
//!    then what HTTP/2 has of it still counts.
//!
//! Worst case: all bodies hold [`crate::admission::OUTFLOW_BYTES`], in whatever number of streams (4,096 over all
//! connections); without permits 64 tails alone could hold 64 × 2 answers of 8 MiB.

use std::pin::Pin;
use std::sync::{Arc, Mutex, MutexGuard, Weak};
use std::task::{Context, Poll, Waker, ready};
use std::time::Duration;

use bytes::{BufMut, Bytes};
use http::HeaderMap;
use http::header::CONTENT_TYPE;
use http_body::{Body as _, Frame, SizeHint};
use tokio::time::Instant;
use tokio_stream::{Stream, StreamExt};
use tonic::body::Body;
use tonic::metadata::GRPC_CONTENT_TYPE;
use tonic::{Response, Status};

use super::admit::PREFIX_BYTES;
use super::places::UnderWay;
use super::status::Refusal;
use super::wire::subscribe::{AROUND_BYTES_MAX, Deliveries};
use crate::admission::{Held, Outflow, Outlet, PIECE_BYTES, Permit, SEND_BYTES, answer_memory};

/// How long a reader may take nothing while others wait for memory.
const STALLED_AFTER: Duration = Duration::from_secs(2);
/// How often stalled readers are looked for.
const LOOK_EVERY: Duration = Duration::from_millis(500);

/// What an answer may take that is counted with its call alone, bytes.
const UNCOUNTED_BYTES: usize = 4 << 10;

/// A stream of answers of a service.
pub type Answers<T> = Pin<Box<dyn Stream<Item = Result<T, Status>> + Send>>;

/// An answer in its gRPC frame: what is left of it.
pub enum Content {
    Encoded(Bytes),
    /// Written as it goes out; `left` bytes of it, the prefix included.
    Deliveries {
        deliveries: Box<Deliveries>,
        left: usize,
    },
}

impl Content {
    /// An answer that is encoded by generated code.
    pub fn encoded(answer: &impl prost::Message) -> Self {
        let length = answer.encoded_len();
        let mut bytes = Vec::with_capacity(PREFIX_BYTES + length);
        put_prefix(length, &mut bytes);
        answer.encode(&mut bytes).expect("a vector has room");
        Self::Encoded(bytes.into())
    }

    pub fn deliveries(deliveries: Deliveries) -> Self {
        let left = PREFIX_BYTES + deliveries.encoded_len();
        Self::Deliveries { deliveries: Box::new(deliveries), left }
    }

    pub fn len(&self) -> usize {
        match self {
            Self::Encoded(bytes) => bytes.len(),
            Self::Deliveries { left, .. } => *left,
        }
    }

    #[cfg(test)]
    pub fn into_bytes(mut self) -> Vec<u8> {
        let mut bytes = Vec::new();
        while self.len() > 0 {
            bytes.extend_from_slice(&self.next_piece(true));
        }
        bytes
    }

    /// Takes the next piece; what is encoded and `whole` is one.
    fn next_piece(&mut self, whole: bool) -> Bytes {
        match self {
            Self::Encoded(bytes) if whole => std::mem::take(bytes),
            Self::Encoded(bytes) => Bytes::copy_from_slice(&bytes.split_to(bytes.len().min(PIECE_BYTES))),
            Self::Deliveries { deliveries, left } => {
                let most = PIECE_BYTES.min(*left);
                let mut piece = Vec::with_capacity(most + 2 * AROUND_BYTES_MAX);
                if !deliveries.is_begun() {
                    put_prefix(deliveries.encoded_len(), &mut piece);
                }
                deliveries.write(most, &mut piece);
                *left -= piece.len();
                piece.into()
            }
        }
    }
}

fn put_prefix(length: usize, out: &mut Vec<u8>) {
    out.put_u8(0);
    out.put_u32(u32::try_from(length).expect("an answer is far below 4 GiB"));
}

struct Outgoing {
    content: Content,
    memory: Option<Permit>,
    in_pieces: bool,
}

impl Outgoing {
    fn new(content: Content, mut memory: Option<Permit>) -> Self {
        if let Some(memory) = &mut memory {
            memory.shrink_to(answer_memory(content.len() as u64));
        }
        let in_pieces = content.len() > PIECE_BYTES;
        Self { content, memory, in_pieces }
    }
}

/// What a body is made of.
enum Source {
    /// The answers of a stream.
    Stream(Pin<Box<dyn Stream<Item = Result<Outgoing, Status>> + Send>>),
    /// The only answer of a call, as tonic encodes it.
    Call(Body, Option<Permit>),
}

enum Next {
    Answer(Outgoing),
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
                        Ok(bytes) => Next::Answer(Outgoing::new(Content::Encoded(bytes), memory.take())),
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
    answer: Option<Outgoing>,
    /// Bytes in HTTP/2's hands.
    out_bytes: usize,
    /// HTTP/2 has asked for more than there was; it does not ask when the reader gives no window.
    is_asked: bool,
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
            let next = source.poll_next(cx);
            state.is_asked = next.is_pending();
            match ready!(next) {
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
        let bytes = answer.content.next_piece(!answer.in_pieces);
        let mut memory = None;
        if answer.content.len() == 0 {
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
            let is_waited_for = state.out_bytes > 0 || !state.is_asked;
            let is_stalled = is_waited_for && state.moved.elapsed() >= STALLED_AFTER;
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

struct OutgoingBody {
    flow: Arc<Flow>,
    _under_way: Option<UnderWay>,
}

impl http_body::Body for OutgoingBody {
    type Data = Bytes;
    type Error = Status;

    fn poll_frame(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, Status>>> {
        self.flow.poll_frame(cx).map(|frame| frame.map(Ok))
    }
}

/// A body whose call is under way until it has gone.
struct Busy {
    body: Body,
    _under_way: Option<UnderWay>,
}

impl http_body::Body for Busy {
    type Data = Bytes;
    type Error = Status;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, Status>>> {
        Pin::new(&mut self.body).poll_frame(cx)
    }

    fn is_end_stream(&self) -> bool {
        self.body.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.body.size_hint()
    }
}

/// What is not handed to HTTP/2 any more is dropped, though pieces that are live on.
impl Drop for OutgoingBody {
    fn drop(&mut self) {
        let (source, answer) = {
            let mut state = self.flow.lock();
            (state.source.take(), state.answer.take())
        };
        drop((source, answer));
    }
}

/// What a handler leaves to [`Bodies`], in its response's extensions.
#[derive(Clone)]
struct Leaving(Arc<Mutex<Option<Left>>>);

impl Leaving {
    fn new(outlet: Outlet, source: Option<Source>, memory: Option<Permit>) -> Self {
        Self(Arc::new(Mutex::new(Some(Left { outlet, source, memory }))))
    }
}

struct Left {
    outlet: Outlet,
    /// None stands for tonic's own body.
    source: Option<Source>,
    memory: Option<Permit>,
}

/// An answer without headers of its own.
pub fn http(body: Body) -> http::Response<Body> {
    let mut response = http::Response::new(body);
    response.headers_mut().insert(CONTENT_TYPE, GRPC_CONTENT_TYPE);
    response
}

fn leave<T>(
    mut response: Response<T>,
    outlet: Outlet,
    source: Option<Source>,
    memory: Option<Permit>,
) -> Response<T> {
    response.extensions_mut().insert(Leaving::new(outlet, source, memory));
    response
}

/// The response of a call whose answer takes `bytes`, its place and what is made of it together; unless that is little,
/// it waits for memory, for its client may never read it.
pub async fn counted<T>(answer: T, bytes: usize, outflow: &Outflow) -> Response<T> {
    if bytes <= UNCOUNTED_BYTES {
        return Response::new(answer);
    }
    let outlet = outflow.outlet();
    let memory = Some(outlet.wait(answer_memory(bytes as u64)).await);
    call(Held { value: answer, memory }, outlet)
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
    let encoded = answers.map(|answer| answer.map(|answer| answer.map(|answer| Content::encoded(&answer))));
    let response: Response<Answers<T>> = Response::new(Box::pin(tokio_stream::empty()));
    leave(response, outlet, Some(source(encoded)), None)
}

/// The same for a call that is served without generated code.
pub fn contents(
    answers: impl Stream<Item = Result<Held<Content>, Status>> + Send + 'static,
    outlet: Outlet,
) -> http::Response<Body> {
    let mut response = http::Response::new(Body::empty());
    response.headers_mut().insert(CONTENT_TYPE, GRPC_CONTENT_TYPE);
    response.extensions_mut().insert(Leaving::new(outlet, Some(source(answers)), None));
    response
}

fn source(answers: impl Stream<Item = Result<Held<Content>, Status>> + Send + 'static) -> Source {
    let outgoing = |Held { value, memory }| Outgoing::new(value, memory);
    Source::Stream(Box::pin(answers.map(move |answer| answer.map(outgoing))))
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

    /// Gives an answer its body, if its handler has left one. Its call is under way until that has gone.
    pub fn dress(&self, answer: &mut http::Response<Body>, under_way: Option<UnderWay>) {
        let inner = std::mem::take(answer.body_mut());
        *answer.body_mut() = match answer.extensions_mut().remove::<Leaving>() {
            Some(leaving) => self.body(inner, &leaving, under_way),
            None if under_way.is_none() || inner.is_end_stream() => inner,
            None => Body::new(Busy { body: inner, _under_way: under_way }),
        };
    }

    fn body(&self, inner: Body, leaving: &Leaving, under_way: Option<UnderWay>) -> Body {
        let taken = leaving.0.lock().unwrap_or_else(|poisoned| poisoned.into_inner()).take();
        let Some(Left { outlet, source, memory }) = taken else { return inner };
        let source = source.unwrap_or(Source::Call(inner, memory));
        let (moved, out_bytes, is_asked) = (Instant::now(), 0, false);
        let (answer, cut_memory, waker) = (None, None, None);
        let source = Some(source);
        let state = State { source, answer, out_bytes, is_asked, moved, is_cut: false, cut_memory, waker };
        let flow = Arc::new(Flow { outlet, state: Mutex::new(state) });
        self.flows.lock().unwrap_or_else(|poisoned| poisoned.into_inner()).push(Arc::downgrade(&flow));
        Body::new(OutgoingBody { flow, _under_way: under_way })
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

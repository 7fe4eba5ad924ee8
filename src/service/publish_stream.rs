//! One `PublishStream`.
//!
//! 1. Requests reach the broker in the order in which they came, and are answered in it, refusals in their place.
//!    Requests that are there together reach the broker in one turn.
//! 2. A request is read only when its answer has a place: at most [`PUBLISH_STREAM_REQUESTS_MAX`] are read ahead of
//!    what the client takes, so a client that does not read is not read from either.
//! 3. A request's memory is given back when the broker has answered, read or not: what waits for the client is a few
//!    hundred bytes for each request, and is written out when the network takes it.
//! 4. What was read is always answered before the stream ends: at the client's end, at a request that cannot be read,
//!    and when the server drains.

use std::collections::VecDeque;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};

use bytes::{BufMut, Bytes, BytesMut};
use http_body::Frame;
use tokio::sync::{Semaphore, mpsc};
use tonic::{Status, body};

use super::Shared;
use super::admit::PREFIX_BYTES;
use super::explain::unreadable;
use super::incoming::{Incoming, IncomingStream};
use super::messages::NameCache;
use super::outgoing::{self, trailers};
use super::places::UnderWay;
use super::status::Refusal;
use super::wire::publish::{self, Request};
use crate::admission::Permit;
use crate::broker::api::{BrokerError, Published};
use crate::broker::pipeline::Publishing;
use crate::limits::PUBLISH_STREAM_REQUESTS_MAX;

/// Where streams are opened.
pub const PATH: &str = "/forebay.v1.MessageService/PublishStream";
/// Most requests that reach the broker in one turn; others have their turn too.
const TOGETHER_MAX: usize = 128;
/// Answers go to the network in parts of about this size.
const PART_BYTES: usize = 32 << 10;
/// What the answer to a request of one message takes, about.
const ANSWER_BYTES: usize = 96;

/// Why one request failed.
enum Failure {
    Refused(Refusal),
    Broker(BrokerError),
}

/// The answer to one request, small while it waits for the network.
struct Answer {
    correlation_id: u64,
    result: Result<Published, Failure>,
}

/// Answers to requests that were there together, or the status that ends the stream.
type Answered = Result<Vec<Answer>, Status>;

/// Serves a stream whose requests are in `body`.
pub fn serve<B>(shared: Shared, body: B, under_way: UnderWay) -> http::Response<body::Body>
where
    B: http_body::Body<Data = Bytes> + Send + Unpin + 'static,
{
    let mut answers = open(shared, body);
    answers.under_way = Some(under_way);
    outgoing::http(body::Body::new(answers))
}

/// Serves a stream in a task of its own; the answers come from what is returned.
pub fn open<B>(shared: Shared, body: B) -> Answers
where
    B: http_body::Body<Data = Bytes> + Send + Unpin + 'static,
{
    let (answers, received) = mpsc::unbounded_channel();
    let places = Arc::new(Semaphore::new(PUBLISH_STREAM_REQUESTS_MAX));
    let free = Arc::clone(&places);
    let requests = IncomingStream::new(body, shared.budgets.publishes.clone());
    tokio::spawn(async move {
        let names = NameCache::default();
        let mut session = Session { shared, names, answers, free, held: 0, waiting: VecDeque::new() };
        let end = session.read(requests).await;
        while !session.waiting.is_empty() {
            answer(&mut session.waiting, &session.answers).await;
        }
        let _ = session.answers.send(Err(end.err().unwrap_or_else(|| Status::ok(""))));
    });
    let (now, out) = (Vec::new().into_iter(), BytesMut::new());
    Answers { received, now, end: None, is_over: false, out, places, under_way: None }
}

/// Requests that were read together: the broker has them, or they were refused.
struct Waiting {
    /// Their correlation ids, and why those that the broker does not have were refused.
    requests: Vec<(u64, Option<Refusal>)>,
    publishing: Publishing,
}

struct Session {
    shared: Shared,
    names: NameCache,
    answers: mpsc::UnboundedSender<Answered>,
    /// Places of answers that the client has taken, and of those that it never had.
    free: Arc<Semaphore>,
    /// Places taken from there for requests that will be read.
    held: usize,
    waiting: VecDeque<Waiting>,
}

impl Session {
    /// Reads and answers until the stream ends, and says how.
    async fn read<B>(&mut self, mut requests: IncomingStream<B>) -> Result<(), Status>
    where
        B: http_body::Body<Data = Bytes> + Unpin,
    {
        let (readiness, free) = (self.shared.readiness.clone(), Arc::clone(&self.free));
        let mut draining = std::pin::pin!(readiness.draining());
        loop {
            self.reserve();
            tokio::select! {
                () = answer(&mut self.waiting, &self.answers), if !self.waiting.is_empty() => {}
                place = free.acquire(), if self.held == 0 => {
                    place.expect("the semaphore is never closed").forget();
                    self.held = 1;
                }
                // Without places it reads ahead.
                read = read_together(&mut requests, self.held) => {
                    let end = self.take(read.requests).err().map(Err).or(read.end);
                    if let Some(end) = end {
                        return end.map_err(unreadable);
                    }
                }
                () = &mut draining => return Err(Refusal::Draining.into()),
                // The client has gone. What it sent is stored, or refused, all the same.
                () = self.answers.closed() => return Ok(()),
            }
        }
    }

    /// Takes places that are free now, as far as they are of use.
    fn reserve(&mut self) {
        let more = self.free.available_permits().min(TOGETHER_MAX - self.held);
        let places = self.free.try_acquire_many(more as u32);
        places.expect("only this task takes places").forget();
        self.held += more;
    }

    /// Hands requests to the broker, up to one that cannot be read, which is the error.
    fn take(&mut self, read: Vec<Incoming>) -> Result<(), Status> {
        if read.is_empty() {
            return Ok(());
        }
        self.held -= read.len();
        let mut requests = Vec::with_capacity(read.len());
        let mut publishes = Vec::with_capacity(read.len());
        let (mut together, mut unread) = (None, Ok(()));
        for Incoming { bytes, memory } in read {
            let Request { correlation_id, publish } =
                match publish::read(&bytes, |text: &str| self.names.queue(text)) {
                    Ok(request) => request,
                    Err(status) => {
                        unread = Err(status);
                        break;
                    }
                };
            merge(&mut together, memory);
            requests.push((correlation_id, publish.map(|publish| publishes.push(publish)).err()));
        }
        let publishing = self.shared.broker.publish_all(publishes, together);
        self.waiting.push_back(Waiting { requests, publishing });
        unread
    }
}

fn merge(together: &mut Option<Permit>, memory: Permit) {
    match together {
        Some(together) => together.merge(memory),
        None => *together = Some(memory),
    }
}

/// Answers the first of those that wait when the broker has answered.
async fn answer(waiting: &mut VecDeque<Waiting>, answers: &mpsc::UnboundedSender<Answered>) {
    let Some(first) = waiting.front_mut() else { return };
    let mut results = (&mut first.publishing).await.into_iter();
    let Waiting { requests, .. } = waiting.pop_front().expect("seen above");
    let answered = requests.into_iter().map(|(correlation_id, refused)| {
        let result = match refused {
            Some(refusal) => Err(Failure::Refused(refusal)),
            None => results.next().expect("the broker answers each").map_err(Failure::Broker),
        };
        Answer { correlation_id, result }
    });
    // A client that has gone wants no answers.
    let _ = answers.send(Ok(answered.collect()));
}

/// Requests that were there together.
#[derive(Default)]
struct Read {
    requests: Vec<Incoming>,
    /// How the stream has ended after them, if it has.
    end: Option<Result<(), Status>>,
}

/// Waits for the next request, and takes what else is there already, up to `most` in all. If that is none, it reads
/// ahead.
async fn read_together<B>(requests: &mut IncomingStream<B>, most: usize) -> Read
where
    B: http_body::Body<Data = Bytes> + Unpin,
{
    let mut read = Read::default();
    std::future::poll_fn(|cx| {
        if most == 0 {
            return requests.poll_ahead(cx).map(|status| read.end = Some(Err(status)));
        }
        while read.requests.len() < most && read.end.is_none() {
            match requests.poll_next(cx) {
                Poll::Ready(Some(Ok(request))) => read.requests.push(request),
                Poll::Ready(Some(Err(status))) => read.end = Some(Err(status)),
                Poll::Ready(None) => read.end = Some(Ok(())),
                Poll::Pending if read.requests.is_empty() => return Poll::Pending,
                Poll::Pending => break,
            }
        }
        Poll::Ready(())
    })
    .await;
    read
}

/// What the network takes: answers are written when it asks for more, and give their places back.
pub struct Answers {
    received: mpsc::UnboundedReceiver<Answered>,
    now: std::vec::IntoIter<Answer>,
    /// How the stream ends behind what is written.
    end: Option<Status>,
    is_over: bool,
    out: BytesMut,
    places: Arc<Semaphore>,
    under_way: Option<UnderWay>,
}

impl Answers {
    /// Writes what is there, about [`PART_BYTES`] at the most. Pending if there is nothing; else whether all has come.
    fn poll_write(&mut self, cx: &mut Context<'_>) -> Poll<()> {
        while self.out.len() < PART_BYTES && self.end.is_none() {
            if let Some(answer) = self.now.next() {
                self.places.add_permits(1);
                write(answer, &mut self.out);
                continue;
            }
            match self.received.poll_recv(cx) {
                Poll::Ready(Some(Ok(answers))) => {
                    self.out.reserve((answers.len() * ANSWER_BYTES).min(PART_BYTES));
                    self.now = answers.into_iter();
                }
                Poll::Ready(Some(Err(status))) => self.end = Some(status),
                // Its task has panicked.
                Poll::Ready(None) => self.end = Some(Refusal::Panicked { what: "the stream" }.into()),
                Poll::Pending if self.out.is_empty() => return Poll::Pending,
                Poll::Pending => break,
            }
        }
        Poll::Ready(())
    }
}

impl http_body::Body for Answers {
    type Data = Bytes;
    type Error = Status;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, Status>>> {
        if self.is_over {
            return Poll::Ready(None);
        }
        std::task::ready!(self.poll_write(cx));
        if !self.out.is_empty() {
            return Poll::Ready(Some(Ok(Frame::data(std::mem::take(&mut self.out).freeze()))));
        }
        self.is_over = true;
        let end = self.end.take().expect("nothing is written only at the end");
        Poll::Ready(Some(Ok(Frame::trailers(trailers(&end)))))
    }
}

/// Appends an answer as a gRPC message.
fn write(answer: Answer, out: &mut BytesMut) {
    let start = out.len();
    out.put_bytes(0, PREFIX_BYTES);
    let correlation_id = answer.correlation_id;
    match answer.result {
        Ok(published) => publish::write_published(correlation_id, &published, out),
        Err(Failure::Refused(refusal)) => publish::write_error(correlation_id, &refusal.into(), out),
        Err(Failure::Broker(error)) => publish::write_error(correlation_id, &error.into(), out),
    }
    let length = u32::try_from(out.len() - start - PREFIX_BYTES).expect("an answer is far below 4 GiB");
    out[start + 1..start + PREFIX_BYTES].copy_from_slice(&length.to_be_bytes());
}

//! One `PublishStream`.
//!
//! 1. Requests reach the broker in the order in which they came, and are answered in it, refusals in their place.
//!    Requests that are there together reach the broker in one turn.
//! 2. A request is read only when its answer has a place: at most [`PUBLISH_STREAM_REQUESTS_MAX`] are read ahead of
//!    what the client takes, so a client that does not read is not read from either.
//! 3. A request's memory is given back when the broker has answered, read or not: what waits for the client is a few
//!    hundred bytes for each request, and becomes a response when the network takes it.
//! 4. What was read is always answered before the stream ends: at the client's end, at a request that cannot be read,
//!    and when the server drains.

use std::collections::VecDeque;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, ready};

use tokio::sync::{Semaphore, mpsc};
use tokio_stream::Stream;
use tonic::Status;

use super::Shared;
use super::admit_stream::Permits;
use super::check;
use super::explain::unreadable;
use super::messages::{NameCache, checked_publish, show_published};
use super::status::Refusal;
use crate::admission::Permit;
use crate::broker::api::{BrokerError, Published};
use crate::broker::pipeline::{Publish, Publishing};
use crate::limits::PUBLISH_STREAM_REQUESTS_MAX;
use crate::proto::v1::publish_stream_response::Result as Shown;
use crate::proto::v1::{CallError, PublishRequest, PublishStreamRequest, PublishStreamResponse};

/// Most requests that reach the broker in one turn; others have their turn too.
const TOGETHER_MAX: usize = 128;

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

/// Serves a stream in a task of its own; the answers come from what is returned.
pub fn open(
    shared: Shared,
    permits: Permits,
    requests: impl Stream<Item = Result<PublishStreamRequest, Status>> + Send + Unpin + 'static,
) -> impl Stream<Item = Result<PublishStreamResponse, Status>> + Unpin {
    let (answers, received) = mpsc::unbounded_channel();
    let places = Arc::new(Semaphore::new(PUBLISH_STREAM_REQUESTS_MAX));
    let free = Arc::clone(&places);
    tokio::spawn(async move {
        let names = NameCache::default();
        let mut session =
            Session { shared, permits, names, answers, free, held: 0, waiting: VecDeque::new() };
        let end = session.read(requests).await;
        while !session.waiting.is_empty() {
            answer(&mut session.waiting, &session.answers).await;
        }
        if let Err(status) = end {
            let _ = session.answers.send(Err(status));
        }
    });
    Answers { received, now: Vec::new().into_iter(), places }
}

/// Requests that were read together: the broker has them, or they were refused.
struct Waiting {
    /// Their correlation ids, and why those that the broker does not have were refused.
    requests: Vec<(u64, Option<Refusal>)>,
    publishing: Publishing,
    _memory: Vec<Permit>,
}

struct Session {
    shared: Shared,
    permits: Permits,
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
    async fn read(
        &mut self,
        mut requests: impl Stream<Item = Result<PublishStreamRequest, Status>> + Unpin,
    ) -> Result<(), Status> {
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
                read = read_together(&mut requests, self.held), if self.held > 0 => {
                    self.take(read.requests);
                    if let Some(end) = read.end {
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

    /// Hands requests to the broker.
    fn take(&mut self, read: Vec<PublishStreamRequest>) {
        if read.is_empty() {
            return;
        }
        self.held -= read.len();
        let mut requests = Vec::with_capacity(read.len());
        let mut memory = Vec::with_capacity(read.len());
        let mut publishes = Vec::with_capacity(read.len());
        for request in read {
            memory.extend(self.permits.pop());
            let refused = match self.checked(request.publish) {
                Ok(publish) => {
                    publishes.push(publish);
                    None
                }
                Err(refusal) => Some(refusal),
            };
            requests.push((request.correlation_id, refused));
        }
        let publishing = self.shared.broker.publish_all(publishes);
        self.waiting.push_back(Waiting { requests, publishing, _memory: memory });
    }

    fn checked(&mut self, publish: Option<PublishRequest>) -> Result<Publish, Refusal> {
        checked_publish(check::required("publish", publish)?, &mut self.names)
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

/// What the network takes: each answer becomes a response when it is asked for, and gives its place back.
struct Answers {
    received: mpsc::UnboundedReceiver<Answered>,
    now: std::vec::IntoIter<Answer>,
    places: Arc<Semaphore>,
}

impl Stream for Answers {
    type Item = Result<PublishStreamResponse, Status>;

    fn poll_next(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Self::Item>> {
        loop {
            if let Some(answer) = self.now.next() {
                self.places.add_permits(1);
                return Poll::Ready(Some(Ok(show(answer))));
            }
            match ready!(self.received.poll_recv(cx)) {
                Some(Ok(answers)) => self.now = answers.into_iter(),
                Some(Err(status)) => return Poll::Ready(Some(Err(status))),
                None => return Poll::Ready(None),
            }
        }
    }
}

/// Requests that were there together.
#[derive(Default)]
struct Read {
    requests: Vec<PublishStreamRequest>,
    /// How the stream has ended after them, if it has.
    end: Option<Result<(), Status>>,
}

/// Waits for the next request, and takes what else is there already, up to `most` in all.
async fn read_together(
    requests: &mut (impl Stream<Item = Result<PublishStreamRequest, Status>> + Unpin),
    most: usize,
) -> Read {
    let mut read = Read::default();
    std::future::poll_fn(|cx| {
        while read.requests.len() < most && read.end.is_none() {
            let next = Pin::new(&mut *requests).poll_next(cx);
            let next = if read.requests.is_empty() {
                ready!(next)
            } else {
                match next {
                    Poll::Ready(next) => next,
                    Poll::Pending => break,
                }
            };
            match next {
                Some(Ok(request)) => read.requests.push(request),
                Some(Err(status)) => read.end = Some(Err(status)),
                None => read.end = Some(Ok(())),
            }
        }
        Poll::Ready(())
    })
    .await;
    read
}

fn show(answer: Answer) -> PublishStreamResponse {
    let error = |status: Status| CallError {
        code: status.code().into(),
        message: status.message().to_owned(),
        status: status.details().to_vec().into(),
    };
    let result = match answer.result {
        Ok(published) => Shown::Response(show_published(published)),
        Err(Failure::Refused(refusal)) => Shown::Error(error(refusal.into())),
        Err(Failure::Broker(stopped)) => Shown::Error(error(stopped.into())),
    };
    PublishStreamResponse { correlation_id: answer.correlation_id, result: Some(result) }
}

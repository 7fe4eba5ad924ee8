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
use std::task::{Poll, ready};

use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;
use tokio_stream::{Stream, StreamExt};
use tonic::Status;

use super::Shared;
use super::admit_stream::Permits;
use super::check;
use super::explain::unreadable;
use super::messages::{checked_publish, show_published};
use super::status::Refusal;
use crate::admission::Permit;
use crate::broker::api::{BrokerError, Published};
use crate::broker::pipeline::{PublishBatch, Publishing};
use crate::limits::PUBLISH_STREAM_REQUESTS_MAX;
use crate::proto::v1::publish_stream_response::Result as Shown;
use crate::proto::v1::{CallError, PublishStreamRequest, PublishStreamResponse};

/// Most requests that reach the broker in one turn; others have their turn too.
const TOGETHER_MAX: usize = 64;

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

/// An answer, or the status that ends the stream.
type Answered = Result<Answer, Status>;

/// Serves a stream in a task of its own; the answers come from what is returned.
pub fn open(
    shared: Shared,
    permits: Permits,
    requests: impl Stream<Item = Result<PublishStreamRequest, Status>> + Send + Unpin + 'static,
) -> impl Stream<Item = Result<PublishStreamResponse, Status>> {
    let (answers, stream) = mpsc::channel(PUBLISH_STREAM_REQUESTS_MAX);
    tokio::spawn(async move {
        let mut session = Session { shared, permits, answers, place: None, waiting: VecDeque::new() };
        let end = session.read(requests).await;
        while !session.waiting.is_empty() {
            answer(&mut session.waiting).await;
        }
        if let Err(status) = end {
            let _ = session.answers.send(Err(status)).await;
        }
    });
    ReceiverStream::new(stream).map(|answered: Answered| answered.map(show))
}

/// A request that was read: the broker has it, or it was refused.
struct Waiting {
    correlation_id: u64,
    answer: Result<Publishing, Refusal>,
    place: mpsc::OwnedPermit<Answered>,
    _memory: Option<Permit>,
}

struct Session {
    shared: Shared,
    permits: Permits,
    answers: mpsc::Sender<Answered>,
    /// The place of the next request's answer.
    place: Option<mpsc::OwnedPermit<Answered>>,
    waiting: VecDeque<Waiting>,
}

impl Session {
    /// Reads and answers until the stream ends, and says how.
    async fn read(
        &mut self,
        mut requests: impl Stream<Item = Result<PublishStreamRequest, Status>> + Unpin,
    ) -> Result<(), Status> {
        let readiness = self.shared.readiness.clone();
        let mut draining = std::pin::pin!(readiness.draining());
        loop {
            let places = 1 + self.answers.capacity();
            tokio::select! {
                () = answer(&mut self.waiting), if !self.waiting.is_empty() => {}
                place = self.answers.clone().reserve_owned(), if self.place.is_none() => match place {
                    Ok(place) => self.place = Some(place),
                    Err(_) => return Ok(()),
                },
                read = read_together(&mut requests, places.min(TOGETHER_MAX)), if self.place.is_some() => {
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

    /// Hands requests to the broker. There is a place for each answer: only this task reserves them.
    fn take(&mut self, requests: Vec<PublishStreamRequest>) {
        let mut batch = self.shared.broker.batch();
        for request in requests {
            let place = self.place.take().or_else(|| self.answers.clone().try_reserve_owned().ok());
            self.waiting.push_back(Waiting {
                correlation_id: request.correlation_id,
                _memory: self.permits.pop(),
                answer: submit(&mut batch, request),
                place: place.expect("no more is read than there are places"),
            });
        }
        batch.send();
    }
}

fn submit(batch: &mut PublishBatch, request: PublishStreamRequest) -> Result<Publishing, Refusal> {
    let (queue, messages, producer) = checked_publish(check::required("publish", request.publish)?)?;
    Ok(batch.publish(queue, messages, producer))
}

/// Answers the first of the requests that wait when its answer is there, and with it all that have theirs.
async fn answer(waiting: &mut VecDeque<Waiting>) {
    let mut any = false;
    std::future::poll_fn(|cx| {
        while let Some(first) = waiting.front_mut() {
            let result = match &mut first.answer {
                Err(refusal) => Err(Failure::Refused(refusal.clone())),
                Ok(publishing) => match Pin::new(publishing).poll(cx) {
                    Poll::Ready(result) => result.map_err(Failure::Broker),
                    Poll::Pending if any => return Poll::Ready(()),
                    Poll::Pending => return Poll::Pending,
                },
            };
            let Waiting { correlation_id, place, .. } = waiting.pop_front().expect("seen above");
            place.send(Ok(Answer { correlation_id, result }));
            any = true;
        }
        Poll::Ready(())
    })
    .await;
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

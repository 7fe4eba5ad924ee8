//! The requests of one producer that have no final answer yet. No I/O: it says what to send.
//!
//! Invariants
//! - Sequences are 1, 2, … in the order of the input; the server stores a request only after the one before it and
//!   none twice. So what is stored is a prefix of the input at all times, whatever was sent again.
//! - Answers are counted from the front only, so what counts as published is such a prefix, too.
//! - A request that overtook another is refused (SEQUENCE_GAP), or lost with it; it waits until all before it are
//!   answered, then it is sent again. Only the front is retried with a delay, and only its patience is limited:
//!   those behind it could not be stored anyway.
//! - After a final failure nothing behind it is sent again.

use std::collections::VecDeque;
use std::time::Duration;

use bytes::Bytes;
use forebay::proto::v1::PublishResponse;
use tonic::{Code, Status};

use crate::errors::{CtlError, reason};
use crate::retry::{Backoff, is_retryable};

#[derive(Debug)]
enum State {
    Sent {
        /// All before it had been answered when it was sent.
        as_front: bool,
    },
    /// To be sent again when it is the front.
    Waiting,
    Done(PublishResponse),
    Failed(CtlError),
}

#[derive(Debug)]
struct Request {
    sequence: u64,
    bodies: Vec<Bytes>,
    state: State,
}

/// What an answer leads to.
#[derive(Debug, Default)]
pub struct Outcome {
    /// Requests that are published now, in order.
    pub published: Vec<(Vec<Bytes>, PublishResponse)>,
    /// Sequences to send again now, in this order.
    pub resend: Vec<u64>,
    /// Call `retry` after this long; nothing new can be stored before.
    pub wait: Option<Duration>,
    /// The front has failed for good.
    pub failed: Option<CtlError>,
}

/// Requests in order, the earliest at the front.
#[derive(Debug)]
pub struct Window {
    requests: VecDeque<Request>,
    next_sequence: u64,
    backoff: Backoff,
    retry_is_due: bool,
    has_failure: bool,
}

impl Window {
    /// Gives up when nothing was answered well for `patience` of trying again.
    pub fn new(patience: Duration) -> Self {
        Self {
            requests: VecDeque::new(),
            next_sequence: 1,
            backoff: Backoff::new(Some(patience)),
            retry_is_due: false,
            has_failure: false,
        }
    }

    pub fn len(&self) -> usize {
        self.requests.len()
    }

    /// Whether new requests have a chance to be stored.
    pub fn takes_more(&self) -> bool {
        !self.retry_is_due && !self.has_failure
    }

    /// Adds a request; it is to be sent at once.
    pub fn push(&mut self, bodies: Vec<Bytes>) -> u64 {
        let sequence = self.next_sequence;
        self.next_sequence += 1;
        let state = State::Sent { as_front: self.requests.is_empty() };
        self.requests.push_back(Request { sequence, bodies, state });
        sequence
    }

    /// The messages of a request.
    pub fn bodies(&self, sequence: u64) -> &[Bytes] {
        &self.requests[self.index(sequence)].bodies
    }

    /// The wait is over: the request to send again.
    pub fn retry(&mut self) -> Option<u64> {
        self.retry_is_due = false;
        let front = self.requests.front_mut()?;
        front.state = State::Sent { as_front: true };
        Some(front.sequence)
    }

    /// Takes the answer to a request that was sent.
    pub fn answered(&mut self, sequence: u64, result: Result<PublishResponse, Status>) -> Outcome {
        let mut outcome = Outcome::default();
        let index = self.index(sequence);
        let request = &mut self.requests[index];
        let as_front = matches!(request.state, State::Sent { as_front: true });
        request.state = match result {
            Ok(response) if response.results.len() == request.bodies.len() => State::Done(response),
            Ok(response) => State::Failed(miscounted(request.bodies.len(), &response)),
            Err(status) if !as_front && (overtook(&status) || is_retryable(&status)) => State::Waiting,
            Err(status) => match self.backoff.wait(&status) {
                Some(wait) => {
                    self.retry_is_due = true;
                    outcome.wait = Some(wait);
                    State::Waiting
                }
                None => State::Failed(status.into()),
            },
        };
        self.has_failure |= matches!(request.state, State::Failed(_));
        self.advance(&mut outcome);
        outcome
    }

    fn advance(&mut self, outcome: &mut Outcome) {
        while let Some(Request { state: State::Done(_) | State::Failed(_), .. }) = self.requests.front() {
            let request = self.requests.pop_front().expect("it was just seen");
            match request.state {
                State::Done(response) => outcome.published.push((request.bodies, response)),
                State::Failed(error) => {
                    outcome.failed = Some(error);
                    return;
                }
                State::Sent { .. } | State::Waiting => unreachable!("excluded by the condition"),
            }
            self.backoff.reset();
        }
        let refused = matches!(self.requests.front(), Some(Request { state: State::Waiting, .. }));
        if self.retry_is_due || !refused {
            return;
        }
        for (index, request) in self.requests.iter_mut().enumerate() {
            match request.state {
                State::Waiting => {
                    request.state = State::Sent { as_front: index == 0 };
                    outcome.resend.push(request.sequence);
                }
                State::Failed(_) => break,
                State::Sent { .. } | State::Done(_) => {}
            }
        }
    }

    fn index(&self, sequence: u64) -> usize {
        let front = self.requests.front().map_or(sequence, |request| request.sequence);
        usize::try_from(sequence - front).expect("a window fits memory")
    }
}

fn overtook(status: &Status) -> bool {
    status.code() == Code::Aborted && reason(status).as_deref() == Some("SEQUENCE_GAP")
}

fn miscounted(sent: usize, response: &PublishResponse) -> CtlError {
    let count = response.results.len();
    Status::data_loss(format!(
        "the server answered {count} results for {sent} messages; is it a Forebay server?"
    ))
    .into()
}

#[cfg(test)]
mod tests;

//! The requests of a publisher that have no answer yet, and the numbers they are sent under.
//!
//! 1. Each queue has a line of its own: an epoch, and sequences in it from 1 without gaps, in the order of sending.
//!    A sequence is used once, so a request that is sent again is stored once.
//! 2. No more than [`WINDOW`] requests wait: for as many the server keeps its answers.
//! 3. A request that was refused leaves a gap, and the server refuses what was sent after it. So the rest of its line
//!    is renumbered in a new epoch and sent again. Answers to what was sent under the old numbers are not heeded.
//! 4. A server that no longer knows the producer (idle for an hour, or a new queue of the same name) refuses the
//!    next sequence as a gap. A request that was sent once cannot be stored then; it begins a new epoch by itself.

use std::collections::{HashMap, VecDeque};

use tokio::sync::{OwnedSemaphorePermit, oneshot};
use tonic::Status;
use tonic_types::StatusExt as _;

use super::error::ClientError;
use super::retry::is_retryable;
use crate::limits::PRODUCER_ANSWERS_MAX;
use crate::proto::v1::publish_stream_response::Result as Answer;
use crate::proto::v1::{
    ErrorReason, Producer, PublishRequest, PublishResponse, PublishStreamRequest, PublishStreamResponse,
};

/// Most requests without an answer.
pub const WINDOW: usize = PRODUCER_ANSWERS_MAX;
/// Lines kept; beyond, those without a waiting request go. A later request to such a queue begins a new epoch.
const LINES_MAX: usize = 1_000;

pub type Reply = oneshot::Sender<Result<PublishResponse, ClientError>>;

/// A request on its way into the tail.
#[derive(Debug)]
pub struct New {
    pub publish: PublishRequest,
    pub reply: Reply,
    /// Given back with the answer.
    pub _place: [OwnedSemaphorePermit; 2],
}

#[derive(Debug)]
struct Pending {
    new: New,
    /// Of the newest time that it was sent.
    correlation_id: u64,
    sends: u32,
}

#[derive(Clone, Copy, Debug)]
struct Line {
    epoch: u64,
    sequence: u64,
}

/// What an answer leads to.
#[derive(Debug)]
pub enum Next {
    /// Nothing: the request is answered, or the answer is an old one.
    GoOn,
    /// These are sent again, now.
    Resend(Vec<PublishStreamRequest>),
    /// All of the tail is sent again, later.
    BackOff(Status),
}

/// See the module's header.
#[derive(Debug)]
pub struct Tail {
    producer_id: String,
    epoch: u64,
    lines: HashMap<String, Line>,
    pending: VecDeque<Pending>,
    correlation_id: u64,
}

impl Tail {
    pub fn new(producer_id: String) -> Self {
        Self { producer_id, epoch: 0, lines: HashMap::new(), pending: VecDeque::new(), correlation_id: 0 }
    }

    pub fn is_empty(&self) -> bool {
        self.pending.is_empty()
    }

    /// Whether nobody waits for any answer.
    pub fn is_forgotten(&self) -> bool {
        self.pending.iter().all(|pending| pending.new.reply.is_closed())
    }

    /// Adds a request at the end; gives what to send.
    pub fn push(&mut self, mut new: New) -> PublishStreamRequest {
        if self.lines.len() >= LINES_MAX {
            let waits: std::collections::HashSet<&str> =
                self.pending.iter().map(|pending| pending.new.publish.queue.as_str()).collect();
            self.lines.retain(|queue, _| waits.contains(queue.as_str()));
        }
        new.publish.producer = Some(self.stamp(&new.publish.queue));
        self.pending.push_back(Pending { new, correlation_id: 0, sends: 0 });
        self.send(self.pending.len() - 1)
    }

    /// The whole tail, to send on a new stream.
    pub fn all(&mut self) -> Vec<PublishStreamRequest> {
        (0..self.pending.len()).map(|at| self.send(at)).collect()
    }

    /// Takes an answer.
    pub fn answer(&mut self, answer: PublishStreamResponse) -> Next {
        let id = answer.correlation_id;
        let Some(at) = self.pending.iter().position(|pending| pending.correlation_id == id) else {
            return Next::GoOn;
        };
        let status = match answer.result {
            Some(Answer::Response(response)) => {
                self.finish(at, Ok(response));
                return Next::GoOn;
            }
            Some(Answer::Error(error)) => {
                Status::with_details(error.code.into(), error.message, error.status)
            }
            None => Status::internal("the server gave an empty answer"),
        };
        if is_retryable(&status) {
            return Next::BackOff(status);
        }
        let queue = self.pending[at].new.publish.queue.clone();
        if !(is_gap(&status) && self.pending[at].sends == 1) {
            self.finish(at, Err(status.into()));
        }
        self.lines.remove(&queue);
        Next::Resend(self.renumber(&queue))
    }

    /// The stream has ended with an error that is for good: it is the first request's, since what was read before
    /// was answered. Gives false if there is none.
    pub fn refuse_first(&mut self, status: Status) -> bool {
        let Some(first) = self.pending.front() else { return false };
        let queue = first.new.publish.queue.clone();
        self.finish(0, Err(status.into()));
        self.lines.remove(&queue);
        self.renumber(&queue);
        true
    }

    fn finish(&mut self, at: usize, result: Result<PublishResponse, ClientError>) {
        if let Some(pending) = self.pending.remove(at) {
            // Who has dropped the receipt wants no answer.
            let _ = pending.new.reply.send(result);
        }
    }

    /// The next number of a queue's line; a line that is not there begins with a new epoch.
    fn stamp(&mut self, queue: &str) -> Producer {
        let line = self.lines.entry(queue.to_owned()).or_insert_with(|| {
            self.epoch += 1;
            Line { epoch: self.epoch, sequence: 0 }
        });
        line.sequence += 1;
        Producer { producer_id: self.producer_id.clone(), epoch: line.epoch, sequence: line.sequence }
    }

    /// Numbers what waits for a queue anew, in a new epoch; gives what to send.
    fn renumber(&mut self, queue: &str) -> Vec<PublishStreamRequest> {
        let waits = |(at, pending): (usize, &Pending)| (pending.new.publish.queue == queue).then_some(at);
        let places: Vec<usize> = self.pending.iter().enumerate().filter_map(waits).collect();
        let mut requests = Vec::with_capacity(places.len());
        for at in places {
            self.pending[at].new.publish.producer = Some(self.stamp(queue));
            requests.push(self.send(at));
        }
        requests
    }

    fn send(&mut self, at: usize) -> PublishStreamRequest {
        self.correlation_id += 1;
        let pending = &mut self.pending[at];
        pending.correlation_id = self.correlation_id;
        pending.sends += 1;
        let publish = Some(pending.new.publish.clone());
        PublishStreamRequest { correlation_id: self.correlation_id, publish }
    }
}

fn is_gap(status: &Status) -> bool {
    let details = status.get_error_details();
    details.error_info().is_some_and(|info| info.reason == ErrorReason::SequenceGap.as_str_name())
}

#[cfg(test)]
#[path = "tail_tests.rs"]
mod tests;

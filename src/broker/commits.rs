//! What is on its way to the log, and the answers that wait for it.
//!
//! Records of many calls share one batch; the log commits batches whole and in order. An answer is given once
//! everything decided before it is on disk, refusals too: they may rest on a change that is not durable yet. Lease
//! records are lazy: they travel with the next batch, at the latest [`LAZY_US`] later, and no answer waits for them.

use std::collections::VecDeque;

use tokio::sync::oneshot;

use super::api::{BrokerError, Published, Reply};
use super::pipeline::PublishResults;
use crate::admission::Permit;
use crate::core::types::Settled;
use crate::ids::Ticket;
use crate::log::{Batch, Log};
use crate::planted;
use crate::record::{Record, envelope::encoded_len};

/// How long a lazy record may wait for company, microseconds.
pub const LAZY_US: u64 = 50_000;
/// Bytes at which a batch is handed over without waiting for the end of the round; smaller logs take less.
const BATCH_BYTES: usize = 1 << 20;

/// An answer that waits for the disk.
pub enum Answer {
    Publish(Reply<Published>, Result<Published, BrokerError>),
    PublishAll(oneshot::Sender<PublishResults>, PublishResults),
    Settle(Reply<Vec<Settled>>, Result<Vec<Settled>, BrokerError>),
    /// Memory of what is on its way, to be given back.
    Memory(Permit),
    /// Called with the error if the log stops first.
    Other(Box<dyn FnOnce(Option<BrokerError>) + Send>),
}

impl Answer {
    /// An answer of any type.
    pub fn new<T: Send + 'static>(reply: Reply<T>, result: Result<T, BrokerError>) -> Self {
        Self::Other(Box::new(move |stopped| {
            let _ = reply.send(stopped.map_or(result, Err));
        }))
    }

    // A caller that has gone away wants no answer.
    fn give(self, stopped: Option<BrokerError>) {
        match self {
            Self::Publish(reply, result) => drop(reply.send(stopped.map_or(result, Err))),
            Self::PublishAll(reply, mut results) => {
                if let Some(error) = stopped {
                    results.fill(Err(error));
                }
                drop(reply.send(results));
            }
            Self::Settle(reply, result) => drop(reply.send(stopped.map_or(result, Err))),
            Self::Memory(memory) => drop(memory),
            Self::Other(answer) => answer(stopped),
        }
    }
}

/// See the module's header.
pub struct Commits {
    pending: Vec<Record>,
    pending_bytes: usize,
    pending_urgent: bool,
    lazy_since_us: Option<u64>,
    /// The ticket of the batch that is being filled.
    filling: Ticket,
    /// The last batch with something that answers wait for.
    gate: Ticket,
    durable: Ticket,
    waiting: VecDeque<(Ticket, Answer)>,
}

impl Default for Commits {
    fn default() -> Self {
        Self {
            pending: Vec::new(),
            pending_bytes: 0,
            pending_urgent: false,
            lazy_since_us: None,
            filling: Ticket(1),
            gate: Ticket(0),
            durable: Ticket(0),
            waiting: VecDeque::new(),
        }
    }
}

impl Commits {
    /// Adds the records of one decision; they are committed together.
    pub fn add(&mut self, records: Vec<Record>, log: &Log, log_us: u64) {
        let bytes: usize = records.iter().map(encoded_len).sum();
        self.make_room(bytes, log, log_us);
        self.pending.extend(records);
        self.pending_bytes += bytes;
        self.pending_urgent = true;
        self.gate = self.filling;
    }

    /// Adds a record that nothing waits for.
    pub fn add_lazily(&mut self, record: Record, log: &Log, log_us: u64) {
        let bytes = encoded_len(&record);
        self.make_room(bytes, log, log_us);
        self.pending_bytes += bytes;
        self.pending.push(record);
        self.lazy_since_us.get_or_insert(log_us);
    }

    /// Gives an answer as soon as all that was added so far, lazy records aside, is on disk.
    pub fn answer(&mut self, answer: Answer) {
        if self.gate <= self.durable {
            answer.give(None);
        } else {
            self.waiting.push_back((self.gate, answer));
        }
    }

    /// Gives memory back as soon as all that was added so far, lazy records aside, is on disk.
    pub fn hold(&mut self, memory: Permit) {
        self.answer(Answer::Memory(memory));
    }

    /// Hands over what is urgent, or has waited long enough.
    pub fn flush(&mut self, log: &Log, log_us: u64) {
        let due = self.lazy_due_us().is_some_and(|due| due <= log_us);
        if self.pending_urgent || due {
            self.submit(log, log_us);
        }
    }

    /// Hands over everything, and waits for it in the answers that follow.
    pub fn flush_all(&mut self, log: &Log, log_us: u64) {
        if !self.pending.is_empty() {
            self.gate = self.filling;
            self.submit(log, log_us);
        }
    }

    /// Hands over everything, and asks the log for the place behind it.
    pub fn mark(&mut self, log: &Log, log_us: u64) {
        self.flush_all(log, log_us);
        log.mark(self.filling);
        self.filling = self.filling.next();
    }

    /// When a lazy record must be handed over.
    pub fn lazy_due_us(&self) -> Option<u64> {
        self.lazy_since_us.map(|since| since + LAZY_US)
    }

    /// Everything up to `through` is on disk.
    pub fn committed(&mut self, through: Ticket) {
        let through = if planted::bug("watermark-runs-ahead") { through.next() } else { through };
        self.durable = self.durable.max(through);
        while self.waiting.front().is_some_and(|(ticket, _)| *ticket <= self.durable) {
            let (_, answer) = self.waiting.pop_front().expect("seen above");
            answer.give(None);
        }
    }

    /// Nothing more will be on disk.
    pub fn stopped(&mut self, error: &BrokerError) {
        for (_, answer) in self.waiting.drain(..) {
            answer.give(Some(error.clone()));
        }
    }

    /// Hands over what is there if `bytes` more would be too much for one batch.
    fn make_room(&mut self, bytes: usize, log: &Log, log_us: u64) {
        let most = BATCH_BYTES.min(usize::try_from(log.batch_bytes_max()).unwrap_or(BATCH_BYTES));
        if self.pending_bytes > 0 && self.pending_bytes + bytes > most {
            self.submit(log, log_us);
        }
    }

    fn submit(&mut self, log: &Log, log_us: u64) {
        let records = std::mem::take(&mut self.pending);
        log.submit(Batch { records, ticket: self.filling, log_time_us: log_us });
        self.filling = self.filling.next();
        self.pending_bytes = 0;
        self.pending_urgent = false;
        self.lazy_since_us = None;
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;
    use std::sync::mpsc::channel;
    use std::time::Duration;

    use bytes::Bytes;

    use super::*;
    use crate::disk::RealDisk;
    use crate::ids::{Offset, QueueId};
    use crate::log::{self, Image, LogError, LogEvent, LogOptions, ReplayError, Replayed, StateMachine};
    use crate::record::{Body, Kind, Lane, MessageRun, StoredParts};

    struct Nothing;

    impl StateMachine for Nothing {
        fn restore(&mut self, _: Image) -> Result<(), LogError> {
            Ok(())
        }

        fn apply(&mut self, _: Replayed<'_>) -> Result<(), ReplayError> {
            Ok(())
        }
    }

    #[test]
    fn a_mark_stands_behind_all_that_was_added_lazy_records_too() {
        let dir = tempfile::tempdir().unwrap();
        let (sender, events) = channel();
        let on_event = Arc::new(move |event| drop(sender.send(event)));
        let options = LogOptions { segment_bytes: 256 << 10, ..LogOptions::new(1) };
        let log = log::open(Arc::new(RealDisk::new(dir.path())), options, &mut Nothing, on_event).unwrap();
        let messages = vec![StoredParts { meta: Bytes::new(), body: Bytes::new() }];
        let run = MessageRun { lane: Lane::default(), publish_time_us: 1, messages };
        // Any record will do; that of a run is told when it is placed.
        let (kind, queue, offset) = (Kind::Publish, QueueId(1), Offset(0));
        let record = Record { kind, flags: 0, queue, offset, headers: Vec::new(), body: Body::Run(run) };
        let mut commits = Commits::default();
        commits.add_lazily(record, &log, 1);
        commits.mark(&log, 1);
        let mut placed_before = 0;
        loop {
            match events.recv_timeout(Duration::from_secs(20)).expect("the log reports") {
                LogEvent::Committed { placed, .. } => placed_before += placed.len(),
                LogEvent::Marked(_) => break,
                _ => {}
            }
        }
        assert_eq!(placed_before, 1);
    }
}

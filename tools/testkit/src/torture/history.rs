//! What clients did and saw, written down outside the server: in memory, and line by line in a file.
//!
//! A call is recorded before it is sent, its end after its answer came. An event's index is its moment: what has a
//! lower index happened before. A call without an answer has an unknown outcome.

use std::collections::HashSet;
use std::fs::File;
use std::hash::Hasher as _;
use std::io::{BufWriter, Write as _};
use std::path::Path;
use std::sync::{Arc, Mutex, MutexGuard};

use siphasher::sip128::{Hasher128 as _, SipHasher13};

/// A place in the history.
pub type Moment = usize;

/// Short name of a queue.
pub type QueueName = Arc<str>;

/// Identifies a message's body exactly.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct BodyHash(pub u128);

impl BodyHash {
    pub fn of(body: &[u8]) -> Self {
        let mut hasher = SipHasher13::new();
        hasher.write(body);
        Self(hasher.finish128().as_u128())
    }
}

/// A message as its publisher knows it; its id travels in the attribute `id` and is never used for another one.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Mark {
    pub id: u64,
    pub hash: BodyHash,
}

/// One sending of a publish request; a retry is another attempt with the same messages.
#[derive(Clone, Debug)]
pub struct Attempt {
    pub attempt: u64,
    pub queue: QueueName,
    pub messages: Vec<Mark>,
    /// With producer and sequence: it is stored once at most, however often it is sent.
    pub stamped: bool,
}

/// How an attempt to publish ended.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Published {
    /// Acknowledged, with the offset of each message.
    Stored(Vec<u64>),
    /// Nothing of it was stored.
    Refused,
    /// No answer, or one that leaves it open.
    Unknown,
}

/// A message that a consumer got.
#[derive(Clone, Debug)]
pub struct Delivery {
    pub queue: QueueName,
    pub offset: u64,
    pub mark: Mark,
    /// Deliveries so far, as the server counts them.
    pub attempt: u32,
    /// The server cannot have sent it before this moment.
    pub sent_after: Moment,
    /// One consumer on one connection; a new number for each.
    pub session: u64,
    /// Queue and offset it had before it was rejected, in a dead-letter queue.
    pub origin: Option<(QueueName, u64)>,
}

/// How a consumer ended a delivery.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Ending {
    Ack,
    Retry,
    Release,
    Reject,
}

/// What the server said to one ending.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Settled {
    Ok,
    Stale,
    Invalid,
    Transient,
    Refused,
}

/// One line of the history.
#[derive(Clone, Debug)]
pub enum Event {
    PublishInvoked(Attempt),
    PublishEnded {
        attempt: u64,
        outcome: Published,
    },
    Delivered(Delivery),
    SettleInvoked {
        call: u64,
        queue: QueueName,
        endings: Vec<(u64, Ending)>,
    },
    /// One outcome for each ending; none if no answer came.
    SettleEnded {
        call: u64,
        outcomes: Option<Vec<Settled>>,
    },
    /// A queue's messages below an offset are to be finished, whoever has them.
    PurgeInvoked {
        call: u64,
        queue: QueueName,
        end: u64,
    },
    /// None below `end` comes any more; not so if no answer came.
    PurgeEnded {
        call: u64,
        done: bool,
    },
    /// A server was killed; how many were before.
    Killed {
        run: u64,
    },
    /// Something that must not happen at all.
    Unexpected(String),
}

/// The record of a run, shared by all its clients.
#[derive(Debug)]
pub struct History {
    inner: Mutex<Inner>,
}

#[derive(Debug)]
struct Inner {
    events: Vec<Event>,
    file: BufWriter<File>,
    last_number: u64,
    /// Reasons of errors that were told, without repetition.
    reasons: HashSet<String>,
}

impl History {
    /// Begins an empty history, also in the file `path`.
    pub fn create(path: &Path) -> std::io::Result<Self> {
        let file = BufWriter::new(File::create(path)?);
        let inner = Inner { events: Vec::new(), file, last_number: 0, reasons: HashSet::new() };
        Ok(Self { inner: Mutex::new(inner) })
    }

    /// Goes on where another history ended, in a file of its own.
    pub fn continued(path: &Path, events: Vec<Event>) -> std::io::Result<Self> {
        let history = Self::create(path)?;
        {
            let mut inner = history.lock();
            // Beyond all that the other one gave: an event takes a few numbers at most.
            inner.last_number = (events.len() as u64) << 20;
            inner.events = events;
        }
        Ok(history)
    }

    fn lock(&self) -> MutexGuard<'_, Inner> {
        self.inner.lock().expect("nobody panics with the history in hand")
    }

    pub fn record(&self, event: Event) {
        let mut inner = self.lock();
        let moment = inner.events.len();
        writeln!(inner.file, "{moment} {event:?}").expect("the history can be written");
        inner.events.push(event);
    }

    /// Something that must not happen has happened.
    pub fn unexpected(&self, what: impl Into<String>) {
        self.record(Event::Unexpected(what.into()));
    }

    /// This moment: all that was recorded so far has a lower index.
    pub fn now(&self) -> Moment {
        self.lock().events.len()
    }

    /// A number that was not given before: for messages, attempts, calls and sessions.
    pub fn number(&self) -> u64 {
        let mut inner = self.lock();
        inner.last_number += 1;
        inner.last_number
    }

    /// Notes the reason of an error that a client was told.
    pub fn told(&self, reason: &str) {
        let mut inner = self.lock();
        if !inner.reasons.contains(reason) {
            inner.reasons.insert(reason.to_owned());
        }
    }

    /// Whether some client was told this reason.
    pub fn was_told(&self, reason: &str) -> bool {
        self.lock().reasons.contains(reason)
    }

    /// All that was recorded so far; the file has it too then.
    pub fn events(&self) -> Vec<Event> {
        let mut inner = self.lock();
        inner.file.flush().expect("the history can be written");
        inner.events.clone()
    }
}

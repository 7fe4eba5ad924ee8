//! Finding messages in the log and reading them, off the broker's thread.
//!
//! What is read for somebody outside has its memory taken before ([`crate::admission::Outflow`]); what the broker reads
//! for itself waits for its turn ([`super::own`]).

use std::sync::Arc;

use tokio::sync::mpsc::UnboundedSender;
use tokio::sync::{OwnedSemaphorePermit, Semaphore};

use super::api::{ConsumerId, Fetched, Reply, StoredMessage};
use super::follow::PageRead;
use super::recall::RefsDone;
use crate::admission::Permit;
use crate::core::consume::Handed;
use crate::drill;
use crate::host::Host;
use crate::ids::{Offset, QueueId, SubscriptionId, Uid};
use crate::log::{Index, Piece, ReadError, ReadMessage, ReadRoom, Reader, RunRead};

/// Reads at one time: enough to keep a cold disk busy. Each thread that reads keeps some of the memory that it used, so
/// there are no more.
const READS_AT_ONCE: usize = 12;

/// The threads that read, a few at a time; the rest waits in order.
pub struct Readers {
    host: Arc<dyn Host>,
    done: UnboundedSender<Done>,
    places: Arc<Semaphore>,
}

impl Readers {
    pub fn new(host: Arc<dyn Host>, done: UnboundedSender<Done>) -> Self {
        Self { host, done, places: Arc::new(Semaphore::new(READS_AT_ONCE)) }
    }

    /// Reads on one of the threads.
    pub fn run(&self, read: impl FnOnce() + Send + 'static) {
        let alarm = Alarm(self.done.clone());
        let read = |place: OwnedSemaphorePermit| {
            Box::new(move || {
                // Who waits for the read would wait for ever.
                let _alarm = alarm;
                drill::point("read");
                read();
                drop(place);
            })
        };
        match self.places.clone().try_acquire_owned() {
            Ok(place) => self.host.spawn_blocking(read(place)),
            Err(_) => {
                let (host, places) = (self.host.clone(), self.places.clone());
                tokio::spawn(async move {
                    let place = places.acquire_owned().await.expect("the semaphore is never closed");
                    host.spawn_blocking(read(place));
                });
            }
        }
    }
}

/// Tells that a read has panicked, when dropped by the panic.
struct Alarm(UnboundedSender<Done>);

impl Drop for Alarm {
    fn drop(&mut self) {
        if std::thread::panicking() {
            // The broker may have ended.
            let _ = self.0.send(Done::Panicked);
        }
    }
}

/// Where messages are found and read.
pub struct Source {
    pub index: Index,
    pub reader: Reader,
}

/// Which messages, and how much of them.
pub struct Wanted {
    pub queue: QueueId,
    pub queue_uid: Uid,
    /// Ascending, at least one.
    pub offsets: Vec<Offset>,
    pub room: ReadRoom,
}

/// Why a read was made.
pub enum Purpose {
    Deliver { consumer: ConsumerId, subscription: SubscriptionId, handed: Vec<Handed>, memory: Permit },
    Peek { peek: Peek, count: u64, memory: Permit, reply: Reply<Fetched<Vec<StoredMessage>>> },
    GiveUp { subscription: SubscriptionId, memory: Permit },
}

/// What a peek asks for.
#[derive(Clone, Copy, Debug)]
pub struct Peek {
    pub from: Option<Offset>,
    pub messages_max: u32,
    pub bytes_max: u64,
}

/// What the task is told of its reads.
pub enum Done {
    Messages(ReadDone),
    Refs(RefsDone),
    Page(PageRead),
    /// A consumer that waited for memory has it.
    Memory(ConsumerId, Permit),
    /// A read did not come to its end: nor can the broker go on.
    Panicked,
}

/// A finished read of messages.
pub struct ReadDone {
    pub queue: QueueId,
    pub purpose: Purpose,
    pub found: Found,
}

/// What a read brought.
#[derive(Debug, Default)]
pub struct Found {
    /// In order of offset.
    pub messages: Vec<StoredMessage>,
    /// Messages that are on disk no more as they were written; logged.
    pub damaged: Vec<Offset>,
    /// A message that the log does not have: lost if it still waits, else its space was given back meanwhile. None
    /// behind it was looked for.
    pub missing: Option<(Offset, ReadError)>,
    /// Bytes of the first message, if there was no room for it: then none was read.
    pub too_large: Option<u64>,
}

/// Reads what is wanted. If a segment has gone between finding and reading, its messages are looked for once more.
pub fn read(source: &Source, wanted: &Wanted) -> Found {
    let mut reading = Reading { source, wanted, left: wanted.room.bytes_max, found: Found::default() };
    if let Some(rest) = reading.pass(&wanted.offsets, true) {
        reading.pass(rest, false);
    }
    reading.found
}

struct Reading<'a> {
    source: &'a Source,
    wanted: &'a Wanted,
    left: u64,
    found: Found,
}

impl<'a> Reading<'a> {
    /// Finds and reads these; the rest if a segment has gone and there is `another` try.
    fn pass(&mut self, offsets: &'a [Offset], another: bool) -> Option<&'a [Offset]> {
        let plan = match self.source.index.plan(self.wanted.queue, offsets, self.left) {
            Ok(plan) => plan,
            Err(error) if another && error.is_gone() => return Some(offsets),
            Err(error) => {
                self.found.missing = Some((offsets[0], error));
                return None;
            }
        };
        let mut rest = offsets;
        let mut reading = self.source.reader.read_plan(&plan);
        while let Some((piece, run)) = reading.next(self.room()) {
            match run {
                Ok(run) => {
                    if !self.take(run, piece) {
                        return None;
                    }
                }
                Err(error) if another && error.is_gone() => return Some(rest),
                Err(error) => self.lose(piece, &error),
            }
            rest = &rest[piece.count as usize..];
        }
        None
    }

    /// For the next piece.
    fn room(&self) -> ReadRoom {
        match self.found.messages.is_empty() {
            true => ReadRoom { bytes_max: self.left, ..self.wanted.room },
            false => ReadRoom { bytes_max: self.left, first_max: self.left },
        }
    }

    /// Takes what was read of a piece; whether there is room for more.
    fn take(&mut self, run: RunRead, piece: &Piece) -> bool {
        let queue = self.wanted.queue;
        for offset in &run.damaged {
            tracing::error!(%queue, %offset, location = ?piece.location, "a message fails its checksum");
        }
        self.found.damaged.extend(run.damaged);
        if self.found.messages.is_empty() {
            self.found.too_large = run.too_large;
        }
        let bytes: u64 = run.messages.iter().map(|m| (m.meta.len() + m.body.len()) as u64).sum();
        self.left = self.left.saturating_sub(bytes);
        let queue_uid = self.wanted.queue_uid;
        self.found.messages.extend(run.messages.into_iter().map(|message| stored(queue_uid, message)));
        run.complete && self.left > 0
    }

    fn lose(&mut self, piece: &Piece, error: &ReadError) {
        let (queue, first_offset, count) = (self.wanted.queue, piece.first_offset, piece.count);
        tracing::error!(%queue, %first_offset, count, %error, "messages cannot be read");
        self.found.damaged.extend((0..count.into()).map(|index| first_offset.plus(index)));
    }
}

fn stored(queue_uid: Uid, message: ReadMessage) -> StoredMessage {
    let ReadMessage { offset, lane, publish_time_us, meta, body } = message;
    StoredMessage { queue_uid, offset, lane, publish_time_us, meta, body }
}

//! What the tests share: records, a log whose events are collected, and what a log is expected to hold.

use std::sync::mpsc::{Receiver, channel};
use std::time::Duration;

use bytes::Bytes;

use super::super::*;
use crate::disk::{Disk, RealDisk};
use crate::record::{Body, Kind, Lane, MessageRun, StoredParts};

pub const QUEUE: QueueId = QueueId(9);
pub const SEGMENT_BYTES: u64 = 256 << 10;

pub fn options() -> LogOptions {
    LogOptions { segment_bytes: SEGMENT_BYTES, wall_time_us: 1_000_000 }
}

/// A run of `count` messages of `size` bytes each, at `first`; each body begins with its offset.
pub fn run(first: u64, count: u64, size: usize) -> Record {
    run_of(QUEUE, first, count, size)
}

/// The same of any queue.
pub fn run_of(queue: QueueId, first: u64, count: u64, size: usize) -> Record {
    let message = |offset: u64| StoredParts { meta: Bytes::from_static(b""), body: body(offset, size) };
    Record {
        kind: Kind::Publish,
        flags: 0,
        queue,
        offset: Offset(first),
        headers: Vec::new(),
        body: Body::Run(MessageRun {
            lane: Lane { priority: 4, bucket: 1 },
            publish_time_us: 1_000 + first,
            messages: (first..first + count).map(message).collect(),
        }),
    }
}

pub fn body(offset: u64, size: usize) -> Bytes {
    let mut body: Vec<u8> = offset.to_le_bytes().to_vec();
    body.resize(size.max(8), offset as u8);
    body.into()
}

pub fn plain(kind: Kind, body: &[u8]) -> Record {
    Record {
        kind,
        flags: 0,
        queue: QUEUE,
        offset: Offset(0),
        headers: Vec::new(),
        body: Body::Plain(body.to_vec()),
    }
}

/// What a state machine was given.
#[derive(Default)]
struct Seen {
    restored: Option<Vec<u8>>,
    replayed: Vec<Placed>,
}

impl StateMachine for Seen {
    fn restore(&mut self, image: Image) -> Result<(), LogError> {
        assert!(self.restored.is_none() && self.replayed.is_empty(), "a checkpoint comes first");
        self.restored = Some(image.head().to_vec());
        Ok(())
    }

    fn apply(&mut self, record: Replayed<'_>) -> Result<(), ReplayError> {
        self.replayed.extend(record.placed());
        Ok(())
    }
}

/// A log under test.
pub struct Harness {
    pub log: Log,
    pub events: Receiver<LogEvent>,
    /// The state of the checkpoint that opening began from.
    pub restored: Option<Vec<u8>>,
    /// Runs that opening found.
    pub replayed: Vec<Placed>,
    /// What the log said last of its room, seen while waiting for something else.
    pub room: Option<Room>,
    next: u64,
}

pub fn try_open(disk: Arc<dyn Disk>, options: LogOptions) -> Result<Harness, LogError> {
    let (send, events) = channel();
    let mut seen = Seen::default();
    let log = open(
        disk,
        options,
        &mut seen,
        Arc::new(move |event| {
            let _ = send.send(event);
        }),
    )?;
    let Seen { restored, replayed } = seen;
    // Tickets go up from start to start.
    let next = log.report().next_lsn.0;
    Ok(Harness { log, events, restored, replayed, room: None, next })
}

pub fn open_dir(dir: &std::path::Path) -> Result<Harness, LogError> {
    try_open(Arc::new(RealDisk::new(dir)), options())
}

impl Harness {
    /// Submits a batch without waiting; its ticket.
    pub fn submit(&mut self, records: Vec<Record>) -> Ticket {
        let ticket = Ticket(self.next);
        self.next += 1;
        self.log.submit(Batch { records, ticket, log_time_us: 10 * ticket.0 });
        ticket
    }

    /// Waits until `ticket` is committed; what was placed meanwhile.
    pub fn wait(&mut self, ticket: Ticket) -> Result<Vec<Placed>, LogError> {
        let mut all = Vec::new();
        loop {
            match self.events.recv_timeout(Duration::from_secs(20)).expect("the log reports") {
                LogEvent::Committed { through, placed, .. } => {
                    all.extend(placed);
                    if through >= ticket {
                        return Ok(all);
                    }
                }
                LogEvent::Failed(error) => return Err(error),
                LogEvent::Room(room) => self.room = Some(room),
                _ => {}
            }
        }
    }

    /// Takes a checkpoint with this state, in which messages from `first` on are live.
    pub fn checkpoint(&mut self, state: &[u8], first: u64) -> Result<bool, LogError> {
        self.checkpoint_where(state, Arc::new(move |_, end| end > Offset(first)))
    }

    /// Takes a checkpoint with this state, in which the messages are live that `live` says.
    pub fn checkpoint_where(&mut self, state: &[u8], live: Live) -> Result<bool, LogError> {
        let ticket = Ticket(self.next);
        self.next += 1;
        self.log.mark(ticket);
        loop {
            match self.events.recv_timeout(Duration::from_secs(20)).expect("the log reports") {
                LogEvent::Marked(mark) => {
                    let live = live.clone();
                    let (head, parts) = (state.to_vec(), Parts::default());
                    self.log.checkpoint(Checkpoint { mark, head, parts, live });
                }
                LogEvent::CheckpointEnded(end) => return Ok(end == CheckpointEnd::Written),
                LogEvent::Failed(error) => return Err(error),
                LogEvent::Room(room) => self.room = Some(room),
                _ => {}
            }
        }
    }

    /// Commits one batch.
    pub fn commit(&mut self, records: Vec<Record>) -> Vec<Placed> {
        let ticket = self.submit(records);
        self.wait(ticket).unwrap()
    }

    /// Commits single messages of `size` bytes at the offsets `from..to`, each in a frame of its own.
    pub fn publish(&mut self, from: u64, to: u64, size: usize) {
        for offset in from..to {
            self.commit(vec![run(offset, 1, size)]);
        }
    }

    /// Where a message lies, if the index has it: its run, and its place in there.
    pub fn find(&self, offset: u64) -> Option<(Location, u32)> {
        match self.log.index().plan(QUEUE, &[Offset(offset)], 0) {
            Ok(plan) => Some((plan.pieces[0].location, plan.pieces[0].first)),
            Err(ReadError::NotIndexed { .. }) => None,
            Err(error) => panic!("{error}"),
        }
    }

    /// Reads every message from 0 to `end` by the index, and compares.
    pub fn assert_holds(&self, end: u64, size: usize) {
        assert_eq!(self.find(end), None);
        (0..end).for_each(|offset| self.assert_has(offset, size));
    }

    /// Reads one message by the index, and compares.
    pub fn assert_has(&self, offset: u64, size: usize) {
        let (location, place) = self.find(offset).expect("the message is there");
        let read = self.log.reader().read(location, place, 1, u64::MAX).unwrap();
        assert_eq!((read.queue, read.damaged.len(), read.complete), (QUEUE, 0, true));
        assert_eq!(read.messages[0].offset, Offset(offset));
        assert_eq!(read.messages[0].body, body(offset, size));
    }
}

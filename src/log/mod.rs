//! The log: one stream of records per shard, made durable by one thread.
//!
//! # Contract
//! - A batch is committed whole or not at all, in order of submission, and reported only after `fdatasync`.
//! - The first write or sync that fails stops writing for good; nothing after it is reported committed.
//! - Opening replays every record of every reported batch in order, and maybe of batches after them whose report was
//!   never given; or it refuses, with a typed error, having changed nothing. Only what is damaged before the end is
//!   left out, and each hole is reported: see [`salvage`].
//! - Nothing is deleted because it could not be read: such bytes are kept in `quarantine/`.
//!
//! # Layout
//! All numbers are little-endian. A data directory is described in [`directory`], records in
//! [`crate::record::envelope`], the log's own records in [`system`].
//!
//! **Segment** `log/%020d.seg`: a file of fixed length; a header of 4,096 bytes, then frames. What stands behind the
//! last frame may be of the file's earlier life as another segment: see [`supply`].
//! ```text
//!   0 magic "FOREBAYS"                    48 node uid of the run that began it, 16 bytes
//!   8 format version u32 (1)              64 shard u32, then 4 bytes of 0
//!  12 crc u32: CRC-32/IEEE over the       72 epoch u64
//!     block without these four bytes      80 segment number u64
//!  16 features to ignore u64              88 salt u64: secret, see [`segment`]
//!  24 features to refuse u64              96 LSN of the first record u64
//!  32 cluster uid, 16 bytes              104 encryption key id, 32 bytes (0: none); 0 to the end
//! ```
//! Magic, version and crc stay where they are in every version.
//!
//! **Frame**, one group commit: begins at a multiple of 4,096, has at most 16 MiB and never leaves its segment. Its
//! last 80 bytes, right before a multiple of 4,096, are its header again; between them and the payload are zeroes.
//! ```text
//!   0 crc u32: salted, over 4..80         24 LSN of its first record u64
//!   4 magic "FBfr"                        32 epoch u64, never falling
//!   8 payload crc u32: salted             40 segment number u64
//!  12 payload length u32, not 0           48 sequence u64: counts all frames of the log from 0
//!  16 records u32, not 0                  56 log time u64: the monotonic clock, microseconds
//!  20 crc of the frame before it u32      64 16 bytes of 0
//!     (its bytes 0..4; 0 in the first)    80 payload: the records, back to back
//! ```
//! A salted checksum is the CRC-32/IEEE of the salt (8 bytes) followed by the bytes. Payloads are written by clients
//! who do not know the salt, so they can contain no frame that passes; still, only the chain is followed.
//!
//! **Index file** `%020d.idx` beside each sealed or packed segment: see [`index`]. It can be made again at any time.
//!
//! # The segment set
//! Segment 1 lists itself in its first frame. Every later one is named by a `SegmentAdded` record, which is durable
//! after the file's name is and before anything is written into the file. The last block of a segment stays free
//! until the next is listed. The chain goes on in the next listed segment where the current one has no good frame.
//! Numbers are not reused.
//!
//! # The end
//! See [`ending`]. After opening, the last good frame is written again and synced, and a `ServerStarted` record
//! follows. After 10 ms without work, and at a clean close, a frame with a `NoOp` record follows the last batch.
//!
//! # The beginning
//! A start reads from the newest [`checkpoint`] on. [`keeper`] says how segments leave, [`reclaim`] how what is still
//! needed of them is moved into [`packed`] ones.

mod ahead;
mod assemble;
mod checkpoint;
mod counters;
mod directory;
mod ending;
mod error;
mod frame;
mod index;
pub mod inspect;
mod keeper;
mod open;
mod packed;
mod reader;
mod reclaim;
mod recovery;
mod reserve;
mod salvage;
mod segment;
mod set;
mod spare;
mod supply;
mod system;
mod tail;
mod window;
mod writer;

use std::path::{Path, PathBuf};
use std::sync::Arc;

pub use checkpoint::{CheckpointFault, Image, Mark, Parts};
pub use counters::{Counter, LogCounters};
pub use directory::{DirectoryError, Identity};
pub use ending::Torn;
pub use error::{FrameFault, LogError, ReplayError};
pub use index::{Index, IndexState, Piece, Plan};
pub use keeper::{Checkpoint, Live};
pub use open::{open, open_on};
pub use reader::{PlanRead, ReadError, ReadMessage, ReadRoom, Reader, RunRead};
pub use salvage::Damage;
pub use system::{SegmentAdded, ServerStarted};
pub use tail::Room;

use crate::host::Thread;
use crate::ids::{Lsn, Offset, QueueId, SegmentNumber, Ticket, Uid};
use crate::record::envelope::encoded_len;
use crate::record::{Record, RecordHead};
use directory::Directory;
use keeper::{Job, Keeper};
use segment::{SEGMENT_BYTES_MAX, SEGMENT_BYTES_MIN};
use spare::Closer;
use writer::{Ending, Inbox, Queued};

/// Length of a segment's file unless asked otherwise, in bytes.
pub const SEGMENT_BYTES_DEFAULT: u64 = 64 << 20;

/// How to open a log.
#[derive(Clone, Copy, Debug)]
pub struct LogOptions {
    /// Length of new segments: 256 KiB to 1 GiB, a multiple of 4,096.
    pub segment_bytes: u64,
    /// Wall time of the start, microseconds since the Unix epoch.
    pub wall_time_us: u64,
}

impl LogOptions {
    /// The defaults, for a start at this wall time.
    pub fn new(wall_time_us: u64) -> Self {
        Self { segment_bytes: SEGMENT_BYTES_DEFAULT, wall_time_us }
    }

    fn check(&self) -> Result<(), LogError> {
        let value = self.segment_bytes;
        if (SEGMENT_BYTES_MIN..=SEGMENT_BYTES_MAX).contains(&value)
            && value.is_multiple_of(frame::FRAME_ALIGN)
        {
            return Ok(());
        }
        let rule = "it must be a multiple of 4096 from 256 KiB to 1 GiB";
        Err(LogError::Options { option: "segment_bytes", value, rule })
    }
}

/// Where one record lies.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Location {
    pub segment: SegmentNumber,
    /// Of its first byte in the segment's file.
    pub position: u64,
    pub length: u32,
}

/// A run of messages and where it went. A plain record that is to be found again
/// ([`is_indexed`](crate::record::Kind::is_indexed)) counts as a run of one.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Placed {
    pub queue: QueueId,
    pub first_offset: Offset,
    pub count: u32,
    /// Bytes of its messages, metadata and bodies; of the body of a plain record.
    pub bytes: u64,
    /// 0 for a plain record.
    pub publish_time_us: u64,
    pub location: Location,
}

impl Placed {
    /// The run whose record has this head, if it is one, and lies there.
    fn of(head: &RecordHead<'_>, location: Location) -> Option<Self> {
        let (count, bytes, publish_time_us) = match head.run() {
            Some(run) => (run.count, u64::from(head.length - head.head_len), run.publish_time_us),
            None if head.kind.is_indexed() => (1, head.body.len() as u64, 0),
            None => return None,
        };
        let (queue, first_offset) = (head.queue, head.offset);
        Some(Self { queue, first_offset, count, bytes, publish_time_us, location })
    }
}

/// Records that are committed together.
#[derive(Clone, Debug)]
pub struct Batch {
    pub records: Vec<Record>,
    pub ticket: Ticket,
    /// The log's clock, microseconds; a value below an earlier one counts as that one.
    pub log_time_us: u64,
}

impl Batch {
    /// Bytes that the records take in the log; at most [`Log::batch_bytes_max`].
    pub fn bytes(&self) -> u64 {
        self.records.iter().map(|record| encoded_len(record) as u64).sum()
    }
}

/// What the log reports, from its own thread.
#[derive(Clone, Debug)]
pub enum LogEvent {
    /// Every batch up to `through` is durable; the runs of those not reported before, in order of submission.
    /// The batches come back for whoever made them to drop: memory that one thread takes and another one frees has both
    /// wait for the allocator's lock, message by message.
    Committed { through: Ticket, placed: Vec<Placed>, batches: Vec<Batch> },
    /// The place that [`Log::mark`] asked for; every batch submitted before is durable.
    Marked(Mark),
    /// A segment was begun: time for a checkpoint.
    SegmentBegun,
    /// How much may still be written has changed; at first it is ample.
    Room(Room),
    /// The checkpoint given last is done.
    CheckpointEnded(CheckpointEnd),
    /// The log has stopped for good; nothing is reported after this.
    Failed(LogError),
}

/// What has become of a checkpoint.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum CheckpointEnd {
    Written,
    /// It was not written: the disk is full.
    NoSpace,
    /// It is of no use, as files that it goes on from are damaged: the next one needs all parts.
    AllNeeded,
}

/// Takes the log's reports, on its threads.
pub type OnEvent = Arc<dyn Fn(LogEvent) + Send + Sync>;

/// What is built on the records.
pub trait StateMachine {
    /// Becomes what it was at a checkpoint: its head, and all its parts that are there. Called once at most, before any
    /// record.
    ///
    /// # Errors
    /// [`Image::refusal`], or what kept the image from being read.
    fn restore(&mut self, image: Image) -> Result<(), LogError>;
    /// Takes the next record.
    fn apply(&mut self, record: Replayed<'_>) -> Result<(), ReplayError>;
}

/// A record of the log, while it is opened.
#[derive(Clone, Copy, Debug)]
pub struct Replayed<'a> {
    /// All of a plain record; a run without its messages.
    pub head: RecordHead<'a>,
    pub location: Location,
    /// The log's clock when it was committed, microseconds.
    pub log_time_us: u64,
    /// Records before it were lost to damage, or others of its frame were.
    pub after_damage: bool,
}

impl Replayed<'_> {
    /// The run, if the record is one or counts as one, for the [`Index`].
    pub fn placed(&self) -> Option<Placed> {
        Placed::of(&self.head, self.location)
    }
}

/// What opening found and did.
#[derive(Clone, Debug, Default)]
pub struct OpenReport {
    /// Counts the starts on this data directory, from 1.
    pub incarnation: u32,
    /// Names this run.
    pub node: Uid,
    /// The data directory was new.
    pub fresh: bool,
    /// The log's clock at its last frame, microseconds.
    pub last_log_time_us: u64,
    /// LSN of the next record that was to come before this start's own.
    pub next_lsn: Lsn,
    /// Records replayed; frames, bytes and segments read for that.
    pub records: u64,
    pub frames: u64,
    pub bytes_read: u64,
    pub segments_read: u64,
    /// Segments of the log, blank ones too.
    pub segments: u64,
    /// The LSN of the checkpoint that it began from.
    pub checkpoint: Option<Lsn>,
    /// What was cut off the end of the log: one piece at most, unless the disk loses writes.
    pub torn: Vec<Torn>,
    /// What could not be read before the end of the log.
    pub damage: Vec<Damage>,
    /// Segment files that were not of the log, and damaged checkpoints, where they are now.
    pub set_aside: Vec<PathBuf>,
    /// Segments of the log whose files are missing: what they held is lost.
    pub missing: Vec<SegmentNumber>,
}

/// An open log. Dropping it stops after the frame under way, as a crash would; see [`Log::close`].
pub struct Log {
    inbox: Arc<Inbox>,
    thread: Option<Thread>,
    closer: Closer,
    keeper: Keeper,
    index: Index,
    reader: Reader,
    report: OpenReport,
    counters: Arc<LogCounters>,
    batch_bytes_max: u64,
    data_dir: PathBuf,
    free_bytes_wanted: u64,
    // Last: the lock is held until the threads have ended.
    directory: Directory,
}

impl Log {
    /// Queues a batch for the next frame; never waits for the disk. Dropped if the log has failed, which was or will
    /// be reported. More than [`Log::batch_bytes_max`] bytes are a bug.
    pub fn submit(&self, batch: Batch) {
        let bytes = batch.bytes();
        assert!(bytes <= self.batch_bytes_max, "a batch fits one frame");
        self.inbox.push(Queued { batch, bytes, mark: false });
    }

    /// Asks for the place behind everything submitted so far, which is reported with this ticket.
    pub fn mark(&self, ticket: Ticket) {
        let batch = Batch { records: Vec::new(), ticket, log_time_us: 0 };
        self.inbox.push(Queued { batch, bytes: 0, mark: true });
    }

    /// Writes a checkpoint in the background, then takes out segments that nothing needs any more; its end is
    /// reported.
    pub fn checkpoint(&self, checkpoint: Checkpoint) {
        self.keeper.give(Job::Checkpoint(Box::new(checkpoint)));
    }

    /// Where messages lie.
    pub fn index(&self) -> Index {
        self.index.clone()
    }

    /// Reads messages that are committed.
    pub fn reader(&self) -> Reader {
        self.reader.clone()
    }

    /// Most bytes that the records of one batch may take in the log.
    pub fn batch_bytes_max(&self) -> u64 {
        self.batch_bytes_max
    }

    pub fn data_dir(&self) -> &Path {
        &self.data_dir
    }

    /// With about so much free space a full disk is full no more.
    pub fn free_bytes_wanted(&self) -> u64 {
        self.free_bytes_wanted
    }

    pub fn report(&self) -> &OpenReport {
        &self.report
    }

    pub fn identity(&self) -> &Identity {
        &self.directory.identity
    }

    pub fn counters(&self) -> Arc<LogCounters> {
        self.counters.clone()
    }

    /// Why the log has stopped, if it has.
    pub fn failure(&self) -> Option<LogError> {
        self.inbox.failure()
    }

    /// From now on the log fails where it would have to wait for space.
    pub fn wait_no_more(&self) {
        self.closer.close();
    }

    /// Commits what was submitted, ends the log with an empty frame, and waits for all that.
    pub fn close(mut self) -> Result<(), LogError> {
        self.end(Ending::Close);
        self.failure().map_or(Ok(()), Err)
    }

    fn end(&mut self, ending: Ending) {
        if let Some(thread) = self.thread.take() {
            self.inbox.end(ending);
            self.closer.close();
            // A panic of the thread was reported as a failure.
            thread.join();
            if ending == Ending::Abandon || self.failure().is_some() {
                self.keeper.hurry();
            }
            self.keeper.end();
        }
    }
}

impl Drop for Log {
    fn drop(&mut self) {
        self.end(Ending::Abandon);
    }
}

#[cfg(test)]
pub(crate) mod tests;

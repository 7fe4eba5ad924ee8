//! The log: one stream of records per shard, made durable by one thread.
//!
//! # Contract
//! - A batch is committed whole or not at all, in order of submission, and reported only after `fdatasync`.
//! - The first write or sync that fails stops writing for good; nothing after it is reported committed.
//! - Opening replays every record of every reported batch in order, and maybe of batches after them whose report was
//!   never given; or it refuses, with a typed error, having changed nothing.
//! - Nothing is deleted because it could not be read: such bytes are kept in `quarantine/`.
//!
//! # Layout
//! All numbers are little-endian. A data directory is described in [`directory`], records in
//! [`crate::record::envelope`], the log's own records in [`system`].
//!
//! **Segment** `log/%020d.seg`: a file of fixed length, zero-filled; a header of 4,096 bytes, then frames.
//! ```text
//!   0 magic "FOREBAYS"                    48 node uid of the run that began it, 16 bytes
//!   8 format version u32 (1)              64 shard u32, then 4 bytes of 0
//!  12 crc u32: CRC-32/IEEE over the       72 epoch u64
//!     block without these four bytes      80 segment number u64
//!  16 features to ignore u64              88 salt u64: random and secret
//!  24 features to refuse u64              96 LSN of the first record u64
//!  32 cluster uid, 16 bytes              104 encryption key id, 32 bytes (0: none); 0 to the end
//! ```
//! Magic, version and crc stay where they are in every version.
//!
//! **Frame**, one group commit: begins at a multiple of 4,096, is padded with zeroes to the next, has at most 16 MiB
//! and never leaves its segment.
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
//! # The segment set
//! Segment 1 lists itself in its first frame. Every later one is named by a `SegmentAdded` record, which is durable
//! after the file's name is and before anything is written into the file. The last block of a segment stays free
//! until the next is listed. The chain goes on in the next listed segment where the current one has no good frame.
//! Numbers are not reused.
//!
//! # The end
//! See [`ending`]. After opening, the last good frame is written again and synced, and a `ServerStarted` record
//! follows. After 10 ms without work, and at a clean close, a frame with a `NoOp` record follows the last batch.

mod all_runs;
mod assemble;
mod counters;
mod directory;
mod ending;
mod error;
mod frame;
#[expect(dead_code, reason = "nothing uses it yet")]
mod index;
mod reader;
mod recovery;
mod segment;
mod spare;
mod system;
mod tail;
mod window;
mod writer;

use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::AtomicBool;
use std::thread::JoinHandle;

pub use all_runs::{Index, Run};
pub use counters::{Counter, LogCounters};
pub use directory::{DirectoryError, Identity};
pub use ending::Torn;
pub use error::{FrameFault, LogError, ReplayError};
pub use index::{Piece, Plan};
pub use reader::{ReadError, ReadMessage, Reader, RunRead};
pub use system::{SegmentAdded, ServerStarted};

use crate::disk::{Disk, DiskError, Operation};
use crate::ids::{Lsn, Offset, QueueId, SegmentNumber, Ticket, Uid};
use crate::record::envelope::encoded_len;
use crate::record::{Record, RecordHead};
use assemble::Assembler;
use directory::Directory;
use recovery::{Recovery, Replay};
use segment::{Blank, SEGMENT_BYTES_MAX, SEGMENT_BYTES_MIN};
use spare::SpareMaker;
use tail::{Blanks, Chain, Current, Tail};
use writer::{Ending, Inbox, Queued, Writer};

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

/// A run of messages and where it went.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Placed {
    pub queue: QueueId,
    pub first_offset: Offset,
    pub count: u32,
    /// Bytes of its messages, metadata and bodies.
    pub bytes: u64,
    pub publish_time_us: u64,
    pub location: Location,
}

impl Placed {
    /// The run whose record has this head, if it is one, and lies there.
    fn of(head: &RecordHead<'_>, location: Location) -> Option<Self> {
        let run = head.run()?;
        Some(Self {
            queue: head.queue,
            first_offset: head.offset,
            count: run.count,
            bytes: u64::from(head.length - head.head_len),
            publish_time_us: run.publish_time_us,
            location,
        })
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
    Committed { through: Ticket, placed: Vec<Placed> },
    /// The log has stopped for good; nothing is reported after this.
    Failed(LogError),
}

/// A record of the log, while it is opened.
#[derive(Clone, Copy, Debug)]
pub struct Replayed<'a> {
    /// All of a plain record; a run without its messages.
    pub head: RecordHead<'a>,
    pub location: Location,
    /// The log's clock when it was committed, microseconds.
    pub log_time_us: u64,
}

impl Replayed<'_> {
    /// The run, if the record is one, for the [`Index`].
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
    /// Replayed records, frames, and bytes read for them.
    pub records: u64,
    pub frames: u64,
    pub bytes_read: u64,
    /// Segments of the log, blank ones too.
    pub segments: u64,
    /// What was cut off the end of the log: one piece at most, unless the disk loses writes.
    pub torn: Vec<Torn>,
    /// Segment files that were not of the log, where they are now.
    pub set_aside: Vec<PathBuf>,
}

/// An open log. Dropping it stops after the frame under way, as a crash would; see [`Log::close`].
pub struct Log {
    inbox: Arc<Inbox>,
    thread: Option<JoinHandle<()>>,
    reader: Reader,
    report: OpenReport,
    counters: Arc<LogCounters>,
    batch_bytes_max: u64,
    // Last: the lock is held until the threads have ended.
    directory: Directory,
}

/// Opens the log of a data directory, making it if it is new: replays every record, then starts the writer, which
/// reports to `on_event`.
pub fn open(
    disk: Arc<dyn Disk>,
    options: LogOptions,
    replay: &mut dyn FnMut(Replayed<'_>) -> Result<(), ReplayError>,
    on_event: Box<dyn Fn(LogEvent) + Send>,
) -> Result<Log, LogError> {
    options.check()?;
    let directory = directory::take(&*disk)?;
    let mut direct = Direct { disk: &*disk, segment_bytes: options.segment_bytes, wanted: None };
    let (tail, report) = if directory.fresh {
        begin(&directory, options, &mut direct)?
    } else {
        resume(&directory, options, &mut direct, replay)?
    };
    let counters = tail.counters.clone();
    let batch_bytes_max = tail::batch_bytes_max(options.segment_bytes);
    let inbox = Arc::new(Inbox::default());
    let waker = inbox.clone();
    let no_thread = |error| DiskError::io(Operation::Open, disk.full_path("log"), error);
    let wake = Box::new(move || waker.spare_ready());
    let spares = SpareMaker::start(disk.clone(), options.segment_bytes, wake).map_err(no_thread)?;
    let gather_bytes = Writer::gather_bytes(batch_bytes_max);
    let writer = Writer { inbox: inbox.clone(), tail, spares, on_event, gather_bytes };
    let thread = std::thread::Builder::new().name("log-writer".to_owned());
    let thread = thread.spawn(move || writer.run()).map_err(no_thread)?;
    let reader = Reader::new(disk);
    Ok(Log { inbox, thread: Some(thread), reader, report, counters, batch_bytes_max, directory })
}

impl Log {
    /// Queues a batch for the next frame; never waits for the disk. Dropped if the log has failed, which was or will
    /// be reported. More than [`Log::batch_bytes_max`] bytes are a bug.
    pub fn submit(&self, batch: Batch) {
        let bytes = batch.bytes();
        assert!(bytes <= self.batch_bytes_max, "a batch fits one frame");
        self.inbox.push(Queued { batch, bytes });
    }

    /// Reads messages that are committed.
    pub fn reader(&self) -> Reader {
        self.reader.clone()
    }

    /// Most bytes that the records of one batch may take in the log.
    pub fn batch_bytes_max(&self) -> u64 {
        self.batch_bytes_max
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

    /// Commits what was submitted, ends the log with an empty frame, and waits for all that.
    pub fn close(mut self) -> Result<(), LogError> {
        self.end(Ending::Close);
        self.failure().map_or(Ok(()), Err)
    }

    fn end(&mut self, ending: Ending) {
        if let Some(thread) = self.thread.take() {
            self.inbox.end(ending);
            // A panic of the thread was reported as a failure.
            let _ = thread.join();
        }
    }
}

impl Drop for Log {
    fn drop(&mut self) {
        self.end(Ending::Abandon);
    }
}

/// Makes files where they are needed, while there is no helper yet.
struct Direct<'a> {
    disk: &'a dyn Disk,
    segment_bytes: u64,
    wanted: Option<SegmentNumber>,
}

impl Blanks for Direct<'_> {
    fn ready(&mut self) -> Result<Option<Blank>, LogError> {
        Ok(None)
    }

    fn wait(&mut self) -> Result<Blank, LogError> {
        let segment = self.wanted.expect("a file was asked for");
        let made = segment::prepare(self.disk, segment, self.segment_bytes, &AtomicBool::new(false))?;
        Ok(made.expect("nobody stops it"))
    }

    fn want(&mut self, segment: SegmentNumber) {
        self.wanted = Some(segment);
    }
}

/// A first start: makes the first segment and says that there is a log.
fn begin(
    directory: &Directory,
    options: LogOptions,
    direct: &mut Direct<'_>,
) -> Result<(Tail, OpenReport), LogError> {
    let first = SegmentNumber(1);
    direct.want(first);
    let blank = direct.wait()?;
    let listing = SegmentAdded { segment: first, bytes: blank.bytes };
    let report =
        OpenReport { incarnation: 1, node: Uid::random(), fresh: true, segments: 1, ..OpenReport::default() };
    let mut tail = Tail {
        cluster: directory.identity.cluster,
        node: report.node,
        current: Current::blank(blank),
        listed: Default::default(),
        unlisted: None,
        wanted: false,
        highest: first,
        chain: Chain { epoch: 1, ..Chain::default() },
        counters: Arc::default(),
        assembler: Assembler::default(),
    };
    tail.counters.segments.add(1);
    tail.counters.segment_bytes.add(listing.bytes);
    append_start(&mut tail, &[listing.record()], &report, options, direct)?;
    directory::finish_first_start(direct.disk)?;
    Ok((tail, report))
}

/// A later start: replays the log and makes its end firm.
fn resume(
    directory: &Directory,
    options: LogOptions,
    direct: &mut Direct<'_>,
    replay: &mut Replay<'_>,
) -> Result<(Tail, OpenReport), LogError> {
    let cluster = directory.identity.cluster;
    let (mut recovery, fault) = Recovery::run(direct.disk, cluster, replay)?;
    let ending = ending::settle(&mut recovery, fault)?;
    let report = OpenReport {
        incarnation: recovery.incarnation + 1,
        node: Uid::random(),
        fresh: false,
        last_log_time_us: recovery.chain.log_time_us,
        next_lsn: recovery.chain.lsn,
        records: recovery.records,
        frames: recovery.chain.sequence,
        bytes_read: recovery.window.bytes_read(),
        segments: recovery.known.len() as u64,
        torn: ending.torn,
        set_aside: ending.set_aside,
    };
    let mut tail = Tail {
        cluster,
        node: report.node,
        current: recovery.current,
        listed: ending.blanks.into(),
        unlisted: None,
        wanted: false,
        highest: ending.highest,
        chain: recovery.chain,
        counters: Arc::default(),
        assembler: Assembler::default(),
    };
    tail.counters.segments.add(report.segments);
    tail.counters.segment_bytes.add(recovery.segment_bytes);
    append_start(&mut tail, &[], &report, options, direct)?;
    Ok((tail, report))
}

fn append_start(
    tail: &mut Tail,
    before: &[Record],
    report: &OpenReport,
    options: LogOptions,
    direct: &mut Direct<'_>,
) -> Result<(), LogError> {
    let started = ServerStarted {
        incarnation: report.incarnation,
        node: report.node,
        wall_time_us: options.wall_time_us,
    };
    let records: Vec<Record> = before.iter().cloned().chain([started.record()]).collect();
    let bytes = records.iter().map(|record| encoded_len(record) as u64).sum();
    tail.append(records.iter(), bytes, report.last_log_time_us, direct, &mut Vec::new())
}

#[cfg(test)]
mod tests;

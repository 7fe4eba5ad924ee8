//! Reads messages back from where they lie, verifying each.
//!
//! A run's head comes first, with as much behind it as one small read brings; a second read fetches what is missing
//! of the messages that are wanted. Small runs that lie one behind the other, as the backlog of a queue does in a
//! packed segment, are brought by one read. Messages share the buffer they were read into, unless they are less than
//! half of it: then they are copied, so that what is kept of a read is at most twice what was wanted.
//!
//! How large a message is lies in its run's head, so one that is too large for its reader is told before it is read.

use std::sync::{Arc, Mutex, MutexGuard, Weak};

use bytes::Bytes;
use memmap2::MmapMut;

use super::ahead::ReadAhead;
use super::error::LogError;
use super::{Location, Piece, Plan, segment};
use crate::disk::{Disk, DiskError};
use crate::ids::{Offset, QueueId, SegmentNumber};
use crate::planted;
use crate::record::envelope::Claimed;
use crate::record::run::{RunEntry, RunHead};
use crate::record::{Lane, RecordError, RecordHead};

/// Read at first; holds the head of most runs, and all of a small one.
const FIRST_READ_BYTES: u64 = 16 << 10;
/// Most bytes of runs that are read together.
const TOGETHER_BYTES_MAX: u64 = 256 << 10;
/// From so many bytes on, what is read lies in a map of its own.
const MAPPED_BYTES_MIN: usize = 512 << 10;
/// Segments whose files are kept open.
const OPEN_FILES_MAX: usize = 64;

/// Reads from the segments of one data directory. Clones share their open files.
#[derive(Clone, Debug)]
pub struct Reader {
    inner: Arc<Inner>,
}

#[derive(Debug)]
struct Inner {
    disk: Arc<dyn Disk>,
    files: Mutex<Files>,
}

#[derive(Debug, Default)]
struct Files {
    /// Most recently used last.
    open: Vec<(SegmentNumber, Arc<ReadAhead>)>,
    /// No longer kept open here, but maybe still being read.
    let_go: Vec<(SegmentNumber, Weak<ReadAhead>)>,
}

/// A message as it was read.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ReadMessage {
    pub offset: Offset,
    pub lane: Lane,
    /// Wall time of the publish, microseconds since the Unix epoch.
    pub publish_time_us: u64,
    /// Tagged values, see [`crate::record::meta`].
    pub meta: Bytes,
    pub body: Bytes,
}

/// How much may be read, metadata and bodies.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ReadRoom {
    /// Stop before a message that would exceed this, unless it is the first.
    pub bytes_max: u64,
    /// Not even the first message may have more bytes than this.
    pub first_max: u64,
}

impl From<u64> for ReadRoom {
    /// Up to this many bytes, or one message.
    fn from(bytes_max: u64) -> Self {
        Self { bytes_max, first_max: u64::MAX }
    }
}

/// What was read of a run.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RunRead {
    pub queue: QueueId,
    /// Of the first message that was asked for.
    pub first_offset: Offset,
    /// In order of offset.
    pub messages: Vec<ReadMessage>,
    /// Messages whose bytes fail their checksum; they are not among `messages`.
    pub damaged: Vec<Offset>,
    /// Nothing that was asked for is left out for its size.
    pub complete: bool,
    /// Bytes of the first message, if that is too large: then none was read.
    pub too_large: Option<u64>,
}

/// Why a run could not be read at all.
#[derive(Clone, Debug, thiserror::Error)]
pub enum ReadError {
    #[error(transparent)]
    Disk(#[from] DiskError),
    #[error("data loss: segment {segment} is damaged at byte {position}: {why}")]
    Damaged { segment: SegmentNumber, position: u64, why: RecordError },
    #[error("segment {segment} has no messages at byte {position}")]
    NotARun { segment: SegmentNumber, position: u64 },
    #[error(
        "the run in segment {segment} at byte {position} has {count} messages; message {first} was asked for"
    )]
    OutOfRun { segment: SegmentNumber, position: u64, first: u32, count: u32 },
    #[error("data loss: message {offset} of queue {queue} is in no segment of the log")]
    NotIndexed { queue: QueueId, offset: Offset },
    #[error("the index cannot be read: {0}")]
    Index(LogError),
}

impl ReadError {
    /// Whether a file was not there: its segment may have left the log since it was looked up.
    pub fn is_gone(&self) -> bool {
        match self {
            ReadError::Disk(error) | ReadError::Index(LogError::Disk(error)) => error.is_not_found(),
            _ => false,
        }
    }
}

impl Reader {
    pub(super) fn new(disk: Arc<dyn Disk>) -> Self {
        Self { inner: Arc::new(Inner { disk, files: Mutex::default() }) }
    }

    /// Closes the files of segments that have left and lost their names: as long as one is open its space is taken.
    /// Gives those that are still being read; nobody will read the others any more.
    pub(super) fn close(&self, segments: &[SegmentNumber]) -> Vec<SegmentNumber> {
        let mut files = self.inner.lock();
        while let Some(at) = files.open.iter().position(|(segment, _)| segments.contains(segment)) {
            files.let_go(at);
        }
        let in_use = files.let_go.iter().filter(|(_, file)| file.strong_count() > 0);
        in_use.map(|(segment, _)| *segment).filter(|segment| segments.contains(segment)).collect()
    }

    /// The open file of a segment.
    pub(super) fn file(&self, segment: SegmentNumber) -> Result<Arc<ReadAhead>, DiskError> {
        self.inner.file(segment)
    }

    /// Reads `count` messages of the run at `location`, or as many as there are, from its message `first` on, as far
    /// as there is room.
    pub fn read(
        &self,
        location: Location,
        first: u32,
        count: u32,
        room: impl Into<ReadRoom>,
    ) -> Result<RunRead, ReadError> {
        let file = self.inner.file(location.segment)?;
        let head = Bytes::from(read_head(&file, location)?);
        read_run(&file, location, head, first, count, room.into())
    }

    /// Reads what is planned, piece by piece.
    pub fn read_plan<'a>(&'a self, plan: &'a Plan) -> PlanRead<'a> {
        PlanRead { reader: self, rest: &plan.pieces, together: None }
    }

    /// Reads all of the runs from `from` to `to`, which lie in one segment one behind the other.
    fn read_together(&self, from: Location, to: Location) -> Result<Together, ReadError> {
        let length = to.position + u64::from(to.length) - from.position;
        let file = self.inner.file(from.segment)?;
        let bytes = read_bytes(&file, from.position, length as usize)?;
        Ok(Together { segment: from.segment, position: from.position, bytes })
    }
}

/// Reads the pieces of a plan in order.
pub struct PlanRead<'a> {
    reader: &'a Reader,
    rest: &'a [Piece],
    together: Option<Together>,
}

/// Bytes of several runs.
struct Together {
    segment: SegmentNumber,
    position: u64,
    bytes: Bytes,
}

impl Together {
    fn get(&self, location: Location) -> Option<Bytes> {
        let from =
            location.position.checked_sub(self.position).filter(|_| location.segment == self.segment)?;
        let to = from + u64::from(location.length);
        (to <= self.bytes.len() as u64).then(|| self.bytes.slice(from as usize..to as usize))
    }
}

impl<'a> PlanRead<'a> {
    /// Reads the next piece like [`Reader::read`]; none behind the last.
    pub fn next(&mut self, room: impl Into<ReadRoom>) -> Option<(&'a Piece, Result<RunRead, ReadError>)> {
        let piece = self.rest.first()?;
        let read = self.read(piece, room.into()).and_then(|read| the_one(piece, read));
        self.rest = &self.rest[1..];
        Some((piece, read))
    }

    fn read(&mut self, piece: &Piece, room: ReadRoom) -> Result<RunRead, ReadError> {
        let Piece { location, first, count, .. } = *piece;
        if self.together.as_ref().is_none_or(|together| together.get(location).is_none()) {
            let near = count_together(self.rest);
            let all = |last: Location| self.reader.read_together(location, last).ok();
            self.together = if near > 1 { all(self.rest[near - 1].location) } else { None };
        }
        let record = self.together.as_ref().and_then(|together| together.get(location));
        // Also where they cannot be read together: that may be the fault of one of them.
        let Some(record) = record else { return self.reader.read(location, first, count, room) };
        let file = self.reader.inner.file(location.segment)?;
        read_run(&file, location, record, first, count, room)
    }
}

/// What was read, if it is what was planned: the index and the segment must agree on whose messages lie there.
fn the_one(piece: &Piece, read: RunRead) -> Result<RunRead, ReadError> {
    let agrees = (read.queue, read.first_offset) == (piece.queue, piece.first_offset);
    if agrees || planted::bug("index-trusted-over-log") {
        return Ok(read);
    }
    Err(damaged(piece.location, RecordError::Invalid { what: "its place: the index has another run there" }))
}

/// How many of the pieces are of small runs that lie one behind the other.
fn count_together(pieces: &[Piece]) -> usize {
    let start = pieces[0].location.position;
    let small = |piece: &Piece| u64::from(piece.location.length) <= FIRST_READ_BYTES;
    let follows = |pair: &&[Piece]| {
        let (before, next) = (pair[0].location, pair[1].location);
        next.segment == before.segment
            && next.position == before.position + u64::from(before.length)
            && small(&pair[1])
            && next.position + u64::from(next.length) - start <= TOGETHER_BYTES_MAX
    };
    if small(&pieces[0]) { 1 + pieces.windows(2).take_while(follows).count() } else { 1 }
}

/// Reads bytes into memory of their own. Large ones do not come from the allocator: it would keep as much for each
/// thread that reads.
fn read_bytes(file: &ReadAhead, position: u64, length: usize) -> Result<Bytes, DiskError> {
    let map = if length >= MAPPED_BYTES_MIN { MmapMut::map_anon(length).ok() } else { None };
    let Some(mut map) = map else {
        let mut bytes = vec![0; length];
        file.read_at(&mut bytes, position)?;
        return Ok(bytes.into());
    };
    file.read_at(&mut map, position)?;
    Ok(Bytes::from_owner(map))
}

/// Reads messages of the run whose record begins with `buffer`, which holds its head at least.
fn read_run(
    file: &ReadAhead,
    location: Location,
    buffer: Bytes,
    first: u32,
    count: u32,
    room: ReadRoom,
) -> Result<RunRead, ReadError> {
    let head = RecordHead::decode(&buffer).map_err(|why| damaged(location, why))?;
    if head.length != location.length {
        return Err(damaged(location, RecordError::Invalid { what: "its length" }));
    }
    let Location { segment, position, .. } = location;
    let run = head.run().ok_or(ReadError::NotARun { segment, position })?;
    if first >= run.count {
        return Err(ReadError::OutOfRun { segment, position, first, count: run.count });
    }
    let Chosen { wanted, complete, too_large } = choose(&run, first, count, room);
    let first_offset = head.offset.plus(u64::from(first));
    let (messages, damaged) = (Vec::new(), Vec::new());
    let mut read = RunRead { queue: head.queue, first_offset, messages, damaged, complete, too_large };
    let (lane, publish_time_us) = (run.lane, run.publish_time_us);
    let Some(span) = span(&wanted) else { return Ok(read) };
    let wanted_len = (span.1 - span.0) as usize;
    let (bytes, start) = if span.1 as usize <= buffer.len() {
        match 2 * wanted_len < buffer.len() {
            true => (Bytes::copy_from_slice(&buffer[span.0 as usize..span.1 as usize]), span.0),
            false => (buffer.clone(), 0),
        }
    } else {
        (read_bytes(file, position + u64::from(span.0), wanted_len)?, span.0)
    };
    for entry in wanted {
        let offset = head.offset.plus(u64::from(entry.index));
        let from = (entry.position - start) as usize;
        let message = bytes.slice(from..from + entry.len() as usize);
        if !entry.verify(&message) && !planted::bug("message-crc-ignored") {
            read.damaged.push(offset);
            continue;
        }
        let meta = message.slice(..entry.meta_len as usize);
        let body = message.slice(entry.meta_len as usize..);
        read.messages.push(ReadMessage { offset, lane, publish_time_us, meta, body });
    }
    Ok(read)
}

impl Reader {
    /// What `take` makes of the plain record at `location`.
    pub fn read_plain<T>(
        &self,
        location: Location,
        take: impl FnOnce(&RecordHead<'_>) -> T,
    ) -> Result<T, ReadError> {
        let file = self.inner.file(location.segment)?;
        let buffer = read_head(&file, location)?;
        let head = RecordHead::decode(&buffer).map_err(|why| damaged(location, why))?;
        Ok(take(&head))
    }
}

fn damaged(location: Location, why: RecordError) -> ReadError {
    ReadError::Damaged { segment: location.segment, position: location.position, why }
}

/// The record's head at least, and what one small read brings with it.
fn read_head(file: &ReadAhead, location: Location) -> Result<Vec<u8>, ReadError> {
    let length = u64::from(location.length);
    let mut buffer = vec![0; length.min(FIRST_READ_BYTES) as usize];
    file.read_at(&mut buffer, location.position)?;
    let claimed = Claimed::read(&buffer).map_err(|why| damaged(location, why))?;
    if claimed.length != location.length {
        return Err(damaged(location, RecordError::Invalid { what: "its length" }));
    }
    let have = buffer.len();
    if claimed.head_len as usize > have {
        buffer.resize(claimed.head_len as usize, 0);
        file.read_at(&mut buffer[have..], location.position + have as u64)?;
    }
    Ok(buffer)
}

/// The messages to read of a run.
struct Chosen {
    wanted: Vec<RunEntry>,
    /// They are all that was asked for.
    complete: bool,
    /// Bytes of the first one, if it is too large.
    too_large: Option<u64>,
}

fn choose(run: &RunHead<'_>, first: u32, count: u32, room: ReadRoom) -> Chosen {
    let mut chosen = Chosen { wanted: Vec::new(), complete: true, too_large: None };
    let mut bytes = 0;
    for entry in run.entries().skip(first as usize).take(count as usize) {
        let more = u64::from(entry.len());
        bytes += more;
        if chosen.wanted.is_empty() && more > room.first_max {
            return Chosen { complete: false, too_large: Some(more), ..chosen };
        }
        if bytes > room.bytes_max && !chosen.wanted.is_empty() {
            return Chosen { complete: false, ..chosen };
        }
        chosen.wanted.push(entry);
    }
    chosen
}

/// From the first byte of the first message to behind the last.
fn span(entries: &[RunEntry]) -> Option<(u32, u32)> {
    let (first, last) = (entries.first()?, entries.last()?);
    Some((first.position, last.position + last.len()))
}

impl Files {
    /// Keeps the file at `at` open no longer than it is being read.
    fn let_go(&mut self, at: usize) {
        let (segment, file) = self.open.remove(at);
        self.let_go.retain(|(_, file)| file.strong_count() > 0);
        self.let_go.push((segment, Arc::downgrade(&file)));
    }
}

impl Inner {
    fn lock(&self) -> MutexGuard<'_, Files> {
        self.files.lock().unwrap_or_else(|poisoned| poisoned.into_inner())
    }

    fn file(&self, segment: SegmentNumber) -> Result<Arc<ReadAhead>, DiskError> {
        let mut files = self.lock();
        if let Some(at) = files.open.iter().rposition(|(open, _)| *open == segment) {
            files.open[at..].rotate_left(1);
        } else {
            // Under the lock, so that a file that has lost its name is closed for good.
            let file = self.disk.open(&segment::path(segment))?;
            if files.open.len() == OPEN_FILES_MAX {
                files.let_go(0);
            }
            files.open.push((segment, Arc::new(ReadAhead::of(file))));
        }
        Ok(files.open.last().expect("one was just put there").1.clone())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::disk::RealDisk;

    #[test]
    fn files_that_are_read_are_told_though_they_are_no_longer_kept_open() {
        let dir = tempfile::tempdir().unwrap();
        let disk = Arc::new(RealDisk::new(dir.path()));
        disk.create_dir("log").unwrap();
        let segments: Vec<SegmentNumber> = (1..=OPEN_FILES_MAX as u64 + 2).map(SegmentNumber).collect();
        segments.iter().for_each(|segment| drop(disk.create(&segment::path(*segment)).unwrap()));
        let reader = Reader::new(disk);
        let held: Vec<_> = segments[..3].iter().map(|segment| reader.inner.file(*segment).unwrap()).collect();
        segments[3..].iter().for_each(|segment| drop(reader.inner.file(*segment).unwrap()));
        let kept: Vec<u64> = reader.inner.lock().open.iter().map(|(segment, _)| segment.0).collect();
        assert_eq!(kept, (3..=OPEN_FILES_MAX as u64 + 2).collect::<Vec<_>>());
        assert_eq!(reader.close(&[1, 3, 4].map(SegmentNumber)), [1, 3].map(SegmentNumber));
        drop(held);
        assert_eq!(reader.close(&segments), []);
        assert!(reader.inner.lock().open.is_empty());
    }
}

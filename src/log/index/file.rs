//! The index file of a sealed segment, `log/%020d.idx`, or of a packed one, `packed/%020d.idx`: layout, writing, reading.
//!
//! All numbers are little-endian. Blocks have 4,096 bytes. The first is the header:
//! ```text
//!   0 magic "FOREBAYX"                    32 runs u64
//!   8 format version u32 (1)              40 lowest queue with a run u64
//!  12 crc u32: CRC-32/IEEE over the       48 highest queue with a run u64
//!     block without these four bytes      56 filter of queue ids, 256 bytes (see `summary`)
//!  16 segment number u64                 312 zeroes to the end
//!  24 the segment's salt u64
//! ```
//! The runs follow, sorted by queue and offset, 102 to a block; the last block may have fewer, and every block ends
//! in zeroes:
//! ```text
//!   0 crc u32: CRC-32/IEEE over the segment's salt u64, the block's number u64 (the first with runs is 1), and the
//!     block from its byte 4 on
//!   4 runs, 40 bytes each: queue u64 | first offset u64 | publish time u64, microseconds since the Unix epoch |
//!     position u32 | length u32 | messages u32 | bytes of messages u32
//! ```
//! Invariants: every bit of a file is covered by a checksum, and its length follows from its header. The salt ties
//! the file to its segment. The content follows from the segment's records alone. A file appears under its name whole
//! and synced; that the name is durable is not waited for, because the file can be made again.

use std::io::IoSlice;

use super::memory::{Probe, Run};
use super::summary::{FILTER_BYTES, Summary};
use crate::disk::{Disk, DiskError, DiskFile, Mapped};
use crate::ids::{Offset, QueueId, SegmentNumber};
pub use crate::log::segment::index_path as path;
use crate::planted;
use crate::record::wire::{Put, Reader, WireError};

/// Bytes of every block.
pub const BLOCK_BYTES: usize = 4096;
/// Bytes of a run.
pub const ENTRY_BYTES: usize = 40;
/// Runs in a full block.
pub const ENTRIES_PER_BLOCK: usize = (BLOCK_BYTES - ENTRIES_AT) / ENTRY_BYTES;

const MAGIC: [u8; 8] = *b"FOREBAYX";
const VERSION: u32 = 1;
const CRC_AT: usize = 12;
const ENTRIES_AT: usize = 4;
/// Written and synced at a time, so that commits never wait behind a whole file of dirty pages.
const WRITE_BYTES: usize = 1 << 20;

/// Why an index file cannot be used; the segment can.
#[derive(Clone, Debug, thiserror::Error)]
pub enum FileFault {
    #[error(transparent)]
    Disk(#[from] DiskError),
    #[error("the header is damaged, or of another format")]
    Header,
    #[error("the file is of another segment")]
    Stale,
    #[error("the file has {found} bytes instead of {expected}")]
    Length { found: u64, expected: u64 },
    #[error("block {number} fails its checksum")]
    Block { number: u64 },
}

impl FileFault {
    /// Where the damaged part begins in the file.
    pub fn position(&self) -> u64 {
        match self {
            Self::Block { number } => number * BLOCK_BYTES as u64,
            Self::Disk(_) | Self::Header | Self::Stale | Self::Length { .. } => 0,
        }
    }
}

impl From<WireError> for FileFault {
    fn from(_: WireError) -> Self {
        FileFault::Header
    }
}

fn temp_path(segment: SegmentNumber) -> String {
    format!("{}.tmp", path(segment))
}

/// Whether a name in `log/` or `packed/` is of an index file that was not finished.
pub fn is_temp_name(name: &str) -> bool {
    let digits = name.strip_suffix(".idx.tmp");
    digits.is_some_and(|digits| digits.len() == 20 && digits.bytes().all(|byte| byte.is_ascii_digit()))
}

/// Makes the index file of the segment that `summary` describes, in place of any that is there, of its runs sorted by
/// queue and offset. Leaves nothing new behind on failure, as far as the disk lets it.
pub fn write(
    disk: &dyn Disk,
    summary: &Summary,
    runs: impl Iterator<Item = (QueueId, Run)>,
) -> Result<(), DiskError> {
    let temp = temp_path(summary.segment);
    if disk.exists(&temp)? {
        disk.remove(&temp)?;
    }
    let file = disk.create(&temp)?;
    if let Err(error) = write_blocks(&*file, summary, runs) {
        // The first error counts; on a full disk the space must not stay taken.
        let _ = disk.remove(&temp);
        return Err(error);
    }
    disk.rename(&temp, &path(summary.segment))
}

/// Makes the index file of a segment from its runs, sorted by queue and offset.
pub fn write_sorted(
    disk: &dyn Disk,
    segment: SegmentNumber,
    salt: u64,
    runs: &[(QueueId, Run)],
) -> Result<(), DiskError> {
    let queues = runs.chunk_by(|(a, _), (b, _)| a == b).map(|chunk| chunk[0].0);
    let summary = Summary::new(segment, salt, runs.len(), queues);
    write(disk, &summary, runs.iter().copied())
}

fn write_blocks(
    file: &dyn DiskFile,
    summary: &Summary,
    runs: impl Iterator<Item = (QueueId, Run)>,
) -> Result<(), DiskError> {
    let mut piece = Vec::with_capacity(WRITE_BYTES.min(file_len(summary.runs) as usize));
    let mut position = 0;
    let mut flush = |piece: &mut Vec<u8>| {
        file.write_at(&mut [IoSlice::new(piece)], position)?;
        position += piece.len() as u64;
        piece.clear();
        file.sync_data()
    };
    encode_header(summary, &mut piece);
    let mut entries = runs.peekable();
    let mut number = 1;
    while entries.peek().is_some() {
        if piece.len() + BLOCK_BYTES > WRITE_BYTES {
            flush(&mut piece)?;
        }
        encode_block(summary.salt, number, entries.by_ref().take(ENTRIES_PER_BLOCK), &mut piece);
        number += 1;
    }
    flush(&mut piece)
}

/// Bytes of a file with this many runs; of more than any file has, a length that none has.
fn file_len(runs: u64) -> u64 {
    (BLOCK_BYTES as u64).saturating_mul(1 + runs.div_ceil(ENTRIES_PER_BLOCK as u64))
}

fn encode_header(summary: &Summary, out: &mut Vec<u8>) {
    let start = out.len();
    out.extend_from_slice(&MAGIC);
    out.put_u32(VERSION);
    out.put_u32(0);
    out.put_u64(summary.segment.0);
    out.put_u64(summary.salt);
    out.put_u64(summary.runs);
    out.put_u64(summary.lowest.0);
    out.put_u64(summary.highest.0);
    out.extend_from_slice(&summary.filter);
    out.resize(start + BLOCK_BYTES, 0);
    let crc = header_crc(&out[start..]);
    out[start + CRC_AT..start + CRC_AT + 4].copy_from_slice(&crc.to_le_bytes());
}

fn header_crc(block: &[u8]) -> u32 {
    let mut hasher = crc32fast::Hasher::new();
    hasher.update(&block[..CRC_AT]);
    hasher.update(&block[CRC_AT + 4..]);
    hasher.finalize()
}

fn encode_block(salt: u64, number: u64, entries: impl Iterator<Item = (QueueId, Run)>, out: &mut Vec<u8>) {
    let start = out.len();
    out.put_u32(0);
    for (queue, run) in entries {
        out.put_u64(queue.0);
        out.put_u64(run.first_offset.0);
        out.put_u64(run.publish_time_us);
        out.put_u32(run.position);
        out.put_u32(run.length);
        out.put_u32(run.count);
        out.put_u32(run.bytes);
    }
    out.resize(start + BLOCK_BYTES, 0);
    let crc = block_crc(salt, number, &out[start..]);
    out[start..start + 4].copy_from_slice(&crc.to_le_bytes());
}

fn block_crc(salt: u64, number: u64, block: &[u8]) -> u32 {
    let mut hasher = crc32fast::Hasher::new();
    hasher.update(&salt.to_le_bytes());
    hasher.update(&number.to_le_bytes());
    hasher.update(&block[ENTRIES_AT..]);
    hasher.finalize()
}

/// Reads a header block, and refuses one of another segment. Without a salt to compare with, the number must do.
fn decode_header(block: &[u8], segment: SegmentNumber, salt: Option<u64>) -> Result<Summary, FileFault> {
    let block = block.get(..BLOCK_BYTES).ok_or(FileFault::Header)?;
    let mut reader = Reader::new(block);
    let (magic, version, crc): ([u8; 8], u32, u32) = (reader.array()?, reader.u32()?, reader.u32()?);
    if magic != MAGIC || version != VERSION || crc != header_crc(block) {
        return Err(FileFault::Header);
    }
    let summary = Summary {
        segment: SegmentNumber(reader.u64()?),
        salt: reader.u64()?,
        runs: reader.u64()?,
        lowest: QueueId(reader.u64()?),
        highest: QueueId(reader.u64()?),
        filter: reader.array::<FILTER_BYTES>()?,
    };
    if summary.segment != segment || salt.is_some_and(|salt| salt != summary.salt) {
        return Err(FileFault::Stale);
    }
    Ok(summary)
}

/// Reads the header of a segment's index file.
pub fn read_summary(
    disk: &dyn Disk,
    segment: SegmentNumber,
    salt: Option<u64>,
) -> Result<Summary, FileFault> {
    let mut block = [0; BLOCK_BYTES];
    disk.open(&path(segment))?.read_at(&mut block, 0)?;
    decode_header(&block, segment, salt)
}

/// A whole index file whose every block was verified when it was opened.
pub struct FileRuns {
    bytes: Mapped,
    count: usize,
}

impl std::fmt::Debug for FileRuns {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("FileRuns").field("count", &self.count).finish_non_exhaustive()
    }
}

impl FileRuns {
    /// Maps the index file of a segment and verifies it.
    pub fn open(
        disk: &dyn Disk,
        segment: SegmentNumber,
        salt: Option<u64>,
    ) -> Result<(Self, Summary), FileFault> {
        let bytes = disk.open(&path(segment))?.map()?;
        let summary = decode_header(&bytes, segment, salt)?;
        let (found, expected) = (bytes.len() as u64, file_len(summary.runs));
        if found != expected {
            return Err(FileFault::Length { found, expected });
        }
        for (block, number) in bytes.chunks_exact(BLOCK_BYTES).zip(0..).skip(1) {
            let crc = u32::from_le_bytes(block[..ENTRIES_AT].try_into().expect("four bytes"));
            if crc != block_crc(summary.salt, number, block) && !planted::bug("index-crc-ignored") {
                return Err(FileFault::Block { number });
            }
        }
        Ok((Self { bytes, count: summary.runs as usize }, summary))
    }

    /// Bytes of the file.
    pub fn bytes(&self) -> usize {
        self.bytes.len()
    }

    fn entry(&self, index: usize) -> (QueueId, Run) {
        let block = 1 + index / ENTRIES_PER_BLOCK;
        let start = block * BLOCK_BYTES + ENTRIES_AT + index % ENTRIES_PER_BLOCK * ENTRY_BYTES;
        let entry = &self.bytes[start..start + ENTRY_BYTES];
        let u32_at = |at| u32::from_le_bytes(entry[at..at + 4].try_into().expect("four bytes"));
        let u64_at = |at| u64::from_le_bytes(entry[at..at + 8].try_into().expect("eight bytes"));
        let run = Run {
            first_offset: Offset(u64_at(8)),
            publish_time_us: u64_at(16),
            position: u32_at(24),
            length: u32_at(28),
            count: u32_at(32),
            bytes: u32_at(36),
        };
        (QueueId(u64_at(0)), run)
    }

    /// What the segment says of a message.
    pub fn probe(&self, queue: QueueId, offset: Offset) -> Probe {
        let (mut low, mut high) = (0, self.count);
        while low < high {
            let middle = low + (high - low) / 2;
            let (other, run) = self.entry(middle);
            if (other, run.end()) <= (queue, offset) {
                low = middle + 1;
            } else {
                high = middle;
            }
        }
        let of_queue = |index: usize| {
            (index < self.count).then(|| self.entry(index)).filter(|(other, _)| *other == queue)
        };
        let before = low.checked_sub(1).and_then(of_queue).map(|(_, run)| run);
        Probe::judge(offset, before, of_queue(low).map(|(_, run)| run))
    }

    /// All runs, sorted by queue and offset.
    pub fn sorted(&self) -> impl Iterator<Item = (QueueId, Run)> + '_ {
        (0..self.count).map(|index| self.entry(index))
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::FileExt;

    use super::super::memory::MemoryRuns;
    use super::*;
    use crate::disk::RealDisk;

    const SEGMENT: SegmentNumber = SegmentNumber(3);
    const SALT: u64 = 0x0102_0304_0506_0708;

    fn made(count: u64) -> (tempfile::TempDir, RealDisk, MemoryRuns) {
        let mut runs = MemoryRuns::default();
        for n in 0..count {
            let (first_offset, position, length) = (Offset(2 * n), 4_096 + n as u32, 70);
            let run = Run { first_offset, publish_time_us: 5 + n, position, length, count: 2, bytes: 30 };
            assert!(runs.push(QueueId(1 + n % 3), run));
        }
        let dir = tempfile::tempdir().unwrap();
        let disk = RealDisk::new(dir.path());
        disk.create_dir("log").unwrap();
        let summary = Summary::new(SEGMENT, SALT, runs.count(), runs.queues());
        write(&disk, &summary, runs.sorted()).unwrap();
        (dir, disk, runs)
    }

    fn open(disk: &RealDisk) -> Result<FileRuns, FileFault> {
        FileRuns::open(disk, SEGMENT, Some(SALT)).map(|(runs, _)| runs)
    }

    #[test]
    fn a_file_says_what_memory_said() {
        // Nothing, one block, one that is full, and more than are written at a time.
        for count in [0, 1, 102, 103, 30_000] {
            let (dir, disk, runs) = made(count);
            let file = open(&disk).unwrap();
            assert_eq!(file.bytes() as u64, file_len(count));
            assert!(file.sorted().eq(runs.sorted()), "{count} runs");
            for (queue, offset) in (0..5).flat_map(|queue| (0..300).map(move |offset| (queue, offset))) {
                let (queue, offset) = (QueueId(queue), Offset(offset));
                assert_eq!(file.probe(queue, offset), runs.probe(queue, offset), "{queue} {offset}");
            }
            assert_eq!(std::fs::read_dir(dir.path().join("log")).unwrap().count(), 1);
        }
    }

    #[test]
    fn the_layout_is_the_one_described() {
        let (dir, _, _) = made(4);
        let bytes = std::fs::read(dir.path().join(path(SEGMENT))).unwrap();
        assert_eq!(&bytes[..12], b"FOREBAYX\x01\0\0\0");
        let fields: Vec<u64> = [3, SALT, 4, 1, 3].into();
        assert_eq!(bytes[16..56], *fields.iter().flat_map(|field| field.to_le_bytes()).collect::<Vec<_>>());
        // Queue 1 has the runs 0 and 3: the second entry.
        let entry = &bytes[4_096 + 4 + 40..][..40];
        let expected = [
            &[1u64, 6, 8].map(u64::to_le_bytes).concat(),
            &[4_099u32, 70, 2, 30].map(u32::to_le_bytes).concat(),
        ];
        assert_eq!(entry, expected.map(Vec::as_slice).concat());
        let salted = [&SALT.to_le_bytes()[..], &1u64.to_le_bytes(), &bytes[4_100..8_192]].concat();
        assert_eq!(bytes[4_096..4_100], crc32fast::hash(&salted).to_le_bytes());
        assert_eq!(bytes.len(), 8_192);
    }

    #[test]
    fn a_flipped_bit_is_noticed_wherever_it_is() {
        let (dir, disk, _) = made(7);
        let full_path = dir.path().join(path(SEGMENT));
        let good = std::fs::read(&full_path).unwrap();
        let file = std::fs::OpenOptions::new().write(true).open(full_path).unwrap();
        for at in 0..good.len() {
            let flipped = good[at] ^ (1 << (at % 8));
            file.write_all_at(&[flipped], at as u64).unwrap();
            assert!(open(&disk).is_err(), "byte {at}");
            file.write_all_at(&good[at..=at], at as u64).unwrap();
        }
        assert!(open(&disk).is_ok());
        for length in [0, 4_095, 4_096, 8_191, 8_193, 12_288] {
            file.set_len(length).unwrap();
            assert!(open(&disk).is_err(), "{length} bytes");
            file.write_all_at(&good, 0).unwrap();
        }
    }

    #[test]
    fn a_file_of_another_segment_is_refused() {
        let (_dir, disk, _) = made(7);
        assert!(matches!(FileRuns::open(&disk, SEGMENT, Some(SALT + 1)), Err(FileFault::Stale)));
        disk.rename(&path(SEGMENT), &path(SEGMENT.next())).unwrap();
        assert!(matches!(FileRuns::open(&disk, SEGMENT.next(), None), Err(FileFault::Stale)));
        assert!(matches!(open(&disk), Err(FileFault::Disk(error)) if error.is_not_found()));
    }

    /// Found by fuzzing: the length that such a header asks for is not a number.
    #[test]
    fn more_runs_than_any_file_has_are_a_length_that_does_not_fit() {
        let (dir, disk, _) = made(7);
        let full_path = dir.path().join(path(SEGMENT));
        let mut bytes = std::fs::read(&full_path).unwrap();
        bytes[32..40].fill(0xFF);
        let crc = header_crc(&bytes[..BLOCK_BYTES]);
        bytes[CRC_AT..CRC_AT + 4].copy_from_slice(&crc.to_le_bytes());
        std::fs::write(&full_path, &bytes).unwrap();
        assert!(matches!(open(&disk), Err(FileFault::Length { expected: u64::MAX, .. })));
    }

    #[test]
    fn unfinished_files_are_known_by_their_names() {
        assert_eq!(path(SEGMENT), "log/00000000000000000003.idx");
        assert!(is_temp_name("00000000000000000003.idx.tmp"));
        for name in ["00000000000000000003.idx", "3.idx.tmp", "00000000000000000003.seg.tmp"] {
            assert!(!is_temp_name(name), "{name}");
        }
    }
}

//! Packed segments: records of other segments that are still needed, sorted by queue and offset. They are read like
//! segments of the log, never replayed.
//!
//! `packed/%020d.seg`. Numbers of packed segments are above [`PACKED_FIRST`], those of the log below, so that a number
//! says where its file is. A header of 4,096 bytes, then frames; little-endian:
//! ```text
//!   0 magic "FOREBAYK"                   48 segment number u64
//!   8 format version u32 (1)             56 place u64: the segment of the log in whose place it stands
//!  12 crc u32: CRC-32/IEEE over the      64 salt u64: random and secret
//!     block without these four bytes     72 bytes of the file u64
//!  16 features to ignore u64             80 records u64
//!  24 features to refuse u64             88 segments that were replaced u32, 4 bytes of 0
//!  32 cluster uid, 16 bytes              96 their numbers, u64 each; 0 to the end
//! ```
//! Frames have the layout of the log's; the salted checksums keep damage local, and payloads from forging frames.
//! Their sequence numbers and chain begin anew in each file, the LSN is that of their first record, epoch and time
//! are 0. A frame has at most 1 MiB, unless its only record is larger. Records keep every byte, LSN and checksum too.
//!
//! A file is written and synced piece by piece under a temporary name, the header last; then it is renamed, its
//! directory synced, and its index written. It belongs to the log from the `SegmentReplaced` record on that names it.

use std::collections::BTreeSet;
use std::io::IoSlice;
use std::path::PathBuf;
use std::sync::Arc;

use super::error::LogError;
use super::frame::{FRAME_ALIGN, FRAME_HEADER_BYTES, FRAME_TRAILER_BYTES, FrameHeader, salted};
use super::index::Run;
use super::segment::{self, SEGMENT_HEADER_BYTES};
use super::set::SegmentSet;
use super::system::PackedSegment;
use super::{ending, index};
use crate::disk::{Disk, DiskError, DiskFile, join};
use crate::ids::{Lsn, QueueId, SegmentNumber, Uid};
use crate::record::wire::{Put, Reader, WireError};

/// All packed segments have higher numbers, all others lower ones.
pub const PACKED_FIRST: SegmentNumber = SegmentNumber(1_000_000_000_000_000_000);
/// The directory of packed segments.
pub const DIR: &str = "packed";
/// Written and synced at a time, so that commits never wait behind more dirty pages than this.
pub const PIECE_BYTES: usize = 1 << 20;
/// Most bytes of records in a frame of several: with what belongs to a frame it is one piece.
pub const PAYLOAD_BYTES: usize = PIECE_BYTES - FRAME_ALIGN as usize;

const MAGIC: [u8; 8] = *b"FOREBAYK";
const VERSION: u32 = 1;
const CRC_AT: usize = 12;
const REPLACED_AT: usize = 96;

/// Whether a segment is a packed one.
pub fn is_packed(segment: SegmentNumber) -> bool {
    segment > PACKED_FIRST
}

/// The header of a packed segment.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PackedHeader {
    pub cluster: Uid,
    pub segment: SegmentNumber,
    pub place: SegmentNumber,
    pub salt: u64,
    pub bytes: u64,
    pub records: u64,
    /// All that were replaced together, not by this one alone.
    pub replaced: Vec<SegmentNumber>,
}

impl PackedHeader {
    /// The whole block.
    pub fn encode(&self) -> Vec<u8> {
        let mut out = Vec::with_capacity(SEGMENT_HEADER_BYTES);
        out.extend_from_slice(&MAGIC);
        out.put_u32(VERSION);
        out.put_u32(0);
        out.put_u64(0);
        out.put_u64(0);
        out.extend_from_slice(&self.cluster.0);
        out.put_u64(self.segment.0);
        out.put_u64(self.place.0);
        out.put_u64(self.salt);
        out.put_u64(self.bytes);
        out.put_u64(self.records);
        out.put_u32(u32::try_from(self.replaced.len()).expect("a few segments are replaced together"));
        out.put_u32(0);
        self.replaced.iter().for_each(|segment| out.put_u64(segment.0));
        assert!(out.len() <= SEGMENT_HEADER_BYTES, "the numbers of what is replaced fit the block");
        out.resize(SEGMENT_HEADER_BYTES, 0);
        let crc = segment::block_crc(&out).to_le_bytes();
        out[CRC_AT..CRC_AT + 4].copy_from_slice(&crc);
        out
    }

    /// Reads a whole block; none if it is no such header, damaged, or of a format that this build does not read.
    pub fn decode(block: &[u8]) -> Option<Self> {
        let block = block.get(..SEGMENT_HEADER_BYTES)?;
        let read = || -> Result<Option<Self>, WireError> {
            let mut reader = Reader::new(block);
            let (magic, version, crc): ([u8; 8], u32, u32) = (reader.array()?, reader.u32()?, reader.u32()?);
            let (_, refuse) = (reader.u64()?, reader.u64()?);
            if magic != MAGIC || crc != segment::block_crc(block) || version != VERSION || refuse != 0 {
                return Ok(None);
            }
            let cluster = Uid(reader.array()?);
            let (segment, place) = (SegmentNumber(reader.u64()?), SegmentNumber(reader.u64()?));
            let (salt, bytes, records) = (reader.u64()?, reader.u64()?, reader.u64()?);
            let count = reader.u32()? as usize;
            reader.u32()?;
            let most = (SEGMENT_HEADER_BYTES - REPLACED_AT) / size_of::<u64>();
            let replaced = (0..count.min(most)).map(|_| Ok(SegmentNumber(reader.u64()?)));
            let replaced = replaced.collect::<Result<_, WireError>>()?;
            Ok(Some(Self { cluster, segment, place, salt, bytes, records, replaced }))
        };
        read().ok().flatten()
    }

    /// Reads the header of a packed segment's file; none if it is damaged.
    pub fn read(disk: &dyn Disk, segment: SegmentNumber) -> Result<Option<Self>, DiskError> {
        let file = disk.open(&segment::path(segment))?;
        let mut block = [0; SEGMENT_HEADER_BYTES];
        if file.length()? < block.len() as u64 {
            return Ok(None);
        }
        file.read_at(&mut block, 0)?;
        Ok(Self::decode(&block).filter(|header| header.segment == segment))
    }
}

/// A packed segment in the making. [`Self::abandon`] it if it is not finished.
#[derive(Debug)]
pub struct PackedWriter {
    header: PackedHeader,
    merged: bool,
    file: Arc<dyn DiskFile>,
    runs: Vec<(QueueId, Run)>,
    position: u64,
    sequence: u64,
    previous_crc: u32,
}

/// The next frame: room for its header, then records back to back.
#[derive(Debug)]
pub struct PackedFrame {
    pub buffer: Vec<u8>,
    /// Where each record begins in the buffer, and whose it is.
    pub runs: Vec<(QueueId, Run)>,
    pub first_lsn: Lsn,
}

impl PackedWriter {
    pub fn begin(
        disk: &dyn Disk,
        cluster: Uid,
        segment: SegmentNumber,
        place: SegmentNumber,
        replaced: &[SegmentNumber],
        merged: bool,
        salt: u64,
    ) -> Result<Self, DiskError> {
        let replaced = replaced.to_vec();
        let header = PackedHeader { cluster, segment, place, salt, bytes: 0, records: 0, replaced };
        let temp = temp_path(segment);
        if disk.exists(&temp)? {
            disk.remove(&temp)?;
        }
        let (file, position) = (disk.create(&temp)?, SEGMENT_HEADER_BYTES as u64);
        Ok(Self { header, merged, file, runs: Vec::new(), position, sequence: 0, previous_crc: 0 })
    }

    /// Bytes of the file so far.
    pub fn bytes(&self) -> u64 {
        self.position
    }

    /// Runs in the file so far.
    pub fn runs(&self) -> usize {
        self.runs.len()
    }

    /// Writes and syncs a frame; its positions in the buffer become those in the file.
    pub fn write(&mut self, frame: &mut PackedFrame) -> Result<(), DiskError> {
        let payload = &frame.buffer[FRAME_HEADER_BYTES..];
        let header = FrameHeader {
            payload_crc: salted(self.header.salt, payload),
            payload_len: u32::try_from(payload.len()).expect("a frame is shorter than 4 GiB"),
            count: u32::try_from(frame.runs.len()).expect("a frame has fewer than 2^32 records"),
            previous_crc: self.previous_crc,
            first_lsn: frame.first_lsn,
            epoch: 0,
            segment: self.header.segment,
            sequence: self.sequence,
            log_time_us: 0,
        };
        let (bytes, crc) = header.encode(self.header.salt);
        frame.buffer[..FRAME_HEADER_BYTES].copy_from_slice(&bytes);
        frame.buffer.resize(header.frame_len() as usize - FRAME_TRAILER_BYTES, 0);
        frame.buffer.extend_from_slice(&bytes);
        let frame_at = u32::try_from(self.position).expect("packed segments are shorter than 4 GiB");
        for (queue, run) in frame.runs.drain(..) {
            self.runs.push((queue, Run { position: frame_at + run.position, ..run }));
        }
        for piece in frame.buffer.chunks(PIECE_BYTES) {
            self.file.write_at(&mut [IoSlice::new(piece)], self.position)?;
            self.file.sync_data()?;
            self.position += piece.len() as u64;
        }
        self.sequence += 1;
        self.previous_crc = crc;
        Ok(())
    }

    /// Completes the file, makes its name durable, and writes its index.
    pub fn finish(mut self, disk: &dyn Disk) -> Result<PackedSegment, DiskError> {
        self.header.bytes = self.position;
        self.header.records = self.runs.len() as u64;
        self.file.write_at(&mut [IoSlice::new(&self.header.encode())], 0)?;
        self.file.sync_data()?;
        let PackedHeader { segment, place, salt, bytes, .. } = self.header;
        disk.rename(&temp_path(segment), &segment::path(segment))?;
        disk.sync_dir(DIR)?;
        index::write_sorted(disk, segment, salt, &self.runs)?;
        Ok(PackedSegment { segment, bytes, place, merged: self.merged })
    }
}

/// Removes what was written of a packed segment that is not to be. Errors do not matter: the next start does it too.
pub fn abandon(disk: &dyn Disk, segment: SegmentNumber) {
    for path in [temp_path(segment), segment::path(segment), segment::index_path(segment)] {
        if disk.exists(&path).unwrap_or(false) {
            let _ = disk.remove(&path);
        }
    }
}

fn temp_path(segment: SegmentNumber) -> String {
    format!("{}.tmp", segment::path(segment))
}

/// Packed segments that are not of the log, and all that is needed of them is in segments that are: their
/// `SegmentReplaced` record was not durable. One can have been made of others of them, which have lower numbers, and of
/// segments in which nothing was needed any more, and which have left while it was made.
pub fn unfinished(
    disk: &dyn Disk,
    cluster: Uid,
    set: &SegmentSet,
) -> Result<BTreeSet<SegmentNumber>, DiskError> {
    let entries = disk.list(DIR)?;
    let there: BTreeSet<_> = entries.iter().filter_map(|entry| segment::parse_name(&entry.name)).collect();
    let of_log = |segment: &SegmentNumber| set.contains(*segment) || set.was_dropped(*segment);
    let mut unfinished = BTreeSet::new();
    for segment in there.into_iter().filter(|segment| !of_log(segment)) {
        let header = PackedHeader::read(disk, segment)?.filter(|header| header.cluster == cluster);
        let Some(header) = header.filter(|header| !header.replaced.is_empty()) else { continue };
        let mut is_needed = false;
        for old in header.replaced {
            let is_there = set.contains(old) && disk.exists(&segment::path(old))?;
            let has_left = set.was_dropped(old) || set.has_forgotten(old);
            is_needed |= !is_there && !has_left && !unfinished.contains(&old);
        }
        if !is_needed {
            unfinished.insert(segment);
        }
    }
    Ok(unfinished)
}

/// What a start found in `packed/`.
#[derive(Debug, Default)]
pub struct Settled {
    /// Packed segments of the log whose files are not there.
    pub missing: Vec<SegmentNumber>,
    /// Files that looked like packed segments and were not of the log, where they are now.
    pub set_aside: Vec<PathBuf>,
}

/// Compares `packed/` with the set, and removes what was not finished: unfinished files, and files whose
/// `SegmentReplaced` record was not durable, as all that is in those is in the segments that were not replaced.
pub fn settle(disk: &dyn Disk, cluster: Uid, set: &SegmentSet) -> Result<Settled, LogError> {
    let mut settled = Settled::default();
    let entries = disk.list(DIR)?;
    let there: Vec<SegmentNumber> =
        entries.iter().filter_map(|entry| segment::parse_name(&entry.name)).collect();
    for entry in &entries {
        if segment::is_temp_name(&entry.name) || index::is_temp_name(&entry.name) {
            disk.remove(&join(DIR, &entry.name))?;
        }
    }
    let unfinished = unfinished(disk, cluster, set)?;
    let strange = |segment: &&SegmentNumber| {
        !set.contains(**segment) && !set.was_dropped(**segment) && !unfinished.contains(segment)
    };
    for segment in there.iter().filter(strange) {
        let name = format!("{:020}.seg", segment.0);
        settled.set_aside.push(ending::move_to_quarantine(disk, DIR, &name)?);
    }
    // What was made of another goes first: should this start be killed, the next one understands what is left.
    unfinished.into_iter().rev().for_each(|segment| abandon(disk, segment));
    let listed = set.packed().map(|packed| packed.segment);
    settled.missing = listed.filter(|segment| !there.contains(segment)).collect();
    Ok(settled)
}

#[cfg(test)]
mod tests {
    use super::*;

    pub fn header() -> PackedHeader {
        PackedHeader {
            cluster: Uid([1; 16]),
            segment: PACKED_FIRST.plus(5),
            place: SegmentNumber(3),
            salt: 6,
            bytes: 8192,
            records: 1,
            replaced: [3, 4, 9].map(SegmentNumber).to_vec(),
        }
    }

    #[test]
    fn headers_come_back_and_every_flip_is_seen() {
        let mut block = header().encode();
        assert_eq!((block.len(), PackedHeader::decode(&block)), (SEGMENT_HEADER_BYTES, Some(header())));
        for at in 0..block.len() {
            block[at] ^= 4;
            assert_eq!(PackedHeader::decode(&block), None, "byte {at}");
            block[at] ^= 4;
        }
        assert_eq!(PackedHeader::decode(&[0; SEGMENT_HEADER_BYTES]), None);
    }

    #[test]
    fn numbers_say_where_files_are() {
        assert!(is_packed(header().segment) && !is_packed(SegmentNumber(1)));
        assert_eq!(temp_path(header().segment), "packed/01000000000000000005.seg.tmp");
        assert_eq!(segment::index_path(header().segment), "packed/01000000000000000005.idx");
    }
    #[test]
    fn what_was_made_of_unfinished_segments_is_unfinished_too_and_what_is_strange_is_kept() {
        let dir = tempfile::tempdir().unwrap();
        let disk = crate::disk::RealDisk::new(dir.path());
        ["log", DIR, "quarantine"].into_iter().for_each(|dir| disk.create_dir(dir).unwrap());
        let mut set = SegmentSet::default();
        let [left, there, lost] = [2, 3, 4].map(SegmentNumber);
        for segment in [left, there, lost] {
            set.add(super::super::system::SegmentAdded { segment, bytes: 8192 });
        }
        set.drop_segments(&[left], Lsn(9));
        set.forget(&[left]);
        std::fs::write(dir.path().join(segment::path(there)), "any").unwrap();
        let packed = |number| PACKED_FIRST.plus(number);
        let made_of: [(u64, &[SegmentNumber]); _] = [
            (5, &[left, there]),
            (7, &[packed(5)]),
            (8, &[packed(6)]),
            (9, &[packed(7)]),
            (10, &[there, lost]),
        ];
        for (number, replaced) in made_of {
            let segment = packed(number);
            let header = PackedHeader { segment, replaced: replaced.to_vec(), ..header() };
            std::fs::write(dir.path().join(segment::path(segment)), header.encode()).unwrap();
        }
        let cluster = header().cluster;
        assert_eq!(unfinished(&disk, cluster, &set).unwrap(), [5, 7, 9].map(packed).into());
        assert_eq!(unfinished(&disk, Uid([2; 16]), &set).unwrap(), BTreeSet::new());
        // A start that was killed has left these.
        abandon(&disk, packed(9));
        let settled = settle(&disk, cluster, &set).unwrap();
        let aside = [8, 10].map(|number| dir.path().join(format!("quarantine/{:020}.seg", packed(number).0)));
        assert_eq!((settled.set_aside, settled.missing), (aside.to_vec(), vec![]));
        assert_eq!(std::fs::read_dir(dir.path().join(DIR)).unwrap().count(), 0);
    }
}

//! Checkpoints: the state of the log and of what is built on it, as of one record, so that a start replays only what
//! came after it.
//!
//! `checkpoint/%020d.ckpt`, named by the LSN of the first record that it does not include; little-endian:
//! ```text
//!   0 magic "FOREBAYP"                   32 LSN u64
//!   8 format version u32 (1)             40 bytes of the log's part u64, CRC-32/IEEE over it u32
//!  12 crc u32: CRC-32/IEEE over the rest  52 bytes of the state u64, CRC-32/IEEE over it u32, 4 bytes of 0
//!     of these 68 bytes                  68 the log's part, then the state
//!  16 cluster uid, 16 bytes
//! ```
//! The log's part: start of the replay (segment u64 | LSN, sequence, epoch, log time u64 each | checksum of the frame
//! before u32) | incarnation u32 | highest segment u64 | the [`SegmentSet`].
//!
//! # Invariants
//! - A checkpoint is written only when every record before its LSN is durable; it gets its name when it is durable
//!   itself.
//! - The newest two are kept. The older one is what may be needed, so nothing that it needs is removed.
//! - One that fails a checksum is never used and never deleted: it is set aside.
//!
//! `checkpoint/RESERVE` is space for the next one, given up when the disk is full: without checkpoints nothing could
//! ever be removed.

use std::io::IoSlice;
use std::sync::Arc;

use super::error::LogError;
use super::set::SegmentSet;
use super::tail::Chain;
use crate::disk::{Disk, DiskFile, join};
use crate::ids::{Lsn, SegmentNumber, Uid};
use crate::record::wire::{Put, Reader, WireError};

const DIR: &str = "checkpoint";
const MAGIC: [u8; 8] = *b"FOREBAYP";
const VERSION: u32 = 1;
const HEADER_BYTES: usize = 68;
const CRC_AT: usize = 12;
/// Written and synced at a time, so that commits never wait behind a large checkpoint.
const PIECE_BYTES: usize = 1 << 20;
pub(super) const RESERVE: &str = "checkpoint/RESERVE";
/// Least bytes of the reserve.
const RESERVE_BYTES_MIN: u64 = 1 << 20;
/// How many are kept.
const KEPT: usize = 2;

/// A place in the log that a checkpoint can be taken at: the end of a durable frame.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Mark {
    /// Of the first record behind it.
    pub(super) lsn: Lsn,
    /// Where reading begins: the first frame of the segment that holds the place.
    pub(super) start: ReplayStart,
    pub(super) incarnation: u32,
    /// The largest number that any segment ever had.
    pub(super) highest: SegmentNumber,
    pub(super) set: SegmentSet,
}

/// The first frame of a segment, and what it follows.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct ReplayStart {
    pub segment: SegmentNumber,
    pub chain: Chain,
}

/// A checkpoint on disk, as far as the others need to know of it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Kept {
    pub lsn: Lsn,
    pub start: SegmentNumber,
}

/// What a start found.
#[derive(Debug, Default)]
pub(super) struct Found {
    /// The newest good one, with its state.
    pub newest: Option<(Mark, Vec<u8>)>,
    /// All good ones, oldest first.
    pub kept: Vec<Kept>,
    /// Names in the directory that are not good.
    pub damaged: Vec<String>,
}

impl Mark {
    /// LSN of the first record behind it.
    pub fn lsn(&self) -> Lsn {
        self.lsn
    }

    fn encode(&self) -> Vec<u8> {
        let mut out = Vec::new();
        let ReplayStart { segment, chain } = self.start;
        out.put_u64(segment.0);
        out.put_u64(chain.lsn.0);
        out.put_u64(chain.sequence);
        out.put_u64(chain.epoch);
        out.put_u64(chain.log_time_us);
        out.put_u32(chain.previous_crc);
        out.put_u32(self.incarnation);
        out.put_u64(self.highest.0);
        self.set.encode(&mut out);
        out
    }

    fn decode(lsn: Lsn, bytes: &[u8]) -> Result<Self, WireError> {
        let mut reader = Reader::new(bytes);
        let segment = SegmentNumber(reader.u64()?);
        let chain = Chain {
            lsn: Lsn(reader.u64()?),
            sequence: reader.u64()?,
            epoch: reader.u64()?,
            log_time_us: reader.u64()?,
            previous_crc: reader.u32()?,
        };
        Ok(Self {
            lsn,
            start: ReplayStart { segment, chain },
            incarnation: reader.u32()?,
            highest: SegmentNumber(reader.u64()?),
            set: SegmentSet::decode(&mut reader)?,
        })
    }
}

/// What is wrong with a checkpoint's file.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum CheckpointFault {
    #[error("its header is damaged")]
    Header,
    #[error("its length is not what its header says")]
    Length,
    #[error("it is of another data directory or of another place in the log")]
    Place,
    #[error("the log's part fails its checksum")]
    Log { position: u64 },
    #[error("the state fails its checksum")]
    State { position: u64 },
}

impl CheckpointFault {
    /// Where the damaged part begins in the file.
    pub fn position(&self) -> u64 {
        match self {
            Self::Header | Self::Length | Self::Place => 0,
            Self::Log { position } | Self::State { position } => *position,
        }
    }
}

/// The parts of a file's header.
struct Header {
    cluster: Uid,
    lsn: Lsn,
    log: Part,
    state: Part,
}

#[derive(Clone, Copy)]
struct Part {
    bytes: u64,
    crc: u32,
}

impl Part {
    fn of(bytes: &[u8]) -> Self {
        Self { bytes: bytes.len() as u64, crc: crc32fast::hash(bytes) }
    }
}

impl Header {
    fn encode(&self) -> Vec<u8> {
        let mut out = Vec::with_capacity(HEADER_BYTES);
        out.extend_from_slice(&MAGIC);
        out.put_u32(VERSION);
        out.put_u32(0);
        out.extend_from_slice(&self.cluster.0);
        out.put_u64(self.lsn.0);
        for part in [self.log, self.state] {
            out.put_u64(part.bytes);
            out.put_u32(part.crc);
        }
        out.put_u32(0);
        let crc = checksum(&out).to_le_bytes();
        out[CRC_AT..CRC_AT + 4].copy_from_slice(&crc);
        out
    }

    /// The version, if these are a header of any version.
    fn version(bytes: &[u8; HEADER_BYTES]) -> Option<u32> {
        let mut reader = Reader::new(bytes);
        let magic = reader.array().ok()?;
        let version = reader.u32().ok()?;
        (magic == MAGIC && reader.u32() == Ok(checksum(bytes))).then_some(version)
    }

    fn decode(bytes: &[u8; HEADER_BYTES]) -> Result<Self, WireError> {
        let mut reader = Reader::new(&bytes[CRC_AT + 4..]);
        let (cluster, lsn) = (Uid(reader.array()?), Lsn(reader.u64()?));
        let mut part = || Ok::<_, WireError>(Part { bytes: reader.u64()?, crc: reader.u32()? });
        Ok(Self { cluster, lsn, log: part()?, state: part()? })
    }
}

fn checksum(header: &[u8]) -> u32 {
    let mut hasher = crc32fast::Hasher::new();
    hasher.update(&header[..CRC_AT]);
    hasher.update(&header[CRC_AT + 4..]);
    hasher.finalize()
}

pub(super) fn name(lsn: Lsn) -> String {
    format!("{:020}.ckpt", lsn.0)
}

fn parse_name(name: &str) -> Option<Lsn> {
    let lsn = Lsn(name.strip_suffix(".ckpt")?.parse().ok()?);
    (self::name(lsn) == name).then_some(lsn)
}

/// Writes a checkpoint and removes those that are no longer kept; the kept ones, oldest first.
pub(super) fn write(
    disk: &dyn Disk,
    cluster: Uid,
    mark: &Mark,
    state: &[u8],
    kept: &[Kept],
) -> Result<Vec<Kept>, LogError> {
    let log = mark.encode();
    let header = Header { cluster, lsn: mark.lsn, log: Part::of(&log), state: Part::of(state) };
    let target = path(mark.lsn);
    let temp = format!("{target}.tmp");
    let mut front = header.encode();
    front.extend_from_slice(&log);
    match write_file(disk, &temp, [&front, state]) {
        Err(error) if error.is_no_space() && release_reserve(disk)? => {
            write_file(disk, &temp, [&front, state])?;
        }
        written => written?,
    }
    disk.rename(&temp, &target)?;
    disk.sync_dir(DIR)?;
    let this = Kept { lsn: mark.lsn, start: mark.start.segment };
    let mut all: Vec<Kept> = kept.iter().copied().filter(|kept| kept.lsn != this.lsn).chain([this]).collect();
    let surplus = all.len().saturating_sub(KEPT);
    for old in all.drain(..surplus) {
        disk.remove(&path(old.lsn))?;
    }
    keep_reserve(disk, 2 * (front.len() + state.len()) as u64)?;
    Ok(all)
}

/// Sees to it that there is space for a checkpoint of this many bytes, unless the disk is full already.
fn keep_reserve(disk: &dyn Disk, bytes: u64) -> Result<(), LogError> {
    let bytes = bytes.max(RESERVE_BYTES_MIN);
    if disk.exists(RESERVE)? {
        if disk.open(RESERVE)?.length()? >= bytes {
            return Ok(());
        }
        disk.remove(RESERVE)?;
    }
    match disk.create(RESERVE)?.allocate(bytes) {
        Err(error) if error.is_no_space() => Ok(disk.remove(RESERVE)?),
        allocated => Ok(allocated?),
    }
}

/// Gives the reserve up; whether there was one.
pub(super) fn release_reserve(disk: &dyn Disk) -> Result<bool, LogError> {
    let there = disk.exists(RESERVE)?;
    if there {
        disk.remove(RESERVE)?;
    }
    Ok(there)
}

/// Writes a new file and syncs it; leaves nothing behind on failure, as far as the disk lets it.
fn write_file(disk: &dyn Disk, path: &str, parts: [&[u8]; 2]) -> Result<(), LogError> {
    if disk.exists(path)? {
        disk.remove(path)?;
    }
    let file = disk.create(path)?;
    write_pieces(&*file, parts).inspect_err(|_| drop(disk.remove(path)))
}

fn write_pieces(file: &dyn DiskFile, parts: [&[u8]; 2]) -> Result<(), LogError> {
    let mut position = 0;
    for piece in parts.iter().flat_map(|part| part.chunks(PIECE_BYTES)) {
        file.write_at(&mut [IoSlice::new(piece)], position)?;
        file.sync_data()?;
        position += piece.len() as u64;
    }
    Ok(())
}

/// Looks for checkpoints. Changes nothing.
pub(super) fn find(disk: &dyn Disk, cluster: Uid) -> Result<Found, LogError> {
    let mut found = Found::default();
    for lsn in list(disk)? {
        let Ok((mark, state)) = read(disk, cluster, lsn)? else {
            found.damaged.push(name(lsn));
            continue;
        };
        found.kept.insert(0, Kept { lsn, start: mark.start.segment });
        found.newest.get_or_insert((mark, state));
    }
    Ok(found)
}

/// The checkpoints that are there, newest first.
pub(super) fn list(disk: &dyn Disk) -> Result<Vec<Lsn>, LogError> {
    let entries = super::directory::list_if_there(disk, DIR)?;
    let mut lsns: Vec<Lsn> = entries.iter().filter_map(|entry| parse_name(&entry.name)).collect();
    lsns.sort_unstable_by(|a, b| b.cmp(a));
    Ok(lsns)
}

/// A checkpoint that is whole.
type Whole = (Mark, Vec<u8>);

/// Reads one and verifies every part of it.
pub(super) fn read(
    disk: &dyn Disk,
    cluster: Uid,
    lsn: Lsn,
) -> Result<Result<Whole, CheckpointFault>, LogError> {
    let file = disk.open(&path(lsn))?;
    let length = file.length()?;
    let mut front = [0; HEADER_BYTES];
    if length < front.len() as u64 {
        return Ok(Err(CheckpointFault::Length));
    }
    file.read_at(&mut front, 0)?;
    match Header::version(&front) {
        None => return Ok(Err(CheckpointFault::Header)),
        Some(VERSION) => {}
        Some(found) => {
            return Err(LogError::NewerFormat {
                path: disk.full_path(&path(lsn)),
                found,
                supported: VERSION,
            });
        }
    }
    let Ok(header) = Header::decode(&front) else { return Ok(Err(CheckpointFault::Header)) };
    if header.log.bytes.checked_add(header.state.bytes) != Some(length - HEADER_BYTES as u64) {
        return Ok(Err(CheckpointFault::Length));
    }
    if header.cluster != cluster || header.lsn != lsn {
        return Ok(Err(CheckpointFault::Place));
    }
    let position = HEADER_BYTES as u64;
    let log = read_part(&file, position, header.log)?;
    let Some(mark) = log.and_then(|log| Mark::decode(lsn, &log).ok()) else {
        return Ok(Err(CheckpointFault::Log { position }));
    };
    let position = position + header.log.bytes;
    let state = read_part(&file, position, header.state)?;
    Ok(state.map(|state| (mark, state)).ok_or(CheckpointFault::State { position }))
}

/// The path of the checkpoint at `lsn`.
pub(super) fn path(lsn: Lsn) -> String {
    join(DIR, &name(lsn))
}

fn read_part(file: &Arc<dyn DiskFile>, position: u64, part: Part) -> Result<Option<Vec<u8>>, LogError> {
    let mut bytes = vec![0; usize::try_from(part.bytes).expect("files fit the address space")];
    file.read_at(&mut bytes, position)?;
    Ok((crc32fast::hash(&bytes) == part.crc).then_some(bytes))
}

/// Moves a damaged one to `quarantine/`; where it is now.
pub(super) fn set_aside(disk: &dyn Disk, name: &str) -> Result<std::path::PathBuf, LogError> {
    super::ending::move_to_quarantine(disk, DIR, name)
}

/// Removes files of checkpoints that were not finished.
pub(super) fn remove_temps(disk: &dyn Disk) -> Result<(), LogError> {
    for entry in disk.list(DIR)? {
        if entry.name.strip_suffix(".tmp").is_some_and(|name| parse_name(name).is_some()) {
            disk.remove(&join(DIR, &entry.name))?;
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::super::system::SegmentAdded;
    use super::*;
    use crate::disk::RealDisk;

    const CLUSTER: Uid = Uid([7; 16]);

    fn mark(lsn: u64) -> Mark {
        let mut set = SegmentSet::default();
        set.add(SegmentAdded { segment: SegmentNumber(3), bytes: 4096 });
        let chain = Chain { lsn: Lsn(lsn - 1), sequence: 5, previous_crc: 6, epoch: 1, log_time_us: 77 };
        let start = ReplayStart { segment: SegmentNumber(3), chain };
        Mark { lsn: Lsn(lsn), start, incarnation: 4, highest: SegmentNumber(8), set }
    }

    fn disk() -> (tempfile::TempDir, RealDisk) {
        let dir = tempfile::tempdir().unwrap();
        let disk = RealDisk::new(dir.path());
        disk.create_dir(DIR).unwrap();
        (dir, disk)
    }

    #[test]
    fn the_newest_two_are_kept_and_come_back() {
        let (dir, disk) = disk();
        let mut kept = Vec::new();
        for lsn in [10, 20, 30] {
            kept = write(&disk, CLUSTER, &mark(lsn), &vec![lsn as u8; 3 << 20], &kept).unwrap();
        }
        let lsns: Vec<u64> = kept.iter().map(|kept| kept.lsn.0).collect();
        assert_eq!(lsns, [20, 30]);
        assert_eq!(std::fs::read_dir(dir.path().join(DIR)).unwrap().count(), 3, "two, and the reserve");
        let found = find(&disk, CLUSTER).unwrap();
        assert_eq!((found.newest, found.kept), (Some((mark(30), vec![30; 3 << 20])), kept));
        assert!(find(&disk, Uid([8; 16])).unwrap().newest.is_none(), "another cluster's is not taken");
    }

    #[test]
    fn every_flipped_byte_is_seen_and_the_older_one_is_taken() {
        let (dir, disk) = disk();
        let kept = write(&disk, CLUSTER, &mark(10), b"older", &[]).unwrap();
        write(&disk, CLUSTER, &mark(20), b"newer", &kept).unwrap();
        let path = dir.path().join(DIR).join(name(Lsn(20)));
        let good = std::fs::read(&path).unwrap();
        for at in 0..good.len() {
            let mut bytes = good.clone();
            bytes[at] ^= 4;
            std::fs::write(&path, &bytes).unwrap();
            let found = find(&disk, CLUSTER).unwrap();
            assert_eq!(found.newest, Some((mark(10), b"older".to_vec())), "byte {at}");
            assert_eq!(found.damaged, [name(Lsn(20))], "byte {at}");
        }
        for cut in 0..good.len() {
            std::fs::write(&path, &good[..cut]).unwrap();
            assert_eq!(find(&disk, CLUSTER).unwrap().damaged.len(), 1, "cut at {cut}");
        }
    }
}

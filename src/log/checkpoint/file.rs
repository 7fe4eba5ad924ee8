//! One file of a checkpoint: its name, its bytes, writing and reading it. See [`super`] for the layout.

use std::fmt;
use std::io::IoSlice;
use std::sync::Arc;

use crc32fast::Hasher;

use super::parts::{Merged, PartHead, PartReader};
use super::{Broken, CheckpointFault, DIR, Mark};
use crate::disk::{Disk, DiskError, DiskFile, join};
use crate::ids::{Lsn, SegmentNumber, Uid};
use crate::log::error::LogError;
use crate::log::window::Window;
use crate::record::wire::{Put, Reader, WireError};

const MAGIC: [u8; 8] = *b"FOREBAYP";
const VERSION: u32 = 1;
pub const HEADER_BYTES: usize = 88;
const CRC_AT: usize = 12;
/// Written and synced at a time, so that commits never wait behind a large file.
const PIECE_BYTES: usize = 1 << 20;
const BASE: u32 = 1;
const DELTA: u32 = 2;

/// What a file holds. Of two of one place, the delta tells more: what has changed since an earlier one.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Kind {
    Base,
    Delta,
}

/// A file of a checkpoint: its place in the log, and what it holds.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Name {
    pub lsn: Lsn,
    pub kind: Kind,
}

impl fmt::Display for Name {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let kind = match self.kind {
            Kind::Base => "base",
            Kind::Delta => "delta",
        };
        write!(f, "{:020}.{kind}.ckpt", self.lsn.0)
    }
}

impl Name {
    pub fn parse(name: &str) -> Option<Self> {
        let (lsn, _) = name.split_once('.')?;
        let lsn = Lsn(lsn.parse().ok()?);
        [Kind::Base, Kind::Delta]
            .map(|kind| Self { lsn, kind })
            .into_iter()
            .find(|one| one.to_string() == name)
    }

    /// Its path in the data directory.
    pub fn path(&self) -> String {
        join(DIR, &self.to_string())
    }
}

/// A file that is there, as far as the others need to know of it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Kept {
    pub name: Name,
    /// Where a delta goes on from, at the earliest; the place itself of a base.
    pub since: Lsn,
    /// Where a replay from its place begins.
    pub start: SegmentNumber,
    pub bytes: u64,
}

impl Kept {
    pub fn lsn(&self) -> Lsn {
        self.name.lsn
    }

    pub fn is_base(&self) -> bool {
        self.name.kind == Kind::Base
    }

    /// Whether this delta, on top of that base, is the state of its place.
    pub fn goes_on_from(&self, base: &Self) -> bool {
        base.is_base() && !self.is_base() && (self.since..=self.lsn()).contains(&base.lsn())
    }
}

/// A stretch of a file.
#[derive(Clone, Copy, Debug, Default)]
struct Stretch {
    bytes: u64,
    crc: u32,
}

impl Stretch {
    fn of(bytes: &[u8]) -> Self {
        Self { bytes: bytes.len() as u64, crc: crc32fast::hash(bytes) }
    }
}

struct Header {
    cluster: Uid,
    name: Name,
    since: Lsn,
    log: Stretch,
    head: Stretch,
    parts: Stretch,
}

impl Header {
    fn encode(&self) -> Vec<u8> {
        let mut out = Vec::with_capacity(HEADER_BYTES);
        out.extend_from_slice(&MAGIC);
        out.put_u32(VERSION);
        out.put_u32(0);
        out.extend_from_slice(&self.cluster.0);
        out.put_u64(self.name.lsn.0);
        out.put_u64(self.since.0);
        for stretch in [self.log, self.head, self.parts] {
            out.put_u64(stretch.bytes);
            out.put_u32(stretch.crc);
        }
        out.put_u32(match self.name.kind {
            Kind::Base => BASE,
            Kind::Delta => DELTA,
        });
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
        let (cluster, lsn, since) = (Uid(reader.array()?), Lsn(reader.u64()?), Lsn(reader.u64()?));
        let mut stretch = || Ok::<_, WireError>(Stretch { bytes: reader.u64()?, crc: reader.u32()? });
        let (log, head, parts) = (stretch()?, stretch()?, stretch()?);
        let kind = match reader.u32()? {
            BASE => Kind::Base,
            DELTA => Kind::Delta,
            _ => return Err(WireError::Invalid { what: "the kind of a checkpoint" }),
        };
        Ok(Self { cluster, name: Name { lsn, kind }, since, log, head, parts })
    }

    /// Bytes of the whole file, if they can be counted.
    fn file_bytes(&self) -> Option<u64> {
        let stretches = [self.log, self.head, self.parts];
        stretches.iter().try_fold(HEADER_BYTES as u64, |sum, stretch| sum.checked_add(stretch.bytes))
    }
}

fn checksum(header: &[u8]) -> u32 {
    let mut hasher = Hasher::new();
    hasher.update(&header[..CRC_AT]);
    hasher.update(&header[CRC_AT + 4..]);
    hasher.finalize()
}

/// What a new file is to hold, besides its parts.
#[derive(Clone, Copy)]
pub struct Draft<'a> {
    pub cluster: Uid,
    pub kind: Kind,
    pub since: Lsn,
    pub mark: &'a Mark,
    pub head: &'a [u8],
}

impl Draft<'_> {
    fn name(&self) -> Name {
        Name { lsn: self.mark.lsn, kind: self.kind }
    }

    /// A base holds what there is; a delta what has changed, gone parts too.
    fn wants(&self, part: &PartHead) -> bool {
        match self.kind {
            Kind::Base => part.bytes > 0,
            Kind::Delta => part.stamp > self.since,
        }
    }

    /// Writes the file and syncs it, then gives it its name; leaves nothing behind on failure, as far as the disk
    /// lets it.
    pub fn write(&self, disk: &dyn Disk, parts: Merged<'_>) -> Result<Kept, Broken> {
        let (name, path) = (self.name(), self.name().path());
        let temp = format!("{path}.tmp");
        if disk.exists(&temp)? {
            disk.remove(&temp)?;
        }
        let file = disk.create(&temp)?;
        let bytes = self.write_into(&*file, parts).inspect_err(|_| drop(disk.remove(&temp)))?;
        disk.rename(&temp, &path)?;
        disk.sync_dir(DIR)?;
        Ok(Kept { name, since: self.since, start: self.mark.start.segment, bytes })
    }

    /// The header comes last: only then the rest is known.
    fn write_into(&self, file: &dyn DiskFile, mut parts: Merged<'_>) -> Result<u64, Broken> {
        let log = self.mark.encode();
        let mut pieces = Pieces { file, buffer: Vec::new(), position: HEADER_BYTES as u64 };
        pieces.add(&log)?;
        pieces.add(self.head)?;
        let start = pieces.end();
        let mut crc = Hasher::new();
        while let Some((part, bytes)) = parts.next()? {
            if self.wants(&part) {
                for bytes in [&part.encode()[..], bytes] {
                    crc.update(bytes);
                    pieces.add(bytes)?;
                }
            }
        }
        let end = pieces.end();
        pieces.flush()?;
        let header = Header {
            cluster: self.cluster,
            name: self.name(),
            since: self.since,
            log: Stretch::of(&log),
            head: Stretch::of(self.head),
            parts: Stretch { bytes: end - start, crc: crc.finalize() },
        };
        file.write_at(&mut [IoSlice::new(&header.encode())], 0)?;
        file.sync_data()?;
        Ok(end)
    }
}

/// Bytes on their way into a file, written and synced piece by piece.
struct Pieces<'a> {
    file: &'a dyn DiskFile,
    buffer: Vec<u8>,
    /// Of the buffer.
    position: u64,
}

impl Pieces<'_> {
    fn end(&self) -> u64 {
        self.position + self.buffer.len() as u64
    }

    fn add(&mut self, mut bytes: &[u8]) -> Result<(), DiskError> {
        while !bytes.is_empty() {
            let (now, later) = bytes.split_at(bytes.len().min(PIECE_BYTES - self.buffer.len()));
            self.buffer.extend_from_slice(now);
            bytes = later;
            if self.buffer.len() == PIECE_BYTES {
                self.flush()?;
            }
        }
        Ok(())
    }

    fn flush(&mut self) -> Result<(), DiskError> {
        if !self.buffer.is_empty() {
            self.file.write_at(&mut [IoSlice::new(&self.buffer)], self.position)?;
            self.file.sync_data()?;
            self.position = self.end();
            self.buffer.clear();
        }
        Ok(())
    }
}

/// A file that is read; all but its parts are verified.
pub struct Opened {
    pub kept: Kept,
    pub mark: Mark,
    pub head: Vec<u8>,
    pub parts: PartReader,
}

/// Opens a file.
pub fn open(disk: &dyn Disk, cluster: Uid, name: Name) -> Result<Opened, Broken> {
    let damaged = |fault| Broken::Damaged(name, fault);
    let file = disk.open(&name.path())?;
    let length = file.length()?;
    let mut front = [0; HEADER_BYTES];
    if length < front.len() as u64 {
        return Err(damaged(CheckpointFault::Length));
    }
    file.read_at(&mut front, 0)?;
    let header = match Header::version(&front) {
        Some(VERSION) => Header::decode(&front).map_err(|_| damaged(CheckpointFault::Header))?,
        Some(found) => {
            let path = disk.full_path(&name.path());
            return Err(LogError::NewerFormat { path, found, supported: VERSION }.into());
        }
        None => return Err(damaged(CheckpointFault::Header)),
    };
    if header.file_bytes() != Some(length) {
        return Err(damaged(CheckpointFault::Length));
    }
    if header.cluster != cluster || header.name != name {
        return Err(damaged(CheckpointFault::Place));
    }
    let position = HEADER_BYTES as u64;
    let log = read_stretch(&file, position, header.log)?;
    let mark = log.and_then(|log| Mark::decode(name.lsn, &log).ok());
    let mark = mark.ok_or(damaged(CheckpointFault::Log { position }))?;
    let position = position + header.log.bytes;
    let head = read_stretch(&file, position, header.head)?;
    let head = head.ok_or(damaged(CheckpointFault::Head { position }))?;
    let kept = Kept { name, since: header.since, start: mark.start.segment, bytes: length };
    let start = position + header.head.bytes;
    let parts = PartReader::new(name, Window::new(file, length), start, header.parts.crc);
    Ok(Opened { kept, mark, head, parts })
}

fn read_stretch(
    file: &Arc<dyn DiskFile>,
    position: u64,
    stretch: Stretch,
) -> Result<Option<Vec<u8>>, DiskError> {
    let mut bytes = vec![0; usize::try_from(stretch.bytes).expect("files fit the address space")];
    file.read_at(&mut bytes, position)?;
    Ok((crc32fast::hash(&bytes) == stretch.crc).then_some(bytes))
}

//! Segments: their header (layout in the header of [`super`]), their names and their salts.

use std::sync::Arc;

use siphasher::sip::SipHasher24;

use super::packed;
use crate::disk::DiskFile;
use crate::ids::{Lsn, SegmentNumber, Uid};
use crate::record::wire::{Put, Reader, WireError};

/// Bytes of a segment before its first frame.
pub const SEGMENT_HEADER_BYTES: usize = 4096;
/// The newest format version that this build reads, and the one it writes.
pub const FORMAT_VERSION: u32 = 1;
/// Smallest segment file.
pub const SEGMENT_BYTES_MIN: u64 = 256 << 10;
/// Largest segment file: positions in the index are 32 bits.
pub const SEGMENT_BYTES_MAX: u64 = 1 << 30;

const MAGIC: [u8; 8] = *b"FOREBAYS";
const CRC_AT: usize = 12;

/// A segment's header.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct SegmentHeader {
    /// Features that a reader may ignore.
    pub compat_flags: u64,
    /// Features that a reader must know.
    pub incompat_flags: u64,
    pub cluster: Uid,
    /// The run of the server that began the segment.
    pub node: Uid,
    pub shard: u32,
    pub epoch: u64,
    pub segment: SegmentNumber,
    /// Secret: keeps payloads from forging frames.
    pub salt: u64,
    /// LSN of the segment's first record.
    pub first_lsn: Lsn,
    /// Names the key that the frames are encrypted with; zero: they are not.
    pub encryption_key: [u8; 32],
}

/// Gives every segment its salt: SipHash-2-4 of its number under the second 16 bytes of the data directory's key. So
/// the salt is as secret as the key, and known without the segment's header: frames can be told from what else stands
/// in a file even where that header is lost.
#[derive(Clone)]
pub struct Salts {
    hasher: SipHasher24,
}

impl std::fmt::Debug for Salts {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Salts")
    }
}

impl Salts {
    pub fn new(key: &[u8; 32]) -> Self {
        Self { hasher: SipHasher24::new_with_key(key.last_chunk().expect("32 bytes hold 16")) }
    }

    pub fn of(&self, segment: SegmentNumber) -> u64 {
        self.hasher.hash(&segment.0.to_le_bytes())
    }
}

/// Why a block is not a segment's header.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum SegmentHeaderError {
    #[error("the block is not a segment's header, or is damaged")]
    Damaged,
    #[error("format version {0}")]
    Newer(u32),
    #[error("features {0:#x}")]
    Features(u64),
}

impl From<WireError> for SegmentHeaderError {
    fn from(_: WireError) -> Self {
        SegmentHeaderError::Damaged
    }
}

impl SegmentHeader {
    /// Appends the whole block.
    pub fn encode(&self, out: &mut Vec<u8>) {
        let start = out.len();
        out.extend_from_slice(&MAGIC);
        out.put_u32(FORMAT_VERSION);
        out.put_u32(0);
        out.put_u64(self.compat_flags);
        out.put_u64(self.incompat_flags);
        out.extend_from_slice(&self.cluster.0);
        out.extend_from_slice(&self.node.0);
        out.put_u32(self.shard);
        out.put_u32(0);
        out.put_u64(self.epoch);
        out.put_u64(self.segment.0);
        out.put_u64(self.salt);
        out.put_u64(self.first_lsn.0);
        out.extend_from_slice(&self.encryption_key);
        out.resize(start + SEGMENT_HEADER_BYTES, 0);
        let crc = block_crc(&out[start..]);
        out[start + CRC_AT..start + CRC_AT + 4].copy_from_slice(&crc.to_le_bytes());
    }

    /// Reads a whole block.
    pub fn decode(block: &[u8]) -> Result<Self, SegmentHeaderError> {
        let block = block.get(..SEGMENT_HEADER_BYTES).ok_or(SegmentHeaderError::Damaged)?;
        let mut reader = Reader::new(block);
        let magic = reader.array()?;
        let version = reader.u32()?;
        if magic != MAGIC || reader.u32()? != block_crc(block) {
            return Err(SegmentHeaderError::Damaged);
        }
        if version > FORMAT_VERSION {
            return Err(SegmentHeaderError::Newer(version));
        }
        let (compat_flags, incompat_flags) = (reader.u64()?, reader.u64()?);
        if incompat_flags != 0 {
            return Err(SegmentHeaderError::Features(incompat_flags));
        }
        let (cluster, node) = (Uid(reader.array()?), Uid(reader.array()?));
        let shard = reader.u32()?;
        reader.u32()?;
        Ok(Self {
            compat_flags,
            incompat_flags,
            cluster,
            node,
            shard,
            epoch: reader.u64()?,
            segment: SegmentNumber(reader.u64()?),
            salt: reader.u64()?,
            first_lsn: Lsn(reader.u64()?),
            encryption_key: reader.array()?,
        })
    }
}

/// The checksum of a header block, which covers all but its own place.
pub fn block_crc(block: &[u8]) -> u32 {
    let mut hasher = crc32fast::Hasher::new();
    hasher.update(&block[..CRC_AT]);
    hasher.update(&block[CRC_AT + 4..]);
    hasher.finalize()
}

/// The directory of a segment's files.
fn dir(segment: SegmentNumber) -> &'static str {
    if packed::is_packed(segment) { packed::DIR } else { "log" }
}

/// The path of a segment's file.
pub fn path(segment: SegmentNumber) -> String {
    format!("{}/{:020}.seg", dir(segment), segment.0)
}

/// The path of its index.
pub fn index_path(segment: SegmentNumber) -> String {
    format!("{}/{:020}.idx", dir(segment), segment.0)
}

/// The segment whose file has this name in `log/` or `packed/`.
pub fn parse_name(name: &str) -> Option<SegmentNumber> {
    let digits = name.strip_suffix(".seg")?;
    let number = SegmentNumber(digits.parse().ok().filter(|number| *number > 0)?);
    (format!("{:020}", number.0) == digits).then_some(number)
}

/// The path of a segment's file while it is being prepared.
pub fn temp_path(segment: SegmentNumber) -> String {
    format!("log/{:020}.seg.tmp", segment.0)
}

/// Whether a name in `log/` or `packed/` is of a preparation that was not finished.
pub fn is_temp_name(name: &str) -> bool {
    name.strip_suffix(".tmp").is_some_and(|name| parse_name(name).is_some())
}

/// The path of the file of a segment that has left, while it waits to become another's.
pub fn free_path(segment: SegmentNumber) -> String {
    format!("log/{:020}.free", segment.0)
}

/// The segment whose file has this name in `log/` while it waits to become another's.
pub fn parse_free_name(name: &str) -> Option<SegmentNumber> {
    parse_name(&format!("{}.seg", name.strip_suffix(".free")?))
}

/// A segment's file that was not begun: the block of its header is zero, and its name is durable.
#[derive(Clone, Debug)]
pub struct Blank {
    pub segment: SegmentNumber,
    pub file: Arc<dyn DiskFile>,
    /// Bytes of the file.
    pub bytes: u64,
}

#[cfg(test)]
mod tests {
    use super::*;

    pub(crate) fn header() -> SegmentHeader {
        SegmentHeader {
            compat_flags: 5,
            incompat_flags: 0,
            cluster: Uid([1; 16]),
            node: Uid([2; 16]),
            shard: 3,
            epoch: 4,
            segment: SegmentNumber(5),
            salt: 6,
            first_lsn: Lsn(7),
            encryption_key: [8; 32],
        }
    }

    #[test]
    fn headers_come_back_and_every_flip_is_seen() {
        let mut block = Vec::new();
        header().encode(&mut block);
        assert_eq!(block.len(), SEGMENT_HEADER_BYTES);
        assert_eq!(SegmentHeader::decode(&block), Ok(header()));
        for at in 0..block.len() {
            block[at] ^= 0x10;
            assert_eq!(SegmentHeader::decode(&block), Err(SegmentHeaderError::Damaged), "byte {at}");
            block[at] ^= 0x10;
        }
    }

    #[test]
    fn zeroes_never_decode() {
        assert_eq!(SegmentHeader::decode(&[0; SEGMENT_HEADER_BYTES]), Err(SegmentHeaderError::Damaged));
    }

    #[test]
    fn newer_versions_and_features_are_told_apart_from_damage() {
        let mut block = Vec::new();
        header().encode(&mut block);
        let seal = |block: &mut Vec<u8>| {
            let crc = block_crc(block).to_le_bytes();
            block[CRC_AT..CRC_AT + 4].copy_from_slice(&crc);
        };
        block[24] = 9;
        seal(&mut block);
        assert_eq!(SegmentHeader::decode(&block), Err(SegmentHeaderError::Features(9)));
        block[8] = 2;
        seal(&mut block);
        assert_eq!(SegmentHeader::decode(&block), Err(SegmentHeaderError::Newer(2)));
    }

    #[test]
    fn salts_depend_on_number_and_key() {
        let [one, other] =
            [1, 2].map(|last| Salts::new(&std::array::from_fn(|at| last * u8::from(at == 31))));
        let salts: std::collections::HashSet<u64> = (1..=1_000)
            .flat_map(|number| [&one, &other].map(|salts| salts.of(SegmentNumber(number))))
            .collect();
        assert_eq!(salts.len(), 2_000);
        assert_eq!(one.of(SegmentNumber(7)), one.clone().of(SegmentNumber(7)));
    }

    #[test]
    fn names_have_one_form() {
        assert_eq!(path(SegmentNumber(7)), "log/00000000000000000007.seg");
        assert_eq!(parse_name("00000000000000000007.seg"), Some(SegmentNumber(7)));
        for name in ["7.seg", "00000000000000000000.seg", "00000000000000000007.seg.tmp", "x.seg"] {
            assert_eq!(parse_name(name), None, "{name}");
        }
        let free = free_path(SegmentNumber(7));
        assert_eq!(parse_free_name(free.strip_prefix("log/").unwrap()), Some(SegmentNumber(7)));
        assert_eq!((parse_free_name("7.free"), parse_free_name("00000000000000000007.seg")), (None, None));
        assert!(is_temp_name("00000000000000000007.seg.tmp") && !is_temp_name("notes.tmp"));
    }
}

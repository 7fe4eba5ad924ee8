//! Frames: one group commit each. Layout in the header of [`super`]. Pure; no input or output.

use super::error::FrameFault;
use crate::ids::{Lsn, SegmentNumber};

/// Frames begin at multiples of this many bytes, so that a torn sector never hurts an older frame.
pub const FRAME_ALIGN: u64 = 4096;
/// Bytes of a frame before its records.
pub const FRAME_HEADER_BYTES: usize = 80;
/// Bytes of a frame behind its records and padding: its header again.
pub const FRAME_TRAILER_BYTES: usize = FRAME_HEADER_BYTES;
/// Largest frame, with all that.
pub const FRAME_BYTES_MAX: u64 = 16 << 20;

const MAGIC: [u8; 4] = *b"FBfr";

/// A frame's header.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct FrameHeader {
    /// Salted checksum over the records.
    pub payload_crc: u32,
    /// Bytes of the records.
    pub payload_len: u32,
    /// Records in the frame.
    pub count: u32,
    /// Header checksum of the frame before it; 0 for the log's first.
    pub previous_crc: u32,
    /// LSN of its first record.
    pub first_lsn: Lsn,
    pub epoch: u64,
    pub segment: SegmentNumber,
    /// Its place in the log, counted in frames from 0.
    pub sequence: u64,
    /// The monotonic clock that the log carries, microseconds.
    pub log_time_us: u64,
}

impl FrameHeader {
    /// The header's bytes, checksum included, and that checksum for the next frame's chain.
    pub fn encode(&self, salt: u64) -> ([u8; FRAME_HEADER_BYTES], u32) {
        let mut out = [0; FRAME_HEADER_BYTES];
        let mut at = 4;
        let mut put = |bytes: &[u8]| {
            out[at..at + bytes.len()].copy_from_slice(bytes);
            at += bytes.len();
        };
        put(&MAGIC);
        put(&self.payload_crc.to_le_bytes());
        put(&self.payload_len.to_le_bytes());
        put(&self.count.to_le_bytes());
        put(&self.previous_crc.to_le_bytes());
        put(&self.first_lsn.0.to_le_bytes());
        put(&self.epoch.to_le_bytes());
        put(&self.segment.0.to_le_bytes());
        put(&self.sequence.to_le_bytes());
        put(&self.log_time_us.to_le_bytes());
        let crc = salted(salt, &out[4..]);
        out[..4].copy_from_slice(&crc.to_le_bytes());
        (out, crc)
    }

    /// Reads a header and its checksum from the front of `bytes`.
    pub fn decode(bytes: &[u8], salt: u64) -> Result<(Self, u32), FrameFault> {
        let header = Self::claimed(bytes).ok_or(FrameFault::Missing)?;
        let crc = u32::from_le_bytes(field(bytes, 0));
        if crc != salted(salt, &bytes[4..FRAME_HEADER_BYTES]) {
            return Err(FrameFault::HeaderChecksum);
        }
        if header.frame_len() > FRAME_BYTES_MAX || header.payload_len == 0 || header.count == 0 {
            return Err(FrameFault::Length);
        }
        Ok((header, crc))
    }

    /// Reads the header's copy at the end of `block`, which is a frame's last.
    pub fn decode_trailer(block: &[u8], salt: u64) -> Result<Self, FrameFault> {
        let from = block.len().saturating_sub(FRAME_TRAILER_BYTES);
        Self::decode(&block[from..], salt).map(|(header, _)| header)
    }

    /// What looks like a header, without its checksum verified.
    pub fn claimed(bytes: &[u8]) -> Option<Self> {
        if bytes.len() < FRAME_HEADER_BYTES || field(bytes, 4) != MAGIC {
            return None;
        }
        let u32_at = |at| u32::from_le_bytes(field(bytes, at));
        let u64_at = |at| u64::from_le_bytes(field(bytes, at));
        Some(Self {
            payload_crc: u32_at(8),
            payload_len: u32_at(12),
            count: u32_at(16),
            previous_crc: u32_at(20),
            first_lsn: Lsn(u64_at(24)),
            epoch: u64_at(32),
            segment: SegmentNumber(u64_at(40)),
            sequence: u64_at(48),
            log_time_us: u64_at(56),
        })
    }

    /// Bytes that the frame takes in its segment.
    pub fn frame_len(&self) -> u64 {
        frame_len(u64::from(self.payload_len))
    }
}

fn field<const N: usize>(bytes: &[u8], at: usize) -> [u8; N] {
    bytes[at..at + N].try_into().expect("N bytes")
}

/// Bytes that a frame with `payload_len` bytes of records takes in its segment.
pub fn frame_len(payload_len: u64) -> u64 {
    ((FRAME_HEADER_BYTES + FRAME_TRAILER_BYTES) as u64 + payload_len).next_multiple_of(FRAME_ALIGN)
}

/// A checksum that knows the segment's salt.
pub fn salted_hasher(salt: u64) -> crc32fast::Hasher {
    let mut hasher = crc32fast::Hasher::new();
    hasher.update(&salt.to_le_bytes());
    hasher
}

/// The salted checksum of `bytes`.
pub fn salted(salt: u64, bytes: &[u8]) -> u32 {
    let mut hasher = salted_hasher(salt);
    hasher.update(bytes);
    hasher.finalize()
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const SALT: u64 = 0x0123_4567_89ab_cdef;

    fn headers() -> impl Strategy<Value = FrameHeader> {
        (any::<[u32; 2]>(), 1u32..1 << 23, 1u32.., any::<[u64; 5]>()).prop_map(
            |([payload_crc, previous_crc], payload_len, count, [lsn, epoch, segment, sequence, time])| {
                FrameHeader {
                    payload_crc,
                    payload_len,
                    count,
                    previous_crc,
                    first_lsn: Lsn(lsn),
                    epoch,
                    segment: SegmentNumber(segment),
                    sequence,
                    log_time_us: time,
                }
            },
        )
    }

    proptest! {
        #[test]
        fn headers_come_back_and_flips_are_seen(header in headers(), bit in 0..FRAME_HEADER_BYTES * 8) {
            let (mut bytes, crc) = header.encode(SALT);
            prop_assert_eq!(FrameHeader::decode(&bytes, SALT), Ok((header, crc)));
            prop_assert_eq!(FrameHeader::decode(&bytes, SALT + 1), Err(FrameFault::HeaderChecksum));
            bytes[bit / 8] ^= 1 << (bit % 8);
            prop_assert!(FrameHeader::decode(&bytes, SALT).is_err());
        }

        #[test]
        fn any_bytes_are_read_without_panic(bytes: [u8; FRAME_HEADER_BYTES], salt: u64) {
            prop_assert!(FrameHeader::decode(&bytes, salt).is_err());
        }
    }

    #[test]
    fn zeroes_never_decode() {
        assert_eq!(FrameHeader::decode(&[0; FRAME_HEADER_BYTES], 0), Err(FrameFault::Missing));
    }

    #[test]
    fn frames_fill_whole_blocks() {
        assert_eq!((frame_len(1), frame_len(3936), frame_len(3937)), (4096, 4096, 8192));
    }
}

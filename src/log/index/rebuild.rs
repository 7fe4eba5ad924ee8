//! Finds the runs of a segment in the segment itself, as they were indexed when they were written.
//!
//! Frames are followed one by one. Of each the records are taken, up to the first whose own head is damaged: damage
//! to the bytes of a message costs no other, and is seen when it is read. Where no frame stands, the next block is
//! looked for that is a frame of this segment, by the salted checksum of its header. What was passed over is reported
//! as holes; what lies behind the last frame is none, unless it belongs to the segment (see [`crate::log::salvage`]).

use super::memory::{MemoryRuns, Run};
use super::{Location, Placed};
use crate::disk::Disk;
use crate::ids::SegmentNumber;
use crate::log::error::{FrameFault, LogError};
use crate::log::frame::{FRAME_ALIGN, FRAME_HEADER_BYTES, FrameHeader};
use crate::log::packed::{self, PackedHeader};
use crate::log::segment::{self, SEGMENT_HEADER_BYTES, SegmentHeader};
use crate::log::window::Window;
use crate::record::RecordHead;

/// A part of a segment whose records are lost to the index.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Hole {
    /// Of its first byte in the segment's file, and behind its last.
    pub from: u64,
    pub to: u64,
    pub what: FrameFault,
}

/// What a segment holds.
#[derive(Debug, Default)]
pub struct Rebuilt {
    pub runs: MemoryRuns,
    pub holes: Vec<Hole>,
}

/// The salt of a segment; none if its header is damaged.
pub fn salt(disk: &dyn Disk, segment: SegmentNumber) -> Result<Option<u64>, LogError> {
    if packed::is_packed(segment) {
        return Ok(PackedHeader::read(disk, segment)?.map(|header| header.salt));
    }
    let file = disk.open(&segment::path(segment))?;
    let mut block = [0; SEGMENT_HEADER_BYTES];
    if file.length()? < block.len() as u64 {
        return Ok(None);
    }
    file.read_at(&mut block, 0)?;
    let header = SegmentHeader::decode(&block).ok();
    Ok(header.filter(|header| header.segment == segment).map(|header| header.salt))
}

/// Reads a whole segment.
pub fn rebuild(disk: &dyn Disk, segment: SegmentNumber, salt: u64) -> Result<Rebuilt, LogError> {
    let file = disk.open(&segment::path(segment))?;
    let file_len = file.length()?;
    let window = Window::new(file, file_len);
    let mut walk = Walk { segment, salt, window, rebuilt: Rebuilt::default() };
    walk.run()?;
    Ok(walk.rebuilt)
}

struct Walk {
    segment: SegmentNumber,
    salt: u64,
    window: Window,
    rebuilt: Rebuilt,
}

impl Walk {
    fn run(&mut self) -> Result<(), LogError> {
        let mut position = SEGMENT_HEADER_BYTES as u64;
        let mut passed: Option<Passed> = None;
        let mut next_sequence = 0;
        while position < self.window.file_len() {
            match self.header(position, next_sequence)? {
                Ok(header) => {
                    if let Some(passed) = passed.take() {
                        self.hole(passed.from, position, passed.what);
                    }
                    self.take(&header, position)?;
                    next_sequence = header.sequence + 1;
                    position += header.frame_len();
                }
                Err(what) => {
                    let ours = self.ends_frame(position, next_sequence)?;
                    let passed = passed.get_or_insert(Passed { from: position, used_to: position, what });
                    position = (position + FRAME_ALIGN).min(self.window.file_len());
                    if ours {
                        passed.used_to = position;
                    }
                }
            }
        }
        if let Some(passed) = passed.filter(|passed| passed.used_to > passed.from) {
            self.hole(passed.from, passed.used_to, passed.what);
        }
        Ok(())
    }

    fn hole(&mut self, from: u64, to: u64, what: FrameFault) {
        self.rebuilt.holes.push(Hole { from, to, what });
    }

    /// The frame's header at `position`, if one stands there that comes later than those before it.
    fn header(&mut self, position: u64, next: u64) -> Result<Result<FrameHeader, FrameFault>, LogError> {
        let Some(bytes) = self.window.get(position, FRAME_HEADER_BYTES)? else {
            return Ok(Err(FrameFault::Missing));
        };
        let header = match FrameHeader::decode(bytes, self.salt) {
            Ok((header, _)) => header,
            Err(fault) => return Ok(Err(fault)),
        };
        Ok(if header.segment != self.segment {
            Err(FrameFault::Place)
        } else if header.sequence < next {
            Err(FrameFault::Chain)
        } else if header.frame_len() > self.window.file_len() - position {
            Err(FrameFault::Length)
        } else {
            Ok(header)
        })
    }

    /// Whether the block at `position` is the last of a frame that comes later than those before it.
    fn ends_frame(&mut self, position: u64, next: u64) -> Result<bool, LogError> {
        let length = FRAME_ALIGN.min(self.window.file_len() - position) as usize;
        let block = self.window.get(position, length)?.expect("within the file");
        let trailer = FrameHeader::decode_trailer(block, self.salt);
        Ok(trailer.is_ok_and(|trailer| trailer.segment == self.segment && trailer.sequence >= next))
    }

    /// Takes the runs of a frame, as far as its records can be told apart.
    fn take(&mut self, header: &FrameHeader, frame_at: u64) -> Result<(), LogError> {
        let start = frame_at + FRAME_HEADER_BYTES as u64;
        let payload = self.window.get(start, header.payload_len as usize)?.expect("within the file");
        let mut rest = payload;
        for _ in 0..header.count {
            let Some((placed, behind)) = first_record(rest, self.segment, start, payload.len()) else {
                break;
            };
            if let Some(placed) = placed
                && !self.rebuilt.runs.push(placed.queue, Run::of(&placed))
            {
                break;
            }
            rest = behind;
        }
        if !rest.is_empty() {
            let from = start + (payload.len() - rest.len()) as u64;
            let (to, what) = (frame_at + header.frame_len(), FrameFault::PayloadChecksum);
            self.rebuilt.holes.push(Hole { from, to, what });
        }
        Ok(())
    }
}

/// Blocks without a frame.
struct Passed {
    from: u64,
    /// End of the last that ends a frame.
    used_to: u64,
    what: FrameFault,
}

/// The run of the first record in `rest`, if it is one, and what follows it; none if its head is damaged.
fn first_record(
    rest: &[u8],
    segment: SegmentNumber,
    payload_at: u64,
    payload_len: usize,
) -> Option<(Option<Placed>, &[u8])> {
    let head = RecordHead::decode(rest).ok()?;
    let (_, behind) = rest.split_at_checked(head.length as usize)?;
    let position = payload_at + (payload_len - rest.len()) as u64;
    let placed = Placed::of(&head, Location { segment, position, length: head.length });
    Some((placed, behind))
}

#[cfg(test)]
mod tests {
    use std::io::IoSlice;

    use super::*;
    use crate::disk::RealDisk;
    use crate::ids::{Lsn, Offset, QueueId};
    use crate::log::assemble::Assembler;
    use crate::log::frame::FRAME_TRAILER_BYTES;
    use crate::record::{Body, Kind, Lane, MessageRun, Record, StoredParts};

    const SALT: u64 = 5;
    const SEGMENT: SegmentNumber = SegmentNumber(3);

    /// The frame with this sequence number, with one message of 5,000 bytes.
    fn frame(sequence: u64) -> Vec<u8> {
        let message = StoredParts { meta: Default::default(), body: vec![b'm'; 5_000].into() };
        let run =
            MessageRun { lane: Lane { priority: 4, bucket: 0 }, publish_time_us: 1, messages: vec![message] };
        let record = Record {
            kind: Kind::Publish,
            flags: 0,
            queue: QueueId(1),
            offset: Offset(sequence),
            headers: Vec::new(),
            body: Body::Run(run),
        };
        let mut assembler = Assembler::default();
        assembler.begin(|_| ());
        assembler.push(&record, Lsn(sequence));
        let header = FrameHeader {
            payload_crc: 0,
            payload_len: 0,
            count: 0,
            previous_crc: 0,
            first_lsn: Lsn(sequence),
            epoch: 1,
            segment: SEGMENT,
            sequence,
            log_time_us: 0,
        };
        assembler.finish(header, SALT);
        assembler.parts().0.iter().flat_map(|part| part.to_vec()).collect()
    }

    /// What is found in a segment with two frames in which `damage` is changed, before old bytes.
    fn found(damage: &[(usize, usize)]) -> (usize, Vec<(u64, u64)>) {
        let dir = tempfile::tempdir().unwrap();
        let disk = RealDisk::new(dir.path());
        disk.create_dir("log").unwrap();
        let mut bytes = [vec![1; SEGMENT_HEADER_BYTES], frame(7), frame(8), vec![0x5a; 9 * 4096]].concat();
        damage.iter().for_each(|(from, to)| bytes[*from..*to].iter_mut().for_each(|byte| *byte = !*byte));
        let file = disk.create(&segment::path(SEGMENT)).unwrap();
        file.write_at(&mut [IoSlice::new(&bytes)], 0).unwrap();
        let rebuilt = rebuild(&disk, SEGMENT, SALT).unwrap();
        (rebuilt.runs.count(), rebuilt.holes.iter().map(|hole| (hole.from, hole.to)).collect())
    }

    #[test]
    fn old_bytes_behind_the_last_frame_are_no_hole_and_a_damaged_frame_is() {
        let length = frame(7).len();
        let (first, second) = (SEGMENT_HEADER_BYTES, SEGMENT_HEADER_BYTES + length);
        let end = second + length;
        let hole = |from: usize, to: usize| vec![(from as u64, to as u64)];
        assert_eq!(found(&[]), (2, vec![]));
        assert_eq!(found(&[(second, second + 512)]), (1, hole(second, end)));
        assert_eq!(found(&[(first, first + 1)]), (1, hole(first, second)));
        assert_eq!(found(&[(first, first + 1), (second, second + 1)]), (0, hole(first, end)));
        let trailer = (end - FRAME_TRAILER_BYTES, end);
        assert_eq!(found(&[trailer]), (2, vec![]));
        assert_eq!(
            found(&[(second, second + 1), trailer]),
            (1, vec![]),
            "nothing says that there was a frame"
        );
    }
}

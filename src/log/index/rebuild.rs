//! Finds the runs of a segment in the segment itself, as they were indexed when they were written.
//!
//! Frames are followed one by one. Of each the records are taken, up to the first whose own head is damaged: damage
//! to the bytes of a message costs no other, and is seen when it is read. Where no frame stands, the next block is
//! looked for that is a frame of this segment, by the salted checksum of its header. What was passed over is reported
//! as holes; the zeroes behind the last frame are none.

use super::memory::{MemoryRuns, Run};
use super::{Location, Placed};
use crate::disk::Disk;
use crate::ids::SegmentNumber;
use crate::log::error::{FrameFault, LogError};
use crate::log::frame::{FRAME_ALIGN, FRAME_HEADER_BYTES, FrameHeader};
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
                    let blank = self.is_blank(position)?;
                    let passed = passed.get_or_insert(Passed { from: position, used_to: position, what });
                    position = (position + FRAME_ALIGN).min(self.window.file_len());
                    if !blank {
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

    fn is_blank(&mut self, position: u64) -> Result<bool, LogError> {
        let length = FRAME_ALIGN.min(self.window.file_len() - position) as usize;
        let block = self.window.get(position, length)?.expect("within the file");
        Ok(block.iter().all(|byte| *byte == 0))
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
    /// End of the last that is not all zero.
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

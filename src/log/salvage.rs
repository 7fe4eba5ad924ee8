//! Damage before the end of the log: what is lost stays local, and is reported.
//!
//! # When
//! A frame is begun only after the one before it is durable. So where no good frame stands, the log goes on if a frame
//! with a later sequence number follows in the same segment (its header passes the salted checksum, at a multiple of
//! 4,096), or if a later segment has a header that begins behind the records read so far. Else this is the log's end.
//!
//! # What belongs to the log
//! A segment's file may have been another's before, see [`super::supply`]: what stands behind the last good frame may
//! be of its earlier life, in which no frame has this segment's salt. So bytes there belong to the log if a frame's
//! header, at the start of a block, or its copy, at the end of one, passes the salted checksum and has no earlier
//! sequence number than the next frame.
//! - Header and copy lie in different sectors. So a frame that was written whole is known as one of the log's though
//!   any one sector of it is lost, zeroed or old, and though any bits outside of one of the two are flipped.
//! - A frame that was never finished, of which the disk has neither, leaves nothing to be told from what was there.
//!   Nor does one that was finished, and lost both: no frame behind it is lost with it.
//! - Nobody but the log can write such bytes: clients do not know the salt.
//!
//! # What is taken
//! Of a frame whose header is good, the records before the first whose own head fails its checksum. Damage to a
//! message's bytes costs that message alone, and is seen when it is read. Frames without a good header are lost, and so
//! are segments without: only the header has the salt. The index takes the same when it is rebuilt.
//!
//! # What is kept
//! Damaged bytes stay where they are until their segment leaves the log; a copy is in `quarantine/`. A segment whose
//! listing was lost is taken for listed.

use std::ops::Range;
use std::path::PathBuf;
use std::sync::Arc;

use super::error::{FrameFault, LogError};
use super::frame::{FRAME_ALIGN, FRAME_HEADER_BYTES, FrameHeader};
use super::recovery::{FIRST_FRAME_AT, Opened, Recovery, Taking, insert_listed, open_listed, open_segment};
use super::segment;
use super::system::SegmentAdded;
use super::tail::{Chain, Current};
use super::window::Window;
use super::{Index, StateMachine};
use crate::disk::DiskFile;
use crate::ids::{Lsn, SegmentNumber};

/// A part of the log that cannot be read, with the log going on behind it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Damage {
    pub segment: SegmentNumber,
    /// Of its first byte in the segment's file; 0 if the whole segment is lost.
    pub position: u64,
    /// Bytes up to where the log goes on, or to the last one that is not zero.
    pub bytes: u64,
    pub what: FrameFault,
    /// The records that are lost are those from this one on, and before `lost_end`. Where a hole goes over several
    /// segments, the first reports all its records.
    pub lost_first: Lsn,
    pub lost_end: Lsn,
    /// Records that were taken out of it.
    pub salvaged: u64,
    /// Where a copy of the bytes is kept; none if there are no bytes.
    pub copy: Option<PathBuf>,
}

/// Damage that was passed, on its way to be copied.
#[derive(Debug)]
pub struct Hole {
    pub segment: SegmentNumber,
    pub file: Arc<dyn DiskFile>,
    pub from: u64,
    pub to: u64,
    pub what: FrameFault,
    pub lost_first: Lsn,
    pub lost_end: Lsn,
    pub salvaged: u64,
}

/// What a search found.
#[derive(Debug, Default)]
pub struct Seen {
    /// The first frame that came later, and where it stands.
    pub later: Option<(u64, FrameHeader)>,
    /// End of what belongs to the log, or may do so because there is no salt.
    pub used_to: Option<u64>,
    /// End of the last block that is not all zero. This and `used_to` are of what lies before the later frame.
    pub filled_to: Option<u64>,
}

/// Whether all of a block's bytes are 0. Compared as a whole, which is faster than byte by byte.
pub fn is_zero(block: &[u8]) -> bool {
    const ZEROES: [u8; FRAME_ALIGN as usize] = [0; FRAME_ALIGN as usize];
    block.chunks(ZEROES.len()).all(|part| *part == ZEROES[..part.len()])
}

/// Looks in a part of a segment for the first frame that came later than `chain` stands; without a salt none can be
/// known.
pub fn search(
    window: &mut Window,
    segment: SegmentNumber,
    salt: Option<u64>,
    chain: &Chain,
    part: Range<u64>,
) -> Result<Seen, LogError> {
    let (mut seen, file_len) = (Seen::default(), window.file_len());
    let ours = |header: &FrameHeader| header.segment == segment && header.sequence >= chain.sequence;
    let mut position = part.start;
    while position < part.end {
        let length = FRAME_ALIGN.min(file_len - position);
        let block = window.get(position, length as usize)?.expect("within the file");
        if !is_zero(block) {
            let end = position + length;
            seen.filled_to = Some(end);
            let header = salt.and_then(|salt| FrameHeader::decode(block, salt).ok());
            let header = header.map(|(header, _)| header).filter(ours);
            if let Some(header) = header
                && header.sequence > chain.sequence
                && header.first_lsn > chain.lsn
            {
                seen.later = Some((position, header));
                return Ok(seen);
            }
            let frame_end = header.map(|header| (position + header.frame_len()).min(file_len));
            let trailer = salt.and_then(|salt| FrameHeader::decode_trailer(block, salt).ok()).filter(ours);
            let used_to = frame_end.or((trailer.is_some() || salt.is_none()).then_some(end));
            seen.used_to = seen.used_to.max(used_to);
        }
        position += length;
    }
    Ok(seen)
}

impl Recovery<'_> {
    /// Goes on behind the bad frame at the current position, if the log does; else says in `used_to` what is there.
    pub fn pass_damage(
        &mut self,
        fault: FrameFault,
        machine: &mut dyn StateMachine,
        index: &Index,
    ) -> Result<bool, LogError> {
        self.adopt()?;
        let Current { segment, position, salt, .. } = self.current;
        let headless = position == 0;
        let salt = (!headless).then_some(salt);
        let end = self.window.file_len();
        let seen = search(&mut self.window, segment, salt, &self.chain, position..end)?;
        self.used_to = seen.used_to;
        let what = if headless { FrameFault::SegmentHeader } else { fault };
        if let Some((to, next)) = seen.later {
            self.hole(to, what, next.first_lsn, machine, index)?;
            self.chain.goes_on_with(&next);
            self.current.position = to;
            return Ok(true);
        }
        let Some((lost, opened)) = self.next_readable()? else { return Ok(false) };
        // If no segment behind was lost then records were lost here, and everything is kept of what is there.
        let hole_to = if lost.is_empty() { seen.filled_to.or(Some(position)) } else { seen.used_to };
        self.enter_behind(what, hole_to, lost, opened, machine, index)
    }

    /// Takes segments for listed that begin behind the records read so far: their listing was lost.
    fn adopt(&mut self) -> Result<(), LogError> {
        for entry in self.disk.list("log")? {
            let Some(segment) = segment::parse_name(&entry.name) else { continue };
            if segment <= self.current.segment || self.set.contains(segment) || self.set.was_dropped(segment)
            {
                continue;
            }
            // A file of another cluster, or of a newer format, is not of this log.
            let Ok(Opened { current, header: Some(header), .. }) =
                open_segment(self.disk, segment, self.cluster)
            else {
                continue;
            };
            if header.first_lsn > self.chain.lsn {
                let added = SegmentAdded { segment, bytes: current.bytes };
                self.set.add(added);
                insert_listed(&mut self.listed, added);
            }
        }
        Ok(())
    }

    /// The first listed segment with a good header, if it is certain that the log goes on in it or behind it; and those
    /// before it, which are lost.
    fn next_readable(&self) -> Result<Option<(Vec<Opened>, Opened)>, LogError> {
        let mut lost = Vec::new();
        let mut next: Option<Opened> = None;
        for listed in &self.listed {
            let mut opened = open_listed(self.disk, *listed, self.cluster)?;
            let Some(header) = opened.header else {
                if next.is_none() {
                    lost.push(opened);
                }
                continue;
            };
            if header.first_lsn > self.chain.lsn {
                return Ok(Some((lost, next.unwrap_or(opened))));
            }
            if header.first_lsn == self.chain.lsn && next.is_none() {
                let salt = Some(header.salt);
                let part = FIRST_FRAME_AT..opened.window.file_len();
                let seen = search(&mut opened.window, listed.segment, salt, &self.chain, part)?;
                if seen.later.is_some() {
                    return Ok(Some((lost, opened)));
                }
                next = Some(opened);
            }
        }
        Ok(None)
    }

    /// Goes on in a later segment, past what is damaged here, up to `hole_to`, and past `lost` segments.
    fn enter_behind(
        &mut self,
        what: FrameFault,
        hole_to: Option<u64>,
        lost: Vec<Opened>,
        mut opened: Opened,
        machine: &mut dyn StateMachine,
        index: &Index,
    ) -> Result<bool, LogError> {
        let first_lsn = opened.header.expect("its header is good").first_lsn;
        if first_lsn > self.chain.lsn {
            if let Some(to) = hole_to {
                self.hole(to, what, first_lsn, machine, index)?;
            }
            for lost in lost {
                self.lose(lost, first_lsn)?;
            }
        }
        let segment = opened.current.segment;
        self.listed.retain(|listed| listed.segment > segment);
        let bytes = opened.window.get(FIRST_FRAME_AT, FRAME_HEADER_BYTES)?;
        let first = bytes.and_then(|bytes| FrameHeader::decode(bytes, opened.current.salt).ok());
        if let Some((first, _)) = first
            && first.segment == segment
            && first.first_lsn == first_lsn
        {
            self.chain.goes_on_with(&first);
        }
        self.chain.lsn = first_lsn;
        self.enter(opened, index);
        Ok(true)
    }

    /// Takes what is good out of the frame at the current position and notes the hole from there to `to`, behind which
    /// record `next` comes.
    fn hole(
        &mut self,
        to: u64,
        what: FrameFault,
        next: Lsn,
        machine: &mut dyn StateMachine,
        index: &Index,
    ) -> Result<(), LogError> {
        let salvaged = match self.good_header(to)? {
            Some(header) => self.take(&header, Taking::WhatIsGood, machine, index)?,
            None => 0,
        };
        self.chain.lsn = self.chain.lsn.plus(salvaged);
        let (segment, from) = (self.current.segment, self.current.position);
        let file = self.current.file.clone();
        self.note_hole(Hole {
            segment,
            file,
            from,
            to,
            what,
            lost_first: self.chain.lsn,
            lost_end: next,
            salvaged,
        });
        Ok(())
    }

    /// A listed segment without a good header.
    fn lose(&mut self, mut lost: Opened, next: Lsn) -> Result<(), LogError> {
        let Current { segment, ref file, .. } = lost.current;
        let end = lost.window.file_len();
        let seen = search(&mut lost.window, segment, None, &self.chain, 0..end)?;
        self.note_hole(Hole {
            segment,
            file: file.clone(),
            from: 0,
            to: seen.used_to.unwrap_or(0),
            what: FrameFault::SegmentHeader,
            lost_first: self.chain.lsn,
            lost_end: next,
            salvaged: 0,
        });
        Ok(())
    }

    fn note_hole(&mut self, hole: Hole) {
        self.starts_lost += hole.lost_end.0.saturating_sub(hole.lost_first.0);
        self.chain.lsn = hole.lost_end;
        self.holes.push(hole);
    }

    /// The header at the current position, if the frame there is the next one of the chain, though damaged.
    fn good_header(&mut self, to: u64) -> Result<Option<FrameHeader>, LogError> {
        let Current { segment, position, salt, .. } = self.current;
        if position == 0 || position >= to {
            return Ok(None);
        }
        let Some(bytes) = self.window.get(position, FRAME_HEADER_BYTES)? else { return Ok(None) };
        let header = FrameHeader::decode(bytes, salt).ok().map(|(header, _)| header);
        Ok(header.filter(|header| {
            header.segment == segment
                && header.sequence == self.chain.sequence
                && header.first_lsn == self.chain.lsn
                && header.frame_len() <= self.window.file_len() - position
        }))
    }
}

impl Chain {
    /// Stands right before the frame with this header.
    fn goes_on_with(&mut self, next: &FrameHeader) {
        self.lsn = next.first_lsn;
        self.sequence = next.sequence;
        self.previous_crc = next.previous_crc;
    }
}

//! Damage before the end of the log: what is lost stays local, and is reported.
//!
//! # When
//! A frame is begun only after the one before it is durable. So where no good frame stands, the log goes on if a frame
//! with a later sequence number follows in the same segment (its header passes the salted checksum, at a multiple of
//! 4,096), or if a later segment has a header that begins behind the records read so far. Else this is the log's end.
//!
//! # What is taken
//! Of a frame whose header is good, the records before the first whose own head fails its checksum. Damage to a
//! message's bytes costs that message alone, and is seen when it is read. Frames without a good header are lost, and so
//! are segments without: only the header has the salt. The index takes the same when it is rebuilt.
//!
//! # What is kept
//! Damaged bytes stay where they are until their segment leaves the log; a copy is in `quarantine/`. A segment whose
//! listing was lost is taken for listed.

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
struct Seen {
    /// The first frame that came later, and where it stands.
    later: Option<(u64, FrameHeader)>,
    /// End of the last block before it that is not all zero.
    used_to: Option<u64>,
}

/// Looks for the first frame from `from` on that came later than `chain` stands; without a salt none can be known.
fn search(
    window: &mut Window,
    segment: SegmentNumber,
    salt: Option<u64>,
    chain: &Chain,
    from: u64,
) -> Result<Seen, LogError> {
    let mut seen = Seen::default();
    let mut position = from;
    while position < window.file_len() {
        let length = FRAME_ALIGN.min(window.file_len() - position) as usize;
        let block = window.get(position, length)?.expect("within the file");
        if block.iter().any(|byte| *byte != 0) {
            let header = salt.and_then(|salt| FrameHeader::decode(block, salt).ok());
            if let Some((header, _)) = header
                && header.segment == segment
                && header.sequence > chain.sequence
                && header.first_lsn > chain.lsn
            {
                seen.later = Some((position, header));
                return Ok(seen);
            }
            seen.used_to = Some(position + length as u64);
        }
        position += length as u64;
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
        let seen = search(&mut self.window, segment, salt, &self.chain, position)?;
        self.used_to = seen.used_to;
        let what = if headless { FrameFault::SegmentHeader } else { fault };
        if let Some((to, next)) = seen.later {
            self.hole(to, what, next.first_lsn, machine, index)?;
            self.chain.goes_on_with(&next);
            self.current.position = to;
            return Ok(true);
        }
        match self.next_readable()? {
            Some((lost, opened)) => self.enter_behind(what, lost, opened, machine, index),
            None => Ok(false),
        }
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
                let seen = search(&mut opened.window, listed.segment, salt, &self.chain, FIRST_FRAME_AT)?;
                if seen.later.is_some() {
                    return Ok(Some((lost, opened)));
                }
                next = Some(opened);
            }
        }
        Ok(None)
    }

    /// Goes on in a later segment, past `lost` ones.
    fn enter_behind(
        &mut self,
        what: FrameFault,
        lost: Vec<Opened>,
        mut opened: Opened,
        machine: &mut dyn StateMachine,
        index: &Index,
    ) -> Result<bool, LogError> {
        let first_lsn = opened.header.expect("its header is good").first_lsn;
        if first_lsn > self.chain.lsn {
            if self.used_to.is_some() || lost.is_empty() {
                let to = self.used_to.unwrap_or(self.current.position);
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
        let seen = search(&mut lost.window, segment, None, &self.chain, 0)?;
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

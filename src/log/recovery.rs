//! Reading the log back: from its first frame, or from the segment that a checkpoint names, along the chain, never by
//! what merely looks like a frame.
//!
//! A frame is taken if its header, its place in the chain and the checksum of its records are right; then its records
//! are replayed in order. Where no such frame comes, the chain may go on at the start of the next listed segment.
//! Where it does not, and what lies behind proves that the log goes on, [`super::salvage`] leads past the damage. Else
//! the log ends, and [`super::ending`] finds out whether it may end there.
//!
//! Records that the checkpoint includes are read again only for the index of their segment.

use std::collections::VecDeque;
use std::sync::Arc;

use super::checkpoint::{Mark, ReplayStart};
use super::error::{FrameFault, LogError};
use super::frame::{FRAME_HEADER_BYTES, FrameHeader, salted};
use super::salvage::Hole;
use super::segment::{self, FORMAT_VERSION, SEGMENT_HEADER_BYTES, Salts, SegmentHeader, SegmentHeaderError};
use super::set::SegmentSet;
use super::system::{SegmentAdded, SegmentsDropped, SegmentsReplaced, ServerStarted};
use super::tail::{Chain, Current};
use super::window::Window;
use super::{Index, Location, Replayed, StateMachine, directory};
use crate::disk::Disk;
use crate::ids::{Lsn, SegmentNumber, Uid};
use crate::planted;
use crate::record::{Kind, RecordError, RecordHead};

pub const FIRST_FRAME_AT: u64 = SEGMENT_HEADER_BYTES as u64;

/// How far reading has come.
pub struct Recovery<'a> {
    pub disk: &'a dyn Disk,
    pub cluster: Uid,
    pub salts: Salts,
    pub chain: Chain,
    /// Where the log is being read, and where its next frame would be.
    pub current: Current,
    /// Listed segments behind the current one.
    pub listed: VecDeque<SegmentAdded>,
    pub set: SegmentSet,
    /// The first frame of the current segment.
    pub start: ReplayStart,
    /// The largest number that any segment ever had, as far as the checkpoint knows.
    pub highest: SegmentNumber,
    /// Records before it are part of the checkpoint.
    pub replay_from: Lsn,
    pub window: Window,
    pub last_frame: LastFrame,
    pub incarnation: u32,
    /// Replayed records, and frames read.
    pub records: u64,
    pub frames: u64,
    /// Segments read, or begun to be read.
    pub segments_read: u64,
    /// Damage that was passed, in order.
    pub holes: Vec<Hole>,
    /// Records lost since the last start that was read: so many starts may be among them.
    pub starts_lost: u64,
    /// End of what belongs to the log behind the last good frame, where no good one followed.
    pub used_to: Option<u64>,
}

/// Where the last good frame lies in the current segment.
#[derive(Clone, Copy, Debug, Default)]
pub struct LastFrame {
    pub position: u64,
    pub length: u64,
}

/// An open segment and what its header says, if it is one.
pub struct Opened {
    pub current: Current,
    pub header: Option<SegmentHeader>,
    pub window: Window,
}

/// Where reading begins, and what is known there.
fn beginning(disk: &dyn Disk, cluster: Uid) -> Result<Mark, LogError> {
    let first = SegmentNumber(1);
    if !disk.exists(&segment::path(first))? {
        return Err(without_first(disk, cluster)?);
    }
    let mut set = SegmentSet::default();
    let bytes = disk.open(&segment::path(first))?.length()?;
    set.add(SegmentAdded { segment: first, bytes });
    let start = ReplayStart { segment: first, chain: Chain::default() };
    Ok(Mark { lsn: Lsn(0), start, incarnation: 0, highest: first, set })
}

impl<'a> Recovery<'a> {
    /// Reads the log from `checkpoint` on, or whole. Afterwards `current` says where it ends, and the fault is what
    /// stands there.
    pub fn run(
        disk: &'a dyn Disk,
        cluster: Uid,
        salts: Salts,
        checkpoint: Option<Mark>,
        machine: &mut dyn StateMachine,
        index: &Index,
    ) -> Result<(Self, FrameFault), LogError> {
        let mark = checkpoint.map_or_else(|| beginning(disk, cluster), Ok)?;
        let mut recovery = Self::at(disk, cluster, salts, mark)?;
        index_sealed(&recovery.set, recovery.start.segment, index);
        index.begin(recovery.start.segment);
        loop {
            let fault = recovery.read_segment(machine, index)?;
            if recovery.enter_next(index)? {
                continue;
            }
            if !planted::bug("log-cut-at-damage") && recovery.pass_damage(fault, machine, index)? {
                continue;
            }
            // The first frame was durable before the first start was finished, and all that a checkpoint includes
            // before the checkpoint. Nothing can be written into a segment whose header is lost.
            let headless = recovery.current.position == 0;
            if recovery.chain.lsn < recovery.replay_from || recovery.chain.sequence == 0 || headless {
                let Current { segment, position, .. } = recovery.current;
                return Err(LogError::Corrupt { segment, position, what: fault });
            }
            return Ok((recovery, fault));
        }
    }

    fn at(disk: &'a dyn Disk, cluster: Uid, salts: Salts, mark: Mark) -> Result<Self, LogError> {
        let segment = mark.start.segment;
        let listed = mark.set.members().find(|member| member.segment == segment);
        let listed = listed.unwrap_or(SegmentAdded { segment, bytes: 0 });
        let mut opened = open_listed(disk, listed, cluster)?;
        let corrupt = LogError::Corrupt { segment, position: 0, what: FrameFault::SegmentHeader };
        let whole = mark.lsn == Lsn(0);
        match opened.header {
            Some(header) if header.first_lsn == mark.start.chain.lsn => {}
            Some(header) if whole => return Err(not_from_start(disk, header)),
            // The checkpoint has the queues; the segments behind this one can be read without it.
            None if !whole => opened.current.position = 0,
            _ => return Err(corrupt),
        }
        Ok(Self {
            disk,
            cluster,
            salts,
            chain: mark.start.chain,
            current: opened.current,
            listed: mark.set.members().filter(|member| member.segment > segment).collect(),
            set: mark.set,
            start: mark.start,
            highest: mark.highest,
            replay_from: mark.lsn,
            window: opened.window,
            last_frame: LastFrame::default(),
            incarnation: mark.incarnation,
            records: 0,
            frames: 0,
            segments_read: 1,
            holes: Vec::new(),
            starts_lost: 0,
            used_to: None,
        })
    }

    /// Reads frames until one is not good.
    fn read_segment(
        &mut self,
        machine: &mut dyn StateMachine,
        index: &Index,
    ) -> Result<FrameFault, LogError> {
        loop {
            let at = self.current.position;
            let (header, crc) = match check_frame(&mut self.window, &self.current, &self.chain, at)? {
                Ok(good) => good,
                Err(fault) => return Ok(fault),
            };
            self.take(&header, Taking::All, machine, index)?;
            self.frames += 1;
            self.chain.lsn = self.chain.lsn.plus(u64::from(header.count));
            self.chain.sequence += 1;
            self.chain.previous_crc = crc;
            self.chain.epoch = header.epoch;
            self.chain.log_time_us = self.chain.log_time_us.max(header.log_time_us);
            self.last_frame = LastFrame { position: at, length: header.frame_len() };
            self.current.position = at + header.frame_len();
        }
    }

    /// Replays the records of the frame at the current position; how many.
    pub fn take(
        &mut self,
        header: &FrameHeader,
        taking: Taking,
        machine: &mut dyn StateMachine,
        index: &Index,
    ) -> Result<u64, LogError> {
        let after_damage = taking == Taking::WhatIsGood || !self.holes.is_empty();
        let segment = self.current.segment;
        let start = self.current.position + FRAME_HEADER_BYTES as u64;
        let length = header.payload_len as usize;
        let mut rest = self.window.get(start, length)?.expect("the frame was read before");
        for place in 0..u64::from(header.count) {
            let position = start + (length - rest.len()) as u64;
            let refused = |why| LogError::Record { segment, position, why };
            let head = match RecordHead::decode(rest) {
                Ok(head) => head,
                Err(why) if taking == Taking::WhatIsGood && is_damage(&why) => return Ok(place),
                Err(why) => return Err(refused(why)),
            };
            head.check_headers().map_err(refused)?;
            if head.lsn != header.first_lsn.plus(place) {
                return Err(refused(RecordError::Invalid { what: "its place in the log" }));
            }
            let (_, behind) = rest
                .split_at_checked(head.length as usize)
                .ok_or(refused(RecordError::Invalid { what: "its length" }))?;
            let replayed = Replayed {
                location: Location { segment, position, length: head.length },
                log_time_us: header.log_time_us,
                after_damage,
                head,
            };
            if head.lsn >= self.replay_from.plus(u64::from(planted::bug("replay-begins-late"))) {
                note(&mut self.set, &mut self.listed, &mut self.incarnation, index, &head)
                    .map_err(refused)?;
                if head.kind == Kind::ServerStarted {
                    self.starts_lost = 0;
                }
                let lsn = head.lsn;
                let failed = |why| LogError::Replay { segment, position, lsn, why };
                machine.apply(replayed).map_err(failed)?;
                self.records += 1;
            }
            if let Some(placed) = replayed.placed()
                && !index.offer(&placed)
                && !after_damage
            {
                return Err(refused(RecordError::Invalid { what: "its offsets" }));
            }
            rest = behind;
        }
        if rest.is_empty() || taking == Taking::WhatIsGood {
            return Ok(u64::from(header.count));
        }
        let why = RecordError::Invalid { what: "bytes behind the last record of its frame" };
        Err(LogError::Record { segment, position: start, why })
    }

    /// Goes on to the next listed segment if the chain does.
    pub fn enter_next(&mut self, index: &Index) -> Result<bool, LogError> {
        let Some(next) = self.listed.front() else { return Ok(false) };
        let mut opened = open_listed(self.disk, *next, self.cluster)?;
        let follows = opened.header.is_some_and(|header| header.first_lsn == self.chain.lsn)
            && check_frame(&mut opened.window, &opened.current, &self.chain, FIRST_FRAME_AT)?.is_ok();
        if follows {
            self.listed.pop_front();
            self.enter(opened, index);
        }
        Ok(follows)
    }

    /// Turns to a segment whose first frame comes where the chain stands.
    pub fn enter(&mut self, opened: Opened, index: &Index) {
        let Opened { current, window, .. } = opened;
        self.window.go_on_with(window);
        self.current = current;
        self.start = ReplayStart { segment: self.current.segment, chain: self.chain };
        // Its header alone, until its first frame is read.
        self.last_frame = LastFrame { position: FIRST_FRAME_AT, length: 0 };
        self.segments_read += 1;
        index.begin(self.current.segment);
    }
}

/// Which records of a frame are replayed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Taking {
    /// All: the frame is good.
    All,
    /// Those before the first whose head is damaged: behind it no record can be told from a body.
    WhatIsGood,
}

/// Whether the bytes are not what was written, rather than of a newer build.
fn is_damage(why: &RecordError) -> bool {
    matches!(why, RecordError::Truncated { .. } | RecordError::Checksum | RecordError::Invalid { .. })
}

/// What a record of the log itself changes.
fn note(
    set: &mut SegmentSet,
    listed: &mut VecDeque<SegmentAdded>,
    incarnation: &mut u32,
    index: &Index,
    head: &RecordHead<'_>,
) -> Result<(), RecordError> {
    match head.kind {
        Kind::SegmentAdded => {
            let added = SegmentAdded::decode(head.body)?;
            if set.add(added) {
                insert_listed(listed, added);
            }
        }
        Kind::SegmentReplaced => {
            let replaced = SegmentsReplaced::decode(head.body)?;
            set.replace(&replaced, head.lsn);
            index.replace(&replaced.old, &replaced.new);
        }
        Kind::SegmentDropped => {
            let dropped = SegmentsDropped::decode(head.body)?;
            set.drop_segments(&dropped.segments, head.lsn);
            // Its neighbours may have been put together since: in their places it would be out of order.
            dropped.segments.iter().for_each(|segment| index.drop_segment(*segment));
        }
        Kind::ServerStarted => {
            *incarnation = ServerStarted::decode(head.body)?.incarnation.max(*incarnation);
        }
        _ => {}
    }
    Ok(())
}

/// Lists the segments in the places before `start`, oldest first.
fn index_sealed(set: &SegmentSet, start: SegmentNumber, index: &Index) {
    let log = set.members().map(|member| (member.segment, member.segment, false));
    let packed = set.packed().map(|packed| (packed.place, packed.segment, packed.merged));
    let mut sealed: Vec<_> = log.chain(packed).filter(|(place, ..)| *place < start).collect();
    sealed.sort_unstable();
    // Where a record was lost to damage two may have the same place; the packed one was made of the other.
    sealed.dedup_by(|next, first| {
        let same = next.0 == first.0;
        if same {
            *first = *next;
        }
        same
    });
    sealed.into_iter().for_each(|(place, segment, merged)| index.add_sealed(segment, place, merged));
}

/// Adds a segment in order of its number: some may have been found before they were listed.
pub fn insert_listed(listed: &mut VecDeque<SegmentAdded>, added: SegmentAdded) {
    let place = listed.partition_point(|other| other.segment < added.segment);
    listed.insert(place, added);
}

/// Why there is no first segment.
fn without_first(disk: &dyn Disk, cluster: Uid) -> Result<LogError, LogError> {
    let names = disk.list("log")?;
    let lowest = names.iter().filter_map(|entry| segment::parse_name(&entry.name)).min();
    let Some(lowest) = lowest else {
        return Ok(directory::log_missing(disk, SegmentNumber(1)));
    };
    Ok(match open_segment(disk, lowest, cluster)?.header {
        Some(header) if header.first_lsn != Lsn(0) => not_from_start(disk, header),
        _ => missing(disk, SegmentNumber(1)),
    })
}

fn not_from_start(disk: &dyn Disk, header: SegmentHeader) -> LogError {
    LogError::NotFromStart { data_dir: disk.full_path(""), first_lsn: header.first_lsn }
}

fn missing(disk: &dyn Disk, segment: SegmentNumber) -> LogError {
    LogError::SegmentMissing { segment, path: disk.full_path(&segment::path(segment)) }
}

/// Opens a segment that the log lists; refuses if its file is missing or too short.
pub fn open_listed(disk: &dyn Disk, listed: SegmentAdded, cluster: Uid) -> Result<Opened, LogError> {
    let segment = listed.segment;
    if !disk.exists(&segment::path(segment))? {
        return Err(missing(disk, segment));
    }
    let opened = open_segment(disk, segment, cluster)?;
    let found = opened.current.bytes;
    if found < listed.bytes {
        let path = disk.full_path(&segment::path(segment));
        return Err(LogError::SegmentShort { segment, path, found, expected: listed.bytes });
    }
    Ok(opened)
}

/// Opens a segment and reads its header; `None` for a header that is no good.
pub fn open_segment(disk: &dyn Disk, segment: SegmentNumber, cluster: Uid) -> Result<Opened, LogError> {
    let path = segment::path(segment);
    let file = disk.open(&path)?;
    let bytes = file.length()?;
    let full_path = disk.full_path(&path);
    let mut block = [0; SEGMENT_HEADER_BYTES];
    if bytes >= block.len() as u64 {
        file.read_at(&mut block, 0)?;
    }
    let header = match SegmentHeader::decode(&block) {
        Ok(header) if header.cluster != cluster => {
            let found = header.cluster;
            return Err(LogError::WrongCluster { path: full_path, found, expected: cluster });
        }
        Ok(header) if header.segment == segment => Some(header),
        Ok(_) | Err(SegmentHeaderError::Damaged) => None,
        Err(SegmentHeaderError::Newer(found)) => {
            return Err(LogError::NewerFormat { path: full_path, found, supported: FORMAT_VERSION });
        }
        Err(SegmentHeaderError::Features(flags)) => {
            return Err(LogError::UnknownFeatures { path: full_path, flags });
        }
    };
    let salt = header.map_or(0, |header| header.salt);
    let current = Current { segment, file: Arc::clone(&file), bytes, salt, position: FIRST_FRAME_AT };
    Ok(Opened { current, header, window: Window::new(file, bytes) })
}

type Checked = Result<(FrameHeader, u32), FrameFault>;

/// Verifies the frame at `position`: its header, its place in the chain, and the checksum of its records.
fn check_frame(
    window: &mut Window,
    current: &Current,
    chain: &Chain,
    position: u64,
) -> Result<Checked, LogError> {
    let Some(bytes) = window.get(position, FRAME_HEADER_BYTES)? else {
        return Ok(Err(FrameFault::Missing));
    };
    let (header, crc) = match FrameHeader::decode(bytes, current.salt) {
        Ok(decoded) => decoded,
        Err(fault) => return Ok(Err(fault)),
    };
    if header.segment != current.segment {
        return Ok(Err(FrameFault::Place));
    }
    let follows = header.sequence == chain.sequence
        && header.previous_crc == chain.previous_crc
        && header.first_lsn == chain.lsn
        && header.epoch >= chain.epoch;
    if !follows && !planted::bug("chain-ignored") {
        return Ok(Err(FrameFault::Chain));
    }
    if header.frame_len() > window.file_len() - position {
        return Ok(Err(FrameFault::Length));
    }
    let payload_at = position + FRAME_HEADER_BYTES as u64;
    let payload = window.get(payload_at, header.payload_len as usize)?.expect("within the file");
    if salted(current.salt, payload) != header.payload_crc && !planted::bug("frame-crc-ignored") {
        return Ok(Err(FrameFault::PayloadChecksum));
    }
    Ok(Ok((header, crc)))
}

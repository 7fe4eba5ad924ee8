//! The end of the log: where the next frame goes, and how it gets there.
//!
//! Invariants: there is always room for one block behind the last frame until the next segment is listed, so that
//! `SegmentAdded` can be logged; a segment is written only after the record that lists it is durable; one frame is in
//! flight at a time, and its successor is begun only after it is durable. After an error nothing may be appended.

use std::collections::VecDeque;
use std::sync::Arc;

use super::assemble::Assembler;
use super::checkpoint::{Mark, ReplayStart};
use super::counters::LogCounters;
use super::error::LogError;
use super::frame::{
    FRAME_ALIGN, FRAME_BYTES_MAX, FRAME_HEADER_BYTES, FRAME_TRAILER_BYTES, FrameHeader, frame_len,
};
use super::index::{INDEX_RUNS_MAX, Index};
use super::packed;
use super::segment::{Blank, SEGMENT_HEADER_BYTES, Salts, SegmentHeader};
use super::set::SegmentSet;
use super::system::{SegmentAdded, SegmentsDropped, SegmentsReplaced, no_op};
use super::{Location, Placed};
use crate::disk::DiskFile;
use crate::ids::{Lsn, SegmentNumber, Uid};
use crate::planted;
use crate::record::envelope::encoded_len;
use crate::record::{Body, Record};

const FIRST_FRAME_AT: u64 = SEGMENT_HEADER_BYTES as u64;

/// How many blank segments are kept ready behind the one that is written. Once a log is open, a segment is begun only when
/// so many are, or when the disk is known to be full: so one is left then for what is under way, and for acks.
pub const AHEAD: usize = 2;
/// With less than this left on a full disk nothing more is taken; smaller segments keep a quarter of one.
const EXHAUSTED_BYTES: u64 = 4 << 20;

/// How much may still be written.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Room {
    #[default]
    Ample,
    /// The disk is full: what is left is for finishing messages.
    Reserve,
    /// Even that is used up.
    Exhausted,
}

/// Where files for the log come from.
pub trait Blanks {
    /// The next one if it is ready, without waiting.
    fn ready(&mut self) -> Result<Option<Blank>, LogError>;
    /// The next one; none if the disk is full, or none comes any more.
    fn wait_unless_full(&mut self) -> Result<Option<Blank>, LogError>;
    /// The next one, however long it takes.
    fn wait(&mut self) -> Result<Blank, LogError>;
    /// One is wanted and the disk is full.
    fn starved(&self) -> bool;
    /// There may be space now.
    fn retry(&mut self);
    /// Says that another one will be needed.
    fn want(&mut self, segment: SegmentNumber);
}

/// The segment that is being written.
#[derive(Debug)]
pub struct Current {
    pub segment: SegmentNumber,
    pub file: Arc<dyn DiskFile>,
    pub bytes: u64,
    pub salt: u64,
    /// Where the next frame goes; 0 if even the segment's header is not written.
    pub position: u64,
}

impl Current {
    /// A segment of which nothing is written.
    pub fn blank(blank: Blank, salts: &Salts) -> Self {
        let salt = salts.of(blank.segment);
        Self { segment: blank.segment, file: blank.file, bytes: blank.bytes, salt, position: 0 }
    }
}

/// What links frames to each other.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Chain {
    /// Of the next record.
    pub lsn: Lsn,
    /// Of the next frame.
    pub sequence: u64,
    /// Header checksum of the last frame.
    pub previous_crc: u32,
    pub epoch: u64,
    /// The log's clock, microseconds.
    pub log_time_us: u64,
}

/// The end of the log.
#[derive(Debug)]
pub struct Tail {
    pub cluster: Uid,
    pub salts: Salts,
    pub node: Uid,
    pub current: Current,
    /// Listed segments that are still blank.
    pub listed: VecDeque<Blank>,
    /// A blank segment that must be listed.
    pub unlisted: Option<Blank>,
    /// A file was asked for and has not come.
    pub wanted: bool,
    /// The largest number that any segment ever had.
    pub highest: SegmentNumber,
    pub set: SegmentSet,
    pub incarnation: u32,
    pub chain: Chain,
    /// The first frame of the segment that holds the last one.
    pub start: ReplayStart,
    /// A segment was begun since it was last asked.
    pub begun: bool,
    pub counters: Arc<LogCounters>,
    /// Learns of runs when they are durable.
    pub index: Index,
    pub assembler: Assembler,
}

/// Most bytes of records that one batch may have, given the length of segments.
pub fn batch_bytes_max(segment_bytes: u64) -> u64 {
    let frame = FRAME_BYTES_MAX.min(segment_bytes - FIRST_FRAME_AT - FRAME_ALIGN);
    frame - (FRAME_HEADER_BYTES + FRAME_TRAILER_BYTES) as u64 - listing_len()
}

/// Bytes of a `SegmentAdded` record, which may join any frame.
fn listing_len() -> u64 {
    encoded_len(&SegmentAdded { segment: SegmentNumber(0), bytes: 0 }.record()) as u64
}

impl Tail {
    /// Commits `records`, which take `payload_len` bytes, in one durable frame. Where the runs among them went is
    /// added to `placed`.
    pub fn append<'a>(
        &mut self,
        records: impl Iterator<Item = &'a Record>,
        payload_len: u64,
        log_time_us: u64,
        blanks: &mut dyn Blanks,
        placed: &mut Vec<Placed>,
    ) -> Result<(), LogError> {
        self.chain.log_time_us = self.chain.log_time_us.max(log_time_us);
        self.make_room(payload_len, blanks)?;
        self.commit(records, blanks, placed)
    }

    /// Takes segments out of the log. Their files are not touched.
    pub fn drop_segments(
        &mut self,
        segments: Vec<SegmentNumber>,
        blanks: &mut dyn Blanks,
    ) -> Result<(), LogError> {
        let dropped = SegmentsDropped { segments };
        let record = dropped.record();
        let payload_len = encoded_len(&record) as u64;
        self.append(std::iter::once(&record), payload_len, 0, blanks, &mut Vec::new())?;
        let last = Lsn(self.chain.lsn.0 - 1);
        self.set.drop_segments(&dropped.segments, last);
        self.counters.note_set(&self.set);
        Ok(())
    }

    /// Puts packed segments in the place of others. No file is touched.
    pub fn replace_segments(
        &mut self,
        replaced: &SegmentsReplaced,
        blanks: &mut dyn Blanks,
    ) -> Result<(), LogError> {
        let record = replaced.record();
        let payload_len = encoded_len(&record) as u64;
        self.append(std::iter::once(&record), payload_len, 0, blanks, &mut Vec::new())?;
        self.set.replace(replaced, Lsn(self.chain.lsn.0 - 1));
        self.counters.note_set(&self.set);
        Ok(())
    }

    /// The end of the log as a place for a checkpoint.
    pub fn mark(&self) -> Mark {
        Mark {
            lsn: self.chain.lsn,
            start: self.start,
            incarnation: self.incarnation,
            highest: self.highest,
            set: self.set.clone(),
        }
    }

    /// Lists the next segment if it is ready and nothing else does; whether a frame was written.
    pub fn list_ready(&mut self, blanks: &mut dyn Blanks) -> Result<bool, LogError> {
        self.collect(blanks)?;
        if self.unlisted.is_none() {
            return Ok(false);
        }
        self.make_room(0, blanks)?;
        if self.unlisted.is_some() {
            self.commit(std::iter::empty(), blanks, &mut Vec::new())?;
        }
        Ok(true)
    }

    fn collect(&mut self, blanks: &mut dyn Blanks) -> Result<(), LogError> {
        if self.unlisted.is_none() && self.listed.len() < AHEAD {
            self.unlisted = blanks.ready()?;
            self.wanted &= self.unlisted.is_none();
        }
        Ok(())
    }

    /// Moves on to a segment where the records fit, together with the listing that is due.
    fn make_room(&mut self, payload_len: u64, blanks: &mut dyn Blanks) -> Result<(), LogError> {
        loop {
            self.collect(blanks)?;
            if self.fits(payload_len) && !self.leaves_early() {
                return Ok(());
            }
            self.see_to_reserve(blanks)?;
            if self.listed.is_empty() {
                // Into the block that was kept free for it.
                self.commit(std::iter::empty(), blanks, &mut Vec::new())?;
            }
            if self.current.position == 0 {
                // Small ones of an earlier start: the chain leads through them.
                self.commit(std::iter::once(&no_op()), blanks, &mut Vec::new())?;
            }
            let next = self.listed.pop_front().expect("a segment was listed");
            self.current = Current::blank(next, &self.salts);
            self.want_next(blanks);
        }
    }

    /// Waits for the file of the last of the blank segments that are kept ready; if the disk is full, for one if there
    /// is none.
    fn see_to_reserve(&mut self, blanks: &mut dyn Blanks) -> Result<(), LogError> {
        let kept = if planted::bug("nothing-left-on-a-full-disk") { 1 } else { AHEAD };
        if self.unlisted.is_some() || self.listed.len() >= kept {
            return Ok(());
        }
        self.want_next(blanks);
        self.unlisted = blanks.wait_unless_full()?;
        if self.unlisted.is_none() && self.listed.is_empty() {
            self.unlisted = Some(blanks.wait()?);
        }
        self.wanted &= self.unlisted.is_none();
        Ok(())
    }

    /// Asks for a file unless one is there already, or asked for.
    fn want_next(&mut self, blanks: &mut dyn Blanks) {
        if self.listed.len() + usize::from(self.unlisted.is_some()) < AHEAD && !self.wanted {
            self.wanted = true;
            self.highest = self.highest.next();
            assert!(
                !packed::is_packed(self.highest),
                "the log's numbers stay below those of packed segments"
            );
            blanks.want(self.highest);
        }
    }

    /// How much may still be written, given what was said last and whether blank segments can be made. A disk that was
    /// full is so until the reserve is whole again.
    pub fn room(&self, before: Room, starved: bool) -> Room {
        if !starved && (before == Room::Ample || self.listed.len() >= AHEAD) {
            return Room::Ample;
        }
        let listed: u64 = self.listed.iter().map(|blank| blank.bytes).sum();
        let left = self.current.bytes - self.current.position + listed;
        if left < EXHAUSTED_BYTES.min(self.current.bytes / 4) { Room::Exhausted } else { Room::Reserve }
    }

    /// Writes a frame that says nothing, unless that would need a file that is not there yet.
    pub fn append_no_op(&mut self, blanks: &mut dyn Blanks) -> Result<(), LogError> {
        let record = no_op();
        let payload_len = encoded_len(&record) as u64;
        self.collect(blanks)?;
        if !self.fits(payload_len) && self.listed.is_empty() && self.unlisted.is_none() {
            return Ok(());
        }
        self.append(std::iter::once(&record), payload_len, 0, blanks, &mut Vec::new())
    }

    /// The segment has so many runs that it is better sealed before it is full.
    fn leaves_early(&self) -> bool {
        self.current.position > 0 && !self.listed.is_empty() && self.index.open_runs() >= INDEX_RUNS_MAX
    }

    fn fits(&self, payload_len: u64) -> bool {
        let listing = if self.unlisted.is_some() { listing_len() } else { 0 };
        let kept_free = if self.unlisted.is_some() || !self.listed.is_empty() { 0 } else { FRAME_ALIGN };
        let end = self.current.position.max(FIRST_FRAME_AT) + frame_len(payload_len + listing) + kept_free;
        end <= self.current.bytes
    }

    /// Writes one frame here and syncs it.
    fn commit<'a>(
        &mut self,
        records: impl Iterator<Item = &'a Record>,
        blanks: &mut dyn Blanks,
        placed: &mut Vec<Placed>,
    ) -> Result<(), LogError> {
        let begins = self.current.position == 0;
        let header = self.segment_header();
        self.assembler.begin(|lead| {
            if begins {
                header.encode(lead);
            }
        });
        let frame_at = self.current.position.max(FIRST_FRAME_AT);
        let placed_before = placed.len();
        if let Some(blank) = &self.unlisted {
            let listing = SegmentAdded { segment: blank.segment, bytes: blank.bytes };
            self.assembler.push(&listing.record(), self.chain.lsn);
        }
        for record in records {
            let lsn = self.chain.lsn.plus(u64::from(self.assembler.count()));
            let (position, length) = self.assembler.push(record, lsn);
            let position = frame_at + position;
            placed.extend(place(record, Location { segment: self.current.segment, position, length }));
        }
        let (crc, length) = self.assembler.finish(self.frame_header(), self.current.salt);
        assert!(frame_at + length <= self.current.bytes, "a frame does not leave its segment");
        self.write(if begins { 0 } else { frame_at })?;
        self.current.position = frame_at + length;
        if begins {
            self.start = ReplayStart { segment: self.current.segment, chain: self.chain };
            self.begun = true;
            self.index.begin(self.current.segment);
        }
        for placed in &placed[placed_before..] {
            if planted::bug("run-before-early-seal-lost") && self.index.open_runs() + 1 >= INDEX_RUNS_MAX {
                continue;
            }
            self.index.insert(placed);
        }
        self.advance(crc);
        if let Some(blank) = self.unlisted.take() {
            self.set.add(SegmentAdded { segment: blank.segment, bytes: blank.bytes });
            self.counters.note_set(&self.set);
            self.listed.push_back(blank);
        }
        self.want_next(blanks);
        Ok(())
    }

    fn write(&mut self, position: u64) -> Result<(), LogError> {
        let (mut parts, length) = self.assembler.parts();
        let file = &self.current.file;
        match file.write_at(&mut parts, position) {
            Err(error) if planted::bug("full-disk-taken-as-written") && error.is_no_space() => {}
            written => written?,
        }
        if !planted::bug("ack-before-sync") {
            match file.sync_data() {
                Err(_) if planted::bug("sync-retried") => file.sync_data()?,
                synced => synced?,
            }
        }
        self.assembler.release();
        self.counters.syncs.add(1);
        self.counters.bytes_written.add(length);
        Ok(())
    }

    fn advance(&mut self, crc: u32) {
        let count = u64::from(self.assembler.count());
        self.chain.lsn = self.chain.lsn.plus(count);
        self.chain.sequence += 1;
        self.chain.previous_crc = crc;
        self.counters.frames.add(1);
        self.counters.records.add(count);
    }

    fn segment_header(&self) -> SegmentHeader {
        SegmentHeader {
            compat_flags: 0,
            incompat_flags: 0,
            cluster: self.cluster,
            node: self.node,
            shard: 0,
            epoch: self.chain.epoch,
            segment: self.current.segment,
            salt: self.current.salt,
            first_lsn: self.chain.lsn,
            encryption_key: [0; 32],
        }
    }

    fn frame_header(&self) -> FrameHeader {
        FrameHeader {
            payload_crc: 0,
            payload_len: 0,
            count: 0,
            previous_crc: self.chain.previous_crc,
            first_lsn: self.chain.lsn,
            epoch: self.chain.epoch,
            segment: self.current.segment,
            sequence: self.chain.sequence,
            log_time_us: self.chain.log_time_us,
        }
    }
}

fn place(record: &Record, location: Location) -> Option<Placed> {
    let (count, bytes, publish_time_us) = match &record.body {
        Body::Run(run) => {
            let bytes = run.messages.iter().map(|message| (message.meta.len() + message.body.len()) as u64);
            (run.messages.len() as u32, bytes.sum(), run.publish_time_us)
        }
        Body::Plain(body) if record.kind.is_indexed() => (1, body.len() as u64, 0),
        Body::Plain(_) => return None,
    };
    let (queue, first_offset) = (record.queue, record.offset);
    Some(Placed { queue, first_offset, count, bytes, publish_time_us, location })
}

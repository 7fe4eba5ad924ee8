//! Reading the log back: from its first frame along the chain, never by what merely looks like a frame.
//!
//! A frame is taken if its header, its place in the chain and the checksum of its records are right; then its records
//! are replayed in order. Where no such frame comes, the chain may go on at the start of the next listed segment.
//! Where it does not, the log ends, and [`super::ending`] finds out whether it may end there.

use std::collections::{BTreeSet, VecDeque};
use std::sync::Arc;

use super::directory;
use super::error::{FrameFault, LogError, ReplayError};
use super::frame::{FRAME_HEADER_BYTES, FrameHeader, salted};
use super::segment::{self, FORMAT_VERSION, SEGMENT_HEADER_BYTES, SegmentHeader, SegmentHeaderError};
use super::system::{SegmentAdded, ServerStarted};
use super::tail::{Chain, Current};
use super::window::Window;
use super::{Location, Replayed};
use crate::disk::Disk;
use crate::ids::{Lsn, SegmentNumber, Uid};
use crate::record::{Kind, RecordError, RecordHead};

/// Takes every record of the log in order.
pub type Replay<'a> = dyn FnMut(Replayed<'_>) -> Result<(), ReplayError> + 'a;

const FIRST_FRAME_AT: u64 = SEGMENT_HEADER_BYTES as u64;

/// How far reading has come.
pub struct Recovery<'a> {
    pub disk: &'a dyn Disk,
    pub cluster: Uid,
    pub chain: Chain,
    /// Where the log is being read, and where its next frame would be.
    pub current: Current,
    /// Listed segments behind the current one.
    pub listed: VecDeque<SegmentAdded>,
    /// Every number in the log so far.
    pub known: BTreeSet<SegmentNumber>,
    pub window: Window,
    pub last_frame: LastFrame,
    pub incarnation: u32,
    pub records: u64,
    /// Bytes of all files of the log.
    pub segment_bytes: u64,
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

impl<'a> Recovery<'a> {
    /// Reads the whole log. Afterwards `current` says where it ends, and the fault is what stands there.
    pub fn run(
        disk: &'a dyn Disk,
        cluster: Uid,
        replay: &mut Replay<'_>,
    ) -> Result<(Self, FrameFault), LogError> {
        let first = SegmentNumber(1);
        if !disk.exists(&segment::path(first))? {
            return Err(without_first(disk, cluster)?);
        }
        let opened = open_segment(disk, first, cluster)?;
        let corrupt = LogError::Corrupt { segment: first, position: 0, what: FrameFault::SegmentHeader };
        let header = opened.header.ok_or(corrupt)?;
        if header.first_lsn != Lsn(0) {
            return Err(LogError::NotFromStart { first_lsn: header.first_lsn });
        }
        let mut recovery = Self {
            disk,
            cluster,
            chain: Chain::default(),
            segment_bytes: opened.current.bytes,
            current: opened.current,
            listed: VecDeque::new(),
            known: BTreeSet::from([first]),
            window: opened.window,
            last_frame: LastFrame::default(),
            incarnation: 0,
            records: 0,
        };
        loop {
            let fault = recovery.read_segment(replay)?;
            // The first frame was durable before the first start was finished.
            if recovery.chain.sequence == 0 {
                let position = recovery.current.position;
                return Err(LogError::Corrupt { segment: first, position, what: fault });
            }
            if !recovery.enter_next()? {
                return Ok((recovery, fault));
            }
        }
    }

    /// Reads frames until one is not good.
    fn read_segment(&mut self, replay: &mut Replay<'_>) -> Result<FrameFault, LogError> {
        loop {
            let at = self.current.position;
            let (header, crc) = match check_frame(&mut self.window, &self.current, &self.chain, at)? {
                Ok(good) => good,
                Err(fault) => return Ok(fault),
            };
            self.take(&header, replay)?;
            self.chain.lsn = self.chain.lsn.plus(u64::from(header.count));
            self.chain.sequence += 1;
            self.chain.previous_crc = crc;
            self.chain.epoch = header.epoch;
            self.chain.log_time_us = self.chain.log_time_us.max(header.log_time_us);
            self.last_frame = LastFrame { position: at, length: header.frame_len() };
            self.current.position = at + header.frame_len();
        }
    }

    /// Replays the records of a good frame.
    fn take(&mut self, header: &FrameHeader, replay: &mut Replay<'_>) -> Result<(), LogError> {
        let segment = self.current.segment;
        let start = self.current.position + FRAME_HEADER_BYTES as u64;
        let length = header.payload_len as usize;
        let mut rest = self.window.get(start, length)?.expect("the frame was read before");
        for index in 0..u64::from(header.count) {
            let position = start + (length - rest.len()) as u64;
            let refused = |why| LogError::Record { segment, position, why };
            let head = RecordHead::decode(rest).map_err(refused)?;
            head.check_headers().map_err(refused)?;
            if head.lsn != header.first_lsn.plus(index) {
                return Err(refused(RecordError::Invalid { what: "its place in the log" }));
            }
            let (_, behind) = rest
                .split_at_checked(head.length as usize)
                .ok_or(refused(RecordError::Invalid { what: "its length" }))?;
            match head.kind {
                Kind::SegmentAdded => {
                    let added = SegmentAdded::decode(head.body).map_err(|error| refused(error.into()))?;
                    if self.known.insert(added.segment) {
                        self.listed.push_back(added);
                        self.segment_bytes += added.bytes;
                    }
                }
                Kind::ServerStarted => {
                    let started = ServerStarted::decode(head.body).map_err(|error| refused(error.into()))?;
                    self.incarnation = self.incarnation.max(started.incarnation);
                }
                _ => {}
            }
            let location = Location { segment, position, length: head.length };
            let lsn = head.lsn;
            replay(Replayed { head, location, log_time_us: header.log_time_us })
                .map_err(|why| LogError::Replay { segment, position, lsn, why })?;
            self.records += 1;
            rest = behind;
        }
        if rest.is_empty() {
            return Ok(());
        }
        let why = RecordError::Invalid { what: "bytes behind the last record of its frame" };
        Err(LogError::Record { segment, position: start, why })
    }

    /// Goes on to the next listed segment if the chain does.
    fn enter_next(&mut self) -> Result<bool, LogError> {
        let Some(next) = self.listed.front() else { return Ok(false) };
        let mut opened = open_listed(self.disk, *next, self.cluster)?;
        let follows = opened.header.is_some_and(|header| header.first_lsn == self.chain.lsn)
            && check_frame(&mut opened.window, &opened.current, &self.chain, FIRST_FRAME_AT)?.is_ok();
        if follows {
            self.listed.pop_front();
            let Opened { current, window, .. } = opened;
            self.window.go_on_with(window);
            self.current = current;
        }
        Ok(follows)
    }
}

/// Why there is no first segment.
fn without_first(disk: &dyn Disk, cluster: Uid) -> Result<LogError, LogError> {
    let names = disk.list("log")?;
    let lowest = names.iter().filter_map(|entry| segment::parse_name(&entry.name)).min();
    let Some(lowest) = lowest else {
        return Ok(directory::log_missing(disk, SegmentNumber(1)));
    };
    Ok(match open_segment(disk, lowest, cluster)?.header {
        Some(header) if header.first_lsn != Lsn(0) => LogError::NotFromStart { first_lsn: header.first_lsn },
        _ => missing(disk, SegmentNumber(1)),
    })
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
    if !follows {
        return Ok(Err(FrameFault::Chain));
    }
    if header.frame_len() > window.file_len() - position {
        return Ok(Err(FrameFault::Length));
    }
    let payload_at = position + FRAME_HEADER_BYTES as u64;
    let payload = window.get(payload_at, header.payload_len as usize)?.expect("within the file");
    if salted(current.salt, payload) != header.payload_crc {
        return Ok(Err(FrameFault::PayloadChecksum));
    }
    Ok(Ok((header, crc)))
}

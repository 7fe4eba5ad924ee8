//! Where to begin to read a log that has lost its checkpoints and its first segments.
//!
//! Which segments are of the log is logged state that only a checkpoint has; without one, every file in `log/` whose
//! header is good is read, and packed segments are judged by theirs ([`super::adopt`]). Numbers without such a file are taken for dropped: records that list them lead nowhere. A
//! file that is blank may still be listed by a record.

use std::collections::BTreeMap;

use super::super::checkpoint::{Mark, ReplayStart};
use super::super::error::{FrameFault, LogError};
use super::super::frame::{FRAME_HEADER_BYTES, FrameHeader};
use super::super::recovery::{FIRST_FRAME_AT, Opened, open_segment};
use super::super::segment::{self, SEGMENT_HEADER_BYTES, Salts, SegmentHeader};
use super::super::set::SegmentSet;
use super::super::system::SegmentAdded;
use super::super::tail::Chain;
use super::super::{directory, ending};
use super::adopt::Adopted;
use crate::disk::Disk;
use crate::ids::{Lsn, SegmentNumber, Uid};

/// A log without checkpoints, as its files tell it.
#[derive(Clone, Debug)]
pub struct Survivors {
    pub(super) mark: Mark,
    pub(super) adopted: Adopted,
}

impl Survivors {
    /// Whether the messages of a segment of the log count: else those that are needed are in a packed one.
    pub fn counts(&self, segment: SegmentNumber) -> bool {
        !self.adopted.has_replaced(segment)
    }
}

/// The data directory that the segments say they belong to; none without a good header.
pub fn cluster(disk: &dyn Disk) -> Result<Option<Uid>, LogError> {
    for segment in numbers(disk)? {
        let file = disk.open(&segment::path(segment))?;
        let mut block = [0; SEGMENT_HEADER_BYTES];
        if file.length()? < block.len() as u64 {
            continue;
        }
        file.read_at(&mut block, 0)?;
        if let Ok(header) = SegmentHeader::decode(&block) {
            return Ok(Some(header.cluster));
        }
    }
    Ok(None)
}

/// The front of the lowest segment that can be read, with all that can.
///
/// # Errors
/// Nothing there can be read, or it needs a newer build.
pub fn find(disk: &dyn Disk, cluster: Uid, salts: &Salts) -> Result<Survivors, LogError> {
    let numbers = numbers(disk)?;
    let mut good = BTreeMap::new();
    let mut blank = Vec::new();
    for segment in &numbers {
        match open_segment(disk, *segment, cluster) {
            Ok(opened) if opened.header.is_some() => drop(good.insert(*segment, opened.current.bytes)),
            Ok(_) if ending::is_blank_file(disk, *segment, salts)? => blank.push(*segment),
            Ok(_) | Err(LogError::WrongCluster { .. }) => {}
            Err(error) => return Err(error),
        }
    }
    let (Some(lowest), Some(highest)) = (good.keys().next().copied(), numbers.last().copied()) else {
        let segment = numbers.first().copied().unwrap_or(SegmentNumber(1));
        return Err(LogError::Corrupt { segment, position: 0, what: FrameFault::SegmentHeader });
    };
    let mut set = SegmentSet::default();
    for segment in (lowest.0..=highest.0).map(SegmentNumber).filter(|segment| !blank.contains(segment)) {
        set.add(SegmentAdded { segment, bytes: good.get(&segment).copied().unwrap_or(0) });
        if !good.contains_key(&segment) {
            set.drop_segments(&[segment], Lsn(0));
        }
    }
    let start = ReplayStart { segment: lowest, chain: chain_before(disk, lowest, cluster)? };
    let adopted = Adopted::find(disk, cluster, &numbers)?;
    Ok(Survivors { mark: Mark { lsn: start.chain.lsn, start, incarnation: 0, highest, set }, adopted })
}

/// What the segment's first frame follows, as far as its own header says.
fn chain_before(disk: &dyn Disk, segment: SegmentNumber, cluster: Uid) -> Result<Chain, LogError> {
    let Opened { header, mut window, .. } = open_segment(disk, segment, cluster)?;
    let header = header.expect("its header was good before");
    let chain = Chain { lsn: header.first_lsn, ..Chain::default() };
    let Some(bytes) = window.get(FIRST_FRAME_AT, FRAME_HEADER_BYTES)? else { return Ok(chain) };
    let first = FrameHeader::decode(bytes, header.salt).ok().map(|(first, _)| first);
    let first = first.filter(|first| first.segment == segment && first.first_lsn == header.first_lsn);
    Ok(first.map_or(chain, |first| Chain {
        sequence: first.sequence,
        previous_crc: first.previous_crc,
        ..chain
    }))
}

/// The segments that have files, in order.
fn numbers(disk: &dyn Disk) -> Result<Vec<SegmentNumber>, LogError> {
    let entries = directory::list_if_there(disk, "log")?;
    let mut numbers: Vec<_> = entries.iter().filter_map(|entry| segment::parse_name(&entry.name)).collect();
    numbers.sort_unstable();
    Ok(numbers)
}

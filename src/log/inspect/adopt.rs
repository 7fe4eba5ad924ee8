//! Which packed segments belong to a log that has lost its checkpoints.
//!
//! The headers of packed segments say what they replaced. A replaced file goes only after its `SegmentReplaced` record
//! is durable. So, beginning with the newest packed segment:
//! - Something that it replaced is gone, or a newer one was made of it: its record was durable. It belongs to the log
//!   unless a newer one replaced it; all that it replaced does not any more, whatever of that is still there.
//! - All that it replaced is there: the record may not be. Everything in it is in those, so those belong to the log,
//!   and it does not; a start removes it, as after a crash during reclaim.
//!
//! So no message counts twice and none is left out. A file whose header is damaged says nothing: it stays where it is,
//! and a start sets it aside.

use std::collections::{BTreeMap, BTreeSet};

use super::super::error::LogError;
use super::super::packed::{self, PackedHeader};
use super::super::set::SegmentSet;
use super::super::system::{PackedSegment, SegmentAdded, SegmentsReplaced};
use super::super::{directory, segment};
use crate::disk::Disk;
use crate::ids::{Lsn, SegmentNumber, Uid};

/// What the packed segments make of a log.
#[derive(Clone, Debug, Default)]
pub struct Adopted {
    /// Those that belong to the log.
    taken: Vec<PackedSegment>,
    /// Segments that were replaced, packed ones too.
    replaced: BTreeSet<SegmentNumber>,
    /// All whose files are there, of the log or not: their numbers are used.
    there: Vec<SegmentNumber>,
}

impl Adopted {
    /// Reads the headers in `packed/`. `log` are the segments in `log/` that have files.
    pub fn find(disk: &dyn Disk, cluster: Uid, log: &[SegmentNumber]) -> Result<Self, LogError> {
        let entries = directory::list_if_there(disk, packed::DIR)?;
        let mut there: Vec<_> = entries.iter().filter_map(|entry| segment::parse_name(&entry.name)).collect();
        there.retain(|segment| packed::is_packed(*segment));
        there.sort_unstable();
        let mut headers = BTreeMap::new();
        for segment in &there {
            if let Some(header) = PackedHeader::read(disk, *segment)?.filter(|one| one.cluster == cluster) {
                headers.insert(*segment, header);
            }
        }
        let mut adopted = Self { there, ..Self::default() };
        let files: BTreeSet<_> = log.iter().chain(&adopted.there).copied().collect();
        headers.values().rev().for_each(|header| adopted.judge(header, &files));
        Ok(adopted)
    }

    /// Takes in one that is older than all before.
    fn judge(&mut self, header: &PackedHeader, files: &BTreeSet<SegmentNumber>) {
        let of_the_past = self.replaced.contains(&header.segment);
        if !of_the_past && header.replaced.iter().all(|old| files.contains(old)) {
            return;
        }
        self.replaced.extend(&header.replaced);
        // It may be the heir of what stood there, by way of a packed segment whose file is gone.
        self.replaced.insert(header.place);
        if !of_the_past && self.taken.iter().all(|newer| newer.place != header.place) {
            let PackedHeader { segment, bytes, place, .. } = *header;
            let merged = header.replaced.len() > 1;
            self.taken.push(PackedSegment { segment, bytes, place, merged });
        }
    }

    /// Whether nothing in a segment counts any more: what is needed of it is in a packed one.
    pub fn has_replaced(&self, segment: SegmentNumber) -> bool {
        self.replaced.contains(&segment)
    }

    /// The set of a log of these segments, of which the replaced ones are of the past.
    pub fn set(&self, members: impl Iterator<Item = SegmentAdded>) -> SegmentSet {
        let mut set = SegmentSet::default();
        for member in members {
            set.add(member);
        }
        // No number is given again while its file may be there.
        let place = SegmentNumber(0);
        let numbered = |segment| PackedSegment { segment, bytes: 0, place, merged: false };
        let new = self.there.iter().copied().map(numbered).collect();
        set.replace(&SegmentsReplaced { old: Vec::new(), new }, Lsn(0));
        set.drop_segments(&self.there, Lsn(0));
        let unknown: Vec<_> = self.there.iter().copied().filter(|one| !self.has_replaced(*one)).collect();
        set.forget(&unknown);
        let (old, new) = (self.replaced.iter().copied().collect(), self.taken.clone());
        set.replace(&SegmentsReplaced { old, new }, Lsn(0));
        set
    }
}

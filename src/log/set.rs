//! The segment set: which files are the log. It is logged state, never inferred from names.
//!
//! Invariants: numbers are never reused; segments with higher numbers hold later records; a dropped segment is
//! remembered until its file is gone for good, so that a file found behind it can be told from one that is lost.

use std::collections::BTreeMap;

use super::system::SegmentAdded;
use crate::ids::{Lsn, SegmentNumber};
use crate::record::wire::{Put, Reader, WireError};

/// The segments of a log at one of its records.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct SegmentSet {
    /// Length of each file.
    members: BTreeMap<SegmentNumber, u64>,
    /// Segments of the past whose files may still be there, and the record that dropped them.
    dropped: BTreeMap<SegmentNumber, Lsn>,
}

impl SegmentSet {
    /// Adds a segment; false if it is known.
    pub fn add(&mut self, added: SegmentAdded) -> bool {
        let known = self.members.contains_key(&added.segment) || self.dropped.contains_key(&added.segment);
        if !known {
            self.members.insert(added.segment, added.bytes);
        }
        !known
    }

    /// Takes segments out, by the record `lsn`; gives the bytes of their files.
    pub fn drop_segments(&mut self, segments: &[SegmentNumber], lsn: Lsn) -> u64 {
        let mut bytes = 0;
        for segment in segments {
            if let Some(length) = self.members.remove(segment) {
                bytes += length;
                self.dropped.insert(*segment, lsn);
            }
        }
        bytes
    }

    /// The files of dropped segments are gone, and durably so.
    pub fn forget(&mut self, segments: &[SegmentNumber]) {
        self.dropped.retain(|segment, _| !segments.contains(segment));
    }

    pub fn contains(&self, segment: SegmentNumber) -> bool {
        self.members.contains_key(&segment)
    }

    pub fn was_dropped(&self, segment: SegmentNumber) -> bool {
        self.dropped.contains_key(&segment)
    }

    /// Segments that a record before `lsn` dropped and whose files may still be there.
    pub fn dropped_before(&self, lsn: Lsn) -> Vec<SegmentNumber> {
        self.dropped.iter().filter(|(_, at)| **at < lsn).map(|(segment, _)| *segment).collect()
    }

    /// In order of their numbers.
    pub fn members(&self) -> impl DoubleEndedIterator<Item = SegmentAdded> + '_ {
        self.members.iter().map(|(segment, bytes)| SegmentAdded { segment: *segment, bytes: *bytes })
    }

    pub fn len(&self) -> u64 {
        self.members.len() as u64
    }

    /// Bytes of all its files.
    pub fn bytes(&self) -> u64 {
        self.members.values().sum()
    }

    /// The highest number it knows.
    pub fn highest(&self) -> Option<SegmentNumber> {
        self.members.keys().chain(self.dropped.keys()).max().copied()
    }

    /// `members u32 | (segment u64, bytes u64)… | dropped u32 | (segment u64, LSN u64)…`
    pub fn encode(&self, out: &mut Vec<u8>) {
        let mut list = |pairs: &mut dyn ExactSizeIterator<Item = (u64, u64)>| {
            out.put_u32(u32::try_from(pairs.len()).expect("fewer than 2^32 segments"));
            pairs.for_each(|(segment, value)| {
                out.put_u64(segment);
                out.put_u64(value);
            });
        };
        list(&mut self.members.iter().map(|(segment, bytes)| (segment.0, *bytes)));
        list(&mut self.dropped.iter().map(|(segment, lsn)| (segment.0, lsn.0)));
    }

    pub fn decode(reader: &mut Reader<'_>) -> Result<Self, WireError> {
        let mut set = Self::default();
        for _ in 0..reader.u32()? {
            set.members.insert(SegmentNumber(reader.u64()?), reader.u64()?);
        }
        for _ in 0..reader.u32()? {
            set.dropped.insert(SegmentNumber(reader.u64()?), Lsn(reader.u64()?));
        }
        Ok(set)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn added(segment: u64) -> SegmentAdded {
        SegmentAdded { segment: SegmentNumber(segment), bytes: 100 * segment }
    }

    fn set() -> SegmentSet {
        let mut set = SegmentSet::default();
        for segment in 1..=4 {
            assert!(set.add(added(segment)));
        }
        assert_eq!(set.drop_segments(&[SegmentNumber(2), SegmentNumber(9)], Lsn(7)), 200);
        set
    }

    #[test]
    fn dropped_segments_are_remembered_until_they_are_gone() {
        let mut set = set();
        assert!(!set.add(added(2)), "a number is not reused");
        assert_eq!((set.len(), set.bytes(), set.contains(SegmentNumber(2))), (3, 800, false));
        assert_eq!(
            (set.dropped_before(Lsn(7)), set.dropped_before(Lsn(8))),
            (vec![], vec![SegmentNumber(2)])
        );
        set.drop_segments(&[SegmentNumber(4)], Lsn(9));
        assert_eq!(set.highest(), Some(SegmentNumber(4)), "its number was used");
        set.forget(&[SegmentNumber(2)]);
        assert!(!set.was_dropped(SegmentNumber(2)) && set.was_dropped(SegmentNumber(4)));
    }

    #[test]
    fn sets_come_back_and_cut_ones_do_not() {
        let mut bytes = Vec::new();
        set().encode(&mut bytes);
        assert_eq!(SegmentSet::decode(&mut Reader::new(&bytes)), Ok(set()));
        for cut in 0..bytes.len() {
            assert!(SegmentSet::decode(&mut Reader::new(&bytes[..cut])).is_err(), "{cut}");
        }
    }
}

//! The segment set: which files are the log. It is logged state, never inferred from names.
//!
//! Invariants: numbers are never reused; segments of the log with higher numbers hold later records, and packed ones
//! stand in the places of some that they replaced; a dropped or replaced segment is remembered until its file is gone
//! for good, so that a file found behind it can be told from one that is lost.

use std::collections::BTreeMap;

use super::packed::{self, PACKED_FIRST};
use super::system::{PackedSegment, SegmentAdded, SegmentsReplaced};
use crate::ids::{Lsn, SegmentNumber};
use crate::record::wire::{Put, Reader, WireError};

/// The segments of a log at one of its records.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct SegmentSet {
    /// Those of the log; length of each file.
    members: BTreeMap<SegmentNumber, u64>,
    packed: BTreeMap<SegmentNumber, PackedSegment>,
    /// Segments of the past, packed ones too, whose files may still be there, and the record that dropped them.
    dropped: BTreeMap<SegmentNumber, Lsn>,
    /// The highest number that a packed segment ever had; 0 before the first.
    packed_highest: SegmentNumber,
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

    /// Takes segments out, by the record `lsn`.
    pub fn drop_segments(&mut self, segments: &[SegmentNumber], lsn: Lsn) {
        for segment in segments {
            let known = self.members.remove(segment).is_some() || self.packed.remove(segment).is_some();
            if known {
                self.dropped.insert(*segment, lsn);
            }
        }
    }

    /// Puts packed segments in the place of others, by the record `lsn`.
    pub fn replace(&mut self, replaced: &SegmentsReplaced, lsn: Lsn) {
        self.drop_segments(&replaced.old, lsn);
        for packed in &replaced.new {
            self.packed.insert(packed.segment, *packed);
            self.packed_highest = self.packed_highest.max(packed.segment);
        }
    }

    /// The files of dropped segments are gone, and durably so.
    pub fn forget(&mut self, segments: &[SegmentNumber]) {
        self.dropped.retain(|segment, _| !segments.contains(segment));
    }

    pub fn contains(&self, segment: SegmentNumber) -> bool {
        self.members.contains_key(&segment) || self.packed.contains_key(&segment)
    }

    pub fn was_dropped(&self, segment: SegmentNumber) -> bool {
        self.dropped.contains_key(&segment)
    }

    /// Whether a segment was dropped, and its file is gone for good: it has a number that was given, and is not known.
    pub fn has_forgotten(&self, segment: SegmentNumber) -> bool {
        let highest = if packed::is_packed(segment) { Some(self.packed_highest) } else { self.highest() };
        !self.contains(segment) && !self.was_dropped(segment) && Some(segment) <= highest
    }

    /// Segments that a record before `lsn` dropped and whose files may still be there.
    pub fn dropped_before(&self, lsn: Lsn) -> Vec<SegmentNumber> {
        self.dropped.iter().filter(|(_, at)| **at < lsn).map(|(segment, _)| *segment).collect()
    }

    /// Segments of the log, in order of their numbers.
    pub fn members(&self) -> impl DoubleEndedIterator<Item = SegmentAdded> + '_ {
        self.members.iter().map(|(segment, bytes)| SegmentAdded { segment: *segment, bytes: *bytes })
    }

    /// Packed segments, in order of their numbers.
    pub fn packed(&self) -> impl Iterator<Item = &PackedSegment> {
        self.packed.values()
    }

    /// Segments of the log and packed ones.
    pub fn len(&self) -> u64 {
        (self.members.len() + self.packed.len()) as u64
    }

    /// Bytes of all its files.
    pub fn bytes(&self) -> u64 {
        self.members.values().sum::<u64>() + self.packed_bytes()
    }

    /// Bytes of the packed ones' files.
    pub fn packed_bytes(&self) -> u64 {
        self.packed.values().map(|packed| packed.bytes).sum()
    }

    /// The highest number of a segment of the log that it knows.
    pub fn highest(&self) -> Option<SegmentNumber> {
        let dropped = self.dropped.keys().filter(|segment| !packed::is_packed(**segment));
        self.members.keys().chain(dropped).max().copied()
    }

    /// A number that no packed segment had.
    pub fn next_packed(&self) -> SegmentNumber {
        self.packed_highest.max(PACKED_FIRST).next()
    }

    /// `members u32 | (segment u64, bytes u64)… | dropped u32 | (segment u64, LSN u64)… | packed u32 | (segment u64,
    /// bytes u64, place u64, merged u8)… | highest packed segment ever u64`
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
        out.put_u32(u32::try_from(self.packed.len()).expect("fewer than 2^32 segments"));
        self.packed.values().for_each(|packed| packed.encode(out));
        out.put_u64(self.packed_highest.0);
    }

    pub fn decode(reader: &mut Reader<'_>) -> Result<Self, WireError> {
        let mut set = Self::default();
        for _ in 0..reader.u32()? {
            set.members.insert(SegmentNumber(reader.u64()?), reader.u64()?);
        }
        for _ in 0..reader.u32()? {
            set.dropped.insert(SegmentNumber(reader.u64()?), Lsn(reader.u64()?));
        }
        for _ in 0..reader.u32()? {
            let packed = PackedSegment::decode(reader)?;
            set.packed.insert(packed.segment, packed);
        }
        set.packed_highest = SegmentNumber(reader.u64()?);
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
        set.drop_segments(&[SegmentNumber(2), SegmentNumber(9)], Lsn(7));
        set
    }

    fn packed(number: u64, place: u64) -> PackedSegment {
        let segment = SegmentNumber(PACKED_FIRST.0 + number);
        PackedSegment { segment, bytes: 7, place: SegmentNumber(place), merged: number > 1 }
    }

    fn replace(set: &mut SegmentSet, old: &[SegmentNumber], new: PackedSegment, lsn: u64) {
        set.replace(&SegmentsReplaced { old: old.to_vec(), new: vec![new] }, Lsn(lsn));
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
        let forgotten = (1..9).map(SegmentNumber).filter(|segment| set.has_forgotten(*segment));
        assert_eq!(forgotten.collect::<Vec<_>>(), [SegmentNumber(2)]);
    }

    #[test]
    fn packed_segments_take_places_and_their_numbers_are_not_reused() {
        let mut set = set();
        let (first, second) = (packed(1, 1), packed(2, 1));
        replace(&mut set, &[SegmentNumber(1), SegmentNumber(3)], first, 9);
        assert_eq!((set.len(), set.bytes(), set.packed_bytes()), (2, 407, 7));
        assert!(set.contains(first.segment) && !set.contains(SegmentNumber(3)));
        replace(&mut set, &[first.segment], second, 10);
        assert_eq!(set.packed().collect::<Vec<_>>(), [&second]);
        assert_eq!(set.highest(), Some(SegmentNumber(4)));
        set.drop_segments(&[second.segment], Lsn(11));
        set.forget(&[first.segment, second.segment]);
        assert_eq!((set.next_packed(), set.packed_bytes()), (packed(3, 0).segment, 0));
        assert!(set.has_forgotten(second.segment) && !set.has_forgotten(packed(3, 0).segment));
    }

    #[test]
    fn sets_come_back_and_cut_ones_do_not() {
        let mut bytes = Vec::new();
        let mut set = set();
        replace(&mut set, &[SegmentNumber(1)], packed(5, 1), 9);
        set.encode(&mut bytes);
        assert_eq!(SegmentSet::decode(&mut Reader::new(&bytes)), Ok(set));
        for cut in 0..bytes.len() {
            assert!(SegmentSet::decode(&mut Reader::new(&bytes[..cut])).is_err(), "{cut}");
        }
    }
}

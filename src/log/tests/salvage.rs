//! Damage before the end of the log: it costs what it hit, and is reported.

use super::super::frame::{FRAME_HEADER_BYTES, FrameHeader};
use super::super::segment::SEGMENT_HEADER_BYTES;
use super::super::*;
use super::damage::{
    change, flipped, frames, many_segments, one_segment, path, refused, segment_3_begun_by_a_message,
};
use super::support::*;
use crate::record::envelope::RECORD_HEADER_BYTES;

const SIZE: usize = 40_000;
const END: u64 = 20;

/// A message's body; none if the log says that it is lost.
fn read(harness: &Harness, offset: u64) -> Option<bytes::Bytes> {
    let (location, place) = harness.find(offset)?;
    match harness.log.reader().read(location, place, 1, u64::MAX) {
        Ok(read) if read.damaged == [Offset(offset)] => None,
        Ok(mut read) => Some(read.messages.remove(0).body),
        Err(ReadError::Damaged { .. }) => None,
        Err(error) => panic!("{error}"),
    }
}

/// The messages before `end` that are lost; the others are what they were, and there are no more of them.
fn lost(harness: &Harness, end: u64, size: usize) -> Vec<u64> {
    assert_eq!(harness.find(end), None, "nothing is made up");
    let is_lost = |offset: &u64| match read(harness, *offset) {
        Some(found) => {
            assert_eq!(found, body(*offset, size));
            false
        }
        None => true,
    };
    (0..end).filter(is_lost).collect()
}

fn damage(harness: &Harness) -> Vec<Damage> {
    harness.log.report().damage.clone()
}

/// Where a message's frame begins, and its header, in a log of single messages.
fn frame_of(dir: &std::path::Path, size: usize, offset: u64) -> (u64, usize, FrameHeader) {
    let segments = (1..).take_while(|segment| path(dir, *segment).exists());
    let all = segments.flat_map(|segment| frames(dir, segment).into_iter().map(move |f| (segment, f.0, f.1)));
    let mut messages = all.filter(|(_, _, header)| header.payload_len as usize > size);
    messages.nth(offset as usize).expect("the message has a frame")
}

/// Gives segment 1 these bytes and removes all other segments and copies.
fn put_back(dir: &std::path::Path, bytes: &[u8]) {
    for folder in ["log", "quarantine"] {
        for entry in std::fs::read_dir(dir.join(folder)).unwrap() {
            let file = entry.unwrap().path();
            if file != path(dir, 1) {
                std::fs::remove_file(file).unwrap();
            }
        }
    }
    std::fs::write(path(dir, 1), bytes).unwrap();
}

/// A log in segment 1 alone, of runs of two messages, which lists no other segment; ends in a good frame.
fn pairs(dir: &std::path::Path, runs: u64, size: usize) -> Vec<(usize, FrameHeader)> {
    let mut harness = open_dir(dir).unwrap();
    for first in (0..runs).map(|run| 2 * run) {
        harness.commit(vec![run(first, 2, size)]);
    }
    harness.log.close().unwrap();
    frames(dir, 1)
}

#[test]
fn a_flipped_bit_costs_its_own_frame_at_most() {
    let dir = tempfile::tempdir().unwrap();
    let size = 700;
    let all = pairs(dir.path(), 6, size);
    let good = std::fs::read(path(dir.path(), 1)).unwrap();
    let kept = tempfile::tempdir().unwrap();
    for entry in std::fs::read_dir(dir.path().join("log")).unwrap() {
        let entry = entry.unwrap();
        std::fs::copy(entry.path(), kept.path().join(entry.file_name())).unwrap();
    }
    let (end, _) = *all.last().unwrap();
    let (whole_at, whole) = all[all.len() / 2];
    let whole_end = whole_at + FRAME_HEADER_BYTES + whole.payload_len as usize;
    let places = (SEGMENT_HEADER_BYTES..end).step_by(97).chain((whole_at..whole_end).step_by(3));
    for place in places {
        put_back(dir.path(), &flipped(&good, place));
        for entry in std::fs::read_dir(kept.path()).unwrap() {
            let entry = entry.unwrap();
            let to = dir.path().join("log").join(entry.file_name());
            if to != path(dir.path(), 1) {
                std::fs::copy(entry.path(), to).unwrap();
            }
        }
        let harness = open_dir(dir.path()).unwrap();
        let (at, header) = *all.iter().rfind(|(at, _)| *at <= place).unwrap();
        let used = FRAME_HEADER_BYTES + header.payload_len as usize;
        let lost = lost(&harness, 12, size);
        let damage = damage(&harness);
        if place >= at + used {
            assert!(damage.is_empty() && lost.is_empty(), "padding says nothing: {place} {damage:?}");
            continue;
        }
        let [hole] = &damage[..] else { panic!("one hole at {place}: {damage:?}") };
        assert_eq!((hole.position, hole.bytes), (at as u64, header.frame_len()), "{place}");
        let records = hole.salvaged + (hole.lost_end.0 - hole.lost_first.0);
        assert_eq!(
            (hole.lost_end, records),
            (header.first_lsn.plus(header.count.into()), header.count.into())
        );
        // The runs are as long as nothing else here.
        let hit = header.payload_len as usize > 2 * size;
        assert!(lost.len() <= if hit { 2 } else { 0 }, "{place}: {lost:?}");
        assert!(!hit || !lost.is_empty(), "what is damaged is not delivered: {place}");
        let in_frame = |message: &u64| {
            let before = all.iter().filter(|(other, h)| *other < at && h.payload_len as usize > 2 * size);
            message / 2 == before.count() as u64
        };
        assert!(lost.iter().all(in_frame), "{place}: {lost:?}");
    }
}

#[test]
fn records_before_the_first_damaged_head_are_salvaged() {
    let dir = tempfile::tempdir().unwrap();
    let mut harness = open_dir(dir.path()).unwrap();
    let placed = harness.commit(vec![run(0, 1, 300), run(1, 2, 300), run(3, 1, 300)]);
    harness.publish(4, 6, 300);
    harness.log.close().unwrap();
    let second = placed[1].location.position as usize;
    let good = std::fs::read(path(dir.path(), 1)).unwrap();
    change(dir.path(), 1, |bytes| bytes[second + RECORD_HEADER_BYTES - 3] ^= 4);
    let bytes = std::fs::read(path(dir.path(), 1)).unwrap();
    let harness = open_dir(dir.path()).unwrap();
    assert_eq!(lost(&harness, 6, 300), [1, 2, 3]);
    let hole = damage(&harness).remove(0);
    assert_eq!((hole.salvaged, hole.lost_end.0 - hole.lost_first.0), (1, 2));
    assert_eq!(hole.what, FrameFault::PayloadChecksum);
    let copy = hole.copy.clone().unwrap();
    let hit = hole.position as usize..(hole.position + hole.bytes) as usize;
    assert_eq!(std::fs::read(&copy).unwrap(), &bytes[hit.clone()]);
    drop(harness);
    // The bytes stay, and are copied once.
    assert_eq!(
        &std::fs::read(path(dir.path(), 1)).unwrap()[hit],
        &bytes[hole.position as usize..][..hole.bytes as usize]
    );
    assert_eq!(damage(&open_dir(dir.path()).unwrap()), [hole]);
    assert_eq!(std::fs::read_dir(dir.path().join("quarantine")).unwrap().count(), 1);
    // A damaged body costs one message.
    let last = (placed[1].location.position + u64::from(placed[1].location.length)) as usize - 1;
    change(dir.path(), 1, |bytes| {
        bytes[second + RECORD_HEADER_BYTES - 3] = good[second + RECORD_HEADER_BYTES - 3];
        bytes[last] ^= 1;
    });
    let harness = open_dir(dir.path()).unwrap();
    assert_eq!(lost(&harness, 6, 300), [2]);
    assert_eq!((damage(&harness)[0].salvaged, damage(&harness).len()), (3, 1));
}

#[test]
fn several_holes_are_passed_and_the_log_goes_on() {
    let dir = tempfile::tempdir().unwrap();
    one_segment(dir.path(), 9);
    for (_, at, _) in [2, 3, 6].map(|offset| frame_of(dir.path(), 5_000, offset)) {
        change(dir.path(), 1, |bytes| bytes[at..at + 4096].fill(0));
    }
    let mut harness = open_dir(dir.path()).unwrap();
    assert_eq!(lost(&harness, 9, 5_000), [2, 3, 6]);
    let holes = damage(&harness).len();
    assert!((2..=3).contains(&holes), "an empty frame may lie between the first two");
    assert_eq!(harness.log.counters().damage.get(), holes as u64);
    harness.publish(9, 12, 5_000);
    harness.log.close().unwrap();
    let harness = open_dir(dir.path()).unwrap();
    assert_eq!((lost(&harness, 12, 5_000), damage(&harness).len()), (vec![2, 3, 6], holes));
}

/// Damages segment 2 of a log of several, opens it, goes on with it, and opens it again and from a checkpoint, with
/// index files that must be made anew. What was lost and found.
fn through_segment_2(work: impl FnOnce(&std::path::Path, &mut Vec<u8>)) -> (Vec<u64>, Vec<Damage>) {
    let dir = tempfile::tempdir().unwrap();
    many_segments(dir.path());
    let mut bytes = std::fs::read(path(dir.path(), 2)).unwrap();
    work(dir.path(), &mut bytes);
    std::fs::write(path(dir.path(), 2), &bytes).unwrap();
    let mut harness = open_dir(dir.path()).unwrap();
    let (first_lost, first_damage) = (lost(&harness, END, SIZE), damage(&harness));
    harness.publish(END, END + 12, SIZE);
    harness.log.close().unwrap();
    let mut harness = open_dir(dir.path()).unwrap();
    assert_eq!(
        (lost(&harness, END + 12, SIZE), damage(&harness)),
        (first_lost.clone(), first_damage.clone())
    );
    assert!(harness.checkpoint(b"state", 0).unwrap());
    harness.log.close().unwrap();
    assert_eq!(std::fs::read(path(dir.path(), 2)).unwrap(), bytes, "damaged bytes stay");
    for entry in std::fs::read_dir(dir.path().join("log")).unwrap() {
        let file = entry.unwrap().path();
        if file.extension().unwrap() == "idx" {
            std::fs::remove_file(file).unwrap();
        }
    }
    let harness = open_dir(dir.path()).unwrap();
    assert_eq!((harness.restored.as_deref(), damage(&harness).len()), (Some(&b"state"[..]), 0));
    let still_lost: Vec<u64> = (0..END + 12)
        .filter(|offset| match harness.log.index().plan(QUEUE, &[Offset(*offset)], 0) {
            Ok(_) => read(&harness, *offset).is_none(),
            Err(_) => true,
        })
        .collect();
    assert_eq!(still_lost, first_lost, "the index agrees when it is made anew");
    (first_lost, first_damage)
}

/// The offsets of the messages in a segment.
fn offsets_in(dir: &std::path::Path, segment: u64) -> Vec<u64> {
    (0..END).filter(|offset| frame_of(dir, SIZE, *offset).0 == segment).collect()
}

#[test]
fn the_end_of_a_segment_may_be_damaged() {
    let (mut wanted, mut place) = (0, 0);
    let (lost, damage) = through_segment_2(|dir, bytes| {
        wanted = *offsets_in(dir, 2).last().unwrap();
        place = frame_of(dir, SIZE, wanted).1;
        bytes[place..].fill(0);
    });
    assert_eq!(lost, [wanted]);
    assert_eq!((damage.len(), damage[0].segment, damage[0].position), (1, SegmentNumber(2), place as u64));
    assert!(damage[0].lost_first < damage[0].lost_end);
}

#[test]
fn the_first_frame_of_a_segment_may_be_damaged() {
    for place in [SEGMENT_HEADER_BYTES + 9, SEGMENT_HEADER_BYTES + FRAME_HEADER_BYTES + 9] {
        let mut wanted = 0;
        let (lost, damage) = through_segment_2(|dir, bytes| {
            wanted = offsets_in(dir, 2)[0];
            bytes[place] ^= 16;
        });
        assert!(lost == [wanted] || lost.is_empty(), "{lost:?}");
        assert_eq!((damage.len(), damage[0].position), (1, SEGMENT_HEADER_BYTES as u64));
    }
}

#[test]
fn the_end_of_a_segment_and_the_only_frame_of_the_next_may_be_damaged() {
    let dir = segment_3_begun_by_a_message();
    let last = frames(dir.path(), 2).last().unwrap().0;
    change(dir.path(), 2, |bytes| bytes[last + 200] ^= 1);
    change(dir.path(), 3, |bytes| bytes[SEGMENT_HEADER_BYTES + 200] ^= 1);
    let mut harness = open_dir(dir.path()).unwrap();
    let (damage, torn) = (damage(&harness), harness.log.report().torn.clone());
    assert_eq!((damage.len(), damage[0].segment, damage[0].position), (1, SegmentNumber(2), last as u64));
    assert_eq!(
        (torn.len(), torn[0].segment, torn[0].position),
        (1, SegmentNumber(3), SEGMENT_HEADER_BYTES as u64)
    );
    harness.publish(END, END + 1, SIZE);
    harness.log.close().unwrap();
    let harness = open_dir(dir.path()).unwrap();
    harness.assert_has(END, SIZE);
    assert_eq!(harness.log.report().torn.len(), 0);
}

#[test]
fn a_segment_without_its_header_is_lost_and_no_other() {
    for hit in [0..1, 13..14, 90..91, 0..4096, 0..8192] {
        let mut wanted = Vec::new();
        let (lost, damage) = through_segment_2(|dir, bytes| {
            wanted = offsets_in(dir, 2);
            bytes[hit.clone()].iter_mut().for_each(|byte| *byte = !*byte);
        });
        assert_eq!(lost, wanted, "{hit:?}");
        assert_eq!((damage.len(), damage[0].position), (1, 0));
        assert_eq!((damage[0].what, damage[0].segment), (FrameFault::SegmentHeader, SegmentNumber(2)));
    }
}

#[test]
fn without_the_first_segments_header_and_a_checkpoint_the_log_is_refused() {
    let dir = tempfile::tempdir().unwrap();
    many_segments(dir.path());
    change(dir.path(), 1, |bytes| bytes[20] ^= 1);
    assert!(matches!(refused(dir.path()), LogError::Corrupt { segment: SegmentNumber(1), position: 0, .. }));
}

#[test]
fn a_segment_whose_listing_is_lost_is_still_read() {
    let dir = tempfile::tempdir().unwrap();
    many_segments(dir.path());
    let (inside, behind) = (offsets_in(dir.path(), 2), offsets_in(dir.path(), 3));
    // All of segment 2, with what lists the segments behind it.
    let (at, _) = frames(dir.path(), 2)[0];
    change(dir.path(), 2, |bytes| bytes[at..].fill(0));
    let mut harness = open_dir(dir.path()).unwrap();
    assert_eq!(lost(&harness, END, SIZE), inside);
    assert!(!behind.is_empty());
    harness.publish(END, END + 10, SIZE);
    harness.log.close().unwrap();
    assert_eq!(lost(&open_dir(dir.path()).unwrap(), END + 10, SIZE), inside);
}

#[test]
fn the_first_segment_of_the_replay_may_lose_its_header() {
    let dir = tempfile::tempdir().unwrap();
    let mut harness = open_dir(dir.path()).unwrap();
    harness.publish(0, 3, SIZE);
    assert!(harness.checkpoint(b"state", 0).unwrap());
    harness.publish(3, END, SIZE);
    harness.log.close().unwrap();
    let inside = offsets_in(dir.path(), 1);
    change(dir.path(), 1, |bytes| bytes[90] ^= 1);
    let harness = open_dir(dir.path()).unwrap();
    assert_eq!(harness.restored.as_deref(), Some(&b"state"[..]));
    assert_eq!(lost(&harness, END, SIZE), inside);
    let hole = damage(&harness).remove(0);
    assert_eq!((hole.segment, hole.position, hole.what), (SegmentNumber(1), 0, FrameFault::SegmentHeader));
}

#[test]
fn a_start_whose_record_is_lost_still_counts() {
    let dir = tempfile::tempdir().unwrap();
    drop(open_dir(dir.path()).unwrap());
    let mut harness = open_dir(dir.path()).unwrap();
    assert_eq!(harness.log.report().incarnation, 2);
    harness.publish(0, 2, 5_000);
    harness.log.close().unwrap();
    let (_, message, _) = frame_of(dir.path(), 5_000, 0);
    // Everything before the first message: both starts.
    change(dir.path(), 1, |bytes| bytes[SEGMENT_HEADER_BYTES..message].fill(0));
    let harness = open_dir(dir.path()).unwrap();
    let incarnation = harness.log.report().incarnation;
    assert!(incarnation > 2, "{incarnation}");
    drop(harness);
    assert_eq!(open_dir(dir.path()).unwrap().log.report().incarnation, incarnation + 1);
}

//! A disk that is full of what nobody needs: all of its space comes back, whatever ran out first.

use std::time::{Duration, Instant};

use super::super::reserve::Reserve;
use super::super::supply::{Step, Supply, free_bytes_wanted};
use super::super::tail::AHEAD;
use super::super::*;
use super::crash::{CrashDisk, Unsynced};
use super::support::*;
use crate::disk::Disk;
use crate::record::Kind;

const SIZE: usize = 20_000;
const SLOW: QueueId = QueueId(3);
/// One message in so many stays; so hardly a segment holds nothing that is needed.
const STAYS: u64 = 11;
/// More than that is a disk that stays full.
const CHECKPOINTS_MAX: usize = 60;
/// What is left at most of a log of which hardly anything is needed.
const SEGMENTS_WHEN_EMPTY: u64 = 10;

/// Publishes until the disk is full, to two queues; the end of the first.
fn fill(harness: &mut Harness, mut end: u64, slow: &mut u64) -> u64 {
    while harness.room.is_none_or(|room| room == Room::Ample) {
        end += 1;
        let record = if end.is_multiple_of(STAYS) {
            *slow += 1;
            run_of(SLOW, *slow - 1, 1, SIZE)
        } else {
            run(end, 1, SIZE)
        };
        harness.commit(vec![record]);
        if end.is_multiple_of(12) {
            harness.checkpoint(b"any", 0).unwrap();
        }
    }
    end
}

/// Takes checkpoints at which nothing but the slow queue from `first` on is needed until the disk has space again.
fn recover(harness: &mut Harness, first: u64) {
    let counters = harness.log.counters();
    for _ in 0..CHECKPOINTS_MAX {
        harness.commit(vec![plain(Kind::Acked, b"")]);
        let passes = counters.reclaim_passes.get();
        let live = move |queue, end: Offset| queue == SLOW && end.0 > first;
        if harness.checkpoint_where(b"any", Arc::new(live)).unwrap() {
            let start = Instant::now();
            while counters.reclaim_passes.get() == passes && start.elapsed() < Duration::from_secs(20) {
                std::thread::sleep(Duration::from_millis(1));
            }
        }
        // A start with space enough says nothing.
        let silent = harness.room.is_none() && counters.segments.get() < SEGMENTS_WHEN_EMPTY;
        if silent || harness.room == Some(Room::Ample) {
            return;
        }
    }
    panic!("the disk stays full: {counters:?}");
}

#[test]
fn the_space_of_what_is_not_needed_comes_back() {
    for (segments, restarts) in [(40, false), (40, true), (20, false), (20, true)] {
        let mut disk = CrashDisk::default();
        disk.bound(segments * SEGMENT_BYTES);
        let mut harness = try_open(Arc::new(disk.clone()), options()).unwrap();
        let (mut end, mut slow) = (0, 0);
        for round in 0..4 {
            let first = slow;
            end = fill(&mut harness, end, &mut slow);
            if restarts {
                drop(harness);
                disk = disk.after_crash(Unsynced::Kept);
                harness = try_open(Arc::new(disk.clone()), options()).unwrap();
            }
            recover(&mut harness, first);
            for offset in first..slow {
                let plan = harness.log.index().plan(SLOW, &[Offset(offset)], 0).unwrap();
                let piece = &plan.pieces[0];
                let read = harness.log.reader().read(piece.location, piece.first, 1, u64::MAX).unwrap();
                assert_eq!(read.messages[0].body, body(offset, SIZE), "round {round}");
            }
        }
    }
}

/// A disk that has space for two segments, and where its files come from.
fn two_segments() -> (CrashDisk, Supply) {
    let disk = CrashDisk::default();
    disk.bound(2 * SEGMENT_BYTES);
    let supply = Supply::new(Arc::new(disk.clone()), SEGMENT_BYTES, Arc::default());
    (disk, supply)
}

#[test]
fn the_log_leaves_space_for_a_reserve_that_was_drawn_on() {
    let (disk, supply) = two_segments();
    let prepare = |number| supply.prepare(SegmentNumber(number), &|_| Step::Fill);
    let is_full = |number| prepare(number).err().is_some_and(|error| error.is_no_space());
    supply.restore(Reserve::Reclaim, SEGMENT_BYTES).unwrap();
    assert!(prepare(1).unwrap().is_some());
    supply.draw_on(Reserve::Reclaim).unwrap();
    assert!(is_full(2), "there is space, for something else");
    disk.bound(3 * SEGMENT_BYTES);
    assert!(prepare(2).unwrap().is_some(), "there is space for both, and nobody need tell");
    // All of it is used.
    disk.create("packed/one.seg").unwrap().allocate(SEGMENT_BYTES).unwrap();
    supply.restore(Reserve::Reclaim, SEGMENT_BYTES).unwrap();
    assert!(is_full(3));
    // Two segments leave: the reserve is made of one file, and the other one is the log's.
    for number in 1..3 {
        let (from, to) = (segment::path(SegmentNumber(number)), segment::free_path(SegmentNumber(number)));
        disk.rename(&from, &to).unwrap();
    }
    supply.give(vec![SegmentNumber(1), SegmentNumber(2)]).unwrap();
    assert!(prepare(3).unwrap().is_some());
    assert!(is_full(4));
    supply.restore(Reserve::Reclaim, SEGMENT_BYTES).unwrap();
    assert_eq!(disk.bytes(Reserve::Reclaim.path()).len() as u64, SEGMENT_BYTES);
    assert_eq!(disk.names("log"), ["00000000000000000003.seg"]);
    disk.remove("packed/one.seg").unwrap();
    assert!(prepare(4).unwrap().is_some());
}

#[test]
fn a_reserve_that_the_disk_is_too_small_for_takes_nothing_from_the_log() {
    let (disk, supply) = two_segments();
    let prepare = |number| supply.prepare(SegmentNumber(number), &|_| Step::Fill);
    assert!(prepare(1).unwrap().is_some() && prepare(2).unwrap().is_some());
    supply.restore(Reserve::Reclaim, SEGMENT_BYTES).unwrap();
    disk.rename(&segment::path(SegmentNumber(1)), &segment::free_path(SegmentNumber(1))).unwrap();
    supply.give(vec![SegmentNumber(1)]).unwrap();
    supply.restore(Reserve::Reclaim, SEGMENT_BYTES).unwrap();
    assert!(prepare(3).unwrap().is_some());
}

#[test]
fn with_as_much_free_as_is_told_the_files_that_are_kept_ready_are_made_though_all_reserves_are_gone() {
    let (disk, supply) = two_segments();
    supply.claim(Reserve::Checkpoint);
    supply.claim(Reserve::Reclaim);
    disk.bound(free_bytes_wanted(SEGMENT_BYTES) - 1);
    assert!(supply.lacks_space(AHEAD).unwrap());
    disk.bound(free_bytes_wanted(SEGMENT_BYTES));
    assert!(!supply.lacks_space(AHEAD).unwrap());
    for number in 1..=AHEAD as u64 {
        let made = supply.prepare(SegmentNumber(number), &|_| Step::Fill).unwrap();
        assert!(made.is_some());
    }
}

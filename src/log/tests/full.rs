//! A full disk.

use std::io;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use super::super::*;
use super::hook::{HookDisk, Verdict};
use super::support::*;
use crate::disk::Operation;
use crate::record::Kind;

const SIZE: usize = 4_200;

/// A disk on which nothing new fits while the switch is on, and the switch.
fn disk(dir: &std::path::Path) -> (Arc<dyn crate::disk::Disk>, Arc<AtomicBool>) {
    let full = Arc::new(AtomicBool::new(false));
    let switch = full.clone();
    let disk = HookDisk::over(dir, move |operation, path| {
        let is_segment = || path.to_string_lossy().contains(".seg");
        let new = operation == Operation::Allocate && is_segment() || operation == Operation::Inspect;
        let refused = new && full.load(Ordering::Relaxed);
        if refused { Verdict::Fail(io::ErrorKind::StorageFull) } else { Verdict::Go }
    });
    (disk, switch)
}

/// Waits until the log says how much room there is.
fn next_room(harness: &Harness) -> Room {
    loop {
        match harness.events.recv_timeout(Duration::from_secs(20)).expect("the log reports") {
            LogEvent::Room(room) => return room,
            LogEvent::Failed(error) => panic!("{error}"),
            _ => {}
        }
    }
}

fn until_ample(harness: &Harness) {
    while next_room(harness) != Room::Ample {}
}

#[test]
fn a_full_disk_is_told_in_time_and_ends_when_segments_have_left() {
    let dir = tempfile::tempdir().unwrap();
    let (disk, full) = disk(dir.path());
    let mut harness = try_open(disk, options()).unwrap();
    harness.publish(0, 200, SIZE);
    full.store(true, Ordering::Relaxed);
    // The next segment that is begun asks for another file.
    let mut offset = 200;
    let room = loop {
        harness.publish(offset, offset + 1, SIZE);
        offset += 1;
        if let Some(room) = harness.room.take() {
            break room;
        }
    };
    assert_eq!(room, Room::Reserve);
    // A whole segment and more is left for finishing messages; checkpoints go on.
    for _ in 0..25 {
        harness.commit(vec![plain(Kind::Acked, b"")]);
    }
    for state in [b"one", b"two", b"six", b"ten"] {
        harness.commit(vec![plain(Kind::Acked, b"")]);
        assert!(harness.checkpoint(state, offset).unwrap());
    }
    // The files of those that have left are taken, though none can be made yet.
    if harness.room.take() != Some(Room::Ample) {
        until_ample(&harness);
    }
    harness.publish(offset, offset + 50, SIZE);
    offset += 50;
    full.store(false, Ordering::Relaxed);
    assert!(harness.checkpoint(b"ten", offset).unwrap());
    harness.publish(offset, offset + 100, SIZE);
    drop(harness);
    let harness = open_dir(dir.path()).unwrap();
    assert_eq!(harness.restored.as_deref(), Some(&b"ten"[..]));
    assert_eq!(harness.replayed.len(), 100);
}

#[test]
fn the_reserve_has_an_end_and_that_is_told_before_it_comes() {
    let dir = tempfile::tempdir().unwrap();
    let (disk, full) = disk(dir.path());
    let mut harness = try_open(disk, options()).unwrap();
    full.store(true, Ordering::Relaxed);
    let mut acks = 0;
    let mut rooms = Vec::new();
    while rooms.last() != Some(&Room::Exhausted) {
        harness.commit(vec![plain(Kind::Acked, b"")]);
        acks += 1;
        rooms.extend(harness.room.take());
    }
    assert_eq!(rooms, [Room::Reserve, Room::Exhausted]);
    assert!(acks > 40, "{acks} frames of 4 KiB");
    // What was under way when it was told still fits.
    for _ in 0..8 {
        harness.commit(vec![plain(Kind::Acked, b"")]);
    }
    full.store(false, Ordering::Relaxed);
    until_ample(&harness);
}

#[test]
fn a_start_on_a_full_disk_says_so_before_it_takes_anything() {
    let dir = tempfile::tempdir().unwrap();
    let (disk, full) = disk(dir.path());
    let mut harness = try_open(disk.clone(), options()).unwrap();
    full.store(true, Ordering::Relaxed);
    while harness.room.take() != Some(Room::Exhausted) {
        harness.commit(vec![plain(Kind::Acked, b"")]);
    }
    drop(harness);
    let harness = try_open(disk, options()).unwrap();
    let first = harness.events.try_recv();
    assert!(matches!(first, Ok(LogEvent::Room(Room::Exhausted))), "{first:?}");
    full.store(false, Ordering::Relaxed);
    until_ample(&harness);
}

#[test]
fn a_full_disk_behind_a_slow_helper_leaves_a_segment_for_what_is_under_way() {
    let dir = tempfile::tempdir().unwrap();
    let (slow, full) = (Arc::new(AtomicBool::new(false)), Arc::new(AtomicBool::new(false)));
    let (held, is_full) = (slow.clone(), full.clone());
    let disk = HookDisk::over(dir.path(), move |operation, path| {
        let new = operation == Operation::Allocate && path.to_string_lossy().contains(".seg");
        while new && held.load(Ordering::Relaxed) {
            std::thread::yield_now();
        }
        let refused = new && is_full.load(Ordering::Relaxed);
        if refused { Verdict::Fail(io::ErrorKind::StorageFull) } else { Verdict::Go }
    });
    let mut harness = try_open(disk, options()).unwrap();
    while harness.log.counters().segments.get() < 3 {
        std::thread::yield_now();
    }
    slow.store(true, Ordering::Relaxed);
    // Twelve fit a segment. Three wait at a time, as long as nobody says that the disk is full.
    let (mut sent, mut committed, mut told) = (0, 0, None);
    while committed < sent || told.is_none() {
        if told.is_none() && sent < committed + 3 {
            harness.submit(vec![run(sent, 1, 20_000)]);
            sent += 1;
            continue;
        }
        match harness.events.recv_timeout(Duration::from_millis(200)) {
            Ok(LogEvent::Committed { placed, .. }) => committed += placed.len() as u64,
            Ok(LogEvent::Room(room)) => told = Some(room),
            Ok(_) => {}
            Err(_) => {
                assert_eq!((told, full.swap(true, Ordering::Relaxed)), (None, false), "all had room");
                slow.store(false, Ordering::Relaxed);
            }
        }
    }
    assert_eq!(told, Some(Room::Reserve));
    harness.assert_holds(sent, 20_000);
}

#[test]
fn what_is_larger_than_all_that_is_left_waits_and_that_is_told() {
    let dir = tempfile::tempdir().unwrap();
    let (disk, full) = disk(dir.path());
    let mut harness = try_open(disk, options()).unwrap();
    full.store(true, Ordering::Relaxed);
    // Two fit a segment, and leave more of it than what counts as the end of the reserve.
    let size = SEGMENT_BYTES as usize * 35 / 100;
    let tickets: Vec<_> = (0..9).map(|at| harness.submit(vec![run(at, 1, size)])).collect();
    while next_room(&harness) != Room::Exhausted {}
    full.store(false, Ordering::Relaxed);
    until_ample(&harness);
    let after = harness.submit(vec![plain(Kind::Acked, b"")]);
    assert!(after > *tickets.last().unwrap());
    harness.wait(after).unwrap();
    harness.assert_holds(9, size);
}

#[test]
fn a_checkpoint_on_a_full_disk_takes_its_reserve() {
    let dir = tempfile::tempdir().unwrap();
    let full = Arc::new(AtomicBool::new(false));
    let switch = full.clone();
    let reserve = dir.path().join("checkpoint/RESERVE");
    let held = reserve.clone();
    let disk = HookDisk::over(dir.path(), move |operation, path| {
        let new = operation == Operation::Write && path.to_string_lossy().contains(".ckpt");
        let refused = new && full.load(Ordering::Relaxed) && held.exists();
        if refused { Verdict::Fail(io::ErrorKind::StorageFull) } else { Verdict::Go }
    });
    let mut harness = try_open(disk, options()).unwrap();
    assert!(harness.checkpoint(b"one", 0).unwrap());
    assert_eq!(std::fs::metadata(&reserve).unwrap().len(), 1 << 20);
    switch.store(true, Ordering::Relaxed);
    harness.publish(0, 1, SIZE);
    assert!(harness.checkpoint(b"two", 0).unwrap(), "the space of the reserve was given up");
    drop(harness);
    assert_eq!(open_dir(dir.path()).unwrap().restored.as_deref(), Some(&b"two"[..]));
}

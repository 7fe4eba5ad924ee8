//! Starts from checkpoints, and segments that leave.

use std::path::{Path, PathBuf};

use super::super::*;
use super::support::*;

/// Messages of this size fill a segment of 256 KiB with 30 of them, each in a frame of its own.
const SIZE: usize = 4_200;

fn files(dir: &Path, folder: &str, ending: &str) -> Vec<PathBuf> {
    let entries = std::fs::read_dir(dir.join(folder)).unwrap().map(|entry| entry.unwrap().path());
    let mut files: Vec<PathBuf> =
        entries.filter(|path| path.extension().is_some_and(|extension| extension == ending)).collect();
    files.sort();
    files
}

fn segments(dir: &Path) -> usize {
    files(dir, "log", "seg").len()
}

/// A log with 300 messages, and checkpoints behind 200 ("two") and 250 ("three") that need those from 0 on.
fn filled(dir: &Path) {
    let mut harness = open_dir(dir).unwrap();
    harness.publish(0, 100, SIZE);
    harness.checkpoint(b"one", 0).unwrap();
    harness.publish(100, 200, SIZE);
    harness.checkpoint(b"two", 0).unwrap();
    harness.publish(200, 250, SIZE);
    harness.checkpoint(b"three", 0).unwrap();
    harness.publish(250, 300, SIZE);
}

#[test]
fn a_start_reads_from_the_newest_checkpoint_on() {
    let dir = tempfile::tempdir().unwrap();
    filled(dir.path());
    let harness = open_dir(dir.path()).unwrap();
    assert_eq!(harness.restored.as_deref(), Some(&b"three"[..]));
    let offsets: Vec<u64> = harness.replayed.iter().map(|placed| placed.first_offset.0).collect();
    assert_eq!(offsets, (250..300).collect::<Vec<_>>());
    let report = harness.log.report();
    assert!(report.segments >= 10 && report.segments_read <= 4, "{report:?}");
    assert!(report.bytes_read <= 5 * SEGMENT_BYTES, "{report:?}");
    assert_eq!(report.incarnation, 2);
    harness.assert_holds(300, SIZE);
}

fn flip(path: &Path) -> Vec<u8> {
    let mut bytes = std::fs::read(path).unwrap();
    *bytes.last_mut().unwrap() ^= 1;
    std::fs::write(path, &bytes).unwrap();
    bytes
}

#[test]
fn a_damaged_checkpoint_is_set_aside_and_the_older_one_serves() {
    let dir = tempfile::tempdir().unwrap();
    filled(dir.path());
    // Base and delta of "two", then of "three".
    let all = files(dir.path(), "checkpoint", "ckpt");
    assert_eq!(all.len(), 4);
    let damaged = flip(&all[3]);
    let harness = open_dir(dir.path()).unwrap();
    assert_eq!(
        (harness.restored.as_deref(), harness.replayed.len()),
        (Some(&b"three"[..]), 50),
        "by its base"
    );
    assert_eq!(harness.log.report().set_aside.len(), 1);
    assert_eq!(std::fs::read(&harness.log.report().set_aside[0]).unwrap(), damaged);
    drop(harness);
    flip(&all[2]);
    let mut harness = open_dir(dir.path()).unwrap();
    assert_eq!((harness.restored.as_deref(), harness.replayed.len()), (Some(&b"two"[..]), 100));
    assert_eq!(harness.log.report().set_aside.len(), 1);
    harness.assert_holds(300, SIZE);
    assert!(harness.checkpoint(b"four", 0).unwrap());
    drop(harness);
    assert_eq!(open_dir(dir.path()).unwrap().restored.as_deref(), Some(&b"four"[..]));
}

#[test]
fn without_checkpoints_a_whole_log_is_replayed_and_a_cut_one_refused() {
    let dir = tempfile::tempdir().unwrap();
    filled(dir.path());
    let remove_checkpoints = || {
        files(dir.path(), "checkpoint", "ckpt").iter().for_each(|file| std::fs::remove_file(file).unwrap())
    };
    remove_checkpoints();
    let mut harness = open_dir(dir.path()).unwrap();
    assert_eq!((harness.restored.as_deref(), harness.replayed.len()), (None, 300));
    harness.checkpoint(b"one", 300).unwrap();
    // Found dead behind the first, known as such to the next two, and so removed.
    for (offset, state) in (300..).zip([b"two", b"six", b"ten"]) {
        harness.publish(offset, offset + 1, SIZE);
        harness.checkpoint(state, 300).unwrap();
    }
    drop(harness);
    remove_checkpoints();
    let error = open_dir(dir.path()).err().unwrap();
    assert!(matches!(error, LogError::NotFromStart { .. }) && error.is_data_loss(), "{error}");
}

#[test]
fn segments_leave_when_nothing_needs_them_and_not_before() {
    let dir = tempfile::tempdir().unwrap();
    let mut harness = open_dir(dir.path()).unwrap();
    harness.publish(0, 300, SIZE);
    let all = segments(dir.path());
    assert!(all >= 10);
    let mut publish_and_checkpoint = |offset| {
        harness.publish(offset, offset + 1, SIZE);
        harness.checkpoint(&[offset as u8], 300).unwrap();
        segments(dir.path())
    };
    assert!(publish_and_checkpoint(300) >= all, "one checkpoint alone: should it be damaged, all is needed");
    assert!(publish_and_checkpoint(301) >= all, "found dead now, and not logged as dropped");
    assert!(publish_and_checkpoint(302) >= all, "the older checkpoint lists them yet");
    publish_and_checkpoint(303);
    let left = segments(dir.path());
    assert!(left <= 3, "{left} of {all} are left");
    // A file that was just made may not be listed yet.
    let listed = left as u64 - 1..=left as u64 + 1;
    assert!(listed.contains(&harness.log.counters().segments.get()), "{left}");
    harness.publish(304, 310, SIZE);
    drop(harness);
    let harness = open_dir(dir.path()).unwrap();
    assert_eq!((harness.restored.as_deref(), harness.replayed.len()), (Some(&[47][..]), 6));
    assert_eq!(harness.log.report().set_aside, Vec::<PathBuf>::new());
    assert!(listed.contains(&harness.log.report().segments), "{:?}, {left}", harness.log.report());
}

#[test]
fn the_space_of_segments_that_left_is_free() {
    let dir = tempfile::tempdir().unwrap();
    let mut harness = open_dir(dir.path()).unwrap();
    harness.publish(0, 100, SIZE);
    harness.assert_holds(100, SIZE);
    for offset in 100..105 {
        harness.publish(offset, offset + 1, SIZE);
        harness.checkpoint(b"any", 100).unwrap();
    }
    let open = std::fs::read_dir("/proc/self/fd")
        .unwrap()
        .filter_map(|fd| std::fs::read_link(fd.unwrap().path()).ok());
    let gone: Vec<PathBuf> = open
        .filter(|path| path.starts_with(dir.path()) && path.to_string_lossy().ends_with("(deleted)"))
        .collect();
    assert_eq!(gone, Vec::<PathBuf>::new(), "a file that is open takes space without a name");
}

#[test]
fn a_needed_message_keeps_its_segment_alone() {
    let dir = tempfile::tempdir().unwrap();
    let mut harness = open_dir(dir.path()).unwrap();
    harness.publish(0, 300, SIZE);
    for offset in 300..305 {
        harness.publish(offset, offset + 1, SIZE);
        harness.checkpoint(b"any", 150).unwrap();
    }
    (150..300).for_each(|offset| harness.assert_has(offset, SIZE));
    assert!(segments(dir.path()) <= 8, "{}", segments(dir.path()));
}

#[test]
fn a_file_that_was_to_be_removed_is_no_stranger() {
    let dir = tempfile::tempdir().unwrap();
    let mut harness = open_dir(dir.path()).unwrap();
    harness.publish(0, 100, SIZE);
    for offset in 100..103 {
        harness.publish(offset, offset + 1, SIZE);
        harness.checkpoint(b"any", 100).unwrap();
    }
    drop(harness);
    let before = segments(dir.path());
    let mut harness = open_dir(dir.path()).unwrap();
    assert_eq!(harness.log.report().set_aside, Vec::<PathBuf>::new());
    for offset in 103..105 {
        harness.publish(offset, offset + 1, SIZE);
        harness.checkpoint(b"any", 100).unwrap();
    }
    assert!(segments(dir.path()) < before);
}

#[test]
fn a_missing_segment_is_reported_and_the_rest_is_served() {
    let dir = tempfile::tempdir().unwrap();
    filled(dir.path());
    std::fs::remove_file(dir.path().join("log/00000000000000000002.seg")).unwrap();
    let harness = open_dir(dir.path()).unwrap();
    assert_eq!(harness.log.report().missing, [SegmentNumber(2)]);
    assert_eq!(harness.replayed.len(), 50);
}

#[test]
fn what_was_dropped_is_not_found_after_a_start_either() {
    const SIZE: usize = 30_000;
    const END: u64 = 60;
    let dir = tempfile::tempdir().unwrap();
    let mut harness = open_dir(dir.path()).unwrap();
    harness.publish(0, END, SIZE);
    let live = |_, end| end < Offset(3) || end > Offset(END - 3);
    // What leaves is known of the older one of two.
    for offset in END..END + 2 {
        assert!(harness.checkpoint_where(b"", Arc::new(live)).unwrap());
        harness.publish(offset, offset + 1, 100);
    }
    let gone =
        |harness: &Harness| (0..END).filter(|offset| harness.find(*offset).is_none()).collect::<Vec<_>>();
    let before = gone(&harness);
    assert!(before.len() > 30 && !before.contains(&0), "{before:?}");
    harness.log.close().unwrap();
    // The checkpoint was marked before they were dropped.
    assert_eq!(gone(&open_dir(dir.path()).unwrap()), before);
}

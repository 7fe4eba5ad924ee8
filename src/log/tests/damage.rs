//! Bytes changed behind the log's back.

use std::collections::BTreeMap;
use std::path::Path;

use super::super::frame::{FRAME_HEADER_BYTES, FrameHeader};
use super::super::segment::SEGMENT_HEADER_BYTES;
use super::super::*;
use super::support::*;

const SIZE: usize = 5_000;

pub fn path(dir: &Path, segment: u64) -> PathBuf {
    dir.join(segment::path(SegmentNumber(segment)))
}

pub fn change(dir: &Path, segment: u64, work: impl FnOnce(&mut Vec<u8>)) {
    let mut bytes = std::fs::read(path(dir, segment)).unwrap();
    work(&mut bytes);
    std::fs::write(path(dir, segment), bytes).unwrap();
}

/// The frames of a segment, where they begin and what they say.
pub fn frames(dir: &Path, segment: u64) -> Vec<(usize, FrameHeader)> {
    let bytes = std::fs::read(path(dir, segment)).unwrap();
    let mut frames = Vec::new();
    let mut at = SEGMENT_HEADER_BYTES;
    while at < bytes.len() {
        let Some(header) = FrameHeader::claimed(&bytes[at..]) else { break };
        frames.push((at, header));
        at += header.frame_len() as usize;
    }
    frames
}

/// Makes a log of single messages in one segment whose last frame holds the last message; that frame.
pub fn one_segment(dir: &Path, count: u64) -> (usize, FrameHeader) {
    let mut harness = open_dir(dir).unwrap();
    harness.publish(0, count, SIZE);
    drop(harness);
    let (at, header) =
        frames(dir, 1).into_iter().rfind(|(_, header)| header.payload_len as usize > SIZE).unwrap();
    change(dir, 1, |bytes| bytes[at + header.frame_len() as usize..].fill(0));
    (at, header)
}

#[test]
fn a_first_segment_that_was_cut_short_is_refused_or_read_as_far_as_it_goes() {
    let dir = tempfile::tempdir().unwrap();
    let mut harness = open_dir(dir.path()).unwrap();
    harness.publish(0, 3, SIZE);
    drop(harness);
    let whole = snapshot(dir.path());
    let (last, header) = *frames(dir.path(), 1).last().unwrap();
    let end = last + header.frame_len() as usize;
    let (mut opened, mut short) = (0, 0);
    for length in (0..end + 8192).step_by(1024) {
        std::fs::remove_dir_all(dir.path().join("log")).unwrap();
        std::fs::create_dir(dir.path().join("log")).unwrap();
        whole.iter().for_each(|(path, bytes)| std::fs::write(path, bytes).unwrap());
        change(dir.path(), 1, |bytes| bytes.truncate(length));
        let before = snapshot(dir.path());
        match open_dir(dir.path()) {
            Ok(_) => opened += 1,
            Err(error) => {
                assert!(error.is_data_loss(), "{length} bytes: {error}");
                assert_eq!(snapshot(dir.path()), before, "{length} bytes: a refusal changes nothing");
                short += u64::from(matches!(error, LogError::SegmentShort { .. }));
            }
        }
    }
    assert!(opened > 0 && short > 0, "{opened} opened, {short} too short");
}

/// Every file under `dir` but the lock, with its content.
fn snapshot(dir: &Path) -> BTreeMap<PathBuf, Vec<u8>> {
    let mut files = BTreeMap::new();
    for entry in std::fs::read_dir(dir).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() {
            files.extend(snapshot(&path));
        } else if !path.ends_with("LOCK") {
            files.insert(path.clone(), std::fs::read(path).unwrap());
        }
    }
    files
}

pub fn refused(dir: &Path) -> LogError {
    let before = snapshot(dir);
    let error = open_dir(dir).err().expect("the log is refused");
    assert!(snapshot(dir) == before, "nothing is changed by a refusal: {error}");
    error
}

#[test]
fn a_torn_last_frame_is_kept_aside_whatever_part_is_torn() {
    let dir = tempfile::tempdir().unwrap();
    let (at, header) = one_segment(dir.path(), 4);
    let good = std::fs::read(path(dir.path(), 1)).unwrap();
    let payload_end = at + FRAME_HEADER_BYTES + header.payload_len as usize;
    let flips = (at..at + 64).chain([at + 64, at + FRAME_HEADER_BYTES, at + 3_000, payload_end - 1]);
    let mut torn_frames: Vec<Vec<u8>> = flips.map(|place| flipped(&good, place)).collect();
    for lost in [at..at + 512, at + 512..at + 4096, at + 4096..payload_end] {
        let mut bytes = good.clone();
        bytes[lost].fill(0);
        torn_frames.push(bytes);
    }
    for bytes in torn_frames {
        std::fs::write(path(dir.path(), 1), &bytes).unwrap();
        let harness = open_dir(dir.path()).unwrap();
        harness.assert_holds(3, SIZE);
        let torn = &harness.log.report().torn;
        assert_eq!(torn.len(), 1);
        assert_eq!((torn[0].segment, torn[0].position), (SegmentNumber(1), at as u64));
        let copy = std::fs::read(&torn[0].copy).unwrap();
        assert_eq!(copy.len() as u64, torn[0].bytes);
        assert_eq!(copy, &bytes[at..at + copy.len()]);
        drop(harness);
        let again = open_dir(dir.path()).unwrap();
        assert_eq!(again.log.report().torn, []);
        again.assert_holds(3, SIZE);
    }
}

pub fn flipped(bytes: &[u8], place: usize) -> Vec<u8> {
    let mut bytes = bytes.to_vec();
    bytes[place] ^= 1;
    bytes
}

#[test]
fn a_frame_whose_padding_alone_is_torn_is_whole() {
    let dir = tempfile::tempdir().unwrap();
    let (at, header) = one_segment(dir.path(), 4);
    let (payload_end, end) =
        (at + FRAME_HEADER_BYTES + header.payload_len as usize, at + header.frame_len() as usize);
    change(dir.path(), 1, |bytes| bytes[payload_end..end].fill(7));
    let mut harness = open_dir(dir.path()).unwrap();
    assert_eq!(harness.log.report().torn, []);
    let bytes = std::fs::read(path(dir.path(), 1)).unwrap();
    let copy = &bytes[end - FRAME_HEADER_BYTES..end];
    assert_eq!(copy, &bytes[at..at + FRAME_HEADER_BYTES], "its end is mended");
    harness.publish(4, 6, SIZE);
    harness.assert_holds(6, SIZE);
}

#[test]
fn old_bytes_never_follow_a_cut() {
    let dir = tempfile::tempdir().unwrap();
    let (at, header) = one_segment(dir.path(), 4);
    change(dir.path(), 1, |bytes| bytes[at + 100] ^= 1);
    drop(open_dir(dir.path()).unwrap());
    let bytes = std::fs::read(path(dir.path(), 1)).unwrap();
    let end = frames(dir.path(), 1).last().map(|(at, header)| at + header.frame_len() as usize).unwrap();
    assert!(end < at + header.frame_len() as usize * 2);
    assert!(bytes[end..].iter().all(|byte| *byte == 0));
}

/// A log over several segments.
pub fn many_segments(dir: &Path) -> u64 {
    let mut harness = open_dir(dir).unwrap();
    harness.publish(0, 20, 40_000);
    harness.log.close().unwrap();
    assert!(frames(dir, 3).len() > 2);
    20
}

/// Makes a log whose segment 3 is blank but for its header and first frame, as if that write had been the last.
pub fn segment_3_begun(dir: &Path) -> Vec<u8> {
    many_segments(dir);
    let first = frames(dir, 3)[0].1;
    let end = SEGMENT_HEADER_BYTES + first.frame_len() as usize;
    let later = std::fs::read_dir(dir.join("log")).unwrap().map(|entry| entry.unwrap().path());
    for file in later.filter(|file| *file > path(dir, 3) && file.extension().unwrap() == "seg") {
        std::fs::write(file, vec![0; SEGMENT_BYTES as usize]).unwrap();
    }
    change(dir, 3, |bytes| bytes[end..].fill(0));
    std::fs::read(path(dir, 3)).unwrap()
}

/// The same in which messages, not listings, are the last frame of segment 2 and the only one of segment 3: where a listing
/// goes depends on when its file was ready.
pub fn segment_3_begun_by_a_message() -> tempfile::TempDir {
    for _ in 0..100 {
        let dir = tempfile::tempdir().unwrap();
        segment_3_begun(dir.path());
        let ends = [frames(dir.path(), 2).last().unwrap().1, frames(dir.path(), 3)[0].1];
        if ends.iter().all(|header| header.payload_len > 40_000) {
            return dir;
        }
    }
    panic!("a listing was at the end of segment 2 or the start of segment 3 each time");
}

#[test]
fn a_torn_first_frame_of_a_segment_is_kept_aside() {
    for lost in [0..4096, 0..1, 4096..4608, 0..8192, 8192..12_288, 4200..4201] {
        let dir = tempfile::tempdir().unwrap();
        let mut bytes = segment_3_begun(dir.path());
        let before = first_offset_of(dir.path(), 3);
        bytes[lost].iter_mut().for_each(|byte| *byte = !*byte);
        std::fs::write(path(dir.path(), 3), &bytes).unwrap();
        let mut harness = open_dir(dir.path()).unwrap();
        let torn = harness.log.report().torn.clone();
        assert_eq!(torn.len(), 1, "{torn:?}");
        assert_eq!((torn[0].segment, torn[0].position), (SegmentNumber(3), 0));
        let copy = std::fs::read(&torn[0].copy).unwrap();
        assert_eq!(copy, &bytes[..copy.len()]);
        harness.assert_holds(before, 40_000);
        harness.publish(before, before + 1, 40_000);
        drop(harness);
        open_dir(dir.path()).unwrap().assert_holds(before + 1, 40_000);
    }
}

/// The offset of the first message in a segment, given the layout that `many_segments` makes.
fn first_offset_of(dir: &Path, segment: u64) -> u64 {
    let messages =
        |segment| frames(dir, segment).iter().filter(|(_, header)| header.payload_len > 40_000).count();
    (1..segment).map(|segment| messages(segment) as u64).sum()
}

#[test]
fn a_missing_or_short_segment_is_refused() {
    let dir = tempfile::tempdir().unwrap();
    many_segments(dir.path());
    let good = std::fs::read(path(dir.path(), 2)).unwrap();
    change(dir.path(), 2, |bytes| bytes.truncate(100_000));
    assert!(matches!(
        refused(dir.path()),
        LogError::SegmentShort { segment: SegmentNumber(2), found: 100_000, expected: SEGMENT_BYTES, .. }
    ));
    std::fs::remove_file(path(dir.path(), 2)).unwrap();
    let error = refused(dir.path());
    assert!(matches!(error, LogError::SegmentMissing { segment: SegmentNumber(2), .. }), "{error}");
    assert!(error.is_data_loss() && error.to_string().contains("00000000000000000002.seg"));
    std::fs::write(path(dir.path(), 2), good).unwrap();
    std::fs::remove_file(path(dir.path(), 1)).unwrap();
    assert!(matches!(refused(dir.path()), LogError::NotFromStart { .. } | LogError::SegmentMissing { .. }));
}

#[test]
fn the_last_blank_segment_must_be_there_too() {
    let dir = tempfile::tempdir().unwrap();
    open_dir(dir.path()).unwrap().log.close().unwrap();
    // Closing lists what the helper had made; without it there is nothing to lose.
    let harness = open_dir(dir.path()).unwrap();
    while harness.log.counters().segments.get() < 2 {
        std::thread::yield_now();
    }
    harness.log.close().unwrap();
    let blank = std::fs::read_dir(dir.path().join("log")).unwrap().map(|entry| entry.unwrap().path()).max();
    std::fs::remove_file(blank.unwrap()).unwrap();
    assert!(matches!(refused(dir.path()), LogError::SegmentMissing { .. }));
}

#[test]
fn unlisted_segments_are_set_aside_unless_they_are_blank() {
    let dir = tempfile::tempdir().unwrap();
    let end = many_segments(dir.path());
    let (blank, junk) = (path(dir.path(), 70), path(dir.path(), 71));
    std::fs::write(&blank, vec![0; SEGMENT_BYTES as usize]).unwrap();
    std::fs::write(&junk, b"something").unwrap();
    let unfinished = dir.path().join("log/00000000000000000072.seg.tmp");
    std::fs::write(&unfinished, b"").unwrap();
    let mut harness = open_dir(dir.path()).unwrap();
    let aside = harness.log.report().set_aside.clone();
    assert_eq!(aside.len(), 1, "nothing was ever in the blank one");
    assert_eq!(std::fs::read(dir.path().join("quarantine/00000000000000000071.seg")).unwrap(), b"something");
    assert!(!blank.exists() && !junk.exists() && !unfinished.exists());
    harness.publish(end, end + 20, 40_000);
    harness.log.close().unwrap();
    let harness = open_dir(dir.path()).unwrap();
    harness.assert_holds(end + 20, 40_000);
    let used: Vec<bool> = [70, 71].map(|number| path(dir.path(), number).exists()).to_vec();
    assert_eq!(used, [false, false], "numbers are not reused");
}

/// As a write that went astray would leave it.
#[test]
fn a_good_frame_in_the_place_of_another_is_not_taken() {
    let dir = tempfile::tempdir().unwrap();
    let (last, header) = one_segment(dir.path(), 5);
    let length = header.frame_len() as usize;
    let of_that_length =
        |(at, other): &(usize, FrameHeader)| *at < last && other.frame_len() as usize == length;
    let (before, _) = frames(dir.path(), 1).into_iter().rfind(of_that_length).unwrap();
    change(dir.path(), 1, |bytes| bytes.copy_within(before..before + length, last));
    let harness = open_dir(dir.path()).unwrap();
    assert_eq!(harness.replayed.len(), 4);
    harness.assert_holds(4, SIZE);
}

#[test]
fn frame_images_in_bodies_are_no_frames() {
    let dir = tempfile::tempdir().unwrap();
    let (at, header) = one_segment(dir.path(), 3);
    let image = std::fs::read(path(dir.path(), 1)).unwrap()[at..at + header.frame_len() as usize].to_vec();
    let other = tempfile::tempdir().unwrap();
    let mut harness = open_dir(other.path()).unwrap();
    let mut forged = run(0, 1, 0);
    if let crate::record::Body::Run(run) = &mut forged.body {
        run.messages[0].body = [vec![0; 4096 - 80 - 40 - 16 - 12], image.repeat(3)].concat().into();
    }
    let placed = harness.commit(vec![forged]);
    drop(harness);
    let again = open_dir(other.path()).unwrap();
    assert_eq!((again.log.report().torn.len(), again.replayed), (0, placed));
}

#[test]
fn later_frames_count_even_where_the_segments_header_is_lost() {
    let dir = tempfile::tempdir().unwrap();
    many_segments(dir.path());
    let later = std::fs::read_dir(dir.path().join("log")).unwrap().map(|entry| entry.unwrap().path());
    for file in later.filter(|file| *file > path(dir.path(), 3) && file.extension().unwrap() == "seg") {
        std::fs::write(file, vec![0; SEGMENT_BYTES as usize]).unwrap();
    }
    change(dir.path(), 3, |bytes| bytes[..SEGMENT_HEADER_BYTES].fill(0));
    let error = refused(dir.path());
    assert!(matches!(error, LogError::Corrupt { segment: SegmentNumber(3), .. }), "{error}");
}

#[test]
fn a_batch_has_a_successor_soon_and_after_a_close() {
    let dir = tempfile::tempdir().unwrap();
    let mut harness = open_dir(dir.path()).unwrap();
    harness.commit(vec![run(0, 1, SIZE)]);
    let counters = harness.log.counters();
    // The start, the batch, and the empty frame, unless a listing came in a frame of its own.
    while counters.frames.get() < 3 {
        std::thread::yield_now();
    }
    drop(harness);
    let frames_before = frames(dir.path(), 1).len();
    assert!(frames_before >= 3);
    let mut harness = open_dir(dir.path()).unwrap();
    harness.commit(vec![run(1, 1, SIZE)]);
    harness.log.close().unwrap();
    let last = frames(dir.path(), 1).last().unwrap().1;
    assert!((last.payload_len as usize) < SIZE && frames(dir.path(), 1).len() >= frames_before + 3);
}

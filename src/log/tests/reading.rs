//! Messages read back from where they lie.

use std::os::unix::fs::FileExt;

use super::super::*;
use super::support::*;
use crate::record::{Kind, RecordError};

fn offsets(read: &RunRead) -> Vec<u64> {
    read.messages.iter().map(|message| message.offset.0).collect()
}

#[test]
fn a_part_of_a_run_is_read_within_the_bytes_allowed() {
    let dir = tempfile::tempdir().unwrap();
    let mut harness = open_dir(dir.path()).unwrap();
    for (first, size) in [(0, 100), (10, 4_000), (20, 17_000)] {
        let location = harness.commit(vec![run(first, 10, size)])[0].location;
        let reader = harness.log.reader();
        let all = reader.read(location, 0, 10, u64::MAX).unwrap();
        assert_eq!((offsets(&all), all.complete), ((first..first + 10).collect(), true));
        assert!(all.messages.iter().all(|message| message.body == body(message.offset.0, size)));
        assert_eq!(all.messages[0].lane, crate::record::Lane { priority: 4, bucket: 1 });
        assert_eq!(all.messages[0].publish_time_us, 1_000 + first);
        let some = reader.read(location, 3, 4, 2 * size as u64).unwrap();
        assert_eq!((offsets(&some), some.complete), (vec![first + 3, first + 4], false));
        let one = reader.read(location, 9, 1, 0).unwrap();
        assert_eq!((offsets(&one), one.complete), (vec![first + 9], true));
        let beyond = reader.read(location, 8, 100, u64::MAX).unwrap();
        assert_eq!((offsets(&beyond), beyond.complete), (vec![first + 8, first + 9], true));
        let error = reader.read(location, 10, 1, u64::MAX).unwrap_err();
        assert!(matches!(error, ReadError::OutOfRun { first: 10, count: 10, .. }));
    }
}

#[test]
fn a_long_table_is_read_whole() {
    let dir = tempfile::tempdir().unwrap();
    let mut harness = open_dir(dir.path()).unwrap();
    let location = harness.commit(vec![run(0, 3_000, 8)])[0].location;
    let read = harness.log.reader().read(location, 2_990, 10, u64::MAX).unwrap();
    assert_eq!(offsets(&read), (2_990..3_000).collect::<Vec<_>>());
}

#[test]
fn damage_costs_the_one_message_it_hits() {
    let dir = tempfile::tempdir().unwrap();
    let mut harness = open_dir(dir.path()).unwrap();
    let location = harness.commit(vec![run(0, 5, 1_000)])[0].location;
    let path = dir.path().join(segment::path(location.segment));
    let file = std::fs::OpenOptions::new().write(true).open(path).unwrap();
    let in_message_2 = location.position + u64::from(location.length) - 2 * 1_000 - 1;
    file.write_all_at(b"?", in_message_2).unwrap();
    let reader = harness.log.reader();
    let read = reader.read(location, 0, 5, u64::MAX).unwrap();
    assert_eq!((offsets(&read), read.damaged, read.complete), (vec![0, 1, 3, 4], vec![Offset(2)], true));
    file.write_all_at(b"?", location.position + 41).unwrap();
    let error = reader.read(location, 0, 5, u64::MAX).unwrap_err();
    assert!(matches!(error, ReadError::Damaged { why: RecordError::Checksum, .. }), "{error}");
}

#[test]
fn a_wrong_place_is_an_error() {
    let dir = tempfile::tempdir().unwrap();
    let mut harness = open_dir(dir.path()).unwrap();
    let location = harness.commit(vec![run(0, 1, 100), plain(Kind::Acked, b"x")])[0].location;
    let reader = harness.log.reader();
    let behind =
        Location { position: location.position + u64::from(location.length), length: 41, ..location };
    assert!(matches!(reader.read(behind, 0, 1, 9), Err(ReadError::NotARun { .. })));
    let gone = Location { segment: SegmentNumber(99), ..location };
    assert!(matches!(reader.read(gone, 0, 1, 9), Err(ReadError::Disk(error)) if error.is_not_found()));
    let short = Location { length: 41, ..location };
    assert!(matches!(reader.read(short, 0, 1, 9), Err(ReadError::Damaged { .. })));
}

#[test]
fn a_record_that_the_index_does_not_mean_is_damage() {
    let dir = tempfile::tempdir().unwrap();
    let mut harness = open_dir(dir.path()).unwrap();
    let placed = harness.commit(vec![run(0, 2, 100), run(2, 2, 100)]);
    let reader = harness.log.reader();
    let mut plan = harness.log.index().plan(placed[0].queue, &[Offset(0), Offset(1)], u64::MAX).unwrap();
    assert_eq!(offsets(&reader.read_plan(&plan).next(u64::MAX).unwrap().1.unwrap()), [0, 1]);
    plan.pieces[0].location = placed[1].location;
    let error = reader.read_plan(&plan).next(u64::MAX).unwrap().1.unwrap_err();
    assert!(error.to_string().ends_with("the index has another run there"), "{error}");
    plan.pieces[0] = Piece { queue: crate::ids::QueueId(77), location: placed[0].location, ..plan.pieces[0] };
    assert!(matches!(reader.read_plan(&plan).next(u64::MAX).unwrap().1, Err(ReadError::Damaged { .. })));
}

use super::super::*;
use super::support::*;
use crate::record::Kind;

#[test]
fn what_was_committed_is_there_after_a_restart() {
    let dir = tempfile::tempdir().unwrap();
    let mut first = open_dir(dir.path()).unwrap();
    assert!(first.log.report().fresh);
    let placed = first.commit(vec![plain(Kind::QueueCreated, b"queue"), run(0, 3, 100), run(3, 2, 20_000)]);
    assert_eq!(placed.len(), 2);
    assert_eq!((placed[0].count, placed[0].bytes, placed[1].bytes), (3, 300, 40_000));
    let identity = first.log.identity().clone();
    first.log.close().unwrap();

    let second = open_dir(dir.path()).unwrap();
    assert_eq!(second.replayed, placed);
    assert_eq!(*second.log.identity(), identity);
    let report = second.log.report();
    assert_eq!(
        (report.incarnation, report.fresh, report.torn.len(), report.set_aside.len()),
        (2, false, 0, 0)
    );
    assert_eq!(report.last_log_time_us, 0);
    let (location, place) = second.find(4).unwrap();
    let read = second.log.reader().read(location, place, 5, u64::MAX).unwrap();
    assert_eq!(read.messages.iter().map(|m| m.offset.0).collect::<Vec<_>>(), [4]);
    assert_eq!(read.messages[0].body, body(4, 20_000));
}

#[test]
fn the_log_rolls_over_many_segments() {
    let dir = tempfile::tempdir().unwrap();
    let mut first = open_dir(dir.path()).unwrap();
    first.publish(0, 60, 30_000);
    assert!(first.log.counters().segments.get() >= 8);
    first.assert_holds(60, 30_000);
    first.log.close().unwrap();
    let mut second = open_dir(dir.path()).unwrap();
    assert!(second.log.report().set_aside.is_empty());
    second.assert_holds(60, 30_000);
    assert_eq!(second.log.report().last_log_time_us, 590);
    second.publish(60, 70, 30_000);
    drop(second);
    let third = open_dir(dir.path()).unwrap();
    third.assert_holds(70, 30_000);
    assert_eq!(third.log.report().incarnation, 3);
}

#[test]
fn the_largest_batch_fits_a_segment() {
    let dir = tempfile::tempdir().unwrap();
    let mut harness = open_dir(dir.path()).unwrap();
    let max = harness.log.batch_bytes_max();
    let overhead = Batch { records: vec![run(0, 1, 8)], ticket: Ticket(0), log_time_us: 0 }.bytes() - 8;
    let size = (max - overhead) as usize;
    harness.publish(0, 3, size);
    harness.assert_holds(3, size);
    drop(harness);
    open_dir(dir.path()).unwrap().assert_holds(3, size);
}

#[test]
#[should_panic(expected = "a batch fits one frame")]
fn a_larger_batch_is_a_bug() {
    let dir = tempfile::tempdir().unwrap();
    let mut harness = open_dir(dir.path()).unwrap();
    let size = harness.log.batch_bytes_max() as usize;
    harness.submit(vec![run(0, 1, size)]);
}

#[test]
fn segments_of_another_size_are_taken_over() {
    let dir = tempfile::tempdir().unwrap();
    let mut small = open_dir(dir.path()).unwrap();
    small.publish(0, 10, 40_000);
    small.log.close().unwrap();
    let large = LogOptions { segment_bytes: 4 << 20, ..options() };
    let mut harness = try_open(Arc::new(crate::disk::RealDisk::new(dir.path())), large).unwrap();
    harness.commit(vec![run(10, 40, 40_000)]);
    harness.log.close().unwrap();
    open_dir(dir.path()).unwrap().assert_holds(50, 40_000);
}

/// Takes no messages.
#[derive(Default)]
struct Refusing {
    kinds: Vec<Kind>,
}

impl StateMachine for Refusing {
    fn restore(&mut self, image: Image) -> Result<(), LogError> {
        Err(image.refusal("no checkpoint was taken"))
    }

    fn apply(&mut self, record: Replayed<'_>) -> Result<(), ReplayError> {
        self.kinds.push(record.head.kind);
        match record.head.kind {
            Kind::Publish => Err(ReplayError("not today".to_owned())),
            _ => Ok(()),
        }
    }
}

#[test]
fn a_refused_record_stops_the_opening() {
    let dir = tempfile::tempdir().unwrap();
    let mut harness = open_dir(dir.path()).unwrap();
    harness.publish(0, 1, 100);
    harness.log.close().unwrap();
    let mut refusing = Refusing::default();
    let disk = Arc::new(crate::disk::RealDisk::new(dir.path()));
    let refused = open(disk, options(), &mut refusing, Arc::new(|_| ()));
    let kinds = refusing.kinds;
    let error = refused.err().unwrap();
    assert!(matches!(&error, LogError::Replay { why, .. } if why.0 == "not today"), "{error}");
    assert_eq!(kinds[..2], [Kind::SegmentAdded, Kind::ServerStarted]);
    assert_eq!(kinds.last(), Some(&Kind::Publish));
}

#[test]
fn a_log_can_be_shared_between_threads() {
    fn shared<T: Send + Sync>() {}
    shared::<Log>();
    shared::<Reader>();
}

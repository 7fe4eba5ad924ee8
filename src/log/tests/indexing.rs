//! The index: whatever becomes of its files, its answers stay.

use std::collections::BTreeMap;
use std::path::Path;
use std::sync::atomic::AtomicBool;

use proptest::prelude::*;

use super::super::index::Index;
use super::super::segment::{SEGMENT_HEADER_BYTES, SegmentHeader};
use super::super::*;
use super::support::{body, open_dir};
use crate::disk::{Disk, RealDisk};
use crate::record::{Body, Kind, Lane, MessageRun, StoredParts};

/// Fills segments: nearly a quarter of one.
const FILLER_BYTES: usize = 60 << 10;
const FILLER: QueueId = QueueId(1_000);

/// A log of several segments, and where each of its messages lies.
struct Made {
    dir: tempfile::TempDir,
    placed: Vec<Placed>,
    messages: BTreeMap<(QueueId, Offset), (Location, u32)>,
}

/// The sealed segments, oldest first.
fn sealed(index: &Index) -> Vec<SegmentNumber> {
    index.sealed_before(SegmentNumber(u64::MAX)).iter().map(|sealed| sealed.segment).collect()
}

/// One batch: for each run its queue, how many offsets it leaves out, and its messages.
type Batches = Vec<Vec<(u64, u64, u64)>>;

fn record(queue: QueueId, first: u64, count: u64, size: usize) -> Record {
    let message = |offset| StoredParts { meta: Default::default(), body: body(offset, size) };
    let messages = (first..first + count).map(message).collect();
    let lane = Lane { priority: 4, bucket: 0 };
    let run = MessageRun { lane, publish_time_us: 7 + first, messages };
    let offset = Offset(first);
    Record { kind: Kind::Publish, flags: 0, queue, offset, headers: Vec::new(), body: Body::Run(run) }
}

fn made(batches: &Batches) -> Made {
    let dir = tempfile::tempdir().unwrap();
    let mut harness = open_dir(dir.path()).unwrap();
    let mut ends: BTreeMap<QueueId, u64> = BTreeMap::new();
    let mut placed = Vec::new();
    for batch in batches {
        let mut records = Vec::new();
        for (queue, gap, count) in batch.iter().copied().chain([(FILLER.0, 0, 1)]) {
            let end = ends.entry(QueueId(queue)).or_default();
            let size = if queue == FILLER.0 { FILLER_BYTES } else { 10 };
            records.push(record(QueueId(queue), *end + gap, count, size));
            *end += gap + count;
        }
        placed.extend(harness.commit(records));
    }
    harness.log.close().unwrap();
    // The tests make the index files themselves.
    for entry in std::fs::read_dir(dir.path().join("log")).unwrap() {
        let path = entry.unwrap().path();
        if path.extension().is_some_and(|extension| extension == "idx") {
            std::fs::remove_file(path).unwrap();
        }
    }
    let places = |run: &Placed| {
        let (queue, first, location) = (run.queue, run.first_offset, run.location);
        (0..run.count).map(move |place| ((queue, first.plus(place.into())), (location, place)))
    };
    let messages = placed.iter().flat_map(places).collect();
    Made { dir, placed, messages }
}

/// Batches enough for five segments, with hundreds of runs in each.
fn many() -> Made {
    let batch = |n: u64| (0..150).map(|run| ((run + n) % 7, u64::from(run % 11 == 0), 1 + run % 3)).collect();
    made(&(0..17).map(batch).collect())
}

impl Made {
    fn disk(&self) -> Arc<dyn Disk> {
        Arc::new(RealDisk::new(self.dir.path()))
    }

    fn segments(&self) -> Vec<SegmentNumber> {
        let mut segments: Vec<SegmentNumber> = self.placed.iter().map(|run| run.location.segment).collect();
        segments.dedup();
        segments
    }

    fn idx(&self, segment: SegmentNumber) -> PathBuf {
        self.dir.path().join(format!("log/{:020}.idx", segment.0))
    }

    /// As the writer makes it: all in memory.
    fn written(&self) -> Index {
        self.index(&[]).0
    }

    /// As after a start: all segments but the last were sealed before.
    fn reopened(&self) -> (Index, Arc<LogCounters>) {
        let segments = self.segments();
        self.index(&segments[..segments.len() - 1])
    }

    fn index(&self, sealed: &[SegmentNumber]) -> (Index, Arc<LogCounters>) {
        let counters = Arc::<LogCounters>::default();
        let index = Index::new(self.disk(), counters.clone());
        for segment in self.segments() {
            if sealed.contains(&segment) {
                index.add_sealed(segment, segment, false);
                continue;
            }
            index.begin(segment);
            self.placed
                .iter()
                .filter(|run| run.location.segment == segment)
                .for_each(|run| index.insert(run));
        }
        (index, counters)
    }

    /// Every message is found where it lies, others nowhere, one by one and many at once.
    fn assert_answers(&self, index: &Index) {
        for queue in (0..9).chain([FILLER.0]).map(QueueId) {
            let of_queue = self.messages.range((queue, Offset(0))..=(queue, Offset(u64::MAX)));
            let offsets: Vec<Offset> = of_queue.clone().map(|((_, offset), _)| *offset).collect();
            let end = offsets.last().map_or(0, |last| last.0 + 3);
            for offset in (0..end).map(Offset) {
                let found = match index.plan(queue, &[offset], 0) {
                    Ok(plan) => Some((plan.pieces[0].location, plan.pieces[0].first)),
                    Err(ReadError::NotIndexed { .. }) => None,
                    Err(error) => panic!("{error}"),
                };
                assert_eq!(found, self.messages.get(&(queue, offset)).copied(), "{queue} {offset}");
                let next = offsets.get(offsets.partition_point(|held| *held < offset)).copied();
                assert_eq!(index.first_from(queue, offset), next, "{queue} {offset}");
            }
            if offsets.is_empty() {
                continue;
            }
            let plan = index.plan(queue, &offsets, u64::MAX).unwrap();
            let planned = plan.pieces.iter().flat_map(|piece| {
                (0..piece.count)
                    .map(move |n| (piece.first_offset.plus(n.into()), piece.location, piece.first + n))
            });
            assert!(
                planned.eq(of_queue.map(|((_, offset), (location, place))| (*offset, *location, *place)))
            );
            assert_eq!(plan.messages, offsets.len());
        }
    }
}

fn flip(path: &Path, at: usize) {
    let mut bytes = std::fs::read(path).unwrap();
    bytes[at] ^= 0x20;
    std::fs::write(path, bytes).unwrap();
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(12))]

    #[test]
    fn answers_are_those_of_a_map(
        batches in prop::collection::vec(
            prop::collection::vec((0u64..8, 0u64..2, 1u64..4), 1..60),
            8..16,
        ),
        hit: prop::sample::Index,
    ) {
        let made = made(&batches);
        let index = made.written();
        made.assert_answers(&index);
        index.write_sealed().unwrap();
        made.assert_answers(&index);
        let (index, counters) = made.reopened();
        made.assert_answers(&index);
        prop_assert_eq!(counters.index_rebuilds.get(), 0);
        std::fs::remove_file(made.idx(*hit.get(&sealed(&index)))).unwrap();
        let (index, counters) = made.reopened();
        made.assert_answers(&index);
        prop_assert_eq!(counters.index_rebuilds.get(), 1);
    }
}

#[test]
fn a_file_is_made_again_as_it_was() {
    let made = many();
    made.written().write_sealed().unwrap();
    let (index, counters) = made.reopened();
    let sealed = sealed(&index);
    assert!(sealed.len() >= 3, "{sealed:?}");
    let read = || sealed.iter().map(|segment| std::fs::read(made.idx(*segment)).unwrap()).collect::<Vec<_>>();
    let before = read();
    for segment in &sealed {
        std::fs::remove_file(made.idx(*segment)).unwrap();
    }
    index.write_sealed().unwrap();
    assert!(read() == before);
    assert_eq!(counters.index_rebuilds.get(), sealed.len() as u64);
    made.assert_answers(&index);
    index.write_sealed().unwrap();
    assert_eq!(counters.index_rebuilds.get(), sealed.len() as u64);
}

#[test]
fn damage_to_any_block_changes_no_answer() {
    let made = many();
    made.written().write_sealed().unwrap();
    let path = made.idx(made.segments()[1]);
    let good = std::fs::read(&path).unwrap();
    assert!(good.len() >= 4 * 4096);
    for block in 0..good.len() / 4096 {
        flip(&path, block * 4096 + 100);
        let (index, counters) = made.reopened();
        made.assert_answers(&index);
        assert_eq!(counters.index_rebuilds.get(), 1, "block {block}");
        index.write_sealed().unwrap();
        assert!(std::fs::read(&path).unwrap() == good, "block {block}");
        made.assert_answers(&index);
    }
}

#[test]
fn a_file_of_another_segment_changes_no_answer() {
    let made = many();
    made.written().write_sealed().unwrap();
    let segments = made.segments();
    std::fs::copy(made.idx(segments[0]), made.idx(segments[1])).unwrap();
    std::fs::write(made.idx(segments[2]), b"").unwrap();
    let (index, counters) = made.reopened();
    made.assert_answers(&index);
    assert_eq!(counters.index_rebuilds.get(), 2);
}

#[test]
fn what_cannot_be_rebuilt_costs_its_own_messages_alone() {
    let made = many();
    made.written().write_sealed().unwrap();
    let lost = made.segments()[1];
    std::fs::remove_file(made.idx(lost)).unwrap();
    flip(&made.dir.path().join(segment::path(lost)), 90);
    let (index, _) = made.reopened();
    for ((queue, offset), (location, _)) in &made.messages {
        match index.plan(*queue, &[*offset], 0) {
            Ok(plan) => assert_eq!(plan.pieces[0].location, *location),
            Err(ReadError::Index(error)) => assert!(error.is_data_loss() && location.segment == lost),
            Err(error) => panic!("{error}"),
        }
    }
    index.write_sealed().unwrap();
    assert!(!made.idx(lost).exists());
}

#[test]
fn a_damaged_frame_is_a_hole_in_the_rebuilt_index() {
    let made = many();
    let segment = made.segments()[1];
    let path = made.dir.path().join(segment::path(segment));
    let of_segment = || made.placed.iter().filter(|run| run.location.segment == segment);
    let frames = frames(&made, segment);
    // The second frame's header, then a run's head in the middle of the third frame.
    let (second, third) = (frames[1].clone(), frames[2].clone());
    flip(&path, second.start as usize + 8);
    let found = || {
        let (index, _) = made.reopened();
        of_segment().filter(|run| index.plan(run.queue, &[run.first_offset], 0).is_ok()).count()
    };
    let left = of_segment().filter(|run| !second.contains(&run.location.position)).count();
    assert_eq!(found(), left);
    let hit = of_segment().filter(|run| third.contains(&run.location.position)).nth(70).unwrap();
    flip(&path, hit.location.position as usize + 10);
    let behind = hit.location.position..third.end;
    let lost = |at: u64| second.contains(&at) || behind.contains(&at);
    let left = of_segment().filter(|run| !lost(run.location.position)).count();
    assert_eq!(found(), left);
    assert!(left >= 150 + 70 && left < of_segment().count() - 150);
    // The bytes of a message cost nothing here: they are verified when they are read.
    let small = of_segment().next().unwrap().location;
    flip(&path, small.position as usize + small.length as usize - 1);
    assert_eq!(found(), left);
}

/// The frames of a segment with messages of [`FILLER`] in them.
fn frames(made: &Made, segment: SegmentNumber) -> Vec<std::ops::Range<u64>> {
    let bytes = std::fs::read(made.dir.path().join(segment::path(segment))).unwrap();
    let fillers = made.placed.iter().filter(|run| run.location.segment == segment && run.queue == FILLER);
    let fillers: Vec<u64> = fillers.map(|run| run.location.position).collect();
    let mut at = SEGMENT_HEADER_BYTES as u64;
    let mut frames = Vec::new();
    while at < *fillers.last().unwrap() {
        let length = u32::from_le_bytes(bytes[at as usize + 12..][..4].try_into().unwrap());
        let frame = at..at + frame::frame_len(length.into());
        at = frame.end;
        frames.extend(fillers.iter().any(|filler| frame.contains(filler)).then_some(frame));
    }
    frames
}

#[test]
fn a_plan_stops_at_its_bytes_and_at_what_is_not_there() {
    let made = made(&vec![vec![(1, 0, 4), (2, 1, 2), (1, 0, 4)]; 9]);
    let index = made.written();
    index.write_sealed().unwrap();
    let plan = |queue, offsets: std::ops::Range<u64>, bytes| {
        index.plan(QueueId(queue), &offsets.map(Offset).collect::<Vec<_>>(), bytes).map(|plan| plan.messages)
    };
    assert_eq!(plan(1, 0..72, u64::MAX).unwrap(), 72);
    assert_eq!(plan(1, 0..90, u64::MAX).unwrap(), 72);
    assert_eq!((plan(1, 5..72, 300).unwrap(), plan(1, 5..72, 0).unwrap()), (30, 1));
    assert_eq!(plan(2, 1..27, u64::MAX).unwrap(), 2);
    assert!(matches!(plan(2, 3..27, 0), Err(ReadError::NotIndexed { offset: Offset(3), .. })));
    let one = index.plan(QueueId(1), &[Offset(2), Offset(3), Offset(4)], u64::MAX).unwrap();
    assert_eq!(
        one.pieces.iter().map(|piece| (piece.first, piece.count)).collect::<Vec<_>>(),
        [(2, 2), (0, 1)]
    );
    assert_eq!((one.bytes, one.pieces[0].bytes, one.pieces[1].publish_time_us), (30, 20, 11));
}

#[test]
fn a_live_run_is_found_and_remembered() {
    let made = many();
    made.written().write_sealed().unwrap();
    let (index, _) = made.reopened();
    let sealed = index.sealed_before(SegmentNumber(u64::MAX)).swap_remove(1);
    let segment = sealed.segment;
    let runs: Vec<(QueueId, Offset)> = made
        .placed
        .iter()
        .filter(|run| run.location.segment == segment)
        .map(|run| (run.queue, run.first_offset.plus(run.count.into())))
        .collect();
    let last = *runs.iter().max().unwrap();
    let asked = std::cell::Cell::new(0);
    let find = |wanted: Option<(QueueId, Offset)>| {
        asked.set(0);
        let live = |queue, end| {
            asked.set(asked.get() + 1);
            Some((queue, end)) == wanted
        };
        index.find_live(&sealed, &live).unwrap()
    };
    assert_eq!((find(Some(last)), asked.get()), (Some(last), runs.len()));
    assert_eq!((find(Some(last)), asked.get()), (Some(last), 1));
    assert_eq!((find(None), asked.get()), (None, 1 + runs.len()));
}

#[test]
fn a_dropped_segment_is_forgotten() {
    let made = many();
    let index = made.written();
    let first = sealed(&index)[0];
    index.drop_segment(first);
    index.write_sealed().unwrap();
    assert!(!sealed(&index).contains(&first) && !made.idx(first).exists());
    for ((queue, offset), (location, _)) in &made.messages {
        let planned = index.plan(*queue, &[*offset], 0);
        assert_eq!(planned.is_ok(), location.segment != first, "{queue} {offset}");
    }
}

#[test]
fn files_wait_for_space_in_memory() {
    use super::hook::{HookDisk, Verdict};
    use crate::disk::Operation;

    let made = many();
    let full = Arc::new(AtomicBool::new(true));
    let fails = full.clone();
    let disk = HookDisk::over(made.dir.path(), move |operation, path| {
        let index = path.to_str().unwrap().ends_with(".idx.tmp");
        match operation {
            Operation::Write if index && fails.load(std::sync::atomic::Ordering::Relaxed) => {
                Verdict::Fail(std::io::ErrorKind::StorageFull)
            }
            _ => Verdict::Go,
        }
    });
    let index = Index::new(disk, Arc::default());
    for segment in made.segments() {
        index.begin(segment);
        made.placed.iter().filter(|run| run.location.segment == segment).for_each(|run| index.insert(run));
    }
    let error = index.write_sealed().unwrap_err();
    assert!(matches!(error, LogError::Disk(error) if error.is_no_space()));
    let left =
        || std::fs::read_dir(made.dir.path().join("log")).unwrap().map(|entry| entry.unwrap().file_name());
    assert!(left().all(|name| !name.to_str().unwrap().contains(".idx")));
    made.assert_answers(&index);
    full.store(false, std::sync::atomic::Ordering::Relaxed);
    index.write_sealed().unwrap();
    assert_eq!(left().filter(|name| name.to_str().unwrap().ends_with(".idx")).count(), sealed(&index).len());
    made.assert_answers(&index);
}

/// Set for the run of this test's own program in which nothing else runs.
const ALONE: &str = "FOREBAY_TEST_ALONE";

#[test]
fn sealed_segments_take_little_memory() {
    if std::env::var_os(ALONE).is_some() {
        return seal_ten_million_runs();
    }
    let program = std::env::current_exe().unwrap();
    let name = "log::tests::indexing::sealed_segments_take_little_memory";
    let run =
        std::process::Command::new(program).args(["--exact", name, "--nocapture"]).env(ALONE, "1").output();
    let run = run.unwrap();
    let said = String::from_utf8_lossy(&run.stdout);
    assert!(
        run.status.success() && said.contains("1 passed"),
        "{said}{}",
        String::from_utf8_lossy(&run.stderr)
    );
}

fn seal_ten_million_runs() {
    const SEGMENTS: u64 = 100;
    const RUNS: u64 = 100_000;
    let dir = tempfile::tempdir().unwrap();
    std::fs::create_dir(dir.path().join("log")).unwrap();
    let index = Index::new(Arc::new(RealDisk::new(dir.path())), Arc::default());
    let mut before = 0;
    let queue = |run: u64| QueueId(1 + run % 10);
    let first = |segment: u64, run: u64| Offset(segment * RUNS + run / 10);
    for segment in 0..SEGMENTS {
        let number = SegmentNumber(1 + segment);
        write_header(dir.path(), number);
        index.begin(number);
        index.write_sealed().unwrap();
        // From the second on, memory for one open segment has been taken already.
        if segment == 2 {
            before = resident_bytes();
        }
        for run in 0..RUNS {
            let location = Location { segment: number, position: 4096 + run, length: 60 };
            let first_offset = first(segment, run);
            let (count, bytes, publish_time_us) = (1, 10, 1);
            index.insert(&Placed {
                queue: queue(run),
                first_offset,
                count,
                bytes,
                publish_time_us,
                location,
            });
        }
    }
    index.begin(SegmentNumber(SEGMENTS + 1));
    index.write_sealed().unwrap();
    for segment in (0..SEGMENTS).rev() {
        let plan = index.plan(queue(7), &[first(segment, 7), first(segment, 17)], u64::MAX).unwrap();
        assert_eq!((plan.messages, plan.pieces[0].location.segment.0), (2, 1 + segment));
    }
    let grown = resident_bytes().saturating_sub(before);
    assert!(grown < 1 << 20, "{grown} bytes more");
}

fn write_header(dir: &Path, segment: SegmentNumber) {
    let header = SegmentHeader {
        compat_flags: 0,
        incompat_flags: 0,
        cluster: Uid([1; 16]),
        node: Uid([2; 16]),
        shard: 0,
        epoch: 1,
        segment,
        salt: segment.0 * 77,
        first_lsn: Lsn(segment.0),
        encryption_key: [0; 32],
    };
    let mut block = Vec::new();
    header.encode(&mut block);
    std::fs::write(dir.join(segment::path(segment)), block).unwrap();
}

/// This process's memory that no file stands behind.
fn resident_bytes() -> u64 {
    let status = std::fs::read_to_string("/proc/self/status").unwrap();
    let line = status.lines().find(|line| line.starts_with("RssAnon:")).unwrap();
    line.split_whitespace().nth(1).unwrap().parse::<u64>().unwrap() << 10
}

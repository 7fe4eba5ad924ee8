//! A round of reclaim: looking through the sealed segments for live messages, and dropping those without any.

use criterion::{BatchSize, BenchmarkId, Criterion};
use forebay::ids::{Offset, QueueId};
use tempfile::TempDir;

use crate::support::{LogBench, SEGMENT_BYTES, group, record};

const SEGMENTS: [u64; 2] = [16, 128];
/// Small messages of several queues in turn: each is a run of its own, the most that an index has to look through.
const BODY_BYTES: usize = 200;
const QUEUES: u64 = 10;
/// Messages of one commit.
const TOGETHER: u64 = 200;

/// A log of this many segments.
struct Filled {
    log: LogBench,
    _dir: TempDir,
}

fn filled(segments: u64) -> Filled {
    let dir = tempfile::tempdir().expect("there is space for a directory");
    let mut log = LogBench::open(dir.path(), SEGMENT_BYTES);
    let mut next = 0;
    while log.segments() < segments {
        let one = |number: u64| record(QueueId(1 + number % QUEUES), Offset(number / QUEUES), BODY_BYTES);
        let last = log.submit((next..next + TOGETHER).map(one).collect());
        next += TOGETHER;
        log.wait(last, false);
    }
    Filled { log, _dir: dir }
}

pub fn bench(criterion: &mut Criterion) {
    let mut group = group(criterion, "reclaim");
    for segments in SEGMENTS {
        let mut all_live = filled(segments);
        group.bench_function(BenchmarkId::new("all_live", segments), |bencher| {
            bencher.iter(|| all_live.log.checkpoint(|_, _| true));
        });
    }
    group.sample_size(10);
    let segments = SEGMENTS[0];
    group.bench_function(BenchmarkId::new("none_live", segments), |bencher| {
        bencher.iter_batched(
            || filled(segments),
            |mut filled| {
                filled.log.checkpoint(|_, _| false);
                filled
            },
            BatchSize::PerIteration,
        );
    });
    group.finish();
}

//! From offsets to messages: the index says where they lie, the reader brings and verifies them; all from the page cache.

use criterion::{Criterion, Throughput};
use forebay::ids::{Offset, QueueId};

use crate::support::{LogBench, SEGMENT_BYTES, group, record};

const MESSAGES: u64 = 10_000;
const BODY_BYTES: usize = 1 << 10;
/// Messages of one read.
const TOGETHER: u64 = 100;
const QUEUES: u64 = 100;

/// A log of sealed segments in which the queues take turns.
fn filled(dir: &std::path::Path, queues: u64) -> LogBench {
    let mut log = LogBench::open(dir, SEGMENT_BYTES);
    let mut last = None;
    for number in 0..MESSAGES {
        let (queue, offset) = (QueueId(1 + number % queues), Offset(number / queues));
        last = Some(log.submit(vec![record(queue, offset, BODY_BYTES)]));
    }
    log.wait(last.expect("there are messages"), false);
    log
}

pub fn bench(criterion: &mut Criterion) {
    let mut group = group(criterion, "read");
    group.throughput(Throughput::Elements(TOGETHER));
    for (name, queues) in [("one_queue", 1), ("queues_in_turn", QUEUES)] {
        let dir = tempfile::tempdir().expect("there is space for a directory");
        let log = filled(dir.path(), queues);
        // Each queue is read from its beginning to its end, one behind the other.
        let parts = (1..=queues).flat_map(|queue| {
            let firsts = (0..MESSAGES / queues).step_by(TOGETHER as usize);
            firsts.map(move |first| (QueueId(queue), first..first + TOGETHER))
        });
        let mut parts = parts.cycle();
        group.bench_function(name, |bencher| {
            bencher.iter(|| {
                let (queue, offsets) = parts.next().expect("it never ends");
                assert_eq!(log.read(queue, offsets), TOGETHER as usize);
            });
        });
    }
    group.finish();
}

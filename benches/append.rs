//! Group commit: what a durable append costs, by its size and by how many wait at one time.

use criterion::{BenchmarkId, Criterion, Throughput};
use forebay::ids::{Offset, QueueId};
use forebay::log::SEGMENT_BYTES_DEFAULT;

use crate::support::{LogBench, group, record};

const SIZES: [usize; 3] = [100, 4 << 10, 64 << 10];
const WAITERS: [u64; 3] = [1, 16, 256];

pub fn bench(criterion: &mut Criterion) {
    let mut group = group(criterion, "append");
    for size in SIZES {
        for waiters in WAITERS {
            let dir = tempfile::tempdir().expect("there is space for a directory");
            let mut log = LogBench::open(dir.path(), SEGMENT_BYTES_DEFAULT);
            let mut next = Offset(0);
            group.throughput(Throughput::Elements(waiters));
            group.bench_function(BenchmarkId::new(format!("{size}B"), waiters), |bencher| {
                bencher.iter(|| {
                    let mut last = None;
                    for _ in 0..waiters {
                        last = Some(log.submit(vec![record(QueueId(1), next, size)]));
                        next = next.next();
                    }
                    log.wait(last.expect("somebody waits"), true);
                });
            });
        }
    }
    group.finish();
}

//! A start on a log of many segments, from its checkpoint: it must not depend on how many there are.

use std::time::{Duration, Instant};

use criterion::{BenchmarkId, Criterion};
use forebay::core::types::QueueConfig;

use crate::support::{BrokerBench, group, message, queue_name};

const SEGMENTS: [u64; 3] = [4, 32, 128];
const BODY_BYTES: usize = 16 << 10;
/// Messages of one publish; four publishes fill a segment.
const TOGETHER: usize = 4;

pub fn bench(criterion: &mut Criterion) {
    let mut group = group(criterion, "recovery");
    for segments in SEGMENTS {
        let dir = tempfile::tempdir().expect("there is space for a directory");
        fill(dir.path(), segments);
        group.bench_function(BenchmarkId::new("segments", segments), |bencher| {
            bencher.iter_custom(|times| {
                let mut took = Duration::ZERO;
                for _ in 0..times {
                    let start = Instant::now();
                    let opened = BrokerBench::open(dir.path());
                    took += start.elapsed();
                    opened.close();
                }
                took
            });
        });
    }
    group.finish();
}

/// A backlog that fills this many segments.
fn fill(dir: &std::path::Path, segments: u64) {
    let bench = BrokerBench::open(dir);
    let filled = async {
        bench.broker.create_queue(queue_name(), QueueConfig::default(), true).await.expect("it is new");
        loop {
            let messages = (0..TOGETHER).map(|_| message(BODY_BYTES)).collect();
            bench.broker.publish(queue_name(), messages, None).await.expect("it is stored");
            if bench.broker.server_stats().await.expect("the broker is open").segments >= segments {
                return;
            }
        }
    };
    bench.runtime.block_on(filled);
    bench.close();
}

//! The broker in a process, without a network: group commit of many callers.

use criterion::{Criterion, Throughput};
use forebay::core::types::QueueConfig;
use tokio::task::JoinSet;

use crate::support::{BrokerBench, group, message, queue_name};

/// Callers, each with one publish under way.
const TOGETHER: usize = 64;
const BODY_BYTES: usize = 1 << 10;

async fn publish_at_once(bench: &BrokerBench) {
    let mut calls = JoinSet::new();
    for _ in 0..TOGETHER {
        let broker = bench.broker.clone();
        calls.spawn_on(
            async move { broker.publish(queue_name(), vec![message(BODY_BYTES)], None).await },
            bench.runtime.handle(),
        );
    }
    for published in calls.join_all().await {
        published.expect("it is stored");
    }
}

pub fn bench(criterion: &mut Criterion) {
    let dir = tempfile::tempdir().expect("there is space for a directory");
    let bench = BrokerBench::open(dir.path());
    let created = bench.broker.create_queue(queue_name(), QueueConfig::default(), true);
    bench.runtime.block_on(created).expect("it is new");
    let mut group = group(criterion, "broker");
    group.throughput(Throughput::Elements(TOGETHER as u64));
    group.bench_function("publish_at_once", |bencher| {
        bencher.iter(|| bench.runtime.block_on(publish_at_once(&bench)));
    });
    group.finish();
    bench.close();
}

//! Group commit without gRPC: callers in one process, each with one publish under way.

use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant};

use bytes::Bytes;
use forebay::broker;
use forebay::broker::api::{Broker, NewMessage};
use forebay::core::types::QueueConfig;
use forebay::disk::RealDisk;
use forebay::limits::PRIORITY_DEFAULT;
use forebay::log::SEGMENT_BYTES_DEFAULT;
use forebay::names::QueueName;
use forebay::record::{Lane, StoredParts};
use forebay_testkit::payload::Random;
use forebay_testkit::queue;

use super::{BODY_BYTES, WAITERS};
use crate::Failure;

/// Messages a second that [`WAITERS`] callers store.
pub fn messages_per_second(folder: &Path, time: Duration) -> Result<f64, Failure> {
    let opened = broker::open(Arc::new(RealDisk::new(folder.join("group"))), SEGMENT_BYTES_DEFAULT)?;
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    runtime.block_on(async {
        let task = tokio::spawn(opened.task.run());
        let rate = measure(&opened.broker, time).await;
        opened.broker.close().await?;
        task.await??;
        rate
    })
}

async fn measure(broker: &Broker, time: Duration) -> Result<f64, Failure> {
    let name = QueueName::parse(&queue("group"))?;
    broker.create_queue(name.clone(), QueueConfig::default(), true).await?;
    let body = Random::new(1).bytes(BODY_BYTES as usize);
    let start = Instant::now();
    let callers: Vec<_> = (0..WAITERS)
        .map(|_| tokio::spawn(publish(broker.clone(), name.clone(), body.clone(), start + time)))
        .collect();
    let mut messages = 0;
    for caller in callers {
        messages += caller.await??;
    }
    Ok(messages as f64 / start.elapsed().as_secs_f64())
}

async fn publish(broker: Broker, queue: QueueName, body: Bytes, end: Instant) -> Result<u64, Failure> {
    let lane = Lane { priority: PRIORITY_DEFAULT, ..Lane::default() };
    let mut messages = 0;
    while Instant::now() < end {
        let parts = StoredParts { meta: Bytes::new(), body: body.clone() };
        broker.publish(queue.clone(), vec![NewMessage { lane, parts }], None).await?;
        messages += 1;
    }
    Ok(messages)
}

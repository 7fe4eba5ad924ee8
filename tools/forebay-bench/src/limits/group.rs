//! Group commit without gRPC: callers in one process, each with one publish under way.
//!
//! Into new files, and as [`super::recycled`] into those of segments that were purged before: the bare loop beside which it
//! stands writes one file over and over, too.

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

use super::recycled::Rounds;
use super::{BODY_BYTES, WAITERS};
use crate::Failure;
use crate::fill::Published;

/// What [`WAITERS`] callers store in this time, into new files and into recycled ones.
pub fn measure(folder: &Path, time: Duration, segment_bytes: u64) -> Result<(Published, Published), Failure> {
    let growing = on_broker(&folder.join("growing"), SEGMENT_BYTES_DEFAULT, async |group| {
        group.publish(move |_, took| took < time).await
    })?;
    let recycled = on_broker(&folder.join("recycled"), segment_bytes, async |group| {
        let rounds = InRounds { group, messages: segment_bytes / BODY_BYTES };
        rounds.warm_up().await?;
        Ok(rounds.measure(time).await?.0)
    })?;
    Ok((growing, recycled))
}

fn on_broker(
    folder: &Path,
    segment_bytes: u64,
    measure: impl AsyncFnOnce(&Group) -> Result<Published, Failure>,
) -> Result<Published, Failure> {
    let opened = broker::open(Arc::new(RealDisk::new(folder)), segment_bytes)?;
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    runtime.block_on(async {
        let task = tokio::spawn(opened.task.run());
        let name = QueueName::parse(&queue("group"))?;
        opened.broker.create_queue(name.clone(), QueueConfig::default(), true).await?;
        let body = Random::new(1).bytes(BODY_BYTES as usize);
        let measured = measure(&Group { broker: opened.broker.clone(), name, body }).await;
        opened.broker.close().await?;
        task.await??;
        measured
    })
}

/// The callers' queue.
#[derive(Clone)]
struct Group {
    broker: Broker,
    name: QueueName,
    body: Bytes,
}

impl Group {
    /// Publishes as long as each caller is to go on: it gives the messages that it has stored, and the time.
    async fn publish(
        &self,
        go_on: impl Fn(u64, Duration) -> bool + Copy + Send + 'static,
    ) -> Result<Published, Failure> {
        let start = Instant::now();
        let call = |group: Self| async move {
            let mut messages = 0;
            while go_on(messages, start.elapsed()) {
                group.publish_one().await?;
                messages += 1;
            }
            Ok::<u64, Failure>(messages)
        };
        let callers: Vec<_> = (0..WAITERS).map(|_| tokio::spawn(call(self.clone()))).collect();
        let mut messages = 0;
        for caller in callers {
            messages += caller.await??;
        }
        Ok(Published { messages, took: start.elapsed() })
    }

    async fn publish_one(&self) -> Result<(), Failure> {
        let lane = Lane { priority: PRIORITY_DEFAULT, ..Lane::default() };
        let parts = StoredParts { meta: Bytes::new(), body: self.body.clone() };
        self.broker.publish(self.name.clone(), vec![NewMessage { lane, parts }], None).await?;
        Ok(())
    }
}

/// Rounds of about so many messages.
struct InRounds<'a> {
    group: &'a Group,
    messages: u64,
}

impl Rounds for InRounds<'_> {
    async fn round(&self) -> Result<Published, Failure> {
        let each = self.messages / WAITERS as u64;
        let published = self.group.publish(move |stored, _| stored < each).await?;
        self.group.broker.purge(self.group.name.clone(), None).await?;
        Ok(published)
    }

    async fn bytes_written(&self) -> Result<u64, Failure> {
        Ok(self.group.broker.server_stats().await?.bytes_written)
    }
}

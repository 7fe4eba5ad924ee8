//! The whole broker on a temporary directory, with small segments, reading what memory no longer has.

mod checkpoints;
mod delays;
mod memory;

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use tokio::task::JoinHandle;

use super::api::*;
use super::pipeline::Publish;
use crate::admission::Outflow;
use crate::core::harness::Shard;
use crate::core::types::*;
use crate::disk::RealDisk;
use crate::ids::{Lsn, Offset, SegmentNumber};
use crate::limits::PUBLISH_MESSAGES_MAX;
use crate::log::{Damage, FrameFault};
use crate::names::{QueueName, SubscriptionName};
use crate::record::{Lane, StoredParts};

const SEGMENT_BYTES: u64 = 256 << 10;
/// Too large for the cache of the newest messages.
const LARGE: usize = 70 << 10;

pub(super) struct Running {
    pub(super) broker: Broker,
    task: JoinHandle<Result<(), BrokerError>>,
}

fn start(dir: &Path) -> Running {
    start_with(dir, SEGMENT_BYTES)
}

pub(super) fn start_with(dir: &Path, segment_bytes: u64) -> Running {
    let opened = super::open(Arc::new(RealDisk::new(dir)), segment_bytes).unwrap();
    Running { broker: opened.broker, task: tokio::spawn(opened.task.run()) }
}

impl Running {
    pub(super) async fn close(self) {
        self.broker.close().await.unwrap();
        self.task.await.unwrap().unwrap();
    }

    /// Publishes messages of these sizes one by one to a new queue.
    pub(super) async fn publish(&self, sizes: &[usize]) {
        self.broker.create_queue(queue(), QueueConfig::default(), true).await.unwrap();
        for (offset, size) in sizes.iter().enumerate() {
            let parts = StoredParts { meta: Bytes::new(), body: body(offset, *size) };
            let message = NewMessage { lane: Lane { priority: 4, bucket: 0 }, parts };
            self.broker.publish(queue(), vec![message], None).await.unwrap();
        }
    }

    async fn pull(&self, messages_max: u32, bytes_max: u64) -> Result<Vec<Delivery>, BrokerError> {
        let options = PullOptions { messages_max, bytes_max, wait: Duration::ZERO, lease_us: None };
        let outlet = Outflow::default().outlet();
        Ok(self.broker.pull(subscription(), options, outlet).await?.value)
    }

    pub(super) async fn peek(
        &self,
        queue: QueueName,
        from: u64,
        messages_max: u32,
        bytes_max: u64,
    ) -> Result<Vec<StoredMessage>, BrokerError> {
        let outlet = Outflow::default().outlet();
        Ok(self.broker.peek(queue, Some(Offset(from)), messages_max, bytes_max, &outlet).await?.value)
    }
}

fn queue() -> QueueName {
    QueueName::parse("namespaces/default/queues/q").unwrap()
}

pub(super) fn subscription() -> SubscriptionName {
    SubscriptionName::parse("namespaces/default/queues/q/subscriptions/default").unwrap()
}

pub(super) fn body(offset: usize, size: usize) -> Bytes {
    vec![offset as u8; size].into()
}

/// Sizes of which some are cached and some are not; they fill many segments.
fn sizes() -> Vec<usize> {
    (0..60).map(|n| if n % 4 == 1 { 10 } else { LARGE + n }).collect()
}

fn segment_files(dir: &Path, ending: &str) -> Vec<PathBuf> {
    let files = std::fs::read_dir(dir.join("log")).unwrap().map(|entry| entry.unwrap().path());
    let mut files: Vec<PathBuf> = files.filter(|path| path.to_str().unwrap().ends_with(ending)).collect();
    files.sort();
    files
}

#[tokio::test]
async fn a_backlog_on_disk_is_delivered_within_the_bytes_asked_for() {
    let dir = tempfile::tempdir().unwrap();
    let sizes = sizes();
    let first = start(dir.path());
    first.publish(&sizes).await;
    first.close().await;
    let indexes = segment_files(dir.path(), ".idx");
    assert!(indexes.len() > 10, "{}", indexes.len());
    std::fs::remove_file(&indexes[3]).unwrap();
    std::fs::write(&indexes[4], b"no index").unwrap();

    let second = start(dir.path());
    let mut next = 0;
    for (messages_max, bytes_max) in [(1, 1), (10, 1), (10, 3 * LARGE as u64), (100, 8 << 20)].iter().cycle()
    {
        let deliveries = second.pull(*messages_max, *bytes_max).await.unwrap();
        if deliveries.is_empty() {
            break;
        }
        let bytes: u64 = deliveries.iter().map(|delivery| delivery.message.body.len() as u64).sum();
        assert!(deliveries.len() == 1 || bytes <= *bytes_max, "{bytes} of {bytes_max}");
        for delivery in deliveries {
            // What a read left out went back without having counted.
            assert_eq!((delivery.message.offset.0, delivery.attempt), (next as u64, 1));
            assert_eq!(delivery.message.body, body(next, sizes[next]));
            next += 1;
        }
    }
    assert_eq!(next, sizes.len());
    second.close().await;
}

#[tokio::test]
async fn a_segment_that_has_gone_costs_its_own_messages_alone() {
    let dir = tempfile::tempdir().unwrap();
    let sizes = sizes();
    let first = start(dir.path());
    first.publish(&sizes).await;
    first.close().await;
    let indexes = segment_files(dir.path(), ".idx");
    indexes.iter().for_each(|path| std::fs::remove_file(path).unwrap());
    let second = start(dir.path());
    // Afterwards nothing of them is in memory.
    while segment_files(dir.path(), ".idx") != indexes {
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    // The one that was written last would be missed by the log itself.
    std::fs::remove_file(&segment_files(dir.path(), ".seg")[5]).unwrap();
    let peeked = |from| second.peek(queue(), from, 1, 1);
    let mut lost = BTreeSet::new();
    for offset in 0..sizes.len() as u64 {
        match peeked(offset).await {
            Ok(messages) => assert_eq!(messages[0].offset.0, offset),
            Err(BrokerError::DataLoss { offset: at, .. }) => assert!(at.0 == offset && lost.insert(at.0)),
            Err(error) => panic!("{error}"),
        }
    }
    assert!((2..8).contains(&lost.len()), "{lost:?}");
    let mut delivered = BTreeSet::new();
    let mut refused = BTreeSet::new();
    loop {
        match second.pull(1, 1).await {
            Ok(deliveries) if deliveries.is_empty() => break,
            Ok(deliveries) => delivered.extend(deliveries.iter().map(|delivery| delivery.message.offset.0)),
            Err(BrokerError::DataLoss { offset, .. }) => assert!(refused.insert(offset.0)),
            Err(error) => panic!("{error}"),
        }
    }
    assert_eq!(refused, lost);
    assert_eq!(delivered, (0..sizes.len() as u64).filter(|offset| !lost.contains(offset)).collect());
    second.close().await;
}

#[tokio::test]
async fn the_age_of_a_backlog_is_that_of_its_oldest_message() {
    let dir = tempfile::tempdir().unwrap();
    let running = start(dir.path());
    running.publish(&[]).await;
    let stats = async || running.broker.get_subscription(subscription()).await.unwrap().stats;
    assert_eq!(stats().await.oldest_age_us, 0);
    let message = || {
        let parts = StoredParts { meta: Bytes::new(), body: body(0, 10) };
        vec![NewMessage { lane: Lane { priority: 4, bucket: 0 }, parts }]
    };
    let published = running.broker.publish(queue(), message(), None).await.unwrap();
    running.broker.publish(queue(), message(), None).await.unwrap();
    let before = crate::clock::wall_us();
    let age = stats().await.oldest_age_us;
    assert!((before - published.publish_time_us..=crate::clock::wall_us()).contains(&age), "{age}");
    let listed = running.broker.list_subscriptions(queue(), None, 9).await.unwrap();
    assert!(listed[0].stats.oldest_age_us >= age);
    let of_queue = running.broker.queue_stats(queue()).await.unwrap();
    assert!(of_queue.subscriptions[0].1.oldest_age_us >= age);
    running.close().await;
}

/// Changes one byte of the first segment, `back` bytes before what follows `pattern`.
fn damage(dir: &Path, pattern: &[u8], back: usize) {
    let file = &segment_files(dir, ".seg")[0];
    let mut bytes = std::fs::read(file).unwrap();
    let at = bytes.windows(pattern.len()).position(|window| window == pattern).expect("it is there");
    bytes[at - back] ^= 1;
    std::fs::write(file, bytes).unwrap();
}

#[tokio::test]
async fn damage_costs_the_messages_it_hit_and_is_told() {
    let dir = tempfile::tempdir().unwrap();
    let first = start(dir.path());
    first.publish(&[300, 301, 302, 303]).await;
    first.close().await;
    // The head of a run lies right before its only message.
    damage(dir.path(), &body(1, 301), 10);
    let opened = super::open(Arc::new(RealDisk::new(dir.path())), SEGMENT_BYTES).unwrap();
    assert_eq!(opened.damage.len(), 1);
    let lost: Vec<(u64, u64)> = opened.lost.iter().map(|lost| (lost.first.0, lost.end.0)).collect();
    assert_eq!(lost, [(1, 2)]);
    let second = Running { broker: opened.broker, task: tokio::spawn(opened.task.run()) };
    assert_eq!(second.broker.server_stats().await.unwrap().damage, 1);
    let mut delivered = Vec::new();
    let mut refused = Vec::new();
    for _ in 0..6 {
        match second.pull(1, 1).await {
            Ok(deliveries) => delivered.extend(deliveries.iter().map(|delivery| delivery.message.offset.0)),
            Err(BrokerError::DataLoss { offset, .. }) => refused.push(offset.0),
            Err(error) => panic!("{error}"),
        }
    }
    assert_eq!((delivered, refused), (vec![0, 2, 3], vec![1]));
    let parts = StoredParts { meta: Bytes::new(), body: body(4, 300) };
    let message = NewMessage { lane: Lane { priority: 4, bucket: 0 }, parts };
    let published = second.broker.publish(queue(), vec![message], None).await.unwrap();
    assert_eq!(published.first_offset, Offset(4));
    second.close().await;
    let third = start(dir.path());
    assert_eq!(third.peek(queue(), 4, 1, 1).await.unwrap()[0].body, body(4, 300));
    third.close().await;
}

#[tokio::test]
async fn no_offset_is_given_again_though_the_last_message_is_lost() {
    let dir = tempfile::tempdir().unwrap();
    let first = start(dir.path());
    first.publish(&[300, 301]).await;
    first.close().await;
    damage(dir.path(), &body(1, 301), 10);
    let publish = async |running: &Running, size: usize| {
        let parts = StoredParts { meta: Bytes::new(), body: body(size, size) };
        let message = NewMessage { lane: Lane { priority: 4, bucket: 0 }, parts };
        running.broker.publish(queue(), vec![message], None).await.unwrap().first_offset
    };
    let second = start(dir.path());
    let record = PUBLISH_MESSAGES_MAX as u64;
    let given = publish(&second, 302).await;
    assert!(given >= Offset(1 + record) && given.0 % record == 1, "{given}");
    assert_eq!(publish(&second, 303).await, given.next());
    second.close().await;
    // Nothing is missing in what was left out, as often as it is read again.
    let third = super::open(Arc::new(RealDisk::new(dir.path())), SEGMENT_BYTES).unwrap();
    assert_eq!((third.damage.len(), third.lost.len()), (1, 0));
    let third = Running { broker: third.broker, task: tokio::spawn(third.task.run()) };
    let delivered: Vec<_> = third.pull(10, 1 << 20).await.unwrap();
    let offsets: Vec<_> = delivered.iter().map(|delivery| delivery.message.offset).collect();
    assert_eq!(offsets, [Offset(0), given, given.next()]);
    third.close().await;
}

#[test]
fn what_a_checkpoint_knows_of_leaves_no_offsets_out() {
    let state = Shard::with_queue("q").state;
    let hole = |first, end| Damage {
        segment: SegmentNumber(1),
        position: 4096,
        bytes: 4096,
        what: FrameFault::PayloadChecksum,
        lost_first: Lsn(first),
        lost_end: Lsn(end),
        salvaged: 0,
        copy: None,
    };
    let damage = [hole(10, 20), hole(30, 35)];
    let skipped = |replay_from| {
        let left_out = super::open::left_out(&state, Lsn(replay_from), &damage, &Default::default());
        left_out.iter().map(|of| of.end.0 - of.first.0).collect::<Vec<_>>()
    };
    let record = PUBLISH_MESSAGES_MAX as u64;
    assert_eq!(skipped(0), [15 * record]);
    assert_eq!((skipped(18), skipped(20), skipped(34)), (vec![7 * record], vec![5 * record], vec![record]));
    assert!(skipped(35).is_empty());
}

#[tokio::test]
async fn messages_of_a_queue_whose_creation_is_lost_are_kept() {
    let dir = tempfile::tempdir().unwrap();
    let first = start(dir.path());
    first.publish(&[300, 301]).await;
    first.close().await;
    damage(dir.path(), b"\x07\x00default\x01\x00q", 1);
    let second = start(dir.path());
    let recovered = QueueName::parse("namespaces/default/queues/recovered-1").unwrap();
    let kept = second.peek(recovered, 0, 2, 1 << 20).await.unwrap();
    assert_eq!(kept.iter().map(|message| message.body.len()).collect::<Vec<_>>(), [300, 301]);
    assert!(second.broker.get_queue(queue()).await.is_err());
    second.close().await;
}

#[tokio::test]
async fn publishes_that_come_together_share_a_record_and_are_answered_one_by_one() {
    let dir = tempfile::tempdir().unwrap();
    let running = start(dir.path());
    running.publish(&[]).await;
    let of = |queue: &QueueName, bodies: &[usize], producer| {
        let messages = bodies.iter().map(|size| {
            let parts = StoredParts { meta: Bytes::new(), body: body(*size, *size) };
            NewMessage { lane: Lane { priority: 4, bucket: 0 }, parts }
        });
        Publish { queue: queue.clone(), messages: messages.collect(), producer }
    };
    let stamp = Some(ProducerStamp { id: "p".into(), epoch: 1, sequence: 1 });
    let other = QueueName::parse("namespaces/default/queues/other").unwrap();
    let publishes = vec![
        of(&queue(), &[1], None),
        of(&queue(), &[2, 3], None),
        of(&other, &[1], None),
        of(&queue(), &[4], None),
        of(&queue(), &[5], stamp.clone()),
        of(&queue(), &[6], None),
        of(&queue(), &[300 << 10], None),
        of(&queue(), &[7], None),
        of(&queue(), &[8], None),
        of(&queue(), &[5], stamp),
    ];
    let records = running.broker.server_stats().await.unwrap().records;
    let results = running.broker.publish_all(publishes, None).await;
    let shown = results.iter().map(|result| match result {
        Ok(published) => (published.first_offset.0, published.count, published.duplicate),
        Err(BrokerError::Rejected(Reject::QueueNotFound { .. })) => (404, 0, false),
        Err(BrokerError::RequestTooLarge { .. }) => (413, 0, false),
        Err(error) => panic!("{error}"),
    });
    let offsets = [(0, 1, false), (1, 2, false), (404, 0, false), (3, 1, false), (4, 1, false)];
    let more = [(5, 1, false), (413, 0, false), (6, 1, false), (7, 1, false), (4, 1, true)];
    assert_eq!(shown.collect::<Vec<_>>(), [offsets, more].concat());
    // 1 to 3, 4, the stamped one, 6, and 7 with 8; and the empty frame that may have followed.
    let records = running.broker.server_stats().await.unwrap().records - records;
    assert!((5..=6).contains(&records), "{records}");
    let deliveries = running.pull(10, 1 << 20).await.unwrap();
    let sizes = deliveries.iter().map(|delivery| delivery.message.body.len());
    assert_eq!(sizes.collect::<Vec<_>>(), [1, 2, 3, 4, 5, 6, 7, 8]);
    running.close().await;
}

#[tokio::test]
async fn runs_of_publishes_that_come_together_have_their_limit() {
    let dir = tempfile::tempdir().unwrap();
    let running = start(dir.path());
    running.publish(&[]).await;
    let publish = |offset: usize| {
        let parts = StoredParts { meta: Bytes::new(), body: body(offset, 30 << 10) };
        let messages = vec![NewMessage { lane: Lane { priority: 4, bucket: 0 }, parts }];
        Publish { queue: queue(), messages, producer: None }
    };
    let records = running.broker.server_stats().await.unwrap().records;
    let results = running.broker.publish_all((0..12).map(publish).collect(), None).await;
    assert!(
        results.into_iter().zip(0..).all(|(result, offset)| result.unwrap().first_offset == Offset(offset))
    );
    // Four fit one run. Listings of segments and an empty frame may have joined them.
    let records = running.broker.server_stats().await.unwrap().records - records;
    assert!((3..=6).contains(&records), "{records}");
    running.close().await;
}

#[tokio::test]
async fn no_record_has_more_messages_than_a_publish_may_have() {
    let dir = tempfile::tempdir().unwrap();
    let running = start(dir.path());
    running.publish(&[]).await;
    let publish = |count| {
        let parts = StoredParts { meta: Bytes::new(), body: Bytes::new() };
        let message = NewMessage { lane: Lane { priority: 4, bucket: 0 }, parts };
        Publish { queue: queue(), messages: vec![message; count], producer: None }
    };
    let records = running.broker.server_stats().await.unwrap().records;
    let results = running.broker.publish_all([999, 9, 999, 9].map(publish).into(), None).await;
    let firsts: Vec<_> = results.into_iter().map(|result| result.unwrap().first_offset.0).collect();
    assert_eq!(firsts, [0, 999, 1_008, 2_007]);
    // None of them shares one; an empty frame may have followed.
    let records = running.broker.server_stats().await.unwrap().records - records;
    assert!((4..=5).contains(&records), "{records}");
    running.close().await;
}

#[tokio::test]
async fn publishes_of_several_callers_share_a_record_too() {
    let dir = tempfile::tempdir().unwrap();
    let running = start(dir.path());
    running.publish(&[]).await;
    let records = running.broker.server_stats().await.unwrap().records;
    let mut callers = tokio::task::JoinSet::new();
    for size in 1..=50 {
        let (broker, parts) =
            (running.broker.clone(), StoredParts { meta: Bytes::new(), body: body(size, size) });
        let messages = vec![NewMessage { lane: Lane { priority: 4, bucket: 0 }, parts }];
        callers.spawn(
            async move { (broker.publish(queue(), messages, None).await.unwrap().first_offset, size) },
        );
    }
    let mut stored = callers.join_all().await;
    stored.sort_unstable();
    // All of them, or a first one alone; and the empty frame that may have followed.
    let records = running.broker.server_stats().await.unwrap().records - records;
    assert!((1..=3).contains(&records), "{records}");
    let deliveries = running.pull(50, 1 << 20).await.unwrap();
    let delivered = deliveries.iter().map(|delivery| (delivery.message.offset, delivery.message.body.len()));
    assert_eq!(delivered.collect::<Vec<_>>(), stored);
    running.close().await;
}

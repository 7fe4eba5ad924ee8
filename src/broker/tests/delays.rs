//! More delayed messages than memory keeps: they go through the log and come back, whatever happens meanwhile.

use super::*;
use crate::core::spill::REFS_MAX;
use crate::ids::{QueueId, SubscriptionId};

/// More than memory keeps.
const MANY: u64 = 5_000;
const HOUR_US: u64 = 3_600_000_000;

impl Running {
    async fn publish_small(&self, count: u64) {
        self.broker.create_queue(queue(), QueueConfig::default(), true).await.unwrap();
        for first in (0..count).step_by(1_000) {
            let message = |offset: u64| NewMessage {
                lane: Lane { priority: 4, bucket: 0 },
                parts: StoredParts { meta: Bytes::new(), body: body(offset as usize, 40) },
            };
            let messages = (first..count.min(first + 1_000)).map(message).collect();
            self.broker.publish(queue(), messages, None).await.unwrap();
        }
    }

    async fn settle(&self, ack_ids: Vec<AckId>, ending: Ending) {
        let settlements: Vec<Settlement> =
            ack_ids.into_iter().map(|ack_id| Settlement { ack_id, ending: ending.clone() }).collect();
        let count = settlements.len();
        let outcomes = self.broker.settle(subscription(), settlements).await.unwrap();
        assert_eq!(outcomes, vec![Settled::Ok; count]);
    }

    /// Delays the next `count` messages; their acknowledgement ids.
    async fn delay(&self, count: u64, delay_us: u64) -> Vec<AckId> {
        let mut ack_ids = Vec::new();
        while (ack_ids.len() as u64) < count {
            let deliveries = self.pull(1_000, 8 << 20).await.unwrap();
            let these: Vec<AckId> = deliveries.into_iter().map(|delivery| delivery.ack_id).collect();
            let ending = Ending::Retry { delay_us: Some(delay_us), error: String::new() };
            self.settle(these.clone(), ending).await;
            ack_ids.extend(these);
        }
        ack_ids
    }

    /// Takes messages until `count` have come; their attempts by offset.
    async fn take(&self, count: u64) -> Vec<(u64, u32)> {
        let mut taken = Vec::new();
        while (taken.len() as u64) < count {
            let wait = Duration::from_secs(60);
            let options = PullOptions { messages_max: 1_000, bytes_max: 8 << 20, wait, lease_us: None };
            let outlet = Outflow::default().outlet();
            let deliveries = self.broker.pull(subscription(), options, outlet).await.unwrap().value;
            assert!(!deliveries.is_empty(), "only {} of {count} have come", taken.len());
            taken.extend(deliveries.iter().map(|delivery| (delivery.message.offset.0, delivery.attempt)));
            self.settle(deliveries.into_iter().map(|delivery| delivery.ack_id).collect(), Ending::Ack).await;
        }
        taken.sort_unstable();
        taken
    }

    async fn stats(&self) -> SubscriptionStats {
        self.broker.get_subscription(subscription()).await.unwrap().stats
    }
}

fn each_once(count: u64, attempt: u32) -> Vec<(u64, u32)> {
    (0..count).map(|offset| (offset, attempt)).collect()
}

#[tokio::test]
async fn every_delayed_message_comes_back_once_with_its_attempts() {
    let dir = tempfile::tempdir().unwrap();
    let first = start(dir.path());
    first.publish_small(MANY).await;
    first.delay(MANY, 4_000_000).await;
    assert_eq!(first.stats().await.delayed_messages, MANY);
    assert!(first.pull(1, 1).await.unwrap().is_empty(), "none comes early");
    // It ends as by a crash: what was answered is on disk, and that is all.
    first.task.abort();
    assert!(first.task.await.unwrap_err().is_cancelled());

    let second = start(dir.path());
    assert_eq!(second.stats().await.delayed_messages, MANY);
    assert_eq!(second.take(MANY).await, each_once(MANY, 2));
    let stats = second.stats().await;
    assert_eq!((stats.backlog_messages, stats.delayed_messages), (0, 0));
    second.close().await;
}

#[tokio::test]
async fn segments_leave_when_their_delays_are_over() {
    let dir = tempfile::tempdir().unwrap();
    let running = start(dir.path());
    running.publish_small(MANY).await;
    running.delay(MANY, 1_000_000).await;
    running.take(MANY).await;
    let filler = || {
        let parts = StoredParts { meta: Bytes::new(), body: body(0, LARGE) };
        vec![NewMessage { lane: Lane { priority: 4, bucket: 0 }, parts }]
    };
    let last = segment_files(dir.path(), ".seg").pop();
    for _ in 0..200 {
        running.broker.publish(queue(), filler(), None).await.unwrap();
        running.take(1).await;
        if segment_files(dir.path(), ".seg").first() > last.as_ref() {
            return running.close().await;
        }
    }
    panic!("a segment from before {last:?} stays");
}

#[tokio::test]
async fn spilled_messages_are_acked_cancelled_purged_and_deleted_like_others() {
    let dir = tempfile::tempdir().unwrap();
    let running = start(dir.path());
    running.publish_small(MANY).await;
    let ack_ids = running.delay(MANY, HOUR_US).await;
    running.settle(ack_ids[MANY as usize - 100..].to_vec(), Ending::Ack).await;
    let stats = running.stats().await;
    assert_eq!((stats.delayed_messages, stats.backlog_messages), (MANY - 100, MANY - 100));
    let spilled = Offset(MANY - 200);
    let uid = running.broker.get_queue(queue()).await.unwrap().uid;
    running.broker.cancel(queue(), uid, spilled).await.unwrap();
    assert_eq!(running.peek(queue(), spilled.0, 1, 1).await.unwrap()[0].offset, spilled);
    assert_eq!(running.stats().await.delayed_messages, MANY - 101);
    running.broker.purge(queue(), Some(Offset(MANY - 300))).await.unwrap();
    assert_eq!(running.stats().await.delayed_messages, 199);
    running.broker.delete_subscription(subscription(), None).await.unwrap();
    let (config, start) = (SubscriptionConfig::default(), Start::Earliest);
    let made = running.broker.create_subscription(subscription(), config, start).await.unwrap();
    // Without a subscription nothing was kept from leaving but by retention; the new one begins there.
    assert_eq!((made.stats.delayed_messages, made.stats.ack_floor), (0, Offset(MANY - 300)));
    let attempts: BTreeSet<u32> = running.take(300).await.into_iter().map(|(_, attempt)| attempt).collect();
    assert_eq!(attempts, BTreeSet::from([1]));
    running.close().await;
}

/// Damages the record of one run of refs.
fn damage_a_run(dir: &Path, place: u64) {
    let store = QueueId::of_refs(SubscriptionId(1));
    let pattern = [store.0.to_le_bytes(), place.to_le_bytes()].concat();
    let holds =
        |path: &&PathBuf| std::fs::read(path).unwrap().windows(pattern.len()).any(|window| window == pattern);
    let path = segment_files(dir, ".seg").iter().find(holds).expect("the run is there").clone();
    let bytes = std::fs::read(&path).unwrap();
    let at = bytes.windows(pattern.len()).position(|window| window == pattern).unwrap() + pattern.len();
    let file = std::fs::OpenOptions::new().write(true).open(path).unwrap();
    std::os::unix::fs::FileExt::write_all_at(&file, &[!bytes[at]], at as u64).unwrap();
}

#[tokio::test]
async fn a_damaged_run_costs_attempts_and_no_message() {
    let dir = tempfile::tempdir().unwrap();
    let running = start(dir.path());
    running.publish_small(MANY).await;
    running.delay(MANY, 3_000_000).await;
    damage_a_run(dir.path(), 1);
    let taken = running.take(MANY).await;
    let offsets: Vec<u64> = taken.iter().map(|(offset, _)| *offset).collect();
    assert_eq!(offsets, (0..MANY).collect::<Vec<_>>(), "each once");
    let lost = taken.iter().filter(|(_, attempt)| *attempt == 1).count();
    assert_eq!(lost, REFS_MAX, "those of the run, and no others");
    assert_eq!(running.broker.server_stats().await.unwrap().delays_lost, REFS_MAX as u64);
    running.close().await;
}

#[tokio::test]
async fn messages_whose_lease_was_lost_to_damage_are_delivered_again() {
    let dir = tempfile::tempdir().unwrap();
    let first = start(dir.path());
    first.publish_small(30).await;
    for commit in 0..2 {
        assert_eq!(first.pull(10, 8 << 20).await.unwrap().len(), 10);
        // With it the lease is committed.
        let label = format!("namespaces/default/queues/q{commit}");
        let name = QueueName::parse(&label).unwrap();
        first.broker.create_queue(name, QueueConfig::default(), false).await.unwrap();
    }
    first.close().await;
    // A lease's record is followed by that of the queue: its kind, flags, LSN, then the queue's id and offset 0.
    damage(dir.path(), b"\x07\x00default\x02\x00q0", 90);
    let opened = super::super::open(Arc::new(RealDisk::new(dir.path())), SEGMENT_BYTES).unwrap();
    assert_eq!(opened.damage.len(), 1);
    let state = &opened.task.shell.state;
    let next = state.subscription(SubscriptionId(1)).unwrap().delivery.spilled().next();
    assert!(next > Offset(1_000), "places that damage may have taken are left out");
    let second = Running { broker: opened.broker, task: tokio::spawn(opened.task.run()) };
    assert_eq!(second.stats().await.delayed_messages, 10);
    let mut offsets: Vec<u64> = second.take(20).await.into_iter().map(|(offset, _)| offset).collect();
    offsets.sort_unstable();
    assert_eq!(offsets, (0..10).chain(20..30).collect::<Vec<_>>(), "not those that are leased");
    second.close().await;
}

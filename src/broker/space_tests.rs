//! What the broker does when the log says that the disk is full.

use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use bytes::Bytes;
use tokio::task::JoinHandle;

use super::api::*;
use crate::core::types::*;
use crate::disk::{Operation, RealDisk};
use crate::log::Room;
use crate::log::tests::hook::{HookDisk, Verdict};
use crate::names::{QueueName, SubscriptionName};
use crate::record::{Lane, StoredParts};

/// A broker whose log has said this.
struct Running {
    broker: Broker,
    task: JoinHandle<Result<(), BrokerError>>,
}

fn start(dir: &Path, room: Room) -> Running {
    let mut opened = super::open(Arc::new(RealDisk::new(dir)), 256 << 10).unwrap();
    let shell = &mut opened.task.shell;
    if room != Room::Ample {
        shell.room_changed(room, shell.clock.now());
    }
    Running { broker: opened.broker, task: tokio::spawn(opened.task.run()) }
}

/// A broker with space, whose queue has one message.
async fn with_message(dir: &Path) -> Running {
    let ample = start(dir, Room::Ample);
    ample.broker.create_queue(queue(), QueueConfig::default(), true).await.unwrap();
    ample.publish().await.unwrap();
    ample
}

impl Running {
    async fn publish(&self) -> Result<Published, BrokerError> {
        publish(self.broker.clone(), 4).await
    }

    async fn pull(&self) -> Vec<Delivery> {
        let options =
            PullOptions { messages_max: 10, bytes_max: 1 << 20, wait: Duration::ZERO, lease_us: None };
        let outlet = crate::admission::Outflow::default().outlet();
        self.broker.pull(subscription(), options, outlet).await.unwrap().value
    }

    async fn ack(&self, ack_id: AckId) -> Result<Vec<Settled>, BrokerError> {
        self.settle(ack_id, Ending::Ack).await
    }

    async fn settle(&self, ack_id: AckId, ending: Ending) -> Result<Vec<Settled>, BrokerError> {
        self.broker.settle(subscription(), vec![Settlement { ack_id, ending }]).await
    }

    async fn close(self) {
        self.broker.close().await.unwrap();
        self.task.await.unwrap().unwrap();
    }
}

fn queue() -> QueueName {
    QueueName::parse("namespaces/default/queues/q").unwrap()
}

fn subscription() -> SubscriptionName {
    SubscriptionName::parse("namespaces/default/queues/q/subscriptions/default").unwrap()
}

#[tokio::test]
async fn a_full_disk_refuses_what_grows_and_takes_what_finishes() {
    let dir = tempfile::tempdir().unwrap();
    with_message(dir.path()).await.close().await;

    let full = start(dir.path(), Room::Reserve);
    assert_eq!(full.publish().await, Err(BrokerError::DiskFull));
    let delivery = full.pull().await.remove(0);
    assert_eq!(full.ack(delivery.ack_id).await, Ok(vec![Settled::Ok]));
    // Checkpoints are taken although no segment is begun, so that segments can leave.
    loop {
        let stats = full.broker.server_stats().await.unwrap();
        assert!(stats.disk_full);
        if stats.checkpoints >= 3 {
            break;
        }
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    full.close().await;
}

#[tokio::test]
async fn without_even_the_reserve_nothing_is_taken_until_there_is_space() {
    let dir = tempfile::tempdir().unwrap();
    let ample = with_message(dir.path()).await;
    let delivery = ample.pull().await.remove(0);
    ample.publish().await.unwrap();
    ample.close().await;

    let exhausted = start(dir.path(), Room::Exhausted);
    assert_eq!(exhausted.publish().await, Err(BrokerError::DiskFull));
    assert_eq!(exhausted.pull().await.len(), 0, "a lease would be written");
    assert_eq!(exhausted.ack(delivery.ack_id).await, Err(BrokerError::DiskFull));
    let purged = exhausted.broker.purge(queue(), None).await;
    assert_eq!(purged, Err(BrokerError::DiskFull));
    exhausted.close().await;

    let ample = start(dir.path(), Room::Ample);
    assert_eq!(ample.ack(delivery.ack_id).await, Ok(vec![Settled::Ok]));
    assert_eq!(ample.pull().await.len(), 1);
    ample.close().await;
}

#[tokio::test]
async fn a_full_disk_takes_no_dead_letters() {
    let dir = tempfile::tempdir().unwrap();
    with_message(dir.path()).await.close().await;

    let full = start(dir.path(), Room::Reserve);
    let delivery = full.pull().await.remove(0);
    let reject = Ending::Reject { error: "no good".into() };
    let outcomes = full.settle(delivery.ack_id, reject.clone()).await.unwrap();
    let [Settled::Transient { why }] = &outcomes[..] else { panic!("{outcomes:?}") };
    assert!(why.contains("disk is full"), "{why}");
    full.close().await;

    let ample = start(dir.path(), Room::Ample);
    assert_eq!(ample.settle(delivery.ack_id, reject).await, Ok(vec![Settled::Ok]));
    ample.close().await;
}

#[tokio::test]
async fn a_stop_waits_for_no_space() {
    let dir = tempfile::tempdir().unwrap();
    let full = Arc::new(AtomicBool::new(false));
    let is_full = full.clone();
    let disk = HookDisk::over(dir.path(), move |operation, path| {
        let new = operation == Operation::Allocate && path.to_string_lossy().contains(".seg");
        let refused = new && is_full.load(Ordering::Relaxed);
        if refused { Verdict::Fail(std::io::ErrorKind::StorageFull) } else { Verdict::Go }
    });
    let opened = super::open(disk, 256 << 10).unwrap();
    let running = Running { broker: opened.broker, task: tokio::spawn(opened.task.run()) };
    running.broker.create_queue(queue(), QueueConfig::default(), true).await.unwrap();
    full.store(true, Ordering::Relaxed);
    // All are taken before the disk is known to be full, and there is space for less than half of them.
    let publishes: Vec<_> =
        (0..20).map(|_| tokio::spawn(publish(running.broker.clone(), 100 << 10))).collect();
    tokio::task::yield_now().await;
    let drained = tokio::time::timeout(Duration::from_secs(60), running.broker.drain()).await;
    assert!(drained.expect("it ends").is_err());
    let mut stored = 0;
    for publish in publishes {
        stored += u64::from(publish.await.unwrap().is_ok());
    }
    assert!(stored < 10, "{stored}");
    assert!(running.task.await.unwrap().is_err(), "the end says why");
    full.store(false, Ordering::Relaxed);
    let again = start(dir.path(), Room::Ample);
    let after = again.broker.get_queue(queue()).await.unwrap().next_offset;
    assert!(after.0 >= stored, "{after} of {stored}");
    again.close().await;
}

async fn publish(broker: Broker, bytes: usize) -> Result<Published, BrokerError> {
    let parts = StoredParts { meta: Bytes::new(), body: vec![b'x'; bytes].into() };
    broker.publish(queue(), vec![NewMessage { lane: Lane::default(), parts }], None).await
}

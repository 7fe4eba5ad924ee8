//! Messages that are given up at once, by a broker whose turns the test takes itself.

use std::path::Path;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use tokio::sync::oneshot::{self, Receiver};

use super::*;
use crate::admission::Outflow;
use crate::broker::api::{AckId, Broker, BrokerError, PullOptions, Settlement};
use crate::broker::shell::Inbox;
use crate::broker::tests::{body, start_with, subscription};
use crate::core::delivery::LeaseId;
use crate::core::types::{Ending, Start, SubscriptionConfig};
use crate::disk::RealDisk;
use crate::limits::LEASE_US_MAX;
use crate::log::LogCounters;
use crate::names::{Name, QueueName, SubscriptionName};
use crate::record::meta::DeadLetterReason;

const SEGMENT_BYTES: u64 = 32 << 20;
const MIB: usize = 1 << 20;

type Answered = Receiver<Result<Vec<Settled>, BrokerError>>;

struct Turns {
    shell: Shell,
    inbox: Inbox,
    counters: Arc<LogCounters>,
    /// Bytes that were read and appended before, as they are counted here.
    before: (u64, u64),
}

/// Publishes messages of these sizes and hands them out; their acknowledgement ids.
async fn hand_out(dir: &Path, sizes: &[usize]) -> Vec<AckId> {
    let running = start_with(dir, SEGMENT_BYTES);
    running.publish(sizes).await;
    let ack_ids = pull(&running.broker, sizes.len(), &subscription()).await;
    running.close().await;
    ack_ids
}

async fn pull(broker: &Broker, count: usize, name: &SubscriptionName) -> Vec<AckId> {
    let mut ack_ids = Vec::new();
    while ack_ids.len() < count {
        let lease_us = Some(LEASE_US_MAX);
        let options = PullOptions { messages_max: 1_000, bytes_max: 8 << 20, wait: Duration::ZERO, lease_us };
        let pulled = broker.pull(name.clone(), options, Outflow::default().outlet()).await.unwrap();
        assert!(!pulled.value.is_empty());
        ack_ids.extend(pulled.value.into_iter().map(|delivery| delivery.ack_id));
    }
    ack_ids
}

/// Of large messages: each takes two reads, the first of 16 KiB for its head.
fn bytes_read(counters: &LogCounters) -> u64 {
    counters.traffic.bytes_read().saturating_sub(counters.traffic.reads() / 2 * (16 << 10))
}

/// What is logged while `run` runs.
fn logged(run: impl FnOnce()) -> String {
    let log = Arc::new(Mutex::new(Vec::new()));
    let writer = log.clone();
    let subscriber =
        tracing_subscriber::fmt().with_ansi(false).with_writer(move || Lines(writer.clone())).finish();
    tracing::subscriber::with_default(subscriber, run);
    let bytes = log.lock().unwrap().clone();
    String::from_utf8(bytes).unwrap()
}

struct Lines(Arc<Mutex<Vec<u8>>>);

impl std::io::Write for Lines {
    fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
        self.0.lock().unwrap().write(bytes)
    }

    fn flush(&mut self) -> std::io::Result<()> {
        Ok(())
    }
}

#[tokio::test]
async fn what_cannot_be_given_up_is_told_by_name() {
    let dir = tempfile::tempdir().unwrap();
    hand_out(dir.path(), &[10]).await;
    let mut turns = Turns::open(dir.path());
    let shell = &mut turns.shell;
    let (id, now) = (shell.state.subscription_named(&subscription()).unwrap().id, shell.clock.now());
    let token = AckToken { offset: Offset(0), lease: LeaseId { incarnation: 1, number: 1 } };
    let given_up =
        GivenUp { token, attempts: 16, reason: DeadLetterReason::AttemptsExhausted, error: String::new() };
    let log = logged(|| {
        let why = "no place".to_owned();
        shell.end_wait(id, Waiting { given_up, waited_for: None }, Settled::Refused { why }, now);
    });
    for part in [&subscription().to_string(), "offset=0", "no place", "retry_s=60", "tried again"] {
        assert!(log.contains(part), "{part} is not in: {log}");
    }
}

impl Turns {
    fn open(dir: &Path) -> Self {
        let opened = crate::broker::open(Arc::new(RealDisk::new(dir)), SEGMENT_BYTES).unwrap();
        let (shell, inbox) = (opened.task.shell, opened.task.inbox);
        let counters = shell.log.counters();
        let before = (bytes_read(&counters), counters.bytes_appended.get());
        Self { shell, inbox, counters, before }
    }

    fn reject(&mut self, name: &SubscriptionName, ack_ids: &[AckId]) -> Answered {
        let reject = |ack_id: &AckId| Settlement {
            ack_id: *ack_id,
            ending: Ending::Reject { error: "why".to_owned() },
        };
        let (reply, answer) = oneshot::channel();
        let now = self.shell.clock.now();
        self.shell.settle(name, ack_ids.iter().map(reject).collect(), now, reply);
        answer
    }

    /// Takes turns until no read is under way. Nothing becomes durable meanwhile.
    async fn read(&mut self) {
        loop {
            self.shell.take_turns(self.shell.clock.now());
            if self.shell.giving_up.lines.values().all(|line| line.reading == 0) {
                return;
            }
            let done = self.inbox.reads.recv().await.expect("reads are answered");
            self.shell.done(done).unwrap();
        }
    }

    /// Hands over what was decided, and takes the log's next word.
    async fn commit(&mut self) {
        let now = self.shell.clock.now();
        self.shell.commits.flush(&self.shell.log, now.log_us);
        let event = self.inbox.log_events.recv().await;
        self.shell.log_event(event).unwrap();
    }

    /// Bytes that were read and are not on disk again.
    fn held(&self) -> u64 {
        let read = bytes_read(&self.counters).saturating_sub(self.before.0);
        read.saturating_sub(self.counters.bytes_appended.get() - self.before.1)
    }

    /// Goes on until the answer is there; the most bytes that were held.
    async fn until_answered(&mut self, answer: &mut Answered) -> (Vec<Settled>, u64) {
        let mut most = 0;
        loop {
            self.read().await;
            most = most.max(self.held());
            if let Ok(outcomes) = answer.try_recv() {
                return (outcomes.unwrap(), most);
            }
            self.commit().await;
        }
    }
}

/// Checks that the dead-letter queue has messages of these sizes in order, each once.
async fn check_dead(dir: &Path, sizes: &[usize]) {
    let running = start_with(dir, SEGMENT_BYTES);
    let dead = QueueName::parse("namespaces/default/queues/q-dead").unwrap();
    let stats = running.broker.queue_stats(dead.clone()).await.unwrap();
    assert_eq!(stats.next_offset.0, sizes.len() as u64);
    for (offset, size) in sizes.iter().enumerate() {
        let message = running.peek(dead.clone(), offset as u64, 1, 1).await.unwrap().remove(0);
        assert_eq!(message.body, body(offset, *size), "{offset}");
        let letter = Meta::decode(&message.meta).unwrap().dead_letter.unwrap();
        assert_eq!((letter.offset.0, letter.error.as_str()), (offset as u64, "why"));
    }
    running.close().await;
}

#[tokio::test]
async fn what_is_given_up_at_once_comes_into_memory_a_few_at_a_time() {
    let (dir, sizes) = (tempfile::tempdir().unwrap(), [MIB; 100]);
    let ack_ids = hand_out(dir.path(), &sizes).await;
    let mut turns = Turns::open(dir.path());
    let mut answer = turns.reject(&subscription(), &ack_ids);
    let (outcomes, most) = turns.until_answered(&mut answer).await;
    assert_eq!(outcomes, vec![Settled::Ok; sizes.len()]);
    assert!((READ_BYTES_MAX - 2 * MIB as u64..=READ_BYTES_MAX).contains(&most), "{most}");
    assert_eq!((turns.shell.giving_up.lines.len(), turns.shell.giving_up.jobs.len()), (0, 0));
    drop(turns);
    check_dead(dir.path(), &sizes).await;
}

#[tokio::test]
async fn a_crash_between_leaves_each_message_in_one_place_and_in_order() {
    let (dir, sizes) = (tempfile::tempdir().unwrap(), [MIB; 40]);
    let ack_ids = hand_out(dir.path(), &sizes).await;
    let mut turns = Turns::open(dir.path());
    let mut answer = turns.reject(&subscription(), &ack_ids);
    while turns.counters.bytes_appended.get() - turns.before.1 < 15 * MIB as u64 {
        turns.read().await;
        turns.commit().await;
    }
    assert!(answer.try_recv().is_err(), "it is not answered before all is on disk");
    drop(turns);
    let mut turns = Turns::open(dir.path());
    let mut answer = turns.reject(&subscription(), &ack_ids);
    let (outcomes, _) = turns.until_answered(&mut answer).await;
    let moved = outcomes.iter().take_while(|outcome| **outcome == Settled::Stale).count();
    assert!((15..40).contains(&moved), "{moved}");
    assert_eq!(outcomes[moved..], vec![Settled::Ok; 40 - moved]);
    drop(turns);
    check_dead(dir.path(), &sizes).await;
}

#[tokio::test]
async fn messages_that_are_larger_than_was_thought_move_in_their_place() {
    let dir = tempfile::tempdir().unwrap();
    let sizes: Vec<usize> = (0..60)
        .map(|n| match n {
            20 => 3 * MIB,
            21 | 59 => 9 * MIB,
            n if n % 10 == 4 => MIB,
            n => 10 * n,
        })
        .collect();
    let ack_ids = hand_out(dir.path(), &sizes).await;
    let mut turns = Turns::open(dir.path());
    let mut answer = turns.reject(&subscription(), &ack_ids);
    let (outcomes, most) = turns.until_answered(&mut answer).await;
    assert_eq!(outcomes, vec![Settled::Ok; sizes.len()]);
    assert!(most < 11 * MIB as u64, "{most}");
    drop(turns);
    check_dead(dir.path(), &sizes).await;
}

#[tokio::test]
async fn subscriptions_take_turns() {
    let (dir, sizes) = (tempfile::tempdir().unwrap(), [MIB; 30]);
    let other = SubscriptionName { subscription: Name::new("other").unwrap(), ..subscription() };
    let ack_ids = hand_out(dir.path(), &sizes).await;
    let running = start_with(dir.path(), SEGMENT_BYTES);
    running
        .broker
        .create_subscription(other.clone(), SubscriptionConfig::default(), Start::Earliest)
        .await
        .unwrap();
    let one = pull(&running.broker, 1, &other).await.remove(0);
    running.close().await;
    let mut turns = Turns::open(dir.path());
    let mut many = turns.reject(&subscription(), &ack_ids);
    let mut few = turns.reject(&other, &[one]);
    turns.until_answered(&mut few).await;
    assert!(many.try_recv().is_err(), "the one waited for all of the other subscription");
    turns.until_answered(&mut many).await;
}

#[tokio::test]
async fn messages_whose_callers_have_left_are_forgotten_before_they_are_too_many() {
    let (dir, sizes) = (tempfile::tempdir().unwrap(), [1; 1_000]);
    let ack_ids = hand_out(dir.path(), &sizes).await;
    let mut turns = Turns::open(dir.path());
    let memory = turns.shell.own_reads.try_take(READ_BYTES_MAX);
    for _ in 0..50 {
        drop(turns.reject(&subscription(), &ack_ids));
        turns.read().await;
        assert!(turns.shell.giving_up.waiting <= ABANDONED_MAX, "{}", turns.shell.giving_up.waiting);
    }
    let mut answers: Vec<Answered> = (0..50).map(|_| turns.reject(&subscription(), &ack_ids)).collect();
    drop(memory);
    let (outcomes, _) = turns.until_answered(&mut answers[0]).await;
    // Some may have moved for a caller that has left.
    assert!(outcomes.iter().all(|outcome| matches!(outcome, Settled::Ok | Settled::Stale)));
    for answer in &mut answers[1..] {
        assert_eq!(turns.until_answered(answer).await.0, vec![Settled::Stale; sizes.len()]);
    }
}

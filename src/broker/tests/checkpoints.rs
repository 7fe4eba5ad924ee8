//! Checkpoints of a broker whose turns the test takes itself.

use std::ops::Range;
use std::path::Path;
use std::sync::Arc;

use super::SEGMENT_BYTES;
use crate::broker::api::ConsumerId;
use crate::broker::imaging::QUEUES_PER_TURN;
use crate::broker::shell::{Inbox, Shell, TIMERS_PER_TURN};
use crate::broker::timers::Key;
use crate::core::types::QueueConfig;
use crate::core::{admin, pause};
use crate::disk::RealDisk;
use crate::ids::Uid;
use crate::log::{CheckpointEnd, LogEvent};
use crate::names::QueueName;

const QUEUES: usize = 10_000;

struct Turns {
    shell: Shell,
    inbox: Inbox,
}

fn open(dir: &Path) -> Turns {
    let opened = crate::broker::open(Arc::new(RealDisk::new(dir)), SEGMENT_BYTES).unwrap();
    Turns { shell: opened.task.shell, inbox: opened.task.inbox }
}

fn name(n: usize) -> QueueName {
    QueueName::parse(&format!("namespaces/default/queues/q{n}")).unwrap()
}

impl Turns {
    fn create(&mut self, queues: Range<usize>) {
        let now = self.shell.clock.now();
        for n in queues {
            let (config, uids) = (QueueConfig::default(), [Uid::random(), Uid::random()]);
            let decision =
                admin::create_queue(&self.shell.state, name(n), config, uids[0], Some(uids[1]), now).unwrap();
            self.shell.enact(&decision.events, now);
        }
    }

    fn pause(&mut self, queues: Range<usize>) {
        let now = self.shell.clock.now();
        for n in queues {
            let target = pause::Target { queue: name(n), subscription: None };
            let decision = pause::pause(&self.shell.state, &target, false, "why".to_owned(), now).unwrap();
            self.shell.enact(&decision.events, now);
        }
    }

    fn resume(&mut self, names: impl IntoIterator<Item = QueueName>) {
        let now = self.shell.clock.now();
        for queue in names {
            let target = pause::Target { queue, subscription: None };
            let decision = pause::resume(&self.shell.state, &target).unwrap();
            self.shell.enact(&decision.events, now);
        }
    }

    fn delete(&mut self, names: impl IntoIterator<Item = QueueName>) {
        let now = self.shell.clock.now();
        for queue in names {
            let decision = admin::delete_queue(&self.shell.state, &queue, None).unwrap();
            self.shell.enact(&decision.events, now);
        }
    }

    fn paused(&self) -> Vec<usize> {
        (0..QUEUES).filter(|n| self.shell.state.queue_named(&name(*n)).unwrap().pause.is_some()).collect()
    }

    /// Takes a checkpoint; parts that were given for it, and bytes that were written. The broker is told that it has
    /// ended as `told` says, if that is given.
    async fn checkpoint(&mut self, told: Option<CheckpointEnd>) -> (u64, u64) {
        let counters = self.shell.log.counters();
        let figures = || (counters.checkpoint_parts.get(), counters.checkpoint_bytes.get());
        let before = figures();
        self.shell.checkpoints.due = true;
        self.shell.begin_checkpoint(self.shell.clock.now());
        self.written(before, told).await
    }

    /// Encodes as much as one turn does; how many queues that were.
    fn encode(&mut self) -> usize {
        let left = |turns: &Self| turns.shell.checkpoints.queues_to_encode();
        let before = left(self);
        self.shell.go_on_with_checkpoint();
        before - left(self)
    }

    /// The rest of a checkpoint.
    async fn written(&mut self, before: (u64, u64), told: Option<CheckpointEnd>) -> (u64, u64) {
        let counters = self.shell.log.counters();
        let figures = || (counters.checkpoint_parts.get(), counters.checkpoint_bytes.get());
        loop {
            while self.shell.checkpoints.has_work() {
                assert!(self.encode() <= QUEUES_PER_TURN);
            }
            let event = self.inbox.log_events.recv().await.unwrap();
            if let LogEvent::CheckpointEnded(end) = event {
                assert_eq!(end, CheckpointEnd::Written);
                self.shell.checkpoint_ended(told.unwrap_or(end));
                let after = figures();
                return (after.0 - before.0, after.1 - before.1);
            }
            self.shell.log_event(Some(event)).unwrap();
        }
    }
}

#[tokio::test]
async fn a_checkpoint_costs_what_has_changed_also_after_a_start() {
    let dir = tempfile::tempdir().unwrap();
    let mut turns = open(dir.path());
    turns.create(0..QUEUES);
    let (parts, bytes) = turns.checkpoint(None).await;
    assert!(parts == QUEUES as u64 && bytes > 1_000_000, "{bytes}");
    let (parts, bytes) = turns.checkpoint(None).await;
    assert!(parts == 0 && bytes > 1_000_000, "the second base, of the first: {bytes}");
    turns.pause(0..10);
    let (parts, bytes) = turns.checkpoint(None).await;
    assert!(parts == 10 && bytes < 8_000, "{parts} parts, {bytes} bytes");
    drop(turns);

    let mut turns = open(dir.path());
    assert_eq!(turns.paused(), (0..10).collect::<Vec<_>>());
    turns.pause(20..25);
    let (parts, bytes) = turns.checkpoint(None).await;
    assert!(parts == 5 && bytes < 8_000, "{parts} parts, {bytes} bytes");
    turns.pause(30..31);
    drop(turns);
    let mut turns = open(dir.path());
    assert_eq!(turns.checkpoint(None).await.0, 0, "what was not durable is not there");
    assert_eq!(turns.paused(), (0..10).chain(20..25).collect::<Vec<_>>());
}

#[tokio::test]
async fn a_checkpoint_is_of_one_moment_however_many_turns_it_takes() {
    let dir = tempfile::tempdir().unwrap();
    let mut turns = open(dir.path());
    turns.create(0..QUEUES);
    turns.checkpoint(None).await;
    turns.pause(0..QUEUES / 2);
    turns.shell.checkpoints.due = true;
    turns.shell.begin_checkpoint(turns.shell.clock.now());
    assert_eq!(turns.encode(), QUEUES_PER_TURN);
    // Nothing of this is durable, and nothing of it belongs to the checkpoint, wherever that has come to.
    let last = QUEUES / 2 - 1;
    let gone = [0, 1, QUEUES_PER_TURN + 5, last].map(name);
    turns.resume([2, QUEUES_PER_TURN + 1, last - 1].map(name));
    turns.delete(gone.clone());
    turns.create(QUEUES..QUEUES + 1);
    turns.pause(QUEUES - 1..QUEUES);
    turns.written((0, 0), None).await;
    drop(turns);
    let mut turns = open(dir.path());
    assert_eq!(turns.paused(), (0..QUEUES / 2).collect::<Vec<_>>());
    assert!(turns.shell.state.queue_named(&name(QUEUES)).is_err());
    // What changed meanwhile is given the next time.
    turns.pause(QUEUES / 2..QUEUES / 2 + 1);
    turns.shell.checkpoints.due = true;
    turns.shell.begin_checkpoint(turns.shell.clock.now());
    turns.pause(QUEUES / 2 + 1..QUEUES / 2 + 2);
    turns.written((0, 0), None).await;
    assert_eq!(turns.checkpoint(None).await.0, 1);
    drop(turns);
    assert_eq!(open(dir.path()).paused(), (0..QUEUES / 2 + 2).collect::<Vec<_>>());
}

#[tokio::test]
async fn what_comes_due_at_once_is_looked_at_over_several_turns() {
    let dir = tempfile::tempdir().unwrap();
    let mut turns = open(dir.path());
    (0..1_000).for_each(|n| turns.shell.timers.set(Key::Pull(ConsumerId(n)), 1));
    let now = turns.shell.clock.now();
    for turn in 1..=3 {
        turns.shell.wake(now);
        assert_eq!(turns.shell.timers.len(), 1_000 - turn * TIMERS_PER_TURN);
    }
}

#[tokio::test]
async fn what_was_not_written_is_given_again() {
    let dir = tempfile::tempdir().unwrap();
    let mut turns = open(dir.path());
    turns.create(0..QUEUES);
    turns.checkpoint(None).await;
    turns.pause(3..5);
    assert_eq!(turns.checkpoint(Some(CheckpointEnd::NoSpace)).await.0, 2);
    turns.pause(7..8);
    assert_eq!(turns.checkpoint(None).await.0, 3);
    assert_eq!(turns.checkpoint(Some(CheckpointEnd::AllNeeded)).await.0, 0);
    assert!(turns.shell.checkpoints.due, "at once");
    assert_eq!(turns.checkpoint(None).await.0, QUEUES as u64);
    drop(turns);
    assert_eq!(open(dir.path()).paused(), [3, 4, 7]);
}

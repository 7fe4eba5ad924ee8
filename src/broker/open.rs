//! From a data directory to a running broker.

use std::path::PathBuf;
use std::sync::{Arc, OnceLock};

use rustc_hash::{FxHashMap, FxHashSet};
use tokio::sync::mpsc;

use super::ack_id::AckIds;
use super::api::{Broker, BrokerError};
use super::cache::TailCache;
use super::checkpoints::Checkpoints;
use super::commits::Commits;
use super::consumers::Consumers;
use super::follow::Follows;
use super::give_up::GivingUp;
use super::needs::Needs;
use super::own::OwnReads;
use super::reads::Readers;
use super::recall::Recalls;
use super::replica::Replica;
use super::shell::{Inbox, Shell};
use super::timers::Timers;
use crate::clock::Clock;
use crate::core::state::Queue;
use crate::core::{Event, State};
use crate::disk::Disk;
use crate::host::{Host, RealHost};
use crate::ids::{Lsn, Offset, QueueId, SegmentNumber, Uid};
use crate::limits::PUBLISH_MESSAGES_MAX;
use crate::log::{self, Damage, LogError, LogOptions, Room, Torn};
use crate::names::QueueName;
use crate::planted;

/// Why a broker could not be opened.
pub type OpenError = LogError;

/// A broker and what its opening found.
pub struct Opened {
    pub broker: Broker,
    /// The broker's task; to be run once, and to its end.
    pub task: BrokerTask,
    pub cluster: Uid,
    pub incarnation: u32,
    /// Messages that wait for some subscription.
    pub waiting_messages: u64,
    /// What was cut off the log's end.
    pub torn: Vec<Torn>,
    /// Parts of the log that could not be read.
    pub damage: Vec<Damage>,
    /// Messages that are known to be lost with them.
    pub lost: Vec<QueueOffsets>,
    /// Offsets of messages that may be lost with them: no others get these.
    pub left_out: Vec<QueueOffsets>,
    /// Files that were not of the log and damaged checkpoints, where they are now.
    pub set_aside: Vec<PathBuf>,
    /// Segments whose files are missing: their messages are lost.
    pub missing: Vec<SegmentNumber>,
}

/// Some offsets of a queue.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct QueueOffsets {
    pub queue: QueueId,
    pub name: QueueName,
    pub uid: Uid,
    pub first: Offset,
    /// Behind the last.
    pub end: Offset,
}

impl QueueOffsets {
    fn new(queue: &Queue, first: Offset, end: Offset) -> Self {
        Self { queue: queue.id, name: queue.name.clone(), uid: queue.uid, first, end }
    }
}

/// The broker before it runs.
pub struct BrokerTask {
    pub(super) shell: Shell,
    pub(super) inbox: Inbox,
}

impl BrokerTask {
    /// Runs until the broker is closed, or its log stops, which is the error.
    pub async fn run(self) -> Result<(), BrokerError> {
        self.shell.run(self.inbox).await
    }
}

/// Opens the log, replays it into the core, and makes the broker. Blocks until recovery is done.
///
/// # Errors
/// What keeps the log from being opened; see [`LogError`].
pub fn open(disk: Arc<dyn Disk>, segment_bytes: u64) -> Result<Opened, OpenError> {
    open_on(Arc::new(RealHost), disk, segment_bytes)
}

/// The same with the threads, clocks and randomness of this machine.
///
/// # Errors
/// As [`open`].
pub fn open_on(host: Arc<dyn Host>, disk: Arc<dyn Disk>, segment_bytes: u64) -> Result<Opened, OpenError> {
    let mut replica = Replica::default();
    let (log_sender, log_events) = mpsc::unbounded_channel();
    let options = LogOptions { segment_bytes, ..LogOptions::new(host.wall_us()) };
    let on_event = Arc::new(move |event| drop(log_sender.send(event)));
    let log = log::open_on(host.clone(), disk, options, &mut replica, on_event)?;
    let Replica { mut state, lost, changes, published, .. } = replica;
    let report = log.report();
    // Segments were begun, or much was done, and no checkpoint came to its end before the stop.
    let checkpoints = Checkpoints::new(report.segments_read > 1, changes);
    let (incarnation, log_us) = (report.incarnation, report.last_log_time_us);
    let replay_from = report.checkpoint.unwrap_or(Lsn(0));
    let (torn, damage) = (report.torn.clone(), report.damage.clone());
    let (set_aside, missing) = (report.set_aside.clone(), report.missing.clone());
    state.apply(&Event::Started { incarnation, log_us });
    let identity = log.identity();
    let (cluster, ack_ids) = (identity.cluster, AckIds::new(&identity.mac_key));
    let (requests, calls) = mpsc::unbounded_channel();
    let (reads_done, reads) = mpsc::unbounded_channel();
    let stop_reason = Arc::new(OnceLock::new());
    let waiting_messages = waiting_messages(&state);
    let is_whole = damage.is_empty() && missing.is_empty() && lost.is_empty();
    // A missing file alone loses no place: replay and checkpoint have them all. What is left out is in no record, and
    // would be refused by a replay that finds no damage.
    if !(damage.is_empty() && lost.is_empty()) {
        state.leave_out_places();
    }
    let ends = ends(&state);
    let recalls = if is_whole { Recalls::default() } else { Recalls::after_damage(&state) };
    let needs = Needs::of(&state);
    let clock_us = if planted::bug("lease-clock-runs-on") { log_us + (3_600 << 20) } else { log_us };
    let mut shell = Shell {
        state,
        ends,
        log,
        clock: Clock::starting_at(clock_us, host.clone()),
        ack_ids,
        commits: Commits::default(),
        cache: TailCache::default(),
        consumers: Consumers::default(),
        timers: Timers::default(),
        giving_up: GivingUp::default(),
        checkpoints,
        needs,
        room: Room::default(),
        dirty: Default::default(),
        is_dirty: FxHashSet::default(),
        own_reads: OwnReads::default(),
        readers: Readers::new(host.clone(), reads_done.clone()),
        host,
        reads_done,
        recalls,
        follows: Follows::default(),
        draining: false,
        stop_reason: Arc::clone(&stop_reason),
    };
    // Those of a queue that was deleted later are nobody's.
    let lost_in = lost.iter().filter_map(|of| Some((shell.state.queue(of.queue)?, of)));
    let lost_in = lost_in.map(|(queue, of)| QueueOffsets::new(queue, of.first, of.end)).collect();
    let left_out = left_out(&shell.state, replay_from, &damage, &published);
    let skipped = left_out.iter().map(|of| Event::OffsetsSkipped { queue: of.queue, end: of.end });
    shell.enact_lazily(&skipped.collect::<Vec<_>>(), shell.clock.now());
    shell.schedule_all();
    let broker = Broker::new(requests, stop_reason);
    let task = BrokerTask { shell, inbox: Inbox { calls, log_events, reads } };
    Ok(Opened {
        broker,
        task,
        cluster,
        incarnation,
        waiting_messages,
        torn,
        damage,
        lost: lost_in,
        left_out,
        set_aside,
        missing,
    })
}

/// What is left out of each queue that has no publish behind all damage: as many messages may have been published as
/// the lost records have room for, and nothing is left of them. If their offsets were given again, two messages would
/// have one id. Of records before `replay_from` the checkpoint knows.
pub(super) fn left_out(
    state: &State,
    replay_from: Lsn,
    damage: &[Damage],
    published: &FxHashMap<QueueId, Lsn>,
) -> Vec<QueueOffsets> {
    if planted::bug("offset-given-again") {
        return Vec::new();
    }
    let lost = |hole: &Damage| hole.lost_end.0.saturating_sub(hole.lost_first.max(replay_from).0);
    let records: u64 = damage.iter().map(lost).sum();
    let Some(behind) = damage.iter().map(|hole| hole.lost_end).max().filter(|_| records > 0) else {
        return Vec::new();
    };
    let messages = records.saturating_mul(PUBLISH_MESSAGES_MAX as u64);
    let is_open = |id: &QueueId| published.get(id).is_none_or(|last| *last < behind);
    let mut ids: Vec<_> = state.queue_ids().filter(is_open).collect();
    ids.sort_unstable();
    let left_out = |queue: &Queue| {
        let first = queue.next_offset;
        QueueOffsets::new(queue, first, Offset(first.0.saturating_add(messages)))
    };
    ids.into_iter().filter_map(|id| state.queue(id)).map(left_out).collect()
}

/// Where the queues and the stores of refs end on disk: all that was replayed is there.
fn ends(state: &State) -> FxHashMap<QueueId, Offset> {
    let queues = state.queue_ids().filter_map(|id| Some((id, state.queue(id)?.next_offset)));
    let stores = state.subscription_ids().filter_map(|id| {
        let spilled = state.subscription(id)?.delivery.spilled();
        (!spilled.is_empty()).then_some((QueueId::of_refs(id), spilled.next()))
    });
    queues.chain(stores).collect()
}

fn waiting_messages(state: &State) -> u64 {
    state.queue_ids().filter_map(|id| state.queue(id)).map(|queue| state.waiting_in(queue)).sum()
}

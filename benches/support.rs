//! What the benches share: records, a log that is driven by hand, a broker on a data directory.

use std::ops::Range;
use std::path::Path;
use std::sync::Arc;
use std::sync::mpsc::{Receiver, channel};
use std::time::Duration;

use bytes::Bytes;
use criterion::measurement::WallTime;
use criterion::{BenchmarkGroup, Criterion};
use forebay::broker::api::{Broker, BrokerError, NewMessage};
use forebay::disk::RealDisk;
use forebay::ids::{Offset, QueueId, Ticket};
use forebay::log::{
    Batch, Checkpoint, Image, Log, LogError, LogEvent, LogOptions, Parts, ReplayError, Replayed, StateMachine,
};
use forebay::names::{QueueName, SubscriptionName};
use forebay::record::{Body, Kind, Lane, MessageRun, Record, StoredParts};
use tokio::runtime::Runtime;
use tokio::task::JoinHandle;

/// Small log files, so that there are many at once.
pub const SEGMENT_BYTES: u64 = 256 << 10;
pub const QUEUE: &str = "namespaces/default/queues/bench";
pub const SUBSCRIPTION: &str = "namespaces/default/queues/bench/subscriptions/default";
const LANE: Lane = Lane { priority: 4, bucket: 0 };

/// A group that is measured for a short while: what waits for a disk varies more than more samples can mend.
pub fn group<'a>(criterion: &'a mut Criterion, name: &str) -> BenchmarkGroup<'a, WallTime> {
    let mut group = criterion.benchmark_group(name);
    group.sample_size(20).warm_up_time(Duration::from_millis(500)).measurement_time(Duration::from_secs(2));
    group
}

pub fn queue_name() -> QueueName {
    QueueName::parse(QUEUE).expect("it is a name")
}

pub fn subscription_name() -> SubscriptionName {
    SubscriptionName::parse(SUBSCRIPTION).expect("it is a name")
}

pub fn runtime() -> Runtime {
    tokio::runtime::Builder::new_current_thread().enable_all().build().expect("a runtime starts")
}

fn parts(bytes: usize) -> StoredParts {
    StoredParts { meta: Bytes::new(), body: vec![7; bytes].into() }
}

/// A message of this many bytes.
pub fn message(bytes: usize) -> NewMessage {
    NewMessage { lane: LANE, parts: parts(bytes) }
}

/// A run of one message.
pub fn record(queue: QueueId, offset: Offset, bytes: usize) -> Record {
    run(queue, offset, 1, bytes)
}

/// A run of messages of this many bytes each.
pub fn run(queue: QueueId, offset: Offset, count: usize, bytes: usize) -> Record {
    let run = MessageRun { lane: LANE, publish_time_us: 1, messages: vec![parts(bytes); count] };
    Record { kind: Kind::Publish, flags: 0, queue, offset, headers: Vec::new(), body: Body::Run(run) }
}

/// Takes no notice of records.
struct Nothing;

impl StateMachine for Nothing {
    fn restore(&mut self, _: Image) -> Result<(), LogError> {
        Ok(())
    }

    fn apply(&mut self, _: Replayed<'_>) -> Result<(), ReplayError> {
        Ok(())
    }
}

/// A log without a broker.
pub struct LogBench {
    log: Log,
    events: Receiver<LogEvent>,
    next: u64,
}

impl LogBench {
    pub fn open(dir: &Path, segment_bytes: u64) -> Self {
        let (sender, events) = channel();
        let options = LogOptions { segment_bytes, ..LogOptions::new(1) };
        let on_event = Arc::new(move |event| drop(sender.send(event)));
        let disk = Arc::new(RealDisk::new(dir));
        let log = forebay::log::open(disk, options, &mut Nothing, on_event).expect("the log opens");
        Self { log, events, next: 0 }
    }

    pub fn submit(&mut self, records: Vec<Record>) -> Ticket {
        let ticket = self.ticket();
        self.log.submit(Batch { records, ticket, log_time_us: ticket.0 });
        ticket
    }

    fn ticket(&mut self) -> Ticket {
        self.next += 1;
        Ticket(self.next)
    }

    /// Waits until a batch is durable. Segments that were filled meanwhile are left behind by checkpoints if `forget`
    /// says so, so that a long run does not fill the disk.
    pub fn wait(&mut self, ticket: Ticket, forget: bool) {
        loop {
            match self.event() {
                LogEvent::Committed { through, .. } if through >= ticket => return,
                LogEvent::SegmentBegun if forget => {
                    let ticket = self.ticket();
                    self.log.mark(ticket);
                }
                LogEvent::Marked(mark) => {
                    let live = Arc::new(|_, _| false);
                    self.log.checkpoint(Checkpoint { mark, head: Vec::new(), parts: Parts::default(), live });
                }
                _ => {}
            }
        }
    }

    /// Takes a checkpoint, and with it a round of reclaim; waits for its end.
    pub fn checkpoint(&mut self, live: fn(QueueId, Offset) -> bool) {
        let ticket = self.ticket();
        self.log.mark(ticket);
        loop {
            match self.event() {
                LogEvent::Marked(mark) => {
                    self.log.checkpoint(Checkpoint {
                        mark,
                        head: Vec::new(),
                        parts: Parts::default(),
                        live: Arc::new(live),
                    });
                }
                LogEvent::CheckpointEnded(_) => return,
                _ => {}
            }
        }
    }

    /// Finds and reads messages of a queue; how many came whole.
    pub fn read(&self, queue: QueueId, offsets: Range<u64>) -> usize {
        let offsets: Vec<Offset> = offsets.map(Offset).collect();
        let plan = self.log.index().plan(queue, &offsets, u64::MAX).expect("they are there");
        let reader = self.log.reader();
        let mut pieces = reader.read_plan(&plan);
        let read = std::iter::from_fn(|| pieces.next(u64::MAX));
        read.map(|(_, run)| run.expect("it can be read").messages.len()).sum()
    }

    pub fn segments(&self) -> u64 {
        self.log.counters().segments.get()
    }

    fn event(&mut self) -> LogEvent {
        match self.events.recv_timeout(Duration::from_secs(60)).expect("the log reports") {
            LogEvent::Failed(error) => panic!("{error}"),
            event => event,
        }
    }
}

/// A broker at work.
pub struct BrokerBench {
    pub runtime: Runtime,
    pub broker: Broker,
    task: JoinHandle<Result<(), BrokerError>>,
}

impl BrokerBench {
    pub fn open(dir: &Path) -> Self {
        let runtime = runtime();
        let opened = forebay::broker::open(Arc::new(RealDisk::new(dir)), SEGMENT_BYTES).expect("it opens");
        let task = runtime.spawn(opened.task.run());
        Self { runtime, broker: opened.broker, task }
    }

    pub fn close(self) {
        let closed = async {
            self.broker.close().await.expect("the log closes");
            self.task.await.expect("the broker does not panic").expect("it ends well");
        };
        self.runtime.block_on(closed);
    }
}

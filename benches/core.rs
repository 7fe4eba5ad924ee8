//! The pure core: deciding and applying, without a disk. All but `publish` leave the state as it was.

use criterion::{Criterion, Throughput};
use forebay::clock::Now;
use forebay::core::consume::{self, Handed};
use forebay::core::publish::{self, LaneRun};
use forebay::core::settle::{self, AckToken};
use forebay::core::types::{Ending, QueueConfig, RetryPolicy, Start, SubscriptionConfig};
use forebay::core::{Event, State, admin, snapshot};
use forebay::ids::{Offset, SubscriptionId, Uid};
use forebay::limits::IN_FLIGHT_MAX;
use forebay::names::QueueName;
use forebay::record::Lane;

use crate::support::{QUEUE, group, queue_name, subscription_name};

/// Messages of one round.
const ROUND: usize = 100;
const QUEUES: usize = 10_000;
const NOW: Now = Now { log_us: 1, wall_us: 1 };
const LEASE_US: u64 = 30_000_000;

/// A state with one queue, and its subscription.
struct Core {
    state: State,
    subscription: SubscriptionId,
}

impl Core {
    /// With messages in the queue.
    fn new(messages: u32) -> Self {
        let mut core = Self { state: State::default(), subscription: SubscriptionId(0) };
        core.state.apply(&Event::Started { incarnation: 1, log_us: 0 });
        let uid = Uid([1; 16]);
        let made = admin::create_queue(&core.state, queue_name(), QueueConfig::default(), uid, None, NOW);
        core.apply(&made.expect("it is new").events);
        let (retry, dead_letter_queue) = (RetryPolicy::default(), None);
        let (lease_us, in_flight_max) = (LEASE_US, IN_FLIGHT_MAX);
        let config = SubscriptionConfig { lease_us, in_flight_max, retry, dead_letter_queue };
        let made = admin::create_subscription(
            &core.state,
            subscription_name(),
            config,
            Start::Earliest,
            Uid([2; 16]),
            NOW,
        )
        .expect("it is new");
        core.apply(&made.events);
        core.subscription = made.answer;
        core.publish(messages);
        core
    }

    fn apply(&mut self, events: &[Event]) {
        events.iter().for_each(|event| self.state.apply(event));
    }

    /// Adds so many queues; their names.
    fn add_queues(&mut self, count: usize) -> Vec<QueueName> {
        let name = |number| QueueName::parse(&format!("{QUEUE}-{number}")).expect("it is a name");
        let names: Vec<QueueName> = (0..count).map(name).collect();
        for (name, number) in names.iter().zip(1_u128..) {
            let uid = Uid(number.to_be_bytes());
            let made = admin::create_queue(&self.state, name.clone(), QueueConfig::default(), uid, None, NOW);
            self.apply(&made.expect("it is new").events);
        }
        names
    }

    fn publish(&mut self, count: u32) {
        self.publish_to(&queue_name(), count);
    }

    fn publish_to(&mut self, queue: &QueueName, count: u32) {
        let run = LaneRun { lane: Lane { priority: 4, bucket: 0 }, count, bytes: 100 };
        let queue = self.state.queue_named(queue).expect("it is there");
        let decision = publish::publish(&self.state, queue, &[run], None, NOW);
        self.apply(&decision.expect("nothing is against it").events);
    }

    fn end(&self) -> Offset {
        self.state.queue_named(&queue_name()).expect("it is there").next_offset
    }

    fn lease(&mut self, count: usize) -> Vec<Handed> {
        let subscription = self.state.subscription(self.subscription).expect("it is there");
        let chosen = consume::candidates(subscription, count, self.end());
        let decision = consume::lease(&self.state, subscription, &chosen, LEASE_US, NOW);
        self.apply(&decision.events);
        decision.answer
    }

    fn settle(&mut self, handed: &[Handed], ending: &Ending) {
        let token = |handed: &Handed| AckToken { offset: handed.offset, lease: handed.lease };
        let endings: Vec<_> = handed.iter().map(|handed| (token(handed), ending.clone())).collect();
        let subscription = self.state.subscription(self.subscription).expect("it is there");
        let decision = settle::settle(&self.state, subscription, self.end(), &endings, NOW);
        self.apply(&decision.events);
    }
}

pub fn bench(criterion: &mut Criterion) {
    let mut group = group(criterion, "core");
    group.throughput(Throughput::Elements(1));
    let mut core = Core::new(1);
    group.bench_function("publish", |bencher| bencher.iter(|| core.publish(1)));
    let mut core = Core::new(1);
    let names = core.add_queues(QUEUES);
    let mut in_turn = names.iter().cycle();
    group.bench_function("publish_queues_in_turn", |bencher| {
        bencher.iter(|| core.publish_to(in_turn.next().expect("it never ends"), 1));
    });
    group.throughput(Throughput::Elements(QUEUES as u64));
    group.bench_function("checkpoint_image", |bencher| {
        let mut image = Vec::new();
        bencher.iter(|| {
            image.clear();
            snapshot::put_head(&mut image, &core.state);
            let queues = core.state.queue_ids().filter_map(|id| core.state.queue(id));
            queues.for_each(|queue| snapshot::put_part(&mut image, &core.state, queue));
        });
    });
    group.throughput(Throughput::Elements(ROUND as u64));
    let mut core = Core::new(1);
    group.bench_function("publish_lease_ack", |bencher| {
        bencher.iter(|| {
            core.publish(ROUND as u32);
            let handed = core.lease(ROUND);
            core.settle(&handed, &Ending::Ack);
        });
    });
    let mut core = Core::new(1_000_000);
    group.bench_function("lease_requeue", |bencher| {
        bencher.iter(|| {
            let handed = core.lease(ROUND);
            core.settle(&handed, &Ending::Release);
        });
    });
    // Every other of many in flight is finished, so that nothing is in order: the worst for the bitmaps.
    let mut core = Core::new(1_000_000);
    let held = core.lease(IN_FLIGHT_MAX as usize);
    let odd: Vec<Handed> = held.into_iter().filter(|handed| handed.offset.0 % 2 == 1).collect();
    core.settle(&odd, &Ending::Ack);
    group.bench_function("publish_lease_ack_behind_holes", |bencher| {
        bencher.iter(|| {
            core.publish(ROUND as u32);
            let handed = core.lease(ROUND);
            core.settle(&handed, &Ending::Ack);
        });
    });
    group.finish();
}

//! Histories of a correct queue break no rule, whatever is lost, late, crashed or not known.
//!
//! A small queue server, its clients and the network between them make random steps. Calls take effect at any moment
//! between their beginning and their end, or after a client has given up on them; deliveries come late; a crash forgets
//! leases that need not be kept.

use std::cell::RefCell;
use std::collections::HashMap;

use forebay_checker::Report;
use forebay_checker::format::{Answer, Delivery, Ending, Event, How, Message, Moment, Op, Settled};
use proptest::prelude::*;
use proptest::test_runner::{RngAlgorithm, TestRng, TestRunner};

use crate::story::{LEASE_NS, SECOND_NS, Story, message};

const NAMES: [&str; 2] = ["q", "q-dead"];
/// The server takes its time at the beginning of a turn.
const TURN_NS: u64 = 50_000_000;

#[derive(Clone, Copy, PartialEq)]
enum State {
    /// From this time on.
    Waits(u64),
    /// Until this time.
    Leased(u64),
    Done,
}

#[derive(Clone)]
struct Stored {
    id: u64,
    origin: Option<u64>,
    state: State,
    lease: u64,
    attempt: u32,
}

struct Call {
    number: u64,
    op: Op,
    /// The leases that a settle means.
    leases: Vec<u64>,
    applied: Option<Answer>,
    given_up: bool,
}

struct Held {
    queue: usize,
    offset: u64,
    delivery: u64,
    lease: u64,
    life: u64,
}

struct World {
    story: Story,
    queues: [Vec<Stored>; 2],
    answers: HashMap<u64, Vec<u64>>,
    requests: Vec<(Vec<u64>, bool)>,
    calls: Vec<Call>,
    pulls: Vec<(usize, Moment)>,
    /// On their way, with their leases.
    sent: Vec<(Delivery, u64)>,
    held: Vec<Held>,
    last_number: u64,
    life: u64,
    exactly_once: bool,
    one_consumer: bool,
}

impl World {
    fn new(one_consumer: bool, exactly_once: bool) -> Self {
        let mut story = Story { lines: Vec::new(), now_ns: 0 }.event(Event::History { version: 1 });
        for queue in NAMES {
            story = story.event(Event::Queue { queue: queue.into(), one_consumer, exactly_once });
        }
        Self {
            story,
            queues: [Vec::new(), Vec::new()],
            answers: HashMap::new(),
            requests: Vec::new(),
            calls: Vec::new(),
            pulls: Vec::new(),
            sent: Vec::new(),
            held: Vec::new(),
            last_number: 0,
            life: 0,
            exactly_once,
            one_consumer,
        }
    }

    fn number(&mut self) -> u64 {
        self.last_number += 1;
        self.last_number
    }

    fn event(&mut self, event: Event) {
        let story = std::mem::replace(&mut self.story, Story { lines: Vec::new(), now_ns: 0 });
        self.story = story.event(event);
    }

    fn step(&mut self, kind: u8, pick: usize) {
        match kind {
            0..=2 => self.publish(pick),
            3 => self.publish_again(pick),
            4..=9 => self.apply(pick),
            10..=14 => self.answer(pick),
            15 => self.give_up(pick),
            16 => self.refuse(pick),
            17..=20 => self.pulls.push((pick % 3 / 2, self.story.moment())),
            21..=24 => self.grant(pick),
            25..=29 => self.arrive(pick),
            30..=33 => self.settle(pick),
            34 if pick.is_multiple_of(4) => {
                let end = (pick / 4 % (self.queues[0].len() + 1)) as u64;
                self.invoke(Op::Purge { queue: "q".into(), end }, Vec::new());
            }
            35 if pick.is_multiple_of(3) => self.crash(pick),
            _ => self.story.now_ns += pick as u64 % 40 * SECOND_NS,
        }
    }

    fn invoke(&mut self, op: Op, leases: Vec<u64>) {
        let number = self.number();
        self.event(Event::Invoke { call: number, op: op.clone() });
        self.calls.push(Call { number, op, leases, applied: None, given_up: false });
    }

    fn publish(&mut self, pick: usize) {
        let ids: Vec<u64> = (0..1 + pick % 3).map(|_| self.number()).collect();
        self.requests.push((ids, pick.is_multiple_of(2)));
        self.send(self.requests.len() - 1);
    }

    fn publish_again(&mut self, pick: usize) {
        if !self.requests.is_empty() {
            self.send(pick % self.requests.len());
        }
    }

    fn send(&mut self, request: usize) {
        let (ids, stamped) = self.requests[request].clone();
        let messages = ids.into_iter().map(message).collect();
        self.invoke(Op::Publish { queue: "q".into(), stamped, messages }, Vec::new());
    }

    /// A call takes effect.
    fn apply(&mut self, pick: usize) {
        let open: Vec<usize> = (0..self.calls.len()).filter(|n| self.calls[*n].applied.is_none()).collect();
        let Some(n) = open.get(pick % open.len().max(1)).copied() else { return };
        let (op, leases) = (self.calls[n].op.clone(), self.calls[n].leases.clone());
        let answer = match op {
            Op::Publish { stamped, messages, .. } => self.store(stamped, &messages),
            Op::Settle { queue, endings, .. } => {
                let queue = usize::from(queue != "q");
                let leased = endings.iter().zip(leases);
                let results = leased.map(|(ending, lease)| self.end(queue, ending, lease)).collect();
                Answer::Settled { results }
            }
            Op::Purge { end, .. } => {
                self.queues[0].iter_mut().take(end as usize).for_each(|stored| stored.state = State::Done);
                Answer::Purged
            }
        };
        self.calls[n].applied = Some(answer);
        self.calls.retain(|call| !(call.given_up && call.applied.is_some()));
    }

    fn store(&mut self, stamped: bool, messages: &[Message]) -> Answer {
        let first = messages[0].id;
        if let Some(offsets) = self.answers.get(&first).filter(|_| stamped) {
            return Answer::Stored { offsets: offsets.clone() };
        }
        let start = self.queues[0].len() as u64;
        let state = State::Waits(0);
        let stored = |id| Stored { id, origin: None, state, lease: 0, attempt: 0 };
        self.queues[0].extend(messages.iter().map(|message| stored(message.id)));
        let offsets: Vec<u64> = (start..).take(messages.len()).collect();
        self.answers.insert(first, offsets.clone());
        Answer::Stored { offsets }
    }

    fn end(&mut self, queue: usize, ending: &Ending, lease: u64) -> Settled {
        let now = self.story.now_ns;
        let stored = &mut self.queues[queue][ending.offset as usize];
        match (stored.state, ending.how) {
            (State::Done, How::Ack) => return Settled::Ok,
            (State::Done, _) => return Settled::Stale,
            _ if lease < stored.lease => return Settled::Stale,
            (_, How::Ack | How::Reject) => stored.state = State::Done,
            // It waits already, and goes on to.
            (State::Waits(_), _) => {}
            (State::Leased(_), How::Retry { delay_ns }) => stored.state = State::Waits(now + delay_ns),
            (State::Leased(_), How::Extend { lease_ns }) => stored.state = State::Leased(now + lease_ns),
            (State::Leased(_), How::Release) => stored.state = State::Waits(0),
        }
        stored.lease = lease;
        if ending.how == How::Reject && queue == 0 {
            let (id, origin) = (stored.id, Some(ending.offset));
            self.queues[1].push(Stored { id, origin, state: State::Waits(0), lease: 0, attempt: 0 });
        }
        Settled::Ok
    }

    fn answer(&mut self, pick: usize) {
        let done: Vec<usize> = (0..self.calls.len()).filter(|n| self.calls[*n].applied.is_some()).collect();
        let Some(n) = done.get(pick % done.len().max(1)).copied() else { return };
        let call = self.calls.remove(n);
        let answer = call.applied.expect("these are applied");
        self.event(Event::Ok { call: call.number, answer });
    }

    /// A client waits no longer; the call may have its effect yet.
    fn give_up(&mut self, pick: usize) {
        let open: Vec<usize> = (0..self.calls.len()).filter(|n| !self.calls[*n].given_up).collect();
        let Some(n) = open.get(pick % open.len().max(1)).copied() else { return };
        self.calls[n].given_up = true;
        self.event(Event::Unknown { call: self.calls[n].number });
        self.calls.retain(|call| !(call.given_up && call.applied.is_some()));
    }

    fn refuse(&mut self, pick: usize) {
        let open = |call: &Call| call.applied.is_none() && !call.given_up;
        let open: Vec<usize> = (0..self.calls.len()).filter(|n| open(&self.calls[*n])).collect();
        let Some(n) = open.get(pick % open.len().max(1)).copied() else { return };
        let call = self.calls.remove(n);
        self.event(Event::Fail { call: call.number });
    }

    /// The server hands out messages.
    fn grant(&mut self, pick: usize) {
        if self.pulls.is_empty() {
            return;
        }
        let (queue, after) = self.pulls.remove(pick % self.pulls.len());
        // One consumer has one session in each life; several are on their own.
        let session = if self.one_consumer { 1_000_000 + self.life } else { self.number() };
        let now = self.story.now_ns;
        let turn = now - TURN_NS.min(now) * (pick as u64 % 2);
        let mut free = Vec::new();
        for (offset, stored) in self.queues[queue].iter_mut().enumerate() {
            match stored.state {
                State::Waits(until) | State::Leased(until) if until <= now => free.push(offset),
                _ => {}
            }
        }
        for offset in free.into_iter().take(1 + pick % 4) {
            let lease = self.number();
            let stored = &mut self.queues[queue][offset];
            stored.state = State::Leased(turn + LEASE_NS);
            (stored.lease, stored.attempt) = (lease, stored.attempt + 1);
            let Message { id, length, hash, .. } = message(stored.id);
            let delivery = Delivery {
                queue: NAMES[queue].into(),
                offset: offset as u64,
                id,
                length,
                hash,
                attempt: stored.attempt,
                after,
                lease_ns: LEASE_NS,
                session,
                life: self.life,
                origin: stored.origin.map(|origin| ("q".into(), origin)),
            };
            self.sent.push((delivery, lease));
        }
    }

    fn arrive(&mut self, pick: usize) {
        if self.sent.is_empty() {
            return;
        }
        let n = if self.one_consumer { 0 } else { pick % self.sent.len() };
        let (delivery, lease) = self.sent.remove(n);
        let queue = usize::from(delivery.queue != "q");
        let (offset, line, life) = (delivery.offset, self.story.lines.len() as u64, delivery.life);
        self.event(Event::Delivered(delivery));
        self.held.push(Held { queue, offset, delivery: line, lease, life });
    }

    /// A consumer ends what it has, now and then what it has ended before.
    fn settle(&mut self, pick: usize) {
        if self.held.is_empty() {
            return;
        }
        let n = pick / 16 % self.held.len();
        let Held { queue, offset, delivery, lease, life } = self.held[n];
        let how = match pick % 16 {
            0..8 => How::Ack,
            8..10 => How::Retry { delay_ns: pick as u64 / 256 % 60 * SECOND_NS },
            10..12 => How::Release,
            12 => How::Reject,
            _ => How::Extend { lease_ns: LEASE_NS },
        };
        // Dead letters are not rejected again.
        let how = if queue == 1 && how == How::Reject { How::Ack } else { how };
        if !pick.is_multiple_of(5) {
            self.held.remove(n);
        }
        // What was given by another life goes to this one.
        let life = life.max(self.life);
        let endings = vec![Ending { offset, delivery, how }];
        self.invoke(Op::Settle { queue: NAMES[queue].into(), life, endings }, vec![lease]);
    }

    /// What was not applied is gone, nobody is answered, and leases may be forgotten.
    fn crash(&mut self, pick: usize) {
        self.event(Event::Killed { life: self.life });
        self.life += 1;
        for call in std::mem::take(&mut self.calls).into_iter().filter(|call| !call.given_up) {
            if pick.is_multiple_of(2) {
                self.event(Event::Unknown { call: call.number });
            }
        }
        self.pulls.clear();
        if self.exactly_once {
            return;
        }
        for (n, stored) in self.queues.iter_mut().flatten().enumerate() {
            if matches!(stored.state, State::Leased(_)) && (pick >> (n % 8)).is_multiple_of(2) {
                stored.state = State::Waits(0);
                (stored.lease, stored.attempt) = (0, stored.attempt - 1);
            }
        }
    }

    fn finish(mut self) -> Report {
        for (queue, name) in NAMES.iter().enumerate() {
            let waiting = (0..).zip(&self.queues[queue]).filter(|(_, stored)| stored.state != State::Done);
            let ranges = waiting.map(|(offset, _)| (offset, offset + 1)).collect();
            self.event(Event::Waiting { queue: (*name).into(), ranges });
        }
        self.story.report()
    }
}

/// What happened in all histories, so that they are known to be worth something.
#[derive(Default)]
struct Seen {
    acknowledged: u64,
    redeliveries: u64,
    endings: u64,
    purges: u64,
    unknown: u64,
    letters: u64,
}

#[test]
fn histories_of_a_correct_queue_break_no_rule() {
    let seen = RefCell::new(Seen::default());
    let steps = prop::collection::vec((0u8..40, 0usize..1 << 16), 0..400);
    let config = ProptestConfig { failure_persistence: None, ..ProptestConfig::default() };
    let rng = TestRng::deterministic_rng(RngAlgorithm::ChaCha);
    let mut runner = TestRunner::new_with_rng(config, rng);
    let run = runner.run(&(any::<bool>(), any::<bool>(), steps), |(one_consumer, exactly_once, steps)| {
        let mut world = World::new(one_consumer, exactly_once);
        steps.into_iter().for_each(|(kind, pick)| world.step(kind, pick));
        let letters = world.queues[1].len() as u64;
        let text = world.story.text();
        let report = world.finish();
        prop_assert!(report.is_clean(), "{:#?}\n{text}", report.violations);
        let mut seen = seen.borrow_mut();
        seen.acknowledged += report.acknowledged;
        seen.redeliveries += report.redeliveries;
        seen.endings += report.endings;
        seen.purges += report.purges;
        seen.unknown += report.unknown;
        seen.letters += letters;
        Ok(())
    });
    run.unwrap();
    let Seen { acknowledged, redeliveries, endings, purges, unknown, letters } = seen.into_inner();
    let all = [acknowledged, redeliveries, endings, purges, unknown, letters];
    assert!(all.iter().all(|count| *count > 40), "{all:?}");
}

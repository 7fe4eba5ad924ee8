//! A history in the making.

use forebay_checker::format::{
    Answer, BodyHash, Delivery, Ending, Event, How, Line, Message, Moment, Op, Settled,
};
use forebay_checker::{Kind, Report, check};

pub const Q: &str = "q";
pub const LEASE_NS: u64 = 30_000_000_000;
pub const SECOND_NS: u64 = 1_000_000_000;

/// Lines get indices by themselves, and a millisecond passes with each.
#[derive(Clone, Debug)]
pub struct Story {
    pub lines: Vec<Line>,
    pub now_ns: u64,
}

/// The message of an id: its length and its bytes follow from it.
pub fn message(id: u64) -> Message {
    Message { id, length: id as u32 + 10, hash: BodyHash(u128::from(id) << 70 | 1), key: None }
}

impl Story {
    pub fn new() -> Self {
        let story = Self { lines: Vec::new(), now_ns: 0 };
        let story = story.event(Event::History { version: 1 });
        story.event(Event::Queue { queue: Q.into(), one_consumer: true, exactly_once: false })
    }

    pub fn event(mut self, event: Event) -> Self {
        self.now_ns += 1_000_000;
        let line = Line { i: self.lines.len() as u64, t: self.now_ns, event };
        self.lines.push(line);
        self
    }

    /// Time passes.
    pub fn later(mut self, ns: u64) -> Self {
        self.now_ns += ns;
        self
    }

    /// The moment behind the last line.
    pub fn moment(&self) -> Moment {
        Moment { i: self.lines.len() as u64, t: self.now_ns }
    }

    pub fn invoke(self, call: u64, op: Op) -> Self {
        self.event(Event::Invoke { call, op })
    }

    pub fn ok(self, call: u64, answer: Answer) -> Self {
        self.event(Event::Ok { call, answer })
    }

    pub fn fail(self, call: u64) -> Self {
        self.event(Event::Fail { call })
    }

    pub fn unknown(self, call: u64) -> Self {
        self.event(Event::Unknown { call })
    }

    pub fn send(self, call: u64, ids: &[u64], stamped: bool) -> Self {
        let messages = ids.iter().map(|id| message(*id)).collect();
        self.invoke(call, Op::Publish { queue: Q.into(), stamped, messages })
    }

    pub fn told(self, call: u64, offsets: &[u64]) -> Self {
        self.ok(call, Answer::Stored { offsets: offsets.to_vec() })
    }

    pub fn stored(self, call: u64, ids: &[u64], offsets: &[u64]) -> Self {
        self.send(call, ids, false).told(call, offsets)
    }

    /// A delivery that was sent right before.
    pub fn deliver(self, offset: u64, id: u64, change: impl FnOnce(&mut Delivery)) -> Self {
        let Message { length, hash, .. } = message(id);
        let mut delivery = Delivery {
            queue: Q.into(),
            offset,
            id,
            length,
            hash,
            attempt: 1,
            after: self.moment(),
            lease_ns: LEASE_NS,
            session: 1,
            life: 0,
            origin: None,
        };
        change(&mut delivery);
        self.event(Event::Delivered(delivery))
    }

    pub fn came(self, offset: u64, id: u64) -> Self {
        self.deliver(offset, id, |_| {})
    }

    /// The message comes again after its lease.
    pub fn came_again(self, offset: u64, id: u64) -> Self {
        self.later(LEASE_NS * 2).deliver(offset, id, |delivery| delivery.attempt = 2)
    }

    /// The dead letter of an offset of the queue comes.
    pub fn letter(self, offset: u64, id: u64, origin: u64) -> Self {
        self.deliver(offset, id, |delivery| {
            (delivery.queue, delivery.origin) = ("q-dead".into(), Some((Q.into(), origin)));
        })
    }

    /// The last delivery of an offset.
    fn last(&self, queue: &str, offset: u64) -> u64 {
        let is_it = |line: &&Line| matches!(&line.event, Event::Delivered(d) if d.queue == queue && d.offset == offset);
        self.lines.iter().rfind(is_it).map_or(0, |line| line.i)
    }

    /// Tries to end the last delivery of an offset; the call has the index of its line as its number.
    pub fn ending(self, queue: &str, offset: u64, how: How) -> Self {
        let (call, delivery) = (self.lines.len() as u64 + 1_000, self.last(queue, offset));
        let endings = vec![Ending { offset, delivery, how }];
        self.invoke(call, Op::Settle { queue: queue.into(), life: 0, endings })
    }

    /// The answer to the ending of the line before; none: nobody knows.
    pub fn result(self, result: Option<Settled>) -> Self {
        let call = self.lines.len() as u64 - 1 + 1_000;
        match result {
            Some(result) => self.ok(call, Answer::Settled { results: vec![result] }),
            None => self.unknown(call),
        }
    }

    pub fn end(self, offset: u64, how: How, result: Option<Settled>) -> Self {
        self.ending(Q, offset, how).result(result)
    }

    pub fn acked(self, offset: u64) -> Self {
        self.end(offset, How::Ack, Some(Settled::Ok))
    }

    pub fn letter_acked(self, offset: u64) -> Self {
        self.ending("q-dead", offset, How::Ack).result(Some(Settled::Ok))
    }

    /// A purge that was answered, or not.
    pub fn purge(self, end: u64, done: bool) -> Self {
        let call = self.lines.len() as u64 + 1_000;
        let story = self.invoke(call, Op::Purge { queue: Q.into(), end });
        if done { story.ok(call, Answer::Purged) } else { story.unknown(call) }
    }

    /// What waits at the end.
    pub fn waiting(self, queue: &str, ranges: &[(u64, u64)]) -> Self {
        self.event(Event::Waiting { queue: queue.into(), ranges: ranges.to_vec() })
    }

    pub fn text(&self) -> String {
        self.lines.iter().map(|line| serde_json::to_string(line).unwrap() + "\n").collect()
    }

    pub fn report(&self) -> Report {
        check(self.text().as_bytes()).unwrap()
    }

    /// The kinds of all violations when nothing waits at the end, each once, and each with lines that are there.
    pub fn kinds(self) -> Vec<Kind> {
        self.waiting(Q, &[]).waiting("q-dead", &[]).kinds_so_far()
    }

    pub fn kinds_so_far(&self) -> Vec<Kind> {
        let report = self.report();
        for violation in &report.violations {
            let lines = &violation.lines;
            assert!(!lines.is_empty() && lines.iter().all(|line| *line <= report.events), "{violation:?}");
        }
        report.counts.into_keys().collect()
    }
}

//! What is known of messages, queues and calls while a history is read.
//!
//! Lines are counted from 1, so that 0 means none; a line is before a [`Moment`](crate::format::Moment) if it is not
//! greater than the moment's `i`.

use std::collections::BTreeMap;

use rustc_hash::FxHashMap;

use crate::format::{self, Answer, BodyHash, Event, Op};
use crate::report::{Kind, Report, Violation};
use crate::settles::Settling;
use crate::{CLOCK_SLACK_NS, Unreadable};

/// The number of a line, from 1.
pub(crate) type Lineno = u32;
/// Stands for "no line".
pub(crate) const NONE: Lineno = 0;
/// Stands for "no key".
pub(crate) const NO_KEY: u32 = u32::MAX;

/// Reads a history line by line.
#[derive(Debug, Default)]
pub struct Checker {
    pub(crate) line: Lineno,
    pub(crate) now_ns: u64,
    pub(crate) calls: FxHashMap<u64, Call>,
    /// Where a message of an id is in `messages`.
    pub(crate) by_id: FxHashMap<u64, u32>,
    pub(crate) messages: Vec<Message>,
    pub(crate) requests: Vec<Request>,
    pub(crate) queues: Vec<Queue>,
    by_name: FxHashMap<String, u32>,
    keys: FxHashMap<String, u32>,
    /// By queue and offset.
    pub(crate) rejections: BTreeMap<(u32, u64), Rejection>,
    pub(crate) report: Report,
}

/// A call that has not ended yet.
#[derive(Debug)]
pub(crate) enum Call {
    Publish {
        request: u32,
        /// It is not the first sending of its request.
        again: bool,
        /// Offsets below were answered before it was sent, and the line that says so.
        floor: (u64, Lineno),
        line: Lineno,
    },
    Settle(Settling),
    Purge {
        queue: u32,
        end: u64,
    },
}

/// A publish request, however often it was sent. Its messages lie in a row.
#[derive(Debug)]
pub(crate) struct Request {
    pub queue: u32,
    pub first: u32,
    pub count: u32,
    /// Sendings that stored it, or may have.
    pub stored_max: u32,
    pub stamped: bool,
    /// When it was first sent.
    pub line: Lineno,
    pub sent_ns: u64,
}

#[derive(Debug)]
pub(crate) struct Message {
    pub id: u64,
    /// Not as one number, which would cost alignment.
    pub hash: [u64; 2],
    pub length: u32,
    pub request: u32,
    pub key: u32,
    /// Places in its queue where it was seen.
    pub copies: u32,
}

#[derive(Debug, Default)]
pub(crate) struct Queue {
    pub name: String,
    pub one_consumer: bool,
    pub exactly_once: bool,
    pub places: BTreeMap<u64, Place>,
    /// Of messages that were delivered and not finished.
    pub leases: FxHashMap<u64, Lease>,
    /// Behind the highest offset that a publisher was told, and the line.
    pub next: (u64, Lineno),
    /// The highest end of a purge that was asked for.
    pub purge_asked: u64,
    /// Ends of purges that were answered, and the lines; both rise, lower ends that were answered later are left out.
    pub purged: Vec<(u64, Lineno)>,
    /// Offset and line of the last first delivery, by session.
    pub last_first: FxHashMap<u64, (u64, Lineno)>,
    /// The same by ordering key.
    pub last_of_key: FxHashMap<u32, (u64, Lineno)>,
    /// What waits at the end.
    pub waiting: Option<(Lineno, Vec<(u64, u64)>)>,
}

/// An offset of a queue. All lines are the first ones.
#[derive(Debug)]
pub(crate) struct Place {
    pub message: u32,
    /// A publisher was told of it.
    pub told: Lineno,
    pub seen: Lineno,
    /// Its end is certain.
    pub finished: Lineno,
    /// An ack without an answer.
    pub may_be_finished: Lineno,
}

/// The last delivery of a message that is not finished.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Lease {
    pub line: Lineno,
    /// Lines before its message can have been sent.
    pub after: u64,
    pub life: u64,
    pub came_ns: u64,
    /// It holds until then for certain; 0 once somebody tried to end it.
    pub ends_ns: u64,
    /// A retry that was answered: the message does not come before.
    pub held_until_ns: u64,
    /// When the retry was sent.
    pub held: Lineno,
}

/// A message that somebody rejected.
#[derive(Debug, Default)]
pub(crate) struct Rejection {
    pub asked: Lineno,
    pub answered: Lineno,
    /// Queue, offset and first delivery of its dead letter.
    pub letter: Option<(u32, u64, Lineno)>,
}

impl Checker {
    /// Takes the next line.
    pub fn read(&mut self, line: format::Line) -> Result<(), Unreadable> {
        if line.i != u64::from(self.line) {
            return Err(self.nonsense(format!("index {} where {} is due", line.i, self.line)));
        }
        self.line = self.line.checked_add(1).ok_or_else(|| self.nonsense("too many lines"))?;
        if line.t < self.now_ns {
            return Err(self.nonsense("the time goes back"));
        }
        self.now_ns = line.t;
        self.report.events += 1;
        let is_head = matches!(line.event, Event::History { version: format::VERSION });
        if is_head != (self.line == 1) {
            let due = format!("{{\"history\":{{\"version\":{}}}}}", format::VERSION);
            return Err(self.nonsense(format!("the first event, and no other, is {due}")));
        }
        self.event(line.event)
    }

    fn event(&mut self, event: Event) -> Result<(), Unreadable> {
        match event {
            Event::History { .. } | Event::Killed { .. } => Ok(()),
            Event::Queue { queue, one_consumer, exactly_once } => {
                let queue = self.queue(&queue);
                let queue = &mut self.queues[queue as usize];
                queue.one_consumer |= one_consumer;
                queue.exactly_once |= exactly_once;
                Ok(())
            }
            Event::Invoke { call, op } => self.invoke(call, op),
            Event::Ok { call, answer } => self.answered(call, answer),
            Event::Fail { call } => match self.ended(call)? {
                Call::Publish { request, .. } => {
                    self.requests[request as usize].stored_max -= 1;
                    Ok(())
                }
                // What they wanted to end was ended or not: only what is certain counts.
                Call::Settle(_) | Call::Purge { .. } => Ok(()),
            },
            Event::Unknown { call } => {
                let ended = self.ended(call)?;
                self.unknown(&ended);
                Ok(())
            }
            Event::Delivered(delivery) => self.delivered(&delivery),
            Event::Waiting { queue, ranges } => {
                let line = self.line;
                let queue = self.queue(&queue);
                self.queues[queue as usize].waiting = Some((line, ranges));
                Ok(())
            }
            Event::Unexpected { what } => {
                let lines = vec![u64::from(self.line)];
                let kind = Kind::Unexpected;
                self.report.add(Violation { kind, queue: None, offset: None, message: None, lines, what });
                Ok(())
            }
        }
    }

    fn invoke(&mut self, call: u64, op: Op) -> Result<(), Unreadable> {
        let invoked = match op {
            Op::Publish { queue, stamped, messages } => self.publish(&queue, stamped, &messages)?,
            Op::Settle { queue, life, endings } => {
                let queue = self.queue(&queue);
                Call::Settle(self.settle(queue, life, endings)?)
            }
            Op::Purge { queue, end } => {
                let queue = self.queue(&queue);
                let asked = &mut self.queues[queue as usize].purge_asked;
                *asked = end.max(*asked);
                Call::Purge { queue, end }
            }
        };
        match self.calls.insert(call, invoked) {
            None => Ok(()),
            Some(_) => Err(self.nonsense(format!("call {call} is invoked twice"))),
        }
    }

    fn ended(&mut self, call: u64) -> Result<Call, Unreadable> {
        self.calls.remove(&call).ok_or_else(|| self.nonsense(format!("call {call} ends, but does not run")))
    }

    fn answered(&mut self, call: u64, answer: Answer) -> Result<(), Unreadable> {
        match (self.ended(call)?, answer) {
            (Call::Publish { request, again, floor, line }, Answer::Stored { offsets }) => {
                self.stored(request, again, floor, line, &offsets);
            }
            (Call::Settle(settling), Answer::Settled { results }) => self.settled(&settling, &results),
            (Call::Purge { queue, end }, Answer::Purged) => {
                self.report.purges += 1;
                let line = self.line;
                let purged = &mut self.queues[queue as usize].purged;
                if purged.last().is_none_or(|(before, _)| end > *before) {
                    purged.push((end, line));
                }
            }
            _ => return Err(self.nonsense(format!("call {call} has the answer of another kind of call"))),
        }
        Ok(())
    }

    /// A call may have had its effect or not.
    pub(crate) fn unknown(&mut self, call: &Call) {
        self.report.unknown += 1;
        if let Call::Settle(settling) = call {
            self.settle_unknown(settling);
        }
    }

    pub(crate) fn queue(&mut self, name: &str) -> u32 {
        if let Some(queue) = self.by_name.get(name) {
            return *queue;
        }
        let number = self.queues.len() as u32;
        self.by_name.insert(name.to_owned(), number);
        self.queues.push(Queue { name: name.to_owned(), ..Queue::default() });
        number
    }

    /// A queue that some line has named.
    pub(crate) fn known_queue(&self, name: &str) -> Option<&Queue> {
        self.by_name.get(name).map(|queue| &self.queues[*queue as usize])
    }

    pub(crate) fn key(&mut self, key: Option<&String>) -> u32 {
        let Some(key) = key else { return NO_KEY };
        let next = self.keys.len() as u32;
        *self.keys.entry(key.clone()).or_insert(next)
    }

    /// A message is at an offset: seen there, or told of.
    pub(crate) fn place(&mut self, queue: u32, offset: u64, message: u32) -> &mut Place {
        let places = &mut self.queues[queue as usize].places;
        let mut moved = None;
        let place = places.entry(offset).or_insert_with(|| {
            let found = &mut self.messages[message as usize];
            if self.requests[found.request as usize].queue == queue {
                found.copies += 1;
            }
            Place { message, told: NONE, seen: NONE, finished: NONE, may_be_finished: NONE }
        });
        if place.message != message {
            let lines = [place.told, place.seen, self.line];
            moved = Some((place.message, lines));
        }
        if let Some((stood, lines)) = moved {
            let (was, is) = (self.messages[stood as usize].id, self.messages[message as usize].id);
            let what = format!("this offset is message {was} and message {is}");
            self.violation(Kind::Moved, queue, offset, message, &lines, what);
        }
        self.queues[queue as usize].places.get_mut(&offset).expect("it was put there")
    }

    /// Adds a violation; [`NONE`] among the lines is left out.
    pub(crate) fn violation(
        &mut self,
        kind: Kind,
        queue: u32,
        offset: u64,
        message: u32,
        lines: &[Lineno],
        what: impl Into<String>,
    ) {
        let mut lines: Vec<u64> =
            lines.iter().filter(|line| **line != NONE).map(|line| u64::from(*line)).collect();
        lines.sort_unstable();
        lines.dedup();
        self.report.add(Violation {
            kind,
            queue: Some(self.queues[queue as usize].name.clone()),
            offset: Some(offset),
            message: self.messages.get(message as usize).map(|message| message.id),
            lines,
            what: what.into(),
        });
    }

    pub(crate) fn nonsense(&self, why: impl Into<String>) -> Unreadable {
        Unreadable::Nonsense { line: u64::from(self.line), why: why.into() }
    }
}

impl Queue {
    /// When a purge that includes an offset was answered first.
    pub fn purge_of(&self, offset: u64) -> Lineno {
        let at = self.purged.partition_point(|(end, _)| *end <= offset);
        self.purged.get(at).map_or(NONE, |(_, line)| *line)
    }

    /// Whether an offset may be gone since somebody asked for a purge.
    pub fn may_be_purged(&self, offset: u64) -> bool {
        offset < self.purge_asked
    }

    /// Whether an offset is said to wait at the end.
    pub fn waits(&self, offset: u64) -> bool {
        let ranges = self.waiting.iter().flat_map(|(_, ranges)| ranges);
        ranges.into_iter().any(|(first, end)| (*first..*end).contains(&offset))
    }
}

impl Message {
    pub fn is(&self, length: u32, hash: BodyHash) -> bool {
        self.length == length && self.hash == halves(hash)
    }
}

impl Lease {
    /// Whether it holds for certain.
    pub fn holds(&self, now_ns: u64) -> bool {
        now_ns.saturating_add(CLOCK_SLACK_NS) < self.ends_ns
    }
}

pub(crate) fn halves(hash: BodyHash) -> [u64; 2] {
    [hash.0 as u64, (hash.0 >> 64) as u64]
}

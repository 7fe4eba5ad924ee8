//! Judges a history that ended with every queue drained.
//!
//! | Violation | Rule |
//! |---|---|
//! | `Lost` | a message whose publish was answered, or that was seen, was finished by a consumer, is a dead letter, or may have been purged; a dead letter too |
//! | `Invented` | what is delivered was sent before, to that queue |
//! | `WrongBody` | with these very bytes |
//! | `Moved` | queue and offset mean one message for ever, also in answers to publishers |
//! | `Redelivered` | nothing is sent again once its end, or a purge of it, was answered |
//! | `OutOfOrder` | calls that follow each other get rising offsets; first deliveries of a queue with one consumer come in order |
//! | `Duplicated` | a stamped message is stored once, another at most once for each attempt |
//! | `Torn` | a request is stored whole, in a row, and comes whole but for what may have been purged |
//! | `Unexpected` | an answer that a correct server never gives |
//!
//! Unknown outcomes may have happened or not. Moments are taken so that only what is certain counts.

use std::collections::{BTreeMap, HashMap, HashSet};

use super::history::{Attempt, Delivery, Ending, Event, Moment, Published, QueueName, Settled};
use super::purges::Purges;

#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Kind {
    Lost,
    Invented,
    WrongBody,
    Moved,
    Redelivered,
    OutOfOrder,
    Duplicated,
    Torn,
    Unexpected,
}

/// A broken promise.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Violation {
    pub kind: Kind,
    pub what: String,
}

type Place = (QueueName, u64);
/// The queue of a call that ends deliveries, and how it ends each offset.
type Settling<'a> = (&'a QueueName, &'a [(u64, Ending)]);

/// Finds every violation; `one_consumer` names the queues that were read by one consumer at a time.
pub fn check(events: &[Event], one_consumer: &[&str]) -> Vec<Violation> {
    let mut checker = Checker::default();
    checker.read(events);
    checker.check_deliveries();
    checker.check_copies();
    checker.check_requests();
    checker.check_finished();
    checker.check_redelivery();
    checker.check_publish_order(events);
    checker.check_delivery_order(one_consumer);
    checker.violations
}

/// What is known of one message, by its id.
struct Known<'a> {
    first_sent: Moment,
    attempt: &'a Attempt,
    index: usize,
    /// Attempts that stored it, or may have.
    stored_max: usize,
}

#[derive(Default)]
struct Checker<'a> {
    messages: HashMap<u64, Known<'a>>,
    attempts: HashMap<u64, (&'a Attempt, Moment)>,
    outcomes: HashMap<u64, (&'a Published, Moment)>,
    deliveries: Vec<(&'a Delivery, Moment)>,
    /// Which message stands where; dead letters keep their id.
    places: BTreeMap<Place, u64>,
    answered: HashSet<Place>,
    /// When a message's end was certain, at the latest.
    finished: HashMap<Place, Moment>,
    may_be_finished: HashSet<Place>,
    rejected: HashMap<Place, bool>,
    purges: Purges<'a>,
    violations: Vec<Violation>,
}

impl<'a> Checker<'a> {
    fn violation(&mut self, kind: Kind, what: String) {
        self.violations.push(Violation { kind, what });
    }

    fn read(&mut self, events: &'a [Event]) {
        let mut settles: HashMap<u64, Settling<'_>> = HashMap::new();
        for (moment, event) in events.iter().enumerate() {
            match event {
                Event::PublishInvoked(attempt) => {
                    self.attempts.insert(attempt.attempt, (attempt, moment));
                    for (index, mark) in attempt.messages.iter().enumerate() {
                        let first = Known { first_sent: moment, attempt, index, stored_max: 0 };
                        self.messages.entry(mark.id).or_insert(first).stored_max += 1;
                    }
                }
                Event::PublishEnded { attempt, outcome } => {
                    self.outcomes.insert(*attempt, (outcome, moment));
                    self.publish_ended(*attempt, outcome);
                }
                Event::Delivered(delivery) => self.deliveries.push((delivery, moment)),
                Event::SettleInvoked { call, queue, endings } => {
                    settles.insert(*call, (queue, endings));
                    for (offset, ending) in endings {
                        if *ending == Ending::Reject {
                            self.rejected.entry((queue.clone(), *offset)).or_insert(false);
                        }
                    }
                }
                Event::SettleEnded { call, outcomes } => {
                    let (queue, endings) = settles.remove(call).expect("a call is recorded before its end");
                    self.settle_ended(queue, endings, outcomes.as_deref(), moment);
                }
                Event::PurgeInvoked { call, queue, end } => self.purges.invoked(*call, queue, *end),
                Event::PurgeEnded { call, done } => self.purges.ended(*call, *done, moment),
                Event::Killed { .. } => {}
                Event::Unexpected(what) => self.violation(Kind::Unexpected, what.clone()),
            }
        }
        for (queue, endings) in settles.into_values() {
            self.settle_ended(queue, endings, None, events.len());
        }
    }

    fn publish_ended(&mut self, number: u64, outcome: &Published) {
        let (attempt, _) = self.attempts[&number];
        match outcome {
            Published::Unknown => {}
            Published::Refused => {
                for mark in &attempt.messages {
                    self.messages.get_mut(&mark.id).expect("it was sent").stored_max -= 1;
                }
            }
            Published::Stored(offsets) => {
                if offsets.len() != attempt.messages.len() {
                    let what = format!("{} answers to {} messages", offsets.len(), attempt.messages.len());
                    self.violation(Kind::Unexpected, what);
                }
                for (mark, offset) in attempt.messages.iter().zip(offsets) {
                    let place = (attempt.queue.clone(), *offset);
                    self.answered.insert(place.clone());
                    self.stands(place, mark.id);
                }
            }
        }
    }

    fn stands(&mut self, place: Place, id: u64) {
        let stood = *self.places.entry(place.clone()).or_insert(id);
        if stood != id {
            let (queue, offset) = place;
            self.violation(
                Kind::Moved,
                format!("{queue} offset {offset} is message {stood} and message {id}"),
            );
        }
    }

    fn settle_ended(
        &mut self,
        queue: &QueueName,
        endings: &[(u64, Ending)],
        outcomes: Option<&[Settled]>,
        moment: Moment,
    ) {
        if outcomes.is_some_and(|outcomes| outcomes.len() != endings.len()) {
            self.violation(Kind::Unexpected, format!("{queue}: not one result for each ending"));
        }
        for (index, (offset, ending)) in endings.iter().enumerate() {
            let place = (queue.clone(), *offset);
            let outcome = outcomes.and_then(|outcomes| outcomes.get(index));
            if outcome == Some(&Settled::Invalid) {
                self.violation(
                    Kind::Unexpected,
                    format!("{queue} offset {offset}: an ack id that the server gave is invalid"),
                );
            }
            match (ending, outcome) {
                (Ending::Ack, Some(Settled::Ok)) => {
                    self.finished.entry(place).or_insert(moment);
                }
                (Ending::Ack, None) => {
                    self.may_be_finished.insert(place);
                }
                (Ending::Reject, Some(Settled::Ok)) => {
                    self.rejected.insert(place.clone(), true);
                    self.finished.entry(place).or_insert(moment);
                }
                _ => {}
            }
        }
    }

    /// What was delivered was sent, stays where it is, and dead letters have an origin.
    fn check_deliveries(&mut self) {
        let mut letters: HashMap<Place, u64> = HashMap::new();
        for (delivery, moment) in std::mem::take(&mut self.deliveries) {
            let Delivery { queue, offset, mark, .. } = delivery;
            let id = mark.id;
            let sent = self.messages.get(&id);
            let sent_to = delivery.origin.as_ref().map_or(queue, |(origin, _)| origin);
            let was_sent =
                sent.is_some_and(|known| known.first_sent < moment && known.attempt.queue == *sent_to);
            if !was_sent {
                let what = format!("{queue} offset {offset}: message {id} was not sent to {sent_to} before");
                self.violation(Kind::Invented, what);
                continue;
            }
            if sent.is_some_and(|known| known.attempt.messages[known.index].hash != mark.hash) {
                let what = format!("{queue} offset {offset}: message {id} has other bytes than were sent");
                self.violation(Kind::WrongBody, what);
            }
            self.stands((queue.clone(), *offset), id);
            if let Some(origin) = &delivery.origin {
                self.stands(origin.clone(), id);
                if !self.rejected.contains_key(origin) {
                    let what = format!("{queue} offset {offset}: nobody rejected {} {}", origin.0, origin.1);
                    self.violation(Kind::Invented, what);
                }
                let earlier = self.finished.entry(origin.clone()).or_insert(moment);
                *earlier = moment.min(*earlier);
                if *letters.entry(origin.clone()).or_insert(*offset) != *offset {
                    let what = format!("{} offset {} is in {queue} twice", origin.0, origin.1);
                    self.violation(Kind::Duplicated, what);
                }
            }
            self.deliveries.push((delivery, moment));
        }
        let missing: Vec<Place> = self
            .rejected
            .iter()
            .filter(|(place, ok)| **ok && !letters.contains_key(*place))
            .map(|(place, _)| place.clone())
            .collect();
        for (queue, offset) in missing {
            self.violation(Kind::Lost, format!("{queue} offset {offset}: rejected, but no dead letter"));
        }
    }

    /// Offsets of each request's message, dead letters aside.
    fn check_copies(&mut self) {
        let mut copies: HashMap<u64, Vec<u64>> = HashMap::new();
        for ((queue, offset), id) in &self.places {
            if self.messages.get(id).is_some_and(|known| known.attempt.queue == *queue) {
                copies.entry(*id).or_default().push(*offset);
            }
        }
        for (id, offsets) in copies {
            let known = &self.messages[&id];
            let most = if known.attempt.stamped { 1 } else { known.stored_max };
            if offsets.len() > most {
                let queue = &known.attempt.queue;
                let what = format!("{queue}: message {id} stands at {offsets:?}, {most} times at most");
                self.violation(Kind::Duplicated, what);
            }
        }
    }

    /// A stored request is there whole: its messages in a row, each delivered.
    fn check_requests(&mut self) {
        let delivered: HashSet<Place> =
            self.deliveries.iter().map(|(delivery, _)| (delivery.queue.clone(), delivery.offset)).collect();
        let mut starts: HashSet<Place> = HashSet::new();
        let mut broken = Vec::new();
        for ((queue, offset), id) in &self.places {
            let Some(known) = self.messages.get(id).filter(|known| known.attempt.queue == *queue) else {
                continue;
            };
            let Some(start) = offset.checked_sub(known.index as u64) else {
                broken.push(format!("{queue} offset {offset}: message {id} stands too early in its request"));
                continue;
            };
            if !starts.insert((queue.clone(), start)) {
                continue;
            }
            for (place, mark) in (start..).zip(&known.attempt.messages) {
                let place = (queue.clone(), place);
                let came = delivered.contains(&place) && self.places.get(&place) == Some(&mark.id);
                if !came && !self.purges.may_have(&place) {
                    let answered = if self.answered.contains(&place) { "answered" } else { "not answered" };
                    broken.push(format!(
                        "{queue} offset {}: message {} of the request at {start} never came ({answered})",
                        place.1, mark.id
                    ));
                }
            }
        }
        broken.into_iter().for_each(|what| self.violation(Kind::Torn, what));
    }

    fn check_finished(&mut self) {
        let lost: Vec<Place> = self
            .places
            .keys()
            .filter(|place| !self.finished.contains_key(*place) && !self.may_be_finished.contains(*place))
            .filter(|place| !self.purges.may_have(place))
            .cloned()
            .collect();
        for (queue, offset) in lost {
            let place = (queue, offset);
            let how = if self.answered.contains(&place) { "published and answered" } else { "seen once" };
            let what = format!("{} offset {offset}: {how}, but never finished", place.0);
            self.violation(Kind::Lost, what);
        }
    }

    fn check_redelivery(&mut self) {
        let mut again = Vec::new();
        for (delivery, _) in &self.deliveries {
            let place = (delivery.queue.clone(), delivery.offset);
            let ends = [self.finished.get(&place).copied(), self.purges.of(&place)];
            if let Some(finished) = ends.into_iter().flatten().min()
                && finished < delivery.sent_after
            {
                again.push(format!(
                    "{} offset {}: its end was answered at {finished}, but it was sent after {}",
                    place.0, place.1, delivery.sent_after
                ));
            }
        }
        again.into_iter().for_each(|what| self.violation(Kind::Redelivered, what));
    }

    /// A request that was sent after another was answered has higher offsets, unless it was stored before.
    fn check_publish_order(&mut self, events: &[Event]) {
        let mut answered: HashMap<&QueueName, u64> = HashMap::new();
        let mut floor: HashMap<u64, u64> = HashMap::new();
        let mut seen: HashSet<Place> = HashSet::new();
        let mut wrong = Vec::new();
        for event in events {
            match event {
                Event::PublishInvoked(attempt) => {
                    floor.insert(attempt.attempt, answered.get(&attempt.queue).copied().unwrap_or(0));
                }
                Event::PublishEnded { attempt: number, outcome: Published::Stored(offsets) } => {
                    let attempt = self.attempts[number].0;
                    let retried = self.messages[&attempt.messages[0].id].attempt.attempt != *number;
                    for offset in offsets {
                        let fresh = seen.insert((attempt.queue.clone(), *offset));
                        if fresh && !(retried && attempt.stamped) && *offset < floor[number] {
                            wrong.push(format!("{} offset {offset} after {}", attempt.queue, floor[number]));
                        }
                        let next = answered.entry(&attempt.queue).or_default();
                        *next = (*next).max(offset + 1);
                    }
                }
                _ => {}
            }
        }
        wrong.into_iter().for_each(|what| self.violation(Kind::OutOfOrder, what));
    }

    /// With one consumer at a time, messages that the server hands out for the first time come in order.
    fn check_delivery_order(&mut self, one_consumer: &[&str]) {
        let mut seen: HashSet<Place> = HashSet::new();
        let mut last: HashMap<(u64, &QueueName), u64> = HashMap::new();
        let mut wrong = Vec::new();
        for (delivery, _) in &self.deliveries {
            let Delivery { queue, offset, session, attempt, .. } = delivery;
            if !one_consumer.contains(&&**queue) {
                continue;
            }
            let first = seen.insert((queue.clone(), *offset)) && *attempt == 1;
            if !first {
                continue;
            }
            if let Some(before) = last.insert((*session, queue), *offset)
                && before > *offset
            {
                wrong.push(format!("{queue} offset {offset} came first after {before}"));
            }
        }
        wrong.into_iter().for_each(|what| self.violation(Kind::OutOfOrder, what));
    }
}

#[cfg(test)]
#[path = "checker_tests.rs"]
mod tests;

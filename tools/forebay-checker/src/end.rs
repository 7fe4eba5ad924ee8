//! Rules that need the whole history: what is missing at the end, and what is there too often.

use std::collections::{BTreeMap, HashSet};

use crate::Unreadable;
use crate::report::{Kind, Report};
use crate::state::{Checker, Lineno, Message, NONE, Place, Queue};

impl Checker {
    /// The history is over.
    pub fn end(mut self) -> Result<Report, Unreadable> {
        if self.line == 0 {
            return Err(self.nonsense("the history is empty"));
        }
        let mut open: Vec<_> = std::mem::take(&mut self.calls).into_iter().collect();
        open.sort_unstable_by_key(|(call, _)| *call);
        open.iter().for_each(|(_, call)| self.unknown(call));
        for queue in 0..self.queues.len() as u32 {
            if self.queues[queue as usize].waiting.is_some() {
                self.check_missing(queue);
                self.check_whole(queue);
            } else if !self.queues[queue as usize].places.is_empty() {
                let name = self.queues[queue as usize].name.clone();
                self.report.open_ended.push(name);
            }
        }
        self.check_letters();
        self.check_copies();
        Ok(self.report)
    }

    /// What was stored is finished, or waits.
    fn check_missing(&mut self, number: u32) {
        let queue = &self.queues[number as usize];
        let letters_are_told = self.letters_are_told(number);
        // It may have become a dead letter that waits.
        let may_be_letter =
            |offset: u64| !letters_are_told && self.rejections.contains_key(&(number, offset));
        let missing = queue.places.iter();
        let missing =
            missing.filter(|(offset, place)| queue.misses(**offset, place) && !may_be_letter(**offset));
        let missing: Vec<_> = missing
            .map(|(offset, place)| {
                let last = queue.leases.get(offset).map_or(NONE, |lease| lease.line);
                (*offset, place.message, place.told, place.seen, last)
            })
            .collect();
        for (offset, message, told, seen, last) in missing {
            let (kind, what) = if seen == NONE {
                (Kind::Lost, "its publish was answered, but it never came, and does not wait")
            } else {
                (Kind::Stranded, "it was delivered and not finished, but does not wait")
            };
            self.violation(kind, number, offset, message, &[told, seen, last], what);
        }
    }

    /// Of a request that nobody was told of, all came or nothing; what was told is lost, not torn.
    fn check_whole(&mut self, number: u32) {
        let queue = &self.queues[number as usize];
        let mut torn = Vec::new();
        let mut last_copy = None;
        for (offset, place) in &queue.places {
            let found = &self.messages[place.message as usize];
            let request = &self.requests[found.request as usize];
            let index = u64::from(place.message - request.first);
            if request.queue != number {
                continue;
            }
            let Some(start) = offset.checked_sub(index) else {
                // There is no room for those before it.
                torn.push((*offset, request.first, [request.line, place.told, place.seen]));
                continue;
            };
            let copy = Some((request.first, start));
            if std::mem::replace(&mut last_copy, copy) == copy {
                continue;
            }
            for (message, offset) in (request.first..request.first + request.count).zip(start..) {
                let there = queue.places.get(&offset).map(|place| place.message == message);
                if !there.unwrap_or_else(|| queue.waits(offset) || queue.may_be_purged(offset)) {
                    torn.push((offset, message, [request.line, place.told, place.seen]));
                }
            }
        }
        for (offset, message, lines) in torn {
            let what = "another message of its request is there, but this one is not";
            self.violation(Kind::Torn, number, offset, message, &lines, what);
        }
    }

    /// What was rejected for certain is a dead letter, if the queue of dead letters is told of to its end.
    fn check_letters(&mut self) {
        let missing = self.rejections.iter().filter(|((queue, _), rejection)| {
            rejection.answered != NONE && rejection.letter.is_none() && self.letters_are_told(*queue)
        });
        let missing: Vec<((u32, u64), [Lineno; 2])> =
            missing.map(|(place, found)| (*place, [found.asked, found.answered])).collect();
        for ((queue, offset), lines) in missing {
            self.violation_at(Kind::Lost, queue, offset, &lines, "it was rejected, but is no dead letter");
        }
    }

    fn letters_are_told(&self, queue: u32) -> bool {
        let queue = &self.queues[queue as usize];
        match self.known_queue(&format!("{}-dead", queue.name)) {
            None => queue.waiting.is_some(),
            Some(dead) => {
                dead.waiting.as_ref().is_some_and(|(_, ranges)| ranges.is_empty()) && dead.purge_asked == 0
            }
        }
    }

    fn check_copies(&mut self) {
        let numbered = self.messages.iter().zip(0u32..);
        let copied = numbered.filter(|(message, _)| message.copies > self.copies_max(message));
        let copied: HashSet<u32> = copied.map(|(_, number)| number).collect();
        if copied.is_empty() {
            return;
        }
        let mut found = BTreeMap::<u32, (Vec<u64>, Vec<Lineno>)>::new();
        for (queue, number) in self.queues.iter().zip(0u32..) {
            for (offset, place) in queue.places.iter().filter(|(_, place)| copied.contains(&place.message)) {
                let request = self.messages[place.message as usize].request;
                if self.requests[request as usize].queue == number {
                    let (offsets, lines) = found.entry(place.message).or_default();
                    offsets.push(*offset);
                    lines.extend([place.told, place.seen]);
                }
            }
        }
        for (message, (offsets, mut lines)) in found {
            let most = self.copies_max(&self.messages[message as usize]);
            let request = &self.requests[self.messages[message as usize].request as usize];
            lines.push(request.line);
            let what = format!("it is at {offsets:?}, and may be there {most} times");
            let queue = request.queue;
            self.violation(Kind::Duplicated, queue, offsets[0], message, &lines, what);
        }
    }

    fn copies_max(&self, message: &Message) -> u32 {
        let request = &self.requests[message.request as usize];
        if request.stamped { 1 } else { request.stored_max }
    }
}

impl Queue {
    /// Whether a message should be somewhere, and is not.
    fn misses(&self, offset: u64, place: &Place) -> bool {
        let came_later =
            |(told, _): &(Lineno, _)| self.leases.get(&offset).is_some_and(|lease| lease.line > *told);
        place.finished == NONE
            && place.may_be_finished == NONE
            && !self.may_be_purged(offset)
            && !self.waits(offset)
            && !self.waiting.as_ref().is_some_and(came_later)
    }
}

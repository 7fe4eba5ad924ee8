//! Rules of deliveries: what may come, with which bytes, in which order, and when.

use crate::CLOCK_SLACK_NS;
use crate::Unreadable;
use crate::format::Delivery;
use crate::report::Kind;
use crate::state::{Checker, Lease, Lineno, NO_KEY, NONE, Queue};

impl Checker {
    pub(crate) fn delivered(&mut self, delivery: &Delivery) -> Result<(), Unreadable> {
        if delivery.after.i >= u64::from(self.line) || delivery.after.t > self.now_ns {
            return Err(self.nonsense("a delivery that was sent after it came"));
        }
        self.report.deliveries += 1;
        self.report.redeliveries += u64::from(delivery.attempt > 1);
        let queue = self.queue(&delivery.queue);
        let origin = delivery.origin.as_ref().map(|(name, offset)| (self.queue(name), *offset));
        let sent_to = origin.map_or(queue, |(origin, _)| origin);
        let known = self.by_id.get(&delivery.id).copied();
        let sent = known.filter(|message| {
            self.requests[self.messages[*message as usize].request as usize].queue == sent_to
        });
        let Some(message) = sent else {
            let what = format!(
                "message {} was not sent to {} before",
                delivery.id, self.queues[sent_to as usize].name
            );
            let line = self.line;
            self.violation(Kind::Invented, queue, delivery.offset, known.unwrap_or(u32::MAX), &[line], what);
            return Ok(());
        };
        let found = &self.messages[message as usize];
        let request = &self.requests[found.request as usize];
        let (sent_line, sent_ns) = (request.line, request.sent_ns);
        if !found.is(delivery.length, delivery.hash) {
            let what = format!("{} bytes came, not the {} that were sent", delivery.length, found.length);
            let lines = [sent_line, self.line];
            self.violation(Kind::WrongBody, queue, delivery.offset, message, &lines, what);
        }
        let line = self.line;
        let place = self.place(queue, delivery.offset, message);
        let is_first = place.seen == NONE;
        if is_first {
            place.seen = line;
        }
        if let Some(origin) = origin {
            self.letter(origin, queue, delivery.offset, message);
        }
        self.check_redelivery(queue, delivery, message);
        if is_first {
            self.check_order(queue, delivery, message);
        }
        self.leased(queue, delivery, message, sent_ns);
        Ok(())
    }

    /// A dead letter ends the message that it was.
    fn letter(&mut self, origin: (u32, u64), queue: u32, offset: u64, message: u32) {
        let line = self.line;
        self.place(origin.0, origin.1, message);
        self.finish(origin.0, origin.1);
        let name = self.queues[origin.0 as usize].name.clone();
        let rejection = self.rejections.entry(origin).or_default();
        let (asked, known) = (rejection.asked, *rejection.letter.get_or_insert((queue, offset, line)));
        if asked == NONE {
            let what = format!("nobody rejected {name} {}", origin.1);
            self.violation(Kind::Invented, queue, offset, message, &[line], what);
        }
        if (known.0, known.1) != (queue, offset) {
            let what = format!("{name} {} is a dead letter twice", origin.1);
            self.violation(Kind::Duplicated, queue, offset, message, &[asked, known.2, line], what);
        }
    }

    fn check_redelivery(&mut self, number: u32, delivery: &Delivery, message: u32) {
        let queue = &self.queues[number as usize];
        let ends = [queue.places[&delivery.offset].finished, queue.purge_of(delivery.offset)];
        let Some(end) = ends.into_iter().filter(|end| *end != NONE).min() else { return };
        if u64::from(end) <= delivery.after.i {
            let lines = [end, self.line];
            let what = "it was sent after its end was answered";
            self.violation(Kind::Redelivered, number, delivery.offset, message, &lines, what);
        }
    }

    /// For the first delivery of a message.
    fn check_order(&mut self, number: u32, delivery: &Delivery, message: u32) {
        let (offset, line) = (delivery.offset, self.line);
        let key = self.messages[message as usize].key;
        let queue = &mut self.queues[number as usize];
        let mut before: [Option<(u64, Lineno)>; 2] = [None; 2];
        // With a higher attempt it is only the first one that was seen.
        if queue.one_consumer && delivery.attempt == 1 {
            before[0] = queue.last_first.insert(delivery.session, (offset, line));
        }
        if key != NO_KEY && delivery.origin.is_none() {
            before[1] = queue.last_of_key.insert(key, (offset, line));
        }
        for (before, whose) in before.into_iter().zip(["its consumer", "its ordering key"]) {
            if let Some((last, at)) = before.filter(|(last, _)| *last > offset) {
                let what = format!("it came for the first time after offset {last} of {whose}");
                self.violation(Kind::OutOfOrder, number, offset, message, &[at, line], what);
            }
        }
    }

    /// A lease is given; the one before must be over.
    fn leased(&mut self, number: u32, delivery: &Delivery, message: u32, published_ns: u64) {
        let offset = delivery.offset;
        let (line, now_ns) = (self.line, self.now_ns);
        let begins_ns = delivery.after.t.max(published_ns);
        let lease = Lease {
            line,
            after: delivery.after.i,
            life: delivery.life,
            came_ns: now_ns,
            ends_ns: begins_ns.saturating_add(delivery.lease_ns),
            held_until_ns: 0,
            held: NONE,
        };
        let queue = &mut self.queues[number as usize];
        if queue.places[&offset].finished != NONE {
            return;
        }
        let Some(before) = queue.leases.insert(offset, lease) else { return };
        let held = before.held != NONE && u64::from(before.held) <= delivery.after.i;
        let early = held && now_ns.saturating_add(CLOCK_SLACK_NS) < before.held_until_ns;
        let overlaps = overlap(queue, &before, &lease);
        if early {
            let left_ms = (before.held_until_ns - now_ns) / 1_000_000;
            let what = format!("it came {left_ms} ms before its delay was over");
            let lines = [before.line, before.held, line];
            self.violation(Kind::Early, number, offset, message, &lines, what);
        }
        if overlaps {
            let left_ms = (before.ends_ns - now_ns) / 1_000_000;
            let what = format!("it came again while an earlier lease had {left_ms} ms left");
            self.violation(Kind::Overlapping, number, offset, message, &[before.line, line], what);
        }
    }
}

/// Whether the leases of two deliveries, in the order in which they came, hold at the same time for certain.
fn overlap(queue: &Queue, before: &Lease, after: &Lease) -> bool {
    let remembered = before.life == after.life || queue.exactly_once;
    // Or the one that came later was sent earlier, and was over when the other one was given.
    let sent_earlier = after.ends_ns <= before.came_ns.saturating_add(CLOCK_SLACK_NS);
    remembered && before.holds(after.came_ns) && !sent_earlier
}

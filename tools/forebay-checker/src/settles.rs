//! Rules of endings: what is finished, what is held back, and whose it was to end.

use crate::Unreadable;
use crate::format::{Ending, How, Settled};
use crate::report::Kind;
use crate::state::{Checker, Lineno, NONE};

/// A call that ends deliveries.
#[derive(Debug)]
pub(crate) struct Settling {
    queue: u32,
    life: u64,
    line: Lineno,
    sent_ns: u64,
    endings: Vec<Ended>,
}

#[derive(Debug)]
struct Ended {
    ending: Ending,
    /// The delivery that it ends was the message's last one, and nobody had tried to end it.
    own: bool,
    /// The message had been handed out again for certain, by the delivery of this line.
    superseded: Lineno,
}

impl Checker {
    pub(crate) fn settle(
        &mut self,
        queue: u32,
        life: u64,
        endings: Vec<Ending>,
    ) -> Result<Settling, Unreadable> {
        let (line, sent_ns) = (self.line, self.now_ns);
        let mut settling =
            Settling { queue, life, line, sent_ns, endings: Vec::with_capacity(endings.len()) };
        for ending in endings {
            let Ending { offset, delivery, how } = ending;
            if delivery.saturating_add(1) >= u64::from(line) {
                return Err(self.nonsense(format!("an ending of the delivery {delivery}, which comes later")));
            }
            if how == How::Reject {
                let rejection = self.rejections.entry((queue, offset)).or_default();
                if rejection.asked == NONE {
                    rejection.asked = line;
                }
            }
            let mut ended = Ended { ending, own: false, superseded: NONE };
            if let Some(lease) = self.queues[queue as usize].leases.get_mut(&offset) {
                if u64::from(lease.line) == delivery + 1 {
                    ended.own = lease.ends_ns != 0;
                    lease.ends_ns = match how {
                        How::Extend { lease_ns } => lease.ends_ns.min(sent_ns.saturating_add(lease_ns)),
                        _ => 0,
                    };
                } else if lease.after > delivery && lease.life == life {
                    ended.superseded = lease.line;
                }
            }
            settling.endings.push(ended);
        }
        Ok(settling)
    }

    pub(crate) fn settled(&mut self, settling: &Settling, results: &[Settled]) {
        let Settling { queue, line, endings, .. } = settling;
        if results.len() != endings.len() {
            let what = format!("{} results answer {} endings", results.len(), endings.len());
            let offset = endings.first().map_or(0, |ended| ended.ending.offset);
            self.violation(Kind::Unexpected, *queue, offset, u32::MAX, &[*line, self.line], what);
        }
        for (ended, result) in endings.iter().zip(results) {
            match result {
                Settled::Ok => self.taken(settling, ended),
                Settled::Invalid => {
                    let what = "an ack id that the server gave is invalid";
                    let lines = [ended.delivered(), *line, self.line];
                    self.violation_at(Kind::Unexpected, *queue, ended.ending.offset, &lines, what);
                }
                Settled::Stale | Settled::Transient | Settled::Refused => {}
            }
        }
    }

    /// An ending took effect.
    fn taken(&mut self, settling: &Settling, ended: &Ended) {
        let Settling { queue, line, sent_ns, .. } = *settling;
        let Ending { offset, how, .. } = ended.ending;
        self.report.endings += 1;
        self.check_newer(settling, ended);
        let (now, lease) = (self.line, self.queues[queue as usize].leases.get_mut(&offset));
        let lease = lease.filter(|lease| lease.line == ended.delivered() && ended.own);
        match how {
            How::Ack => self.finish(queue, offset),
            How::Reject => {
                self.rejections.entry((queue, offset)).or_default().answered = now;
                self.finish(queue, offset);
            }
            How::Retry { delay_ns } => {
                if let Some(lease) = lease {
                    (lease.held_until_ns, lease.held) = (sent_ns.saturating_add(delay_ns), line);
                }
            }
            How::Extend { lease_ns } => {
                if let Some(lease) = lease.filter(|lease| lease.ends_ns != 0) {
                    lease.ends_ns = sent_ns.saturating_add(lease_ns);
                }
            }
            How::Release => {}
        }
    }

    /// Who lost a message to another consumer cannot end it while that one holds it.
    fn check_newer(&mut self, settling: &Settling, ended: &Ended) {
        let offset = ended.ending.offset;
        let queue = &self.queues[settling.queue as usize];
        let finished = queue.places.get(&offset).is_some_and(|place| place.finished != NONE);
        let Some(lease) = queue.leases.get(&offset).copied() else { return };
        let holds = lease.line == ended.superseded && lease.life == settling.life && lease.holds(self.now_ns);
        if holds && !finished && !queue.may_be_purged(offset) {
            let what = "it was ended by a consumer that had lost it to another one";
            let lines = [ended.delivered(), lease.line, settling.line, self.line];
            self.violation_at(Kind::StaleTaken, settling.queue, offset, &lines, what);
        }
    }

    /// Nobody knows whether the endings took effect.
    pub(crate) fn settle_unknown(&mut self, settling: &Settling) {
        let acks = settling.endings.iter().filter(|ended| ended.ending.how == How::Ack);
        for Ended { ending, .. } in acks {
            if let Some(place) = self.queues[settling.queue as usize].places.get_mut(&ending.offset)
                && place.may_be_finished == NONE
            {
                place.may_be_finished = settling.line;
            }
        }
    }

    /// From this line on a message's end is certain.
    pub(crate) fn finish(&mut self, queue: u32, offset: u64) {
        let line = self.line;
        let queue = &mut self.queues[queue as usize];
        queue.leases.remove(&offset);
        if let Some(place) = queue.places.get_mut(&offset)
            && place.finished == NONE
        {
            place.finished = line;
        }
    }

    /// A violation of the message at an offset, whichever it is.
    pub(crate) fn violation_at(
        &mut self,
        kind: Kind,
        queue: u32,
        offset: u64,
        lines: &[Lineno],
        what: impl Into<String>,
    ) {
        let place = self.queues[queue as usize].places.get(&offset);
        let message = place.map_or(u32::MAX, |place| place.message);
        self.violation(kind, queue, offset, message, lines, what);
    }
}

impl Ended {
    /// The line of the delivery that it ends.
    fn delivered(&self) -> Lineno {
        self.ending.delivery as Lineno + 1
    }
}

//! Rules of publishing: places, order of answers.

use crate::Unreadable;
use crate::format;
use crate::report::Kind;
use crate::state::{Call, Checker, Lineno, Message, NONE, Request, halves};

impl Checker {
    /// A request is sent, for the first time or again.
    pub(crate) fn publish(
        &mut self,
        queue: &str,
        stamped: bool,
        messages: &[format::Message],
    ) -> Result<Call, Unreadable> {
        let queue = self.queue(queue);
        let first = messages.first().ok_or_else(|| self.nonsense("a publish without messages"))?;
        let known = self.by_id.get(&first.id).map(|message| self.messages[*message as usize].request);
        let request = match known {
            Some(request) if self.is_again(request, queue, stamped, messages) => request,
            Some(_) => return Err(self.nonsense(format!("id {} is used for two messages", first.id))),
            None => self.first_sent(queue, stamped, messages)?,
        };
        self.requests[request as usize].stored_max += 1;
        let floor = self.queues[queue as usize].next;
        Ok(Call::Publish { request, again: known.is_some(), floor, line: self.line })
    }

    fn is_again(&self, request: u32, queue: u32, stamped: bool, messages: &[format::Message]) -> bool {
        let Request { first, count, stamped: was_stamped, queue: was_queue, .. } =
            self.requests[request as usize];
        let was = &self.messages[first as usize..(first + count) as usize];
        (queue, stamped, messages.len()) == (was_queue, was_stamped, was.len())
            && was.iter().zip(messages).all(|(was, is)| was.id == is.id && was.is(is.length, is.hash))
    }

    fn first_sent(
        &mut self,
        queue: u32,
        stamped: bool,
        messages: &[format::Message],
    ) -> Result<u32, Unreadable> {
        let request = self.requests.len() as u32;
        let (first, count) = (self.messages.len() as u32, messages.len() as u32);
        let (line, sent_ns) = (self.line, self.now_ns);
        self.requests.push(Request { queue, first, count, stored_max: 0, stamped, line, sent_ns });
        for format::Message { id, length, hash, key } in messages {
            let key = self.key(key.as_ref());
            if self.by_id.insert(*id, self.messages.len() as u32).is_some() {
                return Err(self.nonsense(format!("id {id} is used for two messages")));
            }
            let (length, hash) = (*length, halves(*hash));
            self.messages.push(Message { id: *id, hash, length, request, key, copies: 0 });
        }
        self.report.messages += u64::from(count);
        Ok(request)
    }

    /// A request was answered.
    pub(crate) fn stored(
        &mut self,
        request: u32,
        again: bool,
        floor: (u64, Lineno),
        sent: Lineno,
        offsets: &[u64],
    ) {
        let Request { queue, first, count, stamped, .. } = self.requests[request as usize];
        self.report.acknowledged += offsets.len() as u64;
        if offsets.len() != count as usize {
            let what = format!("{} offsets answer {count} messages", offsets.len());
            let offset = offsets.first().copied().unwrap_or_default();
            self.violation(Kind::Unexpected, queue, offset, first, &[sent, self.line], what);
        }
        if !offsets.is_sorted_by(|a, b| a.checked_add(1) == Some(*b)) {
            let what = format!("the messages of a request are not in a row: {offsets:?}");
            self.violation(Kind::Torn, queue, offsets[0], first, &[sent, self.line], what);
        }
        for (message, offset) in (first..first + count).zip(offsets) {
            let line = self.line;
            let place = self.place(queue, *offset, message);
            let fresh = place.told == NONE;
            if fresh {
                place.told = line;
            }
            // A request that was stamped and sent before may have been stored before.
            if fresh && !(again && stamped) && *offset < floor.0 {
                let what = format!("it was sent after offset {} was answered", floor.0 - 1);
                self.violation(Kind::OutOfOrder, queue, *offset, message, &[floor.1, sent, line], what);
            }
            let next = &mut self.queues[queue as usize].next;
            *next = (*next).max((offset.saturating_add(1), line));
        }
    }
}

//! Following a queue in order of offset, beside all delivery: what is finished is still read as long as the log has it.
//!
//! 1. A follower holds a place that it was given at the start, and is told by a watch channel how far the queue is
//!    durable. It asks for one page after the other; nothing is kept for it but its channel.
//! 2. A page holds durable messages only, without a hole, from the place that was asked for. Offsets there that do not
//!    come any more are told as a gap before them. So each offset is told once: as a message, or in a gap.
//! 3. Pages are bounded by [`PAGE_MESSAGES`] and [`PAGE_BYTES`]. Who asks for one has taken memory for it; if its first
//!    message is larger, the follower is told how large, and asks again with memory for that.
//! 4. There are at most [`TAILS_MAX`] followers, each with one read at a time.
//! 5. A deleted queue closes the channels of its followers; who asks for a page then learns why.

use rustc_hash::FxHashMap;
use tokio::sync::watch;

use super::api::{Broker, BrokerError, Fetched, Reply, Request, StoredMessage};
use super::commits::Answer;
use super::pump::{room_within, stored_memory};
use super::reads::{self, Done, Found, Source, Wanted};
use super::shell::Shell;
use crate::admission::{Held, Outlet, Permit, memory_of};
use crate::core::types::Reject;
use crate::ids::{Offset, QueueId, Uid};
use crate::limits::TAILS_MAX;
use crate::names::QueueName;

/// Most messages of one page.
const PAGE_MESSAGES: u64 = 256;
/// Most bytes of one page, metadata and bodies, unless its first message is larger.
const PAGE_BYTES: u64 = 256 << 10;

/// Where a follower begins.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Position {
    /// The earliest message that some subscription may still want.
    Earliest,
    /// After the newest message.
    Latest,
    Offset(Offset),
    /// This offset of the queue that has this uid.
    OffsetOf(Uid, Offset),
}

/// A queue that is followed until this is dropped.
#[derive(Debug)]
pub struct Followed {
    pub queue: QueueId,
    pub uid: Uid,
    /// Where to begin.
    pub next: Offset,
    /// The offset behind the last durable message; closed when the queue is deleted or the broker ends.
    pub end: watch::Receiver<Offset>,
}

/// A stretch of a queue.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Page {
    /// Offsets that do not come; from where the page was asked for.
    pub gap: Option<Gap>,
    /// One offset after the other, behind the gap.
    pub messages: Vec<StoredMessage>,
    /// Where the next page begins.
    pub next: Offset,
}

/// Offsets `first..end` of which no message comes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Gap {
    pub first: Offset,
    pub end: Offset,
    pub reason: GapReason,
}

/// Why messages do not come.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum GapReason {
    Purged,
    /// They were finished, and their space was given back.
    Reclaimed,
    /// They are damaged on disk, or missing.
    Lost,
}

impl Broker {
    /// Begins to follow a queue.
    pub async fn follow(&self, queue: QueueName, from: Position) -> Result<Followed, BrokerError> {
        self.call(|reply| Request::Follow { queue, from, reply }).await
    }

    /// The next stretch of a followed queue; empty if nothing there is durable yet.
    pub async fn read_on(
        &self,
        queue: QueueId,
        from: Offset,
        outlet: &Outlet,
    ) -> Result<Held<Page>, BrokerError> {
        let make = |memory, reply| Request::ReadOn { queue, from, memory, reply };
        self.fetch(outlet, memory_of(PAGE_MESSAGES, PAGE_BYTES), make).await
    }
}

/// Who follows, and what is read for them.
#[derive(Default)]
pub struct Follows {
    ends: FxHashMap<QueueId, watch::Sender<Offset>>,
}

impl Follows {
    /// One more follower of a queue that is durable up to `end`; none if there are too many.
    fn add(&mut self, queue: QueueId, end: Offset) -> Option<watch::Receiver<Offset>> {
        self.ends.retain(|_, sender| sender.receiver_count() > 0);
        let count: usize = self.ends.values().map(watch::Sender::receiver_count).sum();
        (count < TAILS_MAX)
            .then(|| self.ends.entry(queue).or_insert_with(|| watch::Sender::new(end)).subscribe())
    }

    /// More of a queue is durable.
    pub fn advance(&self, queue: QueueId, end: Offset) {
        if let Some(sender) = self.ends.get(&queue) {
            sender.send_replace(end);
        }
    }

    /// A queue is gone.
    pub fn forget(&mut self, queue: QueueId) {
        self.ends.remove(&queue);
    }
}

/// A page that was read.
pub struct PageRead {
    queue: QueueId,
    from: Offset,
    memory: Permit,
    reply: Reply<Fetched<Page>>,
    found: Found,
    /// If the first message is not in the log: the next one that is.
    resumes: Option<Offset>,
    /// The queue's durable end when the read began.
    end: Offset,
}

impl Shell {
    pub(super) fn follow(&mut self, name: &QueueName, from: Position, reply: Reply<Followed>) {
        let followed = self.followed(name, from);
        self.commits.answer(Answer::new(reply, followed));
    }

    fn followed(&mut self, name: &QueueName, from: Position) -> Result<Followed, BrokerError> {
        if self.draining {
            return Err(BrokerError::Draining);
        }
        let queue = self.state.queue_named(name)?;
        let (id, uid) = (queue.id, queue.uid);
        let next = match from {
            Position::Earliest => queue.first_offset,
            Position::Latest => queue.next_offset,
            Position::OffsetOf(of, _) if of != uid => {
                return Err(BrokerError::OtherQueue { queue: name.clone() });
            }
            Position::Offset(offset) | Position::OffsetOf(_, offset) if offset > queue.next_offset => {
                let next = queue.next_offset;
                return Err(Reject::OffsetOutOfRange { queue: name.clone(), offset, next }.into());
            }
            Position::Offset(offset) | Position::OffsetOf(_, offset) => offset,
        };
        let end = self.follows.add(id, self.end(id));
        let end = end.ok_or(BrokerError::TooManyTails { max: TAILS_MAX })?;
        Ok(Followed { queue: id, uid, next, end })
    }

    pub(super) fn read_on(&mut self, id: QueueId, from: Offset, memory: Permit, reply: Reply<Fetched<Page>>) {
        let Some(queue) = self.state.queue(id) else {
            return self.commits.answer(Answer::new(reply, Err(BrokerError::QueueDeleted)));
        };
        let page = if from < queue.purge_end {
            let gap = Gap { first: from, end: queue.purge_end, reason: GapReason::Purged };
            Page { gap: Some(gap), messages: Vec::new(), next: gap.end }
        } else {
            let page = self.cached_page(id, from);
            if page.messages.is_empty() && from < self.end(id) {
                return self.start_page(id, from, memory, reply);
            }
            page
        };
        self.give(page, memory, reply);
    }

    /// Answers with a page; what was taken beyond the memory that it takes is given back.
    fn give(&mut self, page: Page, mut memory: Permit, reply: Reply<Fetched<Page>>) {
        memory.shrink_to(stored_memory(page.messages.iter()));
        let page = Held { value: page, memory: Some(memory) };
        self.commits.answer(Answer::new(reply, Ok(Fetched::Whole(page))));
    }

    /// What is at hand from an offset on.
    fn cached_page(&mut self, id: QueueId, from: Offset) -> Page {
        self.cache.want(id, from);
        let (mut messages, mut bytes) = (Vec::new(), 0);
        let end = self.end(id).min(from.plus(PAGE_MESSAGES));
        for message in (from.0..end.0).map_while(|offset| self.cache.get(id, Offset(offset))) {
            bytes += message.len();
            if bytes > PAGE_BYTES && !messages.is_empty() {
                break;
            }
            messages.push(message.clone());
        }
        let next = from.plus(messages.len() as u64);
        Page { gap: None, messages, next }
    }

    /// Reads a page.
    fn start_page(&mut self, id: QueueId, from: Offset, memory: Permit, reply: Reply<Fetched<Page>>) {
        let mean = self.mean_bytes(id);
        let end = self.end(id);
        let count = (end.0 - from.0).min(PAGE_MESSAGES).min((PAGE_BYTES / mean).max(1));
        let queue_uid = self.state.queue(id).expect("the caller has looked").uid;
        let offsets = (from.0..from.0 + count).map(Offset).collect();
        let wanted = Wanted { queue: id, queue_uid, offsets, room: room_within(&memory, count, PAGE_BYTES) };
        let (source, done) = (self.source(), self.reads_done.clone());
        self.readers.run(move || {
            let (found, resumes) = read(&source, &wanted);
            let page = PageRead { queue: id, from, memory, reply, found, resumes, end };
            // The receiver is gone only if the task has ended, and then nobody waits.
            let _ = done.send(Done::Page(page));
        });
    }

    /// Gives the follower what was read.
    pub(super) fn page_read(&mut self, read: PageRead) {
        let Some(queue) = self.state.queue(read.queue) else {
            return self.commits.answer(Answer::new(read.reply, Err(BrokerError::QueueDeleted)));
        };
        if read.from < queue.purge_end {
            // Purged while it was read.
            return self.read_on(read.queue, read.from, read.memory, read.reply);
        }
        let PageRead { from, memory, reply, found, resumes, end, .. } = read;
        if let Some(bytes) = found.too_large {
            let memory_bytes = memory_of(1, bytes);
            return self.commits.answer(Answer::new(reply, Ok(Fetched::TooLarge { memory_bytes })));
        }
        let page = page(from, found, resumes.unwrap_or(end).min(end), queue.first_offset);
        if let Some(gap) = page.gap.filter(|gap| gap.reason == GapReason::Lost) {
            tracing::error!(queue = %read.queue, first = %gap.first, end = %gap.end, "messages cannot be read");
        }
        self.give(page, memory, reply);
    }
}

/// Reads what is wanted; if the first of it is not in the log, finds what comes after.
fn read(source: &Source, wanted: &Wanted) -> (Found, Option<Offset>) {
    let found = reads::read(source, wanted);
    let from = wanted.offsets[0];
    let is_missing = found.missing.as_ref().is_some_and(|(offset, _)| *offset == from);
    let resumes = is_missing.then(|| source.index.first_from(wanted.queue, from)).flatten();
    (found, resumes)
}

/// What a read says of the offsets from `from` on, up to its next hole. `resumes` is the first message that the log
/// has if it has not that at `from`; below `first_offset` nobody wants any.
fn page(from: Offset, found: Found, resumes: Offset, first_offset: Offset) -> Page {
    let Found { messages, damaged, missing, .. } = found;
    let mut hole = from;
    while damaged.contains(&hole) {
        hole = hole.plus(1);
    }
    let gap = if hole > from {
        Some(Gap { first: from, end: hole, reason: GapReason::Lost })
    } else if missing.is_some_and(|(offset, _)| offset == from) {
        let (end, reason) = match from < first_offset {
            true => (resumes.min(first_offset), GapReason::Reclaimed),
            false => (resumes, GapReason::Lost),
        };
        // What the index has and the disk does not is passed over one by one.
        Some(Gap { first: from, end: end.max(from.plus(1)), reason })
    } else {
        None
    };
    let mut next = gap.map_or(from, |gap| gap.end);
    let mut whole = Vec::with_capacity(messages.len());
    for message in messages {
        if message.offset != next {
            break;
        }
        next = next.plus(1);
        whole.push(message);
    }
    Page { gap, messages: whole, next }
}

//! The newest messages, so that consumers who keep up need no disk. Bounded in bytes; the oldest go first.
//!
//! Only what somebody is about to read is worth a copy: a queue's messages are kept while they are less than
//! [`AHEAD`] behind the place where one of its readers was last.

use std::collections::VecDeque;

use bytes::BytesMut;
use rustc_hash::FxHashMap;

use super::api::StoredMessage;
use crate::core::event::PublishedRun;
use crate::ids::{Offset, QueueId, Uid};
use crate::record::StoredParts;

/// Bytes that the cache may hold, its own overhead counted.
const CACHE_BYTES_MAX: usize = 8 << 20;
/// Larger messages are left to the page cache.
const MESSAGE_BYTES_MAX: usize = 64 << 10;
/// Counted for each message besides its bytes.
const MESSAGE_OVERHEAD: usize = 128;
/// Messages that a reader may be behind and still find all of them here, if they are small.
const AHEAD: u64 = 16 << 10;

/// See the module's header.
#[derive(Default)]
pub struct TailCache {
    queues: FxHashMap<QueueId, VecDeque<StoredMessage>>,
    /// Every cached message, oldest first.
    order: VecDeque<QueueId>,
    /// Below this offset a queue's new messages are kept.
    wanted: FxHashMap<QueueId, Offset>,
    bytes: usize,
}

impl TailCache {
    /// Somebody reads the queue, and wants the message at `next` next.
    pub fn want(&mut self, queue: QueueId, next: Offset) {
        let wanted = self.wanted.entry(queue).or_default();
        *wanted = next.plus(AHEAD).max(*wanted);
    }

    /// Keeps the messages of a run if somebody wants them, copied, so that they do not pin the requests they came in.
    pub fn insert(&mut self, queue_uid: Uid, run: &PublishedRun, parts: &[StoredParts]) {
        let PublishedRun { queue, first, lane, publish_time_us, .. } = *run;
        if self.wanted.get(&queue).is_none_or(|wanted| first >= *wanted) {
            return;
        }
        let total: usize = parts.iter().map(size).filter(|size| *size <= MESSAGE_BYTES_MAX).sum();
        let mut copy = BytesMut::with_capacity(total);
        for part in parts.iter().filter(|part| size(part) <= MESSAGE_BYTES_MAX) {
            copy.extend_from_slice(&part.meta);
            copy.extend_from_slice(&part.body);
        }
        let mut copy = copy.freeze();
        let cached = self.queues.entry(queue).or_default();
        for (part, index) in parts.iter().zip(0..).filter(|(part, _)| size(part) <= MESSAGE_BYTES_MAX) {
            let (meta, body) = (copy.split_to(part.meta.len()), copy.split_to(part.body.len()));
            cached.push_back(StoredMessage {
                queue_uid,
                offset: first.plus(index),
                lane,
                publish_time_us,
                meta,
                body,
            });
            self.order.push_back(queue);
            self.bytes += size(part) + MESSAGE_OVERHEAD;
        }
        self.evict();
    }

    /// A message, if it is here.
    pub fn get(&self, queue: QueueId, offset: Offset) -> Option<&StoredMessage> {
        let cached = self.queues.get(&queue)?;
        let at = cached.binary_search_by_key(&offset, |message| message.offset).ok()?;
        Some(&cached[at])
    }

    /// Drops what is cached of a queue.
    pub fn forget(&mut self, queue: QueueId) {
        self.wanted.remove(&queue);
        let Some(cached) = self.queues.remove(&queue) else { return };
        self.bytes -= cached.iter().map(stored_size).sum::<usize>();
        self.order.retain(|of| *of != queue);
    }

    fn evict(&mut self) {
        while self.bytes > CACHE_BYTES_MAX {
            let queue = self.order.pop_front().expect("bytes are counted for cached messages only");
            let cached = self.queues.get_mut(&queue).expect("a cached message has a queue");
            let oldest = cached.pop_front().expect("a cached message has a place");
            self.bytes -= stored_size(&oldest);
            if cached.is_empty() {
                self.queues.remove(&queue);
            }
        }
    }
}

fn size(parts: &StoredParts) -> usize {
    parts.meta.len() + parts.body.len()
}

fn stored_size(message: &StoredMessage) -> usize {
    message.meta.len() + message.body.len() + MESSAGE_OVERHEAD
}

#[cfg(test)]
mod tests {
    use bytes::Bytes;

    use super::*;
    use crate::record::Lane;

    fn run(queue: u64, first: u64, count: u32) -> PublishedRun {
        PublishedRun {
            queue: QueueId(queue),
            first: Offset(first),
            count,
            bytes: 0,
            lane: Lane::default(),
            publish_time_us: 0,
            request: None,
        }
    }

    fn parts(bytes: usize) -> StoredParts {
        StoredParts { meta: Bytes::from_static(b"m"), body: Bytes::from(vec![7; bytes]) }
    }

    #[test]
    fn the_newest_stay_within_the_bound() {
        let mut cache = TailCache::default();
        (1..=3).for_each(|queue| cache.want(QueueId(queue), Offset(0)));
        for offset in 0..10_000 {
            cache.insert(Uid::default(), &run(1 + offset % 3, offset / 3, 1), &[parts(8 << 10)]);
            assert!(cache.bytes <= CACHE_BYTES_MAX);
        }
        assert!(cache.get(QueueId(1), Offset(0)).is_none());
        assert_eq!(cache.get(QueueId(1), Offset(3333)).unwrap().body.len(), 8 << 10);
        for queue in 1..=3 {
            cache.forget(QueueId(queue));
        }
        assert_eq!((cache.bytes, cache.order.len(), cache.queues.len()), (0, 0, 0));
    }

    #[test]
    fn large_messages_are_passed_over() {
        let mut cache = TailCache::default();
        let messages = [parts(10), parts(MESSAGE_BYTES_MAX), parts(20)];
        cache.want(QueueId(1), Offset(5));
        cache.insert(Uid::default(), &run(1, 5, 3), &messages);
        assert_eq!(cache.get(QueueId(1), Offset(5)).unwrap().body.len(), 10);
        assert!(cache.get(QueueId(1), Offset(6)).is_none());
        assert_eq!(cache.get(QueueId(1), Offset(7)).unwrap().body.len(), 20);
    }
    #[test]
    fn only_what_a_reader_is_near_is_kept() {
        let mut cache = TailCache::default();
        cache.insert(Uid::default(), &run(1, 0, 1), &[parts(10)]);
        assert!(cache.get(QueueId(1), Offset(0)).is_none(), "nobody reads");
        cache.want(QueueId(1), Offset(1));
        cache.want(QueueId(1), Offset(0));
        for (first, kept) in [(1, true), (AHEAD, true), (AHEAD + 1, false)] {
            cache.insert(Uid::default(), &run(1, first, 1), &[parts(10)]);
            assert_eq!(cache.get(QueueId(1), Offset(first)).is_some(), kept, "{first}");
        }
        cache.forget(QueueId(1));
        assert!(cache.wanted.is_empty());
    }
}

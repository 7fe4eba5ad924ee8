//! De-duplication of publishes by (producer, epoch, sequence), per queue.
//!
//! A producer numbers its requests from 1 in each epoch. The next sequence is stored; one that was stored before
//! gets its first answer again, as long as that is kept; a gap is refused, since something before it is missing;
//! a higher epoch takes over and fences the lower ones. The idea is Kafka's idempotent producer (KIP-98).

use std::collections::VecDeque;

use rustc_hash::FxHashMap;

use super::event::{PublishedRun, StampedRequest};
use super::types::{ProducerStamp, PublishAnswer, Reject};
use crate::ids::Offset;
use crate::limits::{PRODUCER_ANSWERS_MAX, PRODUCER_IDLE_US};
use crate::names::QueueName;

/// The producers of one queue.
#[derive(Clone, Debug, Default)]
pub struct Producers {
    pub(super) by_id: FxHashMap<String, Producer>,
}

#[derive(Clone, Debug, Default)]
pub(super) struct Producer {
    pub epoch: u64,
    pub sequence: u64,
    /// On the log's clock.
    pub last_used_us: u64,
    /// Answers to the newest sequences; the last belongs to `sequence`.
    pub answers: VecDeque<Answer>,
}

#[derive(Clone, Copy, Debug)]
pub(super) struct Answer {
    pub first: Offset,
    pub count: u32,
    pub publish_time_us: u64,
}

impl Producers {
    pub fn len(&self) -> usize {
        self.by_id.len()
    }

    pub fn is_empty(&self) -> bool {
        self.by_id.is_empty()
    }

    /// Whether the producer is remembered.
    pub fn knows(&self, id: &str) -> bool {
        self.by_id.contains_key(id)
    }

    /// Decides on a stamped request: `None` stores it, an answer says that it was stored before.
    pub fn check(&self, queue: &QueueName, stamp: &ProducerStamp) -> Result<Option<PublishAnswer>, Reject> {
        let gap = |expected| Reject::SequenceGap {
            queue: queue.clone(),
            producer: stamp.id.clone(),
            got: stamp.sequence,
            expected,
        };
        let known = self.by_id.get(&stamp.id);
        if let Some(current) = known.map(|known| known.epoch).filter(|current| *current > stamp.epoch) {
            return Err(Reject::ProducerFenced {
                queue: queue.clone(),
                producer: stamp.id.clone(),
                got: stamp.epoch,
                current,
            });
        }
        let Some(known) = known.filter(|known| known.epoch == stamp.epoch) else {
            return if stamp.sequence == 1 { Ok(None) } else { Err(gap(1)) };
        };
        if stamp.sequence == known.sequence + 1 {
            return Ok(None);
        }
        let Some(age) = known.sequence.checked_sub(stamp.sequence) else {
            return Err(gap(known.sequence + 1));
        };
        match known.answers.len().checked_sub(1 + age as usize) {
            Some(at) => Ok(Some(known.answers[at].again())),
            None => Err(Reject::SequenceTooOld {
                queue: queue.clone(),
                producer: stamp.id.clone(),
                got: stamp.sequence,
                kept: PRODUCER_ANSWERS_MAX,
            }),
        }
    }

    /// Whether a request with this stamp is the next of its producer, as far as is remembered.
    pub(super) fn goes_on_with(&self, stamp: &ProducerStamp) -> bool {
        let known = self.by_id.get(&stamp.id).filter(|known| known.epoch == stamp.epoch);
        known.map_or(0, |known| known.sequence).checked_add(1) == Some(stamp.sequence)
    }

    /// Takes everything before the request with this stamp as stored, with answers that are not known.
    pub(super) fn go_on_at(&mut self, stamp: &ProducerStamp) {
        let (epoch, sequence) = (stamp.epoch, stamp.sequence.saturating_sub(1));
        self.by_id.insert(stamp.id.clone(), Producer { epoch, sequence, ..Producer::default() });
    }

    /// Applies a stored request.
    pub(super) fn stored(&mut self, request: &StampedRequest, run: &PublishedRun) {
        let producer = self.by_id.entry(request.stamp.id.clone()).or_default();
        if producer.epoch != request.stamp.epoch {
            *producer = Producer { epoch: request.stamp.epoch, ..Producer::default() };
        }
        assert_eq!(request.stamp.sequence, producer.sequence + 1, "sequences are stored without gaps");
        producer.sequence = request.stamp.sequence;
        producer.last_used_us = request.log_us;
        if producer.answers.len() == PRODUCER_ANSWERS_MAX {
            producer.answers.pop_front();
        }
        let answer = Answer { first: run.first, count: request.count, publish_time_us: run.publish_time_us };
        producer.answers.push_back(answer);
    }

    /// Forgets producers that were idle too long; gives how many.
    pub(super) fn expire(&mut self, log_us: u64) -> usize {
        let before = self.by_id.len();
        self.by_id.retain(|_, producer| producer.last_used_us + PRODUCER_IDLE_US > log_us);
        before - self.by_id.len()
    }
}

impl Answer {
    fn again(self) -> PublishAnswer {
        PublishAnswer {
            first_offset: self.first,
            count: self.count,
            publish_time_us: self.publish_time_us,
            duplicate: true,
        }
    }
}

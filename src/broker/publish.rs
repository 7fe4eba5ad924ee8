//! Calls that store messages.

use super::api::{BrokerError, NewMessage, Published, Reply};
use super::commits::Answer;
use super::shell::Shell;
use crate::clock::Now;
use crate::core::event::PublishedRun;
use crate::core::publish::{self, LaneRun};
use crate::core::types::ProducerStamp;
use crate::core::{Event, event_codec};
use crate::names::QueueName;
use crate::record::{Record, StoredParts};

/// Log bytes besides its messages that a publish may take: record heads, tables, the producer's stamp.
const ENVELOPE_BYTES: u64 = 1 << 10;
/// Log bytes that each message may take besides its own: a record of its own at worst.
const MESSAGE_ENVELOPE_BYTES: u64 = 128;

impl Shell {
    pub(super) fn publish(
        &mut self,
        queue: &QueueName,
        messages: Vec<NewMessage>,
        producer: Option<ProducerStamp>,
        now: Now,
        reply: Reply<Published>,
    ) {
        let result = self.try_publish(queue, messages, producer, now);
        self.commits.answer(Answer::Publish(reply, result));
    }

    fn try_publish(
        &mut self,
        queue: &QueueName,
        messages: Vec<NewMessage>,
        producer: Option<ProducerStamp>,
        now: Now,
    ) -> Result<Published, BrokerError> {
        if self.draining {
            return Err(BrokerError::Draining);
        }
        self.check_room_to_grow()?;
        let runs = lane_runs(&messages);
        self.check_size(&runs)?;
        let decision = publish::publish(&self.state, queue, &runs, producer, now)?;
        let queue_uid = self.state.queue_named(queue)?.uid;
        if !decision.events.is_empty() {
            let mut parts = messages.into_iter().map(|message| message.parts);
            let records = decision.events.iter().map(|event| match event {
                Event::Published(run) => self.store(run, parts.by_ref().take(run.count as usize).collect()),
                other => unreachable!("a publish decides on publishes alone, not {other:?}"),
            });
            let records = records.collect();
            self.commits.add(records, &self.log, now.log_us);
        }
        let answer = decision.answer;
        Ok(Published {
            queue_uid,
            first_offset: answer.first_offset,
            count: answer.count,
            publish_time_us: answer.publish_time_us,
            duplicate: answer.duplicate,
        })
    }

    /// Applies one run, keeps it for consumers that keep up, and makes its record.
    pub(super) fn store(&mut self, run: &PublishedRun, parts: Vec<StoredParts>) -> Record {
        self.state.apply(&Event::Published(run.clone()));
        let queue_uid = self.state.queue(run.queue).expect("it was just published to").uid;
        self.cache.insert(queue_uid, run, &parts);
        event_codec::publish_record(run, parts)
    }

    /// Refuses what would not fit one commit.
    pub(super) fn check_size(&self, runs: &[LaneRun]) -> Result<(), BrokerError> {
        let messages: u64 = runs.iter().map(|run| u64::from(run.count)).sum();
        let stored: u64 = runs.iter().map(|run| run.bytes).sum();
        let bytes = stored + messages * MESSAGE_ENVELOPE_BYTES + ENVELOPE_BYTES;
        let max = self.log.batch_bytes_max();
        if bytes > max { Err(BrokerError::RequestTooLarge { bytes, max }) } else { Ok(()) }
    }
}

/// Groups neighbours of one lane.
fn lane_runs(messages: &[NewMessage]) -> Vec<LaneRun> {
    let mut runs: Vec<LaneRun> = Vec::with_capacity(1);
    for message in messages {
        let bytes = (message.parts.meta.len() + message.parts.body.len()) as u64;
        match runs.last_mut() {
            Some(run) if run.lane == message.lane => {
                run.count += 1;
                run.bytes += bytes;
            }
            _ => runs.push(LaneRun { lane: message.lane, count: 1, bytes }),
        }
    }
    runs
}

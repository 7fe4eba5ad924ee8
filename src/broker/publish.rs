//! Calls that store messages.

use std::iter::Peekable;

use tokio::sync::oneshot;

use super::api::{BrokerError, NewMessage, Published, Reply};
use super::commits::Answer;
use super::pipeline::{Publish, PublishResults};
use super::shell::Shell;
use crate::admission::Permit;
use crate::clock::Now;
use crate::core::event::PublishedRun;
use crate::core::publish::{self, LaneRun};
use crate::core::{Event, event_codec};
use crate::limits::PUBLISH_MESSAGES_MAX;
use crate::planted;
use crate::record::{Record, StoredParts};

/// Log bytes besides its messages that a publish may take: record heads, tables, the producer's stamp.
const ENVELOPE_BYTES: u64 = 1 << 10;
/// Log bytes that each message may take besides its own: a record of its own at worst.
const MESSAGE_ENVELOPE_BYTES: u64 = 128;
/// Log bytes up to which publishes that came together share a run. A message is found within its run by a table, so
/// a run costs the log one record head and the index one entry, however many messages it has.
const JOINED_BYTES_MAX: u64 = 128 << 10;

impl Shell {
    /// Publishes of several callers that came one after the other. Their memory is held until they are answered.
    pub(super) fn publish_each(
        &mut self,
        publishes: Vec<Publish>,
        replies: Vec<(Option<Permit>, Reply<Published>)>,
    ) {
        if publishes.is_empty() {
            return;
        }
        let results = self.store_all(publishes, self.clock.now());
        for ((memory, reply), result) in replies.into_iter().zip(results) {
            memory.into_iter().for_each(|memory| self.commits.hold(memory));
            self.commits.answer(Answer::Publish(reply, result));
        }
    }

    /// Publishes of one caller that came together.
    pub(super) fn publish_all(
        &mut self,
        publishes: Vec<Publish>,
        memory: Option<Permit>,
        now: Now,
        reply: oneshot::Sender<PublishResults>,
    ) {
        let results = self.store_all(publishes, now);
        memory.into_iter().for_each(|memory| self.commits.hold(memory));
        self.commits.answer(Answer::PublishAll(reply, results));
    }

    /// Publishes in order. Neighbours that nothing tells apart are stored as one.
    fn store_all(&mut self, publishes: Vec<Publish>, now: Now) -> PublishResults {
        let mut results = Vec::with_capacity(publishes.len());
        let bytes_max = JOINED_BYTES_MAX.min(self.log.batch_bytes_max());
        let mut publishes = publishes.into_iter().peekable();
        while let Some(mut publish) = publishes.next() {
            let counts = join(&mut publish, &mut publishes, bytes_max);
            let result = self.try_publish(publish, now);
            if counts.is_empty() { results.push(result) } else { results.extend(split(&result, &counts)) }
        }
        results
    }

    fn try_publish(&mut self, publish: Publish, now: Now) -> Result<Published, BrokerError> {
        let Publish { queue, messages, producer } = publish;
        if self.draining {
            return Err(BrokerError::Draining);
        }
        self.check_room_to_grow()?;
        let runs = lane_runs(&messages);
        self.check_size(&runs)?;
        let queue = self.state.queue_named(&queue)?;
        let decision = publish::publish(&self.state, queue, &runs, producer, now)?;
        let (queue_uid, held) = (queue.uid, queue.pause.is_some());
        if !decision.events.is_empty() {
            let mut parts = messages.into_iter().map(|message| message.parts);
            let records = decision.events.iter().map(|event| match event {
                Event::Published(run) => self.store(run, parts.by_ref().take(run.count as usize).collect()),
                other => unreachable!("a publish decides on publishes alone, not {other:?}"),
            });
            let records: Vec<Record> = records.collect();
            self.commit_request(records, now);
        }
        let answer = decision.answer;
        Ok(Published {
            queue_uid,
            first_offset: answer.first_offset,
            count: answer.count,
            publish_time_us: answer.publish_time_us,
            duplicate: answer.duplicate,
            held,
        })
    }

    fn commit_request(&mut self, mut records: Vec<Record>, now: Now) {
        if planted::bug("request-torn") && records.len() > 1 {
            let late = records.split_off(records.len() / 2);
            self.commits.add(records, &self.log, now.log_us);
            self.commits.flush(&self.log, now.log_us);
            return late
                .into_iter()
                .for_each(|record| self.commits.add_lazily(record, &self.log, now.log_us));
        }
        self.commits.add(records, &self.log, now.log_us);
    }

    /// Applies one run, keeps it for consumers that keep up, and makes its record.
    pub(super) fn store(&mut self, run: &PublishedRun, parts: Vec<StoredParts>) -> Record {
        self.apply(&Event::Published(run.clone()));
        let queue_uid = self.state.queue(run.queue).expect("it was just published to").uid;
        self.cache.insert(queue_uid, run, &parts);
        event_codec::publish_record(run, parts)
    }

    /// Refuses what would not fit one commit.
    pub(super) fn check_size(&self, runs: &[LaneRun]) -> Result<(), BrokerError> {
        let messages: u64 = runs.iter().map(|run| u64::from(run.count)).sum();
        let stored: u64 = runs.iter().map(|run| run.bytes).sum();
        let bytes = log_bytes(messages, stored);
        let max = self.log.batch_bytes_max();
        if bytes > max { Err(BrokerError::RequestTooLarge { bytes, max }) } else { Ok(()) }
    }
}

/// What messages may take in the log.
fn log_bytes(messages: u64, stored: u64) -> u64 {
    stored + messages * MESSAGE_ENVELOPE_BYTES + ENVELOPE_BYTES
}

fn stored_bytes(message: &NewMessage) -> u64 {
    (message.parts.meta.len() + message.parts.body.len()) as u64
}

/// Adds the messages of those that follow to `publish`, as far as nobody could tell; how many messages each of them
/// has, none if it stays alone.
fn join(
    publish: &mut Publish,
    following: &mut Peekable<impl Iterator<Item = Publish>>,
    bytes_max: u64,
) -> Vec<u32> {
    let count = |publish: &Publish| publish.messages.len() as u32;
    let bytes = |publish: &Publish| {
        log_bytes(publish.messages.len() as u64, publish.messages.iter().map(stored_bytes).sum())
    };
    let mut counts = Vec::new();
    if publish.producer.is_some() {
        return counts;
    }
    let (mut joined, mut messages) = (bytes(publish), publish.messages.len());
    while let Some(next) = following.next_if(|next| {
        // What a lost record may have held is known by this bound.
        let fits =
            joined + bytes(next) <= bytes_max && messages + next.messages.len() <= PUBLISH_MESSAGES_MAX;
        next.producer.is_none() && next.queue == publish.queue && fits
    }) {
        if counts.is_empty() {
            counts.push(count(publish));
        }
        joined += bytes(&next);
        messages += next.messages.len();
        counts.push(count(&next));
        publish.messages.extend(next.messages);
    }
    counts
}

/// The answer to each of the publishes that were stored as one.
fn split<'a>(
    whole: &'a Result<Published, BrokerError>,
    counts: &'a [u32],
) -> impl Iterator<Item = Result<Published, BrokerError>> + 'a {
    let mut before = 0;
    counts.iter().map(move |count| {
        let result = whole.clone().map(|whole| {
            let first_offset = whole.first_offset.plus(before);
            Published { first_offset, count: *count, ..whole }
        });
        before += u64::from(*count);
        result
    })
}

/// Groups neighbours of one lane.
fn lane_runs(messages: &[NewMessage]) -> Vec<LaneRun> {
    let mut runs: Vec<LaneRun> = Vec::with_capacity(1);
    for message in messages {
        let bytes = stored_bytes(message);
        match runs.last_mut() {
            Some(run) if run.lane == message.lane && !planted::bug("request-torn") => {
                run.count += 1;
                run.bytes += bytes;
            }
            _ => runs.push(LaneRun { lane: message.lane, count: 1, bytes }),
        }
    }
    runs
}

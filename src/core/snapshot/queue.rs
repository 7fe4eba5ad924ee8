//! Queues with their producers and subscriptions in a snapshot. See [`super`] for the layout.

use std::collections::{BTreeMap, BTreeSet};

use super::{SnapshotError, check, delivery, invalid, narrow, put_blob};
use crate::core::config_codec;
use crate::core::producers::{Answer, Producer, Producers};
use crate::core::state::{Counters, Queue, State, Subscription};
use crate::core::types::Pause;
use crate::ids::{Offset, QueueId, SubscriptionId, Uid};
use crate::names::{Name, QueueName};
use crate::planted;
use crate::record::wire::{Put, Reader};

const DEAD_LETTERS: u8 = 1;

pub fn put(out: &mut Vec<u8>, state: &State, queue: &Queue) {
    out.extend_from_slice(&queue.uid.0);
    out.put_u8(if queue.dead_letters { DEAD_LETTERS } else { 0 });
    out.put_str(queue.name.namespace.as_str());
    out.put_str(queue.name.queue.as_str());
    out.put_varint(queue.create_time_us);
    out.put_varint(queue.first_offset.0);
    out.put_varint(queue.purge_end.0);
    out.put_varint(queue.next_offset.0);
    out.put_varint(queue.last_publish_us);
    out.put_varint(queue.published_bytes);
    put_blob(out, |out| config_codec::put_queue(out, &queue.config));
    out.put_varint(queue.update_time_us);
    out.put_varint(queue.revision);
    put_pause(out, queue.pause.as_ref());
    let producers: BTreeMap<&String, &Producer> = queue.producers.by_id.iter().collect();
    out.put_varint(producers.len() as u64);
    for (id, producer) in producers {
        put_blob(out, |out| put_producer(out, id, producer));
    }
    out.put_varint(queue.subscriptions.len() as u64);
    for id in queue.subscriptions.values() {
        let subscription = state.subscription(*id).expect("a queue's subscription exists");
        put_blob(out, |out| put_subscription(out, subscription));
    }
}

fn put_producer(out: &mut Vec<u8>, id: &str, producer: &Producer) {
    out.put_str(id);
    out.put_varint(producer.epoch);
    out.put_varint(producer.sequence);
    out.put_varint(producer.last_used_us);
    out.put_varint(producer.answers.len() as u64);
    for answer in &producer.answers {
        out.put_varint(answer.first.0);
        out.put_varint(answer.count.into());
        out.put_varint(answer.publish_time_us);
    }
}

fn put_subscription(out: &mut Vec<u8>, subscription: &Subscription) {
    out.put_varint(subscription.id.0);
    out.extend_from_slice(&subscription.uid.0);
    out.put_str(subscription.name.as_str());
    out.put_varint(subscription.create_time_us);
    put_blob(out, |out| config_codec::put_subscription(out, &subscription.config));
    out.put_varint(subscription.update_time_us);
    out.put_varint(subscription.revision);
    put_pause(out, subscription.pause.as_ref());
    put_blob(out, |out| delivery::put(out, &subscription.delivery));
}

fn put_pause(out: &mut Vec<u8>, pause: Option<&Pause>) {
    let Some(pause) = pause else { return out.put_u8(0) };
    out.put_u8(if pause.refuses { 2 } else { 1 });
    out.put_varint(pause.time_us);
    out.put_varint(pause.from.0);
    out.put_str(&pause.reason);
}

fn read_pause(reader: &mut Reader<'_>) -> Result<Option<Pause>, SnapshotError> {
    let refuses = match reader.u8()? {
        0 => return Ok(None),
        1 => false,
        2 => true,
        _ => return Err(invalid("a pause")),
    };
    let (time_us, from) = (reader.varint()?, Offset(reader.varint()?));
    Ok(Some(Pause { refuses, time_us, from, reason: reader.str()?.to_owned() }))
}

/// What was read so far, and what must not come twice.
pub struct Decoded {
    counters: Counters,
    queues: Vec<Queue>,
    subscriptions: Vec<Subscription>,
    names: BTreeSet<QueueName>,
    subscription_ids: BTreeSet<SubscriptionId>,
    words_left: u64,
}

impl Decoded {
    /// Nothing yet; all deliveries together may take `words_max` words for what is finished.
    pub fn within(counters: Counters, words_max: u64) -> Self {
        Self {
            counters,
            queues: Vec::new(),
            subscriptions: Vec::new(),
            names: BTreeSet::new(),
            subscription_ids: BTreeSet::new(),
            words_left: words_max,
        }
    }

    pub fn state(self) -> State {
        State::restored(self.counters, self.queues, self.subscriptions)
    }

    /// Takes the next queue with all that it holds.
    pub fn queue(&mut self, id: QueueId, reader: &mut Reader<'_>) -> Result<(), SnapshotError> {
        let last = self.queues.last().map_or(QueueId(0), |queue| queue.id);
        check(id > last && id <= self.counters.last_queue, "a queue's id")?;
        let uid = Uid(reader.array()?);
        let dead_letters = match reader.u8()? {
            0 => false,
            DEAD_LETTERS => true,
            _ => return Err(invalid("a queue's flags")),
        };
        let name = QueueName { namespace: read_name(reader)?, queue: read_name(reader)? };
        check(self.names.insert(name.clone()), "a queue's name")?;
        let mut queue = Queue {
            id,
            uid,
            name,
            dead_letters,
            create_time_us: reader.varint()?,
            first_offset: Offset(reader.varint()?),
            purge_end: Offset(reader.varint()?),
            next_offset: Offset(reader.varint()?),
            last_publish_us: reader.varint()?,
            published_bytes: reader.varint()?,
            config: config_codec::queue(&mut Reader::new(reader.bytes()?))?,
            update_time_us: reader.varint()?,
            revision: reader.varint()?,
            pause: read_pause(reader)?,
            producers: Producers::default(),
            subscriptions: BTreeMap::new(),
        };
        check(queue.first_offset <= queue.next_offset, "a queue's first offset")?;
        check(queue.purge_end <= queue.first_offset, "a queue's purge")?;
        let producers = reader.varint()?;
        for _ in 0..producers {
            let (id, producer) = read_producer(&mut Reader::new(reader.bytes()?))?;
            if planted::bug("dedup-lost-at-restart") {
                continue;
            }
            check(queue.producers.by_id.insert(id, producer).is_none(), "a producer's id")?;
        }
        let subscriptions = reader.varint()?;
        for _ in 0..subscriptions {
            let subscription = self.subscription(&mut Reader::new(reader.bytes()?), &queue)?;
            let before = queue.subscriptions.insert(subscription.name.clone(), subscription.id);
            check(before.is_none(), "a subscription's name")?;
            self.subscriptions.push(subscription);
        }
        self.queues.push(queue);
        Ok(())
    }

    fn subscription(
        &mut self,
        reader: &mut Reader<'_>,
        queue: &Queue,
    ) -> Result<Subscription, SnapshotError> {
        let id = SubscriptionId(reader.varint()?);
        let fresh = id.0 > 0 && id <= self.counters.last_subscription && self.subscription_ids.insert(id);
        check(fresh, "a subscription's id")?;
        Ok(Subscription {
            id,
            queue: queue.id,
            uid: Uid(reader.array()?),
            name: read_name(reader)?,
            create_time_us: reader.varint()?,
            config: config_codec::subscription(&mut Reader::new(reader.bytes()?))?,
            update_time_us: reader.varint()?,
            revision: reader.varint()?,
            pause: read_pause(reader)?,
            delivery: delivery::read(
                &mut Reader::new(reader.bytes()?),
                queue.next_offset,
                &mut self.words_left,
            )?,
        })
    }
}

fn read_producer(reader: &mut Reader<'_>) -> Result<(String, Producer), SnapshotError> {
    let id = reader.str()?.to_owned();
    let mut producer = Producer {
        epoch: reader.varint()?,
        sequence: reader.varint()?,
        last_used_us: reader.varint()?,
        ..Producer::default()
    };
    let count = reader.varint()?;
    check(count <= producer.sequence, "a count of answers")?;
    for _ in 0..count {
        producer.answers.push_back(Answer {
            first: Offset(reader.varint()?),
            count: narrow(reader.varint()?, "a count of messages")?,
            publish_time_us: reader.varint()?,
        });
    }
    Ok((id, producer))
}

fn read_name(reader: &mut Reader<'_>) -> Result<Name, SnapshotError> {
    Name::new(reader.str()?).map_err(|_| invalid("a name"))
}

//! Those who use the broker, each a task with choices of its own, and tell the model what they were told.

use std::sync::{Arc, Mutex, MutexGuard};
use std::time::Duration;

use bytes::Bytes;
use forebay::admission::Outflow;
use forebay::broker::Broker;
use forebay::broker::api::{BrokerError, Delivery, NewMessage, Published, PullOptions, Settlement};
use forebay::broker::pipeline::Publish;
use forebay::core::pause::Target;
use forebay::core::types::*;
use forebay::host::Host;
use forebay::ids::{Offset, Uid};
use forebay::names::{Name, QueueName, SubscriptionName};
use forebay::record::{Lane, StoredParts};

use crate::disk::SimDisk;
use crate::host::SimHost;
use crate::model::{Model, PublishId, Pull};
use crate::options::Options;
use crate::random::Random;

/// What all clients of one life share.
#[derive(Clone)]
pub struct World {
    pub broker: Broker,
    pub host: SimHost,
    pub disk: SimDisk,
    pub model: Arc<Mutex<Model>>,
    pub outflow: Outflow,
    pub options: Arc<Options>,
    /// Bits of messages have flipped.
    pub may_lose: bool,
    pub life: u64,
}

/// A publisher's next request, which may have been sent before.
#[derive(Clone, Debug)]
pub struct Unanswered {
    pub queue: u64,
    pub id: PublishId,
    pub stamp: ProducerStamp,
}

/// What a client keeps from one life of the broker to the next.
#[derive(Clone, Debug)]
pub struct Client {
    pub number: u64,
    pub random: Random,
    /// Of its publishes to each queue: the generation that it knows, and the last sequence.
    pub sequences: Vec<(Option<Uid>, u64)>,
    pub unanswered: Option<Unanswered>,
    /// It alone takes from a subscription of its own.
    pub is_loner: bool,
}

pub fn queue_name(queue: &str) -> QueueName {
    QueueName::parse(&format!("namespaces/default/queues/{queue}")).expect("a good name")
}

pub fn subscription_name(queue: &str, subscription: &str) -> SubscriptionName {
    SubscriptionName { queue: queue_name(queue), subscription: Name::new(subscription).expect("a good name") }
}

fn messages(bodies: Vec<Bytes>) -> Vec<NewMessage> {
    let parts = |body| StoredParts { meta: Bytes::new(), body };
    bodies
        .into_iter()
        .map(|body| NewMessage { lane: Lane { priority: 4, bucket: 0 }, parts: parts(body) })
        .collect()
}

impl World {
    pub fn model(&self) -> MutexGuard<'_, Model> {
        self.model.lock().unwrap_or_else(|poisoned| poisoned.into_inner())
    }

    /// What a call was told, if anybody was there to hear it; the error says why nobody knows what has become of it.
    pub fn heard<T>(&self, what: &str, told: Result<T, BrokerError>) -> Result<Result<T, BrokerError>, Over> {
        let outcome = match &told {
            Ok(_) => "ok".to_owned(),
            Err(error) => error.to_string(),
        };
        self.host.note(format_args!("{what}: {outcome}"));
        if self.disk.has_ended() {
            return Err(Over);
        }
        match told {
            Err(BrokerError::LogStopped { why }) => {
                assert!(!why.contains("panicked"), "{why}");
                Err(Over)
            }
            told => Ok(told),
        }
    }

    pub fn subscription_config(&self, random: &mut Random) -> SubscriptionConfig {
        let options = &self.options;
        SubscriptionConfig {
            lease_us: random.within(options.lease_us_max / 10, options.lease_us_max),
            in_flight_max: random.within(1, 200),
            retry: RetryPolicy {
                attempts_max: options.attempts_max,
                backoff_us_min: options.backoff_us_max / 10,
                backoff_us_max: options.backoff_us_max,
            },
            dead_letter_queue: None,
        }
    }

    /// Makes a queue, and what belongs to it; or finds what is there.
    pub async fn make_queue(&self, random: &mut Random, number: u64) -> Result<(), Over> {
        let queue = format!("q{number}");
        let made = self.broker.create_queue(queue_name(&queue), QueueConfig::default(), true).await;
        if let Ok(view) = self.heard("create queue", made)? {
            self.model().created(&queue, view.uid);
        }
        let config = self.subscription_config(random);
        let name = subscription_name(&queue, "default");
        let updated = self.broker.update_subscription(name, None, config).await;
        let _ = self.heard("update subscription", updated)?;
        for loner in 0..self.options.loners {
            self.make_subscription(random, &queue, &format!("loner{loner}")).await?;
        }
        Ok(())
    }

    async fn make_subscription(&self, random: &mut Random, queue: &str, name: &str) -> Result<(), Over> {
        let view = self.broker.get_queue(queue_name(queue)).await;
        let Ok(view) = self.heard("get queue", view)? else { return Ok(()) };
        let config = self.subscription_config(random);
        let made =
            self.broker.create_subscription(subscription_name(queue, name), config, Start::Earliest).await;
        // Another queue of this name may have come in between: then it is told of by its next delivery.
        let again = self.broker.get_queue(queue_name(queue)).await;
        let again = self.heard("get queue", again)?;
        if self.heard("create subscription", made)?.is_ok() && again.is_ok_and(|again| again.uid == view.uid)
        {
            self.model().subscribed(view.uid, name);
        }
        Ok(())
    }
}

/// The broker's life is over.
#[derive(Debug)]
pub struct Over;

impl Client {
    pub fn new(number: u64, random: Random, options: &Options) -> Self {
        let sequences = vec![(None, 0); options.queues as usize];
        let is_loner = number < options.loners;
        Self { number, random, sequences, unanswered: None, is_loner }
    }

    /// Uses the broker until its life is over.
    pub async fn live(mut self, world: World, calls: u64) -> Self {
        for _ in 0..calls {
            if self.step(&world).await.is_err() {
                break;
            }
            let think_us = self.random.below(world.options.think_us + 1);
            tokio::time::sleep(Duration::from_micros(think_us)).await;
        }
        self
    }

    async fn step(&mut self, world: &World) -> Result<(), Over> {
        if let Some(unanswered) = self.unanswered.take() {
            return self.publish_stamped(world, unanswered).await;
        }
        let number = self.random.below(world.options.queues);
        let queue = format!("q{number}");
        match self.random.below(100) {
            0..30 => {
                let sizes = self.sizes(world);
                publish(world, &queue, sizes).await
            }
            30..45 => self.begin_stamped(world, number).await,
            45..50 => self.publish_several(world).await,
            50..85 => self.consume(world, &queue).await,
            85..88 => self.consume_from(world, &format!("{queue}-dead"), "default", true).await,
            88..90 => self.peek(world, &queue).await,
            90..92 => self.pause(world, &queue).await,
            92..94 => {
                let target = self.target(&queue);
                resume(world, &queue, target).await
            }
            94..95 => self.purge(world, &queue).await,
            95..96 => self.update(world, &queue).await,
            96..97 if self.random.percent(40) => delete(world, &queue).await,
            _ => world.make_queue(&mut self.random, number).await,
        }
    }

    /// Makes all queues that are not there.
    pub async fn make_all(&mut self, world: &World) -> Result<(), Over> {
        for number in 0..world.options.queues {
            world.make_queue(&mut self.random, number).await?;
        }
        Ok(())
    }

    fn sizes(&mut self, world: &World) -> Vec<u32> {
        let count = self.random.scale(8);
        (0..count).map(|_| self.random.scale(world.options.body_bytes_max) as u32).collect()
    }

    async fn publish_several(&mut self, world: &World) -> Result<(), Over> {
        let count = self.random.within(2, 5);
        let mut part = || {
            let queue = format!("q{}", self.random.below(world.options.queues));
            (queue, self.sizes(world))
        };
        let parts = (0..count).map(|_| part()).collect();
        publish_several(world, parts).await
    }

    /// A request of a producer, numbered; it is sent until it is answered.
    async fn begin_stamped(&mut self, world: &World, queue: u64) -> Result<(), Over> {
        let sizes = self.sizes(world);
        self.stamp(world, queue, sizes).await
    }

    /// The same with messages of these sizes.
    pub async fn stamp(&mut self, world: &World, queue: u64, sizes: Vec<u32>) -> Result<(), Over> {
        let sequence = self.sequences[queue as usize].1 + 1;
        let epoch = self.sequences[queue as usize].0.map_or(1, |_| 1);
        let stamp = ProducerStamp { id: format!("client{}", self.number), epoch, sequence };
        let (id, _) = world.model().publish(&format!("q{queue}"), sizes);
        self.publish_stamped(world, Unanswered { queue, id, stamp }).await
    }

    pub async fn publish_stamped(&mut self, world: &World, unanswered: Unanswered) -> Result<(), Over> {
        let Unanswered { queue, id, stamp } = unanswered.clone();
        self.unanswered = Some(unanswered);
        let bodies = world.model().bodies(id);
        let name = queue_name(&format!("q{queue}"));
        let told = world.broker.publish(name, messages(bodies), Some(stamp.clone())).await;
        let told = world.heard("publish of a producer", told)?;
        self.unanswered = None;
        let last = &mut self.sequences[queue as usize];
        match &told {
            Ok(answer) => *last = (Some(answer.queue_uid), stamp.sequence),
            // The queue is another one now, or damage took what was known of this producer.
            Err(BrokerError::Rejected(Reject::SequenceGap { expected, .. })) => {
                *last = (None, expected - 1);
                return Ok(());
            }
            Err(_) => return Ok(()),
        }
        published(world, id, told);
        Ok(())
    }

    async fn consume(&mut self, world: &World, queue: &str) -> Result<(), Over> {
        match self.is_loner {
            true => {
                let subscription = format!("loner{}", self.number);
                self.consume_from(world, queue, &subscription, false).await
            }
            false => self.consume_from(world, queue, "default", true).await,
        }
    }

    async fn consume_from(
        &mut self,
        world: &World,
        queue: &str,
        subscription: &str,
        may_leave: bool,
    ) -> Result<(), Over> {
        let lease_us = self.random.within(world.options.lease_us_max / 10, world.options.lease_us_max);
        let options = PullOptions {
            messages_max: self.random.scale(50) as u32,
            bytes_max: self.random.scale(1 << 20),
            wait: Duration::from_micros(self.random.below(2) * self.random.below(300_000)),
            lease_us: Some(lease_us),
        };
        let at_us = world.host.elapsed().as_micros() as u64;
        let moment = world.model().moment();
        let pull = Pull { moment, at_us, life: world.life, alone: !may_leave };
        let pulling =
            world.broker.pull(subscription_name(queue, subscription), options, world.outflow.outlet());
        let told = if may_leave && self.random.percent(5) {
            let patience = Duration::from_micros(self.random.below(3_000));
            match tokio::time::timeout(patience, pulling).await {
                Ok(told) => told,
                Err(_) => return Ok(()),
            }
        } else {
            pulling.await
        };
        let told = world.heard("pull", told.map(|batch| batch.value))?;
        let seen_us = world.host.elapsed().as_micros() as u64;
        match told {
            Ok(batch) => {
                let came: Vec<(u64, u32)> = batch.iter().map(|d| (d.message.offset.0, d.attempt)).collect();
                world.host.note(format_args!("from {queue}/{subscription}: {came:?}"));
                world.model().pulled(queue, subscription, pull, seen_us, &batch);
                if !may_leave && self.random.percent(30) {
                    return self.give_back(world, queue, subscription, batch).await;
                }
                self.settle(world, queue, subscription, batch).await
            }
            Err(BrokerError::DataLoss { offset, .. }) => told_of_loss(world, queue, offset).await,
            Err(_) => Ok(()),
        }
    }

    /// Ends deliveries in all ways, some of them never.
    async fn settle(
        &mut self,
        world: &World,
        queue: &str,
        subscription: &str,
        batch: Vec<Delivery>,
    ) -> Result<(), Over> {
        let mut chosen = Vec::new();
        for delivery in batch {
            let ending = match self.random.below(100) {
                0..72 => Ending::Ack,
                72..82 => {
                    let delay_us = self.random.percent(70).then(|| self.random.scale(3_000_000));
                    Ending::Retry { delay_us, error: "again".to_owned() }
                }
                82..87 => Ending::Release,
                87..90 => Ending::Reject { error: "no".to_owned() },
                90..94 => {
                    let lease_us = self.random.within(1, world.options.lease_us_max);
                    extend(world, queue, subscription, &delivery, lease_us).await?;
                    continue;
                }
                _ => continue,
            };
            chosen.push((delivery, ending));
        }
        let pause = self.random.below(2) * self.random.scale(2 * world.options.lease_us_max);
        tokio::time::sleep(Duration::from_micros(pause)).await;
        settle(world, queue, subscription, chosen).await.map(drop)
    }

    /// Gives all back, to come again at once; the first of them must be what comes next.
    async fn give_back(
        &mut self,
        world: &World,
        queue: &str,
        subscription: &str,
        batch: Vec<Delivery>,
    ) -> Result<(), Over> {
        let Some(first) = batch.first() else { return Ok(()) };
        let (uid, offset) = (first.message.queue_uid, first.message.offset);
        let is_last = batch.iter().any(|delivery| delivery.attempt >= world.options.attempts_max);
        let ending = match is_last || self.random.percent(50) {
            true => Ending::Release,
            false => Ending::Retry { delay_us: Some(0), error: "again".to_owned() },
        };
        let count = batch.len();
        let chosen = batch.into_iter().map(|delivery| (delivery, ending.clone())).collect();
        let done = settle(world, queue, subscription, chosen).await?;
        let (at_us, moment) = (world.host.elapsed().as_micros() as u64, world.model().moment());
        let options =
            PullOptions { messages_max: 100, bytes_max: 1, wait: Duration::ZERO, lease_us: Some(1_000_000) };
        let pull = Pull { moment, at_us, life: world.life, alone: true };
        let outlet = world.outflow.outlet();
        let told = world.broker.pull(subscription_name(queue, subscription), options, outlet).await;
        let told = world.heard("pull again", told.map(|batch| batch.value))?;
        let Ok(batch) = told else { return Ok(()) };
        let seen_us = world.host.elapsed().as_micros() as u64;
        let came: Vec<(u64, u32)> = batch.iter().map(|d| (d.message.offset.0, d.attempt)).collect();
        world.host.note(format_args!("again from {queue}/{subscription}: {came:?}"));
        world.model().pulled(queue, subscription, pull, seen_us, &batch);
        let may_wait = batch.is_empty() && world.disk.is_small();
        if done == count && !may_wait && world.model().is_free(queue, uid, offset) {
            let next = batch.first().map(|delivery| delivery.message.offset);
            let is_next = next.is_some_and(|next| next <= offset);
            assert!(is_next, "{queue}/{subscription}/{offset} was given back, and {next:?} comes");
        }
        self.settle(world, queue, subscription, batch).await
    }

    async fn peek(&mut self, world: &World, queue: &str) -> Result<(), Over> {
        let (messages, bytes) = (self.random.scale(50) as u32, self.random.scale(1 << 20));
        match peek(world, queue, messages, bytes).await? {
            Some(offset) => told_of_loss(world, queue, offset).await,
            None => Ok(()),
        }
    }

    fn target(&mut self, queue: &str) -> Target {
        let subscription = self.random.percent(50).then(|| Name::new("default").expect("a good name"));
        Target { queue: queue_name(queue), subscription }
    }

    async fn pause(&mut self, world: &World, queue: &str) -> Result<(), Over> {
        let (target, refuses) = (self.target(queue), self.random.percent(20));
        pause(world, queue, target, refuses).await
    }

    async fn update(&mut self, world: &World, queue: &str) -> Result<(), Over> {
        let config = world.subscription_config(&mut self.random);
        let told = world.broker.update_subscription(subscription_name(queue, "default"), None, config).await;
        world.heard("update subscription", told).map(drop)
    }

    async fn purge(&mut self, world: &World, queue: &str) -> Result<(), Over> {
        let view = world.broker.get_queue(queue_name(queue)).await;
        let Ok(view) = world.heard("get queue", view)? else { return Ok(()) };
        let end = Offset(self.random.below(view.next_offset.0 + 1));
        purge(world, queue, view.uid, end).await
    }
}

pub async fn publish(world: &World, queue: &str, sizes: Vec<u32>) -> Result<(), Over> {
    let (id, bodies) = world.model().publish(queue, sizes);
    let told = world.broker.publish(queue_name(queue), messages(bodies), None).await;
    published(world, id, world.heard("publish", told)?);
    Ok(())
}

/// Publishes to several queues in one request.
pub async fn publish_several(world: &World, parts: Vec<(String, Vec<u32>)>) -> Result<(), Over> {
    let mut ids = Vec::new();
    let mut publishes = Vec::new();
    for (queue, sizes) in parts {
        let (id, bodies) = world.model().publish(&queue, sizes);
        ids.push(id);
        publishes.push(Publish { queue: queue_name(&queue), messages: messages(bodies), producer: None });
    }
    let told = world.broker.publish_all(publishes, None).await;
    for (id, told) in ids.into_iter().zip(told) {
        published(world, id, world.heard("publish of several", told)?);
    }
    Ok(())
}

/// Looks at a queue's first messages; the offset of one that is damaged.
pub async fn peek(world: &World, queue: &str, messages: u32, bytes: u64) -> Result<Option<Offset>, Over> {
    let outlet = world.outflow.outlet();
    let told = world.broker.peek(queue_name(queue), None, messages, bytes, &outlet).await;
    match world.heard("peek", told)? {
        Ok(held) => {
            let mut model = world.model();
            for message in held.value {
                model.read(queue, message.queue_uid, message.offset, &message.body);
            }
            Ok(None)
        }
        Err(BrokerError::DataLoss { offset, .. }) => Ok(Some(offset)),
        Err(_) => Ok(None),
    }
}

/// Lets a lease last so long from now.
pub async fn extend(
    world: &World,
    queue: &str,
    subscription: &str,
    delivery: &Delivery,
    lease_us: u64,
) -> Result<(), Over> {
    let (uid, offset) = (delivery.message.queue_uid, delivery.message.offset);
    world.model().settling(uid, subscription, offset);
    let at_us = world.host.elapsed().as_micros() as u64;
    let name = subscription_name(queue, subscription);
    let told = world.broker.extend(name, vec![delivery.ack_id], lease_us).await;
    if let Ok(told) = world.heard("extend", told)?
        && told == [Settled::Ok]
    {
        world.model().extended(uid, subscription, offset, world.life, at_us + lease_us);
    }
    Ok(())
}

pub async fn pause(world: &World, queue: &str, target: Target, refuses: bool) -> Result<(), Over> {
    world.model().pausing(queue);
    let told = world.broker.pause(target, refuses, String::new()).await;
    let _ = world.heard("pause", told)?;
    world.model().paused(queue);
    Ok(())
}

pub async fn resume(world: &World, queue: &str, target: Target) -> Result<(), Over> {
    let (is_queue, moment) = (target.subscription.is_none(), world.model().moment());
    let told = world.broker.resume(target).await;
    if world.heard("resume", told)?.is_ok() && is_queue {
        world.model().resumed(queue, moment);
    }
    Ok(())
}

pub async fn purge(world: &World, queue: &str, uid: Uid, end: Offset) -> Result<(), Over> {
    // Whatever is heard of it: it may come to pass, on this queue or on the next of its name.
    let uids: Vec<Uid> =
        world.model().live().into_iter().filter(|(_, n)| n == queue).map(|(uid, _)| uid).collect();
    uids.into_iter().chain([uid]).for_each(|uid| world.model().purged_maybe(uid, end));
    let told = world.broker.purge(queue_name(queue), Some(end)).await;
    if let Ok(end) = world.heard("purge", told)? {
        let again = world.broker.get_queue(queue_name(queue)).await;
        if world.heard("get queue", again)?.is_ok_and(|again| again.uid == uid) {
            world.model().purged(uid, end);
        }
    }
    Ok(())
}

pub async fn delete(world: &World, queue: &str) -> Result<(), Over> {
    let view = world.broker.get_queue(queue_name(queue)).await;
    let Ok(view) = world.heard("get queue", view)? else { return Ok(()) };
    let expected = Version { uid: view.uid, revision: view.revision };
    world.model().deleting(view.uid);
    let told = world.broker.delete_queue(queue_name(queue), Some(expected)).await;
    if world.heard("delete queue", told)?.is_ok() {
        world.model().deleted(view.uid);
    }
    Ok(())
}

fn published(world: &World, id: PublishId, told: Result<Published, BrokerError>) {
    match told {
        Ok(answer) => world.model().published(id, answer.queue_uid, answer.first_offset, answer.count),
        Err(_) => world.model().refused(id),
    }
}

/// A message is damaged, and it was said.
pub async fn told_of_loss(world: &World, queue: &str, offset: Offset) -> Result<(), Over> {
    assert!(world.may_lose, "{queue}/{offset} is damaged, but no bit of it has flipped");
    let view = world.broker.get_queue(queue_name(queue)).await;
    if let Ok(view) = world.heard("get queue", view)? {
        world.model().lost(queue, view.uid, offset);
    }
    Ok(())
}

/// Ends deliveries so; how many of them count.
pub async fn settle(
    world: &World,
    queue: &str,
    subscription: &str,
    chosen: Vec<(Delivery, Ending)>,
) -> Result<usize, Over> {
    let settlement = |(delivery, ending): &(Delivery, Ending)| Settlement {
        ack_id: delivery.ack_id,
        ending: ending.clone(),
    };
    let settlements = chosen.iter().map(settlement).collect();
    for (delivery, _) in &chosen {
        world.model().settling(delivery.message.queue_uid, subscription, delivery.message.offset);
    }
    let told = world.broker.settle(subscription_name(queue, subscription), settlements).await;
    let told = world.heard("settle", told);
    let mut done = 0;
    for (at, (delivery, ending)) in chosen.iter().enumerate() {
        let (uid, offset) = (delivery.message.queue_uid, delivery.message.offset);
        let is_ack = *ending == Ending::Ack;
        match &told {
            Ok(Ok(outcomes)) => {
                world
                    .host
                    .note(format_args!("{queue}/{subscription}/{offset}: {ending:?}: {:?}", outcomes[at]));
                let is_good = outcomes[at] != Settled::Invalid || world.model().may_be_gone(uid);
                assert!(is_good, "{queue}/{subscription}/{offset}: its ack id is refused");
                done += usize::from(outcomes[at] == Settled::Ok);
                if is_ack && outcomes[at] == Settled::Ok {
                    world.model().acked(uid, subscription, offset, world.host.wall_us());
                }
            }
            Ok(Err(_)) => {}
            Err(Over) if is_ack => world.model().acked_maybe(uid, subscription, offset),
            Err(Over) => {}
        }
    }
    told.map(|_| done)
}

//! What tests of the core share: a shard that is driven as the broker drives it.

use crate::clock::Now;
use crate::core::consume::Handed;
use crate::core::event::Event;
use crate::core::publish::LaneRun;
use crate::core::settle::{AckToken, GivenUp, Settlement};
use crate::core::state::{State, Subscription};
use crate::core::types::*;
use crate::core::{Decision, admin, consume, publish, settle};
use crate::ids::{Offset, QueueId, SubscriptionId, Uid};
use crate::names::{QueueName, SubscriptionName};
use crate::record::Lane;
use crate::record::meta::DeadLetterReason;

pub const LEASE_US: u64 = 30_000_000;

/// A state, the events that made it, and a clock that the test sets.
#[derive(Clone, Default)]
pub struct Shard {
    pub state: State,
    pub log: Vec<Event>,
    pub now: Now,
    /// What is to move to a dead-letter queue.
    pub given_up: Vec<GivenUp>,
}

pub fn queue_name(name: &str) -> QueueName {
    QueueName::parse(&format!("namespaces/default/queues/{name}")).unwrap()
}

pub fn subscription_name(queue: &str, name: &str) -> SubscriptionName {
    SubscriptionName::parse(&format!("namespaces/default/queues/{queue}/subscriptions/{name}")).unwrap()
}

pub fn retry(delay_us: Option<u64>) -> Ending {
    Ending::Retry { delay_us, error: String::new() }
}

pub fn stamp(id: &str, epoch: u64, sequence: u64) -> ProducerStamp {
    ProducerStamp { id: id.to_owned(), epoch, sequence }
}

impl Shard {
    pub fn with_queue(name: &str) -> Self {
        let mut shard = Self::default();
        shard.create_queue(name).unwrap();
        shard
    }

    pub fn enact<T>(&mut self, decision: Decision<T>) -> T {
        for event in decision.events {
            self.state.admits(&event).expect("what is decided fits");
            self.state.apply(&event);
            self.log.push(event);
        }
        decision.answer
    }

    pub fn enact_events(&mut self, events: Vec<Event>) {
        self.enact(Decision { answer: (), events });
    }

    pub fn create_queue(&mut self, name: &str) -> Result<QueueId, Reject> {
        let name = queue_name(name);
        admin::create_queue(
            &self.state,
            name,
            QueueConfig::default(),
            Uid([1; 16]),
            Some(Uid([2; 16])),
            self.now,
        )
        .map(|decision| self.enact(decision))
    }

    pub fn subscribe(&mut self, queue: &str, name: &str, start: Start) -> Result<SubscriptionId, Reject> {
        self.subscribe_with(queue, name, SubscriptionConfig::default(), start)
    }

    pub fn subscribe_with(
        &mut self,
        queue: &str,
        name: &str,
        config: SubscriptionConfig,
        start: Start,
    ) -> Result<SubscriptionId, Reject> {
        let name = subscription_name(queue, name);
        admin::create_subscription(&self.state, name, config, start, Uid([3; 16]), self.now)
            .map(|decision| self.enact(decision))
    }

    pub fn publish(
        &mut self,
        queue: &str,
        count: u32,
        producer: Option<ProducerStamp>,
    ) -> Result<PublishAnswer, Reject> {
        let run = LaneRun { lane: Lane::default(), count, bytes: u64::from(count) };
        publish::publish(&self.state, &queue_name(queue), &[run], producer, self.now).map(|d| self.enact(d))
    }

    pub fn subscription(&self, queue: &str, name: &str) -> &Subscription {
        self.state.subscription_named(&subscription_name(queue, name)).unwrap()
    }

    pub fn lease(&mut self, max: usize) -> Vec<Handed> {
        self.lease_from("q", "default", max)
    }

    pub fn lease_from(&mut self, queue: &str, name: &str, max: usize) -> Vec<Handed> {
        let subscription = self.subscription(queue, name);
        let end = self.state.queue(subscription.queue).unwrap().next_offset;
        let chosen = consume::candidates(subscription, max, end);
        if chosen.is_empty() {
            return Vec::new();
        }
        let decision = consume::lease(&self.state, subscription, &chosen, LEASE_US, self.now);
        self.enact(decision)
    }

    pub fn settle(&mut self, endings: &[(Handed, Ending)]) -> Vec<Settled> {
        self.settle_on("q", "default", endings)
    }

    pub fn settle_on(&mut self, queue: &str, name: &str, endings: &[(Handed, Ending)]) -> Vec<Settled> {
        let subscription = self.subscription(queue, name);
        let end = self.state.queue(subscription.queue).unwrap().next_offset;
        let endings: Vec<(AckToken, Ending)> = endings.iter().map(|(h, e)| (token(*h), e.clone())).collect();
        let decision = settle::settle(&self.state, subscription, end, &endings, self.now);
        let Settlement { outcomes, given_up } = self.enact(decision);
        self.given_up.extend(given_up.into_iter().map(|(_, given_up)| given_up));
        outcomes
    }

    pub fn pass(&mut self, us: u64) {
        self.now.log_us += us;
        self.now.wall_us += us;
        self.come_due(self.subscription("q", "default").id);
    }

    pub fn come_due(&mut self, id: SubscriptionId) {
        let expired = self.state.take_expired(id, self.now.log_us);
        let subscription = self.state.subscription(id).unwrap();
        let decision = consume::come_due(&self.state, subscription, expired, self.now);
        for token in self.enact(decision) {
            let (reason, error) = (DeadLetterReason::AttemptsExhausted, String::new());
            self.given_up.push(GivenUp { token, reason, error });
        }
    }

    pub fn restart(&mut self, incarnation: u32) {
        self.enact_events(vec![Event::Started { incarnation, log_us: self.now.log_us }]);
    }

    /// Offsets that would be handed out next.
    pub fn waiting(&self) -> Vec<u64> {
        consume::candidates(self.subscription("q", "default"), 1000, Offset(u64::MAX / 2))
            .iter()
            .map(|o| o.0)
            .take_while(|o| *o < self.state.queue_named(&queue_name("q")).unwrap().next_offset.0)
            .collect()
    }
}

pub fn token(handed: Handed) -> AckToken {
    AckToken { offset: handed.offset, lease: handed.lease }
}

//! What tests of the core share: a shard that is driven as the broker drives it.

use crate::clock::Now;
use crate::core::consume::Handed;
use crate::core::event::Event;
use crate::core::publish::LaneRun;
use crate::core::settle::{AckToken, GivenUp, Settlement};
use crate::core::spill::Survey;
use crate::core::spilled::Ref;
use crate::core::state::{State, Subscription};
use crate::core::types::*;
use crate::core::{Decision, admin, consume, publish, settle, spill};
use crate::ids::{Offset, QueueId, SubscriptionId, Uid};
use crate::names::{QueueName, SubscriptionName};
use crate::record::Lane;

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
        let queue = self.state.queue_named(&queue_name(queue))?;
        publish::publish(&self.state, queue, &[run], producer, self.now).map(|d| self.enact(d))
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
        let given_up = self.enact(decision);
        self.given_up.extend(given_up);
    }

    /// Spills what is more than `refs_max` allows; how many runs there are to it.
    pub fn spill(&mut self, id: SubscriptionId, refs_max: usize) -> usize {
        let events = spill::spill(self.state.subscription(id).unwrap(), refs_max);
        let runs = events.len();
        self.enact_events(events);
        runs
    }

    /// Recalls what is due now, reading runs where they were written; how many refs came back.
    pub fn recall(&mut self, id: SubscriptionId, refs_max: usize) -> usize {
        let delivery = &self.state.subscription(id).unwrap().delivery;
        let Some(mut recall) = spill::recall(delivery, Offset(u64::MAX), self.now, refs_max) else {
            return 0;
        };
        let mut count = 0;
        for (place, rest) in std::mem::take(&mut recall.runs) {
            let (refs, rest) = recall.take(&self.run_at(id, place).unwrap(), rest);
            let event = spill::recalled(self.state.subscription(id).unwrap(), place, &refs, rest);
            count += refs.len();
            self.enact_events(event.into_iter().collect());
        }
        self.come_due(id);
        count
    }

    /// The refs of the run that was written last at this place.
    pub fn run_at(&self, id: SubscriptionId, at: Offset) -> Option<Vec<Ref>> {
        self.log.iter().rev().find_map(|event| match event {
            Event::Spilled { subscription, place, refs, .. } if (*subscription, *place) == (id, at) => {
                Some(refs.clone())
            }
            _ => None,
        })
    }

    /// Looks through all runs but those that are `lost`, and brings back what is stranded; how much that is.
    pub fn survey(&mut self, id: SubscriptionId, lost: &[Offset], refs_max: usize) -> u64 {
        let subscription = self.state.subscription(id).unwrap();
        let mut survey = Survey::of(&subscription.delivery);
        for (place, rest) in subscription.delivery.spilled().all().filter(|(place, _)| !lost.contains(place))
        {
            survey.note(&self.run_at(id, place).unwrap(), rest);
        }
        let stranded = survey.stranded();
        self.enact_events(spill::bring_back(subscription, &stranded, lost, self.now, refs_max));
        stranded.iter().map(|run| run.count).sum()
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

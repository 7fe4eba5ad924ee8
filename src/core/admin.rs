//! Decisions about queues and subscriptions themselves.

use super::Decision;
use super::dead_letter::check_target;
use super::event::{Event, QueueCreated, SubscriptionCreated};
use super::state::{Queue, State, Subscription};
use super::types::*;
use crate::clock::Now;
use crate::ids::{QueueId, SubscriptionId, Uid};
use crate::limits::{ATTEMPTS_DEFAULT, IN_FLIGHT_MAX, LEASE_US_DEFAULT};
use crate::names::{DEFAULT_SUBSCRIPTION, Name, QueueName, SubscriptionName};

impl Default for SubscriptionConfig {
    fn default() -> Self {
        Self {
            lease_us: LEASE_US_DEFAULT,
            in_flight_max: IN_FLIGHT_MAX,
            retry: RetryPolicy::default(),
            dead_letter_queue: None,
        }
    }
}

impl Default for RetryPolicy {
    fn default() -> Self {
        Self { attempts_max: ATTEMPTS_DEFAULT, backoff_us_min: 0, backoff_us_max: 0 }
    }
}

/// Creates a queue, with the default subscription if its uid is given.
pub fn create_queue(
    state: &State,
    name: QueueName,
    config: QueueConfig,
    uid: Uid,
    default_subscription: Option<Uid>,
    now: Now,
) -> Result<Decision<QueueId>, Reject> {
    if state.queue_named(&name).is_ok() {
        return Err(Reject::QueueExists(name));
    }
    let queue = state.next_queue_id();
    let created = QueueCreated { queue, uid, name, config, create_time_us: now.wall_us, dead_letters: false };
    let mut events = vec![Event::QueueCreated(created)];
    events.extend(default_subscription.map(|uid| first_subscription(state, queue, uid, now)));
    Ok(Decision { answer: queue, events })
}

/// The default subscription of a queue that is being created.
pub(super) fn first_subscription(state: &State, queue: QueueId, uid: Uid, now: Now) -> Event {
    Event::SubscriptionCreated(SubscriptionCreated {
        queue,
        subscription: state.next_subscription_id(),
        uid,
        name: Name::new(DEFAULT_SUBSCRIPTION).expect("the default name is a name"),
        config: SubscriptionConfig::default(),
        start: Default::default(),
        create_time_us: now.wall_us,
    })
}

/// Gives a queue another configuration.
pub fn update_queue(
    state: &State,
    name: &QueueName,
    expected: Option<Version>,
    config: QueueConfig,
    now: Now,
) -> Result<Decision<QueueId>, Reject> {
    let queue = state.queue_named(name)?;
    check_version(expected, queue.version(), name)?;
    let id = queue.id;
    if config == queue.config {
        return Ok(Decision { answer: id, events: Vec::new() });
    }
    let event = Event::QueueUpdated { queue: id, config, update_time_us: now.wall_us };
    Ok(Decision { answer: id, events: vec![event] })
}

/// Refuses a change of what is no longer as its caller has seen it.
fn check_version(
    expected: Option<Version>,
    is: Version,
    resource: &impl std::fmt::Display,
) -> Result<(), Reject> {
    match expected {
        Some(expected) if expected != is => Err(Reject::VersionMismatch { resource: resource.to_string() }),
        _ => Ok(()),
    }
}

/// Deletes a queue with its subscriptions and messages.
pub fn delete_queue(
    state: &State,
    name: &QueueName,
    expected: Option<Version>,
) -> Result<Decision<QueueId>, Reject> {
    let queue = state.queue_named(name)?;
    check_version(expected, queue.version(), name)?;
    let queue = queue.id;
    Ok(Decision { answer: queue, events: vec![Event::QueueDeleted { queue }] })
}

/// Creates a subscription at `start`.
pub fn create_subscription(
    state: &State,
    name: SubscriptionName,
    config: SubscriptionConfig,
    start: Start,
    uid: Uid,
    now: Now,
) -> Result<Decision<SubscriptionId>, Reject> {
    let queue = state.queue_named(&name.queue)?;
    if queue.subscriptions.contains_key(&name.subscription) {
        return Err(Reject::SubscriptionExists(name));
    }
    if let Some(target) = &config.dead_letter_queue {
        check_target(state, queue, target)?;
    }
    let start = match start {
        Start::Earliest => queue.first_offset,
        Start::Latest => queue.next_offset,
        Start::Offset(offset) if offset > queue.next_offset => {
            return Err(Reject::OffsetOutOfRange { queue: name.queue, offset, next: queue.next_offset });
        }
        Start::Offset(offset) => offset.max(queue.first_offset),
    };
    let subscription = state.next_subscription_id();
    let created = SubscriptionCreated {
        queue: queue.id,
        subscription,
        uid,
        name: name.subscription,
        config,
        start,
        create_time_us: now.wall_us,
    };
    Ok(Decision { answer: subscription, events: vec![Event::SubscriptionCreated(created)] })
}

/// Gives a subscription another configuration. Leases that were given keep their length.
pub fn update_subscription(
    state: &State,
    name: &SubscriptionName,
    expected: Option<Version>,
    config: SubscriptionConfig,
    now: Now,
) -> Result<Decision<SubscriptionId>, Reject> {
    let subscription = state.subscription_named(name)?;
    check_version(expected, subscription.version(), name)?;
    let id = subscription.id;
    if config == subscription.config {
        return Ok(Decision { answer: id, events: Vec::new() });
    }
    if let Some(target) = &config.dead_letter_queue {
        check_target(state, state.queue_named(&name.queue)?, target)?;
    }
    let (queue, update_time_us) = (subscription.queue, now.wall_us);
    let event = Event::SubscriptionUpdated { queue, subscription: id, config, update_time_us };
    Ok(Decision { answer: id, events: vec![event] })
}

/// Deletes a subscription; its leases end.
pub fn delete_subscription(
    state: &State,
    name: &SubscriptionName,
    expected: Option<Version>,
) -> Result<Decision<SubscriptionId>, Reject> {
    let subscription = state.subscription_named(name)?;
    check_version(expected, subscription.version(), name)?;
    let event = Event::SubscriptionDeleted { queue: subscription.queue, subscription: subscription.id };
    Ok(Decision { answer: subscription.id, events: vec![event] })
}

impl Queue {
    pub fn version(&self) -> Version {
        Version { uid: self.uid, revision: self.revision }
    }

    pub fn view(&self) -> QueueView {
        QueueView {
            name: self.name.clone(),
            uid: self.uid,
            config: self.config.clone(),
            create_time_us: self.create_time_us,
            update_time_us: self.update_time_us,
            revision: self.revision,
            pause: self.pause.clone(),
            first_offset: self.first_offset,
            next_offset: self.next_offset,
        }
    }
}

impl Subscription {
    pub fn version(&self) -> Version {
        Version { uid: self.uid, revision: self.revision }
    }

    pub fn full_name(&self, queue: &Queue) -> SubscriptionName {
        SubscriptionName { queue: queue.name.clone(), subscription: self.name.clone() }
    }

    pub fn view(&self, queue: &Queue, stats: SubscriptionStats) -> SubscriptionView {
        SubscriptionView {
            name: self.full_name(queue),
            uid: self.uid,
            config: self.config.clone(),
            create_time_us: self.create_time_us,
            update_time_us: self.update_time_us,
            revision: self.revision,
            pause: self.pause.clone(),
            stats,
        }
    }

    /// Its figures; `oldest_age_us` is for the caller to fill, who knows the publish time of the floor.
    pub fn stats(&self, queue: &Queue) -> SubscriptionStats {
        SubscriptionStats {
            ack_floor: self.delivery.floor(),
            backlog_messages: self.delivery.backlog(queue.next_offset),
            leased_messages: self.delivery.leased(),
            delayed_messages: self.delivery.delayed(),
            oldest_age_us: 0,
        }
    }
}

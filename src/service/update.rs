//! Changes of queues and subscriptions: the fields that a mask names are taken over, the others stay.
//!
//! 1. A path is refused by its name if it is fixed at creation, set by the server alone, not built, or no field.
//! 2. Without a mask, what is set and can be changed is meant; what is set and not built is refused. With `*`, all
//!    that can be changed is meant, and what is not set gets its default.
//! 3. A change is made to the version that was read for it: should another come between, it is made anew, unless the
//!    request has an etag.

use prost_types::FieldMask;
use tonic::Status;

use super::check::{self, invalid, required};
use super::queues::{control, queue_config, show_queue, show_subscription, subscription_config};
use super::status::Refusal;
use super::{Shared, token};
use crate::broker::api::BrokerError;
use crate::core::types::{Reject, Version};
use crate::proto::v1::*;

/// What a path of a mask stands for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Field {
    /// Can be changed.
    Open,
    /// Can be changed; part of another one, so that only a mask can mean it.
    Part,
    Fixed,
    OutputOnly,
    NotBuilt,
}

const QUEUE_FIELDS: &[(&str, Field)] = &[
    ("labels", Field::Open),
    ("name", Field::Fixed),
    ("ordering_scope", Field::Fixed),
    ("uid", Field::OutputOnly),
    ("etag", Field::OutputOnly),
    ("create_time", Field::OutputOnly),
    ("update_time", Field::OutputOnly),
    ("first_offset", Field::OutputOnly),
    ("next_offset", Field::OutputOnly),
    ("pauses", Field::OutputOnly),
    ("limits", Field::NotBuilt),
    ("disk_quota", Field::NotBuilt),
    ("retention", Field::NotBuilt),
    ("max_hops", Field::NotBuilt),
    ("dead_letter_queue", Field::NotBuilt),
    ("dedupe_window", Field::NotBuilt),
    ("source_limits", Field::NotBuilt),
];

const SUBSCRIPTION_FIELDS: &[(&str, Field)] = &[
    ("lease_duration", Field::Open),
    ("max_in_flight", Field::Open),
    ("retry_policy", Field::Open),
    ("retry_policy.min_backoff", Field::Part),
    ("retry_policy.max_backoff", Field::Part),
    ("max_attempts", Field::Open),
    ("dead_letter_queue", Field::Open),
    ("name", Field::Fixed),
    ("filter", Field::Fixed),
    ("uid", Field::OutputOnly),
    ("etag", Field::OutputOnly),
    ("create_time", Field::OutputOnly),
    ("update_time", Field::OutputOnly),
    ("stats", Field::OutputOnly),
    ("pause", Field::OutputOnly),
    ("labels", Field::NotBuilt),
    ("ordering", Field::NotBuilt),
    ("exactly_once_delivery", Field::NotBuilt),
    ("max_backlog", Field::NotBuilt),
    ("expire_after_idle", Field::NotBuilt),
];

/// The paths to take over. `is_set` says which fields the request sets, for want of a mask.
fn paths(
    resource: &str,
    fields: &[(&'static str, Field)],
    mask: Option<FieldMask>,
    is_set: impl Fn(&str) -> bool,
) -> Result<Vec<&'static str>, Refusal> {
    let mask = mask.unwrap_or_default().paths;
    let open = |all: bool| {
        let meant = fields.iter().filter(|(path, field)| *field == Field::Open && (all || is_set(path)));
        meant.map(|(path, _)| *path).collect()
    };
    match mask.as_slice() {
        [] => return Ok(open(false)),
        [star] if star == "*" => return Ok(open(true)),
        _ => {}
    }
    let path = |path: &String| {
        let name = format!("{resource}.{path}");
        match fields.iter().find(|(known, _)| known == path) {
            Some((known, Field::Open | Field::Part)) => Ok(*known),
            Some((_, Field::Fixed)) => {
                Err(invalid(name, "is fixed at creation; leave it out of update_mask"))
            }
            Some((_, Field::OutputOnly)) => Err(Refusal::OutputOnly { field: name }),
            Some((_, Field::NotBuilt)) => Err(Refusal::FieldNotBuilt { field: name }),
            None => Err(invalid("update_mask", format!("{path:?} is no field of a {resource}"))),
        }
    };
    mask.iter().map(path).collect()
}

/// Whether another change came between, which a request without an etag does not mind.
fn came_between(error: &BrokerError, expected: Option<Version>) -> bool {
    expected.is_none() && matches!(error, BrokerError::Rejected(Reject::VersionMismatch { .. }))
}

fn merge_queue(mut queue: Queue, wanted: &Queue, paths: &[&str]) -> Queue {
    for path in paths {
        match *path {
            "labels" => queue.labels.clone_from(&wanted.labels),
            path => unreachable!("{path} is not open"),
        }
    }
    queue
}

fn merge_subscription(mut own: Subscription, wanted: &Subscription, paths: &[&str]) -> Subscription {
    let policy = wanted.retry_policy.unwrap_or_default();
    for path in paths {
        match *path {
            "lease_duration" => own.lease_duration = wanted.lease_duration,
            "max_in_flight" => own.max_in_flight = wanted.max_in_flight,
            "retry_policy" => own.retry_policy = wanted.retry_policy,
            "retry_policy.min_backoff" => {
                own.retry_policy.get_or_insert_default().min_backoff = policy.min_backoff;
            }
            "retry_policy.max_backoff" => {
                own.retry_policy.get_or_insert_default().max_backoff = policy.max_backoff;
            }
            "max_attempts" => own.max_attempts = wanted.max_attempts,
            "dead_letter_queue" => own.dead_letter_queue.clone_from(&wanted.dead_letter_queue),
            path => unreachable!("{path} is not open"),
        }
    }
    own
}

pub async fn queue(shared: &Shared, request: UpdateQueueRequest) -> Result<Queue, Status> {
    control(request.validate_only, &request.request_id)?;
    let wanted = required("queue", request.queue)?;
    let name = check::queue_name("queue.name", &wanted.name)?;
    let expected = token::parse_etag("queue.etag", &wanted.etag)?;
    let paths = paths("queue", QUEUE_FIELDS, request.update_mask, |_| !wanted.labels.is_empty())?;
    queue_config(wanted.clone())?;
    loop {
        let view = shared.broker.get_queue(name.clone()).await?;
        let read = Version { uid: view.uid, revision: view.revision };
        let config = queue_config(merge_queue(show_queue(view), &wanted, &paths))?;
        match shared.broker.update_queue(name.clone(), Some(expected.unwrap_or(read)), config).await {
            Err(error) if came_between(&error, expected) => {}
            result => return Ok(show_queue(result?)),
        }
    }
}

pub async fn subscription(
    shared: &Shared,
    request: UpdateSubscriptionRequest,
) -> Result<Subscription, Status> {
    control(request.validate_only, &request.request_id)?;
    let wanted = required("subscription", request.subscription)?;
    let name = check::subscription_name("subscription.name", &wanted.name)?;
    let expected = token::parse_etag("subscription.etag", &wanted.etag)?;
    let is_set = |path: &str| match path {
        "lease_duration" => wanted.lease_duration.is_some(),
        "max_in_flight" => wanted.max_in_flight != 0,
        "retry_policy" => wanted.retry_policy.is_some(),
        "max_attempts" => wanted.max_attempts.is_some(),
        "dead_letter_queue" => !wanted.dead_letter_queue.is_empty(),
        _ => false,
    };
    let paths = paths("subscription", SUBSCRIPTION_FIELDS, request.update_mask, is_set)?;
    subscription_config(wanted.clone())?;
    loop {
        let view = shared.broker.get_subscription(name.clone()).await?;
        let read = Version { uid: view.uid, revision: view.revision };
        let config = subscription_config(merge_subscription(show_subscription(view), &wanted, &paths))?;
        match shared.broker.update_subscription(name.clone(), Some(expected.unwrap_or(read)), config).await {
            Err(error) if came_between(&error, expected) => {}
            result => return Ok(show_subscription(result?)),
        }
    }
}

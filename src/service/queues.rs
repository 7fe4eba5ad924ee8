//! `QueueService`: queues and subscriptions, made, shown, paused and removed. How they are changed: [`super::update`].

use tonic::{Request, Response, Status};

use super::check::{self, not_built, output_only, required};
use super::status::Refusal;
use super::{Shared, rpc_not_built, time, token, update};
use crate::clock;
use crate::core::pause::Target;
use crate::core::types::{
    Pause, QueueConfig, QueueView, RetryPolicy, Start, SubscriptionConfig, SubscriptionView, Version,
};
use crate::ids::Offset;
use crate::limits::*;
use crate::names::{QueueName, SubscriptionName};
use crate::proto::v1::position::Position as Place;
use crate::proto::v1::queue_service_server::QueueService;
use crate::proto::v1::*;

/// The service; its clones share everything.
#[derive(Clone, Debug)]
pub struct Queues {
    pub(super) shared: Shared,
}

fn queue_to_make(queue: Queue) -> Result<(QueueName, QueueConfig), Refusal> {
    let name = check::queue_name("queue.name", &queue.name)?;
    output_only(
        "queue.",
        &[
            ("uid", !queue.uid.is_empty()),
            ("etag", !queue.etag.is_empty()),
            ("create_time", queue.create_time.is_some()),
            ("update_time", queue.update_time.is_some()),
            ("first_offset", queue.first_offset != 0),
            ("next_offset", queue.next_offset != 0),
            ("pauses", !queue.pauses.is_empty()),
        ],
    )?;
    Ok((name, queue_config(queue)?))
}

/// What the owner of a queue chooses.
pub(super) fn queue_config(queue: Queue) -> Result<QueueConfig, Refusal> {
    not_built(
        "queue.",
        &[
            ("limits", queue.limits.is_some()),
            ("disk_quota", queue.disk_quota.is_some()),
            ("retention", queue.retention.is_some()),
            ("ordering_scope", queue.ordering_scope != 0),
            ("max_hops", queue.max_hops.is_some()),
            ("dead_letter_queue", !queue.dead_letter_queue.is_empty()),
            ("dedupe_window", queue.dedupe_window.is_some()),
            ("source_limits", queue.source_limits.is_some()),
        ],
    )?;
    Ok(QueueConfig { labels: check::labels("queue.labels", queue.labels)? })
}

fn subscription_to_make(
    subscription: Subscription,
) -> Result<(SubscriptionName, SubscriptionConfig), Refusal> {
    let name = check::subscription_name("subscription.name", &subscription.name)?;
    output_only(
        "subscription.",
        &[
            ("uid", !subscription.uid.is_empty()),
            ("etag", !subscription.etag.is_empty()),
            ("create_time", subscription.create_time.is_some()),
            ("update_time", subscription.update_time.is_some()),
            ("stats", subscription.stats.is_some()),
            ("pause", subscription.pause.is_some()),
        ],
    )?;
    Ok((name, subscription_config(subscription)?))
}

/// What the owner of a subscription chooses.
pub(super) fn subscription_config(subscription: Subscription) -> Result<SubscriptionConfig, Refusal> {
    not_built(
        "subscription.",
        &[
            ("labels", !subscription.labels.is_empty()),
            ("ordering", subscription.ordering != 0),
            ("filter", !subscription.filter.is_empty()),
            ("exactly_once_delivery", subscription.exactly_once_delivery),
            ("max_backlog", subscription.max_backlog.is_some()),
            ("expire_after_idle", subscription.expire_after_idle.is_some()),
        ],
    )?;
    let lease_us = check::lease_if_set("subscription.lease_duration", subscription.lease_duration.as_ref())?;
    let in_flight_max = match subscription.max_in_flight {
        0 => IN_FLIGHT_MAX,
        wanted if wanted <= IN_FLIGHT_MAX => wanted,
        wanted => {
            let why = format!("is {wanted}; give 1 to {IN_FLIGHT_MAX}, or 0 for {IN_FLIGHT_MAX}");
            return Err(check::invalid("subscription.max_in_flight", why));
        }
    };
    let target = &subscription.dead_letter_queue;
    let dead_letter_queue = match target.is_empty() {
        true => None,
        false => Some(check::queue_name("subscription.dead_letter_queue", target)?),
    };
    let retry = retry_policy(subscription.retry_policy, subscription.max_attempts)?;
    let lease_us = lease_us.unwrap_or(LEASE_US_DEFAULT);
    Ok(SubscriptionConfig { lease_us, in_flight_max, retry, dead_letter_queue })
}

fn retry_policy(
    policy: Option<crate::proto::v1::RetryPolicy>,
    max_attempts: Option<u32>,
) -> Result<RetryPolicy, Refusal> {
    let mut retry = RetryPolicy::default();
    if let Some(wanted) = max_attempts {
        if !(1..=ATTEMPTS_MAX).contains(&wanted) {
            let why = format!("is {wanted}; give 1 to {ATTEMPTS_MAX}");
            return Err(check::invalid("subscription.max_attempts", why));
        }
        retry.attempts_max = wanted;
    }
    let Some(policy) = policy else { return Ok(retry) };
    let backoff_us = |field: &str, backoff: Option<prost_types::Duration>| {
        let field = format!("subscription.retry_policy.{field}");
        let range = BACKOFF_US_MIN..=RETRY_DELAY_US_MAX;
        backoff.map(|backoff| time::duration_us(&field, &backoff, range)).transpose()
    };
    let min = backoff_us("min_backoff", policy.min_backoff)?;
    let max = backoff_us("max_backoff", policy.max_backoff)?;
    retry.backoff_us_min = min.unwrap_or(BACKOFF_US_DEFAULT.min(max.unwrap_or(u64::MAX)));
    retry.backoff_us_max = max.unwrap_or(BACKOFF_LONGEST_US_DEFAULT.max(retry.backoff_us_min));
    if retry.backoff_us_min > retry.backoff_us_max {
        let field = "subscription.retry_policy.max_backoff";
        return Err(check::invalid(field, "is shorter than min_backoff"));
    }
    Ok(retry)
}

/// Where a new subscription of a queue begins.
async fn start_of(shared: &Shared, queue: &QueueName, start: Option<Position>) -> Result<Start, Status> {
    let start = match start {
        None => Ok(Start::default()),
        Some(Position { position: None }) => {
            Err(check::invalid("start.position", "is missing; set earliest, latest, offset or time"))
        }
        Some(Position { position: Some(place) }) => match place {
            Place::Earliest(()) => Ok(Start::Earliest),
            Place::Latest(()) => Ok(Start::Latest),
            Place::Offset(offset) => Ok(Start::Offset(Offset(offset))),
            Place::Time(time) => {
                let time_us = time::past_us("start.time", &time, clock::wall_us())?;
                Ok(Start::Offset(shared.broker.locate(queue.clone(), time_us).await?))
            }
            Place::Snapshot(_) => Err(Refusal::FieldNotBuilt { field: "start.snapshot".into() }),
        },
    };
    Ok(start?)
}

/// The fields of control calls that are not built yet.
pub(super) fn control(validate_only: bool, request_id: &str) -> Result<(), Refusal> {
    not_built("", &[("validate_only", validate_only), ("request_id", !request_id.is_empty())])
}

/// What a Pause or Resume is about.
fn paused(name: &str, source: &str) -> Result<Target, Refusal> {
    not_built("", &[("source", !source.is_empty())])?;
    if let Ok(SubscriptionName { queue, subscription }) = SubscriptionName::parse(name) {
        return Ok(Target { queue, subscription: Some(subscription) });
    }
    Ok(Target { queue: check::queue_name("name", name)?, subscription: None })
}

/// Whether publishes are refused.
fn refuses(target: &Target, publish: i32) -> Result<bool, Refusal> {
    match PausePublish::try_from(publish) {
        Ok(PausePublish::Unspecified) => Ok(false),
        Ok(_) if target.subscription.is_some() => {
            Err(check::invalid("publish", "is not for a subscription: others may want what is published"))
        }
        Ok(PausePublish::Hold) => Ok(false),
        Ok(PausePublish::Refuse) => Ok(true),
        Err(_) => Err(check::invalid("publish", format!("has no meaning {publish}"))),
    }
}

fn show_pause(pause: Pause) -> PauseState {
    PauseState {
        source: String::new(),
        publish: if pause.refuses { PausePublish::Refuse } else { PausePublish::Hold }.into(),
        pause_time: Some(time::timestamp(pause.time_us)),
        reason: pause.reason,
    }
}

pub(super) fn show_queue(view: QueueView) -> Queue {
    Queue {
        name: view.name.to_string(),
        uid: view.uid.to_string(),
        etag: token::etag(Version { uid: view.uid, revision: view.revision }),
        create_time: Some(time::timestamp(view.create_time_us)),
        update_time: Some(time::timestamp(view.update_time_us)),
        pauses: view.pause.into_iter().map(show_pause).collect(),
        labels: view.config.labels.into_iter().collect(),
        first_offset: view.first_offset.0,
        next_offset: view.next_offset.0,
        ..Queue::default()
    }
}

pub(super) fn show_subscription(view: SubscriptionView) -> Subscription {
    Subscription {
        name: view.name.to_string(),
        uid: view.uid.to_string(),
        etag: token::etag(Version { uid: view.uid, revision: view.revision }),
        create_time: Some(time::timestamp(view.create_time_us)),
        update_time: Some(time::timestamp(view.update_time_us)),
        pause: view.pause.map(|pause| PauseState { publish: 0, ..show_pause(pause) }),
        lease_duration: Some(time::duration(view.config.lease_us)),
        max_in_flight: view.config.in_flight_max,
        retry_policy: (view.config.retry.backoff_us_max > 0).then(|| crate::proto::v1::RetryPolicy {
            min_backoff: Some(time::duration(view.config.retry.backoff_us_min)),
            max_backoff: Some(time::duration(view.config.retry.backoff_us_max)),
        }),
        max_attempts: Some(view.config.retry.attempts_max),
        dead_letter_queue: view.config.dead_letter_queue.map(|name| name.to_string()).unwrap_or_default(),
        stats: Some(show_subscription_stats(view.stats)),
        ..Subscription::default()
    }
}

pub(super) fn show_subscription_stats(
    stats: crate::core::types::SubscriptionStats,
) -> crate::proto::v1::SubscriptionStats {
    crate::proto::v1::SubscriptionStats {
        ack_floor: stats.ack_floor.0,
        backlog_messages: stats.backlog_messages,
        leased_messages: stats.leased_messages,
        delayed_messages: stats.delayed_messages,
        oldest_age: (stats.backlog_messages > 0).then(|| time::duration(stats.oldest_age_us)),
    }
}

/// Cuts a listing that was asked for one item too many to its page; the token is empty on the last page.
fn page<T>(
    list: &str,
    parent: &str,
    size: usize,
    items: &mut Vec<T>,
    name: impl Fn(&T) -> &crate::names::Name,
) -> String {
    if items.len() <= size {
        return String::new();
    }
    items.truncate(size);
    items.last().map(|last| token::page_token(list, parent, name(last))).unwrap_or_default()
}

const QUEUES: &str = "queues";
const SUBSCRIPTIONS: &str = "subscriptions";

#[tonic::async_trait]
impl QueueService for Queues {
    async fn create_queue(&self, request: Request<CreateQueueRequest>) -> Result<Response<Queue>, Status> {
        let request = request.into_inner();
        control(request.validate_only, &request.request_id)?;
        let (name, config) = queue_to_make(required("queue", request.queue)?)?;
        let default_subscription = !request.skip_default_subscription;
        let view = self.shared.broker.create_queue(name, config, default_subscription).await?;
        Ok(Response::new(show_queue(view)))
    }

    async fn get_queue(&self, request: Request<GetQueueRequest>) -> Result<Response<Queue>, Status> {
        let name = check::queue_name("name", &request.get_ref().name)?;
        Ok(Response::new(show_queue(self.shared.broker.get_queue(name).await?)))
    }

    async fn list_queues(
        &self,
        request: Request<ListQueuesRequest>,
    ) -> Result<Response<ListQueuesResponse>, Status> {
        let request = request.into_inner();
        let namespace = check::namespace("parent", &request.parent)?;
        let size = check::page_size(request.page_size)?;
        let after = token::parse_page_token(QUEUES, &request.parent, &request.page_token)?;
        let mut views = self.shared.broker.list_queues(namespace, after, size + 1).await?;
        let next_page_token = page(QUEUES, &request.parent, size, &mut views, |view| &view.name.queue);
        let queues = views.into_iter().map(show_queue).collect();
        Ok(Response::new(ListQueuesResponse { queues, next_page_token }))
    }

    async fn update_queue(&self, request: Request<UpdateQueueRequest>) -> Result<Response<Queue>, Status> {
        Ok(Response::new(update::queue(&self.shared, request.into_inner()).await?))
    }

    async fn delete_queue(&self, request: Request<DeleteQueueRequest>) -> Result<Response<()>, Status> {
        let request = request.into_inner();
        control(request.validate_only, &request.request_id)?;
        let name = check::queue_name("name", &request.name)?;
        let expected = token::parse_etag("etag", &request.etag)?;
        Ok(Response::new(self.shared.broker.delete_queue(name, expected).await?))
    }

    async fn create_subscription(
        &self,
        request: Request<CreateSubscriptionRequest>,
    ) -> Result<Response<Subscription>, Status> {
        let request = request.into_inner();
        control(request.validate_only, &request.request_id)?;
        let (name, config) = subscription_to_make(required("subscription", request.subscription)?)?;
        let start = start_of(&self.shared, &name.queue, request.start).await?;
        let view = self.shared.broker.create_subscription(name, config, start).await?;
        Ok(Response::new(show_subscription(view)))
    }

    async fn get_subscription(
        &self,
        request: Request<GetSubscriptionRequest>,
    ) -> Result<Response<Subscription>, Status> {
        let name = check::subscription_name("name", &request.get_ref().name)?;
        Ok(Response::new(show_subscription(self.shared.broker.get_subscription(name).await?)))
    }

    async fn list_subscriptions(
        &self,
        request: Request<ListSubscriptionsRequest>,
    ) -> Result<Response<ListSubscriptionsResponse>, Status> {
        let request = request.into_inner();
        let queue = check::queue_name("parent", &request.parent)?;
        let size = check::page_size(request.page_size)?;
        let after = token::parse_page_token(SUBSCRIPTIONS, &request.parent, &request.page_token)?;
        let mut views = self.shared.broker.list_subscriptions(queue, after, size + 1).await?;
        let next_page_token =
            page(SUBSCRIPTIONS, &request.parent, size, &mut views, |view| &view.name.subscription);
        let subscriptions = views.into_iter().map(show_subscription).collect();
        Ok(Response::new(ListSubscriptionsResponse { subscriptions, next_page_token }))
    }

    async fn update_subscription(
        &self,
        request: Request<UpdateSubscriptionRequest>,
    ) -> Result<Response<Subscription>, Status> {
        Ok(Response::new(update::subscription(&self.shared, request.into_inner()).await?))
    }

    async fn delete_subscription(
        &self,
        request: Request<DeleteSubscriptionRequest>,
    ) -> Result<Response<()>, Status> {
        let request = request.into_inner();
        control(request.validate_only, &request.request_id)?;
        let name = check::subscription_name("name", &request.name)?;
        let expected = token::parse_etag("etag", &request.etag)?;
        Ok(Response::new(self.shared.broker.delete_subscription(name, expected).await?))
    }

    async fn create_snapshot(&self, _: Request<CreateSnapshotRequest>) -> Result<Response<Snapshot>, Status> {
        rpc_not_built("QueueService.CreateSnapshot")
    }

    async fn get_snapshot(&self, _: Request<GetSnapshotRequest>) -> Result<Response<Snapshot>, Status> {
        rpc_not_built("QueueService.GetSnapshot")
    }

    async fn list_snapshots(
        &self,
        _: Request<ListSnapshotsRequest>,
    ) -> Result<Response<ListSnapshotsResponse>, Status> {
        rpc_not_built("QueueService.ListSnapshots")
    }

    async fn update_snapshot(&self, _: Request<UpdateSnapshotRequest>) -> Result<Response<Snapshot>, Status> {
        rpc_not_built("QueueService.UpdateSnapshot")
    }

    async fn delete_snapshot(&self, _: Request<DeleteSnapshotRequest>) -> Result<Response<()>, Status> {
        rpc_not_built("QueueService.DeleteSnapshot")
    }

    async fn purge(&self, request: Request<PurgeRequest>) -> Result<Response<PurgeResponse>, Status> {
        let request = request.into_inner();
        control(request.validate_only, &request.request_id)?;
        not_built("", &[("filter", !request.filter.is_empty())])?;
        let name = check::queue_name("name", &request.name)?;
        let barrier = self.shared.broker.purge(name, request.end_offset.map(Offset)).await?;
        Ok(Response::new(PurgeResponse { barrier_offset: barrier.0 }))
    }

    async fn pause(&self, request: Request<PauseRequest>) -> Result<Response<PauseResponse>, Status> {
        let request = request.into_inner();
        control(request.validate_only, &request.request_id)?;
        let target = paused(&request.name, &request.source)?;
        let refuses = refuses(&target, request.publish)?;
        check::at_most("reason", "bytes", request.reason.len(), ERROR_TEXT_BYTES_MAX)?;
        let pause = self.shared.broker.pause(target, refuses, request.reason).await?;
        Ok(Response::new(PauseResponse { state: Some(show_pause(pause)) }))
    }

    async fn resume(&self, request: Request<ResumeRequest>) -> Result<Response<ResumeResponse>, Status> {
        let request = request.into_inner();
        control(request.validate_only, &request.request_id)?;
        let target = paused(&request.name, &request.source)?;
        let held_messages = self.shared.broker.resume(target).await?;
        Ok(Response::new(ResumeResponse { held_messages }))
    }

    async fn seek(&self, _: Request<SeekRequest>) -> Result<Response<SeekResponse>, Status> {
        rpc_not_built("QueueService.Seek")
    }
}

//! `QueueService`: queues and subscriptions, made, shown and removed.

use tonic::{Request, Response, Status};

use super::check::{self, not_built, output_only, required};
use super::status::Refusal;
use super::{Shared, rpc_not_built, time, token};
use crate::core::types::{QueueConfig, QueueView, RetryPolicy, Start, SubscriptionConfig, SubscriptionView};
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
    Ok((name, QueueConfig { labels: check::labels("queue.labels", queue.labels)? }))
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
        ],
    )?;
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
    Ok((name, SubscriptionConfig { lease_us, in_flight_max, retry, dead_letter_queue }))
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

fn start_of(start: Option<Position>) -> Result<Start, Refusal> {
    match start {
        None => Ok(Start::default()),
        Some(Position { position: None }) => {
            Err(check::invalid("start.position", "is missing; set earliest, latest or offset"))
        }
        Some(Position { position: Some(place) }) => match place {
            Place::Earliest(()) => Ok(Start::Earliest),
            Place::Latest(()) => Ok(Start::Latest),
            Place::Offset(offset) => Ok(Start::Offset(Offset(offset))),
            Place::Time(_) => Err(Refusal::FieldNotBuilt { field: "start.time".into() }),
            Place::Snapshot(_) => Err(Refusal::FieldNotBuilt { field: "start.snapshot".into() }),
        },
    }
}

/// The fields of control calls that are not built yet.
fn control(validate_only: bool, request_id: &str, etag: &str) -> Result<(), Refusal> {
    not_built(
        "",
        &[
            ("validate_only", validate_only),
            ("request_id", !request_id.is_empty()),
            ("etag", !etag.is_empty()),
        ],
    )
}

fn show_queue(view: QueueView) -> Queue {
    Queue {
        name: view.name.to_string(),
        uid: view.uid.to_string(),
        create_time: Some(time::timestamp(view.create_time_us)),
        update_time: Some(time::timestamp(view.create_time_us)),
        labels: view.config.labels.into_iter().collect(),
        first_offset: view.first_offset.0,
        next_offset: view.next_offset.0,
        ..Queue::default()
    }
}

fn show_subscription(view: SubscriptionView) -> Subscription {
    Subscription {
        name: view.name.to_string(),
        uid: view.uid.to_string(),
        create_time: Some(time::timestamp(view.create_time_us)),
        update_time: Some(time::timestamp(view.create_time_us)),
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
        control(request.validate_only, &request.request_id, "")?;
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

    async fn update_queue(&self, _: Request<UpdateQueueRequest>) -> Result<Response<Queue>, Status> {
        rpc_not_built("QueueService.UpdateQueue")
    }

    async fn delete_queue(&self, request: Request<DeleteQueueRequest>) -> Result<Response<()>, Status> {
        let request = request.into_inner();
        control(request.validate_only, &request.request_id, &request.etag)?;
        let name = check::queue_name("name", &request.name)?;
        Ok(Response::new(self.shared.broker.delete_queue(name).await?))
    }

    async fn create_subscription(
        &self,
        request: Request<CreateSubscriptionRequest>,
    ) -> Result<Response<Subscription>, Status> {
        let request = request.into_inner();
        control(request.validate_only, &request.request_id, "")?;
        let (name, config) = subscription_to_make(required("subscription", request.subscription)?)?;
        let start = start_of(request.start)?;
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
        _: Request<UpdateSubscriptionRequest>,
    ) -> Result<Response<Subscription>, Status> {
        rpc_not_built("QueueService.UpdateSubscription")
    }

    async fn delete_subscription(
        &self,
        request: Request<DeleteSubscriptionRequest>,
    ) -> Result<Response<()>, Status> {
        let request = request.into_inner();
        control(request.validate_only, &request.request_id, &request.etag)?;
        let name = check::subscription_name("name", &request.name)?;
        Ok(Response::new(self.shared.broker.delete_subscription(name).await?))
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
        control(request.validate_only, &request.request_id, "")?;
        not_built("", &[("filter", !request.filter.is_empty())])?;
        let name = check::queue_name("name", &request.name)?;
        let barrier = self.shared.broker.purge(name, request.end_offset.map(Offset)).await?;
        Ok(Response::new(PurgeResponse { barrier_offset: barrier.0 }))
    }

    async fn pause(&self, _: Request<PauseRequest>) -> Result<Response<PauseResponse>, Status> {
        rpc_not_built("QueueService.Pause")
    }

    async fn resume(&self, _: Request<ResumeRequest>) -> Result<Response<ResumeResponse>, Status> {
        rpc_not_built("QueueService.Resume")
    }

    async fn seek(&self, _: Request<SeekRequest>) -> Result<Response<SeekResponse>, Status> {
        rpc_not_built("QueueService.Seek")
    }
}

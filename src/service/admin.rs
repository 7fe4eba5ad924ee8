//! `AdminService`: what operators and tools ask of the server.

use tonic::{Request, Response, Status};

use super::{Shared, check, queues, rpc_not_built, time};
use crate::limits::*;
use crate::proto::v1::admin_service_server::AdminService;
use crate::proto::v1::queue_stats::SubscriptionEntry;
use crate::proto::v1::*;

/// What this server has built, as `GetServerInfo.features` reports it. Names are only added.
pub const FEATURES: &[&str] = &[
    "queues",
    "queues.labels",
    "queues.update",
    "queues.pause",
    "subscriptions",
    "subscriptions.retry_policy",
    "subscriptions.max_attempts",
    "subscriptions.dead_letter_queue",
    "subscriptions.start.earliest",
    "subscriptions.start.latest",
    "subscriptions.start.offset",
    "subscriptions.start.time",
    "subscriptions.update",
    "subscriptions.pause",
    "etag",
    "queues.purge",
    "publish",
    "publish.attributes",
    "publish.producer",
    "publish.source",
    "publish_stream",
    "pull",
    "subscribe",
    "acknowledge",
    "nack.retry.delay",
    "nack.retry.error",
    "nack.release",
    "nack.reject",
    "extend_lease",
    "peek",
    "tail",
    "get_message",
    "cancel_message",
    "stats",
];

/// The service; its clones share everything.
#[derive(Clone, Debug)]
pub struct Admin {
    pub(super) shared: Shared,
}

fn limits() -> ServerLimits {
    ServerLimits {
        max_name_bytes: NAME_BYTES_MAX as u64,
        max_body_bytes: BODY_BYTES_MAX as u64,
        max_attributes: ATTRIBUTES_MAX as u64,
        max_attribute_key_bytes: ATTRIBUTE_KEY_BYTES_MAX as u64,
        max_attribute_value_bytes: ATTRIBUTE_VALUE_BYTES_MAX as u64,
        max_ordering_key_bytes: ORDERING_KEY_BYTES_MAX as u64,
        max_source_bytes: SOURCE_BYTES_MAX as u64,
        max_producer_id_bytes: PRODUCER_ID_BYTES_MAX as u64,
        max_error_text_bytes: ERROR_TEXT_BYTES_MAX as u64,
        max_publish_messages: PUBLISH_MESSAGES_MAX as u64,
        max_publish_bytes: PUBLISH_BYTES_MAX as u64,
        max_request_bytes: REQUEST_BYTES_MAX as u64,
        max_other_request_bytes: OTHER_REQUEST_BYTES_MAX as u64,
        max_pull_messages: u64::from(PULL_MESSAGES_MAX),
        max_pull_bytes: PULL_BYTES_MAX,
        max_ack_ids: ACK_IDS_MAX as u64,
        min_lease: Some(time::duration(LEASE_US_MIN)),
        max_lease: Some(time::duration(LEASE_US_MAX)),
        default_lease: Some(time::duration(LEASE_US_DEFAULT)),
        max_retry_delay: Some(time::duration(RETRY_DELAY_US_MAX)),
        max_pull_wait: Some(time::duration(PULL_WAIT_US_MAX)),
        max_in_flight: IN_FLIGHT_MAX,
        max_producers: PRODUCERS_MAX as u64,
        max_producer_answers: PRODUCER_ANSWERS_MAX as u64,
        producer_idle: Some(time::duration(PRODUCER_IDLE_US)),
        max_page_size: PAGE_SIZE_MAX as u64,
        default_page_size: PAGE_SIZE_DEFAULT as u64,
        max_labels: LABELS_MAX as u64,
        max_label_key_bytes: LABEL_KEY_BYTES_MAX as u64,
        max_label_value_bytes: LABEL_VALUE_BYTES_MAX as u64,
        max_credit_messages: CREDIT_MESSAGES_MAX,
        max_credit_bytes: CREDIT_BYTES_MAX,
        max_unanswered_acks: UNANSWERED_ACKS_MAX as u64,
        heartbeat_interval: Some(time::duration(HEARTBEAT_US)),
        max_tails: TAILS_MAX as u64,
    }
}

fn show_server_stats(stats: crate::broker::api::ServerStats) -> ServerStats {
    ServerStats {
        queues: stats.queues,
        subscriptions: stats.subscriptions,
        producers: stats.producers,
        consumers: stats.consumers,
        log_bytes: stats.log_bytes,
        segments: stats.segments,
        commits: stats.commits,
        syncs: stats.syncs,
        records: stats.records,
        packed_segments: stats.packed_segments,
        packed_bytes: stats.packed_bytes,
        live_bytes: stats.live_bytes,
        dead_bytes: stats.dead_bytes,
        reserve_bytes: stats.reserve_bytes,
        segments_dropped: stats.segments_dropped,
        segments_rewritten: stats.segments_rewritten,
        segments_merged: stats.segments_merged,
        appended_bytes: stats.bytes_appended,
        written_bytes: stats.bytes_written,
        write_amplification: match stats.bytes_appended {
            0 => 0.0,
            appended => stats.bytes_written as f64 / appended as f64,
        },
    }
}

fn show_queue_stats(stats: crate::core::types::QueueStats) -> QueueStats {
    let entry = |(name, stats): (crate::names::SubscriptionName, _)| SubscriptionEntry {
        subscription: name.to_string(),
        stats: Some(queues::show_subscription_stats(stats)),
    };
    QueueStats {
        queue: stats.name.to_string(),
        next_offset: stats.next_offset.0,
        waiting_messages: stats.waiting_messages,
        published_messages: stats.published_messages,
        published_bytes: stats.published_bytes,
        subscriptions: stats.subscriptions.into_iter().map(entry).collect(),
    }
}

#[tonic::async_trait]
impl AdminService for Admin {
    async fn get_server_info(
        &self,
        _: Request<GetServerInfoRequest>,
    ) -> Result<Response<ServerInfo>, Status> {
        let identity = &self.shared.identity;
        Ok(Response::new(ServerInfo {
            version: env!("CARGO_PKG_VERSION").to_owned(),
            cluster_uid: identity.cluster_uid.to_string(),
            incarnation: identity.incarnation,
            features: FEATURES.iter().map(|&feature| feature.to_owned()).collect(),
            limits: Some(limits()),
            start_time: Some(time::timestamp(identity.start_time_us)),
        }))
    }

    async fn get_stats(
        &self,
        request: Request<GetStatsRequest>,
    ) -> Result<Response<GetStatsResponse>, Status> {
        let queue = request.into_inner().queue;
        if queue.is_empty() {
            let server = show_server_stats(self.shared.broker.server_stats().await?);
            return Ok(Response::new(GetStatsResponse { server: Some(server), queue: None }));
        }
        let stats = self.shared.broker.queue_stats(check::queue_name("queue", &queue)?).await?;
        Ok(Response::new(GetStatsResponse { server: None, queue: Some(show_queue_stats(stats)) }))
    }

    async fn list_sources(
        &self,
        _: Request<ListSourcesRequest>,
    ) -> Result<Response<ListSourcesResponse>, Status> {
        rpc_not_built("AdminService.ListSources")
    }

    async fn move_messages(&self, _: Request<MoveMessagesRequest>) -> Result<Response<Operation>, Status> {
        rpc_not_built("AdminService.MoveMessages")
    }

    async fn redrive(&self, _: Request<RedriveRequest>) -> Result<Response<Operation>, Status> {
        rpc_not_built("AdminService.Redrive")
    }

    async fn list_alerts(
        &self,
        _: Request<ListAlertsRequest>,
    ) -> Result<Response<ListAlertsResponse>, Status> {
        rpc_not_built("AdminService.ListAlerts")
    }

    async fn checkpoint(
        &self,
        _: Request<CheckpointRequest>,
    ) -> Result<Response<CheckpointResponse>, Status> {
        rpc_not_built("AdminService.Checkpoint")
    }

    async fn backup(&self, _: Request<BackupRequest>) -> Result<Response<Operation>, Status> {
        rpc_not_built("AdminService.Backup")
    }

    async fn drain(&self, _: Request<DrainRequest>) -> Result<Response<DrainResponse>, Status> {
        rpc_not_built("AdminService.Drain")
    }

    async fn verify(&self, _: Request<VerifyRequest>) -> Result<Response<Operation>, Status> {
        rpc_not_built("AdminService.Verify")
    }

    async fn get_operation(&self, _: Request<GetOperationRequest>) -> Result<Response<Operation>, Status> {
        rpc_not_built("AdminService.GetOperation")
    }

    async fn list_operations(
        &self,
        _: Request<ListOperationsRequest>,
    ) -> Result<Response<ListOperationsResponse>, Status> {
        rpc_not_built("AdminService.ListOperations")
    }

    async fn cancel_operation(
        &self,
        _: Request<CancelOperationRequest>,
    ) -> Result<Response<Operation>, Status> {
        rpc_not_built("AdminService.CancelOperation")
    }
}

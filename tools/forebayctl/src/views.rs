//! The server's answers as JSON objects. Keys are the field names of the API; durations are text such as `30s`,
//! times RFC 3339, what is not set is null or left out.

use std::time::Duration;

use forebay::proto::v1::{
    PausePublish, PauseState, Queue, QueueStats, ServerInfo, ServerLimits, ServerStats, Subscription,
    SubscriptionStats,
};
use serde_json::{Map, Value, json};

pub const QUEUE_COLUMNS: [&str; 4] = ["name", "first_offset", "next_offset", "create_time"];
pub const SUBSCRIPTION_COLUMNS: [&str; 6] =
    ["name", "lease_duration", "max_in_flight", "ack_floor", "backlog_messages", "leased_messages"];

pub const SUBSCRIPTION_STATS_COLUMNS: [&str; 6] =
    ["name", "ack_floor", "backlog_messages", "leased_messages", "delayed_messages", "oldest_age"];

pub fn queue(queue: &Queue) -> Value {
    json!({
        "name": queue.name,
        "uid": queue.uid,
        "create_time": time(queue.create_time),
        "labels": queue.labels,
        "first_offset": queue.first_offset,
        "next_offset": queue.next_offset,
        "pause": queue.pauses.first().map(pause),
    })
}

pub fn pause(state: &PauseState) -> Value {
    json!({
        "publish": if state.publish() == PausePublish::Refuse { "refused" } else { "held" },
        "pause_time": time(state.pause_time),
        "reason": state.reason,
    })
}

pub fn subscription(subscription: &Subscription) -> Value {
    let mut object = json!({
        "name": subscription.name,
        "uid": subscription.uid,
        "create_time": time(subscription.create_time),
        "lease_duration": duration(subscription.lease_duration),
        "max_in_flight": subscription.max_in_flight,
        "max_attempts": subscription.max_attempts,
        "min_backoff": duration(subscription.retry_policy.and_then(|policy| policy.min_backoff)),
        "max_backoff": duration(subscription.retry_policy.and_then(|policy| policy.max_backoff)),
        "dead_letter_queue": Some(&subscription.dead_letter_queue).filter(|name| !name.is_empty()),
    });
    if let (Some(object), Some(stats)) = (object.as_object_mut(), &subscription.stats) {
        object.extend(subscription_stats(stats));
    }
    object
}

fn subscription_stats(stats: &SubscriptionStats) -> Map<String, Value> {
    let object = json!({
        "ack_floor": stats.ack_floor,
        "backlog_messages": stats.backlog_messages,
        "leased_messages": stats.leased_messages,
        "delayed_messages": stats.delayed_messages,
        "oldest_age": duration(stats.oldest_age),
    });
    match object {
        Value::Object(object) => object,
        _ => unreachable!("json! of braces is an object"),
    }
}

pub fn server_stats(stats: &ServerStats) -> Value {
    json!({
        "queues": stats.queues,
        "subscriptions": stats.subscriptions,
        "producers": stats.producers,
        "consumers": stats.consumers,
        "log_bytes": stats.log_bytes,
        "segments": stats.segments,
        "commits": stats.commits,
        "syncs": stats.syncs,
        "records": stats.records,
        "packed_segments": stats.packed_segments,
        "packed_bytes": stats.packed_bytes,
        "live_bytes": stats.live_bytes,
        "dead_bytes": stats.dead_bytes,
        "reserve_bytes": stats.reserve_bytes,
        "segments_dropped": stats.segments_dropped,
        "segments_rewritten": stats.segments_rewritten,
        "segments_merged": stats.segments_merged,
        "appended_bytes": stats.appended_bytes,
        "written_bytes": stats.written_bytes,
        "write_amplification": (stats.write_amplification * 100.0).round() / 100.0,
    })
}

pub fn queue_stats(stats: &QueueStats) -> Value {
    let subscriptions = stats.subscriptions.iter().map(|entry| {
        let mut object = Map::new();
        object.insert("name".into(), entry.subscription.as_str().into());
        object.extend(entry.stats.iter().flat_map(subscription_stats));
        Value::Object(object)
    });
    json!({
        "queue": stats.queue,
        "next_offset": stats.next_offset,
        "waiting_messages": stats.waiting_messages,
        "published_messages": stats.published_messages,
        "published_bytes": stats.published_bytes,
        "subscriptions": subscriptions.collect::<Vec<_>>(),
    })
}

pub fn server_info(info: &ServerInfo) -> Value {
    json!({
        "version": info.version,
        "cluster_uid": info.cluster_uid,
        "incarnation": info.incarnation,
        "start_time": time(info.start_time),
        "features": info.features,
        "limits": info.limits.as_ref().map(limits),
    })
}

fn limits(limits: &ServerLimits) -> Value {
    json!({
        "max_name_bytes": limits.max_name_bytes,
        "max_body_bytes": limits.max_body_bytes,
        "max_attributes": limits.max_attributes,
        "max_attribute_key_bytes": limits.max_attribute_key_bytes,
        "max_attribute_value_bytes": limits.max_attribute_value_bytes,
        "max_ordering_key_bytes": limits.max_ordering_key_bytes,
        "max_source_bytes": limits.max_source_bytes,
        "max_producer_id_bytes": limits.max_producer_id_bytes,
        "max_error_text_bytes": limits.max_error_text_bytes,
        "max_publish_messages": limits.max_publish_messages,
        "max_publish_bytes": limits.max_publish_bytes,
        "max_request_bytes": limits.max_request_bytes,
        "max_other_request_bytes": limits.max_other_request_bytes,
        "max_pull_messages": limits.max_pull_messages,
        "max_pull_bytes": limits.max_pull_bytes,
        "max_ack_ids": limits.max_ack_ids,
        "min_lease": duration(limits.min_lease),
        "max_lease": duration(limits.max_lease),
        "default_lease": duration(limits.default_lease),
        "max_retry_delay": duration(limits.max_retry_delay),
        "max_pull_wait": duration(limits.max_pull_wait),
        "max_in_flight": limits.max_in_flight,
        "max_producers": limits.max_producers,
        "max_producer_answers": limits.max_producer_answers,
        "producer_idle": duration(limits.producer_idle),
        "max_page_size": limits.max_page_size,
        "default_page_size": limits.default_page_size,
        "max_labels": limits.max_labels,
        "max_label_key_bytes": limits.max_label_key_bytes,
        "max_label_value_bytes": limits.max_label_value_bytes,
        "max_credit_messages": limits.max_credit_messages,
        "max_credit_bytes": limits.max_credit_bytes,
        "max_unanswered_acks": limits.max_unanswered_acks,
        "heartbeat_interval": duration(limits.heartbeat_interval),
        "max_tails": limits.max_tails,
    })
}

fn time(time: Option<prost_types::Timestamp>) -> Option<String> {
    time.map(|time| time.to_string())
}

fn duration(duration: Option<prost_types::Duration>) -> Option<String> {
    duration.map(|duration| match Duration::try_from(duration) {
        Ok(duration) => humantime::format_duration(duration).to_string().replace(' ', ""),
        Err(_) => duration.to_string(),
    })
}

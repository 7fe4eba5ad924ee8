//! Configurations as they lie in records and snapshots. Numbers are varints; text has a u16 length.
//!
//! ```text
//! queue         labels: count, then key, value
//! subscription  lease_us | in_flight_max | attempts_max | backoff_us_min | backoff_us_max
//!               | dead-letter queue: namespace, queue; both empty without one
//! ```

use super::types::{QueueConfig, RetryPolicy, SubscriptionConfig};
use crate::names::{Name, QueueName};
use crate::record::wire::{Put, Reader, WireError};

pub fn put_queue(out: &mut Vec<u8>, config: &QueueConfig) {
    out.put_varint(config.labels.len() as u64);
    for (key, value) in &config.labels {
        out.put_str(key);
        out.put_str(value);
    }
}

pub fn queue(reader: &mut Reader<'_>) -> Result<QueueConfig, WireError> {
    let count = reader.varint()?;
    let mut labels = Vec::new();
    for _ in 0..count {
        labels.push((reader.str()?.to_owned(), reader.str()?.to_owned()));
    }
    Ok(QueueConfig { labels })
}

pub fn put_subscription(out: &mut Vec<u8>, config: &SubscriptionConfig) {
    out.put_varint(config.lease_us);
    out.put_varint(config.in_flight_max);
    out.put_varint(config.retry.attempts_max.into());
    out.put_varint(config.retry.backoff_us_min);
    out.put_varint(config.retry.backoff_us_max);
    let target = config.dead_letter_queue.as_ref();
    out.put_str(target.map_or("", |name| name.namespace.as_str()));
    out.put_str(target.map_or("", |name| name.queue.as_str()));
}

pub fn subscription(reader: &mut Reader<'_>) -> Result<SubscriptionConfig, WireError> {
    let (lease_us, in_flight_max) = (reader.varint()?, reader.varint()?);
    let attempts_max = u32::try_from(reader.varint()?)
        .map_err(|_| WireError::Invalid { what: "the most attempts of a subscription" })?;
    let (backoff_us_min, backoff_us_max) = (reader.varint()?, reader.varint()?);
    Ok(SubscriptionConfig {
        lease_us,
        in_flight_max,
        retry: RetryPolicy { attempts_max, backoff_us_min, backoff_us_max },
        dead_letter_queue: target(reader.str()?, reader.str()?)?,
    })
}

fn target(namespace: &str, queue: &str) -> Result<Option<QueueName>, WireError> {
    if namespace.is_empty() && queue.is_empty() {
        return Ok(None);
    }
    let name = |text| Name::new(text).map_err(|_| WireError::Invalid { what: "a dead-letter queue's name" });
    Ok(Some(QueueName { namespace: name(namespace)?, queue: name(queue)? }))
}

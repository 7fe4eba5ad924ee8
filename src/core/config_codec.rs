//! Configurations as they lie in records and snapshots. Numbers are varints; text has a u16 length.
//!
//! ```text
//! queue         labels: count, then key, value
//! subscription  lease_us | in_flight_max
//! ```

use super::types::{QueueConfig, SubscriptionConfig};
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
}

pub fn subscription(reader: &mut Reader<'_>) -> Result<SubscriptionConfig, WireError> {
    Ok(SubscriptionConfig { lease_us: reader.varint()?, in_flight_max: reader.varint()? })
}

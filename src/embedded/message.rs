//! Messages as their users see them, and as they are stored.

use std::collections::BTreeMap;
use std::ops::Range;
use std::time::{Duration, SystemTime};

use bytes::Bytes;

use super::error::Error;
use crate::broker::api::{NewMessage, Published};
use crate::limits::PRIORITY_DEFAULT;
use crate::record::bounds;
use crate::record::meta::Meta;
use crate::record::{Lane, StoredParts};

/// A message.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Message {
    /// Up to 8 MiB.
    pub body: Bytes,
    /// Up to 100; keys of 1 to 256 bytes, values of up to 1,024.
    pub attributes: BTreeMap<String, String>,
    /// Who produced it, for example a tenant; up to 255 bytes, empty if nobody says so.
    pub source: String,
}

impl Message {
    /// A message without attributes.
    pub fn new(body: impl Into<Bytes>) -> Self {
        Self { body: body.into(), ..Self::default() }
    }

    /// The same with one attribute more.
    pub fn attribute(mut self, key: impl Into<String>, value: impl Into<String>) -> Self {
        self.attributes.insert(key.into(), value.into());
        self
    }

    /// The same of this source.
    pub fn source(mut self, source: impl Into<String>) -> Self {
        self.source = source.into();
        self
    }

    /// Checks the message and turns it into what is stored.
    pub(super) fn into_new(self) -> Result<NewMessage, Error> {
        let meta = Meta {
            attributes: self.attributes.into_iter().collect(),
            source: Some(self.source).filter(|source| !source.is_empty()),
            ..Meta::default()
        };
        bounds::check_message(&meta, &self.body)?;
        let lane = Lane { priority: PRIORITY_DEFAULT, ..Lane::default() };
        Ok(NewMessage { lane, parts: StoredParts { meta: meta.encode(), body: self.body } })
    }
}

/// Where messages that were published are.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Stored {
    /// Their offsets in the queue, in order.
    pub offsets: Range<u64>,
    /// When, by the wall clock; it never falls in a queue.
    pub publish_time: SystemTime,
}

impl Stored {
    pub(super) fn of(published: Published) -> Self {
        let Published { first_offset, count, publish_time_us, .. } = published;
        let offsets = first_offset.0..first_offset.plus(count.into()).0;
        Self { offsets, publish_time: system_time(publish_time_us) }
    }
}

pub(super) fn system_time(unix_us: u64) -> SystemTime {
    SystemTime::UNIX_EPOCH + Duration::from_micros(unix_us)
}

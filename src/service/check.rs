//! Checks of request fields. A failed check names the field by its path, says what is wrong, and what is allowed.

use std::collections::BTreeMap;
use std::fmt::Display;

use super::status::Refusal;
use super::time;
use crate::limits::*;
use crate::names::{Name, QueueName, SubscriptionName, parse_namespace};

/// A refusal of one field.
pub fn invalid(field: impl Into<String>, why: impl ToString) -> Refusal {
    Refusal::Invalid { field: field.into(), why: why.to_string() }
}

pub fn namespace(field: &str, text: &str) -> Result<Name, Refusal> {
    parse_namespace(text).map_err(|error| invalid(field, error))
}

pub fn queue_name(field: &str, text: &str) -> Result<QueueName, Refusal> {
    QueueName::parse(text).map_err(|error| invalid(field, error))
}

pub fn subscription_name(field: &str, text: &str) -> Result<SubscriptionName, Refusal> {
    SubscriptionName::parse(text).map_err(|error| invalid(field, error))
}

/// A sub-message that must be there.
pub fn required<T>(field: &str, value: Option<T>) -> Result<T, Refusal> {
    value.ok_or_else(|| invalid(field, "is required"))
}

/// Fields that only the server sets, each with whether the request sets it.
pub fn output_only(prefix: impl Display, fields: &[(&str, bool)]) -> Result<(), Refusal> {
    match fields.iter().find(|(_, set)| *set) {
        Some((field, _)) => Err(Refusal::OutputOnly { field: format!("{prefix}{field}") }),
        None => Ok(()),
    }
}

/// Fields whose features are not built, each with whether the request sets it.
pub fn not_built(prefix: impl Display, fields: &[(&str, bool)]) -> Result<(), Refusal> {
    match fields.iter().find(|(_, set)| *set) {
        Some((field, _)) => Err(Refusal::FieldNotBuilt { field: format!("{prefix}{field}") }),
        None => Ok(()),
    }
}

/// The length of a text or a list. The field's name is made only when it is needed.
pub fn at_most(field: impl ToString, unit: &'static str, actual: usize, limit: usize) -> Result<(), Refusal> {
    if actual > limit {
        let field = field.to_string();
        return Err(Refusal::Limit { field, unit, actual: actual as u64, limit: limit as u64 });
    }
    Ok(())
}

/// Acknowledgement ids of one request.
pub fn ack_id_count(field: &str, count: usize) -> Result<(), Refusal> {
    if count == 0 {
        return Err(invalid(field, format!("is empty; give 1 to {ACK_IDS_MAX} ack ids")));
    }
    at_most(field, "ack ids", count, ACK_IDS_MAX)
}

/// A lease's length in microseconds.
pub fn lease(field: &str, duration: &prost_types::Duration) -> Result<u64, Refusal> {
    time::duration_us(field, duration, LEASE_US_MIN..=LEASE_US_MAX)
}

/// A lease's length in microseconds, if given.
pub fn lease_if_set(field: &str, duration: Option<&prost_types::Duration>) -> Result<Option<u64>, Refusal> {
    duration.map(|duration| lease(field, duration)).transpose()
}

/// The number of messages of a pull or peek.
pub fn messages_max(wanted: u32) -> u32 {
    if wanted == 0 { PULL_MESSAGES_DEFAULT } else { wanted.min(PULL_MESSAGES_MAX) }
}

/// The body bytes of a pull or peek.
pub fn bytes_max(wanted: u64) -> u64 {
    if wanted == 0 { PULL_BYTES_MAX } else { wanted.min(PULL_BYTES_MAX) }
}

/// The size of a page.
pub fn page_size(wanted: i32) -> Result<usize, Refusal> {
    match usize::try_from(wanted) {
        Ok(0) => Ok(PAGE_SIZE_DEFAULT),
        Ok(size) => Ok(size.min(PAGE_SIZE_MAX)),
        Err(_) => Err(invalid("page_size", format!("is {wanted}; give 0 (for {PAGE_SIZE_DEFAULT}) or more"))),
    }
}

/// Labels, sorted by key.
pub fn labels(field: &str, labels: BTreeMap<String, String>) -> Result<Vec<(String, String)>, Refusal> {
    at_most(field, "labels", labels.len(), LABELS_MAX)?;
    for (key, value) in &labels {
        if key.is_empty() {
            return Err(invalid(field, format!("has an empty key; give 1 to {LABEL_KEY_BYTES_MAX} bytes")));
        }
        at_most(format!("{field}[{key:?}] (its key)"), "bytes", key.len(), LABEL_KEY_BYTES_MAX)?;
        at_most(format!("{field}[{key:?}]"), "bytes", value.len(), LABEL_VALUE_BYTES_MAX)?;
    }
    Ok(labels.into_iter().collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_refused_with_their_field() {
        let refusal = queue_name("parent", "nope").unwrap_err();
        let text = refusal.to_string();
        assert_eq!(text, "parent: \"nope\" is not of the form namespaces/{namespace}/queues/{queue}");
        assert!(queue_name("queue", "namespaces/a/queues/b").is_ok());
        assert!(subscription_name("name", "namespaces/a/queues/b").is_err());
        assert!(namespace("parent", "namespaces/").is_err());
    }

    #[test]
    fn counts_have_their_bounds() {
        assert!(ack_id_count("ack_ids", 0).is_err());
        assert!(ack_id_count("ack_ids", ACK_IDS_MAX).is_ok());
        let refusal = ack_id_count("ack_ids", ACK_IDS_MAX + 1).unwrap_err();
        assert_eq!(refusal.to_string(), "ack_ids has 10001 ack ids; at most 10000 are allowed");
        assert_eq!([0, 1, 1_000, 1_001, u32::MAX].map(messages_max), [10, 1, 1_000, 1_000, 1_000]);
        assert_eq!([0, 1, u64::MAX].map(bytes_max), [PULL_BYTES_MAX, 1, PULL_BYTES_MAX]);
        assert_eq!(page_size(0), Ok(PAGE_SIZE_DEFAULT));
        assert_eq!(page_size(i32::MAX), Ok(PAGE_SIZE_MAX));
        assert!(page_size(-1).is_err());
    }

    #[test]
    fn labels_are_bounded_and_sorted() {
        let pair = |key: &str, value: &str| BTreeMap::from([(key.to_owned(), value.to_owned())]);
        assert_eq!(labels("l", pair("k", "v")), Ok(vec![("k".to_owned(), "v".to_owned())]));
        assert!(labels("l", pair("", "v")).is_err());
        assert!(labels("l", pair(&"k".repeat(64), "v")).is_err());
        assert!(labels("l", pair("k", &"v".repeat(256))).is_err());
        let many = (0..=LABELS_MAX).map(|n| (n.to_string(), String::new())).collect();
        assert!(matches!(labels("l", many), Err(Refusal::Limit { actual: 65, limit: 64, .. })));
    }

    #[test]
    fn the_first_field_that_is_set_is_named() {
        let refusal = not_built("messages[3].", &[("ordering_key", false), ("priority", true)]).unwrap_err();
        assert_eq!(refusal, Refusal::FieldNotBuilt { field: "messages[3].priority".into() });
        assert_eq!(not_built("", &[("a", false)]), Ok(()));
        let refusal = output_only("queue.", &[("uid", true)]).unwrap_err();
        assert_eq!(refusal, Refusal::OutputOnly { field: "queue.uid".into() });
    }
}

//! How much a producer may store: the sizes of one message and of one publish, by every way that leads into a queue.

use super::meta::Meta;
use crate::limits::*;

/// A message or a publish that is refused for its size. The field is a path from the message, or `messages`.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum OutOfBounds {
    #[error("{field} {why}")]
    Empty { field: &'static str, why: String },
    #[error("{field} has {actual} {unit}; at most {limit} are allowed")]
    Over { field: String, unit: &'static str, actual: usize, limit: usize },
}

/// Checks one message.
pub fn check_message(meta: &Meta, body: &[u8]) -> Result<(), OutOfBounds> {
    at_most("body", "bytes", body.len(), BODY_BYTES_MAX)?;
    let source = meta.source.as_deref().unwrap_or_default();
    at_most("source", "bytes", source.len(), SOURCE_BYTES_MAX)?;
    at_most("attributes", "attributes", meta.attributes.len(), ATTRIBUTES_MAX)?;
    for (key, value) in &meta.attributes {
        if key.is_empty() {
            let why = format!("has an empty key; give 1 to {ATTRIBUTE_KEY_BYTES_MAX} bytes");
            return Err(OutOfBounds::Empty { field: "attributes", why });
        }
        // A key that is too long is not repeated in the error.
        at_most("attributes (a key)", "bytes", key.len(), ATTRIBUTE_KEY_BYTES_MAX)?;
        if value.len() > ATTRIBUTE_VALUE_BYTES_MAX {
            let field = format!("attributes[{key:?}]");
            return at_most(&field, "bytes", value.len(), ATTRIBUTE_VALUE_BYTES_MAX);
        }
    }
    Ok(())
}

/// Checks how many messages a publish has.
pub fn check_count(messages: usize) -> Result<(), OutOfBounds> {
    if messages == 0 {
        let why = format!("is empty; give 1 to {PUBLISH_MESSAGES_MAX} messages");
        return Err(OutOfBounds::Empty { field: "messages", why });
    }
    at_most("messages", "messages", messages, PUBLISH_MESSAGES_MAX)
}

/// Checks how many bytes a publish stores: bodies and encoded metadata.
pub fn check_bytes(bytes: usize) -> Result<(), OutOfBounds> {
    at_most("messages", "bytes of bodies and metadata", bytes, PUBLISH_BYTES_MAX)
}

fn at_most(field: &str, unit: &'static str, actual: usize, limit: usize) -> Result<(), OutOfBounds> {
    if actual <= limit {
        return Ok(());
    }
    Err(OutOfBounds::Over { field: field.to_owned(), unit, actual, limit })
}

//! Names of namespaces, queues and subscriptions, checked once at the edge and trusted inside.
//!
//! A name is 1 to 255 bytes of `[A-Za-z0-9-_.~+%]`, and neither `.` nor `..`. Names never become paths.
//! Full names are `namespaces/{n}/queues/{q}` and `namespaces/{n}/queues/{q}/subscriptions/{s}`.

use std::fmt;
use std::sync::Arc;

use crate::limits::NAME_BYTES_MAX;

/// The namespace of a short name.
pub const DEFAULT_NAMESPACE: &str = "default";
/// The subscription that a queue is created with.
pub const DEFAULT_SUBSCRIPTION: &str = "default";

/// A checked name of one thing; its clones share the text.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Name(Arc<str>);

/// Why a text is no name.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum NameError {
    #[error("a name is empty; give 1 to {NAME_BYTES_MAX} bytes of A-Z a-z 0-9 - _ . ~ + %")]
    Empty,
    #[error("a name has {bytes} bytes; at most {NAME_BYTES_MAX} are allowed")]
    TooLong { bytes: usize },
    #[error("the name {name:?} is reserved; choose another than \".\" and \"..\"")]
    Reserved { name: String },
    #[error("the name {name:?} has {character:?} at byte {byte}; allowed are A-Z a-z 0-9 - _ . ~ + %")]
    Character { name: String, character: char, byte: usize },
    #[error("{text:?} is not of the form {form}")]
    Form { text: String, form: &'static str },
}

impl Name {
    /// Checks a text.
    pub fn new(text: &str) -> Result<Self, NameError> {
        if text.is_empty() {
            return Err(NameError::Empty);
        }
        if text.len() > NAME_BYTES_MAX {
            return Err(NameError::TooLong { bytes: text.len() });
        }
        if matches!(text, "." | "..") {
            return Err(NameError::Reserved { name: text.to_owned() });
        }
        let allowed = |byte: u8| {
            byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'_' | b'.' | b'~' | b'+' | b'%')
        };
        let Some(byte) = text.bytes().position(|byte| !allowed(byte)) else { return Ok(Self(text.into())) };
        // All bytes before it are ASCII, so a character begins here.
        let character = text[byte..].chars().next().expect("a byte is there");
        Err(NameError::Character { name: text.to_owned(), character, byte })
    }

    /// What sorts before every name; itself none.
    pub(crate) fn lowest() -> Self {
        Self("".into())
    }

    /// The name as text.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl fmt::Display for Name {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// A queue's full name.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct QueueName {
    pub namespace: Name,
    pub queue: Name,
}

impl QueueName {
    /// Parses `namespaces/{n}/queues/{q}`.
    pub fn parse(text: &str) -> Result<Self, NameError> {
        const FORM: &str = "namespaces/{namespace}/queues/{queue}";
        match parts(text) {
            Some(["namespaces", namespace, "queues", queue]) => {
                Ok(Self { namespace: Name::new(namespace)?, queue: Name::new(queue)? })
            }
            _ => Err(form(text, FORM)),
        }
    }

    /// Whether this is its text.
    pub fn is(&self, text: &str) -> bool {
        let queue = text
            .strip_prefix("namespaces/")
            .and_then(|rest| rest.strip_prefix(self.namespace.as_str()))
            .and_then(|rest| rest.strip_prefix("/queues/"));
        queue == Some(self.queue.as_str())
    }
}

impl fmt::Display for QueueName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "namespaces/{}/queues/{}", self.namespace, self.queue)
    }
}

/// A subscription's full name.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct SubscriptionName {
    pub queue: QueueName,
    pub subscription: Name,
}

impl SubscriptionName {
    /// Parses `namespaces/{n}/queues/{q}/subscriptions/{s}`.
    pub fn parse(text: &str) -> Result<Self, NameError> {
        const FORM: &str = "namespaces/{namespace}/queues/{queue}/subscriptions/{subscription}";
        match parts(text) {
            Some(["namespaces", namespace, "queues", queue, "subscriptions", subscription]) => Ok(Self {
                queue: QueueName { namespace: Name::new(namespace)?, queue: Name::new(queue)? },
                subscription: Name::new(subscription)?,
            }),
            _ => Err(form(text, FORM)),
        }
    }
}

impl fmt::Display for SubscriptionName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/subscriptions/{}", self.queue, self.subscription)
    }
}

/// Parses a namespace's full name, `namespaces/{n}`.
pub fn parse_namespace(text: &str) -> Result<Name, NameError> {
    match parts(text) {
        Some(["namespaces", namespace]) => Name::new(namespace),
        _ => Err(form(text, "namespaces/{namespace}")),
    }
}

/// The parts between slashes, if there are `N` of them.
fn parts<const N: usize>(text: &str) -> Option<[&str; N]> {
    let mut split = text.split('/');
    let mut parts = [""; N];
    for part in &mut parts {
        *part = split.next()?;
    }
    split.next().is_none().then_some(parts)
}

fn form(text: &str, form: &'static str) -> NameError {
    NameError::Form { text: text.chars().take(2 * NAME_BYTES_MAX).collect(), form }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn full_names_round_trip() {
        let text = "namespaces/default/queues/a-Z_0.~+%/subscriptions/s";
        let name = SubscriptionName::parse(text).unwrap();
        assert_eq!(name.to_string(), text);
        assert_eq!(QueueName::parse(&name.queue.to_string()).unwrap(), name.queue);
        assert!(name.queue.is(&name.queue.to_string()));
        for other in [text, "namespaces/default/queues/b", "namespaces/other/queues/a-Z_0.~+%", ""] {
            assert!(!name.queue.is(other), "{other}");
        }
        assert_eq!(parse_namespace("namespaces/n").unwrap().as_str(), "n");
    }

    #[test]
    fn what_is_no_name_is_refused_with_its_reason() {
        assert_eq!(Name::new(""), Err(NameError::Empty));
        assert_eq!(Name::new(&"a".repeat(256)), Err(NameError::TooLong { bytes: 256 }));
        assert!(Name::new(&"a".repeat(255)).is_ok());
        for reserved in [".", ".."] {
            assert!(matches!(Name::new(reserved), Err(NameError::Reserved { .. })), "{reserved}");
        }
        // A slash, a NUL, a space, a Cyrillic look-alike, a combining accent, a fullwidth letter.
        for bad in ["a/b", "a\0b", "a b", "p\u{430}y", "e\u{301}", "\u{ff21}"] {
            assert!(matches!(Name::new(bad), Err(NameError::Character { .. })), "{bad:?}");
        }
        for bad in ["q", "queues/q", "namespaces/n/queues/q/", "namespaces/n/queues/q/subscriptions/s"] {
            assert!(matches!(QueueName::parse(bad), Err(NameError::Form { .. })), "{bad}");
        }
    }
}

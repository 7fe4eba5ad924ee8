//! Names as typed, made full. Which characters a name may have is the server's to say.

/// The namespace of a short name.
const NAMESPACE: &str = "default";

/// A queue's full name, `namespaces/{n}/queues/{q}`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct QueueName(String);

impl QueueName {
    /// Takes `q` (in the namespace `default`) or a full name; as a parser of arguments.
    pub fn parse(text: &str) -> Result<Self, String> {
        match text.split('/').collect::<Vec<_>>()[..] {
            [name] if !name.is_empty() => Ok(Self(format!("namespaces/{NAMESPACE}/queues/{name}"))),
            ["namespaces", namespace, "queues", name] if !namespace.is_empty() && !name.is_empty() => {
                Ok(Self(text.to_owned()))
            }
            _ => Err("a queue is NAME, or namespaces/NAMESPACE/queues/NAME in full".to_owned()),
        }
    }

    /// The full name.
    pub fn as_str(&self) -> &str {
        &self.0
    }

    /// The full name of one of this queue's subscriptions.
    pub fn subscription(&self, name: &str) -> String {
        format!("{}/subscriptions/{name}", self.0)
    }
}

/// Takes one part of a full name; as a parser of arguments.
pub fn parse_part(text: &str) -> Result<String, String> {
    match text {
        "" => Err("a name has at least one character".to_owned()),
        _ if text.contains('/') => Err("a plain name is needed here, without \"/\"".to_owned()),
        _ => Ok(text.to_owned()),
    }
}

/// The full name of a namespace.
pub fn namespace(name: &str) -> String {
    format!("namespaces/{name}")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn short_and_full_names_mean_the_same() {
        let queue = QueueName::parse("mail").unwrap();
        assert_eq!(queue.as_str(), "namespaces/default/queues/mail");
        assert_eq!(QueueName::parse("namespaces/default/queues/mail").unwrap(), queue);
        assert_eq!(queue.subscription("s"), "namespaces/default/queues/mail/subscriptions/s");
    }

    #[test]
    fn what_has_another_form_is_refused() {
        for bad in
            ["", "/", "a/b", "queues/q", "namespaces//queues/q", "namespaces/n/queues/", "namespaces/n"]
        {
            assert!(QueueName::parse(bad).is_err(), "{bad:?}");
        }
        assert!(parse_part("a/b").is_err());
        assert!(parse_part("").is_err());
    }
}

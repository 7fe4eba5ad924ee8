//! Which queue has which name: found at once when it is asked for, and listed in order.
//!
//! Every publish asks, of any queue: a walk down a tree of ten thousand names costs more than the rest of the decision.
//! Names are chosen by clients, so they are hashed with a secret of the process.

use std::collections::{BTreeMap, HashMap};
use std::ops::Bound;

use crate::ids::QueueId;
use crate::names::{Name, QueueName};

/// See the module's header.
#[derive(Clone, Debug, Default)]
pub struct Directory {
    /// Never iterated over.
    ids: HashMap<QueueName, QueueId>,
    sorted: BTreeMap<QueueName, QueueId>,
}

impl Directory {
    pub fn get(&self, name: &QueueName) -> Option<QueueId> {
        self.ids.get(name).copied()
    }

    pub fn insert(&mut self, name: QueueName, id: QueueId) {
        self.ids.insert(name.clone(), id);
        self.sorted.insert(name, id);
    }

    pub fn remove(&mut self, name: &QueueName) {
        self.ids.remove(name);
        self.sorted.remove(name);
    }

    /// The queues of a namespace in order of name, those after `after`.
    pub fn after<'a>(
        &'a self,
        namespace: &'a Name,
        after: Option<&Name>,
    ) -> impl Iterator<Item = QueueId> + use<'a> {
        let lowest = Name::lowest();
        let after = QueueName { namespace: namespace.clone(), queue: after.unwrap_or(&lowest).clone() };
        let rest = self.sorted.range((Bound::Excluded(after), Bound::Unbounded));
        rest.take_while(move |(name, _)| name.namespace == *namespace).map(|(_, id)| *id)
    }
}

impl FromIterator<(QueueName, QueueId)> for Directory {
    fn from_iter<I: IntoIterator<Item = (QueueName, QueueId)>>(named: I) -> Self {
        let mut directory = Self::default();
        named.into_iter().for_each(|(name, id)| directory.insert(name, id));
        directory
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn name(namespace: &str, queue: &str) -> QueueName {
        QueueName { namespace: Name::new(namespace).unwrap(), queue: Name::new(queue).unwrap() }
    }

    #[test]
    fn queues_are_found_by_name_and_listed_in_order_within_their_namespace() {
        let named = [("n", "c"), ("n", "a"), ("m", "z"), ("o", "a"), ("n", "b")];
        let mut directory: Directory = named
            .iter()
            .zip(1..)
            .map(|((namespace, queue), id)| (name(namespace, queue), QueueId(id)))
            .collect();
        let namespace = Name::new("n").unwrap();
        let after = |directory: &Directory, after: Option<&str>| {
            let after = after.map(|queue| Name::new(queue).unwrap());
            directory.after(&namespace, after.as_ref()).map(|id| id.0).collect::<Vec<_>>()
        };
        assert_eq!(after(&directory, None), [2, 5, 1]);
        assert_eq!(after(&directory, Some("a")), [5, 1]);
        assert_eq!(directory.get(&name("m", "z")), Some(QueueId(3)));
        assert_eq!(directory.get(&name("m", "a")), None);
        directory.remove(&name("n", "b"));
        assert_eq!((directory.get(&name("n", "b")), after(&directory, None)), (None, vec![2, 1]));
        directory.insert(name("n", "b"), QueueId(9));
        assert_eq!(
            (directory.get(&name("n", "b")), after(&directory, None)),
            (Some(QueueId(9)), vec![2, 9, 1])
        );
    }
}

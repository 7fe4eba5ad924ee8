//! Which messages that must be there were found, and which were not.
//!
//! A queue keeps every offset from its first one to its next; what of that is in no segment, and not finished by all
//! subscriptions, is lost. What is kept: a few ranges for each queue, and for each gap the damage that came before it.

use std::collections::BTreeMap;

use crate::core::State;
use crate::core::rebuild::Ranges;
use crate::ids::{Offset, QueueId};

/// A place in a file of the data directory.
pub type Place = (String, u64);

/// See the module's header.
#[derive(Debug, Default)]
pub struct Coverage {
    queues: BTreeMap<QueueId, Queue>,
    /// The last damage that may have cost whole runs.
    damage: Option<Place>,
}

#[derive(Debug)]
struct Queue {
    found: Ranges,
    /// Behind the highest message that is known to have been stored.
    end: Offset,
    /// Behind the highest message that was found.
    found_end: Offset,
    /// The damage before the message at an offset, where messages before it were not found.
    behind: BTreeMap<Offset, Option<Place>>,
}

/// Messages that are in no segment.
#[derive(Debug, PartialEq, Eq)]
pub struct Missing {
    pub queue: QueueId,
    pub first: Offset,
    pub last: Offset,
    /// What has probably cost them.
    pub damage: Option<Place>,
}

impl Coverage {
    /// Of the queues that there are.
    pub fn new(state: &State) -> Self {
        let queues = state.queue_ids().filter_map(|id| state.queue(id)).map(|queue| {
            let (end, found_end) = (queue.next_offset, queue.first_offset);
            (queue.id, Queue { found: Ranges::default(), end, found_end, behind: BTreeMap::new() })
        });
        Self { queues: queues.collect(), damage: None }
    }

    /// Here whole runs may have been lost.
    pub fn damage(&mut self, file: &str, position: u64) {
        self.damage = Some((file.to_owned(), position));
    }

    /// The messages `first..end` are there, whole or not.
    pub fn found(&mut self, queue: QueueId, first: Offset, end: Offset) {
        let Some(queue) = self.queues.get_mut(&queue) else { return };
        if first > queue.found_end {
            queue.behind.insert(first, self.damage.clone());
        }
        queue.found_end = queue.found_end.max(end);
        queue.end = queue.end.max(end);
        queue.found.add(first, end);
    }

    /// The messages before `end` were stored once.
    pub fn stored(&mut self, queue: QueueId, end: Offset) {
        if let Some(queue) = self.queues.get_mut(&queue) {
            queue.end = queue.end.max(end);
        }
    }

    /// What is missing, in order of queue and offset.
    pub fn missing(&self, state: &State) -> Vec<Missing> {
        let mut missing = Vec::new();
        for (id, queue) in &self.queues {
            let first = state.queue(*id).map_or(Offset(0), |queue| queue.first_offset);
            for (first, end) in queue.found.gaps(first, queue.end) {
                let first = state.first_needed(*id, first);
                if first < end {
                    let damage = queue.behind.get(&end).unwrap_or(&self.damage).clone();
                    missing.push(Missing { queue: *id, first, last: Offset(end.0 - 1), damage });
                }
            }
        }
        missing
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::clock::Now;
    use crate::core::admin;
    use crate::core::types::QueueConfig;
    use crate::ids::Uid;
    use crate::names::QueueName;

    fn missing(coverage: &Coverage, state: &State) -> Vec<(u64, u64, Option<u64>)> {
        let missing = coverage.missing(state).into_iter();
        missing.map(|one| (one.first.0, one.last.0, one.damage.map(|(_, at)| at))).collect()
    }

    #[test]
    fn what_is_missing_is_told_with_the_damage_before_it() {
        let mut state = State::default();
        let name = QueueName::parse("namespaces/default/queues/q").unwrap();
        let uids = (Uid([1; 16]), Some(Uid([2; 16])));
        let made = admin::create_queue(&state, name, QueueConfig::default(), uids.0, uids.1, Now::default());
        made.unwrap().events.iter().for_each(|event| state.apply(event));
        let (queue, other) = (QueueId(1), QueueId(9));
        let mut coverage = Coverage::new(&state);
        coverage.found(queue, Offset(2), Offset(5));
        coverage.found(other, Offset(2), Offset(5));
        coverage.damage("a", 7);
        coverage.found(queue, Offset(5), Offset(6));
        coverage.found(queue, Offset(8), Offset(9));
        coverage.damage("b", 70);
        coverage.stored(queue, Offset(12));
        assert_eq!(missing(&coverage, &state), [(0, 1, None), (6, 7, Some(7)), (9, 11, Some(70))]);
        // It may be found later.
        coverage.found(queue, Offset(0), Offset(2));
        coverage.found(queue, Offset(6), Offset(8));
        assert_eq!(missing(&coverage, &state), [(9, 11, Some(70))]);
    }
}

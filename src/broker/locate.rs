//! From a time to a place in a queue.
//!
//! Publish times never fall within a queue and lie in the index beside each run, so the place is found by halving the
//! retained offsets: about log2 of their number of looks into the index, each of which may open the index file of one
//! segment. No message is read. The looks are made off the broker's task, once all that was published before is on
//! disk.
//!
//! What is missing (its segment is damaged, or has just left) counts as published late enough: the place may then be
//! too early, never too late.

use tokio::sync::oneshot;

use super::api::{BrokerError, Reply};
use super::commits::Answer;
use super::shell::Shell;
use crate::ids::{Offset, QueueId};
use crate::log::Index;
use crate::names::QueueName;

/// The retained messages of a queue at one moment.
struct Retained {
    queue: QueueId,
    first: Offset,
    end: Offset,
}

impl Shell {
    /// Finds the first retained message that was published at `time_us` or later.
    pub(super) fn locate(&mut self, name: &QueueName, time_us: u64, reply: Reply<Offset>) {
        let retained = self.state.queue_named(name).map(|queue| Retained {
            queue: queue.id,
            // All of it is older.
            first: if time_us > queue.last_publish_us { queue.next_offset } else { queue.first_offset },
            end: queue.next_offset,
        });
        let (durable, ready) = oneshot::channel();
        self.commits.answer(Answer::new(durable, retained.map_err(BrokerError::Rejected)));
        let (host, index) = (self.host.clone(), self.log.index());
        // Should the broker end first, `reply` is dropped, and its caller learns of the end.
        tokio::spawn(async move {
            let Ok(retained) = ready.await else { return };
            let found = match retained {
                Ok(retained) => {
                    let (done, searching) = oneshot::channel();
                    host.spawn_blocking(Box::new(move || {
                        // Who asked may have gone.
                        let _ = done.send(first_at(&index, &retained, time_us));
                    }));
                    Ok(searching.await.expect("the index does not panic"))
                }
                Err(error) => Err(error),
            };
            let _ = reply.send(found);
        });
    }
}

fn first_at(index: &Index, retained: &Retained, time_us: u64) -> Offset {
    let (mut low, mut high) = (retained.first.0, retained.end.0);
    while low < high {
        let middle = low + (high - low) / 2;
        let plan = index.plan(retained.queue, &[Offset(middle)], 0).ok();
        let piece = plan.and_then(|plan| plan.pieces.first().copied());
        match piece {
            Some(piece) if piece.publish_time_us < time_us => low = middle + 1,
            _ => high = middle,
        }
    }
    Offset(low)
}

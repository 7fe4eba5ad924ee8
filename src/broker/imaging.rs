//! The image of a state for a checkpoint, made a little at a time while the state goes on changing.
//!
//! It holds the queues that had changed at one moment as they were then. A few are encoded in each turn, in order; one
//! that is about to change before it was its turn is encoded first. So a turn never waits for all of them, and the
//! image is whole and of one moment all the same. What is done at that moment is to list the queues.

use rustc_hash::FxHashMap;

use super::needs::{Needs, Noted};
use super::replica::put_part;
use crate::core::{Event, State, snapshot};
use crate::ids::QueueId;
use crate::log::Parts;

/// Queues that are encoded or told of in one turn at most, besides those that are about to change.
pub const QUEUES_PER_TURN: usize = 256;
/// Bytes from which on no more are encoded in one turn.
const BYTES_PER_TURN: usize = 64 << 10;

/// See the module's header.
pub struct Imaging {
    head: Vec<u8>,
    /// In order.
    queues: Vec<QueueId>,
    /// How many of them are in `parts`.
    done: usize,
    parts: Parts,
    /// Parts of others, which were about to change.
    early: FxHashMap<QueueId, Vec<u8>>,
    /// What is needed of those that are encoded.
    noted: Noted,
}

/// A whole image.
pub struct Made {
    pub queues: Vec<QueueId>,
    pub head: Vec<u8>,
    pub parts: Parts,
}

impl Imaging {
    /// Of these queues, which are in order, as they are now.
    pub fn begin(state: &State, queues: Vec<QueueId>) -> Self {
        let mut head = Vec::new();
        snapshot::put_head(&mut head, state);
        let noted = Noted::now(state);
        Self { head, queues, done: 0, parts: Parts::default(), early: FxHashMap::default(), noted }
    }

    /// Keeps what the event is about to change.
    pub fn keep(&mut self, state: &State, event: &Event) {
        match state.changes(event) {
            Some(queue) => {
                let is_left = self.queues[self.done..].binary_search(&queue).is_ok();
                if is_left && !self.early.contains_key(&queue) {
                    let mut part = Vec::new();
                    put_part(&mut part, state, queue);
                    self.early.insert(queue, part);
                    self.noted.note(state, queue);
                }
            }
            None => {
                while !self.is_encoded() {
                    self.encode_some(state);
                }
            }
        }
    }

    /// Queues that are not encoded in order yet.
    pub fn left(&self) -> usize {
        self.queues.len() - self.done
    }

    pub fn is_encoded(&self) -> bool {
        self.left() == 0
    }

    /// Encodes the next few queues.
    pub fn encode_some(&mut self, state: &State) {
        let rest = &self.queues[self.done..];
        let bytes_max = self.parts.bytes() + BYTES_PER_TURN;
        for queue in &rest[..rest.len().min(QUEUES_PER_TURN)] {
            if self.parts.bytes() >= bytes_max {
                break;
            }
            match self.early.remove(queue) {
                Some(part) => self.parts.put(queue.0, |out| out.extend_from_slice(&part)),
                None => {
                    self.parts.put(queue.0, |out| put_part(out, state, *queue));
                    self.noted.note(state, *queue);
                }
            }
            self.done += 1;
        }
    }

    /// Tells what is needed of a few queues; whether all is told. To be called when the image is whole and durable.
    pub fn tell_some(&mut self, needs: &Needs) -> bool {
        needs.take_some(&mut self.noted, QUEUES_PER_TURN)
    }

    pub fn made(self) -> Made {
        let Self { head, queues, parts, .. } = self;
        Made { queues, head, parts }
    }
}

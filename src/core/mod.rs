//! The pure core: queues, subscriptions, leases and de-duplication as a state machine.
//!
//! ```text
//!   command + now ──decide(&State)──▶ answer + events ──apply(&mut State)──▶ next state
//! ```
//!
//! Rules:
//! 1. Deciding changes nothing; applying decides nothing. State is what the log says, applied in order.
//! 2. Nothing here reads a clock, randomness, a file or a socket, or logs; times and random ids come in as arguments.
//! 3. Message bodies and metadata never come in here.
//!
//! Decisions live by subject: [`admin`], [`publish`], [`consume`], [`settle`], [`retry`],
//! [`dead_letter`], [`remove`], [`spill`], [`pause`]. [`rebuild`] makes a state of what a log without checkpoints still
//! has.

pub mod admin;
pub mod bits;
pub mod config_codec;
pub mod consume;
pub mod dead_letter;
pub mod delivery;
mod directory;
pub mod event;
pub mod event_codec;
pub mod misfit;
pub mod pause;
pub mod producers;
pub mod publish;
pub mod rebuild;
pub mod ref_codec;
pub mod remove;
pub mod retry;
pub mod runs;
pub mod settle;
pub mod snapshot;
pub mod spill;
pub mod spilled;
pub mod state;
mod tracked;
pub mod types;

pub use event::Event;
pub use misfit::{LostMessages, Misfit};
pub use state::State;

/// What a command answers, and the facts that make it so.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Decision<T> {
    pub answer: T,
    pub events: Vec<Event>,
}

#[cfg(any(test, feature = "fuzzing"))]
pub(crate) mod harness;
#[cfg(test)]
mod tests;
#[cfg(any(test, feature = "fuzzing"))]
pub(crate) mod walk;

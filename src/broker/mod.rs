//! The shell around the core: one task that owns a shard.
//!
//! ```text
//!   calls ─▶ Shell ─ decide, apply ─▶ Commits ─▶ log writer (own thread) ─ committed ─▶ Shell
//!                                                                           ├─▶ answers that waited
//!                                                                           └─▶ now visible ─▶ consumers
//! ```
//!
//! Invariants:
//! 1. The state runs ahead of the disk; nothing that rests on it is told before the disk has caught up ([`commits`]).
//! 2. A message is delivered only once it is durable: deliveries end where the durable part of its queue does.
//! 3. If the log stops, every caller is told why and the task ends; memory is thrown away, a restart recovers.
//! 4. Messages are looked up and read off this task, a bounded number of bytes at a time ([`reads`]).

mod ack_id;
mod admin;
mod ages;
pub mod api;
mod cache;
mod checkpoints;
mod commits;
mod consumers;
mod due;
pub mod follow;
mod give_up;
mod imaging;
mod locate;
mod needs;
mod open;
mod own;
pub mod pipeline;
mod publish;
mod pump;
mod reads;
mod recall;
pub mod replica;
mod settle;
mod shell;
mod space;
mod timers;

pub use api::Broker;
pub use open::{OpenError, Opened, QueueOffsets, open, open_on};

#[cfg(test)]
mod space_tests;
#[cfg(test)]
mod tests;

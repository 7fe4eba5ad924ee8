//! Forebay: a durable message queue whose backlog is bytes on disk, not memory.
//!
//! # The way of the data
//!
//! ```text
//!   gRPC request ─▶ service      decode, validate; errors become statuses
//!                 ─▶ admission    memory permits, held until the answer
//!                 ─▶ broker       one task: stamps time, asks the core, gates answers on the disk
//!                    ─▶ core      decides on events; events change the state
//!                    ─▶ log       one thread: gather, write, fdatasync; then what waited is answered
//!                    ─▶ delivery  messages that are durable, from memory or the log's files, under leases
//! ```
//!
//! # The rooms
//!
//! Imports flow one way, down this list to what stands above; a test reads them.
//!
//! | Module | For |
//! |---|---|
//! | [`ids`], [`names`], [`limits`], [`clock`] | what everything speaks of |
//! | [`planted`] | bugs on purpose, for tests of the tests; nothing in a usual build |
//! | [`host`] | threads, clocks and randomness of the machine |
//! | `drill` | panics on demand, in debug builds |
//! | [`record`] | the formats of what is stored, byte by byte |
//! | [`disk`] | the narrow trait under the log |
//! | [`core`] | the pure state machine: queues, leases, de-duplication |
//! | [`log`] | frames, segments, recovery, reading |
//! | [`admission`] | memory permits |
//! | [`broker`] | the shell around core and log |
//! | [`observe`] | metrics and probes |
//! | [`proto`], [`service`] | the API and the only code that speaks it |
//! | [`node`] | a broker on a data directory |
//! | [`embedded`] | the broker in a process of your own: [`Forebay::open`] |
//! | [`config`], [`server`] | choices, wiring |
//! | [`offline`] | work on a data directory without a server: `fsck`, `dump` |
//! | [`client`] | the Rust client, which sees the API alone |

pub mod admission;
pub mod broker;
pub mod client;
pub mod clock;
pub mod config;
pub mod core;
pub mod disk;
mod drill;
pub mod embedded;
#[cfg(any(test, feature = "fuzzing"))]
pub mod fuzz;
pub mod host;
pub mod ids;
pub mod limits;
pub mod log;
pub mod names;
pub mod node;
pub mod observe;
pub mod offline;
pub mod planted;
pub mod proto;
pub mod record;
pub mod server;
pub mod service;

pub use embedded::Forebay;

//! The gRPC edge: the only code that sees prost and tonic types.
//!
//! 1. Requests are checked here, once; the broker is called with checked types only.
//! 2. A field that is set and whose feature is not built is refused by its path, never ignored; an RPC that is not
//!    built is refused by its name.
//! 3. Errors become statuses in [`status`] alone.
//! 4. Nothing here holds a lock over an await, and a panic in a handler is an error of its call ([`caught`]).

mod accept;
mod admin;
mod admit;
mod caught;
mod check;
mod edge;
mod ending;
mod explain;
mod frames;
mod guarded;
mod incoming;
pub(crate) mod message;
mod messages;
mod outgoing;
mod places;
mod publish_call;
mod publish_stream;
mod queues;
pub mod server;
mod settling;
pub mod status;
mod subscribe;
mod tail;
mod time;
mod token;
mod unsent;
mod update;
mod windows;
mod wire;

use std::ops::Deref;
use std::sync::Arc;

use tonic::{Response, Status};

use crate::admission::{Budgets, Outflow};
use crate::broker::api::Broker;
use crate::ids::Uid;
use crate::observe::readiness::Readiness;

pub use admin::FEATURES;
pub use places::Bounds;
#[cfg(any(test, feature = "fuzzing"))]
pub use wire::publish::agrees as requests;

/// Who this server is.
#[derive(Clone, Copy, Debug)]
pub struct Identity {
    /// Of the data directory; stays for ever.
    pub cluster_uid: Uid,
    /// Counts the starts on this data directory.
    pub incarnation: u64,
    /// When this process began to serve: wall time, microseconds since the Unix epoch.
    pub start_time_us: u64,
}

/// What every service needs. Each call has it: a clone is one pointer more.
#[derive(Clone, Debug)]
struct Shared(Arc<Common>);

#[derive(Debug)]
struct Common {
    broker: Broker,
    budgets: Budgets,
    outflow: Outflow,
    readiness: Readiness,
    identity: Identity,
}

impl Shared {
    fn new(common: Common) -> Self {
        Self(Arc::new(common))
    }
}

impl Deref for Shared {
    type Target = Common;

    fn deref(&self) -> &Common {
        &self.0
    }
}

fn rpc_not_built<T>(rpc: &'static str) -> Result<Response<T>, Status> {
    Err(status::Refusal::RpcNotBuilt { rpc }.into())
}

#[cfg(test)]
mod tests;

//! The gRPC edge: the only code that sees prost and tonic types.
//!
//! 1. Requests are checked here, once; the broker is called with checked types only.
//! 2. A field that is set and whose feature is not built is refused by its path, never ignored; an RPC that is not
//!    built is refused by its name.
//! 3. Errors become statuses in [`status`] alone.
//! 4. Nothing here holds a lock over an await, so a panic in a handler harms its own connection only.

mod accept;
mod admin;
mod admit;
mod check;
mod edge;
mod ending;
mod explain;
mod incoming;
pub(crate) mod message;
mod messages;
mod outgoing;
mod publish_stream;
mod queues;
pub mod server;
pub mod status;
mod subscribe;
mod tail;
mod time;
mod token;
mod update;
mod windows;
mod wire;

use std::sync::Arc;

use tonic::{Response, Status};

use crate::admission::{Admission, Outflow};
use crate::broker::api::Broker;
use crate::ids::Uid;
use crate::observe::readiness::Readiness;

pub use admin::FEATURES;

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

/// What every service needs.
#[derive(Clone, Debug)]
struct Shared {
    broker: Broker,
    admission: Admission,
    outflow: Outflow,
    readiness: Readiness,
    identity: Arc<Identity>,
}

fn rpc_not_built<T>(rpc: &'static str) -> Result<Response<T>, Status> {
    Err(status::Refusal::RpcNotBuilt { rpc }.into())
}

#[cfg(test)]
mod tests;

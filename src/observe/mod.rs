//! What the server shows of itself: metrics, liveness, readiness.

pub mod connections;
pub mod http;
pub mod metrics;
pub mod readiness;
pub mod rpc;
mod space;

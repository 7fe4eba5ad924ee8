//! Where the server is at the moment, and what its errors mean to a client that keeps a history.

use std::sync::Arc;
use std::time::Duration;

use forebay::client::is_lost_connection;
use tokio::sync::watch;
use tonic::{Code, Status};
use tonic_types::StatusExt as _;

use super::history::History;
use crate::Clients;

/// How long a client rests before it tries again.
const REST: Duration = Duration::from_millis(3);
/// No call may take longer: pulls wait for a fraction of a second.
pub const ANSWER_WITHIN: Duration = Duration::from_secs(30);

/// The state of the server, for its clients.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Phase {
    Down,
    Up {
        run: u64,
        address: String,
    },
    /// Clients end.
    Over,
}

/// What an error leaves a client with.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Failure {
    /// The call had no effect.
    Refused,
    /// It may have had its effect, or not.
    Unknown,
}

/// Follows the server from start to start.
#[derive(Debug)]
pub struct Target {
    phase: watch::Receiver<Phase>,
    connected: Option<(u64, Clients)>,
    pub history: Arc<History>,
}

impl Target {
    pub fn new(phase: watch::Receiver<Phase>, history: Arc<History>) -> Self {
        Self { phase, connected: None, history }
    }

    /// A connection to the running server, waiting for one; none when it is over.
    pub async fn clients(&mut self) -> Option<Clients> {
        loop {
            let phase = self.phase.borrow_and_update().clone();
            match phase {
                Phase::Over => return None,
                Phase::Up { run, address } => {
                    let connected = self.connected.take().filter(|(to, _)| *to == run);
                    let (_, clients) = self
                        .connected
                        .insert(connected.unwrap_or_else(|| (run, Clients::watchful(&address))));
                    return Some(clients.clone());
                }
                Phase::Down => self.phase.changed().await.ok()?,
            }
        }
    }

    /// The life of the server that the last connection is to.
    pub fn life(&self) -> u64 {
        self.connected.as_ref().map_or(0, |(run, _)| *run)
    }

    pub fn is_over(&self) -> bool {
        *self.phase.borrow() == Phase::Over
    }

    /// Judges an error, and rests a little.
    pub async fn failed(&self, call: &str, status: &Status) -> Failure {
        let failure = judge(&self.history, call, status);
        tokio::time::sleep(REST).await;
        failure
    }
}

/// Judges an error: one that a correct server never gives is recorded.
pub fn judge(history: &History, call: &str, status: &Status) -> Failure {
    let Some(info) = status.get_details_error_info() else {
        history.told("NO_CONNECTION");
        if !is_lost_connection(status) {
            history.unexpected(format!("{call}: {status}"));
        }
        return Failure::Unknown;
    };
    history.told(&info.reason);
    match (status.code(), info.reason.as_str()) {
        (Code::Unavailable, "LOG_STOPPED") => Failure::Unknown,
        (Code::Unavailable, "DRAINING") | (Code::ResourceExhausted, "MEMORY_BUDGET") => Failure::Refused,
        (Code::ResourceExhausted, reason) if history.tolerates(reason) => Failure::Refused,
        (_, reason) if history.tolerates(reason) => Failure::Unknown,
        _ => {
            history.unexpected(format!("{call}: {status} ({})", info.reason));
            Failure::Unknown
        }
    }
}

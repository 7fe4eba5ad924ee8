//! What callers of the client are told.

use std::collections::HashMap;
use std::error::Error;

use tonic::{Code, Status};
use tonic_types::StatusExt as _;

/// Why something was not done.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ClientError {
    #[error("{url:?} is no address of a server: {why}")]
    Url { url: String, why: String },
    #[error("no server answers at {url}: {why}")]
    Connect { url: String, why: String },
    /// The server refused for good; trying the same again cannot help. Nothing of the request took effect.
    #[error(transparent)]
    Refused(Box<Refused>),
    /// More than a server takes in one request; it was not sent.
    #[error("the request has {bytes} bytes; at most {max} are sent at once")]
    TooLarge { bytes: u64, max: u64 },
    /// The task behind it is gone: its runtime was shut down, or it was dropped. Whether the request took effect is
    /// not known.
    #[error("the client has ended before the answer")]
    Ended,
}

/// An error as the server gave it.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{message} ({code:?} {reason})")]
pub struct Refused {
    pub code: Code,
    /// The name of an `ErrorReason`; empty if the server gave none.
    pub reason: String,
    pub message: String,
    /// More about the reason, as the comments of `ErrorReason` say.
    pub metadata: HashMap<String, String>,
}

impl From<Status> for ClientError {
    fn from(status: Status) -> Self {
        let info = status.get_error_details().error_info().cloned();
        let (reason, metadata) = info.map(|info| (info.reason, info.metadata)).unwrap_or_default();
        let message = status.message().to_owned();
        Self::Refused(Box::new(Refused { code: status.code(), reason, message, metadata }))
    }
}

/// An error's text with those of its causes.
pub(super) fn with_causes(error: &dyn Error) -> String {
    let mut text = error.to_string();
    let mut cause = error.source();
    while let Some(error) = cause {
        text = format!("{text}: {error}");
        cause = error.source();
    }
    text
}

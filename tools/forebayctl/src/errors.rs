//! What can go wrong, as two lines for people and an exit code for scripts.
//!
//! The server's errors carry `google.rpc.ErrorInfo` always. One without it was made on the way here: by this
//! machine's network, a proxy, or a connection that broke with the server.

use std::io::{self, Write};

use forebay::client::is_lost_connection;
use tonic::{Code, Status};
use tonic_types::StatusExt;

/// The exit codes, as the help shows them.
pub const EXIT_CODES: &str = "\
Exit codes:
  0  done                              5  invalid argument, or out of range
  1  any other error                   6  server unavailable, or it took too long
  2  wrong usage                       7  resource exhausted (rate, quota, memory, disk)
  3  not found                         8  data loss: a stored message is damaged
  4  exists already, or a conflict     9  not built into this server
  130 ended by Ctrl-C, 143 by SIGTERM";

/// The signal that ended a command.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Signal {
    Interrupt,
    Terminate,
}

/// Why a command failed.
#[derive(Debug, thiserror::Error)]
pub enum CtlError {
    #[error("{0}")]
    Usage(String),
    #[error("{}", rpc_text(.0))]
    Rpc(Box<Status>),
    #[error("cannot read {path}: {source}")]
    Input { path: String, source: io::Error },
    #[error(
        "message {index} of the input (from 0) is longer than {max} bytes, the most that the server takes; \
         split it, or is the input not lines of text?"
    )]
    MessageTooLong { index: u64, max: usize },
    #[error("cannot write to standard output: {0}")]
    Output(io::Error),
    #[error("ended by a signal")]
    Interrupted(Signal),
    #[error("cannot get random bytes for a producer id: {0}")]
    Random(getrandom::Error),
}

impl From<Status> for CtlError {
    fn from(status: Status) -> Self {
        Self::Rpc(Box::new(status))
    }
}

impl CtlError {
    /// The exit code of the error's class; `EXIT_CODES` has the list.
    pub fn exit_code(&self) -> u8 {
        match self {
            Self::Usage(_) => 2,
            Self::Rpc(status) if is_lost_connection(status) => 6,
            Self::Rpc(status) => match status.code() {
                Code::NotFound => 3,
                Code::AlreadyExists | Code::Aborted | Code::FailedPrecondition => 4,
                Code::InvalidArgument | Code::OutOfRange => 5,
                Code::Unavailable | Code::DeadlineExceeded => 6,
                Code::ResourceExhausted => 7,
                Code::DataLoss => 8,
                Code::Unimplemented => 9,
                _ => 1,
            },
            Self::MessageTooLong { .. } => 5,
            Self::Interrupted(Signal::Interrupt) => 130,
            Self::Interrupted(Signal::Terminate) => 143,
            Self::Input { .. } | Self::Output(_) | Self::Random(_) => 1,
        }
    }

    /// What to do, where the message does not say it.
    pub fn hint(&self, server: &str) -> Option<String> {
        let Self::Rpc(status) = self else { return None };
        if is_lost_connection(status) || status.code() == Code::DeadlineExceeded {
            return Some(format!(
                "is a Forebay server listening at {server}? Choose another with --server or FOREBAY_SERVER"
            ));
        }
        if let Some(delay) = retry_delay(status) {
            return Some(format!("try again in {}", humantime::format_duration(delay)));
        }
        match status.code() {
            Code::Unimplemented => Some("`forebayctl server info` lists what this server has".to_owned()),
            _ => field_violations(status),
        }
    }
}

/// Tells something on standard error; if that is gone, nobody listens.
pub fn note(text: &str) {
    let _ = writeln!(io::stderr(), "forebayctl: {text}");
}

/// The stable reason that the server gave.
pub fn reason(status: &Status) -> Option<String> {
    status.get_details_error_info().map(|info| info.reason).filter(|reason| !reason.is_empty())
}

/// How long the server asked to wait.
pub fn retry_delay(status: &Status) -> Option<std::time::Duration> {
    status.get_details_retry_info().and_then(|info| info.retry_delay)
}

fn rpc_text(status: &Status) -> String {
    let code = status_name(status.code());
    let message = if is_lost_connection(status) { innermost(status) } else { status.message().to_owned() };
    // One line, whatever the message holds.
    let message = message.replace(|c: char| c.is_control(), " ");
    match reason(status) {
        Some(reason) => format!("{message} ({code}, {reason})"),
        None => format!("{message} ({code})"),
    }
}

/// The deepest cause has the operating system's words.
fn innermost(status: &Status) -> String {
    let mut text = status.message().to_owned();
    let mut next = std::error::Error::source(status);
    while let Some(cause) = next {
        text = cause.to_string();
        next = cause.source();
    }
    if text.is_empty() { "the connection to the server broke".to_owned() } else { text }
}

fn field_violations(status: &Status) -> Option<String> {
    let violations = status.get_details_bad_request()?.field_violations;
    let told: Vec<String> = violations
        .iter()
        .filter(|v| !status.message().contains(v.description.as_str()))
        .map(|v| format!("{}: {}", v.field, v.description))
        .collect();
    (!told.is_empty()).then(|| told.join("; "))
}

fn status_name(code: Code) -> &'static str {
    match code {
        Code::Ok => "OK",
        Code::Cancelled => "CANCELLED",
        Code::Unknown => "UNKNOWN",
        Code::InvalidArgument => "INVALID_ARGUMENT",
        Code::DeadlineExceeded => "DEADLINE_EXCEEDED",
        Code::NotFound => "NOT_FOUND",
        Code::AlreadyExists => "ALREADY_EXISTS",
        Code::PermissionDenied => "PERMISSION_DENIED",
        Code::ResourceExhausted => "RESOURCE_EXHAUSTED",
        Code::FailedPrecondition => "FAILED_PRECONDITION",
        Code::Aborted => "ABORTED",
        Code::OutOfRange => "OUT_OF_RANGE",
        Code::Unimplemented => "UNIMPLEMENTED",
        Code::Internal => "INTERNAL",
        Code::Unavailable => "UNAVAILABLE",
        Code::DataLoss => "DATA_LOSS",
        Code::Unauthenticated => "UNAUTHENTICATED",
    }
}

#[cfg(test)]
mod tests {
    use std::collections::HashMap;
    use std::time::Duration;

    use tonic_types::ErrorDetails;

    use super::*;

    fn with_reason(code: Code, reason: &str, retry: Option<Duration>) -> CtlError {
        let mut details = ErrorDetails::new();
        details.set_error_info(reason, "forebay", HashMap::new());
        if retry.is_some() {
            details.set_retry_info(retry);
        }
        Status::with_error_details(code, "what was wrong", details).into()
    }

    #[test]
    fn every_class_has_its_exit_code() {
        let expected = [
            (Code::NotFound, 3),
            (Code::AlreadyExists, 4),
            (Code::Aborted, 4),
            (Code::FailedPrecondition, 4),
            (Code::InvalidArgument, 5),
            (Code::OutOfRange, 5),
            (Code::Unavailable, 6),
            (Code::DeadlineExceeded, 6),
            (Code::ResourceExhausted, 7),
            (Code::DataLoss, 8),
            (Code::Unimplemented, 9),
            (Code::Internal, 1),
        ];
        for (code, exit) in expected {
            assert_eq!(with_reason(code, "R", None).exit_code(), exit, "{code:?}");
        }
        assert_eq!(CtlError::from(Status::unknown("transport error")).exit_code(), 6);
        assert_eq!(CtlError::Usage(String::new()).exit_code(), 2);
    }

    #[test]
    fn an_error_tells_its_reason_and_what_to_do() {
        let error = with_reason(Code::ResourceExhausted, "DISK_FULL", Some(Duration::from_secs(2)));
        assert_eq!(error.to_string(), "what was wrong (RESOURCE_EXHAUSTED, DISK_FULL)");
        assert_eq!(error.hint("http://h:1").as_deref(), Some("try again in 2s"));
        let lost = CtlError::from(Status::unavailable("connection refused"));
        assert!(lost.hint("http://h:1").unwrap().contains("http://h:1"));
    }
}

//! The one place where errors become gRPC statuses. Every status has `google.rpc.ErrorInfo` with the domain `forebay`
//! and a reason of `forebay.v1.ErrorReason`, and whatever else helps its receiver to act.

use std::collections::HashMap;
use std::time::Duration;

use tonic::{Code, Status};
use tonic_types::{ErrorDetails, StatusExt};

use crate::admission::{BudgetUsedUp, retry_delay};
use crate::broker::api::BrokerError;
use crate::core::types::Reject;
use crate::proto::v1::ErrorReason;

/// The domain of every `ErrorInfo`.
pub const DOMAIN: &str = "forebay";

/// Longest text of a status, bytes: the longest names fit. With all of its details in base64 a status stays below the
/// 8 KiB of headers that every client takes.
const TEXT_BYTES_MAX: usize = 900;

/// When to try again after the memory budget was in use.
const MEMORY_RETRY: Duration = Duration::from_millis(250);
/// When to try again at a server that stops: about the time of a restart.
const RESTART_RETRY: Duration = Duration::from_millis(500);
/// When to try again after the disk was full.
const DISK_RETRY: Duration = Duration::from_secs(1);
/// When to try again for a place among the producers: idle ones expire slowly.
const PRODUCERS_RETRY: Duration = Duration::from_secs(10);
/// When to try again for a place among the tails.
const TAILS_RETRY: Duration = Duration::from_secs(5);

/// Why the service itself refuses a request.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Refusal {
    #[error("{field}: {why}")]
    Invalid { field: String, why: String },
    #[error("{field} is set by the server alone; leave it out")]
    OutputOnly { field: String },
    #[error("{field} has {actual} {unit}; at most {limit} are allowed")]
    Limit { field: String, unit: &'static str, actual: u64, limit: u64 },
    #[error("page_token is not one of this listing; start again without it")]
    PageToken,
    #[error("resume_token is not one of this server; begin without it")]
    ResumeToken,
    #[error("{field} is not built in this server; leave it out (GetServerInfo.features says what is built)")]
    FieldNotBuilt { field: String },
    #[error("{rpc} is not built in this server (GetServerInfo.features says what is built)")]
    RpcNotBuilt { rpc: &'static str },
    #[error("{path} is no RPC of this server")]
    PathUnknown { path: String },
    #[error(
        "the request is compressed, which this server does not read; send it as it is (grpc-encoding: identity)"
    )]
    Compressed,
    #[error("{why}")]
    Stream { why: &'static str },
    #[error(transparent)]
    Memory(#[from] BudgetUsedUp),
    #[error("nothing was read for a while and others waited for the memory; read on, or give less credit")]
    SlowReader,
    #[error("nothing came of a request for a while and others waited for its memory; send it again")]
    SlowSender,
    #[error("too many calls are under way; try again after the delay, or from fewer tasks at one time")]
    TooManyCalls,
    #[error("too many small requests of the stream wait; send more as answers to them come")]
    TooFarAhead,
    #[error("the server is draining; try again after its restart")]
    Draining,
    #[error(
        "{what} has panicked, which is a bug of the server: its log has the panic. Whether it took effect is unknown; it is safe to call again, and a publish with a producer is stored once"
    )]
    Panicked { what: &'static str },
    #[error("{why}, which is a bug of the server")]
    Internal { why: &'static str },
}

/// A status in the making.
struct Draft {
    code: Code,
    reason: ErrorReason,
    metadata: HashMap<String, String>,
    details: ErrorDetails,
}

impl Draft {
    fn new(code: Code, reason: ErrorReason) -> Self {
        Self { code, reason, metadata: HashMap::new(), details: ErrorDetails::new() }
    }

    fn with(mut self, key: &str, value: impl ToString) -> Self {
        self.metadata.insert(key.to_owned(), bounded(value.to_string()));
        self
    }

    fn violation(mut self, field: &str, why: impl ToString) -> Self {
        self.details.add_bad_request_violation(bounded(field.to_owned()), bounded(why.to_string()));
        self
    }

    fn retry_after(mut self, base: Duration) -> Self {
        self.details.set_retry_info(Some(retry_delay(base)));
        self
    }

    fn quota(mut self, subject: &str, why: impl ToString) -> Self {
        self.details.add_quota_failure_violation(subject, why.to_string());
        self
    }

    fn resource(mut self, kind: &str, name: impl ToString, why: &str) -> Self {
        self.details.set_resource_info(kind, bounded(name.to_string()), "", why);
        self.with(kind, name)
    }

    fn status(mut self, message: String) -> Status {
        self.details.set_error_info(self.reason.as_str_name(), DOMAIN, self.metadata);
        Status::with_error_details(self.code, bounded(message), self.details)
    }
}

/// A text without what is beyond its bound: texts repeat what a client has sent.
fn bounded(mut text: String) -> String {
    if text.len() > TEXT_BYTES_MAX {
        let length = text.len();
        let end = (0..=TEXT_BYTES_MAX).rev().find(|at| text.is_char_boundary(*at));
        text.truncate(end.expect("0 is one"));
        text.push_str(&format!("… ({length} bytes)"));
    }
    text
}

impl From<Refusal> for Status {
    fn from(refusal: Refusal) -> Self {
        let message = refusal.to_string();
        let invalid = |reason| Draft::new(Code::InvalidArgument, reason);
        let draft = match &refusal {
            Refusal::Invalid { field, why } => {
                invalid(ErrorReason::InvalidField).violation(field, why).with("field", field)
            }
            Refusal::OutputOnly { field } => {
                invalid(ErrorReason::OutputOnlyField).violation(field, &message).with("field", field)
            }
            Refusal::Limit { field, actual, limit, .. } => invalid(ErrorReason::LimitExceeded)
                .violation(field, &message)
                .with("field", field)
                .with("actual", actual)
                .with("limit", limit),
            Refusal::PageToken => invalid(ErrorReason::InvalidPageToken).violation("page_token", &message),
            Refusal::ResumeToken => {
                invalid(ErrorReason::InvalidResumeToken).violation("resume_token", &message)
            }
            Refusal::FieldNotBuilt { field } => {
                Draft::new(Code::Unimplemented, ErrorReason::FieldNotBuilt).with("field", field)
            }
            Refusal::RpcNotBuilt { rpc } => {
                Draft::new(Code::Unimplemented, ErrorReason::RpcNotBuilt).with("rpc", rpc)
            }
            Refusal::PathUnknown { path } => {
                Draft::new(Code::Unimplemented, ErrorReason::RpcNotBuilt).with("rpc", path)
            }
            Refusal::Compressed => Draft::new(Code::Unimplemented, ErrorReason::CompressionNotBuilt),
            Refusal::Stream { .. } => invalid(ErrorReason::StreamProtocol),
            Refusal::Memory(used_up) => Draft::new(Code::ResourceExhausted, ErrorReason::MemoryBudget)
                .retry_after(MEMORY_RETRY)
                .quota("memory_budget", used_up)
                .with("wanted_bytes", used_up.wanted_bytes)
                .with("budget_bytes", used_up.budget_bytes),
            Refusal::SlowReader | Refusal::SlowSender | Refusal::TooManyCalls => {
                Draft::new(Code::ResourceExhausted, ErrorReason::MemoryBudget)
                    .retry_after(MEMORY_RETRY)
                    .quota("memory_budget", &message)
            }
            Refusal::Draining => {
                Draft::new(Code::Unavailable, ErrorReason::Draining).retry_after(RESTART_RETRY)
            }
            Refusal::TooFarAhead => {
                Draft::new(Code::ResourceExhausted, ErrorReason::TooFarAhead).retry_after(MEMORY_RETRY)
            }
            Refusal::Panicked { .. } | Refusal::Internal { .. } => {
                Draft::new(Code::Internal, ErrorReason::InternalError)
            }
        };
        draft.status(message)
    }
}

impl From<BrokerError> for Status {
    fn from(error: BrokerError) -> Self {
        use BrokerError as E;
        let message = error.to_string();
        let draft = match &error {
            E::Rejected(reject) => rejected(reject),
            E::RequestTooLarge { bytes, max } => {
                Draft::new(Code::InvalidArgument, ErrorReason::RequestTooLarge)
                    .violation("messages", &message)
                    .with("actual", bytes)
                    .with("limit", max)
            }
            E::DataLoss { queue, offset } => Draft::new(Code::DataLoss, ErrorReason::MessageDamaged)
                .resource("queue", queue, "has a damaged message")
                .with("offset", offset),
            E::QueueDeleted => Draft::new(Code::NotFound, ErrorReason::QueueNotFound),
            E::OtherQueue { queue } => Draft::new(Code::InvalidArgument, ErrorReason::InvalidResumeToken)
                .violation("resume_token", &message)
                .with("queue", queue),
            E::TooManyTails { max } => Draft::new(Code::ResourceExhausted, ErrorReason::TooManyTails)
                .retry_after(TAILS_RETRY)
                .quota("tails", &message)
                .with("max", max),
            E::SubscriptionDeleted => Draft::new(Code::NotFound, ErrorReason::SubscriptionNotFound),
            E::DiskFull => Draft::new(Code::ResourceExhausted, ErrorReason::DiskFull)
                .retry_after(DISK_RETRY)
                .quota("disk", &message),
            E::Draining => Draft::new(Code::Unavailable, ErrorReason::Draining).retry_after(RESTART_RETRY),
            E::LogStopped { .. } => {
                Draft::new(Code::Unavailable, ErrorReason::LogStopped).retry_after(RESTART_RETRY)
            }
        };
        draft.status(message)
    }
}

fn rejected(reject: &Reject) -> Draft {
    use Reject as R;
    match reject {
        R::QueueNotFound(name) => {
            Draft::new(Code::NotFound, ErrorReason::QueueNotFound).resource("queue", name, "does not exist")
        }
        R::QueueExists(name) => Draft::new(Code::AlreadyExists, ErrorReason::QueueExists).resource(
            "queue",
            name,
            "exists already",
        ),
        R::SubscriptionNotFound(name) => Draft::new(Code::NotFound, ErrorReason::SubscriptionNotFound)
            .resource("subscription", name, "does not exist"),
        R::SubscriptionExists(name) => Draft::new(Code::AlreadyExists, ErrorReason::SubscriptionExists)
            .resource("subscription", name, "exists already"),
        R::MessageNotFound { queue, offset } => Draft::new(Code::NotFound, ErrorReason::MessageNotFound)
            .with("queue", queue)
            .with("offset", offset),
        R::MessageLeased { offset, subscription } => {
            Draft::new(Code::FailedPrecondition, ErrorReason::MessageLeased)
                .with("subscription", subscription)
                .with("offset", offset)
        }
        R::DeadLetterQueue { target, .. } => Draft::new(Code::InvalidArgument, ErrorReason::InvalidField)
            .violation("subscription.dead_letter_queue", reject)
            .with("field", "subscription.dead_letter_queue")
            .with("dead_letter_queue", target),
        R::VersionMismatch { resource } => {
            Draft::new(Code::Aborted, ErrorReason::EtagMismatch).with("resource", resource)
        }
        R::Paused { queue, .. } => {
            Draft::new(Code::FailedPrecondition, ErrorReason::Paused).resource("queue", queue, "is paused")
        }
        R::OffsetOutOfRange { queue, offset, next } => {
            Draft::new(Code::OutOfRange, ErrorReason::OffsetOutOfRange)
                .with("queue", queue)
                .with("offset", offset)
                .with("next_offset", next)
        }
        R::SequenceGap { .. } | R::SequenceTooOld { .. } | R::ProducerFenced { .. } => producer(reject),
        R::TooManyProducers { max } => Draft::new(Code::ResourceExhausted, ErrorReason::TooManyProducers)
            .retry_after(PRODUCERS_RETRY)
            .quota("producers", reject.to_string())
            .with("max", max),
    }
}

/// The errors of de-duplication: all ABORTED, for repeating the same request cannot help.
fn producer(reject: &Reject) -> Draft {
    let aborted = |reason, queue: &dyn ToString, id: &str| {
        Draft::new(Code::Aborted, reason).with("queue", queue.to_string()).with("producer_id", id)
    };
    match reject {
        Reject::SequenceGap { queue, producer, got, expected } => {
            aborted(ErrorReason::SequenceGap, queue, producer)
                .with("sequence", got)
                .with("expected_sequence", expected)
        }
        Reject::SequenceTooOld { queue, producer, got, kept } => {
            aborted(ErrorReason::SequenceTooOld, queue, producer)
                .with("sequence", got)
                .with("kept_answers", kept)
        }
        Reject::ProducerFenced { queue, producer, got, current } => {
            aborted(ErrorReason::ProducerFenced, queue, producer)
                .with("epoch", got)
                .with("current_epoch", current)
        }
        _ => unreachable!("only the errors of de-duplication come here"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ids::Offset;
    use crate::names::{QueueName, SubscriptionName};

    fn queue() -> QueueName {
        QueueName::parse("namespaces/default/queues/q").unwrap()
    }

    fn subscription() -> SubscriptionName {
        SubscriptionName::parse("namespaces/default/queues/q/subscriptions/s").unwrap()
    }

    fn check(status: Status, code: Code, reason: &str, retry: bool) -> ErrorDetails {
        assert_eq!(status.code(), code, "{status:?}");
        let details = status.get_error_details();
        let info = details.error_info().expect("every status has ErrorInfo");
        assert_eq!((info.domain.as_str(), info.reason.as_str()), (DOMAIN, reason));
        assert_eq!(details.retry_info().is_some(), retry, "{reason}");
        assert!(!status.message().is_empty());
        details
    }

    #[test]
    fn every_broker_error_has_its_code_and_reason() {
        let producer = || "p".to_owned();
        let cases = [
            (R::QueueNotFound(queue()).into(), Code::NotFound, "QUEUE_NOT_FOUND", false),
            (R::QueueExists(queue()).into(), Code::AlreadyExists, "QUEUE_EXISTS", false),
            (R::SubscriptionNotFound(subscription()).into(), Code::NotFound, "SUBSCRIPTION_NOT_FOUND", false),
            (R::SubscriptionExists(subscription()).into(), Code::AlreadyExists, "SUBSCRIPTION_EXISTS", false),
            (
                R::MessageNotFound { queue: queue(), offset: Offset(4) }.into(),
                Code::NotFound,
                "MESSAGE_NOT_FOUND",
                false,
            ),
            (
                R::MessageLeased { subscription: subscription(), offset: Offset(4) }.into(),
                Code::FailedPrecondition,
                "MESSAGE_LEASED",
                false,
            ),
            (
                R::DeadLetterQueue { queue: queue(), target: queue(), why: "leads back to it" }.into(),
                Code::InvalidArgument,
                "INVALID_FIELD",
                false,
            ),
            (
                R::OffsetOutOfRange { queue: queue(), offset: Offset(9), next: Offset(3) }.into(),
                Code::OutOfRange,
                "OFFSET_OUT_OF_RANGE",
                false,
            ),
            (
                R::SequenceGap { queue: queue(), producer: producer(), got: 5, expected: 2 }.into(),
                Code::Aborted,
                "SEQUENCE_GAP",
                false,
            ),
            (
                R::SequenceTooOld { queue: queue(), producer: producer(), got: 1, kept: 64 }.into(),
                Code::Aborted,
                "SEQUENCE_TOO_OLD",
                false,
            ),
            (
                R::ProducerFenced { queue: queue(), producer: producer(), got: 1, current: 2 }.into(),
                Code::Aborted,
                "PRODUCER_FENCED",
                false,
            ),
            (R::TooManyProducers { max: 3 }.into(), Code::ResourceExhausted, "TOO_MANY_PRODUCERS", true),
            (R::VersionMismatch { resource: "q".into() }.into(), Code::Aborted, "ETAG_MISMATCH", false),
            (
                R::Paused { queue: queue(), reason: "drill".into() }.into(),
                Code::FailedPrecondition,
                "PAUSED",
                false,
            ),
            (E::RequestTooLarge { bytes: 9, max: 8 }, Code::InvalidArgument, "REQUEST_TOO_LARGE", false),
            (E::DataLoss { queue: queue(), offset: Offset(4) }, Code::DataLoss, "MESSAGE_DAMAGED", false),
            (E::DiskFull, Code::ResourceExhausted, "DISK_FULL", true),
            (E::Draining, Code::Unavailable, "DRAINING", true),
            (E::LogStopped { why: "no space".into() }, Code::Unavailable, "LOG_STOPPED", true),
        ];
        for (error, code, reason, retry) in cases {
            let message = error.to_string();
            let status = Status::from(error);
            assert_eq!(status.message(), message);
            check(status, code, reason, retry);
        }
    }

    #[test]
    fn every_refusal_has_its_code_and_reason() {
        let field = || "messages[3].priority".to_owned();
        let used_up = BudgetUsedUp { wanted_bytes: 2, budget_bytes: 1 };
        let cases = [
            (Refusal::Invalid { field: field(), why: "no".into() }, Code::InvalidArgument, "INVALID_FIELD"),
            (Refusal::OutputOnly { field: field() }, Code::InvalidArgument, "OUTPUT_ONLY_FIELD"),
            (
                Refusal::Limit { field: field(), unit: "bytes", actual: 2, limit: 1 },
                Code::InvalidArgument,
                "LIMIT_EXCEEDED",
            ),
            (Refusal::PageToken, Code::InvalidArgument, "INVALID_PAGE_TOKEN"),
            (Refusal::FieldNotBuilt { field: field() }, Code::Unimplemented, "FIELD_NOT_BUILT"),
            (Refusal::RpcNotBuilt { rpc: "Seek" }, Code::Unimplemented, "RPC_NOT_BUILT"),
            (Refusal::PathUnknown { path: "/a/b".into() }, Code::Unimplemented, "RPC_NOT_BUILT"),
            (Refusal::Stream { why: "Open comes first" }, Code::InvalidArgument, "STREAM_PROTOCOL"),
            (Refusal::Memory(used_up), Code::ResourceExhausted, "MEMORY_BUDGET"),
            (Refusal::Compressed, Code::Unimplemented, "COMPRESSION_NOT_BUILT"),
            (Refusal::TooManyCalls, Code::ResourceExhausted, "MEMORY_BUDGET"),
            (Refusal::TooFarAhead, Code::ResourceExhausted, "TOO_FAR_AHEAD"),
            (Refusal::Draining, Code::Unavailable, "DRAINING"),
            (Refusal::Panicked { what: "the call" }, Code::Internal, "INTERNAL_ERROR"),
        ];
        for (refusal, code, reason) in cases {
            let retry = matches!(code, Code::ResourceExhausted | Code::Unavailable);
            check(refusal.into(), code, reason, retry);
        }
    }

    #[test]
    fn what_a_client_has_sent_is_repeated_only_so_far() {
        for text in ["x".repeat(9 << 20), "é".repeat(4 << 20), "\n".repeat(5_000)] {
            let (why, field) = (format!("{text} is wrong"), format!("labels[{text:?}]"));
            let status: Status = Refusal::Invalid { field, why }.into();
            assert!(status.message().ends_with(" bytes)"));
            let mut headers = http::HeaderMap::new();
            status.add_header(&mut headers).unwrap();
            let bytes: usize =
                headers.iter().map(|(name, value)| name.as_str().len() + value.len() + 32).sum();
            assert!(bytes < 8 << 10, "{bytes}");
        }
        assert_eq!(bounded("x".repeat(TEXT_BYTES_MAX)).len(), TEXT_BYTES_MAX);
    }

    #[test]
    fn details_say_what_to_act_on() {
        let gap: E = R::SequenceGap { queue: queue(), producer: "p".into(), got: 5, expected: 2 }.into();
        let details = Status::from(gap).get_error_details();
        assert_eq!(details.error_info().unwrap().metadata["expected_sequence"], "2");
        let missing = Status::from(E::from(R::QueueNotFound(queue()))).get_error_details();
        assert_eq!(missing.resource_info().unwrap().resource_name, "namespaces/default/queues/q");
        let wrong = Refusal::Invalid { field: "queue".into(), why: "is empty".into() };
        let violations =
            Status::from(wrong).get_error_details().bad_request().unwrap().field_violations.clone();
        assert_eq!((violations[0].field.as_str(), violations[0].description.as_str()), ("queue", "is empty"));
    }

    use BrokerError as E;
    use Reject as R;
}

//! Gives the errors that tonic makes by itself what every other error has: a reason, and what to do.
//!
//! tonic answers an unknown path with UNIMPLEMENTED and a request that it cannot decode with INTERNAL, both without
//! details. The second is the caller's mistake and becomes INVALID_ARGUMENT.

use http::HeaderValue;
use tonic::{Code, Status};

use super::status::Refusal;

const ENCODING: &str = "grpc-encoding";
const ACCEPT_ENCODING: &str = "grpc-accept-encoding";
/// The only encoding that is read.
const IDENTITY: &str = "identity";

/// Whether a request says that its messages are compressed.
pub fn is_compressed<B>(request: &http::Request<B>) -> bool {
    request.headers().get(ENCODING).is_some_and(|encoding| encoding != IDENTITY)
}

/// Puts a better status in the place of one that tonic has made, in the headers of an answer.
pub fn explain<B>(path: &str, answer: &mut http::Response<B>) {
    let Some(status) = Status::from_header_map(answer.headers()) else { return };
    if let Some(better) = explained(path, &status) {
        // What replaces the headers fits them: reasons are ASCII, the message is percent-encoded.
        let _ = better.add_header(answer.headers_mut());
    }
    if status.code() == Code::Unimplemented {
        // Whoever has compressed learns what to do instead.
        answer.headers_mut().insert(ACCEPT_ENCODING, HeaderValue::from_static(IDENTITY));
    }
}

/// A better status, if this one is tonic's own.
fn explained(path: &str, status: &Status) -> Option<Status> {
    if !status.details().is_empty() {
        return None;
    }
    match status.code() {
        Code::Internal => Some(undecodable(status)),
        Code::Unimplemented if status.message().is_empty() => {
            Some(Refusal::PathUnknown { path: path.to_owned() }.into())
        }
        _ => None,
    }
}

/// The status for a request that tonic could not decode.
pub fn undecodable(status: &Status) -> Status {
    let why = format!("cannot be decoded ({}); check its encoding, and that text is UTF-8", status.message());
    Refusal::Invalid { field: "request".to_owned(), why }.into()
}

/// The status for a stream that cannot be read on.
pub fn unreadable(status: Status) -> Status {
    if status.code() == Code::Internal { undecodable(&status) } else { status }
}

#[cfg(test)]
mod tests {
    use tonic_types::StatusExt;

    use super::*;

    #[test]
    fn only_statuses_without_details_are_explained() {
        let reason = |status: Status| status.get_error_details().error_info().unwrap().reason.clone();
        let decode = explained("/p", &Status::internal("invalid wire type")).unwrap();
        assert_eq!((decode.code(), reason(decode)), (Code::InvalidArgument, "INVALID_FIELD".to_owned()));
        let path = explained("/x.Y/Z", &Status::unimplemented("")).unwrap();
        assert!(path.message().starts_with("/x.Y/Z "));
        assert_eq!((path.code(), reason(path)), (Code::Unimplemented, "RPC_NOT_BUILT".to_owned()));
        assert!(explained("/p", &Refusal::Internal { why: "a bug" }.into()).is_none());
        assert!(explained("/p", &Status::not_found("")).is_none());
        assert!(explained("/p", &Status::ok("")).is_none());
    }
}

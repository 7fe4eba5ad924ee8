//! Counts calls by method and code, and their durations by method.
//!
//! Methods are those of the API's descriptors, so that no caller can invent labels; all others are `other`. A call
//! counts when its answer's headers are there: for a stream that is its opening.

use std::collections::HashMap;
use std::sync::{Arc, OnceLock};
use std::time::Instant;

use metrics::{Counter, Histogram};

use super::metrics::Metrics;
use crate::proto;

/// Names of the gRPC codes, by number.
const CODES: [&str; 17] = [
    "OK",
    "CANCELLED",
    "UNKNOWN",
    "INVALID_ARGUMENT",
    "DEADLINE_EXCEEDED",
    "NOT_FOUND",
    "ALREADY_EXISTS",
    "PERMISSION_DENIED",
    "RESOURCE_EXHAUSTED",
    "FAILED_PRECONDITION",
    "ABORTED",
    "OUT_OF_RANGE",
    "UNIMPLEMENTED",
    "INTERNAL",
    "UNAVAILABLE",
    "DATA_LOSS",
    "UNAUTHENTICATED",
];
const UNKNOWN: usize = 2;

/// Handles of one method; a counter is made when its code first occurs.
pub struct Method {
    name: &'static str,
    metrics: Metrics,
    calls: [OnceLock<Counter>; CODES.len()],
    durations: Histogram,
}

impl Method {
    fn new(metrics: &Metrics, name: &'static str) -> Arc<Self> {
        let durations = metrics.call_durations(name);
        Arc::new(Self { name, metrics: metrics.clone(), calls: Default::default(), durations })
    }

    /// Counts an answer to a call that came at `start`.
    pub fn count<B>(&self, answer: &http::Response<B>, start: Instant) {
        let code = code_of(answer);
        let code = if code < CODES.len() { code } else { UNKNOWN };
        self.calls[code].get_or_init(|| self.metrics.calls(self.name, CODES[code])).increment(1);
        self.durations.record(start.elapsed().as_secs_f64());
    }
}

/// `Service/Method` by path, `/forebay.v1.Service/Method`.
fn method_names() -> &'static HashMap<String, &'static str> {
    static NAMES: OnceLock<HashMap<String, &'static str>> = OnceLock::new();
    // Once per process, and labels live as long as it.
    NAMES.get_or_init(|| {
        let leak = |(path, name): (String, String)| (path, &*name.leak());
        proto::methods().into_iter().map(leak).collect()
    })
}

/// The methods of the API.
#[derive(Clone)]
pub struct Methods {
    by_path: Arc<HashMap<&'static str, Arc<Method>>>,
    other: Arc<Method>,
}

impl Methods {
    pub fn new(metrics: &Metrics) -> Self {
        let methods = method_names().iter().map(|(path, &name)| (path.as_str(), Method::new(metrics, name)));
        Self { by_path: Arc::new(methods.collect()), other: Method::new(metrics, "other") }
    }

    /// The method at a path.
    pub fn at(&self, path: &str) -> Arc<Method> {
        self.by_path.get(path).unwrap_or(&self.other).clone()
    }
}

/// The code of an answer; without one in the headers the call has succeeded so far.
fn code_of<B>(answer: &http::Response<B>) -> usize {
    match answer.headers().get("grpc-status") {
        None => 0,
        Some(code) => code.to_str().ok().and_then(|code| code.parse().ok()).unwrap_or(UNKNOWN),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn calls_count_by_method_and_code() {
        let metrics = Metrics::default();
        let methods = Methods::new(&metrics);
        for (path, code) in [
            ("/forebay.v1.MessageService/Publish", None),
            ("/forebay.v1.MessageService/Publish", None),
            ("/forebay.v1.QueueService/GetQueue", Some("5")),
            ("/made.up/Call", Some("5")),
        ] {
            let answer = code
                .into_iter()
                .fold(http::Response::builder(), |answer, code| answer.header("grpc-status", code));
            methods.at(path).count(&answer.body(()).unwrap(), Instant::now());
        }
        let text = metrics.render(None, &Default::default(), &Default::default());
        for line in [
            r#"forebay_rpc_calls_total{method="MessageService/Publish",code="OK"} 2"#,
            r#"forebay_rpc_calls_total{method="QueueService/GetQueue",code="NOT_FOUND"} 1"#,
            r#"forebay_rpc_calls_total{method="other",code="NOT_FOUND"} 1"#,
            r#"forebay_rpc_duration_seconds_count{method="MessageService/Publish"} 2"#,
        ] {
            assert!(text.lines().any(|found| found == line), "{line} is not in:\n{text}");
        }
        assert!(!text.contains("made.up"));
    }
}

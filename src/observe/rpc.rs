//! Counts calls by method and code, and their durations by method.
//!
//! Methods are those of the API's descriptors, so that no caller can invent labels; all others are `other`. A call
//! counts when its answer's headers are there: for a stream that is its opening.

use std::collections::HashMap;
use std::pin::Pin;
use std::sync::{Arc, OnceLock};
use std::task::{Context, Poll};
use std::time::Instant;

use metrics::{Counter, Histogram};
use tower::{Layer, Service};

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
struct Method {
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

    fn count(&self, code: usize, start: Instant) {
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

/// Puts the counting around services.
#[derive(Clone)]
pub struct RpcLayer {
    methods: Arc<HashMap<&'static str, Arc<Method>>>,
    other: Arc<Method>,
}

impl RpcLayer {
    pub fn new(metrics: &Metrics) -> Self {
        let methods = method_names().iter().map(|(path, &name)| (path.as_str(), Method::new(metrics, name)));
        Self { methods: Arc::new(methods.collect()), other: Method::new(metrics, "other") }
    }
}

impl<S> Layer<S> for RpcLayer {
    type Service = Rpc<S>;

    fn layer(&self, inner: S) -> Rpc<S> {
        Rpc { inner, layer: self.clone() }
    }
}

/// See [`RpcLayer`].
#[derive(Clone)]
pub struct Rpc<S> {
    inner: S,
    layer: RpcLayer,
}

impl<S, A, B> Service<http::Request<A>> for Rpc<S>
where
    S: Service<http::Request<A>, Response = http::Response<B>>,
    S::Future: Send + 'static,
{
    type Response = http::Response<B>;
    type Error = S::Error;
    type Future = Pin<Box<dyn Future<Output = Result<Self::Response, S::Error>> + Send>>;

    fn poll_ready(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), S::Error>> {
        self.inner.poll_ready(cx)
    }

    fn call(&mut self, request: http::Request<A>) -> Self::Future {
        let method = self.layer.methods.get(request.uri().path()).unwrap_or(&self.layer.other).clone();
        let start = Instant::now();
        let answer = self.inner.call(request);
        Box::pin(async move {
            let answer = answer.await;
            method.count(answer.as_ref().map_or(UNKNOWN, code_of), start);
            answer
        })
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

    #[tokio::test]
    async fn calls_count_by_method_and_code() {
        let metrics = Metrics::default();
        let answering = tower::service_fn(async |request: http::Request<()>| {
            let answer = http::Response::builder();
            let answer = match request.uri().path().ends_with("Publish") {
                true => answer,
                false => answer.header("grpc-status", "5"),
            };
            Ok::<_, std::convert::Infallible>(answer.body(()).unwrap())
        });
        let mut service = RpcLayer::new(&metrics).layer(answering);
        for path in [
            "/forebay.v1.MessageService/Publish",
            "/forebay.v1.MessageService/Publish",
            "/forebay.v1.QueueService/GetQueue",
            "/made.up/Call",
        ] {
            service.call(http::Request::get(path).body(()).unwrap()).await.unwrap();
        }
        let text = metrics.render(None, &crate::admission::Admission::new(0, 1));
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

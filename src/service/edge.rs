//! The way of a call: HTTP/2 request → counted → its body admitted → the service → its answer explained, and its memory
//! held until it has gone.
//!
//! Calls go to their services straight from HTTP/2: what a stack of generic layers costs, a box and a move of the whole
//! future for each, was a fifth of the server's time for a small publish.

use std::convert::Infallible;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, ready};
use std::time::Instant;

use http::{Request, Response, Uri};
use hyper::body::Incoming;
use tonic::Status;
use tonic::body::Body;
use tonic::server::NamedService;
use tonic::service::Routes;
use tower::Service;

use super::admin::Admin;
use super::admit::{Admitted, Slot, admit};
use super::explain::{explain, is_compressed};
use super::messages::Messages;
use super::outgoing::Bodies;
use super::places::{UnderWay, Work};
use super::queues::Queues;
use super::status::Refusal;
use super::{Shared, caught, publish_call, publish_stream, subscribe};
use crate::admission::Budgets;
use crate::observe::rpc::{Method, Methods};
use crate::proto::v1::admin_service_server::AdminServiceServer;
use crate::proto::v1::message_service_server::MessageServiceServer;
use crate::proto::v1::queue_service_server::QueueServiceServer;

const HEALTH_CHECK: &str = "/grpc.health.v1.Health/Check";

/// All services behind one door; clones share them.
#[derive(Clone)]
pub struct Edge {
    inner: Arc<Inner>,
}

struct Inner {
    methods: Methods,
    budgets: Budgets,
    bodies: Bodies,
    services: Services,
}

/// The services of a server.
pub struct Services {
    pub messages: MessageServiceServer<Messages>,
    pub queues: QueueServiceServer<Queues>,
    pub admin: AdminServiceServer<Admin>,
    /// For streams that are served without the generated code.
    pub shared: Shared,
    /// Health, reflection, and the answer to paths that nothing is at.
    pub others: Routes,
}

type Answer = Pin<Box<dyn Future<Output = Result<Response<Body>, Infallible>> + Send>>;

impl Edge {
    pub fn new(methods: Methods, budgets: Budgets, services: Services) -> Self {
        Self { inner: Arc::new(Inner { methods, budgets, bodies: Bodies::new(), services }) }
    }
}

impl Services {
    // The generated services want to be unique, and are a shared pointer and a few numbers.
    fn call(&self, request: Request<Admitted<Incoming>>) -> Answer {
        match service_of(request.uri().path()) {
            MessageServiceServer::<Messages>::NAME => self.messages.clone().call(request),
            QueueServiceServer::<Queues>::NAME => self.queues.clone().call(request),
            AdminServiceServer::<Admin>::NAME => self.admin.clone().call(request),
            _ => Box::pin(self.others.clone().call(request)),
        }
    }
}

/// `Service` of `/Service/Method`.
fn service_of(path: &str) -> &str {
    path.strip_prefix('/').and_then(|path| path.rsplit_once('/')).map_or("", |(service, _)| service)
}

/// The services as one connection calls them.
pub struct Session {
    inner: Arc<Inner>,
    work: Arc<Work>,
}

impl Session {
    pub fn new(edge: Edge, work: Arc<Work>) -> Self {
        Self { inner: edge.inner, work }
    }
}

impl hyper::service::Service<Request<Incoming>> for Session {
    type Response = Response<Body>;
    type Error = Infallible;
    type Future = Call;

    fn call(&self, request: Request<Incoming>) -> Call {
        let start = Instant::now();
        let under_way = self.work.begin();
        let method = self.inner.methods.at(request.uri().path());
        // Shares its text.
        let uri = request.uri().clone();
        let shared = &self.inner.services.shared;
        let bodies = self.inner.bodies.clone();
        let call = |answer, under_way, permit| Call {
            answer,
            method,
            start,
            uri,
            bodies,
            under_way,
            _permit: permit,
        };
        match request.uri().path() {
            _ if is_compressed(&request) => {
                call(at_once(Status::from(Refusal::Compressed).into_http()), None, None)
            }
            // Whoever asks for the server's health must not take it for dead because others wait in it.
            path if self.has_too_many_calls() && path != HEALTH_CHECK => {
                call(at_once(Status::from(Refusal::TooManyCalls).into_http()), None, None)
            }
            publish_stream::PATH => {
                let answer = publish_stream::serve(shared.clone(), request.into_body(), under_way);
                call(at_once(answer), None, None)
            }
            subscribe::PATH => {
                call(at_once(subscribe::serve(shared.clone(), request.into_body())), Some(under_way), None)
            }
            publish_call::PATH => {
                let (request, permit) = admit(request, &self.inner.budgets);
                let answer = publish_call::serve(shared.clone(), request.into_body(), permit, under_way);
                call(Box::pin(async { Ok(answer.await) }) as Answer, None, None)
            }
            _ => {
                let (request, permit) = admit(request, &self.inner.budgets);
                call(self.inner.services.call(request), Some(under_way), Some(permit))
            }
        }
    }
}

impl Session {
    /// Whether it has; then those of whose requests nothing comes end for it.
    fn has_too_many_calls(&self) -> bool {
        let has = self.work.has_too_many_calls();
        if has {
            self.inner.budgets.miss();
        }
        has
    }
}

fn at_once(answer: Response<Body>) -> Answer {
    Box::pin(std::future::ready(Ok(answer)))
}

/// A call under way, until its answer's headers are there; memory for its request is held until then.
pub struct Call {
    answer: Answer,
    method: Arc<Method>,
    start: Instant,
    uri: Uri,
    bodies: Bodies,
    under_way: Option<UnderWay>,
    _permit: Option<Slot>,
}

impl Future for Call {
    type Output = Result<Response<Body>, Infallible>;

    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Self::Output> {
        let mut answer = match ready!(caught::poll(self.answer.as_mut(), cx)) {
            Ok(Ok(answer)) => answer,
            Err(refusal) => Status::from(refusal).into_http(),
        };
        explain(self.uri.path(), &mut answer);
        let under_way = self.under_way.take();
        self.bodies.dress(&mut answer, under_way);
        self.method.count(&answer, self.start);
        Poll::Ready(Ok(answer))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_path_names_its_service() {
        assert_eq!(service_of("/forebay.v1.MessageService/Publish"), MessageServiceServer::<Messages>::NAME);
        for path in ["", "/", "/x", "x/y"] {
            assert_eq!(service_of(path), "", "{path}");
        }
    }
}

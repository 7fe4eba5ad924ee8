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
use tonic::body::Body;
use tonic::server::NamedService;
use tonic::service::Routes;
use tower::Service;

use super::admin::Admin;
use super::admit::{Admitted, Slot, admit};
use super::explain::explain;
use super::messages::Messages;
use super::outgoing::Bodies;
use super::queues::Queues;
use super::{Shared, publish_stream};
use crate::admission::Admission;
use crate::observe::rpc::{Method, Methods};
use crate::proto::v1::admin_service_server::AdminServiceServer;
use crate::proto::v1::message_service_server::MessageServiceServer;
use crate::proto::v1::queue_service_server::QueueServiceServer;

/// All services behind one door; clones share them.
#[derive(Clone)]
pub struct Edge {
    inner: Arc<Inner>,
}

struct Inner {
    methods: Methods,
    admission: Admission,
    bodies: Bodies,
    services: Services,
}

/// The services of a server.
pub struct Services {
    pub messages: MessageServiceServer<Messages>,
    pub queues: QueueServiceServer<Queues>,
    pub admin: AdminServiceServer<Admin>,
    /// For publish streams, which are served without the generated code.
    pub shared: Shared,
    /// Health, reflection, and the answer to paths that nothing is at.
    pub others: Routes,
}

type Answer = Pin<Box<dyn Future<Output = Result<Response<Body>, Infallible>> + Send>>;

impl Edge {
    pub fn new(methods: Methods, admission: Admission, services: Services) -> Self {
        Self { inner: Arc::new(Inner { methods, admission, bodies: Bodies::new(), services }) }
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

impl hyper::service::Service<Request<Incoming>> for Edge {
    type Response = Response<Body>;
    type Error = Infallible;
    type Future = Call;

    fn call(&self, request: Request<Incoming>) -> Call {
        let start = Instant::now();
        let method = self.inner.methods.at(request.uri().path());
        // Shares its text.
        let uri = request.uri().clone();
        let (answer, permit) = match request.uri().path() {
            publish_stream::PATH => {
                let answer = publish_stream::serve(self.inner.services.shared.clone(), request.into_body());
                (Box::pin(std::future::ready(Ok(answer))) as Answer, Slot::default())
            }
            _ => {
                let (request, permit) = admit(request, &self.inner.admission);
                (self.inner.services.call(request), permit)
            }
        };
        Call { answer, method, start, uri, bodies: self.inner.bodies.clone(), _permit: permit }
    }
}

/// A call under way, until its answer's headers are there; memory for its request is held until then.
pub struct Call {
    answer: Answer,
    method: Arc<Method>,
    start: Instant,
    uri: Uri,
    bodies: Bodies,
    _permit: Slot,
}

impl Future for Call {
    type Output = Result<Response<Body>, Infallible>;

    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Self::Output> {
        let Ok(mut answer) = ready!(self.answer.as_mut().poll(cx));
        explain(self.uri.path(), &mut answer);
        self.bodies.dress(&mut answer);
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

//! An empty gRPC handler: what HTTP/2 and protobuf cost where nothing is done.
//!
//! It runs in a process of its own, as the server does, on one thread and with the server's HTTP/2 settings; a hidden
//! subcommand is its whole program. It ends when its standard input does, so it never outlives the tool.

use std::convert::Infallible;
use std::future::{Ready, ready};
use std::io::{BufRead as _, BufReader, Read as _, Write as _};
use std::pin::Pin;
use std::process::{Child, Command, Stdio};
use std::task::{Context, Poll};

use forebay::proto::v1::{PublishRequest, PublishResponse};
use tokio::net::TcpListener;
use tokio::sync::oneshot;
use tonic::body::Body;
use tonic::server::{Grpc, NamedService, UnaryService};
use tonic::service::Routes;
use tonic::transport::Server;
use tonic::transport::server::TcpIncoming;
use tonic::{Request, Response, Status};
use tonic_prost::ProstCodec;
use tower::Service;

use crate::Failure;

/// The hidden subcommand.
pub const SUBCOMMAND: &str = "empty-server";

/// The process; it ends when this is dropped.
pub struct Process {
    child: Child,
    address: String,
}

impl Process {
    pub fn start() -> Result<Self, Failure> {
        let mut child = Command::new(std::env::current_exe()?)
            .arg(SUBCOMMAND)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()?;
        let mut address = String::new();
        let mut output = BufReader::new(child.stdout.take().expect("it is a pipe"));
        output.read_line(&mut address)?;
        Ok(Self { child, address: address.trim().to_owned() })
    }

    /// `HOST:PORT`
    pub fn address(&self) -> &str {
        &self.address
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        drop(self.child.stdin.take());
        let _ = self.child.wait();
    }
}

/// Serves, and tells its address on standard output, until standard input ends.
pub fn serve() -> Result<(), Failure> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    let (end, ended) = oneshot::channel();
    std::thread::spawn(move || {
        let _ = std::io::stdin().read_to_end(&mut Vec::new());
        let _ = end.send(());
    });
    runtime.block_on(async {
        let listener = TcpListener::bind("127.0.0.1:0").await?;
        writeln!(std::io::stdout(), "{}", listener.local_addr()?)?;
        let incoming = TcpIncoming::from(listener).with_nodelay(Some(true));
        let mut server = Server::builder()
            .max_frame_size(1 << 20)
            .initial_stream_window_size(4 << 20)
            .initial_connection_window_size(16 << 20);
        let serving = server.add_routes(Routes::new(Empty)).serve_with_incoming(incoming);
        tokio::select! {
            served = serving => Ok(served?),
            _ = ended => Ok(()),
        }
    })
}

#[derive(Clone)]
struct Empty;

impl NamedService for Empty {
    const NAME: &'static str = "forebay.v1.MessageService";
}

impl Service<http::Request<Body>> for Empty {
    type Response = http::Response<Body>;
    type Error = Infallible;
    type Future = Pin<Box<dyn Future<Output = Result<Self::Response, Infallible>> + Send>>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), Infallible>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, request: http::Request<Body>) -> Self::Future {
        Box::pin(async move {
            let mut grpc = Grpc::new(ProstCodec::<PublishResponse, PublishRequest>::default());
            Ok(grpc.unary(Nothing, request).await)
        })
    }
}

struct Nothing;

impl UnaryService<PublishRequest> for Nothing {
    type Response = PublishResponse;
    type Future = Ready<Result<Response<PublishResponse>, Status>>;

    fn call(&mut self, _: Request<PublishRequest>) -> Self::Future {
        ready(Ok(Response::new(PublishResponse::default())))
    }
}

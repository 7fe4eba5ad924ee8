//! The servers: gRPC with all of its limits closed, and HTTP for metrics and probes.
//!
//! | Limit | Value | Why |
//! |---|---|---|
//! | connections | 1,024, or as configured | each has windows and buffers; further ones wait in the kernel, and idle ones make room |
//! | connections of an address | configured | one host must not take all places |
//! | calls and streams under way | 4,096; of an address its share | each takes memory, whether or not its client sends |
//! | preface, headers of a request | 10 s each | a byte now and then must not hold a place |
//! | idle connection | 5 min | GOAWAY; clients connect anew |
//! | frames that bring nothing | 4,096, and 256 a second more | floods end their connection, see [`super::frames`] |
//! | streams on a connection | 127 to 256 | enough in flight for the commit path, and others wait for what one connection begins or gives up at once; follows the window |
//! | pending-accept and local-error resets | 32, 512 | a flood of resets ends its connection; the second are counted over all of its life |
//! | header list | 16 KiB | no header of ours comes near |
//! | frame | 16 to 256 KiB | fewer copies and wakeups for large bodies; what waits for memory has one |
//! | window | 64 KiB to 1 MiB | what a sender may have under way unread, see [`super::windows`] |
//! | decoded request | 9 MiB, 1 MiB | the largest publish and its envelope; every other request, see [`super::admit`] |
//! | send buffer of a stream | 128 KiB | 400 KiB by default; answers with messages have less, see [`super::outgoing`] |
//! | request of health, reflection | 2 KiB | they are names |
//! | keepalive | 30 s, answered within 20 s | dead peers go |
//!
//! There is no greatest age of a connection: delivery streams live long, and to cut them would only move load about.
//! Responses are not bounded when encoded: what a pull holds was bounded when it was read, and refusing it then would
//! strand its leases.

use std::io;
use std::time::Duration;

use hyper::server::conn::http2;
use hyper_util::rt::{TokioExecutor, TokioTimer};
use tokio::net::TcpListener;
use tonic::server::NamedService;
use tonic::service::RoutesBuilder;
use tonic_health::ServingStatus;
use tonic_health::server::HealthReporter;

use super::accept::serve_connections;
use super::admin::Admin;
use super::edge::{Edge, Services};
use super::messages::Messages;
use super::places::{Bounds, Places};
use super::queues::Queues;
use super::{Common, Identity, Shared};
use crate::admission::{Budgets, Outflow};
use crate::broker::api::Broker;
use crate::limits::OTHER_REQUEST_BYTES_MAX;
use crate::observe::connections::Connections;
use crate::observe::http::{Sources, router};
use crate::observe::metrics::Metrics;
use crate::observe::readiness::{Phase, Readiness};
use crate::observe::rpc::Methods;
use crate::proto::DESCRIPTOR_SET;
use crate::proto::v1::admin_service_server::AdminServiceServer;
use crate::proto::v1::message_service_server::MessageServiceServer;
use crate::proto::v1::queue_service_server::QueueServiceServer;

/// Largest request of health and reflection: a name, which an error repeats.
const OTHERS_BYTES_MAX: usize = 2 << 10;
const PENDING_ACCEPT_RESETS_MAX: usize = 32;
/// Calls of a connection that were refused because too many were open are among them: it may have some now and then,
/// first of all those that it began before it knew how many may be.
const LOCAL_ERROR_RESETS_MAX: usize = 512;
const HEADER_LIST_BYTES_MAX: u32 = 16 << 10;
const SEND_BUFFER_BYTES_MAX: usize = 128 << 10;
const KEEPALIVE_INTERVAL: Duration = Duration::from_secs(30);
const KEEPALIVE_TIMEOUT: Duration = Duration::from_secs(20);
/// How long connections may take to end after the shutdown has begun.
const SHUTDOWN_GRACE: Duration = Duration::from_secs(2);

/// What the servers are made of.
#[derive(Clone, Debug)]
pub struct Parts {
    pub broker: Broker,
    pub budgets: Budgets,
    pub outflow: Outflow,
    pub metrics: Metrics,
    /// Set to `Ready` by the caller when the broker has recovered; set to `Draining` here at the shutdown.
    pub readiness: Readiness,
    pub identity: Identity,
    pub connections: Bounds,
}

/// Why serving ended other than by its shutdown.
#[derive(Debug, thiserror::Error)]
pub enum ServeError {
    #[error("the HTTP server failed: {0}")]
    Http(#[source] io::Error),
    #[error("the descriptors for reflection are damaged: {0}")]
    Reflection(#[source] tonic_reflection::server::Error),
}

/// Serves gRPC on `grpc` and metrics and probes on `http` until `shutdown`: then drains the broker, lets calls and
/// streams end (at most 2 s), and returns. HTTP is served until the very end.
pub async fn serve(
    grpc: TcpListener,
    http: TcpListener,
    parts: Parts,
    shutdown: impl Future<Output = ()> + Send + 'static,
) -> Result<(), ServeError> {
    let (reporter, health) = tonic_health::server::health_reporter();
    let mut others = reflection()?;
    others.add_service(health.max_decoding_message_size(OTHERS_BYTES_MAX));
    let services = services(&parts, others);
    let edge = Edge::new(Methods::new(&parts.metrics), parts.budgets.clone(), services);
    let stopped = stop_on(shutdown, parts.readiness.clone(), parts.broker.clone());
    let places = Places::new(parts.connections, Connections::new(&parts.metrics));
    let serving = serve_connections(grpc, places, http2(), edge, stopped);
    let probes = axum::serve(
        http,
        router(Sources {
            broker: parts.broker.clone(),
            budgets: parts.budgets.clone(),
            outflow: parts.outflow.clone(),
            metrics: parts.metrics.clone(),
            readiness: parts.readiness.clone(),
        }),
    );
    let metrics = parts.metrics.clone();
    tokio::select! {
        () = serving => Ok(()),
        served = async { probes.await } => served.map_err(ServeError::Http),
        () = out_of_time(&parts.readiness) => Ok(()),
        () = report_health(&reporter, &parts.readiness) => unreachable!("health is reported for ever"),
        () = metrics.keep_up() => unreachable!("metrics are kept up for ever"),
    }
}

/// HTTP/2 with its limits; windows are set for each connection.
fn http2() -> http2::Builder<TokioExecutor> {
    let mut http2 = http2::Builder::new(TokioExecutor::new());
    http2
        .timer(TokioTimer::new())
        // gRPC has no use for it.
        .auto_date_header(false)
        .max_pending_accept_reset_streams(PENDING_ACCEPT_RESETS_MAX)
        .max_local_error_reset_streams(LOCAL_ERROR_RESETS_MAX)
        .max_header_list_size(HEADER_LIST_BYTES_MAX)
        .max_send_buf_size(SEND_BUFFER_BYTES_MAX)
        .keep_alive_interval(KEEPALIVE_INTERVAL)
        .keep_alive_timeout(KEEPALIVE_TIMEOUT);
    http2
}

/// The services of the API, and others.
fn services(parts: &Parts, others: RoutesBuilder) -> Services {
    let shared = Shared::new(Common {
        broker: parts.broker.clone(),
        budgets: parts.budgets.clone(),
        outflow: parts.outflow.clone(),
        readiness: parts.readiness.clone(),
        identity: parts.identity,
    });
    let (queues, messages) = (Queues { shared: shared.clone() }, Messages { shared: shared.clone() });
    Services {
        queues: QueueServiceServer::new(queues).max_decoding_message_size(OTHER_REQUEST_BYTES_MAX),
        messages: MessageServiceServer::new(messages).max_decoding_message_size(OTHER_REQUEST_BYTES_MAX),
        admin: AdminServiceServer::new(Admin { shared: shared.clone() })
            .max_decoding_message_size(OTHER_REQUEST_BYTES_MAX),
        shared,
        others: others.routes(),
    }
}

fn reflection() -> Result<RoutesBuilder, ServeError> {
    let reflection = || {
        tonic_reflection::server::Builder::configure().register_encoded_file_descriptor_set(DESCRIPTOR_SET)
    };
    let mut routes = RoutesBuilder::default();
    routes
        .add_service(
            reflection()
                .build_v1()
                .map_err(ServeError::Reflection)?
                .max_decoding_message_size(OTHERS_BYTES_MAX),
        )
        .add_service(
            reflection()
                .build_v1alpha()
                .map_err(ServeError::Reflection)?
                .max_decoding_message_size(OTHERS_BYTES_MAX),
        );
    Ok(routes)
}

/// Waits for the shutdown, then drains: no new work, streams are sent away, what is under way gets on disk.
async fn stop_on(shutdown: impl Future<Output = ()>, readiness: Readiness, broker: Broker) {
    shutdown.await;
    readiness.set(Phase::Draining);
    if let Err(error) = broker.drain().await {
        tracing::error!(%error, "draining failed");
    }
}

async fn out_of_time(readiness: &Readiness) {
    readiness.draining().await;
    tokio::time::sleep(SHUTDOWN_GRACE).await;
    tracing::warn!("connections did not end in time; they are cut");
}

/// Tells the health service of every phase, for ever. The empty name stands for the whole server.
async fn report_health(reporter: &HealthReporter, readiness: &Readiness) {
    let names = [
        "",
        QueueServiceServer::<Queues>::NAME,
        MessageServiceServer::<Messages>::NAME,
        AdminServiceServer::<Admin>::NAME,
    ];
    for (phase, status) in [
        (Phase::Starting, ServingStatus::NotServing),
        (Phase::Ready, ServingStatus::Serving),
        (Phase::Draining, ServingStatus::NotServing),
    ] {
        readiness.reached(phase).await;
        for name in names {
            reporter.set_service_status(name, status).await;
        }
    }
    std::future::pending().await
}

//! Wiring: a broker on a data directory, its gRPC and HTTP edges, and an orderly end.
//!
//! On SIGTERM or SIGINT: new work is refused and long polls are answered, what is under way is committed, connections
//! get a short while to finish, the log is closed. If the log fails, every caller is told why and serving ends with
//! the error: the process exits, and a restart recovers all that was acknowledged.

use std::net::SocketAddr;
use std::time::{Duration, Instant};

use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
use tokio::net::TcpListener;
use tokio::signal::unix::{Signal, SignalKind, signal};
use tokio::task::JoinError;

use crate::admission::{Budgets, Outflow};
use crate::broker::api::BrokerError;
use crate::broker::{OpenError, Opened};
use crate::clock::wall_us;
use crate::config::Config;
use crate::node;
use crate::observe::metrics::Metrics;
use crate::observe::readiness::{Phase, Readiness};
use crate::planted;
use crate::service::server::{self as edge, Parts};
use crate::service::{Bounds, Identity};

/// How long answers that tell of a failed log may take to go out.
const FAREWELL: Duration = Duration::from_millis(200);
/// Open files besides connections: of the log, HTTP, and some to spare.
const OTHER_OPEN_FILES: u64 = 512;

/// Why the server could not start, or ended.
#[derive(Debug, thiserror::Error)]
pub enum ServeError {
    #[error("cannot listen on {address}: {source}")]
    Listen { address: SocketAddr, source: std::io::Error },
    #[error("cannot watch for signals: {0}")]
    Signals(std::io::Error),
    #[error("{source}{}", advice(source))]
    Open {
        #[from]
        source: OpenError,
    },
    #[error(transparent)]
    Broker(#[from] BrokerError),
    #[error(transparent)]
    Edge(#[from] edge::ServeError),
    #[error("{0} has panicked, which is a bug; a restart recovers all that was acknowledged")]
    Panicked(&'static str),
}

/// What to do where the error of the disk alone does not say it.
fn advice(error: &OpenError) -> &'static str {
    match error.is_no_space() {
        true => "; a start needs space for a segment: give the disk some and start again, nothing is lost",
        false => "",
    }
}

/// What a server says of itself when it is ready.
#[derive(Clone, Copy, Debug)]
pub struct Ready {
    pub grpc: SocketAddr,
    pub http: SocketAddr,
    /// Messages that waited for some subscription.
    pub recovered_messages: u64,
    pub recovery: Duration,
}

impl std::fmt::Display for Ready {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let Self { grpc, http, recovered_messages, recovery } = self;
        let recovery_ms = recovery.as_millis();
        write!(
            f,
            "forebay ready grpc={grpc} http={http} recovered_messages={recovered_messages} recovery_ms={recovery_ms}"
        )
    }
}

/// Opens the data directory and serves until SIGTERM or SIGINT; `ready` is called when calls are taken.
pub async fn serve(config: Config, ready: impl FnOnce(Ready)) -> Result<(), ServeError> {
    let started = Instant::now();
    let (grpc, grpc_address) = listen(config.listen).await?;
    let (http, http_address) = listen(config.http).await?;
    let opened = open(&config).await?;
    let terminate = signal(SignalKind::terminate()).map_err(ServeError::Signals)?;
    let interrupt = signal(SignalKind::interrupt()).map_err(ServeError::Signals)?;
    let readiness = Readiness::default();
    let parts = parts(&opened, &readiness, &config);
    let mut task = tokio::spawn(opened.task.run());
    let serving = edge::serve(grpc, http, parts, signalled(terminate, interrupt));
    let mut serving = std::pin::pin!(serving);
    readiness.set(Phase::Ready);
    ready(Ready {
        grpc: grpc_address,
        http: http_address,
        recovered_messages: opened.waiting_messages,
        recovery: started.elapsed(),
    });
    tokio::select! {
        served = &mut serving => {
            served?;
            opened.broker.close().await?;
            ended(task.await)
        }
        result = &mut task => {
            // Nothing more is stored; those who wait are still told why.
            let _ = tokio::time::timeout(FAREWELL, serving).await;
            ended(result)
        }
    }
}

/// As many of these connections as open files allow: each is one, and the log must never be short of them. Shells and
/// containers commonly start with fewer than they allow.
fn within_open_files(connections: usize) -> usize {
    let wanted = connections as u64 + OTHER_OPEN_FILES;
    let Rlimit { current, maximum } = getrlimit(Resource::Nofile);
    if current.is_some_and(|current| current < wanted) {
        let allowed = maximum.map_or(wanted, |maximum| maximum.min(wanted));
        // What is in force is looked at afterwards.
        let _ = setrlimit(Resource::Nofile, Rlimit { current: Some(allowed), maximum });
    }
    let Some(open_files) = getrlimit(Resource::Nofile).current.filter(|current| *current < wanted) else {
        return connections;
    };
    let allowed = open_files.saturating_sub(OTHER_OPEN_FILES).max(1) as usize;
    tracing::warn!(
        connections,
        allowed,
        open_files,
        wanted,
        "fewer connections are taken than configured, for each is an open file; further clients wait: raise the limit (ulimit -Hn, LimitNOFILE) and start again"
    );
    allowed
}

async fn listen(address: SocketAddr) -> Result<(TcpListener, SocketAddr), ServeError> {
    let failed = |source| ServeError::Listen { address, source };
    let listener = TcpListener::bind(address).await.map_err(failed)?;
    let bound = listener.local_addr().map_err(failed)?;
    Ok((listener, bound))
}

async fn open(config: &Config) -> Result<Opened, ServeError> {
    let (data_dir, segment_bytes) = (config.data_dir.clone(), config.segment_bytes);
    let opening = tokio::task::spawn_blocking(move || node::open(&data_dir, segment_bytes));
    Ok(opening.await.map_err(|_| ServeError::Panicked("recovery"))??)
}

fn parts(opened: &Opened, readiness: &Readiness, config: &Config) -> Parts {
    let metrics = Metrics::default();
    metrics.install();
    let connections = within_open_files(config.connections);
    Parts {
        broker: opened.broker.clone(),
        budgets: Budgets::default(),
        outflow: Outflow::default(),
        metrics,
        readiness: readiness.clone(),
        identity: Identity {
            cluster_uid: opened.cluster,
            incarnation: opened.incarnation.into(),
            start_time_us: wall_us(),
        },
        connections: Bounds {
            all: connections,
            per_address: match planted::bug("address-share-ignored") {
                false => config.connections_per_address.min(connections),
                true => connections,
            },
        },
    }
}

async fn signalled(mut terminate: Signal, mut interrupt: Signal) {
    let signal = tokio::select! {
        _ = terminate.recv() => "SIGTERM",
        _ = interrupt.recv() => "SIGINT",
    };
    tracing::info!(signal, "draining");
}

fn ended(result: Result<Result<(), BrokerError>, JoinError>) -> Result<(), ServeError> {
    match result {
        Ok(ended) => Ok(ended?),
        Err(_) if planted::bug("panic-taken-for-an-end") => Ok(()),
        Err(_) => Err(ServeError::Panicked("the broker")),
    }
}

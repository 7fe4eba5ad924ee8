//! `cargo xtask memory-limit`: a server with default settings under a memory limit that the kernel enforces.
//!
//! Producers of large messages all at once, a thousand consumers that read slowly or never, a backlog that is many
//! times the limit, and a kill in the middle. The server must not be killed for memory nor end by itself, and at the end
//! every acknowledged message must come, byte for byte.

mod cgroup;
mod clients;
mod ledger;

use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use forebay::proto::v1::{CreateQueueRequest, CreateSubscriptionRequest, Queue, Subscription};
use forebay_testkit::{Server, ServerOptions, queue};
use tokio::sync::watch;
use tokio::task::JoinSet;

use cgroup::Cgroup;
use clients::{QUEUE, Slow};
use ledger::{BODY_BYTES, Ledger};

const LIMIT_BYTES: u64 = 256 << 20;
/// At scale 1.
const BACKLOG_BYTES: f64 = 20.0 * (1 << 30) as f64;
const PRODUCERS: usize = 64;
const CONSUMERS_MAX: usize = 1_000;
const CONSUMERS_MIN: usize = 100;
/// Consumers that share a connection.
const STREAMS: usize = 4;
/// Subscriptions of the slow consumers.
const SLOW_SUBSCRIPTIONS: usize = 10;
/// Messages that are read while slow consumers take what memory there is; the others when these have gone.
const BESIDE: u64 = 8;
const POLL: Duration = Duration::from_millis(50);
/// How long nothing may move.
const STALLED_AFTER: Duration = Duration::from_secs(60);

/// A small trial.
pub const SCALE_DEFAULT: f64 = 0.01;

pub fn run(scale: f64) -> Result<(), String> {
    match unavailable() {
        Some(why) => crate::shell::skip(&why),
        None => crate::runtime()?.block_on(trial(scale)).map(drop),
    }
}

/// Why the kernel cannot limit memory here.
pub fn unavailable() -> Option<String> {
    Cgroup::make(LIMIT_BYTES).err()
}

/// What became of the messages, if the limit was kept and none was lost.
pub async fn trial(scale: f64) -> Result<Arc<Ledger>, String> {
    let group = Cgroup::make(LIMIT_BYTES)?;
    let dir = tempfile::tempdir().map_err(|error| error.to_string())?;
    let messages = (BACKLOG_BYTES * scale / BODY_BYTES as f64).ceil().max(PRODUCERS as f64) as u64;
    let consumers = ((CONSUMERS_MAX as f64 * scale * 10.0) as usize).clamp(CONSUMERS_MIN, CONSUMERS_MAX);
    let trial = Trial {
        group,
        data: dir.path().join("data"),
        consumers,
        messages,
        ledger: Arc::new(Ledger::new(messages)),
    };
    trial.run().await?;
    Ok(trial.ledger)
}

struct Trial {
    group: Cgroup,
    data: PathBuf,
    consumers: usize,
    messages: u64,
    ledger: Arc<Ledger>,
}

/// A server under the limit, and what was seen of it.
struct Watched {
    server: Server,
    dawdlers: JoinSet<()>,
}

impl Trial {
    async fn run(&self) -> Result<(), String> {
        let begun = Instant::now();
        let mut anonymous_max = 0;
        let mut watched = self.start()?;
        self.create(&watched.server).await?;
        self.dawdle(&mut watched);
        let (address, addresses) = watch::channel(watched.server.grpc.clone());
        let mut work = JoinSet::new();
        for _ in 0..PRODUCERS {
            work.spawn(clients::produce(self.ledger.clone(), addresses.clone()));
        }
        let half = self.messages / 2;
        self.watch(&mut watched, &mut work, &mut anonymous_max, |ledger| ledger.acknowledged() >= half)
            .await?;
        watched = self.restart(watched).await?;
        address.send_replace(watched.server.grpc.clone());
        self.watch(&mut watched, &mut work, &mut anonymous_max, |_| false).await?;
        eprintln!("all is published after {:.0?}; reading", begun.elapsed());
        work.spawn(clients::take_all(self.ledger.clone(), watched.server.clients()));
        self.watch(&mut watched, &mut work, &mut anonymous_max, |ledger| ledger.received() >= BESIDE).await?;
        watched.dawdlers.shutdown().await;
        self.watch(&mut watched, &mut work, &mut anonymous_max, |_| false).await?;
        self.end(watched)?;
        self.report(anonymous_max, begun.elapsed())
    }

    fn start(&self) -> Result<Watched, String> {
        let options = ServerOptions { wrapper: self.group.wrapper(), ..ServerOptions::default() };
        let server =
            Server::start_or_tell(&self.data, &options).map_err(|why| format!("{why}{}", self.killed()))?;
        Ok(Watched { server, dawdlers: JoinSet::new() })
    }

    async fn create(&self, server: &Server) -> Result<(), String> {
        let mut clients = server.clients();
        let create = CreateQueueRequest {
            queue: Some(Queue { name: queue(QUEUE), ..Queue::default() }),
            ..CreateQueueRequest::default()
        };
        clients.queues.create_queue(create).await.map_err(|status| status.to_string())?;
        for at in 0..SLOW_SUBSCRIPTIONS {
            let subscription = Subscription { name: slow_subscription(at), ..Subscription::default() };
            let create = CreateSubscriptionRequest {
                subscription: Some(subscription),
                ..CreateSubscriptionRequest::default()
            };
            clients.queues.create_subscription(create).await.map_err(|status| status.to_string())?;
        }
        Ok(())
    }

    fn dawdle(&self, watched: &mut Watched) {
        let mut clients = watched.server.clients();
        for at in 0..self.consumers {
            if at % STREAMS == 0 {
                clients = watched.server.clients();
            }
            let slow = Slow::ALL[at % Slow::ALL.len()];
            let subscription = slow_subscription(at % SLOW_SUBSCRIPTIONS);
            watched.dawdlers.spawn(clients::dawdle(self.ledger.clone(), clients.clone(), subscription, slow));
        }
    }

    /// Waits until `done`, or until all work is; an error if the server ends, the work fails or nothing moves.
    async fn watch(
        &self,
        watched: &mut Watched,
        work: &mut JoinSet<Result<(), String>>,
        anonymous_max: &mut u64,
        done: impl Fn(&Ledger) -> bool,
    ) -> Result<(), String> {
        let (mut moved, mut before) = (Instant::now(), 0);
        while !done(&self.ledger) {
            tokio::time::sleep(POLL).await;
            *anonymous_max = (*anonymous_max).max(self.group.anonymous_bytes()?);
            while let Some(ended) = work.try_join_next() {
                ended.map_err(|error| error.to_string())?.map_err(|why| why + &self.killed())?;
            }
            if work.is_empty() {
                return Ok(());
            }
            if !watched.server.is_running() {
                return Err(format!("the server has ended{}", self.killed()));
            }
            let now = self.ledger.acknowledged() + self.ledger.received();
            if now > before {
                (moved, before) = (Instant::now(), now);
            }
            if moved.elapsed() > STALLED_AFTER {
                return Err(format!("nothing has moved for {STALLED_AFTER:?} after {before} messages"));
            }
        }
        Ok(())
    }

    /// Kills the server and starts it again, with what was acknowledged.
    async fn restart(&self, watched: Watched) -> Result<Watched, String> {
        let acknowledged = self.ledger.acknowledged();
        let Watched { server, mut dawdlers } = watched;
        tokio::task::block_in_place(|| server.kill());
        dawdlers.shutdown().await;
        let mut watched = self.start()?;
        let recovered = watched.server.recovered_messages;
        eprintln!("killed after {acknowledged} messages; {recovered} recovered");
        if recovered < acknowledged {
            return Err(format!("{recovered} messages recovered, {acknowledged} acknowledged"));
        }
        self.dawdle(&mut watched);
        Ok(watched)
    }

    fn end(&self, watched: Watched) -> Result<(), String> {
        let Watched { server, dawdlers } = watched;
        drop(dawdlers);
        let (status, stderr) = tokio::task::block_in_place(|| server.terminate());
        if !status.success() || stderr.contains("panicked") {
            return Err(format!("the server ended with {status}{}:\n{stderr}", self.killed()));
        }
        Ok(())
    }

    /// What to add to an error if the kernel has killed for memory.
    fn killed(&self) -> String {
        match self.group.oom_kills() {
            Ok(0) => String::new(),
            Ok(count) => format!("; the kernel has killed {count} times for memory"),
            Err(why) => format!("; {why}"),
        }
    }

    fn report(&self, anonymous_max: u64, took: Duration) -> Result<(), String> {
        let ledger = &self.ledger;
        let count = |counter: &std::sync::atomic::AtomicU64| counter.load(Ordering::Relaxed);
        let (kills, missing) = (self.group.oom_kills()?, ledger.missing());
        println!(
            "memory-limit: {} messages of {} MiB by {PRODUCERS} producers beside {} slow consumers in {:.0?}; peak \
             {} MiB of {}, {} besides files; {} publishes refused, {} left open by the kill, {} streams cut; \
             {kills} kills for memory, {missing} messages lost",
            ledger.acknowledged(),
            BODY_BYTES >> 20,
            self.consumers,
            took,
            self.group.peak_bytes()? >> 20,
            LIMIT_BYTES >> 20,
            anonymous_max >> 20,
            count(&ledger.refused),
            count(&ledger.unknown),
            count(&ledger.cut),
        );
        if kills == 0 && missing == 0 { Ok(()) } else { Err("the memory limit was not kept".to_owned()) }
    }
}

fn slow_subscription(at: usize) -> String {
    format!("{}/subscriptions/slow-{at}", queue(QUEUE))
}

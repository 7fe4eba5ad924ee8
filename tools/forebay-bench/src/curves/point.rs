//! One point of a curve: a fresh server in a state, under the same load as at every other point.

use std::sync::Arc;
use std::time::{Duration, Instant};

use forebay::proto::v1::GetStatsRequest;
use forebay_testkit::{Clients, subscription};
use tokio::sync::Semaphore;
use tokio::task::JoinSet;

use crate::Failure;
use crate::args::CurvesArgs;
use crate::bodies::Bodies;
use crate::consumers::{Consumers, Stream};
use crate::fill::{Content, Length, Load, all_done, batch_of, fill, same_body};
use crate::memory::rss::settled_kib;
use crate::progress::Progress;
use crate::report::Figures;
use crate::samples::{Samples, Window};
use crate::site::{
    Site, bytes_under, check, create_queues, create_subscriptions, queue_names, stored, waiting,
};
use crate::take::pull_all;

/// Publishes under way; fewer where bodies are large: half of what a server has memory for.
const IN_FLIGHT: u64 = 64;
const IN_FLIGHT_BYTES: u64 = 16 << 20;
/// Most of the oldest messages of a backlog that are consumed, and never more than a tenth; and so many together.
const CONSUMED: u64 = 50_000;
const CONSUMED_BYTES: u64 = 1 << 30;
const PULL: u64 = 1_000;
/// Connections that are made together, and how long they may take.
const TOGETHER: usize = 64;
const CONNECT: Duration = Duration::from_secs(10);
/// Connections besides those of the axis; so many of it a server takes unless it is told, and at most.
const OTHER_CONNECTIONS: u64 = 16;
const CONNECTIONS_UNTOLD: u64 = forebay::limits::CONNECTIONS_DEFAULT as u64 - OTHER_CONNECTIONS;
pub const CONNECTIONS_MAX: u64 = forebay::limits::CONNECTIONS_MAX as u64 - OTHER_CONNECTIONS;
/// Connections that consumers share.
const CONSUMERS_CONNECTIONS: u64 = 4;

/// What there is at a point.
#[derive(Clone, Copy, Debug)]
pub struct Case {
    pub backlog: u64,
    pub queues: u64,
    /// With consumers; without any, what is published waits.
    pub subscriptions: u64,
    pub connections: u64,
    pub size: u64,
}

impl Case {
    pub async fn measure(self, args: &CurvesArgs) -> Result<Figures, Failure> {
        let mut site = Site::new(&args.server)?;
        if self.connections > CONNECTIONS_UNTOLD {
            site.configure(format!("connections = {}\n", self.connections + OTHER_CONNECTIONS));
        }
        site.start()?;
        let pid = site.server().pid();
        let empty_kib = settled_kib(pid).await?;
        let clients = site.server().clients();
        let (names, behind) = (queue_names(self.queues), queue_names(1));
        create_queues(&clients, &names).await?;
        let mut figures = self.backlog(&clients, &behind, args.backlog_size).await?;
        let left = waiting(&clients, &behind).await?;

        let connections = self.connect(&site).await?;
        figures.extend(match self.subscriptions {
            0 => self.load(args, &connections, &names).await?,
            _ => self.deliver(args, &site, &connections, &names).await?,
        });
        let full_kib = settled_kib(pid).await?;
        figures.push(("memory_mib", full_kib.saturating_sub(empty_kib) as f64 / 1024.0));
        figures.push(("disk_mib", bytes_under(&site.data())? as f64 / f64::from(1 << 20)));

        let wait = waiting(&clients, &names).await?;
        drop((clients, connections));
        site.kill();
        figures.push(("ready_ms", site.start()?.as_secs_f64() * 1e3));
        let clients = site.server().clients();
        check("messages that wait after a restart", waiting(&clients, &names).await?, wait)?;
        check("messages of the backlog", waiting(&clients, &behind).await?, left)?;
        Ok(figures)
    }

    /// Fills the queue that stands for what waits, and consumes its oldest.
    async fn backlog(self, clients: &Clients, behind: &[String], size: u64) -> Result<Figures, Failure> {
        create_queues(clients, behind).await?;
        if self.backlog == 0 {
            return Ok(Figures::new());
        }
        fill(clients, behind, self.backlog, size, batch_of(size)).await?;
        check("messages that wait", waiting(clients, behind).await?, self.backlog)?;
        let all = CONSUMED.min(CONSUMED_BYTES / size.max(1)).min(self.backlog.div_ceil(10));
        let (progress, consumer) = (Arc::new(Progress::start("consuming", all)), [clients.clone()]);
        let start = Instant::now();
        pull_all(&consumer, &subscription(&behind[0]), PULL.min(all), all, Arc::clone(&progress)).await?;
        Ok(vec![("consumed_per_second", progress.done() as f64 / start.elapsed().as_secs_f64())])
    }

    /// Connections that the server has taken.
    async fn connect(self, site: &Site) -> Result<Arc<[Clients]>, Failure> {
        let mut connections = Vec::new();
        while (connections.len() as u64) < self.connections {
            let more = TOGETHER.min(self.connections as usize - connections.len());
            let new: Vec<Clients> = (0..more).map(|_| site.server().clients()).collect();
            let mut calls = JoinSet::new();
            for mut clients in new.clone() {
                calls.spawn(async move {
                    clients.admin.get_stats(GetStatsRequest::default()).await?;
                    Ok(())
                });
            }
            let taken = connections.len();
            let refused =
                |_| format!("the server took about {taken} connections, and no more within 10 s; take fewer");
            tokio::time::timeout(CONNECT, all_done(calls)).await.map_err(refused)??;
            connections.extend(new);
        }
        Ok(connections.into())
    }

    /// Publishes for a while.
    async fn load(
        self,
        args: &CurvesArgs,
        connections: &Arc<[Clients]>,
        names: &[String],
    ) -> Result<Figures, Failure> {
        let length = Length::Time(Duration::from_secs(args.seconds));
        let load = Load::new("publishing", names, same_body(self.size), 1, length);
        let rate = self.publish(connections, names, &load, None).await?;
        Ok(self.published(rate, &load.samples()))
    }

    /// Publishes by calls over the connections in turn, each message for a permit of each subscription if there are
    /// permits; messages a second.
    async fn publish(
        self,
        connections: &Arc<[Clients]>,
        names: &[String],
        load: &Arc<Load>,
        permits: Option<Arc<Semaphore>>,
    ) -> Result<f64, Failure> {
        let callers = (IN_FLIGHT_BYTES / self.size.max(1)).clamp(2, IN_FLIGHT) as usize;
        let (start, mut workers) = (Instant::now(), JoinSet::new());
        for caller in 0..callers {
            let (connections, load, permits) = (Arc::clone(connections), Arc::clone(load), permits.clone());
            workers.spawn(async move {
                for turn in (caller..).step_by(callers) {
                    if let Some(permits) = &permits {
                        permits.acquire_many(self.subscriptions as u32).await?.forget();
                    }
                    let Some(request) = load.next() else { break };
                    let began = Instant::now();
                    connections[turn % connections.len()].messages.clone().publish(request).await?;
                    load.answered(began, 1);
                }
                Ok(())
            });
        }
        all_done(workers).await?;
        let rate = load.progress.done() as f64 / start.elapsed().as_secs_f64();
        check("messages in the queues", stored(&connections[0], names).await?, load.progress.done())?;
        Ok(rate)
    }

    /// Publishes to subscriptions with consumers, until all have all. Publishing runs ahead of them by so many messages
    /// as are under way, so its rate is theirs.
    async fn deliver(
        self,
        args: &CurvesArgs,
        site: &Site,
        connections: &Arc<[Clients]>,
        names: &[String],
    ) -> Result<Figures, Failure> {
        let subscriptions = create_subscriptions(&connections[0], &names[0], self.subscriptions).await?;
        let own = self.subscriptions.min(CONSUMERS_CONNECTIONS);
        let own: Vec<Clients> = (0..own).map(|_| site.server().clients()).collect();
        let streams = Stream::open(&own, &subscriptions).await?;
        let window = Window { start: Instant::now(), warm_up: Duration::ZERO, length: None };
        let consumers = Consumers::start(streams, window);
        let bodies = Bodies::new(&self.size.into());
        let stamped = move |number| bodies.stamped(number, window.start.elapsed());
        let stamped = Content::Each(Box::new(stamped));
        let length = Length::Time(Duration::from_secs(args.seconds));
        let load = Load::new("publishing", names, stamped, 1, length);
        let permits = consumers.finished();
        permits.add_permits((IN_FLIGHT * self.subscriptions) as usize);
        let rate = self.publish(connections, names, &load, Some(permits)).await?;
        let deliveries = load.progress.done() * self.subscriptions;
        let delivered = consumers.finish(deliveries).await?;
        let mut figures = self.published(rate, &load.samples());
        figures.push(("delivered_per_second", deliveries as f64 / window.start.elapsed().as_secs_f64()));
        figures.push(("end_to_end_p99_ms", delivered.latency_ms(0.99)));
        Ok(figures)
    }

    fn published(self, rate: f64, samples: &Samples) -> Figures {
        vec![
            ("published_per_second", rate),
            ("published_mib_per_second", rate * self.size as f64 / f64::from(1 << 20)),
            ("publish_p99_ms", samples.latency_ms(0.99)),
        ]
    }
}

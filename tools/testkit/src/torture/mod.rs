//! Clients that work while the server dies, and a history of what they were told; `forebay-checker` judges it.
//!
//! ```text
//!   Crew: publishers, consumers ──▶ server ── killed, started, killed …
//!     │ records each call before it is sent, and its end
//!     ▼
//!   History ──▶ run::judge, after a last start and a drain of every queue
//! ```

pub mod churn;
pub mod consumers;
pub mod figures;
pub mod history;
pub mod kill_loop;
pub mod publishers;
pub mod purges;
pub mod run;
pub mod target;

use std::sync::Arc;
use std::time::Duration;

use forebay::proto::v1::{CreateQueueRequest, ListQueuesRequest, Queue};
use tokio::sync::watch;
use tokio::task::JoinSet;
use tonic::Status;

use crate::payload::Random;
use crate::{Clients, queue};
use churn::{Churner, Fates};
use consumers::{Consumer, Way};
use forebay_checker::format::Event;
use history::{History, QueueName};
use publishers::Publisher;
use purges::Purger;
use target::{Phase, Target};

/// One publisher without stamps, one pulling consumer.
pub const PLAIN: &str = "plain";
/// One publisher with stamps, one stream consumer.
pub const STAMPED: &str = "stamped";
/// Several publishers of both kinds, several consumers of both kinds.
pub const SHARED: [&str; 2] = ["shared-a", "shared-b"];
/// A publisher with stamps, a pulling consumer, and somebody who purges it.
pub const PURGED: &str = "purged";
/// A publisher, and nobody who consumes: what is lost of it is missed in the end.
pub const HOARDED: &str = "hoarded";
/// The queues of a crew that are there from beginning to end.
const QUEUES: [&str; 6] = [PLAIN, STAMPED, SHARED[0], SHARED[1], PURGED, HOARDED];
/// Queues that have one consumer at a time.
pub const ONE_CONSUMER: [&str; 2] = [PLAIN, STAMPED];

/// How long a queue may take to run empty in the end.
const DRAIN_WITHIN: Duration = Duration::from_secs(60);

/// Publishers and consumers at work.
#[derive(Debug)]
pub struct Crew {
    pub history: Arc<History>,
    phase: watch::Sender<Phase>,
    tasks: JoinSet<()>,
    /// What became of the queues that come and go.
    pub fates: Fates,
    random: Random,
    seed: u64,
}

impl Crew {
    /// Nobody yet. The seed is also in the names of producers: two crews on one server need two.
    pub fn new(history: Arc<History>, seed: u64) -> Self {
        for name in ONE_CONSUMER {
            history.record(Event::Queue { queue: name.to_owned(), one_consumer: true, exactly_once: false });
        }
        let (phase, _) = watch::channel(Phase::Down);
        Self {
            history,
            phase,
            tasks: JoinSet::new(),
            fates: Fates::default(),
            random: Random::new(seed),
            seed,
        }
    }

    /// Somebody whose queues come and go, and a queue that is purged.
    pub fn start_churn(&mut self) {
        let random = Random::new(self.random.bits());
        let churner = Churner { target: self.target(), random, fates: self.fates.clone() };
        self.tasks.spawn(churner.run());
        self.publisher(PURGED, Some("purged"), 20);
        self.consumer(PURGED, Way::Pull);
        let random = Random::new(self.random.bits());
        let purger = Purger { target: self.target(), queue: PURGED.into(), random };
        self.tasks.spawn(purger.run());
    }

    /// Everybody else: 9 publishers, 6 consumers, 5 queues.
    pub fn start_all(&mut self) {
        self.publisher(PLAIN, None, 20);
        self.publisher(STAMPED, Some("alone"), 20);
        self.publisher(HOARDED, Some("hoarder"), 2);
        self.consumer(PLAIN, Way::Pull);
        self.consumer(STAMPED, Way::Subscribe);
        for name in SHARED {
            self.publisher(name, Some("first"), 10);
            self.publisher(name, Some("second"), 1);
            self.publisher(name, None, 10);
            self.consumer(name, Way::Pull);
            self.consumer(name, Way::Subscribe);
        }
    }

    fn publisher(&mut self, name: &str, producer: Option<&str>, batch_max: u64) {
        let publisher = Publisher {
            target: self.target(),
            queue: name.into(),
            producer: producer.map(|name| format!("{name}-{}", self.seed)),
            batch_max,
            random: Random::new(self.random.bits()),
        };
        self.tasks.spawn(publisher.run());
    }

    fn consumer(&mut self, name: &str, way: Way) {
        let random = Random::new(self.random.bits());
        let consumer = Consumer { target: self.target(), queue: name.into(), way, random };
        self.tasks.spawn(consumer.run());
    }

    fn target(&self) -> Target {
        Target::new(self.phase.subscribe(), self.history.clone())
    }

    /// Tells everybody where the server is.
    pub fn up(&self, run: u64, address: &str) {
        self.phase.send_replace(Phase::Up { run, address: address.to_owned() });
    }

    /// Tells everybody that there is no server.
    pub fn down(&self) {
        self.phase.send_replace(Phase::Down);
    }

    /// Sends everybody home.
    pub async fn end(mut self) {
        self.phase.send_replace(Phase::Over);
        while let Some(ended) = self.tasks.join_next().await {
            if let Err(error) = ended {
                self.history.unexpected(format!("a client failed: {error}"));
            }
        }
    }
}

/// Makes the queues that a crew works with.
pub async fn create_queues(clients: &mut Clients) -> Result<(), Status> {
    for name in QUEUES {
        let request = CreateQueueRequest {
            queue: Some(Queue { name: queue(name), ..Queue::default() }),
            ..CreateQueueRequest::default()
        };
        clients.queues.create_queue(request).await?;
    }
    Ok(())
}

/// Drains every queue there is in a life of the server, all at one time, those of dead letters when the others are
/// empty.
pub async fn drain_all(history: &Arc<History>, clients: &mut Clients, life: u64) -> Result<(), Status> {
    let request =
        ListQueuesRequest { parent: "namespaces/default".to_owned(), ..ListQueuesRequest::default() };
    let queues = clients.queues.list_queues(request).await?.into_inner().queues;
    let names: Vec<QueueName> =
        queues.iter().map(|queue| queue.name.rsplit('/').next().unwrap_or_default().into()).collect();
    for expected in QUEUES {
        if !names.iter().any(|name| **name == *expected) {
            history.unexpected(format!("queue {expected} is gone"));
        }
    }
    let (dead, living): (Vec<_>, Vec<_>) = names.into_iter().partition(|name| name.ends_with("-dead"));
    for names in [living, dead] {
        let mut drains = JoinSet::new();
        for name in names {
            let (history, mut clients) = (history.clone(), clients.clone());
            drains.spawn(async move {
                if !consumers::drain(&history, &mut clients, &name, life, DRAIN_WITHIN).await? {
                    history.unexpected(format!("queue {name} did not run empty within {DRAIN_WITHIN:?}"));
                }
                Ok(())
            });
        }
        while let Some(drained) = drains.join_next().await {
            drained.unwrap_or_else(|error| Err(Status::internal(format!("a drain failed: {error}"))))?;
        }
    }
    Ok(())
}

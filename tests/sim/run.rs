//! One run: a data directory through several lives of the process, then the emptying of all its queues.

use std::sync::{Arc, Mutex};
use std::time::Duration;

use forebay::admission::Outflow;
use forebay::broker::api::{BrokerError, PullOptions};
use forebay::broker::{self, Opened};
use forebay::core::pause::Target;
use forebay::core::types::Ending;
use forebay::ids::Offset;
use forebay::names::Name;
use tokio::task::JoinHandle;

use crate::clients::{Client, Over, World, queue_name, settle, subscription_name, told_of_loss};
use crate::coverage::Coverage;
use crate::disk::{Mishaps, SimDisk};
use crate::host::SimHost;
use crate::model::{Model, Pull, is_recovered};
use crate::options::{End, Life, Options};
use crate::random::Random;
use crate::trace::{TRACE, Trace};

const SEGMENT_BYTES: u64 = 256 << 10;
/// Looks at a subscription that is to be emptied; most end at once, some wait for a delay.
const LOOKS_MAX: u32 = 2_000;

/// What is said of a run that went well.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Report {
    /// A hash of all that has happened.
    pub trace: u64,
    pub events: u64,
    pub coverage: Coverage,
}

/// Runs a seed. Panics where the broker breaks a promise.
pub fn run(seed: u64) -> Report {
    let mut random = Random::new(seed);
    let options = Arc::new(Options::of(&mut random));
    if std::env::var_os(TRACE).is_some() {
        // It may have been done for another run.
        let _ = tracing_subscriber::fmt().without_time().with_ansi(false).try_init();
    }
    let told = Told { seed, options: options.clone() };
    let host = SimHost::new(random.fork());
    let (coverage, trace) = on_machine(host.clone(), Run::new(host, options, random).story());
    std::mem::forget(told);
    Report { trace: trace.hash(), events: trace.events, coverage }
}

/// What comes of a story that is told on a machine, and all that has happened there.
pub fn on_machine<T: Send + 'static>(
    host: SimHost,
    story: impl Future<Output = T> + Send + 'static,
) -> (T, Trace) {
    let hooked = host.clone();
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_time()
        .start_paused(true)
        .on_thread_park(move || hooked.runtime_parks())
        .build()
        .expect("a runtime can be built");
    let came = runtime.block_on(async {
        host.take_clock();
        let story = tokio::spawn(story);
        host.keep_time(|| story.is_finished()).await;
        match story.await {
            Ok(came) => came,
            Err(error) => std::panic::resume_unwind(error.into_panic()),
        }
    });
    (came, host.end_of_runtime())
}

/// Says how to see a failure again.
struct Told {
    seed: u64,
    options: Arc<Options>,
}

impl Drop for Told {
    fn drop(&mut self) {
        let Self { seed, options } = self;
        eprintln!("seed {seed} fails with {options:#?}");
        eprintln!("again: FOREBAY_SIM_SEED={seed} cargo test --test sim seeds");
    }
}

/// A data directory, and what is known of it.
pub struct Run {
    pub host: SimHost,
    pub disk: SimDisk,
    model: Arc<Mutex<Model>>,
    options: Arc<Options>,
    clients: Vec<Client>,
    coverage: Coverage,
    flipped: bool,
    /// The data directory is damaged so that nothing is served, and it was said.
    refused: bool,
}

/// A broker that runs.
pub struct Running {
    pub world: World,
    pub task: JoinHandle<Result<(), BrokerError>>,
}

impl Run {
    pub fn new(host: SimHost, options: Arc<Options>, mut random: Random) -> Self {
        let disk = SimDisk::new(host.clone(), random.fork());
        let count = options.clients + options.loners;
        let clients = (0..count).map(|number| Client::new(number, random.fork(), &options)).collect();
        Self {
            host,
            disk,
            model: Arc::default(),
            options,
            clients,
            coverage: Coverage::default(),
            flipped: false,
            refused: false,
        }
    }

    /// The same directory, and what is known of it, on another machine. To be taken while nothing runs.
    pub fn copy_at(&self, host: SimHost, options: Arc<Options>) -> Self {
        let model = self.model.lock().expect("no panic").clone();
        Self {
            disk: self.disk.copy_at(host.clone()),
            host,
            model: Arc::new(Mutex::new(model)),
            options,
            clients: Vec::new(),
            coverage: self.coverage,
            ..*self
        }
    }

    async fn story(mut self) -> Coverage {
        for (life, number) in self.options.clone().lives.iter().zip(1..) {
            self.live(life, number).await;
            self.quiet().await;
            if self.refused {
                return self.coverage();
            }
            self.between(life);
        }
        self.last_life().await
    }

    /// What happens to the disk after a life.
    pub fn between(&mut self, life: &Life) {
        if life.end == End::PowerLoss {
            self.disk.lose_power();
            self.coverage.power_losses += 1;
        }
        for ending in &life.flips {
            let hit = self.disk.flip_bit(ending);
            // An index can be made again: then nothing may be lost.
            self.flipped |= hit.is_some() && *ending != ".idx";
            self.coverage.bits_flipped += u64::from(hit.is_some());
            self.host.note(format_args!("flipped: {hit:?}"));
        }
    }

    /// A life in which nothing happens to the disk: all that is there is taken out, and judged.
    pub async fn last_life(mut self) -> Coverage {
        self.disk.begin(Mishaps::default());
        let Some(running) = self.open(u64::MAX) else {
            assert!(self.refused, "the last start fails");
            return self.coverage();
        };
        self.empty(&running.world).await.expect("nothing ends it");
        look_into_recovered(&running.world).await.expect("nothing ends it");
        let (broker, task) = (running.world.broker.clone(), running.task);
        broker.close().await.expect("it closes");
        task.await.expect("no panic").expect("it ends well");
        self.model.lock().expect("no panic").check_end();
        self.coverage()
    }

    /// What has happened so far.
    pub fn coverage(&self) -> Coverage {
        let model = self.model.lock().expect("no panic");
        let mut coverage = Coverage { runs: 1, ..self.coverage };
        model.count(&mut coverage);
        coverage
    }

    /// Waits until all threads of the broker have ended.
    pub async fn quiet(&self) {
        while !self.host.is_quiet() {
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
    }

    async fn live(&mut self, life: &Life, number: u64) {
        self.host.note(format_args!("life {number}: {life:?}"));
        self.disk.begin(life.mishaps.clone());
        let Some(Running { world, task }) = self.open(number) else { return };
        let clients = std::mem::take(&mut self.clients).into_iter().map(|mut client| {
            let (world, calls) = (world.clone(), life.calls);
            tokio::spawn(async move {
                if client.number == 0 && client.make_all(&world).await.is_err() {
                    return client;
                }
                client.live(world, calls).await
            })
        });
        let clients: Vec<_> = clients.collect();
        let end = self.host.elapsed() + Duration::from_micros(life.time_us);
        let all_done = || clients.iter().all(|client| client.is_finished());
        while !task.is_finished() && !all_done() && self.host.elapsed() < end {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
        self.end_life(&world, life.end).await;
        // Whether it ends well is not known here: its disk may fail.
        let _ = task.await.expect("the broker does not panic");
        for client in clients {
            self.clients
                .push(client.await.unwrap_or_else(|error| std::panic::resume_unwind(error.into_panic())));
        }
    }

    /// Ends the broker as a life ends.
    pub async fn end_life(&mut self, world: &World, end: End) {
        self.coverage.lives += 1;
        // Where a commit waits for space, so does every answer behind it.
        let stats = tokio::time::timeout(Duration::from_secs(1), world.broker.server_stats()).await;
        match stats {
            Ok(Ok(stats)) => self.coverage.take(&stats),
            Err(_) => self.coverage.disk_full += 1,
            Ok(Err(_)) => self.coverage.failures += u64::from(!self.disk.has_ended()),
        }
        if end != End::Close {
            self.coverage.kills += u64::from(end == End::Kill);
            self.disk.end();
            // Its next change on the disk finds that all is over.
            let _ = world.broker.drain().await;
        }
        let _ = world.broker.close().await;
    }

    /// Starts the process for this life of those that were chosen, or another; none if its disk did not let it.
    pub fn open(&mut self, life: u64) -> Option<Running> {
        let opened =
            match broker::open_on(Arc::new(self.host.clone()), Arc::new(self.disk.clone()), SEGMENT_BYTES) {
                Ok(opened) => opened,
                Err(error) => {
                    self.host.note(format_args!("cannot be opened: {error}"));
                    let mishaps = self.options.lives.get(life as usize - 1).map(|life| &life.mishaps);
                    let excused = mishaps.is_some_and(|m| m.fails_at.is_some() || m.capacity.is_some());
                    self.coverage.starts_failed += 1;
                    self.refused = self.flipped && error.is_data_loss();
                    assert!(excused || self.refused || self.disk.has_ended(), "it cannot be opened: {error}");
                    return None;
                }
            };
        let mut model = self.model.lock().expect("no panic");
        model.begin_life();
        self.take_report(&mut model, &opened);
        drop(model);
        let world = World {
            broker: opened.broker,
            host: self.host.clone(),
            disk: self.disk.clone(),
            model: self.model.clone(),
            outflow: Outflow::new(self.options.outflow_bytes),
            options: self.options.clone(),
            may_lose: self.flipped,
            life,
        };
        Some(Running { world, task: tokio::spawn(opened.task.run()) })
    }

    fn take_report(&self, model: &mut Model, opened: &Opened) {
        let is_whole = opened.damage.is_empty() && opened.missing.is_empty() && opened.lost.is_empty();
        assert!(
            is_whole || self.flipped,
            "the disk kept what was synced, but: {:?} {:?} {:?}",
            opened.damage,
            opened.missing,
            opened.lost
        );
        model.damage_told |= !is_whole;
        opened.lost.iter().chain(&opened.left_out).for_each(|of| model.lost_range(of));
    }

    /// Takes and acks all that is there.
    async fn empty(&mut self, world: &World) -> Result<(), Over> {
        let queues: Vec<String> = (0..self.options.queues).map(|number| format!("q{number}")).collect();
        let dead: Vec<String> = queues.iter().map(|queue| format!("{queue}-dead")).collect();
        for queue in queues.iter().chain(&dead) {
            let Ok(view) = world.broker.get_queue(queue_name(queue)).await else {
                world.model().gone(queue);
                continue;
            };
            world.model().is_there(queue, view.uid);
            let all = Target { queue: queue_name(queue), subscription: None };
            let _ = world.broker.resume(all.clone()).await;
            let listed =
                world.broker.list_subscriptions(queue_name(queue), None, 100).await.expect("it is there");
            let names = listed.iter().map(|view| view.name.subscription.as_str().to_owned());
            world.model().subscriptions_are(view.uid, names);
            for subscription in listed {
                let name = subscription.name.subscription;
                let one = Target { subscription: Some(name.clone()), ..all.clone() };
                let _ = world.broker.resume(one).await;
                self.empty_one(world, queue, &name).await?;
            }
        }
        Ok(())
    }

    async fn empty_one(&mut self, world: &World, queue: &str, subscription: &Name) -> Result<(), Over> {
        let subscription = subscription.as_str();
        for _ in 0..LOOKS_MAX {
            let at_us = self.host.elapsed().as_micros() as u64;
            let lease_us = 600_000_000;
            let options = PullOptions {
                messages_max: 1_000,
                bytes_max: 4 << 20,
                wait: Duration::ZERO,
                lease_us: Some(lease_us),
            };
            let moment = world.model().moment();
            let pull = Pull { moment, at_us, life: world.life, alone: false };
            let name = subscription_name(queue, subscription);
            match world.broker.pull(name.clone(), options, Outflow::default().outlet()).await {
                Ok(batch) if batch.value.is_empty() => {
                    let view = world.broker.get_subscription(name).await.expect("it is there");
                    if view.stats.backlog_messages == 0 {
                        return Ok(());
                    }
                    if self.flipped {
                        give_up_damaged(world, queue).await?;
                    }
                    tokio::time::sleep(Duration::from_millis(100)).await;
                }
                Ok(batch) => {
                    let seen_us = self.host.elapsed().as_micros() as u64;
                    world.model().pulled(queue, subscription, pull, seen_us, &batch.value);
                    let acks = batch.value.into_iter().map(|delivery| (delivery, Ending::Ack)).collect();
                    settle(world, queue, subscription, acks).await?;
                }
                Err(BrokerError::DataLoss { offset, .. }) => {
                    assert!(
                        self.flipped,
                        "{queue}/{subscription}/{offset} is damaged, but no bit was flipped"
                    );
                    give_up(world, queue, offset).await?;
                }
                Err(error) => panic!("{queue}/{subscription} cannot be emptied: {error}"),
            }
        }
        panic!("{queue}/{subscription} does not come to be empty");
    }
}

/// Looks for dead letters in queues that were made again under other names, as their creation was lost.
async fn look_into_recovered(world: &World) -> Result<(), Over> {
    let all = world.broker.list_queues(Name::new("default").expect("a good name"), None, 1_000).await;
    for view in all.expect("nothing ends it") {
        let queue = view.name.queue.as_str();
        if !is_recovered(queue) {
            continue;
        }
        for offset in (view.first_offset.0..view.next_offset.0).map(Offset) {
            let outlet = world.outflow.outlet();
            match world.broker.peek(view.name.clone(), Some(offset), 1, 1, &outlet).await {
                Ok(held) => held.value.iter().for_each(|message| world.model().recovered(message)),
                Err(BrokerError::DataLoss { offset, .. }) => told_of_loss(world, queue, offset).await?,
                Err(error) => panic!("{queue}/{offset} cannot be read: {error}"),
            }
        }
    }
    Ok(())
}

/// Looks at each message that is there: one that is given up for good, but damaged, comes to no consumer.
async fn give_up_damaged(world: &World, queue: &str) -> Result<(), Over> {
    let view = world.broker.get_queue(queue_name(queue)).await.expect("it is there");
    for offset in (view.first_offset.0..view.next_offset.0).map(Offset) {
        let outlet = world.outflow.outlet();
        let seen = world.broker.peek(queue_name(queue), Some(offset), 1, 1, &outlet).await;
        if let Err(BrokerError::DataLoss { offset, .. }) = seen {
            give_up(world, queue, offset).await?;
        }
    }
    Ok(())
}

/// Cancels a message that was reported as damaged.
async fn give_up(world: &World, queue: &str, offset: Offset) -> Result<(), Over> {
    told_of_loss(world, queue, offset).await?;
    let view = world.broker.get_queue(queue_name(queue)).await.expect("it is there");
    // It may be leased, and is tried again then.
    let _ = world.broker.cancel(queue_name(queue), view.uid, offset).await;
    Ok(())
}

//! `attack`: what publishing costs an honest client beside each attack, and alone, in turn.
//!
//! The honest client publishes on a schedule, and a latency runs from the moment at which its message was due: a server
//! that is held up shows. Attacks come from a thread of their own and from another address. What is measured is the server,
//! so attackers do not have their victims' processors: the server's main thread, which answers calls, has one, and
//! clients have the others, of which that thread takes only what nobody else wants (`SCHED_IDLE`). Else a scheduler lets
//! the honest client wait for a few milliseconds behind the server, though the attacker alone has the other processor.

use std::net::SocketAddr;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use forebay::proto::v1::PublishRequest;
use forebay_testkit::attack::Attack;
use forebay_testkit::{Clients, queue};
use rustix::process::Pid;
use rustix::thread::{CpuSet, sched_getaffinity, sched_setaffinity};
use serde_json::json;

use crate::Failure;
use crate::args::AttackArgs;
use crate::limit::Limit;
use crate::progress::Progress;
use crate::report::{Figures, Report};
use crate::samples::{Samples, Window, lock};
use crate::site::{Site, check, create_queues, queue_names, stored};

/// Publishes a second of the honest client.
const RATE: u32 = 500;
/// Bytes of a body.
const BODY_BYTES: usize = 1_024;
/// From one round of an attack to the next.
const PAUSE: Duration = Duration::from_millis(20);
/// How many times as long as alone the slowest hundredth may take.
const RATIO_MAX: f64 = 2.0;

/// Names of one attack's figures; the whole process long.
#[derive(Clone, Copy)]
struct Names {
    alone: &'static str,
    beside: &'static str,
    ratio: &'static str,
}

impl Names {
    fn of(attack: Attack) -> Self {
        let name = |what: &str| &*format!("{}_{what}", attack.name().replace('-', "_")).leak();
        Self { alone: name("alone_p99_ms"), beside: name("p99_ms"), ratio: name("p99_ratio") }
    }
}

pub async fn run(args: &AttackArgs) -> Result<Report, Failure> {
    // Slow bodies take all memory for requests until they are cut off, and others are refused meanwhile: no matter of
    // latencies.
    let all = || Attack::ALL.into_iter().filter(|attack| *attack != Attack::SlowBodies).collect();
    let attacks = if args.attacks.is_empty() { all() } else { args.attacks.clone() };
    let attacks: Vec<(Attack, Names)> =
        attacks.into_iter().map(|attack| (attack, Names::of(attack))).collect();
    let progress = Progress::start("attacking", args.judged.runs * attacks.len() as u64);
    let processors = sched_getaffinity(None)?;
    let mut runs = Vec::new();
    for _ in 0..args.judged.runs {
        let site = Site::started(&args.server)?;
        part(site.server().pid(), processors)?;
        let mut figures = Figures::new();
        for (attack, names) in &attacks {
            let (alone, beside) = pair(&site, *attack, Duration::from_secs(args.seconds)).await?;
            figures.extend([(names.alone, alone), (names.beside, beside), (names.ratio, beside / alone)]);
            progress.add(1);
        }
        runs.push(figures);
    }
    let settings = json!({ "seconds": args.seconds, "rate": RATE, "body_bytes": BODY_BYTES });
    let limits = args.judged.limits(attacks.iter().map(|(_, names)| Limit::Most(names.ratio, RATIO_MAX)));
    Ok(Report { command: "attack", settings, runs, limits })
}

/// The 99th percentile alone, and beside an attack, milliseconds.
async fn pair(site: &Site, attack: Attack, length: Duration) -> Result<(f64, f64), Failure> {
    let (names, clients) = (queue_names(1), site.server().clients());
    create_queues(&clients, &names).await?;
    let alone = publish(&clients, &names[0], length).await?;
    let attacker = Attacker::start(attack, site.server().grpc.parse()?);
    let beside = publish(&clients, &names[0], length).await;
    attacker.stop();
    let beside = beside?;
    check("messages in the queue", stored(&clients, &names).await?, alone.messages() + beside.messages())?;
    Ok((alone.latency_ms(0.99), beside.latency_ms(0.99)))
}

/// Publishes at the rate for so long, whatever it takes; every one must be answered well.
async fn publish(clients: &Clients, name: &str, length: Duration) -> Result<Samples, Failure> {
    let window = Window { start: Instant::now(), warm_up: Duration::ZERO, length: None };
    let samples = Arc::new(Mutex::new(Samples::new(window)));
    let message = forebay::proto::v1::Message { body: vec![b'x'; BODY_BYTES].into(), ..Default::default() };
    let request = PublishRequest { queue: queue(name), messages: vec![message], ..Default::default() };
    let mut calls = tokio::task::JoinSet::new();
    for number in 0..RATE * length.as_secs() as u32 {
        let due = window.start + Duration::from_secs(1) / RATE * number;
        tokio::time::sleep_until(due.into()).await;
        let (mut messages, request, samples) = (clients.messages.clone(), request.clone(), samples.clone());
        calls.spawn(async move {
            let published = messages.publish(request).await;
            let (mut samples, now) = (lock(&samples), Instant::now());
            samples.took(due, now);
            samples.done(1, now);
            published.map(drop)
        });
    }
    while let Some(call) = calls.join_next().await {
        call??;
    }
    let samples = lock(&samples).clone();
    Ok(samples)
}

/// Attacks in a thread of its own until it is stopped.
struct Attacker {
    over: Arc<AtomicBool>,
    thread: std::thread::JoinHandle<()>,
}

impl Attacker {
    fn start(attack: Attack, target: SocketAddr) -> Self {
        let over = Arc::new(AtomicBool::new(false));
        let is_over = over.clone();
        let thread = std::thread::spawn(move || {
            only_when_idle();
            let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
            runtime.expect("a runtime of one thread is made").block_on(async {
                while !is_over.load(Ordering::Relaxed) {
                    attack.round(target).await.expect("the server can be reached");
                    tokio::time::sleep(PAUSE).await;
                }
            });
        });
        Self { over, thread }
    }

    fn stop(self) {
        self.over.store(true, Ordering::Relaxed);
        tokio::task::block_in_place(|| self.thread.join()).expect("an attacker does not panic");
    }
}

/// Gives a server's main thread the first processor, its others all, and the threads of this process all but the first.
fn part(server: i32, all: CpuSet) -> Result<(), Failure> {
    let mut first = CpuSet::new();
    let Some(cpu) = (0..CpuSet::MAX_CPU).find(|cpu| all.is_set(*cpu)).filter(|_| all.count() > 1) else {
        return Ok(());
    };
    first.set(cpu);
    let mut others = all;
    others.unset(cpu);
    // A server of a later run has begun with what this process had.
    let of_server = |thread: i32| if thread == server { first } else { all };
    allot(server, of_server)?;
    allot(std::process::id() as i32, |_| others)
}

fn allot(process: i32, processors: impl Fn(i32) -> CpuSet) -> Result<(), Failure> {
    for thread in std::fs::read_dir(format!("/proc/{process}/task"))? {
        let Some(id) = thread?.file_name().to_str().and_then(|id| id.parse().ok()) else { continue };
        // One that has ended meanwhile needs none.
        let _ = sched_setaffinity(Pid::from_raw(id), &processors(id));
    }
    Ok(())
}

/// The calling thread has the machine only where nobody else wants it.
fn only_when_idle() {
    use thread_priority::{NormalThreadSchedulePolicy, ThreadPriority, ThreadSchedulePolicy};
    let policy = ThreadSchedulePolicy::Normal(NormalThreadSchedulePolicy::Idle);
    let this = thread_priority::thread_native_id();
    // Anybody may ask for less. What can fail is the niceness, which comes last and means nothing then.
    let _ = thread_priority::set_thread_priority_and_policy(this, ThreadPriority::Min, policy);
}

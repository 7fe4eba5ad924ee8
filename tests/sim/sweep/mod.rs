//! Every operation of the disk fails once: short traces of the whole broker, each through another part of it, are
//! repeated with a fault at their first operation, their second, and so on, until one ends that the fault did not meet.
//!
//! After each the process is started on what is there. It must start, answer what was not answered, and take more; then
//! the power goes, which takes what only the page cache holds; then all is taken out, and the model judges: nothing
//! that was acknowledged is lost, nothing invented, nothing finished comes again, all damage is told.
//!
//! Of the longer traces each fault is tried at a part of the operations; `FOREBAY_SWEEP= cargo test --release --test sim
//! sweep` tries all. `FOREBAY_SWEEP=purge` sweeps the traces alone whose name contains this, `FOREBAY_SWEEP_AT=17` with a
//! fault at this operation alone, and `FOREBAY_SIM_TRACE=1` prints what happens.

mod script;
mod traces;

use std::sync::Arc;
use std::time::Duration;

use crate::clients::Client;
use crate::coverage::Coverage;
use crate::disk::{Failure, Mishaps, Operations};
use crate::host::SimHost;
use crate::options::{End, Life, Options};
use crate::random::Random;
use crate::run::{Run, on_machine};
use script::{Step, go_on, play};
use traces::{TRACES, Trace};

/// Simulated time that a trace may take; a full disk makes it wait for more.
const PATIENCE: Duration = Duration::from_secs(1);
/// Longest trace, in operations that change something.
const CHANGES_MAX: u64 = 300;

/// What happens at the operation.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Fault {
    /// It fails.
    Once(Failure),
    /// It fails, and all behind it.
    Sticky(Failure),
    /// The process is killed.
    Kill,
    /// The power goes.
    PowerCut,
}

impl Fault {
    /// Of a life in which it happens at operation `at`.
    fn mishaps(self, at: u64) -> Mishaps {
        let none = Mishaps::default();
        match self {
            Self::Once(failure) => Mishaps { fails_at: Some(at), failure, ..none },
            Self::Sticky(failure) => Mishaps { fails_at: Some(at), failure, fails_for_good: true, ..none },
            Self::Kill | Self::PowerCut => Mishaps { ends_at: Some(at), ..none },
        }
    }

    fn is_met(self, at: u64, had: Operations) -> bool {
        match self {
            Self::Once(Failure::Look) | Self::Sticky(Failure::Look) => had.looks >= at,
            _ => had.changes >= at,
        }
    }
}

/// What a trace came to.
#[derive(Debug)]
struct Came {
    /// Of the life in which the fault was to happen.
    operations: Operations,
    /// What that life has done.
    coverage: Coverage,
}

/// A trace up to its last life.
struct Prepared {
    trace: &'static Trace,
    run: Run,
    client: Client,
    elapsed_us: u64,
}

/// From the trace's name, so that a trace that is added changes no other.
fn random(trace: &Trace) -> Random {
    Random::new(crc32fast::hash(trace.name.as_bytes()).into())
}

/// Tells what comes before the last life.
fn prepare(trace: &'static Trace) -> Prepared {
    let mut random = random(trace);
    let options = Arc::new(options(trace, None));
    let mut client = Client::new(0, Random::new(0), &options);
    let host = SimHost::new(random.fork());
    let mut run = Run::new(host.clone(), options.clone(), random);
    on_machine(host, async move {
        for ((life, act), number) in options.lives.iter().zip(trace.before).zip(1..) {
            let ended = one_life(&mut run, life, number, act.steps, &mut client).await;
            assert_eq!(ended, Ended::Played, "what comes before does not come to its end");
            run.between(life);
        }
        let elapsed_us = run.host.elapsed().as_micros() as u64;
        Prepared { trace, run, client, elapsed_us }
    })
    .0
}

impl Prepared {
    /// Tells the rest, with a fault in the last life. Panics where the broker breaks a promise.
    fn tell(&self, fault: Option<(Fault, u64)>) -> Came {
        let Self { trace, client, .. } = self;
        let options = Arc::new(options(trace, fault));
        let host = SimHost::begun(random(trace), self.elapsed_us);
        let run = self.run.copy_at(host.clone(), options.clone());
        on_machine(host, last_lives(run, trace, options, client.clone(), fault)).0
    }
}

fn options(trace: &Trace, fault: Option<(Fault, u64)>) -> Options {
    let life = |mishaps, end, flips: &[&'static str]| {
        let time_us = PATIENCE.as_micros() as u64;
        Life { time_us, calls: 0, mishaps, end, flips: flips.to_vec() }
    };
    let before = trace.before.iter().map(|act| life(Mishaps::default(), act.end, act.flips));
    let mishaps = fault.map_or_else(Mishaps::default, |(fault, at)| fault.mishaps(at));
    let mishaps = Mishaps { capacity: trace.capacity, ..mishaps };
    let end = match fault {
        Some((Fault::Kill, _)) => End::Kill,
        Some((Fault::PowerCut, _)) => End::PowerLoss,
        _ => End::Close,
    };
    Options {
        queues: trace.queues,
        clients: 1,
        loners: 0,
        body_bytes_max: 0,
        lease_us_max: 0,
        attempts_max: 0,
        backoff_us_max: 0,
        outflow_bytes: 24_000_000,
        think_us: 0,
        lives: before.chain([life(mishaps, end, &[])]).collect(),
    }
}

/// How far a life came.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Ended {
    /// All steps were done.
    Played,
    /// The broker stopped before that, did not start, or waits for space.
    Cut,
}

async fn one_life(run: &mut Run, life: &Life, number: u64, steps: &[Step], client: &mut Client) -> Ended {
    run.disk.begin(life.mishaps.clone());
    let mut ended = Ended::Cut;
    if let Some(running) = run.open(number) {
        let played = tokio::time::timeout(PATIENCE, play(&running.world, client, steps)).await;
        if let Ok(Ok(())) = played {
            ended = Ended::Played;
        }
        // A trace that came to its end before the fault closes well.
        let closes = life.mishaps.ends_at.is_some() && !run.disk.has_ended();
        run.end_life(&running.world, if closes { End::Close } else { life.end }).await;
        let _ = running.task.await.expect("the broker does not panic");
    }
    run.quiet().await;
    ended
}

async fn last_lives(
    mut run: Run,
    trace: &Trace,
    options: Arc<Options>,
    mut client: Client,
    fault: Option<(Fault, u64)>,
) -> Came {
    let before = run.coverage();
    let number = options.lives.len() as u64;
    let life = options.lives.last().expect("there is one");
    let ended = one_life(&mut run, life, number, trace.steps, &mut client).await;
    assert!(fault.is_some() || ended == Ended::Played, "the trace does not come to its end");
    let operations = run.disk.operations();
    run.between(life);
    let coverage = run.coverage().since(before);
    if run.start_again(number + 1, &mut client).await {
        run.last_life().await;
    }
    Came { operations, coverage }
}

impl Run {
    /// A life on what a fault has left, and a power cut; whether the broker could be started.
    async fn start_again(&mut self, number: u64, client: &mut Client) -> bool {
        self.disk.begin(Mishaps::default());
        let Some(running) = self.open(number) else { return false };
        go_on(&running.world, client).await.expect("nothing fails any more");
        self.end_life(&running.world, End::PowerLoss).await;
        let _ = running.task.await.expect("the broker does not panic");
        self.quiet().await;
        self.disk.lose_power();
        true
    }
}

/// Says which trace fails, and where.
struct Told(&'static str, Option<(Fault, u64)>);

impl Drop for Told {
    fn drop(&mut self) {
        if std::thread::panicking() {
            let Self(name, fault) = self;
            let at = fault.map_or(0, |(_, at)| at);
            eprintln!("trace {name} fails with {fault:?}");
            eprintln!("again: FOREBAY_SWEEP='{name}' FOREBAY_SWEEP_AT={at} cargo test --test sim sweep");
        }
    }
}

/// What is asked of a sweep besides the fault.
fn number(variable: &str) -> Option<u64> {
    std::env::var(variable).ok().map(|text| text.parse().unwrap_or_else(|_| panic!("{variable} is {text}")))
}

fn chosen() -> Vec<&'static Trace> {
    let only = std::env::var("FOREBAY_SWEEP").unwrap_or_default();
    let chosen: Vec<_> = TRACES.iter().filter(|trace| trace.name.contains(&only)).collect();
    assert!(!chosen.is_empty(), "FOREBAY_SWEEP is {only}, which is in no trace's name");
    chosen
}

/// Repeats every trace with the fault at each operation in turn; of the long ones at every so manieth, others for each
/// fault.
fn sweep(fault: Fault, number_of_fault: u64) {
    let (only, all) = (number("FOREBAY_SWEEP_AT"), std::env::var_os("FOREBAY_SWEEP").is_some());
    let mut runs = 0;
    for trace in chosen() {
        let prepared = prepare(trace);
        let every = if all { 1 } else { trace.every };
        for at in (only.unwrap_or(1 + number_of_fault % every)..).step_by(every as usize) {
            let _told = Told(trace.name, Some((fault, at)));
            let came = prepared.tell(Some((fault, at)));
            runs += 1;
            if only.is_some() || !fault.is_met(at, came.operations) {
                break;
            }
        }
    }
    println!("{runs} runs with {fault:?}");
}

/// So that a sweep over them is what it says.
#[test]
fn traces_do_what_they_are_for() {
    let mut short = Vec::new();
    for trace in chosen() {
        let _told = Told(trace.name, None);
        let Came { operations: Operations { changes, looks }, coverage } = prepare(trace).tell(None);
        println!("{:<26} {changes:>4} changes {looks:>4} looks", trace.name);
        let counts = (trace.changes_min..=CHANGES_MAX).contains(&changes) && looks >= trace.looks_min;
        if !counts || !(trace.shows)(&coverage) {
            short.push(format!("{}: {changes} changes, {looks} looks, and\n{coverage}", trace.name));
        }
    }
    assert!(short.is_empty(), "{}", short.join("\n"));
}

#[test]
fn any_operation_may_fail() {
    sweep(Fault::Once(Failure::Device), 0);
}

#[test]
fn the_disk_may_go_away_at_any_operation() {
    sweep(Fault::Sticky(Failure::Device), 1);
}

#[test]
fn there_may_be_no_space_for_any_operation() {
    sweep(Fault::Once(Failure::NoSpace), 2);
}

#[test]
fn the_disk_may_be_full_from_any_operation_on() {
    sweep(Fault::Sticky(Failure::NoSpace), 3);
}

#[test]
fn any_operation_may_fail_halfway() {
    sweep(Fault::Once(Failure::Halfway), 4);
}

#[test]
fn the_process_may_be_killed_at_any_operation() {
    sweep(Fault::Kill, 5);
}

#[test]
fn the_power_may_go_at_any_operation() {
    sweep(Fault::PowerCut, 6);
}

#[test]
fn any_read_may_fail() {
    sweep(Fault::Once(Failure::Look), 7);
}

#[test]
fn reads_may_fail_from_any_one_on() {
    sweep(Fault::Sticky(Failure::Look), 8);
}

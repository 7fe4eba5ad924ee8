//! The simulated machine: real threads of which one runs at a time, a clock that moves when all of them wait, and
//! randomness from the seed.
//!
//! A thread goes on until it waits, ends, or passes its turn at a change on the disk; then the seed says who is next.
//! Thread 0 is that of the async runtime, tasks and all. It waits where the runtime has nothing left to do, and may run
//! again when another thread has: only such a thread can have woken a task. When nobody can run, time moves on.

use std::cell::Cell;
use std::io;
use std::panic::AssertUnwindSafe;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, OnceLock};
use std::task::{Poll, Waker};
use std::time::{Duration, Instant};

use forebay::host::{Host, Parking, Thread, Work};

use crate::processor;
use crate::random::Random;
use crate::trace::Trace;

/// Wall time at the beginning, microseconds since the Unix epoch.
const WALL_US: u64 = 1_800_000_000_000_000;
/// The thread of the async runtime.
const RUNTIME: usize = 0;
/// Turns at one moment from which on nobody believes that they lead anywhere.
const TURNS_MAX: u64 = 100_000;
/// Longest step of the clock while the runtime may have timers that nobody else knows.
const STEP_MAX: Duration = Duration::from_millis(64);

thread_local! {
    static CURRENT: Cell<usize> = const { Cell::new(RUNTIME) };
}

#[derive(Clone, Debug)]
pub struct SimHost {
    shared: Arc<Shared>,
}

#[derive(Debug)]
struct Shared {
    state: Mutex<State>,
    base: OnceLock<Instant>,
}

#[derive(Debug)]
struct State {
    random: Random,
    secrets: Random,
    trace: Trace,
    now: Duration,
    /// What passed before, microseconds.
    earlier_us: u64,
    /// How far the runtime's clock is.
    runtime_now: Duration,
    /// The next step of the clock.
    step: Duration,
    threads: Vec<Slot>,
    /// Those that have not ended.
    alive: Vec<usize>,
    running: usize,
    parkings: usize,
    /// Percentage of turns that are not given to another thread.
    stay: u64,
    /// Another thread has run since the runtime's last turn.
    runtime_may_run: bool,
    pump: Option<Waker>,
    /// Turns since the clock moved.
    turns: u64,
    panic: Option<String>,
}

#[derive(Debug)]
struct Slot {
    name: String,
    standing: Standing,
    turn: Arc<Condvar>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Standing {
    Ready,
    /// Until woken there, or until then.
    Waiting {
        parking: Option<usize>,
        until: Option<Duration>,
    },
    Joining(usize),
    /// The runtime has nothing to do.
    Idle,
    Ended,
}

impl SimHost {
    /// A machine on which the calling thread is that of the runtime.
    pub fn new(random: Random) -> Self {
        Self::begun(random, 0)
    }

    /// One whose wall clock has run for so long, microseconds.
    pub fn begun(mut random: Random, earlier_us: u64) -> Self {
        CURRENT.set(RUNTIME);
        processor::take_one();
        let runtime = Slot { name: "runtime".to_owned(), standing: Standing::Ready, turn: Arc::default() };
        let state = State {
            secrets: random.fork(),
            stay: random.below(95),
            random,
            trace: Trace::default(),
            now: Duration::ZERO,
            earlier_us,
            runtime_now: Duration::ZERO,
            step: Duration::ZERO,
            threads: vec![runtime],
            alive: vec![RUNTIME],
            running: RUNTIME,
            parkings: 0,
            runtime_may_run: false,
            pump: None,
            turns: 0,
            panic: None,
        };
        Self { shared: Arc::new(Shared { state: Mutex::new(state), base: OnceLock::new() }) }
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.shared.state.lock().unwrap_or_else(|poisoned| poisoned.into_inner())
    }

    /// Takes over the runtime's clock, which stands still. To be called in it.
    pub fn take_clock(&self) {
        let now = tokio::time::Instant::now().into_std();
        self.shared.base.set(now).expect("the clock is taken over once");
    }

    pub fn elapsed(&self) -> Duration {
        self.lock().now
    }

    pub fn note(&self, event: std::fmt::Arguments<'_>) {
        let mut state = self.lock();
        let now = state.now.as_micros();
        state.trace.note(format_args!("{now} {event}"));
    }

    /// What has happened. Lets go of the runtime, which has the machine.
    pub fn end_of_runtime(&self) -> Trace {
        let mut state = self.lock();
        state.pump = None;
        state.trace.clone()
    }

    /// Lets another thread go on, maybe.
    pub fn pass(&self) {
        self.switch(Standing::Ready);
    }

    /// Lets others go on for so long.
    pub fn sleep(&self, time: Duration) {
        let until = Some(self.elapsed() + time);
        self.switch(Standing::Waiting { parking: None, until });
    }

    /// Whether all threads but the runtime's have ended.
    pub fn is_quiet(&self) -> bool {
        self.lock().alive == [RUNTIME]
    }

    /// What is called when the runtime has nothing to do.
    pub fn runtime_parks(&self) {
        self.switch(Standing::Idle);
        // So that the runtime never sleeps, and never moves its clock by itself.
        let pump = self.lock().pump.take();
        pump.into_iter().for_each(Waker::wake);
    }

    /// Moves the runtime's clock as the machine's moves, until `ended` says so. To be run beside the tasks.
    pub async fn keep_time(&self, ended: impl Fn() -> bool) {
        while !ended() {
            let mut waited = false;
            std::future::poll_fn(|context| {
                if waited {
                    return Poll::Ready(());
                }
                waited = true;
                self.lock().pump = Some(context.waker().clone());
                Poll::Pending
            })
            .await;
            let ahead = self.runtime_lag();
            if !ahead.is_zero() {
                tokio::time::advance(ahead).await;
            }
        }
    }

    /// How far the runtime's clock is behind, until this was called.
    fn runtime_lag(&self) -> Duration {
        let mut state = self.lock();
        assert!(state.panic.is_none(), "{}", state.panic.as_ref().expect("just seen"));
        assert!(state.turns < TURNS_MAX, "threads take turns, and none of them gets anywhere");
        let lag = state.now - state.runtime_now;
        state.runtime_now = state.now;
        lag
    }

    /// Gives the turn away and waits until it comes back.
    fn switch(&self, standing: Standing) {
        let me = CURRENT.get();
        let mut state = self.lock();
        state.threads[me].standing = standing;
        let next = state.choose(me);
        let theirs = state.hand_to(next);
        if next == me {
            return;
        }
        let turn = state.threads[me].turn.clone();
        // Who wakes before the lock is free has to sleep once more.
        drop(state);
        theirs.notify_one();
        let mut state = self.lock();
        while state.running != me {
            state = turn.wait(state).unwrap_or_else(|poisoned| poisoned.into_inner());
        }
    }

    /// Ends the calling thread.
    fn end(&self) {
        let mut state = self.lock();
        let me = CURRENT.get();
        state.threads[me].standing = Standing::Ended;
        state.alive.retain(|id| *id != me);
        let next = state.choose(me);
        let theirs = state.hand_to(next);
        drop(state);
        theirs.notify_one();
    }

    fn start(&self, name: &str, work: Work) -> io::Result<usize> {
        let mut state = self.lock();
        let id = state.threads.len();
        let turn = Arc::<Condvar>::default();
        state.alive.push(id);
        state.threads.push(Slot { name: name.to_owned(), standing: Standing::Ready, turn: turn.clone() });
        drop(state);
        let host = self.clone();
        let body = move || {
            CURRENT.set(id);
            let mut state = host.lock();
            while state.running != id {
                state = turn.wait(state).unwrap_or_else(|poisoned| poisoned.into_inner());
            }
            drop(state);
            if std::panic::catch_unwind(AssertUnwindSafe(work)).is_err() {
                let mut state = host.lock();
                state.panic = Some(format!("thread {} has panicked", state.threads[id].name));
            }
            host.end();
        };
        std::thread::Builder::new().name(name.to_owned()).stack_size(1 << 20).spawn(body)?;
        Ok(id)
    }
}

impl State {
    /// Who goes on.
    fn choose(&mut self, me: usize) -> usize {
        loop {
            let ready: Vec<usize> = self.alive.iter().copied().filter(|id| self.is_ready(*id)).collect();
            if ready.contains(&me) && self.random.percent(self.stay) {
                return me;
            }
            if !ready.is_empty() {
                return *self.random.pick(&ready);
            }
            self.move_clock();
            if self.threads[RUNTIME].standing == Standing::Idle {
                return RUNTIME;
            }
        }
    }

    fn is_ready(&self, id: usize) -> bool {
        match self.threads[id].standing {
            Standing::Ready => true,
            Standing::Waiting { until, .. } => until.is_some_and(|until| until <= self.now),
            Standing::Joining(other) => self.threads[other].standing == Standing::Ended,
            Standing::Idle => self.runtime_may_run,
            Standing::Ended => false,
        }
    }

    /// Nobody can go on: to the next moment at which somebody waits to, or a step if the runtime has timers.
    fn move_clock(&mut self) {
        let until = |slot: &Slot| match slot.standing {
            Standing::Waiting { until, .. } => until,
            _ => None,
        };
        let next = self.alive.iter().filter_map(|id| until(&self.threads[*id])).min();
        let step = self.now + self.step.max(Duration::from_micros(100));
        self.step = (self.step * 2).clamp(Duration::from_micros(self.random.within(100, 2_000)), STEP_MAX);
        let is_idle = self.threads[RUNTIME].standing == Standing::Idle;
        self.turns = 0;
        self.now = match (next, is_idle) {
            (Some(next), true) => next.min(step),
            (Some(next), false) => next,
            (None, true) => step,
            (None, false) => panic!("nobody can go on: {:?}", self.threads),
        };
    }

    /// Makes it another thread's turn; what wakes that one.
    fn hand_to(&mut self, next: usize) -> Arc<Condvar> {
        self.turns += 1;
        if next == RUNTIME {
            self.runtime_may_run = false;
        } else {
            self.runtime_may_run = true;
            self.step = Duration::ZERO;
        }
        if next != self.running {
            let Self { trace, threads, .. } = self;
            trace.note(format_args!("turn of {} {next}", threads[next].name));
        }
        self.threads[next].standing = Standing::Ready;
        self.running = next;
        self.threads[next].turn.clone()
    }
}

impl Host for SimHost {
    fn now(&self) -> Instant {
        *self.shared.base.get().expect("the runtime's clock was told") + self.elapsed()
    }

    fn wall_us(&self) -> u64 {
        let state = self.lock();
        WALL_US + state.earlier_us + state.now.as_micros() as u64
    }

    fn fill_random(&self, bytes: &mut [u8]) {
        self.lock().secrets.fill(bytes);
    }

    fn spawn(&self, name: &str, work: Work) -> io::Result<Thread> {
        let (id, host) = (self.start(name, work)?, self.clone());
        Ok(Thread::new(move || host.switch(Standing::Joining(id))))
    }

    fn spawn_blocking(&self, work: Work) {
        self.start("reader", work).expect("a thread can be started");
    }

    fn parking(&self) -> Option<Arc<dyn Parking>> {
        let mut state = self.lock();
        state.parkings += 1;
        Some(Arc::new(SimParking { host: self.clone(), id: state.parkings }))
    }
}

#[derive(Debug)]
struct SimParking {
    host: SimHost,
    id: usize,
}

impl Parking for SimParking {
    fn park(&self, timeout: Option<Duration>) {
        let until = timeout.map(|timeout| self.host.elapsed() + timeout);
        self.host.switch(Standing::Waiting { parking: Some(self.id), until });
    }

    fn unpark_all(&self) {
        for slot in &mut self.host.lock().threads {
            if matches!(slot.standing, Standing::Waiting { parking: Some(id), .. } if id == self.id) {
                slot.standing = Standing::Ready;
            }
        }
    }
}

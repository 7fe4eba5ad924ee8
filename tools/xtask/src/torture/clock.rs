//! A wall clock that steps by seconds to days, back and forth, under servers at work: by `libfaketime`, whose offset a
//! file gives. The monotonic clock goes on, as it does on a real machine. After each step the server is asked for the
//! time: a step counts when its answer shows it.

use std::path::{Path, PathBuf};
use std::time::Duration;

use forebay::clock::wall_us;
use forebay::proto::v1::{CreateQueueRequest, Queue};
use forebay_testkit::payload::Random;
use forebay_testkit::torture::run::{Run, complain, options};
use forebay_testkit::{Clients, ServerOptions};
use tonic::Status;

use super::{Tally, Turn, start_with};
use crate::shell::have;

const LIBRARIES: &str = "/usr/lib";
const LIFE: Duration = Duration::from_millis(500);
/// Between two steps of the clock.
const STEP_EVERY: Duration = Duration::from_millis(60);
/// Largest steps, seconds: within leases, beyond them, and days.
const STEPS_S_MAX: [u64; 3] = [2, 600, 400_000];

/// The library, or why it is not there; it is installed if it can be.
pub fn library() -> Result<String, String> {
    have("faketime", "faketime")?;
    let folders = std::fs::read_dir(LIBRARIES).map_err(|error| format!("{LIBRARIES}: {error}"))?;
    let mut files =
        folders.filter_map(|folder| Some(folder.ok()?.path().join("faketime/libfaketimeMT.so.1")));
    let found = files.find(|file| file.exists());
    found.map(|file| file.display().to_string()).ok_or_else(|| "libfaketime is not there".to_owned())
}

pub async fn run(turn: &Turn) -> Result<Tally, String> {
    let mut tally = Tally::default();
    let mut random = Random::new(turn.seed);
    let (data, seed) = (turn.dir.join("data"), random.bits());
    let mut steps = Steps { offset: turn.dir.join("offset"), random, seen: 0 };
    let options = under(&library()?, &steps.offset);
    let history = turn.history("clock", std::sync::Arc::default())?;
    set(&steps.offset, 0)?;
    let first = start_with(&data, &options)?;
    let mut run = Run::begin(history.clone(), seed, &first).await?;
    let mut next = Some(first);
    while tally.cycles < turn.cycles {
        let server = match next.take() {
            Some(first) => first,
            None => steps.step().and_then(|_| start_with(&data, &options))?,
        };
        let mut clients = server.clients();
        let ended = tokio::select! {
            biased;
            ended = run.live(server, LIFE, || false) => ended,
            wrong = steps.go_on(&mut clients) => return Err(wrong),
        };
        complain(&history, &ended.stderr);
        tally.cycles += 1;
        turn.progress.inc(1);
    }
    turn.progress.set_message("draining");
    set(&steps.offset, 0)?;
    let last = start_with(&data, &options)?;
    tally.hits = steps.seen;
    tally.add("clock", &run.finish(last).await);
    Ok(tally)
}

/// The steps of the clock.
struct Steps {
    /// The file that says how far the clock is off, seconds.
    offset: PathBuf,
    random: Random,
    /// Those that an answer of the server has shown.
    seen: u64,
}

impl Steps {
    /// Makes one; how far the clock is off then, seconds.
    fn step(&mut self) -> Result<i64, String> {
        let most = STEPS_S_MAX[self.random.below(STEPS_S_MAX.len() as u64) as usize];
        let seconds = self.random.below(2 * most + 1) as i64 - most as i64;
        set(&self.offset, seconds).map(|()| seconds)
    }

    /// Makes one after the other, and sees that the server tells the time by it. Ends when it does not, and says so.
    async fn go_on(&mut self, clients: &mut Clients) -> String {
        loop {
            let seconds = match self.step() {
                Ok(seconds) => seconds,
                Err(why) => return why,
            };
            let before_us = wall_us();
            let Ok(told) = time_of(clients, &format!("namespaces/clock/queues/step-{}", self.seen)).await
            else {
                // What has become of the server is found out by who started it.
                return std::future::pending().await;
            };
            let stepped = |at_us: u64| at_us as i64 + seconds * 1_000_000;
            let expected = stepped(before_us)..=stepped(wall_us());
            if !expected.contains(&told) {
                return format!(
                    "off by {seconds} s, the clock of the server is at {told} us, not in {expected:?}"
                );
            }
            self.seen += 1;
            tokio::time::sleep(STEP_EVERY).await;
        }
    }
}

/// What time it is, by the server, when it makes a queue; microseconds.
async fn time_of(clients: &mut Clients, queue: &str) -> Result<i64, Status> {
    let queue = Queue { name: queue.to_owned(), ..Queue::default() };
    let request = CreateQueueRequest { queue: Some(queue), ..CreateQueueRequest::default() };
    let made = clients.queues.create_queue(request).await?.into_inner();
    let time = made.create_time.unwrap_or_default();
    Ok(time.seconds * 1_000_000 + i64::from(time.nanos) / 1_000)
}

/// The file changes as a whole: a server never reads half of it.
fn set(offset: &Path, seconds: i64) -> Result<(), String> {
    let next = offset.with_extension("next");
    let written =
        std::fs::write(&next, format!("{seconds:+}\n")).and_then(|()| std::fs::rename(&next, offset));
    written.map_err(|error| format!("{}: {error}", offset.display()))
}

fn under(library: &str, offset: &Path) -> ServerOptions {
    let wrapper = vec![
        "env".to_owned(),
        format!("LD_PRELOAD={library}"),
        format!("FAKETIME_TIMESTAMP_FILE={}", offset.display()),
        "FAKETIME_NO_CACHE=1".to_owned(),
        "FAKETIME_DONT_FAKE_MONOTONIC=1".to_owned(),
    ];
    ServerOptions { wrapper, ..options() }
}

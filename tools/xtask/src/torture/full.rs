//! Full disks: the file system is filled up from outside under a server at work. What is published, finished and given
//! back goes on as far as space lasts and comes back; then the server is killed, and started on the full disk. If there is
//! no space even for its start, it says so; else, when the disk has space again, it must take publishes without another
//! start.

use std::path::Path;
use std::time::{Duration, Instant};

use forebay_testkit::torture::run::{Run, complain};
use forebay_testkit::{Server, ServerOptions};

use super::{Tally, Turn, start_with};
use crate::disk::device::Device;
use crate::disk::{Kind, Mounted};

const REASON: &str = "DISK_FULL";
const LOGGED: &str = "the disk is full";
/// How long a disk may take to be full, and publishes to be taken again when it is not.
const WITHIN: Duration = Duration::from_secs(20);
/// So that the reserve has room for all that the crew may have under way.
const SEGMENTS: &str = "segment_bytes = 1048576\n";
/// A life goes on for so long on a full disk, and then on one that is not.
const GOES_ON: Duration = Duration::from_millis(400);

pub async fn run(turn: &Turn, kind: Kind) -> Result<Tally, String> {
    let mounted = Mounted::new(Device::new(kind.format()?), kind)?;
    let mut tally = Tally::default();
    let history = turn.history("full", mounted.device().position())?;
    history.tolerate(REASON);
    history.tolerate(LOGGED);
    let first = start(&mounted.data())?;
    let mut run = Run::begin(history.clone(), turn.seed, &first).await?;
    let mut next = Some(first);
    while tally.cycles < turn.cycles {
        let server = next.take().map_or_else(|| start(&mounted.data()), Ok)?;
        let ballast = mounted.fill()?;
        let mut full = Since::new(history.times_told(REASON));
        let ended = run.live(server, WITHIN, || full.lasts(history.times_told(REASON))).await;
        complain(&history, &ended.stderr);
        if !full.begun() {
            return Err(format!("nobody was told that the disk is full within {WITHIN:?}"));
        }
        tally.hits += 1;

        let mut ballast = Some(ballast);
        let server = match start(&mounted.data()) {
            Ok(server) => server,
            Err(stderr) if stderr.contains("No space left on device") => {
                ballast.take();
                start(&mounted.data())?
            }
            Err(stderr) => return Err(format!("the server did not start on a full disk:\n{stderr}")),
        };
        let (began, mut taken) = (Instant::now(), Since::new(history.stored()));
        let over = || {
            if ballast.is_some() && began.elapsed() < GOES_ON {
                return false;
            }
            if ballast.take().is_some() {
                taken = Since::new(history.stored());
            }
            taken.lasts(history.stored())
        };
        let ended = run.live(server, WITHIN, over).await;
        complain(&history, &ended.stderr);
        if !taken.begun() {
            return Err(format!("no publish was taken within {WITHIN:?} of space on the disk"));
        }
        tally.cycles += 1;
        turn.progress.inc(1);
    }
    turn.progress.set_message("draining");
    let last = start(&mounted.data())?;
    tally.add("full", &run.finish(last).await);
    Ok(tally)
}

fn start(data: &Path) -> Result<Server, String> {
    start_with(data, &ServerOptions { config: SEGMENTS.to_owned(), ..ServerOptions::default() })
}

/// Since when a count is above what it was.
struct Since {
    count: u64,
    above: Option<Instant>,
}

impl Since {
    fn new(count: u64) -> Self {
        Self { count, above: None }
    }

    fn begun(&self) -> bool {
        self.above.is_some()
    }

    /// Whether it has been above for long enough.
    fn lasts(&mut self, count: u64) -> bool {
        if self.above.is_none() && count > self.count {
            self.above = Some(Instant::now());
        }
        self.above.is_some_and(|since| since.elapsed() >= GOES_ON)
    }
}

//! Crash images: many power cuts of one life. The disk's log of a life with a kill in the middle is cut at many
//! positions, at flushes and between them; each image is mounted, looked through by `forebay fsck`, started, drained,
//! and judged with the history as it stood at that position (see [`History::moment_at`]).
//!
//! [`History::moment_at`]: forebay_testkit::torture::history::History::moment_at

use std::path::Path;
use std::process::Command;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use forebay_testkit::payload::Random;
use forebay_testkit::torture::figures::Figures;
use forebay_testkit::torture::history::History;
use forebay_testkit::torture::run::{Outcome, Run, judge, last_life};
use tokio::task::JoinSet;

use super::{Tally, Turn, start};
use crate::disk::blocks::Blocks;
use crate::disk::device::Device;
use crate::disk::write_log::{Fate, WriteLog};
use crate::disk::{Kind, Mounted};

/// Images of one life.
const IMAGES_MAX: u64 = 50;
/// Judged at one time: they wait for leases more than they work.
const AT_ONCE: usize = 4;
const LIVES: [Duration; 2] = [Duration::from_millis(700), Duration::from_millis(700)];

/// A life that is over.
struct Life {
    log: WriteLog,
    history: Arc<History>,
    /// Where the log stood when all queues were there.
    from: usize,
}

pub async fn run(turn: &Turn, kind: Kind) -> Result<Tally, String> {
    let empty = kind.format()?;
    let mut tally = Tally::default();
    let mut random = Random::new(turn.seed);
    while tally.cycles < turn.cycles {
        turn.progress.set_message("working");
        let life = live(turn, kind, &empty, &format!("life-{}", tally.cycles), random.bits()).await?;
        turn.progress.set_message("");
        let images = IMAGES_MAX.min(turn.cycles - tally.cycles);
        let flushes = life.log.flushes(life.from);
        let mut judged = JoinSet::new();
        for number in tally.cycles..tally.cycles + images {
            if judged.len() == AT_ONCE {
                take(turn, &mut tally, judged.join_next().await)?;
            }
            let position = pick(&life, &flushes, &mut random);
            let fate = Fate::pick(&mut random);
            let (disk, open) = life.log.cut(position, kind.sector_bytes(), fate, &mut random);
            tally.hits += u64::from(open > 0);
            let name = format!("image-{number}");
            let history = turn.branch(&name, &life.history, position as u64)?;
            judged.spawn(async move { (format!("{name} at {position}"), image(kind, disk, history).await) });
        }
        while let Some(next) = judged.join_next().await {
            take(turn, &mut tally, Some(next))?;
        }
        tally.cycles += images;
    }
    Ok(tally)
}

type Judged = (String, Result<Outcome, String>);

fn take(
    turn: &Turn,
    tally: &mut Tally,
    judged: Option<Result<Judged, tokio::task::JoinError>>,
) -> Result<(), String> {
    let (name, outcome) = judged.expect("some are under way").map_err(|error| error.to_string())?;
    match outcome {
        Ok(outcome) => tally.add(&name, &outcome),
        Err(why) => tally.violations.push(format!("{name}: {why}")),
    }
    turn.progress.inc(1);
    Ok(())
}

/// Right after a flush, when all is firm; right before it, when most is open; or anywhere.
fn pick(life: &Life, flushes: &[usize], random: &mut Random) -> usize {
    let choice = random.below(3);
    let anywhere = life.from + random.below((life.log.len() - life.from + 1) as u64) as usize;
    if choice == 0 || flushes.is_empty() {
        return anywhere;
    }
    let flush = flushes[random.below(flushes.len() as u64) as usize];
    if choice == 1 { flush } else { (flush - 1).max(life.from) }
}

async fn live(turn: &Turn, kind: Kind, empty: &Blocks, name: &str, seed: u64) -> Result<Life, String> {
    let mounted = Mounted::new(Device::new(empty.clone()), kind)?;
    let position = mounted.device().position();
    let history = turn.history(name, position.clone())?;
    let first = start(&mounted.data())?;
    let mut run = Run::begin(history.clone(), seed, &first).await?;
    let from = position.load(Ordering::SeqCst) as usize;
    let mut next = Some(first);
    for life in LIVES {
        let server = next.take().map_or_else(|| start(&mounted.data()), Ok)?;
        run.live(server, life, || false).await;
    }
    run.dismiss().await;
    Ok(Life { log: mounted.device().log(), history, from })
}

async fn image(kind: Kind, disk: Blocks, history: Arc<History>) -> Result<Outcome, String> {
    let mounted = tokio::task::block_in_place(|| Mounted::new(Device::new(disk), kind))?;
    // A cut tears the last commit, which a start mends.
    fsck(&mounted.data(), &["torn-end"])?;
    let server = start(&mounted.data())?;
    last_life(&history, server, LIVES.len() as u64, None).await;
    fsck(&mounted.data(), &[])?;
    tokio::task::block_in_place(|| drop(mounted));
    Ok(judge(&history, Figures::default()))
}

/// Looks through a data directory; kinds of damage that may be there are named.
fn fsck(data: &Path, may: &[&str]) -> Result<(), String> {
    let mut command = Command::new(forebay_testkit::server::binary());
    let command = command.arg("fsck").arg(data).args(["--output", "ndjson"]);
    let ran = tokio::task::block_in_place(|| command.output()).map_err(|error| error.to_string())?;
    let said = String::from_utf8_lossy(&ran.stdout).into_owned();
    let lines = said.lines().map(serde_json::from_str::<serde_json::Value>);
    let lines: Vec<_> = lines.collect::<Result<_, _>>().map_err(|error| format!("{error}: {said}"))?;
    let damage =
        |line: &serde_json::Value| line["damage"] == true && !may.iter().any(|kind| line["kind"] == *kind);
    if matches!(ran.status.code(), Some(0 | 1)) && !lines.iter().any(damage) {
        return Ok(());
    }
    Err(format!("forebay fsck: {}:\n{said}{}", ran.status, String::from_utf8_lossy(&ran.stderr)))
}

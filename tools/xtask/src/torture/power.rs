//! Power cuts: at some write the disk is gone for good; what it keeps of what was not flushed is a matter of luck. The
//! next server starts on that, after the kernel has replayed the file system's journal.
//!
//! No answer can rest on writes after the cut, so everything that clients were told counts, also what they were told
//! by a server that did not yet know.

use std::time::Duration;

use forebay_testkit::payload::Random;
use forebay_testkit::torture::run::{Run, options};

use super::{Tally, Turn, start, start_with};
use crate::disk::blocks::Blocks;
use crate::disk::device::{Device, Fault};
use crate::disk::write_log::Fate;
use crate::disk::{Kind, Mounted};

/// After so many cuts all is drained and judged, and the next disk is a new one.
const CUTS_MAX: u64 = 25;
/// A life without its cut ends after this, by a cut.
const LIFE_MAX: Duration = Duration::from_millis(700);
/// The same for a life whose cut waits for work.
const WORK_MAX: Duration = Duration::from_secs(10);
/// A start takes about a tenth of that.
const ENTRIES_BITS_MAX: u64 = 11;

pub async fn run(turn: &Turn, kind: Kind) -> Result<Tally, String> {
    let empty = kind.format()?;
    let mut tally = Tally::default();
    let mut random = Random::new(turn.seed);
    while tally.cycles < turn.cycles {
        let cuts = CUTS_MAX.min(turn.cycles - tally.cycles);
        let name = format!("cuts-{}", tally.cycles);
        one_disk(turn, kind, &empty, &name, cuts, &mut random, &mut tally).await?;
    }
    Ok(tally)
}

async fn one_disk(
    turn: &Turn,
    kind: Kind,
    empty: &Blocks,
    name: &str,
    cuts: u64,
    random: &mut Random,
    tally: &mut Tally,
) -> Result<(), String> {
    let mut mounted = Mounted::new(Device::new(empty.clone()), kind)?;
    let first = start(&mounted.data())?;
    let history = turn.history(name, mounted.device().position())?;
    // A server whose disk is gone tells that it cannot read.
    history.tolerate("MESSAGE_DAMAGED");
    let mut run = Run::begin(history, random.bits(), &first).await?;
    let mut next = Some(first);
    for number in 0..cuts {
        let device = mounted.device().clone();
        let bits = random.below(ENTRIES_BITS_MAX + 1);
        let cut = Fault::Cut { after: random.below(1 << bits) };
        // A disk on which nothing was ever acknowledged has nothing to lose.
        let mut waits = number == 0 || random.below(2) == 0;
        let life_max = if waits { WORK_MAX } else { LIFE_MAX };
        if !waits {
            device.set_fault(cut);
        }
        let started = match next.take() {
            Some(server) => Ok(server),
            None => start_with(&mounted.data(), &options()),
        };
        match started {
            Ok(server) => {
                let history = run.history.clone();
                let stored = history.stored();
                let over = || {
                    if waits && history.stored() > stored {
                        waits = false;
                        device.set_fault(cut);
                    }
                    device.is_dead()
                };
                let ended = run.live(server, life_max, over).await;
                if ended.stderr.contains("panicked") || ended.status.is_some() && !device.is_dead() {
                    return Err(format!("the server ended:\n{}", ended.stderr));
                }
            }
            Err(_) if device.is_dead() => run.figures.early_kills += 1,
            Err(stderr) => return Err(format!("the server did not start after a power cut:\n{stderr}")),
        }
        tally.hits += device.hits();
        device.cut();
        let log = device.log();
        drop(mounted);
        let (disk, _) = log.cut(log.len(), kind.sector_bytes(), Fate::pick(random), random);
        mounted = Mounted::new(Device::new(disk), kind)?;
        tally.cycles += 1;
        turn.progress.inc(1);
    }
    turn.progress.set_message("draining");
    let last = start(&mounted.data())?;
    let outcome = run.finish(last).await;
    tally.add(name, &outcome);
    turn.progress.set_message("");
    Ok(())
}

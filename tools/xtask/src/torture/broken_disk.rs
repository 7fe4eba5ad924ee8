//! Disks that fail or lag under a server at work, and are mended before the next one.
//!
//! | Fault | The server must |
//! |---|---|
//! | writes, or flushes, fail for good | end by itself, non-zero, and say why |
//! | one write or flush fails | the same, or not have needed it |
//! | reads fail, from its start on | refuse to start, tell what cannot be read, or end; and forget nothing for that |
//! | each request is slow | go on |
//!
//! Always, nothing is lost when the disk is well again, and no byte is wrong.

use std::time::{Duration, Instant};

use forebay_testkit::payload::Random;
use forebay_testkit::torture::run::{Ended, Run, options};

use super::{Tally, Turn, start, start_with};
use crate::disk::blocks::Blocks;
use crate::disk::device::{Call, Device, Fault};
use crate::disk::{Kind, Mounted};

/// How long a server may take to meet its fault and end.
const FAULT_WITHIN: Duration = Duration::from_secs(20);
/// A life without faults, which leaves something to read.
const HEALTHY: Duration = Duration::from_millis(600);
/// A life in which reads fail, or all is slow.
const BROKEN: Duration = Duration::from_millis(1_500);
/// Each request to a slow disk.
const SLOW_BY: Duration = Duration::from_millis(10);
/// One fault in so many is over after one request.
const ONCE_EVERY: u64 = 3;

/// What is wrong with the disk.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Trouble {
    Writes,
    Flushes,
    Reads,
    Slow,
}

pub async fn run(turn: &Turn, kind: Kind, trouble: Trouble) -> Result<Tally, String> {
    let empty = kind.format()?;
    let mut tally = Tally::default();
    let mut random = Random::new(turn.seed);
    for cycle in 0..turn.cycles {
        let name = format!("disk-{cycle}");
        let trial = Trial { turn, kind, trouble, name: &name };
        trial.run(&empty, &mut random, &mut tally).await.map_err(|why| format!("{name}: {why}"))?;
        tally.cycles += 1;
        turn.progress.inc(1);
    }
    Ok(tally)
}

struct Trial<'a> {
    turn: &'a Turn,
    kind: Kind,
    trouble: Trouble,
    name: &'a str,
}

impl Trial<'_> {
    async fn run(&self, empty: &Blocks, random: &mut Random, tally: &mut Tally) -> Result<(), String> {
        let device = Device::new(empty.clone());
        let mounted = Mounted::new(device.clone(), self.kind)?;
        let history = self.turn.history(self.name, device.position())?;
        // What cannot be read is told.
        history.tolerate("MESSAGE_DAMAGED");
        let first = start(&mounted.data())?;
        let mut run = Run::begin(history, random.bits(), &first).await?;
        let once = random.below(ONCE_EVERY) == 0;
        let fault = self.fault(once, random);
        let mounted = if self.trouble == Trouble::Reads {
            run.live(first, HEALTHY, || false).await;
            self.unreadable(mounted, fault, &mut run).await?
        } else {
            device.set_fault(fault);
            let within = if self.trouble == Trouble::Slow { BROKEN } else { FAULT_WITHIN };
            // It is seen what the server does then.
            let mut hit_at = None;
            let met_once = || {
                let is_hit = once && device.hits() > 0 && self.trouble != Trouble::Slow;
                is_hit && hit_at.get_or_insert_with(Instant::now).elapsed() > HEALTHY
            };
            let ended = run.live(first, within, met_once).await;
            ended_well(&ended, once || self.trouble == Trouble::Slow)?;
            if self.trouble == Trouble::Slow && ended.status.is_some() {
                return Err(format!("a slow disk ended the server:\n{}", ended.stderr));
            }
            mounted
        };
        tally.hits += u64::from(device.hits() > 0);
        device.set_fault(Fault::None);
        drop(mounted);
        let mended = Mounted::new(device, self.kind)?;
        // New messages take the places of those that were lost, if any were.
        run.live(start(&mended.data())?, HEALTHY, || false).await;
        let last = start(&mended.data())?;
        tally.add(self.name, &run.finish(last).await);
        Ok(())
    }

    fn fault(&self, once: bool, random: &mut Random) -> Fault {
        let times = if once { 1 } else { u64::MAX };
        let bits = 3 + random.below(6);
        // A start reads little that the kernel does not have already.
        let after = random.below(if self.trouble == Trouble::Reads { 8 } else { 1 << bits });
        match self.trouble {
            Trouble::Writes => Fault::Fail { call: Call::Write, after, times },
            Trouble::Flushes => Fault::Fail { call: Call::Flush, after, times },
            Trouble::Reads => Fault::Fail { call: Call::Read, after, times },
            Trouble::Slow => Fault::Slow { by: SLOW_BY },
        }
    }

    /// A life on a disk that cannot be read, on nothing but what is read: the kernel has forgotten the files.
    async fn unreadable(&self, mounted: Mounted, fault: Fault, run: &mut Run) -> Result<Mounted, String> {
        let device = mounted.device().clone();
        drop(mounted);
        let mounted = Mounted::new(device.clone(), self.kind)?;
        device.set_fault(fault);
        let server = match start_with(&mounted.data(), &options()) {
            Ok(server) => server,
            Err(stderr) if stderr.contains("panicked") => return Err(stderr),
            // A refusal.
            Err(_) if device.hits() > 0 => return Ok(mounted),
            Err(stderr) => return Err(format!("the server did not start:\n{stderr}")),
        };
        let ended = run.live(server, BROKEN, || false).await;
        ended_well(&ended, true).map(|()| mounted)
    }
}

/// A failing disk ends a server in good order; one failure may not have mattered to it.
fn ended_well(ended: &Ended, may_go_on: bool) -> Result<(), String> {
    let Ended { status, stderr } = ended;
    if stderr.contains("panicked") {
        return Err(format!("the server panicked:\n{stderr}"));
    }
    match status {
        None if may_go_on => Ok(()),
        None => Err(format!("the server went on for {FAULT_WITHIN:?}:\n{stderr}")),
        Some(status) if status.success() || status.code().is_none() => {
            Err(format!("the server ended with {status}:\n{stderr}"))
        }
        Some(_) if !stderr.contains("ERROR") && !stderr.contains("rror") => {
            Err(format!("the server does not say why it ended:\n{stderr}"))
        }
        Some(_) => Ok(()),
    }
}

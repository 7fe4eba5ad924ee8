//! Lossy networks: clients and server share a network that has one trouble after the other. It loses packets, is
//! narrow, is cut, or resets connections; between troubles it is well. At the end of each life, mostly in the middle of
//! a trouble, the server is killed. The kernel's own means do it (`nft`, `tc`), below TCP, to both directions alike.
//!
//! What a packet suffers, TCP mends, or the call breaks, and its client knows no more than that. A life counts packets
//! that were dropped, answered by a reset, or held up because the network was narrow, and lasts until there was one,
//! and a publish was answered. The last life, in which all is drained, has no trouble.

use std::cell::Cell;
use std::sync::Arc;
use std::time::{Duration, Instant};

use forebay_testkit::payload::Random;
use forebay_testkit::torture::run::{Run, complain};
use serde_json::Value;

use super::{Tally, Turn, namespace, start};
use crate::shell::{command, have, output};

const LIFE: Duration = Duration::from_millis(2_500);
/// The same for a life that waits for its first packet and answer.
const LIFE_MAX: Duration = Duration::from_secs(20);
const PAUSE_MS: (u64, u64) = (50, 300);
const TROUBLE_MS: (u64, u64) = (300, 1_200);
const CUT_MS: (u64, u64) = (100, 3_000);

/// What is wrong with a network.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Trouble {
    Loss { percent: u64 },
    Narrow { mbit: u64, burst_kib: u64, latency_ms: u64 },
    Cut,
    Resets { per_mille: u64 },
}

/// One trouble after the other.
struct Troubles {
    /// They take turns: no kind is left out.
    turn: u64,
    random: Random,
}

/// Why this cannot be done here: each trouble is tried.
pub fn unavailable() -> Option<String> {
    let programs = [("ip", "iproute2"), ("tc", "iproute2"), ("nft", "nftables"), ("unshare", "util-linux")];
    let missing = programs.into_iter().find_map(|(program, package)| have(program, package).err());
    missing.or_else(|| namespace::apart(try_all).err())
}

fn try_all() -> Result<(), String> {
    prepare()?;
    let mut random = Random::new(0);
    for turn in 0..Trouble::KINDS {
        Trouble::pick(turn, &mut random).begin()?;
        heal()?;
    }
    Ok(())
}

/// To be run in a namespace.
pub async fn run(turn: &Turn) -> Result<Tally, String> {
    let mut tally = Tally::default();
    let mut random = Random::new(turn.seed);
    let mut troubles = Troubles { turn: random.below(Trouble::KINDS), random: Random::new(random.bits()) };
    prepare()?;
    let data = turn.dir.join("data");
    let history = turn.history("lossy", Arc::default())?;
    let first = start(&data)?;
    let mut run = Run::begin(history.clone(), random.bits(), &first).await?;
    let mut next = Some(first);
    while tally.cycles < turn.cycles {
        let server = next.take().map_or_else(|| start(&data), Ok)?;
        let (began, stored, hits) = (Instant::now(), history.stored(), Cell::new(0));
        let over = || began.elapsed() >= LIFE && hits.get() > 0 && history.stored() > stored;
        let ended = tokio::select! {
            biased;
            ended = run.live(server, LIFE_MAX, over) => ended,
            wrong = troubles.go_on(&hits) => return Err(wrong),
        };
        complain(&history, &ended.stderr);
        if let Some(status) = ended.status {
            history.unexpected(format!("the server ended with {status}:\n{}", ended.stderr));
        }
        tally.hits += hits.get() + heal()?;
        tally.cycles += 1;
        turn.progress.inc(1);
    }
    turn.progress.set_message("draining");
    tally.add("lossy", &run.finish(start(&data)?).await);
    Ok(tally)
}

impl Troubles {
    /// Makes trouble and counts its hits. Ends when that fails, and says so.
    async fn go_on(&mut self, hits: &Cell<u64>) -> String {
        loop {
            self.rest(PAUSE_MS).await;
            let trouble = Trouble::pick(self.turn, &mut self.random);
            self.turn += 1;
            if let Err(why) = trouble.begin() {
                return why;
            }
            self.rest(if trouble == Trouble::Cut { CUT_MS } else { TROUBLE_MS }).await;
            match heal() {
                Ok(count) => hits.set(hits.get() + count),
                Err(why) => return why,
            }
        }
    }

    async fn rest(&mut self, (least_ms, most_ms): (u64, u64)) {
        let ms = between(&mut self.random, least_ms, most_ms);
        tokio::time::sleep(Duration::from_millis(ms)).await;
    }
}

impl Trouble {
    const KINDS: u64 = 4;

    fn pick(turn: u64, random: &mut Random) -> Self {
        match turn % Self::KINDS {
            0 => Self::Loss { percent: between(random, 1, 10) },
            1 => Self::Narrow {
                mbit: between(random, 1, 8),
                burst_kib: between(random, 10, 32),
                latency_ms: between(random, 50, 400),
            },
            2 => Self::Cut,
            _ => Self::Resets { per_mille: between(random, 1, 10) },
        }
    }

    fn begin(self) -> Result<(), String> {
        match self {
            Self::Loss { percent } => rule(&format!("numgen random mod 100 < {percent} counter drop")),
            Self::Cut => rule("counter drop"),
            Self::Resets { per_mille } => {
                rule(&format!("numgen random mod 1000 < {per_mille} counter reject with tcp reset"))
            }
            Self::Narrow { mbit, burst_kib, latency_ms } => {
                queueing(&format!("tbf rate {mbit}mbit burst {burst_kib}k latency {latency_ms}ms"))
            }
        }
    }
}

fn between(random: &mut Random, least: u64, most: u64) -> u64 {
    least + random.below(most - least + 1)
}

/// A place for the rules.
fn prepare() -> Result<(), String> {
    command("nft", &["add table inet torture"])?;
    command("nft", &["add chain inet torture input { type filter hook input priority 0; }"])
}

/// What becomes of packets that arrive.
fn rule(rule: &str) -> Result<(), String> {
    command("nft", &[&format!("add rule inet torture input meta l4proto tcp {rule}")])
}

/// How packets wait before they leave.
fn queueing(discipline: &str) -> Result<(), String> {
    let words: Vec<_> = "qdisc replace dev lo root".split(' ').chain(discipline.split(' ')).collect();
    command("tc", &words)
}

/// Ends all trouble; how many packets met it.
fn heal() -> Result<u64, String> {
    let rules = told("nft", &["-j", "list", "chain", "inet", "torture", "input"])?;
    let queues = told("tc", &["-s", "-j", "qdisc", "show", "dev", "lo"])?;
    command("nft", &["flush chain inet torture input"])?;
    queueing("noqueue")?;
    let met = list(&rules["nftables"]).flat_map(|rule| list(&rule["rule"]["expr"]));
    let met = met.map(|part| &part["counter"]["packets"]);
    let waited = list(&queues).flat_map(|queue| [&queue["drops"], &queue["overlimits"]]);
    Ok(met.chain(waited).filter_map(Value::as_u64).sum())
}

fn told(program: &str, arguments: &[&str]) -> Result<Value, String> {
    serde_json::from_str(&output(program, arguments)?).map_err(|error| format!("{program}: {error}"))
}

fn list(value: &Value) -> impl Iterator<Item = &Value> {
    value.as_array().into_iter().flatten()
}

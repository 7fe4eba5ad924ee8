//! `forebay-bench`: measures a real server from outside, over its API and `/proc`.
//!
//! Every run proves what it says before it reports a figure: what was published is there, what was consumed is gone,
//! what should wait waits. Results go to standard output, progress and errors to standard error.
//!
//! | Module | For |
//! |---|---|
//! | `publish`, `consume`, `latency`, `mixed`, `memory`, `reclaim`, `restart`, `attack`, `tail`, `limits`, `compare` | one subcommand each: arguments to a [`report::Report`] |
//! | `curves` | the same at points along an axis, to a [`curves::Curve`] |
//! | `peers` | other queues under the same loads; with `compare` in the feature `peers` |
//! | `site`, `fill`, `publish_stream`, `take`, `consumers`, `flow` | a server to measure; ways in and out of its queues |
//! | `schedule`, `bodies` | when messages are due at a rate, and what they carry |
//! | `samples` | latencies and rates |
//! | `report`, `limit`, `progress`, `plot` | what is shown and judged |

mod args;
mod attack;
mod bodies;
#[cfg(feature = "peers")]
mod compare;
mod consume;
mod consumers;
mod curves;
mod fill;
mod flow;
mod latency;
mod limit;
mod limits;
mod memory;
mod mixed;
#[cfg(feature = "peers")]
mod peers;
mod plot;
mod progress;
mod publish;
mod publish_stream;
mod reclaim;
mod report;
mod restart;
mod samples;
mod schedule;
mod site;
mod subscribe_stream;
mod tail;
mod take;

use std::process::ExitCode;

use clap::Parser;

use crate::args::{Cli, Command};
use crate::report::{Format, Outcome};

/// Why a run was given up.
type Failure = Box<dyn std::error::Error + Send + Sync>;

fn main() -> ExitCode {
    let cli = Cli::parse();
    let result = match &cli.command {
        Command::EmptyServer => limits::empty::serve().map(|()| None),
        command => run(command, cli.format).map(Some),
    };
    match result {
        Ok(None) => ExitCode::SUCCESS,
        Ok(Some(Outcome { text, missed })) => {
            println!("{text}");
            missed.iter().for_each(|why| eprintln!("{why}"));
            if missed.is_empty() { ExitCode::SUCCESS } else { ExitCode::FAILURE }
        }
        Err(failure) => {
            eprintln!("forebay-bench: {failure}");
            ExitCode::FAILURE
        }
    }
}

fn run(command: &Command, format: Format) -> Result<Outcome, Failure> {
    // The server needs cores too, and calls over one connection gain nothing from a second thread.
    let threads = std::thread::available_parallelism().map_or(1, |cores| cores.get() / 2).max(1);
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(threads).enable_all().build()?;
    runtime.block_on(async {
        let report = match command {
            Command::Publish(args) => publish::run(args).await?,
            Command::Consume(args) => consume::run(args).await?,
            Command::Latency(args) => latency::run(args).await?,
            Command::Mixed(args) => mixed::run(args).await?,
            Command::Memory(args) => memory::run(args).await?,
            Command::Reclaim(args) => reclaim::run(args).await?,
            Command::Restart(args) => restart::run(args).await?,
            Command::Attack(args) => attack::run(args).await?,
            Command::Tail(args) => tail::run(args).await?,
            Command::Limits(args) => limits::run(args).await?,
            Command::Curves(args) => return Ok(curves::run(args).await?.outcome(format)),
            #[cfg(feature = "peers")]
            Command::Compare(args) => compare::run(args).await?,
            Command::EmptyServer => unreachable!("it is no measurement"),
        };
        Ok(report.outcome(format))
    })
}

//! `forebay-bench`: measures a real server from outside, over its API and `/proc`.
//!
//! Every run proves what it says before it reports a figure: what was published is there, what was consumed is gone,
//! what should wait waits. Results go to standard output, progress and errors to standard error.
//!
//! | Module | For |
//! |---|---|
//! | `publish`, `consume`, `memory`, `restart` | one subcommand each: arguments to a [`report::Report`] |
//! | `site`, `fill`, `take` | a server to measure; ways in and out of its queues |
//! | `report`, `progress` | what is shown |

mod args;
mod consume;
mod fill;
mod memory;
mod progress;
mod publish;
mod report;
mod restart;
mod site;
mod take;

use std::process::ExitCode;

use clap::Parser;

use crate::args::{Cli, Command};
use crate::report::Report;

/// Why a run was given up.
type Failure = Box<dyn std::error::Error + Send + Sync>;

fn main() -> ExitCode {
    let cli = Cli::parse();
    match run(&cli.command) {
        Ok(report) => {
            println!("{}", report.text(cli.format));
            match report.over_limit() {
                None => ExitCode::SUCCESS,
                Some(why) => {
                    eprintln!("{why}");
                    ExitCode::FAILURE
                }
            }
        }
        Err(failure) => {
            eprintln!("forebay-bench: {failure}");
            ExitCode::FAILURE
        }
    }
}

fn run(command: &Command) -> Result<Report, Failure> {
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build()?;
    runtime.block_on(async {
        match command {
            Command::Publish(args) => publish::run(args).await,
            Command::Consume(args) => consume::run(args).await,
            Command::Memory(args) => memory::run(args).await,
            Command::Restart(args) => restart::run(args).await,
        }
    })
}

//! `forebayctl`: works with a Forebay server from the command line.
//!
//! Results go to standard output; errors (one or two lines), notes and progress go to standard error. The exit
//! code tells the class of an error; `errors.rs` has the list.

mod admin;
mod args;
mod client;
mod consume;
mod errors;
mod input;
mod message;
mod names;
mod output;
mod peek;
mod plan;
mod progress;
mod publish;
mod retry;
mod settle;
mod signals;
mod single;
mod stdout;
mod tail;
mod values;
mod views;
mod window;

use std::process::ExitCode;
use std::time::Instant;

use clap::{CommandFactory, Parser};
use serde_json::json;

use crate::args::{Cli, Command, PublishArgs};
use crate::client::Server;
use crate::errors::{CtlError, note};

fn main() -> ExitCode {
    let cli = Cli::parse();
    // One thread: tasks begin in the order in which they were made, so requests leave in order.
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
    let code = match runtime {
        Ok(runtime) => {
            let code = runtime.block_on(run(cli));
            // A write that standard output blocks must not be waited for.
            runtime.shutdown_background();
            code
        }
        Err(error) => {
            note(&format!("cannot start: {error}"));
            1
        }
    };
    ExitCode::from(code)
}

async fn run(cli: Cli) -> u8 {
    let result = match Server::new(&cli.server) {
        Ok(server) => dispatch(&server, cli.command).await,
        Err(error) => Err(error),
    };
    let Err(error) = result else { return 0 };
    note(&error.to_string());
    if let Some(hint) = error.hint(&cli.server) {
        note(&hint);
    }
    error.exit_code()
}

async fn dispatch(server: &Server, command: Command) -> Result<(), CtlError> {
    match command {
        Command::Queue(command) => admin::queue(server, command).await,
        Command::Subscription(command) => admin::subscription(server, command).await,
        Command::Publish(args) => publish(server, args).await,
        Command::Consume(args) => consume::consume(server, &plan::consume(&args)).await,
        Command::Tail(args) => tail::tail(server, &args).await,
        Command::Peek(args) => peek::peek(server, &args).await,
        Command::Message(command) => single::message(server, command).await,
        Command::Stats(args) => admin::stats(server, args).await,
        Command::Server(command) => admin::server(server, command).await,
        Command::Completions { shell } => {
            let mut script = Vec::new();
            clap_complete::generate(shell, &mut Cli::command(), "forebayctl", &mut script);
            stdout::print(&script).map_err(CtlError::Output)
        }
    }
}

/// Publishes and sums it up on standard output, whatever came of it.
async fn publish(server: &Server, args: PublishArgs) -> Result<(), CtlError> {
    let plan = plan::publish(args)?;
    let start = Instant::now();
    let (published, result) = publish::publish(server, &plan).await;
    let sum = json!({
        "queue": plan.queue.as_str(),
        "published": published.messages,
        "first_offset": published.first_offset,
        "last_offset": published.last_offset,
        "bytes": published.bytes,
        "seconds": (start.elapsed().as_secs_f64() * 1e6).round() / 1e6,
    });
    let printed = stdout::print(format!("{sum}\n").as_bytes()).map_err(CtlError::Output);
    if result.is_err() && published.messages > 0 {
        let next = plan.resume_from + published.messages;
        note(&format!("go on with --resume-from {next}"));
    }
    result.and(printed)
}

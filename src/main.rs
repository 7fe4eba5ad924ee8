//! The `forebay` binary: the server, and work on a data directory.

mod demo;

use std::io::Write as _;
use std::path::PathBuf;
use std::process::ExitCode;

use clap::{Parser, Subcommand};
use forebay::config::{Config, LogFormat, Overrides};
use forebay::server;
use tracing_subscriber::EnvFilter;

/// A durable message queue whose backlog is bytes on disk, not memory.
#[derive(Parser)]
#[command(name = "forebay", version, after_help = EXAMPLES)]
struct Arguments {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// Run the server until SIGTERM or SIGINT.
    #[command(after_help = SERVE_HELP)]
    Serve(Serve),
    /// Show in under 20 seconds that a kill -9 loses nothing: runs a server in a temporary directory.
    Demo,
}

const EXAMPLES: &str = "Examples:
  forebay demo
  forebay serve --data-dir /var/lib/forebay

Exit codes: 0 done, 1 failed (the reason is on standard error), 2 wrong usage.";

const SERVE_HELP: &str = "When ready, one line goes to standard output:
  forebay ready grpc=HOST:PORT http=HOST:PORT recovered_messages=N recovery_ms=N
Log lines go to standard error; RUST_LOG sets what they tell (default: info).

Examples:
  forebay serve
  forebay serve --data-dir /var/lib/forebay --listen 127.0.0.1:7070 --http 127.0.0.1:7071
  forebay serve --listen 127.0.0.1:0 --http 127.0.0.1:0     (free ports are picked)

Configuration file (TOML), every key optional, the command line wins:
  data_dir = \"./forebay-data\"
  listen = \"127.0.0.1:7070\"      # gRPC
  http = \"127.0.0.1:7071\"        # /metrics /livez /readyz
  insecure_listen = false
  log_format = \"text\"            # or \"json\"
  segment_bytes = 67108864       # size of a log file";

#[derive(clap::Args)]
struct Serve {
    /// Where messages are kept; made if it does not exist [default: ./forebay-data]
    #[arg(long, value_name = "DIR")]
    data_dir: Option<PathBuf>,
    /// Address for gRPC; port 0 picks a free one [default: 127.0.0.1:7070]
    #[arg(long, value_name = "HOST:PORT")]
    listen: Option<String>,
    /// Address for metrics and health over HTTP; port 0 picks a free one [default: 127.0.0.1:7071]
    #[arg(long, value_name = "HOST:PORT")]
    http: Option<String>,
    /// Allow addresses beyond this machine, although connections are neither encrypted nor authenticated
    #[arg(long)]
    insecure_listen: bool,
    /// How log lines are written [default: text]
    #[arg(long, value_enum)]
    log_format: Option<LogFormat>,
    /// A configuration file (TOML)
    #[arg(long, value_name = "FILE")]
    config: Option<PathBuf>,
}

fn main() -> ExitCode {
    let result = match Arguments::parse().command {
        Command::Serve(arguments) => serve(arguments),
        Command::Demo => demo::run(),
    };
    match result {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("forebay: {error}");
            ExitCode::FAILURE
        }
    }
}

fn serve(arguments: Serve) -> Result<(), Box<dyn std::error::Error + Send + Sync>> {
    let overrides = Overrides {
        data_dir: arguments.data_dir,
        listen: arguments.listen,
        http: arguments.http,
        insecure_listen: arguments.insecure_listen.then_some(true),
        log_format: arguments.log_format,
    };
    let config = Config::load(arguments.config.as_deref(), &overrides)?;
    log_to_stderr(config.log_format);
    // One thread for all RPCs: on few cores this is about twice as fast as many, and the log has its own.
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    let result = runtime.block_on(server::serve(config, |ready| {
        // Whoever started the server may not read this; it serves all the same.
        let _ = writeln!(std::io::stdout(), "{ready}");
    }));
    // What still runs after a failure must not keep the process.
    runtime.shutdown_background();
    Ok(result?)
}

fn log_to_stderr(format: LogFormat) {
    let filter = EnvFilter::try_from_default_env().unwrap_or_else(|_| EnvFilter::new("info"));
    let builder =
        tracing_subscriber::fmt().with_env_filter(filter).with_writer(std::io::stderr).with_ansi(false);
    match format {
        LogFormat::Text => builder.init(),
        LogFormat::Json => builder.json().init(),
    }
}

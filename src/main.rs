//! The `forebay` binary: the server, and work on a data directory.

mod demo;

use std::io::{BufWriter, Write as _};
use std::path::PathBuf;
use std::process::ExitCode;

use clap::{Parser, Subcommand};
use forebay::config::{Config, LogFormat, Overrides};
use forebay::offline::{self, Format, OfflineError, Outcome};
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
    /// Look through a data directory that no server uses: every checksum, every index, every message
    #[command(after_help = FSCK_HELP)]
    Fsck(Fsck),
    /// Print every message that a data directory still has, without a server
    #[command(after_help = DUMP_HELP)]
    Dump(Dump),
    /// Show in under 20 seconds that a kill -9 loses nothing: runs a server in a temporary directory.
    Demo,
}

const EXAMPLES: &str = "Examples:
  forebay demo
  forebay serve --data-dir /var/lib/forebay
  forebay fsck /var/lib/forebay

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
  segment_bytes = 67108864       # size of a log file
  connections = 1024             # at one time; each may take 64 KiB for what nobody has read yet
  connections_per_address = 512  # half of them; all of them while listen is a loopback address";

const FSCK_HELP: &str = "One line for each damage goes to standard output, then a summary; nothing is changed:
  KIND FILE:POSITION [queue=NAME offsets=FIRST..LAST]: what it is
Lines of the kind `note` are no damage.

--rebuild is for a directory in which no checkpoint can be used and whose log has lost its beginning, so that a server
refuses it. It makes a checkpoint in which every message that is still stored waits again in its queue; messages that
were acknowledged may come again. A queue whose creation is lost is called recovered-ID and gets a subscription
`default`. Nothing is deleted; damaged checkpoints go to quarantine/. Where it is not needed it says so.

Examples:
  forebay fsck /var/lib/forebay
  forebay fsck /var/lib/forebay --output ndjson | jq 'select(.damage)'
  forebay fsck /var/lib/forebay --rebuild

Exit codes: 0 clean, 1 damage, 2 cannot run (a server is running there, it is no data directory, wrong usage).";

const DUMP_HELP: &str = "One JSON object a line, in order of the log:
  queue, offset, message_id, publish_time, attributes, body (or body_base64 if it is not UTF-8), waiting, and
  source, ordering_key, dead_letter where there are any
`waiting` is false for messages that are finished and not yet reclaimed.

Examples:
  forebay dump /var/lib/forebay --queue jobs > jobs.ndjson
  forebay dump /var/lib/forebay | jq 'select(.waiting)'

Exit codes: 0 all of it, 1 damage (told on standard error; the rest is printed), 2 cannot run.";

/// Exit code of offline work that cannot be done.
const CANNOT_RUN: u8 = 2;

#[derive(clap::Args)]
struct Fsck {
    /// The data directory
    #[arg(value_name = "DIR")]
    data_dir: PathBuf,
    /// Make a checkpoint of what is left if there is none that can be used
    #[arg(long)]
    rebuild: bool,
    /// How findings are printed
    #[arg(short, long, value_enum, default_value_t)]
    output: Format,
}

#[derive(clap::Args)]
struct Dump {
    /// The data directory
    #[arg(value_name = "DIR")]
    data_dir: PathBuf,
    /// Only messages of this queue: its short name, or namespaces/NAMESPACE/queues/QUEUE
    #[arg(long, value_name = "QUEUE")]
    queue: Option<String>,
    /// How messages are printed
    #[arg(short, long, value_enum, default_value_t)]
    output: DumpFormat,
}

#[derive(Clone, Copy, Debug, Default, clap::ValueEnum)]
enum DumpFormat {
    /// One JSON object a line
    #[default]
    Ndjson,
}

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
        Command::Fsck(arguments) => {
            let Fsck { data_dir, rebuild, output } = arguments;
            return ended(offline::fsck::run(&data_dir, rebuild, output, &mut std::io::stdout().lock()));
        }
        Command::Dump(arguments) => {
            let Dump { data_dir, queue, output: DumpFormat::Ndjson } = arguments;
            let mut out = BufWriter::new(std::io::stdout().lock());
            return ended(offline::dump::run(&data_dir, queue.as_deref(), &mut out, &mut std::io::stderr()));
        }
    };
    match result {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("forebay: {error}");
            ExitCode::FAILURE
        }
    }
}

/// The exit code of offline work.
fn ended(result: Result<Outcome, OfflineError>) -> ExitCode {
    match result {
        Ok(Outcome::Clean) => ExitCode::SUCCESS,
        Ok(Outcome::Damaged) => ExitCode::FAILURE,
        Err(error) if error.is_closed_pipe() => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("forebay: {error}");
            ExitCode::from(CANNOT_RUN)
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

//! `forebay-checker`: judges a history, and says what is wrong with it.
//!
//! Exit codes: 0 no rule is broken; 1 some are; 2 the history cannot be read, or the arguments are wrong.

use std::io::Write as _;
use std::path::PathBuf;
use std::process::ExitCode;

use clap::{Parser, ValueEnum};
use comfy_table::{Table, presets};
use forebay_checker::{Report, Violation, check_file};

/// Judge what clients of a message queue did and saw
///
/// Reads a history, and finds messages that were lost, invented, changed, repeated or out of order, requests that were
/// stored in part, and leases that did not hold. A call without an answer may have had its effect or not; only what is
/// certain counts.
///
/// Exit codes: 0 no rule is broken; 1 some are; 2 the history cannot be read, or the arguments are wrong.
#[derive(Parser)]
#[command(
    name = "forebay-checker",
    version,
    after_help = "Examples:
  cargo xtask kill-loop --cycles 20 --data-dir /tmp/run/data    # writes /tmp/run/data.history
  forebay-checker /tmp/run/data.history
  forebay-checker /tmp/run/data.history --output json | jq '.violations[].lines'"
)]
struct Arguments {
    /// The history: JSON lines
    #[arg(value_name = "HISTORY.jsonl")]
    history: PathBuf,
    /// How the result is shown
    #[arg(short, long, value_enum, default_value = "table")]
    output: Output,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum Output {
    /// For people
    Table,
    /// One JSON object
    Json,
}

fn main() -> ExitCode {
    let arguments = Arguments::parse();
    let report = match check_file(&arguments.history) {
        Ok(report) => report,
        Err(why) => {
            eprintln!("{}: {why}", arguments.history.display());
            return ExitCode::from(2);
        }
    };
    let text = match arguments.output {
        Output::Table => table(&report),
        Output::Json => serde_json::to_string_pretty(&report).expect("a report is plain data") + "\n",
    };
    // Whoever closes the pipe early has seen enough; the exit code stands.
    let _ = std::io::stdout().write_all(text.as_bytes());
    ExitCode::from(u8::from(!report.is_clean()))
}

fn table(report: &Report) -> String {
    let mut text = String::new();
    if !report.violations.is_empty() {
        let mut table = Table::new();
        table.load_preset(presets::NOTHING);
        table.set_header(["VIOLATION", "QUEUE", "OFFSET", "MESSAGE", "LINES", "WHAT"]);
        table.add_rows(report.violations.iter().map(row));
        for line in table.lines() {
            text += line.trim_end().strip_prefix(' ').unwrap_or(&line).trim_end();
            text.push('\n');
        }
        text.push('\n');
    }
    let told = report.violations.len() as u64;
    if report.broken() > told {
        text += &format!("and {} more\n", report.broken() - told);
    }
    if !report.open_ended.is_empty() {
        text += &format!(
            "not judged for losses, since what waits at the end is not said: {}\n",
            report.open_ended.join(", ")
        );
    }
    let Report { events, messages, acknowledged, deliveries, redeliveries, .. } = report;
    let Report { endings, purges, unknown, .. } = report;
    text += &format!(
        "events={events} messages={messages} acknowledged={acknowledged} deliveries={deliveries} \
         redeliveries={redeliveries} endings={endings} purges={purges} unknown={unknown} violations={}\n",
        report.broken()
    );
    text
}

fn row(violation: &Violation) -> [String; 6] {
    let Violation { kind, queue, offset, message, lines, what } = violation;
    let kind = serde_json::to_value(kind).expect("a kind is a word");
    let number = |number: &Option<u64>| number.map_or_else(|| "-".to_owned(), |number| number.to_string());
    let lines: Vec<String> = lines.iter().map(u64::to_string).collect();
    [
        kind.as_str().unwrap_or_default().to_owned(),
        queue.clone().unwrap_or_else(|| "-".to_owned()),
        number(offset),
        number(message),
        lines.join(","),
        what.clone(),
    ]
}

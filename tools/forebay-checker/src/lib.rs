//! Judges what clients of a durable message queue did and saw. It shares no code with the server.
//!
//! It reads a history ([`format`]) once, line by line, and tells every broken rule with the lines that show it:
//!
//! | Violation | Rule |
//! |---|---|
//! | `lost` | a message whose publish was answered was finished by a consumer, may have been, is a dead letter, may have been purged, or waits at the end; a rejected one is a dead letter |
//! | `stranded` | so is one that was delivered: its lease ended without an end of the message, so it came again or waits |
//! | `invented` | what is delivered was sent before, to that queue; a dead letter was rejected before |
//! | `wrong_body` | with these very bytes, by length and hash |
//! | `moved` | queue and offset mean one message for ever, also in answers to publishers |
//! | `redelivered` | nothing is sent again once its end, or a purge of it, was answered |
//! | `out_of_order` | calls that follow each other get rising offsets; first deliveries come in order of offset, within a session of a queue with one consumer, and for each ordering key |
//! | `duplicated` | a stamped message is stored once, another at most once for each sending that may have been stored; a rejected one is one dead letter |
//! | `torn` | a request is stored whole, in a row, and comes whole but for what may have been purged |
//! | `overlapping` | no message is handed out while an earlier lease of it holds: in one life of the server, and over a crash where the queue promises it |
//! | `early` | what is to be retried comes again after its delay, not before |
//! | `stale_taken` | a consumer whose message was handed out again cannot end it any more while the newer lease holds |
//! | `unexpected` | an answer that a correct server never gives, or what the writer says is one |
//!
//! What is unknown may have happened or not: only what is certain counts. So moments are taken against the server's
//! fault: a lease begins at the earliest when its message may have been sent, and clocks may differ by
//! [`CLOCK_SLACK_NS`].
//!
//! Memory: about 150 bytes a message, kept until the end, and a few hundred more while it is delivered and not finished;
//! nothing an event. A history of 10⁷ events and 3·10⁶ messages takes about half a GB.

mod deliveries;
mod end;
pub mod format;
mod publishes;
mod report;
mod settles;
mod state;

use std::fs::File;
use std::io::{self, BufRead, BufReader};
use std::path::Path;

pub use report::{Kind, Report, Violation};
pub use state::Checker;

/// How far the server's sense of time may be from the clients': its turns take their time once, at their beginning.
pub const CLOCK_SLACK_NS: u64 = 100_000_000;

/// Why a history cannot be judged.
#[derive(Debug, thiserror::Error)]
pub enum Unreadable {
    #[error("the history cannot be read: {0}")]
    Read(#[from] io::Error),
    #[error("line {line}: not a line of a history of version {}: {source}", format::VERSION)]
    Syntax { line: u64, source: serde_json::Error },
    #[error("line {line}: {why}")]
    Nonsense { line: u64, why: String },
}

/// Judges the history in a file.
pub fn check_file(path: &Path) -> Result<Report, Unreadable> {
    check(BufReader::with_capacity(1 << 20, File::open(path)?))
}

/// Judges a history.
pub fn check(mut history: impl BufRead) -> Result<Report, Unreadable> {
    let mut checker = Checker::default();
    let mut text = String::new();
    let mut line = 0;
    while history.read_line(&mut text)? > 0 {
        line += 1;
        let parsed = serde_json::from_str(&text).map_err(|source| Unreadable::Syntax { line, source })?;
        checker.read(parsed)?;
        text.clear();
    }
    checker.end()
}

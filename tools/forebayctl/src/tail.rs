//! Following a queue: print what comes, go on by the token after an outage.
//!
//! The token is that of the last answer that was printed whole, so an outage neither loses nor repeats a message.

use std::time::Duration;

use forebay::proto::message_json;
use forebay::proto::v1::tail_response::{Gap, gap::Reason};
use forebay::proto::v1::{Message, TailRequest, TailResponse};
use serde_json::Value;
use tokio::time::timeout;
use tonic::{Status, Streaming};

use crate::args::TailArgs;
use crate::client::{Server, answer};
use crate::errors::{CtlError, Signal, note};
use crate::output::Format;
use crate::retry::Backoff;
use crate::signals::Signals;
use crate::stdout::{self, Printing, reader_is_gone};

/// How often a quiet tail looks whether its output is still read.
const LOOK: Duration = Duration::from_secs(1);

/// Prints messages as they come.
pub async fn tail(server: &Server, args: &TailArgs) -> Result<(), CtlError> {
    let mut tail = Tail {
        server,
        request: TailRequest {
            queue: args.queue.as_str().to_owned(),
            start: Some(args.from.position()),
            ..TailRequest::default()
        },
        signals: Signals::listen()?,
        printer: Printer { format: args.output.format, begun: false, cut: false },
        remaining: args.count.unwrap_or(u64::MAX),
    };
    let ended = tail.run().await;
    let closed = stdout::print(tail.printer.end()).map_err(CtlError::Output);
    ended.and(closed)
}

struct Tail<'a> {
    server: &'a Server,
    /// What goes on where the last answer ended.
    request: TailRequest,
    signals: Signals,
    printer: Printer,
    remaining: u64,
}

/// What a wait brought.
enum Next {
    Answer(Result<TailResponse, Status>),
    /// The command is to end.
    End(Result<(), CtlError>),
}

impl Tail<'_> {
    async fn run(&mut self) -> Result<(), CtlError> {
        let mut stream = answer(self.server.messages().tail(self.request.clone())).await?;
        let mut backoff = Backoff::new(None);
        let mut lost = false;
        loop {
            match self.next(&mut stream).await {
                Next::End(result) => return result,
                Next::Answer(Ok(answer)) => {
                    if std::mem::take(&mut lost) {
                        note("connected again");
                    }
                    backoff.reset();
                    if let Some(result) = self.take(answer).await {
                        return result;
                    }
                }
                Next::Answer(Err(status)) => {
                    let Some(wait) = backoff.wait(&status) else { return Err(status.into()) };
                    if !std::mem::replace(&mut lost, true) {
                        note(&format!("{}; trying again", CtlError::from(status)));
                    }
                    if let Ok(signal) = timeout(wait, self.signals.next()).await {
                        return ended_by(signal);
                    }
                    // A failure to connect is met again by the next wait.
                    match answer(self.server.messages().tail(self.request.clone())).await {
                        Ok(again) => stream = again,
                        Err(status) if crate::retry::is_retryable(&status) => {}
                        Err(status) => return Err(status.into()),
                    }
                }
            }
        }
    }

    async fn next(&mut self, stream: &mut Streaming<TailResponse>) -> Next {
        loop {
            tokio::select! {
                signal = self.signals.next() => return Next::End(ended_by(signal)),
                answer = timeout(LOOK, stream.message()) => match answer {
                    Err(_) if reader_is_gone() => return Next::End(Ok(())),
                    Err(_) => {}
                    Ok(Ok(Some(answer))) => return Next::Answer(Ok(answer)),
                    Ok(Ok(None)) => return Next::Answer(Err(Status::unavailable("the stream has ended"))),
                    Ok(Err(status)) => return Next::Answer(Err(status)),
                },
            }
        }
    }

    /// Prints an answer; how the command ends, if it does.
    async fn take(&mut self, answer: TailResponse) -> Option<Result<(), CtlError>> {
        let TailResponse { mut messages, gap, resume_token } = answer;
        if let Some(gap) = gap {
            note(&gap_text(&gap));
        }
        messages.truncate(usize::try_from(self.remaining).unwrap_or(usize::MAX));
        self.remaining -= messages.len() as u64;
        if !messages.is_empty() {
            let texts = messages.iter().map(|message| self.printer.text(message)).collect();
            let mut printing = Printing::start(texts);
            let printed = tokio::select! {
                printed = &mut printing.end => printed,
                signal = self.signals.next() => {
                    self.printer.cut = true;
                    return Some(ended_by(signal));
                }
            };
            match printed.unwrap_or_else(|panic| std::panic::resume_unwind(panic.into_panic())) {
                Ok(()) => {}
                Err(error) if error.kind() == std::io::ErrorKind::BrokenPipe => return Some(Ok(())),
                Err(error) => return Some(Err(CtlError::Output(error))),
            }
        }
        self.request = TailRequest { start: None, resume_token, ..std::mem::take(&mut self.request) };
        (self.remaining == 0).then_some(Ok(()))
    }
}

/// Ctrl-C is how a tail is meant to end.
fn ended_by(signal: Signal) -> Result<(), CtlError> {
    match signal {
        Signal::Interrupt => Ok(()),
        Signal::Terminate => Err(CtlError::Interrupted(signal)),
    }
}

fn gap_text(gap: &Gap) -> String {
    let why = match gap.reason() {
        Reason::Purged => "were purged",
        Reason::Reclaimed => "were finished, and are no longer stored",
        Reason::Lost => "are damaged or missing on the server's disk",
        Reason::Unspecified => "do not come",
    };
    format!("gap: the messages from offset {} to before {} {why}", gap.first_offset, gap.end_offset)
}

/// Messages as they come, in any format.
struct Printer {
    format: Format,
    /// Something was printed.
    begun: bool,
    /// A write was given up half-way; nothing that follows could be told apart.
    cut: bool,
}

impl Printer {
    fn text(&mut self, message: &Message) -> Vec<u8> {
        let is_first = !std::mem::replace(&mut self.begun, true);
        let text = match self.format {
            Format::Table if is_first => format!("{HEADING}{}", row(message)),
            Format::Table => row(message),
            Format::Json => {
                let before = if is_first { "[\n" } else { ",\n" };
                format!("{before}{:#}", Value::Object(message_json(message)))
            }
            Format::Ndjson => format!("{}\n", Value::Object(message_json(message))),
        };
        text.into_bytes()
    }

    /// What closes the output.
    fn end(&self) -> &'static [u8] {
        match (self.format, self.begun) {
            _ if self.cut => b"",
            (Format::Json, true) => b"\n]\n",
            (Format::Json, false) => b"[]\n",
            _ => b"",
        }
    }
}

const HEADING: &str = "OFFSET      PUBLISH TIME                 BODY\n";

/// A line; what is not text in the body is shown escaped.
fn row(message: &Message) -> String {
    let time = message.publish_time.map(|time| time.to_string()).unwrap_or_default();
    let body = String::from_utf8_lossy(&message.body);
    let body = body.escape_debug().to_string().replace("\\\"", "\"").replace("\\'", "'");
    format!("{:<10}  {time:<27}  {body}\n", message.offset)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn printed(format: Format, bodies: &[&'static [u8]]) -> String {
        let mut printer = Printer { format, begun: false, cut: false };
        let message = |(offset, body): (usize, &&'static [u8])| Message {
            offset: offset as u64,
            body: (*body).into(),
            ..Message::default()
        };
        let messages: Vec<Message> = bodies.iter().enumerate().map(message).collect();
        let mut text: Vec<u8> = messages.iter().flat_map(|message| printer.text(message)).collect();
        text.extend(printer.end());
        String::from_utf8(text).unwrap()
    }

    #[test]
    fn every_format_shows_all_messages() {
        let bodies: [&[u8]; 2] = [b"one", b"two \"lines\"\nand \xff"];
        let rows = printed(Format::Table, &bodies);
        let lines: Vec<&str> = rows.lines().collect();
        assert_eq!(lines.len(), 3, "{rows}");
        assert!(lines[0].starts_with("OFFSET") && lines[1].ends_with("  one"), "{rows}");
        assert!(lines[2].starts_with("1 ") && lines[2].ends_with("two \"lines\"\\nand \u{fffd}"), "{rows}");
        let array: Value = serde_json::from_str(&printed(Format::Json, &bodies)).unwrap();
        let objects: Vec<Value> = printed(Format::Ndjson, &bodies)
            .lines()
            .map(|line| serde_json::from_str(line).unwrap())
            .collect();
        assert_eq!((array[0]["body"].as_str(), array.as_array()), (Some("one"), Some(&objects)));
        assert_eq!(printed(Format::Json, &[]), "[]\n");
    }
}

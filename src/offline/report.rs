//! What is told of a data directory: a line for each thing, then a summary.

use std::io::{self, Write};

use clap::ValueEnum;
use serde_json::{Map, Value};

/// How findings are printed.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, ValueEnum)]
pub enum Format {
    /// `KIND FILE[:POSITION] [queue=Q] [offsets=FIRST..LAST]: what it is`
    #[default]
    Text,
    /// One JSON object a line
    Ndjson,
}

/// What kind of thing was found.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    Identity,
    Checkpoint,
    /// What keeps a server from reading the log.
    Log,
    /// A file of the log that is missing, too short, or no segment.
    Segment,
    Frame,
    Record,
    Message,
    Index,
    /// The end of the log is no whole frame, or its last frame lacks its end.
    TornEnd,
    /// Messages that should be there and are in no segment.
    LostMessages,
    /// A file beside the log.
    Unlisted,
    /// Nothing is wrong, but worth knowing.
    Note,
}

impl Kind {
    pub fn name(self) -> &'static str {
        match self {
            Self::Identity => "identity",
            Self::Checkpoint => "checkpoint",
            Self::Log => "log",
            Self::Segment => "segment",
            Self::Frame => "frame",
            Self::Record => "record",
            Self::Message => "message",
            Self::Index => "index",
            Self::TornEnd => "torn-end",
            Self::LostMessages => "lost-messages",
            Self::Unlisted => "unlisted",
            Self::Note => "note",
        }
    }
}

/// One thing that was found.
#[derive(Clone, Debug)]
pub struct Finding {
    pub kind: Kind,
    /// Path in the data directory.
    pub file: String,
    pub position: Option<u64>,
    /// Full name.
    pub queue: Option<String>,
    /// First and last.
    pub offsets: Option<(u64, u64)>,
    pub what: String,
}

impl Finding {
    pub fn new(kind: Kind, file: impl Into<String>, what: impl ToString) -> Self {
        let (file, what) = (file.into(), what.to_string());
        Self { kind, file, position: None, queue: None, offsets: None, what }
    }

    pub fn at(self, position: u64) -> Self {
        Self { position: Some(position), ..self }
    }

    /// Says which messages it hit.
    pub fn of(self, queue: String, first: u64, last: u64) -> Self {
        Self { queue: Some(queue), offsets: Some((first, last)), ..self }
    }

    /// Its line, without the line feed.
    pub fn line(&self, format: Format) -> String {
        match format {
            Format::Text => self.text(),
            Format::Ndjson => self.json().to_string(),
        }
    }

    fn text(&self) -> String {
        let position = self.position.map(|at| format!(":{at}")).unwrap_or_default();
        let queue = self.queue.as_ref().map(|queue| format!(" queue={queue}")).unwrap_or_default();
        let offsets =
            self.offsets.map(|(first, last)| format!(" offsets={first}..{last}")).unwrap_or_default();
        format!("{} {}{position}{queue}{offsets}: {}", self.kind.name(), self.file, self.what)
    }

    fn json(&self) -> Value {
        let mut object = Map::new();
        object.insert("kind".into(), self.kind.name().into());
        object.insert("damage".into(), (self.kind != Kind::Note).into());
        object.insert("file".into(), self.file.as_str().into());
        let mut put = |key: &str, value: Option<Value>| {
            if let Some(value) = value {
                object.insert(key.into(), value);
            }
        };
        put("position", self.position.map(Value::from));
        put("queue", self.queue.as_deref().map(Value::from));
        put("first_offset", self.offsets.map(|(first, _)| first.into()));
        put("last_offset", self.offsets.map(|(_, last)| last.into()));
        put("what", Some(self.what.as_str().into()));
        Value::Object(object)
    }
}

/// What was read.
#[derive(Clone, Copy, Debug, Default)]
pub struct Figures {
    pub segments: u64,
    pub records: u64,
    pub messages: u64,
}

/// Writes findings as they come, and counts them.
pub struct Report<'a> {
    out: &'a mut dyn Write,
    format: Format,
    pub figures: Figures,
    damages: u64,
    notes: u64,
    /// Damage that a new checkpoint ends.
    of_checkpoints: u64,
}

impl<'a> Report<'a> {
    pub fn new(out: &'a mut dyn Write, format: Format) -> Self {
        Self { out, format, figures: Figures::default(), damages: 0, notes: 0, of_checkpoints: 0 }
    }

    pub fn add(&mut self, finding: &Finding) -> io::Result<()> {
        match finding.kind {
            Kind::Note => self.notes += 1,
            Kind::Checkpoint | Kind::Log => {
                self.damages += 1;
                self.of_checkpoints += 1;
            }
            _ => self.damages += 1,
        }
        writeln!(self.out, "{}", finding.line(self.format))?;
        // Whoever reads along sees each line when it is found.
        self.out.flush()
    }

    /// Damage so far.
    pub fn damages(&self) -> u64 {
        self.damages
    }

    /// Takes back the damage that a new checkpoint has ended.
    pub fn checkpoint_made(&mut self) {
        self.damages -= self.of_checkpoints;
        self.of_checkpoints = 0;
    }

    pub fn summary(&mut self) -> io::Result<()> {
        let Figures { segments, records, messages } = self.figures;
        let (damages, notes) = (self.damages, self.notes);
        match self.format {
            Format::Text => writeln!(
                self.out,
                "{}: {damages} damages, {notes} notes; read {segments} segments, {records} records, {messages} messages",
                if damages == 0 { "clean" } else { "damaged" }
            ),
            Format::Ndjson => {
                let summary = serde_json::json!({
                    "kind": "summary", "damages": damages, "notes": notes, "segments": segments, "records": records,
                    "messages": messages,
                });
                writeln!(self.out, "{summary}")
            }
        }?;
        self.out.flush()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_finding_reads_the_same_in_both_formats() {
        let finding = Finding::new(Kind::Message, "log/1.seg", "it fails").at(7).of("q".into(), 3, 4);
        assert_eq!(finding.line(Format::Text), "message log/1.seg:7 queue=q offsets=3..4: it fails");
        let json: Value = serde_json::from_str(&finding.line(Format::Ndjson)).unwrap();
        let expected = serde_json::json!({
            "kind": "message", "damage": true, "file": "log/1.seg", "position": 7, "queue": "q", "first_offset": 3,
            "last_offset": 4, "what": "it fails",
        });
        assert_eq!(json, expected);
        assert_eq!(Finding::new(Kind::Note, "x", "y").line(Format::Text), "note x: y");
    }

    #[test]
    fn notes_are_no_damage_and_a_new_checkpoint_ends_what_was_of_the_old() {
        let mut out = Vec::new();
        let mut report = Report::new(&mut out, Format::Text);
        for kind in [Kind::Note, Kind::Checkpoint, Kind::Log, Kind::Frame] {
            report.add(&Finding::new(kind, "file", "what")).unwrap();
        }
        assert_eq!(report.damages(), 3);
        report.checkpoint_made();
        assert_eq!(report.damages(), 1);
        report.summary().unwrap();
        let text = String::from_utf8(out).unwrap();
        assert!(
            text.ends_with("damaged: 1 damages, 1 notes; read 0 segments, 0 records, 0 messages\n"),
            "{text}"
        );
    }
}

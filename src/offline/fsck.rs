//! `forebay fsck`: everything in a data directory that a checksum, or a comparison, can judge.
//!
//! In this order: identity, checkpoints, the log as a start would read it, the files that it lists, each segment with
//! all its frames, records and messages, each index file against its segment, what is beside the log, and last whether
//! every message that some subscription still needs was found.

use std::collections::HashSet;
use std::io::Write;
use std::path::Path;

use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};

use super::coverage::Coverage;
use super::load::{Loaded, load};
use super::report::{Finding, Format, Kind, Report};
use super::{OfflineError, Outcome, open, rebuild};
use crate::broker::replica::Replica;
use crate::core::event_codec;
use crate::core::rebuild::Ranges;
use crate::ids::SegmentNumber;
use crate::log::inspect::{Flow, Inspection, Item, SegmentDamage, SegmentFault};
use crate::log::{IndexState, Mark, Placed, Replayed, StateMachine as _};
use crate::record::meta::Meta;

/// Looks through a data directory, and makes a checkpoint if none can be used and `make_checkpoint` asks for it.
///
/// # Errors
/// The directory cannot be looked through, or nobody takes the findings.
pub fn run(
    data_dir: &Path,
    make_checkpoint: bool,
    format: Format,
    out: &mut dyn Write,
) -> Result<Outcome, OfflineError> {
    run_on(open(data_dir)?, make_checkpoint, format, out)
}

/// The same with a directory that is held already.
///
/// # Errors
/// As [`run`].
pub fn run_on(
    inspection: Inspection,
    make_checkpoint: bool,
    format: Format,
    out: &mut dyn Write,
) -> Result<Outcome, OfflineError> {
    let mut report = Report::new(&mut *out, format);
    if let Some(fault) = inspection.identity_fault() {
        report.add(&Finding::new(Kind::Identity, "IDENTITY", fault).at(0))?;
    }
    let checkpoint = checkpoints(&inspection, &mut report)?;
    let loaded = load(&inspection, checkpoint)?;
    if let Some(refusal) = &loaded.refusal {
        report.add(&Finding::new(Kind::Log, "log", refusal))?;
    }
    let coverage = Coverage::new(&loaded.state);
    let mut check = Check { inspection: &inspection, loaded: &loaded, report, coverage, hit: HashSet::new() };
    check.files()?;
    check.segments()?;
    check.packed()?;
    check.end()?;
    check.beside()?;
    check.missing()?;
    let mut report = check.report;
    report.summary()?;
    let damages = report.damages();
    if !make_checkpoint {
        return Ok(outcome(damages));
    }
    if let Some((why, found)) = rebuild::not_needed(&inspection, &loaded) {
        rebuild::say(out, format, &why)?;
        return Ok(if found == Outcome::Clean { outcome(damages) } else { found });
    }
    report.checkpoint_made();
    let left = report.damages();
    rebuild::rebuild(&inspection, loaded, format, out)?;
    Ok(outcome(left))
}

fn outcome(damages: u64) -> Outcome {
    if damages == 0 { Outcome::Clean } else { Outcome::Damaged }
}

/// Verifies all checkpoints; the newest good one, and its state.
fn checkpoints(
    inspection: &Inspection,
    report: &mut Report<'_>,
) -> Result<Option<(Mark, Replica)>, OfflineError> {
    let checkpoints = inspection.checkpoints()?;
    for (path, fault) in &checkpoints.damaged {
        report.add(&Finding::new(Kind::Checkpoint, path.as_str(), fault).at(fault.position()))?;
    }
    let mut newest = None;
    for point in &checkpoints.points {
        let (mark, image) = inspection.image(point)?;
        let mut replica = Replica::default();
        match replica.restore(image) {
            Ok(()) => drop(newest.get_or_insert((mark, replica))),
            Err(why) => report.add(&Finding::new(Kind::Checkpoint, point.path(), why))?,
        }
    }
    Ok(newest)
}

/// A run over one data directory.
struct Check<'a> {
    inspection: &'a Inspection,
    loaded: &'a Loaded<'a>,
    report: Report<'a>,
    coverage: Coverage,
    /// Segments that damage was found in.
    hit: HashSet<SegmentNumber>,
}

impl Check<'_> {
    /// Whether the files of the log are there, and long enough.
    fn files(&mut self) -> Result<(), OfflineError> {
        for (segment, bytes) in self.loaded.scan.listed() {
            let file = Inspection::path(segment);
            let what = match self.inspection.segment_bytes(segment)? {
                None => "the log lists it, and it is missing: restore it from a backup".to_owned(),
                Some(found) if found < bytes => format!("it has {found} bytes instead of {bytes}"),
                Some(_) => continue,
            };
            self.hit.insert(segment);
            self.coverage.damage(&file, 0);
            self.report.add(&Finding::new(Kind::Segment, file, what).at(0))?;
        }
        Ok(())
    }

    fn segments(&mut self) -> Result<(), OfflineError> {
        let segments = self.loaded.scan.segments();
        let progress = progress(segments.len() as u64);
        for segment in segments {
            if self.inspection.segment_bytes(segment)?.is_some() {
                self.segment(segment)?;
            }
            if segment != self.loaded.scan.newest() {
                self.index(segment)?;
            }
            self.report.figures.segments += 1;
            progress.inc(1);
        }
        progress.finish_and_clear();
        Ok(())
    }

    /// Packed segments: every run that they hold, and their indexes.
    fn packed(&mut self) -> Result<(), OfflineError> {
        for segment in self.loaded.scan.packed() {
            if self.inspection.segment_bytes(segment)?.is_none() {
                continue;
            }
            self.report.figures.segments += 1;
            let file = Inspection::path(segment);
            let (runs, holes) = match self.inspection.packed(segment) {
                Ok(found) => found,
                Err(error) => {
                    self.coverage.damage(&file, 0);
                    self.report.add(&Finding::new(Kind::Segment, file.as_str(), error).at(0))?;
                    Default::default()
                }
            };
            for hole in holes {
                self.coverage.damage(&file, hole.from);
                self.report.add(&Finding::new(Kind::Frame, file.as_str(), hole.what).at(hole.from))?;
            }
            for run in runs {
                self.packed_run(segment, &run)?;
            }
            self.index(segment)?;
        }
        Ok(())
    }

    fn packed_run(&mut self, segment: SegmentNumber, run: &Placed) -> Result<(), OfflineError> {
        self.report.figures.records += 1;
        self.coverage.found(run.queue, run.first_offset, run.first_offset.plus(run.count.into()));
        let (inspection, mut result) = (self.inspection, Ok(()));
        let _ended = inspection.run(run, &mut |item| {
            result = self.item(segment, item);
            if result.is_ok() { Flow::Continue(()) } else { Flow::Break(()) }
        });
        result
    }

    fn segment(&mut self, segment: SegmentNumber) -> Result<(), OfflineError> {
        let mut result = Ok(());
        let (inspection, loaded) = (self.inspection, self.loaded);
        let _ended = inspection.walk(&loaded.scan, segment, &mut |item| {
            result = self.item(segment, item);
            if result.is_ok() { Flow::Continue(()) } else { Flow::Break(()) }
        })?;
        result
    }

    fn item(&mut self, segment: SegmentNumber, item: Item<'_>) -> Result<(), OfflineError> {
        let file = Inspection::path(segment);
        match item {
            Item::Record(record) => {
                self.report.figures.records += 1;
                self.record(&file, &record)
            }
            Item::Message(message) => {
                self.report.figures.messages += 1;
                let Err(why) = Meta::decode(message.meta) else { return Ok(()) };
                let queue = self.loaded.queue_name(message.queue);
                let finding = Finding::new(Kind::Message, file, format!("its metadata: {why}"));
                let finding = finding.at(message.position).of(queue, message.offset.0, message.offset.0);
                Ok(self.report.add(&finding)?)
            }
            Item::Damage(damage) => {
                let ends = (segment, damage.position + damage.bytes);
                if damage.what == SegmentFault::Trailer
                    && ends == (self.loaded.scan.newest(), self.loaded.scan.end())
                {
                    let what = format!("{}, which is the last one; a start writes it again", damage.what);
                    return Ok(self
                        .report
                        .add(&Finding::new(Kind::TornEnd, file, what).at(damage.position))?);
                }
                self.hit.insert(segment);
                self.damage(&file, &damage)
            }
        }
    }

    fn record(&mut self, file: &str, record: &Replayed<'_>) -> Result<(), OfflineError> {
        if let Some(run) = record.placed() {
            let end = run.first_offset.plus(run.count.into());
            self.coverage.found(run.queue, run.first_offset, end);
        }
        let Err(why) = event_codec::decode(&record.head) else { return Ok(()) };
        let what = format!("record {}: {why}", record.head.lsn);
        Ok(self.report.add(&Finding::new(Kind::Record, file, what).at(record.location.position))?)
    }

    fn damage(&mut self, file: &str, damage: &SegmentDamage) -> Result<(), OfflineError> {
        let kind = match damage.what {
            SegmentFault::Frame(_) if damage.position == 0 => Kind::Segment,
            SegmentFault::Frame(_) | SegmentFault::Trailer => Kind::Frame,
            SegmentFault::Record(_) => Kind::Record,
            SegmentFault::Message => Kind::Message,
        };
        let loses_records = !matches!(damage.what, SegmentFault::Message | SegmentFault::Trailer);
        if loses_records {
            self.coverage.damage(file, damage.position);
        }
        let mut finding = Finding::new(kind, file, damage.what).at(damage.position);
        if let Some((queue, first, last)) = damage.messages {
            finding = finding.of(self.loaded.queue_name(queue), first.0, last.0);
        } else if loses_records {
            finding.what += &format!(" ({} bytes up to where the segment goes on)", damage.bytes);
        }
        Ok(self.report.add(&finding)?)
    }

    fn index(&mut self, segment: SegmentNumber) -> Result<(), OfflineError> {
        if self.inspection.segment_bytes(segment)?.is_none() {
            return Ok(());
        }
        let checked = self.inspection.index(segment)?;
        for run in &checked.only_here {
            self.only_indexed(&checked.path, run)?;
        }
        let made_again = "the server makes it again from its segment";
        let finding = match checked.state {
            IndexState::Good => return Ok(()),
            IndexState::Missing => Finding::new(Kind::Note, checked.path, format!("missing; {made_again}")),
            IndexState::Damaged(fault) => {
                Finding::new(Kind::Index, checked.path, format!("{fault}; {made_again}")).at(fault.position())
            }
            IndexState::Differs => {
                let what = "it is whole, but does not say what its segment says; remove it: ";
                Finding::new(Kind::Index, checked.path, format!("{what}{made_again}")).at(0)
            }
        };
        Ok(self.report.add(&finding)?)
    }

    /// A run that lies where its segment is damaged: its own checksums tell whether a server can still read it.
    fn only_indexed(&mut self, index: &str, run: &Placed) -> Result<(), OfflineError> {
        let end = run.first_offset.plus(run.count.into());
        self.coverage.stored(run.queue, end);
        let mut readable = Ranges::default();
        let _ended = self.inspection.run(run, &mut |item| {
            if let Item::Message(message) = item {
                readable.add(message.offset, message.offset.next());
            }
            Flow::Continue(())
        });
        for (first, end) in readable.iter() {
            self.coverage.found(run.queue, first, end);
            let what = format!("only {index} leads to them, and they are whole: keep it");
            let finding = Finding::new(Kind::Note, Inspection::path(run.location.segment), what);
            let queue = self.loaded.queue_name(run.queue);
            self.report.add(&finding.at(run.location.position).of(queue, first.0, end.0 - 1))?;
        }
        Ok(())
    }

    /// What is at the end of the log, and what a start would pass over without a cause that was found.
    fn end(&mut self) -> Result<(), OfflineError> {
        for torn in self.loaded.scan.remains() {
            let what = format!(
                "{}: {} bytes are no whole frame; a commit that was not finished, or damage to the last one; a start \
                 keeps them in quarantine/",
                torn.what,
                torn.to - torn.from
            );
            let file = Inspection::path(torn.segment);
            self.report.add(&Finding::new(Kind::TornEnd, file, what).at(torn.from))?;
        }
        for hole in self.loaded.scan.holes().filter(|hole| !self.hit.contains(&hole.segment)) {
            // Without a beginning, the log leaps where segments were dropped.
            if self.loaded.refusal.is_none() {
                let file = Inspection::path(hole.segment);
                self.report.add(&Finding::new(Kind::Frame, file, hole.what).at(hole.from))?;
            }
        }
        Ok(())
    }

    /// Files that are not of the log, and what was set aside.
    fn beside(&mut self) -> Result<(), OfflineError> {
        let (log, packed) = (self.inspection.files("log")?, self.inspection.files("packed")?);
        for found in log.into_iter().chain(packed) {
            let finding = match Inspection::segment_at(&found.path) {
                Some(segment) if self.loaded.scan.knows(segment) => continue,
                Some(segment) if self.inspection.is_blank(segment)? => {
                    Finding::new(Kind::Note, found.path, "an empty segment that is not in use yet")
                }
                Some(segment) if self.inspection.is_unfinished(&self.loaded.scan, segment)? => {
                    let what = "a packed segment that the log does not need yet; a start removes it";
                    Finding::new(Kind::Note, found.path, what)
                }
                Some(_) => {
                    let what =
                        "the log does not lead to it, and it is not empty; a start moves it to quarantine/";
                    Finding::new(Kind::Unlisted, found.path, what).at(0)
                }
                None if found.path.ends_with(".tmp") => {
                    Finding::new(Kind::Note, found.path, "a file that was not finished; a start removes it")
                }
                None => continue,
            };
            self.report.add(&finding)?;
        }
        for kept in self.inspection.files("quarantine")? {
            let what = format!("{} bytes that were set aside", kept.bytes);
            self.report.add(&Finding::new(Kind::Note, kept.path, what))?;
        }
        Ok(())
    }

    /// Messages that some subscription needs and that are in no segment.
    fn missing(&mut self) -> Result<(), OfflineError> {
        // Without a checkpoint nobody knows what was finished.
        if self.loaded.refusal.is_some() {
            return Ok(());
        }
        for missing in self.coverage.missing(&self.loaded.state) {
            let (file, position) = match missing.damage {
                Some((file, position)) => (file, Some(position)),
                None => ("log".to_owned(), None),
            };
            let queue = self.loaded.queue_name(missing.queue);
            let finding = Finding::new(Kind::LostMessages, file, "they are in no segment").of(
                queue,
                missing.first.0,
                missing.last.0,
            );
            self.report.add(&Finding { position, ..finding })?;
        }
        Ok(())
    }
}

/// A bar on standard error, if that is a terminal.
fn progress(segments: u64) -> ProgressBar {
    let style = ProgressStyle::with_template("{bar:40} {pos}/{len} segments, {elapsed}");
    ProgressBar::with_draw_target(Some(segments), ProgressDrawTarget::stderr())
        .with_style(style.expect("the template is correct"))
}

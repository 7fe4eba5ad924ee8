//! `forebay dump`: every message that a data directory still has, one JSON object a line, in order of the log.
//!
//! The shape is that of `forebayctl`, and besides: `queue` (its full name; null if it was deleted), `source`,
//! `ordering_key` and `dead_letter` where there are any, and `waiting`: whether some subscription still needs it. Without
//! a checkpoint `waiting` is left out where nobody knows.

use std::io::Write;
use std::path::Path;

use bytes::Bytes;
use serde_json::{Map, Value, json};

use super::load::{Loaded, load};
use super::report::{Finding, Format, Kind};
use super::{OfflineError, Outcome, open};
use crate::broker::api::StoredMessage as Shown;
use crate::broker::replica::Replica;
use crate::ids::{QueueId, SegmentNumber, Uid};
use crate::log::inspect::{Flow, Inspection, Item, SegmentFault, StoredMessage};
use crate::log::{LogError, StateMachine as _};
use crate::names::{DEFAULT_NAMESPACE, Name, QueueName};
use crate::proto::{message_json, v1};
use crate::service::message::to_show;

/// Prints the messages of one queue, by its full or short name, or of all.
///
/// # Errors
/// The directory cannot be read, there is no such queue, or nobody takes the messages.
pub fn run(
    data_dir: &Path,
    queue: Option<&str>,
    out: &mut dyn Write,
    errors: &mut dyn Write,
) -> Result<Outcome, OfflineError> {
    let inspection = open(data_dir)?;
    let mut dump = Dump { out, errors, outcome: Outcome::Clean };
    if let Some(fault) = inspection.identity_fault() {
        dump.complain(&Finding::new(Kind::Identity, "IDENTITY", fault))?;
    }
    let checkpoints = inspection.checkpoints()?;
    for (path, fault) in &checkpoints.damaged {
        dump.complain(&Finding::new(Kind::Checkpoint, path.as_str(), fault))?;
    }
    let mut newest = None;
    if let Some(point) = checkpoints.points.first() {
        let (mark, image) = inspection.image(point)?;
        let mut replica = Replica::default();
        replica.restore(image)?;
        newest = Some((mark, replica));
    }
    let loaded = load(&inspection, newest)?;
    if let Some(refusal) = &loaded.refusal {
        dump.complain(&Finding::new(Kind::Log, "log", refusal))?;
    }
    let only = queue.map(|name| find(&loaded, name)).transpose()?;
    for segment in loaded.scan.segments() {
        dump.segment(&inspection, &loaded, only, segment)?;
    }
    for segment in loaded.scan.packed() {
        dump.packed(&inspection, &loaded, only, segment)?;
    }
    dump.out.flush()?;
    Ok(dump.outcome)
}

fn find(loaded: &Loaded<'_>, text: &str) -> Result<QueueId, OfflineError> {
    let name = if text.contains('/') {
        QueueName::parse(text)
    } else {
        let namespace = Name::new(DEFAULT_NAMESPACE).expect("the default name is a name");
        Name::new(text).map(|queue| QueueName { namespace, queue })
    };
    let name = name.map_err(|error| OfflineError::Queue(error.to_string()))?;
    match loaded.state.queue_named(&name) {
        Ok(queue) => Ok(queue.id),
        Err(reject) => Err(OfflineError::Queue(reject.to_string())),
    }
}

struct Dump<'a> {
    out: &'a mut dyn Write,
    errors: &'a mut dyn Write,
    outcome: Outcome,
}

impl Dump<'_> {
    fn complain(&mut self, finding: &Finding) -> Result<(), OfflineError> {
        self.outcome = Outcome::Damaged;
        // What is read is worth more than the complaint.
        let _ = writeln!(self.errors, "forebay: {}", finding.line(Format::Text));
        Ok(())
    }

    fn segment(
        &mut self,
        inspection: &Inspection,
        loaded: &Loaded<'_>,
        only: Option<QueueId>,
        segment: SegmentNumber,
    ) -> Result<(), OfflineError> {
        let file = Inspection::path(segment);
        let (mut result, mut damaged) = (Ok(()), false);
        let mut each = |item: Item<'_>| {
            damaged |= matches!(item, Item::Damage(_));
            result = self.item(loaded, only, &file, item);
            if result.is_ok() { Flow::Continue(()) } else { Flow::Break(()) }
        };
        let walked = inspection.walk(&loaded.scan, segment, &mut each).map(drop);
        // Where the segment is damaged, its index file may still lead to messages that are whole.
        let led = match walked {
            Ok(()) if damaged && segment != loaded.scan.newest() => inspection.index(segment),
            _ => return result.and_then(|()| self.unreadable(&file, walked)),
        };
        result?;
        for run in led?.only_here {
            let mut result = Ok(());
            let _ended = inspection.run(&run, &mut |item| {
                // What is damaged was told.
                if let Item::Message(_) = item {
                    result = self.item(loaded, only, &file, item);
                }
                if result.is_ok() { Flow::Continue(()) } else { Flow::Break(()) }
            });
            result?;
        }
        Ok(())
    }

    fn packed(
        &mut self,
        inspection: &Inspection,
        loaded: &Loaded<'_>,
        only: Option<QueueId>,
        segment: SegmentNumber,
    ) -> Result<(), OfflineError> {
        let file = Inspection::path(segment);
        let (runs, holes) = match inspection.packed(segment) {
            Ok(found) => found,
            Err(error) => return self.unreadable(&file, Err(error)),
        };
        for hole in holes {
            self.complain(&Finding::new(Kind::Frame, file.as_str(), hole.what).at(hole.from))?;
        }
        for run in runs {
            let mut result = Ok(());
            let _ended = inspection.run(&run, &mut |item| {
                result = self.item(loaded, only, &file, item);
                if result.is_ok() { Flow::Continue(()) } else { Flow::Break(()) }
            });
            result?;
        }
        Ok(())
    }

    /// A segment that cannot be read costs its own messages.
    fn unreadable(&mut self, file: &str, walked: Result<(), LogError>) -> Result<(), OfflineError> {
        match walked {
            Ok(()) => Ok(()),
            Err(error) => self.complain(&Finding::new(Kind::Segment, file, error)),
        }
    }

    fn item(
        &mut self,
        loaded: &Loaded<'_>,
        only: Option<QueueId>,
        file: &str,
        item: Item<'_>,
    ) -> Result<(), OfflineError> {
        match item {
            Item::Record(_) => Ok(()),
            Item::Message(message) if only.is_some_and(|only| only != message.queue) => Ok(()),
            Item::Message(message) => match line(loaded, &message) {
                Ok(line) => Ok(writeln!(self.out, "{line}")?),
                Err(why) => {
                    let queue = loaded.queue_name(message.queue);
                    let finding = Finding::new(Kind::Message, file, why).at(message.position);
                    self.complain(&finding.of(queue, message.offset.0, message.offset.0))
                }
            },
            Item::Damage(damage) => {
                let kind = match damage.what {
                    SegmentFault::Message => Kind::Message,
                    SegmentFault::Record(_) => Kind::Record,
                    SegmentFault::Frame(_) | SegmentFault::Trailer => Kind::Frame,
                };
                let mut finding = Finding::new(kind, file, damage.what).at(damage.position);
                if let Some((queue, first, last)) = damage.messages {
                    finding = finding.of(loaded.queue_name(queue), first.0, last.0);
                }
                self.complain(&finding)
            }
        }
    }
}

/// The message as JSON, or why it cannot be read.
fn line(loaded: &Loaded<'_>, stored: &StoredMessage<'_>) -> Result<Value, String> {
    let queue = loaded.state.queue(stored.queue);
    // Only messages of queues that were deleted have no name; the one given is not shown.
    let name = queue.map_or_else(nobody, |queue| queue.name.clone());
    let shown = Shown {
        queue_uid: queue.map_or(Uid::default(), |queue| queue.uid),
        offset: stored.offset,
        lane: stored.lane,
        publish_time_us: stored.publish_time_us,
        meta: Bytes::copy_from_slice(stored.meta),
        body: Bytes::copy_from_slice(stored.body),
    };
    let message = to_show(&name, shown).map_err(|status| status.message().to_owned())?;
    let mut object = message_json(&message);
    object.shift_insert(0, "queue".into(), queue.map(|queue| queue.name.to_string()).into());
    add_rest(&mut object, &message);
    let waiting = loaded.state.waits(stored.queue, stored.offset);
    // What the log still has says for certain only that a message is finished.
    if loaded.refusal.is_none() || !waiting {
        object.insert("waiting".into(), waiting.into());
    }
    Ok(Value::Object(object))
}

fn add_rest(object: &mut Map<String, Value>, message: &v1::Message) {
    for (key, text) in [("source", &message.source), ("ordering_key", &message.ordering_key)] {
        if !text.is_empty() {
            object.insert(key.into(), text.as_str().into());
        }
    }
    if let Some(letter) = &message.dead_letter {
        let time = letter.dead_letter_time.map(|time| time.to_string());
        let letter = json!({
            "reason": letter.reason().as_str_name(), "error": letter.error, "queue": letter.queue,
            "queue_uid": letter.queue_uid, "offset": letter.offset, "subscription": letter.subscription,
            "attempts": letter.attempts, "dead_letter_time": time,
        });
        object.insert("dead_letter".into(), letter);
    }
}

fn nobody() -> QueueName {
    let name = |text| Name::new(text).expect("it is a name");
    QueueName { namespace: name(DEFAULT_NAMESPACE), queue: name("deleted") }
}

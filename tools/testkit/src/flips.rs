//! One flipped bit in a small data directory: it is told, or it means nothing, and it costs no more than it hit.
//!
//! A directory in memory is judged as `forebay fsck` judges it and read as a server reads it, by recovery and from
//! segments; [`Subject::serve`] starts a broker on it besides.

use std::collections::{BTreeMap, BTreeSet};
use std::io;
use std::ops::Range;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use forebay::admission::Outflow;
use forebay::broker::api::{BrokerError, NewMessage, PullOptions, Settlement};
use forebay::broker::replica::Replica;
use forebay::broker::{self, Broker, OpenError};
use forebay::core::types::{Ending, QueueConfig, Reject};
use forebay::disk::Disk;
use forebay::log::StateMachine as _;
use forebay::log::inspect::{Flow, Inspection, Item, Start};
use forebay::names::{QueueName, SubscriptionName};
use forebay::offline::{Format, OfflineError, Outcome, fsck};
use forebay::record::{Lane, StoredParts};
use serde_json::Value;

use crate::memory_disk::MemoryDisk;
use crate::{queue, subscription};

pub const SEGMENT_BYTES: u64 = 256 << 10;
/// Frames begin at its multiples; a segment's header is one.
const BLOCK_BYTES: usize = 4096;
const FRAME_MAGIC: &[u8] = b"FBfr";
/// Messages for about 64 KiB of a segment.
const MESSAGES: u64 = 10;
/// Bytes of a frame's header, and of the copy at its end.
const FRAME_HEADER_BYTES: usize = 80;

/// A directory, what is stored in it, and the file of it that is damaged.
pub struct Subject {
    pub disk: MemoryDisk,
    /// Path of the file.
    pub file: String,
    pub kind: Kind,
    /// Bytes that were written; what is behind them is blank.
    pub used: usize,
    /// By offset; the first ones are acknowledged.
    messages: BTreeMap<u64, Vec<u8>>,
    acked: u64,
    /// Where frames lie, and the offsets in each.
    frames: Vec<(Range<usize>, Vec<u64>)>,
}

/// What kind of file a subject's is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// A segment that a start reads from its first frame on.
    Replayed,
    /// A segment behind a checkpoint.
    Sealed,
    Index,
    Checkpoint,
}

/// What came of a flip, all of it right.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Came {
    /// It was told, and nothing is lost.
    Told,
    /// It was told, and so were the messages that it cost.
    Lost,
    /// No server starts there, and it is said that data is lost; all of it is kept.
    Refused,
    /// It was not told, and means nothing.
    Meaningless,
}

/// How often which thing came of a flip.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Counts {
    pub told: usize,
    pub lost: usize,
    pub refused: usize,
    pub meaningless: usize,
}

impl Counts {
    fn add(&mut self, came: Came) {
        *match came {
            Came::Told => &mut self.told,
            Came::Lost => &mut self.lost,
            Came::Refused => &mut self.refused,
            Came::Meaningless => &mut self.meaningless,
        } += 1;
    }

    fn join(self, other: Self) -> Self {
        Self {
            told: self.told + other.told,
            lost: self.lost + other.lost,
            refused: self.refused + other.refused,
            meaningless: self.meaningless + other.meaningless,
        }
    }
}

/// Message `n`, unlike any other, of sizes that make large and small frames.
fn body(n: u64) -> Vec<u8> {
    let size = [40, 3_500, 700, 9_000][n as usize % 4];
    format!("<{n:06}>").into_bytes().into_iter().cycle().take(size).collect()
}

fn name() -> QueueName {
    QueueName::parse(&queue("q")).expect("a good name")
}

fn default() -> SubscriptionName {
    SubscriptionName::parse(&subscription("q")).expect("a good name")
}

async fn publish(broker: &Broker, bodies: Vec<Vec<u8>>) {
    let message = |body: Vec<u8>| NewMessage {
        lane: Lane { priority: 4, bucket: 0 },
        parts: StoredParts { meta: Bytes::new(), body: body.into() },
    };
    let messages = bodies.into_iter().map(message).collect();
    broker.publish(name(), messages, None).await.expect("nothing fails");
}

fn options() -> PullOptions {
    PullOptions { messages_max: 5, bytes_max: 1 << 20, wait: Duration::ZERO, lease_us: Some(60_000_000) }
}

/// Takes and acknowledges what is there at once; the bodies by offset, and the offsets that are told as lost.
async fn take(broker: &Broker, times: usize) -> (BTreeMap<u64, Vec<u8>>, BTreeSet<u64>) {
    let (mut taken, mut lost) = (BTreeMap::new(), BTreeSet::new());
    for _ in 0..times {
        match broker.pull(default(), options(), Outflow::default().outlet()).await {
            Ok(batch) if batch.value.is_empty() => break,
            Ok(batch) => {
                let settle = |delivery: &forebay::broker::api::Delivery| {
                    taken.insert(delivery.message.offset.0, delivery.message.body.to_vec());
                    Settlement { ack_id: delivery.ack_id, ending: Ending::Ack }
                };
                let acks = batch.value.iter().map(settle).collect();
                broker.settle(default(), acks).await.expect("nothing fails");
            }
            Err(BrokerError::DataLoss { offset, .. }) => drop(lost.insert(offset.0)),
            Err(BrokerError::Rejected(Reject::SubscriptionNotFound(_) | Reject::QueueNotFound(_))) => break,
            Err(error) => panic!("{error}"),
        }
    }
    (taken, lost)
}

/// Runs a broker on a directory, and closes it.
fn with_broker<T>(disk: &MemoryDisk, work: impl AsyncFnOnce(&Broker) -> T) -> Result<T, OpenError> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_time().build().expect("a runtime");
    let opened = broker::open(Arc::new(disk.clone()), SEGMENT_BYTES)?;
    Ok(runtime.block_on(async {
        let task = tokio::spawn(opened.task.run());
        let came = work(&opened.broker).await;
        opened.broker.close().await.expect("nothing fails");
        task.await.expect("no panic").expect("nothing fails");
        came
    }))
}

/// A directory with so many messages in its first segment, and more behind them if that is to be `sealed`.
fn filled(sealed: bool) -> (MemoryDisk, BTreeMap<u64, Vec<u8>>, u64) {
    let disk = MemoryDisk::default();
    let mut messages: Vec<Vec<u8>> = (0..MESSAGES).map(body).collect();
    let large: Vec<u8> = body(MESSAGES).into_iter().cycle().take(220_000).collect();
    with_broker(&disk, async |broker| {
        broker.create_queue(name(), QueueConfig::default(), true).await.expect("nothing fails");
        for one in &messages[..4] {
            publish(broker, vec![one.clone()]).await;
        }
        for several in messages[4..].chunks(3) {
            publish(broker, several.to_vec()).await;
        }
        take(broker, 1).await;
        if sealed {
            publish(broker, vec![large.clone()]).await;
            // The index and the checkpoint are written behind it.
            while !["idx", "ckpt"].iter().all(|kind| disk.paths().iter().any(|path| path.ends_with(kind))) {
                tokio::time::sleep(Duration::from_millis(1)).await;
            }
        }
    })
    .expect("nothing fails");
    if sealed {
        messages.push(large);
    }
    (disk, (0..).zip(messages).collect(), 5)
}

impl Subject {
    /// A directory whose file of this kind is to be damaged.
    pub fn new(kind: Kind) -> Self {
        let (disk, messages, acked) = filled(kind != Kind::Replayed);
        let ending = match kind {
            Kind::Replayed | Kind::Sealed => ".seg",
            Kind::Index => ".idx",
            Kind::Checkpoint => ".ckpt",
        };
        let file = disk.paths().into_iter().find(|path| path.ends_with(ending)).expect("it is there");
        let bytes = disk.read(&file);
        let mut subject = Self { disk, file, kind, used: bytes.len(), messages, acked, frames: Vec::new() };
        if ending == ".seg" {
            subject.frames = subject.frames_of(&bytes);
            subject.used = subject.frames.last().expect("there are frames").0.end;
        }
        assert_eq!(
            subject.judge(&subject.disk, &[]),
            Ok(Came::Meaningless),
            "without damage nothing is told"
        );
        subject
    }

    fn frames_of(&self, bytes: &[u8]) -> Vec<(Range<usize>, Vec<u64>)> {
        let mut frames = Vec::new();
        for start in (BLOCK_BYTES..bytes.len()).step_by(BLOCK_BYTES) {
            if bytes[start + 4..start + 8] == *FRAME_MAGIC {
                let payload = u32::from_le_bytes(bytes[start + 12..start + 16].try_into().expect("4 bytes"));
                let length = (2 * FRAME_HEADER_BYTES + payload as usize).next_multiple_of(BLOCK_BYTES);
                frames.push((start..start + length, Vec::new()));
            }
        }
        let each = &mut |segment: &str, position: u64, offset: u64| {
            let frame = frames.iter_mut().find(|(range, _)| range.contains(&(position as usize)));
            if let Some((_, offsets)) = frame.filter(|_| segment == self.file) {
                offsets.push(offset);
            }
        };
        read(&self.disk, &mut |segment, position, offset, _| each(segment, position, offset))
            .expect("it is whole");
        frames
    }

    /// Every bit that was written.
    pub fn bits(&self) -> Range<usize> {
        0..8 * self.used
    }

    /// One bit of every byte but bodies of messages and blank space; of these, of every `sample`th byte.
    pub fn some_bits(&self, sample: usize) -> Vec<usize> {
        let bytes = self.disk.read(&self.file);
        let is_body = |at: usize| {
            let near = &bytes[at.saturating_sub(16)..(at + 16).min(bytes.len())];
            let is_text = near.iter().all(|byte| byte.is_ascii_digit() || b"<>".contains(byte));
            is_text || near.iter().all(|byte| *byte == 0)
        };
        let is_chosen = |at: &usize| self.frames.is_empty() || at.is_multiple_of(sample) || !is_body(*at);
        (0..self.used).filter(is_chosen).map(|at| 8 * at + at % 8).collect()
    }

    /// Flips a bit.
    ///
    /// # Errors
    /// What is wrong with what came of it.
    pub fn flip(&self, bit: usize) -> Result<Came, String> {
        let disk = self.disk.fork();
        disk.flip(&self.file, bit);
        let came = self.judge(&disk, &self.may_cost(bit / 8))?;
        if came == Came::Refused {
            self.judge_refused(bit)?;
        }
        if came == Came::Meaningless && self.frames.is_empty() {
            return Err("it was not told".to_owned());
        }
        Ok(came)
    }

    /// Flips these bits one by one, in two threads; a broker is started after every `served`th flip.
    ///
    /// # Errors
    /// What is wrong with what came of one of them.
    pub fn sweep(&self, bits: &[usize], served: usize) -> Result<Counts, String> {
        let part = |bits: &[usize]| {
            let mut counts = Counts::default();
            for (number, bit) in bits.iter().enumerate() {
                let told = |why| format!("bit {bit} of {}: {why}", self.file);
                counts.add(self.flip(*bit).map_err(told)?);
                if number.is_multiple_of(served) {
                    self.serve(*bit).map_err(told)?;
                }
            }
            Ok(counts)
        };
        std::thread::scope(|scope| {
            let parts = bits.chunks(bits.len().div_ceil(2)).map(|bits| scope.spawn(move || part(bits)));
            let counts = parts.collect::<Vec<_>>().into_iter().map(|thread| thread.join().expect("no panic"));
            counts
                .collect::<Result<Vec<_>, String>>()
                .map(|all| all.into_iter().fold(Counts::default(), Counts::join))
        })
    }

    /// The messages that damage at this byte may take along.
    fn may_cost(&self, at: usize) -> Vec<u64> {
        let all = self.frames.iter().flat_map(|(_, offsets)| offsets);
        match self.frames.iter().find(|(range, _)| range.contains(&at)) {
            // Before the first checkpoint a frame without messages may hold the creation of their queue.
            Some((_, offsets)) if offsets.is_empty() && self.kind == Kind::Replayed => all.copied().collect(),
            Some((_, offsets)) => offsets.clone(),
            None => all.filter(|_| at < BLOCK_BYTES).copied().collect(),
        }
    }

    /// What is told, against what is there; `allowed` may be lost.
    fn judge(&self, disk: &MemoryDisk, allowed: &[u64]) -> Result<Came, String> {
        let told = match told(Arc::new(disk.clone()))? {
            Found::Refused => return Ok(Came::Refused),
            Found::Looked(told) => told,
        };
        let lost = self.judge_missing(&self.found(disk)?, allowed, &told)?;
        Ok(match (lost, told.damaged) {
            (0, false) => Came::Meaningless,
            (0, true) => Came::Told,
            _ => Came::Lost,
        })
    }

    /// How many messages are missing: each is one of those that may be, and was told.
    fn judge_missing(&self, found: &BTreeSet<u64>, allowed: &[u64], told: &Told) -> Result<usize, String> {
        let mut lost = 0;
        for offset in (self.acked..self.messages.len() as u64).filter(|offset| !found.contains(offset)) {
            lost += 1;
            if !allowed.contains(&offset) {
                return Err(format!("message {offset} is lost, which the bit is no part of"));
            }
            // That there were messages behind the last one of a queue, only the damaged frame has said.
            let is_known = found.last().is_some_and(|last| *last > offset);
            if !told.damaged || is_known && !told.offsets.contains(&offset) {
                return Err(format!("message {offset} is lost without a word; {told:?}"));
            }
        }
        Ok(lost)
    }

    /// Messages that can be read; an error if one is not what it was.
    fn found(&self, disk: &MemoryDisk) -> Result<BTreeSet<u64>, String> {
        let (mut found, mut wrong) = (BTreeSet::new(), None);
        read(disk, &mut |_, _, offset, body| {
            if self.messages.get(&offset).is_none_or(|good| good != body) {
                wrong = Some(offset);
            }
            found.insert(offset);
        })?;
        match wrong {
            Some(offset) => Err(format!("message {offset} is not what it was")),
            None => Ok(found),
        }
    }

    /// Flips a bit, and starts a broker: what it hands out is right, and what it does not it tells.
    ///
    /// # Errors
    /// What is wrong with what came of it.
    pub fn serve(&self, bit: usize) -> Result<(), String> {
        let disk = self.disk.fork();
        disk.flip(&self.file, bit);
        match with_broker(&disk, async |broker| take(broker, 100).await) {
            Ok((served, lost)) => self.judge_served(bit, &served, &lost, Arc::new(disk)).map(drop),
            Err(error) if error.is_data_loss() => self.judge_refused(bit),
            Err(error) => Err(format!("it does not start: {error}")),
        }
    }

    /// Judges what was handed out after a bit had flipped, what the consumer was told of losses, and what is told of the
    /// directory that was left; how many messages are lost.
    ///
    /// # Errors
    /// What is wrong with it.
    pub fn judge_served(
        &self,
        bit: usize,
        served: &BTreeMap<u64, Vec<u8>>,
        lost: &BTreeSet<u64>,
        left: Arc<dyn Disk>,
    ) -> Result<usize, String> {
        if let Some((offset, _)) =
            served.iter().find(|(offset, body)| self.messages.get(offset) != Some(body))
        {
            return Err(format!("message {offset} is not what it was"));
        }
        let Found::Looked(mut told) = told(left)? else {
            return Err("what is left cannot be looked through".to_owned());
        };
        told.damaged |= !lost.is_empty();
        told.offsets.extend(lost);
        self.judge_missing(&served.keys().copied().collect(), &self.may_cost(bit / 8), &told)
    }

    /// Judges that no server starts after a bit had flipped.
    ///
    /// # Errors
    /// It should start.
    pub fn judge_refused(&self, bit: usize) -> Result<(), String> {
        if self.may_refuse(bit / 8) {
            Ok(())
        } else {
            Err("no server starts, which the bit is no reason for".to_owned())
        }
    }

    /// Whether a server may refuse to start for damage at this byte: if it hides where the log begins, and there is no
    /// checkpoint.
    fn may_refuse(&self, at: usize) -> bool {
        self.kind == Kind::Replayed && self.frames.first().is_none_or(|(range, _)| at < range.start)
    }

    /// Whether a message is what was published.
    pub fn is_right(&self, offset: u64, body: &[u8]) -> bool {
        self.messages.get(&offset).is_some_and(|good| good == body)
    }

    /// Writes the directory to disk, with a bit flipped.
    ///
    /// # Errors
    /// It cannot be written.
    pub fn write(&self, bit: usize, root: &Path) -> io::Result<()> {
        let disk = self.disk.fork();
        disk.flip(&self.file, bit);
        for path in disk.paths() {
            let to = root.join(&path);
            std::fs::create_dir_all(to.parent().expect("it is in the directory"))?;
            std::fs::write(to, disk.read(&path))?;
        }
        ["log", "packed", "checkpoint", "quarantine"]
            .iter()
            .try_for_each(|dir| std::fs::create_dir_all(root.join(dir)))
    }
}

/// What is told of a directory.
#[derive(Clone, Debug)]
struct Told {
    /// Something is damaged, or was set aside.
    damaged: bool,
    /// The messages that are named.
    offsets: BTreeSet<u64>,
}

/// What fsck finds.
enum Found {
    Looked(Told),
    Refused,
}

fn told(disk: Arc<dyn Disk>) -> Result<Found, String> {
    let mut out = Vec::new();
    let inspection = Inspection::open(disk).map_err(|error| error.to_string())?;
    let outcome = match fsck::run_on(inspection, false, Format::Ndjson, &mut out) {
        Ok(outcome) => outcome,
        Err(OfflineError::Log(error)) if error.is_data_loss() => return Ok(Found::Refused),
        Err(error) => return Err(error.to_string()),
    };
    let mut told = Told { damaged: outcome == Outcome::Damaged, offsets: BTreeSet::new() };
    for line in out.split(|byte| *byte == b'\n').filter(|line| !line.is_empty()) {
        let finding: Value = serde_json::from_slice(line).map_err(|error| error.to_string())?;
        let offset = |name: &str| finding[name].as_u64();
        if let (Some(first), Some(last)) = (offset("first_offset"), offset("last_offset")) {
            told.offsets.extend(first..=last);
        }
        told.damaged |= finding["file"].as_str().is_some_and(|file| file.starts_with("quarantine/"));
    }
    Ok(Found::Looked(told))
}

/// Takes a message: its segment's path, its position there, its offset, its body.
type Each<'a> = dyn FnMut(&str, u64, u64, &[u8]) + 'a;

/// Reads all messages as a start and its readers would.
fn read(disk: &MemoryDisk, each: &mut Each<'_>) -> Result<(), String> {
    let text = |error: forebay::log::LogError| error.to_string();
    let inspection = Inspection::open(Arc::new(disk.clone())).map_err(text)?;
    let mut replica = Replica::default();
    let mut start = Start::Beginning;
    if let Some(point) = inspection.checkpoints().map_err(text)?.points.first() {
        let (mark, image) = inspection.image(point).map_err(text)?;
        replica.restore(image).map_err(text)?;
        start = Start::Checkpoint(mark);
    }
    let scan = inspection.scan(start, &mut replica).map_err(text)?;
    for segment in scan.segments() {
        let path = Inspection::path(segment);
        let take = &mut |item: Item<'_>| {
            if let Item::Message(message) = item {
                each(&path, message.position, message.offset.0, message.body);
            }
            Flow::Continue(())
        };
        let _ended = inspection.walk(&scan, segment, take).map_err(text)?;
        if segment != scan.newest() {
            for run in inspection.index(segment).map_err(text)?.only_here {
                let _ended = inspection.run(&run, take);
            }
        }
    }
    Ok(())
}

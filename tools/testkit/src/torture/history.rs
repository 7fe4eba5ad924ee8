//! What clients did and saw, written down outside the server, line by line in a file that
//! [`forebay_checker`] judges; its module `format` says what the lines mean.
//!
//! A call is recorded before it is sent, its end after its answer came.
//!
//! A history may follow the log of a disk's writes: with each line the log's length at that moment is kept. An answer
//! rests on what was on the disk when the server gave it, so on writes below the length that its receiver saw. And a
//! request can have left no trace below the length that was seen before it was sent. So the lines of up to a length
//! are what a client can hold against a server that finds just that much of the log ([`History::moment_at`]).

use std::collections::{HashMap, HashSet};
use std::fs::File;
use std::hash::Hasher as _;
use std::io::{self, BufRead as _, BufReader, BufWriter, Write as _};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::Instant;

use forebay_checker::format::{self, Answer, BodyHash, Event, Line, Moment, Op};
use forebay_checker::{Report, Unreadable};
use siphasher::sip128::{Hasher128 as _, SipHasher13};

/// Short name of a queue.
pub type QueueName = Arc<str>;

/// The hash of a message's body.
pub fn hash(body: &[u8]) -> BodyHash {
    let mut hasher = SipHasher13::new();
    hasher.write(body);
    BodyHash(hasher.finish128().as_u128())
}

/// The record of a run, shared by all its clients.
#[derive(Debug)]
pub struct History {
    path: PathBuf,
    inner: Mutex<Inner>,
}

#[derive(Debug)]
struct Inner {
    /// For each line: the length of the disk's log when it was written, and when that was.
    positions: Vec<(u64, u64)>,
    disk_log: Arc<AtomicU64>,
    file: BufWriter<File>,
    lines: u64,
    /// Publishes that were answered.
    stored: u64,
    /// The clock of the lines: what it was when the history began or went on, and since when.
    clock: (u64, Instant),
    last_number: u64,
    /// How often each reason of an error was told.
    reasons: HashMap<String, u64>,
    /// Reasons that this run may meet, besides those of every run.
    tolerated: HashSet<&'static str>,
}

impl History {
    /// Begins an empty history in the file `path`.
    pub fn create(path: &Path) -> io::Result<Self> {
        Self::following(path, Arc::default())
    }

    /// The same, beside a disk's log, whose length somebody keeps up.
    pub fn following(path: &Path, disk_log: Arc<AtomicU64>) -> io::Result<Self> {
        let history = Self::over(path, Moment { i: 0, t: 0 }, disk_log)?;
        history.record(Event::History { version: format::VERSION });
        Ok(history)
    }

    /// Another history, in a file of its own, that begins as this one does up to a moment, and goes on from there. Calls
    /// that run at that moment never end in it.
    pub fn branch(&self, path: &Path, until: Moment) -> io::Result<Self> {
        self.flush();
        let branch = Self::over(path, until, Arc::default())?;
        let mut inner = branch.lock();
        let mut text = Vec::new();
        let mut from = BufReader::new(File::open(&self.path)?);
        for _ in 0..until.i {
            text.clear();
            from.read_until(b'\n', &mut text)?;
            inner.file.write_all(&text)?;
        }
        drop(inner);
        Ok(branch)
    }

    /// A history that goes on at a moment, without the lines before it.
    fn over(path: &Path, Moment { i, t }: Moment, disk_log: Arc<AtomicU64>) -> io::Result<Self> {
        let inner = Inner {
            positions: vec![(0, t); usize::try_from(i).expect("as many lines as fit memory")],
            disk_log,
            file: BufWriter::new(File::create(path)?),
            lines: i,
            stored: 0,
            clock: (t, Instant::now()),
            // Beyond all that another history gave: a line takes a few numbers at most.
            last_number: i << 20,
            reasons: HashMap::new(),
            tolerated: HashSet::new(),
        };
        Ok(Self { path: path.to_owned(), inner: Mutex::new(inner) })
    }

    fn lock(&self) -> MutexGuard<'_, Inner> {
        self.inner.lock().expect("nobody panics with the history in hand")
    }

    /// Writes a line; its index.
    pub fn record(&self, event: Event) -> u64 {
        let mut inner = self.lock();
        let Moment { i, t } = inner.now();
        inner.stored += u64::from(matches!(event, Event::Ok { answer: Answer::Stored { .. }, .. }));
        serde_json::to_writer(&mut inner.file, &Line { i, t, event }).expect("the history can be written");
        inner.file.write_all(b"\n").expect("the history can be written");
        inner.lines += 1;
        let position = inner.disk_log.load(Ordering::SeqCst);
        inner.positions.push((position, t));
        i
    }

    /// Records a call that is about to be sent; its number, which its end needs.
    pub fn invoke(&self, op: Op) -> u64 {
        let call = self.number();
        self.record(Event::Invoke { call, op });
        call
    }

    /// Publishes that were answered since this history began, or went on from another.
    pub fn stored(&self) -> u64 {
        self.lock().stored
    }

    /// Something that must not happen has happened.
    pub fn unexpected(&self, what: impl Into<String>) {
        self.record(Event::Unexpected { what: what.into() });
    }

    /// This moment: all that was recorded so far was before.
    pub fn now(&self) -> Moment {
        self.lock().now()
    }

    /// A number that was not given before: for messages, calls and sessions.
    pub fn number(&self) -> u64 {
        let mut inner = self.lock();
        inner.last_number += 1;
        inner.last_number
    }

    /// Notes the reason of an error that a client was told.
    pub fn told(&self, reason: &str) {
        let mut inner = self.lock();
        match inner.reasons.get_mut(reason) {
            Some(times) => *times += 1,
            None => drop(inner.reasons.insert(reason.to_owned(), 1)),
        }
    }

    /// How often clients were told this reason.
    pub fn times_told(&self, reason: &str) -> u64 {
        self.lock().reasons.get(reason).copied().unwrap_or(0)
    }

    /// From now on an error with this reason is nothing unexpected, nor a line with these words in a server's log.
    pub fn tolerate(&self, reason: &'static str) {
        self.lock().tolerated.insert(reason);
    }

    pub fn tolerates(&self, reason: &str) -> bool {
        self.lock().tolerated.contains(reason)
    }

    /// Whether what a server wrote is nothing unexpected.
    pub fn tolerates_line(&self, line: &str) -> bool {
        self.lock().tolerated.iter().any(|tolerated| line.contains(tolerated))
    }

    /// When the disk's log grew beyond this length: what was recorded before was recorded at this length, or a lower one.
    pub fn moment_at(&self, position: u64) -> Moment {
        let inner = self.lock();
        let count = inner.positions.partition_point(|(at, _)| *at <= position);
        let t = count.checked_sub(1).map_or(0, |last| inner.positions[last].1);
        Moment { i: count as u64, t }
    }

    fn flush(&self) {
        self.lock().file.flush().expect("the history can be written");
    }

    /// Has all that was recorded so far judged.
    pub fn judge(&self) -> Result<Report, Unreadable> {
        self.flush();
        forebay_checker::check_file(&self.path)
    }
}

impl Inner {
    fn now(&self) -> Moment {
        let (then_ns, since) = self.clock;
        Moment { i: self.lines, t: then_ns + since.elapsed().as_nanos() as u64 }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_history_knows_what_was_told_when_the_disk_had_so_much() {
        let dir = tempfile::tempdir().unwrap();
        let disk_log = Arc::new(AtomicU64::new(3));
        let history = History::following(&dir.path().join("history"), disk_log.clone()).unwrap();
        disk_log.store(5, Ordering::SeqCst);
        history.record(Event::Killed { life: 0 });
        history.record(Event::Killed { life: 1 });
        let known = |position| history.moment_at(position).i;
        // The first line is the history's own.
        assert_eq!([2, 3, 4, 5, 9].map(known), [0, 1, 1, 3, 3]);
    }
}

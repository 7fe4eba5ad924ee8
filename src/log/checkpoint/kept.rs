//! The checkpoints that a running log keeps: which files it writes, and which may go. See [`super`] for the rules.

use std::sync::Arc;

use super::file::{self, Draft, Kept, Kind, Name};
use super::found::points;
use super::parts::{Fresh, Merged, Parts, Source};
use super::{Broken, CheckpointFault, Mark, set_aside};
use crate::disk::Disk;
use crate::ids::{Lsn, Uid};
use crate::log::counters::LogCounters;
use crate::log::error::LogError;
use crate::log::reserve::Reserve;
use crate::log::supply::Supply;

/// Of each kind.
const KEPT: usize = 2;
const RESERVE_BYTES_MIN: u64 = 1 << 20;

/// See the module's header.
pub struct Checkpoints {
    disk: Arc<dyn Disk>,
    cluster: Uid,
    counters: Arc<LogCounters>,
    supply: Arc<Supply>,
    /// In order of their names, which is that of their places.
    pub(super) files: Vec<Kept>,
    /// The file of the newest place: what changes are told from.
    pub(super) last: Option<Kept>,
    /// Bytes of the deltas that were written since the newest base, as far as is known.
    spent: u64,
}

/// What is to be kept.
#[derive(Clone, Copy)]
pub struct New<'a> {
    pub mark: &'a Mark,
    pub head: &'a [u8],
    /// What has changed since the last one that was written.
    pub parts: &'a Parts,
}

/// What has become of it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Taken {
    Written,
    /// The files that it goes on from are damaged: all parts are needed.
    AllNeeded,
}

impl Checkpoints {
    /// Goes on with the files that a start has found.
    pub fn new(
        disk: Arc<dyn Disk>,
        cluster: Uid,
        counters: Arc<LogCounters>,
        supply: Arc<Supply>,
        files: Vec<Kept>,
    ) -> Self {
        let mut this = Self { disk, cluster, counters, supply, files, last: None, spent: 0 };
        this.last = newest(&this.files);
        this.spent = this.last.filter(|last| !last.is_base()).map_or(0, |delta| delta.bytes);
        this
    }

    /// Writes a checkpoint: a delta on what is there, and a new base if one is due; or the first base.
    ///
    /// # Errors
    /// The disk is full, and there is no such checkpoint; or a failed write or sync.
    pub fn take(&mut self, new: &New<'_>) -> Result<Taken, LogError> {
        let from = self.last.map(|last| last.lsn());
        let mut taken = self.without_damaged(from, |this| this.add(new))?;
        if taken == Taken::Written {
            taken = self.without_damaged(Some(new.mark.lsn), |this| this.renew(new))?;
        }
        self.tidy()?;
        self.restore_reserve()?;
        Ok(taken)
    }

    /// Sees to it that the next checkpoint has space on a full disk.
    pub fn restore_reserve(&self) -> Result<(), LogError> {
        let largest = self.files.iter().map(|file| file.bytes).max().unwrap_or_default();
        self.supply.restore(Reserve::Checkpoint, RESERVE_BYTES_MIN.max(2 * largest))
    }

    /// The place that a start can begin from whichever one file is damaged, or all of the last place; none if there is
    /// no such place.
    pub fn fallback(&self) -> Option<Kept> {
        fallback(&self.files)
    }

    /// The newest bases that changes since are known of, oldest first.
    pub(super) fn bases(&self) -> Vec<Kept> {
        let Some(last) = self.last else { return Vec::new() };
        let known = self.files.iter().filter(|file| file.is_base() && file.lsn() >= last.since);
        let mut bases: Vec<Kept> = known.copied().collect();
        bases.drain(..bases.len().saturating_sub(KEPT));
        bases
    }

    fn add(&mut self, new: &New<'_>) -> Result<(), Broken> {
        let older = self.bases().first().map(Kept::lsn);
        let under = self.last.filter(|last| !last.is_base()).map(|last| last.name);
        let (kind, since) = match older {
            Some(since) => (Kind::Delta, since),
            None => (Kind::Base, new.mark.lsn),
        };
        let kept = self.write(new, kind, since, &|| {
            let mut sources: Vec<Box<dyn Source>> = Vec::new();
            if let Some(under) = under {
                sources.push(Box::new(file::open(&*self.disk, self.cluster, under)?.parts));
            }
            sources.push(Box::new(Fresh::new(new.parts, new.mark.lsn)));
            Ok(Merged::new(sources))
        })?;
        self.insert(kept);
        self.counters.checkpoints.add(1);
        self.counters.checkpoint_parts.add(new.parts.len() as u64);
        self.spent = if kept.is_base() { 0 } else { self.spent + kept.bytes };
        self.last = Some(kept);
        Ok(())
    }

    /// Makes a base of the newest one and the last delta, if that is due. One that there is no space for is put off.
    fn renew(&mut self, new: &New<'_>) -> Result<(), Broken> {
        let (bases, Some(last)) = (self.bases(), self.last) else { return Ok(()) };
        let Some(newest) = bases.last().filter(|newest| newest.lsn() < last.lsn()) else { return Ok(()) };
        if bases.len() == KEPT && self.spent < newest.bytes {
            return Ok(());
        }
        let written = self.write(new, Kind::Base, new.mark.lsn, &|| {
            let open = |file: &Kept| file::open(&*self.disk, self.cluster, file.name);
            Ok(Merged::new(vec![Box::new(open(newest)?.parts), Box::new(open(&last)?.parts)]))
        });
        match written {
            Err(Broken::Log(error)) if error.is_no_space() => return Ok(()),
            written => self.insert(written?),
        }
        self.counters.checkpoint_bases.add(1);
        self.spent = 0;
        Ok(())
    }

    /// Writes a file, with the space of the reserve if there is no other.
    fn write<'a>(
        &self,
        new: &New<'a>,
        kind: Kind,
        since: Lsn,
        parts: &dyn Fn() -> Result<Merged<'a>, Broken>,
    ) -> Result<Kept, Broken> {
        let draft = Draft { cluster: self.cluster, kind, since, mark: new.mark, head: new.head };
        match draft.write(&*self.disk, parts()?) {
            Err(Broken::Log(error)) if error.is_no_space() => {
                self.supply.draw_on(Reserve::Checkpoint)?;
                draft.write(&*self.disk, parts()?)
            }
            written => written,
        }
    }

    fn insert(&mut self, kept: Kept) {
        self.counters.checkpoint_bytes.add(kept.bytes);
        self.files.retain(|file| file.name != kept.name);
        let at = self.files.partition_point(|file| file.name < kept.name);
        self.files.insert(at, kept);
    }

    /// Does the work, again without each file that it finds damaged, as long as the others lead to `place`.
    fn without_damaged(
        &mut self,
        place: Option<Lsn>,
        mut work: impl FnMut(&mut Self) -> Result<(), Broken>,
    ) -> Result<Taken, LogError> {
        loop {
            match work(self) {
                Ok(()) => return Ok(Taken::Written),
                Err(Broken::Log(error)) => return Err(error),
                Err(Broken::Damaged(name, fault)) => self.set_aside(name, fault)?,
            }
            self.last = newest(&self.files);
            if self.last.map(|last| last.lsn()) < place {
                self.last = None;
                return Ok(Taken::AllNeeded);
            }
        }
    }

    fn set_aside(&mut self, name: Name, fault: CheckpointFault) -> Result<(), LogError> {
        let path = set_aside(&*self.disk, name)?;
        tracing::error!(%name, %fault, path = %path.display(), "a checkpoint is damaged; it was set aside");
        self.files.retain(|file| file.name != name);
        Ok(())
    }

    /// Removes all but the newest of each kind, and deltas whose bases go; not what one damaged file would be missed
    /// for.
    fn tidy(&mut self) -> Result<(), LogError> {
        let newest_of = |files: Vec<Kept>| files[files.len().saturating_sub(KEPT)..].to_vec();
        let (bases, deltas): (Vec<Kept>, Vec<Kept>) = self.files.iter().partition(|file| file.is_base());
        let bases = newest_of(bases);
        let deltas = deltas.into_iter().filter(|delta| bases.iter().any(|base| delta.goes_on_from(base)));
        let deltas = newest_of(deltas.collect());
        let kept = |file: &&Kept| bases.contains(file) || deltas.contains(file);
        let mut surplus: Vec<Kept> = self.files.iter().filter(|file| !kept(file)).copied().collect();
        // Deltas first: one without its base would be taken for damage.
        surplus.sort_by_key(Kept::is_base);
        for file in surplus {
            let left: Vec<Kept> = self.files.iter().filter(|other| **other != file).copied().collect();
            if fallback(&left).map(|kept| kept.lsn()) >= self.fallback().map(|kept| kept.lsn()) {
                self.disk.remove(&file.name.path())?;
                self.files = left;
            }
        }
        Ok(())
    }
}

/// The file of the newest place that files lead to.
fn newest(files: &[Kept]) -> Option<Kept> {
    points(files).next().map(|point| point.file)
}

fn fallback(files: &[Kept]) -> Option<Kept> {
    let last = newest(files)?.lsn();
    let without = |lost: &dyn Fn(&Kept) -> bool| {
        newest(&files.iter().filter(|file| !lost(file)).copied().collect::<Vec<_>>())
    };
    let one_lost = files.iter().map(|lost| without(&|file| file == lost));
    let place_lost = without(&|file| file.lsn() == last);
    let left: Option<Vec<Kept>> = one_lost.chain([place_lost]).collect();
    left?.into_iter().min_by_key(Kept::lsn)
}

//! The checkpoints of a data directory, and the states that they lead to.

use super::file::{self, Kept, Kind, Name};
use super::parts::{Merged, Source};
use super::{Broken, CheckpointFault, DIR, Mark};
use crate::disk::{Disk, join};
use crate::ids::{Lsn, Uid};
use crate::log::directory::list_if_there;
use crate::log::error::{LogError, ReplayError};

/// What is there.
#[derive(Debug, Default)]
pub struct Found {
    /// Whole files that lead to a state, oldest first.
    pub files: Vec<Kept>,
    /// The others.
    pub damaged: Vec<(Name, CheckpointFault)>,
}

/// A state that can be restored: a base, or a delta on top of one.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Point {
    pub(super) file: Kept,
    pub(super) base: Kept,
}

impl Point {
    /// LSN of the first record that it does not include.
    pub fn lsn(&self) -> Lsn {
        self.file.lsn()
    }

    /// The path of its newest file in the data directory.
    pub fn path(&self) -> String {
        self.file.name.path()
    }
}

/// The state of a checkpoint on its way back.
pub struct Image {
    lsn: Lsn,
    head: Vec<u8>,
    parts: Merged<'static>,
}

impl Image {
    pub fn head(&self) -> &[u8] {
        &self.head
    }

    /// The error that says why the state cannot be taken.
    pub fn refusal(&self, why: impl ToString) -> LogError {
        LogError::Checkpoint { lsn: self.lsn, why: ReplayError(why.to_string()) }
    }

    /// Gives each part, in order of key.
    ///
    /// # Errors
    /// A part was refused, or cannot be read.
    pub fn each_part(
        mut self,
        mut each: impl FnMut(u64, &[u8]) -> Result<(), ReplayError>,
    ) -> Result<(), LogError> {
        while let Some((part, bytes)) = self.parts.next()? {
            if !bytes.is_empty() {
                each(part.key, bytes).map_err(|why| LogError::Checkpoint { lsn: self.lsn, why })?;
            }
        }
        Ok(())
    }
}

/// Looks for checkpoints, and verifies all of each. Changes nothing.
pub fn find(disk: &dyn Disk, cluster: Uid) -> Result<Found, LogError> {
    let (mut whole, mut damaged) = (Vec::new(), Vec::new());
    for name in list(disk)? {
        let read = file::open(disk, cluster, name).and_then(|opened| {
            opened.parts.verify()?;
            Ok(opened.kept)
        });
        match read {
            Ok(kept) => whole.push(kept),
            Err(Broken::Damaged(_, fault)) => damaged.push((name, fault)),
            Err(Broken::Log(error)) => return Err(error),
        }
    }
    let (files, alone): (Vec<_>, Vec<_>) = whole.iter().partition(|file| base_of(&whole, file).is_some());
    damaged.extend(alone.iter().map(|delta: &Kept| (delta.name, CheckpointFault::NoBase)));
    Ok(Found { files, damaged })
}

/// The files that are there, oldest first.
pub fn list(disk: &dyn Disk) -> Result<Vec<Name>, LogError> {
    let entries = list_if_there(disk, DIR)?;
    let mut names: Vec<Name> = entries.iter().filter_map(|entry| Name::parse(&entry.name)).collect();
    names.sort_unstable();
    Ok(names)
}

/// Removes files that were not finished.
pub fn remove_temps(disk: &dyn Disk) -> Result<(), LogError> {
    for entry in disk.list(DIR)? {
        if entry.name.strip_suffix(".tmp").is_some_and(|name| Name::parse(name).is_some()) {
            disk.remove(&join(DIR, &entry.name))?;
        }
    }
    Ok(())
}

/// The states that these files lead to, newest first; of two of one place, the one by a delta.
pub fn points(files: &[Kept]) -> impl Iterator<Item = Point> {
    files.iter().rev().filter_map(|file| Some(Point { file: *file, base: base_of(files, file)? }))
}

/// The newest base under a delta; of a base, itself.
fn base_of(files: &[Kept], file: &Kept) -> Option<Kept> {
    match file.name.kind {
        Kind::Base => Some(*file),
        Kind::Delta => files.iter().rev().find(|base| file.goes_on_from(base)).copied(),
    }
}

/// Opens the state of a point.
pub fn image(disk: &dyn Disk, cluster: Uid, point: &Point) -> Result<(Mark, Image), Broken> {
    let newest = file::open(disk, cluster, point.file.name)?;
    let mut sources: Vec<Box<dyn Source>> = Vec::new();
    if point.base != point.file {
        sources.push(Box::new(file::open(disk, cluster, point.base.name)?.parts));
    }
    sources.push(Box::new(newest.parts));
    Ok((newest.mark, Image { lsn: point.lsn(), head: newest.head, parts: Merged::new(sources) }))
}

//! What a disk holds, and what of it is left when the power goes. It fails nothing and waits for
//! nothing by itself.
//!
//! Of each sector of 512 bytes that was written since the last sync of its file there is left: what was durable, or any
//! version written since, or the beginning of one in front of the other, or zeroes, or what stood there before what is
//! durable; each sector for itself. A sector that was written as it was is as it was. Of the changes of names in a
//! directory since its last sync each is kept or lost, or the first few are kept. A file's length is that of what was
//! written, and allocated.
//!
//! A sync that fails leaves each sector durable or not: all of it is read back until the power goes, and none of it is
//! tried again.

use std::collections::BTreeMap;
use std::sync::Arc;

const SECTOR: usize = 512;

type Sector = [u8; SECTOR];

/// Gives one of `0..end`.
pub type Chance<'a> = &'a mut dyn FnMut(u64) -> u64;

/// What becomes of what was not synced.
pub enum Unsynced<'a> {
    Lost,
    Kept,
    ByChance(Chance<'a>),
}

/// A file, whatever its name is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct FileId(usize);

/// See the module's header. Clones share what neither of them changes.
#[derive(Clone, Debug, Default)]
pub struct Platter {
    files: Vec<Arc<File>>,
    names: BTreeMap<String, FileId>,
    durable_names: BTreeMap<String, FileId>,
    changes: Vec<Change>,
}

#[derive(Clone, Debug, Default)]
struct File {
    now: Vec<u8>,
    durable: Vec<u8>,
    /// Versions of sectors since the last sync, oldest first.
    unsynced: BTreeMap<usize, Vec<Sector>>,
    /// What stood where before what is durable.
    before: BTreeMap<usize, Sector>,
}

/// Takes the file at `from` away, or gives it the name `to`.
#[derive(Clone, Debug)]
struct Change {
    from: Option<String>,
    to: Option<(String, FileId)>,
}

impl Change {
    fn apply(&self, names: &mut BTreeMap<String, FileId>) {
        if let Some(from) = &self.from {
            names.remove(from);
        }
        names.extend(self.to.clone());
    }

    fn is_in(&self, dir: &str) -> bool {
        let to = self.to.as_ref().map(|(to, _)| to);
        let path = self.from.as_ref().or(to).expect("it changes a name");
        parent(path) == dir
    }
}

fn parent(path: &str) -> &str {
    path.rsplit_once('/').map_or("", |(dir, _)| dir)
}

impl Platter {
    /// A new file; none if the name is taken.
    pub fn create(&mut self, path: &str) -> Option<FileId> {
        if self.names.contains_key(path) {
            return None;
        }
        let file = FileId(self.files.len());
        self.files.push(Arc::default());
        self.change(Change { from: None, to: Some((path.to_owned(), file)) });
        Some(file)
    }

    /// The file of this name.
    pub fn find(&self, path: &str) -> Option<FileId> {
        self.names.get(path).copied()
    }

    /// The names in a directory.
    pub fn list<'a>(&'a self, dir: &'a str) -> impl Iterator<Item = &'a str> {
        let in_dir = self.names.keys().filter(move |path| parent(path) == dir);
        in_dir.map(move |path| path[dir.len()..].trim_start_matches('/'))
    }

    /// Every file that has a name.
    pub fn paths(&self) -> impl Iterator<Item = &String> {
        self.names.keys()
    }

    /// Gives a file another name, or none; false if there is none.
    pub fn rename(&mut self, from: &str, to: Option<&str>) -> bool {
        let Some(file) = self.find(from) else { return false };
        self.change(Change { from: Some(from.to_owned()), to: to.map(|to| (to.to_owned(), file)) });
        true
    }

    fn change(&mut self, change: Change) {
        change.apply(&mut self.names);
        self.changes.push(change);
    }

    pub fn sync_dir(&mut self, dir: &str) {
        let (synced, left): (Vec<_>, Vec<_>) =
            std::mem::take(&mut self.changes).into_iter().partition(|change| change.is_in(dir));
        self.changes = left;
        synced.iter().for_each(|change| change.apply(&mut self.durable_names));
    }

    pub fn bytes(&self, file: FileId) -> &[u8] {
        &self.files[file.0].now
    }

    /// Bytes of all files that have a name.
    pub fn used(&self) -> u64 {
        self.names.values().map(|file| self.bytes(*file).len() as u64).sum()
    }

    pub fn write(&mut self, file: FileId, position: usize, bytes: &[u8]) {
        self.file(file).write(position, bytes);
    }

    fn file(&mut self, file: FileId) -> &mut File {
        Arc::make_mut(&mut self.files[file.0])
    }

    /// Makes a file at least so long.
    pub fn extend(&mut self, file: FileId, length: usize) {
        grow(&mut self.file(file).now, length);
    }

    pub fn sync(&mut self, file: FileId) {
        self.file(file).settle(&mut |_, versions, _| *versions.newest());
    }

    pub fn fail_sync(&mut self, file: FileId, chance: Chance<'_>) {
        self.file(file).settle(&mut |_, versions, old| if chance(2) == 0 { *versions.newest() } else { old });
    }

    /// Flips a bit of what is there, synced or not.
    pub fn flip(&mut self, file: FileId, at: usize, bit: u8) {
        let File { now, durable, .. } = self.file(file);
        now[at] ^= bit;
        if let Some(byte) = durable.get_mut(at) {
            *byte ^= bit;
        }
    }

    /// Leaves what is found when the power is back.
    pub fn lose_power(&mut self, mut unsynced: Unsynced<'_>) {
        self.files.iter_mut().for_each(|file| Arc::make_mut(file).lose_power(&mut unsynced));
        let mut names = self.durable_names.clone();
        let changes = std::mem::take(&mut self.changes);
        match unsynced {
            Unsynced::Lost => {}
            Unsynced::Kept => changes.iter().for_each(|change| change.apply(&mut names)),
            Unsynced::ByChance(chance) => {
                let (in_order, lost) = (chance(2) == 0, chance(101));
                for change in changes {
                    if chance(100) >= lost {
                        change.apply(&mut names);
                    } else if in_order {
                        break;
                    }
                }
            }
        }
        self.keep(names);
    }

    /// Keeps the files that have a name, each with one.
    fn keep(&mut self, names: BTreeMap<String, FileId>) {
        let files = std::mem::take(&mut self.files);
        self.names.clear();
        for (path, file) in names {
            self.names.insert(path, FileId(self.files.len()));
            self.files.push(files[file.0].clone());
        }
        self.durable_names = self.names.clone();
    }
}

/// Of one sector; at least one.
struct Versions(Vec<Sector>);

impl Versions {
    fn newest(&self) -> &Sector {
        self.0.last().expect("it was written")
    }
}

fn sector(bytes: &[u8], at: usize) -> Sector {
    let mut sector = [0; SECTOR];
    let from = &bytes[(at * SECTOR).min(bytes.len())..];
    let length = from.len().min(SECTOR);
    sector[..length].copy_from_slice(&from[..length]);
    sector
}

/// Makes bytes at least so long, in one copy: `resize` goes byte by byte in a quick build.
fn grow(bytes: &mut Vec<u8>, length: usize) {
    bytes.extend_from_slice(&vec![0; length.saturating_sub(bytes.len())]);
}

fn put(bytes: &mut Vec<u8>, position: usize, part: &[u8]) {
    let end = position + part.len();
    grow(bytes, end);
    bytes[position..end].copy_from_slice(part);
}

impl File {
    fn write(&mut self, position: usize, bytes: &[u8]) {
        put(&mut self.now, position, bytes);
        for at in position / SECTOR..(position + bytes.len()).div_ceil(SECTOR) {
            let version = sector(&self.now, at);
            // Most of what is written are zeroes over zeroes, which nothing can lose.
            if self.unsynced.contains_key(&at) || version != sector(&self.durable, at) {
                self.unsynced.entry(at).or_default().push(version);
            }
        }
    }

    /// Makes durable what is chosen of the versions of each unsynced sector and what is durable there.
    fn settle(&mut self, choose: &mut dyn FnMut(usize, &Versions, Sector) -> Sector) {
        for (at, versions) in std::mem::take(&mut self.unsynced) {
            let old = sector(&self.durable, at);
            let new = choose(at, &Versions(versions), old);
            if new != old {
                self.before.insert(at, old);
                put(&mut self.durable, at * SECTOR, &new);
            }
        }
        self.durable.truncate(self.now.len());
        grow(&mut self.durable, self.now.len());
    }

    fn lose_power(&mut self, unsynced: &mut Unsynced<'_>) {
        match unsynced {
            Unsynced::Lost => self.settle(&mut |_, _, old| old),
            Unsynced::Kept => self.settle(&mut |_, versions, _| *versions.newest()),
            Unsynced::ByChance(chance) => {
                // Some crashes lose nearly all, some nearly nothing.
                let lost = chance(101);
                if !self.unsynced.is_empty() {
                    let before = self.before.clone();
                    self.settle_by_chance(lost, &before, chance);
                }
            }
        }
        self.now.clone_from(&self.durable);
    }

    fn settle_by_chance(&mut self, lost: u64, before: &BTreeMap<usize, Sector>, chance: Chance<'_>) {
        self.settle(&mut |at, versions, old| {
            let newest = *versions.newest();
            if newest == old || chance(100) < lost {
                return old;
            }
            match chance(10) {
                0 => versions.0[chance(versions.0.len() as u64) as usize],
                1 => [0; SECTOR],
                2 => before.get(&at).copied().unwrap_or(old),
                3 => {
                    let mut torn = old;
                    let length = chance(SECTOR as u64) as usize;
                    torn[..length].copy_from_slice(&newest[..length]);
                    torn
                }
                _ => newest,
            }
        });
    }
}

//! A disk in memory that loses power: of what was not synced, each sector of 512 bytes is kept or is what it was, and
//! of the changes of names in a directory the first few are kept.

use std::collections::BTreeMap;
use std::io::{self, IoSlice};
use std::path::PathBuf;
use std::sync::{Arc, Mutex, MutexGuard};

use crate::disk::{Disk, DiskError, DiskFile, DiskLock, Entry, Operation};

const SECTOR: usize = 512;

/// What becomes of what was not synced.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Unsynced {
    Lost,
    Kept,
    /// By chance, from this seed on.
    Either(u64),
}

#[derive(Clone, Debug, Default)]
pub struct CrashDisk {
    state: Arc<Mutex<State>>,
}

#[derive(Debug, Default)]
struct State {
    files: Vec<Content>,
    names: BTreeMap<String, usize>,
    durable_names: BTreeMap<String, usize>,
    changes: Vec<Change>,
    /// Operations until the power goes, if it does.
    left: Option<u64>,
    operations: u64,
    /// Bytes that all files can have together, if there is a bound.
    space: Option<u64>,
    /// Files are made longer without their space.
    reserves_nothing: bool,
}

impl State {
    /// Makes a file longer, if there is space.
    fn grow(&mut self, file: usize, length: usize) -> Result<(), io::ErrorKind> {
        let used: usize = self.names.values().map(|file| self.files[*file].now.len()).sum();
        let content = &mut self.files[file];
        let more = length.saturating_sub(content.now.len());
        if more > 0 && self.space.is_some_and(|space| (used + more) as u64 > space) {
            return Err(io::ErrorKind::StorageFull);
        }
        content.now.resize(content.now.len() + more, 0);
        Ok(())
    }
}

#[derive(Debug, Default)]
struct Content {
    now: Vec<u8>,
    durable: Vec<u8>,
    unsynced: Vec<(usize, Vec<u8>)>,
}

/// Takes the file at `from` away, or gives it the name `to`.
#[derive(Clone, Debug)]
struct Change {
    from: Option<String>,
    to: Option<(String, usize)>,
}

impl Change {
    fn apply(&self, names: &mut BTreeMap<String, usize>) {
        names.retain(|path, _| Some(path) != self.from.as_ref());
        names.extend(self.to.clone());
    }

    fn is_in(&self, dir: &str) -> bool {
        let path = self.from.as_ref().or(self.to.as_ref().map(|(to, _)| to)).expect("it changes a name");
        path.rsplit_once('/').map_or("", |(dir, _)| dir) == dir
    }
}

fn apply(bytes: &mut Vec<u8>, position: usize, part: &[u8]) {
    let end = position + part.len();
    bytes.resize(bytes.len().max(end), 0);
    bytes[position..end].copy_from_slice(part);
}

/// A sequence of numbers without a pattern.
struct Chance(u64);

impl Chance {
    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        self.0 >> 33
    }
}

impl CrashDisk {
    /// Lets `operations` more be done and fails all after them.
    pub fn fail_after(&self, operations: u64) {
        self.lock().left = Some(operations);
    }

    /// Bounds the bytes of all files together.
    pub fn bound(&self, bytes: u64) {
        self.lock().space = Some(bytes);
    }

    /// From now on no space is reserved.
    pub fn reserve_nothing(&self) {
        self.lock().reserves_nothing = true;
    }

    /// Operations so far that change something.
    pub fn operations(&self) -> u64 {
        self.lock().operations
    }

    /// What is found after the power has gone.
    pub fn after_crash(&self, unsynced: Unsynced) -> Self {
        let mut chance = Chance(if let Unsynced::Either(seed) = unsynced { seed } else { 0 });
        let mut keeps = move || match unsynced {
            Unsynced::Lost => false,
            Unsynced::Kept => true,
            Unsynced::Either(_) => chance.next().is_multiple_of(2),
        };
        let state = self.lock();
        let mut names = state.durable_names.clone();
        state.changes.iter().take_while(|_| keeps()).for_each(|change| change.apply(&mut names));
        let mut after = State { space: state.space, ..State::default() };
        for (path, file) in names {
            let content = &state.files[file];
            let mut bytes = content.durable.clone();
            for (position, part) in &content.unsynced {
                for (at, sector) in part.chunks(SECTOR).enumerate() {
                    if keeps() {
                        apply(&mut bytes, position + at * SECTOR, sector);
                    }
                }
            }
            // The length is no part of what is promised; a new file has it here when it was allocated.
            bytes.resize(content.now.len(), 0);
            after.names.insert(path, after.files.len());
            after.files.push(Content { now: bytes.clone(), durable: bytes, unsynced: Vec::new() });
        }
        after.durable_names = after.names.clone();
        Self { state: Arc::new(Mutex::new(after)) }
    }

    /// The bytes of a file.
    pub fn bytes(&self, path: &str) -> Vec<u8> {
        let state = self.lock();
        state.files[state.names[path]].now.clone()
    }

    pub fn names(&self, dir: &str) -> Vec<String> {
        self.list(dir).unwrap().into_iter().map(|entry| entry.name).collect()
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap()
    }

    fn change(&self, operation: Operation, path: &str) -> Result<MutexGuard<'_, State>, DiskError> {
        let mut state = self.lock();
        state.operations += 1;
        match &mut state.left {
            Some(0) => return Err(fault(operation, path, io::ErrorKind::Other)),
            Some(left) => *left -= 1,
            None => {}
        }
        Ok(state)
    }

    fn open_file(&self, path: &str, file: usize) -> Arc<dyn DiskFile> {
        Arc::new(CrashFile { disk: self.clone(), path: path.to_owned(), file })
    }
}

fn fault(operation: Operation, path: &str, kind: io::ErrorKind) -> DiskError {
    DiskError::io(operation, path.into(), kind.into())
}

#[derive(Debug)]
struct NoLock;

impl DiskLock for NoLock {}

impl Disk for CrashDisk {
    fn full_path(&self, path: &str) -> PathBuf {
        path.into()
    }

    fn create(&self, path: &str) -> Result<Arc<dyn DiskFile>, DiskError> {
        let mut state = self.change(Operation::Create, path)?;
        assert!(!state.names.contains_key(path), "{path}");
        let file = state.files.len();
        state.files.push(Content::default());
        let change = Change { from: None, to: Some((path.to_owned(), file)) };
        change.apply(&mut state.names);
        state.changes.push(change);
        drop(state);
        Ok(self.open_file(path, file))
    }

    fn open(&self, path: &str) -> Result<Arc<dyn DiskFile>, DiskError> {
        let file = self.lock().names.get(path).copied();
        let file = file.ok_or(fault(Operation::Open, path, io::ErrorKind::NotFound))?;
        Ok(self.open_file(path, file))
    }

    fn list(&self, dir: &str) -> Result<Vec<Entry>, DiskError> {
        let state = self.lock();
        let in_dir = state.names.keys().filter_map(|path| match path.rsplit_once('/') {
            Some((parent, name)) => (parent == dir).then_some(name),
            None => dir.is_empty().then_some(path.as_str()),
        });
        Ok(in_dir.map(|name| Entry { name: name.to_owned(), is_dir: false }).collect())
    }

    fn rename(&self, from: &str, to: &str) -> Result<(), DiskError> {
        let mut state = self.change(Operation::Rename, from)?;
        let file = *state.names.get(from).ok_or(fault(Operation::Rename, from, io::ErrorKind::NotFound))?;
        let change = Change { from: Some(from.to_owned()), to: Some((to.to_owned(), file)) };
        change.apply(&mut state.names);
        state.changes.push(change);
        Ok(())
    }

    fn remove(&self, path: &str) -> Result<(), DiskError> {
        let mut state = self.change(Operation::Remove, path)?;
        if !state.names.contains_key(path) {
            return Err(fault(Operation::Remove, path, io::ErrorKind::NotFound));
        }
        let change = Change { from: Some(path.to_owned()), to: None };
        change.apply(&mut state.names);
        state.changes.push(change);
        Ok(())
    }

    fn create_dir(&self, _: &str) -> Result<(), DiskError> {
        Ok(())
    }

    fn sync_dir(&self, dir: &str) -> Result<(), DiskError> {
        let mut state = self.change(Operation::SyncDir, dir)?;
        let (synced, left) = std::mem::take(&mut state.changes).into_iter().partition(|c| c.is_in(dir));
        state.changes = left;
        let synced: Vec<Change> = synced;
        synced.iter().for_each(|change| change.apply(&mut state.durable_names));
        Ok(())
    }

    fn exists(&self, path: &str) -> Result<bool, DiskError> {
        Ok(self.lock().names.contains_key(path))
    }

    fn free_bytes(&self) -> Result<u64, DiskError> {
        let state = self.lock();
        let used: usize = state.names.values().map(|file| state.files[*file].now.len()).sum();
        Ok(state.space.map_or(u64::MAX, |space| space.saturating_sub(used as u64)))
    }

    fn lock(&self, _: &str) -> Result<Box<dyn DiskLock>, DiskError> {
        Ok(Box::new(NoLock))
    }
}

#[derive(Debug)]
struct CrashFile {
    disk: CrashDisk,
    path: String,
    file: usize,
}

impl DiskFile for CrashFile {
    fn write_at(&self, parts: &mut [IoSlice<'_>], position: u64) -> Result<(), DiskError> {
        let mut state = self.disk.change(Operation::Write, &self.path)?;
        let bytes: Vec<u8> = parts.iter().flat_map(|part| part.iter().copied()).collect();
        let grown = state.grow(self.file, position as usize + bytes.len());
        grown.map_err(|kind| fault(Operation::Write, &self.path, kind))?;
        let content = &mut state.files[self.file];
        apply(&mut content.now, position as usize, &bytes);
        content.unsynced.push((position as usize, bytes));
        Ok(())
    }

    fn read_at(&self, buffer: &mut [u8], position: u64) -> Result<(), DiskError> {
        let state = self.disk.lock();
        let bytes = state.files[self.file].now.get(position as usize..position as usize + buffer.len());
        buffer.copy_from_slice(bytes.ok_or(fault(
            Operation::Read,
            &self.path,
            io::ErrorKind::UnexpectedEof,
        ))?);
        Ok(())
    }

    fn sync_data(&self) -> Result<(), DiskError> {
        let mut state = self.disk.change(Operation::Sync, &self.path)?;
        let content = &mut state.files[self.file];
        for (position, part) in std::mem::take(&mut content.unsynced) {
            apply(&mut content.durable, position, &part);
        }
        Ok(())
    }

    fn allocate(&self, length: u64) -> Result<bool, DiskError> {
        let mut state = self.disk.change(Operation::Allocate, &self.path)?;
        let grown = state.grow(self.file, length as usize);
        let reserved = !state.reserves_nothing;
        grown.map(|()| reserved).map_err(|kind| fault(Operation::Allocate, &self.path, kind))
    }

    fn length(&self) -> Result<u64, DiskError> {
        Ok(self.disk.lock().files[self.file].now.len() as u64)
    }
}

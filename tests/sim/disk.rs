//! The simulated disk: a [`Platter`] that fails, fills up, takes its time and loses power as it was told.

use std::io::{self, IoSlice};
use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::Duration;

use forebay::disk::{Disk, DiskError, DiskFile, DiskLock, Entry, Operation};

use crate::host::SimHost;
use crate::platter::{FileId, Platter, Unsynced};
use crate::random::Random;

/// What the disk does to its owner.
#[derive(Clone, Debug, Default)]
pub struct Mishaps {
    /// From this operation on nothing is done any more: the power has gone, or the process was killed.
    pub ends_at: Option<u64>,
    /// This operation fails, and how.
    pub fails_at: Option<u64>,
    pub failure: Failure,
    /// And all after it.
    pub fails_for_good: bool,
    /// Bytes that all files may have together.
    pub capacity: Option<u64>,
    /// Longest time that an operation takes, microseconds.
    pub slow_us: u64,
}

/// How an operation fails.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Failure {
    /// An error of the device; some of the operation has come to pass or all of it.
    #[default]
    Device,
    /// There is no space. Nothing has come to pass, but that a file may have grown.
    NoSpace,
    /// An error of the device behind the first half of a write; anything else has come to pass.
    Halfway,
    /// An error of the device, of a read or an opening of a file; only these are counted for it.
    Look,
}

impl Failure {
    fn kind(self) -> io::ErrorKind {
        if self == Self::NoSpace { io::ErrorKind::StorageFull } else { io::ErrorKind::Other }
    }
}

/// How many operations a life had.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Operations {
    /// That change something.
    pub changes: u64,
    /// Reads and openings of files.
    pub looks: u64,
}

#[derive(Clone, Debug)]
pub struct SimDisk {
    host: SimHost,
    state: Arc<Mutex<State>>,
    locked: Arc<AtomicBool>,
}

#[derive(Debug)]
struct State {
    random: Random,
    platter: Platter,
    mishaps: Mishaps,
    operations: Operations,
    ended: bool,
}

impl SimDisk {
    pub fn new(host: SimHost, random: Random) -> Self {
        let (platter, mishaps) = (Platter::default(), Mishaps::default());
        let state = State { random, platter, mishaps, operations: Operations::default(), ended: false };
        Self { host, state: Arc::new(Mutex::new(state)), locked: Arc::default() }
    }

    /// The same bytes at another host.
    pub fn copy_at(&self, host: SimHost) -> Self {
        let State { random, platter, .. } = &*self.state();
        let copy = Self::new(host, random.clone());
        copy.state().platter = platter.clone();
        copy
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(|poisoned| poisoned.into_inner())
    }

    /// Begins a life of the process; operations are counted from here.
    pub fn begin(&self, mishaps: Mishaps) {
        let mut state = self.state();
        state.mishaps = mishaps;
        state.operations = Operations::default();
        state.ended = false;
    }

    /// Ends the life now.
    pub fn end(&self) {
        self.state().ended = true;
    }

    /// Whether the life is over: what is said now is heard by nobody.
    pub fn has_ended(&self) -> bool {
        self.state().ended
    }

    /// Whether the disk may be full in this life; when not even leases can be written, pulls bring nothing.
    pub fn is_small(&self) -> bool {
        self.state().mishaps.capacity.is_some()
    }

    /// Whether reads may fail in this life, and what cannot be read now can be later.
    pub fn fails_looks(&self) -> bool {
        self.state().mishaps.failure == Failure::Look
    }

    /// Operations of this life so far.
    pub fn operations(&self) -> Operations {
        self.state().operations
    }

    /// What is found when the power is back.
    pub fn lose_power(&self) {
        let State { random, platter, .. } = &mut *self.state();
        match random.below(10) {
            0 => platter.lose_power(Unsynced::Lost),
            1 => platter.lose_power(Unsynced::Kept),
            _ => platter.lose_power(Unsynced::ByChance(&mut |end| random.below(end))),
        }
    }

    /// Flips a bit of a file that ends so; what was hit.
    pub fn flip_bit(&self, ending: &str) -> Option<String> {
        let State { random, platter, .. } = &mut *self.state();
        let paths: Vec<String> = platter.paths().filter(|path| path.ends_with(ending)).cloned().collect();
        let path = random.any(&paths)?;
        let file = platter.find(path).expect("it was just listed");
        let bytes = platter.bytes(file);
        let written: Vec<usize> = (0..bytes.len()).filter(|at| bytes[*at] != 0).collect();
        let at = *random.any(&written)?;
        platter.flip(file, at, 1 << random.below(8));
        Some(format!("{path} at byte {at}"))
    }

    /// Counts an operation; whether it is to be done.
    fn change(
        &self,
        operation: Operation,
        path: &str,
        bytes: u64,
    ) -> Result<MutexGuard<'_, State>, DiskError> {
        let slow_us = {
            let mut state = self.state();
            let most = state.mishaps.slow_us;
            if most > 0 { state.random.below(most) } else { 0 }
        };
        match slow_us {
            0 => self.host.pass(),
            time => self.host.sleep(Duration::from_micros(time)),
        }
        let mut state = self.state();
        state.operations.changes += 1;
        self.host.note(format_args!("{operation} {path} {bytes}"));
        let at = state.operations.changes;
        state.ended |= state.mishaps.ends_at.is_some_and(|end| at >= end);
        if state.ended {
            return Err(fault(operation, path, io::ErrorKind::Other));
        }
        Ok(state)
    }

    /// Counts a read or the opening of a file.
    fn look(&self, operation: Operation, path: &str) -> Result<MutexGuard<'_, State>, DiskError> {
        let mut state = self.state();
        state.operations.looks += 1;
        let fails = state.mishaps.failure == Failure::Look && state.is_hit(state.operations.looks);
        if fails { Err(fault(operation, path, io::ErrorKind::Other)) } else { Ok(state) }
    }
}

impl State {
    /// How the change that was counted last fails, if it does.
    fn failure(&self) -> Option<Failure> {
        let Mishaps { failure, .. } = self.mishaps;
        (failure != Failure::Look && self.is_hit(self.operations.changes)).then_some(failure)
    }

    fn is_hit(&self, at: u64) -> bool {
        let Mishaps { fails_at, fails_for_good, .. } = self.mishaps;
        fails_at.is_some_and(|fails| at == fails || (fails_for_good && at > fails))
    }

    /// Whether so many bytes more can be stored.
    fn has_room(&self, bytes: u64) -> bool {
        self.mishaps.capacity.is_none_or(|capacity| self.platter.used() + bytes <= capacity)
    }
}

fn fault(operation: Operation, path: &str, kind: io::ErrorKind) -> DiskError {
    DiskError::io(operation, path.into(), kind.into())
}

#[derive(Debug)]
struct SimLock(Arc<AtomicBool>);

impl DiskLock for SimLock {}

impl Drop for SimLock {
    fn drop(&mut self) {
        self.0.store(false, Ordering::Relaxed);
    }
}

impl SimDisk {
    fn rename_or_remove(&self, operation: Operation, from: &str, to: Option<&str>) -> Result<(), DiskError> {
        let mut state = self.change(operation, from, 0)?;
        let failure = state.failure();
        let fails = failure.map_or(Ok(()), |failure| Err(fault(operation, from, failure.kind())));
        let is_done = match failure {
            Some(Failure::Device) => !state.random.percent(50),
            Some(Failure::NoSpace) => false,
            _ => true,
        };
        if is_done && !state.platter.rename(from, to) {
            return Err(fault(operation, from, io::ErrorKind::NotFound));
        }
        fails
    }
}

impl Disk for SimDisk {
    fn full_path(&self, path: &str) -> PathBuf {
        path.into()
    }

    fn create(&self, path: &str) -> Result<Arc<dyn DiskFile>, DiskError> {
        let mut state = self.change(Operation::Create, path, 0)?;
        if let Some(failure) = state.failure() {
            if failure == Failure::Halfway {
                state.platter.create(path);
            }
            return Err(fault(Operation::Create, path, failure.kind()));
        }
        if !state.has_room(1) {
            return Err(fault(Operation::Create, path, io::ErrorKind::StorageFull));
        }
        let file = state.platter.create(path);
        let file = file.ok_or_else(|| fault(Operation::Create, path, io::ErrorKind::AlreadyExists))?;
        Ok(Arc::new(SimFile { disk: self.clone(), path: path.to_owned(), file }))
    }

    fn open(&self, path: &str) -> Result<Arc<dyn DiskFile>, DiskError> {
        let file = self.look(Operation::Open, path)?.platter.find(path);
        let file = file.ok_or_else(|| fault(Operation::Open, path, io::ErrorKind::NotFound))?;
        Ok(Arc::new(SimFile { disk: self.clone(), path: path.to_owned(), file }))
    }

    fn list(&self, dir: &str) -> Result<Vec<Entry>, DiskError> {
        let state = self.state();
        Ok(state.platter.list(dir).map(|name| Entry { name: name.to_owned(), is_dir: false }).collect())
    }

    fn rename(&self, from: &str, to: &str) -> Result<(), DiskError> {
        self.rename_or_remove(Operation::Rename, from, Some(to))
    }

    fn remove(&self, path: &str) -> Result<(), DiskError> {
        self.rename_or_remove(Operation::Remove, path, None)
    }

    fn create_dir(&self, _: &str) -> Result<(), DiskError> {
        Ok(())
    }

    fn sync_dir(&self, dir: &str) -> Result<(), DiskError> {
        let mut state = self.change(Operation::SyncDir, dir, 0)?;
        let failure = state.failure();
        if failure.is_none_or(|failure| failure == Failure::Halfway) {
            state.platter.sync_dir(dir);
        }
        failure.map_or(Ok(()), |failure| Err(fault(Operation::SyncDir, dir, failure.kind())))
    }

    fn exists(&self, path: &str) -> Result<bool, DiskError> {
        Ok(self.state().platter.find(path).is_some())
    }

    fn free_bytes(&self) -> Result<u64, DiskError> {
        let state = self.state();
        Ok(state.mishaps.capacity.map_or(u64::MAX, |capacity| capacity.saturating_sub(state.platter.used())))
    }

    fn lock(&self, path: &str) -> Result<Box<dyn DiskLock>, DiskError> {
        if self.locked.swap(true, Ordering::Relaxed) {
            return Err(DiskError::Locked { path: path.into(), pid: None });
        }
        Ok(Box::new(SimLock(self.locked.clone())))
    }
}

#[derive(Debug)]
struct SimFile {
    disk: SimDisk,
    path: String,
    file: FileId,
}

impl SimFile {
    fn fault(&self, operation: Operation, kind: io::ErrorKind) -> DiskError {
        fault(operation, &self.path, kind)
    }
}

impl DiskFile for SimFile {
    fn write_at(&self, parts: &mut [IoSlice<'_>], position: u64) -> Result<(), DiskError> {
        let mut bytes = parts.iter().map(|part| &part[..]).collect::<Vec<_>>().concat();
        let mut state = self.disk.change(Operation::Write, &self.path, bytes.len() as u64)?;
        self.disk.host.note(format_args!("crc {:08x} at {position}", crc32fast::hash(&bytes)));
        let failure = state.failure();
        match failure {
            None => {}
            Some(Failure::Device) => {
                let short = state.random.below(bytes.len() as u64 + 1) as usize;
                bytes.truncate(short);
            }
            Some(Failure::NoSpace) => return Err(self.fault(Operation::Write, io::ErrorKind::StorageFull)),
            Some(Failure::Halfway | Failure::Look) => bytes.truncate(bytes.len() / 2),
        }
        let end = position + bytes.len() as u64;
        let more = end.saturating_sub(state.platter.bytes(self.file).len() as u64);
        if more > 0 && !state.has_room(more) {
            return Err(self.fault(Operation::Write, io::ErrorKind::StorageFull));
        }
        state.platter.write(self.file, position as usize, &bytes);
        failure.map_or(Ok(()), |failure| Err(self.fault(Operation::Write, failure.kind())))
    }

    fn read_at(&self, buffer: &mut [u8], position: u64) -> Result<(), DiskError> {
        let state = self.disk.look(Operation::Read, &self.path)?;
        let from = position as usize;
        let bytes = state.platter.bytes(self.file).get(from..from + buffer.len());
        buffer
            .copy_from_slice(bytes.ok_or_else(|| self.fault(Operation::Read, io::ErrorKind::UnexpectedEof))?);
        Ok(())
    }

    fn sync_data(&self) -> Result<(), DiskError> {
        let mut state = self.disk.change(Operation::Sync, &self.path, 0)?;
        let failure = state.failure();
        let State { random, platter, .. } = &mut *state;
        match failure {
            Some(Failure::Device | Failure::NoSpace) => {
                platter.fail_sync(self.file, &mut |end| random.below(end));
            }
            _ => platter.sync(self.file),
        }
        failure.map_or(Ok(()), |failure| Err(self.fault(Operation::Sync, failure.kind())))
    }

    fn allocate(&self, length: u64) -> Result<bool, DiskError> {
        let mut state = self.disk.change(Operation::Allocate, &self.path, length)?;
        if let Some(failure) = state.failure() {
            if failure != Failure::Device {
                state.platter.extend(self.file, length as usize / 2);
            }
            return Err(self.fault(Operation::Allocate, failure.kind()));
        }
        let more = length.saturating_sub(state.platter.bytes(self.file).len() as u64);
        if !state.has_room(more) {
            return Err(self.fault(Operation::Allocate, io::ErrorKind::StorageFull));
        }
        state.platter.extend(self.file, length as usize);
        Ok(true)
    }

    fn length(&self) -> Result<u64, DiskError> {
        Ok(self.disk.state().platter.bytes(self.file).len() as u64)
    }
}

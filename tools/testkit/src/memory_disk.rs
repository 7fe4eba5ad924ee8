//! A data directory in memory: to be damaged bit by bit, and filled with what never came from a server.
//!
//! It fails nothing and loses nothing. A fork shares bytes with its origin until one of them writes.

use std::collections::BTreeMap;
use std::io::{self, IoSlice};
use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, RwLock};

use forebay::disk::{Disk, DiskError, DiskFile, DiskLock, Entry, Operation};

/// See the module's header. Clones are the same directory.
#[derive(Clone, Debug, Default)]
pub struct MemoryDisk {
    files: Arc<Mutex<BTreeMap<String, Arc<MemoryFile>>>>,
    locked: Arc<AtomicBool>,
}

#[derive(Debug)]
struct MemoryFile {
    path: String,
    bytes: RwLock<Arc<Vec<u8>>>,
}

impl MemoryFile {
    fn new(path: &str, bytes: Arc<Vec<u8>>) -> Arc<Self> {
        Arc::new(Self { path: path.to_owned(), bytes: RwLock::new(bytes) })
    }

    fn bytes(&self) -> Arc<Vec<u8>> {
        self.bytes.read().expect("no panic").clone()
    }

    fn change(&self, change: impl FnOnce(&mut Vec<u8>)) {
        change(Arc::make_mut(&mut self.bytes.write().expect("no panic")));
    }
}

impl MemoryDisk {
    fn files(&self) -> MutexGuard<'_, BTreeMap<String, Arc<MemoryFile>>> {
        self.files.lock().expect("no panic")
    }

    /// Another directory with the same files.
    pub fn fork(&self) -> Self {
        let fork =
            |(path, file): (&String, &Arc<MemoryFile>)| (path.clone(), MemoryFile::new(path, file.bytes()));
        let files = self.files().iter().map(fork).collect();
        Self { files: Arc::new(Mutex::new(files)), locked: Arc::default() }
    }

    /// The paths of all files, in order.
    pub fn paths(&self) -> Vec<String> {
        self.files().keys().cloned().collect()
    }

    /// What is in a file; nothing if there is none.
    pub fn read(&self, path: &str) -> Vec<u8> {
        self.files().get(path).map_or_else(Vec::new, |file| file.bytes().to_vec())
    }

    /// Makes a file, in place of any that is there.
    pub fn put(&self, path: &str, bytes: Vec<u8>) {
        self.files().insert(path.to_owned(), MemoryFile::new(path, Arc::new(bytes)));
    }

    /// Removes a file, if it is there.
    pub fn delete(&self, path: &str) {
        self.files().remove(path);
    }

    /// Flips a bit of a file.
    pub fn flip(&self, path: &str, bit: usize) {
        self.files()[path].change(|bytes| bytes[bit / 8] ^= 1 << (bit % 8));
    }
}

fn fault(operation: Operation, path: &str, kind: io::ErrorKind) -> DiskError {
    DiskError::io(operation, path.into(), kind.into())
}

#[derive(Debug)]
struct MemoryLock(Arc<AtomicBool>);

impl DiskLock for MemoryLock {}

impl Drop for MemoryLock {
    fn drop(&mut self) {
        self.0.store(false, Ordering::Relaxed);
    }
}

impl Disk for MemoryDisk {
    fn full_path(&self, path: &str) -> PathBuf {
        path.into()
    }

    fn create(&self, path: &str) -> Result<Arc<dyn DiskFile>, DiskError> {
        let mut files = self.files();
        if files.contains_key(path) {
            return Err(fault(Operation::Create, path, io::ErrorKind::AlreadyExists));
        }
        let file = MemoryFile::new(path, Arc::default());
        files.insert(path.to_owned(), file.clone());
        Ok(file)
    }

    fn open(&self, path: &str) -> Result<Arc<dyn DiskFile>, DiskError> {
        match self.files().get(path) {
            Some(file) => Ok(file.clone()),
            None => Err(fault(Operation::Open, path, io::ErrorKind::NotFound)),
        }
    }

    fn list(&self, dir: &str) -> Result<Vec<Entry>, DiskError> {
        let name = |path: &String| {
            let (parent, name) = path.rsplit_once('/').unwrap_or(("", path));
            (parent == dir).then(|| Entry { name: name.to_owned(), is_dir: false })
        };
        Ok(self.files().keys().filter_map(name).collect())
    }

    fn rename(&self, from: &str, to: &str) -> Result<(), DiskError> {
        let mut files = self.files();
        let file =
            files.remove(from).ok_or_else(|| fault(Operation::Rename, from, io::ErrorKind::NotFound))?;
        files.insert(to.to_owned(), file);
        Ok(())
    }

    fn remove(&self, path: &str) -> Result<(), DiskError> {
        match self.files().remove(path) {
            Some(_) => Ok(()),
            None => Err(fault(Operation::Remove, path, io::ErrorKind::NotFound)),
        }
    }

    fn create_dir(&self, _: &str) -> Result<(), DiskError> {
        Ok(())
    }

    fn sync_dir(&self, _: &str) -> Result<(), DiskError> {
        Ok(())
    }

    fn exists(&self, path: &str) -> Result<bool, DiskError> {
        Ok(self.files().contains_key(path))
    }

    fn free_bytes(&self) -> Result<u64, DiskError> {
        Ok(u64::MAX)
    }

    fn lock(&self, path: &str) -> Result<Box<dyn DiskLock>, DiskError> {
        if self.locked.swap(true, Ordering::Relaxed) {
            return Err(DiskError::Locked { path: path.into(), pid: None });
        }
        Ok(Box::new(MemoryLock(self.locked.clone())))
    }
}

impl DiskFile for MemoryFile {
    fn write_at(&self, parts: &mut [IoSlice<'_>], position: u64) -> Result<(), DiskError> {
        let mut at = position as usize;
        self.change(|bytes| {
            for part in parts {
                grow(bytes, at + part.len());
                bytes[at..at + part.len()].copy_from_slice(part);
                at += part.len();
            }
        });
        Ok(())
    }

    fn read_at(&self, buffer: &mut [u8], position: u64) -> Result<(), DiskError> {
        let (bytes, from) = (self.bytes(), position as usize);
        let part = from.checked_add(buffer.len()).and_then(|to| bytes.get(from..to));
        let part = part.ok_or_else(|| fault(Operation::Read, &self.path, io::ErrorKind::UnexpectedEof))?;
        buffer.copy_from_slice(part);
        Ok(())
    }

    fn sync_data(&self) -> Result<(), DiskError> {
        Ok(())
    }

    fn allocate(&self, length: u64) -> Result<bool, DiskError> {
        self.change(|bytes| grow(bytes, length as usize));
        Ok(true)
    }

    fn length(&self) -> Result<u64, DiskError> {
        Ok(self.bytes().len() as u64)
    }
}

/// Makes bytes at least so long, in one copy: `resize` goes byte by byte in a quick build.
fn grow(bytes: &mut Vec<u8>, length: usize) {
    bytes.extend_from_slice(&vec![0; length.saturating_sub(bytes.len())]);
}

//! A disk that counts what goes through it to another.

use std::io::IoSlice;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use super::{Disk, DiskError, DiskFile, DiskLock, Entry, Mapped};

/// What was done; shared, and read at any time.
#[derive(Debug, Default)]
pub struct Traffic {
    bytes_written: AtomicU64,
    reads: AtomicU64,
    bytes_read: AtomicU64,
}

impl Traffic {
    /// Bytes that were to be written, by all writers.
    pub fn bytes_written(&self) -> u64 {
        self.bytes_written.load(Ordering::Relaxed)
    }

    /// Reads of a part of a file; mapping one is none.
    pub fn reads(&self) -> u64 {
        self.reads.load(Ordering::Relaxed)
    }

    /// Bytes that these asked for.
    pub fn bytes_read(&self) -> u64 {
        self.bytes_read.load(Ordering::Relaxed)
    }
}

/// See the module's header.
#[derive(Debug)]
pub struct CountedDisk {
    disk: Arc<dyn Disk>,
    traffic: Arc<Traffic>,
}

impl CountedDisk {
    pub fn new(disk: Arc<dyn Disk>, traffic: Arc<Traffic>) -> Self {
        Self { disk, traffic }
    }

    fn counted(&self, file: Arc<dyn DiskFile>) -> Arc<dyn DiskFile> {
        Arc::new(CountedFile { file, traffic: self.traffic.clone() })
    }
}

impl Disk for CountedDisk {
    fn full_path(&self, path: &str) -> PathBuf {
        self.disk.full_path(path)
    }

    fn create(&self, path: &str) -> Result<Arc<dyn DiskFile>, DiskError> {
        Ok(self.counted(self.disk.create(path)?))
    }

    fn open(&self, path: &str) -> Result<Arc<dyn DiskFile>, DiskError> {
        Ok(self.counted(self.disk.open(path)?))
    }

    fn list(&self, dir: &str) -> Result<Vec<Entry>, DiskError> {
        self.disk.list(dir)
    }

    fn rename(&self, from: &str, to: &str) -> Result<(), DiskError> {
        self.disk.rename(from, to)
    }

    fn remove(&self, path: &str) -> Result<(), DiskError> {
        self.disk.remove(path)
    }

    fn create_dir(&self, dir: &str) -> Result<(), DiskError> {
        self.disk.create_dir(dir)
    }

    fn sync_dir(&self, dir: &str) -> Result<(), DiskError> {
        self.disk.sync_dir(dir)
    }

    fn exists(&self, path: &str) -> Result<bool, DiskError> {
        self.disk.exists(path)
    }

    fn free_bytes(&self) -> Result<u64, DiskError> {
        self.disk.free_bytes()
    }

    fn lock(&self, path: &str) -> Result<Box<dyn DiskLock>, DiskError> {
        self.disk.lock(path)
    }
}

#[derive(Debug)]
struct CountedFile {
    file: Arc<dyn DiskFile>,
    traffic: Arc<Traffic>,
}

impl DiskFile for CountedFile {
    fn write_at(&self, parts: &mut [IoSlice<'_>], position: u64) -> Result<(), DiskError> {
        let bytes: u64 = parts.iter().map(|part| part.len() as u64).sum();
        self.traffic.bytes_written.fetch_add(bytes, Ordering::Relaxed);
        self.file.write_at(parts, position)
    }

    fn read_at(&self, buffer: &mut [u8], position: u64) -> Result<(), DiskError> {
        self.traffic.reads.fetch_add(1, Ordering::Relaxed);
        self.traffic.bytes_read.fetch_add(buffer.len() as u64, Ordering::Relaxed);
        self.file.read_at(buffer, position)
    }

    fn sync_data(&self) -> Result<(), DiskError> {
        self.file.sync_data()
    }

    fn allocate(&self, length: u64) -> Result<bool, DiskError> {
        self.file.allocate(length)
    }

    fn length(&self) -> Result<u64, DiskError> {
        self.file.length()
    }

    fn read_nothing_ahead(&self) {
        self.file.read_nothing_ahead();
    }

    fn will_read(&self, position: u64, length: u64) {
        self.file.will_read(position, length);
    }

    fn map(&self) -> Result<Mapped, DiskError> {
        self.file.map()
    }
}

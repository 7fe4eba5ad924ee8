//! A disk that asks before each operation that changes something, and before reads if that is wished.

use std::io::{self, IoSlice};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use crate::disk::{Disk, DiskError, DiskFile, DiskLock, Entry, Operation, RealDisk};

/// Decides what becomes of an operation on a path.
pub type Hook = dyn Fn(Operation, &Path) -> Verdict + Send + Sync;

/// What becomes of an operation.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Verdict {
    Go,
    /// Of the disk itself: there is no space left.
    Fail(io::ErrorKind),
    /// A write writes the first half of its bytes and fails; a sync or change of names takes effect and fails.
    FailHalfway,
}

#[derive(Clone)]
pub struct HookDisk {
    real: RealDisk,
    hook: Arc<Hook>,
    reads: bool,
}

impl std::fmt::Debug for HookDisk {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        self.real.fmt(f)
    }
}

impl HookDisk {
    pub fn over(
        root: &Path,
        hook: impl Fn(Operation, &Path) -> Verdict + Send + Sync + 'static,
    ) -> Arc<dyn Disk> {
        Arc::new(Self { real: RealDisk::new(root), hook: Arc::new(hook), reads: false })
    }

    /// Asks before reads of files too.
    pub fn with_reads(
        root: &Path,
        hook: impl Fn(Operation, &Path) -> Verdict + Send + Sync + 'static,
    ) -> Arc<dyn Disk> {
        Arc::new(Self { real: RealDisk::new(root), hook: Arc::new(hook), reads: true })
    }

    fn run<T>(
        &self,
        operation: Operation,
        path: &str,
        work: impl FnOnce(&RealDisk) -> Result<T, DiskError>,
    ) -> Result<T, DiskError> {
        let path = self.full_path(path);
        let fail = |kind: io::ErrorKind| DiskError::io(operation, path.clone(), kind.into());
        match (self.hook)(operation, &path) {
            Verdict::Go => work(&self.real),
            Verdict::Fail(kind) => Err(fail(kind)),
            Verdict::FailHalfway => {
                let _ = work(&self.real);
                Err(fail(io::ErrorKind::Other))
            }
        }
    }

    fn wrap(&self, path: &str, file: Arc<dyn DiskFile>) -> Arc<dyn DiskFile> {
        Arc::new(HookFile { file, path: self.full_path(path), hook: self.hook.clone(), reads: self.reads })
    }
}

impl Disk for HookDisk {
    fn full_path(&self, path: &str) -> PathBuf {
        self.real.full_path(path)
    }

    fn create(&self, path: &str) -> Result<Arc<dyn DiskFile>, DiskError> {
        let file = self.run(Operation::Create, path, |real| real.create(path))?;
        Ok(self.wrap(path, file))
    }

    fn open(&self, path: &str) -> Result<Arc<dyn DiskFile>, DiskError> {
        Ok(self.wrap(path, self.real.open(path)?))
    }

    fn list(&self, dir: &str) -> Result<Vec<Entry>, DiskError> {
        self.real.list(dir)
    }

    fn rename(&self, from: &str, to: &str) -> Result<(), DiskError> {
        self.run(Operation::Rename, from, |real| real.rename(from, to))
    }

    fn remove(&self, path: &str) -> Result<(), DiskError> {
        self.run(Operation::Remove, path, |real| real.remove(path))
    }

    fn create_dir(&self, dir: &str) -> Result<(), DiskError> {
        self.run(Operation::CreateDir, dir, |real| real.create_dir(dir))
    }

    fn sync_dir(&self, dir: &str) -> Result<(), DiskError> {
        self.run(Operation::SyncDir, dir, |real| real.sync_dir(dir))
    }

    fn exists(&self, path: &str) -> Result<bool, DiskError> {
        self.real.exists(path)
    }

    fn free_bytes(&self) -> Result<u64, DiskError> {
        match (self.hook)(Operation::Inspect, &self.full_path("")) {
            Verdict::Go => self.real.free_bytes(),
            _ => Ok(0),
        }
    }

    fn lock(&self, path: &str) -> Result<Box<dyn DiskLock>, DiskError> {
        self.run(Operation::Lock, path, |real| real.lock(path))
    }
}

struct HookFile {
    file: Arc<dyn DiskFile>,
    path: PathBuf,
    hook: Arc<Hook>,
    reads: bool,
}

impl std::fmt::Debug for HookFile {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        self.file.fmt(f)
    }
}

impl HookFile {
    fn run<T>(
        &self,
        operation: Operation,
        whole: impl FnOnce(&dyn DiskFile, bool) -> Result<T, DiskError>,
    ) -> Result<T, DiskError> {
        let fail = |kind: io::ErrorKind| DiskError::io(operation, self.path.clone(), kind.into());
        match (self.hook)(operation, &self.path) {
            Verdict::Go => whole(&*self.file, false),
            Verdict::Fail(kind) => Err(fail(kind)),
            Verdict::FailHalfway => {
                let _ = whole(&*self.file, true);
                Err(fail(io::ErrorKind::Other))
            }
        }
    }
}

impl DiskFile for HookFile {
    fn write_at(&self, parts: &mut [IoSlice<'_>], position: u64) -> Result<(), DiskError> {
        self.run(Operation::Write, |file, half| {
            if !half {
                return file.write_at(parts, position);
            }
            let mut bytes: Vec<u8> = parts.iter().flat_map(|part| part.iter().copied()).collect();
            bytes.truncate(bytes.len() / 2);
            file.write_at(&mut [IoSlice::new(&bytes)], position)
        })
    }

    fn read_at(&self, buffer: &mut [u8], position: u64) -> Result<(), DiskError> {
        if self.reads {
            return self.run(Operation::Read, |file, _| file.read_at(buffer, position));
        }
        self.file.read_at(buffer, position)
    }

    fn sync_data(&self) -> Result<(), DiskError> {
        self.run(Operation::Sync, |file, _| file.sync_data())
    }

    fn allocate(&self, length: u64) -> Result<bool, DiskError> {
        self.run(Operation::Allocate, |file, _| file.allocate(length))
    }

    fn length(&self) -> Result<u64, DiskError> {
        self.file.length()
    }
}

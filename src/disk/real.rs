//! The real disk. Files are made readable for their owner alone: they hold messages and a key.

use std::fs::{self, File, OpenOptions};
use std::io::{self, IoSlice, Read, Seek, Write};
use std::num::NonZeroU64;
use std::os::unix::fs::{FileExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use memmap2::{Advice, Mmap};
use rustix::fs::{FallocateFlags, FlockOperation};

use super::{Disk, DiskError, DiskFile, DiskLock, Entry, Mapped, Operation, read_whole};
use crate::planted;

/// Most parts that one call to the kernel takes.
const PARTS_MAX: usize = 1024;

/// A directory of the file system.
#[derive(Clone, Debug)]
pub struct RealDisk {
    root: PathBuf,
}

impl RealDisk {
    /// The data directory at `root`. Touches nothing yet.
    pub fn new(root: impl Into<PathBuf>) -> Self {
        Self { root: root.into() }
    }

    fn file(&self, path: &str, operation: Operation, options: &OpenOptions) -> OpenResult {
        let path = self.full_path(path);
        match options.open(&path) {
            Ok(file) => Ok(Arc::new(RealFile { file, path })),
            Err(error) => Err(DiskError::io(operation, path, error)),
        }
    }

    fn run<T>(
        &self,
        path: &str,
        operation: Operation,
        work: impl FnOnce(&Path) -> io::Result<T>,
    ) -> Result<T, DiskError> {
        let path = self.full_path(path);
        work(&path).map_err(|error| DiskError::io(operation, path, error))
    }
}

type OpenResult = Result<Arc<dyn DiskFile>, DiskError>;

fn private() -> OpenOptions {
    let mut options = OpenOptions::new();
    options.read(true).write(true).mode(0o600);
    options
}

impl Disk for RealDisk {
    fn full_path(&self, path: &str) -> PathBuf {
        if path.is_empty() { self.root.clone() } else { self.root.join(path) }
    }

    fn create(&self, path: &str) -> OpenResult {
        self.file(path, Operation::Create, private().create_new(true))
    }

    fn open(&self, path: &str) -> OpenResult {
        self.file(path, Operation::Open, &private())
    }

    fn list(&self, dir: &str) -> Result<Vec<Entry>, DiskError> {
        self.run(dir, Operation::List, |dir| {
            fs::read_dir(dir)?
                .map(|entry| {
                    let entry = entry?;
                    let name = entry.file_name().to_string_lossy().into_owned();
                    Ok(Entry { name, is_dir: entry.file_type()?.is_dir() })
                })
                .collect()
        })
    }

    fn rename(&self, from: &str, to: &str) -> Result<(), DiskError> {
        let to = self.full_path(to);
        self.run(from, Operation::Rename, |from| fs::rename(from, to))
    }

    fn remove(&self, path: &str) -> Result<(), DiskError> {
        self.run(path, Operation::Remove, |path| fs::remove_file(path))
    }

    fn create_dir(&self, dir: &str) -> Result<(), DiskError> {
        self.run(dir, Operation::CreateDir, |dir| fs::create_dir_all(dir))
    }

    fn sync_dir(&self, dir: &str) -> Result<(), DiskError> {
        self.run(dir, Operation::SyncDir, |dir| File::open(dir)?.sync_all())
    }

    fn exists(&self, path: &str) -> Result<bool, DiskError> {
        self.run(path, Operation::Inspect, |path| path.try_exists())
    }

    fn free_bytes(&self) -> Result<u64, DiskError> {
        let stat = self.run("", Operation::Inspect, |root| Ok(rustix::fs::statvfs(root)?))?;
        Ok(stat.f_bavail.saturating_mul(stat.f_frsize))
    }

    fn lock(&self, path: &str) -> Result<Box<dyn DiskLock>, DiskError> {
        let file =
            self.run(path, Operation::Lock, |path| private().create(true).truncate(false).open(path))?;
        let mut lock = RealLock { file };
        match rustix::fs::flock(&lock.file, FlockOperation::NonBlockingLockExclusive) {
            Ok(()) => self.run(path, Operation::Lock, |_| lock.write_pid())?,
            Err(rustix::io::Errno::WOULDBLOCK) => {
                return Err(DiskError::Locked { path: self.full_path(path), pid: lock.read_pid() });
            }
            Err(error) => return self.run(path, Operation::Lock, |_| Err(error.into())),
        }
        Ok(Box::new(lock))
    }
}

/// Unlocks when the file is closed.
#[derive(Debug)]
struct RealLock {
    file: File,
}

impl DiskLock for RealLock {}

impl RealLock {
    fn write_pid(&mut self) -> io::Result<()> {
        self.file.set_len(0)?;
        self.file.rewind()?;
        writeln!(self.file, "{}", std::process::id())
    }

    fn read_pid(&mut self) -> Option<u32> {
        let mut text = String::new();
        (&self.file).take(32).read_to_string(&mut text).ok()?;
        text.trim().parse().ok()
    }
}

#[derive(Debug)]
struct RealFile {
    file: File,
    path: PathBuf,
}

impl RealFile {
    fn error(&self, operation: Operation, error: impl Into<io::Error>) -> DiskError {
        DiskError::io(operation, self.path.clone(), error.into())
    }
}

impl DiskFile for RealFile {
    fn write_at(&self, mut parts: &mut [IoSlice<'_>], mut position: u64) -> Result<(), DiskError> {
        IoSlice::advance_slices(&mut parts, 0);
        while !parts.is_empty() {
            let some = &parts[..parts.len().min(PARTS_MAX)];
            match rustix::io::pwritev(&self.file, some, position) {
                Ok(_) if planted::bug("short-write-taken-as-whole") => return Ok(()),
                Ok(0) => return Err(self.error(Operation::Write, io::ErrorKind::WriteZero)),
                Ok(written) => {
                    IoSlice::advance_slices(&mut parts, written);
                    position += written as u64;
                }
                Err(rustix::io::Errno::INTR) => {}
                Err(error) => return Err(self.error(Operation::Write, error)),
            }
        }
        Ok(())
    }

    fn read_at(&self, buffer: &mut [u8], position: u64) -> Result<(), DiskError> {
        self.file.read_exact_at(buffer, position).map_err(|error| self.error(Operation::Read, error))
    }

    fn sync_data(&self) -> Result<(), DiskError> {
        self.file.sync_data().map_err(|error| self.error(Operation::Sync, error))
    }

    fn allocate(&self, length: u64) -> Result<bool, DiskError> {
        let error = |error| self.error(Operation::Allocate, error);
        match rustix::fs::fallocate(&self.file, FallocateFlags::empty(), 0, length) {
            Ok(()) => Ok(true),
            Err(rustix::io::Errno::OPNOTSUPP) => self.file.set_len(length).map(|()| false).map_err(error),
            Err(errno) => Err(error(errno.into())),
        }
    }

    fn length(&self) -> Result<u64, DiskError> {
        let metadata = self.file.metadata().map_err(|error| self.error(Operation::Inspect, error))?;
        Ok(metadata.len())
    }

    // A hint that is not taken changes nothing but the time that reads take.
    fn read_nothing_ahead(&self) {
        let _ = rustix::fs::fadvise(&self.file, 0, None, rustix::fs::Advice::Random);
    }

    fn will_read(&self, position: u64, length: u64) {
        let _ =
            rustix::fs::fadvise(&self.file, position, NonZeroU64::new(length), rustix::fs::Advice::WillNeed);
    }

    fn map(&self) -> Result<Mapped, DiskError> {
        match map_populated(&self.file) {
            Ok(map) => Ok(Box::new(map)),
            // A bad block, or a kernel or file system that cannot: reading says which, and is no signal.
            Err(_) => read_whole(self),
        }
    }
}

#[expect(unsafe_code, reason = "mapping a file is unsafe in itself")]
fn map_populated(file: &File) -> io::Result<Mmap> {
    // SAFETY: the bytes of a map must not change under it, nor the file be cut short. The data directory is locked
    // for this process, and the trait's contract says that files are mapped only after their last change.
    let map = unsafe { Mmap::map(file) }?;
    map.advise(Advice::PopulateRead)?;
    Ok(map)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn many_parts_are_written_and_read_back() {
        let dir = tempfile::tempdir().unwrap();
        let disk = RealDisk::new(dir.path());
        let file = disk.create("file").unwrap();
        let bytes: Vec<u8> = (0..5_000u32).map(|n| n as u8).collect();
        let mut parts: Vec<IoSlice<'_>> = bytes.chunks(2).map(IoSlice::new).collect();
        file.write_at(&mut parts, 3).unwrap();
        assert_eq!(file.length().unwrap(), 5_003);
        let mut read = vec![0; 5_000];
        file.read_at(&mut read, 3).unwrap();
        assert_eq!(read, bytes);
        let error = file.read_at(&mut read, 4).unwrap_err();
        assert_eq!(error.kind(), Some(io::ErrorKind::UnexpectedEof));
        assert!(error.to_string().contains("cannot read"), "{error}");
    }

    #[test]
    fn a_name_is_created_once() {
        let dir = tempfile::tempdir().unwrap();
        let disk = RealDisk::new(dir.path());
        assert!(disk.open("file").unwrap_err().is_not_found());
        disk.create("file").unwrap();
        assert_eq!(disk.create("file").unwrap_err().kind(), Some(io::ErrorKind::AlreadyExists));
        disk.create_dir("sub").unwrap();
        disk.create_dir("sub").unwrap();
        disk.rename("file", "sub/file").unwrap();
        assert_eq!(disk.list("").unwrap(), [Entry { name: "sub".into(), is_dir: true }]);
        assert_eq!((disk.exists("file").unwrap(), disk.exists("sub/file").unwrap()), (false, true));
    }

    #[test]
    fn a_map_is_what_was_written() {
        let dir = tempfile::tempdir().unwrap();
        let disk = RealDisk::new(dir.path());
        let file = disk.create("file").unwrap();
        assert_eq!(file.map().unwrap().len(), 0);
        let bytes: Vec<u8> = (0..10_000u32).map(|n| n as u8).collect();
        file.write_at(&mut [IoSlice::new(&bytes)], 0).unwrap();
        let map = file.map().unwrap();
        // Names may come and go; the map stays.
        disk.remove("file").unwrap();
        assert!(**map == *bytes);
    }

    #[test]
    fn a_second_lock_names_the_holder() {
        let dir = tempfile::tempdir().unwrap();
        let disk = RealDisk::new(dir.path());
        let held = disk.lock("LOCK").unwrap();
        match disk.lock("LOCK").unwrap_err() {
            DiskError::Locked { pid, .. } => assert_eq!(pid, Some(std::process::id())),
            other => panic!("{other}"),
        }
        drop(held);
        disk.lock("LOCK").unwrap();
    }
}

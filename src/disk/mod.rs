//! The narrow trait under the log: all that it ever does to a disk goes through here, so that a simulated disk can
//! crash and fail in its place.
//!
//! Paths are relative to the data directory, with `/` between names; the empty path is the data directory itself.
//! Files are preallocated and written in place: their length is not part of the durability contract.
//!
//! What is assumed of a disk: `sync_data` makes earlier writes to that file durable, `sync_dir` the names in that
//! directory; before that, any part of an unsynced write may survive a crash, in units of 512 bytes. A rename is
//! atomic. After a failed `write_at` or `sync_data` nothing is known of what is durable.

mod counted;
mod real;

use std::fmt;
use std::io::{self, IoSlice};
use std::ops::Deref;
use std::path::PathBuf;
use std::sync::Arc;

pub use counted::{CountedDisk, Traffic};
pub use real::RealDisk;

/// A data directory.
pub trait Disk: Send + Sync + fmt::Debug {
    /// `path` as people know it, for messages.
    fn full_path(&self, path: &str) -> PathBuf;
    /// Makes a new file, for reading and writing; an error if the name is taken.
    fn create(&self, path: &str) -> Result<Arc<dyn DiskFile>, DiskError>;
    /// Opens an existing file, for reading and writing.
    fn open(&self, path: &str) -> Result<Arc<dyn DiskFile>, DiskError>;
    /// What is in a directory, in no order.
    fn list(&self, dir: &str) -> Result<Vec<Entry>, DiskError>;
    /// Gives a file another name, replacing what had it.
    fn rename(&self, from: &str, to: &str) -> Result<(), DiskError>;
    /// Removes a file.
    fn remove(&self, path: &str) -> Result<(), DiskError>;
    /// Makes a directory unless it is there; the data directory with its parents.
    fn create_dir(&self, dir: &str) -> Result<(), DiskError>;
    /// Makes the names in a directory durable.
    fn sync_dir(&self, dir: &str) -> Result<(), DiskError>;
    fn exists(&self, path: &str) -> Result<bool, DiskError>;
    /// Bytes that may still be stored.
    fn free_bytes(&self) -> Result<u64, DiskError>;
    /// Takes the lock on the file `path` for this process, without waiting, and writes the process id into it.
    fn lock(&self, path: &str) -> Result<Box<dyn DiskLock>, DiskError>;
}

/// An open file; shared by readers and one writer.
pub trait DiskFile: Send + Sync + fmt::Debug {
    /// Writes all of `parts`, one behind the other, from `position` on. May consume `parts`.
    fn write_at(&self, parts: &mut [IoSlice<'_>], position: u64) -> Result<(), DiskError>;
    /// Fills all of `buffer` from `position` on.
    fn read_at(&self, buffer: &mut [u8], position: u64) -> Result<(), DiskError>;
    /// Makes what was written durable.
    fn sync_data(&self) -> Result<(), DiskError>;
    /// Makes a file so many bytes long, which read as zeroes where nothing was written. Whether their space is reserved:
    /// not every file system can, and without that any write may find the disk full.
    fn allocate(&self, length: u64) -> Result<bool, DiskError>;
    /// The file's length in bytes.
    fn length(&self) -> Result<u64, DiskError>;
    /// From now on the system reads nothing ahead of what is asked for. A hint.
    fn read_nothing_ahead(&self) {}
    /// Begins to read these bytes into the system's cache. A hint.
    fn will_read(&self, _position: u64, _length: u64) {}
    /// The whole file in memory, read when this returns. For files that are never written or cut short again. A disk
    /// may map it: then pages that were dropped meanwhile are read again when they are touched.
    fn map(&self) -> Result<Mapped, DiskError> {
        read_whole(self)
    }
}

fn read_whole<F: DiskFile + ?Sized>(file: &F) -> Result<Mapped, DiskError> {
    let mut bytes = vec![0; usize::try_from(file.length()?).expect("a file fits the address space")];
    file.read_at(&mut bytes, 0)?;
    Ok(Box::new(bytes))
}

/// The bytes of a file.
pub type Mapped = Box<dyn Deref<Target = [u8]> + Send + Sync>;

/// Holds the lock until dropped.
pub trait DiskLock: Send + Sync + fmt::Debug {}

/// A name in a directory; bytes that are not UTF-8 are replaced.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Entry {
    pub name: String,
    pub is_dir: bool,
}

/// What was being done.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Operation {
    Create,
    Open,
    List,
    Rename,
    Remove,
    CreateDir,
    SyncDir,
    Inspect,
    Lock,
    Write,
    Read,
    Sync,
    Allocate,
}

impl fmt::Display for Operation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Operation::Create => "create",
            Operation::Open => "open",
            Operation::List => "list",
            Operation::Rename => "rename",
            Operation::Remove => "remove",
            Operation::CreateDir => "create directory",
            Operation::SyncDir => "sync directory",
            Operation::Inspect => "inspect",
            Operation::Lock => "lock",
            Operation::Write => "write",
            Operation::Read => "read",
            Operation::Sync => "sync",
            Operation::Allocate => "allocate space for",
        })
    }
}

/// A disk operation that failed.
#[derive(Clone, Debug, thiserror::Error)]
pub enum DiskError {
    #[error("cannot {operation} {}: {source}", path.display())]
    Io { operation: Operation, path: PathBuf, source: Arc<io::Error> },
    #[error("{} is locked by {}", path.display(), holder(*pid))]
    Locked { path: PathBuf, pid: Option<u32> },
}

fn holder(pid: Option<u32>) -> String {
    pid.map_or_else(|| "another process".to_owned(), |pid| format!("process {pid}"))
}

impl DiskError {
    pub fn io(operation: Operation, path: PathBuf, source: io::Error) -> Self {
        DiskError::Io { operation, path, source: Arc::new(source) }
    }

    /// The kind of I/O error, if it is one.
    pub fn kind(&self) -> Option<io::ErrorKind> {
        match self {
            DiskError::Io { source, .. } => Some(source.kind()),
            DiskError::Locked { .. } => None,
        }
    }

    pub fn is_not_found(&self) -> bool {
        self.kind() == Some(io::ErrorKind::NotFound)
    }

    /// Whether the disk, or this user's share of it, is full.
    pub fn is_no_space(&self) -> bool {
        matches!(self.kind(), Some(io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded))
    }
}

/// The path of `name` in `dir`.
pub fn join(dir: &str, name: &str) -> String {
    if dir.is_empty() { name.to_owned() } else { format!("{dir}/{name}") }
}

//! The data directory: whose it is, and who may write into it.
//!
//! ```text
//! LOCK         held while a server runs; the text is its process id
//! IDENTITY     layout below
//! log/         segments and their index files,       packed/      rewritten segments, their index files
//!              files for new ones
//! checkpoint/  where starts begin to read        quarantine/  bytes that could not be taken as they were; never deleted
//! ```
//! `IDENTITY`, 80 bytes, little-endian: magic `FOREBAYI` | format version u32 | checksum u32 (CRC-32/IEEE over all
//! other bytes) | cluster uid, 16 bytes | MAC key, 32 bytes | reserved, 16 bytes of 0.
//!
//! A first start writes `IDENTITY.new`, then the first segment with its first frame, and at last renames it to
//! `IDENTITY`. So a start that finds `IDENTITY` finds a log too, or data was lost; and one that finds `IDENTITY.new`
//! alone knows that nothing was ever acknowledged, and begins again. Nothing is written into a directory that holds
//! other things.

use std::io::{self, IoSlice};
use std::path::PathBuf;
use std::sync::Arc;

use super::error::LogError;
use super::segment;
use crate::disk::{Disk, DiskError, DiskLock, Entry};
use crate::host::Host;
use crate::ids::{SegmentNumber, Uid};
use crate::record::wire::{Put, Reader, WireError};

const LOCK: &str = "LOCK";
/// Path of the identity file.
pub const IDENTITY: &str = "IDENTITY";
const IDENTITY_NEW: &str = "IDENTITY.new";
const DIRS: [&str; 4] = ["log", "packed", "checkpoint", "quarantine"];
const LOST_AND_FOUND: &str = "lost+found";

const MAGIC: [u8; 8] = *b"FOREBAYI";
const CRC_AT: usize = 12;
/// Bytes of the identity file.
pub const IDENTITY_BYTES: usize = 80;
/// The newest version of the identity file that this build reads, and the one it writes.
pub const IDENTITY_VERSION: u32 = 1;

/// Why a directory cannot be a data directory, or not now.
#[derive(Clone, Debug, thiserror::Error)]
pub enum DirectoryError {
    #[error("{} is not a directory; give the path of a data directory", path.display())]
    NotADirectory { path: PathBuf },
    #[error("the data directory {} cannot be written: {source}; check owner, mode and mount", path.display())]
    NotWritable { path: PathBuf, source: Arc<io::Error> },
    #[error(
        "{} is not a data directory of Forebay: it holds {entry:?}; give an empty directory, nothing was written",
        path.display()
    )]
    Foreign { path: PathBuf, entry: String },
    #[error(
        "{} has format version {found}; this build reads up to {supported}: use a newer build", path.display()
    )]
    Newer { path: PathBuf, found: u32, supported: u32 },
    #[error("data loss: {} is damaged; restore it from a backup", path.display())]
    IdentityDamaged { path: PathBuf },
    #[error("data loss: {} is missing, but the log is there; restore it from a backup", path.display())]
    IdentityMissing { path: PathBuf },
    #[error(
        "data loss: {} is missing, but the data directory has been in use; restore it from a backup",
        path.display()
    )]
    LogMissing { path: PathBuf },
    #[error("{} is not a data directory of Forebay: it has neither an identity nor a log", path.display())]
    NotOurs { path: PathBuf },
    #[error("the data directory {} is in use by {}; stop that server first", path.display(), holder(*pid))]
    Locked { path: PathBuf, pid: Option<u32> },
}

fn holder(pid: Option<u32>) -> String {
    pid.map_or_else(|| "another process".to_owned(), |pid| format!("process {pid}"))
}

impl DirectoryError {
    /// Whether stored data is missing or damaged.
    pub fn is_data_loss(&self) -> bool {
        matches!(self, Self::IdentityDamaged { .. } | Self::IdentityMissing { .. } | Self::LogMissing { .. })
    }
}

/// What makes this data directory itself.
#[derive(Clone, PartialEq, Eq)]
pub struct Identity {
    pub cluster: Uid,
    /// Secret: signs what clients hand back to the server.
    pub mac_key: [u8; 32],
}

impl std::fmt::Debug for Identity {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Identity").field("cluster", &self.cluster).finish_non_exhaustive()
    }
}

impl Identity {
    fn random(host: &dyn Host) -> Self {
        Self { cluster: Uid(host.random()), mac_key: host.random() }
    }

    pub(super) fn encode(&self) -> Vec<u8> {
        let mut out = Vec::with_capacity(IDENTITY_BYTES);
        out.extend_from_slice(&MAGIC);
        out.put_u32(IDENTITY_VERSION);
        out.put_u32(0);
        out.extend_from_slice(&self.cluster.0);
        out.extend_from_slice(&self.mac_key);
        out.resize(IDENTITY_BYTES, 0);
        let crc = checksum(&out);
        out[CRC_AT..CRC_AT + 4].copy_from_slice(&crc.to_le_bytes());
        out
    }

    pub(super) fn decode(bytes: &[u8]) -> Result<Self, IdentityFault> {
        let mut reader = Reader::new(bytes);
        let magic = reader.array()?;
        let version = reader.u32()?;
        if magic != MAGIC || reader.u32()? != checksum(bytes) {
            return Err(IdentityFault::Damaged);
        }
        if version > IDENTITY_VERSION {
            return Err(IdentityFault::Newer(version));
        }
        Ok(Self { cluster: Uid(reader.array()?), mac_key: reader.array()? })
    }
}

#[derive(Debug, PartialEq, Eq)]
pub(super) enum IdentityFault {
    Damaged,
    Newer(u32),
}

impl From<WireError> for IdentityFault {
    fn from(_: WireError) -> Self {
        IdentityFault::Damaged
    }
}

fn checksum(bytes: &[u8]) -> u32 {
    let mut hasher = crc32fast::Hasher::new();
    hasher.update(&bytes[..CRC_AT]);
    hasher.update(&bytes[CRC_AT + 4..]);
    hasher.finalize()
}

/// A data directory that this process holds.
#[derive(Debug)]
pub struct Directory {
    pub identity: Identity,
    /// Nothing was ever stored: a first segment must be made, then [`finish_first_start`] called.
    pub fresh: bool,
    _lock: Box<dyn DiskLock>,
}

/// Takes the data directory, and lays it out if it is new.
pub fn take(disk: &dyn Disk, host: &dyn Host) -> Result<Directory, LogError> {
    disk.create_dir("").map_err(|error| classify(disk, error))?;
    let listed = disk.list("").map_err(|error| classify(disk, error))?;
    refuse_foreign(disk, listed.iter().map(|entry| entry.name.as_str()))?;
    let lock = disk.lock(LOCK).map_err(|error| classify(disk, error))?;
    // What was listed before the lock was held may have been another's first start.
    if disk.exists(IDENTITY)? {
        let identity = read_identity(disk)?;
        lay_out(disk)?;
        return Ok(Directory { identity, fresh: false, _lock: lock });
    }
    lay_out(disk)?;
    clear_unfinished(disk)?;
    let identity = Identity::random(host);
    write_new(disk, &identity)?;
    Ok(Directory { identity, fresh: true, _lock: lock })
}

/// A data directory that this process holds in order to look at it.
#[derive(Debug)]
pub struct Examined {
    /// What its identity is, or what is wrong with it.
    pub identity: Result<Identity, DirectoryError>,
    _lock: Box<dyn DiskLock>,
}

/// Takes a data directory that is there already, and changes nothing in it but the text of its lock.
pub fn examine(disk: &dyn Disk) -> Result<Examined, LogError> {
    disk.list("").map_err(|error| classify(disk, error))?;
    let segments = list_if_there(disk, "log")?;
    let has_log = segments.iter().any(|entry| segment::parse_name(&entry.name).is_some());
    let identified = disk.exists(IDENTITY)?;
    if !identified && !has_log {
        return Err(DirectoryError::NotOurs { path: disk.full_path("") }.into());
    }
    let lock = disk.lock(LOCK).map_err(|error| classify(disk, error))?;
    let identity = match read_identity(disk) {
        _ if !identified => Err(DirectoryError::IdentityMissing { path: disk.full_path(IDENTITY) }),
        Ok(identity) => Ok(identity),
        Err(LogError::Directory(fault)) if fault.is_data_loss() => Err(fault),
        Err(other) => return Err(other),
    };
    Ok(Examined { identity, _lock: lock })
}

/// What is in one of the directories; nothing if it is missing.
pub fn list_if_there(disk: &dyn Disk, dir: &str) -> Result<Vec<Entry>, LogError> {
    match disk.list(dir) {
        Err(error) if error.is_not_found() => Ok(Vec::new()),
        listed => Ok(listed?),
    }
}

/// Says that the first segment and its first frame are durable: from now on there is a log.
pub fn finish_first_start(disk: &dyn Disk) -> Result<(), LogError> {
    disk.rename(IDENTITY_NEW, IDENTITY)?;
    Ok(disk.sync_dir("")?)
}

fn refuse_foreign<'a>(disk: &dyn Disk, names: impl Iterator<Item = &'a str>) -> Result<(), DirectoryError> {
    let known = [LOCK, IDENTITY, IDENTITY_NEW, LOST_AND_FOUND];
    let names: Vec<&str> = names.collect();
    // Directories called `log` are common; they count as ours only beside a file of ours.
    let ours = names.is_empty() || names.iter().any(|name| known[..3].contains(name));
    let foreign = names.into_iter().find(|name| !(known.contains(name) || ours && DIRS.contains(name)));
    match foreign {
        // A directory in use may hold what its owner put there.
        Some(_) if disk.exists(IDENTITY).unwrap_or(false) => Ok(()),
        Some(entry) => Err(DirectoryError::Foreign { path: disk.full_path(""), entry: entry.to_owned() }),
        None => Ok(()),
    }
}

fn classify(disk: &dyn Disk, error: DiskError) -> LogError {
    let path = disk.full_path("");
    match &error {
        DiskError::Locked { pid, .. } => DirectoryError::Locked { path, pid: *pid }.into(),
        DiskError::Io { source, .. } => match source.kind() {
            io::ErrorKind::NotADirectory | io::ErrorKind::AlreadyExists => {
                DirectoryError::NotADirectory { path }.into()
            }
            io::ErrorKind::PermissionDenied | io::ErrorKind::ReadOnlyFilesystem => {
                DirectoryError::NotWritable { path, source: source.clone() }.into()
            }
            _ => error.into(),
        },
    }
}

fn lay_out(disk: &dyn Disk) -> Result<(), LogError> {
    for dir in DIRS {
        disk.create_dir(dir).map_err(|error| classify(disk, error))?;
    }
    Ok(disk.sync_dir("")?)
}

fn read_identity(disk: &dyn Disk) -> Result<Identity, LogError> {
    let file = disk.open(IDENTITY).map_err(|error| classify(disk, error))?;
    let path = disk.full_path(IDENTITY);
    let length = file.length()?;
    // A newer version may be longer; its first bytes still say so. Its checksum covers all of it.
    let mut bytes = vec![0; length.min(1 << 16) as usize];
    file.read_at(&mut bytes, 0)?;
    if bytes.len() < IDENTITY_BYTES {
        return Err(DirectoryError::IdentityDamaged { path }.into());
    }
    Identity::decode(&bytes).map_err(|fault| match fault {
        IdentityFault::Damaged => DirectoryError::IdentityDamaged { path }.into(),
        IdentityFault::Newer(found) => {
            DirectoryError::Newer { path, found, supported: IDENTITY_VERSION }.into()
        }
    })
}

/// Removes what a first start left that was not finished, and nothing else.
fn clear_unfinished(disk: &dyn Disk) -> Result<(), LogError> {
    let unfinished = disk.exists(IDENTITY_NEW)?;
    for entry in disk.list("log")? {
        let first = segment::parse_name(&entry.name) == Some(SegmentNumber(1));
        if !(segment::is_temp_name(&entry.name) || unfinished && first) {
            return Err(DirectoryError::IdentityMissing { path: disk.full_path(IDENTITY) }.into());
        }
        disk.remove(&format!("log/{}", entry.name))?;
    }
    disk.sync_dir("log")?;
    if unfinished {
        disk.remove(IDENTITY_NEW)?;
    }
    Ok(())
}

fn write_new(disk: &dyn Disk, identity: &Identity) -> Result<(), LogError> {
    let file = disk.create(IDENTITY_NEW)?;
    file.write_at(&mut [IoSlice::new(&identity.encode())], 0)?;
    file.sync_data()?;
    Ok(disk.sync_dir("")?)
}

/// `LogMissing` for a directory whose first segment is not there.
pub fn log_missing(disk: &dyn Disk, segment: SegmentNumber) -> LogError {
    DirectoryError::LogMissing { path: disk.full_path(&segment::path(segment)) }.into()
}

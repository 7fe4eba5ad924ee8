//! The disk itself: one file, served by FUSE, that keeps a log of what is written and fails as it is told to.
//!
//! A loop device on the file makes it a block device. The file is opened for direct I/O, so no page cache lies between;
//! the loop device passes each flush on as an fsync. One thread serves, so that the log's order is the order in which
//! requests were done, and an entry is in the log before its request is answered.

use std::path::Path;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::{Duration, SystemTime};

use fuser::{
    BackgroundSession, Config, Errno, FileAttr, FileHandle, FileType, Filesystem, FopenFlags, INodeNo,
    LockOwner, MountOption, OpenFlags, ReplyAttr, ReplyData, ReplyEmpty, ReplyOpen, ReplyWrite, Request,
    WriteFlags,
};

use super::blocks::Blocks;
use super::write_log::{Entry, WriteLog};

/// How long the kernel may keep what it knows of the file: nothing about it changes.
const ATTRIBUTES_HOLD: Duration = Duration::from_secs(3600);

/// Kinds of requests.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Call {
    Read,
    Write,
    Flush,
}

/// What to do to requests from now on.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Fault {
    #[default]
    None,
    /// Requests of this kind fail with EIO: after so many others, and so many of them.
    Fail { call: Call, after: u64, times: u64 },
    /// After so many more writes and flushes the power is gone: nothing is done any more, everything fails.
    Cut { after: u64 },
    /// Each takes so much longer.
    Slow { by: Duration },
}

/// A disk; clones are the same one.
#[derive(Clone, Debug)]
pub struct Device {
    inner: Arc<Mutex<Inner>>,
    /// Entries of the log so far.
    position: Arc<AtomicU64>,
}

#[derive(Debug)]
struct Inner {
    disk: Blocks,
    log: WriteLog,
    fault: Fault,
    /// Requests that failed by a fault.
    hits: u64,
    dead: bool,
}

impl Device {
    /// A disk with this content, healthy, with an empty log.
    pub fn new(disk: Blocks) -> Self {
        let log = WriteLog::new(disk.clone());
        let inner = Inner { disk, log, fault: Fault::None, hits: 0, dead: false };
        Self { inner: Arc::new(Mutex::new(inner)), position: Arc::default() }
    }

    /// Serves it as the file `path`, which is there; until the session is dropped.
    pub fn serve(&self, path: &Path) -> std::io::Result<BackgroundSession> {
        let mut config = Config::default();
        config.mount_options = vec![MountOption::FSName("forebay-torture".to_owned())];
        fuser::spawn_mount(self.clone(), path, &config)
    }

    fn lock(&self) -> MutexGuard<'_, Inner> {
        self.inner.lock().expect("nobody panics with the disk in hand")
    }

    pub fn set_fault(&self, fault: Fault) {
        let mut inner = self.lock();
        (inner.fault, inner.hits) = (fault, 0);
    }

    /// Requests that have failed by the present fault.
    pub fn hits(&self) -> u64 {
        self.lock().hits
    }

    /// Its size.
    pub fn bytes(&self) -> u64 {
        self.lock().disk.len()
    }

    /// Cuts the power now, if it is not gone already.
    pub fn cut(&self) {
        self.lock().dead = true;
    }

    pub fn is_dead(&self) -> bool {
        self.lock().dead
    }

    /// Where the log stands, for whoever notes when things happened.
    pub fn position(&self) -> Arc<AtomicU64> {
        self.position.clone()
    }

    pub fn log(&self) -> WriteLog {
        self.lock().log.clone()
    }

    /// Does a write or a flush, if no fault is in its way.
    fn change(&self, call: Call, entry: Entry) -> Result<(), Errno> {
        let mut inner = self.lock();
        inner.admit(call)?;
        if let Entry::Write { at, bytes } = &entry {
            if at + bytes.len() as u64 > inner.disk.len() {
                return Err(Errno::ENOSPC);
            }
            inner.disk.write(*at, bytes);
        }
        inner.log.push(entry);
        self.position.store(inner.log.len() as u64, Ordering::SeqCst);
        Ok(())
    }

    fn delay(&self) {
        let fault = self.lock().fault;
        if let Fault::Slow { by } = fault {
            std::thread::sleep(by);
        }
    }

    fn attributes(&self) -> FileAttr {
        let size = self.lock().disk.len();
        let time = SystemTime::UNIX_EPOCH;
        FileAttr {
            ino: INodeNo::ROOT,
            size,
            blocks: size / 512,
            atime: time,
            mtime: time,
            ctime: time,
            crtime: time,
            kind: FileType::RegularFile,
            perm: 0o600,
            nlink: 1,
            uid: 0,
            gid: 0,
            rdev: 0,
            blksize: 4096,
            flags: 0,
        }
    }
}

impl Inner {
    /// Counts a request, and says whether it may be done.
    fn admit(&mut self, call: Call) -> Result<(), Errno> {
        match &mut self.fault {
            Fault::Fail { call: failing, after, times } if *failing == call => {
                if *after > 0 {
                    *after -= 1;
                } else if *times > 0 {
                    *times -= 1;
                    self.hits += 1;
                    return Err(Errno::EIO);
                }
            }
            Fault::Cut { after } if call != Call::Read => match after.checked_sub(1) {
                Some(left) => *after = left,
                None => {
                    self.hits += u64::from(!self.dead);
                    self.dead = true;
                }
            },
            Fault::Slow { .. } => self.hits += 1,
            _ => {}
        }
        if self.dead { Err(Errno::EIO) } else { Ok(()) }
    }
}

impl Filesystem for Device {
    fn getattr(&self, _: &Request, _: INodeNo, _: Option<FileHandle>, reply: ReplyAttr) {
        reply.attr(&ATTRIBUTES_HOLD, &self.attributes());
    }

    fn open(&self, _: &Request, _: INodeNo, _: OpenFlags, reply: ReplyOpen) {
        reply.opened(FileHandle(0), FopenFlags::FOPEN_DIRECT_IO);
    }

    fn read(
        &self,
        _: &Request,
        _: INodeNo,
        _: FileHandle,
        offset: u64,
        size: u32,
        _: OpenFlags,
        _: Option<LockOwner>,
        reply: ReplyData,
    ) {
        self.delay();
        let mut inner = self.lock();
        match inner.admit(Call::Read) {
            Ok(()) => reply.data(&inner.disk.read(offset, size as usize)),
            Err(error) => reply.error(error),
        }
    }

    fn write(
        &self,
        _: &Request,
        _: INodeNo,
        _: FileHandle,
        at: u64,
        bytes: &[u8],
        _: WriteFlags,
        _: OpenFlags,
        _: Option<LockOwner>,
        reply: ReplyWrite,
    ) {
        self.delay();
        match self.change(Call::Write, Entry::Write { at, bytes: bytes.into() }) {
            Ok(()) => reply.written(bytes.len() as u32),
            Err(error) => reply.error(error),
        }
    }

    fn fsync(&self, _: &Request, _: INodeNo, _: FileHandle, _: bool, reply: ReplyEmpty) {
        self.delay();
        match self.change(Call::Flush, Entry::Flush) {
            Ok(()) => reply.ok(),
            Err(error) => reply.error(error),
        }
    }

    /// Of closing, not of the disk.
    fn flush(&self, _: &Request, _: INodeNo, _: FileHandle, _: LockOwner, reply: ReplyEmpty) {
        reply.ok();
    }
}

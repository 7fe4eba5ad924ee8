//! A file system on a disk of our own, which is cut off, fails or lags as it is told to ([`device`]), and whose every
//! write is known ([`write_log`]).
//!
//! ```text
//!   server ─▶ ext4 or xfs ─▶ loop device ─▶ one FUSE file ─▶ Device: faults, log, content in memory
//! ```

pub mod blocks;
pub mod device;
pub mod write_log;

use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use fuser::BackgroundSession;
use rustix::fs::FallocateFlags;
use rustix::io::Errno;
use tempfile::TempDir;

use blocks::Blocks;
use device::Device;

use crate::shell::{self, command, output};

/// How long the kernel may take to let a block device go.
const DETACH_WITHIN: Duration = Duration::from_secs(10);
/// A disk with less space than this is full.
const BALLAST_PART_MIN: u64 = 4_096;

/// Which file system.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    Ext4,
    Xfs,
}

impl Kind {
    /// What the smallest useful one takes: mkfs.xfs makes none below 300 MiB.
    fn bytes(self) -> u64 {
        match self {
            Self::Ext4 => 96 << 20,
            Self::Xfs => 320 << 20,
        }
    }

    /// What its disk writes as a whole. xfs does not expect its blocks to be torn: it replays no log over one that
    /// says by its head that it is newer.
    pub fn sector_bytes(self) -> usize {
        match self {
            Self::Ext4 => 512,
            Self::Xfs => 4_096,
        }
    }

    pub fn name(self) -> &'static str {
        match self {
            Self::Ext4 => "ext4",
            Self::Xfs => "xfs",
        }
    }

    /// The content of a disk with an empty file system.
    pub fn format(self) -> Result<Blocks, String> {
        let disk = Attached::new(Device::new(Blocks::blank(self.bytes())))?;
        match self {
            Self::Ext4 => {
                let lazy = "nodiscard,lazy_itable_init=0,lazy_journal_init=0";
                command("mkfs.ext4", &["-q", "-E", lazy, &disk.node])?;
            }
            Self::Xfs => {
                let sectors = format!("size={}", self.sector_bytes());
                command("mkfs.xfs", &["-q", "-K", "-s", &sectors, &disk.node])?
            }
        }
        let device = disk.device.clone();
        drop(disk);
        let log = device.log();
        let random = &mut forebay_testkit::payload::Random::new(0);
        Ok(log.cut(log.len(), self.sector_bytes(), write_log::Fate::Kept, random).0)
    }
}

/// Why such disks cannot be made here; installs the tools that are missing.
pub fn unavailable(kind: Kind) -> Option<String> {
    if !rustix::process::geteuid().is_root() {
        return Some("loop devices and mounts need root".to_owned());
    }
    if !Path::new("/dev/fuse").exists() || !Path::new("/dev/loop-control").exists() {
        return Some("the kernel has no FUSE or no loop devices".to_owned());
    }
    let (program, package) = match kind {
        Kind::Ext4 => ("mkfs.ext4", "e2fsprogs"),
        Kind::Xfs => ("mkfs.xfs", "xfsprogs"),
    };
    shell::have(program, package).err()
}

/// A disk that the kernel has as a block device; detached when dropped.
struct Attached {
    device: Device,
    node: String,
    session: Option<BackgroundSession>,
    dir: TempDir,
}

impl Attached {
    fn new(device: Device) -> Result<Self, String> {
        let dir = tempfile::tempdir().map_err(|error| error.to_string())?;
        let file = dir.path().join("disk");
        std::fs::write(&file, "").map_err(|error| error.to_string())?;
        let session = device.serve(&file).map_err(|error| format!("FUSE: {error}"))?;
        let mut attached = Self { device, node: String::new(), session: Some(session), dir };
        attached.node = output("losetup", &["--show", "-f", &file.display().to_string()])?;
        Ok(attached)
    }
}

impl Attached {
    /// Waits until the kernel has let go of the file: it does so when the last user of the block device is gone.
    fn detach(&self) -> Result<(), String> {
        let Some(name) = self.node.strip_prefix("/dev/") else { return Ok(()) };
        command("losetup", &["-d", &self.node])?;
        let backing = PathBuf::from(format!("/sys/block/{name}/loop/backing_file"));
        let start = Instant::now();
        while backing.exists() {
            if start.elapsed() > DETACH_WITHIN {
                return Err(format!("{} is still in use", self.node));
            }
            std::thread::sleep(Duration::from_millis(2));
        }
        Ok(())
    }
}

impl Drop for Attached {
    fn drop(&mut self) {
        let detached = self.detach();
        let ended = self.session.take().map(BackgroundSession::umount_and_join);
        if let Err(why) = detached.and(ended.unwrap_or(Ok(())).map_err(|error| format!("FUSE: {error}"))) {
            eprintln!("{why}");
        }
    }
}

/// A mounted disk; unmounted when dropped.
pub struct Mounted {
    at: PathBuf,
    disk: Attached,
}

impl Mounted {
    /// Mounts a file system; the kernel replays its journal, if it has to.
    pub fn new(device: Device, kind: Kind) -> Result<Self, String> {
        let disk = Attached::new(device)?;
        let at = disk.dir.path().join("at");
        std::fs::create_dir(&at).map_err(|error| error.to_string())?;
        // A second mount of the same xfs is refused otherwise, and every image is of the same one.
        let options = if kind == Kind::Xfs { "nouuid" } else { "errors=continue" };
        command("mount", &["-t", kind.name(), "-o", options, &disk.node, &at.display().to_string()])?;
        Ok(Self { at, disk })
    }

    pub fn device(&self) -> &Device {
        &self.disk.device
    }

    /// Takes all space that is left, until it is dropped.
    pub fn fill(&self) -> Result<Ballast, String> {
        let path = self.at.join("ballast");
        let told = |error: std::io::Error| format!("{}: {error}", path.display());
        let file = std::fs::File::create(&path).map_err(told)?;
        let (mut filled, mut part) = (0, self.disk.device.bytes().next_power_of_two());
        while part >= BALLAST_PART_MIN {
            match rustix::fs::fallocate(&file, FallocateFlags::empty(), filled, part) {
                Ok(()) => filled += part,
                Err(Errno::NOSPC) => part /= 2,
                Err(error) => return Err(told(error.into())),
            }
        }
        Ok(Ballast { path })
    }

    /// Where a server's data goes.
    pub fn data(&self) -> PathBuf {
        self.at.join("data")
    }
}

/// A file that takes the space of others.
pub struct Ballast {
    path: PathBuf,
}

impl Drop for Ballast {
    fn drop(&mut self) {
        if let Err(error) = std::fs::remove_file(&self.path) {
            eprintln!("{}: {error}", self.path.display());
        }
    }
}

impl Drop for Mounted {
    fn drop(&mut self) {
        if let Err(why) = command("umount", &[&self.at.display().to_string()]) {
            eprintln!("{why}");
        }
    }
}

//! A control group whose memory the kernel limits, of either version of control groups.
//!
//! All memory counts that the kernel charges to its processes: their own, sockets (in version 2), and the pages of
//! files that they read and write, which it takes back when they are too many.

use std::fs;
use std::path::{Path, PathBuf};

const ROOT: &str = "/sys/fs/cgroup";

/// See the module's header. Removed when dropped; its processes must have ended.
pub struct Cgroup {
    at: PathBuf,
    files: Files,
}

/// How the files are called.
#[derive(Clone, Copy)]
struct Files {
    limit: &'static str,
    peak: &'static str,
    /// Has a line `oom_kill COUNT`.
    events: &'static str,
    /// In `memory.stat`, what is not of files.
    anonymous: &'static str,
}

const V1: Files = Files {
    limit: "memory.limit_in_bytes",
    peak: "memory.max_usage_in_bytes",
    events: "memory.oom_control",
    anonymous: "rss",
};
const V2: Files =
    Files { limit: "memory.max", peak: "memory.peak", events: "memory.events", anonymous: "anon" };

impl Cgroup {
    /// A group with this limit; the error says why there can be none.
    pub fn make(limit_bytes: u64) -> Result<Self, String> {
        let v1 = Path::new(ROOT).join("memory");
        let (root, files) = if v1.join(V1.limit).exists() { (v1, V1) } else { (PathBuf::from(ROOT), V2) };
        let at = root.join(format!("forebay-memory-limit-{}", std::process::id()));
        fs::create_dir(&at).map_err(|error| format!("cannot make {}: {error}", at.display()))?;
        let group = Self { at, files };
        let path = group.at.join(files.limit);
        // In version 2 the file is missing unless the controller is given to the root's children.
        let limited = fs::OpenOptions::new().write(true).open(&path);
        limited
            .and_then(|mut file| std::io::Write::write_all(&mut file, limit_bytes.to_string().as_bytes()))
            .map_err(|error| format!("cannot limit memory by {}: {error}", path.display()))?;
        Ok(group)
    }

    /// A command line that has the one behind it run in the group.
    pub fn wrapper(&self) -> Vec<String> {
        let enter = format!("echo $$ > {} && exec \"$@\"", self.at.join("cgroup.procs").display());
        ["sh", "-c", &enter, "sh"].map(str::to_owned).to_vec()
    }

    /// The most that was charged at one time, bytes.
    pub fn peak_bytes(&self) -> Result<u64, String> {
        let text = self.read(self.files.peak)?;
        text.trim().parse().map_err(|_| format!("{} is {text:?}", self.files.peak))
    }

    /// What is charged now and is not of files, bytes.
    pub fn anonymous_bytes(&self) -> Result<u64, String> {
        self.field("memory.stat", self.files.anonymous)
    }

    /// Processes that the kernel killed for memory.
    pub fn oom_kills(&self) -> Result<u64, String> {
        self.field(self.files.events, "oom_kill")
    }

    fn read(&self, file: &str) -> Result<String, String> {
        let path = self.at.join(file);
        fs::read_to_string(&path).map_err(|error| format!("cannot read {}: {error}", path.display()))
    }

    fn field(&self, file: &str, name: &str) -> Result<u64, String> {
        let text = self.read(file)?;
        let value = text.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(' ')?.parse().ok());
        value.ok_or_else(|| format!("{file} has no number {name}"))
    }
}

impl Drop for Cgroup {
    fn drop(&mut self) {
        if let Err(error) = fs::remove_dir(&self.at) {
            eprintln!("{} is left behind: {error}", self.at.display());
        }
    }
}

//! Servers of peers, started in new folders on loopback, killed when dropped.

use std::fs::File;
use std::net::{TcpListener, TcpStream};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use tempfile::TempDir;

use super::Peer;
use crate::Failure;

/// How long a server may take until it answers.
const PATIENCE: Duration = Duration::from_secs(10);
const LOOK: Duration = Duration::from_millis(10);

/// When a peer syncs what it has answered.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Syncing {
    /// Before the answer.
    Always,
    /// Later: Redis every second, NATS every two minutes.
    Later,
}

/// A running server.
pub struct PeerServer {
    child: Child,
    pub peer: Peer,
    _folder: TempDir,
}

impl PeerServer {
    /// Redis with nothing but its append-only file, which is not rewritten: a short run shall not be disturbed by that.
    pub fn redis(program: &Path, parent: &Path, syncing: Syncing) -> Result<Self, Failure> {
        let (folder, port) = (new_folder(parent)?, free_port()?);
        let fsync = if syncing == Syncing::Always { "always" } else { "everysec" };
        let mut command = Command::new(program);
        command.args(["--bind", "127.0.0.1", "--port", &port.to_string(), "--save", ""]);
        command.args(["--appendonly", "yes", "--appendfsync", fsync, "--auto-aof-rewrite-percentage", "0"]);
        command.arg("--dir").arg(folder.path());
        let peer = Peer::Redis(format!("redis://127.0.0.1:{port}"));
        Self::start(command, peer, port, folder)
    }

    /// NATS with JetStream.
    pub fn nats(program: &Path, parent: &Path, syncing: Syncing) -> Result<Self, Failure> {
        let (folder, port) = (new_folder(parent)?, free_port()?);
        let store = folder.path().join("store");
        let sync = if syncing == Syncing::Always { "sync_interval: always" } else { "" };
        let path = folder.path().join("nats.conf");
        std::fs::write(
            &path,
            format!(
                "host: 127.0.0.1\nport: {port}\nmax_payload: 8MB\nmax_pending: 512MB\n\
                 jetstream {{ store_dir: {store:?}, max_mem: 1GB, max_file: 40GB\n{sync}\n}}\n"
            ),
        )?;
        let mut command = Command::new(program);
        command.arg("-c").arg(path);
        Self::start(command, Peer::Nats(format!("nats://127.0.0.1:{port}")), port, folder)
    }

    fn start(mut command: Command, peer: Peer, port: u16, folder: TempDir) -> Result<Self, Failure> {
        let log = folder.path().join("log");
        let file = File::create(&log)?;
        command.stdin(Stdio::null()).stdout(file.try_clone()?).stderr(file);
        let child = command.spawn().map_err(|error| format!("{:?}: {error}", command.get_program()))?;
        let mut server = Self { child, peer, _folder: folder };
        let start = Instant::now();
        while TcpStream::connect(("127.0.0.1", port)).is_err() {
            if server.child.try_wait()?.is_some() || start.elapsed() > PATIENCE {
                let said = std::fs::read_to_string(&log).unwrap_or_default();
                return Err(format!("{:?} did not start:\n{said}", command.get_program()).into());
            }
            std::thread::sleep(LOOK);
        }
        Ok(server)
    }
}

impl Drop for PeerServer {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

fn new_folder(parent: &Path) -> Result<TempDir, Failure> {
    Ok(tempfile::Builder::new().prefix("forebay-bench-").tempdir_in(parent)?)
}

/// A port that nobody has now.
fn free_port() -> Result<u16, Failure> {
    Ok(TcpListener::bind("127.0.0.1:0")?.local_addr()?.port())
}

/// A program that is given, or is found on PATH.
pub fn find(given: Option<&Path>, name: &str) -> Result<Option<PathBuf>, Failure> {
    if let Some(given) = given {
        return if given.is_file() {
            Ok(Some(given.to_owned()))
        } else {
            Err(format!("{given:?} is no program").into())
        };
    }
    let folders = std::env::var_os("PATH").unwrap_or_default();
    let mut found = std::env::split_paths(&folders).map(|folder| folder.join(name));
    Ok(found.find(|path| path.is_file()))
}

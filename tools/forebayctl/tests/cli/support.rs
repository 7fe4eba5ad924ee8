//! A real server for each test, and the command against it.

use std::ffi::OsStr;
use std::io::{BufRead, BufReader, Write};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use rustix::process::{Pid, Signal, kill_process};
use serde_json::Value;
use tempfile::TempDir;

const PATIENCE: Duration = Duration::from_secs(60);

/// A server process with its data; both end with it.
pub struct Server {
    data: TempDir,
    child: Child,
    pub address: String,
}

impl Server {
    pub fn start() -> Self {
        let data = TempDir::new().expect("a directory for the data");
        let (child, address) = spawn(data.path(), "127.0.0.1:0");
        Self { data, child, address }
    }

    /// Ends the process without warning.
    pub fn kill(&mut self) {
        self.child.kill().expect("the server can be killed");
        self.child.wait().expect("the server ends");
    }

    /// Starts it again at its old address.
    pub fn start_again(&mut self) {
        (self.child, self.address) = spawn(self.data.path(), &self.address);
    }

    pub fn command<A: AsRef<OsStr>>(&self, args: &[A]) -> Command {
        let mut command = ctl(args);
        command.env("FOREBAY_SERVER", format!("http://{}", self.address));
        command
    }

    /// Runs the command to its end.
    pub fn run<A: AsRef<OsStr>>(&self, args: &[A], input: &[u8]) -> Ran {
        run(self.command(args), input)
    }

    /// Runs what must succeed and print one JSON value.
    pub fn json(&self, args: &[&str]) -> Value {
        self.run(args, b"").ok().json()
    }

    pub fn create(&self, queue: &str) {
        self.run(&["queue", "create", queue], b"").ok();
    }

    /// Figures of the subscription `default`.
    pub fn default_stats(&self, queue: &str) -> Value {
        self.json(&["subscription", "describe", queue, "default", "-o", "json"])
    }

    /// Consumes exactly `max` messages, as they are printed.
    pub fn consume_raw(&self, queue: &str, max: usize) -> Vec<u8> {
        self.run(&["consume", queue, "--max", &max.to_string()], b"").ok().stdout
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// How a command ended.
#[derive(Debug)]
pub struct Ran {
    pub code: Option<i32>,
    pub stdout: Vec<u8>,
    pub stderr: String,
}

impl Ran {
    pub fn ok(self) -> Self {
        assert_eq!(self.code, Some(0), "{}", self.stderr);
        self
    }

    /// Standard output as one JSON value.
    pub fn json(&self) -> Value {
        serde_json::from_slice(&self.stdout).unwrap_or_else(|e| panic!("{e}: {}", self.text()))
    }

    /// Standard output as JSON line by line.
    pub fn lines(&self) -> Vec<Value> {
        self.text().lines().map(|line| serde_json::from_str(line).expect("a line of JSON")).collect()
    }

    pub fn text(&self) -> String {
        String::from_utf8_lossy(&self.stdout).into_owned()
    }
}

/// The command, without a server.
pub fn ctl<A: AsRef<OsStr>>(args: &[A]) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_forebayctl"));
    command.args(args).env_remove("FOREBAY_SERVER");
    command
}

/// Runs a command to its end, its input written at the same time.
pub fn run(mut command: Command, input: &[u8]) -> Ran {
    let piped = command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
    let mut child = piped.spawn().expect("the command starts");
    let mut stdin = child.stdin.take().expect("it is piped");
    let output = std::thread::scope(|scope| {
        // A command that fails early does not read all of it.
        scope.spawn(move || stdin.write_all(input));
        child.wait_with_output().expect("the command ends")
    });
    let stderr = String::from_utf8_lossy(&output.stderr).into_owned();
    Ran { code: output.status.code(), stdout: output.stdout, stderr }
}

/// Waits until something is so.
pub fn eventually(what: &str, mut check: impl FnMut() -> bool) {
    let start = Instant::now();
    while !check() {
        assert!(start.elapsed() < PATIENCE, "never came about: {what}");
        std::thread::sleep(Duration::from_millis(20));
    }
}

pub fn interrupt(child: &Child) {
    let pid = Pid::from_child(child);
    kill_process(pid, Signal::INT).expect("the process is there");
}

fn spawn(data: &Path, listen: &str) -> (Child, String) {
    let binary = server_binary();
    let mut child = Command::new(&binary)
        .args(["serve", "--data-dir"])
        .arg(data)
        .args(["--listen", listen, "--http", "127.0.0.1:0"])
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .spawn()
        .unwrap_or_else(|e| panic!("cannot start {}: {e}", binary.display()));
    let mut ready = String::new();
    BufReader::new(child.stdout.take().expect("it is piped")).read_line(&mut ready).expect("a line");
    let address = ready.split_whitespace().find_map(|word| word.strip_prefix("grpc="));
    let address = address.unwrap_or_else(|| panic!("the server did not get ready: {ready:?}")).to_owned();
    (child, address)
}

fn server_binary() -> PathBuf {
    let binary = Path::new(env!("CARGO_BIN_EXE_forebayctl")).with_file_name("forebay");
    let path = binary.display();
    assert!(binary.exists(), "{path} is missing; build it with `cargo build --bin forebay`");
    binary
}

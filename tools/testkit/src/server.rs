//! A real server process, on ports of its own choice.

use std::io::{BufRead as _, BufReader, Read as _};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::mpsc;
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use rustix::process::{Pid, Signal, kill_process};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;

use crate::Clients;

/// How long a server may take to become ready, or to end, before the run is given up.
const PATIENCE: Duration = Duration::from_secs(60);

/// How to start a server.
#[derive(Clone, Debug, Default)]
pub struct ServerOptions {
    /// The server's program, if other than the one of this build.
    pub program: Option<PathBuf>,
    /// A program and arguments that the server's command line is given to, for example strace.
    pub wrapper: Vec<String>,
    /// More arguments of `forebay serve`.
    pub arguments: Vec<String>,
    /// Lines of the configuration file.
    pub config: String,
}

impl ServerOptions {
    /// Small log files, so that everything rolls over soon.
    pub fn small_segments() -> Self {
        Self { config: "segment_bytes = 1048576\n".to_owned(), ..Self::default() }
    }
}

/// A running server; killed when dropped.
pub struct Server {
    child: Child,
    /// The server's own process id: a wrapper's child, if there is a wrapper.
    pid: Pid,
    stderr: Option<JoinHandle<String>>,
    /// `HOST:PORT` of gRPC and of HTTP.
    pub grpc: String,
    pub http: String,
    pub recovered_messages: u64,
    pub recovery_ms: u64,
}

/// The `forebay` binary of this build.
///
/// # Panics
/// If it is not there: build the whole workspace first.
pub fn binary() -> PathBuf {
    let mut folder = std::env::current_exe().expect("a process knows its program");
    folder.pop();
    if folder.ends_with("deps") {
        folder.pop();
    }
    let path = folder.join("forebay");
    assert!(path.is_file(), "{} is missing; run cargo build --workspace first", path.display());
    path
}

impl Server {
    /// Starts a server on a data directory and waits until it is ready.
    ///
    /// # Panics
    /// If it does not become ready; the message has what it wrote to standard error.
    pub fn start(data_dir: &Path, options: &ServerOptions) -> Self {
        Self::try_start(data_dir, options)
            .unwrap_or_else(|stderr| panic!("the server did not start:\n{stderr}"))
    }

    /// The same, but gives what the server wrote to standard error if it does not become ready.
    pub fn try_start(data_dir: &Path, options: &ServerOptions) -> Result<Self, String> {
        let command = command(data_dir, options);
        let mut command = command.map_err(|error| format!("the configuration cannot be written: {error}"))?;
        let mut child = command.spawn().expect("the server's program starts");
        let mut stderr = child.stderr.take().expect("it is piped");
        let stderr = std::thread::spawn(move || {
            let mut text = Vec::new();
            let _ = stderr.read_to_end(&mut text);
            String::from_utf8_lossy(&text).into_owned()
        });
        let Some(line) = first_line(&mut child) else {
            let _ = child.kill();
            let _ = child.wait();
            return Err(stderr.join().expect("reading does not panic"));
        };
        let field = |name: &str| {
            let word = line.split_whitespace().find_map(|word| word.strip_prefix(name)?.strip_prefix('='));
            word.unwrap_or_else(|| panic!("{name} is missing in {line:?}")).to_owned()
        };
        let number = |name| field(name).parse().expect("a number");
        let pid = served_by(&child, options);
        Ok(Self {
            pid,
            grpc: field("grpc"),
            http: field("http"),
            recovered_messages: number("recovered_messages"),
            recovery_ms: number("recovery_ms"),
            child,
            stderr: Some(stderr),
        })
    }

    /// The same, also within a runtime of several threads; the error is a sentence.
    pub fn start_or_tell(data_dir: &Path, options: &ServerOptions) -> Result<Self, String> {
        tokio::task::block_in_place(|| Self::try_start(data_dir, options))
            .map_err(|stderr| format!("the server did not start:\n{stderr}"))
    }

    /// Starts a server and kills it after this long, ready or not.
    pub fn kill_early(data_dir: &Path, options: &ServerOptions, after: Duration) {
        let mut command =
            command(data_dir, options).expect("the folder of the data directory can be written");
        let mut child = command.stdout(Stdio::null()).stderr(Stdio::null()).spawn().expect("it starts");
        std::thread::sleep(after);
        let _ = child.kill();
        child.wait().expect("a child can be waited for");
    }

    pub fn clients(&self) -> Clients {
        Clients::of(&self.grpc)
    }

    /// A figure of its metrics: with labels one of them, without the sum over all.
    ///
    /// # Panics
    /// If it has no such figure.
    pub async fn metric(&self, name: &str) -> u64 {
        let (status, text) = http_get(&self.http, "/metrics").await;
        assert_eq!(status, 200);
        let is_it = |line: &&str| {
            line.strip_prefix(name).is_some_and(|rest| rest.starts_with(' ') || rest.starts_with('{'))
        };
        let value =
            |line: &str| -> u64 { line.rsplit(' ').next().expect("a value").parse().expect("a count") };
        let values: Vec<u64> = text.lines().filter(is_it).map(value).collect();
        assert!(!values.is_empty(), "{name} is not in:\n{text}");
        values.iter().sum()
    }

    /// The server's process id.
    pub fn pid(&self) -> i32 {
        self.pid.as_raw_nonzero().get()
    }

    /// Ends it at once, as a power cut of the process alone would.
    pub fn kill(mut self) -> String {
        self.signal(Signal::KILL);
        self.wait_for_end();
        self.take_stderr()
    }

    /// Asks it to end, and gives how it did and what it wrote to standard error.
    ///
    /// Blocks. Connections end by a question that their client must answer, so a test whose own clients are still
    /// open calls this off their runtime's thread (`tokio::task::spawn_blocking`), or the server waits its grace out.
    pub fn terminate(mut self) -> (ExitStatus, String) {
        self.signal(Signal::TERM);
        let status = self.wait_for_end();
        (status, self.take_stderr())
    }

    /// Waits for it to end by itself.
    pub fn wait(mut self) -> (ExitStatus, String) {
        let status = self.wait_for_end();
        (status, self.take_stderr())
    }

    /// Whether it still runs.
    pub fn is_running(&mut self) -> bool {
        self.child.try_wait().expect("a child can be waited for").is_none()
    }

    fn signal(&self, signal: Signal) {
        // It may have ended by itself.
        let _ = kill_process(self.pid, signal);
    }

    fn wait_for_end(&mut self) -> ExitStatus {
        let start = Instant::now();
        loop {
            if let Some(status) = self.child.try_wait().expect("a child can be waited for") {
                return status;
            }
            assert!(start.elapsed() < PATIENCE, "the server does not end");
            std::thread::sleep(Duration::from_millis(5));
        }
    }

    fn take_stderr(&mut self) -> String {
        self.stderr.take().map_or_else(String::new, |reader| reader.join().expect("reading does not panic"))
    }
}

/// The status and body of an HTTP request.
///
/// # Panics
/// If it is not answered in the form of HTTP/1.1.
pub async fn http_get(address: &str, path: &str) -> (u16, String) {
    let mut connection = TcpStream::connect(address).await.expect("it listens");
    let request = format!("GET {path} HTTP/1.1\r\nHost: {address}\r\nConnection: close\r\n\r\n");
    connection.write_all(request.as_bytes()).await.expect("it reads");
    let mut answer = String::new();
    connection.read_to_string(&mut answer).await.expect("it answers");
    let (head, body) = answer.split_once("\r\n\r\n").expect("a head and a body");
    let status = head.split_whitespace().nth(1).expect("a status").parse().expect("a number");
    (status, body.to_owned())
}

impl Drop for Server {
    fn drop(&mut self) {
        self.signal(Signal::KILL);
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// Fails where the disk of the data directory does, for the configuration lies beside it.
fn command(data_dir: &Path, options: &ServerOptions) -> std::io::Result<Command> {
    let binary = options.program.clone().unwrap_or_else(binary);
    let mut command = match options.wrapper.split_first() {
        Some((program, arguments)) => {
            let mut command = Command::new(program);
            command.args(arguments).arg(&binary);
            command
        }
        None => Command::new(&binary),
    };
    command.args(["serve", "--listen", "127.0.0.1:0", "--http", "127.0.0.1:0", "--data-dir"]).arg(data_dir);
    if !options.config.is_empty() {
        let mut path = data_dir.as_os_str().to_owned();
        path.push(".toml");
        std::fs::write(&path, &options.config)?;
        command.arg("--config").arg(&path);
    }
    command.args(&options.arguments).stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
    Ok(command)
}

fn first_line(child: &mut Child) -> Option<String> {
    let stdout = child.stdout.take().expect("it is piped");
    let (sender, receiver) = mpsc::channel();
    std::thread::spawn(move || {
        let mut line = String::new();
        let read = BufReader::new(stdout).read_line(&mut line);
        let _ = sender.send(read.ok().filter(|bytes| *bytes > 0).map(|_| line));
    });
    receiver.recv_timeout(PATIENCE).ok().flatten()
}

/// The process that serves: the child itself, or the child of a wrapper.
fn served_by(child: &Child, options: &ServerOptions) -> Pid {
    let direct = child.id();
    let serving = if options.wrapper.is_empty() {
        direct
    } else {
        let children = std::fs::read_to_string(format!("/proc/{direct}/task/{direct}/children"));
        children.ok().and_then(|text| text.split_whitespace().next()?.parse().ok()).unwrap_or(direct)
    };
    Pid::from_raw(serving as i32).expect("a process id is not 0")
}

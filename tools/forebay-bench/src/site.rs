//! A server to measure: one of the tool's own in a new folder, or one that runs already.

use std::fs::File;
use std::io::{Read as _, Write as _};
use std::net::TcpStream;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use forebay::proto::v1::{
    CreateQueueRequest, CreateSubscriptionRequest, DeleteQueueRequest, GetStatsRequest, Queue, QueueStats,
    ServerStats, Subscription,
};
use forebay_testkit::{Clients, Server, ServerOptions, queue, subscription};
use rustix::fs::{Advice, fadvise};
use tempfile::TempDir;

use crate::Failure;
use crate::args::{AnyServer, OwnServer};

/// A server of the tool's own, and its data. Both go when it is dropped.
pub struct Site {
    /// First, so that the server ends before its folder goes.
    server: Option<Server>,
    folder: TempDir,
    options: ServerOptions,
}

impl Site {
    /// A new folder, without a server yet.
    pub fn new(own: &OwnServer) -> Result<Self, Failure> {
        let folder = tempfile::Builder::new().prefix("forebay-bench-").tempdir_in(own.parent())?;
        let program = match &own.server_bin {
            Some(program) => program.canonicalize().map_err(|error| format!("{program:?}: {error}"))?,
            None => beside()?,
        };
        let options = ServerOptions { program: Some(program), ..ServerOptions::default() };
        Ok(Self { server: None, folder, options })
    }

    /// Lines of the configuration file, for servers that are started from now on.
    pub fn configure(&mut self, lines: String) {
        self.options.config = lines;
    }

    /// The server's data directory.
    pub fn data(&self) -> PathBuf {
        self.folder.path().join("data")
    }

    /// The same with a server that is ready.
    pub fn started(own: &OwnServer) -> Result<Self, Failure> {
        let mut site = Self::new(own)?;
        site.start()?;
        Ok(site)
    }

    /// Starts the server; gives the time from the start of its process to its ready line.
    pub fn start(&mut self) -> Result<Duration, Failure> {
        let start = Instant::now();
        let data = self.data();
        let started = tokio::task::block_in_place(|| Server::try_start(&data, &self.options));
        let ready = start.elapsed();
        self.server = Some(started.map_err(|stderr| format!("the server did not start:\n{stderr}"))?);
        Ok(ready)
    }

    /// Ends the server by SIGKILL.
    pub fn kill(&mut self) {
        if let Some(server) = self.server.take() {
            tokio::task::block_in_place(|| server.kill());
        }
    }

    /// A counter of the server, by its name among the metrics.
    pub fn counter(&self, name: &str) -> Result<u64, Failure> {
        let mut stream = TcpStream::connect(&self.server().http)?;
        stream.write_all(b"GET /metrics HTTP/1.0\r\n\r\n")?;
        let mut text = String::new();
        stream.read_to_string(&mut text)?;
        let value = text.lines().find_map(|line| line.strip_prefix(name)?.trim().parse().ok());
        value.ok_or_else(|| format!("the server has no metric {name}").into())
    }

    /// The server that runs.
    ///
    /// # Panics
    /// If there is none.
    pub fn server(&self) -> &Server {
        self.server.as_ref().expect("it was started")
    }
}

/// The server's program beside this one.
fn beside() -> Result<PathBuf, Failure> {
    let mut path = std::env::current_exe()?;
    path.set_file_name("forebay");
    if path.is_file() {
        return Ok(path);
    }
    Err(format!("{} is missing; build the workspace, or give --server-bin", path.display()).into())
}

/// The server that is measured.
pub enum Target {
    Own(Box<Site>),
    Running { address: String },
}

impl Target {
    /// A fresh server, or the one that runs.
    pub fn new(any: &AnyServer) -> Result<Self, Failure> {
        let Some(url) = &any.server else { return Ok(Self::Own(Box::new(Site::started(&any.own)?))) };
        let address = url.strip_prefix("http://").unwrap_or(url).trim_end_matches('/').to_owned();
        Ok(Self::Running { address })
    }

    /// Clients on a connection of their own.
    pub fn clients(&self) -> Clients {
        match self {
            Self::Own(site) => site.server().clients(),
            Self::Running { address } => Clients::of(address),
        }
    }
}

/// Disk space of all files under a directory. Files may go while they are counted.
pub fn bytes_under(dir: &Path) -> Result<u64, Failure> {
    use std::os::unix::fs::MetadataExt as _;

    let mut bytes = 0;
    for entry in std::fs::read_dir(dir)? {
        let path = entry?.path();
        match std::fs::metadata(&path) {
            Ok(metadata) if metadata.is_dir() => bytes += bytes_under(&path)?,
            Ok(metadata) => bytes += 512 * metadata.blocks(),
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => {}
            Err(error) => return Err(error.into()),
        }
    }
    Ok(bytes)
}

/// Takes all files under a directory out of the page cache.
pub fn forget_cached(dir: &Path) -> Result<(), Failure> {
    for entry in std::fs::read_dir(dir)? {
        let path = entry?.path();
        if path.is_dir() {
            forget_cached(&path)?;
            continue;
        }
        let file = File::open(&path)?;
        // What is dirty stays.
        file.sync_all()?;
        fadvise(&file, 0, None, Advice::DontNeed)?;
    }
    Ok(())
}

/// Names for new queues, unlike those of other runs on the same server.
pub fn queue_names(count: u64) -> Vec<String> {
    let (process, micros) = (std::process::id(), forebay::clock::wall_us());
    (0..count).map(|number| format!("bench-{process}-{micros}-{number}")).collect()
}

/// Makes queues, each with its subscription `default`.
pub async fn create_queues(clients: &Clients, names: &[String]) -> Result<(), Failure> {
    each(clients, names, async |mut clients, name| {
        let queue = Some(Queue { name: queue(&name), ..Queue::default() });
        clients.queues.create_queue(CreateQueueRequest { queue, ..Default::default() }).await.map(drop)
    })
    .await
    .map(drop)
}

/// Gives a queue so many subscriptions with the one that it has; their full names.
pub async fn create_subscriptions(clients: &Clients, name: &str, count: u64) -> Result<Vec<String>, Failure> {
    let more: Vec<String> =
        (1..count).map(|number| format!("{}/subscriptions/bench-{number}", queue(name))).collect();
    each(clients, &more, async |mut clients, name| {
        let subscription = Some(Subscription { name, ..Subscription::default() });
        let request = CreateSubscriptionRequest { subscription, ..Default::default() };
        clients.queues.create_subscription(request).await.map(drop)
    })
    .await?;
    Ok([subscription(name)].into_iter().chain(more).collect())
}

pub async fn delete_queues(clients: &Clients, names: &[String]) -> Result<(), Failure> {
    each(clients, names, async |mut clients, name| {
        let request = DeleteQueueRequest { name: queue(&name), ..Default::default() };
        clients.queues.delete_queue(request).await.map(drop)
    })
    .await
    .map(drop)
}

/// The figures of each queue.
pub async fn queue_stats(clients: &Clients, names: &[String]) -> Result<Vec<QueueStats>, Failure> {
    each(clients, names, async |mut clients, name| {
        let stats = clients.admin.get_stats(GetStatsRequest { queue: queue(&name) }).await?;
        Ok(stats.into_inner().queue.unwrap_or_default())
    })
    .await
}

/// Messages that were ever stored in queues.
pub async fn stored(clients: &Clients, names: &[String]) -> Result<u64, Failure> {
    Ok(queue_stats(clients, names).await?.iter().map(|stats| stats.next_offset).sum())
}

/// Messages that wait in queues, delayed and leased ones too.
pub async fn waiting(clients: &Clients, names: &[String]) -> Result<u64, Failure> {
    Ok(queue_stats(clients, names).await?.iter().map(|stats| stats.waiting_messages).sum())
}

pub async fn server_stats(clients: &Clients) -> Result<ServerStats, Failure> {
    let stats = clients.admin.clone().get_stats(GetStatsRequest::default()).await?;
    stats.into_inner().server.ok_or_else(|| "the server gave no figures".into())
}

/// Waits until the server has written nothing for this long: what it does behind the answers is done.
pub async fn quiet(clients: &Clients, time: Duration) -> Result<ServerStats, Failure> {
    still(time, async || Ok(server_stats(clients).await?.written_bytes)).await?;
    server_stats(clients).await
}

/// Waits until a figure has not changed for this long.
pub async fn still(time: Duration, figure: impl AsyncFn() -> Result<u64, Failure>) -> Result<(), Failure> {
    let (mut before, mut since) = (figure().await?, Instant::now());
    while since.elapsed() < time {
        tokio::time::sleep(time / 10).await;
        let now = figure().await?;
        if std::mem::replace(&mut before, now) != now {
            since = Instant::now();
        }
    }
    Ok(())
}

/// Calls for each name, 64 at a time, results in order.
async fn each<T: Send + 'static>(
    clients: &Clients,
    names: &[String],
    call: impl AsyncFn(Clients, String) -> Result<T, tonic::Status>,
) -> Result<Vec<T>, Failure> {
    const TOGETHER: usize = 64;
    let mut results = Vec::with_capacity(names.len());
    for chunk in names.chunks(TOGETHER) {
        let calls = chunk.iter().map(|name| call(clients.clone(), name.clone())).collect();
        results.extend(together(calls).await.into_iter().collect::<Result<Vec<T>, _>>()?);
    }
    Ok(results)
}

/// Waits for all of the futures, in one task.
async fn together<F: Future>(futures: Vec<F>) -> Vec<F::Output> {
    let mut futures: Vec<_> = futures.into_iter().map(|future| (Box::pin(future), None)).collect();
    std::future::poll_fn(|cx| {
        let mut pending = false;
        for (future, output) in futures.iter_mut().filter(|(_, output)| output.is_none()) {
            match future.as_mut().poll(cx) {
                std::task::Poll::Ready(value) => *output = Some(value),
                std::task::Poll::Pending => pending = true,
            }
        }
        if pending { std::task::Poll::Pending } else { std::task::Poll::Ready(()) }
    })
    .await;
    futures.into_iter().filter_map(|(_, output)| output).collect()
}

/// Fails unless both are the same.
pub fn check(what: &str, actual: u64, expected: u64) -> Result<(), Failure> {
    if actual == expected { Ok(()) } else { Err(format!("{what}: {actual}, expected {expected}").into()) }
}

//! Bad networks: between clients and server stands a relay that cuts connections in the middle of a message, closes one
//! direction of them, holds bytes back and lets them through in small pieces; and now and then the server is killed.

use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use forebay_testkit::payload::Random;
use forebay_testkit::torture::run::{Run, complain};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::tcp::{OwnedReadHalf, OwnedWriteHalf};
use tokio::net::{TcpListener, TcpStream};
use tokio::task::JoinSet;

use super::{Tally, Turn, start};

const LIFE: Duration = Duration::from_secs(2);
/// Most bytes that are relayed at one time.
const PIECE_BYTES: u64 = 16 << 10;
/// A direction of a connection meets its end after at most so many bytes.
const BYTES_BITS_MAX: u64 = 21;
const HELD_MS_MAX: u64 = 40;
const SILENCE: Duration = Duration::from_millis(300);

/// How a direction of a connection ends.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum End {
    /// Both directions, at once.
    Cut,
    /// This direction alone; the other one goes on.
    HalfClosed,
    /// Nothing comes through any more, and after a while both are cut.
    Silent,
}

/// A relay; ends when dropped.
struct Relay {
    address: SocketAddr,
    faults: Arc<AtomicU64>,
    _tasks: JoinSet<()>,
}

pub async fn run(turn: &Turn) -> Result<Tally, String> {
    let mut tally = Tally::default();
    let mut random = Random::new(turn.seed);
    let data = turn.dir.join("data");
    let history = turn.history("network", Arc::default())?;
    let first = start(&data)?;
    let mut run = Run::begin(history.clone(), random.bits(), &first).await?;
    let mut next = Some(first);
    while tally.cycles < turn.cycles {
        let server = next.take().map_or_else(|| start(&data), Ok)?;
        let relay = Relay::start(&server.grpc, random.bits()).await.map_err(|error| error.to_string())?;
        let ended = run.live_at(server, &relay.address.to_string(), LIFE, || false).await;
        tally.hits += relay.faults.load(Ordering::Relaxed);
        complain(&history, &ended.stderr);
        tally.cycles += 1;
        turn.progress.inc(1);
    }
    turn.progress.set_message("draining");
    tally.add("network", &run.finish(start(&data)?).await);
    Ok(tally)
}

impl Relay {
    async fn start(to: &str, seed: u64) -> std::io::Result<Self> {
        let listener = TcpListener::bind("127.0.0.1:0").await?;
        let address = listener.local_addr()?;
        let (faults, to) = (Arc::new(AtomicU64::new(0)), to.to_owned());
        let mut tasks = JoinSet::new();
        tasks.spawn(accept(listener, to, seed, faults.clone()));
        Ok(Self { address, faults, _tasks: tasks })
    }
}

async fn accept(listener: TcpListener, to: String, seed: u64, faults: Arc<AtomicU64>) {
    let mut random = Random::new(seed);
    let mut connections = JoinSet::new();
    while let Ok((client, _)) = listener.accept().await {
        let Ok(server) = TcpStream::connect(&to).await else { continue };
        connections.spawn(relay(client, server, random.bits(), faults.clone()));
    }
}

/// Relays both directions until one of them is cut, or both have ended.
async fn relay(client: TcpStream, server: TcpStream, seed: u64, faults: Arc<AtomicU64>) {
    let mut random = Random::new(seed);
    let (from_client, to_client) = client.into_split();
    let (from_server, to_server) = server.into_split();
    let up = one_way(from_client, to_server, random.bits());
    let down = one_way(from_server, to_client, random.bits());
    tokio::pin!(up, down);
    let (mut up_open, mut down_open) = (true, true);
    while up_open || down_open {
        let end = tokio::select! {
            end = &mut up, if up_open => { up_open = false; end }
            end = &mut down, if down_open => { down_open = false; end }
        };
        faults.fetch_add(u64::from(end.is_some()), Ordering::Relaxed);
        if matches!(end, Some(End::Cut | End::Silent)) {
            return;
        }
    }
}

/// Relays one direction until its fault comes, or its sender ends it: none.
async fn one_way(mut from: OwnedReadHalf, mut to: OwnedWriteHalf, seed: u64) -> Option<End> {
    let mut random = Random::new(seed);
    let bits = 10 + random.below(BYTES_BITS_MAX - 9);
    let mut left = 1 + random.below(1 << bits);
    let mut piece = vec![0; PIECE_BYTES as usize];
    while left > 0 {
        let most = left.min(1 + random.below(PIECE_BYTES)) as usize;
        let read = from.read(&mut piece[..most]).await.ok().filter(|read| *read > 0)?;
        if random.below(20) == 0 {
            tokio::time::sleep(Duration::from_millis(random.below(HELD_MS_MAX))).await;
        }
        to.write_all(&piece[..read]).await.ok()?;
        left -= read as u64;
    }
    match random.below(3) {
        0 => Some(End::Cut),
        1 => {
            let _ = to.shutdown().await;
            // The sender does not notice: its bytes go nowhere.
            while from.read(&mut piece).await.is_ok_and(|read| read > 0) {}
            Some(End::HalfClosed)
        }
        _ => {
            tokio::time::sleep(SILENCE).await;
            Some(End::Silent)
        }
    }
}

//! The accept loop: bounds what HTTP/2 does not bound.
//!
//! 1. At most so many connections at one time as are configured; further ones wait in the kernel's backlog, and those
//!    without work make room for them ([`super::places`]).
//! 2. An address that has its share of them is told so by GOAWAY, and its connection closed, before it costs anything.
//! 3. A connection that is slow to begin, or floods, is cut off ([`super::guarded`]).
//! 4. What their clients may send unread comes from a pool ([`super::windows`]).
//! 5. A failed accept (no file descriptors, a connection gone already) never ends the loop; after one it asks
//!    for room, and pauses.

use std::net::SocketAddr;
use std::pin::pin;
use std::sync::Arc;
use std::time::Duration;

use hyper::server::conn::http2;
use hyper_util::rt::{TokioExecutor, TokioIo};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::watch;

use super::edge::{Edge, Session};
use super::guarded::Guarded;
use super::places::{Places, Work};
use super::windows::{Window, Windows};
use crate::observe::connections::Cut;

/// Most streams of a connection at one time.
const STREAMS_MAX: u32 = 256;
/// Largest frames: a stream's window, within what the protocol allows and what is worth it.
const FRAME_BYTES_MIN: u32 = 16 << 10;
const FRAME_BYTES_MAX: u32 = 256 << 10;
/// How long to pause after a failed accept: what was short may be there again.
const FAILURE_PAUSE: Duration = Duration::from_millis(50);
/// How long a connection without work may take to leave when it was asked to.
const LEAVE_MAX: Duration = Duration::from_secs(1);

/// What an address beyond its share is told: an empty SETTINGS frame, then GOAWAY of stream 0 with ENHANCE_YOUR_CALM (11)
/// and a text of 38 bytes.
const TOO_MANY: &[u8] = b"\0\0\0\x04\0\0\0\0\0\
    \0\0\x2e\x07\0\0\0\0\0\0\0\0\0\0\0\0\x0btoo many connections from this address";

/// Serves connections as they come until `stopped`; then lets those that are there end what they have begun.
pub async fn serve_connections(
    listener: TcpListener,
    places: Places,
    http2: http2::Builder<TokioExecutor>,
    edge: Edge,
    stopped: impl Future<Output = ()>,
) {
    let door = Door { listener, places };
    let windows = Windows::default();
    // Every connection holds a receiver until it has ended.
    let (stop, stopping) = watch::channel(());
    let mut stopped = pin!(stopped);
    loop {
        let (connection, work) = tokio::select! {
            next = door.next() => next,
            () = &mut stopped => break,
        };
        let window = windows.take();
        let served = with_window(&http2, &window)
            .serve_connection(TokioIo::new(connection), Session::new(edge.clone(), work.clone()));
        let (stopping, places) = (stopping.clone(), door.places.clone());
        tokio::spawn(async move {
            let _window = window;
            serve_one(served, &work, stopping, &places).await;
        });
    }
    drop((door, stopping));
    let _ = stop.send(());
    stop.closed().await;
}

fn with_window(http2: &http2::Builder<TokioExecutor>, window: &Window) -> http2::Builder<TokioExecutor> {
    let mut http2 = http2.clone();
    http2
        .initial_stream_window_size(window.stream_bytes())
        .initial_connection_window_size(window.bytes())
        .max_frame_size(window.stream_bytes().clamp(FRAME_BYTES_MIN, FRAME_BYTES_MAX))
        .max_concurrent_streams(window.streams_max(STREAMS_MAX));
    http2
}

type Served = http2::Connection<TokioIo<Guarded>, Session, TokioExecutor>;

/// Serves one connection to its end, and has it end when the server stops or it has been without work for long.
async fn serve_one(served: Served, work: &Work, mut stopping: watch::Receiver<()>, places: &Places) {
    let mut served = pin!(served);
    let is_idle = tokio::select! {
        ended = &mut served => return tell(ended),
        () = work.leaving() => true,
        _ = stopping.changed() => false,
    };
    served.as_mut().graceful_shutdown();
    if !is_idle {
        return tell(served.await);
    }
    places.figures().cut(Cut::Idle);
    loop {
        tokio::select! {
            ended = &mut served => return tell(ended),
            // Its client does not answer. One that has begun something meanwhile may end it.
            () = tokio::time::sleep(LEAVE_MAX) => if work.idle().is_some() { return },
        }
    }
}

fn tell(ended: hyper::Result<()>) {
    if let Err(error) = ended {
        let why = std::error::Error::source(&error).map(ToString::to_string).unwrap_or_default();
        tracing::debug!(%error, why, "a connection has ended");
    }
}

/// Where connections come in.
struct Door {
    listener: TcpListener,
    places: Places,
}

impl Door {
    /// The next connection, as soon as there is a place for it.
    async fn next(&self) -> (Guarded, Arc<Work>) {
        loop {
            let (io, peer) = self.accept().await;
            if self.places.is_over(peer.ip()) {
                self.places.figures().cut(Cut::Address);
                tracing::debug!(%peer, "an address has its share of connections");
                // What does not go at once does not go.
                let _ = io.try_write(TOO_MANY);
                continue;
            }
            let place = self.places.take(peer.ip()).await;
            let work = place.work().clone();
            return (Guarded::new(io, place, self.places.figures().clone()), work);
        }
    }

    async fn accept(&self) -> (TcpStream, SocketAddr) {
        loop {
            match self.listener.accept().await {
                Ok((io, peer)) => match io.set_nodelay(true) {
                    Ok(()) => return (io, peer),
                    Err(error) => tracing::debug!(%error, "a connection was gone before it began"),
                },
                Err(error) => {
                    tracing::warn!(%error, "accepting a connection failed");
                    // Open files may be short.
                    self.places.make_room();
                    tokio::time::sleep(FAILURE_PAUSE).await;
                }
            }
        }
    }
}

#[cfg(test)]
#[path = "accept_tests.rs"]
mod tests;

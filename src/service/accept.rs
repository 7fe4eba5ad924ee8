//! The accept loop: bounds what HTTP/2 does not bound.
//!
//! 1. At most [`CONNECTIONS_MAX`] connections at one time; further ones wait in the kernel's backlog.
//! 2. A connection that says nothing for [`SILENCE_MAX`] after it was made is closed (keepalive takes over once
//!    HTTP/2 has begun).
//! 3. What their clients may send unread comes from a pool ([`super::windows`]).
//! 4. A failed accept (no file descriptors, a connection gone already) never ends the loop; after one it pauses.

use std::io;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;

use hyper::server::conn::http2;
use hyper_util::rt::{TokioExecutor, TokioIo};
use hyper_util::server::graceful::GracefulShutdown;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio::time::Sleep;

use super::edge::Edge;
use super::windows::Windows;

/// Most connections at one time.
pub const CONNECTIONS_MAX: usize = 1_024;
/// Most streams of a connection at one time.
const STREAMS_MAX: u32 = 1_024;
/// Largest frames: a stream's window, within what the protocol allows and what is worth it.
const FRAME_BYTES_MIN: u32 = 16 << 10;
const FRAME_BYTES_MAX: u32 = 256 << 10;
/// How long a new connection may be silent.
const SILENCE_MAX: Duration = Duration::from_secs(10);
/// How long to pause after a failed accept: what was short may be there again.
const FAILURE_PAUSE: Duration = Duration::from_millis(50);

/// A connection that counts, and that must speak.
pub struct Guarded {
    io: TcpStream,
    /// Until the first byte has come.
    silence: Option<Pin<Box<Sleep>>>,
    _place: OwnedSemaphorePermit,
}

/// Serves connections as they come until `stopped`; then lets those that are there end what they have begun.
pub async fn serve_connections(
    listener: TcpListener,
    connections_max: usize,
    http2: http2::Builder<TokioExecutor>,
    edge: Edge,
    stopped: impl Future<Output = ()>,
) {
    let door = Door::new(listener, connections_max);
    let (windows, graceful) = (Windows::default(), GracefulShutdown::new());
    let mut stopped = std::pin::pin!(stopped);
    loop {
        let connection = tokio::select! {
            connection = door.next() => connection,
            () = &mut stopped => break,
        };
        let window = windows.take();
        let mut http2 = http2.clone();
        http2
            .initial_stream_window_size(window.stream_bytes())
            .initial_connection_window_size(window.bytes())
            .max_frame_size(window.stream_bytes().clamp(FRAME_BYTES_MIN, FRAME_BYTES_MAX))
            .max_concurrent_streams(window.streams_max(STREAMS_MAX));
        let served = graceful.watch(http2.serve_connection(TokioIo::new(connection), edge.clone()));
        tokio::spawn(async move {
            let _window = window;
            if let Err(error) = served.await {
                tracing::debug!(%error, "a connection has ended");
            }
        });
    }
    drop(door);
    graceful.shutdown().await;
}

/// Where connections come in.
struct Door {
    listener: TcpListener,
    places: Arc<Semaphore>,
}

impl Door {
    fn new(listener: TcpListener, connections_max: usize) -> Self {
        Self { listener, places: Arc::new(Semaphore::new(connections_max)) }
    }

    /// The next connection, as soon as there is a place for it.
    async fn next(&self) -> Guarded {
        let place = self.places.clone().acquire_owned().await.expect("the semaphore is never closed");
        let io = loop {
            match self.listener.accept().await {
                Ok((io, _)) => match io.set_nodelay(true) {
                    Ok(()) => break io,
                    Err(error) => tracing::debug!(%error, "a connection was gone before it began"),
                },
                Err(error) => {
                    tracing::warn!(%error, "accepting a connection failed");
                    tokio::time::sleep(FAILURE_PAUSE).await;
                }
            }
        };
        Guarded { io, silence: Some(Box::pin(tokio::time::sleep(SILENCE_MAX))), _place: place }
    }
}

impl AsyncRead for Guarded {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let read = Pin::new(&mut self.io).poll_read(cx, buf);
        if read.is_ready() {
            self.silence = None;
        } else if let Some(silence) = &mut self.silence
            && silence.as_mut().poll(cx).is_ready()
        {
            return Poll::Ready(Err(io::ErrorKind::TimedOut.into()));
        }
        read
    }
}

impl AsyncWrite for Guarded {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.io).poll_write(cx, buf)
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.io).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.io).poll_shutdown(cx)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bufs: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.io).poll_write_vectored(cx, bufs)
    }

    fn is_write_vectored(&self) -> bool {
        self.io.is_write_vectored()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn connections_beyond_the_bound_wait() {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let door = Door::new(listener, 2);
        let _clients = [
            TcpStream::connect(address).await.unwrap(),
            TcpStream::connect(address).await.unwrap(),
            TcpStream::connect(address).await.unwrap(),
        ];
        let first = door.next().await;
        let _second = door.next().await;
        let third = tokio::time::timeout(Duration::from_millis(50), door.next()).await;
        assert!(third.is_err(), "a third connection was let in");
        drop(first);
        door.next().await;
    }

    #[tokio::test(start_paused = true)]
    async fn a_silent_connection_is_closed_and_a_speaking_one_is_not() {
        use tokio::io::{AsyncReadExt, AsyncWriteExt};
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let door = Door::new(listener, 2);
        let _silent = TcpStream::connect(address).await.unwrap();
        let mut connection = door.next().await;
        let error = connection.read_u8().await.unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::TimedOut);
        let mut speaking = TcpStream::connect(address).await.unwrap();
        let mut connection = door.next().await;
        speaking.write_all(b"x").await.unwrap();
        // Readable before it is read: the paused clock must not run while the byte is on its way.
        connection.io.readable().await.unwrap();
        assert_eq!(connection.read_u8().await.unwrap(), b'x');
        assert!(tokio::time::timeout(2 * SILENCE_MAX, connection.read_u8()).await.is_err());
    }
}

//! The accept loop: bounds what tonic does not bound.
//!
//! 1. At most [`CONNECTIONS_MAX`] connections at one time; further ones wait in the kernel's backlog.
//! 2. A connection that says nothing for [`SILENCE_MAX`] after it was made is closed (keepalive takes over once
//!    HTTP/2 has begun).
//! 3. A failed accept (no file descriptors, a connection gone already) never ends the loop; after one it pauses.

use std::io;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;

use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{OwnedSemaphorePermit, Semaphore, mpsc};
use tokio::time::Sleep;
use tokio_stream::wrappers::ReceiverStream;
use tonic::transport::server::{Connected, TcpConnectInfo};

/// Most connections at one time.
pub const CONNECTIONS_MAX: usize = 1_024;
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

/// Connections as they come. Ends when what is returned is dropped.
pub fn connections(listener: TcpListener, connections_max: usize) -> ReceiverStream<io::Result<Guarded>> {
    let (accepted, stream) = mpsc::channel(1);
    let places = Arc::new(Semaphore::new(connections_max));
    tokio::spawn(async move {
        tokio::select! {
            () = accept(listener, places, &accepted) => {}
            () = accepted.closed() => {}
        }
    });
    ReceiverStream::new(stream)
}

async fn accept(listener: TcpListener, places: Arc<Semaphore>, accepted: &mpsc::Sender<io::Result<Guarded>>) {
    loop {
        let place = places.clone().acquire_owned().await.expect("the semaphore is never closed");
        let io = match listener.accept().await {
            Ok((io, _)) => io,
            Err(error) => {
                tracing::warn!(%error, "accepting a connection failed");
                tokio::time::sleep(FAILURE_PAUSE).await;
                continue;
            }
        };
        if let Err(error) = io.set_nodelay(true) {
            tracing::debug!(%error, "a connection was gone before it began");
            continue;
        }
        let silence = Some(Box::pin(tokio::time::sleep(SILENCE_MAX)));
        if accepted.send(Ok(Guarded { io, silence, _place: place })).await.is_err() {
            return;
        }
    }
}

impl Connected for Guarded {
    type ConnectInfo = TcpConnectInfo;

    fn connect_info(&self) -> TcpConnectInfo {
        self.io.connect_info()
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
    use tokio_stream::StreamExt;

    use super::*;

    #[tokio::test]
    async fn connections_beyond_the_bound_wait() {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let mut accepted = connections(listener, 2);
        let _clients = [
            TcpStream::connect(address).await.unwrap(),
            TcpStream::connect(address).await.unwrap(),
            TcpStream::connect(address).await.unwrap(),
        ];
        let first = accepted.next().await.unwrap().unwrap();
        let _second = accepted.next().await.unwrap().unwrap();
        let third = tokio::time::timeout(Duration::from_millis(50), accepted.next()).await;
        assert!(third.is_err(), "a third connection was let in");
        drop(first);
        assert!(accepted.next().await.unwrap().is_ok());
    }

    #[tokio::test(start_paused = true)]
    async fn a_silent_connection_is_closed_and_a_speaking_one_is_not() {
        use tokio::io::{AsyncReadExt, AsyncWriteExt};
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let mut accepted = connections(listener, 2);
        let _silent = TcpStream::connect(address).await.unwrap();
        let mut connection = accepted.next().await.unwrap().unwrap();
        let error = connection.read_u8().await.unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::TimedOut);
        let mut speaking = TcpStream::connect(address).await.unwrap();
        let mut connection = accepted.next().await.unwrap().unwrap();
        speaking.write_all(b"x").await.unwrap();
        // Readable before it is read: the paused clock must not run while the byte is on its way.
        connection.io.readable().await.unwrap();
        assert_eq!(connection.read_u8().await.unwrap(), b'x');
        assert!(tokio::time::timeout(2 * SILENCE_MAX, connection.read_u8()).await.is_err());
    }
}

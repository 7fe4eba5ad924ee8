//! The bytes of a connection on their way to and from HTTP/2, looked at as they pass.
//!
//! 1. A client that takes longer than [`PRESSING_MAX`] for its preface and first frame, or for the headers of a request,
//!    is cut off, however many bytes come meanwhile.
//! 2. So is one that floods ([`super::frames`]).
//! 3. A connection that has begun [`CALLS_A_TURN`] requests in one go waits until all others had their turn: HTTP/2 would
//!    take in whatever has come, and refuse what is too much of it, without a pause.
//!
//! Other halves of frames end by the keepalive of HTTP/2: a client in the middle of one cannot answer it.

use std::io;
use std::pin::Pin;
use std::task::{Context, Poll, ready};
use std::time::Duration;

use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::TcpStream;
use tokio::task::{JoinHandle, yield_now};
use tokio::time::{Sleep, sleep};

use super::frames::{Flood, Frames};
use super::places::Place;
use crate::observe::connections::{Connections, Cut};
use crate::planted;

/// How long a client may take for its preface and first frame, or for the headers of a request.
pub const PRESSING_MAX: Duration = Duration::from_secs(10);

/// Requests that a connection may begin in one turn, and the rest of what came with the last of them.
const CALLS_A_TURN: u64 = 32;

/// A client took too long for its preface or for the headers of a request.
#[derive(Clone, Copy, Debug, thiserror::Error)]
#[error("the preface, or the headers of a request, did not come within {} s", PRESSING_MAX.as_secs())]
pub struct TooSlow;

/// A connection that has a place. See the module's header.
pub struct Guarded {
    io: TcpStream,
    frames: Frames,
    /// Header blocks that had begun when this turn did.
    turn: u64,
    /// Ends when all that was ready before it has had its turn, and what had come for others was looked for: a runtime
    /// looks after 61 tasks, and to refuse a request takes none.
    others: Option<JoinHandle<()>>,
    /// While something must not take long.
    deadline: Option<Pin<Box<Sleep>>>,
    figures: Connections,
    _place: Place,
}

impl Guarded {
    pub fn new(io: TcpStream, place: Place, figures: Connections) -> Self {
        let deadline = Some(Box::pin(sleep(PRESSING_MAX)));
        Self { io, frames: Frames::new(), turn: 0, others: None, deadline, figures, _place: place }
    }

    fn cut(&self, cut: Cut, why: impl std::error::Error + Send + Sync + 'static) -> io::Error {
        self.figures.cut(cut);
        io::Error::other(why)
    }

    /// Ready unless it is others' turn. HTTP/2 asks for more before each request that it takes out of what it has: to say
    /// once that there is nothing, and to wake it, does not keep it from going on.
    fn poll_turn(&mut self, cx: &mut Context<'_>) -> Poll<()> {
        if self.frames.blocks() - self.turn < CALLS_A_TURN {
            return Poll::Ready(());
        }
        let others = self.others.get_or_insert_with(|| tokio::spawn(yield_now()));
        // It does not fail but by the runtime's end.
        let _ = ready!(Pin::new(others).poll(cx));
        (self.others, self.turn) = (None, self.frames.blocks());
        Poll::Ready(())
    }

    /// Bytes have come.
    fn came(&mut self, bytes: &[u8]) -> Result<(), Flood> {
        let before = self.frames.pressing();
        self.frames.came(bytes)?;
        let now = self.frames.pressing();
        // One header block may end and the next one begin in one read: each has its own time.
        if now != before {
            self.deadline = now.map(|_| Box::pin(sleep(PRESSING_MAX)));
        }
        Ok(())
    }
}

impl AsyncRead for Guarded {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        ready!(self.poll_turn(cx));
        let before = buf.filled().len();
        let read = Pin::new(&mut self.io).poll_read(cx, buf);
        let mut cut = None;
        if read.is_ready()
            && let Err(flood) = self.came(&buf.filled()[before..])
            && !planted::bug("floods-endured")
        {
            cut = Some(self.cut(Cut::Flood, flood));
        } else if let Some(deadline) = &mut self.deadline
            // Also after bytes have come: one at a time must not put the end off.
            && deadline.as_mut().poll(cx).is_ready()
        {
            cut = Some(self.cut(Cut::TooSlow, TooSlow));
        }
        match cut {
            Some(error) => {
                // Who fails has read nothing.
                buf.set_filled(before);
                Poll::Ready(Err(error))
            }
            None => {
                if read.is_pending() {
                    self.turn = self.frames.blocks();
                }
                read
            }
        }
    }
}

impl AsyncWrite for Guarded {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        let wrote = Pin::new(&mut self.io).poll_write(cx, buf);
        if let Poll::Ready(Ok(bytes)) = &wrote {
            self.frames.wrote(*bytes);
        }
        wrote
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
        let wrote = Pin::new(&mut self.io).poll_write_vectored(cx, bufs);
        if let Poll::Ready(Ok(bytes)) = &wrote {
            self.frames.wrote(*bytes);
        }
        wrote
    }

    fn is_write_vectored(&self) -> bool {
        self.io.is_write_vectored()
    }
}

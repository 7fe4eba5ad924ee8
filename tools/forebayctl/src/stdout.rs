//! Standard output written by a blocking task, so that a slow reader stops neither renewals nor Ctrl-C.
//!
//! Texts are gathered into writes of about 16 KiB. A text counts as printed when a write that holds all of it has
//! succeeded; there is no buffer behind the write.

use std::fs::File;
use std::io::{self, Write};
use std::os::fd::AsFd;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use rustix::event::{PollFd, PollFlags, poll};
use tokio::task::JoinHandle;

const WRITE_BYTES: usize = 16 << 10;

/// Texts on their way to standard output.
#[derive(Debug)]
pub struct Printing {
    count: Arc<AtomicUsize>,
    /// Ends when all is written, or with the first error.
    pub end: JoinHandle<io::Result<()>>,
}

impl Printing {
    /// Starts to write.
    pub fn start(texts: Vec<Vec<u8>>) -> Self {
        let count = Arc::new(AtomicUsize::new(0));
        let printed = Arc::clone(&count);
        let end = tokio::task::spawn_blocking(move || {
            let mut out = unbuffered()?;
            write_counted(&mut out, &texts, &printed)
        });
        Self { count, end }
    }

    /// How many texts, from the first on, were written so far.
    pub fn count(&self) -> usize {
        self.count.load(Ordering::Acquire)
    }
}

/// Writes all of it, for what is printed at once. A reader that has gone is no error: it has seen enough.
pub fn print(text: &[u8]) -> io::Result<()> {
    match unbuffered().and_then(|mut out| out.write_all(text)) {
        Err(error) if error.kind() == io::ErrorKind::BrokenPipe => Ok(()),
        result => result,
    }
}

/// Whether standard output is a pipe that nobody reads any more.
pub fn reader_is_gone() -> bool {
    let out = io::stdout();
    let mut fds = [PollFd::new(&out, PollFlags::empty())];
    let polled = poll(&mut fds, Some(&rustix::event::Timespec { tv_sec: 0, tv_nsec: 0 }));
    polled.is_ok() && fds[0].revents().contains(PollFlags::ERR)
}

fn unbuffered() -> io::Result<File> {
    Ok(File::from(io::stdout().as_fd().try_clone_to_owned()?))
}

fn write_counted(out: &mut impl Write, texts: &[Vec<u8>], printed: &AtomicUsize) -> io::Result<()> {
    let mut buffer = Vec::with_capacity(WRITE_BYTES);
    for (index, text) in texts.iter().enumerate() {
        buffer.extend_from_slice(text);
        if buffer.len() >= WRITE_BYTES || index + 1 == texts.len() {
            out.write_all(&buffer)?;
            out.flush()?;
            buffer.clear();
            printed.store(index + 1, Ordering::Release);
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    struct Full {
        room: usize,
        taken: Vec<u8>,
    }

    impl Write for Full {
        fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
            let count = bytes.len().min(self.room - self.taken.len());
            self.taken.extend_from_slice(&bytes[..count]);
            if count == 0 { Err(io::ErrorKind::BrokenPipe.into()) } else { Ok(count) }
        }

        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }

    #[test]
    fn only_what_was_written_whole_counts() {
        let texts = vec![vec![b'x'; WRITE_BYTES / 2]; 5];
        for (room, expected) in [(0, 0), (WRITE_BYTES - 1, 0), (WRITE_BYTES, 2), (2 * WRITE_BYTES + 1, 4)] {
            let printed = AtomicUsize::new(0);
            let mut out = Full { room, taken: Vec::new() };
            assert!(write_counted(&mut out, &texts, &printed).is_err());
            assert_eq!(printed.into_inner(), expected, "room {room}");
        }
        let printed = AtomicUsize::new(0);
        write_counted(&mut Vec::new(), &texts, &printed).unwrap();
        assert_eq!(printed.into_inner(), 5);
    }
}

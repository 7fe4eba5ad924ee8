//! Receive windows: what a client may have sent on a connection that nobody has read yet.
//!
//! HTTP/2 keeps such bytes in memory, whether or not there is memory for their requests. What windows have beyond the
//! protocol's own first one comes from a pool, [`WINDOWS_BYTES`]. Each new connection gets a share of what is left, so the
//! first ones are fast over long ways too; one that is among many keeps [`WINDOW_BYTES_MIN`]. Those are not in the memory
//! budget: 1,024 connections, the default, whose clients all send what nobody reads hold 64 MiB in them.

use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};

/// All windows, besides the least that each connection has.
pub const WINDOWS_BYTES: u32 = 12 << 20;
/// The least that a connection has: the protocol's own first window.
const WINDOW_BYTES_MIN: u32 = 65_535;
/// A connection gets this part of what is left.
const SHARE: u32 = 12;

/// See the module's header. Clones share the pool.
#[derive(Clone, Debug)]
pub struct Windows {
    left: Arc<AtomicU32>,
}

/// The window of one connection; given back when dropped.
#[derive(Debug)]
pub struct Window {
    pool: Windows,
    taken: u32,
}

impl Default for Windows {
    fn default() -> Self {
        Self { left: Arc::new(AtomicU32::new(WINDOWS_BYTES)) }
    }
}

impl Windows {
    /// For one more connection. Only one task takes windows.
    pub fn take(&self) -> Window {
        let share = self.left.load(Ordering::Relaxed) / SHARE;
        let taken = if share > WINDOW_BYTES_MIN { share } else { 0 };
        self.left.fetch_sub(taken, Ordering::Relaxed);
        Window { pool: self.clone(), taken }
    }
}

impl Window {
    pub fn bytes(&self) -> u32 {
        self.taken.max(WINDOW_BYTES_MIN)
    }

    /// Streams at one time. For each small frame that it has not handed out HTTP/2 charges up to 256 bytes to half of the
    /// window, and ends a connection that exceeds it; so many first frames may come at once.
    pub fn streams_max(&self, most: u32) -> u32 {
        (self.bytes() / 512).min(most)
    }

    /// Of each stream: one whose request waits for memory leaves most of the window to the others.
    pub fn stream_bytes(&self) -> u32 {
        self.bytes() / 4
    }
}

impl Drop for Window {
    fn drop(&mut self) {
        self.pool.left.fetch_add(self.taken, Ordering::Relaxed);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn however_many_connections_there_are_their_windows_have_a_bound() {
        let windows = Windows::default();
        let mut taken: Vec<Window> = (0..1_024).map(|_| windows.take()).collect();
        let bytes: Vec<u32> = taken.iter().map(Window::bytes).collect();
        assert!(bytes.is_sorted_by(|one, next| one >= next));
        assert_eq!((bytes[0], bytes[1_023]), (1 << 20, WINDOW_BYTES_MIN));
        assert_eq!((taken[0].streams_max(1_024), taken[1_023].streams_max(1_024)), (1_024, 127));
        let all: u64 = bytes.iter().map(|bytes| u64::from(*bytes)).sum();
        assert!(all <= u64::from(WINDOWS_BYTES) + 1_024 * u64::from(WINDOW_BYTES_MIN), "{all}");
        taken.truncate(1);
        assert_eq!(windows.take().bytes(), bytes[1], "what others had was given back");
        drop(taken);
        assert_eq!(windows.left.load(Ordering::Relaxed), WINDOWS_BYTES);
    }
}

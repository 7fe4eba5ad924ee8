//! Ctrl-C and SIGTERM as events, so that commands can put things in order before they end.

use std::io;

use tokio::signal::unix::{SignalKind, signal};

use crate::errors::{CtlError, Signal};

/// Both signals; while this exists, they do not end the process.
#[derive(Debug)]
pub struct Signals {
    interrupt: tokio::signal::unix::Signal,
    terminate: tokio::signal::unix::Signal,
}

impl Signals {
    /// Starts to listen. Needs the runtime.
    pub fn listen() -> Result<Self, CtlError> {
        let failed = |source: io::Error| CtlError::Input { path: "signals".to_owned(), source };
        Ok(Self {
            interrupt: signal(SignalKind::interrupt()).map_err(failed)?,
            terminate: signal(SignalKind::terminate()).map_err(failed)?,
        })
    }

    /// The next signal. Cancel-safe.
    pub async fn next(&mut self) -> Signal {
        tokio::select! {
            _ = self.interrupt.recv() => Signal::Interrupt,
            _ = self.terminate.recv() => Signal::Terminate,
        }
    }
}

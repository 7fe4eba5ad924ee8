//! Work on a data directory that no server holds: [`fsck`] looks for damage, [`rebuild`] makes a checkpoint of what is
//! left when there is none, [`dump`] prints every stored message.
//!
//! Results go to standard output, errors and progress to standard error; the caller turns an [`Outcome`] into the exit
//! code. The directory's lock is held meanwhile; only a rebuild changes anything. Memory is that of the server's own
//! state, and a few ranges of offsets for each queue.

mod coverage;
pub mod dump;
pub mod fsck;
mod load;
pub mod rebuild;
mod report;

use std::io;
use std::path::Path;
use std::sync::Arc;

pub use report::Format;

use crate::disk::RealDisk;
use crate::log::LogError;
use crate::log::inspect::Inspection;

/// What a run came to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Outcome {
    Clean,
    /// Something is not what was written; each thing was told.
    Damaged,
}

/// Why a run did not come to its end.
#[derive(Debug, thiserror::Error)]
pub enum OfflineError {
    #[error(transparent)]
    Log(#[from] LogError),
    #[error("cannot write to standard output: {0}")]
    Output(#[from] io::Error),
    #[error("{0}")]
    Queue(String),
}

impl OfflineError {
    /// Whether the reader of standard output has gone: it has seen enough.
    pub fn is_closed_pipe(&self) -> bool {
        matches!(self, Self::Output(error) if error.kind() == io::ErrorKind::BrokenPipe)
    }
}

fn open(data_dir: &Path) -> Result<Inspection, LogError> {
    Inspection::open(Arc::new(RealDisk::new(data_dir)))
}

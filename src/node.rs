//! A broker on a data directory of the real disk, and what its opening found told in the process's log.

use std::path::Path;
use std::sync::Arc;

use crate::broker::{self, OpenError, Opened};
use crate::disk::RealDisk;

/// Opens the data directory, makes it if there is none, and recovers what it holds. Blocks until that is done.
///
/// # Errors
/// What keeps the log from being opened; [`OpenError`] says what to do.
pub fn open(data_dir: &Path, segment_bytes: u64) -> Result<Opened, OpenError> {
    let opened = broker::open(Arc::new(RealDisk::new(data_dir)), segment_bytes)?;
    tell(&opened);
    Ok(opened)
}

fn tell(opened: &Opened) {
    for torn in &opened.torn {
        tracing::warn!(?torn, "the log ended in a commit that was never finished; its bytes are kept");
    }
    for damage in &opened.damage {
        tracing::error!(
            ?damage,
            "data loss: a part of the log is damaged; what it held is lost, the rest is served"
        );
    }
    for lost in &opened.lost {
        let (queue, first, end) = (&lost.name, lost.first, lost.end);
        tracing::error!(%queue, %first, %end, "data loss: messages of a queue are lost with a damaged part of the log");
    }
    for of in &opened.left_out {
        let (queue, first, end) = (&of.name, of.first, of.end);
        tracing::error!(%queue, %first, %end, "data loss: a damaged part of the log may have held messages of this queue with some of these offsets; they are left out");
    }
    for segment in &opened.missing {
        tracing::error!(%segment, "data loss: a segment of the log is missing; its messages are lost");
    }
    for path in &opened.set_aside {
        tracing::warn!(path = %path.display(), "a file was not of the log; it is kept");
    }
}

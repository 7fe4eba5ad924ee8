//! The disk's own limit: messages gathered into one buffer, one write, one sync, and again.

use std::fs::File;
use std::io::Write as _;
use std::os::unix::fs::FileExt as _;
use std::path::Path;
use std::time::{Duration, Instant};

use forebay_testkit::payload::Random;

use crate::Failure;

/// As long as a segment; written over and over, so that no block is allocated while the clock runs.
const FILE_BYTES: usize = 64 << 20;
/// What a commit adds to its messages, rounded up to whole blocks.
const COMMIT_OVERHEAD: usize = 4 << 10;

/// What one commit holds.
#[derive(Clone, Copy, Debug)]
pub struct Commit {
    pub messages: usize,
    pub body_bytes: usize,
}

/// Commits, as messages a second.
pub fn messages_per_second(folder: &Path, time: Duration, commit: Commit) -> Result<f64, Failure> {
    let mut file = File::create(folder.join("raw"))?;
    file.write_all(&vec![0; FILE_BYTES])?;
    file.sync_all()?;
    let messages: Vec<_> =
        (0..commit.messages as u64).map(|seed| Random::new(seed).bytes(commit.body_bytes)).collect();
    let length = commit.messages * commit.body_bytes + COMMIT_OVERHEAD;
    let mut buffer = Vec::with_capacity(length);
    let (mut commits, mut position) = (0, 0);
    let start = Instant::now();
    while start.elapsed() < time {
        buffer.clear();
        messages.iter().for_each(|message| buffer.extend_from_slice(message));
        buffer.resize(length, 0);
        file.write_all_at(&buffer, position as u64)?;
        file.sync_data()?;
        commits += 1;
        position = if position + 2 * length > FILE_BYTES { 0 } else { position + length };
    }
    Ok((commits * commit.messages) as f64 / start.elapsed().as_secs_f64())
}

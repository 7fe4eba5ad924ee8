//! The disk without a server: the same schedule, all that is due written by one write and one sync, beside bare reads or
//! none.
//!
//! What is slow here is slow for everybody: the disk, its host, the time that a machine takes away.

use std::fs::File;
use std::os::unix::fs::FileExt as _;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use rustix::fs::{Advice, fadvise};

use crate::Failure;
use crate::samples::{Samples, Window};
use crate::schedule::Schedule;

/// A write is a multiple of this.
const BLOCK_BYTES: u64 = 4 << 10;
/// What a pull of [`super::PULL`] messages reads.
const READ_BYTES: usize = (super::PULL * super::SIZE) as usize;
/// As long as a segment; written over and over.
const FILE_BYTES: usize = 64 << 20;

/// Files that are read one behind the other, each from its beginning to its end, at this pace.
pub struct Reads {
    pub files: Vec<PathBuf>,
    pub bytes_per_second: f64,
}

/// Writes and syncs on the schedule; latencies from the time at which each was due.
pub fn measure(folder: &Path, schedule: Schedule, reads: Option<Reads>) -> Result<Samples, Failure> {
    let path = folder.join("bare");
    std::fs::write(&path, vec![0; FILE_BYTES])?;
    let file = File::options().write(true).open(&path)?;
    file.sync_all()?;
    let ended = AtomicBool::new(false);
    std::thread::scope(|scope| {
        let reading = reads.map(|reads| scope.spawn(|| read(reads, &ended)));
        let written = write(&file, schedule);
        ended.store(true, Ordering::Relaxed);
        reading.map_or(Ok(()), |reading| reading.join().expect("reading does not panic"))?;
        written
    })
}

fn write(file: &File, schedule: Schedule) -> Result<Samples, Failure> {
    let start = Instant::now();
    let mut samples = Samples::new(Window { start, warm_up: super::WARM_UP, length: None });
    let due = |number: u64| start + schedule.due(number);
    let (mut next, mut position) = (0, 0);
    while next < schedule.messages() {
        std::thread::sleep(due(next).saturating_duration_since(Instant::now()));
        let now = Instant::now();
        let end =
            (next..schedule.messages()).find(|number| due(*number) > now).unwrap_or(schedule.messages());
        let bytes = ((end - next).max(1) * super::SIZE).next_multiple_of(BLOCK_BYTES).min(FILE_BYTES as u64);
        position = if position + bytes > FILE_BYTES as u64 { 0 } else { position };
        file.write_all_at(&vec![1; bytes as usize], position)?;
        file.sync_data()?;
        position += bytes;
        let done = Instant::now();
        (next..end).for_each(|number| samples.took(due(number), done));
        next = end;
    }
    Ok(samples)
}

/// Reads until the end of the files, or until it is ended.
fn read(reads: Reads, ended: &AtomicBool) -> Result<(), Failure> {
    let (start, mut bytes) = (Instant::now(), 0);
    let mut buffer = vec![0; READ_BYTES];
    for path in reads.files {
        let file = File::open(path)?;
        fadvise(&file, 0, None, Advice::Random)?;
        let mut position = 0;
        loop {
            if ended.load(Ordering::Relaxed) {
                return Ok(());
            }
            let due = start + Duration::from_secs_f64(bytes as f64 / reads.bytes_per_second);
            std::thread::sleep(due.saturating_duration_since(Instant::now()));
            let read = file.read_at(&mut buffer, position)?;
            if read == 0 {
                break;
            }
            position += read as u64;
            bytes += read;
        }
    }
    Ok(())
}

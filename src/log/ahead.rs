//! How far a segment's file is read ahead of who reads it.
//!
//! A sync waits behind the reads that the disk has begun, and how much a system reads ahead of its own is a setting of
//! the machine: 8 MiB at a time on some, which is tens of milliseconds of a disk's time. So the system's own is off
//! here. Who reads one place after the other has as much read ahead as was read so far, up to [`AHEAD_BYTES_MAX`]; who
//! reads here and there, nothing. Of several readers of a file the one that is ahead counts: the others find what it has
//! read. Readers that are far apart have nothing read ahead.

use std::ops::Range;
use std::sync::{Arc, Mutex, PoisonError};

use crate::disk::{DiskError, DiskFile};

/// Enough for a disk to be busy while what was read before is delivered.
const AHEAD_BYTES_MAX: u64 = 512 << 10;
/// Who leaves out no more than this goes on in order.
const GAP_BYTES: u64 = 16 << 10;

/// A file that is read ahead of its readers.
#[derive(Debug)]
pub struct ReadAhead {
    file: Arc<dyn DiskFile>,
    place: Mutex<Place>,
}

impl ReadAhead {
    pub fn of(file: Arc<dyn DiskFile>) -> Self {
        file.read_nothing_ahead();
        Self { file, place: Mutex::default() }
    }

    /// Fills the buffer with the bytes at a position.
    pub fn read_at(&self, buffer: &mut [u8], position: u64) -> Result<(), DiskError> {
        let read = position..position + buffer.len() as u64;
        let ahead = self.place.lock().unwrap_or_else(PoisonError::into_inner).read(read);
        self.file.read_at(buffer, position)?;
        // Behind the read, so that what is wanted now comes first.
        if let Some(ahead) = ahead {
            self.file.will_read(ahead.start, ahead.end - ahead.start);
        }
        Ok(())
    }
}

/// Where the furthest of a file's readers is.
#[derive(Debug, Default)]
struct Place {
    /// From here on it was read in order.
    start: u64,
    next: u64,
    /// As far as was read ahead.
    ahead: u64,
}

impl Place {
    /// What to read ahead beside this read.
    fn read(&mut self, read: Range<u64>) -> Option<Range<u64>> {
        if read.start > self.next + GAP_BYTES || read.start < self.start {
            *self = Self { start: read.start, next: read.end, ahead: read.end };
            return None;
        }
        if read.end <= self.next {
            return None;
        }
        self.next = read.end;
        self.ahead = self.ahead.max(read.end);
        let window = (read.end - self.start).min(AHEAD_BYTES_MAX);
        if self.ahead >= read.end + window / 2 {
            return None;
        }
        let from = std::mem::replace(&mut self.ahead, read.end + window);
        Some(from..self.ahead)
    }
}

#[cfg(test)]
mod tests {
    use std::io::IoSlice;

    use super::*;

    const KIB: u64 = 1 << 10;

    fn read(place: &mut Place, from_kib: u64, to_kib: u64) -> Option<(u64, u64)> {
        let ahead = place.read(from_kib * KIB..to_kib * KIB)?;
        Some((ahead.start / KIB, ahead.end / KIB))
    }

    #[test]
    fn who_reads_in_order_has_as_much_read_ahead_as_was_read_up_to_the_most() {
        let mut place = Place::default();
        assert_eq!(read(&mut place, 1_000, 1_100), None, "the first");
        assert_eq!(read(&mut place, 1_100, 1_200), Some((1_200, 1_400)));
        assert_eq!(read(&mut place, 1_216, 1_300), Some((1_400, 1_600)), "the gap is small");
        assert_eq!(read(&mut place, 1_300, 1_400), None, "enough of it is left");
        assert_eq!(read(&mut place, 1_400, 1_500), Some((1_600, 2_000)));
        for turn in 0..100 {
            let at = 1_500 + turn * 100;
            if let Some((from, to)) = read(&mut place, at, at + 100) {
                assert!(from >= at + 100 && to <= at + 100 + 512, "{from} to {to}");
            }
        }
        let ahead = place.ahead / KIB;
        assert!((11_500 + 256..=11_500 + 512).contains(&ahead), "{ahead}");
    }

    #[test]
    fn who_reads_here_and_there_has_nothing_read_ahead() {
        let mut place = Place::default();
        for at in [5_000, 900, 40_000, 39_000, 100, 200, 60_000] {
            let at = at * 100;
            assert_eq!(read(&mut place, at, at + 16), None, "{at}");
        }
        assert_eq!(read(&mut place, 6_000_016 + 17, 6_000_100), None, "the gap is too large");
        assert_eq!(read(&mut place, 6_000_100, 6_000_200), Some((6_000_200, 6_000_367)));
    }

    #[test]
    fn a_run_read_part_by_part_is_read_in_order() {
        let mut place = Place::default();
        assert_eq!(read(&mut place, 1_000, 1_016), None);
        assert_eq!(read(&mut place, 1_000, 1_100), Some((1_100, 1_200)));
        assert_eq!(read(&mut place, 1_000, 1_016), None, "its head again");
        assert_eq!(read(&mut place, 1_100, 1_200), Some((1_200, 1_400)));
    }

    #[test]
    fn who_reads_a_file_again_has_it_read_ahead_again() {
        let mut place = Place::default();
        assert_eq!(read(&mut place, 1_000, 1_100), None);
        assert_eq!(read(&mut place, 1_100, 1_200), Some((1_200, 1_400)));
        assert_eq!(read(&mut place, 800, 900), None);
        assert_eq!(read(&mut place, 900, 1_000), Some((1_000, 1_200)));
    }

    #[derive(Debug, Default)]
    struct Recorder(Mutex<Vec<String>>);

    impl Recorder {
        fn note(&self, what: String) {
            self.0.lock().unwrap().push(what);
        }
    }

    impl DiskFile for Recorder {
        fn read_at(&self, buffer: &mut [u8], position: u64) -> Result<(), DiskError> {
            self.note(format!("read {} at {position}", buffer.len()));
            Ok(())
        }

        fn read_nothing_ahead(&self) {
            self.note("nothing ahead".to_owned());
        }

        fn will_read(&self, position: u64, length: u64) {
            self.note(format!("ahead {length} at {position}"));
        }

        fn write_at(&self, _: &mut [IoSlice<'_>], _: u64) -> Result<(), DiskError> {
            unreachable!("segments are only read here")
        }

        fn sync_data(&self) -> Result<(), DiskError> {
            unreachable!("segments are only read here")
        }

        fn allocate(&self, _: u64) -> Result<bool, DiskError> {
            unreachable!("segments are only read here")
        }

        fn length(&self) -> Result<u64, DiskError> {
            unreachable!("segments are only read here")
        }
    }

    #[test]
    fn the_system_reads_nothing_ahead_and_what_is_read_ahead_comes_behind_the_read() {
        let recorder = Arc::new(Recorder::default());
        let file = ReadAhead::of(recorder.clone());
        for at in [1_000_000, 1_001_000, 5_000_000] {
            file.read_at(&mut [0; 1_000], at).unwrap();
        }
        let noted = recorder.0.lock().unwrap();
        let (first, second, far) = ("read 1000 at 1000000", "read 1000 at 1001000", "read 1000 at 5000000");
        assert_eq!(*noted, ["nothing ahead", first, second, "ahead 2000 at 1002000", far]);
    }
}

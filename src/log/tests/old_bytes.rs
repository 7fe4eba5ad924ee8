//! What is left in a file of its earlier life is never taken for the log, and the log never for that.

use std::io::IoSlice;
use std::ops::Range;

use super::super::assemble::Assembler;
use super::super::frame::{FRAME_HEADER_BYTES, FRAME_TRAILER_BYTES, FrameHeader, salted};
use super::super::salvage::search;
use super::super::segment::{SEGMENT_HEADER_BYTES, Salts};
use super::super::tail::Chain;
use super::super::window::Window;
use super::super::*;
use super::crash::{CrashDisk, Unsynced};
use super::recycling::{SIZE, flow};
use super::support::*;
use crate::disk::{Disk, DiskFile};

const SECTOR: usize = 512;

/// A log all of whose open segments are recycled, with messages of other sizes from the second offset on; both.
fn recycled_log() -> (CrashDisk, u64, u64) {
    let disk = CrashDisk::default();
    let mut harness = try_open(Arc::new(disk.clone()), options()).unwrap();
    let mut end = 0;
    while end < 100 || harness.log.counters().segments_recycled.get() < 10 {
        flow(&mut harness, end..end + 5);
        end += 5;
    }
    harness.log.close().unwrap();
    (disk, end - 5, end)
}

/// A log that ends in one frame, with old bytes behind it.
struct Ended {
    disk: CrashDisk,
    path: String,
    /// The last frame, what stood there and behind before, and the message in it.
    frame: Range<usize>,
    payload_end: usize,
    before: Vec<u8>,
    message: u64,
}

/// Where it ends depends on when files were ready: it is made anew until there are old bytes behind it and a frame of
/// so many bytes.
fn ended(size: usize, frame_len: usize) -> Ended {
    let made = (0..100).find_map(|_| try_ended(size).filter(|ended| ended.frame.len() == frame_len));
    made.expect("a log ends before old bytes")
}

fn try_ended(size: usize) -> Option<Ended> {
    let (disk, _, message) = recycled_log();
    let mut harness = try_open(Arc::new(disk.clone()), options()).unwrap();
    let before = disk.after_crash(Unsynced::Kept);
    let location = harness.commit(vec![run(message, 1, size)])[0].location;
    drop(harness);
    let path = segment::path(location.segment);
    let (bytes, before) = (disk.bytes(&path), before.bytes(&path));
    let at = location.position as usize / 4096 * 4096;
    let header =
        FrameHeader::claimed(&bytes[at..]).expect("a record of one frame is its first or follows a listing");
    let end = at + header.frame_len() as usize;
    if before[end..].iter().all(|byte| *byte == 0) {
        return None;
    }
    disk.open(&path).unwrap().write_at(&mut [IoSlice::new(&before[end..])], end as u64).unwrap();
    let payload_end = at + FRAME_HEADER_BYTES + header.payload_len as usize;
    Some(Ended { disk, path, frame: at..end, payload_end, before, message })
}

impl Ended {
    /// Opens a copy in which `part` of the last frame is `with`.
    fn check(&self, part: Range<usize>, with: &[u8]) {
        let disk = self.disk.after_crash(Unsynced::Kept);
        let file = disk.open(&self.path).unwrap();
        file.write_at(&mut [IoSlice::new(with)], part.start as u64).unwrap();
        let now = disk.bytes(&self.path);
        let differs =
            (self.frame.start..self.payload_end).any(|at| now[at] != self.disk.bytes(&self.path)[at]);
        let harness = try_open(Arc::new(disk.clone()), options()).unwrap();
        let report = harness.log.report();
        assert_eq!((report.damage.len(), report.set_aside.len()), (0, 0), "{part:?}");
        assert_eq!(harness.find(self.message).is_some(), !differs, "{part:?}");
        assert_eq!(report.torn.len(), usize::from(differs), "{part:?}: {:?}", report.torn);
        if let [torn] = &report.torn[..] {
            assert_eq!(torn.position as usize..(torn.position + torn.bytes) as usize, self.frame, "{part:?}");
            let copy = disk.bytes(&torn.copy.to_string_lossy());
            assert_eq!(copy, &now[self.frame.clone()]);
        }
        drop(harness);
        assert_eq!(try_open(Arc::new(disk), options()).unwrap().log.report().torn, []);
    }
}

#[test]
fn a_damaged_last_frame_is_told_from_what_was_there_before() {
    for (size, frame_len) in [(700, 4_096), (9_000, 12_288)] {
        let ended = ended(size, frame_len);
        let bytes = ended.disk.bytes(&ended.path);
        let same = ended.frame.start..ended.frame.start + 1;
        ended.check(same.clone(), &bytes[same]);
        for at in ended.frame.clone().step_by(SECTOR) {
            let sector = at..at + SECTOR;
            ended.check(sector.clone(), &[0; SECTOR]);
            ended.check(sector.clone(), &[0x5a; SECTOR]);
            ended.check(sector.clone(), &ended.before[sector]);
        }
        let trailer = ended.frame.end - FRAME_TRAILER_BYTES..ended.frame.end;
        let header = ended.frame.start..ended.frame.start + FRAME_HEADER_BYTES;
        for at in header.chain(trailer).step_by(5).chain(ended.frame.clone().step_by(613)) {
            ended.check(at..at + 1, &[bytes[at] ^ (1 << (at % 8))]);
        }
    }
}

#[test]
fn every_bit_of_a_frame_can_flip_and_it_is_known() {
    const SALT: u64 = 77;
    let (segment, next) = (SegmentNumber(5), Chain { lsn: Lsn(50), sequence: 9, ..Chain::default() });
    let mut assembler = Assembler::default();
    assembler.begin(|_| ());
    assembler.push(&run(0, 1, 4_500), next.lsn);
    let header = FrameHeader {
        payload_crc: 0,
        payload_len: 0,
        count: 0,
        previous_crc: 1,
        first_lsn: next.lsn,
        epoch: 1,
        segment,
        sequence: next.sequence,
        log_time_us: 1,
    };
    let (_, length) = assembler.finish(header, SALT);
    let frame: Vec<u8> = assembler.parts().0.iter().flat_map(|part| part.to_vec()).collect();
    let disk = CrashDisk::default();
    let file: Arc<dyn DiskFile> = disk.create("file").unwrap();
    let write = |bytes: &[u8], at| file.write_at(&mut [IoSlice::new(bytes)], at).unwrap();
    write(&[0xa5; 5 * 4096], 0);
    let used_to = |of: u64, chain: &Chain| {
        let mut window = Window::new(file.clone(), 5 * 4096);
        let seen = search(&mut window, SegmentNumber(of), Some(SALT), chain, 4096..5 * 4096).unwrap();
        (seen.used_to, seen.later.is_some())
    };
    assert_eq!(used_to(5, &next), (None, false), "old bytes alone");
    write(&frame, 4096);
    let end = Some(4096 + length);
    assert_eq!(used_to(5, &next), (end, false));
    assert_eq!(used_to(6, &next), (None, false), "a frame of another segment");
    assert_eq!(used_to(5, &Chain { sequence: 10, ..next }), (None, false), "an earlier frame");
    assert!(used_to(5, &Chain { sequence: 8, lsn: Lsn(49), ..next }).1, "a later frame");
    for bit in 0..8 * frame.len() {
        let at = bit / 8;
        let flipped = frame[at] ^ (1 << (bit % 8));
        write(&[flipped], 4096 + at as u64);
        assert_eq!(used_to(5, &next), (end, false), "bit {bit}");
        let mut hit = frame.clone();
        hit[at] = flipped;
        let payload = &hit[FRAME_HEADER_BYTES..][..header_len(&frame)];
        let good = FrameHeader::decode(&hit, SALT)
            .is_ok_and(|(header, _)| header.payload_crc == salted(SALT, payload));
        assert_eq!(good, at >= FRAME_HEADER_BYTES + header_len(&frame), "bit {bit}");
        write(&[frame[at]], 4096 + at as u64);
    }
}

fn header_len(frame: &[u8]) -> usize {
    FrameHeader::claimed(frame).expect("it is a frame").payload_len as usize
}

#[test]
fn a_begun_segment_is_known_without_its_header_and_a_blank_one_by_it() {
    let (disk, first, end) = recycled_log();
    let mut harness = try_open(Arc::new(disk.clone()), options()).unwrap();
    let begun = harness.commit(vec![run(end, 1, SIZE)])[0].location.segment;
    let mut offset = end;
    let place = loop {
        offset += 1;
        let place = harness.commit(vec![run(offset, 1, SIZE)])[0].location;
        if place.segment != begun {
            break place;
        }
    };
    drop(harness);
    let path = segment::path(place.segment);
    let zero = |disk: &CrashDisk, from: u64, length: usize| {
        disk.open(&path).unwrap().write_at(&mut [IoSlice::new(&vec![0; length])], from).unwrap();
    };
    // The frames behind the first one: what is left is the write that began the segment.
    let bytes = disk.bytes(&path);
    let first_frame = FrameHeader::claimed(&bytes[SEGMENT_HEADER_BYTES..]).unwrap().frame_len() as usize;
    let lost_header = disk.after_crash(Unsynced::Kept);
    zero(&lost_header, 0, SECTOR);
    match try_open(Arc::new(lost_header), options()) {
        Err(LogError::Corrupt { segment, .. }) => {
            assert_eq!(segment, place.segment, "a later frame is there")
        }
        Err(error) => panic!("{error}"),
        Ok(harness) => assert_eq!(harness.log.report().torn.len(), 1),
    }
    let behind = SEGMENT_HEADER_BYTES + first_frame;
    let lost_header = disk.after_crash(Unsynced::Kept);
    zero(&lost_header, 0, SECTOR);
    zero(&lost_header, behind as u64, bytes.len() - behind);
    let harness = try_open(Arc::new(lost_header), options()).unwrap();
    let torn = &harness.log.report().torn;
    assert_eq!((torn.len(), torn[0].segment, torn[0].position), (1, place.segment, 0));
    assert_eq!(torn[0].bytes as usize, behind);
    (first..offset).for_each(|message| harness.assert_has(message, SIZE));
    assert_eq!(harness.find(offset), None);
    drop(harness);
    // Not begun: the same without a frame of its own, whatever else is behind the header.
    let blank = disk.after_crash(Unsynced::Kept);
    zero(&blank, 0, behind);
    blank.open(&path).unwrap().write_at(&mut [IoSlice::new(&[9; 100_000])], 4096).unwrap();
    let harness = try_open(Arc::new(blank), options()).unwrap();
    assert_eq!(harness.log.report().torn, []);
}

#[test]
fn unlisted_files_with_frames_of_their_own_are_kept() {
    let (disk, _, end) = recycled_log();
    let mut harness = try_open(Arc::new(disk.clone()), options()).unwrap();
    harness.publish(end, end + 3, SIZE);
    drop(harness);
    let used = disk.names("log").into_iter().filter_map(|name| segment::parse_name(&name)).min().unwrap();
    // An old one without its header, under a number that the log does not know and that its frames do not have; and
    // one that the log has dropped, come back.
    let mut bytes = disk.bytes(&segment::path(used));
    bytes[..SEGMENT_HEADER_BYTES].fill(0);
    let strange = SegmentNumber(900);
    let put = |segment: SegmentNumber, bytes: &[u8]| {
        let file = disk.create(&segment::path(segment)).unwrap();
        file.write_at(&mut [IoSlice::new(bytes)], 0).unwrap();
    };
    put(strange, &bytes);
    let harness = try_open(Arc::new(disk.clone()), options()).unwrap();
    assert_eq!(harness.log.report().set_aside, Vec::<PathBuf>::new());
    assert!(!disk.exists(&segment::path(strange)).unwrap(), "it has nothing that belongs to it");
    drop(harness);
    let salts = Salts::new(&identity_key(&disk));
    let header = FrameHeader { segment: strange, ..frame_header() };
    bytes[SEGMENT_HEADER_BYTES..][..FRAME_HEADER_BYTES].copy_from_slice(&header.encode(salts.of(strange)).0);
    put(strange, &bytes);
    let harness = try_open(Arc::new(disk.clone()), options()).unwrap();
    assert_eq!(harness.log.report().set_aside.len(), 1);
    assert_eq!(disk.bytes(&harness.log.report().set_aside[0].to_string_lossy()), bytes);
}

fn identity_key(disk: &CrashDisk) -> [u8; 32] {
    directory::Identity::decode(&disk.bytes("IDENTITY")).unwrap().mac_key
}

fn frame_header() -> FrameHeader {
    FrameHeader {
        payload_crc: 0,
        payload_len: 1,
        count: 1,
        previous_crc: 0,
        first_lsn: Lsn(1),
        epoch: 1,
        segment: SegmentNumber(1),
        sequence: 1,
        log_time_us: 0,
    }
}

/// Goes on with a log until the disk fails after `operations`, if it does: the first message that may be needed, and
/// the end of those that are committed.
fn until_power_goes(disk: &CrashDisk, first: u64, end: u64, operations: Option<u64>) -> (u64, u64) {
    operations.iter().for_each(|operations| disk.fail_after(*operations));
    let (mut first, mut committed) = (first, end);
    let Ok(mut harness) = try_open(Arc::new(disk.clone()), options()) else { return (first, committed) };
    for offset in end..end + 24 {
        let ticket = harness.submit(vec![run(offset, 1, SIZE)]);
        if harness.wait(ticket).is_err() {
            break;
        }
        committed = offset + 1;
        if offset % 4 == 0 {
            first = offset - 2;
            if harness.checkpoint(b"any", first).is_err() {
                break;
            }
        }
    }
    (first, committed)
}

/// Lets the power go at each operation of a flow over recycled files; each time the log has what was committed.
fn sweep(step: usize, unsynced: impl Fn(u64) -> Unsynced) {
    let (base, first, end) = recycled_log();
    let whole = base.after_crash(Unsynced::Kept);
    until_power_goes(&whole, first, end, None);
    let mut torn = 0;
    for n in (0..whole.operations()).step_by(step) {
        let disk = base.after_crash(Unsynced::Kept);
        let (first, committed) = until_power_goes(&disk, first, end, Some(n));
        let disk = disk.after_crash(unsynced(n));
        let mut harness =
            try_open(Arc::new(disk.clone()), options()).unwrap_or_else(|error| panic!("{n}: {error}"));
        let report = harness.log.report();
        assert_eq!((report.damage.len(), report.set_aside.len(), report.missing.len()), (0, 0, 0), "{n}");
        assert!(report.torn.len() <= usize::from(unsynced(n) != Unsynced::Lost), "{n}: {:?}", report.torn);
        torn += report.torn.len();
        let found = (committed..).find(|offset| harness.find(*offset).is_none()).unwrap();
        assert!(found <= committed + 1, "{n}: {committed} became {found}");
        (first..found).for_each(|offset| harness.assert_has(offset, SIZE));
        harness.publish(found, found + 8, SIZE);
        harness.log.close().unwrap();
        let harness = try_open(Arc::new(disk), options()).unwrap();
        assert_eq!((harness.log.report().torn.len(), harness.log.report().damage.len()), (0, 0), "{n}");
        (first..found + 8).for_each(|offset| harness.assert_has(offset, SIZE));
    }
    assert_eq!(torn > 0, unsynced(0) != Unsynced::Lost && unsynced(0) != Unsynced::Kept);
}

#[test]
fn a_power_cut_over_old_bytes_loses_nothing_and_reports_nothing() {
    sweep(4, |_| Unsynced::Lost);
}

#[test]
fn torn_writes_over_old_bytes_lose_nothing_that_was_committed() {
    sweep(2, Unsynced::Either);
}

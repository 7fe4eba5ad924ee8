//! Where the log ends: whether it may end there, and making the end firm.
//!
//! Only the last frame can have been in flight, and what lies behind it was found by [`super::salvage`] to hold no later
//! frame. If what stands there belongs to the log then the bad frame was torn, or cannot be told from one: its bytes are
//! copied to `quarantine/`, and zeroed only when the copy is durable, so that they can never be taken for a frame again.
//! What does not belong to the log is of the file's earlier life, and is written over. If the segment behind has lost
//! its header and holds committed frames, the log refuses to open and changes nothing.
//!
//! Bytes of damage that was passed are copied and stay.

use std::collections::HashSet;
use std::io::IoSlice;
use std::path::PathBuf;

use super::directory::list_if_there;
use super::error::{FrameFault, LogError};
use super::frame::{FRAME_ALIGN, FRAME_BYTES_MAX, FRAME_HEADER_BYTES, FRAME_TRAILER_BYTES};
use super::recovery::{FIRST_FRAME_AT, Opened, Recovery, open_listed, open_segment};
use super::reserve::Reserve;
use super::salvage::{Damage, Hole, is_zero, search};
use super::segment::{self, Blank, Salts};
use super::tail::{Chain, Current};
use super::window::Window;
use super::{index, packed};
use crate::disk::{Disk, DiskFile, Entry, join};
use crate::ids::SegmentNumber;

const COPY_BYTES: usize = 1 << 20;
/// How much of a segment that was not begun is looked at.
const BLANK_BYTES_READ: u64 = 1 << 20;
const QUARANTINE: &str = "quarantine";

/// Bytes that were taken out of the end of the log.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Torn {
    pub segment: SegmentNumber,
    pub position: u64,
    pub bytes: u64,
    /// What was wrong with them.
    pub what: FrameFault,
    /// Where they are kept.
    pub copy: PathBuf,
}

/// The end of the log, made firm.
#[derive(Debug, Default)]
pub struct Ending {
    pub torn: Vec<Torn>,
    pub damage: Vec<Damage>,
    /// Files that looked like segments and were not of the log, where they are now.
    pub set_aside: Vec<PathBuf>,
    /// Segments of the log whose files are not there.
    pub missing: Vec<SegmentNumber>,
    /// Listed segments that are not begun.
    pub blanks: Vec<Blank>,
    /// The largest number that any segment ever had.
    pub highest: SegmentNumber,
}

/// Bytes behind the end that no frame holds.
#[derive(Clone, Debug)]
pub struct Remains {
    pub segment: SegmentNumber,
    file: std::sync::Arc<dyn DiskFile>,
    pub from: u64,
    pub to: u64,
    pub what: FrameFault,
}

/// What there is at the end and beside the log. Nothing was changed.
#[derive(Debug)]
pub struct Judged {
    pub remains: Vec<Remains>,
    /// Listed segments that are not begun.
    pub blanks: Vec<Blank>,
    /// Files that look like segments and are not of the log.
    pub unlisted: Vec<SegmentNumber>,
    pub missing: Vec<SegmentNumber>,
    /// The largest number that any segment ever had.
    pub highest: SegmentNumber,
    entries: Vec<Entry>,
}

/// Judges the end that `recovery` came to, where `fault` stands; refuses one that may hide committed frames.
pub fn judge(recovery: &Recovery<'_>, fault: FrameFault) -> Result<Judged, LogError> {
    let mut remains = Vec::new();
    let mut blanks = Vec::new();
    refuse_short(recovery)?;
    judge_current(recovery, fault, &mut remains);
    for listed in &recovery.listed {
        let opened = open_listed(recovery.disk, *listed, recovery.cluster)?;
        let blank =
            Blank { segment: listed.segment, file: opened.current.file.clone(), bytes: opened.current.bytes };
        judge_blank(recovery, opened, &mut remains)?;
        blanks.push(blank);
    }
    let entries = recovery.disk.list("log")?;
    let unlisted = judge_unlisted(recovery, &entries)?;
    let there: HashSet<SegmentNumber> =
        entries.iter().filter_map(|entry| segment::parse_name(&entry.name)).collect();
    let members = recovery.set.members().map(|member| member.segment);
    let missing = members.filter(|segment| !there.contains(segment)).collect();
    let kept = list_if_there(recovery.disk, QUARANTINE)?;
    let highest = highest(recovery, entries.iter().chain(&kept));
    Ok(Judged { remains, blanks, unlisted, missing, highest, entries })
}

/// Judges the end that `recovery` came to, where `fault` stands, and makes it firm.
pub fn settle(recovery: &mut Recovery<'_>, fault: FrameFault) -> Result<Ending, LogError> {
    let Judged { remains, blanks, unlisted, missing, highest, entries } = judge(recovery, fault)?;
    // On a full disk this gives what making the end firm may need.
    Reserve::Checkpoint.release(recovery.disk)?;
    let mut ending = Ending { blanks, missing, highest, ..Ending::default() };
    for hole in &recovery.holes {
        ending.damage.push(keep_copy(recovery.disk, hole)?);
    }
    for remains in &remains {
        ending.torn.push(quarantine(recovery.disk, remains)?);
    }
    rewrite_last_frame(recovery)?;
    for segment in unlisted {
        if is_blank_file(recovery.disk, segment, &recovery.salts)? {
            recovery.disk.remove(&segment::path(segment))?;
        } else {
            ending.set_aside.push(set_aside(recovery.disk, segment)?);
        }
    }
    remove_temps(recovery.disk, &entries)?;
    Ok(ending)
}

/// Until the next segment is listed, the writer keeps a block free for that behind the last frame. A file that lacks it
/// was cut short: for the first segment nothing else says how long it was.
fn refuse_short(recovery: &Recovery<'_>) -> Result<(), LogError> {
    let Current { segment, position, bytes: found, .. } = recovery.current;
    let expected = position + FRAME_ALIGN;
    if !recovery.listed.is_empty() || found >= expected {
        return Ok(());
    }
    let path = recovery.disk.full_path(&segment::path(segment));
    Err(LogError::SegmentShort { segment, path, found, expected })
}

/// What is behind the last good frame in its own segment was never finished.
fn judge_current(recovery: &Recovery<'_>, fault: FrameFault, remains: &mut Vec<Remains>) {
    if let Some(to) = recovery.used_to {
        let (segment, from) = (recovery.current.segment, recovery.current.position);
        remains.push(Remains { segment, file: recovery.current.file.clone(), from, to, what: fault });
    }
}

/// Looks at a listed segment whose first frame does not follow.
fn judge_blank(
    recovery: &Recovery<'_>,
    mut opened: Opened,
    remains: &mut Vec<Remains>,
) -> Result<(), LogError> {
    let segment = opened.current.segment;
    if is_blank(&mut opened.window, segment, &recovery.salts, &recovery.chain)? {
        return Ok(());
    }
    let (salt, part) = (recovery.salts.of(segment), FIRST_FRAME_AT..opened.window.file_len());
    let seen = search(&mut opened.window, segment, Some(salt), &recovery.chain, part)?;
    let ahead = opened.header.is_some_and(|header| header.first_lsn > recovery.chain.lsn);
    let what = if opened.header.is_some() { FrameFault::Missing } else { FrameFault::SegmentHeader };
    if seen.later.is_some() || ahead {
        let behind = recovery.current.position;
        let (segment, position) = if ahead { (recovery.current.segment, behind) } else { (segment, 0) };
        return Err(LogError::Corrupt { segment, position, what });
    }
    // With nothing but a header to go by, what stands where the first frame would be may be that.
    let frame_end = FIRST_FRAME_AT + FRAME_BYTES_MAX;
    let to = seen.used_to.or(seen.filled_to.map(|filled| filled.min(frame_end))).unwrap_or(FIRST_FRAME_AT);
    remains.push(Remains { segment, file: opened.current.file, from: 0, to, what });
    Ok(())
}

/// Whether a segment was not begun: its header and its first frame are written together, at its start. The block of
/// the header was all zero; what stands behind it may be of the file's earlier life.
fn is_blank(
    window: &mut Window,
    segment: SegmentNumber,
    salts: &Salts,
    chain: &Chain,
) -> Result<bool, LogError> {
    let end = window.file_len().min(BLANK_BYTES_READ);
    let header = window.get(0, end.min(FIRST_FRAME_AT) as usize)?.expect("within the file");
    if !is_zero(header) {
        return Ok(false);
    }
    let seen = search(window, segment, Some(salts.of(segment)), chain, FIRST_FRAME_AT..end)?;
    Ok(seen.used_to.is_none() && seen.later.is_none())
}

/// The files in `log/` that the log does not list. One that continues the log means that its listing was lost.
fn judge_unlisted(recovery: &Recovery<'_>, entries: &[Entry]) -> Result<Vec<SegmentNumber>, LogError> {
    let mut unlisted = Vec::new();
    for segment in entries.iter().filter_map(|entry| segment::parse_name(&entry.name)) {
        // A dropped one goes when no checkpoint needs it any more.
        if recovery.set.contains(segment) || recovery.set.was_dropped(segment) {
            continue;
        }
        // A file of another cluster, or of a newer format, is not of this log either.
        let header =
            open_segment(recovery.disk, segment, recovery.cluster).ok().and_then(|opened| opened.header);
        if header.is_some_and(|header| header.first_lsn >= recovery.chain.lsn) {
            return Err(LogError::Corrupt { segment, position: 0, what: FrameFault::Unlisted });
        }
        unlisted.push(segment);
    }
    Ok(unlisted)
}

/// The same of a file, whatever its frames follow: all that verify are of the log.
pub fn is_blank_file(disk: &dyn Disk, segment: SegmentNumber, salts: &Salts) -> Result<bool, LogError> {
    let file = disk.open(&segment::path(segment))?;
    let mut window = Window::new(file.clone(), file.length()?);
    is_blank(&mut window, segment, salts, &Chain::default())
}

/// The highest number that a segment of the log ever had: those of packed ones are not among its numbers, though they
/// may lie in `quarantine/`, too.
fn highest<'a>(recovery: &Recovery<'_>, entries: impl Iterator<Item = &'a Entry>) -> SegmentNumber {
    let named = entries.filter_map(|entry| entry.name.get(..24).and_then(segment::parse_name));
    let named = named.filter(|segment| !packed::is_packed(*segment));
    named.chain(recovery.set.highest()).max().map_or(recovery.highest, |named| named.max(recovery.highest))
}

/// Copies bytes away, then zeroes them.
fn quarantine(disk: &dyn Disk, remains: &Remains) -> Result<Torn, LogError> {
    let Remains { segment, ref file, from, to, what } = *remains;
    let path = free_name(disk, &format!("{:020}-{from:010}.torn", segment.0))?;
    copy_out(disk, &**file, from, to, &path)?;
    let zeroes = vec![0; COPY_BYTES];
    for_pieces(from, to, |position, length| {
        Ok(file.write_at(&mut [IoSlice::new(&zeroes[..length])], position)?)
    })?;
    file.sync_data()?;
    Ok(Torn { segment, position: from, bytes: to - from, what, copy: disk.full_path(&path) })
}

/// Copies the bytes of a hole away, unless an earlier start has done so.
fn keep_copy(disk: &dyn Disk, hole: &Hole) -> Result<Damage, LogError> {
    let Hole { segment, ref file, from, to, what, lost_first, lost_end, salvaged } = *hole;
    let mut copy = None;
    if to > from {
        let base = format!("{:020}-{from:010}.damaged", segment.0);
        let mut path = join(QUARANTINE, &base);
        let known = disk.exists(&path)? && disk.open(&path)?.length()? == to - from;
        if !known {
            path = free_name(disk, &base)?;
            copy_out(disk, &**file, from, to, &path)?;
        }
        copy = Some(disk.full_path(&path));
    }
    Ok(Damage { segment, position: from, bytes: to - from, what, lost_first, lost_end, salvaged, copy })
}

/// Copies a part of a file into a new one, durably.
fn copy_out(disk: &dyn Disk, file: &dyn DiskFile, from: u64, to: u64, path: &str) -> Result<(), LogError> {
    let temp = format!("{path}.tmp");
    if disk.exists(&temp)? {
        disk.remove(&temp)?;
    }
    let copy = disk.create(&temp)?;
    let mut buffer = vec![0; COPY_BYTES];
    for_pieces(from, to, |position, length| {
        file.read_at(&mut buffer[..length], position)?;
        Ok(copy.write_at(&mut [IoSlice::new(&buffer[..length])], position - from)?)
    })?;
    copy.sync_data()?;
    disk.rename(&temp, path)?;
    Ok(disk.sync_dir(QUARANTINE)?)
}

fn for_pieces(
    from: u64,
    to: u64,
    mut work: impl FnMut(u64, usize) -> Result<(), LogError>,
) -> Result<(), LogError> {
    let mut position = from;
    while position < to {
        let length = (to - position).min(COPY_BYTES as u64);
        work(position, length as usize)?;
        position += length;
    }
    Ok(())
}

/// A path in `quarantine/` that nothing has.
fn free_name(disk: &dyn Disk, base: &str) -> Result<String, LogError> {
    let mut path = join(QUARANTINE, base);
    for number in 2.. {
        if !disk.exists(&path)? {
            break;
        }
        path = join(QUARANTINE, &format!("{base}.{number}"));
    }
    Ok(path)
}

/// Writes the last good frame again, and the segment's header with it if it is the first: after a sync that failed
/// they may be in the page cache alone, and reading them proves nothing. A power cut may have torn the copy of the
/// frame's header at its end, which is whole then.
pub fn rewrite_last_frame(recovery: &Recovery<'_>) -> Result<(), LogError> {
    let last = recovery.last_frame;
    let end = last.position + last.length;
    let from = if last.position == FIRST_FRAME_AT { 0 } else { last.position };
    let mut bytes = vec![0; (end - from) as usize];
    let file = &recovery.current.file;
    file.read_at(&mut bytes, from)?;
    // None if no frame of the segment was good.
    if last.length > 0 {
        let header_at = (last.position - from) as usize;
        let copy_at = bytes.len() - FRAME_TRAILER_BYTES;
        bytes.copy_within(header_at..header_at + FRAME_HEADER_BYTES, copy_at);
    }
    file.write_at(&mut [IoSlice::new(&bytes)], from)?;
    Ok(file.sync_data()?)
}

fn set_aside(disk: &dyn Disk, segment: SegmentNumber) -> Result<PathBuf, LogError> {
    let path = segment::path(segment);
    move_to_quarantine(disk, "log", path.strip_prefix("log/").expect("segments are in log"))
}

/// Moves a file out of the way; where it is now.
pub fn move_to_quarantine(disk: &dyn Disk, dir: &str, name: &str) -> Result<PathBuf, LogError> {
    let to = free_name(disk, name)?;
    disk.rename(&join(dir, name), &to)?;
    disk.sync_dir(QUARANTINE)?;
    disk.sync_dir(dir)?;
    Ok(disk.full_path(&to))
}

/// Removes files whose preparation was not finished: nothing was ever stored in them.
fn remove_temps(disk: &dyn Disk, entries: &[Entry]) -> Result<(), LogError> {
    let unfinished = |name: &str| segment::is_temp_name(name) || index::is_temp_name(name);
    for entry in entries.iter().filter(|entry| unfinished(&entry.name)) {
        disk.remove(&join("log", &entry.name))?;
    }
    Ok(())
}

//! The delivery of one subscription in a snapshot. See [`super`] for the layout.

use std::collections::VecDeque;

use super::{SnapshotError, check, invalid, narrow};
use crate::core::bits::Finished;
use crate::core::delivery::{Delivery, LeaseId, Outstanding, Phase};
use crate::core::spilled::{RestOfRun, SpilledRuns};
use crate::ids::Offset;
use crate::record::wire::{Put, Reader};

const RUNS: u8 = 0;
const WORDS: u8 = 1;
const READY: u8 = 0;
const DELAYED: u8 = 1;
const LEASED: u8 = 2;

pub fn put(out: &mut Vec<u8>, delivery: &Delivery) {
    out.put_varint(delivery.floor().0);
    put_finished(out, delivery.finished());
    out.put_varint(delivery.cursor().0);
    let mut outstanding: Vec<(Offset, &Outstanding)> = delivery.all_outstanding().collect();
    outstanding.sort_unstable_by_key(|(offset, _)| *offset);
    out.put_varint(outstanding.len() as u64);
    let mut before = Offset(0);
    for (offset, entry) in outstanding {
        out.put_varint(offset.0 - before.0);
        put_entry(out, entry);
        before = offset;
    }
    put_spilled(out, delivery.spilled());
}

fn put_spilled(out: &mut Vec<u8>, spilled: &SpilledRuns) {
    out.put_varint(spilled.next().0);
    out.put_varint(spilled.all().len() as u64);
    let mut before = Offset(0);
    for (place, rest) in spilled.all() {
        out.put_varint(place.0 - before.0);
        out.put_varint(rest.position);
        out.put_varint(rest.due_us);
        before = place;
    }
}

/// Reads the delivery of a queue whose next offset is `end`. What is finished may take `words_left` words.
pub fn read(reader: &mut Reader<'_>, end: Offset, words_left: &mut u64) -> Result<Delivery, SnapshotError> {
    let floor = Offset(reader.varint()?);
    check(floor <= end, "an acknowledgement floor")?;
    let finished = read_finished(reader, floor, end, words_left)?;
    let cursor = Offset(reader.varint()?);
    check(cursor <= end, "a cursor")?;
    let count = reader.varint()?;
    let mut outstanding: Vec<(Offset, Outstanding)> = Vec::new();
    for _ in 0..count {
        let before = outstanding.last().map(|(offset, _)| *offset);
        let offset = before.unwrap_or_default().0.checked_add(reader.varint()?).map(Offset);
        let offset = offset.filter(|offset| Some(*offset) != before && *offset < cursor);
        let offset = offset.ok_or_else(|| invalid("an outstanding message"))?;
        check(!finished.contains(offset), "an outstanding message")?;
        outstanding.push((offset, read_entry(reader)?));
    }
    Ok(Delivery::restored(finished, cursor, outstanding, read_spilled(reader)?))
}

fn read_spilled(reader: &mut Reader<'_>) -> Result<SpilledRuns, SnapshotError> {
    let next = Offset(reader.varint()?);
    let count = reader.varint()?;
    let mut runs: Vec<(Offset, RestOfRun)> = Vec::new();
    for _ in 0..count {
        let before = runs.last().map(|(place, _)| *place);
        let place = before.unwrap_or_default().0.checked_add(reader.varint()?).map(Offset);
        let place = place.filter(|place| Some(*place) != before && *place < next);
        let place = place.ok_or_else(|| invalid("a run of refs"))?;
        runs.push((place, RestOfRun { position: reader.varint()?, due_us: reader.varint()? }));
    }
    Ok(SpilledRuns::restored(next, runs))
}

fn put_entry(out: &mut Vec<u8>, entry: &Outstanding) {
    out.put_varint(entry.attempts.into());
    out.put_varint(entry.lease.incarnation.into());
    out.put_varint(entry.lease.number);
    match entry.phase {
        Phase::Ready => out.put_u8(READY),
        Phase::Delayed { due_us } => {
            out.put_u8(DELAYED);
            out.put_varint(due_us);
        }
        Phase::Leased { deadline_us } => {
            out.put_u8(LEASED);
            out.put_varint(deadline_us);
        }
    }
}

fn read_entry(reader: &mut Reader<'_>) -> Result<Outstanding, SnapshotError> {
    let attempts = narrow(reader.varint()?, "a count of attempts")?;
    let lease =
        LeaseId { incarnation: narrow(reader.varint()?, "an incarnation")?, number: reader.varint()? };
    let phase = match reader.u8()? {
        READY => Phase::Ready,
        DELAYED => Phase::Delayed { due_us: reader.varint()? },
        LEASED => Phase::Leased { deadline_us: reader.varint()? },
        _ => return Err(invalid("a phase")),
    };
    Ok(Outstanding { attempts, lease, phase })
}

fn put_finished(out: &mut Vec<u8>, finished: &Finished) {
    let words = finished.words();
    let start = out.len();
    out.put_u8(RUNS);
    if put_runs(out, finished, start + 8 * words.len()) {
        return;
    }
    out.truncate(start);
    out.put_u8(WORDS);
    out.put_varint(words.len() as u64);
    words.for_each(|word| out.put_u64(word));
}

/// Writes the runs; false if it gave up since they would reach past `end`.
fn put_runs(out: &mut Vec<u8>, finished: &Finished, end: usize) -> bool {
    let mut before = finished.floor();
    for run in finished.runs() {
        out.put_varint(run.first.0 - before.0);
        out.put_varint(run.count);
        before = run.first.plus(run.count);
        if out.len() > end {
            return false;
        }
    }
    out.put_varint(0);
    true
}

fn read_finished(
    reader: &mut Reader<'_>,
    floor: Offset,
    end: Offset,
    words_left: &mut u64,
) -> Result<Finished, SnapshotError> {
    let what = "what is finished";
    let base = floor.0 & !63;
    let words = match reader.u8()? {
        RUNS => read_runs(reader, floor, end, words_left)?,
        WORDS => {
            let bytes = usize::try_from(reader.varint()?).ok().and_then(|count| count.checked_mul(8));
            let (words, _) = reader.take(bytes.ok_or_else(|| invalid(what))?)?.as_chunks();
            words.iter().map(|word| u64::from_le_bytes(*word)).collect::<VecDeque<u64>>()
        }
        _ => return Err(invalid(what)),
    };
    let last = words.back().map_or(Some(base), |word| {
        let bits = 64 * words.len() as u64 - u64::from(word.leading_zeros());
        base.checked_add(bits)
    });
    check(last.is_some_and(|last| last <= end.0), what)?;
    Finished::of_words(floor, words).ok_or_else(|| invalid(what))
}

/// Reads runs into words, of which the first has the bit of the floor.
fn read_runs(
    reader: &mut Reader<'_>,
    floor: Offset,
    end: Offset,
    words_left: &mut u64,
) -> Result<VecDeque<u64>, SnapshotError> {
    let invalid = || invalid("a run of what is finished");
    let base = floor.0 & !63;
    let mut words = VecDeque::new();
    set_bits(&mut words, 0, floor.0 - base);
    let mut before = floor;
    loop {
        let distance = reader.varint()?;
        if distance == 0 {
            return Ok(words);
        }
        let first = before.0.checked_add(distance).ok_or_else(invalid)?;
        let behind = first.checked_add(reader.varint()?).filter(|behind| *behind > first && *behind <= end.0);
        let behind = behind.ok_or_else(invalid)?;
        let more = (behind - base).div_ceil(64).saturating_sub(words.len() as u64);
        *words_left = words_left.checked_sub(more).ok_or_else(invalid)?;
        set_bits(&mut words, first - base, behind - base);
        before = Offset(behind);
    }
}

/// Sets the bits `first..end`, by words.
fn set_bits(words: &mut VecDeque<u64>, first: u64, end: u64) {
    if first == end {
        return;
    }
    let (first_word, last_word) = ((first / 64) as usize, ((end - 1) / 64) as usize);
    if words.len() <= last_word {
        words.resize(last_word + 1, 0);
    }
    for (index, word) in words.range_mut(first_word..=last_word).enumerate() {
        let low = if index == 0 { first % 64 } else { 0 };
        let high = if first_word + index == last_word { (end - 1) % 64 } else { 63 };
        *word |= u64::MAX >> (63 - high) & u64::MAX << low;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn encoded(delivery: &Delivery) -> Vec<u8> {
        let mut out = Vec::new();
        put(&mut out, delivery);
        out
    }

    fn finished_in(order: impl Iterator<Item = u64>, floor: u64) -> Delivery {
        let mut finished = Finished::below(Offset(floor));
        order.for_each(|offset| assert!(finished.insert(Offset(offset))));
        Delivery::restored(finished, Offset(floor), [], SpilledRuns::default())
    }

    fn decoded(bytes: &[u8], end: u64) -> Result<Delivery, SnapshotError> {
        read(&mut Reader::new(bytes), Offset(end), &mut (1 << 20))
    }

    #[test]
    fn what_is_finished_is_written_in_its_shorter_form() {
        // One message unfinished, ten million behind it done: a run.
        let long = finished_in(1..10_000_001, 0);
        assert!(encoded(&long).len() < 20, "{} bytes", encoded(&long).len());
        // A million in mixed order, with gaps: words, an eighth of a byte for each message of the window.
        let order = (0..1_000_000u64).map(|at| at * 7_919 % 1_000_000);
        let mixed = finished_in(order.map(|at| 7 + at * 2 - at % 2), 3);
        let (window, bytes) = (2_000_010u64, encoded(&mixed).len() as u64);
        assert!(bytes <= window / 8 + 32 && bytes > window / 16, "{bytes} bytes");
        for (delivery, end) in [(long, 10_000_001), (mixed, window)] {
            let again = decoded(&encoded(&delivery), end).unwrap();
            assert_eq!(encoded(&again), encoded(&delivery));
            assert_eq!(again.finished().count(), delivery.finished().count());
        }
    }

    #[test]
    fn a_few_bytes_cannot_ask_for_much_memory() {
        let mut bytes = vec![0, RUNS];
        bytes.put_varint(1);
        bytes.put_varint(64 << 20);
        bytes.extend_from_slice(&[0, 0, 0]);
        let refused = invalid("a run of what is finished");
        assert_eq!(decoded(&bytes, u64::MAX).unwrap_err(), refused, "more words than allowed");
        let mut bytes = vec![0, WORDS];
        bytes.put_varint(u64::MAX);
        assert_eq!(decoded(&bytes, u64::MAX).unwrap_err(), invalid("what is finished"));
    }

    /// Each of these would break an invariant of the state, or a later assertion.
    #[test]
    fn what_cannot_be_is_refused() {
        let good = [70, RUNS, 1, 2, 0, 72, 1, 70, 3, 1, 9, READY, 5, 2, 3, 6, 7, 1, 8, 9];
        assert_eq!(decoded(&good, 73).unwrap().floor(), Offset(70));
        let change = |at: usize, to: u8| {
            let mut bad = good;
            bad[at] = to;
            decoded(&bad, 73).err()
        };
        assert_eq!(change(0, 74), Some(invalid("an acknowledgement floor")));
        assert_eq!(change(1, 2), Some(invalid("what is finished")));
        assert_eq!(change(3, 3), Some(invalid("a run of what is finished")), "past the end");
        assert_eq!(change(3, 0), Some(invalid("a run of what is finished")), "empty");
        assert_eq!(change(5, 74), Some(invalid("a cursor")));
        assert_eq!(change(7, 71), Some(invalid("an outstanding message")), "finished");
        assert_eq!(change(7, 72), Some(invalid("an outstanding message")), "finished, at the cursor");
        assert_eq!(change(11, 3), Some(invalid("a phase")));
        assert_eq!(change(12, 4), Some(invalid("a run of refs")), "behind the end");
        assert_eq!(change(17, 0), Some(invalid("a run of refs")), "twice");
        let words = |low: u64| {
            let mut bytes = vec![3, WORDS, 1];
            bytes.put_u64(low);
            bytes.extend_from_slice(&[3, 0, 0, 0]);
            decoded(&bytes, 6).map(|delivery| delivery.finished().count())
        };
        assert_eq!(words(0b10111), Ok(4));
        assert_eq!(words(0b01111), Err(invalid("what is finished")), "the floor itself");
        assert_eq!(words(0b10101), Err(invalid("what is finished")), "below the floor");
        assert_eq!(words(0b1000111), Err(invalid("what is finished")), "past the end");
    }
}

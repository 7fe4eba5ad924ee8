//! Bits of a segment, an index file and a checkpoint, flipped one by one: each is told, or means nothing, and costs no
//! more than it hit. One bit of every byte that means something; all bits: `FOREBAY_FLIPS= cargo test --release --test
//! integration flips`.

use forebay_testkit::flips::{Counts, Kind, Subject};

/// Of bodies of messages and blank space a bit of every so manieth byte.
const SAMPLE: usize = 61;
/// A broker is started after so many flips of a sweep, spread over it.
const SERVED: usize = 50;

/// What came of the flips, and how many there were.
fn sweep(kind: Kind) -> (Counts, usize) {
    let subject = Subject::new(kind);
    let all = std::env::var_os("FOREBAY_FLIPS").is_some();
    let bits = if all { subject.bits().collect() } else { subject.some_bits(SAMPLE) };
    let counts = subject.sweep(&bits, bits.len().div_ceil(SERVED)).unwrap_or_else(|why| panic!("{why}"));
    println!("{kind:?}, {} bits: {counts:?}", bits.len());
    (counts, bits.len())
}

#[test]
fn a_flipped_bit_of_a_segment_that_is_replayed_costs_what_it_hit() {
    let (counts, _) = sweep(Kind::Replayed);
    assert!(counts.refused > 100 && counts.lost > 500 && counts.meaningless > 100, "{counts:?}");
}

#[test]
fn a_flipped_bit_of_a_segment_behind_a_checkpoint_costs_what_it_hit() {
    let (counts, _) = sweep(Kind::Sealed);
    assert!(counts.told > 1_000 && counts.lost > 300 && counts.meaningless > 100, "{counts:?}");
}

#[test]
fn a_flipped_bit_of_an_index_costs_nothing_and_is_told() {
    let (counts, bits) = sweep(Kind::Index);
    assert!(bits >= 8_192, "{bits}");
    assert_eq!(counts, Counts { told: bits, ..Counts::default() });
}

#[test]
fn a_flipped_bit_of_a_checkpoint_costs_nothing_and_is_told() {
    let (counts, bits) = sweep(Kind::Checkpoint);
    assert!(bits > 300, "{bits}");
    assert_eq!(counts, Counts { told: bits, ..Counts::default() });
}

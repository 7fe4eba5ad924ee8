//! Bits of a segment, an index file and a checkpoint, flipped one by one: each is told, or means nothing, and costs no
//! more than it hit. One bit of every byte that means something; `cargo xtask bit-flips` tries all bits.

use forebay_testkit::flips::{Counts, Kind, Subject};

/// Of bodies of messages and blank space a bit of every so manieth byte.
const SAMPLE: usize = 61;
/// A broker is started after every so manieth flip.
const SERVED: usize = 499;

fn sweep(kind: Kind) -> Counts {
    let subject = Subject::new(kind);
    let counts = subject.sweep(&subject.some_bits(SAMPLE), SERVED).unwrap_or_else(|why| panic!("{why}"));
    println!("{kind:?}: {counts:?}");
    counts
}

#[test]
fn a_flipped_bit_of_a_segment_that_is_replayed_costs_what_it_hit() {
    let counts = sweep(Kind::Replayed);
    assert!(counts.refused > 100 && counts.lost > 1_000 && counts.meaningless > 100, "{counts:?}");
}

#[test]
fn a_flipped_bit_of_a_segment_behind_a_checkpoint_costs_what_it_hit() {
    let counts = sweep(Kind::Sealed);
    assert!(counts.told > 1_000 && counts.lost > 500 && counts.meaningless > 100, "{counts:?}");
}

#[test]
fn a_flipped_bit_of_an_index_costs_nothing_and_is_told() {
    let counts = sweep(Kind::Index);
    assert_eq!(counts, Counts { told: 8_192, ..Counts::default() });
}

#[test]
fn a_flipped_bit_of_a_checkpoint_costs_nothing_and_is_told() {
    let counts = sweep(Kind::Checkpoint);
    assert!(counts.told > 300, "{counts:?}");
    assert_eq!(counts, Counts { told: counts.told, ..Counts::default() });
}

//! The table of planted bugs: where each is found, and by which test.
//!
//! A new one: ask `planted::bug("its-name")` where the server is to go wrong, add a row with a guess, and run
//! `cargo xtask planted-bugs --only its-name`, which tells who finds it.

use super::{Bug, Layer};

/// A bug that a test of the library finds.
const fn unit(name: &'static str, test: &'static str) -> Bug {
    Bug { name, layer: Layer::Unit, test }
}

/// A bug that seeds of the simulation find.
const fn sim(name: &'static str, seeds: &'static str) -> Bug {
    Bug { name, layer: Layer::Sim, test: seeds }
}

/// A bug that a test of real servers finds.
const fn integration(name: &'static str, test: &'static str) -> Bug {
    Bug { name, layer: Layer::Integration, test }
}

pub const BUGS: &[Bug] = &[
    sim("ack-before-sync", "0..8"),
    integration("address-share-ignored", "attacks::one_address_cannot_take"),
    unit("chain-ignored", "log::tests::damage::a_good_frame_in_the_place_of_another"),
    unit("dead-letter-not-stored", "core::tests::a_rejected_message_moves"),
    unit("dedup-lost-at-restart", "core::tests::snapshot::both_go_on"),
    unit("double-lease", "core::tests::messages_are_handed_out_in_order"),
    integration("floods-endured", "attacks::floods_of_frames"),
    unit("frame-crc-ignored", "log::tests::damage::a_torn_last_frame"),
    unit("free-names-not-synced", "log::tests::recycling::a_file_is_written_over_only"),
    unit("full-disk-taken-as-written", "log::tests::faults::a_commit_that_finds_no_space"),
    unit("full-disk-unknown-at-start", "log::tests::full::a_start_on_a_full_disk"),
    unit("index-crc-ignored", "log::index::file::tests::a_flipped_bit"),
    unit("index-trusted-over-log", "log::tests::reading::a_record_that_the_index_does_not_mean"),
    unit("lease-clock-runs-on", "broker::tests::delays::messages_whose_lease_was_lost"),
    unit("live-segment-dropped", "log::tests::reclaim::a_slow_consumer"),
    unit("log-cut-at-damage", "log::tests::salvage::several_holes"),
    unit("message-crc-ignored", "log::tests::reading::damage_costs_the_one"),
    unit("nothing-left-on-a-full-disk", "log::tests::full::a_full_disk_behind_a_slow_helper"),
    unit("offset-given-again", "broker::tests::no_offset_is_given_again"),
    unit("pack-drops-a-run", "log::tests::reclaim::a_slow_consumer"),
    integration("panic-taken-for-an-end", "panics::a_panic_in_the_broker"),
    unit("permit-kept", "admission::tests::a_permit_is_given_back"),
    sim("purge-lost-at-restart", "0..8"),
    unit("recycled-while-read", "log::tests::recycling::a_file_that_is_being_read"),
    unit("replay-begins-late", "log::tests::checkpoints::a_damaged_checkpoint"),
    sim("request-torn", "0..8"),
    unit("reserve-eaten-by-the-log", "log::tests::small_disk::the_log_leaves_space"),
    unit("retry-delay-forgotten", "core::tests::a_retry_waits"),
    unit("run-before-early-seal-lost", "log::tests::keeping::a_segment_is_sealed_at"),
    sim("segment-name-not-synced", "0..8"),
    unit("short-write-taken-as-whole", "disk::real::tests::many_parts"),
    unit("stale-ack-taken", "core::tests::an_expired_lease_is_handed_out_again"),
    unit("stale-checkpoint", "log::tests::checkpoints::a_start_reads_from_the_newest"),
    unit("sync-retried", "log::tests::faults::the_first_failure"),
    unit("unlinked-before-checkpoint", "log::tests::checkpoints::segments_leave"),
    sim("watermark-runs-ahead", "0..8"),
];

//! Tests of the whole layer on a temporary directory, with small segments.

mod basic;
mod checkpoints;
pub mod crash;
mod damage;
mod faults;
mod full;
mod golden;
pub mod hook;
mod indexing;
mod keeping;
mod old_bytes;
mod places;
mod reading;
mod reclaim;
mod reclaim_faults;
mod recycling;
mod salvage;
mod small_disk;
mod support;

//! Tests of the whole layer on a temporary directory, with small segments.

mod basic;
mod checkpoints;
mod damage;
mod faults;
mod full;
mod golden;
mod hook;
mod indexing;
mod keeping;
mod places;
mod reading;
mod salvage;
mod support;

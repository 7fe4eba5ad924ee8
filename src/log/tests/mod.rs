//! Tests of the whole layer on a temporary directory, with small segments.

mod basic;
mod damage;
mod faults;
mod golden;
mod hook;
mod indexing;
mod places;
mod reading;
mod support;

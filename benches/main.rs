//! Benches of the parts and of the whole; README.md says how to run and read them.

mod append;
mod core;
mod grpc;
mod reclaim;
mod recovery;
mod support;

use criterion::{criterion_group, criterion_main};

criterion_group!(benches, append::bench, core::bench, recovery::bench, reclaim::bench, grpc::bench);
criterion_main!(benches);

//! Benches of the parts and of the whole; README.md says how to run and read them.

mod admission;
mod append;
mod broker;
mod core;
mod grpc;
mod read;
mod reclaim;
mod record;
mod recovery;
mod support;

use criterion::{criterion_group, criterion_main};

criterion_group!(
    benches,
    record::bench,
    admission::bench,
    core::bench,
    append::bench,
    read::bench,
    recovery::bench,
    reclaim::bench,
    broker::bench,
    grpc::bench,
);
criterion_main!(benches);

//! Memory taken before it is used, and given back: what each request pays for the bound, while there is no shortage.

use criterion::{Criterion, Throughput};
use forebay::admission::{Admission, Outflow};

use crate::support::{group, runtime};

const BUDGET_BYTES: u64 = 64 << 20;
const REQUEST_BYTES_MAX: u64 = 16 << 20;
const REQUEST_BYTES: u64 = 1 << 10;

pub fn bench(criterion: &mut Criterion) {
    let mut group = group(criterion, "admission");
    group.throughput(Throughput::Elements(1));
    let admission = Admission::new(BUDGET_BYTES, REQUEST_BYTES_MAX);
    group.bench_function("try_admit", |bencher| {
        bencher.iter(|| admission.try_admit(REQUEST_BYTES).expect("there is room"));
    });
    let runtime = runtime();
    group.bench_function("wait", |bencher| {
        bencher.iter(|| runtime.block_on(admission.wait(REQUEST_BYTES)));
    });
    let outlet = Outflow::default().outlet();
    group.bench_function("outflow", |bencher| {
        bencher.iter(|| outlet.try_take(REQUEST_BYTES).expect("there is room"));
    });
    group.finish();
}

//! What stands in the log: a run of messages encoded, and read back with every checksum.

use criterion::{BenchmarkId, Criterion, Throughput};
use forebay::ids::{Lsn, Offset, QueueId};
use forebay::record::RecordHead;
use forebay::record::envelope::{encode, encoded_len};

use crate::support::{group, run};

/// Messages of a run, and bytes of each.
const SHAPES: [(usize, usize); 3] = [(1, 1 << 10), (100, 1 << 10), (1, 1 << 20)];

pub fn bench(criterion: &mut Criterion) {
    let mut group = group(criterion, "record");
    for (count, size) in SHAPES {
        let record = run(QueueId(1), Offset(0), count, size);
        let mut bytes = Vec::with_capacity(encoded_len(&record));
        group.throughput(Throughput::Bytes(bytes.capacity() as u64));
        group.bench_function(BenchmarkId::new("encode", format!("{count}x{size}B")), |bencher| {
            bencher.iter(|| {
                bytes.clear();
                encode(&record, Lsn(1), &mut bytes);
            });
        });
        group.bench_function(BenchmarkId::new("decode_verify", format!("{count}x{size}B")), |bencher| {
            bencher.iter(|| {
                let head = RecordHead::decode(&bytes).expect("it was just encoded");
                let entries = head.run().expect("it is a run").entries();
                let message = |from: u32, length: u32| &bytes[from as usize..(from + length) as usize];
                let whole = entries.filter(|entry| entry.verify(message(entry.position, entry.len())));
                assert_eq!(whole.count(), count);
            });
        });
    }
    group.finish();
}

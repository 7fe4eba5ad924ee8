//! What fuzzers and property tests try on bytes that nobody wrote: one function for each target, which panics where a
//! promise is broken.
//!
//! Checksums keep a fuzzer out of all that lies behind them, so where one stands it is made right again after the
//! bytes were changed. What has a right checksum and was never written may be refused or mean anything; it may not
//! panic, and no message may come of it that is not what was published.

use std::sync::{Arc, OnceLock};
use std::time::Duration;

use bytes::Bytes;
use forebay::admission::Outflow;
use forebay::broker;
use forebay::broker::api::{PullOptions, Settlement};
use forebay::core::event_codec;
use forebay::core::types::Ending;
use forebay::log::inspect::Inspection;
use forebay::names::SubscriptionName;
use forebay::offline::{Format, fsck};
use forebay::proto::v1::{Message, PublishRequest, PublishStreamRequest};
use forebay::record::envelope::{self, Claimed, RECORD_HEADER_BYTES};
use forebay::record::meta::Meta;
use forebay::record::{Body, Kind, RecordHead};
use prost::Message as _;

use crate::flips::{self, SEGMENT_BYTES, Subject};
use crate::memory_disk::MemoryDisk;
use crate::{queue, subscription};

/// All targets; the last two are in `forebay::fuzz`.
pub const TARGETS: [&str; 6] = ["records", "index", "checkpoint", "directory", "requests", "commands"];
const INDEX_BLOCK_BYTES: usize = 4096;
const CHECKPOINT_HEADER_BYTES: usize = 88;
/// Bytes of input that say one change of a directory.
const CHANGE_BYTES: usize = 8;
/// More changes leave nothing to look at.
const CHANGES_MAX: usize = 24;

/// Records, one behind the other, and what is in them.
pub fn records(data: &[u8]) {
    let mut bytes = data.to_vec();
    let mut at = 0;
    while let Some(rest) = bytes.get_mut(at..).filter(|rest| rest.len() >= RECORD_HEADER_BYTES) {
        let Ok(claimed) = Claimed::read(rest) else { return };
        if let Some(head) = rest.get_mut(..claimed.head_len as usize) {
            let crc = crc32fast::hash(&head[4..]);
            head[..4].copy_from_slice(&crc.to_le_bytes());
        }
        let Ok(head) = RecordHead::decode(rest) else { return };
        record(&head, rest);
        at += claimed.length as usize;
    }
}

fn record(head: &RecordHead<'_>, bytes: &[u8]) {
    let _ = head.check_headers();
    if let Some(run) = head.run() {
        let mut end = head.head_len;
        for entry in run.entries() {
            assert!(entry.position >= end && entry.position <= head.length, "messages lie in their record");
            end = entry.position + entry.len();
            if let Some(message) = bytes.get(entry.position as usize..end as usize) {
                let _ = entry.verify(message);
                let _ = Meta::decode(&message[..entry.meta_len as usize]);
            }
        }
    }
    let Ok(Some(event)) = event_codec::decode(head) else { return };
    if head.kind == Kind::Publish {
        return;
    }
    // What was read is what is written of it.
    let again = event_codec::encode(&event);
    assert!(matches!(again.body, Body::Plain(_)) && again.kind == head.kind);
    let mut out = Vec::new();
    envelope::encode(&again, head.lsn, &mut out);
    let head = RecordHead::decode(&out).expect("what is written is read");
    assert_eq!(event_codec::decode(&head), Ok(Some(event)));
}

/// An index file, changed, with its checksums right.
pub fn index(data: &[u8]) {
    let (subject, disk) = changed(flips::Kind::Index, data);
    let mut bytes = disk.read(&subject.file);
    if let Some(header) = bytes.get_mut(..INDEX_BLOCK_BYTES) {
        let salt: [u8; 8] = header[24..32].try_into().expect("8 bytes");
        let mut crc = crc32fast::Hasher::new();
        crc.update(&header[..12]);
        crc.update(&header[16..]);
        header[12..16].copy_from_slice(&crc.finalize().to_le_bytes());
        for (block, number) in bytes.chunks_exact_mut(INDEX_BLOCK_BYTES).zip(0_u64..).skip(1) {
            let mut crc = crc32fast::Hasher::new();
            crc.update(&salt);
            crc.update(&number.to_le_bytes());
            crc.update(&block[4..]);
            block[..4].copy_from_slice(&crc.finalize().to_le_bytes());
        }
    }
    disk.put(&subject.file, bytes);
    look_through(&disk);
}

/// A checkpoint, changed, with its checksums right.
pub fn checkpoint(data: &[u8]) {
    let (subject, disk) = changed(flips::Kind::Checkpoint, data);
    let mut bytes = disk.read(&subject.file);
    if bytes.len() >= CHECKPOINT_HEADER_BYTES {
        let (header, mut rest) = bytes.split_at_mut(CHECKPOINT_HEADER_BYTES);
        for at in [48, 60, 72] {
            let length = u64::from_le_bytes(header[at..at + 8].try_into().expect("8 bytes"));
            let length = usize::try_from(length).unwrap_or(usize::MAX).min(rest.len());
            let (part, behind) = rest.split_at_mut(length);
            rest = behind;
            header[at + 8..at + 12].copy_from_slice(&crc32fast::hash(part).to_le_bytes());
        }
        let mut crc = crc32fast::Hasher::new();
        crc.update(&header[..12]);
        crc.update(&header[16..]);
        header[12..16].copy_from_slice(&crc.finalize().to_le_bytes());
    }
    disk.put(&subject.file, bytes);
    look_through(&disk);
}

/// A directory in which files were changed, cut, moved and lost: a broker starts or does not.
pub fn directory(data: &[u8]) {
    let kind = if data.first().is_some_and(|first| first % 2 == 0) {
        flips::Kind::Replayed
    } else {
        flips::Kind::Sealed
    };
    let (subject, disk) = (subject(kind), subject(kind).disk.fork());
    for change in data.get(1..).unwrap_or_default().chunks_exact(CHANGE_BYTES).take(CHANGES_MAX) {
        change_directory(&disk, change.try_into().expect("a whole chunk"));
    }
    look_through(&disk);
    serve(subject, &disk);
}

/// The directory for this kind of file; made once.
fn subject(kind: flips::Kind) -> &'static Subject {
    static SUBJECTS: [OnceLock<Subject>; 4] = [const { OnceLock::new() }; 4];
    SUBJECTS[kind as usize].get_or_init(|| Subject::new(kind))
}

/// The subject's own file with some bytes changed.
fn changed(kind: flips::Kind, data: &[u8]) -> (&'static Subject, MemoryDisk) {
    let (subject, disk) = (subject(kind), subject(kind).disk.fork());
    for change in data.chunks_exact(CHANGE_BYTES).take(CHANGES_MAX) {
        let bytes = change_bytes(disk.read(&subject.file), change.try_into().expect("a whole chunk"));
        disk.put(&subject.file, bytes);
    }
    (subject, disk)
}

/// `kind | file | position u32 | value | length`.
fn change_bytes(mut bytes: Vec<u8>, change: [u8; CHANGE_BYTES]) -> Vec<u8> {
    let [kind, _, a, b, c, d, value, length] = change;
    if bytes.is_empty() {
        return bytes;
    }
    let at = u32::from_le_bytes([a, b, c, d]) as usize % bytes.len();
    let end = (at + 1 + usize::from(length)).min(bytes.len());
    match kind % 6 {
        0 => bytes[at] ^= 1 << (value % 8),
        1 => bytes[at] = value,
        2 => bytes[at..end].fill(value),
        3 => bytes.truncate(at),
        4 => bytes.extend_from_slice(&vec![value; usize::from(length)]),
        _ => {
            // A block over another.
            let (from, to) = (at / 512 * 512, usize::from(value) * 512 % bytes.len() / 512 * 512);
            let length = 512.min(bytes.len() - from.max(to));
            bytes.copy_within(from..from + length, to);
        }
    }
    bytes
}

fn change_directory(disk: &MemoryDisk, change: [u8; CHANGE_BYTES]) {
    let paths = disk.paths();
    let Some(path) = paths.get(usize::from(change[1]) % paths.len().max(1)) else { return };
    let other = &paths[usize::from(change[6]) % paths.len()];
    match change[0] / 6 % 12 {
        0 => disk.delete(path),
        1 => disk.put(other, disk.read(path)),
        2 => {
            disk.put(other, disk.read(path));
            disk.delete(path);
        }
        3 => disk.put(
            &format!("{path}{}", [".tmp", ".new", "0", ".free"][usize::from(change[7]) % 4]),
            disk.read(path),
        ),
        _ => disk.put(path, change_bytes(disk.read(path), change)),
    }
}

/// What fsck says of it does not matter, as long as it says something.
fn look_through(disk: &MemoryDisk) {
    if let Ok(inspection) = Inspection::open(Arc::new(disk.clone())) {
        let _ = fsck::run_on(inspection, false, Format::Text, &mut Vec::new());
    }
}

/// Starts a broker, if it starts, and empties it.
fn serve(subject: &Subject, disk: &MemoryDisk) {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_time().build().expect("a runtime");
    let Ok(opened) = broker::open(Arc::new(disk.clone()), SEGMENT_BYTES) else { return };
    let name = SubscriptionName::parse(&subscription("q")).expect("a good name");
    runtime.block_on(async {
        let task = tokio::spawn(opened.task.run());
        for _ in 0..40 {
            let options = PullOptions {
                messages_max: 5,
                bytes_max: 1 << 20,
                wait: Duration::ZERO,
                lease_us: Some(60_000_000),
            };
            let Ok(batch) = opened.broker.pull(name.clone(), options, Outflow::default().outlet()).await
            else {
                continue;
            };
            if batch.value.is_empty() {
                break;
            }
            let mut acks = Vec::new();
            for delivery in &batch.value {
                let (offset, body) = (delivery.message.offset.0, &delivery.message.body);
                assert!(subject.is_right(offset, body), "message {offset} is not what was published");
                acks.push(Settlement { ack_id: delivery.ack_id, ending: Ending::Ack });
            }
            let _ = opened.broker.settle(name.clone(), acks).await;
        }
        let _ = opened.broker.close().await;
        // Its log may have refused to go on; it may not panic.
        let _ = task.await.expect("the broker does not panic");
    });
}

/// What a fuzzer of these targets begins with: a few inputs that come far.
pub fn seeds(target: &str) -> Vec<Vec<u8>> {
    match target {
        "records" => {
            let segment = subject(flips::Kind::Replayed);
            // Behind the header of its segment and that of its frame.
            let bytes = segment.disk.read(&segment.file);
            bytes
                .chunks(4096)
                .skip(1)
                .filter(|block| block[4..8] == *b"FBfr")
                .map(|block| block[80..].to_vec())
                .collect()
        }
        "requests" => (0..4).map(|bodies| request(bodies).encode_to_vec()).collect(),
        "commands" => {
            (0..4_u8).map(|seed| (0..200_u8).map(|n| n.wrapping_mul(37) + seed * 11).collect()).collect()
        }
        _ => {
            (0..8_u8).map(|n| [n, 1, n, 0, 2, 0, 0, 7, 255, n * 9, 2, 200, 10, 0, 0, n, 8].to_vec()).collect()
        }
    }
}

fn request(bodies: usize) -> PublishStreamRequest {
    let message = |n: usize| Message { body: Bytes::from(vec![7; 100 * n]), ..Message::default() };
    let messages = (0..bodies).map(message).collect();
    let publish = PublishRequest { queue: queue("q"), messages, ..PublishRequest::default() };
    PublishStreamRequest { correlation_id: 300, publish: Some(publish) }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn bytes(count: usize) -> impl Strategy<Value = Vec<u8>> {
        prop::collection::vec(any::<u8>(), 0..count)
    }

    /// A seed with some of its bytes changed.
    fn near(target: &'static str) -> impl Strategy<Value = Vec<u8>> {
        let change = (any::<prop::sample::Index>(), any::<u8>());
        (0..seeds(target).len(), prop::collection::vec(change, 0..8)).prop_map(move |(which, changes)| {
            let mut bytes = seeds(target).swap_remove(which);
            for (at, value) in changes {
                let at = at.index(bytes.len());
                bytes[at] = value;
            }
            bytes
        })
    }

    /// Found by fuzzing: the newest segment's file is cut short right behind its last frame.
    #[test]
    fn directories_that_were_trouble() {
        directory(b"lo\x99\xd0/499\x00\x04\xf9\xf9\xf9\xf9\x08");
        directory(
            b"\x01\x01\x01\x00\x02\x08\xff\xff\xff\xff\xff\xdf\xff\x00\x00\xf2\xff\xff\xf9\xff\
              \x16\x16\x16\x16\xff\xf7\xff\x0a\x00\xff",
        );
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(128))]

        #[test]
        fn records_of_any_bytes(any in bytes(400), near in near("records")) {
            records(&any);
            records(&near);
        }

        #[test]
        fn indexes_of_any_bytes(data in bytes(60)) {
            index(&data);
        }

        #[test]
        fn checkpoints_of_any_bytes(data in bytes(60)) {
            checkpoint(&data);
        }

        #[test]
        fn directories_of_any_changes(data in bytes(80)) {
            directory(&data);
        }
    }
}

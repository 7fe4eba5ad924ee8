//! The bytes of the format, frozen. `FOREBAY_WRITE_GOLDEN=1` writes the files anew, which is right only before the
//! first release of a format version.

use bytes::Bytes;

use super::super::assemble::Assembler;
use super::super::directory::Identity;
use super::super::frame::{FRAME_HEADER_BYTES, FrameHeader, salted};
use super::super::packed::{PACKED_FIRST, PackedHeader};
use super::super::segment::SegmentHeader;
use super::super::*;
use super::support::plain;
use crate::record::meta::{DeadLetter, DeadLetterReason, Meta};
use crate::record::{Body, Kind, Lane, MessageRun, StoredParts};

const SALT: u64 = 0x1122_3344_5566_7788;

macro_rules! golden {
    ($name:literal) => {
        (
            concat!(env!("CARGO_MANIFEST_DIR"), "/tests/golden/", $name),
            include_bytes!(concat!(env!("CARGO_MANIFEST_DIR"), "/tests/golden/", $name)).as_slice(),
        )
    };
}

fn compare((path, frozen): (&str, &[u8]), now: &[u8]) {
    if std::env::var_os("FOREBAY_WRITE_GOLDEN").is_some() {
        std::fs::write(path, now).unwrap();
        return;
    }
    let differs = frozen.iter().zip(now).position(|(a, b)| a != b);
    assert!(
        frozen == now,
        "{path}: {} and {} bytes, first differing at {differs:?}",
        frozen.len(),
        now.len()
    );
}

fn meta() -> Meta {
    Meta {
        attributes: vec![("content-type".into(), "text/plain".into()), ("k".into(), String::new())],
        source: Some("tenant-1".into()),
        ordering_key: Some("account-2".into()),
        dead_letter: Some(DeadLetter {
            reason: DeadLetterReason::AttemptsExhausted,
            error: "timed out".into(),
            queue: "namespaces/default/queues/orders".into(),
            queue_uid: Uid([3; 16]),
            offset: Offset(77),
            subscription: "default".into(),
            attempts: 16,
            time_us: 1_700_000_000_000_000,
        }),
    }
}

/// One record of each kind; runs come with and without metadata.
fn records() -> Vec<Record> {
    let started = ServerStarted { incarnation: 2, node: Uid([5; 16]), wall_time_us: 1_700_000_000_000_000 };
    let added = SegmentAdded { segment: SegmentNumber(4), bytes: 64 << 20 };
    let mut records = vec![system::no_op(), started.record(), added.record()];
    let rest = Kind::ALL.into_iter().filter(|kind| *kind as u8 > 3 && *kind != Kind::Publish);
    records.extend(rest.map(|kind| plain(kind, &[kind as u8; 3])));
    let mut tagged = plain(Kind::QueueCreated, b"tagged");
    tagged.flags = 0x81;
    crate::record::tlv::put(&mut tagged.headers, 0x0123, b"may be skipped");
    records.push(tagged);
    let messages = vec![
        StoredParts { meta: meta().encode(), body: Bytes::from_static(b"hello") },
        StoredParts { meta: Bytes::new(), body: Bytes::new() },
        StoredParts { meta: Bytes::new(), body: Bytes::from(vec![0xab; 20_000]) },
    ];
    let run = MessageRun {
        lane: Lane { priority: 4, bucket: 0x0203 },
        publish_time_us: 1_700_000_000_000_001,
        messages,
    };
    let mut publish = plain(Kind::Publish, b"");
    publish.offset = Offset(1 << 40);
    publish.body = Body::Run(run);
    records.push(publish);
    records
}

fn frame() -> Vec<u8> {
    let mut assembler = Assembler::default();
    assembler.begin(|_| ());
    for (record, lsn) in records().iter().zip(1_000..) {
        assembler.push(record, Lsn(lsn));
    }
    let header = FrameHeader {
        payload_crc: 0,
        payload_len: 0,
        count: 0,
        previous_crc: 0xfeed_beef,
        first_lsn: Lsn(1_000),
        epoch: 1,
        segment: SegmentNumber(3),
        sequence: 555,
        log_time_us: 123_456_789,
    };
    let (_, length) = assembler.finish(header, SALT);
    let (parts, written) = assembler.parts();
    assert_eq!(length, written);
    parts.iter().flat_map(|part| part.iter().copied()).collect()
}

#[test]
fn the_identity_file_is_frozen() {
    let identity = Identity { cluster: Uid([7; 16]), mac_key: std::array::from_fn(|n| n as u8) };
    compare(golden!("identity.bin"), &identity.encode());
    assert_eq!(Identity::decode(&identity.encode()), Ok(identity));
}

#[test]
fn the_segment_header_is_frozen() {
    let header = SegmentHeader {
        compat_flags: 1 << 63,
        incompat_flags: 0,
        cluster: Uid([1; 16]),
        node: Uid([2; 16]),
        shard: 3,
        epoch: 4,
        segment: SegmentNumber(5),
        salt: SALT,
        first_lsn: Lsn(6),
        encryption_key: [0; 32],
    };
    let mut block = Vec::new();
    header.encode(&mut block);
    compare(golden!("segment_header.bin"), &block);
}

#[test]
fn the_frame_and_its_records_are_frozen() {
    compare(golden!("frame.bin"), &frame());
}

#[test]
fn the_frozen_frame_can_be_read() {
    let (_, bytes) = golden!("frame.bin");
    let (header, _) = FrameHeader::decode(bytes, SALT).unwrap();
    let mut rest = &bytes[FRAME_HEADER_BYTES..FRAME_HEADER_BYTES + header.payload_len as usize];
    assert_eq!(salted(SALT, rest), header.payload_crc);
    let mut kinds = Vec::new();
    for (record, lsn) in records().iter().zip(1_000..) {
        let head = RecordHead::decode(rest).unwrap();
        head.check_headers().unwrap();
        assert_eq!((head.lsn, head.kind, head.flags), (Lsn(lsn), record.kind, record.flags));
        assert_eq!(
            (head.queue, head.offset, head.headers),
            (record.queue, record.offset, &record.headers[..])
        );
        match &record.body {
            Body::Plain(body) => assert_eq!(head.body, body),
            Body::Run(_) => {
                let first = head.run().unwrap().entries().next().unwrap();
                let stored = &rest[first.position as usize..][..first.meta_len as usize];
                assert_eq!(Meta::decode(stored), Ok(meta()));
            }
        }
        kinds.push(head.kind as u8);
        rest = &rest[head.length as usize..];
    }
    assert!(rest.is_empty());
    kinds.sort();
    kinds.dedup();
    assert_eq!(kinds, Kind::ALL.map(|kind| kind as u8));
}

#[test]
fn the_packed_header_is_frozen() {
    let header = PackedHeader {
        cluster: Uid([1; 16]),
        segment: PACKED_FIRST.plus(5),
        place: SegmentNumber(3),
        salt: SALT,
        bytes: 8_192,
        records: 7,
        replaced: [3, 4, 9].map(SegmentNumber).to_vec(),
    };
    compare(golden!("packed_header.bin"), &header.encode());
}

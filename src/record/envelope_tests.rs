use bytes::Bytes;
use proptest::prelude::*;

use super::*;
use crate::record::{Lane, MessageRun, StoredParts};

fn plain() -> impl Strategy<Value = (Kind, Body)> {
    let kinds: Vec<Kind> = Kind::ALL.into_iter().filter(|kind| *kind != Kind::Publish).collect();
    (proptest::sample::select(kinds), any::<Vec<u8>>()).prop_map(|(kind, body)| (kind, Body::Plain(body)))
}

fn parts() -> impl Strategy<Value = StoredParts> {
    any::<(Vec<u8>, Vec<u8>)>().prop_map(|(meta, body)| StoredParts { meta: meta.into(), body: body.into() })
}

fn runs() -> impl Strategy<Value = (Kind, Body)> {
    (any::<(u8, u16, u64)>(), proptest::collection::vec(parts(), 1..6)).prop_map(
        |((priority, bucket, publish_time_us), messages)| {
            let lane = Lane { priority, bucket };
            (Kind::Publish, Body::Run(MessageRun { lane, publish_time_us, messages }))
        },
    )
}

fn records() -> impl Strategy<Value = Record> {
    (any::<(u8, u64, u32, Vec<u8>)>(), prop_oneof![plain(), runs()]).prop_map(
        |((flags, queue, offset, headers), (kind, body))| Record {
            kind,
            flags,
            queue: QueueId(queue),
            offset: Offset(u64::from(offset)),
            headers,
            body,
        },
    )
}

fn assert_run(head: &RecordHead<'_>, bytes: &[u8], run: &MessageRun) {
    let read = head.run().unwrap();
    assert_eq!((read.lane, read.publish_time_us), (run.lane, run.publish_time_us));
    assert_eq!(read.count as usize, run.messages.len());
    for (entry, message) in read.entries().zip(&run.messages) {
        let stored = &bytes[entry.position as usize..][..entry.len() as usize];
        assert!(entry.verify(stored));
        assert_eq!(stored, [message.meta.as_ref(), message.body.as_ref()].concat());
        assert_eq!(entry.meta_len as usize, message.meta.len());
    }
}

proptest! {
    #[test]
    fn records_come_back(record in records(), lsn: u64) {
        let mut bytes = Vec::new();
        encode(&record, Lsn(lsn), &mut bytes);
        prop_assert_eq!(bytes.len(), encoded_len(&record));
        let head = RecordHead::decode(&bytes).unwrap();
        prop_assert_eq!(head.lsn, Lsn(lsn));
        prop_assert_eq!((head.kind, head.flags), (record.kind, record.flags));
        prop_assert_eq!((head.queue, head.offset), (record.queue, record.offset));
        prop_assert_eq!(head.headers, &record.headers[..]);
        prop_assert_eq!(head.length as usize, bytes.len());
        match &record.body {
            Body::Plain(body) => prop_assert_eq!(head.body, &body[..]),
            Body::Run(run) => assert_run(&head, &bytes, run),
        }
    }

    #[test]
    fn a_flipped_bit_is_seen_where_it_is(record in records(), place: prop::sample::Index, bit in 0u8..8) {
        let mut bytes = Vec::new();
        encode(&record, Lsn(3), &mut bytes);
        let head_len = RecordHead::decode(&bytes).unwrap().head_len as usize;
        let place = place.index(bytes.len());
        bytes[place] ^= 1 << bit;
        if place < head_len {
            prop_assert!(RecordHead::decode(&bytes).is_err());
            return Ok(());
        }
        let head = RecordHead::decode(&bytes).unwrap();
        for entry in head.run().unwrap().entries() {
            let span = entry.position as usize..(entry.position + entry.len()) as usize;
            prop_assert_eq!(entry.verify(&bytes[span.clone()]), !span.contains(&place));
        }
    }

    #[test]
    fn any_bytes_are_read_without_panic(mut bytes: Vec<u8>, honest: bool) {
        if honest && bytes.len() > RECORD_HEADER_BYTES {
            let length = (bytes.len() as u32).to_le_bytes();
            bytes[4..8].copy_from_slice(&length);
            bytes[8..12].copy_from_slice(&length);
            let crc = crc32fast::hash(&bytes[4..]).to_le_bytes();
            bytes[..4].copy_from_slice(&crc);
        }
        if let Ok(head) = RecordHead::decode(&bytes) {
            let _ = head.check_headers();
            let _ = head.run().map(|run| run.entries().count());
        }
    }
}

#[test]
fn zeroes_never_decode() {
    for length in 0..200 {
        assert!(RecordHead::decode(&vec![0; length]).is_err());
    }
}

#[test]
fn a_head_is_read_without_its_messages() {
    let message = StoredParts { meta: Bytes::new(), body: Bytes::from_static(b"body") };
    let run = MessageRun { lane: Lane::default(), publish_time_us: 5, messages: vec![message] };
    let record = Record {
        kind: Kind::Publish,
        flags: 0,
        queue: QueueId(1),
        offset: Offset(2),
        headers: Vec::new(),
        body: Body::Run(run),
    };
    let mut bytes = Vec::new();
    encode_head(&record, Lsn(1), &mut bytes);
    let head = RecordHead::decode(&bytes).unwrap();
    assert_eq!((head.head_len as usize, head.length as usize), (bytes.len(), bytes.len() + 4));
    assert!(matches!(RecordHead::decode(&bytes[..bytes.len() - 1]), Err(RecordError::Truncated { .. })));
}

#[test]
fn kinds_are_known_by_their_numbers() {
    let known: Vec<u8> = (0..=u8::MAX).filter(|number| Kind::try_from(*number).is_ok()).collect();
    assert_eq!(known, Kind::ALL.map(|kind| kind as u8));
}

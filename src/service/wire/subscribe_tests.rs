//! What is read and written by hand, held against the generated code.

use proptest::prelude::*;

use super::*;
use tokio::sync::mpsc::{UnboundedReceiver, unbounded_channel};

use crate::broker::api::{Broker, Request as Call, StoredMessage};
use crate::core::types::Ending;
use crate::ids::{Offset, Uid};
use crate::names::{Name, SubscriptionName};
use crate::proto::v1::SubscribeResponse;
use crate::proto::v1::subscribe_request::{Acks, Credit, Request as Asked};
use crate::proto::v1::subscribe_response::{Deliveries as Shown, Response};
use crate::record::Lane;
use crate::record::meta::Meta;

const NOW_US: u64 = 1_700_000_000_000_000;

fn queue() -> QueueName {
    QueueName { namespace: Name::new("default").unwrap(), queue: Name::new("q").unwrap() }
}

fn acks(correlation_id: u64, ack_ids: &[&str]) -> SubscribeRequest {
    let ack_ids = ack_ids.iter().map(|id| (*id).to_owned()).collect();
    let acks = Acks { correlation_id, ack_ids, ..Acks::default() };
    SubscribeRequest { request: Some(Asked::Acks(acks)) }
}

/// Correlation id and ack ids.
type AcksAlone = (u64, Vec<AckId>);

/// Acks as both ways of reading see them; none for what is no request of acks alone.
fn both(bytes: &[u8]) -> (Option<AcksAlone>, Option<AcksAlone>) {
    let read = read_acks(bytes).map(|request| match request {
        Request::Acks { correlation_id, ack_ids } => (correlation_id, ack_ids),
        Request::Any(other) => panic!("{other:?}"),
    });
    let generated = match SubscribeRequest::decode(bytes) {
        Ok(SubscribeRequest { request: Some(Asked::Acks(acks)) }) => {
            Some((acks.correlation_id, acks.ack_ids.into_iter().map(AckId::from).collect()))
        }
        _ => None,
    };
    (read, generated)
}

#[test]
fn acks_are_read_as_the_generated_code_does() {
    let id = "i".repeat(48);
    let too_long = "i".repeat(49);
    for (correlation_id, ids) in
        [(0, &[][..]), (1, &[""]), (300, &[&id, "short", &id, &too_long]), (u64::MAX, &[id.as_str(); 200])]
    {
        let (read, generated) = both(&acks(correlation_id, ids).encode_to_vec());
        assert!(read.is_some());
        assert_eq!(read, generated);
    }
}

#[test]
fn what_is_more_than_acks_is_left_to_the_generated_code() {
    let more = Acks { ack_ids: vec!["a".into()], extend_ack_ids: vec!["b".into()], ..Acks::default() };
    let credit = SubscribeRequest { request: Some(Asked::Credit(Credit { messages: 1, bytes: 1 })) };
    // The generated code joins what comes twice.
    let twice = [acks(1, &["a"]).encode_to_vec(), acks(2, &["b"]).encode_to_vec()].concat();
    let not_text = [0x1a, 3, 0x12, 1, 0xff];
    for left in [
        SubscribeRequest { request: Some(Asked::Acks(more)) }.encode_to_vec(),
        credit.encode_to_vec(),
        Vec::new(),
        twice,
        not_text.to_vec(),
    ] {
        assert_eq!(both(&left).0, None, "{left:?}");
    }
    assert!(read(&Bytes::copy_from_slice(&not_text)).is_err());
}

#[test]
fn many_ids_of_few_bytes_are_refused_before_they_take_room() {
    for field in [[0x12, 0], [0x1a, 0], [0x22, 0]] {
        let ids = field.repeat(ACK_IDS_MAX + 1);
        let mut bytes = Vec::new();
        put_part(tag::REQUEST_ACKS, ids.len(), &mut bytes);
        bytes.extend(ids);
        let status = read(&bytes.into()).unwrap_err();
        assert_eq!(status.message(), "acks has 10001 ack ids; at most 10000 are allowed", "{field:?}");
    }
    let most = vec!["i"; ACK_IDS_MAX];
    assert!(matches!(read(&acks(1, &most).encode_to_vec().into()), Ok(Request::Acks { .. })));
}

fn delivery(offset: u64, body: usize, attempt: u32, meta: Bytes) -> Delivery {
    let body = (0..body).map(|at| at as u8).collect::<Vec<u8>>().into();
    let message = StoredMessage {
        queue_uid: Uid([9; 16]),
        offset: Offset(offset),
        lane: Lane::default(),
        publish_time_us: offset.wrapping_mul(1_000_003) % (1 << 60),
        meta,
        body,
    };
    Delivery { ack_id: AckId::from("i".repeat(48)), attempt, lease_us: 30_000_000, message }
}

/// Deliveries go back to where the second one hears of it.
fn unsent() -> (Arc<Unsent>, UnboundedReceiver<Call>) {
    let (requests, calls) = unbounded_channel();
    let name = SubscriptionName { queue: queue(), subscription: Name::new("s").unwrap() };
    (Arc::new(Unsent { broker: Broker::new(requests, Default::default()), name }), calls)
}

#[test]
fn what_was_not_begun_goes_back() {
    let (to, mut calls) = unsent();
    let mut gathered = Gathered::default();
    for offset in 0..5 {
        let plain = delivery(offset, 1_000, 1, Bytes::new());
        gathered.push(
            Ready::new(&queue(), Delivery { ack_id: format!("{offset}").into(), ..plain }, NOW_US).unwrap(),
        );
    }
    let mut deliveries = gathered.close(NOW_US, to);
    // One and a part of the second.
    deliveries.write(1_500, &mut Vec::new());
    drop(deliveries);
    let Ok(Call::Settle { settlements, .. }) = calls.try_recv() else { panic!("nothing came back") };
    let back: Vec<&str> = settlements.iter().map(|one| one.ack_id.as_str()).collect();
    assert_eq!(back, ["2", "3", "4"]);
    assert!(settlements.iter().all(|one| one.ending == Ending::Release) && calls.try_recv().is_err());
}

/// The response as it is written in pieces of about `most` bytes.
fn written(deliveries: Vec<Delivery>, most: usize) -> Vec<Vec<u8>> {
    let mut gathered = Gathered::default();
    for delivery in deliveries {
        gathered.push(Ready::new(&queue(), delivery, NOW_US).unwrap());
    }
    let mut deliveries = gathered.close(NOW_US, unsent().0);
    let (mut left, mut pieces) = (deliveries.encoded_len(), Vec::new());
    while left > 0 {
        let mut piece = Vec::new();
        deliveries.write(most, &mut piece);
        assert!(!piece.is_empty(), "{left} bytes are missing");
        left -= piece.len();
        pieces.push(piece);
    }
    pieces
}

fn generated(deliveries: Vec<Delivery>) -> SubscribeResponse {
    let shown = |delivery| message::to_deliver(&queue(), delivery, NOW_US).unwrap();
    let messages = deliveries.into_iter().map(shown).collect();
    SubscribeResponse { response: Some(Response::Deliveries(Shown { messages })) }
}

#[test]
fn what_cannot_be_read_is_told() {
    let damaged = Ready::new(&queue(), delivery(7, 1, 1, Bytes::from_static(&[0xff; 9])), NOW_US);
    assert_eq!(damaged.unwrap_err().code(), tonic::Code::DataLoss);
}

proptest! {
    #[test]
    fn acks_that_are_read_by_hand_are_what_the_generated_code_reads(
        id in any::<u64>(),
        lengths in prop::collection::vec(0_usize..60, 1..20),
        flips in prop::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 0..3),
        cut in any::<prop::sample::Index>(),
        is_cut in any::<bool>(),
    ) {
        let ids: Vec<String> = lengths.into_iter().map(|length| "x".repeat(length)).collect();
        let ids: Vec<&str> = ids.iter().map(String::as_str).collect();
        let mut bytes = acks(id, &ids).encode_to_vec();
        for (at, value) in flips {
            let at = at.index(bytes.len());
            bytes[at] = value;
        }
        if is_cut {
            bytes.truncate(cut.index(bytes.len()));
        }
        let (read, generated) = both(&bytes);
        if read.is_some() {
            prop_assert_eq!(read, generated);
        }
    }

    #[test]
    fn deliveries_are_what_the_generated_code_writes(
        parts in prop::collection::vec((any::<u64>(), 0_usize..3_000, any::<u32>(), any::<bool>()), 1..20),
        most in 1_usize..5_000,
    ) {
        let attributes = [("key".to_owned(), "value".to_owned())].into();
        let meta = Meta { attributes, ..Meta::default() }.encode();
        let deliveries: Vec<Delivery> = parts
            .into_iter()
            .map(|(offset, body, attempt, plain)| {
                delivery(offset, body, attempt, if plain { Bytes::new() } else { meta.clone() })
            })
            .collect();
        let pieces = written(deliveries.clone(), most);
        prop_assert!(pieces.iter().all(|piece| piece.len() <= most + 2 * AROUND_BYTES_MAX));
        prop_assert_eq!(pieces.concat(), generated(deliveries).encode_to_vec());
    }
}

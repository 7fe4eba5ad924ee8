//! What is read and written by hand, held against the generated code.

use bytes::BytesMut;
use proptest::prelude::*;

use super::*;
use crate::ids::{Offset, Uid};
use crate::proto::v1::{Message, Producer, PublishRequest, PublishResponse, PublishResult};

const QUEUE: &str = "namespaces/default/queues/q";

/// A request as both ways of reading see it.
fn both(bytes: Vec<u8>) -> (Option<String>, Result<String, String>) {
    let bytes = Bytes::from(bytes);
    let plain = read_plain(&bytes, queue_name);
    let any = read_any(&bytes, queue_name);
    (
        plain.map(|request| format!("{request:?}")),
        any.map(|request| format!("{request:?}")).map_err(|status| status.to_string()),
    )
}

fn request(correlation_id: u64, messages: Vec<Message>) -> PublishStreamRequest {
    let publish = PublishRequest { queue: QUEUE.into(), messages, ..PublishRequest::default() };
    PublishStreamRequest { correlation_id, publish: Some(publish) }
}

fn plain(body: usize) -> Message {
    Message { body: vec![7; body].into(), ..Message::default() }
}

#[test]
fn requests_of_a_queue_and_bodies_are_read_as_the_generated_code_does() {
    for (correlation_id, bodies) in
        [(0, &[0][..]), (1, &[1]), (300, &[0, 200, 0]), (u64::MAX, &[70_000]), (9, &[3; 1_000])]
    {
        let messages = bodies.iter().map(|body| plain(*body)).collect();
        let (read, generated) = both(request(correlation_id, messages).encode_to_vec());
        assert_eq!(read, Some(generated.unwrap()), "{correlation_id}");
    }
}

#[test]
fn what_is_more_or_too_much_is_left_to_the_generated_code() {
    let attributes = [("k".to_owned(), "v".to_owned())].into();
    let with = |change: fn(&mut PublishRequest)| {
        let mut request = request(1, vec![plain(1)]);
        change(request.publish.as_mut().unwrap());
        request
    };
    for left in [
        PublishStreamRequest { correlation_id: 1, publish: None },
        request(1, vec![]),
        request(1, vec![plain(1); 1_001]),
        request(1, vec![plain(5 << 20), plain(5 << 20)]),
        request(1, vec![plain(BODY_BYTES_MAX + 1)]),
        request(1, vec![Message { attributes, ..plain(1) }]),
        with(|publish| publish.queue = "q".into()),
        with(|publish| publish.queue.clear()),
        with(|publish| publish.expected_next_offset = Some(0)),
        with(|publish| publish.producer = Some(Producer::default())),
    ] {
        assert_eq!(both(left.encode_to_vec()).0, None);
    }
    // The generated code joins what comes twice.
    let (one, two) = (request(1, vec![plain(1)]), request(2, vec![plain(2)]));
    assert_eq!(both([one.encode_to_vec(), two.encode_to_vec()].concat()).0, None);
}

/// What a refusal of a request is about, and its correlation id.
fn refused(bytes: Vec<u8>) -> (u64, String) {
    let request = read(&Bytes::from(bytes), queue_name).unwrap();
    (request.correlation_id, request.publish.unwrap_err().to_string())
}

#[test]
fn many_messages_of_few_bytes_are_refused_before_they_take_room() {
    let publish = |field: &[u8], count: usize| {
        let mut publish = PublishRequest { queue: QUEUE.into(), ..PublishRequest::default() }.encode_to_vec();
        publish.extend(field.repeat(count));
        publish
    };
    let request = |publish: &[u8]| {
        let mut bytes = Vec::new();
        put_number(tag::REQUEST_CORRELATION_ID, 7, &mut bytes);
        put_part(tag::REQUEST_PUBLISH, publish.len(), &mut bytes);
        bytes.extend_from_slice(publish);
        bytes
    };
    // Not even what cannot be decoded behind them is looked at.
    let messages = [publish(&[0x12, 0], 100_000), vec![0xff; 3]].concat();
    let too_many = "messages has 100000 messages; at most 1000 are allowed";
    assert_eq!(refused(request(&messages)), (7, too_many.to_owned()));
    let call = read_call(&messages.into()).unwrap_err();
    assert_eq!(call.message(), too_many);
    let causes: Vec<u8> = [0x5a, 0].repeat(CAUSES_MAX + 1);
    let mut message = Vec::new();
    put_part(tag::PUBLISH_MESSAGES, causes.len(), &mut message);
    let causes = publish(&[message, causes].concat(), 1);
    assert!(refused(request(&causes)).1.starts_with("caused_by has 10001 "));
}

proptest! {
    #[test]
    fn what_is_read_by_hand_is_what_the_generated_code_reads(
        id in any::<u64>(),
        bodies in prop::collection::vec(0_usize..300, 1..20),
        flips in prop::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 0..3),
        cut in any::<prop::sample::Index>(),
        is_cut in any::<bool>(),
    ) {
        let mut bytes = request(id, bodies.into_iter().map(plain).collect()).encode_to_vec();
        for (at, value) in flips {
            let at = at.index(bytes.len());
            bytes[at] = value;
        }
        if is_cut {
            bytes.truncate(cut.index(bytes.len()));
        }
        let (read, generated) = both(bytes);
        if let Some(read) = read {
            prop_assert_eq!(Ok(read), generated);
        }
    }

    #[test]
    fn answers_are_what_the_generated_code_reads(
        correlation_id in any::<u64>(),
        first in 0..1_u64 << 60,
        count in 1..200_u32,
        publish_time_us in 0..1_u64 << 60,
        duplicate in any::<bool>(),
        held in any::<bool>(),
        most in 1_usize..5_000,
    ) {
        let first_offset = Offset(first);
        let queue_uid = Uid([9; 16]);
        let published = Published { queue_uid, first_offset, count, publish_time_us, duplicate, held };
        let mut out = BytesMut::new();
        write_published(correlation_id, &published, &mut out);
        let result = |index: u32| {
            let offset = first_offset.plus(index.into());
            let message_id = token::message_id(queue_uid, offset);
            PublishResult { message_id, offset: offset.0, duplicate, diverted: false, held }
        };
        let response = PublishResponse {
            results: (0..count).map(result).collect(),
            publish_time: Some(time::timestamp(publish_time_us)),
        };
        let expected = PublishStreamResponse { correlation_id, result: Some(Shown::Response(response)) };
        prop_assert_eq!(PublishStreamResponse::decode(&out[..]).unwrap(), expected.clone());
        prop_assert_eq!(out.len(), expected.encoded_len());
        let (mut answer, mut out) = (CallAnswer::new(published), BytesMut::new());
        while let Some(piece) = answer.next_piece(most) {
            prop_assert!(piece.len() < most + RESULT_BYTES_MAX * 2);
            out.extend_from_slice(&piece);
        }
        let Some(Shown::Response(response)) = expected.result else { unreachable!("made above") };
        prop_assert_eq!(u32::from_be_bytes(out[1..PREFIX_BYTES].try_into().unwrap()) as usize, out.len() - PREFIX_BYTES);
        prop_assert_eq!(PublishResponse::decode(&out[PREFIX_BYTES..]).unwrap(), response);
    }
}

use std::collections::BTreeMap;

use bytes::Bytes;

use super::*;
use crate::ids::{Offset, Uid};

fn message(change: impl FnOnce(&mut v1::Message)) -> v1::Message {
    let mut message = v1::Message { body: Bytes::from_static(b"body"), ..v1::Message::default() };
    change(&mut message);
    message
}

fn refusal(change: impl FnOnce(&mut v1::Message)) -> Refusal {
    let messages = vec![message(|_| ()), message(change)];
    to_store(messages).unwrap_err()
}

/// A field and how a message sets it.
type Case = (&'static str, Box<dyn FnOnce(&mut v1::Message)>);

fn attributes(pairs: &[(&str, &str)]) -> BTreeMap<String, String> {
    pairs.iter().map(|(key, value)| ((*key).to_owned(), (*value).to_owned())).collect()
}

#[test]
fn what_is_stored_is_shown_again() {
    let given = message(|message| {
        message.attributes = attributes(&[("b", "2"), ("a", "")]);
        message.source = "tenant".into();
    });
    let stored = to_store(vec![given.clone()]).unwrap().remove(0);
    assert_eq!(stored.lane, Lane { priority: 4, bucket: 0 });
    let queue = QueueName::parse("namespaces/n/queues/q").unwrap();
    let stored = StoredMessage {
        queue_uid: Uid([1; 16]),
        offset: Offset(7),
        lane: stored.lane,
        publish_time_us: 1_500_000,
        meta: stored.parts.meta,
        body: stored.parts.body,
    };
    let shown = to_show(&queue, stored.clone()).unwrap();
    let expected = v1::Message {
        message_id: token::message_id(Uid([1; 16]), Offset(7)),
        offset: 7,
        publish_time: Some(time::timestamp(1_500_000)),
        ..given
    };
    assert_eq!(shown, expected);
    let damaged = StoredMessage { meta: Bytes::from_static(&[0xff; 3]), ..stored };
    assert_eq!(to_show(&queue, damaged).unwrap_err().code(), tonic::Code::DataLoss);
}

#[test]
fn a_plain_message_needs_no_metadata() {
    assert_eq!(to_store(vec![message(|_| ())]).unwrap()[0].parts.meta.len(), 0);
}

#[test]
fn fields_that_are_not_built_are_named() {
    use v1::message::{Delivery, Expiry};
    let cases: [Case; 9] = [
        ("ordering_key", Box::new(|m| m.ordering_key = "k".into())),
        ("priority", Box::new(|m| m.priority = Some(0))),
        ("delay", Box::new(|m| m.delivery = Some(Delivery::Delay(Default::default())))),
        ("deliver_time", Box::new(|m| m.delivery = Some(Delivery::DeliverTime(Default::default())))),
        ("ttl", Box::new(|m| m.expiry = Some(Expiry::Ttl(Default::default())))),
        ("expire_time", Box::new(|m| m.expiry = Some(Expiry::ExpireTime(Default::default())))),
        ("dedupe_id", Box::new(|m| m.dedupe_id = "d".into())),
        ("caused_by", Box::new(|m| m.caused_by = vec![String::new()])),
        ("new_origin", Box::new(|m| m.new_origin = true)),
    ];
    for (field, change) in cases {
        assert_eq!(refusal(change), Refusal::FieldNotBuilt { field: format!("messages[1].{field}") });
    }
}

#[test]
fn fields_of_the_server_are_refused() {
    let cases: [Case; 6] = [
        ("message_id", Box::new(|m| m.message_id = "x".into())),
        ("offset", Box::new(|m| m.offset = 1)),
        ("publish_time", Box::new(|m| m.publish_time = Some(Default::default()))),
        ("origin_id", Box::new(|m| m.origin_id = "x".into())),
        ("hops", Box::new(|m| m.hops = 1)),
        ("dead_letter", Box::new(|m| m.dead_letter = Some(Default::default()))),
    ];
    for (field, change) in cases {
        assert_eq!(refusal(change), Refusal::OutputOnly { field: format!("messages[1].{field}") });
    }
}

#[test]
fn sizes_are_bounded() {
    let text = |change: &dyn Fn(&mut v1::Message)| refusal(|message| change(message)).to_string();
    assert_eq!(
        text(&|m| m.body = Bytes::from(vec![0; BODY_BYTES_MAX + 1])),
        "messages[1].body has 8388609 bytes; at most 8388608 are allowed"
    );
    assert_eq!(
        text(&|m| m.body = Bytes::from(vec![0; BODY_BYTES_MAX])),
        "messages has 8388612 bytes of bodies and metadata; at most 8388608 are allowed"
    );
    let many =
        |m: &mut v1::Message| m.attributes = (0..101).map(|n| (n.to_string(), String::new())).collect();
    assert_eq!(text(&many), "messages[1].attributes has 101 attributes; at most 100 are allowed");
    assert_eq!(
        text(&|m| m.attributes = attributes(&[("", "v")])),
        "messages[1].attributes: has an empty key; give 1 to 256 bytes"
    );
    assert_eq!(
        text(&|m| m.attributes = attributes(&[(&"k".repeat(257), "v")])),
        "messages[1].attributes (a key) has 257 bytes; at most 256 are allowed"
    );
    assert_eq!(
        text(&|m| m.attributes = attributes(&[("k", &"v".repeat(1025))])),
        "messages[1].attributes[\"k\"] has 1025 bytes; at most 1024 are allowed"
    );
    assert_eq!(
        text(&|m| m.source = "s".repeat(256)),
        "messages[1].source has 256 bytes; at most 255 are allowed"
    );
    let largest = message(|m| {
        m.body = Bytes::new();
        m.source = "s".repeat(255);
        m.attributes = (0..100).map(|n| (format!("{n:0>256}"), "v".repeat(1024))).collect();
    });
    assert_eq!(to_store(vec![largest]).unwrap().len(), 1);
}

#[test]
fn a_publish_has_1_to_1000_messages() {
    assert_eq!(to_store(vec![]).unwrap_err().to_string(), "messages: is empty; give 1 to 1000 messages");
    assert_eq!(to_store(vec![message(|_| ()); 1000]).unwrap().len(), 1000);
    let refusal = to_store(vec![message(|_| ()); 1001]).unwrap_err();
    assert_eq!(refusal.to_string(), "messages has 1001 messages; at most 1000 are allowed");
}

#[test]
fn producers_count_from_one() {
    let given = |id: &str, epoch, sequence| v1::Producer { producer_id: id.to_owned(), epoch, sequence };
    assert_eq!(producer(None), Ok(None));
    let stamp = producer(Some(given("p", 1, 2))).unwrap().unwrap();
    assert_eq!((stamp.id.as_str(), stamp.epoch, stamp.sequence), ("p", 1, 2));
    for (bad, field) in [
        (given("", 1, 1), "producer.producer_id"),
        (given(&"p".repeat(256), 1, 1), "producer.producer_id"),
        (given("p", 0, 1), "producer.epoch"),
        (given("p", 1, 0), "producer.sequence"),
    ] {
        assert!(producer(Some(bad)).unwrap_err().to_string().starts_with(field));
    }
}

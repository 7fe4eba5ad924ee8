use bytes::Bytes;
use proptest::prelude::*;

use super::*;
use crate::core::types::{Pause, QueueConfig, RetryPolicy, SubscriptionConfig};
use crate::ids::Lsn;
use crate::record::Lane;
use crate::record::envelope;

fn decoded(record: &Record) -> Event {
    let mut bytes = Vec::new();
    envelope::encode(record, Lsn(3), &mut bytes);
    let head = RecordHead::decode(&bytes).unwrap();
    head.check_headers().unwrap();
    decode(&head).unwrap().unwrap()
}

fn runs() -> impl Strategy<Value = Vec<OffsetRun>> {
    let run =
        (0..u64::MAX / 2, 1..1000u64).prop_map(|(first, count)| OffsetRun { first: Offset(first), count });
    proptest::collection::vec(run, 1..20)
}

fn name() -> impl Strategy<Value = Name> {
    "[A-Za-z0-9_~+%-]{1,255}".prop_map(|text| Name::new(&text).unwrap())
}

fn delivery_event() -> impl Strategy<Value = Event> {
    let ids = (any::<u64>().prop_map(QueueId), any::<u64>().prop_map(SubscriptionId));
    (ids, runs(), any::<(u64, u32, u64, bool)>(), 0..10u8).prop_map(
        |((queue, subscription), runs, numbers, which)| {
            let (deadline_us, incarnation, number, counted) = numbers;
            match which {
                0 => Event::Leased {
                    queue,
                    subscription,
                    runs,
                    first: LeaseId { incarnation, number },
                    deadline_us,
                },
                1 => Event::LeaseExtended { queue, subscription, runs, deadline_us },
                2 => Event::Acked { queue, subscription, runs },
                3 => Event::Requeued { queue, subscription, runs, due_us: deadline_us, counted },
                4 => Event::Purged { queue, end: runs[0].first },
                5 => Event::Cancelled { queue, offset: runs[0].first },
                8 => Event::OffsetsSkipped { queue, end: runs[0].first },
                6 | 7 => {
                    let (subscription, place) = (SubscriptionId(subscription.0 >> 1), runs[0].first);
                    let refs = runs.iter().enumerate().map(|(at, run)| Ref {
                        due_us: number / 2 + at as u64 * run.count,
                        offset: run.first,
                        attempts: incarnation,
                    });
                    let mut refs: Vec<Ref> = refs.collect();
                    refs.sort_unstable();
                    let rest = counted.then_some(RestOfRun { position: number, due_us: deadline_us });
                    match which {
                        6 => Event::Spilled { queue, subscription, place, refs },
                        _ => Event::Recalled { queue, subscription, place, rest, refs },
                    }
                }
                _ => Event::DeadLettered {
                    queue,
                    subscription,
                    offset: runs[0].first,
                    to: QueueId(number),
                    to_offset: Offset(deadline_us),
                },
            }
        },
    )
}

fn admin_event() -> impl Strategy<Value = Event> {
    let labels = proptest::collection::vec((".{0,20}", ".{0,20}"), 0..5);
    (any::<[u8; 16]>(), name(), name(), labels, any::<(u64, u64, bool)>(), 0..8u8).prop_map(
        |(uid, a, b, labels, (x, y, dead_letters), which)| match which {
            0 => Event::QueueCreated(QueueCreated {
                queue: QueueId(x),
                uid: Uid(uid),
                name: QueueName { namespace: a, queue: b },
                config: QueueConfig { labels },
                create_time_us: y,
                dead_letters,
            }),
            1 => Event::SubscriptionCreated(SubscriptionCreated {
                queue: QueueId(x),
                subscription: SubscriptionId(y),
                uid: Uid(uid),
                name: a,
                config: SubscriptionConfig {
                    lease_us: x,
                    in_flight_max: y,
                    retry: RetryPolicy { attempts_max: x as u32, backoff_us_min: y, backoff_us_max: x },
                    dead_letter_queue: dead_letters.then(|| QueueName { namespace: b.clone(), queue: b }),
                },
                start: Offset(x),
                create_time_us: y,
            }),
            2 => Event::QueueDeleted { queue: QueueId(x) },
            3 => Event::QueueUpdated { queue: QueueId(x), config: QueueConfig { labels }, update_time_us: y },
            4 => Event::SubscriptionUpdated {
                queue: QueueId(x),
                subscription: SubscriptionId(y),
                config: SubscriptionConfig { lease_us: x, in_flight_max: y, ..Default::default() },
                update_time_us: y,
            },
            5 => Event::Paused {
                queue: QueueId(x),
                subscription: dead_letters.then_some(SubscriptionId(y.max(1))),
                pause: Pause {
                    refuses: !dead_letters,
                    reason: a.as_str().to_owned(),
                    time_us: x,
                    from: Offset(y),
                },
            },
            6 => Event::Resumed {
                queue: QueueId(x),
                subscription: dead_letters.then_some(SubscriptionId(y.max(1))),
            },
            _ => Event::SubscriptionDeleted { queue: QueueId(x), subscription: SubscriptionId(y) },
        },
    )
}

proptest! {
    #[test]
    fn events_come_back(event in prop_oneof![delivery_event(), admin_event()]) {
        prop_assert_eq!(decoded(&encode(&event)), event);
    }

    #[test]
    fn a_publish_comes_back(
        bodies in proptest::collection::vec(any::<Vec<u8>>(), 1..20),
        first in 0..u64::MAX / 2,
        stamp in proptest::option::of((".{0,100}", any::<u64>(), any::<u64>())),
    ) {
        let parts: Vec<StoredParts> =
            bodies.iter().map(|b| StoredParts { meta: Bytes::new(), body: b.clone().into() }).collect();
        let request = stamp.map(|(id, epoch, sequence)| StampedRequest {
            stamp: ProducerStamp { id, epoch, sequence },
            count: 77,
            log_us: 5,
        });
        let run = PublishedRun {
            queue: QueueId(9),
            first: Offset(first),
            count: bodies.len() as u32,
            bytes: bodies.iter().map(|b| b.len() as u64).sum(),
            lane: Lane { priority: 3, bucket: 4 },
            publish_time_us: 11,
            request,
        };
        prop_assert_eq!(decoded(&publish_record(&run, parts)), Event::Published(run));
    }

    /// Cut short or changed, a body is refused or means something else; it never panics.
    #[test]
    fn broken_bodies_do_not_panic(event in prop_oneof![delivery_event(), admin_event()], cut in 0usize..200, flip: u8) {
        let mut record = encode(&event);
        let Body::Plain(body) = &mut record.body else { unreachable!() };
        if let Some(byte) = body.get_mut(cut) {
            *byte ^= flip;
        }
        body.truncate(body.len().saturating_sub(cut));
        let mut bytes = Vec::new();
        envelope::encode(&record, Lsn(0), &mut bytes);
        let _ = decode(&RecordHead::decode(&bytes).unwrap());
    }
}

#[test]
fn what_a_newer_build_added_is_skipped_unless_critical() {
    let event = Event::QueueDeleted { queue: QueueId(1) };
    for (tag, taken) in [(1, true), (tlv::CRITICAL | 1, false)] {
        let mut record = encode(&event);
        let Body::Plain(body) = &mut record.body else { unreachable!() };
        tlv::put(body, tag, b"later");
        let mut bytes = Vec::new();
        envelope::encode(&record, Lsn(0), &mut bytes);
        assert_eq!(decode(&RecordHead::decode(&bytes).unwrap()).is_ok(), taken, "tag {tag:#x}");
    }
}

/// One event of each kind, with every field that it can have.
fn one_of_each() -> Vec<(&'static str, Record)> {
    let (queue, subscription) = (QueueId(7), SubscriptionId(300));
    let runs = vec![OffsetRun { first: Offset(1_000), count: 3 }, OffsetRun { first: Offset(5), count: 1 }];
    let name = |text| Name::new(text).unwrap();
    let first = LeaseId { incarnation: 2, number: 70_000 };
    let created = QueueCreated {
        queue,
        uid: Uid([9; 16]),
        name: QueueName { namespace: name("default"), queue: name("jobs") },
        config: QueueConfig { labels: vec![("team".to_owned(), "billing".to_owned())] },
        create_time_us: 1_700_000_000_000_000,
        dead_letters: true,
    };
    let subscribed = SubscriptionCreated {
        queue,
        subscription,
        uid: Uid([8; 16]),
        name: name("audit"),
        config: SubscriptionConfig {
            lease_us: 30_000_000,
            in_flight_max: 10_000,
            retry: RetryPolicy { attempts_max: 5, backoff_us_min: 1_000_000, backoff_us_max: 60_000_000 },
            dead_letter_queue: Some(QueueName { namespace: name("default"), queue: name("lost") }),
        },
        start: Offset(12),
        create_time_us: 1_700_000_000_000_001,
    };
    let published = PublishedRun {
        queue,
        first: Offset(40),
        count: 1,
        bytes: 4,
        lane: Lane { priority: 4, bucket: 2 },
        publish_time_us: 1_700_000_000_000_002,
        request: Some(StampedRequest {
            stamp: ProducerStamp { id: "p-1".to_owned(), epoch: 3, sequence: 500 },
            count: 1,
            log_us: 123_456,
        }),
    };
    let parts = StoredParts { meta: Bytes::new(), body: Bytes::from_static(b"body") };
    let deadline_us = 90_000_000;
    let refs = vec![
        Ref { due_us: 1_000_000, offset: Offset(70), attempts: 1 },
        Ref { due_us: 1_000_300, offset: Offset(12), attempts: 300 },
    ];
    let (config, update_time_us) = (created.config.clone(), 1_700_000_000_000_003);
    let subscription_config = subscribed.config.clone();
    let pause = Pause {
        refuses: true,
        reason: "drill".to_owned(),
        time_us: 1_700_000_000_000_004,
        from: Offset(69_000),
    };
    vec![
        ("QueueCreated", encode(&Event::QueueCreated(created))),
        ("QueueDeleted", encode(&Event::QueueDeleted { queue })),
        ("SubscriptionCreated", encode(&Event::SubscriptionCreated(subscribed))),
        ("SubscriptionDeleted", encode(&Event::SubscriptionDeleted { queue, subscription })),
        ("Publish", publish_record(&published, vec![parts])),
        ("Leased", encode(&Event::Leased { queue, subscription, runs: runs.clone(), first, deadline_us })),
        (
            "LeaseExtended",
            encode(&Event::LeaseExtended { queue, subscription, runs: runs.clone(), deadline_us }),
        ),
        ("Acked", encode(&Event::Acked { queue, subscription, runs: runs.clone() })),
        (
            "Requeued",
            encode(&Event::Requeued { queue, subscription, runs, due_us: 5_000_000, counted: true }),
        ),
        (
            "DeadLettered",
            encode(&Event::DeadLettered {
                queue,
                subscription,
                offset: Offset(6),
                to: QueueId(8),
                to_offset: Offset(1),
            }),
        ),
        ("Purged", encode(&Event::Purged { queue, end: Offset(70_000) })),
        ("Cancelled", encode(&Event::Cancelled { queue, offset: Offset(69_999) })),
        ("Spilled", encode(&Event::Spilled { queue, subscription, place: Offset(9), refs: refs.clone() })),
        (
            "Recalled",
            encode(&Event::Recalled {
                queue,
                subscription,
                place: Offset(9),
                rest: Some(RestOfRun { position: 2, due_us: 1_000_400 }),
                refs,
            }),
        ),
        ("QueueUpdated", encode(&Event::QueueUpdated { queue, config, update_time_us })),
        (
            "SubscriptionUpdated",
            encode(&Event::SubscriptionUpdated {
                queue,
                subscription,
                config: subscription_config,
                update_time_us,
            }),
        ),
        ("Paused", encode(&Event::Paused { queue, subscription: None, pause })),
        ("Resumed", encode(&Event::Resumed { queue, subscription: Some(subscription) })),
        ("OffsetsSkipped", encode(&Event::OffsetsSkipped { queue, end: Offset(71_000) })),
    ]
}

/// The bodies are part of the format. Where a change is meant (right only before the first release of a format
/// version), the golden file is written anew from what a failure prints.
#[test]
fn the_bodies_are_frozen() {
    let line = |(name, record): &(&str, Record)| {
        let mut bytes = Vec::new();
        envelope::encode(record, Lsn(11), &mut bytes);
        let hex: String = bytes.iter().map(|byte| format!("{byte:02x}")).collect();
        format!("{name} {hex}\n")
    };
    let now: String = one_of_each().iter().map(line).collect();
    let frozen = include_str!("../../tests/golden/events.txt");
    assert!(now == frozen, "the bytes of a record have changed; they are now:\n{now}");
}

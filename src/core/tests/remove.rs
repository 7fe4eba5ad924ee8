//! Messages that are taken away: what nobody gets any more, and what leases of them are worth.

use super::harness::*;
use crate::core::remove;
use crate::core::types::*;
use crate::ids::{Offset, Uid};

fn purge(shard: &mut Shard, end: Option<u64>) -> Result<Offset, Reject> {
    let decision = remove::purge(&shard.state, &queue_name("q"), end.map(Offset));
    decision.map(|decision| shard.enact(decision))
}

fn cancel(shard: &mut Shard, offset: u64) -> Result<(), Reject> {
    let uid = shard.state.queue_named(&queue_name("q")).unwrap().uid;
    let decision = remove::cancel(&shard.state, &queue_name("q"), uid, Offset(offset));
    decision.map(|decision| shard.enact(decision))
}

fn first_offset(shard: &Shard) -> Offset {
    shard.state.queue_named(&queue_name("q")).unwrap().first_offset
}

#[test]
fn a_purge_ends_everything_below_its_barrier() {
    let mut shard = Shard::with_queue("q");
    shard.subscribe("q", "other", Start::Earliest).unwrap();
    shard.publish("q", 200, None).unwrap();
    let handed = shard.lease(6);
    let endings = [(handed[0], Ending::Ack), (handed[1], retry(Some(9_000))), (handed[2], Ending::Release)];
    shard.settle(&endings);
    // Beyond the barrier: leased, and finished already.
    let beyond = shard.lease_from("q", "other", 150);
    shard.settle_on("q", "other", &[(beyond[100], Ending::Ack), (beyond[130], Ending::Ack)]);

    assert_eq!(purge(&mut shard, Some(101)), Ok(Offset(101)));
    assert_eq!((first_offset(&shard), shard.waiting()[0]), (Offset(101), 101));
    let purge_end = |shard: &Shard| shard.state.queue_named(&queue_name("q")).unwrap().purge_end;
    assert_eq!(purge_end(&shard), Offset(101));
    let delivery = |name| shard.subscription("q", name).delivery.clone();
    let (own, other) = (delivery("default"), delivery("other"));
    assert_eq!((own.leased(), own.delayed(), own.backlog(Offset(200))), (0, 0, 99));
    assert_eq!((other.leased(), other.backlog(Offset(200))), (48, 98));
    assert_eq!(other.floor(), Offset(101));
    assert_eq!((own.cursor(), other.cursor()), (Offset(101), Offset(150)));
    assert_eq!(shard.settle(&[(handed[3], Ending::Ack)]), [Settled::Ok], "finished, like after an ack");
    assert_eq!(shard.settle(&[(handed[4], Ending::Release)]), [Settled::Stale]);
    shard.pass(LEASE_US);
    assert_eq!(shard.waiting()[0], 101, "nothing below comes back");

    // An older barrier changes nothing; the next one needs none.
    let events = shard.log.len();
    assert_eq!(purge(&mut shard, Some(50)), Ok(Offset(101)));
    assert_eq!(shard.log.len(), events);
    assert_eq!(purge(&mut shard, None), Ok(Offset(200)));
    assert!(shard.waiting().is_empty());
    assert_eq!(delivery_is_empty(&shard), (0, 0));
    assert!(matches!(purge(&mut shard, Some(201)), Err(Reject::OffsetOutOfRange { .. })));
    shard.publish("q", 1, None).unwrap();
    assert_eq!(shard.waiting(), [200]);
}

fn delivery_is_empty(shard: &Shard) -> (u64, u64) {
    let delivery = &shard.subscription("q", "other").delivery;
    (delivery.leased(), delivery.backlog(Offset(200)))
}

#[test]
fn without_subscriptions_a_purge_ends_what_is_retained() {
    let mut shard = Shard::with_queue("q");
    shard.publish("q", 3, None).unwrap();
    let name = subscription_name("q", "default");
    let decision = crate::core::admin::delete_subscription(&shard.state, &name, None).unwrap();
    shard.enact(decision);
    purge(&mut shard, Some(2)).unwrap();
    assert_eq!(first_offset(&shard), Offset(2));
    shard.subscribe("q", "new", Start::Earliest).unwrap();
    assert_eq!(shard.subscription("q", "new").delivery.floor(), Offset(2));
}

#[test]
fn a_message_is_cancelled_unless_somebody_has_it() {
    let mut shard = Shard::with_queue("q");
    shard.subscribe("q", "other", Start::Earliest).unwrap();
    shard.publish("q", 4, None).unwrap();
    let handed = shard.lease(2);
    assert!(matches!(cancel(&mut shard, 1), Err(Reject::MessageLeased { offset: Offset(1), .. })));
    shard.settle(&[(handed[0], retry(Some(1_000_000))), (handed[1], Ending::Ack)]);
    // Delayed here, waiting there; finished here, waiting there; waiting everywhere.
    for offset in [0, 1, 3] {
        assert_eq!(cancel(&mut shard, offset), Ok(()));
        let again = cancel(&mut shard, offset);
        assert_eq!(again, Err(Reject::MessageNotFound { queue: queue_name("q"), offset: Offset(offset) }));
    }
    shard.pass(1_000_000);
    assert_eq!(shard.waiting(), [2]);
    assert_eq!(shard.lease_from("q", "other", 9).iter().map(|h| h.offset.0).collect::<Vec<_>>(), [2]);
    assert_eq!(first_offset(&shard), Offset(2));
    assert!(matches!(cancel(&mut shard, 4), Err(Reject::MessageNotFound { .. })), "not published yet");
    let other = remove::cancel(&shard.state, &queue_name("q"), Uid([9; 16]), Offset(2));
    assert!(matches!(other, Err(Reject::MessageNotFound { .. })), "of another queue");
}

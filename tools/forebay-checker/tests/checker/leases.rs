//! Rules of leases, delays and crashes.

use forebay_checker::Kind;
use forebay_checker::format::{Ending, Event, How, Op, Settled};

use crate::story::{LEASE_NS, Q, SECOND_NS, Story};

/// A message that one consumer has.
fn leased() -> Story {
    Story::new().stored(1, &[1], &[0]).came(0, 1)
}

/// It comes to another consumer, which finishes it.
fn again(story: Story, life: u64) -> Vec<Kind> {
    let story = story.deliver(0, 1, |delivery| (delivery.session, delivery.life) = (2, life));
    let (call, delivery) = (500, story.lines.len() as u64 - 1);
    let endings = vec![Ending { offset: 0, delivery, how: How::Ack }];
    let story = story.invoke(call, Op::Settle { queue: Q.into(), life, endings });
    let results = vec![Settled::Ok];
    story.ok(call, forebay_checker::format::Answer::Settled { results }).kinds()
}

#[test]
fn a_message_is_not_handed_out_while_a_lease_of_it_holds() {
    assert_eq!(again(leased().later(LEASE_NS - SECOND_NS), 0), [Kind::Overlapping]);
    assert_eq!(again(leased().later(LEASE_NS), 0), []);
    // Whoever tried to end it may have done so.
    for how in [How::Ack, How::Release, How::Retry { delay_ns: 0 }, How::Extend { lease_ns: 5 }] {
        assert_eq!(again(leased().ending(Q, 0, how).later(SECOND_NS), 0), [], "{how:?}");
    }
}

#[test]
fn a_lease_that_was_lengthened_holds_longer() {
    let longer = |result| leased().end(0, How::Extend { lease_ns: 2 * LEASE_NS }, result).later(LEASE_NS);
    assert_eq!(again(longer(Some(Settled::Ok)), 0), [Kind::Overlapping]);
    assert_eq!(again(longer(None), 0), []);
    assert_eq!(again(longer(Some(Settled::Stale)), 0), []);
    assert_eq!(again(longer(Some(Settled::Ok)).later(LEASE_NS), 0), []);
}

#[test]
fn over_a_crash_leases_hold_only_where_that_was_asked_for() {
    assert_eq!(again(leased(), 1), []);
    let asked = Event::Queue { queue: Q.into(), one_consumer: true, exactly_once: true };
    assert_eq!(again(leased().event(asked.clone()), 1), [Kind::Overlapping]);
    assert_eq!(again(leased().event(asked).later(LEASE_NS), 1), []);
}

#[test]
fn a_delivery_that_was_late_overlaps_nothing() {
    // It was sent first, its lease was over before the other one began, and it came last.
    let story = Story::new().stored(1, &[1], &[0]);
    let sent = story.moment();
    let story = story.later(LEASE_NS + SECOND_NS).came(0, 1);
    let late = story.deliver(0, 1, |delivery| (delivery.session, delivery.after) = (2, sent));
    assert_eq!(late.ending(Q, 0, How::Ack).kinds(), []);
}

#[test]
fn a_lease_begins_when_its_message_was_published_at_the_earliest() {
    // Credit was given long before the message was there.
    let story = Story::new();
    let credit = story.moment();
    let story = story.later(LEASE_NS).stored(1, &[1], &[0]);
    let story = story.deliver(0, 1, |delivery| delivery.after = credit);
    assert_eq!(again(story.later(SECOND_NS), 0), [Kind::Overlapping]);
}

#[test]
fn what_is_to_be_retried_waits_for_its_delay() {
    let retried = |result| leased().end(0, How::Retry { delay_ns: LEASE_NS }, result).later(SECOND_NS);
    assert_eq!(again(retried(Some(Settled::Ok)), 0), [Kind::Early]);
    assert_eq!(again(retried(Some(Settled::Ok)), 1), [Kind::Early], "over a crash too");
    assert_eq!(again(retried(Some(Settled::Ok)).later(LEASE_NS), 0), []);
    for not_certain in [None, Some(Settled::Stale)] {
        assert_eq!(again(retried(not_certain), 0), []);
    }
    // It was on its way before.
    let story = retried(Some(Settled::Ok));
    let late = story.deliver(0, 1, |delivery| (delivery.session, delivery.after.i) = (2, 5));
    assert_eq!(late.ending(Q, 0, How::Ack).kinds(), []);
}

#[test]
fn who_lost_a_message_to_another_one_cannot_end_it() {
    let late = |how, pause, life: u64, tried| {
        let story = leased().later(LEASE_NS);
        let first = story.lines.len() as u64 - 1;
        let story =
            story.deliver(0, 1, |delivery| (delivery.session, delivery.attempt) = (2, 2)).later(pause);
        let endings = vec![Ending { offset: 0, delivery: first, how }];
        let story = if tried { story.ending(Q, 0, How::Release) } else { story };
        let story = story.invoke(5, Op::Settle { queue: Q.into(), life, endings });
        let results = vec![Settled::Ok];
        let story = story.ok(5, forebay_checker::format::Answer::Settled { results });
        story.ending(Q, 0, How::Ack).kinds()
    };
    assert_eq!(late(How::Ack, 0, 0, false), [Kind::StaleTaken]);
    assert_eq!(late(How::Release, 0, 0, false), [Kind::StaleTaken]);
    assert_eq!(late(How::Ack, LEASE_NS, 0, false), [], "the newer lease is over");
    assert_eq!(late(How::Ack, 0, 1, false), [], "a crash may have forgotten the newer lease");
    assert_eq!(late(How::Ack, 0, 0, true), [], "the newer one may have been given back");
}

//! Each rule is seen to be broken by a history made for it, and not by one that nearly does.

use forebay_checker::format::{Answer, BodyHash, Event, How, Op, Settled};
use forebay_checker::{Kind, Violation};

use crate::story::{Q, Story, message};

#[test]
fn a_good_history_passes() {
    let story = Story::new()
        .stored(1, &[1, 2], &[0, 1])
        .send(2, &[3], true)
        .unknown(2)
        .send(3, &[3], true)
        .told(3, &[2])
        // Never stored, and that is known; or not known, and it never comes.
        .send(4, &[4], false)
        .fail(4)
        .send(5, &[5], false)
        .unknown(5)
        .send(6, &[6], false)
        .came(0, 1)
        .came(1, 2)
        .came(2, 3)
        .acked(0)
        .end(1, How::Retry { delay_ns: 0 }, Some(Settled::Ok))
        .end(2, How::Ack, None)
        .came_again(1, 2)
        .acked(1)
        .waiting(Q, &[]);
    let report = story.report();
    assert!(report.is_clean(), "{report:?}");
    assert_eq!((report.messages, report.acknowledged, report.deliveries, report.unknown), (6, 3, 4, 4));
}

#[test]
fn a_violation_names_queue_offset_message_and_lines() {
    let story = Story::new().stored(1, &[7], &[4]).came(4, 7).acked(4).waiting(Q, &[]);
    assert!(story.report().is_clean());
    let report = story.came_again(4, 7).report();
    let Violation { kind, queue, offset, message, lines, .. } = &report.violations[0];
    assert_eq!((*kind, queue.as_deref(), *offset, *message), (Kind::Redelivered, Some(Q), Some(4), Some(7)));
    // The answer to the ack, and the delivery after it.
    assert_eq!(*lines, [7, 9]);
}

#[test]
fn an_acknowledged_message_that_never_comes_is_lost() {
    let story = || Story::new().stored(1, &[1], &[0]).stored(2, &[2], &[1]).came(1, 2).acked(1);
    assert_eq!(story().kinds(), [Kind::Lost]);
    assert_eq!(story().waiting(Q, &[(0, 1)]).kinds_so_far(), []);
    assert_eq!(story().waiting(Q, &[(1, 5)]).kinds_so_far(), [Kind::Lost]);
    let later = story().waiting(Q, &[]).deliver(0, 1, |delivery| delivery.session = 2);
    assert_eq!(later.kinds_so_far(), [], "it came after that was said");
    // Not said: nobody knows.
    assert_eq!(story().kinds_so_far(), []);
    assert_eq!(story().report().open_ended, [Q]);
}

#[test]
fn a_delivered_message_that_is_not_finished_comes_again_or_waits() {
    let come = || Story::new().stored(1, &[1], &[0]).came(0, 1);
    assert_eq!(come().kinds(), [Kind::Stranded]);
    assert_eq!(come().waiting(Q, &[(0, 1)]).kinds_so_far(), []);
    for settled in [Settled::Stale, Settled::Transient, Settled::Refused] {
        assert_eq!(come().end(0, How::Ack, Some(settled)).kinds(), [Kind::Stranded]);
    }
    for how in [How::Release, How::Retry { delay_ns: 5 }, How::Extend { lease_ns: 5 }] {
        assert_eq!(come().end(0, how, Some(Settled::Ok)).kinds(), [Kind::Stranded]);
    }
    let failed = come().ending(Q, 0, How::Ack);
    let call = failed.lines.len() as u64 + 999;
    assert_eq!(failed.fail(call).kinds(), [Kind::Stranded]);
    assert_eq!(come().came_again(0, 1).kinds(), [Kind::Stranded]);
    assert_eq!(come().end(0, How::Ack, None).kinds(), []);
    assert_eq!(come().ending(Q, 0, How::Ack).kinds(), [], "a call without an end is unknown");
    assert_eq!(come().came_again(0, 1).acked(0).kinds(), []);
}

#[test]
fn a_message_that_nobody_sent_is_invented() {
    assert_eq!(Story::new().came(0, 7).kinds(), [Kind::Invented]);
    let sent_later = Story::new().came(0, 1).stored(1, &[1], &[0]).came(0, 1).acked(0);
    assert_eq!(sent_later.kinds(), [Kind::Invented]);
    let elsewhere = Story::new().stored(1, &[1], &[0]).came(0, 1).acked(0).deliver(0, 1, |delivery| {
        delivery.queue = "other".into();
    });
    assert_eq!(elsewhere.kinds(), [Kind::Invented]);
    let not_answered = Story::new().send(1, &[1], false).came(0, 1).acked(0);
    assert_eq!(not_answered.kinds(), []);
}

#[test]
fn what_failed_for_certain_is_not_there() {
    let come = |story: Story| story.came(0, 1).acked(0).kinds();
    assert_eq!(come(Story::new().send(1, &[1], false).fail(1)), [Kind::Duplicated]);
    assert_eq!(come(Story::new().send(1, &[1], false).unknown(1)), []);
}

#[test]
fn other_bytes_are_seen() {
    let come = |change: fn(&mut forebay_checker::format::Delivery)| {
        Story::new().stored(1, &[1], &[0]).deliver(0, 1, change).acked(0).kinds()
    };
    assert_eq!(come(|delivery| delivery.hash = BodyHash(delivery.hash.0 ^ 1)), [Kind::WrongBody]);
    assert_eq!(come(|delivery| delivery.hash = BodyHash(delivery.hash.0 ^ 1 << 127)), [Kind::WrongBody]);
    assert_eq!(come(|delivery| delivery.length += 1), [Kind::WrongBody]);
    assert_eq!(come(|_| {}), []);
}

#[test]
fn an_offset_that_changes_its_message_is_seen() {
    let story = || Story::new().stored(1, &[1], &[0]).stored(2, &[2], &[1]).came(0, 1).came(1, 2);
    let moved = story().deliver(1, 1, |delivery| delivery.after.i = 2).acked(0).acked(1);
    assert!(moved.kinds().contains(&Kind::Moved));
    assert_eq!(story().acked(0).acked(1).kinds(), []);
    let told_otherwise = Story::new().stored(1, &[1], &[0]).stored(2, &[2], &[0]).came(0, 1).acked(0);
    assert!(told_otherwise.kinds().contains(&Kind::Moved));
}

#[test]
fn an_unstamped_retry_may_be_stored_twice_a_stamped_one_not() {
    let twice = |stamped| {
        let story = Story::new().send(1, &[1], stamped).unknown(1).send(2, &[1], stamped).told(2, &[1]);
        story.came(0, 1).came(1, 1).acked(0).acked(1)
    };
    assert_eq!(twice(false).kinds(), []);
    assert_eq!(twice(true).kinds(), [Kind::Duplicated]);
    assert_eq!(twice(false).came(2, 1).acked(2).kinds(), [Kind::Duplicated]);
    let told_twice = Story::new().send(1, &[1], true).told(1, &[0]).send(2, &[1], true).told(2, &[1]);
    assert!(told_twice.came(0, 1).acked(0).came(1, 1).acked(1).kinds().contains(&Kind::Duplicated));
    let same = Story::new().send(1, &[1], true).told(1, &[0]).send(2, &[1], true).told(2, &[0]);
    assert_eq!(same.came(0, 1).acked(0).kinds(), []);
}

#[test]
fn what_is_sent_after_its_acknowledged_end_is_redelivered() {
    let story = || Story::new().stored(1, &[1], &[0]).came(0, 1).acked(0);
    assert_eq!(story().came(0, 1).kinds(), [Kind::Redelivered]);
    // It may have been on its way before the answer.
    let on_its_way = story();
    let sent = on_its_way.lines.len() as u64 - 1;
    assert_eq!(on_its_way.deliver(0, 1, |delivery| delivery.after.i = sent).kinds(), []);
    let not_answered = Story::new().stored(1, &[1], &[0]).came(0, 1).end(0, How::Ack, None);
    assert_eq!(not_answered.came_again(0, 1).kinds(), []);
}

#[test]
fn publishers_get_rising_offsets() {
    let backwards = Story::new().stored(1, &[1], &[1]).stored(2, &[2], &[0]).came(0, 2).came(1, 1);
    assert_eq!(backwards.acked(0).acked(1).kinds(), [Kind::OutOfOrder]);
    let at_once = Story::new().send(1, &[1], false).send(2, &[2], false).told(1, &[1]).told(2, &[0]);
    assert_eq!(at_once.came(0, 2).came(1, 1).acked(0).acked(1).kinds(), []);
    // A stamped one may have been stored when it was sent first.
    let stored_before = Story::new().send(1, &[1], true).unknown(1).stored(2, &[2], &[1]);
    let stored_before = stored_before.send(3, &[1], true).told(3, &[0]);
    assert_eq!(stored_before.came(0, 1).came(1, 2).acked(0).acked(1).kinds(), []);
}

#[test]
fn one_consumer_gets_first_deliveries_in_order() {
    let backwards = |attempt, session| {
        let story = Story::new().stored(1, &[1, 2], &[0, 1]).came(1, 2);
        let story = story.deliver(0, 1, |delivery| (delivery.attempt, delivery.session) = (attempt, session));
        story.acked(0).acked(1).kinds()
    };
    assert_eq!(backwards(1, 1), [Kind::OutOfOrder]);
    assert_eq!(backwards(2, 1), []);
    assert_eq!(backwards(1, 2), []);
}

#[test]
fn messages_of_an_ordering_key_come_in_order_whoever_gets_them() {
    let backwards = |keys: [&str; 2]| {
        let messages = (1..).zip(keys);
        let messages = messages
            .map(|(id, key)| forebay_checker::format::Message { key: Some(key.to_owned()), ..message(id) });
        let publish = Op::Publish { queue: Q.into(), stamped: false, messages: messages.collect() };
        let story = Story::new().invoke(1, publish).told(1, &[0, 1]);
        let story = story.deliver(1, 2, |delivery| delivery.session = 2);
        story.came(0, 1).acked(0).acked(1).kinds()
    };
    assert_eq!(backwards(["a", "a"]), [Kind::OutOfOrder]);
    assert_eq!(backwards(["a", "b"]), []);
}

#[test]
fn half_a_request_is_torn() {
    let unanswered = || Story::new().send(1, &[1, 2, 3], false).unknown(1);
    let two = || unanswered().came(0, 1).came(1, 2).acked(0).acked(1);
    assert_eq!(two().kinds(), [Kind::Torn]);
    assert_eq!(two().waiting(Q, &[(2, 3)]).kinds_so_far(), []);
    assert_eq!(two().came(2, 3).acked(2).kinds(), []);
    // The last ones, where there is no room for the first, or another's message.
    assert_eq!(unanswered().came(0, 2).came(1, 3).acked(0).acked(1).kinds(), [Kind::Torn]);
    let others = unanswered().stored(2, &[4], &[0]).came(0, 4).came(1, 2).came(2, 3);
    assert_eq!(others.acked(0).acked(1).acked(2).kinds(), [Kind::Torn]);
    let gap = Story::new().stored(1, &[1, 2], &[0, 2]).came(0, 1).came(2, 2).acked(0).acked(2);
    assert_eq!(gap.kinds(), [Kind::Torn]);
}

#[test]
fn dead_letters_are_followed() {
    let rejected = |outcome| Story::new().stored(1, &[1], &[0]).came(0, 1).end(0, How::Reject, outcome);
    let good = || rejected(Some(Settled::Ok)).letter(0, 1, 0).letter_acked(0);
    assert_eq!(good().kinds(), []);
    assert_eq!(rejected(Some(Settled::Ok)).kinds(), [Kind::Lost]);
    assert_eq!(rejected(Some(Settled::Ok)).waiting(Q, &[]).kinds_so_far(), [Kind::Lost]);
    let it_waits = rejected(Some(Settled::Ok)).waiting(Q, &[]).waiting("q-dead", &[(0, 1)]);
    assert_eq!(it_waits.kinds_so_far(), []);
    assert_eq!(rejected(None).letter(0, 1, 0).kinds(), [Kind::Stranded]);
    assert_eq!(rejected(None).letter(0, 1, 0).letter_acked(0).kinds(), []);
    assert_eq!(rejected(None).kinds(), [Kind::Stranded]);
    let it_may_wait = rejected(None).waiting(Q, &[]).waiting("q-dead", &[(0, 1)]);
    assert_eq!(it_may_wait.kinds_so_far(), []);
    let twice = good().letter(1, 1, 0).letter_acked(1);
    assert_eq!(twice.kinds(), [Kind::Duplicated]);
    let unasked = Story::new().stored(1, &[1], &[0]).came(0, 1).letter(0, 1, 0).letter_acked(0);
    assert_eq!(unasked.kinds(), [Kind::Invented]);
    let wrong = rejected(None).deliver(0, 1, |delivery| {
        (delivery.queue, delivery.origin) = ("q-dead".into(), Some((Q.into(), 0)));
        delivery.length += 1;
    });
    assert_eq!(wrong.letter_acked(0).kinds(), [Kind::WrongBody]);
    assert_eq!(good().came(0, 1).kinds(), [Kind::Redelivered]);
}

#[test]
fn answers_that_a_correct_server_never_gives_are_seen() {
    let story = || Story::new().stored(1, &[1], &[0]).came(0, 1).acked(0);
    assert_eq!(story().end(0, How::Ack, Some(Settled::Invalid)).kinds(), [Kind::Unexpected]);
    assert_eq!(story().end(0, How::Ack, Some(Settled::Stale)).kinds(), []);
    let two_results = story().ending(Q, 0, How::Ack);
    let call = two_results.lines.len() as u64 + 999;
    let two_results = two_results.ok(call, Answer::Settled { results: vec![Settled::Ok; 2] });
    assert_eq!(two_results.kinds(), [Kind::Unexpected]);
    let two_offsets = Story::new().stored(1, &[1], &[0, 1]).came(0, 1).acked(0);
    assert_eq!(two_offsets.kinds(), [Kind::Unexpected]);
    let said = story().event(Event::Unexpected { what: "it panicked".to_owned() });
    assert_eq!(said.kinds(), [Kind::Unexpected]);
}

#[test]
fn what_was_purged_may_be_gone_and_does_not_come_again() {
    let story = || Story::new().stored(1, &[1, 2, 3], &[0, 1, 2]);
    for done in [true, false] {
        assert_eq!(story().came(0, 1).came(2, 3).acked(2).purge(2, done).kinds(), []);
        assert_eq!(story().came(2, 3).acked(2).purge(3, done).kinds(), [], "a part of a request may come");
        assert_eq!(story().purge(2, done).kinds(), [Kind::Lost], "the last one may not be gone");
    }
    assert_eq!(story().purge(3, true).came(0, 1).kinds(), [Kind::Redelivered]);
    assert_eq!(story().purge(3, false).came(0, 1).kinds(), []);
    let on_its_way = story().purge(3, true).deliver(0, 1, |delivery| delivery.after.i = 2);
    assert_eq!(on_its_way.kinds(), []);
    // The earliest purge that was answered counts.
    let twice = || story().purge(1, true).purge(3, true);
    let sent = twice().lines.len() as u64 - 1;
    assert_eq!(twice().deliver(1, 2, |delivery| delivery.after.i = sent).kinds(), []);
    assert_eq!(twice().deliver(0, 1, |delivery| delivery.after.i = sent).kinds(), [Kind::Redelivered]);
}

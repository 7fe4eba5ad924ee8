//! Each rule is seen to be broken by a history made for it, and the whole one passes.

use super::super::history::{BodyHash, Mark};
use super::*;

const Q: &str = "q";

/// A history in the making.
#[derive(Default)]
struct Story(Vec<Event>);

fn mark(id: u64) -> Mark {
    Mark { id, hash: BodyHash(u128::from(id) * 1_000) }
}

impl Story {
    fn send(mut self, attempt: u64, ids: &[u64], stamped: bool) -> Self {
        let messages = ids.iter().map(|id| mark(*id)).collect();
        self.0.push(Event::PublishInvoked(Attempt { attempt, queue: Q.into(), messages, stamped }));
        self
    }

    fn outcome(mut self, attempt: u64, outcome: Published) -> Self {
        self.0.push(Event::PublishEnded { attempt, outcome });
        self
    }

    fn stored(self, attempt: u64, ids: &[u64], offsets: &[u64]) -> Self {
        self.send(attempt, ids, false).outcome(attempt, Published::Stored(offsets.to_vec()))
    }

    fn deliver(mut self, offset: u64, mark: Mark, change: impl FnOnce(&mut Delivery)) -> Self {
        let sent_after = self.0.len();
        let (queue, session) = (Q.into(), 1);
        let mut delivery = Delivery { queue, offset, mark, attempt: 1, sent_after, session, origin: None };
        change(&mut delivery);
        self.0.push(Event::Delivered(delivery));
        self
    }

    fn came(self, offset: u64, id: u64) -> Self {
        self.deliver(offset, mark(id), |_| {})
    }

    fn end(mut self, queue: &str, offset: u64, ending: Ending, outcome: Option<Settled>) -> Self {
        let call = self.0.len() as u64;
        self.0.push(Event::SettleInvoked { call, queue: queue.into(), endings: vec![(offset, ending)] });
        let outcomes = outcome.map(|outcome| vec![outcome]);
        self.0.push(Event::SettleEnded { call, outcomes });
        self
    }

    fn acked(self, offset: u64) -> Self {
        self.end(Q, offset, Ending::Ack, Some(Settled::Ok))
    }

    fn purge(mut self, end: u64, done: bool) -> Self {
        let call = self.0.len() as u64;
        self.0.push(Event::PurgeInvoked { call, queue: Q.into(), end });
        self.0.push(Event::PurgeEnded { call, done });
        self
    }

    /// The kinds of all violations, sorted by name, each once.
    fn kinds(&self) -> Vec<Kind> {
        let mut kinds: Vec<Kind> = check(&self.0, &[Q]).into_iter().map(|violation| violation.kind).collect();
        kinds.sort_by_key(|kind| format!("{kind:?}"));
        kinds.dedup();
        kinds
    }
}

#[test]
fn a_good_history_passes() {
    let story = Story::default()
        .stored(1, &[1, 2], &[0, 1])
        .send(2, &[3], true)
        .outcome(2, Published::Unknown)
        .send(3, &[3], true)
        .outcome(3, Published::Stored(vec![2]))
        // Never stored, and that is known; or not known, and it never comes.
        .send(4, &[4], false)
        .outcome(4, Published::Refused)
        .send(5, &[5], false)
        .outcome(5, Published::Unknown)
        .came(0, 1)
        .came(1, 2)
        .came(2, 3)
        .acked(0)
        .end(Q, 1, Ending::Retry, Some(Settled::Ok))
        .end(Q, 2, Ending::Ack, None)
        .deliver(1, mark(2), |delivery| delivery.attempt = 2)
        .acked(1);
    assert_eq!(story.kinds(), []);
}

#[test]
fn an_unstamped_retry_may_be_stored_twice_a_stamped_one_not() {
    let twice = |stamped| {
        Story::default()
            .send(1, &[1], stamped)
            .outcome(1, Published::Unknown)
            .send(2, &[1], stamped)
            .outcome(2, Published::Stored(vec![1]))
            .came(0, 1)
            .came(1, 1)
            .acked(0)
            .acked(1)
    };
    assert_eq!(twice(false).kinds(), []);
    assert_eq!(twice(true).kinds(), [Kind::Duplicated]);
    let three_times = twice(false).came(2, 1).acked(2);
    assert_eq!(three_times.kinds(), [Kind::Duplicated]);
}

#[test]
fn an_acknowledged_message_that_never_comes_is_lost() {
    let story = Story::default().stored(1, &[1], &[0]).stored(2, &[2], &[1]).came(1, 2).acked(1);
    assert_eq!(story.kinds(), [Kind::Lost, Kind::Torn]);
}

#[test]
fn a_delivered_message_that_is_never_finished_is_lost() {
    let come = || Story::default().stored(1, &[1], &[0]).came(0, 1);
    assert_eq!(come().kinds(), [Kind::Lost]);
    for settled in [Settled::Stale, Settled::Transient, Settled::Refused] {
        assert_eq!(come().end(Q, 0, Ending::Ack, Some(settled)).kinds(), [Kind::Lost]);
    }
    assert_eq!(come().end(Q, 0, Ending::Ack, None).kinds(), []);
    assert_eq!(come().acked(0).kinds(), []);
}

#[test]
fn a_message_that_nobody_sent_is_invented() {
    let story = Story::default().came(0, 7);
    assert_eq!(story.kinds(), [Kind::Invented]);
    let sent_later = Story::default().came(0, 1).stored(1, &[1], &[0]).came(0, 1).acked(0);
    assert_eq!(sent_later.kinds(), [Kind::Invented]);
    let elsewhere = Story::default().stored(1, &[1], &[0]).came(0, 1).acked(0).deliver(0, mark(1), |d| {
        d.queue = "other".into();
    });
    assert_eq!(elsewhere.kinds(), [Kind::Invented]);
    // Refused for certain, but there.
    let story = Story::default().send(1, &[1], false).outcome(1, Published::Refused).came(0, 1).acked(0);
    assert_eq!(story.kinds(), [Kind::Duplicated]);
}

#[test]
fn other_bytes_are_seen() {
    let wrong = Mark { hash: BodyHash(5), ..mark(1) };
    let story = Story::default().stored(1, &[1], &[0]).deliver(0, wrong, |_| {}).acked(0);
    assert_eq!(story.kinds(), [Kind::WrongBody]);
}

#[test]
fn an_offset_that_changes_its_message_is_seen() {
    let story = Story::default().stored(1, &[1], &[0]).stored(2, &[2], &[1]).came(0, 1).came(1, 2).came(1, 1);
    assert!(story.acked(0).acked(1).kinds().contains(&Kind::Moved));
    let answered_otherwise =
        Story::default().send(1, &[1], true).outcome(1, Published::Stored(vec![0])).send(2, &[1], true);
    let story = answered_otherwise.outcome(2, Published::Stored(vec![1])).came(0, 1).acked(0);
    assert!(story.kinds().contains(&Kind::Duplicated));
}

#[test]
fn what_is_sent_after_its_acknowledged_end_is_redelivered() {
    let story = |sent_after: fn(Moment) -> Moment| {
        let story = Story::default().stored(1, &[1], &[0]).came(0, 1).acked(0);
        let now = story.0.len();
        story.deliver(0, mark(1), |delivery| delivery.sent_after = sent_after(now)).kinds()
    };
    assert_eq!(story(|now| now), [Kind::Redelivered]);
    // It may have been on its way before the answer.
    assert_eq!(story(|now| now - 1), []);
    let not_answered = Story::default().stored(1, &[1], &[0]).came(0, 1).end(Q, 0, Ending::Ack, None);
    assert_eq!(not_answered.came(0, 1).kinds(), []);
}

#[test]
fn order_is_checked_for_publishers_and_for_one_consumer() {
    let publishers = Story::default().stored(1, &[1], &[1]).stored(2, &[2], &[0]).came(0, 2).came(1, 1);
    assert_eq!(publishers.acked(0).acked(1).kinds(), [Kind::OutOfOrder]);
    let backwards = |attempt, session| {
        let story = Story::default().stored(1, &[1, 2], &[0, 1]).came(1, 2);
        let story = story.deliver(0, mark(1), |delivery| {
            (delivery.attempt, delivery.session) = (attempt, session);
        });
        story.acked(0).acked(1).kinds()
    };
    assert_eq!(backwards(1, 1), [Kind::OutOfOrder]);
    assert_eq!(backwards(2, 1), []);
    assert_eq!(backwards(1, 2), []);
}

#[test]
fn half_a_request_is_torn() {
    let unanswered = || Story::default().send(1, &[1, 2, 3], false).outcome(1, Published::Unknown);
    assert_eq!(unanswered().came(0, 1).came(1, 2).acked(0).acked(1).kinds(), [Kind::Torn]);
    assert_eq!(unanswered().came(0, 1).came(1, 2).came(2, 3).acked(0).acked(1).acked(2).kinds(), []);
}

#[test]
fn dead_letters_are_followed() {
    let rejected =
        |outcome| Story::default().stored(1, &[1], &[0]).came(0, 1).end(Q, 0, Ending::Reject, outcome);
    let letter = |story: Story, offset, mark| {
        story.deliver(offset, mark, |delivery| {
            (delivery.queue, delivery.origin) = ("q-dead".into(), Some((Q.into(), 0)));
        })
    };
    let good =
        letter(rejected(Some(Settled::Ok)), 0, mark(1)).end("q-dead", 0, Ending::Ack, Some(Settled::Ok));
    assert_eq!(good.kinds(), []);
    assert_eq!(rejected(Some(Settled::Ok)).kinds(), [Kind::Lost]);
    assert_eq!(letter(rejected(None), 0, mark(1)).kinds(), [Kind::Lost]);
    let good = letter(rejected(None), 0, mark(1)).end("q-dead", 0, Ending::Ack, Some(Settled::Ok));
    let twice = letter(good, 1, mark(1)).end("q-dead", 1, Ending::Ack, Some(Settled::Ok));
    assert_eq!(twice.kinds(), [Kind::Duplicated]);
    let unasked = letter(Story::default().stored(1, &[1], &[0]).came(0, 1), 0, mark(1));
    let unasked = unasked.end("q-dead", 0, Ending::Ack, Some(Settled::Ok));
    assert_eq!(unasked.kinds(), [Kind::Invented]);
    let wrong = Mark { hash: BodyHash(9), ..mark(1) };
    let story = letter(rejected(None), 0, wrong).end("q-dead", 0, Ending::Ack, Some(Settled::Ok));
    assert_eq!(story.kinds(), [Kind::WrongBody]);
    let came_back = letter(rejected(None), 0, mark(1)).end("q-dead", 0, Ending::Ack, Some(Settled::Ok));
    assert_eq!(came_back.came(0, 1).kinds(), [Kind::Redelivered]);
}

#[test]
fn an_invalid_ack_id_is_unexpected() {
    let story = Story::default().stored(1, &[1], &[0]).came(0, 1).acked(0);
    assert_eq!(story.end(Q, 0, Ending::Ack, Some(Settled::Invalid)).kinds(), [Kind::Unexpected]);
}

#[test]
fn what_was_purged_may_be_gone_and_does_not_come_again() {
    let story = || Story::default().stored(1, &[1, 2, 3], &[0, 1, 2]);
    for done in [true, false] {
        assert_eq!(story().came(0, 1).came(2, 3).acked(2).purge(2, done).kinds(), []);
        assert_eq!(story().came(2, 3).acked(2).purge(3, done).kinds(), [], "a part of a request may come");
        assert_eq!(story().purge(2, done).kinds(), [Kind::Lost, Kind::Torn], "the last one may not be gone");
        let other = story().purge(3, done).deliver(0, mark(1), |delivery| delivery.queue = "other".into());
        assert!(other.kinds().contains(&Kind::Invented));
    }
    assert_eq!(story().purge(3, true).came(0, 1).kinds(), [Kind::Redelivered]);
    assert_eq!(story().purge(3, false).came(0, 1).kinds(), []);
    let on_its_way = story().purge(3, true).deliver(0, mark(1), |delivery| delivery.sent_after = 2);
    assert_eq!(on_its_way.kinds(), []);
    // The earliest purge that was answered counts.
    let twice = story().purge(1, true).purge(3, true);
    assert_eq!(twice.deliver(1, mark(2), |delivery| delivery.sent_after = 5).kinds(), []);
}

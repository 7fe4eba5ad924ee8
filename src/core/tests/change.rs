//! Queues and subscriptions that are changed, stopped and let go on.

use super::harness::*;
use crate::core::pause::{self, Target};
use crate::core::types::*;
use crate::core::{Decision, admin};
use crate::ids::{Offset, Uid};

fn target(subscription: Option<&str>) -> Target {
    let subscription = subscription.map(|name| subscription_name("q", name).subscription);
    Target { queue: queue_name("q"), subscription }
}

fn stop(shard: &mut Shard, of: Option<&str>, refuses: bool, reason: &str) -> Pause {
    let decision = pause::pause(&shard.state, &target(of), refuses, reason.to_owned(), shard.now);
    shard.enact(decision.unwrap())
}

fn go_on(shard: &mut Shard, of: Option<&str>) -> u64 {
    let decision = pause::resume(&shard.state, &target(of)).unwrap();
    shard.enact(decision)
}

#[test]
fn a_pause_holds_or_refuses_and_keeps_its_time() {
    let mut shard = Shard::with_queue("q");
    shard.subscribe("q", "other", Start::Earliest).unwrap();
    let again = stamp("p", 1, 1);
    shard.publish("q", 2, Some(again.clone())).unwrap();
    shard.now.wall_us = 50;
    let first = stop(&mut shard, None, false, "drill");
    assert_eq!(first, Pause { refuses: false, reason: "drill".into(), time_us: 50, from: Offset(2) });
    shard.publish("q", 3, None).unwrap();
    shard.now.wall_us = 60;
    let second = stop(&mut shard, None, true, "flood");
    assert_eq!(second, Pause { refuses: true, reason: "flood".into(), ..first });
    let refused = Reject::Paused { queue: queue_name("q"), reason: "flood".into() };
    assert_eq!(shard.publish("q", 1, None), Err(refused));
    assert!(shard.publish("q", 2, Some(again)).unwrap().duplicate, "what was stored is answered again");
    for name in ["default", "other"] {
        assert!(shard.state.is_paused(shard.subscription("q", name)));
    }
    let events = shard.log.len();
    stop(&mut shard, None, true, "flood");
    assert_eq!(shard.log.len(), events, "nothing has changed");
    assert_eq!(go_on(&mut shard, None), 3);
    assert_eq!(go_on(&mut shard, None), 0);
    assert_eq!(shard.log.len(), events + 1);
    assert!(shard.publish("q", 1, None).is_ok());
}

#[test]
fn a_subscription_is_paused_alone() {
    let mut shard = Shard::with_queue("q");
    shard.subscribe("q", "other", Start::Earliest).unwrap();
    stop(&mut shard, Some("other"), false, "");
    assert!(shard.state.is_paused(shard.subscription("q", "other")));
    assert!(!shard.state.is_paused(shard.subscription("q", "default")));
    stop(&mut shard, None, false, "");
    assert_eq!(go_on(&mut shard, Some("other")), 0);
    assert!(shard.state.is_paused(shard.subscription("q", "other")), "its queue still is");
    go_on(&mut shard, None);
    assert!(!shard.state.is_paused(shard.subscription("q", "other")));
    let missing = pause::resume(&shard.state, &target(Some("none")));
    assert!(matches!(missing, Err(Reject::SubscriptionNotFound(_))));
}

#[test]
fn a_change_is_made_to_the_version_that_was_expected() {
    let mut shard = Shard::with_queue("q");
    let name = subscription_name("q", "default");
    let config = |in_flight_max| SubscriptionConfig { in_flight_max, ..SubscriptionConfig::default() };
    let seen = shard.subscription("q", "default").version();
    shard.now.wall_us = 70;
    let update = |shard: &mut Shard, expected, config| {
        let decision = admin::update_subscription(&shard.state, &name, expected, config, shard.now);
        decision.map(|Decision { answer, events }| (shard.enact(Decision { answer, events }), ()).1)
    };
    assert_eq!(update(&mut shard, Some(seen), config(5)), Ok(()));
    let stale = update(&mut shard, Some(seen), config(6));
    assert!(matches!(stale, Err(Reject::VersionMismatch { .. })));
    assert_eq!(update(&mut shard, None, config(5)), Ok(()));
    let subscription = shard.subscription("q", "default");
    assert_eq!((subscription.revision, subscription.update_time_us), (1, 70), "the same is no change");
    let own = SubscriptionConfig { dead_letter_queue: Some(queue_name("q")), ..config(5) };
    assert!(matches!(update(&mut shard, None, own), Err(Reject::DeadLetterQueue { .. })));
    let other = Version { uid: Uid([9; 16]), revision: 0 };
    let deleted = admin::delete_queue(&shard.state, &queue_name("q"), Some(other));
    assert!(matches!(deleted, Err(Reject::VersionMismatch { .. })));
    let labels = QueueConfig { labels: vec![("k".into(), "v".into())] };
    let decision = admin::update_queue(&shard.state, &queue_name("q"), None, labels, shard.now).unwrap();
    shard.enact(decision);
    assert_eq!(shard.state.queue_named(&queue_name("q")).unwrap().revision, 1);
}

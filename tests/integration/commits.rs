//! Group commit, by the server's own count of syncs.
//!
//! Each publisher here has one request under way. While a sync runs the others' requests gather, so a group is as
//! large as what came in the meantime. To make that certain on any disk, syncs are slowed down by strace where it is
//! at hand; the bounds hold without, on disks where a sync takes about as long as a few requests.

use std::time::Duration;

use forebay::proto::v1::ack_result::Status as Outcome;
use forebay_testkit::{Clients, Server, subscription};

use crate::support::*;

const PUBLISHERS: usize = 64;
const MESSAGES: usize = 1_024;

/// A server whose syncs take at least some milliseconds.
fn slow_disk() -> (Site, Server) {
    let mut site = Site::new();
    let strace = std::process::Command::new("strace").arg("-V").output();
    if strace.is_ok_and(|strace| strace.status.success()) {
        let wrapper = "strace -f -qq -o /dev/null --seccomp-bpf -e trace=fdatasync -e inject=fdatasync:delay_enter=5000";
        site.options.wrapper = wrapper.split(' ').map(str::to_owned).collect();
    }
    let server = site.start();
    (site, server)
}

async fn syncs(clients: &mut Clients) -> u64 {
    server_stats(clients).await.syncs
}

/// Does the work of `MESSAGES` small calls, from 64 at a time; gives the syncs it took.
async fn syncs_of<F: Future<Output = ()> + Send + 'static>(
    clients: &mut Clients,
    call: impl Fn(Clients, usize) -> F + Copy + Send + 'static,
) -> u64 {
    let before = syncs(clients).await;
    let mut workers = tokio::task::JoinSet::new();
    for worker in 0..PUBLISHERS {
        let clients = clients.clone();
        workers.spawn(async move {
            for number in (worker..MESSAGES).step_by(PUBLISHERS) {
                call(clients.clone(), number).await;
            }
        });
    }
    workers.join_all().await;
    syncs(clients).await - before
}

async fn publish_to(mut clients: Clients, queue: usize, number: usize) {
    publish(&mut clients, &format!("q{queue}"), &[format!("message {number}")]).await;
}

#[tokio::test]
async fn publishers_and_consumers_share_syncs_also_over_many_queues() {
    let (site, server) = slow_disk();
    let mut clients = server.clients();
    let mut making = tokio::task::JoinSet::new();
    for queue in 0..1_000 {
        let mut clients = clients.clone();
        making.spawn(async move { create(&mut clients, &format!("q{queue}")).await });
    }
    making.join_all().await;

    let most = (MESSAGES / 4) as u64;
    let one_queue = syncs_of(&mut clients, |clients, number| publish_to(clients, 0, number)).await;
    assert!(
        one_queue <= most,
        "{one_queue} syncs for {MESSAGES} messages of {PUBLISHERS} publishers to one queue"
    );
    let many = syncs_of(&mut clients, |clients, number| publish_to(clients, number % 1_000, number)).await;
    assert!(many <= most, "{many} syncs for {MESSAGES} messages of {PUBLISHERS} publishers to 1,000 queues");
    assert!(many <= 2 * one_queue + 32, "{many} syncs over 1,000 queues, {one_queue} on one");

    let mut held = Vec::new();
    while held.len() < MESSAGES {
        held.extend(ack_ids(&pull(&mut clients, "q0", 1_000).await));
    }
    let held: &'static [String] = held.leak();
    let acks = syncs_of(&mut clients, move |mut clients, number| async move {
        let outcome = ack(&mut clients, &subscription("q0"), vec![held[number].clone()]).await;
        assert_eq!(outcome, [Outcome::Ok]);
    })
    .await;
    assert!(acks <= most, "{acks} syncs for {MESSAGES} acks of {PUBLISHERS} consumers");
    let floor = stats_of(&mut clients, &subscription("q0")).await.ack_floor;
    assert!(floor >= MESSAGES as u64);
    drop(server);
    drop(site);
}

#[tokio::test]
async fn every_lone_answer_has_its_sync() {
    let (_site, _server, mut clients) = with_queue().await;
    for _ in 0..20 {
        let before = syncs(&mut clients).await;
        publish(&mut clients, "q", &["a"]).await;
        assert!(syncs(&mut clients).await > before, "a publish was answered without a sync");
        let received = pull(&mut clients, "q", 1).await;
        let before = syncs(&mut clients).await;
        ack(&mut clients, &subscription("q"), ack_ids(&received)).await;
        assert!(syncs(&mut clients).await > before, "an ack was answered without a sync");
    }
}

#[tokio::test]
async fn an_idle_server_does_not_sync() {
    let (_site, _server, mut clients) = with_queue().await;
    publish(&mut clients, "q", &bodies(10)).await;
    let received = pull(&mut clients, "q", 5).await;
    ack(&mut clients, &subscription("q"), ack_ids(&received)).await;
    create(&mut clients, "empty").await;
    let _stream = Stream::open(&mut clients, &subscription("empty"), 10, 10).await;
    let polling = tokio::spawn({
        let mut clients = clients.clone();
        async move { pull_from(&mut clients, &subscription("empty"), 1, 60, None).await }
    });
    // What was begun comes to rest soon: the log's closing frame, a spare segment.
    let mut at_rest = server_stats(&mut clients).await;
    for _ in 0..50 {
        tokio::time::sleep(Duration::from_millis(200)).await;
        let now = server_stats(&mut clients).await;
        if (now.syncs, now.commits) == (at_rest.syncs, at_rest.commits) {
            break;
        }
        at_rest = now;
    }
    tokio::time::sleep(Duration::from_secs(2)).await;
    let later = server_stats(&mut clients).await;
    assert_eq!(
        (later.syncs, later.commits, later.records),
        (at_rest.syncs, at_rest.commits, at_rest.records)
    );
    polling.abort();
}

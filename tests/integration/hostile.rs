//! Hostile requests to every call; what they are is in `forebay_testkit::hostile`. `cargo xtask hostile` sends many more.

use forebay_testkit::hostile::Hostile;

use crate::support::*;

const REQUESTS: u64 = 10_000;

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn ten_thousand_hostile_requests_get_typed_answers_and_harm_nothing_beside_them() {
    let (_site, server, mut clients) = with_queue().await;
    publish_numbered(&mut clients, "q", 200).await;
    let figures = Hostile { requests: REQUESTS, seed: 20_261_122 }.run(&server).await;
    assert!(figures.violations.is_empty(), "{}", figures.violations.join("\n"));
    assert_eq!(drain(&mut clients, "q").await, bodies(200), "a queue that nobody named");
    assert_eq!(metric(&server, "forebay_admission_used_bytes").await, 0);
    drop(clients);
    let (status, stderr) = end(server).await;
    assert!(status.success() && !stderr.contains("panicked"), "{status}: {stderr}");
}

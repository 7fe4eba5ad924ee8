//! The main job: publish, kill, restart, consume, empty.

use forebay_testkit::payload;

use crate::support::*;

#[tokio::test]
async fn what_was_published_survives_a_kill_and_what_was_acknowledged_does_not_come_back() {
    let lines = payload::real_lines().unwrap_or_else(|| payload::seeded_lines(1, 255));
    let (site, server, mut clients) = with_queue().await;
    for (at, chunk) in lines.chunks(7).enumerate() {
        assert_eq!(publish(&mut clients, "q", chunk).await, at as u64 * 7);
    }
    server.kill();

    let server = site.start();
    assert_eq!(server.recovered_messages, lines.len() as u64);
    let drained = drain(&mut server.clients(), "q").await;
    assert!(drained == lines, "byte-identical and in order");
    server.kill();

    let server = site.start();
    assert_eq!(server.recovered_messages, 0);
    assert!(drain(&mut server.clients(), "q").await.is_empty());
    let (status, stderr) = end(server).await;
    assert!(status.success(), "{stderr}");
}

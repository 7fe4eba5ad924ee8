//! The memory of publishes: the broker has it for as long as it has their bodies.

use tokio::sync::oneshot;

use super::*;
use crate::admission::Admission;
use crate::ids::Ticket;

fn large() -> Publish {
    let parts = StoredParts { meta: Bytes::new(), body: body(0, LARGE) };
    Publish {
        queue: queue(),
        messages: vec![NewMessage { lane: Lane { priority: 4, bucket: 0 }, parts }],
        producer: None,
    }
}

#[tokio::test]
async fn a_publish_keeps_its_memory_until_it_is_on_disk_though_its_caller_leaves() {
    let dir = tempfile::tempdir().unwrap();
    let running = start(dir.path());
    running.publish(&[]).await;
    let admission = Admission::new(1 << 20, 0);
    let memory = || admission.try_admit(LARGE as u64);
    // Polled once, so that the broker has it, and dropped.
    let mut alone = Box::pin(running.broker.publish_held(large(), memory()));
    assert!(std::future::poll_fn(|cx| std::task::Poll::Ready(alone.as_mut().poll(cx).is_pending())).await);
    drop(alone);
    drop(running.broker.publish_all(vec![large()], memory()));
    let both = admission.used_bytes();
    assert!(both >= 2 * LARGE as u64, "{both}");
    // What is answered after them.
    let whole = running.broker.publish_held(large(), memory()).await.unwrap();
    assert_eq!((whole.first_offset, admission.used_bytes()), (Offset(2), 0));
    running.close().await;

    let opened = crate::broker::open(Arc::new(RealDisk::new(dir.path())), SEGMENT_BYTES).unwrap();
    let mut shell = opened.task.shell;
    let now = shell.clock.now();
    let (together, each) = (oneshot::channel().0, oneshot::channel().0);
    shell.publish_all(vec![large()], memory(), now, together);
    shell.publish_each(vec![large()], vec![(memory(), each)]);
    assert!(admission.used_bytes() >= 2 * LARGE as u64, "nothing of it is on disk");
    shell.commits.committed(Ticket(u64::MAX));
    assert_eq!(admission.used_bytes(), 0);
}

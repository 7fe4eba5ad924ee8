//! Panics of a real server: one in a call is that call's error, one in the broker or the log ends the process and says so.
//! Debug builds panic on demand (`src/drill.rs`).

use std::fs;
use std::path::PathBuf;

use forebay::client::is_lost_connection;
use forebay::proto::v1::subscribe_request::{Open, Request as Up};
use forebay::proto::v1::*;
use forebay_testkit::{queue, subscription};
use tokio_stream::wrappers::UnboundedReceiverStream;
use tonic::{Code, Status};

use crate::support::*;

/// A site whose servers panic on demand.
struct Drilled {
    site: Site,
    folder: PathBuf,
}

impl Drilled {
    fn new() -> Self {
        let mut site = Site::new();
        let folder = site.folder.path().join("drill");
        fs::create_dir(&folder).unwrap();
        site.options.wrapper = vec!["env".to_owned(), format!("FOREBAY_DRILL={}", folder.display())];
        Self { site, folder }
    }

    /// From now on a part panics.
    fn begin(&self, part: &str) {
        fs::write(self.folder.join(part), "").unwrap();
    }

    fn stop(&self, part: &str) {
        fs::remove_file(self.folder.join(part)).unwrap();
    }
}

async fn try_publish(clients: &mut forebay_testkit::Clients) -> Result<(), Status> {
    let request =
        PublishRequest { queue: queue("q"), messages: vec![message("m")], ..PublishRequest::default() };
    clients.messages.publish(request).await.map(drop)
}

#[tokio::test]
async fn a_panic_in_a_call_is_its_error_and_no_more() {
    let drilled = Drilled::new();
    let server = drilled.site.start();
    let mut clients = server.clients();
    create(&mut clients, "q").await;
    publish(&mut clients, "q", &["before"]).await;
    // A stream that is open stays so.
    let mut open = Stream::open(&mut clients, &subscription("q"), 0, 0).await;
    drilled.begin("call");
    for _ in 0..20 {
        check_error(&try_publish(&mut clients).await.unwrap_err(), Code::Internal, "INTERNAL_ERROR");
        let (up, requests) = tokio::sync::mpsc::unbounded_channel();
        let request = Open { subscription: subscription("q"), ..Open::default() };
        up.send(SubscribeRequest { request: Some(Up::Open(request)) }).unwrap();
        let opened = clients.messages.subscribe(UnboundedReceiverStream::new(requests)).await;
        check_error(&opened.unwrap_err(), Code::Internal, "INTERNAL_ERROR");
    }
    drilled.stop("call");
    publish(&mut clients, "q", &["after"]).await;
    open.credit(10, 1 << 20);
    let messages = open.take(2).await;
    assert_eq!(messages.iter().map(body).collect::<Vec<_>>(), [&b"before"[..], b"after"]);
    assert_eq!(metric(&server, "forebay_admission_used_bytes").await, 0);
    assert_eq!(metric(&server, "forebay_connections").await, 1);
    drop((open, clients));
    let (status, stderr) = end(server).await;
    assert!(status.success(), "{status}: {stderr}");
    assert!(stderr.contains("drill: call"), "{stderr}");
}

/// Checks what a call is told whose server ends under it: that, or only that the connection is gone.
fn check_stopped(error: &Status) {
    if !is_lost_connection(error) {
        check_error(error, Code::Unavailable, "LOG_STOPPED");
    }
}

/// A server whose part panics exits with 1 and says why; a restart has what was acknowledged.
async fn ends_the_process(part: &str, why: &str) {
    let drilled = Drilled::new();
    let server = drilled.site.start();
    let mut clients = server.clients();
    create(&mut clients, "q").await;
    publish(&mut clients, "q", &["kept"]).await;
    drilled.begin(part);
    let error = try_publish(&mut clients).await.unwrap_err();
    check_stopped(&error);
    let (status, stderr) = tokio::task::spawn_blocking(move || server.wait()).await.unwrap();
    assert_eq!(status.code(), Some(1), "{stderr}");
    assert!(stderr.contains(&format!("drill: {part}")) && stderr.contains(why), "{stderr}");
    drilled.stop(part);
    let again = drilled.site.start();
    assert_eq!(drain(&mut again.clients(), "q").await, [b"kept"]);
}

#[tokio::test]
async fn a_panic_in_the_broker_ends_the_process() {
    ends_the_process("broker", "forebay: the broker has panicked").await;
}

#[tokio::test]
async fn a_panic_in_the_log_ends_the_process() {
    ends_the_process("log", "a thread of the log has panicked").await;
}

#[tokio::test]
async fn a_panic_in_a_read_ends_the_process() {
    let drilled = Drilled::new();
    let server = drilled.site.start();
    let mut clients = server.clients();
    create(&mut clients, "q").await;
    publish(&mut clients, "q", &["kept"]).await;
    end(server).await;
    // What was just published is in memory; behind a start it is read.
    let server = drilled.site.start();
    drilled.begin("read");
    let request = PullRequest { subscription: subscription("q"), max_messages: 1, ..PullRequest::default() };
    let error = server.clients().messages.pull(request).await.unwrap_err();
    check_stopped(&error);
    let (status, stderr) = tokio::task::spawn_blocking(move || server.wait()).await.unwrap();
    assert_eq!(status.code(), Some(1), "{stderr}");
    assert!(
        stderr.contains("drill: read") && stderr.contains("a thread of the log has panicked"),
        "{stderr}"
    );
    drilled.stop("read");
    assert_eq!(drilled.site.start().recovered_messages, 1, "it waits, leased");
}

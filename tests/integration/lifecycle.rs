//! Starts and ends: the ready line, probes, log lines, and a stop in the middle of everything.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use forebay::client::is_lost_connection;
use forebay::proto::v1::subscribe_response::{Response as Down, notice};
use forebay::proto::v1::*;
use forebay_testkit::{queue, subscription};
use tonic::Code;
use tonic::transport::Channel;
use tonic_health::pb::HealthCheckRequest;
use tonic_health::pb::health_client::HealthClient;
use tonic_reflection::pb::v1::ServerReflectionRequest;
use tonic_reflection::pb::v1::server_reflection_client::ServerReflectionClient;
use tonic_reflection::pb::v1::server_reflection_request::MessageRequest;
use tonic_reflection::pb::v1::server_reflection_response::MessageResponse;

use crate::support::*;

/// A server whose clients answer needs no grace to end. Far more than it takes, far less than giving up.
const END_BOUND: Duration = Duration::from_secs(5);
/// Said by a server that had to cut connections.
const CUT: &str = "connections did not end in time";

#[tokio::test]
async fn an_idle_server_with_open_connections_ends_by_itself() {
    let (_site, server, mut clients) = with_queue().await;
    let mut others = [server.clients(), server.clients()];
    for other in &mut others {
        get_queue(other, "q").await;
    }
    publish(&mut clients, "q", &["a"]).await;
    let start = Instant::now();
    let (status, stderr) = end(server).await;
    assert_eq!(status.code(), Some(0), "{stderr}");
    assert!(start.elapsed() < END_BOUND, "{stderr}");
    assert!(!stderr.contains(CUT), "{stderr}");
}

#[tokio::test]
async fn a_stop_in_the_middle_of_everything_loses_nothing_that_was_acknowledged() {
    let (site, server, mut clients) = with_queue().await;
    create(&mut clients, "busy").await;
    publish(&mut clients, "q", &bodies(3)).await;
    let mut stream = Stream::open(&mut server.clients(), &subscription("q"), 2, 1 << 20).await;
    let streamed = stream.take(2).await;
    let polling = tokio::spawn({
        let mut clients = server.clients();
        create(&mut clients, "quiet").await;
        async move { pull_from(&mut clients, &subscription("quiet"), 1, 60, None).await }
    });
    // Publishers each send one message after the other until they are told to stop.
    let acknowledged = Arc::new(AtomicU64::new(0));
    let publishers: Vec<_> = (0..8)
        .map(|_| {
            let (mut clients, acknowledged) = (server.clients(), acknowledged.clone());
            tokio::spawn(async move {
                let mut offsets = Vec::new();
                loop {
                    let messages = vec![message("m")];
                    let request = PublishRequest { queue: queue("busy"), messages, ..Default::default() };
                    match clients.messages.publish(request).await {
                        Ok(answer) => offsets.push(answer.into_inner().results[0].offset),
                        Err(status) => return (offsets, status),
                    }
                    acknowledged.fetch_add(1, Ordering::Relaxed);
                }
            })
        })
        .collect();
    while acknowledged.load(Ordering::Relaxed) < 100 {
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    let start = Instant::now();
    let ending = tokio::spawn(end(server));

    // The stream is told, and then ended; the long poll is answered; publishers are told to come again.
    match stream.next().await {
        Ok(Some(Down::Notice(notice))) => assert_eq!(notice.kind(), notice::Kind::Draining),
        other => panic!("a notice expected, not {other:?}"),
    }
    let details = check_error(&stream.next().await.unwrap_err(), Code::Unavailable, "DRAINING");
    assert!(details.retry_info().is_some());
    assert!(polling.await.unwrap().is_empty());
    let mut stored = Vec::new();
    for publisher in publishers {
        let (offsets, status) = publisher.await.unwrap();
        if !is_lost_connection(&status) {
            check_error(&status, Code::Unavailable, "DRAINING");
        }
        stored.extend(offsets);
    }
    let (status, stderr) = ending.await.unwrap();
    assert_eq!(status.code(), Some(0), "{stderr}");
    assert!(start.elapsed() < END_BOUND, "{stderr}");
    assert!(!stderr.contains(CUT), "{stderr}");

    let server = site.start();
    let mut clients = server.clients();
    let next_offset = get_queue(&mut clients, "busy").await.next_offset;
    stored.sort();
    stored.dedup();
    assert_eq!(stored.len() as u64, acknowledged.load(Ordering::Relaxed), "each has an offset of its own");
    assert!(stored.last().is_some_and(|last| *last < next_offset));
    assert_eq!(drain(&mut clients, "busy").await.len() as u64, next_offset);
    // The stream's leases were kept.
    let own = subscription("q");
    assert_eq!(offsets(&pull(&mut clients, "q", 10).await), [2]);
    assert!(ack(&mut clients, &own, ack_ids(&streamed)).await.iter().all(|o| o.as_str_name() == "OK"));
}

#[tokio::test]
async fn a_client_that_hangs_does_not_hold_up_the_end() {
    let (_site, server, _clients) = with_queue().await;
    // Connected, and then never heard of again.
    let mut hanging = Vec::new();
    for begins in [false, true] {
        let mut connection = tokio::net::TcpStream::connect(&server.grpc).await.unwrap();
        if begins {
            let preface = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n\0\0\0\x04\0\0\0\0\0";
            tokio::io::AsyncWriteExt::write_all(&mut connection, preface).await.unwrap();
        }
        hanging.push(connection);
    }
    let start = Instant::now();
    let (status, stderr) = end(server).await;
    assert_eq!(status.code(), Some(0), "{stderr}");
    assert!(start.elapsed() < 2 * END_BOUND, "{stderr}");
}

#[tokio::test]
async fn the_probes_and_metrics_say_what_is() {
    let (_site, server, mut clients) = with_queue().await;
    assert_eq!(http_get(&server.http, "/livez").await, (200, "ok\n".to_owned()));
    assert_eq!(http_get(&server.http, "/readyz").await, (200, "ready\n".to_owned()));
    assert_eq!(http_get(&server.http, "/nothing").await.0, 404);
    publish(&mut clients, "q", &["a"]).await;
    let missing = GetQueueRequest { name: queue("none") };
    assert!(clients.queues.get_queue(missing).await.is_err());
    // The log takes its next segment on in the background.
    let (log_bytes, (status, text)) = loop {
        let before = server_stats(&mut clients).await.log_bytes;
        let scraped = http_get(&server.http, "/metrics").await;
        if server_stats(&mut clients).await.log_bytes == before {
            break (before, scraped);
        }
    };
    assert_eq!(status, 200);
    for line in [
        "forebay_broker_up 1",
        "forebay_queues 1",
        "forebay_subscriptions 1",
        &format!("forebay_log_bytes {log_bytes}"),
        "forebay_rpc_calls_total{method=\"MessageService/Publish\",code=\"OK\"} 1",
        "forebay_rpc_calls_total{method=\"QueueService/GetQueue\",code=\"NOT_FOUND\"} 1",
        "# TYPE forebay_log_syncs_total counter",
    ] {
        assert!(text.lines().any(|found| found == line), "{line} is not in:\n{text}");
    }
    for line in text.lines() {
        let name = line.strip_prefix("# HELP ").or_else(|| line.strip_prefix("# TYPE ")).unwrap_or(line);
        assert!(name.is_empty() || name.starts_with("forebay_"), "{line}");
    }
}

async fn channel(address: &str) -> Channel {
    Channel::from_shared(format!("http://{address}")).unwrap().connect().await.unwrap()
}

#[tokio::test]
async fn health_and_reflection_answer() {
    let (_site, server, _clients) = with_queue().await;
    let channel = channel(&server.grpc).await;
    let mut health = HealthClient::new(channel.clone());
    let services = ["forebay.v1.QueueService", "forebay.v1.MessageService", "forebay.v1.AdminService"];
    for service in [""].iter().chain(&services) {
        let request = HealthCheckRequest { service: service.to_string() };
        let status = health.check(request).await.unwrap().into_inner().status();
        assert_eq!(status.as_str_name(), "SERVING", "{service}");
    }
    let unknown = health.check(HealthCheckRequest { service: "made.up".into() }).await.unwrap_err();
    assert_eq!(unknown.code(), Code::NotFound);

    let mut reflection = ServerReflectionClient::new(channel);
    let mut ask = async |request| {
        let request = ServerReflectionRequest { host: String::new(), message_request: Some(request) };
        let answers = reflection.server_reflection_info(tokio_stream::once(request)).await;
        answers.unwrap().into_inner().message().await.unwrap().unwrap().message_response.unwrap()
    };
    let MessageResponse::ListServicesResponse(listed) =
        ask(MessageRequest::ListServices(String::new())).await
    else {
        panic!("a list of services expected");
    };
    let listed: Vec<String> = listed.service.into_iter().map(|service| service.name).collect();
    assert!(services.iter().all(|service| listed.iter().any(|name| name == service)), "{listed:?}");
    let symbol = MessageRequest::FileContainingSymbol("forebay.v1.Message".to_owned());
    assert!(matches!(ask(symbol).await, MessageResponse::FileDescriptorResponse(_)));
}

#[tokio::test]
async fn info_tells_the_same_server_from_another() {
    let (site, server, mut clients) = with_queue().await;
    let info = async |clients: &mut forebay_testkit::Clients| {
        clients.admin.get_server_info(GetServerInfoRequest {}).await.unwrap().into_inner()
    };
    let first = info(&mut clients).await;
    assert_eq!((first.version.as_str(), first.incarnation), (env!("CARGO_PKG_VERSION"), 1));
    server.kill();
    let server = site.start();
    let second = info(&mut server.clients()).await;
    assert_eq!((second.cluster_uid, second.incarnation), (first.cluster_uid, 2));
    let limits = second.limits.unwrap();
    assert_eq!((limits.max_body_bytes, limits.max_publish_messages), (8 << 20, 1_000));
}

/// The ready line as scripts read it.
#[tokio::test]
async fn the_ready_line_is_one_line_of_its_form() {
    let site = Site::new();
    let mut child = std::process::Command::new(forebay_testkit::server::binary())
        .args(["serve", "--listen", "127.0.0.1:0", "--http", "127.0.0.1:0", "--data-dir"])
        .arg(site.data())
        .stdout(std::process::Stdio::piped())
        .stderr(std::process::Stdio::null())
        .spawn()
        .unwrap();
    let stdout = child.stdout.take().unwrap();
    let (line, rest) = tokio::task::spawn_blocking(move || {
        use std::io::{BufRead as _, Read as _};
        let mut lines = std::io::BufReader::new(stdout);
        let (mut line, mut rest) = (String::new(), String::new());
        lines.read_line(&mut line).unwrap();
        child.kill().unwrap();
        child.wait().unwrap();
        lines.read_to_string(&mut rest).unwrap();
        (line, rest)
    })
    .await
    .unwrap();
    let words: Vec<&str> = line.strip_suffix('\n').unwrap().split(' ').collect();
    let ["forebay", "ready", grpc, http, messages, time] = words[..] else { panic!("{line:?}") };
    for (word, name) in [(grpc, "grpc="), (http, "http=")] {
        let address: std::net::SocketAddr = word.strip_prefix(name).unwrap().parse().unwrap();
        assert!(address.ip().is_loopback() && address.port() != 0, "{line:?}");
    }
    assert_eq!(messages, "recovered_messages=0");
    assert!(time.strip_prefix("recovery_ms=").unwrap().parse::<u64>().is_ok(), "{line:?}");
    assert_eq!(rest, "");
}

#[tokio::test]
async fn log_lines_are_json_if_asked_for() {
    let mut site = Site::new();
    site.options.config.push_str("log_format = \"json\"\n");
    let server = site.start();
    create(&mut server.clients(), "q").await;
    let (status, stderr) = end(server).await;
    assert!(status.success());
    let lines: Vec<serde_json::Value> = stderr
        .lines()
        .map(|line| serde_json::from_str(line).unwrap_or_else(|_| panic!("{line:?}")))
        .collect();
    let draining = lines.iter().find(|line| line["fields"]["message"] == "draining").expect("it says so");
    assert_eq!((&draining["level"], &draining["fields"]["signal"]), (&"INFO".into(), &"SIGTERM".into()));
    assert!(lines.iter().all(|line| line["timestamp"].is_string() && line["target"].is_string()));
}

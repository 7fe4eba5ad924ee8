//! The whole edge over loopback.

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::oneshot;
use tonic::transport::Channel;

use super::*;
use crate::observe::readiness::Phase;
use crate::proto::v1::admin_service_client::AdminServiceClient;
use crate::proto::v1::message_service_client::MessageServiceClient;

pub(super) struct Served {
    pub(super) channel: Channel,
    grpc: std::net::SocketAddr,
    http: std::net::SocketAddr,
    readiness: Readiness,
    shutdown: oneshot::Sender<()>,
    serving: tokio::task::JoinHandle<Result<(), server::ServeError>>,
}

pub(super) async fn serve(parts: server::Parts) -> Served {
    let grpc = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let http = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let own = grpc.local_addr().unwrap();
    let endpoint = format!("http://{own}");
    let address = http.local_addr().unwrap();
    let readiness = parts.readiness.clone();
    let (shutdown, stopped) = oneshot::channel::<()>();
    let serving = tokio::spawn(server::serve(grpc, http, parts, async move { drop(stopped.await) }));
    let channel = Channel::from_shared(endpoint).unwrap().connect().await.unwrap();
    Served { channel, grpc: own, http: address, readiness, shutdown, serving }
}

async fn get(address: std::net::SocketAddr, path: &str) -> (u16, String) {
    let mut stream = TcpStream::connect(address).await.unwrap();
    let request = format!("GET {path} HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\r\n");
    stream.write_all(request.as_bytes()).await.unwrap();
    let mut answer = String::new();
    stream.read_to_string(&mut answer).await.unwrap();
    (answer[9..12].parse().unwrap(), answer)
}

fn publish(body: usize) -> v1::PublishRequest {
    let message = v1::Message { body: Bytes::from(vec![0; body]), ..v1::Message::default() };
    v1::PublishRequest { queue: QUEUE.into(), messages: vec![message], ..v1::PublishRequest::default() }
}

#[tokio::test]
async fn the_server_says_what_it_is_and_stops_when_told() {
    let served = serve(parts(broker(|call| match call {
        Call::ServerStats { reply } => drop(reply.send(Ok(Default::default()))),
        Call::Drain { reply } => drop(reply.send(Ok(()))),
        call => panic!("{call:?}"),
    })))
    .await;
    let mut admin = AdminServiceClient::new(served.channel.clone());
    let info = admin.get_server_info(v1::GetServerInfoRequest {}).await.unwrap().into_inner();
    assert_eq!((info.cluster_uid, info.incarnation), ("ab".repeat(16), 3));
    assert_eq!(info.start_time.unwrap().seconds, 5);
    assert!(info.features.contains(&"publish".to_owned()));
    assert_eq!(info.limits.unwrap().max_publish_messages, 1_000);

    assert_eq!(get(served.http, "/livez").await.0, 200);
    assert_eq!(get(served.http, "/readyz").await.0, 503);
    served.readiness.set(Phase::Ready);
    assert_eq!(get(served.http, "/readyz").await.0, 200);
    let (code, text) = get(served.http, "/metrics").await;
    assert_eq!(code, 200);
    assert!(text.contains("forebay_broker_up 1"), "{text}");
    assert!(text.contains(r#"{method="AdminService/GetServerInfo",code="OK"} 1"#), "{text}");

    drop((admin, served.channel));
    served.shutdown.send(()).unwrap();
    served.serving.await.unwrap().unwrap();
    assert_eq!(served.readiness.phase(), Phase::Draining);
}

#[tokio::test]
async fn health_follows_readiness() {
    use tonic_health::pb::health_client::HealthClient;
    use tonic_health::pb::{HealthCheckRequest, health_check_response::ServingStatus};
    let served = serve(parts(nobody())).await;
    let service = "forebay.v1.MessageService".to_owned();
    let mut health = HealthClient::new(served.channel.clone());
    let watch = health.watch(HealthCheckRequest { service }).await.unwrap();
    let mut statuses = watch.into_inner();
    served.readiness.set(Phase::Ready);
    while statuses.message().await.unwrap().unwrap().status() != ServingStatus::Serving {}
    served.readiness.set(Phase::Draining);
    while statuses.message().await.unwrap().unwrap().status() != ServingStatus::NotServing {}
}

#[tokio::test]
async fn requests_beyond_the_memory_budget_are_told_to_come_back() {
    let (tell, mut held) = mpsc::unbounded_channel();
    let parts = parts(broker(move |call| drop(tell.send(call))));
    let admission = Admission::new(10 << 20, 9 << 20);
    let budgets = Budgets::new(admission.clone(), parts.budgets.others.clone());
    let served = serve(server::Parts { budgets, ..parts }).await;
    let client = MessageServiceClient::new(served.channel.clone());
    let first = tokio::spawn({
        let mut client = client.clone();
        async move { client.publish(publish(8 << 20)).await }
    });
    let Some(Call::Publish { reply, memory, .. }) = held.recv().await else { panic!("no publish") };
    assert!(admission.used_bytes() > 8 << 20);
    let status = client.clone().publish(publish(4 << 20)).await.unwrap_err();
    assert_eq!((status.code(), reason(&status)), (Code::ResourceExhausted, "MEMORY_BUDGET".to_owned()));
    assert!(status.get_error_details().retry_info().is_some());
    let (queue_uid, first_offset) = (Uid([1; 16]), Offset(0));
    let published =
        Published { queue_uid, first_offset, count: 1, publish_time_us: 0, duplicate: false, held: false };
    drop(memory);
    reply.send(Ok(published)).unwrap();
    first.await.unwrap().unwrap();
    assert_eq!(admission.used_bytes(), 0);
}

#[tokio::test]
async fn a_publish_that_is_given_up_keeps_its_memory_for_as_long_as_the_broker_has_it() {
    let (tell, mut held) = mpsc::unbounded_channel();
    let parts = parts(broker(move |call| drop(tell.send(call))));
    let admission = parts.budgets.publishes.clone();
    let served = serve(parts).await;
    let mut client = MessageServiceClient::new(served.channel.clone());
    let given_up = tokio::spawn(async move { client.publish(publish(8 << 20)).await });
    let Some(Call::Publish { mut reply, publish, memory }) = held.recv().await else { panic!("no publish") };
    given_up.abort();
    // The edge has let go of the call.
    reply.closed().await;
    assert!(admission.used_bytes() > 8 << 20);
    drop((publish, memory));
    assert_eq!(admission.used_bytes(), 0);
}

#[tokio::test]
async fn a_request_that_is_too_large_is_refused_from_its_length() {
    let served = serve(parts(nobody())).await;
    let mut client = MessageServiceClient::new(served.channel.clone());
    let status = client.publish(publish(10 << 20)).await.unwrap_err();
    assert_eq!((status.code(), reason(&status)), (Code::InvalidArgument, "LIMIT_EXCEEDED".to_owned()));
    assert!(status.message().starts_with("request has "), "{status:?}");
    let status = client.publish(publish((8 << 20) + 1)).await.unwrap_err();
    assert_eq!(reason(&status), "LIMIT_EXCEEDED");
}

#[tokio::test]
async fn what_finishes_work_goes_on_while_publishes_wait_for_memory() {
    let (tell, _seen) = mpsc::unbounded_channel();
    let parts = parts(super::stream::play(tell));
    let publishes = parts.budgets.publishes.clone();
    let _all = publishes.try_admit(publishes.budget_bytes()).unwrap();
    let served = serve(parts).await;
    let mut client = MessageServiceClient::new(served.channel.clone());
    assert_eq!(reason(&client.publish(publish(1)).await.unwrap_err()), "MEMORY_BUDGET");

    let (subscription, ack_ids) = (SUBSCRIPTION.to_owned(), vec!["a".to_owned()]);
    let acks = v1::AcknowledgeRequest { subscription: subscription.clone(), ack_ids: ack_ids.clone() };
    assert_eq!(client.acknowledge(acks).await.unwrap().into_inner().results.len(), 1);
    let ending = Some(v1::nack_entry::Ending::Release(v1::nack_entry::Release {}));
    let entries = vec![v1::NackEntry { ack_id: "a".into(), ending }];
    let nacks = v1::NackRequest { subscription: subscription.clone(), entries };
    assert_eq!(client.nack(nacks).await.unwrap().into_inner().results.len(), 1);
    let lease = Some(prost_types::Duration { seconds: 1, nanos: 0 });
    let extend =
        v1::ExtendLeaseRequest { subscription: subscription.clone(), ack_ids: ack_ids.clone(), lease };
    assert_eq!(client.extend_lease(extend).await.unwrap().into_inner().results.len(), 1);

    let open = v1::subscribe_request::Open { subscription, ..Default::default() };
    let acks = v1::subscribe_request::Acks { ack_ids, ..Default::default() };
    let requests = [v1::subscribe_request::Request::Open(open), v1::subscribe_request::Request::Acks(acks)];
    let requests = requests.map(|request| v1::SubscribeRequest { request: Some(request) });
    let answers = client.subscribe(tokio_stream::iter(requests)).await.unwrap();
    let answers: Vec<_> = tokio_stream::StreamExt::collect(answers.into_inner()).await;
    assert!(matches!(&answers[..], [Ok(_), Ok(_)]), "{answers:?}");
}

#[tokio::test]
async fn a_request_that_publishes_nothing_has_a_smaller_limit() {
    let served = serve(parts(nobody())).await;
    let mut client = MessageServiceClient::new(served.channel.clone());
    let (subscription, ack_ids) = (SUBSCRIPTION.to_owned(), vec!["x".repeat(1_000); 1_100]);
    let acks = v1::AcknowledgeRequest { subscription, ack_ids: ack_ids.clone() };
    let one = client.acknowledge(acks).await.unwrap_err();
    let acks = v1::subscribe_request::Acks { ack_ids, ..Default::default() };
    let request = v1::SubscribeRequest { request: Some(v1::subscribe_request::Request::Acks(acks)) };
    let mut answers = client.subscribe(tokio_stream::once(request)).await.unwrap().into_inner();
    for status in [one, answers.message().await.unwrap_err()] {
        assert_eq!((status.code(), reason(&status)), (Code::InvalidArgument, "LIMIT_EXCEEDED".to_owned()));
        let info = status.get_error_details().error_info().unwrap().clone();
        assert_eq!((&*info.metadata["field"], &*info.metadata["limit"]), ("request", "1048576"));
    }
}

#[tokio::test]
async fn a_long_poll_holds_no_memory_that_acks_need() {
    let (tell, mut held) = mpsc::unbounded_channel();
    let parts = parts(broker(move |call| drop(tell.send(call))));
    let budgets = parts.budgets.clone();
    let served = serve(parts).await;
    let mut client = MessageServiceClient::new(served.channel.clone());
    let pull = v1::PullRequest { subscription: SUBSCRIPTION.into(), ..Default::default() };
    let pulling = tokio::spawn(async move { client.pull(pull).await });
    let Some(Call::Pull { reply, .. }) = held.recv().await else { panic!("no pull") };
    assert_eq!(budgets.used_bytes(), 0);
    reply.send(Ok(Held::free(Vec::new()))).unwrap();
    assert!(pulling.await.unwrap().unwrap().into_inner().messages.is_empty());
}

fn frame(kind: u8, flags: u8, stream: u32, payload: &[u8]) -> Vec<u8> {
    [&(payload.len() as u32).to_be_bytes()[1..], &[kind, flags], &stream.to_be_bytes(), payload].concat()
}

/// The frame that begins a call, its headers as literals.
fn call_frame(stream: u32, path: &str) -> Vec<u8> {
    let headers = [(":method", "POST"), (":scheme", "http"), (":path", path), (":authority", "x")];
    let literal = |text: &str| [&[text.len() as u8], text.as_bytes()].concat();
    let block = headers.iter().flat_map(|(name, value)| [vec![0], literal(name), literal(value)].concat());
    frame(1, 0x4, stream, &block.collect::<Vec<u8>>())
}

#[tokio::test]
async fn checks_of_health_that_never_go_on_end_when_there_are_too_many_calls() {
    let mut parts = parts(nobody());
    // Eight calls at one time.
    parts.connections = Bounds { all: 1_024, per_address: 2 };
    let served = serve(parts).await;
    let mut raw = TcpStream::connect(served.grpc).await.unwrap();
    let mut bytes = [b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n", &frame(4, 0, 0, &[])[..]].concat();
    bytes.extend((0..20).flat_map(|at| call_frame(2 * at + 1, "/grpc.health.v1.Health/Check")));
    raw.write_all(&bytes).await.unwrap();
    let (mut answers, mut calls) = raw.into_split();
    let ended = tokio::spawn(async move {
        let mut ended = 0;
        while ended < 20 {
            let mut head = [0; 9];
            answers.read_exact(&mut head).await.expect("it goes on");
            let mut payload = vec![0; u32::from_be_bytes([0, head[0], head[1], head[2]]) as usize];
            answers.read_exact(&mut payload).await.unwrap();
            // HEADERS with the end of its stream.
            ended += u32::from(head[3] == 1 && head[4] & 1 == 1);
        }
    });
    // Others come meanwhile.
    for at in 20.. {
        assert!(at < 220, "they do not end");
        if ended.is_finished() {
            break;
        }
        calls.write_all(&call_frame(2 * at + 1, "/grpc.health.v1.Health/Check")).await.unwrap();
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
    ended.await.unwrap();
}

#[tokio::test]
async fn a_connection_outlives_calls_that_were_refused() {
    const PING: u8 = 6;
    const RST_STREAM: u8 = 3;
    let served = serve(parts(nobody())).await;
    let mut raw = TcpStream::connect(served.grpc).await.unwrap();
    let mut bytes = [b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n", &frame(4, 0, 0, &[])[..]].concat();
    // As many as may be open, and 500 more.
    let calls = (0..756).map(|at| call_frame(2 * at + 1, crate::service::publish_stream::PATH));
    bytes.extend(calls.flatten());
    bytes.extend(frame(PING, 0, 0, &[7; 8]));
    raw.write_all(&bytes).await.unwrap();
    let mut refused = 0;
    loop {
        let mut head = [0; 9];
        raw.read_exact(&mut head).await.expect("it goes on");
        let mut payload = vec![0; u32::from_be_bytes([0, head[0], head[1], head[2]]) as usize];
        raw.read_exact(&mut payload).await.unwrap();
        match head[3] {
            PING if payload == [7; 8] => break,
            // REFUSED_STREAM: it may be called again.
            RST_STREAM if payload[3] == 7 => refused += 1,
            kind => assert!(kind != 7, "GOAWAY after {refused} refused calls"),
        }
    }
    assert!(refused > 64, "{refused}");
}

#[tokio::test]
async fn what_is_compressed_is_refused_unread_and_told_what_is_read() {
    let served = serve(parts(nobody())).await;
    let mut client = MessageServiceClient::new(served.channel.clone());
    let mut request = Request::new(publish(1));
    request.metadata_mut().insert("grpc-encoding", "gzip".parse().unwrap());
    let one = client.publish(request).await.unwrap_err();
    let mut request = Request::new(tokio_stream::empty());
    request.metadata_mut().insert("grpc-encoding", "gzip".parse().unwrap());
    let stream = client.subscribe(request).await.unwrap_err();
    for status in [one, stream] {
        assert_eq!(status.code(), Code::Unimplemented);
        assert_eq!(reason(&status), "COMPRESSION_NOT_BUILT");
        assert_eq!(status.metadata().get("grpc-accept-encoding").unwrap(), "identity");
    }
}

#[tokio::test]
async fn what_tonic_refuses_by_itself_has_its_reason_too() {
    let served = serve(parts(nobody())).await;
    let mut grpc = tonic::client::Grpc::new(served.channel.clone());
    let mut call = async |path: &'static str| {
        grpc.ready().await.unwrap();
        let path = http::uri::PathAndQuery::from_static(path);
        // A name of one byte, which is no UTF-8, where the server reads text.
        let codec = tonic_prost::ProstCodec::<NotText, ()>::default();
        grpc.unary(Request::new(NotText { name: vec![0xff] }), path, codec).await.unwrap_err()
    };
    let status = call("/forebay.v1.QueueService/GetQueue").await;
    assert_eq!((status.code(), reason(&status)), (Code::InvalidArgument, "INVALID_FIELD".to_owned()));
    let status = call("/forebay.v1.QueueService/Nothing").await;
    assert_eq!((status.code(), reason(&status)), (Code::Unimplemented, "RPC_NOT_BUILT".to_owned()));
}

#[derive(Clone, PartialEq, prost::Message)]
struct NotText {
    #[prost(bytes = "vec", tag = "1")]
    name: Vec<u8>,
}

#[tokio::test]
async fn reflection_lists_the_services() {
    use tonic_reflection::pb::v1::ServerReflectionRequest;
    use tonic_reflection::pb::v1::server_reflection_client::ServerReflectionClient;
    use tonic_reflection::pb::v1::server_reflection_request::MessageRequest;
    use tonic_reflection::pb::v1::server_reflection_response::MessageResponse;
    let served = serve(parts(nobody())).await;
    let message_request = Some(MessageRequest::ListServices(String::new()));
    let request = ServerReflectionRequest { host: String::new(), message_request };
    let mut client = ServerReflectionClient::new(served.channel.clone());
    let answers = client.server_reflection_info(tokio_stream::once(request)).await.unwrap();
    let answer = answers.into_inner().message().await.unwrap().unwrap().message_response.unwrap();
    let MessageResponse::ListServicesResponse(list) = answer else { panic!("no list: {answer:?}") };
    let names: Vec<&str> = list.service.iter().map(|service| service.name.as_str()).collect();
    for name in ["AdminService", "MessageService", "QueueService"] {
        assert!(names.contains(&format!("forebay.v1.{name}").as_str()), "{names:?}");
    }
}

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
    http: std::net::SocketAddr,
    readiness: Readiness,
    shutdown: oneshot::Sender<()>,
    serving: tokio::task::JoinHandle<Result<(), server::ServeError>>,
}

pub(super) async fn serve(parts: server::Parts) -> Served {
    let grpc = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let http = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let endpoint = format!("http://{}", grpc.local_addr().unwrap());
    let address = http.local_addr().unwrap();
    let readiness = parts.readiness.clone();
    let (shutdown, stopped) = oneshot::channel::<()>();
    let serving = tokio::spawn(server::serve(grpc, http, parts, async move { drop(stopped.await) }));
    let channel = Channel::from_shared(endpoint).unwrap().connect().await.unwrap();
    Served { channel, http: address, readiness, shutdown, serving }
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
    let served = serve(server::Parts { admission: admission.clone(), ..parts }).await;
    let client = MessageServiceClient::new(served.channel.clone());
    let first = tokio::spawn({
        let mut client = client.clone();
        async move { client.publish(publish(8 << 20)).await }
    });
    let Some(Call::Publish { reply, .. }) = held.recv().await else { panic!("no publish") };
    assert!(admission.used_bytes() > 8 << 20);
    let status = client.clone().publish(publish(4 << 20)).await.unwrap_err();
    assert_eq!((status.code(), reason(&status)), (Code::ResourceExhausted, "MEMORY_BUDGET".to_owned()));
    assert!(status.get_error_details().retry_info().is_some());
    let (queue_uid, first_offset) = (Uid([1; 16]), Offset(0));
    let published =
        Published { queue_uid, first_offset, count: 1, publish_time_us: 0, duplicate: false, held: false };
    reply.send(Ok(published)).unwrap();
    first.await.unwrap().unwrap();
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

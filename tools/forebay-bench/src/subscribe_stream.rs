//! A `Subscribe` stream as a lean client speaks it, so that the cores are the server's.
//!
//! Of a delivery what is used is read, its ack id and its body, both where they lie in what came from the network. On
//! the wire it is what the generated client sends and reads.

use std::sync::Arc;

use bytes::Bytes;
use forebay::proto::v1::AckResult;
use forebay::proto::v1::subscribe_request::{Credit, Open};
use forebay_testkit::Clients;
use http::uri::PathAndQuery;
use prost::Message;
use tokio::sync::mpsc;
use tokio_stream::wrappers::UnboundedReceiverStream;
use tonic::IntoStreamingRequest;
use tonic::client::Grpc;
use tonic_prost::ProstCodec;

use crate::Failure;
use crate::progress::Progress;
use crate::take::all_ok;

const PATH: &str = "/forebay.v1.MessageService/Subscribe";
/// More than the server sends at once.
const ANSWER_BYTES_MAX: usize = 64 << 20;

/// What a consumer expects.
#[derive(Clone, Debug)]
pub struct Wanted {
    /// All consumers together end when so many messages are finished.
    pub messages: u64,
    pub body_bytes: u64,
}

/// Takes what comes and acknowledges it, until `progress` has counted all.
pub async fn by_stream(
    clients: Clients,
    open: Open,
    wanted: Wanted,
    progress: Arc<Progress>,
) -> Result<(), Failure> {
    let (up, requests) = mpsc::unbounded_channel();
    up.send(Request { open: Some(open), ..Request::default() })?;
    let mut client = Grpc::new(clients.channel).max_decoding_message_size(ANSWER_BYTES_MAX);
    client.ready().await?;
    let requests = UnboundedReceiverStream::new(requests).into_streaming_request();
    let codec = ProstCodec::<Request, Response>::default();
    let mut answers = client.streaming(requests, PathAndQuery::from_static(PATH), codec).await?.into_inner();
    while let Some(Response { deliveries, ack_results }) = answers.message().await? {
        if let Some(Deliveries { messages }) = deliveries {
            let credit = Credit { messages: messages.len() as u64, bytes: 0 };
            let acks = Acks { ack_ids: ack_ids(messages, wanted.body_bytes)? };
            up.send(Request { credit: Some(credit), ..Request::default() })?;
            up.send(Request { acks: Some(acks), ..Request::default() })?;
        }
        if let Some(AckResults { acks }) = ack_results {
            all_ok(&acks)?;
            progress.add(acks.len() as u64);
            if progress.done() >= wanted.messages {
                return Ok(());
            }
        }
    }
    Err("the server ended the stream".into())
}

fn ack_ids(messages: Vec<Received>, body_bytes: u64) -> Result<Vec<Bytes>, Failure> {
    let ack_id = |Received { ack_id, message }| {
        let body = message.map_or(0, |message: Body| message.body.len() as u64);
        if body != body_bytes {
            return Err(format!("a body has {body} bytes instead of {body_bytes}").into());
        }
        Ok(ack_id)
    };
    messages.into_iter().map(ack_id).collect()
}

/// A `SubscribeRequest`.
#[derive(Clone, PartialEq, Message)]
struct Request {
    #[prost(message, optional, tag = "1")]
    open: Option<Open>,
    #[prost(message, optional, tag = "2")]
    credit: Option<Credit>,
    #[prost(message, optional, tag = "3")]
    acks: Option<Acks>,
}

#[derive(Clone, PartialEq, Message)]
struct Acks {
    /// Text, taken over as it came.
    #[prost(bytes = "bytes", repeated, tag = "2")]
    ack_ids: Vec<Bytes>,
}

/// A `SubscribeResponse`, as far as it is used.
#[derive(Clone, PartialEq, Message)]
struct Response {
    #[prost(message, optional, tag = "2")]
    deliveries: Option<Deliveries>,
    #[prost(message, optional, tag = "3")]
    ack_results: Option<AckResults>,
}

#[derive(Clone, PartialEq, Message)]
struct Deliveries {
    #[prost(message, repeated, tag = "1")]
    messages: Vec<Received>,
}

#[derive(Clone, PartialEq, Message)]
struct Received {
    #[prost(bytes = "bytes", tag = "1")]
    ack_id: Bytes,
    #[prost(message, optional, tag = "2")]
    message: Option<Body>,
}

#[derive(Clone, PartialEq, Message)]
struct Body {
    #[prost(bytes = "bytes", tag = "1")]
    body: Bytes,
}

#[derive(Clone, PartialEq, Message)]
struct AckResults {
    #[prost(message, repeated, tag = "2")]
    acks: Vec<AckResult>,
}

#[cfg(test)]
mod tests {
    use forebay::proto::v1::subscribe_request::{Acks as AllAcks, Request as Up};
    use forebay::proto::v1::subscribe_response::{
        AckResults as AllResults, Deliveries as AllDeliveries, Response as Down,
    };
    use forebay::proto::v1::{self, ReceivedMessage, SubscribeRequest, SubscribeResponse};

    use super::*;

    #[test]
    fn requests_are_those_of_the_generated_client() {
        let open = Open { subscription: "s".into(), ..Open::default() };
        let credit = Credit { messages: 7, bytes: 0 };
        let ids = ["one", "two"];
        let acks = Acks { ack_ids: ids.map(Bytes::from).to_vec() };
        let all = AllAcks { ack_ids: ids.map(str::to_owned).to_vec(), ..AllAcks::default() };
        for (lean, up) in [
            (Request { open: Some(open.clone()), ..Request::default() }, Up::Open(open)),
            (Request { credit: Some(credit), ..Request::default() }, Up::Credit(credit)),
            (Request { acks: Some(acks), ..Request::default() }, Up::Acks(all)),
        ] {
            assert_eq!(lean.encode_to_vec(), SubscribeRequest { request: Some(up) }.encode_to_vec());
        }
    }

    #[test]
    fn ids_bodies_and_results_are_read_and_a_short_body_is_an_error() {
        let read = |down| {
            let response = SubscribeResponse { response: Some(down) };
            Response::decode(&response.encode_to_vec()[..]).unwrap()
        };
        let message = |body: &'static str| v1::Message {
            body: Bytes::from_static(body.as_bytes()),
            source: "some".into(),
            ..v1::Message::default()
        };
        let received = |ack_id: &str, body| ReceivedMessage {
            ack_id: ack_id.into(),
            message: Some(message(body)),
            attempt: 2,
            ..ReceivedMessage::default()
        };
        let messages = vec![received("one", "abc"), received("two", "de")];
        let messages = read(Down::Deliveries(AllDeliveries { messages })).deliveries.unwrap().messages;
        assert_eq!(ack_ids(messages[..1].to_vec(), 3).unwrap(), ["one"]);
        assert!(ack_ids(messages, 3).is_err());
        let result = AckResult { index: 1, status: 2, detail: "late".into() };
        let results = AllResults { correlation_id: 4, acks: vec![result.clone()], ..AllResults::default() };
        assert_eq!(read(Down::AckResults(results)).ack_results.unwrap().acks, [result]);
    }
}

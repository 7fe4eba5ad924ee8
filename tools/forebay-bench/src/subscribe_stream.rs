//! A `Subscribe` stream as a lean client speaks it, so that the cores are the server's.
//!
//! Of a delivery what is used is read, its ack id and the length of its body, both where they lie in what came from the
//! network; acks are written at once. On the wire it is what the generated client sends and reads.

use std::sync::Arc;

use bytes::{Buf, Bytes};
use forebay::proto::v1::AckResult;
use forebay::proto::v1::subscribe_request::{Credit, Open};
use forebay_testkit::Clients;
use http::uri::PathAndQuery;
use prost::Message;
use prost::encoding::{WireType, decode_key, decode_varint, encode_key, encode_varint};
use tokio::sync::mpsc;
use tokio_stream::wrappers::UnboundedReceiverStream;
use tonic::client::Grpc;
use tonic::codec::{Codec, DecodeBuf, Decoder};
use tonic::{IntoStreamingRequest, Status};
use tonic_prost::{ProstCodec, ProstEncoder};

use crate::Failure;
use crate::progress::Progress;
use crate::take::all_ok;

const PATH: &str = "/forebay.v1.MessageService/Subscribe";
/// More than the server sends at once.
const ANSWER_BYTES_MAX: usize = 64 << 20;
/// Fields of `SubscribeResponse`, `Deliveries`, `ReceivedMessage`, `Message` and `Acks`.
const DELIVERIES: u32 = 2;
const ACK_RESULTS: u32 = 3;
const MESSAGES: u32 = 1;
const ACK_ID: u32 = 1;
const MESSAGE: u32 = 2;
const BODY: u32 = 1;
const ACK_IDS: u32 = 2;

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
    let lean = Lean { body_bytes: wanted.body_bytes };
    let mut answers = client.streaming(requests, PathAndQuery::from_static(PATH), lean).await?.into_inner();
    while let Some(Answer { messages, acks, results }) = answers.message().await? {
        if messages > 0 {
            let credit = Credit { messages, bytes: 0 };
            up.send(Request { credit: Some(credit), ..Request::default() })?;
            up.send(Request { acks: Some(acks.into()), ..Request::default() })?;
        }
        if !results.is_empty() {
            all_ok(&results)?;
            progress.add(results.len() as u64);
            if progress.done() >= wanted.messages {
                return Ok(());
            }
        }
    }
    Err("the server ended the stream".into())
}

/// A `SubscribeRequest`.
#[derive(Clone, PartialEq, Message)]
struct Request {
    #[prost(message, optional, tag = "1")]
    open: Option<Open>,
    #[prost(message, optional, tag = "2")]
    credit: Option<Credit>,
    /// An `Acks`, encoded.
    #[prost(bytes = "bytes", optional, tag = "3")]
    acks: Option<Bytes>,
}

/// A `SubscribeResponse`, as far as it is used.
#[derive(Debug, Default, PartialEq)]
struct Answer {
    /// Messages that were delivered.
    messages: u64,
    /// The `Acks` of all of them, encoded.
    acks: Vec<u8>,
    results: Vec<AckResult>,
}

impl Answer {
    /// Reads a response, whose bodies must have this length.
    fn read(mut bytes: &[u8], body_bytes: u64) -> Result<Self, Failure> {
        let mut answer = Self::default();
        while let Some((field, part)) = take_field(&mut bytes)? {
            match field {
                DELIVERIES => answer.read_deliveries(part, body_bytes)?,
                ACK_RESULTS => answer.results = AckResults::decode(part)?.acks,
                _ => {}
            }
        }
        Ok(answer)
    }

    fn read_deliveries(&mut self, mut bytes: &[u8], body_bytes: u64) -> Result<(), Failure> {
        while let Some((field, mut received)) = take_field(&mut bytes)? {
            if field != MESSAGES {
                continue;
            }
            self.messages += 1;
            let mut body = 0;
            while let Some((field, part)) = take_field(&mut received)? {
                match field {
                    ACK_ID => put_ack_id(part, &mut self.acks),
                    MESSAGE => body = body_length(part)?,
                    _ => {}
                }
            }
            if body != body_bytes {
                return Err(format!("a body has {body} bytes instead of {body_bytes}").into());
            }
        }
        Ok(())
    }
}

fn put_ack_id(ack_id: &[u8], acks: &mut Vec<u8>) {
    encode_key(ACK_IDS, WireType::LengthDelimited, acks);
    encode_varint(ack_id.len() as u64, acks);
    acks.extend_from_slice(ack_id);
}

fn body_length(mut message: &[u8]) -> Result<u64, Failure> {
    while let Some((field, part)) = take_field(&mut message)? {
        if field == BODY {
            return Ok(part.len() as u64);
        }
    }
    Ok(0)
}

/// The next field and its bytes, none of a number; none at the end.
fn take_field<'a>(rest: &mut &'a [u8]) -> Result<Option<(u32, &'a [u8])>, Failure> {
    if rest.is_empty() {
        return Ok(None);
    }
    let (field, wire) = decode_key(rest)?;
    if wire == WireType::Varint {
        decode_varint(rest)?;
        return Ok(Some((field, &[])));
    }
    if wire != WireType::LengthDelimited {
        return Err(format!("field {field} of an answer is of a kind that none has").into());
    }
    let length = decode_varint(rest)? as usize;
    let (part, behind) = rest.split_at_checked(length).ok_or("an answer ends within a field")?;
    *rest = behind;
    Ok(Some((field, part)))
}

/// See the module's header.
#[derive(Clone, Copy)]
struct Lean {
    body_bytes: u64,
}

impl Codec for Lean {
    type Encode = Request;
    type Decode = Answer;
    type Encoder = ProstEncoder<Request>;
    type Decoder = Self;

    fn encoder(&mut self) -> Self::Encoder {
        ProstCodec::<Request, ()>::default().encoder()
    }

    fn decoder(&mut self) -> Self {
        *self
    }
}

impl Decoder for Lean {
    type Item = Answer;
    type Error = Status;

    fn decode(&mut self, bytes: &mut DecodeBuf<'_>) -> Result<Option<Answer>, Status> {
        let bytes = bytes.copy_to_bytes(bytes.remaining());
        Answer::read(&bytes, self.body_bytes).map(Some).map_err(|error| Status::internal(error.to_string()))
    }
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
        let mut acks = Vec::new();
        ids.iter().for_each(|id| put_ack_id(id.as_bytes(), &mut acks));
        let acks = Bytes::from(acks);
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
        let read = |down, body_bytes| {
            let response = SubscribeResponse { response: Some(down) };
            Answer::read(&response.encode_to_vec(), body_bytes)
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
        let deliver = |messages| Down::Deliveries(AllDeliveries { messages });
        let all = AllAcks { ack_ids: vec!["one".into(), "two".into()], ..AllAcks::default() };
        let Answer { messages, acks, results } =
            read(deliver(vec![received("one", "abc"), received("two", "def")]), 3).unwrap();
        assert_eq!((messages, acks, results), (2, all.encode_to_vec(), Vec::new()));
        assert!(read(deliver(vec![received("one", "abc"), received("two", "de")]), 3).is_err());
        assert!(read(deliver(vec![received("one", "")]), 3).is_err());
        let result = AckResult { index: 1, status: 2, detail: "late".into() };
        let results = AllResults { correlation_id: 4, acks: vec![result.clone()], ..AllResults::default() };
        assert_eq!(read(Down::AckResults(results), 3).unwrap().results, [result]);
    }
}

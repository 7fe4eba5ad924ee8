//! Messages as text: raw, or a JSON object a line.

use clap::ValueEnum;
use forebay::proto::message_json;
use forebay::proto::v1::Message;
use serde_json::Value;

/// How messages are printed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum MessageFormat {
    /// The body and a line feed
    Raw,
    /// One JSON object a line
    Ndjson,
}

/// The text of a message, with its line feed. `attempt` is told of delivered ones.
pub fn encode(format: MessageFormat, message: &Message, attempt: Option<u32>) -> Vec<u8> {
    let mut text = match format {
        MessageFormat::Raw => message.body.to_vec(),
        MessageFormat::Ndjson => to_json(message, attempt).to_string().into_bytes(),
    };
    text.push(b'\n');
    text
}

fn to_json(message: &Message, attempt: Option<u32>) -> Value {
    let mut object = message_json(message);
    if let Some(attempt) = attempt {
        object.shift_insert(2, "attempt".into(), attempt.into());
    }
    Value::Object(object)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_body_is_text_if_it_can_be() {
        let mut message =
            Message { body: "a\n\0é".into(), offset: 7, message_id: "m".into(), ..Message::default() };
        message.attributes.insert("k".into(), "v".into());
        let text = encode(MessageFormat::Ndjson, &message, Some(2));
        let json: Value = serde_json::from_slice(&text).unwrap();
        let expected = serde_json::json!({
            "offset": 7, "message_id": "m", "attempt": 2, "publish_time": null, "attributes": {"k": "v"}, "body": "a\n\0é",
        });
        assert_eq!(json, expected);
        assert_eq!(text.iter().filter(|b| **b == b'\n').count(), 1);

        message.body = vec![0xff, 0xfe].into();
        let json: Value = serde_json::from_slice(&encode(MessageFormat::Ndjson, &message, None)).unwrap();
        assert_eq!(json["body_base64"], "//4=");
        assert!(json.get("body").is_none() && json.get("attempt").is_none());
        assert_eq!(encode(MessageFormat::Raw, &message, None), b"\xff\xfe\n");
    }
}

//! Requests that are wrong on purpose, made of the API's own descriptors.
//!
//! Most are whole messages whose fields hold extreme or wrong values; the rest are such messages with bytes changed, cut
//! or repeated, and random bytes. Texts are chosen by the names of their fields, so that many requests get far.

use std::collections::HashMap;

use forebay::proto::DESCRIPTOR_SET;
use prost::Message as _;
use prost::encoding::{WireType, encode_key, encode_varint};
use prost_types::field_descriptor_proto::{Label, Type};
use prost_types::{DescriptorProto, FieldDescriptorProto, FileDescriptorSet};

use crate::payload::Random;

/// A queue that only publishes name, so that its offsets can be counted.
pub const COUNTED: &str = "namespaces/hostile/queues/counted";
/// Queues and subscriptions that all calls name.
const QUEUES: u64 = 4;
/// How deep messages are nested.
const DEPTH_MAX: usize = 5;
/// Strings that servers gave, and that come back changed.
const LEARNED_MAX: usize = 64;

/// A method of the API.
#[derive(Clone, Debug)]
pub struct Method {
    pub path: String,
    pub takes_stream: bool,
    pub gives_stream: bool,
    input: String,
}

/// Makes requests; the same for the same seed and the same learned strings.
#[derive(Debug)]
pub struct Generator {
    random: Random,
    methods: Vec<Method>,
    messages: HashMap<String, DescriptorProto>,
    /// By the name of the field that they are for.
    learned: HashMap<&'static str, Vec<String>>,
}

impl Generator {
    pub fn new(seed: u64) -> Self {
        let set = FileDescriptorSet::decode(DESCRIPTOR_SET).expect("the descriptors were made at the build");
        let (mut methods, mut messages) = (Vec::new(), HashMap::new());
        for file in &set.file {
            let package = format!(".{}", file.package());
            file.message_type.iter().for_each(|message| add(&package, message, &mut messages));
            for service in &file.service {
                methods.extend(service.method.iter().map(|method| Method {
                    path: format!("/{}.{}/{}", file.package(), service.name(), method.name()),
                    takes_stream: method.client_streaming(),
                    gives_stream: method.server_streaming(),
                    input: method.input_type().to_owned(),
                }));
            }
        }
        Self { random: Random::new(seed), methods, messages, learned: HashMap::new() }
    }

    /// Keeps a string that a server gave for a field.
    pub fn learn(&mut self, field: &'static str, text: String) {
        let at = self.random.below(LEARNED_MAX as u64) as usize;
        let learned = self.learned.entry(field).or_default();
        match learned.get_mut(at) {
            Some(place) => *place = text,
            None => learned.push(text),
        }
    }

    /// A method and the requests for it: one, or a few of a stream.
    pub fn next(&mut self) -> (Method, Vec<Vec<u8>>) {
        // Every fifth one publishes: most of what could be applied by half is there.
        let publish = self.methods.iter().position(|method| method.path.ends_with("/Publish"));
        let any = self.random.below(self.methods.len() as u64) as usize;
        let at = if self.random.below(5) == 0 { publish.unwrap_or(any) } else { any };
        let method = self.methods[at].clone();
        let count = if method.takes_stream { 1 + self.random.below(4) } else { 1 };
        let requests = (0..count).map(|_| self.request(&method)).collect();
        (method, requests)
    }

    fn request(&mut self, method: &Method) -> Vec<u8> {
        let is_publish = method.path.ends_with("/Publish");
        let mut bytes = Vec::new();
        self.message(&method.input, is_publish, 0, &mut bytes);
        match self.random.below(10) {
            0 => {
                let count = self.random.below(300) as usize;
                self.random.bytes(count).to_vec()
            }
            1 | 2 => self.changed(bytes),
            _ => bytes,
        }
    }

    /// Changes, cuts or repeats a few bytes.
    fn changed(&mut self, mut bytes: Vec<u8>) -> Vec<u8> {
        for _ in 0..=self.random.below(3) {
            let at = self.random.below(bytes.len() as u64 + 1) as usize;
            match self.random.below(4) {
                0 => bytes.truncate(at),
                1 => bytes.extend_from_within(at..),
                2 => bytes.insert(at, self.random.bits() as u8),
                _ => bytes.iter_mut().skip(at).take(1).for_each(|byte| *byte ^= 1 << self.random.below(8)),
            }
            bytes.truncate(64 << 10);
        }
        bytes
    }

    fn message(&mut self, name: &str, is_publish: bool, depth: usize, out: &mut Vec<u8>) {
        let Some(message) = self.messages.get(name) else { return };
        let is_entry = message.options.as_ref().is_some_and(|options| options.map_entry());
        for field in message.field.clone() {
            // Names and the things themselves are mostly there, so that what is behind them is reached.
            let is_list = field.r#type() == Type::Message && field.label() == Label::Repeated;
            let likely = is_entry || depth == 0 && (is_name(field.name()) || is_list);
            if self.random.below(100) >= if likely { 85 } else { 6 } {
                continue;
            }
            for _ in 0..self.count(&field) {
                self.field(&field, is_publish, depth, out);
            }
        }
    }

    /// How often a field comes: a single one rarely twice, a repeated one rarely too often.
    fn count(&mut self, field: &FieldDescriptorProto) -> u64 {
        let is_repeated = field.label() == Label::Repeated;
        match self.random.below(200) {
            0 if is_repeated && field.r#type() == Type::String => 10_001,
            0 | 1 if is_repeated => 1_001,
            2 => 2,
            _ if is_repeated => self.random.below(4),
            _ => 1,
        }
    }

    fn field(&mut self, field: &FieldDescriptorProto, is_publish: bool, depth: usize, out: &mut Vec<u8>) {
        let tag = field.number() as u32;
        let delimited = |bytes: &[u8], out: &mut Vec<u8>| {
            encode_key(tag, WireType::LengthDelimited, out);
            encode_varint(bytes.len() as u64, out);
            out.extend_from_slice(bytes);
        };
        match field.r#type() {
            Type::Message if depth < DEPTH_MAX => {
                let mut inner = Vec::new();
                self.message(field.type_name(), is_publish, depth + 1, &mut inner);
                delimited(&inner, out);
            }
            Type::Message | Type::Group => delimited(&[], out),
            Type::String => {
                let text = self.text(field.name(), is_publish);
                delimited(&text, out);
            }
            Type::Bytes => {
                let count = [0, 1, 100, 3_000][self.random.below(4) as usize];
                let bytes = self.random.bytes(count);
                delimited(&bytes, out);
            }
            Type::Double | Type::Fixed64 | Type::Sfixed64 => {
                encode_key(tag, WireType::SixtyFourBit, out);
                out.extend(self.number().to_le_bytes());
            }
            Type::Float | Type::Fixed32 | Type::Sfixed32 => {
                encode_key(tag, WireType::ThirtyTwoBit, out);
                out.extend((self.number() as u32).to_le_bytes());
            }
            _ => {
                encode_key(tag, WireType::Varint, out);
                encode_varint(self.number(), out);
            }
        }
    }

    /// A number at some edge, or any.
    fn number(&mut self) -> u64 {
        const EDGES: [u64; 14] = [
            0,
            1,
            2,
            10,
            30,
            1_000,
            i32::MAX as u64,
            u32::MAX as u64,
            i64::MAX as u64,
            i64::MIN as u64,
            u64::MAX,
            u64::MAX - 1,
            253_402_300_799,
            1 << 53,
        ];
        match self.random.below(16) {
            15 => self.random.bits(),
            at => EDGES.get(at as usize).copied().unwrap_or(5),
        }
    }

    fn text(&mut self, field: &str, is_publish: bool) -> Vec<u8> {
        let learned = self.learned.get(field).filter(|learned| !learned.is_empty());
        if let Some(learned) = learned
            && self.random.below(2) == 0
        {
            let text = learned[self.random.below(learned.len() as u64) as usize].clone().into_bytes();
            // Every second time as it was given.
            return if self.random.below(2) == 0 { text } else { self.changed(text) };
        }
        let number = self.random.below(QUEUES);
        let queue = match is_publish && self.random.below(2) == 0 {
            true => COUNTED.to_owned(),
            false => format!("namespaces/hostile/queues/h{number}"),
        };
        match self.random.below(12) {
            0 => Vec::new(),
            1 => vec![0xff, 0xfe, 0xc3, 0x28],
            2 => "ä\0\u{202e}%s'; --".into(),
            3 => "x".repeat([256, 1_100, 20_000][number as usize % 3]).into_bytes(),
            4 => self.changed(queue.into_bytes()),
            5 => "namespaces/../queues/..".into(),
            _ => match field {
                "parent" if self.random.below(2) == 0 => "namespaces/hostile".into(),
                "subscription" => format!("{queue}/subscriptions/default").into_bytes(),
                "name" | "queue" | "parent" if self.random.below(3) > 0 => queue.into_bytes(),
                "name" | "queue" | "parent" => {
                    format!("{queue}/subscriptions/s{}", self.random.below(2)).into_bytes()
                }
                _ => format!("text{number}").into_bytes(),
            },
        }
    }
}

fn is_name(field: &str) -> bool {
    matches!(field, "name" | "queue" | "subscription" | "parent" | "ack_ids" | "message_id")
}

fn add(scope: &str, message: &DescriptorProto, messages: &mut HashMap<String, DescriptorProto>) {
    let name = format!("{scope}.{}", message.name());
    message.nested_type.iter().for_each(|nested| add(&name, nested, messages));
    messages.insert(name, message.clone());
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use forebay::proto::v1::PublishRequest;

    use super::*;

    #[test]
    fn requests_are_of_every_call_and_the_same_for_a_seed() {
        let requests = |seed| {
            let mut generator = Generator::new(seed);
            (0..2_000)
                .map(|_| generator.next())
                .map(|(method, bytes)| (method.path, bytes))
                .collect::<Vec<_>>()
        };
        let first = requests(1);
        assert_eq!(first, requests(1));
        assert_ne!(first, requests(2));
        let paths: BTreeSet<&String> = first.iter().map(|(path, _)| path).collect();
        assert_eq!(paths.len(), forebay::proto::methods().len());
        let publishes = first.iter().filter(|(path, _)| path.ends_with("/Publish"));
        let decoded: Vec<_> = publishes.map(|(_, bytes)| PublishRequest::decode(&bytes[0][..])).collect();
        assert!(decoded.iter().any(Result::is_err));
        let whole = decoded.iter().flatten().filter(|one| one.queue == COUNTED && !one.messages.is_empty());
        assert!(whole.count() > 3, "some get far");
    }
}

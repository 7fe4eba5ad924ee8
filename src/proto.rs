//! The API as generated from `proto/`; its comments are the reference.

use prost::Message as _;
use prost_types::FileDescriptorSet;
use serde_json::{Map, Value};

/// Package `forebay.v1`.
#[allow(clippy::all, clippy::pedantic, rustdoc::all, missing_docs)]
pub mod v1 {
    tonic::include_proto!("forebay.v1");
}

/// The encoded `FileDescriptorSet` of the API and what it imports, for reflection.
pub const DESCRIPTOR_SET: &[u8] = tonic::include_file_descriptor_set!("forebay_descriptor");

/// Every method of the API: its path `/package.Service/Method`, and `Service/Method`.
pub fn methods() -> Vec<(String, String)> {
    let set = FileDescriptorSet::decode(DESCRIPTOR_SET).expect("the descriptors were made at the build");
    let mut methods = Vec::new();
    for file in &set.file {
        for service in &file.service {
            for method in &service.method {
                let name = format!("{}/{}", service.name(), method.name());
                methods.push((format!("/{}.{name}", file.package()), name));
            }
        }
    }
    methods
}

/// A message as every tool shows it in JSON: the body as text if it is UTF-8, else as base64 under another name.
pub fn message_json(message: &v1::Message) -> Map<String, Value> {
    let mut object = Map::new();
    object.insert("offset".into(), message.offset.into());
    object.insert("message_id".into(), message.message_id.as_str().into());
    let time = message.publish_time.map(|time| time.to_string());
    object.insert("publish_time".into(), time.into());
    let attributes = message.attributes.iter().map(|(k, v)| (k.clone(), Value::from(v.as_str())));
    object.insert("attributes".into(), Value::Object(attributes.collect()));
    match std::str::from_utf8(&message.body) {
        Ok(text) => object.insert("body".into(), text.into()),
        Err(_) => {
            object.insert("body_base64".into(), base64_simd::STANDARD.encode_to_string(&message.body).into())
        }
    };
    object
}

#[cfg(test)]
mod tests {
    //! The API only grows. `tests/golden/forebay_v1.txt` has one line for each fact that clients depend on, and
    //! every line must stay true. After an addition write it again with `FOREBAY_GOLDEN=write cargo test golden`.

    use std::collections::BTreeSet;
    use std::path::PathBuf;

    use prost::Message;
    use prost_types::{DescriptorProto, EnumDescriptorProto, FileDescriptorProto, FileDescriptorSet};

    fn field_lines(scope: &str, message: &DescriptorProto, lines: &mut BTreeSet<String>) {
        for field in &message.field {
            let oneof = match field.oneof_index {
                Some(index) if !field.proto3_optional() => message.oneof_decl[index as usize].name(),
                _ => "-",
            };
            lines.insert(format!(
                "field {scope}.{} = {} {:?} {:?} {} presence={} oneof={oneof}",
                field.name(),
                field.number(),
                field.label(),
                field.r#type(),
                if field.type_name().is_empty() { "-" } else { field.type_name() },
                field.proto3_optional(),
            ));
        }
    }

    fn enum_lines(scope: &str, one: &EnumDescriptorProto, lines: &mut BTreeSet<String>) {
        for value in &one.value {
            lines.insert(format!("value {scope}.{}.{} = {}", one.name(), value.name(), value.number()));
        }
    }

    fn message_lines(scope: &str, message: &DescriptorProto, lines: &mut BTreeSet<String>) {
        let scope = format!("{scope}.{}", message.name());
        lines.insert(format!("message {scope}"));
        field_lines(&scope, message, lines);
        message.nested_type.iter().for_each(|nested| message_lines(&scope, nested, lines));
        message.enum_type.iter().for_each(|one| enum_lines(&scope, one, lines));
    }

    fn file_lines(file: &FileDescriptorProto, lines: &mut BTreeSet<String>) {
        let scope = file.package();
        file.message_type.iter().for_each(|message| message_lines(scope, message, lines));
        file.enum_type.iter().for_each(|one| enum_lines(scope, one, lines));
        for service in &file.service {
            for method in &service.method {
                lines.insert(format!(
                    "rpc {scope}.{}/{} {}{} -> {}{}",
                    service.name(),
                    method.name(),
                    if method.client_streaming() { "stream " } else { "" },
                    method.input_type(),
                    if method.server_streaming() { "stream " } else { "" },
                    method.output_type(),
                ));
            }
        }
    }

    #[test]
    fn the_api_keeps_all_of_its_golden_file() {
        let set = FileDescriptorSet::decode(super::DESCRIPTOR_SET).unwrap();
        let mut lines = BTreeSet::new();
        set.file.iter().filter(|file| file.package() == "forebay.v1").for_each(|f| file_lines(f, &mut lines));
        let path = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("tests/golden/forebay_v1.txt");
        if std::env::var_os("FOREBAY_GOLDEN").is_some_and(|value| value == "write") {
            let text: Vec<&str> = lines.iter().map(String::as_str).collect();
            std::fs::write(&path, text.join("\n") + "\n").unwrap();
        }
        let golden = std::fs::read_to_string(&path).unwrap();
        let lost: Vec<&str> = golden.lines().filter(|line| !lines.contains(*line)).collect();
        assert!(golden.lines().count() > 300, "the golden file is not whole");
        assert_eq!(lost, Vec::<&str>::new(), "removed, renumbered or retyped");
        let new = lines.len() - golden.lines().count();
        assert_eq!(new, 0, "additions are not in the golden file yet; see the module's comment");
    }
}

//! Compiles `proto/` without `protoc`: Rust code, and the descriptor set for reflection.

use std::error::Error;
use std::path::PathBuf;

use prost_types::FileDescriptorSet;

const FILES: [&str; 5] = [
    "proto/forebay/v1/message.proto",
    "proto/forebay/v1/queue_service.proto",
    "proto/forebay/v1/message_service.proto",
    "proto/forebay/v1/admin_service.proto",
    "proto/forebay/v1/errors.proto",
];

fn main() -> Result<(), Box<dyn Error>> {
    println!("cargo:rerun-if-changed=proto");
    let mut compiler = protox::Compiler::new(["proto"])?;
    compiler.include_imports(true).include_source_info(true).open_files(FILES.map(short))?;
    let out = PathBuf::from(std::env::var("OUT_DIR")?);
    let set: FileDescriptorSet = compiler.file_descriptor_set();
    // Reflection needs no comments; they are most of the set.
    compiler.include_source_info(false);
    std::fs::write(out.join("forebay_descriptor.bin"), compiler.encode_file_descriptor_set())?;
    // Ordered maps, so that what is stored and shown does not depend on a hasher's seed.
    tonic_prost_build::configure().bytes(".").btree_map(".").compile_fds(set)?;
    Ok(())
}

fn short(path: &str) -> &str {
    path.trim_start_matches("proto/")
}

//! `cargo xtask real-input`: real payloads through `forebayctl`, with the server killed between the steps.

use std::path::Path;
use std::process::Command;

use forebay_testkit::server::binary;
use forebay_testkit::{Server, ServerOptions};

const FILE: &str = "github-webhooks.jsonl";

pub fn run(folder: &Path) -> Result<(), String> {
    let payloads = folder.join(FILE);
    let sent = std::fs::read(&payloads).map_err(|error| format!("{}: {error}", payloads.display()))?;
    if sent.is_empty() {
        return Err(format!("{} is empty", payloads.display()));
    }
    let ctl = binary().with_file_name("forebayctl");
    if !ctl.is_file() {
        return Err(format!("{} is missing; run cargo build --workspace first", ctl.display()));
    }
    let dir = tempfile::tempdir().map_err(|error| error.to_string())?;
    let data = dir.path().join("data");
    let start = |options: &ServerOptions| Server::start_or_tell(&data, options);

    let server = start(&ServerOptions::small_segments())?;
    forebayctl(&ctl, &server, &["queue", "create", "webhooks"])?;
    let file = payloads.display().to_string();
    forebayctl(&ctl, &server, &["publish", "webhooks", "--file", &file])?;
    server.kill();

    let server = start(&ServerOptions::small_segments())?;
    let lines = sent.split(|byte| *byte == b'\n').count() - usize::from(sent.ends_with(b"\n"));
    if server.recovered_messages != lines as u64 {
        return Err(format!("{} messages recovered, {lines} lines published", server.recovered_messages));
    }
    let consume = ["consume", "webhooks", "--ack", "-o", "raw", "--idle-exit", "1s"];
    let got = forebayctl(&ctl, &server, &consume)?;
    let same = got == sent || got.strip_suffix(b"\n") == Some(&sent[..]);
    if !same {
        return Err(format!("{} bytes consumed, {} published, and they differ", got.len(), sent.len()));
    }
    server.kill();

    let server = start(&ServerOptions::small_segments())?;
    let left = forebayctl(&ctl, &server, &consume)?;
    if server.recovered_messages != 0 || !left.is_empty() {
        return Err(format!("{} messages and {} bytes came back", server.recovered_messages, left.len()));
    }
    println!(
        "real-input: {lines} messages, {} bytes, byte-identical after a kill, empty after another",
        sent.len()
    );
    Ok(())
}

fn forebayctl(program: &Path, server: &Server, arguments: &[&str]) -> Result<Vec<u8>, String> {
    let mut command = Command::new(program);
    command.arg("--server").arg(format!("http://{}", server.grpc)).args(arguments);
    let output = command.output().map_err(|error| format!("{}: {error}", program.display()))?;
    if output.status.success() {
        return Ok(output.stdout);
    }
    let stderr = String::from_utf8_lossy(&output.stderr);
    Err(format!("forebayctl {}: {}\n{stderr}", arguments.join(" "), output.status))
}

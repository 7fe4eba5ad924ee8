//! A network of one's own: a loopback that nobody outside shares, so that packets there can be ill-treated as root
//! likes. It has no name, and goes with the last thread or process in it.

use std::fs::File;
use std::io::Read as _;
use std::os::fd::AsFd as _;
use std::process::{Command, Stdio};

use rustix::thread::{LinkNameSpaceType, move_into_link_name_space};

use crate::shell::command;

/// Does it on a thread with such a network, which the threads and processes that it starts share.
pub fn apart<T: Send>(work: impl FnOnce() -> Result<T, String> + Send) -> Result<T, String> {
    let work = || enter().and_then(|()| work());
    let done = std::thread::scope(|scope| scope.spawn(work).join());
    done.unwrap_or_else(|panic| std::panic::resume_unwind(panic))
}

/// Packets are as small as those of other networks: they could have 64 KiB on a loopback.
fn enter() -> Result<(), String> {
    let entered = move_into_link_name_space(made()?.as_fd(), Some(LinkNameSpaceType::Network));
    entered.map_err(|error| format!("a network namespace cannot be entered: {error}"))?;
    command("ip", &["link", "set", "lo", "mtu", "1500", "gso_max_segs", "1", "up"])
}

/// A new one. A process makes it, not this thread by `unshare(2)`, which is unsafe as it can do more.
fn made() -> Result<File, String> {
    let told = |error: std::io::Error| format!("unshare: {error}");
    let mut maker = Command::new("unshare");
    maker.args(["--net", "sh", "-c", "echo made && read over"]);
    maker.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
    let mut maker = maker.spawn().map_err(told)?;
    let link = format!("/proc/{}/ns/net", maker.id());
    let mut made = [0; 5];
    let ready = maker.stdout.take().expect("it is piped").read_exact(&mut made);
    let namespace = ready.and_then(|()| File::open(link));
    let ended = maker.wait_with_output().map_err(told)?;
    namespace.map_err(|_| format!("unshare: {}", String::from_utf8_lossy(&ended.stderr).trim()))
}

//! Starts that must be refused: exit code 1, a message with path and remedy, and nothing written.

use std::fs;
use std::io::Read as _;
use std::net::TcpListener;
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::Instant;

use forebay_testkit::server::binary;

use crate::support::*;

/// Starts a server that must not start; gives what it wrote to standard error.
fn refused(arguments: &[&str]) -> String {
    let mut child = Command::new(binary())
        .arg("serve")
        .args(arguments)
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    let start = Instant::now();
    let status = loop {
        match child.try_wait().unwrap() {
            Some(status) => break status,
            None if start.elapsed() > PATIENCE => {
                let _ = child.kill();
                let _ = child.wait();
                panic!("the server has started, or does not end");
            }
            None => std::thread::sleep(std::time::Duration::from_millis(5)),
        }
    };
    let (mut stdout, mut stderr) = (String::new(), String::new());
    child.stdout.unwrap().read_to_string(&mut stdout).unwrap();
    child.stderr.unwrap().read_to_string(&mut stderr).unwrap();
    assert_eq!(status.code(), Some(1), "{stderr}");
    assert_eq!(stdout, "", "it is not ready");
    stderr
}

const ANY_PORTS: [&str; 4] = ["--listen", "127.0.0.1:0", "--http", "127.0.0.1:0"];

/// The same on a data directory.
fn refused_on(data: &Path) -> String {
    let mut arguments = vec!["--data-dir", data.to_str().unwrap()];
    arguments.extend(ANY_PORTS);
    refused(&arguments)
}

#[track_caller]
fn check_message(message: &str, path: &Path, parts: &[&str]) {
    for part in [path.to_str().unwrap()].iter().chain(parts) {
        assert!(message.contains(part), "{part:?} is not in {message:?}");
    }
}

#[test]
fn a_file_is_no_data_directory() {
    let site = Site::new();
    fs::write(site.data(), "precious").unwrap();
    check_message(
        &refused_on(&site.data()),
        &site.data(),
        &["not a directory", "give the path of a data directory"],
    );
    let below = site.data().join("below");
    check_message(&refused_on(&below), &below, &["not a directory", "give the path of a data directory"]);
    assert_eq!(fs::read(site.data()).unwrap(), b"precious");
    assert_eq!(contents(site.folder.path()).len(), 2);
}

/// A directory that cannot be written; writable again when dropped.
struct ReadOnly(PathBuf);

impl ReadOnly {
    /// None if this system has no way to make one.
    fn new(path: PathBuf) -> Option<Self> {
        fs::create_dir(&path).unwrap();
        fs::set_permissions(&path, fs::Permissions::from_mode(0o555)).unwrap();
        if fs::write(path.join("probe"), "").is_ok() {
            // Permissions do not bind the superuser; this does.
            fs::remove_file(path.join("probe")).unwrap();
            let made = Command::new("chattr").arg("+i").arg(&path).output();
            made.ok().filter(|made| made.status.success())?;
        }
        Some(Self(path))
    }
}

impl Drop for ReadOnly {
    fn drop(&mut self) {
        let _ = Command::new("chattr").arg("-i").arg(&self.0).output();
        let _ = fs::set_permissions(&self.0, fs::Permissions::from_mode(0o755));
    }
}

#[test]
fn a_directory_that_cannot_be_written_is_refused() {
    let site = Site::new();
    let Some(read_only) = ReadOnly::new(site.data()) else {
        // Where even root can make nothing read-only, a file system that always is.
        let path = Path::new("/proc/forebay");
        check_message(&refused_on(path), path, &[]);
        return;
    };
    let advice = ["cannot be written", "check owner, mode and mount"];
    check_message(&refused_on(&read_only.0), &read_only.0, &advice);
    let inside = read_only.0.join("inside");
    check_message(&refused_on(&inside), &inside, &advice);
    assert_eq!(contents(&site.data()).len(), 1);
}

#[tokio::test]
async fn a_directory_of_a_newer_version_is_left_alone() {
    let (site, server, mut clients) = with_queue().await;
    publish(&mut clients, "q", &["kept"]).await;
    server.kill();
    let path = site.data().join("IDENTITY");
    let original = fs::read(&path).unwrap();
    let mut newer = original.clone();
    newer[8..12].copy_from_slice(&2_u32.to_le_bytes());
    let checksum = |bytes: &[u8]| {
        let mut hasher = crc32fast::Hasher::new();
        hasher.update(&bytes[..12]);
        hasher.update(&bytes[16..]);
        hasher.finalize().to_le_bytes()
    };
    assert_eq!(original[12..16], checksum(&original), "the layout is the one that this test knows");
    let sum = checksum(&newer);
    newer[12..16].copy_from_slice(&sum);
    fs::write(&path, &newer).unwrap();
    let before = contents(&site.data());
    check_message(&refused_on(&site.data()), &path, &["format version 2", "use a newer build"]);
    assert!(contents(&site.data()) == before, "something was written");

    // Damaged is something else than newer.
    newer[8] = 3;
    fs::write(&path, &newer).unwrap();
    check_message(&refused_on(&site.data()), &path, &["damaged", "restore it from a backup"]);
    fs::write(&path, original).unwrap();
    assert_eq!(drain(&mut site.start().clients(), "q").await, [b"kept"]);
}

#[test]
fn another_programs_files_are_left_alone() {
    for foreign in ["notes.txt", "log/2024.log", "LOG/x"] {
        let site = Site::new();
        let path = site.data().join(foreign);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(&path, "precious").unwrap();
        let before = contents(&site.data());
        let entry = foreign.split('/').next().unwrap();
        let parts = [entry, "not a data directory of Forebay", "give an empty directory"];
        check_message(&refused_on(&site.data()), &site.data(), &parts);
        assert!(contents(&site.data()) == before, "{foreign}: something was written");
        assert!(!site.data().join("LOCK").exists());
    }
}

#[tokio::test]
async fn a_second_server_on_a_directory_is_refused_and_the_first_goes_on() {
    let (site, server, mut clients) = with_queue().await;
    publish(&mut clients, "q", &["kept"]).await;
    let data = site.data();
    // The log of the first one grows ahead by itself; what the directory's own files are stays.
    let own = || (fs::read(data.join("IDENTITY")).unwrap(), fs::read(data.join("LOCK")).unwrap());
    let before = own();
    let message = tokio::task::spawn_blocking({
        let data = data.clone();
        move || refused_on(&data)
    })
    .await
    .unwrap();
    check_message(&message, &data, &[&format!("process {}", server.pid()), "stop that server first"]);
    assert_eq!(own(), before);
    assert_eq!(drain(&mut clients, "q").await, [b"kept"]);
    // Once the first has gone the directory is free, without any cleaning up.
    server.kill();
    site.start();
}

#[test]
fn addresses_beyond_this_machine_need_consent() {
    let site = Site::new();
    let data = site.data();
    for (listen, http, option) in [("0.0.0.0:0", "127.0.0.1:0", "listen"), ("127.0.0.1:0", "[::]:0", "http")]
    {
        let message = refused(&["--data-dir", data.to_str().unwrap(), "--listen", listen, "--http", http]);
        for part in [option, "beyond this machine", "--insecure-listen"] {
            assert!(message.contains(part), "{part:?} is not in {message:?}");
        }
    }
    assert!(!data.exists(), "nothing was made");
    let mut allowed = site.options.clone();
    allowed.arguments = vec!["--insecure-listen".to_owned()];
    allowed.config.push_str("insecure_listen = false\n");
    forebay_testkit::Server::start(&data, &allowed);
}

#[test]
fn a_port_in_use_is_named() {
    let site = Site::new();
    let data = site.data();
    let taken = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = taken.local_addr().unwrap().to_string();
    for (listen, http) in [(address.as_str(), "127.0.0.1:0"), ("127.0.0.1:0", &address)] {
        let message = refused(&["--data-dir", data.to_str().unwrap(), "--listen", listen, "--http", http]);
        assert!(message.contains(&format!("cannot listen on {address}")), "{message}");
    }
    assert!(!data.exists(), "nothing was made");
}

#[test]
fn a_configuration_that_cannot_be_meant_is_refused() {
    let site = Site::new();
    let file = site.folder.path().join("forebay.toml");
    let path = file.to_str().unwrap();
    for (text, parts) in [
        ("data_dri = 'x'", &["data_dri", "data_dir"][..]),
        ("segment_bytes = 'many'", &["segment_bytes"]),
        ("log_format = 'xml'", &["log_format"]),
        ("listen = [", &["TOML"]),
    ] {
        fs::write(&file, text).unwrap();
        let message = refused(&["--data-dir", site.data().to_str().unwrap(), "--config", path]);
        assert!(parts.iter().all(|part| message.contains(part)), "{parts:?} are not in {message:?}");
    }
    fs::remove_file(&file).unwrap();
    let message = refused(&["--config", path]);
    assert!(message.contains(path), "{message}");
    assert!(!site.data().exists(), "nothing was made");
}

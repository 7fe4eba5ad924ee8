//! Whose directory it is.

use std::io;
use std::os::unix::fs::FileExt;
use std::path::Path;

use super::super::*;
use super::hook::{HookDisk, Verdict};
use super::support::*;
use crate::disk::Operation;

fn refused(dir: &Path) -> DirectoryError {
    match open_dir(dir).err().expect("the directory is refused") {
        LogError::Directory(error) => error,
        other => panic!("{other}"),
    }
}

fn made(dir: &Path) {
    open_dir(dir).unwrap().log.close().unwrap();
}

#[test]
fn a_second_server_is_refused_by_the_first_ones_pid() {
    let dir = tempfile::tempdir().unwrap();
    let held = open_dir(dir.path()).unwrap();
    let error = refused(dir.path());
    assert!(matches!(error, DirectoryError::Locked { pid: Some(pid), .. } if pid == std::process::id()));
    assert!(error.to_string().contains(&format!("process {}", std::process::id())), "{error}");
    drop(held);
    made(dir.path());
}

#[test]
fn a_missing_directory_is_made_with_its_parents() {
    let dir = tempfile::tempdir().unwrap();
    let inner = dir.path().join("a/b");
    made(&inner);
    let mut names: Vec<String> =
        std::fs::read_dir(inner).unwrap().map(|e| e.unwrap().file_name().into_string().unwrap()).collect();
    names.sort();
    assert_eq!(names, ["IDENTITY", "LOCK", "checkpoint", "log", "packed", "quarantine"]);
}

#[test]
fn a_file_is_no_directory() {
    let file = tempfile::NamedTempFile::new().unwrap();
    assert!(matches!(refused(file.path()), DirectoryError::NotADirectory { .. }));
    assert!(matches!(refused(&file.path().join("in")), DirectoryError::NotADirectory { .. }));
}

#[test]
fn a_directory_that_cannot_be_written_says_so() {
    let dir = tempfile::tempdir().unwrap();
    for kind in [io::ErrorKind::PermissionDenied, io::ErrorKind::ReadOnlyFilesystem] {
        let disk = HookDisk::over(dir.path(), move |operation, _| match operation {
            Operation::Lock => Verdict::Fail(kind),
            _ => Verdict::Go,
        });
        let error = try_open(disk, options()).err();
        assert!(matches!(error, Some(LogError::Directory(DirectoryError::NotWritable { .. }))), "{error:?}");
    }
}

#[test]
fn another_programs_directory_is_not_touched() {
    for entry in ["pg_wal", "log", "notes.txt"] {
        let dir = tempfile::tempdir().unwrap();
        std::fs::create_dir(dir.path().join(entry)).unwrap();
        let error = refused(dir.path());
        assert!(matches!(&error, DirectoryError::Foreign { entry: named, .. } if named == entry), "{error}");
        assert_eq!(std::fs::read_dir(dir.path()).unwrap().count(), 1);
    }
}

#[test]
fn a_mount_point_is_empty_enough() {
    let dir = tempfile::tempdir().unwrap();
    std::fs::create_dir(dir.path().join("lost+found")).unwrap();
    made(dir.path());
}

#[test]
fn newer_formats_are_named() {
    let dir = tempfile::tempdir().unwrap();
    made(dir.path());
    let segment = dir.path().join("log/00000000000000000001.seg");
    set_version(&segment, 4096, 7);
    match open_dir(dir.path()).err() {
        Some(LogError::NewerFormat { found: 7, supported: 1, .. }) => {}
        other => panic!("{other:?}"),
    }
    set_version(&dir.path().join("IDENTITY"), 80, 9);
    let error = refused(dir.path());
    assert!(matches!(error, DirectoryError::Newer { found: 9, supported: 1, .. }), "{error}");
}

/// Both files have their version at 8 and, at 12, a checksum over the rest of the block.
fn set_version(path: &Path, block: usize, version: u32) {
    let file = std::fs::OpenOptions::new().read(true).write(true).open(path).unwrap();
    let mut bytes = vec![0; block];
    file.read_exact_at(&mut bytes, 0).unwrap();
    bytes[8..12].copy_from_slice(&version.to_le_bytes());
    let crc = crc32fast::hash(&[&bytes[..12], &bytes[16..]].concat());
    bytes[12..16].copy_from_slice(&crc.to_le_bytes());
    file.write_all_at(&bytes, 0).unwrap();
}

#[test]
fn a_damaged_identity_is_refused() {
    let dir = tempfile::tempdir().unwrap();
    made(dir.path());
    let path = dir.path().join("IDENTITY");
    let good = std::fs::read(&path).unwrap();
    for at in 0..good.len() {
        let mut bytes = good.clone();
        bytes[at] ^= 4;
        std::fs::write(&path, bytes).unwrap();
        assert!(matches!(refused(dir.path()), DirectoryError::IdentityDamaged { .. }), "byte {at}");
    }
    std::fs::write(&path, b"").unwrap();
    assert!(matches!(refused(dir.path()), DirectoryError::IdentityDamaged { .. }));
}

#[test]
fn identity_and_log_belong_together() {
    let dir = tempfile::tempdir().unwrap();
    made(dir.path());
    std::fs::rename(dir.path().join("IDENTITY"), dir.path().join("quarantine/IDENTITY")).unwrap();
    assert!(matches!(refused(dir.path()), DirectoryError::IdentityMissing { .. }));
    std::fs::rename(dir.path().join("quarantine/IDENTITY"), dir.path().join("IDENTITY")).unwrap();
    std::fs::remove_dir_all(dir.path().join("log")).unwrap();
    let error = refused(dir.path());
    assert!(matches!(error, DirectoryError::LogMissing { .. }) && error.is_data_loss(), "{error}");
}

#[test]
fn files_of_two_servers_do_not_mix() {
    let (one, two) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    made(one.path());
    made(two.path());
    let segment = "log/00000000000000000001.seg";
    std::fs::copy(one.path().join(segment), two.path().join(segment)).unwrap();
    let error = open_dir(two.path()).err();
    assert!(matches!(error, Some(LogError::WrongCluster { .. })), "{error:?}");
}

#[test]
fn odd_segment_sizes_are_refused() {
    let dir = tempfile::tempdir().unwrap();
    for segment_bytes in [0, 128 << 10, (256 << 10) + 1, 2 << 30] {
        let error = try_open(
            Arc::new(crate::disk::RealDisk::new(dir.path())),
            LogOptions { segment_bytes, wall_time_us: 0 },
        );
        assert!(matches!(error.err(), Some(LogError::Options { .. })));
    }
    assert_eq!(std::fs::read_dir(dir.path()).unwrap().count(), 0);
}

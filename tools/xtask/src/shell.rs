//! Programs of the system.

use std::process::Command;

/// Runs it; what it wrote goes into the error.
pub fn command(program: &str, arguments: &[&str]) -> Result<(), String> {
    output(program, arguments).map(drop)
}

/// The same, and gives what it wrote to standard output.
pub fn output(program: &str, arguments: &[&str]) -> Result<String, String> {
    let ran = Command::new(program).args(arguments).output();
    let ran = ran.map_err(|error| format!("{program}: {error}"))?;
    if ran.status.success() {
        return Ok(String::from_utf8_lossy(&ran.stdout).trim().to_owned());
    }
    Err(format!(
        "{program} {}: {}: {}",
        arguments.join(" "),
        ran.status,
        String::from_utf8_lossy(&ran.stderr)
    ))
}

/// Says that something cannot be tried here, and why; in CI that is a failure.
pub fn skip(why: &str) -> Result<(), String> {
    println!("skipped: {why}");
    if std::env::var_os("CI").is_some() { Err("skipped in CI".to_owned()) } else { Ok(()) }
}

/// Whether a program is there; if not, and this is root, its Debian package is installed.
pub fn have(program: &str, package: &str) -> Result<(), String> {
    let works = || command("sh", &["-c", "command -v \"$0\"", program]).is_ok();
    if works() {
        return Ok(());
    }
    if !rustix::process::geteuid().is_root() {
        return Err(format!("{program} is not installed"));
    }
    let installed = command("apt-get", &["update", "-q"])
        .and_then(|()| command("apt-get", &["install", "-y", "-q", package]));
    if works() {
        Ok(())
    } else {
        Err(installed.err().unwrap_or_else(|| format!("{program} is still not there")))
    }
}

//! What comes from outside: licences, sources and bans of all dependencies against `.deny.toml`, as `cargo deny check
//! licenses sources bans` judges them, and every use of `unsafe` of our own against a list.
//!
//! Known vulnerabilities are not looked for: the advisory database is not part of a build, `cargo deny check
//! advisories` fetches it.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use serde_json::Value;

use crate::layers::code_of;

/// The one registry, as Cargo.lock names it.
const REGISTRY: &str = "registry+https://github.com/rust-lang/crates.io-index";

/// Every `unsafe` in the repository: file, how many, and why there is no way without.
const UNSAFE: &[(&str, usize, &str)] =
    &[("src/disk/real.rs", 1, "a file is mapped: whether its bytes stay as they are, no compiler knows")];

fn root() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR"))
}

/// What a program prints.
fn output(program: &str, arguments: &[&str]) -> String {
    let output = Command::new(program).args(arguments).current_dir(root()).output().unwrap();
    assert!(output.status.success(), "{program} {arguments:?}: {}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8(output.stdout).unwrap()
}

/// All packages that are built on this machine, with all features.
fn packages() -> Vec<Value> {
    let version = output("rustc", &["-vV"]);
    let host = version.lines().find_map(|line| line.strip_prefix("host: ")).expect("rustc names its host");
    let options = ["--format-version", "1", "--locked", "--all-features", "--filter-platform", host];
    let metadata = output(env!("CARGO"), &[&["metadata"], &options[..]].concat());
    let mut metadata: Value = serde_json::from_str(&metadata).unwrap();
    let Value::Array(packages) = metadata["packages"].take() else { panic!("there are packages") };
    assert!(packages.len() > 150, "they are there: {}", packages.len());
    packages
}

fn rules() -> toml::Table {
    fs::read_to_string(root().join(".deny.toml")).unwrap().parse().unwrap()
}

fn texts(value: &toml::Value) -> Vec<&str> {
    value.as_array().unwrap().iter().map(|text| text.as_str().unwrap()).collect()
}

/// Whether a licence expression can be met by licences that are allowed.
fn is_allowed(licence: &str, allowed: &[&str]) -> bool {
    let expression = spdx::Expression::parse_mode(licence, spdx::ParseMode::LAX);
    expression.is_ok_and(|expression| {
        expression.evaluate(|required| allowed.contains(&required.to_string().as_str()))
    })
}

#[test]
fn every_dependency_has_an_allowed_licence() {
    let rules = rules();
    let allowed = texts(&rules["licenses"]["allow"]);
    let packages = packages();
    let refused: Vec<_> = packages
        .iter()
        .filter(|package| !package["license"].as_str().is_some_and(|licence| is_allowed(licence, &allowed)))
        .map(|package| format!("{}: {}", package["name"], package["license"]))
        .collect();
    assert!(refused.is_empty(), "{refused:#?}");
}

#[test]
fn licences_are_read_as_they_are_meant() {
    let allowed = ["MIT", "Zlib"];
    for good in ["MIT", "GPL-3.0-only OR MIT", "Apache-2.0/MIT", "(GPL-2.0-only OR MIT) AND Zlib"] {
        assert!(is_allowed(good, &allowed), "{good}");
    }
    for bad in ["GPL-3.0-only", "MIT AND GPL-3.0-only", "Apache-2.0 WITH LLVM-exception", "my own", ""] {
        assert!(!is_allowed(bad, &allowed), "{bad}");
    }
}

#[test]
fn every_dependency_comes_from_the_registry_and_none_is_banned() {
    let rules = rules();
    let denied = rules["bans"]["deny"].as_array().unwrap();
    let denied: Vec<&str> = denied.iter().map(|one| one["name"].as_str().unwrap()).collect();
    assert!(denied.contains(&"openssl"), "{denied:?}");
    for package in packages() {
        let name = package["name"].as_str().unwrap();
        assert!(!denied.contains(&name), "{name} is banned in .deny.toml");
        let Some(source) = package["source"].as_str() else {
            let manifest = package["manifest_path"].as_str().unwrap();
            assert!(Path::new(manifest).starts_with(root()), "{name} lies outside, at {manifest}");
            refuse_wildcards(name, package["dependencies"].as_array().unwrap());
            continue;
        };
        assert_eq!(source, REGISTRY, "{name}");
    }
}

/// A version of our own choice for each dependency that has versions.
fn refuse_wildcards(name: &str, dependencies: &[Value]) {
    for dependency in dependencies.iter().filter(|dependency| dependency["path"].is_null()) {
        assert_ne!(dependency["req"], "*", "{name} takes any {}", dependency["name"]);
    }
}

/// Every file of Rust of the repository, by its path there.
fn files_of_rust() -> Vec<PathBuf> {
    let mut folders: Vec<_> =
        ["src", "tools", "tests", "benches"].iter().map(|name| root().join(name)).collect();
    let mut files = vec![root().join("build.rs")];
    while let Some(folder) = folders.pop() {
        for entry in fs::read_dir(folder).unwrap() {
            let path = entry.unwrap().path();
            match path.is_dir() {
                true if path.ends_with("target") => {}
                true => folders.push(path),
                false if path.extension().is_some_and(|extension| extension == "rs") => files.push(path),
                false => {}
            }
        }
    }
    assert!(files.len() > 250, "the source is there: {} files", files.len());
    files
}

/// The lines of code that are unsafe, from 1 on.
fn unsafe_lines(text: &str) -> Vec<usize> {
    let is_word = |c: char| c.is_alphanumeric() || c == '_';
    let has = |line: &str| line.split(|c| !is_word(c)).any(|word| word == "unsafe");
    let code = code_of(text);
    code.lines().zip(1..).filter(|(line, _)| has(line)).map(|(_, number)| number).collect()
}

/// Whether the comment right above a line says why it is sound.
fn is_explained(text: &str, line: usize) -> bool {
    let above: Vec<&str> = text.lines().take(line - 1).collect();
    let comment = above.iter().rev().take_while(|line| line.trim_start().starts_with("//"));
    comment.into_iter().any(|line| line.trim_start().starts_with("// SAFETY: "))
}

#[test]
fn what_is_unsafe_is_listed_and_explained() {
    let mut found = Vec::new();
    for path in files_of_rust() {
        let text = fs::read_to_string(&path).unwrap();
        let name = path.strip_prefix(root()).unwrap().to_str().unwrap().to_owned();
        let lines = unsafe_lines(&text);
        let silent: Vec<_> = lines.iter().filter(|line| !is_explained(&text, **line)).collect();
        assert!(
            silent.is_empty(),
            "{name}:{silent:?} is unsafe, and no SAFETY comment right above says why that is sound"
        );
        if !lines.is_empty() {
            found.push((name, lines.len()));
        }
    }
    let listed: Vec<_> = UNSAFE.iter().map(|(file, count, _)| ((*file).to_owned(), *count)).collect();
    assert_eq!(found, listed, "UNSAFE lists what is there, with a reason each");
}

#[test]
fn unsafe_code_is_seen_and_so_is_its_explanation() {
    let text = "// unsafe\nlet a = \"unsafe\";\nlet unsafe_to = 1;\n// SAFETY: so.\n// And so.\nunsafe { f() }\n\nunsafe impl A {}\n";
    assert_eq!(unsafe_lines(text), [6, 8]);
    assert!(is_explained(text, 6) && !is_explained(text, 8));
}

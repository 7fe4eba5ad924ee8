//! The layers of the source: what each part may name of the others. Fails with file, line and rule.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};

/// A part of `src/` and the parts that it may name, low to high. A part that is not listed is not allowed.
const PARTS: &[(&str, &[&str])] = &[
    ("ids", &[]),
    ("limits", &[]),
    ("planted", &[]),
    ("host", &[]),
    ("drill", &[]),
    ("clock", &["host"]),
    ("names", &["limits"]),
    ("proto", &[]),
    ("record", &["ids", "limits", "names", "clock"]),
    ("disk", &["ids", "planted"]),
    ("log", &["record", "disk", "drill", "host", "ids", "limits", "planted"]),
    ("core", &["record", "names", "clock", "ids", "limits", "planted"]),
    ("admission", &["limits", "planted"]),
    (
        "broker",
        &[
            "admission",
            "core",
            "log",
            "disk",
            "drill",
            "record",
            "names",
            "clock",
            "host",
            "ids",
            "limits",
            "planted",
        ],
    ),
    ("node", &["broker", "disk"]),
    ("embedded", &["node", "admission", "broker", "core", "log", "record", "names", "ids", "limits"]),
    ("observe", &["admission", "broker", "proto", "names", "ids", "limits"]),
    (
        "service",
        &[
            "observe",
            "admission",
            "broker",
            "core",
            "drill",
            "record",
            "names",
            "clock",
            "ids",
            "limits",
            "planted",
            "proto",
        ],
    ),
    ("fuzz", &["service", "core"]),
    ("config", &["log", "limits"]),
    (
        "server",
        &["config", "service", "observe", "admission", "node", "broker", "clock", "ids", "limits", "planted"],
    ),
    // Reads what a server has left, and shows messages as the service does.
    ("offline", &["service", "proto", "broker", "core", "log", "disk", "record", "names", "clock", "ids"]),
    ("client", &["proto", "limits"]),
    // A client of the server's own process: it sees the API alone.
    ("demo", &["client", "proto"]),
    ("main", &["server", "config", "demo", "offline"]),
    ("lib", &[]),
];

/// Names of crates and modules outside, and the parts that must not have them; the rest may.
const OUTSIDE: &[(&str, &[&str], &str)] = &[
    ("tokio", PURE, "the pure parts wait for nothing"),
    ("std::fs", PURE_CORE, "the core reads no file"),
    ("std::net", PURE_CORE, "the core reads no socket"),
    ("std::time", PURE_CORE, "the core reads no clock"),
    ("std::thread", PURE_CORE, "the core has no threads"),
    ("std::env", PURE_CORE, "the core reads no environment"),
    ("tracing", PURE, "the pure parts log nothing"),
    ("rand", PURE_CORE, "the core draws no random numbers"),
    ("getrandom", PURE_CORE, "the core draws no random numbers"),
    ("crate::clock::wall_us", PURE_CORE, "the core is told the time"),
    ("crate::clock::Clock", PURE_CORE, "the core is told the time"),
    ("prost", NO_PROTOBUF, "protobuf types stay in service and proto"),
    ("prost_types", NO_PROTOBUF, "protobuf types stay in service and proto"),
    ("tonic", NO_PROTOBUF, "gRPC types stay in service and proto"),
    ("tonic_types", NO_PROTOBUF, "gRPC types stay in service and proto"),
    ("crate::proto::v1", NO_PROTOBUF, "protobuf types stay in service and proto"),
];
const PURE_CORE: &[&str] = &["core", "record", "names", "limits"];
const PURE: &[&str] = &["core", "record", "names", "limits", "ids", "clock"];
const NO_PROTOBUF: &[&str] = &[
    "ids",
    "limits",
    "clock",
    "names",
    "record",
    "disk",
    "log",
    "core",
    "broker",
    "node",
    "admission",
    "embedded",
    "observe",
    "config",
    "server",
    "main",
    "lib",
];

/// Words that must not occur, so that nothing half done counts as done.
const FORBIDDEN: &[&str] = &["todo!", "unimplemented!", "#[ignore"];
const FILE_LINES_MAX: usize = 700;

fn sources() -> Vec<(PathBuf, String)> {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let mut folders = vec![root.join("src")];
    let mut files = Vec::new();
    while let Some(folder) = folders.pop() {
        for entry in fs::read_dir(folder).unwrap() {
            let path = entry.unwrap().path();
            if path.is_dir() {
                folders.push(path);
            } else if path.extension().is_some_and(|extension| extension == "rs") {
                let text = fs::read_to_string(&path).unwrap();
                files.push((path.strip_prefix(root).unwrap().to_owned(), text));
            }
        }
    }
    assert!(files.len() > 60, "the source is there: {} files", files.len());
    files.sort();
    files
}

/// The part of a file: the name under `src/`.
fn part(path: &Path) -> String {
    let name = path.iter().nth(1).unwrap().to_str().unwrap();
    name.strip_suffix(".rs").unwrap_or(name).to_owned()
}

/// Blanks comments and what is in quotes, so that only code is left; lines keep their numbers.
pub fn code_of(text: &str) -> String {
    let mut code = String::with_capacity(text.len());
    let mut rest = text;
    while let Some(c) = rest.chars().next() {
        let skip = match c {
            '/' if rest.starts_with("//") => rest.find('\n').unwrap_or(rest.len()),
            '"' => string_length(rest),
            // A character, not a lifetime.
            '\'' if rest[1..].starts_with('\\') => rest[3..].find('\'').map_or(1, |end| end + 4),
            '\'' if rest.chars().nth(2) == Some('\'') => {
                rest.char_indices().nth(3).map_or(rest.len(), |(at, _)| at)
            }
            _ => 0,
        };
        if skip == 0 {
            code.push(c);
            rest = &rest[c.len_utf8()..];
        } else {
            code.extend(rest[..skip].chars().filter(|c| *c == '\n'));
            code.push(' ');
            rest = &rest[skip..];
        }
    }
    code
}

fn string_length(text: &str) -> usize {
    let mut escaped = false;
    for (at, c) in text.char_indices().skip(1) {
        match c {
            '"' if !escaped => return at + 1,
            '\\' => escaped = !escaped,
            _ => escaped = false,
        }
    }
    text.len()
}

/// Every path that the code names, with its line: `use` trees are written out, other paths are taken as they are.
fn paths(code: &str) -> Vec<(usize, String)> {
    let mut found = Vec::new();
    let mut line = 1;
    let mut rest = code;
    while let Some(c) = rest.chars().next() {
        if !(c.is_alphanumeric() || c == '_') {
            line += usize::from(c == '\n');
            rest = &rest[c.len_utf8()..];
            continue;
        }
        let word = rest.find(|c: char| !(c.is_alphanumeric() || c == '_')).unwrap_or(rest.len());
        // Not the `use<'a>` of a return type.
        let (taken, tree) = if &rest[..word] == "use" && !rest[word..].starts_with('<') {
            let end = rest.find(';').unwrap_or(rest.len());
            (end, expand("", &rest[word..end]))
        } else {
            let end = rest.find(|c: char| !(c.is_alphanumeric() || "_:".contains(c))).unwrap_or(rest.len());
            (end, vec![rest[..end].to_owned()])
        };
        found.extend(tree.into_iter().map(|path| (line, path)));
        line += rest[..taken].matches('\n').count();
        rest = &rest[taken..];
    }
    found
}

/// `a::{b, c::{d, e as f}}` as `a::b`, `a::c::d`, `a::c::e`.
fn expand(prefix: &str, tree: &str) -> Vec<String> {
    let tree = tree.trim();
    let Some(open) = tree.find('{') else {
        return vec![format!("{prefix}{}", tree.split_whitespace().next().unwrap_or_default())];
    };
    let prefix = format!("{prefix}{}", tree[..open].trim());
    let inside = &tree[open + 1..tree.rfind('}').unwrap_or(tree.len())];
    let (mut depth, mut start, mut branches) = (0, 0, Vec::new());
    for (at, c) in inside.char_indices() {
        match c {
            '{' => depth += 1,
            '}' => depth -= 1,
            ',' if depth == 0 => {
                branches.push(&inside[start..at]);
                start = at + 1;
            }
            _ => {}
        }
    }
    branches.push(&inside[start..]);
    branches
        .iter()
        .filter(|branch| !branch.trim().is_empty())
        .flat_map(|branch| expand(&prefix, branch))
        .collect()
}

/// Whether a path lies under a name: `std::fs::File` under `std::fs`, not `std::fsx`.
fn under(path: &str, name: &str) -> bool {
    path.strip_prefix(name).is_some_and(|rest| rest.is_empty() || rest.starts_with("::"))
}

/// What breaks a rule, as `file:line: rule`.
fn offences(path: &Path, text: &str) -> Vec<String> {
    let parts: BTreeMap<&str, &[&str]> = PARTS.iter().copied().collect();
    let part = part(path);
    let Some(allowed) = parts.get(part.as_str()) else {
        return vec![format!("{}: the part {part} has no layer; give it one in PARTS", path.display())];
    };
    let mut offences = Vec::new();
    for (line, named) in paths(&code_of(text)) {
        let mut offend = |rule: String| offences.push(format!("{}:{line}: {rule}", path.display()));
        let own = named.strip_prefix("crate::").or_else(|| named.strip_prefix("forebay::"));
        let other = own.and_then(|own| own.split("::").next());
        if let Some(other) = other.filter(|other| *other != part && parts.contains_key(*other))
            && !allowed.contains(&other)
        {
            offend(format!("{part} must not name {other}, but has {named}"));
        }
        for (name, without, why) in OUTSIDE {
            if under(&named, name) && without.contains(&part.as_str()) {
                offend(format!("{part} must not name {name} ({why}), but has {named}"));
            }
        }
    }
    offences
}

#[test]
fn no_part_reaches_up_or_sideways() {
    let offences: Vec<String> = sources().iter().flat_map(|(path, text)| offences(path, text)).collect();
    assert!(offences.is_empty(), "{}", offences.join("\n"));
}

/// A judge that shared the server's code would share its mistakes.
#[test]
fn the_checker_shares_no_code_with_the_server() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("tools/forebay-checker");
    let manifest = fs::read_to_string(root.join("Cargo.toml")).unwrap();
    let (_, dependencies) = manifest.split_once("[dependencies]").unwrap();
    let own = ["forebay", "path =", "workspace = true }"];
    let shared = |line: &&str| own.iter().any(|own| line.contains(own)) || line.contains("git =");
    assert_eq!(dependencies.lines().filter(shared).collect::<Vec<_>>(), Vec::<&str>::new());
    for entry in fs::read_dir(root.join("src")).unwrap() {
        let text = fs::read_to_string(entry.unwrap().path()).unwrap();
        let outside = code_of(&text).contains("#[path") || text.contains("include!");
        assert!(!outside, "its modules are its own");
    }
}

#[test]
fn allowed_parts_are_lower_ones() {
    for (at, (part, allowed)) in PARTS.iter().enumerate() {
        for other in *allowed {
            assert!(
                PARTS[..at].iter().any(|(lower, _)| lower == other),
                "{part} names {other}, which is not below"
            );
        }
    }
}

#[test]
fn offences_are_seen_in_every_form() {
    let seen = |path: &str, text: &str| offences(Path::new(path), text);
    let one = seen("src/core/a.rs", "//! crate::log\nuse crate::{ids::Lsn,\n  log::{Log, self}};\n");
    assert_eq!(one.len(), 2, "{one:?}");
    assert_eq!(one[0], "src/core/a.rs:2: core must not name log, but has crate::log::Log");
    assert_eq!(seen("src/core/a.rs", "let a = '\"';\nlet now = std::time::Instant::now();").len(), 1);
    assert_eq!(
        seen("src/core/a.rs", "let text = \"crate::log::Log \\\" tokio::spawn\"; // tokio::spawn").len(),
        0
    );
    assert_eq!(seen("src/log/mod.rs", "fn f(a: &crate::core::State) {}").len(), 1);
    assert_eq!(seen("src/broker/mod.rs", "use tonic::Status;").len(), 1);
    assert_eq!(seen("src/service/mod.rs", "use tonic::Status;\nuse crate::broker::api::Broker;").len(), 0);
    assert_eq!(seen("src/new/mod.rs", "").len(), 1);
}

#[test]
fn files_are_short_and_nothing_is_left_undone() {
    let mut offences = Vec::new();
    for (path, text) in sources() {
        let lines = text.lines().count();
        if lines > FILE_LINES_MAX {
            offences
                .push(format!("{} has {lines} lines; at most {FILE_LINES_MAX} are allowed", path.display()));
        }
        for (at, line) in code_of(&text).lines().enumerate() {
            for word in FORBIDDEN.iter().filter(|word| line.contains(**word)) {
                offences.push(format!("{}:{}: {word} must not occur", path.display(), at + 1));
            }
        }
    }
    assert!(offences.is_empty(), "{}", offences.join("\n"));
}

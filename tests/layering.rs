//! The rules of layout, checked on the text of `src/`: which module may import
//! which, what the pure modules keep away from, where `unsafe` may stand, and how
//! long a file may be.
//!
//! Test code (files named `tests.rs` or `proptests.rs`, files below a directory
//! `tests`, and what follows `#[cfg(test)] mod`) is free of the import rules and
//! of the purity rules, not of the others.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};

/// Which of the crate's modules a module may import, beside itself.
const ARROWS: &[(&str, &[&str])] = &[
    ("main", &["cli"]),
    ("lib", &[]),
    (
        "cli",
        &[
            "admin",
            "app",
            "capture",
            "check",
            "config",
            "dataplane",
            "ipvs",
            "lab",
            "netstack",
            "node",
            "node_port",
            "packet",
            "service",
            "source",
            "tun",
        ],
    ),
    (
        "app",
        &[
            "admin",
            "check",
            "config",
            "dataplane",
            "ipvs",
            "netstack",
            "node",
            "node_port",
            "packet",
            "service",
            "source",
            "tun",
        ],
    ),
    // Holds what it finds on the node against what the options ask for.
    ("check", &["config", "node", "source", "tun"]),
    // Is told of flows, asks nobody for them. The memory that it shares with the kernel
    // needs `unsafe`, for which tun is the place.
    ("capture", &["packet", "tun"]),
    // Reads from the kernel, knows nothing of the proxy.
    ("node", &[]),
    // Options take their types, names and limits from what they configure.
    ("config", &["ipvs", "node_port", "service", "tun"]),
    // Read-only handles and what they show.
    ("admin", &["dataplane", "ipvs", "service"]),
    // Knows the objects that it writes as manifests and the sockets of tun, nothing of the
    // proxy.
    ("lab", &["service", "tun"]),
    ("source", &["service"]),
    // Dials, counts, limits and logs flows as the data plane does, with its parts.
    ("node_port", &["dataplane", "ipvs", "packet", "service"]),
    ("dataplane", &["ipvs", "netstack", "node", "packet", "tun"]),
    ("netstack", &["packet"]),
    ("tun", &["packet"]),
    ("ipvs", &["service"]),
    ("packet", &[]),
    ("service", &[]),
];

/// Modules without clock, sockets and async: time and randomness are arguments.
const PURE: &[&str] = &["service", "ipvs", "packet"];

/// What does not occur in them, as a sequence of tokens.
const IMPURE: &[&[&str]] = &[
    &["async"],
    &["tokio"],
    &["mio"],
    &["socket2"],
    &["TcpStream"],
    &["TcpListener"],
    &["UdpSocket"],
    &["Instant", "::", "now"],
    &["SystemTime", "::", "now"],
];

/// Modules that talk to the kernel where no crate does it for them.
const MAY_BE_UNSAFE: &[&str] = &["tun", "lab"];

/// Single files beside them: the memory of rings, which is mapped and given back by hand.
const FILES_MAY_BE_UNSAFE: &[&str] = &["netstack/rings.rs"];

/// Lines of a file, above which it is split or named in [`LONG_FILES`].
const MAX_LINES: usize = 500;

/// Files above [`MAX_LINES`], each with the reason why it stays whole.
const LONG_FILES: &[(&str, &str)] = &[];

#[test]
fn sources_keep_the_rules() {
    let src = Path::new(env!("CARGO_MANIFEST_DIR")).join("src");
    let mut files = Vec::new();
    collect(&src, &mut files).unwrap();
    files.sort();
    assert!(
        files.iter().any(|file| file.ends_with("lib.rs")),
        "no lib.rs in {}",
        src.display()
    );
    let mut broken = Vec::new();
    for file in &files {
        let path = file.strip_prefix(&src).unwrap().to_str().unwrap();
        broken.extend(check(path, &fs::read_to_string(file).unwrap()));
    }
    for (path, _) in LONG_FILES {
        if !files.contains(&src.join(path)) {
            broken.push(format!(
                "{path}: named in LONG_FILES, but there is no such file"
            ));
        }
    }
    assert!(broken.is_empty(), "\n{}", broken.join("\n"));
}

/// What a file breaks; `path` is relative to `src/`.
fn check(path: &str, text: &str) -> Vec<String> {
    let mut broken = Vec::new();
    let mut say = |what: String| broken.push(format!("{path}: {what}"));
    let modules = module_path(path);
    let module = modules[0].as_str();

    let lines = text.lines().count();
    let long = LONG_FILES.iter().find(|(file, _)| *file == path);
    match (lines > MAX_LINES, long) {
        (true, None) => say(format!("{lines} lines, more than {MAX_LINES}: split it")),
        (false, Some(_)) => say(format!("{lines} lines: take it out of LONG_FILES")),
        (true, Some(_)) | (false, None) => {}
    }

    let tokens = tokens(text);
    let may_be_unsafe = MAY_BE_UNSAFE.contains(&module) || FILES_MAY_BE_UNSAFE.contains(&path);
    if !may_be_unsafe && tokens.iter().any(|token| token == "unsafe") {
        say(format!("`unsafe` outside {MAY_BE_UNSAFE:?}"));
    }

    let Some((_, allowed)) = ARROWS.iter().find(|(name, _)| *name == module) else {
        say(format!("the module {module} has no place in ARROWS"));
        return broken;
    };
    if is_test_file(path) {
        return broken;
    }
    let code = without_test_modules(&tokens);
    for import in imports(&code, modules.len()) {
        if is_module(&import) && import != module && !allowed.contains(&import.as_str()) {
            say(format!("{module} may not import {import}"));
        }
    }
    if PURE.contains(&module) {
        for impure in IMPURE {
            if code.windows(impure.len()).any(|window| window == *impure) {
                say(format!(
                    "`{}` in a module without clock, sockets and async",
                    impure.concat()
                ));
            }
        }
    }
    broken
}

fn is_module(name: &str) -> bool {
    ARROWS.iter().any(|(module, _)| *module == name)
}

/// `tun/link/routes.rs` → tun, link, routes.
fn module_path(path: &str) -> Vec<String> {
    path.trim_end_matches(".rs")
        .split('/')
        .map(str::to_owned)
        .collect()
}

fn is_test_file(path: &str) -> bool {
    let modules = module_path(path);
    modules.last().is_some_and(|last| last == "proptests")
        || modules.iter().any(|module| module == "tests")
}

fn collect(directory: &Path, files: &mut Vec<PathBuf>) -> io::Result<()> {
    for entry in fs::read_dir(directory)? {
        let path = entry?.path();
        if path.is_dir() {
            collect(&path, files)?;
        } else if path.extension().is_some_and(|extension| extension == "rs") {
            files.push(path);
        }
    }
    Ok(())
}

/// The crate's modules that these tokens name: `crate::m`, `kube_tun_proxy::m`,
/// `crate::{m::…, n}`, and `super::` as often as it takes to reach the root from
/// a file `depth` modules deep.
fn imports(tokens: &[String], depth: usize) -> Vec<String> {
    let mut found = Vec::new();
    let mut at = 0;
    while at < tokens.len() {
        let mut behind = match tokens[at].as_str() {
            // A path from another crate's root (`other::crate`) does not exist.
            "crate" | "kube_tun_proxy" => at + 1,
            "super" => {
                let mut next = at;
                let mut ups = 0;
                while token(tokens, next) == "super" && token(tokens, next + 1) == "::" {
                    ups += 1;
                    next += 2;
                }
                at = next.max(at + 1);
                if ups == depth { next - 1 } else { continue }
            }
            _ => {
                at += 1;
                continue;
            }
        };
        if token(tokens, behind) == "::" {
            behind += 1;
            if token(tokens, behind) == "{" {
                found.extend(heads(&tokens[behind..]));
            } else {
                found.push(token(tokens, behind).to_owned());
            }
        }
        at = behind.max(at + 1);
    }
    found
}

/// The first name of each path in a group `{a::b, c::{d, e}}`.
fn heads(group: &[String]) -> Vec<String> {
    let mut found = Vec::new();
    let mut depth = 0;
    let mut at_start = false;
    for token in group {
        match token.as_str() {
            "{" => {
                depth += 1;
                at_start = depth == 1;
            }
            "}" => {
                depth -= 1;
                if depth == 0 {
                    break;
                }
            }
            "," => at_start = depth == 1,
            name if at_start => {
                found.push(name.to_owned());
                at_start = false;
            }
            _ => {}
        }
    }
    found
}

/// Leaves out `#[cfg(test)] mod name { … }` and the like.
fn without_test_modules(tokens: &[String]) -> Vec<String> {
    const MARK: [&str; 7] = ["#", "[", "cfg", "(", "test", ")", "]"];
    let mut kept = Vec::new();
    let mut at = 0;
    while at < tokens.len() {
        let marked = tokens[at..].starts_with(&MARK.map(str::to_owned));
        if !marked || token(tokens, at + MARK.len()) != "mod" {
            kept.push(tokens[at].clone());
            at += 1;
            continue;
        }
        // `mod name;` ends at once, `mod name { … }` with its brace.
        at += MARK.len() + 2;
        let mut depth = 0;
        while at < tokens.len() {
            match tokens[at].as_str() {
                "{" => depth += 1,
                "}" => depth -= 1,
                _ => {}
            }
            at += 1;
            if depth == 0 {
                break;
            }
        }
    }
    kept
}

fn token(tokens: &[String], at: usize) -> &str {
    tokens.get(at).map_or("", String::as_str)
}

/// Words, `::` and single characters; no comments, no literals of text.
fn tokens(text: &str) -> Vec<String> {
    let chars: Vec<char> = text.chars().collect();
    let get = |at: usize| chars.get(at).copied().unwrap_or('\0');
    let is_word = |c: char| c.is_alphanumeric() || c == '_';
    let mut found = Vec::new();
    let mut at = 0;
    while at < chars.len() {
        match (get(at), get(at + 1)) {
            ('/', '/') => at += until(&chars[at..], |rest| rest[0] == '\n'),
            ('/', '*') => at += block_comment(&chars[at..]),
            ('"', _) => at += 1 + string(&chars[at + 1..]),
            // A lifetime has no closing quote right behind its first character.
            ('\'', '\\') => at += 2 + until(&chars[at + 2..], |rest| rest[0] == '\'') + 1,
            ('\'', _) if get(at + 2) == '\'' => at += 3,
            (':', ':') => {
                found.push("::".to_owned());
                at += 2;
            }
            (c, _) if c.is_whitespace() => at += 1,
            (c, _) if is_word(c) => {
                let len = until(&chars[at..], |rest| !is_word(rest[0]));
                let word: String = chars[at..at + len].iter().collect();
                at += len;
                let hashes = until(&chars[at..], |rest| rest[0] != '#');
                if matches!(word.as_str(), "r" | "br" | "cr") && get(at + hashes) == '"' {
                    at += hashes + 1 + raw_string(&chars[at + hashes + 1..], hashes);
                } else {
                    found.push(word);
                }
            }
            (c, _) => {
                found.push(c.to_string());
                at += 1;
            }
        }
    }
    found
}

/// Characters before the first place where `ends` holds.
fn until(chars: &[char], ends: impl Fn(&[char]) -> bool) -> usize {
    (0..chars.len())
        .find(|&at| ends(&chars[at..]))
        .unwrap_or(chars.len())
}

/// Characters of a comment, which may hold others.
fn block_comment(chars: &[char]) -> usize {
    let (mut at, mut depth) = (0, 0);
    while at < chars.len() {
        if chars[at..].starts_with(&['/', '*']) {
            depth += 1;
            at += 2;
        } else if chars[at..].starts_with(&['*', '/']) {
            depth -= 1;
            at += 2;
            if depth == 0 {
                break;
            }
        } else {
            at += 1;
        }
    }
    at
}

/// Characters to the closing quote, with it.
fn string(chars: &[char]) -> usize {
    let mut at = 0;
    while at < chars.len() && chars[at] != '"' {
        at += if chars[at] == '\\' { 2 } else { 1 };
    }
    at + 1
}

/// Characters to the closing quote and hashes, with them.
fn raw_string(chars: &[char], hashes: usize) -> usize {
    let closing: Vec<char> = std::iter::once('"')
        .chain(std::iter::repeat_n('#', hashes))
        .collect();
    until(chars, |rest| rest.starts_with(&closing)) + closing.len()
}

mod checker {
    use super::*;

    #[test]
    fn a_forbidden_import_is_found_in_every_form() {
        let refused = "ipvs/table.rs: ipvs may not import tun";
        for bad in [
            "use crate::tun::Queue;",
            "use crate::{service::Protocol, tun::{Queue, Link}};",
            "fn f() { crate::tun::open_queues(); }",
            "use super::super::tun::Queue;",
            "use kube_tun_proxy::tun;",
            "#[cfg(test)] mod tests { fn f() { if true {} } } use crate::tun::Queue;",
            "const QUOTE: char = '\"'; use crate::tun::Queue; // \"",
            "const RAW: &str = r#\"a \" b\"#; use crate::tun::Queue;",
        ] {
            assert_eq!(check("ipvs/table.rs", bad), [refused], "{bad}");
        }
        assert_eq!(
            check("service.rs", "use super::ipvs::Table;"),
            ["service.rs: service may not import ipvs"]
        );
        assert_eq!(
            check("dataplane/worker.rs", "use crate::lab::Cluster;"),
            ["dataplane/worker.rs: dataplane may not import lab"]
        );
        assert_eq!(check("main.rs", "kube_tun_proxy::app::run()").len(), 1);
    }

    #[test]
    fn what_is_allowed_passes() {
        for good in [
            "use crate::service::Protocol; use crate::ipvs::Table; use std::net::IpAddr;",
            // A child of ours that has a module's name.
            "use super::tun::X; use self::tun::Y;",
            "//! [`crate::tun`] is below.\n/* crate::tun /* async */ Instant::now() */",
            "const TEXT: &str = \"crate::tun \\\" async\";",
            "#[cfg(test)] mod tests { use crate::lab; fn now() { Instant::now(); } }",
            "fn f<'a>(x: &'a str) -> char { '\\'' }",
        ] {
            assert_eq!(check("ipvs/table.rs", good), [""; 0], "{good}");
        }
        assert_eq!(
            check("ipvs/table/tests.rs", "use crate::tun; Instant::now();"),
            [""; 0]
        );
        assert_eq!(check("cli/demo.rs", "use crate::lab::Cluster;"), [""; 0]);
    }

    #[test]
    fn clocks_sockets_and_async_are_found_in_pure_modules() {
        for bad in [
            "async fn f() {}",
            "use tokio::sync::watch;",
            "let now = std::time::Instant :: now();",
            "let now = SystemTime::now();",
            "use std::net::{IpAddr, UdpSocket};",
        ] {
            for path in ["service/index.rs", "ipvs.rs", "packet/udp.rs"] {
                assert_eq!(check(path, bad).len(), 1, "{path}: {bad}");
            }
            assert_eq!(check("dataplane/worker.rs", bad), [""; 0]);
        }
        assert_eq!(
            check("ipvs.rs", "fn f(now: Instant) -> Instant { now }"),
            [""; 0]
        );
    }

    #[test]
    fn unsafe_long_and_unknown_files_are_found() {
        let code = "fn f() { unsafe { g() } }";
        assert_eq!(
            check("packet/ip.rs", code),
            ["packet/ip.rs: `unsafe` outside [\"tun\", \"lab\"]"]
        );
        assert_eq!(check("packet/ip/tests.rs", code).len(), 1);
        assert_eq!(check("tun/queue.rs", code), [""; 0]);
        assert_eq!(check("packet/ip.rs", "#![forbid(unsafe_code)]"), [""; 0]);

        assert_eq!(check("packet/ip.rs", &"\n".repeat(500)), [""; 0]);
        assert_eq!(
            check("packet/ip.rs", &"\n".repeat(501)),
            ["packet/ip.rs: 501 lines, more than 500: split it"]
        );
        assert_eq!(
            check("util/strings.rs", ""),
            ["util/strings.rs: the module util has no place in ARROWS"]
        );
    }
}

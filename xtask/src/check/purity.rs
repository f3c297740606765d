//! Pure code names no clock, socket, file, thread, random generator, runtime, or map with an undefined order.

use super::Finding;
use super::source::{SourceFile, Token, matching};

const RULE: &str = "purity";

/// Names that have no place in a pure core, wherever they stand.
const FORBIDDEN_NAMES: &[&str] = &[
    "tokio",
    "mio",
    "socket2",
    "Instant",
    "SystemTime",
    "rand",
    "thread",
    "thread_rng",
    "HashMap",
    "HashSet",
    "FxHashMap",
    "FxHashSet",
    "RandomState",
    "println",
    "eprintln",
];

/// Modules of `std` that have no place in a pure core.
const FORBIDDEN_STD: &[&str] = &["net", "fs", "env", "process", "os"];

/// Files of the NBD gateway that are the shell around its pure session and codec.
const NBD_SHELL: &[&str] = &["server", "lib.rs", "listener", "connection", "shell", "transport"];
/// Of the NFS gateway: what waits for the filesystem, and what has sockets.
const NFS_SHELL: &[&str] = &["lib", "service", "server"];
/// Of its client: what has the socket. The rest of it is pure, or waits for that only.
const NFS_CLIENT_SHELL: &[&str] = &["client/connection.rs"];

/// Whether a file belongs to a pure core.
pub(super) fn is_pure(path: &str) -> bool {
    if let Some(rest) = path.strip_prefix("proto/src/") {
        return !rest.starts_with("admin");
    }
    if path.starts_with("replication/src/") {
        return true;
    }
    if let Some(rest) = path.strip_prefix("filesystem/src/") {
        return !rest.starts_with("engine/");
    }
    if let Some(rest) = path.strip_prefix("gateway/nfs/src/") {
        let first = rest.split('/').next().unwrap_or(rest);
        return !NFS_SHELL.contains(&first.trim_end_matches(".rs")) && !NFS_CLIENT_SHELL.contains(&rest);
    }
    let Some(rest) = path.strip_prefix("gateway/nbd/src/") else { return false };
    let first = rest.split('/').next().unwrap_or(rest);
    !NBD_SHELL.contains(&first) && !NBD_SHELL.contains(&first.trim_end_matches(".rs"))
}

/// Finds forbidden names in the parts of a pure file that end up in the product.
pub(super) fn check(file: &SourceFile) -> Vec<Finding> {
    if !is_pure(&file.path) || file.is_test {
        return Vec::new();
    }
    let tokens: Vec<Token> = file.product_tokens().into_iter().cloned().collect();
    let mut findings = Vec::new();
    for (index, token) in tokens.iter().enumerate() {
        if FORBIDDEN_NAMES.contains(&token.text.as_str()) {
            findings.push(Finding::error(RULE, &file.path, token.line, format!("a pure core names `{}`", token.text)));
        }
        if matches!(token.text.as_str(), "std" | "core") && tokens.get(index + 1).is_some_and(|next| next.text == "::")
        {
            for (line, module) in first_segments(&tokens, index + 2) {
                if FORBIDDEN_STD.contains(&module.as_str()) {
                    findings.push(Finding::error(RULE, &file.path, line, format!("a pure core names `std::{module}`")));
                }
            }
        }
    }
    findings
}

/// The modules that a path or a `use` group names right after `std::`.
fn first_segments(tokens: &[Token], at: usize) -> Vec<(usize, String)> {
    let Some(first) = tokens.get(at) else { return Vec::new() };
    if first.text != "{" {
        return vec![(first.line, first.text.clone())];
    }
    let end = matching(tokens, at).unwrap_or(tokens.len());
    let mut segments = Vec::new();
    let mut depth = 0_usize;
    let mut expect_name = true;
    for token in &tokens[at + 1..end] {
        match token.text.as_str() {
            "{" => depth += 1,
            "}" => depth = depth.saturating_sub(1),
            "," if depth == 0 => expect_name = true,
            name if depth == 0 && expect_name => {
                segments.push((token.line, name.to_owned()));
                expect_name = false;
            }
            _ => {}
        }
    }
    segments
}

#[cfg(test)]
mod tests {
    use super::*;

    fn findings(path: &str, text: &str) -> usize {
        check(&SourceFile::parse(path, text)).len()
    }

    #[test]
    fn each_forbidden_name_is_found() {
        for text in [
            "use tokio::time;",
            "use std::net::TcpStream;",
            "use std::{fmt, net};",
            "use std::{collections::BTreeMap, fs::{self, File}};",
            "std::fs::read(p)",
            "let t = std::time::Instant::now();",
            "SystemTime::now()",
            "std::thread::spawn(f)",
            "use std::thread;",
            "rand::random()",
            "let m: HashMap<u8, u8>;",
            "let m: HashSet<u8>;",
            "use rustc_hash::FxHashMap;",
            "println!()",
            "std::env::var(x)",
        ] {
            assert_eq!(findings("replication/src/link.rs", text), 1, "{text}");
        }
    }

    #[test]
    fn innocent_code_passes() {
        let text =
            "use std::{collections::BTreeMap, fmt}; use std::time::Duration; // Instant\nlet net = fs; \"tokio\"";
        assert_eq!(findings("replication/src/link.rs", text), 0);
    }

    #[test]
    fn tests_inside_a_pure_file_may_use_anything() {
        assert_eq!(findings("replication/src/link.rs", "#[cfg(test)] mod tests { use std::fs; use std::thread; }"), 0);
        assert_eq!(findings("replication/tests/a.rs", "use std::fs;"), 0);
    }

    #[test]
    fn the_pure_files_are_the_cores() {
        for path in [
            "proto/src/ids.rs",
            "replication/src/a/b.rs",
            "gateway/nbd/src/codec.rs",
            "gateway/nbd/src/session/x.rs",
            "gateway/nfs/src/v4/status.rs",
            "gateway/nfs/src/client/session/mod.rs",
        ] {
            assert_eq!(findings(path, "use tokio::x;"), 1, "{path}");
        }
        for path in [
            "proto/src/admin.rs",
            "gateway/nbd/src/server.rs",
            "gateway/nbd/src/server/a.rs",
            "gateway/nfs/src/service/a.rs",
            "gateway/nfs/src/client/connection.rs",
            "storage-node/src/a.rs",
        ] {
            assert_eq!(findings(path, "use tokio::x;"), 0, "{path}");
        }
    }
}

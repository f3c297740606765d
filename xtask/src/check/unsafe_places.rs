//! `unsafe` stands in the ring and in the aligned buffer only; and nothing unfinished is left in any source.

use super::Finding;
use super::source::SourceFile;

const UNSAFE_FILES: &[&str] = &["storage-node/src/disk/ring.rs", "block-device/src/buffer.rs"];

const LEFTOVERS: &[&str] = &["todo", "unimplemented", "dbg"];

/// Finds `unsafe` outside its two places, unfinished code, and tests that are switched off.
pub(super) fn check(file: &SourceFile) -> Vec<Finding> {
    let mut findings = Vec::new();
    let text = |index: usize| file.tokens.get(index).map_or("", |token| token.text.as_str());
    for (index, token) in file.tokens.iter().enumerate() {
        if token.text == "unsafe" && !UNSAFE_FILES.contains(&file.path.as_str()) {
            let message = format!("`unsafe` is allowed in {} only", UNSAFE_FILES.join(" and "));
            findings.push(Finding::error("unsafe", &file.path, token.line, message));
        }
        if LEFTOVERS.contains(&token.text.as_str()) && text(index + 1) == "!" && text(index + 2) == "(" {
            findings.push(Finding::error("leftover", &file.path, token.line, format!("`{}!` is left in", token.text)));
        }
        if token.text == "#" && text(index + 1) == "[" && text(index + 2) == "ignore" {
            let message = "a test is switched off; skip it by name at run time instead";
            findings.push(Finding::error("leftover", &file.path, token.line, message));
        }
    }
    findings
}

#[cfg(test)]
mod tests {
    use super::*;

    fn rules(path: &str, text: &str) -> Vec<&'static str> {
        check(&SourceFile::parse(path, text)).into_iter().map(|finding| finding.rule).collect()
    }

    #[test]
    fn unsafe_outside_its_places_is_found_even_in_tests() {
        assert_eq!(rules("replication/src/lib.rs", "fn a() { unsafe { x() } }"), ["unsafe"]);
        assert_eq!(rules("storage-node/src/disk/mod.rs", "#[cfg(test)] mod t { unsafe fn a() {} }"), ["unsafe"]);
        assert_eq!(rules("storage-node/src/disk/ring.rs", "unsafe fn a() {}"), [""; 0]);
        assert_eq!(rules("a/src/lib.rs", "#![forbid(unsafe_code)] // unsafe"), [""; 0]);
    }

    #[test]
    fn unfinished_code_is_found() {
        assert_eq!(rules("a/src/lib.rs", "fn a() { todo!() }"), ["leftover"]);
        assert_eq!(rules("a/src/lib.rs", "fn a() { unimplemented!(\"x\") }"), ["leftover"]);
        assert_eq!(rules("a/src/lib.rs", "#[test] #[ignore] fn a() {}"), ["leftover"]);
        assert_eq!(rules("a/src/lib.rs", "let todo = 1; // todo!()"), [""; 0]);
    }
}

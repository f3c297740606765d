//! A file has one reason to exist: it says so in a header and does not grow past a size.

use super::Finding;
use super::source::SourceFile;

const RULE: &str = "size";
const LINES_WARN: usize = 600;
const LINES_MAX: usize = 900;

/// Judges the length of a file (tests inside it not counted) and asks for its module header.
pub(super) fn check(file: &SourceFile) -> Vec<Finding> {
    let mut findings = Vec::new();
    if !file.has_module_header && !file.tokens.is_empty() {
        findings.push(Finding::error("header", &file.path, 1, "the file does not start with a `//!` header"));
    }
    if file.is_test {
        return findings;
    }
    let lines = file.product_lines;
    if lines > LINES_MAX {
        findings.push(Finding::error(
            RULE,
            &file.path,
            1,
            format!("{lines} lines, more than {LINES_MAX}: split by concern"),
        ));
    } else if lines > LINES_WARN {
        findings.push(Finding::warning(RULE, &file.path, 1, format!("{lines} lines, more than {LINES_WARN}")));
    }
    findings
}

#[cfg(test)]
mod tests {
    use super::super::Severity;
    use super::*;

    fn file(path: &str, lines: usize) -> SourceFile {
        SourceFile::parse(path, &format!("//! Header.\n{}", "fn a() {}\n".repeat(lines - 1)))
    }

    #[test]
    fn long_files_warn_and_longer_ones_fail() {
        assert_eq!(check(&file("a/src/x.rs", 600)), []);
        assert_eq!(check(&file("a/src/x.rs", 601))[0].severity, Severity::Warning);
        assert_eq!(check(&file("a/src/x.rs", 901))[0].severity, Severity::Error);
    }

    #[test]
    fn tests_do_not_count() {
        assert_eq!(check(&file("tests/src/x.rs", 2000)), []);
        let text = format!("//! Header.\n#[cfg(test)]\nmod tests {{\n{}}}\n", "fn a() {}\n".repeat(1000));
        assert_eq!(check(&SourceFile::parse("a/src/x.rs", &text)), []);
    }

    #[test]
    fn a_missing_header_fails() {
        assert_eq!(check(&SourceFile::parse("a/src/x.rs", "fn a() {}"))[0].rule, "header");
    }
}

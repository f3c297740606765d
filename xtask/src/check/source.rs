//! A source file as tokens: comments and literals dropped, test items marked.
//!
//! This is a lexer, not a parser: it knows just enough of Rust to never mistake a comment, a string or a lifetime for code.

/// One identifier or punctuation mark. `::` is one token.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(super) struct Token {
    pub(super) text: String,
    pub(super) line: usize,
    /// Inside an item under `#[cfg(test)]`, or in a file of tests.
    pub(super) test: bool,
}

/// One Rust source file.
#[derive(Clone, Debug)]
pub(super) struct SourceFile {
    /// Relative to the workspace's root, with `/`.
    pub(super) path: String,
    pub(super) tokens: Vec<Token>,
    /// The lines that do not belong to tests.
    pub(super) product_lines: usize,
    pub(super) has_module_header: bool,
    /// The whole file is a test or a part of one.
    pub(super) is_test: bool,
}

impl SourceFile {
    /// Splits a file into tokens. `path` is relative to the workspace's root.
    pub(super) fn parse(path: impl Into<String>, text: &str) -> Self {
        let path = path.into();
        let is_test = is_test_path(&path);
        let mut tokens = tokenize(text);
        let test_lines = mark_tests(&mut tokens);
        if is_test {
            tokens.iter_mut().for_each(|token| token.test = true);
        }
        let product_lines = text.lines().count().saturating_sub(test_lines);
        let has_module_header = text.trim_start().starts_with("//!");
        Self { path, tokens, product_lines, has_module_header, is_test }
    }

    /// The tokens that end up in the product.
    pub(super) fn product_tokens(&self) -> Vec<&Token> {
        self.tokens.iter().filter(|token| !token.test).collect()
    }
}

fn is_test_path(path: &str) -> bool {
    path.starts_with("tests/") || path.contains("/tests/") || path.ends_with("/tests.rs") || path.ends_with("_tests.rs")
}

fn tokenize(text: &str) -> Vec<Token> {
    let bytes = text.as_bytes();
    let mut tokens = Vec::new();
    let (mut at, mut line) = (0, 1);
    while at < bytes.len() {
        let start = at;
        let rest = &bytes[at..];
        match bytes[at] {
            b'/' if rest.starts_with(b"//") => at += rest.iter().position(|&b| b == b'\n').unwrap_or(rest.len()),
            b'/' if rest.starts_with(b"/*") => at += block_comment(rest),
            b'"' => at += quoted(rest, b'"'),
            b'\'' => at += char_or_lifetime(rest),
            byte if byte.is_ascii_alphabetic() || byte == b'_' || byte >= 0x80 => {
                let length = rest.iter().position(|&b| !is_word(b)).unwrap_or(rest.len());
                at += length;
                let word = &text[start..at];
                match string_after_prefix(word, &bytes[at..]) {
                    Some(literal) => at += literal,
                    None => tokens.push(Token { text: word.to_owned(), line, test: false }),
                }
            }
            byte if byte.is_ascii_digit() => at += rest.iter().position(|&b| !is_word(b)).unwrap_or(rest.len()),
            b':' if rest.starts_with(b"::") => {
                at += 2;
                tokens.push(Token { text: "::".to_owned(), line, test: false });
            }
            byte => {
                at += 1;
                if !byte.is_ascii_whitespace() {
                    tokens.push(Token { text: char::from(byte).to_string(), line, test: false });
                }
            }
        }
        line += bytes[start..at].iter().filter(|&&b| b == b'\n').count();
    }
    tokens
}

fn is_word(byte: u8) -> bool {
    byte.is_ascii_alphanumeric() || byte == b'_' || byte >= 0x80
}

fn block_comment(rest: &[u8]) -> usize {
    let (mut depth, mut at) = (0_usize, 0);
    while at < rest.len() {
        if rest[at..].starts_with(b"/*") {
            depth += 1;
            at += 2;
        } else if rest[at..].starts_with(b"*/") {
            depth -= 1;
            at += 2;
            if depth == 0 {
                return at;
            }
        } else {
            at += 1;
        }
    }
    rest.len()
}

/// The length of a literal with escapes, quotes included.
fn quoted(rest: &[u8], quote: u8) -> usize {
    let mut at = 1;
    while at < rest.len() {
        match rest[at] {
            b'\\' => at += 2,
            byte if byte == quote => return at + 1,
            _ => at += 1,
        }
    }
    rest.len()
}

fn char_or_lifetime(rest: &[u8]) -> usize {
    let is_escape = rest.get(1) == Some(&b'\\');
    let first_length = match rest.get(1) {
        Some(&byte) if byte >= 0xF0 => 4,
        Some(&byte) if byte >= 0xE0 => 3,
        Some(&byte) if byte >= 0xC0 => 2,
        _ => 1,
    };
    if is_escape || rest.get(1 + first_length) == Some(&b'\'') {
        return quoted(rest, b'\'');
    }
    1 + rest[1..].iter().position(|&b| !is_word(b)).unwrap_or(rest.len() - 1)
}

/// `b"…"`, `r#"…"#`, `br"…"`, `c"…"`, `b'…'`: the length of the literal that follows the prefix word.
fn string_after_prefix(word: &str, rest: &[u8]) -> Option<usize> {
    match word {
        "b" if rest.first() == Some(&b'\'') => Some(quoted(rest, b'\'')),
        "b" | "c" if rest.first() == Some(&b'"') => Some(quoted(rest, b'"')),
        "r" | "br" | "cr" => {
            let hashes = rest.iter().take_while(|&&b| b == b'#').count();
            if rest.get(hashes) != Some(&b'"') {
                return None;
            }
            let mut end = vec![b'"'];
            end.resize(1 + hashes, b'#');
            let body = &rest[hashes + 1..];
            let close = body.windows(end.len()).position(|window| window == end).unwrap_or(body.len());
            Some((hashes + 1 + close + end.len()).min(rest.len()))
        }
        _ => None,
    }
}

/// Marks each item under a `#[cfg(test)]` attribute and gives the number of lines that they take.
fn mark_tests(tokens: &mut [Token]) -> usize {
    let (mut at, mut lines) = (0, 0);
    while at < tokens.len() {
        let Some(after) = test_attribute_end(tokens, at) else {
            at += 1;
            continue;
        };
        let end = item_end(tokens, after);
        tokens[at..end].iter_mut().for_each(|token| token.test = true);
        lines += tokens[end - 1].line - tokens[at].line + 1;
        at = end;
    }
    lines
}

/// If an attribute `#[cfg(… test …)]` starts here, the index after it.
fn test_attribute_end(tokens: &[Token], at: usize) -> Option<usize> {
    let text = |index: usize| tokens.get(index).map(|token| token.text.as_str());
    if text(at) != Some("#") || text(at + 1) != Some("[") || text(at + 2) != Some("cfg") {
        return None;
    }
    let end = matching(tokens, at + 1)?;
    let inside = &tokens[at + 3..end];
    let names = |word: &str| inside.iter().any(|token| token.text == word);
    (names("test") && !names("not")).then_some(end + 1)
}

fn item_end(tokens: &[Token], from: usize) -> usize {
    let mut at = from;
    while at < tokens.len() {
        match tokens[at].text.as_str() {
            ";" => return at + 1,
            "{" => return matching(tokens, at).map_or(tokens.len(), |end| end + 1),
            "(" | "[" => at = matching(tokens, at).map_or(tokens.len(), |end| end + 1),
            _ => at += 1,
        }
    }
    tokens.len()
}

/// The index of the bracket that closes the one at `open`.
pub(super) fn matching(tokens: &[Token], open: usize) -> Option<usize> {
    let mut depth = 0_usize;
    for (index, token) in tokens.iter().enumerate().skip(open) {
        match token.text.as_str() {
            "(" | "[" | "{" => depth += 1,
            ")" | "]" | "}" => {
                depth = depth.checked_sub(1)?;
                if depth == 0 {
                    return Some(index);
                }
            }
            _ => {}
        }
    }
    None
}

#[cfg(test)]
mod tests {
    use super::*;

    fn words(text: &str) -> Vec<String> {
        SourceFile::parse("a/src/x.rs", text).product_tokens().into_iter().map(|token| token.text.clone()).collect()
    }

    #[test]
    fn comments_and_literals_are_not_code() {
        let text = "// tokio\n/* rand /* nested */ tokio */ \"tokio\" r#\"a \" tokio\"# b'\\'' 'a' '\\'' b\"tokio\" ok";
        assert_eq!(words(text), ["ok"]);
    }

    #[test]
    fn a_lifetime_does_not_swallow_code() {
        assert_eq!(words("&'a tokio"), ["&", "tokio"]);
        assert_eq!(words("'ä' x"), ["x"]);
    }

    #[test]
    fn lines_are_counted_through_literals() {
        let file = SourceFile::parse("a/src/x.rs", "let a = \"x\ny\";\nz");
        assert_eq!(file.tokens.last().map(|token| token.line), Some(3));
    }

    #[test]
    fn test_items_are_marked_and_code_after_them_is_not() {
        let text = "#[cfg(test)]\nmod tests {\n use tokio; fn a() { }\n}\nfn product() {}";
        assert_eq!(words(text), ["fn", "product", "(", ")", "{", "}"]);
        assert_eq!(SourceFile::parse("a/src/x.rs", text).product_lines, 1);
        assert_eq!(words("#[cfg(not(test))] use tokio;").len(), 13);
    }

    #[test]
    fn unfinished_sources_do_not_panic() {
        for text in ["\"", "'", "r#\"", "/*", "#[cfg(test)]", "#[cfg(test)] mod {", "b'", "'\\", "}"] {
            let _ = words(text);
        }
    }
}

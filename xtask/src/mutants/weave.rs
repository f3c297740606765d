//! All mutants in one source, asleep: each function that one touches holds every variant of its body, and a number that is
//! read when it runs chooses. So one build serves the whole list.

use std::collections::BTreeMap;
use std::ops::Range;

use anyhow::{Context, Result, bail};

use super::list::Mutant;

/// The variable that wakes a mutant, by its number from 1.
pub(super) const VARIABLE: &str = "TANDEM_MUTANT";

/// Stands at the end of the root of the core in the copy; the core itself reads no environment.
pub(super) const SWITCH: &str = r#"
pub(crate) fn mutant_awake() -> usize {
    static NUMBER: std::sync::OnceLock<usize> = std::sync::OnceLock::new();
    *NUMBER.get_or_init(|| std::env::var("TANDEM_MUTANT").ok().and_then(|text| text.parse().ok()).unwrap_or(0))
}
"#;

/// Puts every given mutant of one source into it.
pub(super) fn weave(source: &str, mutants: &[(usize, &Mutant)]) -> Result<String> {
    let functions = functions(source);
    let mut variants: BTreeMap<usize, Vec<(usize, String)>> = BTreeMap::new();
    for (number, mutant) in mutants {
        let mutated = mutant.mutate(source)?;
        let start = source.find(&mutant.find).context("the snippet is gone")?;
        // A snippet may begin before the name of the function that it changes.
        let last = start + mutant.find.trim_end().len() - 1;
        let around = functions.iter().enumerate().filter(|(_, function)| function.body.contains(&last));
        let innermost = around.min_by_key(|(_, function)| function.body.len());
        let (index, _) = innermost.with_context(|| format!("mutant {}: no function around it", mutant.name))?;
        let function = self::functions(&mutated).into_iter().nth(index);
        let function = function.with_context(|| format!("mutant {}: the function is gone", mutant.name))?;
        variants.entry(index).or_default().push((*number, mutated[function.body].to_owned()));
    }
    let mut woven = source.to_owned();
    let mut untouched = source.len();
    for (index, bodies) in variants.into_iter().rev() {
        let body = functions[index].body.clone();
        if body.end > untouched {
            bail!("mutants in a function and in one inside it");
        }
        untouched = body.start;
        let arms: String = bodies.iter().map(|(number, text)| format!("{number} => {text}\n")).collect();
        let original = &source[body.clone()];
        let choice = format!("{{\nmatch crate::mutant_awake() {{\n{arms}_ => {original}\n}}\n}}");
        woven.replace_range(body, &choice);
    }
    Ok(woven)
}

/// A function with a body.
struct Function {
    /// From the opening to the closing brace, both included.
    body: Range<usize>,
}

/// The functions of a source in the order in which they begin.
fn functions(source: &str) -> Vec<Function> {
    let code = blank_out(source);
    let mut functions = Vec::new();
    let mut from = 0;
    while let Some(at) = code[from..].find("fn ").map(|at| from + at) {
        from = at + 3;
        let word_before =
            at > 0 && (code.as_bytes()[at - 1].is_ascii_alphanumeric() || code.as_bytes()[at - 1] == b'_');
        if word_before {
            continue;
        }
        if let Some(body) = body_after(code.as_bytes(), from) {
            functions.push(Function { body });
        }
    }
    functions
}

/// The body of the function whose name begins at `from`, if it has one.
fn body_after(code: &[u8], from: usize) -> Option<Range<usize>> {
    let mut depth = 0i32;
    let mut open = None;
    for (at, byte) in code.iter().enumerate().skip(from) {
        match byte {
            b'(' | b'[' => depth += 1,
            b')' | b']' => depth -= 1,
            b';' if depth == 0 => return None,
            b'{' => {
                if depth == 0 && open.is_none() {
                    open = Some(at);
                }
                depth += 1;
            }
            b'}' => {
                depth -= 1;
                if depth == 0 {
                    return open.map(|open| open..at + 1);
                }
            }
            _ => {}
        }
    }
    None
}

/// The source with every byte of comments, texts and characters made a blank, so that its braces are those of the code.
fn blank_out(source: &str) -> String {
    let bytes = source.as_bytes();
    let mut code = bytes.to_vec();
    let mut at = 0;
    while at < bytes.len() {
        let rest = &source[at..];
        let length = if rest.starts_with("//") {
            rest.find('\n').unwrap_or(rest.len())
        } else if rest.starts_with('"') {
            text_length(rest.as_bytes())
        } else if rest.starts_with('\'') {
            character_length(rest)
        } else {
            0
        };
        code[at..at + length].iter_mut().for_each(|byte| *byte = b' ');
        at += length.max(1);
        while !source.is_char_boundary(at) {
            code[at] = b' ';
            code[at - 1] = b' ';
            at += 1;
        }
    }
    String::from_utf8_lossy(&code).into_owned()
}

/// The length of the text that begins here, with its quotes.
fn text_length(bytes: &[u8]) -> usize {
    let mut at = 1;
    while at < bytes.len() && bytes[at] != b'"' {
        at += if bytes[at] == b'\\' { 2 } else { 1 };
    }
    (at + 1).min(bytes.len())
}

/// The length of the character that begins here; 0 for a lifetime.
fn character_length(rest: &str) -> usize {
    let mut chars = rest.char_indices().skip(1);
    match chars.next() {
        Some((_, '\\')) => rest[3..].find('\'').map_or(0, |end| end + 4),
        Some(_) => chars.next().filter(|(_, next)| *next == '\'').map_or(0, |(at, _)| at + 1),
        None => 0,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SOURCE: &str = r#"
impl X {
    /// A brace in a comment: {
    fn first(&self, f: impl Fn([u8; 2]) -> bool) -> usize {
        if guard { return '{' as usize; }
        self.text("}").len()
    }
    fn declared(&self);
    fn second<'a>(&'a self) { other(); }
}
"#;

    fn mutant(find: &str, replace: &str) -> Mutant {
        let (name, why, file) = ("m".to_owned(), "w".to_owned(), "f".to_owned());
        Mutant { name, why, file, find: find.into(), replace: replace.into(), killed_by: None, model: None }
    }

    fn squeezed(text: &str) -> String {
        text.split_whitespace().collect::<Vec<_>>().join(" ")
    }

    #[test]
    fn a_function_holds_its_body_and_those_of_its_mutants() {
        let (one, two) = (
            mutant("if guard", "if false"),
            mutant("    fn second<'a>(&'a self) { other();", "    fn second<'a>(&'a self) {"),
        );
        let three = mutant("other()", "another()");
        let woven = squeezed(&weave(SOURCE, &[(4, &one), (5, &two), (6, &three)]).expect("weaves"));
        let first = "-> usize { match crate::mutant_awake() { 4 => { if false { return '{' as usize; } self.text(\"}\").len() } \
                     _ => { if guard { return '{' as usize; } self.text(\"}\").len() } } } fn declared(&self);";
        assert!(woven.contains(first), "{woven}");
        let second = "{ match crate::mutant_awake() { 5 => { } 6 => { another(); } _ => { other(); } } }";
        assert!(woven.contains(second), "{woven}");
    }

    #[test]
    fn a_snippet_outside_of_functions_is_refused() {
        assert!(weave("const A: u8 = 1;", &[(1, &mutant("1", "2"))]).is_err());
    }

    #[test]
    fn the_switch_reads_the_variable() {
        assert!(SWITCH.contains(&format!("\"{VARIABLE}\"")));
    }
}

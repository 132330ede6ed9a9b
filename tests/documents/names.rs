//! Tests and files that the documents name.

use std::fs;

use crate::{Wrong, check, page::Page, root};

/// Directories whose files the documents name from the root.
const PLACES: [&str; 8] =
    ["src/", "server/", "tests/", "docs/", "examples/", "benches/", "migrations/", ".ci/"];

#[test]
fn tests_that_are_named_exist() {
    check(wrong_tests);
}

fn wrong_tests(page: &Page) -> Wrong {
    let mut wrong = Vec::new();
    for (line, code) in page.codes() {
        if let Some((file, test)) = code.split_once(".rs::") {
            let path = format!("{file}.rs");
            let name = test.rsplit("::").next().unwrap_or(test);
            if !has_function(&source(&path), name) {
                wrong.push((line, format!("{path} has no function {name}")));
            }
        } else if let Some((file, title)) = code.split_once(".test.mjs: ") {
            let path = format!("{file}.test.mjs");
            if !has_title(&source(&path), title) {
                wrong.push((line, format!("{path} has no test with the title {title:?}")));
            }
        }
    }
    wrong
}

fn source(path: &str) -> String {
    fs::read_to_string(root().join(path)).unwrap_or_default()
}

/// Whether a source in Rust has a function of this name outside its comments.
fn has_function(source: &str, name: &str) -> bool {
    source.lines().filter(|line| !line.trim_start().starts_with("//")).any(|line| {
        let after = line.split_once("fn ").and_then(|(_, rest)| rest.strip_prefix(name));
        after.is_some_and(|rest| rest.starts_with(['(', '<']))
    })
}

/// Whether a source in JavaScript has a test whose title begins so.
fn has_title(source: &str, title: &str) -> bool {
    ['"', '\'', '`'].iter().any(|quote| source.contains(&format!("test({quote}{title}")))
}

#[test]
fn files_that_are_named_exist() {
    check(|page| if page.path == "CHANGELOG.md" { Vec::new() } else { wrong_files(page) });
}

fn wrong_files(page: &Page) -> Wrong {
    let mut wrong = Vec::new();
    for (line, code) in page.codes() {
        // A script may have arguments.
        let word = code.split(' ').next().unwrap_or_default();
        let word = word.strip_prefix("./").unwrap_or(word);
        let is_plain = word.chars().all(|c| c.is_ascii_alphanumeric() || "/._-{},".contains(c));
        let in_place = PLACES.iter().any(|place| word.starts_with(place));
        let is_source = word.contains('/') && !word.starts_with('/') && word.ends_with(".rs");
        if !is_plain || !(in_place || is_source) {
            continue;
        }
        for path in expand(word) {
            if !exists(&path) {
                wrong.push((line, format!("there is no {path}: write its path from the root")));
            }
        }
    }
    wrong
}

/// Whether there is a file of this name; an example or a benchmark may be named as cargo names it.
fn exists(path: &str) -> bool {
    let file = root().join(path);
    file.exists() || file.with_extension("rs").exists()
}

/// `a/{b,c}.rs` as `a/b.rs` and `a/c.rs`.
fn expand(path: &str) -> Vec<String> {
    let Some((before, rest)) = path.split_once('{') else { return vec![path.to_owned()] };
    let Some((names, after)) = rest.split_once('}') else { return vec![path.to_owned()] };
    names.split(',').map(|name| format!("{before}{name}{after}")).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::assert_wrong;

    #[test]
    fn braces_are_expanded() {
        assert_eq!(expand("src/{a,b}.rs"), ["src/a.rs", "src/b.rs"]);
        assert_eq!(expand("src/a.rs"), ["src/a.rs"]);
    }

    #[test]
    fn named_tests() {
        let here = "`tests/documents/names.rs::named_tests` `tests/documents/names.rs::tests::named_tests`\n";
        assert_wrong(wrong_tests, "docs/x.md", here, &[]);
        assert_wrong(wrong_tests, "docs/x.md", "`tests/documents/names.rs::named_test`\n", &[1]);
        assert_wrong(wrong_tests, "docs/x.md", "`tests/gone.rs::named_tests`\n", &[1]);
        assert!(has_function("async fn a<T>() {}", "a") && !has_function("// fn b() {}", "b"));
        assert!(has_title("test(\"a room\", () => {})", "a room"));
        assert!(!has_title("test(\"a room\", () => {})", "room"));
        assert!(!has_title("// a room", "a room"));
    }

    #[test]
    fn named_files() {
        for right in [
            "src/lib.rs",
            "./tests/run",
            "benches/compare --quick",
            "src/model/{info,names}.rs",
            "examples/embed",
            "/api/rooms",
            "https://example.com/x.rs",
            "src/…",
        ] {
            assert_wrong(wrong_files, "docs/x.md", &format!("`{right}`"), &[]);
        }
        for wrong in
            ["src/gone.rs", "./tests/gone --quick", "src/model/{info,gone}.rs", "model/info.rs"]
        {
            assert_wrong(wrong_files, "docs/x.md", &format!("`{wrong}`"), &[1]);
        }
    }
}

//! Tests and files that the documents name.

use std::fs;

use crate::{check, root};

/// Directories whose files the documents name from the root.
const PLACES: [&str; 8] =
    ["src/", "server/", "tests/", "docs/", "examples/", "benches/", "migrations/", ".ci/"];

#[test]
fn tests_that_are_named_exist() {
    check(|page| {
        let mut wrong = Vec::new();
        for (line, code) in page.codes() {
            if let Some((file, test)) = code.split_once(".rs::") {
                let path = format!("{file}.rs");
                let source = fs::read_to_string(root().join(&path)).unwrap_or_default();
                if !source.contains(&format!("fn {test}("))
                    && !source.contains(&format!("fn {test}<"))
                {
                    wrong.push((line, format!("{path} has no function {test}")));
                }
            } else if let Some((file, title)) = code.split_once(".test.mjs: ") {
                let path = format!("{file}.test.mjs");
                let source = fs::read_to_string(root().join(&path)).unwrap_or_default();
                if !source.contains(title) {
                    wrong.push((line, format!("{path} has no test {title:?}")));
                }
            }
        }
        wrong
    });
}

#[test]
fn files_that_are_named_exist() {
    check(|page| {
        let mut wrong = Vec::new();
        for (line, code) in page.codes() {
            let looks_like_a_path = PLACES.iter().any(|place| code.starts_with(place))
                && code.chars().all(|c| c.is_ascii_alphanumeric() || "/._-{},".contains(c));
            if !looks_like_a_path || page.path == "CHANGELOG.md" {
                continue;
            }
            for path in expand(&code) {
                // An example or a benchmark may be named as cargo names it.
                let file = root().join(&path);
                if !file.exists() && !file.with_extension("rs").exists() {
                    wrong.push((line, format!("there is no {path}")));
                }
            }
        }
        wrong
    });
}

/// `a/{b,c}.rs` as `a/b.rs` and `a/c.rs`.
fn expand(path: &str) -> Vec<String> {
    let Some((before, rest)) = path.split_once('{') else { return vec![path.to_owned()] };
    let Some((names, after)) = rest.split_once('}') else { return vec![path.to_owned()] };
    names.split(',').map(|name| format!("{before}{name}{after}")).collect()
}

#[test]
fn braces_are_expanded() {
    assert_eq!(expand("src/{a,b}.rs"), ["src/a.rs", "src/b.rs"]);
    assert_eq!(expand("src/a.rs"), ["src/a.rs"]);
}

//! The documents of the repository: links and anchors lead somewhere, on GitHub and in rustdoc; code
//! blocks are of a kind that something compiles or runs; tests and files that are named exist.
//!
//! What the blocks do is tested elsewhere: those in Rust as doctests, the others by `server/tests/docs`.

mod blocks;
mod guide;
mod links;
mod names;
mod page;

use std::path::PathBuf;

use page::Page;

/// The checkout; the variable that cargo sets can lead to another one.
fn root() -> PathBuf {
    std::env::var_os("CARGO_MANIFEST_DIR").map(PathBuf::from).expect("set by cargo")
}

/// Runs a check on every page, and fails with all that is wrong.
fn check(check: impl Fn(&Page) -> Vec<(usize, String)>) {
    let pages = page::all();
    let mut wrong = Vec::new();
    for page in &pages {
        for (line, what) in check(page) {
            wrong.push(format!("{}:{line}: {what}", page.path));
        }
    }
    assert!(wrong.is_empty(), "\n{}\n", wrong.join("\n"));
}

#[test]
fn paragraphs_are_short() {
    check(|page| {
        if !page.is_prose() {
            return Vec::new();
        }
        let long = page.paragraphs().into_iter().filter(|(_, length)| *length > 700);
        long.map(|(line, length)| (line, format!("a paragraph of {length} characters (700)")))
            .collect()
    });
}

#[test]
fn the_readme_is_read_in_minutes() {
    let readme = Page::read("README.md");
    let lines = readme.text.lines().count();
    assert!(lines <= 150, "README.md has {lines} lines (150): move something to its page");
}

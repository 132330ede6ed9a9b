//! The documents of the repository: links and anchors lead somewhere, on GitHub and in rustdoc; code
//! blocks are of a kind that something compiles or runs; tests and files that are named exist.
//!
//! What the blocks do is tested elsewhere: those in Rust as doctests and by `tests/outside`, the others
//! by `server/tests/docs`.

mod blocks;
mod guide;
mod ids;
mod links;
mod names;
mod page;

use std::path::PathBuf;

use page::Page;

/// What is wrong with a page, with the lines.
type Wrong = Vec<(usize, String)>;

/// The checkout; the variable that cargo sets can lead to another one.
fn root() -> PathBuf {
    std::env::var_os("CARGO_MANIFEST_DIR").map(PathBuf::from).expect("set by cargo")
}

/// Runs a check on every page, and fails with all that is wrong.
fn check(check: impl Fn(&Page) -> Wrong) {
    let pages = page::all();
    let mut wrong = Vec::new();
    for page in &pages {
        for (line, what) in check(page) {
            wrong.push(format!("{}:{line}: {what}", page.path));
        }
    }
    assert!(wrong.is_empty(), "\n{}\n", wrong.join("\n"));
}

/// A page of a test.
fn page(path: &str, text: &str) -> Page {
    Page { path: path.to_owned(), text: text.to_owned() }
}

/// Runs a check on a page that has something wrong in these lines.
#[track_caller]
fn assert_wrong(check: impl Fn(&Page) -> Wrong, path: &str, text: &str, lines: &[usize]) {
    let wrong = check(&page(path, text));
    let found: Vec<_> = wrong.iter().map(|(line, _)| *line).collect();
    assert_eq!(found, lines, "{wrong:#?}");
}

#[test]
fn paragraphs_are_short() {
    check(|page| {
        if !page.is_prose() {
            return Vec::new();
        }
        let long = page.paragraphs().into_iter().filter(|(_, length)| *length > 700);
        let wrong = |length| {
            format!("a paragraph of {length} characters: 700 at most, split it or make it a list")
        };
        long.map(|(line, length)| (line, wrong(length))).collect()
    });
}

#[test]
fn the_readme_is_read_in_minutes() {
    let readme = Page::read("README.md");
    let lines = readme.text.lines().count();
    assert!(lines <= 150, "README.md has {lines} lines (150): move something to its page");
}

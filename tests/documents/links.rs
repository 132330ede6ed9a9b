//! Links and anchors.

use std::{
    fs,
    path::{Component, Path, PathBuf},
};

use pulldown_cmark::LinkType;

use crate::{
    Wrong, check,
    page::{Link, Page, all},
    root,
};

/// The server of the pages' examples.
const EXAMPLE: &str = "http://127.0.0.1:8080";

#[test]
fn links_lead_to_files_and_headings() {
    let pages = all();
    check(|page| wrong_targets(page, &pages));
}

fn wrong_targets(page: &Page, pages: &[Page]) -> Wrong {
    let links = page.links();
    let wrong = |link: &Link| Some((link.line, wrong_target(page, link, pages)?));
    links.iter().filter_map(wrong).collect()
}

fn wrong_target(page: &Page, link: &Link, pages: &[Page]) -> Option<String> {
    let destination = &*link.destination;
    if link.kind == LinkType::Email {
        return Some(format!("{destination}: only https leads out"));
    }
    if leads_out(destination) {
        return wrong_outside(destination);
    }
    let (file, anchor) =
        destination.split_once('#').map_or((destination, None), |(f, a)| (f, Some(a)));
    let path = if file.is_empty() { page.path.clone() } else { relative_to(&page.path, file)? };
    if path.is_empty() {
        return Some(format!("{destination}: write the path from the page's directory"));
    }
    if !file.is_empty() && !root().join(&path).exists() {
        return Some(format!("{destination}: there is no {path}"));
    }
    let anchor = anchor?;
    let Some(target) = pages.iter().find(|page| page.path == path) else {
        return Some(format!("{destination}: {path} has no headings"));
    };
    let anchors = target.anchors();
    let Some((_, rustdoc)) = anchors.iter().find(|(github, _)| github == anchor) else {
        let known: Vec<_> = anchors.iter().map(|(github, _)| &**github).collect();
        return Some(format!("{destination}: {path} has only {}", known.join(" ")));
    };
    (target.is_guide() && rustdoc != anchor)
        .then(|| format!("{destination}: in rustdoc the id is {rustdoc}: rename the heading"))
}

/// Whether a destination has a scheme.
fn leads_out(destination: &str) -> bool {
    destination.split('/').next().is_some_and(|scheme| scheme.contains(':'))
}

fn wrong_outside(destination: &str) -> Option<String> {
    let Some(rest) = destination.strip_prefix("https://") else {
        return (!destination.starts_with(EXAMPLE))
            .then(|| format!("{destination}: only https leads out"));
    };
    rest.is_empty().then(|| format!("{destination}: leads nowhere"))
}

/// The path of a link's destination, from the root; empty if it leads out of the checkout.
fn relative_to(page: &str, file: &str) -> Option<String> {
    let mut path = PathBuf::new();
    for part in Path::new(page).parent()?.join(file).components() {
        match part {
            Component::ParentDir if !path.pop() => return Some(String::new()),
            Component::ParentDir | Component::CurDir => {}
            Component::Normal(name) => path.push(name),
            Component::RootDir | Component::Prefix(_) => return Some(String::new()),
        }
    }
    path.into_os_string().into_string().ok()
}

#[test]
fn references_are_defined() {
    check(undefined);
}

fn undefined(page: &Page) -> Wrong {
    let undefined = page.undefined_references().into_iter();
    let wrong = |label| {
        format!("[{label}] has no definition: write one, or \\[{label}\\] for the brackets")
    };
    undefined.map(|(line, label)| (line, wrong(label))).collect()
}

/// A page of the guide is also shown by rustdoc, where its links lead to modules and items. That takes links
/// by reference, to other pages under their own destination as label.
#[test]
fn pages_of_the_guide_link_by_reference() {
    check(|page| if page.is_guide() { wrong_references(page) } else { Vec::new() });
}

fn wrong_references(page: &Page) -> Wrong {
    let links = page.links();
    let mut wrong = Vec::new();
    for link in &links {
        let Link { kind, destination: to, label, .. } = link;
        let what = match kind {
            LinkType::Inline if link.image || !(leads_out(to) || to.starts_with('#')) => {
                format!("write [words][{to}], and at the end [{to}]: {to}")
            }
            LinkType::Collapsed => format!("write [{label}] or [words][{label}]"),
            LinkType::Shortcut if !label.starts_with('`') => format!("write [words][{label}]"),
            _ => continue,
        };
        wrong.push((link.line, what));
    }
    let mut before = Vec::new();
    for (line, label, destination) in page.definitions() {
        if label.starts_with('`') {
            if !destination.starts_with("../src/") {
                wrong.push((line, format!("[{label}] is no item of the library: plain code")));
            }
        } else if label != destination {
            wrong.push((line, format!("write [{destination}]: {destination}, and so in the text")));
        }
        if !links.iter().any(|link| link.label == label) {
            wrong.push((line, format!("[{label}] is not used: remove its definition")));
        }
        // Labels are compared without regard to case.
        let folded = label.to_lowercase();
        if before.contains(&folded) {
            wrong.push((line, format!("[{label}] is defined twice")));
        }
        before.push(folded);
    }
    wrong
}

#[test]
fn items_are_defined_where_the_links_lead() {
    check(wrong_items);
}

fn wrong_items(page: &Page) -> Wrong {
    let items = page.definitions().into_iter().filter(|(_, label, _)| label.starts_with('`'));
    let wrong = |(line, label, file): (usize, String, String)| {
        let path = relative_to(&page.path, &file)?;
        let source = fs::read_to_string(root().join(&path)).unwrap_or_default();
        let item = label.trim_matches('`').trim_end_matches("()").trim_end_matches('!');
        let (owner, name) = item.rsplit_once("::").unwrap_or(("", item));
        // A method, a variant or a field is where its type is named.
        let owner = owner.rsplit("::").next().filter(|it| it.starts_with(char::is_uppercase));
        let found = defines(&source, name, &path) && owner.is_none_or(|it| source.contains(it));
        (!found).then(|| (line, format!("{path} does not define {item}: name the file that does")))
    };
    items.filter_map(wrong).collect()
}

/// Whether a source has a definition of this name: an item, a method, a variant, a field or a module.
fn defines(source: &str, name: &str, path: &str) -> bool {
    if path.ends_with(&format!("/{name}.rs")) || path.ends_with(&format!("/{name}/mod.rs")) {
        return true;
    }
    let mut imports = false;
    source.lines().any(|line| {
        let line = line.trim_start();
        let line = line.trim_start_matches("pub ").trim_start_matches("async ");
        imports |= line.starts_with("use ");
        let imported = imports;
        imports &= !line.contains(';');
        let keyword = ["struct", "enum", "trait", "fn", "type", "const", "mod", "macro_rules!"];
        let rest = keyword.iter().find_map(|word| line.strip_prefix(word)?.strip_prefix(' '));
        let rest = rest.unwrap_or(line).strip_prefix(name);
        let ends = |end: &str| !end.starts_with(|c: char| c.is_alphanumeric() || c == '_');
        !imported && rest.is_some_and(ends)
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{assert_wrong, page};

    fn targets(at: &Page) -> Wrong {
        let others = [
            page("docs/concepts.md", "# Concepts\n\n## Grace\n\n## Settings\n\n## É\n"),
            page("README.md", "# Read\n\n## Help\n"),
            page(&at.path, &at.text),
        ];
        wrong_targets(at, &others)
    }

    #[test]
    fn targets_that_are_wrong() {
        for right in [
            "[a][concepts.md#grace]\n\n[concepts.md#grace]: concepts.md#grace",
            "[a](../README.md#help) [b](#x)\n\n# X",
            "[a](../src) [b](https://www.rfc-editor.org/rfc/rfc6455) <http://127.0.0.1:8080/x>",
            "`[a](gone.md)`\n\n```text output\n[a](gone.md)\n```",
            "![a](images/join.svg)",
        ] {
            assert_wrong(targets, "docs/x.md", right, &[]);
        }
        for wrong in [
            "[a](gone.md)",
            "[a](concepts.md#gone) and ![b](images/gone.svg)",
            // The id is `settings-1` in rustdoc, and `É`.
            "[a](concepts.md#settings)",
            "[a](concepts.md#é)",
            "[a](#x)",
            "[a](../../README.md)",
            "[a](/README.md)",
            "[a](../src/lib.rs#L3)",
            "[a](http://example.com) [b](https://example.com)",
            "<ada@example.com>",
            "[a](mailto:ada@example.com)",
            "<img alt=\"a\" src=\"images/gone.png\">",
        ] {
            let wrong = wrong.replace(" and ", "\n");
            let lines: Vec<_> = (1..=wrong.lines().count()).collect();
            assert_wrong(targets, "docs/x.md", &wrong, &lines);
        }
    }

    #[test]
    fn references_that_are_wrong() {
        let right = "[a][x.md] [`Join`] [the join][`Join`] [b](#c) [d](https://example.com)\n\n\
                     ```toml\n[x]: y\n```\n\n[x.md]: x.md\n[`Join`]: ../src/lib.rs\n";
        assert_wrong(wrong_references, "docs/x.md", right, &[]);
        assert_wrong(undefined, "docs/x.md", right, &[]);
        let inline = "[a](x.md)\n![b](https://example.com/b.png)\n<img src=\"b.png\">\n";
        assert_wrong(wrong_references, "docs/x.md", inline, &[1, 2, 3]);
        let labels = "[x.md]\n[`Join`][]\n[a][y]\n\n[x.md]: x.md\n[y]: x.md\n[`Join`]: https://example.com\n";
        assert_wrong(wrong_references, "docs/x.md", labels, &[1, 2, 6, 7]);
        let definitions = "[a][x.md]\n\n[x.md]: x.md\n[y.md]: y.md\n[X.md]: X.md\n";
        assert_wrong(wrong_references, "docs/x.md", definitions, &[4, 5, 5]);
        let brackets = "[`Gone`] and [a][gone.md]\n\n\\[no\\] `[no]`\n\n- [ ] to do\n";
        assert_wrong(undefined, "docs/x.md", brackets, &[1, 1]);
    }

    #[test]
    fn definitions_of_items() {
        let source = "use crate::{\n    Join,\n};\npub struct Leave;\nenum E {\n    Left,\n}\n\
                      // Gone\npub const fn text() {}\npub type Id = u8;\n    pub room: Id,\nname! {\n    User\n}";
        for name in ["Leave", "E", "Left", "Id", "room", "User"] {
            assert!(defines(source, name, "src/x.rs"), "{name}");
        }
        for name in ["Join", "Leav", "Gone", "ext"] {
            assert!(!defines(source, name, "src/x.rs"), "{name}");
        }
        assert!(defines("", "testing", "src/testing/mod.rs"));
        assert_wrong(wrong_items, "docs/x.md", "[`Gone`]: ../src/lib.rs\n", &[1]);
        assert_wrong(wrong_items, "docs/x.md", "[`Join`]: ../src/messages/membership.rs\n", &[]);
        assert_wrong(
            wrong_items,
            "docs/x.md",
            "[`Gone::new`]: ../src/messages/membership.rs\n",
            &[1],
        );
    }
}

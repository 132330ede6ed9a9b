//! Links and anchors.

use std::path::{Component, Path, PathBuf};

use pulldown_cmark::LinkType;

use crate::{
    check,
    page::{Link, Page, all},
    root,
};

#[test]
fn links_lead_to_files_and_headings() {
    let pages = all();
    check(|page| {
        let links = page.links();
        links
            .iter()
            .filter_map(|link| Some((link.line, wrong_target(page, link, &pages)?)))
            .collect()
    });
}

fn wrong_target(page: &Page, link: &Link, pages: &[Page]) -> Option<String> {
    let destination = &link.destination;
    if destination.contains("://") {
        let known =
            destination.starts_with("https://") || destination.starts_with("http://127.0.0.1:8080");
        return (!known).then(|| format!("{destination}: only https leads out"));
    }
    let (file, anchor) =
        destination.split_once('#').map_or((&**destination, None), |(f, a)| (f, Some(a)));
    let path = if file.is_empty() { page.path.clone() } else { relative_to(&page.path, file) };
    if !root().join(&path).exists() {
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

/// The path of a link's destination, from the root.
fn relative_to(page: &str, file: &str) -> String {
    let mut path = PathBuf::new();
    for part in Path::new(page).parent().unwrap_or(Path::new("")).join(file).components() {
        match part {
            Component::ParentDir => drop(path.pop()),
            part => path.push(part),
        }
    }
    path.to_string_lossy().into_owned()
}

#[test]
fn references_are_defined() {
    check(|page| {
        let undefined = page.undefined_references().into_iter();
        undefined.map(|(line, label)| (line, format!("[{label}] has no definition"))).collect()
    });
}

/// A page of the guide is also shown by rustdoc, where its links lead to modules and items. That takes links
/// by reference, to other pages under their own destination as label.
#[test]
fn pages_of_the_guide_link_by_reference() {
    check(|page| {
        if !page.is_guide() {
            return Vec::new();
        }
        let mut wrong = Vec::new();
        for link in page.links() {
            let outside = link.destination.contains("://") || link.destination.starts_with('#');
            if link.kind == LinkType::Inline && !outside {
                let to = &link.destination;
                wrong
                    .push((link.line, format!("write [words][{to}], and at the end [{to}]: {to}")));
            }
        }
        for (line, label, destination) in page.definitions() {
            if label.starts_with('`') {
                if !destination.starts_with("../src/") {
                    wrong.push((line, format!("[{label}] is no item of the library")));
                }
            } else if label != destination {
                wrong.push((line, format!("the label of {destination} is not itself")));
            }
            let used = page.text.matches(&format!("[{label}]")).count() > 1;
            if !used {
                wrong.push((line, format!("[{label}] is not used")));
            }
        }
        wrong
    });
}

#[test]
fn items_are_defined_where_the_links_lead() {
    check(|page| {
        let items = page.definitions().into_iter().filter(|(_, label, _)| label.starts_with('`'));
        items
            .filter_map(|(line, label, file)| {
                let path = relative_to(&page.path, &file);
                let source = std::fs::read_to_string(root().join(&path)).unwrap_or_default();
                let item = label.trim_matches('`').trim_end_matches("()").trim_end_matches('!');
                let name = item.rsplit("::").next().unwrap_or(item);
                (!defines(&source, name, &path))
                    .then(|| (line, format!("{path} does not define {name}")))
            })
            .collect()
    });
}

/// Whether a source has a definition of this name: an item, a method, a variant, a field or a module.
fn defines(source: &str, name: &str, path: &str) -> bool {
    let is_module =
        path.ends_with(&format!("/{name}.rs")) || path.ends_with(&format!("/{name}/mod.rs"));
    is_module
        || source.lines().any(|line| {
            let line = line.trim_start();
            let line = line.trim_start_matches("pub ").trim_start_matches("async ");
            let keyword = ["struct", "enum", "trait", "fn", "type", "const", "mod", "macro_rules!"];
            let rest = keyword.iter().find_map(|word| line.strip_prefix(word)?.strip_prefix(' '));
            let rest = rest.unwrap_or(line);
            rest.strip_prefix(name)
                .is_some_and(|end| !end.starts_with(|c: char| c.is_alphanumeric() || c == '_'))
        })
}

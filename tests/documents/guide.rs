//! `src/guide/links.md`, which sends the links of the pages to modules and items in rustdoc.

use std::{collections::BTreeMap, fs};

use base64::{Engine, engine::general_purpose::STANDARD};

use crate::{page::all, root};

const FILE: &str = "src/guide/links.md";

#[test]
fn the_links_of_the_guide_are_those_of_its_pages() {
    let mut links = BTreeMap::new();
    for page in all().iter().filter(|page| page.is_guide()) {
        for (_, label, destination) in page.definitions() {
            links.insert(label.clone(), in_rustdoc(&label, &destination));
        }
    }
    // All pages include all definitions, and labels are compared without regard to case.
    let mut folded = BTreeMap::new();
    for label in links.keys() {
        let other = folded.insert(label.to_lowercase(), label);
        assert!(other.is_none(), "{label} and {other:?} are one label: name one with its module");
    }
    let mut expected = String::new();
    for (label, target) in links {
        expected.push_str(&format!("[{label}]: {target}\n"));
    }
    expected.push('\n');
    if std::env::var_os("UPDATE").is_some() {
        fs::write(root().join(FILE), &expected).expect("the file can be written");
    }
    let found = fs::read_to_string(root().join(FILE)).unwrap_or_default();
    assert!(
        found == expected,
        "{FILE} is not up to date: UPDATE=1 cargo test --test documents writes it"
    );
}

/// Without its module, the examples of a page are no doctests.
#[test]
fn every_page_has_a_module_in_the_guide() {
    let modules = fs::read_to_string(root().join("src/guide/mod.rs")).expect("the guide exists");
    let modules: Vec<_> = modules.lines().map(str::trim).collect();
    for page in all().iter().filter(|page| page.is_guide()) {
        let name = page.path.trim_start_matches("docs/");
        let line = format!("{} {name:?}", module(name));
        assert!(modules.contains(&&*line), "src/guide/mod.rs: add {line} to the pages");
    }
}

/// The module of a page.
fn module(file: &str) -> String {
    file.trim_end_matches(".md").replace('-', "_")
}

/// Where a label leads in rustdoc.
fn in_rustdoc(label: &str, destination: &str) -> String {
    if label.starts_with('`') {
        return format!("crate::{}", label.trim_matches('`'));
    }
    for (end, kind) in [(".svg", "svg+xml"), (".png", "png")] {
        if destination.ends_with(end) {
            let path = format!("docs/{destination}");
            let bytes = fs::read(root().join(&path)).unwrap_or_else(|e| panic!("{path}: {e}"));
            return format!("data:image/{kind};base64,{}", STANDARD.encode(bytes));
        }
    }
    let (file, anchor) =
        destination.split_once('#').map_or((destination, None), |(f, a)| (f, Some(a)));
    let anchor = anchor.map(|anchor| format!("#{anchor}")).unwrap_or_default();
    format!("crate::guide::{}{anchor}", module(file))
}

#[test]
fn labels_lead_to_items_and_modules() {
    assert_eq!(in_rustdoc("`Join::new`", "../src/x.rs"), "crate::Join::new");
    assert_eq!(in_rustdoc("`store_contract!`", "../src/x.rs"), "crate::store_contract!");
    assert_eq!(in_rustdoc("http-api.md", "http-api.md"), "crate::guide::http_api");
    let label = "http-api.md#errors";
    assert_eq!(in_rustdoc(label, label), "crate::guide::http_api#errors");
}

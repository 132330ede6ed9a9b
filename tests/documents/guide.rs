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

/// Where a label leads in rustdoc.
fn in_rustdoc(label: &str, destination: &str) -> String {
    if label.starts_with('`') {
        return format!("crate::{}", label.trim_matches('`').trim_end_matches('!'));
    }
    if let Some(image) = destination.strip_suffix(".svg") {
        let bytes = fs::read(root().join(format!("docs/{image}.svg"))).expect("the image exists");
        return format!("data:image/svg+xml;base64,{}", STANDARD.encode(bytes));
    }
    let (file, anchor) =
        destination.split_once('#').map_or((destination, None), |(f, a)| (f, Some(a)));
    let module = file.trim_end_matches(".md").replace('-', "_");
    let anchor = anchor.map(|anchor| format!("#{anchor}")).unwrap_or_default();
    format!("crate::guide::{module}{anchor}")
}

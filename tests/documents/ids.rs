//! The ids of headings, which anchors lead to.

use std::collections::HashMap;

/// GitHub's ids: lower case, without punctuation, with a hyphen for each space.
#[derive(Default)]
pub struct GitHub(HashMap<String, usize>);

impl GitHub {
    pub fn id(&mut self, heading: &str) -> String {
        let lower = heading.trim().to_lowercase();
        // Of the digits only the decimal ones: not `²`.
        let kept = lower
            .chars()
            .filter(|&c| c.is_alphabetic() || c.is_ascii_digit() || matches!(c, ' ' | '-' | '_'));
        let id: String = kept.map(|c| if c == ' ' { '-' } else { c }).collect();
        let count = self.0.entry(id.clone()).or_default();
        *count += 1;
        if *count == 1 { id } else { format!("{id}-{}", *count - 1) }
    }
}

/// Rustdoc's ids. The differences: only ASCII becomes lower case, all digits stay, `--` is a dash by
/// then, and some ids belong to its own pages.
#[derive(Default)]
pub struct Rustdoc(HashMap<String, usize>);

impl Rustdoc {
    /// Takes a heading that was parsed with smart punctuation.
    pub fn id(&mut self, heading: &str) -> String {
        let kept = heading.trim().chars().filter_map(|c| match c {
            '-' | '_' => Some(c),
            c if c.is_alphanumeric() => Some(c.to_ascii_lowercase()),
            c if c.is_ascii_whitespace() => Some('-'),
            _ => None,
        });
        let plain: String = kept.collect();
        let taken = usize::from(RESERVED.contains(&&*plain));
        let count = self.0.entry(plain.clone()).or_insert(taken);
        let id = if *count == 0 { plain } else { format!("{plain}-{count}") };
        *count += 1;
        // A heading that reads like an id with a number gets another number.
        self.0.entry(id.clone()).or_insert(1);
        id
    }
}

/// Ids that rustdoc keeps for its own pages.
const RESERVED: [&str; 43] = [
    "aliased-type",
    "all-types",
    "alternative-display",
    "blanket-implementations",
    "blanket-implementations-list",
    "copy-path",
    "crate-search",
    "crate-search-div",
    "default-settings",
    "deref-methods",
    "dyn-compatibility",
    "fields",
    "foreign-impls",
    "help",
    "help-button",
    "implementations",
    "implementations-list",
    "implementors",
    "implementors-list",
    "layout",
    "main-content",
    "not-displayed",
    "provided-associated-consts",
    "provided-associated-types",
    "provided-methods",
    "required-associated-consts",
    "required-associated-types",
    "required-methods",
    "rustdoc-modnav",
    "rustdoc-toc",
    "search",
    "settings",
    "settings-menu",
    "sidebar-button",
    "sidebar-vars",
    "synthetic-implementations",
    "synthetic-implementations-list",
    "synthetic-implementors",
    "synthetic-implementors-list",
    "toggle-all-docs",
    "trait-implementations",
    "trait-implementations-list",
    "variants",
];

#[cfg(test)]
mod tests {
    fn anchors(heading: &str) -> (String, String) {
        crate::page("docs/x.md", &format!("# {heading}\n")).anchors().remove(0)
    }

    #[test]
    fn headings_have_the_same_id_on_github_and_in_rustdoc() {
        for (heading, id) in [
            ("A join, step by step", "a-join-step-by-step"),
            ("What `max_age` is", "what-max_age-is"),
            ("`--max-age` and others", "--max-age-and-others"),
            ("1,000,000 on one machine", "1000000-on-one-machine"),
            ("Room & user", "room--user"),
            ("Flags - all", "flags---all"),
            ("A big – heading", "a-big--heading"),
            ("Who (really)? It's \"Ada\"…", "who-really-its-ada"),
            ("*Two* [words](https://example.com)", "two-words"),
            ("`/api/rooms`", "apirooms"),
            ("café", "café"),
        ] {
            assert_eq!(anchors(heading), (id.to_owned(), id.to_owned()), "{heading}");
        }
    }

    #[test]
    fn headings_whose_ids_differ() {
        for (heading, github, rustdoc) in [
            ("É", "é", "É"),
            ("m²", "m", "m²"),
            ("a -- b", "a----b", "a--b"),
            ("Settings", "settings", "settings-1"),
            ("Help", "help", "help-1"),
        ] {
            assert_eq!(anchors(heading), (github.to_owned(), rustdoc.to_owned()), "{heading}");
        }
    }

    #[test]
    fn a_second_heading_of_the_same_text_gets_a_number() {
        let page = crate::page("docs/x.md", "# A\n\n## B\n\n## B\n\n## B-1\n\n## B\n");
        let rustdoc: Vec<_> = page.anchors().into_iter().map(|(_, id)| id).collect();
        assert_eq!(rustdoc, ["a", "b", "b-1", "b-1-1", "b-2"]);
        let github: Vec<_> = page.anchors().into_iter().map(|(id, _)| id).collect();
        assert_eq!(github[..3], ["a", "b", "b-1"]);
    }
}

//! A document, parsed.

use std::{collections::HashMap, fs, ops::Range};

use pulldown_cmark::{CodeBlockKind, Event, LinkType, Options, Parser, Tag, TagEnd};

use crate::root;

/// A document of the repository.
pub struct Page {
    /// From the root, with slashes.
    pub path: String,
    pub text: String,
}

/// A link or an image.
pub struct Link {
    pub line: usize,
    pub kind: LinkType,
    pub destination: String,
}

impl Page {
    pub fn read(path: &str) -> Self {
        let text =
            fs::read_to_string(root().join(path)).unwrap_or_else(|error| panic!("{path}: {error}"));
        Self { path: path.to_owned(), text }
    }

    /// Whether it is a page of `docs/`, which rustdoc shows as well.
    pub fn is_guide(&self) -> bool {
        self.path.strip_prefix("docs/").is_some_and(|name| !name.contains('/'))
    }

    /// Whether people read it from top to bottom.
    pub fn is_prose(&self) -> bool {
        self.path != "CHANGELOG.md"
    }

    fn parser(&self) -> impl Iterator<Item = (Event<'_>, Range<usize>)> {
        let options = Options::ENABLE_TABLES | Options::ENABLE_STRIKETHROUGH;
        Parser::new_ext(&self.text, options).into_offset_iter()
    }

    pub fn line(&self, offset: usize) -> usize {
        self.text[..offset].matches('\n').count() + 1
    }

    /// The links and images whose destination is known.
    pub fn links(&self) -> Vec<Link> {
        let link = |(event, at): (Event<'_>, Range<usize>)| match event {
            Event::Start(
                Tag::Link { link_type, dest_url, .. } | Tag::Image { link_type, dest_url, .. },
            ) => Some(Link {
                line: self.line(at.start),
                kind: link_type,
                destination: dest_url.into_string(),
            }),
            _ => None,
        };
        self.parser().filter_map(link).collect()
    }

    /// What looks like a link by reference and has no definition: GitHub shows its brackets.
    pub fn undefined_references(&self) -> Vec<(usize, String)> {
        let mut found = Vec::new();
        let mut callback = |link: pulldown_cmark::BrokenLink<'_>| {
            found.push((self.line(link.span.start), link.reference.to_string()));
            None
        };
        Parser::new_with_broken_link_callback(
            &self.text,
            Options::ENABLE_TABLES,
            Some(&mut callback),
        )
        .for_each(drop);
        found
    }

    /// The definitions of labels: line, label, destination.
    pub fn definitions(&self) -> Vec<(usize, String, String)> {
        let definition = |(at, line): (usize, &str)| {
            let (label, destination) = line.strip_prefix('[')?.split_once("]: ")?;
            Some((at + 1, label.to_owned(), destination.to_owned()))
        };
        self.text.lines().enumerate().filter_map(definition).collect()
    }

    /// The code blocks: line, and the words after the fence.
    pub fn fences(&self) -> Vec<(usize, String)> {
        let fence = |(event, at): (Event<'_>, Range<usize>)| match event {
            Event::Start(Tag::CodeBlock(CodeBlockKind::Fenced(info))) => {
                Some((self.line(at.start), info.into_string()))
            }
            Event::Start(Tag::CodeBlock(CodeBlockKind::Indented)) => {
                Some((self.line(at.start), String::new()))
            }
            _ => None,
        };
        self.parser().filter_map(fence).collect()
    }

    /// Inline code: line and text.
    pub fn codes(&self) -> Vec<(usize, String)> {
        let code = |(event, at): (Event<'_>, Range<usize>)| match event {
            Event::Code(code) => Some((self.line(at.start), code.into_string())),
            _ => None,
        };
        self.parser().filter_map(code).collect()
    }

    /// The paragraphs outside tables: line, and characters as they are read.
    pub fn paragraphs(&self) -> Vec<(usize, usize)> {
        let (mut found, mut at, mut length) = (Vec::new(), None, 0);
        for (event, range) in self.parser() {
            match event {
                Event::Start(Tag::Paragraph) => (at, length) = (Some(range.start), 0),
                Event::Text(text) | Event::Code(text) => length += text.chars().count(),
                Event::End(TagEnd::Paragraph) => {
                    found.extend(at.take().map(|at| (self.line(at), length)));
                }
                _ => {}
            }
        }
        found
    }

    /// The ids of the headings, with GitHub's and with rustdoc's.
    pub fn anchors(&self) -> Vec<(String, String)> {
        let (mut github, mut rustdoc) = (Ids::default(), Ids::default());
        let (mut found, mut heading) = (Vec::new(), None::<String>);
        for (event, _) in self.parser() {
            match (event, &mut heading) {
                (Event::Start(Tag::Heading { .. }), _) => heading = Some(String::new()),
                (Event::Text(text) | Event::Code(text), Some(heading)) => heading.push_str(&text),
                (Event::End(TagEnd::Heading(_)), _) => {
                    let text = heading.take().unwrap_or_default();
                    found
                        .push((github.unique(github_id(&text)), rustdoc.unique(rustdoc_id(&text))));
                }
                _ => {}
            }
        }
        found
    }
}

/// All documents: those at the root, and those of `docs/`.
pub fn all() -> Vec<Page> {
    let mut pages = Vec::new();
    for directory in ["", "docs", "docs/decisions"] {
        let entries = fs::read_dir(root().join(directory))
            .unwrap_or_else(|error| panic!("{directory}: {error}"));
        for entry in entries {
            let name =
                entry.expect("a directory can be read").file_name().into_string().expect("UTF-8");
            if name.ends_with(".md") {
                pages.push(Page::read(format!("{directory}/{name}").trim_start_matches('/')));
            }
        }
    }
    pages.sort_by(|a, b| a.path.cmp(&b.path));
    for expected in ["README.md", "ARCHITECTURE.md", "docs/concepts.md"] {
        assert!(pages.iter().any(|page| page.path == expected), "{expected} is missing");
    }
    pages
}

/// Ids of headings: a second one of the same text gets a number.
#[derive(Default)]
struct Ids(HashMap<String, usize>);

impl Ids {
    fn unique(&mut self, id: String) -> String {
        let count = self.0.entry(id.clone()).or_default();
        *count += 1;
        if *count == 1 { id } else { format!("{id}-{}", *count - 1) }
    }
}

/// The id that GitHub gives a heading: lower case, without punctuation, with a hyphen for each space.
pub fn github_id(heading: &str) -> String {
    let lower = heading.trim().to_lowercase();
    let kept = lower.chars().filter(|c| c.is_alphanumeric() || matches!(c, ' ' | '-' | '_'));
    kept.map(|c| if c == ' ' { '-' } else { c }).collect()
}

/// The id that rustdoc gives it: letters and digits of ASCII in lower case, `-` and `_`, a hyphen for each
/// space; what follows no such character has no leading hyphen.
pub fn rustdoc_id(heading: &str) -> String {
    let id: String = heading
        .trim()
        .chars()
        .filter_map(|c| match c {
            'A'..='Z' | 'a'..='z' | '0'..='9' | '-' | '_' => Some(c.to_ascii_lowercase()),
            c if c.is_alphanumeric() => Some(c),
            c if c.is_whitespace() => Some('-'),
            _ => None,
        })
        .collect();
    id.trim_start_matches('-').to_owned()
}

#[test]
fn ids_of_headings() {
    for (heading, id) in [
        ("A join, step by step", "a-join-step-by-step"),
        ("What `max_age` is", "what-max_age-is"),
        ("1,000,000 on one machine", "1000000-on-one-machine"),
        ("Room & user", "room--user"),
        ("Flags - all", "flags---all"),
    ] {
        assert_eq!(github_id(heading), id);
        assert_eq!(rustdoc_id(heading), id);
    }
    assert_ne!(github_id("Größe É"), rustdoc_id("Größe É"), "they differ outside ASCII");
    let twice = Page { path: "x.md".to_owned(), text: "# A\n\n# A\n".to_owned() };
    assert_eq!(twice.anchors()[1], ("a-1".to_owned(), "a-1".to_owned()));
}

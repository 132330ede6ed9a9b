//! A document, parsed.

use std::{fs, ops::Range};

use pulldown_cmark::{BrokenLink, CodeBlockKind, Event, LinkType, Options, Parser, Tag, TagEnd};

use crate::{ids, root};

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
    pub image: bool,
    pub destination: String,
    /// Of a link by reference.
    pub label: String,
}

/// A block of code.
pub struct Block {
    pub line: usize,
    /// The words after the fence.
    pub info: String,
    /// The lines with their fences; an indented block has none.
    pub source: String,
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

    /// Whether the blocks of code are run.
    pub fn is_run(&self) -> bool {
        self.is_guide() || self.path == "README.md"
    }

    /// Whether people read it from top to bottom.
    pub fn is_prose(&self) -> bool {
        self.path != "CHANGELOG.md"
    }

    fn events(&self) -> impl Iterator<Item = (Event<'_>, Range<usize>)> {
        Parser::new_ext(&self.text, options()).into_offset_iter()
    }

    pub fn line(&self, offset: usize) -> usize {
        self.text[..offset].matches('\n').count() + 1
    }

    /// The links and images whose destination is known, those in HTML included.
    pub fn links(&self) -> Vec<Link> {
        let mut found = Vec::new();
        for (event, at) in self.events() {
            let line = self.line(at.start);
            let image = matches!(event, Event::Start(Tag::Image { .. }));
            match event {
                Event::Start(
                    Tag::Link { link_type: kind, dest_url, id, .. }
                    | Tag::Image { link_type: kind, dest_url, id, .. },
                ) => found.push(Link {
                    line,
                    kind,
                    image,
                    destination: dest_url.into_string(),
                    label: id.into_string(),
                }),
                Event::Html(html) | Event::InlineHtml(html) => {
                    found.extend(html_destinations(&html).map(|destination| Link {
                        line,
                        kind: LinkType::Inline,
                        image: false,
                        destination: destination.to_owned(),
                        label: String::new(),
                    }));
                }
                _ => {}
            }
        }
        found
    }

    /// What looks like a link by reference and has no definition: GitHub shows its brackets.
    pub fn undefined_references(&self) -> Vec<(usize, String)> {
        let mut found = Vec::new();
        let mut callback = |link: BrokenLink<'_>| {
            found.push((self.line(link.span.start), link.reference.to_string()));
            None
        };
        Parser::new_with_broken_link_callback(&self.text, options(), Some(&mut callback))
            .for_each(drop);
        found
    }

    /// The definitions of labels: line, label, destination. Several of one label are all here.
    pub fn definitions(&self) -> Vec<(usize, String, String)> {
        let code =
            self.events().filter(|(event, _)| matches!(event, Event::Start(Tag::CodeBlock(_))));
        let code: Vec<_> = code.map(|(_, at)| self.line(at.start)..self.line(at.end)).collect();
        let definition = |(at, line): (usize, &str)| {
            let (label, destination) = line.strip_prefix('[')?.split_once("]: ")?;
            (!code.iter().any(|lines| lines.contains(&(at + 1))))
                .then(|| (at + 1, label.to_owned(), destination.to_owned()))
        };
        self.text.lines().enumerate().filter_map(definition).collect()
    }

    pub fn blocks(&self) -> Vec<Block> {
        let block = |(event, at): (Event<'_>, Range<usize>)| {
            let Event::Start(Tag::CodeBlock(kind)) = event else { return None };
            let info = match kind {
                CodeBlockKind::Fenced(info) => info.into_string(),
                CodeBlockKind::Indented => String::new(),
            };
            // With what stands before the fence in its line.
            let start = self.text[..at.start].rfind('\n').map_or(0, |end| end + 1);
            let source = self.text[start..at.end].trim_end_matches('\n').to_owned();
            Some(Block { line: self.line(at.start), info, source })
        };
        self.events().filter_map(block).collect()
    }

    /// The comments in HTML: line and text.
    pub fn comments(&self) -> Vec<(usize, String)> {
        let comment = |(event, at): (Event<'_>, Range<usize>)| match event {
            Event::Html(html) | Event::InlineHtml(html) if html.contains("<!--") => {
                Some((self.line(at.start), html.into_string()))
            }
            _ => None,
        };
        self.events().filter_map(comment).collect()
    }

    /// Inline code: line and text.
    pub fn codes(&self) -> Vec<(usize, String)> {
        let code = |(event, at): (Event<'_>, Range<usize>)| match event {
            Event::Code(code) => Some((self.line(at.start), code.into_string())),
            _ => None,
        };
        self.events().filter_map(code).collect()
    }

    /// The paragraphs outside tables, and the items of lists: line, and characters as they are read.
    pub fn paragraphs(&self) -> Vec<(usize, usize)> {
        let (mut found, mut open) = (Vec::new(), Vec::new());
        for (event, at) in self.events() {
            match event {
                Event::Start(Tag::Paragraph | Tag::Item) => open.push((self.line(at.start), 0)),
                Event::End(TagEnd::Paragraph | TagEnd::Item) => found.extend(open.pop()),
                // A block within an item is none of its text.
                Event::Start(Tag::CodeBlock(_) | Tag::Table(_)) => open.push((0, 0)),
                Event::End(TagEnd::CodeBlock | TagEnd::Table) => drop(open.pop()),
                Event::Text(text) | Event::Code(text) => {
                    if let Some((_, length)) = open.last_mut() {
                        *length += text.chars().count();
                    }
                }
                Event::SoftBreak | Event::HardBreak => {
                    if let Some((_, length)) = open.last_mut() {
                        *length += 1;
                    }
                }
                _ => {}
            }
        }
        found
    }

    /// The texts of the headings.
    fn headings(&self, options: Options) -> Vec<String> {
        let (mut found, mut heading) = (Vec::new(), None::<String>);
        for event in Parser::new_ext(&self.text, options) {
            match (event, &mut heading) {
                (Event::Start(Tag::Heading { .. }), _) => heading = Some(String::new()),
                (Event::Text(text) | Event::Code(text), Some(heading)) => heading.push_str(&text),
                (Event::End(TagEnd::Heading(_)), _) => found.extend(heading.take()),
                _ => {}
            }
        }
        found
    }

    /// The ids of the headings, with GitHub and with rustdoc.
    pub fn anchors(&self) -> Vec<(String, String)> {
        let (mut github, mut rustdoc) = (ids::GitHub::default(), ids::Rustdoc::default());
        let on_github = self.headings(options()).into_iter().map(|text| github.id(&text));
        let in_rustdoc = self.headings(options() | Options::ENABLE_SMART_PUNCTUATION).into_iter();
        on_github.zip(in_rustdoc.map(|text| rustdoc.id(&text))).collect()
    }
}

/// What GitHub and rustdoc both know beyond CommonMark.
fn options() -> Options {
    Options::ENABLE_TABLES
        | Options::ENABLE_STRIKETHROUGH
        | Options::ENABLE_FOOTNOTES
        | Options::ENABLE_TASKLISTS
}

/// The values of `src="…"` and `href="…"`.
fn html_destinations(html: &str) -> impl Iterator<Item = &str> {
    let quoted = |name| html.split(name).skip(1).filter_map(|rest| rest.split('"').next());
    quoted(" src=\"").chain(quoted(" href=\""))
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

#[test]
fn paragraphs_and_items_are_measured_without_what_they_contain() {
    let text = "12345\n7\n\n- `123`4 [5][x]\n  - 12\n\n| a |\n|---|\n| b |\n\n1. 123\n\n   ```x\n   y\n   ```\n\n[x]: y\n";
    let mut found = crate::page("docs/x.md", text).paragraphs();
    found.retain(|(_, length)| *length > 0);
    found.sort_unstable();
    assert_eq!(found, [(1, 7), (4, 6), (5, 2), (11, 3)]);
}

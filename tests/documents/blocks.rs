//! Code blocks.

use crate::{
    Wrong, check,
    page::{Block, Page},
    root,
};

/// Each is compiled or run by a test, or marked as output.
#[test]
fn blocks_are_of_a_kind_that_is_tested() {
    check(|page| {
        let blocks = page.blocks().into_iter();
        blocks.filter_map(|block| Some((block.line, wrong_kind(page, &block)?))).collect()
    });
}

fn wrong_kind(page: &Page, block: &Block) -> Option<String> {
    let words: Vec<_> = block.info.split_whitespace().collect();
    match words[..] {
        ["text" | "json", "output"] => None,
        ["console", "held-by", path] => (!root().join(path).exists())
            .then(|| format!("there is no {path} that does what this block does")),
        ["rust" | "rust,no_run" | "rust,should_panic" | "rust,compile_fail"]
        | ["console" | "js" | "sql"]
        | ["text", "frames"] => (!page.is_run()).then(|| {
            "only the blocks of README.md and docs/*.md are run: use text output or console held-by PATH"
                .to_owned()
        }),
        ["toml"] => (!["README.md", "docs/embedding.md"].contains(&&*page.path)).then(|| {
            "dependencies are tried in README.md and docs/embedding.md only: use text output"
                .to_owned()
        }),
        _ => Some(format!(
            "a block of kind {:?}: use rust, console, js, sql or text frames, which are run, or mark it as output (text output, json output, console held-by PATH)",
            block.info
        )),
    }
}

/// The runner of `server/tests/docs` reads lines: it finds neither a block in a list nor other fences.
#[test]
fn blocks_begin_and_end_where_the_runner_looks() {
    check(wrong_fences);
}

fn wrong_fences(page: &Page) -> Wrong {
    let mut wrong = Vec::new();
    for block in page.blocks() {
        // It does not look for output.
        let is_output = block.info.ends_with(" output") || block.info.contains(" held-by ");
        if is_output && block.source.starts_with(' ') {
            continue;
        }
        let ticks = block.source.len() - block.source.trim_start_matches('`').len();
        let last = block.source.lines().last().unwrap_or_default();
        if ticks < 3 || last != &block.source[..ticks] {
            let what =
                "write the block with fences of ``` at the beginning of a line, outside a list";
            wrong.push((block.line, what.to_owned()));
        }
    }
    wrong
}

#[test]
fn comments_for_the_runner_are_of_its_form() {
    check(wrong_comments);
}

fn wrong_comments(page: &Page) -> Wrong {
    let comments = page.comments().into_iter().filter(|(_, comment)| {
        let text = comment.trim_start().trim_start_matches("<!--").trim_start();
        page.is_run() && text.starts_with("server")
    });
    let mut wrong = Vec::new();
    for (line, comment) in comments {
        let source = page.text.lines().nth(line - 1).unwrap_or_default();
        let is_read = source.starts_with("<!-- server: ") && source.ends_with(" -->");
        if !is_read {
            let comment = comment.trim();
            wrong.push((
                line,
                format!("{comment}: write <!-- server: FLAGS -->, alone in its line"),
            ));
        }
    }
    wrong
}

/// Rustdoc hides lines that begin with `# `, GitHub shows them.
#[test]
fn no_line_of_rust_is_hidden() {
    check(hidden_lines);
}

fn hidden_lines(page: &Page) -> Wrong {
    let mut wrong = Vec::new();
    for block in page.blocks().into_iter().filter(|block| block.info.starts_with("rust")) {
        for (at, line) in block.source.lines().enumerate() {
            if line.trim() == "#" || line.trim_start().starts_with("# ") {
                let what = "GitHub shows this hidden line: write a whole function or program";
                wrong.push((block.line + at, what.to_owned()));
            }
        }
    }
    wrong
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::assert_wrong;

    fn kinds(page: &Page) -> Wrong {
        let blocks = page.blocks().into_iter();
        blocks.filter_map(|block| Some((block.line, wrong_kind(page, &block)?))).collect()
    }

    #[test]
    fn kinds_of_blocks() {
        let with = |info: &str| format!("```{info}\nx\n```\n");
        for info in ["rust", "rust,no_run", "console", "console held-by tests/run", "text frames"] {
            assert_wrong(kinds, "docs/x.md", &with(info), &[]);
        }
        for info in ["", "bash", "rust,ignore", "text", "json", "js output", "text output more"] {
            assert_wrong(kinds, "docs/x.md", &with(info), &[1]);
        }
        for info in ["console held-by", "console held-by tests/gone", "toml", "nginx"] {
            assert_wrong(kinds, "docs/x.md", &with(info), &[1]);
        }
        assert_wrong(kinds, "docs/x.md", "words\n\n    indented\n", &[3]);
        // Nothing runs these.
        for info in ["rust", "console", "js", "sql", "text frames", "toml"] {
            assert_wrong(kinds, "CONTRIBUTING.md", &with(info), &[1]);
        }
        assert_wrong(kinds, "docs/decisions/x.md", &with("text output"), &[]);
    }

    #[test]
    fn fences() {
        assert_wrong(wrong_fences, "docs/x.md", "````text output\n```\n````\n", &[]);
        assert_wrong(wrong_fences, "docs/x.md", "- a\n\n  ```console\n  $ true\n  ```\n", &[3]);
        assert_wrong(wrong_fences, "docs/x.md", "- a\n\n  ```text output\n  b\n  ```\n", &[]);
        assert_wrong(wrong_fences, "docs/x.md", "> ```console\n> $ true\n> ```\n", &[1]);
        assert_wrong(wrong_fences, "docs/x.md", "~~~console\n$ true\n~~~\n", &[1]);
        assert_wrong(wrong_fences, "docs/x.md", "```console\n$ true\n````\n", &[1]);
        assert_wrong(wrong_fences, "docs/x.md", "```console\n$ true\n", &[1]);
    }

    #[test]
    fn comments() {
        assert_wrong(wrong_comments, "docs/x.md", "<!-- server: --grace 2s -->\n", &[]);
        assert_wrong(wrong_comments, "docs/x.md", "a\n\n<!--server: none-->\n", &[3]);
        assert_wrong(wrong_comments, "docs/x.md", "<!-- server --grace 2s -->\n", &[1]);
        assert_wrong(wrong_comments, "docs/x.md", "a <!-- server: none -->\n", &[1]);
        assert_wrong(wrong_comments, "ARCHITECTURE.md", "<!-- server modules -->\n", &[]);
    }

    #[test]
    fn hidden() {
        let text = "```rust\n#[test]\nfn f() {\n# let x = 1;\n#\n}\n```\n\n```console\n# x\n```\n";
        assert_wrong(hidden_lines, "docs/x.md", text, &[4, 5]);
    }
}

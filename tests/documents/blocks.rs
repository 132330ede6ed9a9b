//! Code blocks.

use crate::{check, root};

/// Each is compiled or run by a test, or marked as output.
#[test]
fn blocks_are_of_a_kind_that_is_tested() {
    check(|page| {
        let fences = page.fences().into_iter();
        fences.filter_map(|(line, info)| Some((line, wrong(&info)?))).collect()
    });
}

fn wrong(info: &str) -> Option<String> {
    let mut words = info.split_whitespace();
    let (kind, attribute) = (words.next().unwrap_or_default(), words.next());
    if (kind, attribute) == ("console", Some("held-by")) {
        let path = words.next().unwrap_or_default();
        let exists = !path.is_empty() && root().join(path).exists();
        return (!exists).then(|| format!("there is no {path} that does what this block does"));
    }
    let known = matches!(
        (kind, attribute),
        ("rust" | "rust,no_run" | "rust,should_panic" | "rust,compile_fail", None)
            | ("console" | "js" | "sql" | "toml", None)
            | ("text", Some("frames" | "output"))
            | ("json", Some("output"))
    );
    (!known).then(|| {
        format!(
            "a block of kind {info:?}: use rust, console, js, sql or text frames, which are run, or mark it as output (text output, json output, console held-by PATH)"
        )
    })
}

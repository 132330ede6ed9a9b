//! The page about running a server names every flag, every metric, and the tests of its bounds.

use std::{
    collections::{BTreeMap, BTreeSet},
    fs,
    path::Path,
};

use crate::harness::{Server, success};

const PAGE: &str = include_str!("../../../docs/server.md");

/// The page's text from this heading to the next one of the same level.
fn section(heading: &str) -> &'static str {
    let level = heading.split(' ').next().unwrap_or_default();
    let text = PAGE.split_once(&format!("\n{heading}\n"));
    let (_, text) = text.unwrap_or_else(|| panic!("the page has no `{heading}`"));
    let is_next = |line: &&str| line.starts_with('#') && line.find(' ') <= Some(level.len());
    let end = text.lines().find(is_next).and_then(|line| text.find(&format!("\n{line}\n")));
    &text[..end.unwrap_or(text.len())]
}

/// The cells of the tables of a text, without their heads.
fn rows(text: &str) -> Vec<Vec<&str>> {
    let lines: Vec<_> = text.lines().collect();
    let is_head = |at: usize| lines.get(at + 1).is_some_and(|next| next.starts_with("|--"));
    let rows = lines
        .iter()
        .enumerate()
        .filter(|(at, line)| line.starts_with('|') && !line.starts_with("|--") && !is_head(*at));
    rows.map(|(_, line)| line.trim_matches('|').split('|').map(str::trim).collect()).collect()
}

/// The texts between backticks.
fn quoted(cell: &str) -> Vec<&str> {
    cell.split('`').skip(1).step_by(2).collect()
}

/// The flags that the help of a command lists, with their defaults and whether they take a value.
fn flags_of(command: &str) -> BTreeMap<String, (Option<String>, bool)> {
    let help = success(&[command, "--help"]);
    let lines = help.lines().map(str::trim).filter(|line| line.starts_with("--"));
    let flags = lines.map(|line| {
        let (flag, rest) = line.split_once(' ').unwrap();
        let default = rest.split_once("[default: ").map(|(_, rest)| {
            // An address of IPv6 has brackets as well.
            let end = rest.match_indices(']').map(|(at, _)| at);
            let mut end =
                end.filter(|at| [None, Some(' ')].contains(&rest[at + 1..].chars().next()));
            rest[..end.next().unwrap()].to_owned()
        });
        (flag.to_owned(), (default, rest.starts_with('<')))
    });
    flags.collect()
}

#[test]
fn the_flags_of_serve_are_the_rows_of_the_table_with_their_defaults() {
    let flags = flags_of("serve");
    assert!(flags.len() > 20, "{flags:?}");
    let table = section("## Flags").split("\n### ").next().unwrap();
    let mut told = BTreeSet::new();
    for row in rows(table) {
        let [flag, default, text] = row[..] else { panic!("{row:?}") };
        let flag = flag.trim_matches('`');
        let Some((expected, takes_value)) = flags.get(flag) else { panic!("no flag {flag}") };
        let expected = match (expected.as_deref(), takes_value) {
            (Some(default), _) => default,
            (None, true) => "none",
            (None, false) => "off",
        };
        assert_eq!(default.trim_matches('`'), expected, "the default of {flag}");
        assert!(text.len() > 20, "{flag}: {text}");
        assert!(told.insert(flag.to_owned()), "{flag} is there twice");
    }
    assert_eq!(told, flags.into_keys().collect());
}

#[test]
fn the_other_commands_and_their_flags_are_in_their_table() {
    let help = success(&["--help"]);
    let commands = help.split_once("Commands:\n").unwrap().1.split("\n\n").next().unwrap();
    let commands = commands.lines().filter_map(|line| line.split_whitespace().next());
    let commands: BTreeSet<_> = commands.filter(|it| !["serve", "help"].contains(it)).collect();
    let mut told = BTreeSet::new();
    for row in rows(section("### The other commands")) {
        let [command, _, flags] = row[..] else { panic!("{row:?}") };
        let command = command.trim_matches('`').strip_prefix("presence ").unwrap();
        told.insert(command);
        let named: BTreeSet<_> = quoted(flags).into_iter().map(str::to_owned).collect();
        assert_eq!(named, flags_of(command).into_keys().collect(), "{command}");
    }
    assert_eq!(told, commands);
}

/// The names of metrics that the page's table has.
fn documented_metrics() -> BTreeSet<&'static str> {
    let table = rows(section("## Metrics"));
    let names: BTreeSet<_> = table.iter().map(|row| row[0].trim_matches('`')).collect();
    assert_eq!(names.len(), table.len(), "a metric is there twice");
    names
}

#[tokio::test]
async fn the_metrics_that_a_server_shows_are_the_rows_of_the_table() {
    let server = Server::start(&[]);
    let mut ada = server.ws("/ws/lobby?user=ada").await;
    ada.sees(&["ada"], 0).await;
    let text = server.get("/metrics").await.body;
    let shown: BTreeSet<_> = text
        .lines()
        .filter(|line| !line.starts_with('#'))
        .filter_map(|line| line.split(['{', ' ']).next())
        .filter(|name| !name.is_empty())
        .collect();
    assert!(shown.len() > 30, "{shown:?}");
    let documented = documented_metrics();
    let unknown: Vec<_> = shown.difference(&documented).collect();
    assert!(unknown.is_empty(), "not on the page: {unknown:?}");
    // Shown when there is something to show.
    let rare = [
        "presence_bus_up",
        "presence_clock_offset_seconds",
        "presence_database_failures_total",
        "presence_queries_unanswered_total",
        "presence_sockets_closed_total",
    ];
    let missing: Vec<_> = documented.difference(&shown).filter(|it| !rare.contains(it)).collect();
    assert!(missing.is_empty(), "no server shows {missing:?}");
}

#[test]
fn the_metrics_that_the_code_describes_are_the_rows_of_the_table() {
    let code = include_str!("../../src/metrics.rs").split("#[cfg(test)]").next().unwrap();
    let refusals = include_str!("../../src/refusals.rs");
    let tables = code.split_once("const COUNTERS").unwrap().1.split("static INSTALLED").next();
    let names = tables.unwrap().split('"').chain(refusals.split('"').take(2));
    let is_name = |text: &&str| {
        text.starts_with("presence_") && text.bytes().all(|b| b.is_ascii_lowercase() || b == b'_')
    };
    let described: BTreeSet<_> = names.filter(is_name).collect();
    assert_eq!(documented_metrics(), described);
}

#[test]
fn every_code_of_a_refusal_is_among_what_may_be_wrong() {
    let code = include_str!("../../src/refusals.rs").split("#[cfg(test)]").next().unwrap();
    let list = code.split_once("static REFUSALS").unwrap().1.split("];").next().unwrap();
    let codes = list.split("refusal(").skip(1).filter_map(|rest| rest.split('"').nth(1));
    let codes: BTreeSet<_> = codes.collect();
    assert!(codes.len() > 20, "{codes:?}");
    let table = rows(section("## When something is wrong"));
    let told: BTreeSet<_> = table.iter().flat_map(|row| quoted(row[0])).collect();
    let missing: Vec<_> = codes.difference(&told).collect();
    assert!(missing.is_empty(), "{missing:?}");
}

#[test]
fn the_tests_that_the_bounds_name_exist() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).parent().unwrap();
    let table = rows(section("## Bounds"));
    let mut named = 0;
    for row in &table {
        let [what, bound, at, metric, tests] = row[..] else { panic!("{row:?}") };
        assert!(![what, bound, at].contains(&""), "{row:?}");
        for metric in quoted(metric) {
            assert!(documented_metrics().contains(metric), "{what}: {metric}");
        }
        for test in quoted(tests) {
            named += 1;
            let path = root.join(test);
            let Ok(code) = fs::read_to_string(&path) else { panic!("{what}: no file {test}") };
            let has_test = code.contains("#[test]")
                || code.contains("::test]")
                || code.contains("proptest!")
                || test.ends_with(".test.mjs")
                || has_tests_beside(&path);
            assert!(has_test, "{what}: there is no test in {test}");
        }
    }
    assert!(table.len() > 40 && named > 40, "{named} tests of {} bounds", table.len());
}

/// Whether a file with the tests of this one is beside it: `x_tests.rs` of `x.rs`.
fn has_tests_beside(path: &Path) -> bool {
    let stem = path.file_stem().unwrap().to_string_lossy();
    path.with_file_name(format!("{stem}_tests.rs")).is_file()
}

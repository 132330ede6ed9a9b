//! The modules of both packages import only what lies below them, as the tables in ARCHITECTURE.md say.

use std::{
    collections::BTreeMap,
    fs,
    path::{Path, PathBuf},
};

/// A table: the modules of each layer, the highest first.
fn layers(mark: &str) -> Vec<Vec<String>> {
    let text = include_str!("../ARCHITECTURE.md");
    let table = text.split(mark).nth(1).expect("the table of layers is marked");
    let rows = table.lines().filter(|line| line.starts_with("| `"));
    let modules = |row: &str| {
        let cell = row.split('|').nth(1).unwrap_or_default();
        cell.split('`').skip(1).step_by(2).map(str::to_owned).collect()
    };
    rows.map(modules).collect()
}

/// The Rust files below a directory, without files and directories that hold only tests.
fn sources(directory: &Path, found: &mut Vec<PathBuf>) {
    for entry in fs::read_dir(directory).unwrap() {
        let path = entry.unwrap().path();
        if path.file_stem().unwrap().to_string_lossy().ends_with("tests") {
            continue;
        }
        if path.is_dir() {
            sources(&path, found);
        } else if path.extension().is_some_and(|it| it == "rs") {
            found.push(path);
        }
    }
}

/// The code of a file without its comments and its module of tests.
fn code(path: &Path) -> String {
    let text = fs::read_to_string(path).unwrap();
    let text = text.split("#[cfg(test)]\nmod tests {").next().unwrap_or_default();
    let lines = text.lines().map(|line| line.split("//").next().unwrap_or_default());
    lines.collect::<Vec<_>>().join("\n")
}

/// The first segments of the paths that begin with `crate::`.
fn imports(code: &str) -> Vec<String> {
    let mut found = Vec::new();
    for (at, _) in code.match_indices("crate::").filter(|(at, _)| !code[..*at].ends_with('$')) {
        let rest = &code[at + "crate::".len()..];
        match rest.strip_prefix('{') {
            Some(group) => found.extend(firsts(group)),
            None => found.push(segment(rest)),
        }
    }
    found
}

/// The first segment of each item of a group of imports.
fn firsts(group: &str) -> Vec<String> {
    let (mut depth, mut item, mut found) = (0, String::new(), Vec::new());
    for c in group.chars() {
        match c {
            '{' => depth += 1,
            '}' if depth == 0 => break,
            '}' => depth -= 1,
            ',' if depth == 0 => found.push(segment(&std::mem::take(&mut item))),
            _ => {}
        }
        if c != ',' || depth > 0 {
            item.push(c);
        }
    }
    found.push(segment(&item));
    found.retain(|name| !name.is_empty());
    found
}

fn segment(path: &str) -> String {
    path.trim_start().chars().take_while(|c| c.is_alphanumeric() || *c == '_').collect()
}

#[test]
fn modules_of_the_library_import_only_what_lies_below_them() {
    // `guide` is documentation.
    check("<!-- layers -->", "src", &["lib", "guide"]);
}

#[test]
fn modules_of_the_server_import_only_what_lies_below_them() {
    check("<!-- layers of the server -->", "server/src", &["lib", "main"]);
}

fn check(mark: &str, directory: &str, exempt: &[&str]) {
    let layers = layers(mark);
    let names =
        layers.iter().enumerate().flat_map(|(step, row)| row.iter().map(move |it| (it, step)));
    let step: BTreeMap<_, _> = names.collect();
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join(directory);
    let mut files = Vec::new();
    sources(&root, &mut files);
    let mut wrong = Vec::new();
    for file in files {
        let path = file.strip_prefix(&root).unwrap();
        let module = path.iter().next().unwrap().to_string_lossy().replace(".rs", "");
        // The root re-exports.
        if exempt.contains(&&*module) {
            continue;
        }
        let Some(own) = step.get(&module) else {
            wrong.push(format!("{module} is missing in the table"));
            continue;
        };
        for import in imports(&code(&file)) {
            let lies_below = step.get(&import).is_some_and(|other| other > own);
            if import != module && !lies_below {
                wrong.push(format!("{} imports {import}", path.display()));
            }
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}

#[test]
fn imports_are_found_in_all_their_forms() {
    let code = "use crate::{\n    bus::{Bus, Channel},\n    clock::Clock,\n};\nuse crate::model::Info;\n\
                fn f() -> crate::store::Row { crate::wire::json::text() }";
    assert_eq!(imports(code), ["bus", "clock", "model", "store", "wire"]);
    assert!(layers("<!-- layers -->").len() > 5, "the table is read");
}

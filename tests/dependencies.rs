//! What an app compiles with the crate: nothing of a command line, of another database, or of signatures that
//! it has not asked for.

use std::{collections::BTreeSet, process::Command};

use serde_json::Value;

/// Crates that only a program with a command line needs.
const COMMAND_LINE: [&str; 5] =
    ["clap", "clap_builder", "humantime", "tracing-log", "tracing-subscriber"];

/// Crates for tokens with public keys, whose build takes longer than all the rest of the routes.
const PUBLIC_KEYS: [&str; 8] = [
    "aws-lc-rs",
    "ed25519-dalek",
    "jsonwebtoken",
    "num-bigint-dig",
    "openssl",
    "p256",
    "p384",
    "rsa",
];

fn cargo(args: &[&str]) -> String {
    let output = Command::new(env!("CARGO"))
        .args(args)
        .arg("--offline")
        .current_dir(env!("CARGO_MANIFEST_DIR"))
        .output()
        .unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8(output.stdout).unwrap()
}

/// The crates that are compiled for a package with these features, build scripts and macros included.
fn crates(package: &str, features: &str) -> BTreeSet<String> {
    let tree = cargo(&[
        "tree",
        "--package",
        package,
        "--no-default-features",
        "--features",
        features,
        "--edges",
        "no-dev",
        "--prefix",
        "none",
        "--format",
        "{p}",
    ]);
    tree.lines().filter_map(|line| line.split(' ').next()).map(str::to_owned).collect()
}

#[track_caller]
fn assert_without(crates: &BTreeSet<String>, unwanted: &[&str]) {
    let found: Vec<_> = unwanted.iter().filter(|unwanted| crates.contains(**unwanted)).collect();
    assert!(found.is_empty(), "{found:?}");
}

#[test]
fn the_library_has_only_the_database_that_is_asked_for() {
    let sqlite = crates("actix-presence", "sqlite");
    assert!(sqlite.contains("libsqlite3-sys"), "{sqlite:?}");
    assert_without(&sqlite, &["pq-sys", "redis", "rustls", "ring"]);
    let postgres = crates("actix-presence", "postgres");
    assert!(postgres.contains("pq-sys"), "{postgres:?}");
    assert_without(
        &postgres,
        &["libsqlite3-sys", "r2d2", "scheduled-thread-pool", "redis", "ring"],
    );
    for crates in [sqlite, postgres, crates("actix-presence", "sqlite,redis")] {
        assert_without(&crates, &COMMAND_LINE);
        assert_without(&crates, &PUBLIC_KEYS);
    }
}

#[test]
fn the_routes_in_an_app_bring_no_command_line_and_no_public_keys() {
    let routes = crates("presence-server", "sqlite");
    assert!(routes.contains("jwt-compact"), "{routes:?}");
    assert_without(&routes, &COMMAND_LINE);
    assert_without(&routes, &PUBLIC_KEYS);
    let binary = crates("presence-server", "cli,sqlite");
    assert!(binary.contains("clap") && binary.contains("tracing-subscriber"), "{binary:?}");
    assert_without(&binary, &PUBLIC_KEYS);
}

/// Only one crate of a build may be linked with SQLite, so an app's own sqlx or rusqlite has to agree on a
/// version with Diesel. With this crate it agrees then.
#[test]
fn diesel_alone_decides_which_versions_of_sqlite_are_allowed() {
    let rustc = Command::new("rustc").arg("-vV").output().unwrap().stdout;
    let rustc = String::from_utf8(rustc).unwrap();
    let host = rustc.lines().find_map(|line| line.strip_prefix("host: ")).unwrap();
    let metadata = cargo(&["metadata", "--format-version", "1", "--filter-platform", host]);
    let metadata: Value = serde_json::from_str(&metadata).unwrap();
    let required = |package: &str| {
        let packages = metadata["packages"].as_array().unwrap();
        let package = packages.iter().find(|found| found["name"] == package).unwrap();
        let dependencies = package["dependencies"].as_array().unwrap();
        let sqlite = dependencies.iter().find(|found| found["name"] == "libsqlite3-sys").unwrap();
        sqlite["req"].as_str().unwrap().to_owned()
    };
    let (ours, of_diesel) = (required("actix-presence"), required("diesel"));
    let (lowest, limit) = ours.split_once(", ").unwrap();
    assert_eq!(limit, "<1");
    let below_1 = of_diesel.strip_prefix(&format!("{lowest}, <0."));
    assert!(below_1.is_some(), "Diesel allows {of_diesel}, and we {ours}");
}

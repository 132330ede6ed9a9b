//! The commands on a database of PostgreSQL.

use std::process::Command;

use actix_presence::{
    store::{PostgresStore, PostgresUrl},
    testing::store_contract::{row, upserts, write},
};

use crate::postgres::Postgres;

#[test]
fn the_commands_work_on_postgres() {
    let run = |command: &str, url: &str| {
        let mut presence = Command::new(env!("CARGO_BIN_EXE_presence"));
        let output = presence.args([command, "--database", url]).output().unwrap();
        (output.status.code(), String::from_utf8(output.stdout).unwrap(), output.stderr)
    };
    let database = Postgres::shared().fresh_database();
    let says = |command, answer: &str| {
        let (code, said, error) = run(command, &database);
        assert_eq!((code, said.trim()), (Some(0), answer), "{}", String::from_utf8_lossy(&error));
    };
    says("migrate", "applied 5 migrations");
    says("migrate", "the database is up to date");
    let mut store = PostgresStore::open(&PostgresUrl::new(&database).unwrap()).unwrap();
    write(&mut store, &upserts([row("lobby", 1, None), row("café", 2, Some("ada"))]));
    says("prune-rooms", "0");
    let (_, listed, _) = run("rooms", &database);
    let rooms: Vec<_> = listed.lines().filter_map(|line| line.split_whitespace().last()).collect();
    assert_eq!(rooms, ["ROOM", "café", "lobby"]);
    says("prune-presences", "2");
    says("prune-rooms", "2");

    let (code, _, error) = run("rooms", "postgres://ada:s3cret@127.0.0.1:1/x");
    let error = String::from_utf8(error).unwrap();
    assert!(code == Some(1) && !error.contains("s3cret"), "{error}");
    let (code, _, error) = run("rooms", "postgres://ada:s3/cret@127.0.0.1:1/x");
    let error = String::from_utf8(error).unwrap();
    assert!(code == Some(2) && !error.contains("s3") && !error.contains("cret"), "{error}");
}

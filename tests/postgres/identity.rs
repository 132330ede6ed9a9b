//! What the nodes of a database have in common on the bus, and what of that a copy has.

use actix_presence::{
    bus::ClusterIdentity,
    store::{PostgresStore, SharedStore, StoreError},
    testing::store_contract::StoreFixture,
};
use diesel::{
    Connection, PgConnection, QueryableByName, RunQueryDsl, connection::SimpleConnection,
    sql_query, sql_types::Text,
};

use crate::{
    contract::{OnPostgres, options, url},
    server::Postgres,
};

#[derive(QueryableByName)]
struct Line {
    #[diesel(sql_type = Text)]
    line: String,
}

fn ask(conn: &mut PgConnection, sql: &str) -> String {
    sql_query(format!("SELECT ({sql})::text AS line")).get_result::<Line>(conn).unwrap().line
}

/// For which system and database the identity was made, as they are and as the row says.
fn places(fixture: &OnPostgres) -> [String; 2] {
    let mut conn = PgConnection::establish(&Postgres::as_superuser(&fixture.url)).unwrap();
    [
        "SELECT system_identifier || ' ' || (SELECT oid FROM pg_database
            WHERE datname = current_database()) FROM pg_control_system()",
        "SELECT coalesce(system_identifier::text, 'unknown') || ' ' || database_oid FROM cluster",
    ]
    .map(|sql| ask(&mut conn, sql))
}

fn identity(fixture: &mut OnPostgres) -> ClusterIdentity {
    fixture.store.identity().unwrap()
}

fn name(fixture: &OnPostgres) -> String {
    fixture.url.rsplit('/').next().unwrap().to_owned()
}

#[test]
fn a_database_that_was_read_from_a_dump_has_an_identity_of_its_own() {
    let mut fixture = OnPostgres::new();
    let original = identity(&mut fixture);
    let [real, stored] = places(&fixture);
    assert_eq!(stored, real);

    // Into another database of the same server.
    let source = name(&fixture);
    drop(fixture.store);
    let server = Postgres::shared();
    server.admin(&format!("CREATE DATABASE copy_of_{source} OWNER presence TEMPLATE {source}"));
    let copied = fixture.url.replace(&source, &format!("copy_of_{source}"));
    let mut copy = OnPostgres::open(copied, options());
    let other = identity(&mut copy);
    assert_ne!(other, original);
    assert_ne!(other.channel(), original.channel());
    let [real, stored] = places(&copy);
    assert_eq!(stored, real);
    assert_eq!(identity(&mut copy), other, "once");

    // Into a database of the same number on another server.
    copy.sql("UPDATE cluster SET system_identifier = system_identifier + 1");
    let next = identity(&mut copy);
    assert_ne!(next, other);
    assert_eq!(places(&copy)[1], real);

    let mut fixture = OnPostgres::open(fixture.url, options());
    assert_eq!(identity(&mut fixture), original, "what it was read from keeps its own");
}

#[test]
fn a_role_that_may_not_ask_for_the_system_goes_by_the_database() {
    let mut fixture = OnPostgres::new();
    let superuser = || PgConnection::establish(&Postgres::as_superuser(&fixture.url)).unwrap();
    let mut superuser = superuser();
    superuser.batch_execute("REVOKE EXECUTE ON FUNCTION pg_control_system() FROM PUBLIC").unwrap();
    let first = identity(&mut fixture);
    assert!(places(&fixture)[1].starts_with("unknown "));
    fixture.sql("UPDATE cluster SET system_identifier = 1");
    assert_eq!(identity(&mut fixture), first);
    fixture.sql("UPDATE cluster SET system_identifier = NULL");
    superuser.batch_execute("GRANT EXECUTE ON FUNCTION pg_control_system() TO PUBLIC").unwrap();
    assert_eq!(identity(&mut fixture), first);
    let [real, stored] = places(&fixture);
    assert_eq!(stored, real, "added by who may");

    superuser.batch_execute("REVOKE EXECUTE ON FUNCTION pg_control_system() FROM PUBLIC").unwrap();
    fixture.sql("UPDATE cluster SET database_oid = 1");
    assert_ne!(identity(&mut fixture), first);
    assert!(places(&fixture)[1].starts_with("unknown "));
}

#[test]
fn a_database_that_may_only_be_read_has_the_identity_that_is_in_it() {
    let mut fixture = OnPostgres::new();
    let first = identity(&mut fixture);
    let read_only = |value: &str| {
        let name = name(&fixture);
        Postgres::shared()
            .admin(&format!("ALTER DATABASE {name} SET default_transaction_read_only = {value}"));
    };
    read_only("on");
    let mut reader = PostgresStore::open_with(&url(&fixture.url), options()).unwrap();
    assert_eq!(reader.identity().unwrap(), first);
    fixture.sql("BEGIN READ WRITE; DELETE FROM cluster; COMMIT");
    let refused = reader.identity().unwrap_err();
    assert!(matches!(refused, StoreError::ReadOnly), "{refused:?}");
    read_only("off");
    assert_ne!(reader.identity().unwrap(), first);
    assert_eq!(identity(&mut fixture), reader.identity().unwrap());
}

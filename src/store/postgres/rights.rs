//! What a role has to be allowed before its tables can be migrated, and what to do where it is not.

use diesel::{
    OptionalExtension, PgConnection, QueryableByName, RunQueryDsl,
    connection::SimpleConnection,
    sql_query,
    sql_types::{Array, Bool, Text},
};

use super::{migrate::WAY_OUT, schema_name::SchemaName};
use crate::store::{StoreError, transaction::Failure};

/// The first schema of the `search_path` that exists and that the role may not use. What tells the current
/// schemas leaves it out, so the path is read as it is written: names between commas, in quotes or in lower
/// case.
const WITHHELD: &str = r#"
    SELECT current_user::text AS role, nspname::text AS schema
    FROM regexp_matches(current_setting('search_path'), '"(?:[^"]|"")*"|[^,\s"]+', 'g')
        WITH ORDINALITY AS path (word, place)
    CROSS JOIN LATERAL (SELECT CASE
        WHEN word[1] LIKE '"%' THEN replace(substr(word[1], 2, length(word[1]) - 2), '""', '"')
        ELSE lower(word[1]) END AS name) AS unquoted
    JOIN pg_catalog.pg_namespace ON nspname = CASE name WHEN '$user' THEN current_user ELSE name END
    WHERE NOT has_schema_privilege(pg_namespace.oid, 'USAGE')
    ORDER BY place LIMIT 1"#;

#[derive(QueryableByName)]
struct Answer {
    #[diesel(sql_type = Bool)]
    answer: bool,
}

#[derive(QueryableByName)]
struct Role {
    #[diesel(sql_type = Text)]
    role: String,
}

#[derive(QueryableByName)]
struct Withheld {
    #[diesel(sql_type = Text)]
    role: String,
    #[diesel(sql_type = Text)]
    schema: String,
}

#[derive(QueryableByName)]
struct Owned {
    #[diesel(sql_type = Text)]
    role: String,
    #[diesel(sql_type = Text)]
    owner: String,
}

/// Creates a schema if it is missing, unless tables in it would hide others from the role: by default the
/// `search_path` begins with the schema of the role's name.
pub(super) fn create_schema(conn: &mut PgConnection, schema: &SchemaName) -> Result<(), Failure> {
    let found = sql_query(
        "SELECT EXISTS (SELECT FROM pg_catalog.pg_namespace WHERE nspname = $1) AS answer",
    );
    // Not by `IF NOT EXISTS`, which needs the right to create one.
    if found.bind::<Text, _>(schema.as_str()).get_result::<Answer>(conn)?.answer {
        return Ok(());
    }
    let role = sql_query("SELECT current_user::text = $1 AS answer");
    if role.bind::<Text, _>(schema.as_str()).get_result::<Answer>(conn)?.answer {
        let reason = format!(
            "the schema `{schema}` is missing, and is not created: it has the name of the role, so \
             its tables would come before all others in the role's `search_path`; use another name, \
             or create it yourself"
        );
        return Err(StoreError::Unsuitable { reason }.into());
    }
    let lacking = "SELECT current_user::text AS role
        WHERE NOT has_database_privilege(current_database(), 'CREATE')";
    if let Some(Role { role }) = sql_query(lacking).get_result(conn).optional()? {
        let reason = format!(
            "the schema `{schema}` is missing, and the role `{role}` may not create it: create it, \
             and grant the role `USAGE` and `CREATE` on it, or `CREATE` on the database"
        );
        return Err(StoreError::Unsuitable { reason }.into());
    }
    conn.batch_execute(&format!("CREATE SCHEMA {}", schema.quoted()))?;
    Ok(())
}

/// The error where the `search_path` leads to no schema.
pub(super) fn no_schema(conn: &mut PgConnection) -> Result<StoreError, Failure> {
    let reason = match sql_query(WITHHELD).get_result(conn).optional()? {
        Some(Withheld { role, schema }) => format!(
            "the role `{role}` may not use the schema `{schema}` of the connection's `search_path`: \
             grant it `USAGE` on it, and `CREATE` for creating the tables, or {WAY_OUT}"
        ),
        None => "no schema of the connection's `search_path` exists: create one".to_owned(),
    };
    Ok(StoreError::Unsuitable { reason })
}

/// Fails if the role may not create tables in a schema: since PostgreSQL 15 only the owner of the database
/// may in `public`. Where tables `are_there` no other schema is of use.
pub(super) fn check_creation(
    conn: &mut PgConnection,
    schema: &str,
    are_there: bool,
) -> Result<(), Failure> {
    let lacking = "SELECT current_user::text AS role
        WHERE NOT (has_schema_privilege($1, 'USAGE') AND has_schema_privilege($1, 'CREATE'))";
    let lacking = sql_query(lacking).bind::<Text, _>(schema);
    match lacking.get_result(conn).optional()? {
        Some(Role { role }) => {
            let or = if are_there { String::new() } else { format!(", or {WAY_OUT}") };
            let reason = format!(
                "the role `{role}` may not create tables in the schema `{schema}`: grant it `USAGE` \
                 and `CREATE` on it{or}"
            );
            Err(StoreError::Unsuitable { reason }.into())
        }
        None => Ok(()),
    }
}

/// Fails if some of these tables belong to another role, which alone may migrate them.
pub(super) fn check_owner(
    conn: &mut PgConnection,
    schema: &str,
    tables: &[&str],
) -> Result<(), Failure> {
    let lacking = "SELECT current_user::text AS role, pg_get_userbyid(relowner)::text AS owner
        FROM pg_catalog.pg_class
        JOIN pg_catalog.pg_namespace ON pg_namespace.oid = relnamespace
        WHERE nspname = $1 AND relname = ANY ($2) AND NOT pg_has_role(relowner, 'USAGE')
        ORDER BY relname LIMIT 1";
    let lacking = sql_query(lacking).bind::<Text, _>(schema).bind::<Array<Text>, _>(tables);
    match lacking.get_result(conn).optional()? {
        Some(Owned { role, owner }) => {
            let reason = format!(
                "the tables in the schema `{schema}` have to be migrated, which the role `{role}` may \
                 not do: they belong to `{owner}`, so run `presence migrate` as `{owner}`, or start \
                 this version once as `{owner}`"
            );
            Err(StoreError::Unsuitable { reason }.into())
        }
        None => Ok(()),
    }
}

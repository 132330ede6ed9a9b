//! Migrates the tables of a schema.

use diesel::{
    PgConnection, QueryableByName, RunQueryDsl,
    connection::SimpleConnection,
    migration::Migration,
    pg::Pg,
    sql_query,
    sql_types::{Bool, Nullable, Text},
};
use diesel_migrations::{EmbeddedMigrations, embed_migrations};

use super::schema_name::{SchemaName, quoted};
use crate::store::{
    StoreError,
    migrations::{self, CreatedTable, DIESEL_RECORD, FIRST, RECORD, foreign},
    transaction::{Failure, migration_error, transact},
};

pub(super) const POSTGRES_MIGRATIONS: EmbeddedMigrations = embed_migrations!("migrations/postgres");

/// The tables that the migrations create.
const CREATED: [CreatedTable; 4] = [
    CreatedTable { name: "rooms", version: FIRST, columns: &["id", "channel_name", "created_at"] },
    CreatedTable {
        name: "presences",
        version: FIRST,
        columns: &[
            "id",
            "room_id",
            "channel_name",
            "user_id",
            "info",
            "joined_at",
            "last_seen",
            "node_id",
            "session_key",
            "fading_until",
            "turn",
        ],
    },
    CreatedTable {
        name: "nodes",
        version: FIRST,
        columns: &["id", "started_at", "lease_expires_at", "incarnation", "head", "leaving"],
    },
    CreatedTable {
        name: "cluster",
        version: "20261130000000",
        columns: &["id", "key", "channel", "system_identifier", "database_oid"],
    },
];

/// The schema that has the tables, or is to have them.
///
/// Without an option it is the one in which the `search_path` finds what this version or an earlier one has
/// recorded; else the first one of the path.
pub(super) struct Place {
    schema: String,
    /// Whether it has the record of this library.
    is_recorded: bool,
}

#[derive(QueryableByName)]
struct Schema {
    #[diesel(sql_type = Nullable<Text>)]
    schema: Option<String>,
}

#[derive(QueryableByName)]
struct Answer {
    #[diesel(sql_type = Bool)]
    answer: bool,
}

#[derive(QueryableByName)]
struct Version {
    #[diesel(sql_type = Text)]
    version: String,
}

/// What to do where somebody else has tables of these names.
const WAY_OUT: &str = "name a schema that the library has for itself, with `PresenceConfig::schema` or \
    `?options=-csearch_path%3DNAME` in the URL";

/// The schema of a table that the `search_path` finds.
const SCHEMA_OF: &str = "
    SELECT nspname::text AS schema
    FROM pg_catalog.pg_class JOIN pg_catalog.pg_namespace ON pg_namespace.oid = relnamespace
    WHERE pg_class.oid = to_regclass($1)";

impl Place {
    /// Finds the place without changing anything.
    pub(super) fn find(
        conn: &mut PgConnection,
        schema: Option<&SchemaName>,
    ) -> Result<Self, Failure> {
        if let Some(schema) = schema {
            return Self::at(conn, schema.as_str().to_owned());
        }
        if let Some(schema) = schema_of(conn, RECORD)? {
            return Ok(Self { schema, is_recorded: true });
        }
        if let Some(schema) = schema_of(conn, "rooms")? {
            let place = Self { schema, is_recorded: false };
            if place.is_of_an_earlier_version(conn)? {
                return Ok(place);
            }
        }
        let current = sql_query("SELECT current_schema()::text AS schema");
        let Schema { schema } = current.get_result(conn)?;
        let schema = schema.ok_or_else(|| StoreError::Unsuitable {
            reason: "no schema of the connection's `search_path` exists: create one".to_owned(),
        })?;
        Self::at(conn, schema)
    }

    fn at(conn: &mut PgConnection, schema: String) -> Result<Self, Failure> {
        let is_recorded = has_table(conn, &schema, RECORD)?;
        Ok(Self { schema, is_recorded })
    }

    /// Whether every migration is recorded.
    pub(super) fn is_up_to_date(&self, conn: &mut PgConnection) -> Result<bool, Failure> {
        Ok(self.is_recorded && self.pending(conn)?.is_empty())
    }

    /// Applies what is pending, each migration in a transaction. Returns how many.
    pub(super) fn migrate(&self, conn: &mut PgConnection) -> Result<usize, Failure> {
        if !self.is_recorded {
            transact(conn, |conn| self.create_record(conn))?;
        }
        let pending = self.pending(conn)?;
        for migration in &pending {
            transact(conn, |conn| self.apply(conn, &**migration))?;
        }
        Ok(pending.len())
    }

    /// Refuses a `search_path` in which tables of somebody else come before those of the schema.
    pub(super) fn refuse_hidden(&self, conn: &mut PgConnection) -> Result<(), Failure> {
        for table in CREATED {
            match schema_of(conn, table.name)? {
                Some(schema) if schema != self.schema => {
                    return Err(
                        foreign(table.name, &format!("the schema `{schema}`"), WAY_OUT).into()
                    );
                }
                _ => {}
            }
        }
        Ok(())
    }

    fn pending(&self, conn: &mut PgConnection) -> Result<Vec<Box<dyn Migration<Pg>>>, Failure> {
        let recorded = self.versions(conn, RECORD)?;
        let all = migrations::all::<PgConnection>(&POSTGRES_MIGRATIONS)?;
        Ok(migrations::pending(all, &recorded))
    }

    fn versions(&self, conn: &mut PgConnection, record: &str) -> Result<Vec<String>, Failure> {
        let sql = format!("SELECT version::text AS version FROM {}", self.table(record));
        let versions: Vec<Version> = sql_query(sql).load(conn)?;
        Ok(versions.into_iter().map(|found| found.version).collect())
    }

    /// Creates the record, with what an earlier version has recorded in Diesel's table, in the open
    /// transaction.
    fn create_record(&self, conn: &mut PgConnection) -> Result<(), Failure> {
        let takes_over = self.is_of_an_earlier_version(conn)?;
        if !takes_over {
            self.refuse_foreign(conn, FIRST)?;
        }
        let (record, earlier) = (self.table(RECORD), self.table(DIESEL_RECORD));
        conn.batch_execute(&format!(
            "CREATE TABLE {record} (
                version VARCHAR(50) PRIMARY KEY,
                run_on TIMESTAMP NOT NULL DEFAULT CURRENT_TIMESTAMP)"
        ))?;
        if takes_over {
            let known: Vec<String> = migrations::all::<PgConnection>(&POSTGRES_MIGRATIONS)?
                .iter()
                .map(|migration| format!("'{}'", migrations::version(&**migration)))
                .collect();
            conn.batch_execute(&format!(
                "WITH moved AS (
                    DELETE FROM {earlier} WHERE version IN ({}) RETURNING version, run_on)
                 INSERT INTO {record} (version, run_on) SELECT version, run_on FROM moved",
                known.join(", ")
            ))?;
        }
        Ok(())
    }

    /// Applies a migration, in the open transaction.
    fn apply(&self, conn: &mut PgConnection, migration: &dyn Migration<Pg>) -> Result<(), Failure> {
        let version = migrations::version(migration);
        self.refuse_foreign(conn, &version)?;
        conn.batch_execute(&format!("SET LOCAL search_path = {}", quoted(&self.schema)))?;
        migration.run(conn).map_err(migration_error::<PgConnection>)?;
        sql_query(format!("INSERT INTO {} (version) VALUES ($1)", self.table(RECORD)))
            .bind::<Text, _>(version)
            .execute(conn)?;
        Ok(())
    }

    /// Whether an earlier version has created the tables, and recorded that in Diesel's table.
    fn is_of_an_earlier_version(&self, conn: &mut PgConnection) -> Result<bool, Failure> {
        if !has_table(conn, &self.schema, DIESEL_RECORD)? {
            return Ok(false);
        }
        for table in CREATED.iter().filter(|table| table.version == FIRST) {
            if !self.has_columns(conn, table)? {
                return Ok(false);
            }
        }
        Ok(self.versions(conn, DIESEL_RECORD)?.iter().any(|version| version == FIRST))
    }

    fn has_columns(&self, conn: &mut PgConnection, table: &CreatedTable) -> Result<bool, Failure> {
        for column in table.columns {
            let found = sql_query(
                "SELECT EXISTS (SELECT FROM pg_catalog.pg_attribute
                    WHERE attrelid = to_regclass($1) AND attname = $2 AND NOT attisdropped)
                    AS answer",
            );
            let found = found.bind::<Text, _>(self.table(table.name)).bind::<Text, _>(column);
            if !found.get_result::<Answer>(conn)?.answer {
                return Ok(false);
            }
        }
        Ok(true)
    }

    /// Fails if there is a table already that a migration creates.
    fn refuse_foreign(&self, conn: &mut PgConnection, version: &str) -> Result<(), Failure> {
        for table in CREATED.iter().filter(|table| table.version == version) {
            if has_table(conn, &self.schema, table.name)? {
                let place = format!("the schema `{}`", self.schema);
                return Err(foreign(table.name, &place, WAY_OUT).into());
            }
        }
        Ok(())
    }

    /// A table as SQL.
    fn table(&self, table: &str) -> String {
        format!("{}.{table}", quoted(&self.schema))
    }
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
    conn.batch_execute(&format!("CREATE SCHEMA {}", schema.quoted()))?;
    Ok(())
}

fn schema_of(conn: &mut PgConnection, table: &str) -> Result<Option<String>, Failure> {
    let found: Vec<Schema> = sql_query(SCHEMA_OF).bind::<Text, _>(table).load(conn)?;
    Ok(found.into_iter().find_map(|found| found.schema))
}

/// Whether a schema has a table, or something else in its place, of this name.
fn has_table(conn: &mut PgConnection, schema: &str, table: &str) -> Result<bool, Failure> {
    let found = sql_query(
        "SELECT EXISTS (
            SELECT FROM pg_catalog.pg_class JOIN pg_catalog.pg_namespace
                ON pg_namespace.oid = relnamespace
            WHERE nspname = $1 AND relname = $2) AS answer",
    );
    let found = found.bind::<Text, _>(schema).bind::<Text, _>(table);
    Ok(found.get_result::<Answer>(conn)?.answer)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_table_of_the_migrations_is_known() {
        assert_eq!(migrations::tables_of("migrations/postgres"), migrations::tables_in(&CREATED));
    }
}

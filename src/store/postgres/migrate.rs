//! Migrates the tables of a schema.

use diesel::{
    PgConnection, QueryableByName, RunQueryDsl,
    connection::SimpleConnection,
    migration::Migration,
    pg::Pg,
    sql_query,
    sql_types::{Array, Bool, Nullable, Text},
};
use diesel_migrations::{EmbeddedMigrations, embed_migrations};

use super::{
    rights,
    schema_name::{SchemaName, quoted},
};
use crate::store::{
    migrations::{self, Created, DIESEL_RECORD, FIRST, Inspect, Kind, RECORD, Record, foreign},
    transaction::{Failure, migration_error},
};

pub(super) const POSTGRES_MIGRATIONS: EmbeddedMigrations = embed_migrations!("migrations/postgres");

/// What the migrations create.
const CREATED: [Created; 12] = [
    Created::table("rooms", FIRST, &["id", "channel_name", "created_at"]),
    Created::table(
        "presences",
        FIRST,
        &[
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
    ),
    Created::index("presences_channel_name", FIRST),
    Created::index("presences_user_id", FIRST),
    Created::index("presences_last_seen", FIRST),
    Created::index("presences_node_id", FIRST),
    Created::table(
        "nodes",
        FIRST,
        &["id", "started_at", "lease_expires_at", "incarnation", "head", "leaving"],
    ),
    Created::columns("presences", "20261128000000", &["fixed_info"]),
    Created::columns("presences", "20261129000000", &["current_connection"]),
    Created::index("presences_current_connection", "20261129000000"),
    Created::table(
        "cluster",
        "20261130000000",
        &["id", "key", "channel", "system_identifier", "database_oid"],
    ),
    Created::columns("presences", "20261201000000", &["updated_at"]),
];

type Migrations = Vec<Box<dyn Migration<Pg>>>;

/// The schema that has the tables, or is to have them.
///
/// Without an option it is the first one of the `search_path` in which this version or an earlier one has
/// recorded its migrations; else the first one of the path.
pub(super) struct Place {
    schema: String,
    record: Record,
}

#[derive(QueryableByName)]
struct Schema {
    #[diesel(sql_type = Nullable<Text>)]
    schema: Option<String>,
}

#[derive(QueryableByName)]
struct What {
    #[diesel(sql_type = Text)]
    what: String,
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

/// What to do where a schema cannot have the tables.
pub(super) const WAY_OUT: &str = "name a schema that the library has for itself, with \
    `PresenceConfig::schema` or `?options=-csearch_path%3DNAME` in the URL";

/// The schemas in which names are searched for, in this order, those of the system included.
const SEARCH_PATH: &str = "
    SELECT name::text AS schema FROM unnest(current_schemas(true)) WITH ORDINALITY AS path (name, place)
    ORDER BY place";

/// Whether a schema has a table of this name with the columns of a record of migrations.
const IS_RECORD: &str = "
    SELECT count(*) = 2 AS answer
    FROM pg_catalog.pg_class
    JOIN pg_catalog.pg_namespace ON pg_namespace.oid = relnamespace
    JOIN pg_catalog.pg_attribute ON attrelid = pg_class.oid
    JOIN pg_catalog.pg_type ON pg_type.oid = atttypid
    WHERE nspname = $1 AND relname = $2 AND relkind IN ('r', 'p') AND NOT attisdropped
        AND (attname = 'version' AND typcategory = 'S' OR attname = 'run_on')";

/// Whether a schema has a table of this name with all of these columns. Who may not use the schema is
/// answered as well.
const HAS_COLUMNS: &str = "
    SELECT count(*) = cardinality($3) AS answer
    FROM pg_catalog.pg_class
    JOIN pg_catalog.pg_namespace ON pg_namespace.oid = relnamespace
    JOIN pg_catalog.pg_attribute ON attrelid = pg_class.oid
    WHERE nspname = $1 AND relname = $2 AND relkind IN ('r', 'p')
        AND attname = ANY ($3) AND NOT attisdropped";

/// What a schema has under a name: all that a query would find there, and with `$3` the types that no table
/// may have its name beside.
const WHAT: &str = "
    SELECT CASE relkind
        WHEN 'v' THEN 'a view' WHEN 'm' THEN 'a materialized view' WHEN 'S' THEN 'a sequence'
        WHEN 'i' THEN 'an index' WHEN 'I' THEN 'an index' WHEN 'c' THEN 'a type'
        ELSE 'a table' END AS what
    FROM pg_catalog.pg_class JOIN pg_catalog.pg_namespace ON pg_namespace.oid = relnamespace
    WHERE nspname = $1 AND relname = $2
    UNION ALL
    SELECT 'a type'
    FROM pg_catalog.pg_type JOIN pg_catalog.pg_namespace ON pg_namespace.oid = typnamespace
    WHERE nspname = $1 AND typname = $2 AND typrelid = 0 AND $3";

impl Place {
    /// Finds the place without changing anything. Refuses a `search_path` in which something of somebody
    /// else would be found before the tables.
    pub(super) fn find(
        conn: &mut PgConnection,
        schema: Option<&SchemaName>,
    ) -> Result<Self, Failure> {
        if let Some(schema) = schema {
            return Self::at(conn, schema.as_str());
        }
        let path: Vec<Schema> = sql_query(SEARCH_PATH).load(conn)?;
        let path: Vec<String> = path.into_iter().filter_map(|found| found.schema).collect();
        let place = Self::on(conn, &path)?;
        for schema in path.iter().take_while(|schema| **schema != place.schema) {
            for table in tables() {
                refuse(conn, schema, table.name, false)?;
            }
        }
        Ok(place)
    }

    fn on(conn: &mut PgConnection, path: &[String]) -> Result<Self, Failure> {
        for record in [RECORD, DIESEL_RECORD] {
            for schema in path {
                let place = Self::at(conn, schema)?;
                if place.record.table == Some(record) {
                    return Ok(place);
                }
            }
        }
        let current = sql_query("SELECT current_schema()::text AS schema");
        let Schema { schema } = current.get_result(conn)?;
        let Some(schema) = schema else { return Err(rights::no_schema(conn)?.into()) };
        Self::at(conn, &schema)
    }

    fn at(conn: &mut PgConnection, schema: &str) -> Result<Self, Failure> {
        let record = Record::find(&mut InSchema { conn, schema })?;
        Ok(Self { schema: schema.to_owned(), record })
    }

    /// Whether every migration is recorded.
    pub(super) fn is_up_to_date(&self) -> Result<bool, Failure> {
        Ok(self.record.is_own() && self.pending()?.is_empty())
    }

    /// Applies what is pending, in the open transaction. Returns how many migrations.
    ///
    /// Names that are taken are looked for before anything is created.
    pub(super) fn migrate(&self, conn: &mut PgConnection) -> Result<usize, Failure> {
        let pending = self.pending()?;
        let creates_record =
            !self.record.is_own() && !migrations::has_empty_record(&mut self.inspect(conn))?;
        self.check(conn, &pending, creates_record)?;
        if creates_record {
            self.create_record(conn)?;
        }
        if !self.record.is_own() {
            self.take_over(conn)?;
        }
        conn.batch_execute(&format!("SET LOCAL search_path = {}", quoted(&self.schema)))?;
        for migration in &pending {
            migration.run(conn).map_err(migration_error::<PgConnection>)?;
            sql_query(format!("INSERT INTO {} (version) VALUES ($1)", table(&self.schema, RECORD)))
                .bind::<Text, _>(migrations::version(&**migration))
                .execute(conn)?;
        }
        Ok(pending.len())
    }

    fn pending(&self) -> Result<Migrations, Failure> {
        let all = migrations::all::<PgConnection>(&POSTGRES_MIGRATIONS)?;
        Ok(migrations::pending(all, &self.record.versions))
    }

    /// Fails if the schema has something already that is to be created, or the role may not create it there
    /// or change what is there.
    fn check(
        &self,
        conn: &mut PgConnection,
        pending: &Migrations,
        creates_record: bool,
    ) -> Result<(), Failure> {
        let named = CREATED.iter().filter(|created| created.kind != Kind::Columns);
        let mut names: Vec<_> = named
            .filter(|created| migrations::includes(pending, created.version))
            .map(|created| (created.name, created.kind == Kind::Table))
            .collect();
        if creates_record {
            names.push((RECORD, true));
        }
        for (name, is_table) in &names {
            refuse(conn, &self.schema, name, *is_table)?;
        }
        let are_there = self.record.table.is_some();
        if are_there && !(self.record.is_own() && pending.is_empty()) {
            let tables: Vec<_> = tables().map(|table| table.name).collect();
            rights::check_owner(conn, &self.schema, &tables)?;
        }
        if names.is_empty() {
            Ok(())
        } else {
            rights::check_creation(conn, &self.schema, are_there)
        }
    }

    fn create_record(&self, conn: &mut PgConnection) -> Result<(), Failure> {
        conn.batch_execute(&format!(
            "CREATE TABLE {} (
                version VARCHAR(50) PRIMARY KEY,
                run_on TIMESTAMP NOT NULL DEFAULT CURRENT_TIMESTAMP)",
            table(&self.schema, RECORD)
        ))?;
        Ok(())
    }

    /// Moves to the record what an earlier version has recorded in Diesel's table, in the open transaction.
    fn take_over(&self, conn: &mut PgConnection) -> Result<(), Failure> {
        if let Some(earlier) = self.record.table {
            sql_query(format!(
                "WITH moved AS (
                    DELETE FROM {} WHERE version = ANY ($1) RETURNING version, run_on)
                 INSERT INTO {} (version, run_on) SELECT version, run_on FROM moved",
                table(&self.schema, earlier),
                table(&self.schema, RECORD)
            ))
            .bind::<Array<Text>, _>(&self.record.versions)
            .execute(conn)?;
        }
        Ok(())
    }

    fn inspect<'a>(&'a self, conn: &'a mut PgConnection) -> InSchema<'a> {
        InSchema { conn, schema: &self.schema }
    }
}

/// A schema in which the record is searched for.
struct InSchema<'a> {
    conn: &'a mut PgConnection,
    schema: &'a str,
}

impl Inspect for InSchema<'_> {
    const CREATED: &'static [Created] = &CREATED;

    fn has_record(&mut self, table: &str) -> Result<bool, Failure> {
        let found = sql_query(IS_RECORD).bind::<Text, _>(self.schema).bind::<Text, _>(table);
        Ok(found.get_result::<Answer>(self.conn)?.answer)
    }

    fn has_columns(&mut self, table: &str, columns: &[&str]) -> Result<bool, Failure> {
        let found = sql_query(HAS_COLUMNS)
            .bind::<Text, _>(self.schema)
            .bind::<Text, _>(table)
            .bind::<Array<Text>, _>(columns);
        Ok(found.get_result::<Answer>(self.conn)?.answer)
    }

    fn versions(&mut self, record: &str) -> Result<Vec<String>, Failure> {
        let record = table(self.schema, record);
        let sql = format!("SELECT coalesce(version::text, '') AS version FROM {record}");
        let versions: Vec<Version> = sql_query(sql).load(self.conn)?;
        Ok(versions.into_iter().map(|found| found.version).collect())
    }
}

/// A table as SQL.
fn table(schema: &str, table: &str) -> String {
    format!("{}.{table}", quoted(schema))
}

fn tables() -> impl Iterator<Item = &'static Created> {
    CREATED.iter().filter(|created| created.kind == Kind::Table)
}

/// Fails if a schema has something of this name; `or_type` counts types as well, which are in the way of a
/// table.
fn refuse(conn: &mut PgConnection, schema: &str, name: &str, or_type: bool) -> Result<(), Failure> {
    let found = sql_query(WHAT).bind::<Text, _>(schema).bind::<Text, _>(name);
    let found: Vec<What> = found.bind::<Bool, _>(or_type).load(conn)?;
    match found.first() {
        Some(What { what }) => {
            Err(foreign(what, name, &format!("the schema `{schema}`"), WAY_OUT).into())
        }
        None => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn everything_that_the_migrations_create_is_known() {
        assert_eq!(migrations::created_by("migrations/postgres"), migrations::known(&CREATED));
    }
}

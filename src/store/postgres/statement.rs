//! Prepared statements on the tables of a schema.

use diesel::{
    PgConnection, QueryableByName, RunQueryDsl,
    expression::{AsExpression, TypedExpressionType},
    pg::Pg,
    query_builder::{AstPass, Query, QueryFragment, QueryId},
    result::QueryResult,
    sql_types::{SingleValue, SqlType, Untyped},
};

use super::schema_name::SchemaName;
use crate::store::transaction::{Failure, transact, transact_by};

/// A connection with the schema whose tables its statements name. Without one the connection's
/// `search_path` finds the tables.
pub(super) struct SchemaConnection<'a> {
    conn: &'a mut PgConnection,
    schema: Option<&'a SchemaName>,
}

impl<'a> SchemaConnection<'a> {
    pub(super) fn new(conn: &'a mut PgConnection, schema: Option<&'a SchemaName>) -> Self {
        Self { conn, schema }
    }

    /// The connection by itself, and its schema.
    pub(super) fn parts(&mut self) -> (&mut PgConnection, Option<&'a SchemaName>) {
        (self.conn, self.schema)
    }

    /// Runs `body` in a transaction.
    pub(super) fn transact<T>(
        &mut self,
        body: impl FnOnce(&mut SchemaConnection<'_>) -> Result<T, Failure>,
    ) -> Result<T, Failure> {
        let schema = self.schema;
        transact(self.conn, |conn| body(&mut SchemaConnection { conn, schema }))
    }

    /// Runs `body` in a transaction that reads one snapshot.
    pub(super) fn read_snapshot<T>(
        &mut self,
        body: impl FnOnce(&mut SchemaConnection<'_>) -> Result<T, Failure>,
    ) -> Result<T, Failure> {
        let schema = self.schema;
        let body = |conn: &mut PgConnection| body(&mut SchemaConnection { conn, schema });
        transact_by(body, |run| {
            self.conn.build_transaction().read_only().repeatable_read().run(|conn| run(conn))
        })
    }

    /// A table as SQL, with its schema.
    pub(super) fn table(&self, table: &str) -> String {
        format!("{}{table}", prefix(self.schema))
    }
}

/// What stands before the name of a table.
fn prefix(schema: Option<&SchemaName>) -> String {
    schema.map(|schema| format!("{}.", schema.quoted())).unwrap_or_default()
}

/// SQL in which `$1`, `$2`, … are the bound values in their order; the result is read by column name. A
/// table is named as `@rooms`: the mark stands for its schema.
///
/// Unlike `diesel::sql_query`, it is prepared once for each connection.
pub(super) struct Statement<'a> {
    sql: &'static str,
    values: Vec<Box<dyn QueryFragment<Pg> + 'a>>,
}

/// A statement without values yet.
pub(super) fn statement<'a>(sql: &'static str) -> Statement<'a> {
    Statement { sql, values: Vec::new() }
}

impl<'a> Statement<'a> {
    /// Adds the next value.
    pub(super) fn bind<T>(
        mut self,
        value: impl AsExpression<T, Expression: QueryFragment<Pg> + 'a>,
    ) -> Self
    where
        T: SqlType + TypedExpressionType + SingleValue,
    {
        self.values.push(Box::new(value.as_expression()));
        self
    }

    /// Runs it. Returns the number of rows affected.
    pub(super) fn execute(&self, conn: &mut SchemaConnection<'_>) -> QueryResult<usize> {
        let (conn, schema) = conn.parts();
        self.named(schema).execute(conn)
    }

    /// Runs it. Returns all rows.
    pub(super) fn load<T>(&self, conn: &mut SchemaConnection<'_>) -> QueryResult<Vec<T>>
    where
        T: QueryableByName<Pg> + 'static,
    {
        let (conn, schema) = conn.parts();
        self.named(schema).load(conn)
    }

    /// Runs it. Returns the first row.
    pub(super) fn get_result<T>(&self, conn: &mut SchemaConnection<'_>) -> QueryResult<T>
    where
        T: QueryableByName<Pg> + 'static,
    {
        let (conn, schema) = conn.parts();
        self.named(schema).get_result(conn)
    }

    fn named(&self, schema: Option<&SchemaName>) -> NamedStatement<'_> {
        NamedStatement { sql: self.sql, values: &self.values, prefix: prefix(schema) }
    }
}

/// A statement with the schema of its tables.
struct NamedStatement<'a> {
    sql: &'static str,
    values: &'a [Box<dyn QueryFragment<Pg> + 'a>],
    prefix: String,
}

impl NamedStatement<'_> {
    /// Adds SQL, in which each mark is replaced.
    fn push(&self, sql: &str, out: &mut AstPass<'_, '_, Pg>) {
        let mut parts = sql.split('@');
        out.push_sql(parts.next().unwrap_or_default());
        for part in parts {
            out.push_sql(&self.prefix);
            out.push_sql(part);
        }
    }
}

impl QueryFragment<Pg> for NamedStatement<'_> {
    fn walk_ast<'b>(&'b self, mut out: AstPass<'_, 'b, Pg>) -> QueryResult<()> {
        let mut rest = self.sql;
        for (number, value) in (1..).zip(self.values) {
            let mark = format!("${number}");
            if let Some((before, after)) = rest.split_once(mark.as_str()) {
                self.push(before, &mut out);
                value.walk_ast(out.reborrow())?;
                rest = after;
            }
        }
        self.push(rest, &mut out);
        Ok(())
    }
}

impl QueryId for NamedStatement<'_> {
    type QueryId = ();
    // Diesel caches the prepared statement by its text.
    const HAS_STATIC_QUERY_ID: bool = false;
}

impl Query for NamedStatement<'_> {
    type SqlType = Untyped;
}

impl<C> RunQueryDsl<C> for NamedStatement<'_> {}

#[cfg(test)]
mod tests {
    use diesel::{debug_query, sql_types::Text};

    use super::*;

    #[test]
    fn tables_are_named_with_their_schema_and_values_are_bound_in_their_order() {
        let statement = statement("SELECT $1 FROM @rooms JOIN @nodes ON rooms.id = $2 OR $2 = ''")
            .bind::<Text>("a")
            .bind::<Text>("b");
        let sql = |schema| debug_query::<Pg, _>(&statement.named(schema)).to_string();
        let found = sql(None);
        assert!(found.starts_with("SELECT $1 FROM rooms JOIN nodes ON rooms.id = $2 OR $2 = ''"));
        let schema = SchemaName::new("a$1@\"b").unwrap();
        let found = sql(Some(&schema));
        let expected = r#"SELECT $1 FROM "a$1@""b".rooms JOIN "a$1@""b".nodes ON rooms.id = $2 OR"#;
        assert!(found.starts_with(expected), "{found}");
    }
}

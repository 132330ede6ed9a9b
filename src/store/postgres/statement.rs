//! SQL with values, prepared once for each connection.

use diesel::{
    RunQueryDsl,
    expression::{AsExpression, TypedExpressionType},
    pg::Pg,
    query_builder::{AstPass, Query, QueryFragment, QueryId},
    result::QueryResult,
    sql_types::{SingleValue, SqlType, Untyped},
};

/// SQL whose `$1`, `$2`, … are the values in their order. What it answers is read by name.
///
/// As `diesel::sql_query`, which the database has to parse anew each time.
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
}

impl QueryFragment<Pg> for Statement<'_> {
    fn walk_ast<'b>(&'b self, mut out: AstPass<'_, 'b, Pg>) -> QueryResult<()> {
        let mut rest = self.sql;
        for (number, value) in (1..).zip(&self.values) {
            let mark = format!("${number}");
            if let Some((before, after)) = rest.split_once(mark.as_str()) {
                out.push_sql(before);
                value.walk_ast(out.reborrow())?;
                rest = after;
            }
        }
        out.push_sql(rest);
        Ok(())
    }
}

impl QueryId for Statement<'_> {
    type QueryId = ();
    // So a statement is known by its text.
    const HAS_STATIC_QUERY_ID: bool = false;
}

impl Query for Statement<'_> {
    type SqlType = Untyped;
}

impl<C> RunQueryDsl<C> for Statement<'_> {}

//! The name of the schema that has the tables.

use std::{fmt, sync::Arc};

/// Name of a PostgreSQL schema: 1 to 63 bytes, without control characters, and not `pg_…`, which PostgreSQL
/// keeps for itself.
///
/// It is taken as it is, upper case included: `Presence` is not `presence`.
///
/// ```
/// use actix_presence::store::{InvalidSchemaName, SchemaName};
///
/// assert_eq!(SchemaName::new("presence")?.as_str(), "presence");
/// assert_eq!(SchemaName::new("pg_presence"), Err(InvalidSchemaName::Reserved));
/// # Ok::<(), InvalidSchemaName>(())
/// ```
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct SchemaName(Arc<str>);

/// Why a text is not the name of a schema.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum InvalidSchemaName {
    /// The name is empty.
    #[error("the name of the schema is empty")]
    Empty,
    /// PostgreSQL would cut the name.
    #[error("the name of the schema has {length} bytes, and may have {limit}")]
    TooLong {
        /// Its length in bytes.
        length: usize,
        /// The largest length.
        limit: usize,
    },
    /// The name contains a control character.
    #[error("the name of the schema contains a control character")]
    Control,
    /// The name belongs to PostgreSQL.
    #[error(
        "names of schemas that begin with `pg_`, and `information_schema`, belong to PostgreSQL"
    )]
    Reserved,
}

impl SchemaName {
    /// The largest length in bytes.
    pub const MAX_LENGTH: usize = 63;

    /// Checks a name.
    ///
    /// # Errors
    ///
    /// [`InvalidSchemaName`] says which rule it breaks.
    pub fn new(name: impl AsRef<str>) -> Result<Self, InvalidSchemaName> {
        let (name, limit) = (name.as_ref(), Self::MAX_LENGTH);
        if name.is_empty() {
            return Err(InvalidSchemaName::Empty);
        }
        if name.len() > limit {
            return Err(InvalidSchemaName::TooLong { length: name.len(), limit });
        }
        if name.contains(char::is_control) {
            return Err(InvalidSchemaName::Control);
        }
        if name.starts_with("pg_") || name == "information_schema" {
            return Err(InvalidSchemaName::Reserved);
        }
        Ok(Self(name.into()))
    }

    /// The name.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.0
    }

    /// The name as SQL, in quotes.
    pub(super) fn quoted(&self) -> String {
        quoted(&self.0)
    }
}

/// A name as SQL, in quotes.
pub(super) fn quoted(name: &str) -> String {
    format!("\"{}\"", name.replace('"', "\"\""))
}

impl fmt::Display for SchemaName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_name_is_what_postgresql_takes_and_is_quoted() {
        for (name, sql) in [
            ("presence", r#""presence""#),
            ("My schema", r#""My schema""#),
            (r#"a"; DROP TABLE b; --"#, r#""a""; DROP TABLE b; --""#),
            ("räume", r#""räume""#),
        ] {
            assert_eq!(SchemaName::new(name).unwrap().quoted(), sql);
        }
        assert!(SchemaName::new("x".repeat(63)).is_ok());
        for (name, why) in [
            ("", InvalidSchemaName::Empty),
            ("a\0", InvalidSchemaName::Control),
            ("pg_temp", InvalidSchemaName::Reserved),
            ("information_schema", InvalidSchemaName::Reserved),
        ] {
            assert_eq!(SchemaName::new(name), Err(why));
        }
        let long = SchemaName::new("ä".repeat(32));
        assert_eq!(long, Err(InvalidSchemaName::TooLong { length: 64, limit: 63 }));
    }
}

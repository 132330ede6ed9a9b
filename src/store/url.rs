//! Where a database is.

use std::{
    fmt,
    path::{Path, PathBuf},
    str::FromStr,
};

#[cfg(feature = "postgres")]
use super::PostgresUrl;

/// Where the database is: `sqlite://PATH`, `sqlite::memory:`, or `postgres://…` with the feature
/// `postgres`.
///
/// The path of a file is what follows `sqlite://`, as it stands: nothing in it has a meaning of its own, not
/// `?`, `#` or `%`, and a name such as `:memory:` or `file:x` is a file's name. It may be relative.
///
/// ```
/// use actix_presence::store::{DatabaseUrl, InvalidDatabaseUrl};
///
/// let url: DatabaseUrl = "sqlite://data/what?.db".parse()?;
/// assert_eq!(url.path().unwrap().to_str(), Some("data/what?.db"));
/// assert_eq!("sqlite::memory:".parse(), Ok(DatabaseUrl::SqliteMemory));
/// # Ok::<(), InvalidDatabaseUrl>(())
/// ```
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum DatabaseUrl {
    /// A SQLite database that lives as long as its store.
    SqliteMemory,
    /// A file of SQLite.
    SqliteFile(SqlitePath),
    /// A database of PostgreSQL, which several nodes may share.
    #[cfg(feature = "postgres")]
    Postgres(PostgresUrl),
}

/// Path of a SQLite file: not empty, without NUL.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SqlitePath(String);

/// Why a text is no [`DatabaseUrl`]. Never repeats the text: it may hold a password.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum InvalidDatabaseUrl {
    /// The text has none of the known forms.
    #[error("a database is `sqlite://PATH`, `sqlite::memory:` or `postgres://…`")]
    UnknownForm,
    /// There is no path after `sqlite://`.
    #[error("`sqlite://` needs the path of a file after it")]
    EmptyPath,
    /// The path has a NUL character.
    #[error("the path of a database has no NUL character")]
    Nul,
    /// The text begins as one for PostgreSQL, and goes on otherwise.
    #[error(
        "a database of PostgreSQL is `postgres://USER:PASSWORD@HOST:PORT/NAME?OPTION=VALUE`, with \
        other characters in a part written as `%xx`"
    )]
    MalformedPostgres,
    /// The text names PostgreSQL, which this build leaves out.
    #[error("PostgreSQL is not in this build; use `sqlite://PATH` or `sqlite::memory:`")]
    NotInThisBuild,
}

impl DatabaseUrl {
    /// Whether several nodes can share the database.
    #[must_use]
    pub fn is_shared(&self) -> bool {
        !matches!(self, Self::SqliteMemory | Self::SqliteFile(_))
    }

    /// The file, if the database is one.
    #[must_use]
    pub fn path(&self) -> Option<&Path> {
        match self {
            Self::SqliteMemory => None,
            Self::SqliteFile(path) => Some(path.as_path()),
            #[cfg(feature = "postgres")]
            Self::Postgres(_) => None,
        }
    }
}

impl SqlitePath {
    /// Checks the path of a file.
    ///
    /// # Errors
    ///
    /// [`InvalidDatabaseUrl::EmptyPath`] or [`InvalidDatabaseUrl::Nul`].
    pub fn new(path: impl Into<String>) -> Result<Self, InvalidDatabaseUrl> {
        match path.into() {
            path if path.is_empty() => Err(InvalidDatabaseUrl::EmptyPath),
            path if path.contains('\0') => Err(InvalidDatabaseUrl::Nul),
            path => Ok(Self(path)),
        }
    }

    /// The path as it was given.
    #[must_use]
    pub fn as_path(&self) -> &Path {
        Path::new(&self.0)
    }

    /// The path in a form in which neither Diesel nor SQLite sees more than a path.
    ///
    /// Both look at how a name begins (`sqlite://`, `file:`, `:memory:`), so it begins with `/` or `./`.
    pub(super) fn for_sqlite(&self) -> String {
        if self.as_path().is_absolute() { self.0.clone() } else { format!("./{}", self.0) }
    }

    /// The directory the file is in.
    pub(super) fn directory(&self) -> PathBuf {
        match self.as_path().parent() {
            Some(parent) if !parent.as_os_str().is_empty() => parent.to_owned(),
            _ => PathBuf::from("."),
        }
    }
}

impl FromStr for DatabaseUrl {
    type Err = InvalidDatabaseUrl;

    fn from_str(url: &str) -> Result<Self, InvalidDatabaseUrl> {
        if url == "sqlite::memory:" {
            return Ok(Self::SqliteMemory);
        }
        if let Some(path) = url.strip_prefix("sqlite://") {
            return SqlitePath::new(path).map(Self::SqliteFile);
        }
        if url.starts_with("postgres://") || url.starts_with("postgresql://") {
            #[cfg(feature = "postgres")]
            return PostgresUrl::new(url).map(Self::Postgres);
            #[cfg(not(feature = "postgres"))]
            return Err(InvalidDatabaseUrl::NotInThisBuild);
        }
        Err(InvalidDatabaseUrl::UnknownForm)
    }
}

impl fmt::Display for DatabaseUrl {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::SqliteMemory => f.write_str("sqlite::memory:"),
            Self::SqliteFile(path) => write!(f, "sqlite://{}", path.0),
            #[cfg(feature = "postgres")]
            Self::Postgres(url) => url.fmt(f),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_path_is_what_follows_and_comes_back_as_it_was() {
        let paths =
            ["a.db", "/a b/ü.db", "a?mode=ro", "a#b", "%41", ":memory:", "file:x", "//x", " "];
        for path in paths {
            let url: DatabaseUrl = format!("sqlite://{path}").parse().unwrap();
            assert_eq!(url.path(), Some(Path::new(path)));
            assert_eq!(url.to_string(), format!("sqlite://{path}"));
        }
    }

    #[test]
    fn sqlite_never_sees_more_than_a_path() {
        for (path, given) in [(":memory:", "./:memory:"), ("file:x", "./file:x"), ("/a", "/a")] {
            assert_eq!(SqlitePath::new(path).unwrap().for_sqlite(), given);
        }
    }

    #[test]
    fn anything_else_is_refused_without_repeating_it() {
        use InvalidDatabaseUrl::{EmptyPath, Nul, UnknownForm};
        for (url, error) in [
            ("mysql://ada:s3cret@db/x", UnknownForm),
            ("sqlite:s3cret.db", UnknownForm),
            ("s3cret.db", UnknownForm),
            ("", UnknownForm),
            ("sqlite://", EmptyPath),
            ("sqlite://s3cret\0", Nul),
        ] {
            assert_eq!(url.parse::<DatabaseUrl>(), Err(error), "{url}");
            assert!(!error.to_string().contains("s3cret"));
        }
        assert!(UnknownForm.to_string().contains("sqlite://PATH"));
        #[cfg(not(feature = "postgres"))]
        for url in ["postgres://ada:s3cret@db/x", "postgresql://ada:s3cret@db/x"] {
            assert_eq!(url.parse::<DatabaseUrl>(), Err(InvalidDatabaseUrl::NotInThisBuild));
        }
    }
}

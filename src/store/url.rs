//! The URLs of databases.

use std::{fmt, path::Path, str::FromStr};

/// The URL of a database: `sqlite://PATH` or `sqlite::memory:` with the feature `sqlite`, `postgres://…`
/// with the feature `postgres`.
///
/// The path of a file is what follows `sqlite://`, verbatim: `?`, `#` and `%` have no special meaning,
/// and `:memory:` or `file:x` is the name of a file. It may be relative.
///
/// ```
/// # #[cfg(feature = "sqlite")] {
/// use actix_presence::store::DatabaseUrl;
///
/// let url: DatabaseUrl = "sqlite://data/what?.db".parse()?;
/// assert_eq!(url.path().unwrap().to_str(), Some("data/what?.db"));
/// assert_eq!("sqlite::memory:".parse(), Ok(DatabaseUrl::SqliteMemory));
/// # }
/// # Ok::<(), actix_presence::store::InvalidDatabaseUrl>(())
/// ```
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum DatabaseUrl {
    /// A SQLite database that lives as long as its store.
    #[cfg(feature = "sqlite")]
    SqliteMemory,
    /// A SQLite file.
    #[cfg(feature = "sqlite")]
    SqliteFile(SqlitePath),
    /// A PostgreSQL database, which several nodes may share.
    #[cfg(feature = "postgres")]
    Postgres(PostgresUrl),
}

/// Why a text is not a [`DatabaseUrl`]. Never repeats the text: it may contain a password.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum InvalidDatabaseUrl {
    /// The text has an unknown form.
    #[error("a database URL is `sqlite://PATH`, `sqlite::memory:` or `postgres://…`")]
    UnknownForm,
    /// There is no path after `sqlite://`.
    #[error("`sqlite://` must be followed by the path of a file")]
    EmptyPath,
    /// The path contains a NUL character.
    #[error("the path of a database must not contain a NUL character")]
    Nul,
    /// The URL of a PostgreSQL database is malformed.
    #[error(
        "a PostgreSQL URL is `postgres://USER:PASSWORD@HOST:PORT/NAME?OPTION=VALUE`, with special \
        characters in a part written as `%xx`"
    )]
    MalformedPostgres,
    /// The database is not supported by this build.
    #[error("this build does not support this database: enable the feature `{feature}`")]
    NotInThisBuild {
        /// The missing feature.
        feature: &'static str,
    },
}

impl DatabaseUrl {
    /// Whether several nodes can share the database.
    #[must_use]
    pub fn is_shared(&self) -> bool {
        match self {
            #[cfg(feature = "sqlite")]
            Self::SqliteMemory | Self::SqliteFile(_) => false,
            #[cfg(feature = "postgres")]
            Self::Postgres(_) => true,
        }
    }

    /// The file, if the database is one.
    #[must_use]
    pub fn path(&self) -> Option<&Path> {
        match self {
            #[cfg(feature = "sqlite")]
            Self::SqliteFile(path) => Some(path.as_path()),
            _ => None,
        }
    }
}

impl FromStr for DatabaseUrl {
    type Err = InvalidDatabaseUrl;

    fn from_str(url: &str) -> Result<Self, InvalidDatabaseUrl> {
        if url == "sqlite::memory:" || url.starts_with("sqlite://") {
            #[cfg(not(feature = "sqlite"))]
            return Err(InvalidDatabaseUrl::NotInThisBuild { feature: "sqlite" });
            #[cfg(feature = "sqlite")]
            return match url.strip_prefix("sqlite://") {
                Some(path) => SqlitePath::new(path).map(Self::SqliteFile),
                None => Ok(Self::SqliteMemory),
            };
        }
        if url.starts_with("postgres://") || url.starts_with("postgresql://") {
            #[cfg(not(feature = "postgres"))]
            return Err(InvalidDatabaseUrl::NotInThisBuild { feature: "postgres" });
            #[cfg(feature = "postgres")]
            return PostgresUrl::new(url).map(Self::Postgres);
        }
        Err(InvalidDatabaseUrl::UnknownForm)
    }
}

impl fmt::Display for DatabaseUrl {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            #[cfg(feature = "sqlite")]
            Self::SqliteMemory => f.write_str("sqlite::memory:"),
            #[cfg(feature = "sqlite")]
            Self::SqliteFile(path) => write!(f, "sqlite://{}", path.0),
            #[cfg(feature = "postgres")]
            Self::Postgres(url) => url.fmt(f),
        }
    }
}

/// The path of a SQLite file: not empty, without NUL.
#[cfg(feature = "sqlite")]
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SqlitePath(String);

#[cfg(feature = "sqlite")]
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

    /// The path in a form that neither Diesel nor SQLite takes for anything else (`sqlite://`, `file:`,
    /// `:memory:`): it begins with `/` or `./`.
    pub(super) fn for_sqlite(&self) -> String {
        if self.as_path().is_absolute() { self.0.clone() } else { format!("./{}", self.0) }
    }
}

/// The URL of a PostgreSQL database as `psql` takes it,
/// `postgres://USER:PASSWORD@HOST:PORT/NAME?OPTION=VALUE`.
///
/// Missing parts have the defaults of `psql`, including the environment (`PGPASSWORD`). Several hosts are
/// separated by commas. Its `Display` and `Debug` show neither the password nor the options.
///
/// ```
/// use actix_presence::store::PostgresUrl;
///
/// let url = PostgresUrl::new("postgres://ada:s3cret@db:5432/presence?sslmode=require")?;
/// assert_eq!(url.to_string(), "postgres://ada@db:5432/presence");
/// # Ok::<(), actix_presence::store::InvalidDatabaseUrl>(())
/// ```
#[cfg(feature = "postgres")]
#[derive(Clone, PartialEq, Eq)]
pub struct PostgresUrl {
    url: String,
    redacted: String,
}

#[cfg(feature = "postgres")]
impl PostgresUrl {
    /// Checks the URL, as far as libpq would otherwise repeat its parts in error messages.
    ///
    /// # Errors
    ///
    /// [`InvalidDatabaseUrl::UnknownForm`] or [`InvalidDatabaseUrl::MalformedPostgres`].
    pub fn new(url: impl Into<String>) -> Result<Self, InvalidDatabaseUrl> {
        let mut url = url.into();
        if url.ends_with('?') {
            url.pop();
        }
        let rest = ["postgres://", "postgresql://"].iter().find_map(|form| url.strip_prefix(form));
        let rest = rest.ok_or(InvalidDatabaseUrl::UnknownForm)?;
        let redacted = redacted(rest).ok_or(InvalidDatabaseUrl::MalformedPostgres)?;
        Ok(Self { url, redacted })
    }

    /// The URL with further options, unless it has them.
    pub(super) fn with_options(&self, options: &[(&str, String)]) -> String {
        let query = self.url.split_once('?').map(|(_, query)| query);
        let own: Vec<_> = query.into_iter().flat_map(|query| query.split('&')).collect();
        let has = |key: &str| own.iter().any(|option| option.split('=').next() == Some(key));
        let mut url = self.url.clone();
        for (key, value) in options.iter().filter(|(key, _)| !has(key)) {
            url.push(if url.contains('?') { '&' } else { '?' });
            url.extend([key, "=", value]);
        }
        url
    }
}

/// The URL without its password and its options. `None` if it is so malformed that libpq would repeat a
/// part of it in an error message: that may be a password in the wrong place.
#[cfg(feature = "postgres")]
fn redacted(rest: &str) -> Option<String> {
    let is_option = |option: &str| {
        option.split_once('=').is_some_and(|(key, value)| {
            let name = |c: char| c.is_ascii_alphanumeric() || c == '_';
            !key.is_empty() && key.chars().all(name) && !value.contains('=')
        })
    };
    let (place, options) = match rest.split_once('?') {
        Some((place, query)) => (place, query.split('&').all(is_option)),
        None => (rest, true),
    };
    let (authority, name) = place.split_at(place.find('/').unwrap_or(place.len()));
    let (user, hosts) = match authority.split_once('@') {
        Some((user, hosts)) => (&user[..user.find(':').unwrap_or(user.len())], hosts),
        None => ("", authority),
    };
    let readable = options
        && is_escaped(rest)
        && hosts.split(',').all(is_host)
        && !name.contains('@')
        && name.rfind('/').is_none_or(|last| last == 0);
    let user = if authority.contains('@') { format!("{user}@") } else { String::new() };
    readable.then(|| format!("postgres://{user}{hosts}{name}"))
}

/// Whether each `%` is followed by two digits, and there are no blanks.
#[cfg(feature = "postgres")]
fn is_escaped(text: &str) -> bool {
    let code = |part: &str| {
        let digits = part.as_bytes().get(..2);
        digits.is_some_and(|digits| digits.iter().all(u8::is_ascii_hexdigit) && digits != b"00")
    };
    !text.contains(|c: char| c.is_control() || c.is_whitespace())
        && text.split('%').skip(1).all(code)
}

/// Whether a text is a host with an optional port; an IPv6 address is in brackets.
#[cfg(feature = "postgres")]
fn is_host(host: &str) -> bool {
    let (name, port) = match host.split_once(']') {
        Some((name, port)) => (name.strip_prefix('[').filter(|name| !name.is_empty()), port),
        None => (Some(host), &host[host.find(':').unwrap_or(host.len())..]),
    };
    let digits = |port: &str| port.chars().all(|c| c.is_ascii_digit());
    name.is_some_and(|name| !name.contains(['[', '@']))
        && (port.is_empty() || port.strip_prefix(':').is_some_and(digits))
}

#[cfg(feature = "postgres")]
impl fmt::Display for PostgresUrl {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.redacted)
    }
}

#[cfg(feature = "postgres")]
impl fmt::Debug for PostgresUrl {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Debug::fmt(&self.redacted, f)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[cfg(feature = "sqlite")]
    #[test]
    fn a_path_is_what_follows_and_is_displayed_as_it_was() {
        let paths =
            ["a.db", "/a b/ü.db", "a?mode=ro", "a#b", "%41", ":memory:", "file:x", "//x", " "];
        for path in paths {
            let url: DatabaseUrl = format!("sqlite://{path}").parse().unwrap();
            assert_eq!(url.path(), Some(Path::new(path)));
            assert_eq!(url.to_string(), format!("sqlite://{path}"));
        }
    }

    #[cfg(feature = "sqlite")]
    #[test]
    fn sqlite_never_sees_more_than_a_path() {
        for (path, given) in [(":memory:", "./:memory:"), ("file:x", "./file:x"), ("/a", "/a")] {
            assert_eq!(SqlitePath::new(path).unwrap().for_sqlite(), given);
        }
    }

    #[test]
    fn anything_else_is_refused_without_repeating_it() {
        use InvalidDatabaseUrl::{EmptyPath, NotInThisBuild, Nul, UnknownForm};
        for (url, mut error) in [
            ("mysql://ada:s3cret@db/x", UnknownForm),
            ("sqlite:s3cret.db", UnknownForm),
            ("s3cret.db", UnknownForm),
            ("", UnknownForm),
            ("sqlite://", EmptyPath),
            ("sqlite://s3cret\0", Nul),
        ] {
            if cfg!(not(feature = "sqlite")) && url.starts_with("sqlite://") {
                error = NotInThisBuild { feature: "sqlite" };
            }
            assert_eq!(url.parse::<DatabaseUrl>(), Err(error), "{url}");
            assert!(!error.to_string().contains("s3cret"));
        }
        assert!(UnknownForm.to_string().contains("sqlite://PATH"));
        #[cfg(not(feature = "postgres"))]
        for url in ["postgres://ada:s3cret@db/x", "postgresql://ada:s3cret@db/x"] {
            let missing = NotInThisBuild { feature: "postgres" };
            assert_eq!(url.parse::<DatabaseUrl>(), Err(missing));
        }
    }

    #[cfg(feature = "postgres")]
    #[test]
    fn a_url_never_shows_its_password() {
        for (url, shown) in [
            ("postgres://", "postgres://"),
            ("postgresql://db", "postgres://db"),
            ("postgres:///presence", "postgres:///presence"),
            ("postgres://ada:s3cret@db:5432/presence", "postgres://ada@db:5432/presence"),
            ("postgres://ada:@db", "postgres://ada@db"),
            ("postgres://ada:s3cret%40x@a:1,b:2/x", "postgres://ada@a:1,b:2/x"),
            (
                "postgres://a@[::1]:5432/x?password=s3cret&sslmode=require",
                "postgres://a@[::1]:5432/x",
            ),
            ("postgres://[::1]/x?host=%2Frun%2Fpg", "postgres://[::1]/x"),
        ] {
            let parsed: DatabaseUrl = url.parse().unwrap();
            assert_eq!(parsed.to_string(), shown);
            assert!(!format!("{parsed:?}").contains("s3cret"), "{parsed:?}");
            assert_eq!(parsed.path(), None);
        }
    }

    #[cfg(feature = "postgres")]
    #[test]
    fn what_libpq_would_repeat_is_refused() {
        for url in [
            "postgres://ada:s3/cret@db/x",
            "postgres://ada:s3@cret@db/x",
            "postgres://ada:s3?cret@db/x",
            "postgres://ada:s3#cret:x",
            "postgres://db:s3cret/x",
            "postgres://ada:s3%ret@db/x",
            "postgres://ada:s3 cret@db/x",
            "postgres://ada:s3cret%00@db/x",
            "postgres://db/x?s3cret",
            "postgres://db/x?password=s3=cret",
            "postgres://db/x?=s3cret",
            "postgres://ada:s3cret@[::1/x",
            "postgres://ada:s3cret@[]/x",
            "postgres://ada:s3cret@[::1]x/x",
        ] {
            let refused = url.parse::<DatabaseUrl>().unwrap_err();
            assert_eq!(refused, InvalidDatabaseUrl::MalformedPostgres, "{url}");
        }
    }

    #[cfg(feature = "postgres")]
    #[test]
    fn options_of_the_url_come_first() {
        let options = [("a", "1".to_owned()), ("b", "2".to_owned())];
        for (url, expected) in [
            ("postgres://db/x", "postgres://db/x?a=1&b=2"),
            ("postgres://db/x?b=3", "postgres://db/x?b=3&a=1"),
            ("postgres://db/x?", "postgres://db/x?a=1&b=2"),
            ("postgres://db/x?bb=3", "postgres://db/x?bb=3&a=1&b=2"),
        ] {
            assert_eq!(PostgresUrl::new(url).unwrap().with_options(&options), expected);
        }
    }
}

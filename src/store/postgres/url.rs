//! Where a database of PostgreSQL is.

use std::fmt;

use crate::store::InvalidDatabaseUrl;

/// Where a database of PostgreSQL is: a URL as `psql` takes it,
/// `postgres://USER:PASSWORD@HOST:PORT/NAME?OPTION=VALUE`.
///
/// What is left out has the defaults of `psql`, the variables of the environment (`PGPASSWORD`) too.
/// Several hosts are separated by commas. Shown, it has neither the password nor the options.
///
/// ```
/// use actix_presence::store::PostgresUrl;
///
/// let url = PostgresUrl::new("postgres://ada:s3cret@db:5432/presence?sslmode=require")?;
/// assert_eq!(url.to_string(), "postgres://ada@db:5432/presence");
/// # Ok::<(), actix_presence::store::InvalidDatabaseUrl>(())
/// ```
#[derive(Clone, PartialEq, Eq)]
pub struct PostgresUrl {
    url: String,
    shown: String,
    /// Whether it has options already.
    has_query: bool,
}

impl PostgresUrl {
    /// Checks the URL, as far as that keeps a password out of the messages of others.
    ///
    /// # Errors
    ///
    /// [`InvalidDatabaseUrl::UnknownForm`] or [`InvalidDatabaseUrl::MalformedPostgres`].
    pub fn new(url: impl Into<String>) -> Result<Self, InvalidDatabaseUrl> {
        let mut url = url.into();
        if url.ends_with('?') {
            url.pop();
        }
        let shown = shown(&url)?;
        let has_query = url.contains('?');
        Ok(Self { url, shown, has_query })
    }

    /// The URL with further options, which those that it has come before.
    pub(super) fn with_options(&self, options: &[(&str, String)]) -> String {
        let mut url = self.url.clone();
        let mut separator = if self.has_query { '&' } else { '?' };
        for (key, value) in options {
            if !self.has_option(key) {
                url.push(separator);
                url.push_str(key);
                url.push('=');
                url.push_str(value);
                separator = '&';
            }
        }
        url
    }

    fn has_option(&self, key: &str) -> bool {
        let query = self.url.split_once('?').map_or("", |(_, query)| query);
        query.split('&').any(|option| option.split_once('=').is_some_and(|(k, _)| k == key))
    }
}

/// The URL without its secrets; it is read as libpq does, which repeats in its errors what it takes
/// for a port or an option.
fn shown(url: &str) -> Result<String, InvalidDatabaseUrl> {
    const MALFORMED: InvalidDatabaseUrl = InvalidDatabaseUrl::MalformedPostgres;
    let rest = ["postgres://", "postgresql://"].iter().find_map(|form| url.strip_prefix(form));
    let rest = rest.ok_or(InvalidDatabaseUrl::UnknownForm)?;
    if rest.chars().any(|c| c.is_control() || c.is_whitespace()) || !is_escaped(rest) {
        return Err(MALFORMED);
    }
    let (place, query) = rest.split_once('?').unwrap_or((rest, ""));
    if !query.is_empty() && !query.split('&').all(is_option) {
        return Err(MALFORMED);
    }
    let (authority, name) = match place.split_once('/') {
        Some((authority, name)) => (authority, Some(name)),
        None => (place, None),
    };
    let (user, hosts) = match authority.split_once('@') {
        Some((user, hosts)) => (Some(user.split_once(':').map_or(user, |(user, _)| user)), hosts),
        None => (None, authority),
    };
    if hosts.contains('@') || name.is_some_and(|name| name.contains(['/', '@'])) {
        return Err(MALFORMED);
    }
    if !hosts.split(',').all(is_host) {
        return Err(MALFORMED);
    }
    let user = user.map(|user| format!("{user}@")).unwrap_or_default();
    let name = name.map(|name| format!("/{name}")).unwrap_or_default();
    Ok(format!("postgres://{user}{hosts}{name}"))
}

/// Whether each `%` is followed by two digits.
fn is_escaped(text: &str) -> bool {
    let mut rest = text.split('%');
    rest.next();
    rest.all(|part| {
        let digits = part.as_bytes().get(..2);
        digits.is_some_and(|digits| digits.iter().all(u8::is_ascii_hexdigit) && digits != b"00")
    })
}

fn is_option(option: &str) -> bool {
    let name = |c: char| c.is_ascii_alphanumeric() || c == '_';
    let parts = option.split_once('=');
    parts.is_some_and(|(key, value)| {
        !key.is_empty() && key.chars().all(name) && !value.contains('=')
    })
}

fn is_host(host: &str) -> bool {
    let (name, port) = match host.rsplit_once(':') {
        // An address of IPv6 has colons of its own, in brackets.
        Some((name, port)) if !port.ends_with(']') => (name, port),
        _ => (host, ""),
    };
    let in_brackets = name.starts_with('[') && name.ends_with(']');
    (in_brackets || !name.contains(':')) && port.chars().all(|c| c.is_ascii_digit())
}

impl fmt::Display for PostgresUrl {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.shown)
    }
}

impl fmt::Debug for PostgresUrl {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Debug::fmt(&self.shown, f)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::store::DatabaseUrl;

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
        ] {
            let refused = url.parse::<DatabaseUrl>().unwrap_err();
            assert_eq!(refused, InvalidDatabaseUrl::MalformedPostgres, "{url}");
        }
    }

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

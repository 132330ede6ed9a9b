//! Times as they stand in SQLite.

use std::time::Duration;

use chrono::{DateTime, NaiveDateTime, TimeDelta, Utc};
use diesel::{
    deserialize::{self, FromSql, FromSqlRow},
    expression::AsExpression,
    serialize::{self, IsNull, Output, ToSql},
    sql_types::Timestamp,
    sqlite::{Sqlite, SqliteValue},
};
use serde::{Serialize, Serializer};

/// A time as text in UTC: `YYYY-MM-DD HH:MM:SS`, with six digits of microseconds unless they are 0.
///
/// The text sorts as the time does, so SQL can compare and index it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, AsExpression, FromSqlRow)]
#[diesel(sql_type = Timestamp)]
pub(super) struct Stamp(pub(super) DateTime<Utc>);

impl Stamp {
    /// The last time that sorts as text; later ones have five digits of year.
    fn last() -> DateTime<Utc> {
        DateTime::from_timestamp(253_402_300_799, 0).unwrap_or_default()
    }

    /// The time that is `duration` later, or the last one.
    pub(super) fn after(time: DateTime<Utc>, duration: Duration) -> Self {
        let duration = TimeDelta::from_std(duration).ok();
        let later = duration.and_then(|duration| time.checked_add_signed(duration));
        Self(later.map_or_else(Self::last, |later| later.min(Self::last())))
    }

    fn text(self) -> String {
        let format = match self.0.timestamp_subsec_micros() {
            0 => "%F %T",
            _ => "%F %T%.6f",
        };
        self.0.format(format).to_string()
    }
}

impl Serialize for Stamp {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_str(&self.text())
    }
}

impl ToSql<Timestamp, Sqlite> for Stamp {
    fn to_sql<'b>(&'b self, out: &mut Output<'b, '_, Sqlite>) -> serialize::Result {
        out.set_value(self.text());
        Ok(IsNull::No)
    }
}

impl FromSql<Timestamp, Sqlite> for Stamp {
    fn from_sql(value: SqliteValue<'_, '_, '_>) -> deserialize::Result<Self> {
        let time = <NaiveDateTime as FromSql<Timestamp, Sqlite>>::from_sql(value)?;
        Ok(Self(time.and_utc()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_time_is_text_that_sorts_as_the_time_does() {
        let text = |micros| Stamp(DateTime::from_timestamp_micros(micros).unwrap()).text();
        assert_eq!(text(0), "1970-01-01 00:00:00");
        assert_eq!(text(1_500_000), "1970-01-01 00:00:01.500000");
        let times = [0, 1, 500_000, 999_999, 1_000_000, 1_000_001, 60_000_000];
        assert!(times.map(text).is_sorted());
    }

    #[test]
    fn a_time_that_is_too_late_is_the_last_one() {
        let text = |duration| Stamp::after(DateTime::UNIX_EPOCH, duration).text();
        assert_eq!(text(Duration::from_secs(15)), "1970-01-01 00:00:15");
        assert_eq!(text(Duration::from_secs(300_000_000_000)), "9999-12-31 23:59:59");
        assert_eq!(text(Duration::MAX), "9999-12-31 23:59:59");
    }
}

//! The fields of a log line: `name=value`, where a value that could be taken for something else is quoted.
//!
//! Names of rooms and nodes are chosen by clients and operators. Unquoted, a room named
//! `x reason="y"` would look like two fields.

use std::{
    error::Error,
    fmt::{self, Debug},
};

use tracing::field::{Field, Visit};
use tracing_subscriber::{
    field::RecordFields,
    fmt::{FormatFields, format::Writer},
};

use crate::error_chain::error_chain;

/// Formats the fields of events and spans.
#[derive(Clone, Copy, Debug)]
pub(super) struct QuotedFields;

impl<'writer> FormatFields<'writer> for QuotedFields {
    fn format_fields<R: RecordFields>(&self, writer: Writer<'writer>, fields: R) -> fmt::Result {
        let mut visitor = FieldWriter { writer, empty: true, result: Ok(()) };
        fields.record(&mut visitor);
        visitor.result
    }
}

struct FieldWriter<'a> {
    writer: Writer<'a>,
    empty: bool,
    result: fmt::Result,
}

impl FieldWriter<'_> {
    fn write(&mut self, field: &Field, value: &str) {
        let space = if self.empty { "" } else { " " };
        self.empty = false;
        let name = field.name();
        let written = match name {
            "message" => write!(self.writer, "{space}{value}"),
            // What `log` records of a line beside its text.
            _ if name.starts_with("log.") => return,
            _ if is_plain(value) => write!(self.writer, "{space}{name}={value}"),
            _ => write!(self.writer, "{space}{name}={value:?}"),
        };
        self.result = self.result.and(written);
    }
}

impl Visit for FieldWriter<'_> {
    fn record_str(&mut self, field: &Field, value: &str) {
        match field.name() {
            "message" => self.write(field, value),
            _ => self.write(field, &format!("{value:?}")),
        }
    }

    fn record_error(&mut self, field: &Field, value: &(dyn Error + 'static)) {
        self.write(field, &error_chain(value));
    }

    fn record_debug(&mut self, field: &Field, value: &dyn Debug) {
        self.write(field, &format!("{value:?}"));
    }
}

/// Whether a value needs no quotes: it is one word, or a text that is quoted already.
fn is_plain(value: &str) -> bool {
    let inner = value.strip_prefix('"').and_then(|rest| rest.strip_suffix('"'));
    if let Some(inner) = inner {
        let mut escaped = false;
        return inner.chars().all(|c| {
            let ends = c == '"' && !escaped;
            escaped = c == '\\' && !escaped;
            !ends && !c.is_control()
        });
    }
    !value.is_empty()
        && value.chars().all(|c| !c.is_whitespace() && !c.is_control() && !matches!(c, '"' | '='))
}

#[cfg(test)]
mod tests {
    use std::{
        io,
        sync::{Arc, Mutex},
    };

    use super::*;

    #[derive(Clone, Default)]
    struct Lines(Arc<Mutex<Vec<u8>>>);

    impl io::Write for Lines {
        fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
            self.0.lock().unwrap().extend(bytes);
            Ok(bytes.len())
        }

        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }

    fn logged(log: impl FnOnce()) -> String {
        let lines = Lines::default();
        let writer = lines.clone();
        let subscriber = tracing_subscriber::fmt()
            .fmt_fields(QuotedFields)
            .with_ansi(false)
            .without_time()
            .with_level(false)
            .with_target(false)
            .with_writer(move || writer.clone())
            .finish();
        tracing::subscriber::with_default(subscriber, log);
        let text = String::from_utf8(lines.0.lock().unwrap().clone()).unwrap();
        text.trim_end().to_owned()
    }

    #[test]
    fn a_name_cannot_forge_a_field() {
        for (room, shown) in [
            ("lobby", "lobby"),
            ("café/7", "café/7"),
            ("a b", r#""a b""#),
            (r#"x reason="y""#, r#""x reason=\"y\"""#),
            (r#""x" reason="y""#, r#""\"x\" reason=\"y\"""#),
            ("a=b", r#""a=b""#),
        ] {
            let line = logged(|| tracing::warn!(%room, count = 3, "pruned"));
            assert_eq!(line, format!("pruned room={shown} count=3"));
        }
    }

    #[test]
    fn an_error_is_one_line_with_its_causes() {
        #[derive(Debug, thiserror::Error)]
        #[error("cannot connect")]
        struct Outer(#[source] io::Error);
        let error = Outer(io::Error::other("refused\n\tis it running?"));
        let line = logged(|| {
            let error: &dyn Error = &error;
            tracing::error!(error, why = "x", "no database");
        });
        assert_eq!(
            line,
            r#"no database error="cannot connect: refused\n\tis it running?" why="x""#
        );
    }
}

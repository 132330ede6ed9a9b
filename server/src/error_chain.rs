//! Errors of other crates as text. Those of `actix-presence` say their cause themselves.

use std::error::Error;

/// An error followed by its causes: `a: b: c`.
pub(crate) fn error_chain(error: &dyn Error) -> String {
    let mut text = error.to_string();
    let mut source = error.source();
    while let Some(cause) = source {
        let cause_text = cause.to_string();
        // Some errors of other crates repeat their cause in their own text.
        if !text.ends_with(&cause_text) {
            text = format!("{text}: {cause_text}");
        }
        source = cause.source();
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[derive(Debug, thiserror::Error)]
    enum Layered {
        #[error("cannot start")]
        Start(#[source] Box<Layered>),
        #[error("cannot open: disk full")]
        RepeatsItsCause(#[source] Box<Layered>),
        #[error("disk full")]
        Disk,
    }

    #[test]
    fn an_error_is_printed_with_each_cause_once() {
        let error = Layered::Start(Box::new(Layered::RepeatsItsCause(Box::new(Layered::Disk))));
        assert_eq!(error_chain(&error), "cannot start: cannot open: disk full");
        assert_eq!(
            error_chain(&Layered::Start(Box::new(Layered::Disk))),
            "cannot start: disk full"
        );
        assert_eq!(error_chain(&Layered::Disk), "disk full");
    }
}

//! How errors say their cause.
//!
//! The `Display` of each public error says all of it on one line: what happened, and why. So its
//! [`source`](Error::source) is `None`: who prints an error with its sources, such as anyhow, `tracing` or the server,
//! would print the cause twice otherwise. The cause itself is a field of the variant. Where that field is named
//! `source` it is written `r#source`, which `thiserror` does not take for the source.

use std::{error::Error, iter::successors};

/// An error with its sources on one line, as `a: b: c`.
pub(crate) fn error_chain(error: &(dyn Error + 'static)) -> String {
    let mut chain = String::new();
    for error in successors(Some(error), |&error| error.source()) {
        let text = error.to_string();
        let lines: Vec<_> = text.lines().map(str::trim).filter(|line| !line.is_empty()).collect();
        let text = lines.join(" ");
        // Some errors of other crates repeat their source in their own text.
        if !chain.ends_with(&text) {
            chain = if chain.is_empty() { text } else { format!("{chain}: {text}") };
        }
    }
    chain
}

//! Options in the environment, as containers pass them: with a line break at the end where they were read
//! from a file, and empty where nothing is meant.

use std::ffi::OsString;

const PREFIX: &str = "PRESENCE_";

/// Removes the last line break of each variable `PRESENCE_…`, and the variables that are empty then.
///
/// To be called before the process has threads.
pub(super) fn clean() {
    for (name, value) in std::env::vars_os() {
        if !name.to_string_lossy().starts_with(PREFIX) {
            continue;
        }
        // What is not UTF-8 is refused by its flag.
        let Some(text) = value.to_str() else { continue };
        let cleaned = without_line_break(text);
        if cleaned.is_empty() {
            // SAFETY: nobody else uses the environment, as there is no other thread yet.
            unsafe { std::env::remove_var(&name) };
        } else if cleaned != text {
            // SAFETY: as above.
            unsafe { std::env::set_var(&name, cleaned) };
        }
    }
}

fn without_line_break(text: &str) -> &str {
    let text = text.strip_suffix('\n').unwrap_or(text);
    text.strip_suffix('\r').unwrap_or(text)
}

/// Adds to an error about a flag that its value comes from the environment, if it does.
pub(super) fn name_variable(error: &str) -> String {
    let args: Vec<_> = std::env::args_os().collect();
    let is_set = |variable: &str| std::env::var_os(variable).is_some();
    with_variable(error, &args, is_set)
}

fn with_variable(error: &str, args: &[OsString], is_set: impl Fn(&str) -> bool) -> String {
    let (line, rest) =
        error.split_once('\n').map_or((error, None), |(line, rest)| (line, Some(rest)));
    let flags = line.match_indices("--").map(|(at, _)| {
        let name = &line[at + 2..];
        &name[..name.find(|c: char| !c.is_ascii_lowercase() && c != '-').unwrap_or(name.len())]
    });
    let from_environment = |flag: &&str| {
        let given = format!("--{flag}");
        !args.iter().any(|arg| {
            let arg = arg.to_string_lossy();
            arg.strip_prefix(&given).is_some_and(|rest| rest.is_empty() || rest.starts_with('='))
        })
    };
    let variable = flags
        .filter(from_environment)
        .map(|flag| format!("{PREFIX}{}", flag.to_ascii_uppercase().replace('-', "_")))
        .find(|variable| is_set(variable));
    let Some(variable) = variable else { return error.to_owned() };
    let rest = rest.map(|rest| format!("\n{rest}")).unwrap_or_default();
    format!("{line} (from the environment variable {variable}){rest}")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_line_break_at_the_end_is_removed() {
        for (text, cleaned) in [
            ("a\n", "a"),
            ("a\r\n", "a"),
            ("a\n\n", "a\n"),
            ("\n", ""),
            ("a\nb\n", "a\nb"),
            ("a ", "a "),
        ] {
            assert_eq!(without_line_break(text), cleaned, "{text:?}");
        }
    }

    #[test]
    fn the_variable_is_named_where_the_flag_is_not_given() {
        let args = |line: &str| line.split_whitespace().map(OsString::from).collect::<Vec<_>>();
        let named = |error: &str, line: &str| {
            with_variable(error, &args(line), |variable| variable == "PRESENCE_MAX_AGE")
        };
        let error = "error: invalid value 'x' for '--max-age <D>': a duration\n\nhelp";
        assert_eq!(
            named(error, "presence serve"),
            "error: invalid value 'x' for '--max-age <D>': a duration \
             (from the environment variable PRESENCE_MAX_AGE)\n\nhelp"
        );
        for given in ["presence --max-age x", "presence --max-age=x"] {
            assert_eq!(named(error, given), error);
        }
        let other = "error: invalid --database: …";
        assert_eq!(named(other, "presence"), other);
    }
}

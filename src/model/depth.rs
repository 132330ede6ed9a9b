//! How deep JSON may be nested that clients get from one another.

/// How deep infos and payloads may be nested; the outermost object or list is 1.
///
/// Below what any client or peer takes with what is put around them: parsers have limits from 64 on.
pub const MAX_DEPTH: usize = 32;

/// Whether a JSON text is nested at most [`MAX_DEPTH`] deep.
///
/// The text has to be JSON already; of another the answer means nothing.
///
/// ```
/// use actix_presence::model::{MAX_DEPTH, is_shallow};
///
/// assert!(is_shallow(&format!("{}{}", "[".repeat(MAX_DEPTH), "]".repeat(MAX_DEPTH))));
/// assert!(!is_shallow(&format!("[{}{}]", "[".repeat(MAX_DEPTH), "]".repeat(MAX_DEPTH))));
/// ```
#[must_use]
pub fn is_shallow(json: &str) -> bool {
    let (mut depth, mut in_text) = (0_usize, false);
    let mut bytes = json.bytes();
    while let Some(byte) = bytes.next() {
        match byte {
            b'"' => in_text = !in_text,
            // Of an escape only its first byte could be taken for something else.
            b'\\' if in_text => drop(bytes.next()),
            b'[' | b'{' if !in_text => depth += 1,
            b']' | b'}' if !in_text => depth = depth.saturating_sub(1),
            _ => {}
        }
        if depth > MAX_DEPTH {
            return false;
        }
    }
    true
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_outermost_is_1_and_what_stands_in_a_text_counts_for_nothing() {
        let lists = |depth: usize| "[".repeat(depth) + &"]".repeat(depth);
        let objects = |depth: usize| r#"{"a":"#.repeat(depth) + "1" + &"}".repeat(depth);
        for nested in [lists, objects] {
            assert!(is_shallow(&nested(MAX_DEPTH)));
            assert!(!is_shallow(&nested(MAX_DEPTH + 1)));
            assert!(!is_shallow(&nested(30_000)));
        }
        assert!(is_shallow(&format!("[{}1]", "[1],".repeat(10_000))), "long, not deep");
        let brackets = "[".repeat(100);
        assert!(is_shallow(&format!(r#"{{"a\"{brackets}":"\\\"{brackets}\\"}}"#)));
        assert!(!is_shallow(&format!(r#"["\\",{}]"#, lists(MAX_DEPTH))));
        assert!(["", "null", "1e9", "\"é\""].into_iter().all(is_shallow));
    }
}

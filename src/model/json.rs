//! What JSON from clients has to be like, so that it can be passed on to every other client.

use super::info::MAX_DEPTH;

/// Why a valid JSON text is not passed on to others.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum UnfitJson {
    /// It is nested deeper than [`MAX_DEPTH`].
    #[error("JSON may be nested at most {MAX_DEPTH} deep")]
    TooDeep,
    /// A text has an escape of half a surrogate pair, such as `\ud800`: no character, which strict parsers and
    /// databases refuse.
    #[error("a text has half of a surrogate pair, such as \\ud800")]
    LoneSurrogate,
    /// A number is beyond the range of a double, such as `1e999`, which strict parsers refuse.
    #[error("a number is beyond the range of a double")]
    HugeNumber,
    /// An integer of an info does not fit into 64 bits, and would come back rounded.
    #[error("an integer in an info must fit into 64 bits")]
    HugeInteger,
}

/// Checks a payload, which is passed on as it is written. The text has to be valid JSON.
///
/// ```
/// use actix_presence::{UnfitJson, check_payload};
///
/// assert_eq!(check_payload(r#"{"text":"\ud83d\ude00","n":123456789012345678901234567890}"#), Ok(()));
/// assert_eq!(check_payload(r#"["\ud83d"]"#), Err(UnfitJson::LoneSurrogate));
/// assert_eq!(check_payload("1e999"), Err(UnfitJson::HugeNumber));
/// ```
///
/// # Errors
///
/// [`UnfitJson`].
pub fn check_payload(json: &str) -> Result<(), UnfitJson> {
    check(json, false)
}

/// Checks an info, whose numbers are kept as values. The text has to be valid JSON.
///
/// # Errors
///
/// [`UnfitJson`].
pub fn check_info(json: &str) -> Result<(), UnfitJson> {
    check(json, true)
}

fn check(json: &str, as_values: bool) -> Result<(), UnfitJson> {
    let bytes = json.as_bytes();
    let (mut at, mut depth) = (0, 0_usize);
    while let Some(byte) = bytes.get(at) {
        at += 1;
        match byte {
            b'"' => at = check_text(bytes, at)?,
            b'[' | b'{' => depth += 1,
            b']' | b'}' => depth = depth.saturating_sub(1),
            b'-' | b'0'..=b'9' => {
                let is_part =
                    |byte: &u8| matches!(byte, b'0'..=b'9' | b'.' | b'e' | b'E' | b'+' | b'-');
                let end = bytes[at..].iter().position(|byte| !is_part(byte));
                let end = end.map_or(bytes.len(), |len| at + len);
                check_number(&json[at - 1..end], as_values)?;
                at = end;
            }
            _ => {}
        }
        if depth > MAX_DEPTH {
            return Err(UnfitJson::TooDeep);
        }
    }
    Ok(())
}

/// Checks the text that begins at an index, and returns the index after its end.
fn check_text(bytes: &[u8], mut at: usize) -> Result<usize, UnfitJson> {
    while let Some(byte) = bytes.get(at) {
        at += 1;
        match byte {
            b'"' => break,
            b'\\' if bytes.get(at) == Some(&b'u') => {
                let unit = |at: usize| {
                    let digits = std::str::from_utf8(bytes.get(at..at + 4)?).ok()?;
                    u16::from_str_radix(digits, 16).ok()
                };
                at += 5;
                match unit(at - 4) {
                    Some(0xD800..=0xDBFF) => {
                        let follows = bytes.get(at..at + 2) == Some(b"\\u")
                            && matches!(unit(at + 2), Some(0xDC00..=0xDFFF));
                        if !follows {
                            return Err(UnfitJson::LoneSurrogate);
                        }
                        at += 6;
                    }
                    Some(0xDC00..=0xDFFF) => return Err(UnfitJson::LoneSurrogate),
                    _ => {}
                }
            }
            // Only the first byte of another escape could be mistaken.
            b'\\' => at += 1,
            _ => {}
        }
    }
    Ok(at)
}

fn check_number(number: &str, as_value: bool) -> Result<(), UnfitJson> {
    // Nothing so short is too large.
    if number.len() < 19 && !number.contains(['e', 'E']) {
        return Ok(());
    }
    if number.parse::<f64>().is_ok_and(f64::is_infinite) {
        return Err(UnfitJson::HugeNumber);
    }
    let is_integer = !number.contains(['.', 'e', 'E']);
    let fits = || number.parse::<u64>().is_ok() || number.parse::<i64>().is_ok();
    if as_value && is_integer && !fits() { Err(UnfitJson::HugeInteger) } else { Ok(()) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_outermost_level_is_1_and_brackets_in_texts_do_not_count() {
        let lists = |depth: usize| "[".repeat(depth) + &"]".repeat(depth);
        let objects = |depth: usize| r#"{"a":"#.repeat(depth) + "1" + &"}".repeat(depth);
        for nested in [lists, objects] {
            assert_eq!(check_payload(&nested(MAX_DEPTH)), Ok(()));
            assert_eq!(check_payload(&nested(MAX_DEPTH + 1)), Err(UnfitJson::TooDeep));
            assert_eq!(check_info(&nested(30_000)), Err(UnfitJson::TooDeep));
        }
        assert_eq!(
            check_payload(&format!("[{}1]", "[1],".repeat(10_000))),
            Ok(()),
            "long, not deep"
        );
        let brackets = "[".repeat(100);
        assert_eq!(check_payload(&format!(r#"{{"a\"{brackets}":"\\\"{brackets}\\"}}"#)), Ok(()));
        let deep = format!(r#"["\\",{}]"#, lists(MAX_DEPTH));
        assert_eq!(check_payload(&deep), Err(UnfitJson::TooDeep));
        assert!(["", "null", "1e9", "\"é\""].into_iter().all(|json| check_payload(json).is_ok()));
    }

    #[test]
    fn half_of_a_surrogate_pair_is_no_text() {
        for fit in
            [r#""\ud83d\ude00""#, r#""\\ud83d""#, r#""\u00e9\uFFFD""#, r#"{"\uD83D\uDE00":1}"#]
        {
            assert_eq!(check_payload(fit), Ok(()), "{fit}");
        }
        for unfit in [
            r#""\ud83d""#,
            r#""\ude00""#,
            r#"{"\udc00":1}"#,
            r#""\ud83dx\ude00""#,
            r#""\ud83d\ud83d\ude00""#,
            r#"["\\\ud83d"]"#,
        ] {
            assert_eq!(check_payload(unfit), Err(UnfitJson::LoneSurrogate), "{unfit}");
        }
    }

    #[test]
    fn a_number_is_a_double_and_an_integer_of_an_info_has_64_bits() {
        for fit in ["1e308", "-1.5E+308", "1e-999", "[0,-1]", "18446744073709551615"] {
            assert_eq!((check_payload(fit), check_info(fit)), (Ok(()), Ok(())), "{fit}");
        }
        let digits = "9".repeat(400);
        for unfit in ["1e999", "[1,-1E999]", r#"{"a":1e309}"#, &digits] {
            assert_eq!(check_payload(unfit), Err(UnfitJson::HugeNumber), "{unfit}");
        }
        for large in ["18446744073709551616", "-9223372036854775809", "[123456789012345678901]"] {
            assert_eq!(check_payload(large), Ok(()), "{large}");
            assert_eq!(check_info(large), Err(UnfitJson::HugeInteger), "{large}");
        }
        assert_eq!(check_info("-9223372036854775808"), Ok(()));
    }

    #[test]
    fn no_text_makes_it_panic() {
        for odd in [r#""\u"#, r#""\ud8"#, r#""\ud83d\u"#, "\"", "\\", "-", r#""\"#] {
            let _ = check_info(odd);
        }
    }
}

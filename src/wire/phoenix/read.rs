//! What a client sends.

use std::{borrow::Cow, fmt};

use serde::{
    Deserialize, Deserializer,
    de::{self, IgnoredAny, SeqAccess, Visitor},
};
use serde_json::value::RawValue;

/// A frame of a client, as far as possible in the text it was read from.
#[derive(Debug)]
pub struct Frame<'a> {
    /// The reference of the join that the frame belongs to.
    pub join_ref: Option<Cow<'a, str>>,
    /// The reference to answer with.
    pub r#ref: Option<Cow<'a, str>>,
    /// The topic, which is a room, or `phoenix` for heartbeats.
    pub topic: Cow<'a, str>,
    /// What the client wants.
    pub event: Cow<'a, str>,
    /// With what.
    pub payload: &'a RawValue,
}

/// Reads a text frame of a client; elements after the fifth are none of ours.
///
/// # Errors
///
/// What is wrong with it, for the log; Phoenix has no answer to such a frame.
pub fn read(text: &str) -> Result<Frame<'_>, serde_json::Error> {
    serde_json::from_str(text)
}

impl<'de: 'a, 'a> Deserialize<'de> for Frame<'a> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_seq(Elements)
    }
}

/// Reads the elements of a frame in their order.
struct Elements;

impl<'de> Visitor<'de> for Elements {
    type Value = Frame<'de>;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("five elements")
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut elements: A) -> Result<Frame<'de>, A::Error> {
        /// A text that is borrowed if it has no escapes, also where it may be missing.
        #[derive(Deserialize)]
        struct Text<'a>(#[serde(borrow)] Cow<'a, str>);

        fn next<'de, T, A>(elements: &mut A, before: usize) -> Result<T, A::Error>
        where
            T: Deserialize<'de>,
            A: SeqAccess<'de>,
        {
            let element = elements.next_element()?;
            element.ok_or_else(|| de::Error::invalid_length(before, &Elements))
        }

        let join_ref: Option<Text<'_>> = next(&mut elements, 0)?;
        let r#ref: Option<Text<'_>> = next(&mut elements, 1)?;
        let [Text(topic), Text(event)] = [next(&mut elements, 2)?, next(&mut elements, 3)?];
        let payload = next(&mut elements, 4)?;
        while elements.next_element::<IgnoredAny>()?.is_some() {}
        let [join_ref, r#ref] = [join_ref, r#ref].map(|text| text.map(|Text(text)| text));
        Ok(Frame { join_ref, r#ref, topic, event, payload })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{model::RoomName, wire::phoenix::object};

    #[test]
    fn a_frame_is_read_with_its_references_as_they_are_and_what_is_more_is_ignored() {
        let frame = read(r#"["1",null,"a:b","shout",{"x":1}, "more", {}]"#).unwrap();
        assert_eq!((frame.join_ref.as_deref(), frame.r#ref.as_deref()), (Some("1"), None));
        let escaped = read(r#"["\u0031","\n","a\/b","\"",{}]"#).unwrap();
        assert_eq!(
            (escaped.join_ref.as_deref(), escaped.r#ref.as_deref()),
            (Some("1"), Some("\n"))
        );
        assert_eq!((&*escaped.topic, &*escaped.event), ("a/b", "\""));
        assert_eq!(
            (&*frame.topic, &*frame.event, frame.payload.get()),
            ("a:b", "shout", r#"{"x":1}"#)
        );
        for bad in [
            "",
            "{}",
            "[]",
            r#"[1,"2","t","e",{}]"#,
            r#"["1","2",null,"e",{}]"#,
            r#"[null,null,"t","e"]"#,
        ] {
            assert!(read(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn hostile_frames_are_refused_or_harmless() {
        let deep = "[".repeat(30_000) + &"]".repeat(30_000);
        let frame = |payload: &str| format!(r#"["1","2","t","e",{payload}]"#);
        let (refused, taken) = (false, true);
        for (payload, expected) in [
            (deep.as_str(), refused),
            (&format!(r#"{{"a":{deep}}}"#), refused),
            ("null", refused),
            ("[]", refused),
            ("\"text\"", refused),
            ("1e999", refused),
            (r#"{"__proto__":{"x":1},"constructor":null}"#, taken),
        ] {
            let text = frame(payload);
            let object = read(&text).ok().and_then(|frame| object(frame.payload));
            assert_eq!(object.is_some(), expected, "{:.40}", payload);
        }
        for text in
            [r#"[1,2,"t","e",{}]"#, r#"["1","2",3,"e",{}]"#, r#"["1","2","t",null,{}]"#, &deep]
        {
            assert!(read(text).is_err(), "{text:.40}");
        }
        let long = format!(r#"["1","2","{}","e",{{}}]"#, "t".repeat(1 << 20));
        assert!(RoomName::new(read(&long).unwrap().topic).is_err());
    }
}

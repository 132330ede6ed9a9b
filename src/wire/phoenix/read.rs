//! Frames from a Phoenix client.

use std::{borrow::Cow, fmt};

use serde::{
    Deserialize, Deserializer,
    de::{self, IgnoredAny, SeqAccess, Visitor},
};
use serde_json::value::RawValue;

use crate::model::MAX_NAME_CHARS;

/// A client's frame, borrowed from the text where possible.
#[derive(Debug)]
pub struct Frame<'a> {
    /// The reference of the join that the frame belongs to.
    pub join_ref: Option<Cow<'a, str>>,
    /// The reference for the reply.
    pub r#ref: Option<Cow<'a, str>>,
    /// The topic: a room, or `phoenix` for heartbeats.
    pub topic: Cow<'a, str>,
    /// The event.
    pub event: Cow<'a, str>,
    /// The payload.
    pub payload: &'a RawValue,
}

/// Reads a client's text frame; elements after the fifth are ignored.
///
/// # Errors
///
/// What is wrong, for the log; the protocol has no reply to such a frame.
pub fn read(text: &str) -> Result<Frame<'_>, serde_json::Error> {
    serde_json::from_str(text)
}

/// The longest reference and the longest event name, in bytes.
pub const MAX_TEXT_BYTES: usize = 255;

/// The longest topic that gets a reply, in bytes: that of a room has at most 255 characters.
pub const MAX_TOPIC_BYTES: usize = 4 * MAX_NAME_CHARS;

/// Something in a frame is too long to be kept or forwarded. The reply has no references, which may
/// be what is too long.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum TooLong {
    /// A reference.
    #[error("a ref has at most {MAX_TEXT_BYTES} bytes")]
    Ref,
    /// The event name.
    #[error("the name of an event has at most {MAX_TEXT_BYTES} bytes")]
    Event,
    /// The topic.
    #[error("a topic has at most {MAX_NAME_CHARS} characters")]
    Topic,
}

impl Frame<'_> {
    /// Checks the lengths of references, event name and topic; the topic is checked further as a room's name.
    ///
    /// # Errors
    ///
    /// [`TooLong`].
    pub fn check(&self) -> Result<(), TooLong> {
        let is_long = |text: &str| text.len() > MAX_TEXT_BYTES;
        let mut refs = [&self.join_ref, &self.r#ref].into_iter().flatten();
        if refs.any(|text| is_long(text)) {
            return Err(TooLong::Ref);
        }
        if is_long(&self.event) {
            return Err(TooLong::Event);
        }
        if self.topic.len() > MAX_TOPIC_BYTES { Err(TooLong::Topic) } else { Ok(()) }
    }
}

impl<'de: 'a, 'a> Deserialize<'de> for Frame<'a> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_seq(Elements)
    }
}

/// Reads the elements of a frame in order. (A derived tuple struct would refuse a sixth element,
/// which Phoenix ignores.)
struct Elements;

impl<'de> Visitor<'de> for Elements {
    type Value = Frame<'de>;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("five elements")
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut elements: A) -> Result<Frame<'de>, A::Error> {
        /// A text that is borrowed if it has no escapes; serde borrows no `Option<Cow>` directly.
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
    use serde_json::json;

    use super::*;
    use crate::{model::RoomName, wire::phoenix::object};

    #[test]
    fn a_frame_is_read_with_its_references_as_they_are_and_further_elements_are_ignored() {
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
    fn references_and_events_have_at_most_255_bytes() {
        let text = |place: usize, text: &str| {
            let mut elements = [json!("1"), json!("2"), json!("t"), json!("e"), json!({})];
            elements[place] = text.into();
            json!(elements).to_string()
        };
        for (place, too_long) in [(0, TooLong::Ref), (1, TooLong::Ref), (3, TooLong::Event)] {
            let [longest, long] = ["e".repeat(255), "é".repeat(128)].map(|name| text(place, &name));
            assert_eq!(read(&longest).unwrap().check(), Ok(()));
            assert_eq!(read(&long).unwrap().check(), Err(too_long));
        }
        assert_eq!(read(r#"[null,null,"t","e",{}]"#).unwrap().check(), Ok(()));
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

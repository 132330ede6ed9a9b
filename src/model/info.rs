//! What an app attaches to a presence.

use std::{fmt, sync::Arc};

use serde::{
    Deserialize, Deserializer, Serialize, Serializer,
    de::{DeserializeOwned, Error},
    ser::SerializeMap,
};
use serde_json::{
    Map, Value,
    value::{RawValue, to_raw_value},
};

use super::json::{UnfitJson, check_info};

/// The largest info, in bytes of compact JSON.
pub const MAX_INFO_BYTES: usize = 4096;

/// The deepest nesting of infos and payloads; the outermost object or list is 1.
///
/// Low enough for every client and peer, whatever is put around them: parsers have limits from 64 on.
pub const MAX_DEPTH: usize = 32;

/// Why a JSON value is not a valid [`Info`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum InvalidInfo {
    /// The text is not JSON.
    #[error("info is JSON: this text is malformed in line {line}, column {column}")]
    NotJson {
        /// The line of the mistake, counted from 1.
        line: usize,
        /// The column of the mistake, counted in bytes from 1; 0 at the beginning of a line.
        column: usize,
    },
    /// The value cannot be written as JSON: its `Serialize` failed, or it has a map whose keys are no texts.
    #[error("the value cannot be written as JSON")]
    NotSerializable,
    /// The value is not a JSON object.
    #[error("info is a JSON object")]
    NotAnObject,
    /// The object cannot be passed on to others.
    #[error(transparent)]
    Unfit(#[from] UnfitJson),
    /// The object is larger than [`MAX_INFO_BYTES`].
    #[error("info has at most {MAX_INFO_BYTES} bytes as JSON, this one has {bytes}")]
    TooLarge {
        /// Its size as compact JSON.
        bytes: usize,
    },
}

/// What the app attaches to a presence: a JSON object of at most 4 KiB, nested at most [`MAX_DEPTH`] deep.
///
/// Kept as compact text, which is encoded once; a clone shares it, and the empty object allocates
/// nothing.
///
/// It is serialized as an object in every format, which takes reading its text; [`serialize_raw`](Self::serialize_raw)
/// writes that into JSON. Deserializing checks as [`from_map`](Self::from_map) does, after serde_json has made a
/// [`Value`] of it: an integer beyond 64 bits is a double in JSON by then, which only [`parse`](Self::parse) refuses,
/// and a double that is no number (infinite or NaN, as CBOR and MessagePack have them) is `null`, as in
/// [`of`](Self::of).
///
/// Where a crate of the app switches the feature `arbitrary_precision` of serde_json on, its numbers are maps with a
/// private key in all formats but JSON, and so are those of an info.
///
/// ```
/// use actix_presence::Info;
/// use serde_json::json;
///
/// let info = Info::new(json!({"name": "Ada"}))?;
/// assert_eq!(info.as_json(), r#"{"name":"Ada"}"#);
/// assert_eq!(info.to_value()["name"], "Ada");
/// # Ok::<(), actix_presence::InvalidInfo>(())
/// ```
///
/// Most apps have a type for it:
///
/// ```
/// use actix_presence::Info;
/// use serde::{Deserialize, Serialize};
///
/// #[derive(Debug, PartialEq, Serialize, Deserialize)]
/// struct Profile {
///     name: String,
///     away: bool,
/// }
///
/// let profile = Profile { name: "Ada".to_owned(), away: false };
/// let info = Info::of(&profile)?;
/// assert_eq!(info.to_value()["away"], false);
/// assert_eq!(info.to::<Profile>()?, profile);
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
#[derive(Clone, Default)]
pub struct Info(Option<Arc<RawValue>>);

impl Info {
    /// The empty object.
    pub const EMPTY: Self = Self(None);

    /// Reads a JSON text.
    ///
    /// # Errors
    ///
    /// [`InvalidInfo`] if the text is not JSON or not an object, is too large, or cannot be passed on to others.
    pub fn parse(json: &str) -> Result<Self, InvalidInfo> {
        // Checked on the text: the parser refuses what is deeper than its own limit as malformed, and rounds
        // large integers.
        check_info(json)?;
        Self::new(
            serde_json::from_str(json).map_err(|error| InvalidInfo::NotJson {
                line: error.line(),
                column: error.column(),
            })?,
        )
    }

    /// The info that a value of the app's own stands for; [`to`](Self::to) makes the value of it again.
    ///
    /// # Errors
    ///
    /// [`InvalidInfo`] if the value is not written as an object, or that is too large or too deep.
    pub fn of<T: Serialize + ?Sized>(value: &T) -> Result<Self, InvalidInfo> {
        let value = serde_json::to_value(value).map_err(|_| InvalidInfo::NotSerializable)?;
        Self::new(value)
    }

    /// Reads it as a value of the app's own, such as one that [`of`](Self::of) was given.
    ///
    /// # Errors
    ///
    /// The error of serde says which part is missing or of another type.
    pub fn to<T: DeserializeOwned>(&self) -> Result<T, serde_json::Error> {
        serde_json::from_str(self.as_json())
    }

    /// Checks a JSON object.
    ///
    /// # Errors
    ///
    /// [`InvalidInfo`] if the value is not an object, is too large, or is nested too deep.
    pub fn new(value: Value) -> Result<Self, InvalidInfo> {
        match value {
            Value::Object(map) => Self::from_map(&map),
            _ => Err(InvalidInfo::NotAnObject),
        }
    }

    /// Checks the members of a JSON object.
    ///
    /// # Errors
    ///
    /// [`InvalidInfo::TooLarge`], [`InvalidInfo::Unfit`].
    pub fn from_map(map: &Map<String, Value>) -> Result<Self, InvalidInfo> {
        let info = Self::of_any_depth(map)?;
        check_info(info.as_json())?;
        Ok(info)
    }

    fn of_any_depth(map: &Map<String, Value>) -> Result<Self, InvalidInfo> {
        if map.is_empty() {
            return Ok(Self::EMPTY);
        }
        // A map with text keys always has a JSON form.
        let raw = to_raw_value(map).map_err(|_| InvalidInfo::NotAnObject)?;
        match raw.get().len() {
            bytes if bytes > MAX_INFO_BYTES => Err(InvalidInfo::TooLarge { bytes }),
            _ => Ok(Self(Some(raw.into()))),
        }
    }

    /// The object as compact JSON.
    #[must_use]
    pub fn as_json(&self) -> &str {
        self.0.as_deref().map_or("{}", RawValue::get)
    }

    /// The object as a value.
    #[must_use]
    pub fn to_value(&self) -> Value {
        serde_json::from_str(self.as_json()).unwrap_or_default()
    }

    /// The members of the object.
    #[must_use]
    pub fn to_map(&self) -> Map<String, Value> {
        serde_json::from_str(self.as_json()).unwrap_or_default()
    }

    /// Replaces the members that a token fixes: the keys of `before` are removed, the members of
    /// `after` are added.
    ///
    /// # Errors
    ///
    /// [`InvalidInfo::TooLarge`].
    pub(super) fn with_fixed(&self, before: &Self, after: &Self) -> Result<Self, InvalidInfo> {
        if before == after {
            return Ok(self.clone());
        }
        let (mut map, before) = (self.to_map(), before.to_map());
        map.retain(|key, _| !before.contains_key(key));
        map.extend(after.to_map());
        Self::from_map(&map)
    }

    /// Serializes it as the text that it is, unread: for `#[serde(serialize_with = "Info::serialize_raw")]` in types
    /// that only serde_json writes. Any other format, and a field that is flattened, gets a map with a private key
    /// instead of the object.
    ///
    /// # Errors
    ///
    /// That of the serializer.
    pub fn serialize_raw<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        match &self.0 {
            Some(raw) => raw.serialize(serializer),
            None => serializer.serialize_map(Some(0))?.end(),
        }
    }

    /// One whose text is not as reading and writing would make it, which shows who writes it unread.
    #[cfg(test)]
    pub(crate) fn unread(json: &str) -> Self {
        Self(RawValue::from_string(json.to_owned()).ok().map(Into::into))
    }

    /// Whether the object has no members.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.0.is_none()
    }
}

impl fmt::Debug for Info {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_json())
    }
}

impl PartialEq for Info {
    fn eq(&self, other: &Self) -> bool {
        self.as_json() == other.as_json()
    }
}

impl Eq for Info {}

impl Serialize for Info {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        self.to_map().serialize(serializer)
    }
}

impl<'de> Deserialize<'de> for Info {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        Self::from_map(&Map::deserialize(deserializer)?).map_err(D::Error::custom)
    }
}

/// An info as it is in the JSON of the database and of the bus: written unread, and read however deep it is, since
/// earlier versions had no limit.
#[derive(Debug, Default)]
pub(crate) struct StoredInfo(pub Info);

impl StoredInfo {
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }
}

impl Serialize for StoredInfo {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        self.0.serialize_raw(serializer)
    }
}

impl<'de> Deserialize<'de> for StoredInfo {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let info = Info::of_any_depth(&Map::deserialize(deserializer)?);
        info.map(Self).map_err(D::Error::custom)
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use serde_json::json;

    use super::*;

    #[test]
    fn only_an_object_within_the_limit_is_info() {
        assert_eq!(Info::new(json!([1])), Err(InvalidInfo::NotAnObject));
        assert_eq!(Info::new(Value::Null), Err(InvalidInfo::NotAnObject));
        // {"k":"…"} has 8 bytes around the text.
        assert!(Info::new(json!({"k": "x".repeat(MAX_INFO_BYTES - 8)})).is_ok());
        let bytes = MAX_INFO_BYTES + 1;
        let large = Info::new(json!({"k": "x".repeat(MAX_INFO_BYTES - 7)}));
        assert_eq!(large, Err(InvalidInfo::TooLarge { bytes }));
    }

    #[test]
    fn a_malformed_text_is_told_from_one_that_is_no_object_with_its_place() {
        let malformed = |line, column| Err(InvalidInfo::NotJson { line, column });
        assert_eq!(Info::parse("{\"a\": 1,\n  oops}"), malformed(2, 3));
        assert_eq!(Info::parse(r#"{"a":1"#), malformed(1, 6));
        assert_eq!(Info::parse(""), malformed(1, 0));
        assert_eq!(Info::parse("[1]"), Err(InvalidInfo::NotAnObject));
        assert_eq!(Info::parse("null"), Err(InvalidInfo::NotAnObject));
        assert_eq!(Info::parse(" { } "), Ok(Info::EMPTY));
    }

    #[test]
    fn a_value_that_is_no_object_or_no_json_is_no_info() {
        assert_eq!(Info::of(&Info::EMPTY), Ok(Info::EMPTY));
        assert_eq!(Info::of("text"), Err(InvalidInfo::NotAnObject));
        assert_eq!(Info::of(&()), Err(InvalidInfo::NotAnObject));
        let no_keys = BTreeMap::from([(vec![1], 1)]);
        assert_eq!(Info::of(&no_keys), Err(InvalidInfo::NotSerializable));
        let large = BTreeMap::from([("n", u128::MAX)]);
        assert_eq!(Info::of(&large), Err(InvalidInfo::NotSerializable));
        let info = Info::of(&BTreeMap::from([("n", 1.5)])).unwrap();
        assert_eq!(info.to::<BTreeMap<String, f64>>().unwrap()["n"], 1.5);
        assert!(info.to::<BTreeMap<String, bool>>().unwrap_err().is_data());
    }

    fn nested(depth: usize) -> String {
        r#"{"a":"#.repeat(depth) + "1" + &"}".repeat(depth)
    }

    #[test]
    fn a_deep_object_is_no_info_and_cannot_be_deserialized() {
        let read = |json: &str| {
            let value: Value = serde_json::from_str(json).unwrap();
            let mut cbor = Vec::new();
            ciborium::into_writer(&value, &mut cbor).unwrap();
            [
                Info::parse(json).map_err(|error| error.to_string()),
                Info::new(value.clone()).map_err(|error| error.to_string()),
                serde_json::from_str(json).map_err(|error| error.to_string()),
                serde_json::from_value(value).map_err(|error| error.to_string()),
                ciborium::from_reader(&*cbor).map_err(|error| error.to_string()),
            ]
        };
        for read in read(&nested(MAX_DEPTH)) {
            assert_eq!(read.unwrap().as_json(), nested(MAX_DEPTH));
        }
        for depth in [MAX_DEPTH + 1, 126] {
            for read in read(&nested(depth)) {
                let refused = read.unwrap_err();
                assert!(refused.contains("nested at most 32 deep"), "{refused}");
            }
        }
    }

    #[test]
    fn what_is_deserialized_is_as_large_as_an_info_may_be_and_has_numbers_that_fit() {
        let read = |json: &str| serde_json::from_str::<Info>(json).map_err(|e| e.to_string());
        let text = |len| json!({"k": "x".repeat(len)}).to_string();
        assert_eq!(read(&text(MAX_INFO_BYTES - 8)).unwrap().as_json().len(), MAX_INFO_BYTES);
        let large = read(&text(MAX_INFO_BYTES - 7)).unwrap_err();
        assert!(large.contains("at most 4096 bytes as JSON, this one has 4097"), "{large}");
        for (bad, why) in [
            ("[1]", "expected a map"),
            (r#"{"n":1e999}"#, "out of range"),
            (r#"{"k":"\ud800"}"#, "hex escape"),
        ] {
            let refused = read(bad).unwrap_err();
            assert!(refused.contains(why), "{refused}");
        }
        assert!(serde_json::from_value::<Info>(json!([1])).is_err());
        let mut cbor = Vec::new();
        ciborium::into_writer(&BTreeMap::from([("n", u128::MAX)]), &mut cbor).unwrap();
        assert!(ciborium::from_reader::<Info, _>(&*cbor).is_err());
    }

    #[test]
    fn a_double_that_is_no_number_is_null_whatever_it_comes_from() {
        for n in [f64::NAN, f64::INFINITY, f64::NEG_INFINITY] {
            let value = BTreeMap::from([("n", n)]);
            let mut cbor = Vec::new();
            ciborium::into_writer(&value, &mut cbor).unwrap();
            let message_pack = rmp_serde::to_vec(&value).unwrap();
            let infos = [
                Info::of(&value).unwrap(),
                ciborium::from_reader(&*cbor).unwrap(),
                rmp_serde::from_slice(&message_pack).unwrap(),
            ];
            assert!(infos.iter().all(|info| info.as_json() == r#"{"n":null}"#), "{infos:?}");
        }
    }

    #[test]
    fn what_an_earlier_version_stored_is_read_however_deep_and_written_as_it_is() {
        let deep = nested(126);
        let stored: StoredInfo = serde_json::from_str(&deep).unwrap();
        assert_eq!(serde_json::to_string(&stored).unwrap(), deep);
        assert_eq!(serde_json::to_string(&stored.0).unwrap(), deep);
        assert!(serde_json::from_str::<StoredInfo>("{} {}").is_err());
        assert!(serde_json::from_str::<StoredInfo>("{}").unwrap().is_empty());
    }

    #[test]
    fn info_is_serialized_as_it_is() {
        let info = Info::new(json!({"a": {"b": [1, null]}})).unwrap();
        assert_eq!(serde_json::to_string(&[&info]).unwrap(), r#"[{"a":{"b":[1,null]}}]"#);
        assert_eq!(Info::new(json!({})).unwrap(), Info::EMPTY);
    }
}

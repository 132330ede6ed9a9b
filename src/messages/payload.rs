//! The JSON values that are published.

use serde::Serialize;
use serde_json::{
    Value,
    value::{RawValue, to_raw_value},
};

/// A JSON value for [`Publish::json`](crate::Publish::json) and [`Publish::event`](crate::Publish::event): from a
/// [`Value`], from a text that was read as a [`RawValue`], or [of](Self::of) whatever else can be serialized.
///
/// ```
/// use actix_presence::{Payload, Publish, RoomName};
/// use serde::Serialize;
/// use serde_json::json;
///
/// #[derive(Serialize)]
/// struct Build {
///     number: u32,
///     green: bool,
/// }
///
/// let room = RoomName::new("builds")?;
/// let publish = Publish::json(room.clone(), json!({ "number": 7, "green": true }));
/// let publish = Publish::json(room, Payload::of(&Build { number: 7, green: true })?);
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
#[derive(Clone, Debug)]
pub struct Payload(Box<RawValue>);

impl Payload {
    /// The JSON of a value.
    ///
    /// # Errors
    ///
    /// The error of serde, if the value cannot be written as JSON.
    pub fn of<T: Serialize + ?Sized>(value: &T) -> Result<Self, serde_json::Error> {
        to_raw_value(value).map(Self)
    }

    /// The value as JSON text.
    #[must_use]
    pub fn as_json(&self) -> &str {
        self.0.get()
    }
}

impl From<Box<RawValue>> for Payload {
    fn from(json: Box<RawValue>) -> Self {
        Self(json)
    }
}

impl From<Value> for Payload {
    fn from(value: Value) -> Self {
        // A value always has a JSON form; `null` is never needed.
        Self(to_raw_value(&value).unwrap_or_else(|_| RawValue::NULL.to_owned()))
    }
}

impl From<Payload> for Box<RawValue> {
    fn from(payload: Payload) -> Self {
        payload.0
    }
}

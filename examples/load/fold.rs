//! What a client knows of who is there, folded from the frames that it gets.
//!
//! A server encodes a frame once and sends it to many, so each is parsed once and found by its hash
//! when it comes again: the load tool must not be busier than the server.

use std::{collections::HashMap, rc::Rc};

use ahash::RandomState;
use serde::{Deserialize, de::IgnoredAny};
use serde_json::value::RawValue;

/// A set of clients by their numbers.
#[derive(Clone, Debug, Default)]
pub struct Bits(Vec<u64>);

impl Bits {
    fn set(&mut self, bit: usize) {
        let word = bit / 64;
        if self.0.len() <= word {
            self.0.resize(word + 1, 0);
        }
        self.0[word] |= 1 << (bit % 64);
    }

    fn contains(&self, bit: usize) -> bool {
        self.0.get(bit / 64).is_some_and(|word| word & 1 << (bit % 64) != 0)
    }

    fn add(&mut self, others: &Self) {
        if self.0.len() < others.0.len() {
            self.0.resize(others.0.len(), 0);
        }
        self.0.iter_mut().zip(&others.0).for_each(|(mine, other)| *mine |= other);
    }

    fn remove(&mut self, others: &Self) {
        self.0.iter_mut().zip(&others.0).for_each(|(mine, other)| *mine &= !other);
    }

    pub fn count(&self) -> usize {
        self.0.iter().map(|word| word.count_ones() as usize).sum()
    }
}

/// What a frame says.
#[derive(Debug)]
pub enum Says {
    /// Nothing about who is there.
    Nothing,
    /// These are there, and nobody else.
    State(Bits),
    Diff {
        joins: Bits,
        leaves: Bits,
    },
    /// So many are there.
    Count(usize),
}

impl Says {
    /// Whether this shows, to whoever knows what came before, that a client has come.
    pub fn shows_join(&self, client: usize) -> bool {
        match self {
            Self::State(members) => members.contains(client),
            Self::Diff { joins, .. } => joins.contains(client),
            Self::Nothing | Self::Count(_) => false,
        }
    }

    /// Whether this shows, to whoever knew a client as a member, that it has left.
    pub fn shows_leave(&self, client: usize) -> bool {
        match self {
            Self::State(members) => !members.contains(client),
            Self::Diff { leaves, .. } => leaves.contains(client),
            Self::Nothing | Self::Count(_) => false,
        }
    }
}

/// All frames that came, each once.
#[derive(Default)]
pub struct Frames {
    hasher: RandomState,
    known: HashMap<(usize, u64), Rc<Says>>,
}

/// What one client knows, and how it came to know.
#[derive(Clone, Debug, Default)]
pub struct Knowledge {
    members: Bits,
    counted: Option<usize>,
    pub frames: usize,
    pub bytes: usize,
}

impl Knowledge {
    /// How many members it knows.
    pub fn known(&self) -> usize {
        self.counted.unwrap_or_else(|| self.members.count())
    }

    /// Takes a frame; says whether it was about who is there.
    pub fn fold(&mut self, frames: &mut Frames, text: &[u8]) -> bool {
        match &*frames.read(text) {
            Says::Nothing => return false,
            Says::State(members) => self.members.clone_from(members),
            Says::Diff { joins, leaves } => {
                self.members.add(joins);
                self.members.remove(leaves);
            }
            Says::Count(users) => self.counted = Some(*users),
        }
        self.frames += 1;
        self.bytes += text.len();
        true
    }
}

impl Frames {
    /// What a frame says.
    pub fn read(&mut self, text: &[u8]) -> Rc<Says> {
        let key = (text.len(), self.hasher.hash_one(text));
        self.known.entry(key).or_insert_with(|| Rc::new(parse(text))).clone()
    }
}

/// A frame of the JSON dialects, as much of it as is about who is there.
#[derive(Deserialize)]
struct JsonFrame<'a> {
    r#type: &'a str,
    #[serde(borrow)]
    payload: JsonPayload<'a>,
}

#[derive(Deserialize)]
struct JsonPayload<'a> {
    #[serde(default, borrow)]
    members: Vec<Member<'a>>,
    #[serde(default)]
    joins: Vec<Member<'a>>,
    #[serde(default)]
    leaves: Vec<Member<'a>>,
    users: Option<usize>,
}

#[derive(Deserialize)]
struct Member<'a> {
    id: &'a str,
}

/// The reference of the join, that of the push, the topic, the event and its payload.
type PhoenixFrame<'a> = (IgnoredAny, IgnoredAny, IgnoredAny, &'a str, &'a RawValue);

type Metas<'a> = HashMap<&'a str, IgnoredAny>;

#[derive(Deserialize)]
struct PhoenixDiff<'a> {
    #[serde(borrow)]
    joins: Metas<'a>,
    leaves: Metas<'a>,
}

fn parse(text: &[u8]) -> Says {
    let said = if text.starts_with(b"[") { parse_phoenix(text) } else { parse_json(text) };
    // A frame about something else has another form.
    said.unwrap_or(Says::Nothing)
}

fn parse_json(text: &[u8]) -> serde_json::Result<Says> {
    let JsonFrame { r#type, payload } = serde_json::from_slice(text)?;
    let ids = |list: Vec<Member<'_>>| members(list.into_iter().map(|member| member.id));
    Ok(match (r#type, payload.users) {
        ("presence" | "presence_state", _) => Says::State(ids(payload.members)),
        ("presence_diff", _) => {
            Says::Diff { joins: ids(payload.joins), leaves: ids(payload.leaves) }
        }
        ("presence_count", Some(users)) => Says::Count(users),
        _ => Says::Nothing,
    })
}

/// Everybody has one connection here, so a key that leaves is gone.
fn parse_phoenix(text: &[u8]) -> serde_json::Result<Says> {
    let (_, _, _, event, payload): PhoenixFrame<'_> = serde_json::from_slice(text)?;
    let keys = |metas: Metas<'_>| members(metas.into_keys());
    Ok(match event {
        "presence_state" => Says::State(keys(serde_json::from_str(payload.get())?)),
        "presence_diff" => {
            let PhoenixDiff { joins, leaves } = serde_json::from_str(payload.get())?;
            Says::Diff { joins: keys(joins), leaves: keys(leaves) }
        }
        _ => Says::Nothing,
    })
}

/// The clients whose names these are.
fn members<'a>(names: impl Iterator<Item = &'a str>) -> Bits {
    let mut bits = Bits::default();
    names.filter_map(|name| name.strip_prefix('u')?.parse().ok()).for_each(|bit| bits.set(bit));
    bits
}

#[cfg(test)]
mod tests {
    use super::*;

    fn after(texts: &[&str]) -> Knowledge {
        let (mut frames, mut knowledge) = (Frames::default(), Knowledge::default());
        for text in texts {
            knowledge.fold(&mut frames, text.as_bytes());
        }
        knowledge
    }

    #[test]
    fn json_frames_fold_to_who_is_there() {
        let state = r#"{"type":"presence_state","payload":{"members":[{"id":"u1"},{"id":"u70"}]}}"#;
        let diff =
            r#"{"type":"presence_diff","payload":{"joins":[{"id":"u2"}],"leaves":[{"id":"u1"}]}}"#;
        let message = r#"{"type":"message","payload":"u9"}"#;
        assert_eq!(after(&[state]).known(), 2);
        let knowledge = after(&[state, diff, message, diff]);
        assert_eq!((knowledge.known(), knowledge.frames), (2, 3));
        assert_eq!(after(&[r#"{"type":"presence_count","payload":{"users":7}}"#]).known(), 7);
    }

    #[test]
    fn a_change_is_shown_by_a_list_and_by_the_difference_that_has_it() {
        let mut frames = Frames::default();
        for text in [
            r#"{"type":"presence","payload":{"members":[{"id":"u1","info":{"a":"\n"}}]}}"#,
            r#"["1",null,"r","presence_state",{"u1":{"metas":[{"phx_ref":"x"}]}}]"#,
            r#"[null,null,"r","presence_diff",{"joins":{"u1":{}},"leaves":{"u2":{}}}]"#,
        ] {
            let says = frames.read(text.as_bytes());
            assert_eq!([1, 2].map(|client| says.shows_join(client)), [true, false], "{text}");
            assert_eq!([1, 2].map(|client| says.shows_leave(client)), [false, true], "{text}");
        }
        let other = frames.read(br#"{"type":"message","payload":{"members":[{"id":"u1"}]}}"#);
        assert!(!other.shows_join(1) && !other.shows_leave(2));
    }

    #[test]
    fn phoenix_frames_fold_to_who_is_there() {
        let state = r#"["1",null,"r","presence_state",{"u1":{"metas":[]},"u2":{"metas":[]}}]"#;
        let diff =
            r#"[null,null,"r","presence_diff",{"joins":{"u3":{}},"leaves":{"u1":{},"u2":{}}}]"#;
        let reply = r#"["1","1","r","phx_reply",{"status":"ok","response":{}}]"#;
        let knowledge = after(&[reply, state, diff]);
        assert_eq!((knowledge.known(), knowledge.frames), (1, 2));
    }
}

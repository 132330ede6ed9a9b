//! A client that keeps what it is told about the members of one room, in any dialect.

use std::collections::{BTreeMap, BTreeSet};

use serde_json::{Value, json};

use super::{Server, Ws};

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Dialect {
    Full,
    Diff,
    Count,
    Phoenix,
}

impl Dialect {
    pub const ALL: [Self; 4] = [Self::Full, Self::Diff, Self::Count, Self::Phoenix];
}

/// A listener in one room, and the room as it has folded it from its frames.
pub struct Listener {
    pub ws: Ws,
    dialect: Dialect,
    room: String,
    /// Users with their entries (JSON), or with their metas by `phx_ref`.
    members: BTreeMap<String, BTreeMap<String, Value>>,
    /// How many users there are, where only that is told.
    pub users: u64,
    /// The version, where it has been told: a Phoenix state does not say it.
    pub version: Option<u64>,
    /// What it was told, in order.
    pub frames: Vec<Value>,
}

impl Listener {
    /// Joins a room as this user. The first frame has to be the state, on Phoenix right after the reply.
    pub async fn enter(server: &Server, dialect: Dialect, room: &str, user: &str) -> Self {
        let mut listener = Self::open(server, dialect, room, user).await;
        let state = listener.next().await;
        let wanted = match dialect {
            Dialect::Full => "presence",
            Dialect::Diff | Dialect::Phoenix => "presence_state",
            Dialect::Count => "presence_count",
        };
        assert_eq!(listener.kind(&state), wanted, "{state}");
        listener
    }

    /// The same before the first frame about the members is read.
    pub async fn open(server: &Server, dialect: Dialect, room: &str, user: &str) -> Self {
        let path = match dialect {
            Dialect::Full => format!("/ws/{room}?user={user}&presence=full"),
            Dialect::Diff => format!("/ws/{room}?user={user}&presence=diff"),
            Dialect::Count => format!("/ws/{room}?user={user}&presence=count"),
            Dialect::Phoenix => format!("/socket/websocket?vsn=2.0.0&user={user}"),
        };
        let mut ws = server.ws(&path).await;
        if dialect == Dialect::Phoenix {
            ws.json(json!(["1", "1", room, "phx_join", {}])).await;
            let reply = ws.next().await;
            let ok = json!({"status": "ok", "response": {}});
            assert_eq!(reply, json!(["1", "1", room, "phx_reply", ok]));
        }
        let (members, frames) = (BTreeMap::new(), Vec::new());
        Self { ws, dialect, room: room.to_owned(), members, users: 0, version: None, frames }
    }

    /// The type of a frame, or its event.
    pub fn kind<'a>(&self, frame: &'a Value) -> &'a str {
        let kind = if self.dialect == Dialect::Phoenix { &frame[3] } else { &frame["type"] };
        kind.as_str().unwrap()
    }

    /// The next frame, which has to be about the members, and is folded.
    pub async fn next(&mut self) -> Value {
        let frame = self.ws.next().await;
        self.fold(&frame);
        frame
    }

    /// The last frame about the members.
    pub fn last(&self) -> &Value {
        self.frames.last().unwrap()
    }

    /// Reads on until the room is as wanted.
    pub async fn until(&mut self, wanted: impl Fn(&Self) -> bool) {
        while !wanted(self) {
            self.next().await;
        }
    }

    pub fn knows(&self, user: &str) -> bool {
        self.members.contains_key(user)
    }

    /// The entry of a user with one connection, or its meta.
    pub fn entry(&self, user: &str) -> Option<&Value> {
        self.members.get(user)?.values().next()
    }

    /// The users, each with the number of its connections.
    pub fn connections(&self) -> BTreeMap<&str, u64> {
        let connections = |entries: &BTreeMap<String, Value>| match self.dialect {
            Dialect::Phoenix => entries.len() as u64,
            _ => entries.values().map(|entry| entry["connections"].as_u64().unwrap()).sum(),
        };
        self.members.iter().map(|(user, entries)| (user.as_str(), connections(entries))).collect()
    }

    /// The versions between which a diff of its dialect lies.
    pub fn span(&self, diff: &Value) -> Option<(u64, u64)> {
        let (payload, version) = match self.dialect {
            Dialect::Phoenix => (&diff[4], "v"),
            _ => (&diff["payload"], "version"),
        };
        Some((payload["since"].as_u64()?, payload[version].as_u64()?))
    }

    fn fold(&mut self, frame: &Value) {
        self.frames.push(frame.clone());
        match self.dialect {
            Dialect::Phoenix => {
                assert_eq!(frame[2], self.room.as_str());
                self.fold_phoenix(frame);
            }
            _ => {
                assert_eq!(frame["payload"]["channel_name"], self.room.as_str());
                self.fold_json(frame);
            }
        }
    }

    fn fold_json(&mut self, frame: &Value) {
        let payload = &frame["payload"];
        let entry = |member: &Value| {
            let id = member["id"].as_str().unwrap().to_owned();
            (id, BTreeMap::from([(String::new(), member.clone())]))
        };
        let entries = |list: &str| payload[list].as_array().unwrap().iter().map(entry);
        match frame["type"].as_str().unwrap() {
            "presence" | "presence_state" => {
                self.members = entries("members").collect();
                self.users = self.members.len() as u64;
            }
            "presence_diff" => {
                assert_eq!(payload["since"].as_u64(), self.version, "{frame}");
                self.members.extend(entries("joins"));
                for (gone, _) in entries("leaves") {
                    assert!(self.members.remove(&gone).is_some(), "whoever leaves was there");
                }
                self.users = self.members.len() as u64;
            }
            "presence_count" => {
                self.members.clear();
                self.users = payload["users"].as_u64().unwrap();
            }
            other => panic!("{other} is not about the members"),
        }
        let version = payload["version"].as_u64();
        assert!(version > self.version, "each version is told once: {frame}");
        self.version = version;
    }

    /// As `presence.js` does it: joins first, then leaves.
    fn fold_phoenix(&mut self, frame: &Value) {
        let payload = &frame[4];
        match frame[3].as_str().unwrap() {
            "presence_state" => {
                assert_eq!((&frame[0], &frame[1]), (&json!("1"), &Value::Null));
                (self.members, self.version) = (metas(payload), None);
            }
            "presence_diff" => {
                let (since, version) = self.span(frame).unwrap();
                assert!(self.version.is_none_or(|known| known == since), "{frame}");
                assert!(version > since);
                self.version = Some(version);
                for (user, joined) in metas(&payload["joins"]) {
                    self.members.entry(user).or_default().extend(joined);
                }
                for (user, left) in metas(&payload["leaves"]) {
                    let known = self.members.get_mut(&user).expect("whoever leaves was there");
                    let left: BTreeSet<_> = left.into_keys().collect();
                    known.retain(|reference, _| !left.contains(reference));
                    if known.is_empty() {
                        self.members.remove(&user);
                    }
                }
            }
            "presence_count" => {
                let version = payload["version"].as_u64();
                assert!(version > self.version, "each version is told once: {frame}");
                self.version = version;
            }
            other => panic!("{other} is not about the members"),
        }
        self.users = match frame[3].as_str() {
            Some("presence_count") => payload["users"].as_u64().unwrap(),
            _ => self.members.len() as u64,
        };
    }
}

fn metas(state: &Value) -> BTreeMap<String, BTreeMap<String, Value>> {
    let reference = |meta: &Value| (meta["phx_ref"].as_str().unwrap().to_owned(), meta.clone());
    let of = |metas: &Value| metas["metas"].as_array().unwrap().iter().map(reference).collect();
    state.as_object().unwrap().iter().map(|(user, metas)| (user.clone(), of(metas))).collect()
}

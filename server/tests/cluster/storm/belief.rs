//! What a client believes of its room, folded from what it was told.

use std::collections::BTreeMap;

use serde_json::{Value, json};

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Dialect {
    Full,
    Diff,
    Count,
    Phoenix,
}

/// What was told since the connection began. Things that must not be are put into `faults`.
#[derive(Clone, Debug)]
pub struct Belief {
    dialect: Dialect,
    version: Option<u64>,
    epoch: Value,
    /// By user, their entry; for a client of Phoenix by key, its metas.
    members: BTreeMap<String, Value>,
    users: Value,
    lurkers: Value,
    pub joined: bool,
    pub faults: Vec<String>,
}

impl Belief {
    pub fn new(dialect: Dialect) -> Self {
        let (members, faults) = (BTreeMap::new(), Vec::new());
        let [epoch, users, lurkers] = [const { Value::Null }; 3];
        Self { dialect, version: None, epoch, members, users, lurkers, joined: false, faults }
    }

    /// Takes a frame in.
    pub fn hear(&mut self, frame: &Value) {
        if self.dialect == Dialect::Phoenix {
            return self.hear_phoenix(frame);
        }
        let payload = &frame["payload"];
        match frame["type"].as_str() {
            Some("presence") => self.members = by_id(&payload["members"]),
            Some("presence_state") => {
                self.members = by_id(&payload["members"]);
                self.epoch = payload["epoch"].clone();
            }
            Some("presence_diff") => {
                self.follows(frame, &payload["since"]);
                for leave in payload["leaves"].as_array().unwrap() {
                    let id = leave["id"].as_str().unwrap();
                    if self.members.remove(id).is_none() {
                        self.faults.push(format!("{id} was not there: {frame}"));
                    }
                }
                self.members.extend(by_id(&payload["joins"]));
            }
            Some("presence_count") => self.users = payload["users"].clone(),
            _ => return self.faults.push(format!("unexpected: {frame}")),
        }
        self.joined = true;
        self.version = payload["version"].as_u64();
        self.lurkers = payload["lurkers"].clone();
    }

    fn hear_phoenix(&mut self, frame: &Value) {
        match frame[3].as_str() {
            Some("presence_state") => {
                let state = frame[4].as_object().unwrap();
                let metas = |(key, entry): (&String, &Value)| (key.clone(), entry["metas"].clone());
                self.members = state.iter().map(metas).collect();
                self.version = None;
                self.joined = true;
            }
            Some("presence_diff") => {
                self.follows(frame, &frame[4]["since"]);
                self.version = frame[4]["v"].as_u64();
                self.epoch = frame[4]["epoch"].clone();
                for (key, left) in frame[4]["leaves"].as_object().unwrap() {
                    for meta in left["metas"].as_array().unwrap() {
                        let metas = self.members.get_mut(key).and_then(Value::as_array_mut);
                        let index = metas.as_ref().and_then(|metas| {
                            metas.iter().position(|one| one["phx_ref"] == meta["phx_ref"])
                        });
                        match (metas, index) {
                            (Some(metas), Some(index)) => drop(metas.remove(index)),
                            _ => self.faults.push(format!("{key} was not there: {frame}")),
                        }
                    }
                }
                for (key, joined) in frame[4]["joins"].as_object().unwrap() {
                    let metas = self.members.entry(key.clone()).or_insert_with(|| json!([]));
                    let metas = metas.as_array_mut().unwrap();
                    for meta in joined["metas"].as_array().unwrap() {
                        if metas.iter().any(|one| one["phx_ref"] == meta["phx_ref"]) {
                            self.faults.push(format!("{key} was there: {frame}"));
                        }
                        metas.push(meta.clone());
                    }
                }
                self.members.retain(|_, metas| metas.as_array().is_some_and(|m| !m.is_empty()));
            }
            Some("phx_reply") if frame[4]["status"] == "ok" => {}
            _ => self.faults.push(format!("unexpected: {frame}")),
        }
    }

    /// A diff follows what came before.
    fn follows(&mut self, frame: &Value, since: &Value) {
        if self.version.is_some_and(|version| *since != version) {
            self.faults.push(format!("does not follow {:?}: {frame}", self.version));
        }
    }

    /// What differs from the room as its node gives it.
    pub fn differs_from(&self, room: &Value) -> Option<String> {
        let differs = |what: &str, mine: &dyn std::fmt::Debug, theirs: &dyn std::fmt::Debug| {
            let dialect = self.dialect;
            Some(format!("{dialect:?}: {what} is {mine:?}, and on the node {theirs:?}"))
        };
        let version = room["version"].as_u64();
        let of_state = self.dialect == Dialect::Phoenix && self.version.is_none();
        if self.version != version && !of_state {
            return differs("version", &self.version, &version);
        }
        if self.epoch != Value::Null && self.epoch != room["epoch"] {
            return differs("epoch", &self.epoch, &room["epoch"]);
        }
        if self.dialect == Dialect::Phoenix {
            return self.metas_differ(room);
        }
        if self.lurkers != room["anonymous"] {
            return differs("lurkers", &self.lurkers, &room["anonymous"]);
        }
        let users = by_id(&room["users"]);
        match self.dialect {
            Dialect::Count if self.users != users.len() => {
                differs("users", &self.users, &users.len())
            }
            Dialect::Full | Dialect::Diff if self.members != users => {
                differs("members", &self.members, &users)
            }
            _ => None,
        }
    }

    fn metas_differ(&self, room: &Value) -> Option<String> {
        let mut here: BTreeMap<&str, usize> = BTreeMap::new();
        for (key, metas) in &self.members {
            here.insert(key, metas.as_array().map_or(0, Vec::len));
        }
        let users = room["users"].as_array()?;
        for user in users {
            let metas = here.remove(user["id"].as_str()?).unwrap_or(0);
            if user["connections"] != metas {
                return Some(format!("Phoenix: {metas} metas of {user}"));
            }
        }
        let anonymous: usize = here.values().sum();
        (room["anonymous"] != anonymous).then(|| format!("Phoenix: beside users {here:?}"))
    }
}

fn by_id(list: &Value) -> BTreeMap<String, Value> {
    let list = list.as_array().unwrap().iter();
    list.map(|one| (one["id"].as_str().unwrap().to_owned(), one.clone())).collect()
}

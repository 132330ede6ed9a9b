//! What a client makes of the frames that it gets, in each dialect, and whether that is right.

use std::collections::{BTreeMap, BTreeSet};

use actix_presence::{Dialect, Feed, ForwardMessage, Forwarded, Snapshot};
use proptest::{prelude::*, test_runner::TestCaseResult};
use serde_json::{Value, json};

use crate::log::{Log, MessageNo, StayNo, Who};

/// A client of one guest.
pub struct View {
    who: Who,
    dialect: Dialect,
    stay: Option<StayNo>,
    /// What it was told last in this stay.
    told: Option<Told>,
    pub heard: BTreeSet<MessageNo>,
    /// The last message that it has heard of each guest.
    last: BTreeMap<Option<Who>, MessageNo>,
}

struct Told {
    /// The version; a state of Phoenix does not tell it, and may be that of several.
    versions: Vec<u64>,
    members: Members,
}

enum Members {
    /// It knows how many there are.
    Counted,
    /// By their ids.
    Json(BTreeMap<String, Value>),
    /// By their keys and references.
    Phoenix(BTreeMap<(String, String), Value>),
}

/// A key and the info of one connection.
type Metas = BTreeSet<(String, String)>;

impl View {
    pub fn new(who: Who, dialect: Dialect) -> Self {
        let (heard, last) = (BTreeSet::new(), BTreeMap::new());
        Self { who, dialect, stay: None, told: None, heard, last }
    }

    fn listens(&self) -> bool {
        !matches!(self.dialect, Dialect::Raw | Dialect::Json(Feed::None))
    }

    /// Takes the next frame.
    pub fn take(&mut self, log: &Log, frame: &ForwardMessage) -> TestCaseResult {
        if let Forwarded::Closed { .. } = frame.kind {
            return Ok(());
        }
        if frame.kind == Forwarded::Message {
            return self.hear(log, frame);
        }
        prop_assert!(self.listens(), "a list for one who does not listen");
        let value: Value = serde_json::from_str(&frame.payload).unwrap();
        match self.dialect {
            Dialect::Phoenix => self.take_phoenix(log, frame.kind, &value),
            _ => self.take_json(log, &value),
        }
    }

    /// Everything is told that was to be, and said that was to be heard.
    pub fn check(&self, log: &Log, said: std::ops::Range<MessageNo>) -> TestCaseResult {
        let Some(stay) = log.here.get(&self.who) else { return Ok(()) };
        let version = log.version().unwrap();
        if self.listens() {
            let told = self.told.as_ref().filter(|_| self.stay == Some(*stay));
            let versions = told.map(|told| &*told.versions).unwrap_or_default();
            prop_assert!(versions.contains(&version), "knows {:?} of {}", versions, version);
        }
        for message in said.filter(|one| log.said[*one].to.contains(stay)) {
            prop_assert!(self.heard.contains(&message), "has not heard {}", message);
        }
        Ok(())
    }

    fn hear(&mut self, log: &Log, frame: &ForwardMessage) -> TestCaseResult {
        let text = match self.dialect {
            Dialect::Phoenix => {
                let frame: Value = serde_json::from_str(&frame.payload).unwrap();
                frame[4]["payload"].as_str().unwrap().to_owned()
            }
            _ => frame.payload.to_string(),
        };
        let number: MessageNo = text.parse().unwrap();
        let said = &log.said[number];
        let mine = said.to.iter().find(|stay| log.stays[**stay].who == self.who);
        prop_assert!(mine.is_some(), "{} was not for it", number);
        prop_assert!(mine >= self.stay.as_ref(), "{} was for its stay before", number);
        prop_assert!(self.heard.insert(number), "{} twice", number);
        let sender = said.sender.map(|stay| log.stays[stay].who);
        let before = self.last.insert(sender, number);
        prop_assert!(before < Some(number), "{} after {:?}", number, before);
        if !self.listens() {
            self.stay = mine.copied();
            return Ok(());
        }
        prop_assert_eq!(mine, self.stay.as_ref(), "{} before the state", number);
        let Some(sender) = said.sender else { return Ok(()) };
        let versions = &self.told.as_ref().unwrap().versions;
        let is_told = versions.iter().any(|version| log.is_in(sender, *version));
        let (joined, left) = (log.stays[sender].joined, log.stays[sender].left);
        prop_assert!(
            is_told,
            "{} of one who was there from {} to {} at {:?}",
            number,
            joined,
            left,
            versions
        );
        Ok(())
    }

    /// Is told the room at this version, or one of these.
    fn is_told(&mut self, log: &Log, versions: Vec<u64>, members: Members) -> TestCaseResult {
        let stay = versions.first().and_then(|version| log.stay(self.who, *version));
        prop_assert!(stay.is_some(), "is told {:?}, at which it was not there", versions);
        prop_assert!(stay >= self.stay, "is told of its stay before");
        if let Some(told) = self.told.as_ref().filter(|_| stay == self.stay) {
            prop_assert!(versions.last() >= told.versions.first(), "an older list");
        }
        self.stay = stay;
        self.told = Some(Told { versions, members });
        Ok(())
    }

    fn take_json(&mut self, log: &Log, frame: &Value) -> TestCaseResult {
        let (kind, payload) = (frame["type"].as_str().unwrap(), &frame["payload"]);
        let version = payload["version"].as_u64().unwrap();
        let room = log.snapshots.get(&version);
        prop_assert!(room.is_some(), "there was no version {}", version);
        let room = room.unwrap();
        let lurkers = payload["lurkers"].as_u64().unwrap();
        let is_truncated = payload["truncated"] == json!(true);
        let mut members = match (kind, self.dialect) {
            ("presence_count", Dialect::Json(feed)) => {
                prop_assert!(is_truncated == (feed != Feed::Count));
                prop_assert_eq!(&payload["users"], &json!(room.occupancy().users));
                prop_assert_eq!(lurkers, room.anonymous_count() as u64);
                return self.is_told(log, vec![version], Members::Counted);
            }
            ("presence", Dialect::Json(Feed::Full)) => by_id(&payload["members"]),
            ("presence_state", Dialect::Json(Feed::Diff)) => by_id(&payload["members"]),
            ("presence_diff", Dialect::Json(Feed::Diff)) => {
                let told = self.told.take();
                let since = payload["since"].as_u64();
                let Some(Told { members: Members::Json(members), versions }) = told else {
                    return Err(TestCaseError::fail("a change of nothing"));
                };
                prop_assert_eq!(versions.first(), since.as_ref());
                members
            }
            _ => return Err(TestCaseError::fail(format!("{kind} for {:?}", self.dialect))),
        };
        if kind == "presence_diff" {
            members.extend(by_id(&payload["joins"]));
            for id in by_id(&payload["leaves"]).keys() {
                prop_assert!(members.remove(id).is_some(), "{} left, but was not there", id);
            }
        }
        let expected: Value = serde_json::from_str(&room.to_json()).unwrap();
        prop_assert_eq!(&members, &by_id(&expected["payload"]["members"]), "at {}", version);
        prop_assert_eq!(lurkers, room.anonymous_count() as u64);
        self.is_told(log, vec![version], Members::Json(members))
    }

    fn take_phoenix(&mut self, log: &Log, kind: Forwarded, frame: &Value) -> TestCaseResult {
        let (event, payload) = (frame[3].as_str().unwrap(), &frame[4]);
        if event == "presence_count" {
            let version = payload["version"].as_u64().unwrap();
            return self.is_told(log, vec![version], Members::Counted);
        }
        if event == "presence_state" {
            prop_assert_eq!(kind, Forwarded::State);
            let members = by_reference(payload);
            if members.is_empty() {
                // It stands for one that is too large, with the count after it.
                return Ok(());
            }
            let metas = infos(&members);
            let same = log.snapshots.iter().filter(|(_, room)| expected(room) == metas);
            let versions: Vec<_> = same.map(|(version, _)| *version).collect();
            return self.is_told(log, versions, Members::Phoenix(members));
        }
        prop_assert_eq!(event, "presence_diff");
        let (since, version) = (payload["since"].as_u64().unwrap(), payload["v"].as_u64().unwrap());
        let Some(Told { members: Members::Phoenix(mut members), versions }) = self.told.take()
        else {
            return Err(TestCaseError::fail("a change of nothing"));
        };
        prop_assert!(versions.contains(&since), "since {}, but it knows {:?}", since, versions);
        // As `presence.js` does: joins first, then leaves.
        members.extend(by_reference(&payload["joins"]));
        for meta in by_reference(&payload["leaves"]).keys() {
            prop_assert!(members.remove(meta).is_some(), "{:?} left, but was not there", meta);
        }
        prop_assert_eq!(infos(&members), expected(&log.snapshots[&version]), "at {}", version);
        self.is_told(log, vec![version], Members::Phoenix(members))
    }
}

fn by_id(members: &Value) -> BTreeMap<String, Value> {
    let id = |member: &Value| member["id"].as_str().unwrap().to_owned();
    members.as_array().unwrap().iter().map(|member| (id(member), member.clone())).collect()
}

fn by_reference(state: &Value) -> BTreeMap<(String, String), Value> {
    let mut members = BTreeMap::new();
    for (key, user) in state.as_object().unwrap() {
        for meta in user["metas"].as_array().unwrap() {
            let reference = meta["phx_ref"].as_str().unwrap().to_owned();
            members.insert((key.clone(), reference), meta["n"].clone());
        }
    }
    members
}

fn infos(members: &BTreeMap<(String, String), Value>) -> Metas {
    members.iter().map(|((key, _), n)| (key.clone(), n.to_string())).collect()
}

fn expected(room: &Snapshot) -> Metas {
    let metas = room.presences().map(|presence| {
        let info: Value = serde_json::from_str(presence.info.as_json()).unwrap();
        let anonymous = || format!("anonymous:{}", presence.connection);
        let key = presence.user.map_or_else(anonymous, |user| user.to_string());
        (key, info["n"].to_string())
    });
    metas.collect()
}

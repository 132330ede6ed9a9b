//! What all clients have said, heard and seen, and what must not have been.

use std::{
    collections::{BTreeMap, BTreeSet, HashMap},
    net::SocketAddr,
    sync::{Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use serde_json::Value;

use super::client::Plan;

#[derive(Debug, Default)]
pub struct Record(Mutex<Known>);

#[derive(Debug, Default)]
struct Known {
    nodes: Vec<(String, SocketAddr)>,
    /// By their number, which is the order in which they were opened.
    sockets: BTreeMap<u64, Socket>,
    /// Who is in each room, from when all are: nobody may come or go after that.
    members: Option<HashMap<usize, BTreeSet<String>>>,
    faults: Vec<String>,
    /// From the end of a client's pause until it was there again.
    returns: Vec<Duration>,
}

#[derive(Debug)]
struct Socket {
    client: usize,
    room: usize,
    node: String,
    open: bool,
    /// The number of the last message it has said, and of the last that it has heard of its own.
    said: u64,
    echoed: u64,
    /// The first and the last message that it has heard of each socket.
    heard: HashMap<u64, (u64, u64)>,
    /// Who is in the room by the states and diffs that it was sent, if it watches.
    view: Option<BTreeSet<String>>,
}

impl Record {
    fn known(&self) -> MutexGuard<'_, Known> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub fn add_node(&self, name: &str, address: SocketAddr) {
        self.known().nodes.push((name.to_owned(), address));
    }

    /// Nobody goes there from now on.
    pub fn avoid(&self, name: &str) {
        self.known().nodes.retain(|(known, _)| known != name);
    }

    pub fn any_node(&self, rng: &mut fastrand::Rng) -> Option<(String, SocketAddr)> {
        rng.choice(&self.known().nodes).cloned()
    }

    /// Whether everybody who watches sees all of these in their rooms.
    pub fn all_see(&self, plans: &[Plan]) -> bool {
        let (members, known) = (members(plans), self.known());
        let watch = known.sockets.values().filter(|socket| socket.open);
        let views = watch.filter_map(|socket| Some((socket.room, socket.view.as_ref()?)));
        views.into_iter().all(|(room, view)| *view == members[&room])
    }

    /// From now on these are in their rooms, and nobody comes or goes.
    pub fn settle(&self, plans: &[Plan]) {
        self.known().members = Some(members(plans));
    }

    pub fn opened(&self, plan: &Plan, node: &str, after: Duration) -> u64 {
        let mut known = self.known();
        let number = known.sockets.len() as u64;
        let (client, room, node) = (plan.number, plan.room, node.to_owned());
        let (open, said, echoed, heard) = (true, 0, 0, HashMap::new());
        let view = plan.watches.then(BTreeSet::new);
        let socket = Socket { client, room, node, open, said, echoed, heard, view };
        known.sockets.insert(number, socket);
        if known.members.is_some() {
            known.returns.push(after);
        }
        number
    }

    pub fn closed(&self, socket: u64, code: Option<u16>) {
        let mut known = self.known();
        let socket = known.sockets.get_mut(&socket).unwrap();
        socket.open = false;
        let (client, is_good) = (socket.client, matches!(code, None | Some(1012)));
        if !is_good {
            known.faults.push(format!("u{client} was closed with {code:?}"));
        }
    }

    pub fn says(&self, socket: u64, number: u64) {
        self.known().sockets.get_mut(&socket).unwrap().said = number;
    }

    pub fn heard(&self, plan: &Plan, socket: u64, frame: &Value) {
        let mut known = self.known();
        let payload = &frame["payload"];
        let fault = match frame["type"].as_str() {
            Some("message") => {
                let [from, number] = [0, 1].map(|part| payload[part].as_u64().unwrap());
                known.message(socket, from, number)
            }
            Some("presence_diff") => known.diff(socket, payload),
            Some("presence_state") => known.state(socket, payload),
            _ => Some(format!("{frame}")),
        };
        let fault = fault.map(|fault| format!("u{} on socket {socket}: {fault}", plan.number));
        known.faults.extend(fault);
    }

    pub fn faults(&self) -> Vec<String> {
        self.known().faults.clone()
    }

    /// How many clients have an open socket on a node that is there.
    pub fn connected(&self) -> usize {
        let known = self.known();
        let open = known.sockets.values().filter(|socket| socket.open);
        let open = open.filter(|socket| known.nodes.iter().any(|(name, _)| *name == socket.node));
        open.map(|socket| socket.client).collect::<BTreeSet<_>>().len()
    }

    /// How many messages each open socket has said so far.
    pub fn said_so_far(&self) -> HashMap<u64, u64> {
        let known = self.known();
        let open = known.sockets.iter().filter(|(_, socket)| socket.open);
        open.map(|(number, socket)| (*number, socket.said)).collect()
    }

    /// Whether every open socket has heard of each of these sockets, if in its room, up to this number.
    pub fn have_heard(&self, said: &HashMap<u64, u64>) -> bool {
        let known = self.known();
        let listeners = known.sockets.iter().filter(|(number, _)| said.contains_key(number));
        listeners.filter(|(_, listener)| listener.open).all(|(_, listener)| {
            said.iter().all(|(speaker, number)| {
                known.sockets[speaker].room != listener.room
                    || *number == 0
                    || listener.heard.get(speaker).is_some_and(|(_, last)| last >= number)
            })
        })
    }

    /// What sockets of this node had said and heard of themselves, and others have not that have been
    /// open from before until now.
    pub fn lost(&self, node: &str, before: &HashMap<u64, u64>) -> Vec<String> {
        let known = self.known();
        let mut lost = Vec::new();
        let closed = known.sockets.iter().filter(|(number, socket)| {
            before.contains_key(number) && !socket.open && socket.node == node
        });
        for (number, speaker) in closed {
            for (other, listener) in &known.sockets {
                let was_there = listener.open && before.contains_key(other);
                let last = listener.heard.get(number).map_or(0, |(_, last)| *last);
                if was_there && listener.room == speaker.room && last < speaker.echoed {
                    let echoed = speaker.echoed;
                    lost.push(format!("{other} heard {last} of {echoed} messages of {number}"));
                }
            }
        }
        lost
    }

    /// The median time from the end of a pause until the client was there again.
    pub fn median_return(&self) -> Option<Duration> {
        let mut returns = self.known().returns.clone();
        returns.sort_unstable();
        returns.get(returns.len() / 2).copied()
    }
}

impl Known {
    /// Between the first and the last message that a socket hears of another, none may be missing; nor
    /// before the first, if it was there before the other came.
    fn message(&mut self, to: u64, from: u64, number: u64) -> Option<String> {
        let socket = self.sockets.get_mut(&to)?;
        if from == to {
            socket.echoed = number;
        }
        let known = socket.heard.entry(from).or_insert((number, number));
        let expected = match (known.1 == number, from > to) {
            (true, true) => 1,
            (true, false) => number,
            (false, _) => known.1 + 1,
        };
        known.1 = number;
        (number != expected).then(|| format!("message {number} of {from} instead of {expected}"))
    }

    fn diff(&mut self, socket: u64, payload: &Value) -> Option<String> {
        let (joins, leaves) = (ids(&payload["joins"]), ids(&payload["leaves"]));
        let moved = !joins.is_empty() || !leaves.is_empty();
        let view = self.sockets.get_mut(&socket)?.view.as_mut()?;
        view.extend(joins);
        view.retain(|id| !leaves.contains(id));
        (self.members.is_some() && moved).then(|| format!("{payload}"))
    }

    fn state(&mut self, socket: u64, payload: &Value) -> Option<String> {
        let ids = ids(&payload["members"]);
        let socket = self.sockets.get_mut(&socket)?;
        socket.view = Some(ids.clone());
        let expected = &self.members.as_ref()?[&socket.room];
        (ids != *expected).then(|| format!("a state with {ids:?}"))
    }
}

fn ids(list: &Value) -> BTreeSet<String> {
    let list = list.as_array().into_iter().flatten();
    list.filter_map(|one| Some(one["id"].as_str()?.to_owned())).collect()
}

/// Who is in which room.
fn members(plans: &[Plan]) -> HashMap<usize, BTreeSet<String>> {
    let mut members: HashMap<usize, BTreeSet<String>> = HashMap::new();
    for plan in plans {
        members.entry(plan.room).or_default().insert(plan.user());
    }
    members
}

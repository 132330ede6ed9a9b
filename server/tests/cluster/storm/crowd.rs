//! Many clients, on a thread of their own.

use std::{
    net::SocketAddr,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    thread::{self, JoinHandle},
};

use tokio::{
    sync::{
        mpsc::{UnboundedSender, unbounded_channel},
        oneshot,
    },
    task::LocalSet,
};

use super::{
    belief::{Belief, Dialect},
    client::{Client, Directory, Order, Plan, State},
};

pub struct Crowd {
    pub directory: Arc<Directory>,
    pub plans: Vec<Plan>,
    states: Vec<Arc<Mutex<State>>>,
    orders: Vec<UnboundedSender<Order>>,
    rng: fastrand::Rng,
    ending: Option<(oneshot::Sender<()>, JoinHandle<()>)>,
}

/// Who the clients are: rooms of ten to fifty, all dialects, half with a key, users with several
/// connections and some without a name.
fn plans(size: usize) -> Vec<Plan> {
    let mut plans = Vec::new();
    let mut room = 0;
    while plans.len() < size {
        for _ in 0..10 * (1 + room % 5) {
            let number = plans.len();
            plans.push(Plan {
                number,
                room: format!("room{room}"),
                user: (number % 7 != 0).then(|| format!("user{}", number % 170 / 2)),
                has_key: number / 4 % 2 == 0,
                dialect: [Dialect::Full, Dialect::Diff, Dialect::Count, Dialect::Phoenix]
                    [number % 4],
            });
        }
        room += 1;
    }
    plans
}

impl Crowd {
    /// Starts at least so many clients, which go to the nodes of the directory.
    pub fn start(size: usize, directory: Arc<Directory>) -> Self {
        let plans = plans(size);
        let (mut states, mut orders, mut clients) = (Vec::new(), Vec::new(), Vec::new());
        for plan in &plans {
            let belief = Belief::new(plan.dialect);
            let state = State { node: None, belief, mood: 0, faults: Vec::new() };
            let state = Arc::new(Mutex::new(state));
            let (order, ordered) = unbounded_channel();
            clients.push(Client::new(plan.clone(), state.clone(), directory.clone(), ordered));
            states.push(state);
            orders.push(order);
        }
        let (end, ended) = oneshot::channel();
        let thread = thread::spawn(move || {
            let mut runtime = tokio::runtime::Builder::new_current_thread();
            let runtime = runtime.enable_all().build().unwrap();
            let local = LocalSet::new();
            for client in clients {
                local.spawn_local(client.live());
            }
            // Also when the test has failed.
            let _ = local.block_on(&runtime, ended);
        });
        let (rng, ending) = (fastrand::Rng::with_seed(7), Some((end, thread)));
        Self { directory, plans, states, orders, rng, ending }
    }

    pub fn state(&self, client: usize) -> MutexGuard<'_, State> {
        self.states[client].lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The clients that are connected to this node.
    pub fn at(&self, address: SocketAddr) -> Vec<usize> {
        let at = |client: &usize| {
            self.state(*client).node.as_ref().is_some_and(|(_, there)| *there == address)
        };
        (0..self.plans.len()).filter(at).collect()
    }

    /// Gives this many clients something to do, but for those on a node that stands still.
    pub fn stir(&mut self, count: usize, but_for: Option<SocketAddr>) {
        for _ in 0..count {
            let client = self.rng.usize(..self.plans.len());
            let there = self.state(client).node.as_ref().map(|(_, address)| *address);
            let order = *self.rng.choice(&[Order::Drop, Order::Leave, Order::Update]).unwrap();
            if there.is_some() && there != but_for {
                let _ = self.orders[client].send(order);
            }
        }
    }

    /// What has happened to clients that must not.
    pub fn faults(&self) -> Vec<String> {
        let mut faults = Vec::new();
        for plan in &self.plans {
            let state = self.state(plan.number);
            let all = state.faults.iter().chain(&state.belief.faults);
            faults.extend(all.map(|fault| format!("{plan:?}: {fault}")));
        }
        faults
    }
}

impl Drop for Crowd {
    fn drop(&mut self) {
        if let Some((end, thread)) = self.ending.take() {
            let _ = end.send(());
            let _ = thread.join();
        }
    }
}

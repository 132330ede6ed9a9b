//! Random histories of a room, with sessions of every dialect.

use std::{cell::RefCell, ops::Range, pin::Pin, time::Duration};

use actix::prelude::*;
use actix_presence::*;
use futures_util::future::join_all;
use proptest::{
    prelude::*,
    test_runner::{TestCaseResult, TestRunner},
};
use serde_json::json;

use crate::{
    common::{Harness, room, secs},
    guests::{Guest, Place, Threads},
    log::{Log, MessageNo, Who},
    views::View,
};

const GUESTS: usize = 7;

#[derive(Clone, Debug)]
enum Step {
    /// As the user that it has, or as this one, or anonymously.
    Join(Who, Option<Option<u8>>),
    Leave(Who),
    Kick(Who),
    CloseRoom,
    Update(Who),
    /// For all, or for all others.
    Say(Who, bool),
    /// By nobody who is there, for all but one.
    Call(Option<Who>),
    /// So many microseconds pass.
    Pass(u64),
    /// What comes is in another turn.
    EndTurn,
    /// All that waits is told, and what everybody knows is looked at.
    Check,
}

/// Where it runs: an index of `World::place`; and its dialect.
type Kind = (usize, usize);

const DIALECTS: [Dialect; 6] = [
    Dialect::Raw,
    Dialect::Json(Feed::Full),
    Dialect::Json(Feed::Diff),
    Dialect::Json(Feed::Count),
    Dialect::Json(Feed::None),
    Dialect::Phoenix,
];

fn kind() -> impl Strategy<Value = Kind> {
    let place = prop_oneof![3 => 0..2_usize, 1 => 2..4_usize];
    (place, 0..DIALECTS.len())
}

fn step() -> impl Strategy<Value = Step> {
    let who = 0..GUESTS;
    let user = prop_oneof![
        4 => Just(None),
        1 => proptest::option::of(0..3_u8).prop_map(Some),
    ];
    prop_oneof![
        6 => (who.clone(), user).prop_map(|(who, user)| Step::Join(who, user)),
        3 => who.clone().prop_map(Step::Leave),
        1 => who.clone().prop_map(Step::Kick),
        1 => Just(Step::CloseRoom),
        2 => who.clone().prop_map(Step::Update),
        8 => (who.clone(), any::<bool>()).prop_map(|(who, all)| Step::Say(who, all)),
        2 => proptest::option::of(who).prop_map(Step::Call),
        3 => (0..20_000_u64).prop_map(Step::Pass),
        2 => (40_000..1_500_000_u64).prop_map(Step::Pass),
        6 => Just(Step::EndTurn),
        1 => Just(Step::Check),
    ]
}

/// What a history runs in.
struct World {
    t: Harness,
    threads: Threads,
    histories: usize,
}

impl World {
    fn place(&self, index: usize) -> Place {
        match self.threads.handles.get(index) {
            Some(thread) => Place::Thread(thread.clone()),
            None if index == 2 => Place::Here,
            None => Place::NoArbiter,
        }
    }
}

/// Awaited at the end of a turn.
type PendingReplies = Vec<Pin<Box<dyn Future<Output = ()>>>>;

struct Run<'a> {
    world: &'a mut World,
    name: String,
    guests: Vec<Guest>,
    joins: Vec<Vec<Join>>,
    views: Vec<View>,
    log: Log,
    answers: PendingReplies,
    /// Messages that nobody has looked for yet.
    said: Range<MessageNo>,
    infos: u64,
}

impl<'a> Run<'a> {
    async fn new(world: &'a mut World, kinds: &[Kind], steps: &[Step]) -> Self {
        world.histories += 1;
        let name = format!("room {}", world.histories);
        let guests = kinds
            .iter()
            .map(|(place, dialect)| Guest::new(&world.t, world.place(*place), DIALECTS[*dialect]));
        let guests = join_all(guests).await;
        let joins = guests.iter().enumerate().map(|(who, guest)| {
            let is_it = |step: &&Step| matches!(step, Step::Join(one, _) if *one == who);
            // They are made before, so that several can be in one turn.
            guest.joins(&name, steps.iter().filter(is_it).count())
        });
        let joins = join_all(joins).await;
        let views = guests.iter().enumerate().map(|(who, guest)| View::new(who, guest.dialect));
        let views = views.collect();
        let (log, answers) = (Log::default(), Vec::new());
        Self { world, name, guests, joins, views, log, answers, said: 0..0, infos: 0 }
    }

    /// An info that nobody has had.
    fn info(&mut self) -> Info {
        self.infos += 1;
        Info::new(json!({ "n": self.infos })).unwrap()
    }

    fn ask<M>(&mut self, message: M)
    where
        M: Message<Result: Send> + Send + 'static,
        RoomRegistry: Handler<M>,
    {
        let answer = self.world.t.registry.send(message);
        self.answers.push(Box::pin(async move { drop(answer.await.unwrap()) }));
    }

    async fn take(&mut self, step: &Step) -> TestCaseResult {
        let name = room(&self.name);
        match *step {
            Step::Join(who, user) => {
                let own = (who % 3 > 0).then_some(who as u8 / 2);
                let user = user.unwrap_or(own);
                let user = user.map(|user| UserId::new(format!("user {user}")).unwrap());
                let info = self.info();
                let join = self.joins[who].pop().unwrap().user(user).info(info);
                let joined = self.world.t.registry.send(join);
                self.answers.push(Box::pin(async { drop(joined.await.unwrap().unwrap()) }));
                self.log.joined(who);
            }
            Step::Leave(who) => {
                self.ask(Leave::new(name, self.guests[who].id()));
                self.log.left(who);
            }
            Step::Kick(who) => {
                self.ask(Kick::Connection(self.guests[who].id()));
                self.log.left(who);
            }
            Step::CloseRoom => {
                self.ask(CloseRoom { room: name });
                self.log.closed();
            }
            Step::Update(who) => {
                let (connection, info) = (self.guests[who].id(), self.info());
                self.ask(UpdateInfo { room: name, connection, info });
                self.log.updated(who);
            }
            Step::Say(who, to_itself) => {
                let (id, except) = (self.guests[who].id(), (!to_itself).then_some(who));
                if let Some(number) = self.log.said(Some(who), except) {
                    let except = except.map(|_| id);
                    let say = Publish::new(name, number.to_string()).sent_by(id);
                    self.world.t.registry.do_send(Publish { except, ..say });
                }
            }
            Step::Call(except) => {
                let number = self.log.said(None, except).unwrap();
                let except = except.map(|who| self.guests[who].id());
                let call = Publish::new(name, number.to_string());
                self.world.t.registry.do_send(Publish { except, ..call });
            }
            Step::Pass(micros) => self.world.t.clock.advance(Duration::from_micros(micros)),
            Step::EndTurn => {
                self.world.threads.sync(&self.world.t).await;
                self.answered().await;
            }
            Step::Check => self.check().await?,
        }
        Ok(())
    }

    async fn answered(&mut self) {
        for answer in self.answers.drain(..) {
            answer.await;
        }
    }

    /// Lets everything be told, and looks at all of it.
    async fn check(&mut self) -> TestCaseResult {
        self.world.threads.settle(&self.world.t).await;
        self.answered().await;
        let changes = self.world.t.changes().await.into_iter();
        self.log.learn(changes.filter(|change| change.room == *self.name).collect());
        let said = self.said.end..self.log.said.len();
        self.said = said.clone();
        let frames = join_all(self.guests.iter_mut().map(Guest::frames)).await;
        for (who, (view, frames)) in self.views.iter_mut().zip(frames).enumerate() {
            let told = |frames: &[ForwardMessage]| {
                let texts: Vec<_> = frames.iter().map(|frame| frame.payload.to_string()).collect();
                texts.join("\n  ")
            };
            let explain = |error, last: usize| {
                let heard = told(&frames[..=last.min(frames.len().saturating_sub(1))]);
                TestCaseError::fail(format!("{who}: {error}\n  {heard}"))
            };
            for (at, frame) in frames.iter().enumerate() {
                view.take(&self.log, frame).map_err(|error| explain(error, at))?;
            }
            view.check(&self.log, said.clone()).map_err(|error| explain(error, frames.len()))?;
        }
        Ok(())
    }

    async fn end(self) {
        let close = CloseRoom { room: room(&self.name) };
        self.world.t.registry.send(close).await.unwrap();
        self.world.t.changes().await;
    }
}

async fn run(world: &mut World, kinds: &[Kind], steps: &[Step]) -> TestCaseResult {
    let mut run = Run::new(world, kinds, steps).await;
    let mut result = Ok(());
    for step in steps.iter().chain([&Step::Check]) {
        result = run.take(step).await;
        if result.is_err() {
            break;
        }
    }
    run.answered().await;
    run.end().await;
    result
}

fn histories(cases: u32, max_list_size: usize) {
    let system = System::new();
    let world = system.block_on(async {
        let t = Harness::with("sqlite::memory:", |config| {
            config.max_list_size(max_list_size).max_age(secs(1_000_000))
        });
        let t = t.await;
        let threads = Threads::new(&t, 2).await;
        RefCell::new(World { t, threads, histories: 0 })
    });
    let config = ProptestConfig {
        failure_persistence: None,
        max_shrink_iters: 500,
        ..ProptestConfig::default()
    };
    let config = ProptestConfig { cases: config.cases.max(cases), ..config };
    let kinds = proptest::collection::vec(kind(), GUESTS..=GUESTS);
    let history = (kinds, proptest::collection::vec(step(), 1..80));
    let result = TestRunner::new(config).run(&history, |(kinds, steps)| {
        system.block_on(run(&mut world.borrow_mut(), &kinds, &steps))
    });
    if let Err(error) = result {
        panic!("{error:#}");
    }
}

#[test]
fn everybody_knows_the_room_at_each_version_told_and_hears_nobody_who_is_not_there() {
    histories(400, 1024 * 1024);
}

#[test]
fn the_same_holds_where_lists_are_too_large() {
    histories(200, 200);
}

//! Several nodes in one process, on a database and a bus in memory, a clock that jumps, and one
//! thread: whatever happens to them by a seeded schedule, when all is healed every node knows the same
//! (laws 8 and 10), nobody is lost, and nobody is there twice.
//!
//! A seed that fails is printed; `SEED=n cargo test simulation` runs it alone, and says what happens.

mod checks;
mod cluster;
mod forgeries;
mod schedule;
mod scripts;
mod silence;
mod unanswered;

use std::{collections::BTreeMap, time::Duration};

use self::{cluster::World, schedule::Step};

/// Schedules in an ordinary run.
const SEEDS: u64 = 600;

/// Steps in each.
const STEPS: usize = 60;

fn runtime() -> tokio::runtime::Runtime {
    let mut builder = tokio::runtime::Builder::new_current_thread();
    builder.enable_all().start_paused(true).build().unwrap()
}

/// Runs one schedule; answers how often each kind of step was taken.
fn run(seed: u64, tell: bool) -> BTreeMap<String, usize> {
    let system = actix::System::with_tokio_rt(runtime);
    system.block_on(async move {
        let mut world = World::new(seed);
        let mut taken = BTreeMap::new();
        for number in 0..STEPS {
            let step = Step::draw(&mut world);
            if tell {
                println!("{number}: {step:?}");
            }
            *taken.entry(step.kind()).or_default() += 1;
            step.take(&mut world).await;
        }
        world.heal();
        // Time for leases to run out, for graces to end, for what was missed to be read.
        tokio::time::sleep(Duration::from_secs(90)).await;
        for client in 0..world.clients.len() {
            world.observe(client);
        }
        tokio::time::sleep(Duration::from_secs(5)).await;
        checks::everybody_agrees(&mut world).await;
        taken
    })
}

#[test]
fn when_all_is_healed_every_node_knows_the_same() {
    if let Some(seed) = std::env::var("SEED").ok().and_then(|seed| seed.parse().ok()) {
        let told = tracing_subscriber::fmt().without_time().with_ansi(false).with_test_writer();
        let _guard =
            tracing::subscriber::set_default(told.with_max_level(tracing::Level::TRACE).finish());
        run(seed, true);
        return;
    }
    let mut taken: BTreeMap<String, usize> = BTreeMap::new();
    for seed in 0..SEEDS {
        let ran = std::panic::catch_unwind(|| run(seed, false));
        let steps = ran.unwrap_or_else(|panic| {
            println!("seed {seed} fails: SEED={seed} cargo test simulation -- --nocapture");
            std::panic::resume_unwind(panic)
        });
        for (step, times) in steps {
            *taken.entry(step).or_default() += times;
        }
    }
    // A schedule that never does something tests nothing of it.
    assert!(taken.len() == Step::KINDS && taken.values().all(|times| *times > 50), "{taken:?}");
}

//! A load generator: many WebSocket clients in one thread, which take so little that one core of them
//! keeps one core of a server busy.
//!
//! ```text
//! cargo run --release -- serve --bind 127.0.0.1:8080 --workers 1 --database sqlite:///tmp/load.db
//! cargo run --release --example load -- --url http://127.0.0.1:8080 --measure storm
//! ```
//!
//! Prints a line of JSON for each measure, and exits with 1 if a client was refused, closed or late.
//! With `--pid` it also says how busy the server was: figures are those of the server as long as
//! `client_cpu` is below 100 and `server_cpu` is not; `per_server_second` counts only the time that the
//! server had, and so bears a machine that has more to do. Latencies do not bear it: `server_waited_ms` is how
//! long the server's threads waited for a core, for one another and for what else runs. `benches/compare` runs all of it, beside the
//! `floor` example.

mod crowd;
mod dialect;
mod enter;
mod flood;
mod fold;
mod frame;
mod measures;
mod plan;
mod process;

use std::{
    error::Error,
    net::{SocketAddr, ToSocketAddrs},
    process::ExitCode,
    time::{Duration, SystemTime, UNIX_EPOCH},
};

use clap::{Parser, ValueEnum};

use self::{
    dialect::Dialect,
    flood::Flood,
    plan::{Plan, Report},
};

/// Many WebSocket clients in one thread.
#[derive(Debug, Parser)]
struct Flags {
    /// The server.
    #[arg(long, default_value = "http://127.0.0.1:8080")]
    url: String,
    /// What to measure; repeatable.
    #[arg(long = "measure", required = true)]
    measures: Vec<Measure>,
    /// How many clients [default: 5000 to connect and idle, 200 for heartbeats, 1000 else]; enter has
    /// --members instead.
    #[arg(long)]
    connections: Option<usize>,
    /// How many of them in a room; storm and fanout have one room.
    #[arg(long, default_value_t = 10)]
    room_size: usize,
    /// How many members the rooms of enter have, one room after the other.
    #[arg(long, value_delimiter = ',', default_values_t = [10, 200, 1000])]
    members: Vec<usize>,
    /// Neighbours join different rooms, instead of one room after the other.
    #[arg(long)]
    spread: bool,
    /// How long heartbeats and fanout take, and each room of enter [default: 5 for enter, 3 else].
    #[arg(long)]
    seconds: Option<f64>,
    /// How the clients speak; heartbeats are always those of Phoenix.
    #[arg(long, value_enum, default_value = "diff")]
    dialect: Dialect,
    /// What another client sends meanwhile, as fast as it can, for neighbours.
    #[arg(long, value_enum, default_value = "none")]
    flood: Flood,
    /// The server's process, for its processor time and memory.
    #[arg(long)]
    pid: Option<u32>,
    /// The server is the `floor` example: nobody joins.
    #[arg(long)]
    floor: bool,
    /// How many handshakes at a time; a storm has all at once.
    #[arg(long, default_value_t = 64)]
    in_flight: usize,
    /// A handshake is over when the client has its first list, not when it is answered.
    #[arg(long)]
    until_list: bool,
    /// How many come and go in the midst of idle, whose memory must return.
    #[arg(long, default_value_t = 0)]
    storm: usize,
    /// How long to wait, in seconds, before memory is read.
    #[arg(long, default_value_t = 1.5)]
    settle: f64,
    /// How long, in seconds, each step may take.
    #[arg(long, default_value_t = 60.0)]
    timeout: f64,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum Measure {
    /// How fast clients connect and join.
    Connect,
    /// How many heartbeats are answered, when the next one follows the answer.
    Heartbeats,
    /// How long until all who join one room at once know all.
    Storm,
    /// How fast messages reach everybody in a room.
    Fanout,
    /// How long a heartbeat takes while another client floods the server.
    Neighbours,
    /// How much memory idle clients take.
    Idle,
    /// How long newcomers wait for their first list, and the others until they hear of them, in rooms
    /// where somebody joins or leaves every 20 ms.
    Enter,
}

fn main() -> ExitCode {
    match run(&Flags::parse()) {
        Ok(true) => ExitCode::SUCCESS,
        Ok(false) => ExitCode::FAILURE,
        Err(error) => {
            eprintln!("error: {error}");
            ExitCode::FAILURE
        }
    }
}

/// Says whether nothing failed.
fn run(flags: &Flags) -> Result<bool, Box<dyn Error>> {
    let server = address(&flags.url)?;
    let mut fine = true;
    for measure in &flags.measures {
        for connections in connections(*measure, flags) {
            let report = take(*measure, &plan(*measure, connections, server, flags)?)?;
            println!("{}", report.to_json());
            fine &= report.failures == 0;
        }
    }
    Ok(fine)
}

fn take(measure: Measure, plan: &Plan) -> std::io::Result<Report> {
    match measure {
        Measure::Connect => measures::connect(plan),
        Measure::Heartbeats => measures::heartbeats(plan),
        Measure::Storm => measures::storm(plan),
        Measure::Fanout => measures::fanout(plan),
        Measure::Neighbours => measures::neighbours(plan),
        Measure::Idle => measures::idle(plan),
        Measure::Enter => enter::enter(plan),
    }
}

/// How many clients each run of a measure has.
fn connections(measure: Measure, flags: &Flags) -> Vec<usize> {
    let default = match measure {
        Measure::Enter => return flags.members.clone(),
        Measure::Connect | Measure::Idle => 5000,
        Measure::Heartbeats | Measure::Neighbours => 200,
        Measure::Storm | Measure::Fanout => 1000,
    };
    vec![flags.connections.unwrap_or(default)]
}

fn plan(
    measure: Measure,
    connections: usize,
    server: SocketAddr,
    flags: &Flags,
) -> Result<Plan, Box<dyn Error>> {
    if matches!(measure, Measure::Storm | Measure::Enter) && flags.floor {
        return Err("the floor has no member lists, so no storm and nothing to enter".into());
    }
    let seconds =
        duration(flags.seconds.unwrap_or(if measure == Measure::Enter { 5.0 } else { 3.0 }))?;
    let mut sockets = connections + flags.storm;
    if measure == Measure::Enter {
        enter::check(connections, flags.dialect)?;
        sockets += enter::newcomers(seconds);
    }
    if connections == 0 || flags.room_size == 0 || flags.in_flight == 0 {
        return Err("--connections, --room-size and --in-flight are at least 1".into());
    }
    process::allow_sockets(sockets)?;
    let dialect = match measure {
        Measure::Fanout if flags.floor => Dialect::Hub,
        _ if flags.floor => Dialect::Echo,
        Measure::Heartbeats | Measure::Neighbours => Dialect::Phoenix,
        _ => flags.dialect,
    };
    let one_room = matches!(measure, Measure::Storm | Measure::Fanout | Measure::Enter);
    Ok(Plan {
        server,
        dialect,
        connections,
        room_size: if one_room { connections } else { flags.room_size },
        spread: flags.spread,
        in_flight: flags.in_flight,
        until_list: flags.until_list,
        storm: if flags.floor { 0 } else { flags.storm },
        seconds,
        settle: duration(flags.settle)?,
        timeout: duration(flags.timeout)?,
        pid: flags.pid,
        flood: flags.flood,
        // Rooms of their own for each run against a server.
        prefix: format!(
            "load-{}-{}",
            std::process::id(),
            SystemTime::now().duration_since(UNIX_EPOCH)?.as_nanos()
        ),
    })
}

fn duration(seconds: f64) -> Result<Duration, Box<dyn Error>> {
    Duration::try_from_secs_f64(seconds).map_err(|error| format!("{seconds} s: {error}").into())
}

/// The address in the URL.
fn address(url: &str) -> Result<SocketAddr, Box<dyn Error>> {
    let authority = url.split_once("://").map_or(url, |(_, rest)| rest).trim_end_matches('/');
    let found = authority.to_socket_addrs()?.next();
    found.ok_or_else(|| format!("{authority} has no address").into())
}

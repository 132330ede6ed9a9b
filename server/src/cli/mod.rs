//! The `presence` binary: its commands, and what only `presence serve` needs.

mod connections;
mod descriptors;
mod environment;
mod error;
mod flags;
mod listen;
mod log;
#[cfg(all(target_os = "linux", target_env = "gnu"))]
mod memory;
mod serve;
mod signals;
mod threads;
mod values;

use std::{
    io::{self, Write},
    process::ExitCode,
};

use serde::{Serialize, de::IgnoredAny};
use serde_json::json;

use self::{
    error::CommandError,
    flags::{Cli, Command, DatabaseFlags, PruneFlags, TokenFlags},
};
use crate::signing::Token;
use actix_presence::{
    Clock, Info, SessionKey, UserId,
    store::{self, DatabaseUrl, RoomCounts, Store, migrate},
};

/// Runs the `presence` binary with the arguments and the environment of this process.
///
/// To be called first in `main`, before there are other threads: it may change the environment.
#[must_use]
pub fn main() -> ExitCode {
    environment::clean();
    signals::survive_file_limit();
    let cli = match Cli::read(std::env::args_os()) {
        Ok(cli) => cli,
        // clap reports --help and --version as errors, too. If printing fails, the code has to do.
        Err(error) if !error.use_stderr() => {
            let _ = error.print();
            return ExitCode::SUCCESS;
        }
        Err(error) => {
            let text = environment::name_variable(&error.render().to_string());
            let _ = io::stderr().write_all(text.as_bytes());
            return ExitCode::from(2);
        }
    };
    let result = run(cli.command);
    log::drain();
    match result {
        Ok(()) => ExitCode::SUCCESS,
        // The reader of the output, such as `head`, has read enough.
        Err(CommandError::Output(error)) if error.kind() == io::ErrorKind::BrokenPipe => {
            ExitCode::SUCCESS
        }
        Err(error) => ExitCode::from(error.report()),
    }
}

fn run(command: Command) -> Result<(), CommandError> {
    match command {
        Command::Serve(flags) => serve::run(*flags),
        Command::PrunePresences(flags) => prune_presences(&flags),
        Command::PruneRooms(flags) => {
            let pruned = open(&flags.database)?.prune_rooms()?;
            print_pruned(pruned, flags.json)
        }
        Command::Rooms(flags) => {
            let rooms = open(&flags.database)?.rooms(Clock::system().now().utc())?;
            print_rooms(&rooms, flags.json)
        }
        Command::Token(flags) => print_token(&flags),
        Command::Migrate(database) => {
            let applied = migrate(&database.url.parse()?)?;
            match applied {
                0 => print("the database is up to date"),
                1 => print("applied 1 migration"),
                _ => print(&format!("applied {applied} migrations")),
            }
        }
    }
}

/// Opens a database that exists; only `serve` and `migrate` create one.
fn open(database: &DatabaseFlags) -> Result<Box<dyn Store>, CommandError> {
    let url: DatabaseUrl = database.url.parse()?;
    #[cfg(feature = "sqlite")]
    if url == DatabaseUrl::SqliteMemory {
        return Err(CommandError::InMemory);
    }
    // What cannot be looked at is the error of opening it.
    match url.path() {
        Some(path) if matches!(path.try_exists(), Ok(false)) => {
            Err(CommandError::NoDatabase { path: path.to_owned() })
        }
        _ => Ok(store::open(&url)?),
    }
}

fn prune_presences(flags: &PruneFlags) -> Result<(), CommandError> {
    let mut store = open(&flags.listing.database)?;
    let pruned = store.prune_presences(Clock::system().now().utc(), flags.max_age)?;
    print_pruned(pruned, flags.listing.json)
}

fn print(text: &str) -> Result<(), CommandError> {
    let mut out = io::stdout().lock();
    writeln!(out, "{text}")?;
    Ok(out.flush()?)
}

fn print_pruned(pruned: usize, as_json: bool) -> Result<(), CommandError> {
    match as_json {
        true => print(&json!({"pruned": pruned}).to_string()),
        false => print(&pruned.to_string()),
    }
}

fn print_rooms(rooms: &[RoomCounts], as_json: bool) -> Result<(), CommandError> {
    #[derive(Serialize)]
    struct RoomTable<'a> {
        rooms: &'a [RoomCounts],
    }
    let mut out = io::BufWriter::new(io::stdout().lock());
    if as_json {
        serde_json::to_writer(&mut out, &RoomTable { rooms }).map_err(io::Error::from)?;
        writeln!(out)?;
        return Ok(out.flush()?);
    }
    writeln!(out, "{:>11}  {:>7}  {:>9}  ROOM", "CONNECTIONS", "USERS", "ANONYMOUS")?;
    for RoomCounts { channel_name, connections, users, anonymous } in rooms {
        // Other programs may have written the row, and a terminal executes control characters.
        let escape = |c: char| if c.is_control() { c.escape_default().collect() } else { vec![c] };
        let name: String = channel_name.chars().flat_map(escape).collect();
        writeln!(out, "{connections:>11}  {users:>7}  {anonymous:>9}  {name}")?;
    }
    Ok(out.flush()?)
}

fn print_token(flags: &TokenFlags) -> Result<(), CommandError> {
    let user = UserId::new(&flags.user).map_err(CommandError::User)?;
    let info = flags.info.as_deref().map(parse_info).transpose()?;
    let session = flags.session.as_deref().map(SessionKey::new).transpose();
    let session = session.map_err(CommandError::Session)?;
    // clap requires at least one.
    let Some(key) = flags.secrets.first() else { return Ok(()) };
    let mut token = Token::user(user).expires_in(flags.expires_in);
    if let Some(info) = info {
        token = token.info(info);
    }
    if let Some(session) = session {
        token = token.session(session);
    }
    if !flags.rooms.is_empty() {
        token = token.rooms(&flags.rooms);
    }
    print(&token.sign(key)?)
}

fn parse_info(text: &str) -> Result<Info, CommandError> {
    serde_json::from_str::<IgnoredAny>(text).map_err(CommandError::InfoJson)?;
    Ok(Info::parse(text)?)
}

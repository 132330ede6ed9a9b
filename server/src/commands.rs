//! The `presence` binary: reads its flags, does what they say, and ends with the fitting code.

use std::{
    error::Error,
    io::{self, Write},
    net::SocketAddr,
    path::PathBuf,
    process::ExitCode,
    time::Duration,
};

use serde::Serialize;
use serde_json::{Value, json};

use super::{
    descriptors::TooFewDescriptors,
    flags::{Cli, Command, Database, PrunePresences, Token},
    log, serve,
    token::{self, Claims},
};
use actix_presence::{
    Clock, Crashed, StartError,
    model::{Info, InvalidInfo, InvalidName, SessionKey, UserId},
    store::{self, DatabaseUrl, InvalidDatabaseUrl, RoomCounts, Store, StoreError, migrate},
};

/// Why a command did not do what it was asked to.
#[derive(Debug, thiserror::Error)]
pub(super) enum CommandError {
    #[error("--database: {0}")]
    Url(#[from] InvalidDatabaseUrl),
    #[error("--database: a database in memory is gone with its server; name a file")]
    InMemory,
    #[error("--user: {0}")]
    User(#[from] InvalidName),
    #[error("--info: not JSON")]
    InfoJson(#[source] serde_json::Error),
    #[error("--info: {0}")]
    Info(#[from] InvalidInfo),
    #[error("--session: {0}")]
    Session(#[source] InvalidName),
    #[error("--api-key: a key is visible ASCII, as it has to stand in a header")]
    ApiKey,
    #[error("there is no database at `{}`", path.display())]
    NoDatabase { path: PathBuf },
    #[error(transparent)]
    Store(#[from] StoreError),
    #[error(transparent)]
    Start(#[from] StartError),
    #[error("cannot listen on {address}")]
    Bind { address: SocketAddr, source: io::Error },
    #[error(transparent)]
    Descriptors(#[from] TooFewDescriptors),
    #[error("the server failed")]
    Serve(#[source] io::Error),
    #[error("the log cannot be started")]
    Log(#[source] io::Error),
    /// Nothing brings it back; whoever started the process should start it again.
    #[error(transparent)]
    Crashed(#[from] Crashed),
    #[error("a task of the server ended unexpectedly: {0}")]
    Task(&'static str),
    #[error("the token cannot be signed")]
    Sign(#[from] jwt_compact::CreationError),
    #[error("cannot write the answer")]
    Output(#[from] io::Error),
}

impl CommandError {
    /// 2 for what is wrong with the command line, 1 for what is wrong with the world, and 70
    /// (`EX_SOFTWARE`) for what is wrong with this program.
    pub(super) fn code(&self) -> u8 {
        match self {
            Self::Url(_) | Self::InMemory | Self::User(_) => 2,
            Self::InfoJson(_) | Self::Info(_) | Self::ApiKey | Self::Session(_) => 2,
            Self::Start(StartError::Owner(_) | StartError::Store(_)) => 1,
            Self::Start(_) => 2,
            Self::Crashed(_) | Self::Task(_) => 70,
            _ => 1,
        }
    }
}

/// Runs the `presence` binary with the arguments and the environment of this process.
#[must_use]
pub fn main() -> ExitCode {
    let cli = match Cli::read(std::env::args_os()) {
        Ok(cli) => cli,
        Err(error) => {
            // Help and version are no errors; a closed pipe is nobody's.
            let _ = error.print();
            return if error.use_stderr() { ExitCode::from(2) } else { ExitCode::SUCCESS };
        }
    };
    let ended = run(cli.command);
    log::drain();
    match ended {
        Ok(()) => ExitCode::SUCCESS,
        // Whoever read our output has read enough.
        Err(CommandError::Output(error)) if error.kind() == io::ErrorKind::BrokenPipe => {
            ExitCode::SUCCESS
        }
        Err(error) => ExitCode::from(report(&error)),
    }
}

/// Says what went wrong, and answers the exit code.
fn report(error: &CommandError) -> u8 {
    log::say(&format!("error: {}", chain(error)));
    log::drain();
    error.code()
}

/// Ends the process at once: what still runs may hang.
pub(super) fn abort(error: &CommandError) -> ! {
    std::process::exit(report(error).into())
}

/// An error with what lies under it, each once.
fn chain(error: &dyn Error) -> String {
    let mut text = error.to_string();
    let mut source = error.source();
    while let Some(error) = source {
        let cause = error.to_string();
        if !text.ends_with(&cause) {
            text = format!("{text}: {cause}");
        }
        source = error.source();
    }
    text
}

fn run(command: Command) -> Result<(), CommandError> {
    match command {
        Command::Serve(flags) => serve::run(*flags),
        Command::PrunePresences(flags) => prune_presences(&flags),
        Command::PruneRooms(report) => {
            let pruned = open(&report.database)?.prune_rooms()?;
            print_pruned(pruned, report.json)
        }
        Command::Rooms(report) => print_rooms(&open(&report.database)?.rooms()?, report.json),
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

/// Opens a database that is there; a command that only looks or tidies up makes none.
fn open(database: &Database) -> Result<Box<dyn Store>, CommandError> {
    let url: DatabaseUrl = database.url.parse()?;
    if url == DatabaseUrl::SqliteMemory {
        return Err(CommandError::InMemory);
    }
    match url.path() {
        Some(path) if !path.exists() => Err(CommandError::NoDatabase { path: path.to_owned() }),
        _ => Ok(store::open(&url)?),
    }
}

fn prune_presences(flags: &PrunePresences) -> Result<(), CommandError> {
    let mut store = open(&flags.report.database)?;
    let pruned = store.prune_presences(Clock::system().now().utc(), flags.max_age)?;
    print_pruned(pruned, flags.report.json)
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
    struct Rooms<'a> {
        rooms: &'a [RoomCounts],
    }
    let mut out = io::BufWriter::new(io::stdout().lock());
    if as_json {
        serde_json::to_writer(&mut out, &Rooms { rooms }).map_err(io::Error::from)?;
        writeln!(out)?;
        return Ok(out.flush()?);
    }
    writeln!(out, "{:>11}  {:>7}  {:>9}  ROOM", "CONNECTIONS", "USERS", "ANONYMOUS")?;
    for RoomCounts { channel_name, connections, users, anonymous } in rooms {
        // Anybody may have written the row, and a terminal obeys what it is shown.
        let name: String = channel_name
            .chars()
            .flat_map(|c| match c.is_control() {
                true => c.escape_default().collect(),
                false => vec![c],
            })
            .collect();
        writeln!(out, "{connections:>11}  {users:>7}  {anonymous:>9}  {name}")?;
    }
    Ok(out.flush()?)
}

fn print_token(flags: &Token) -> Result<(), CommandError> {
    let user = UserId::new(&flags.user)?;
    let info = match &flags.info {
        Some(text) => {
            let value: Value = serde_json::from_str(text).map_err(CommandError::InfoJson)?;
            Some(Info::new(value)?.to_value())
        }
        None => None,
    };
    flags.session.as_deref().map(SessionKey::new).transpose().map_err(CommandError::Session)?;
    let claims = Claims {
        sub: Some(user.as_str().to_owned()),
        info,
        rooms: (!flags.rooms.is_empty()).then(|| flags.rooms.clone()),
        sid: flags.session.clone(),
    };
    // clap asks for at least one.
    let Some(key) = flags.secrets.first() else { return Ok(()) };
    let lifetime = flags.expires_in.max(Duration::from_secs(1));
    print(&token::sign(claims, lifetime, key)?)
}

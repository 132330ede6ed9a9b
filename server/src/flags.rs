//! The flags of the `presence` binary.
//!
//! Each can also be given as an environment variable `PRESENCE_<FLAG>`. Values that may be secret are
//! taken as they are and looked at later, because clap repeats what it refuses.

use std::{
    ffi::OsString,
    net::{SocketAddr, ToSocketAddrs},
    time::Duration,
};

use clap::{
    Args, CommandFactory, FromArgMatches, Parser, Subcommand, builder::BoolishValueParser,
    parser::ValueSource,
};
use tracing_subscriber::EnvFilter;

use super::{AllowedOrigin, InvalidOrigin, Secret, duration, listen::Addresses};
use actix_presence::model::RoomName;

/// Who is where, right now: rooms, presences, heartbeats and messages over WebSockets.
#[derive(Debug, Parser)]
#[command(
    name = "presence",
    version,
    // The same help whichever features of clap other packages ask for.
    term_width = 0,
    after_help = "Without a command `serve` runs, and takes its flags: presence --bind 127.0.0.1:9000\n\
        Every flag can be given as an environment variable, too: PRESENCE_BIND=127.0.0.1:9000"
)]
pub(super) struct Cli {
    #[command(subcommand)]
    pub command: Command,
}

#[derive(Debug, Subcommand)]
pub(super) enum Command {
    /// Runs the server.
    Serve(Box<Serve>),
    /// Removes stale presences that no live node owns from a database, and prints how many.
    PrunePresences(PrunePresences),
    /// Removes empty rooms from a database, and prints how many.
    PruneRooms(Report),
    /// Prints the rooms of a database, with how many are in them.
    Rooms(Report),
    /// Prints a signed token that says who somebody is.
    Token(Token),
    /// Brings a database up to this version; `serve` does so by itself.
    Migrate(Database),
}

#[derive(Debug, Args)]
pub(super) struct Database {
    /// The database: sqlite://PATH, sqlite::memory:, or postgres://USER:PASSWORD@HOST:PORT/NAME where
    /// PostgreSQL is in the build
    #[arg(
        long = "database",
        value_name = "URL",
        env = "PRESENCE_DATABASE",
        hide_env_values = true,
        default_value = "sqlite://presence.db"
    )]
    pub url: String,
}

#[derive(Debug, Args)]
pub(super) struct Report {
    #[command(flatten)]
    pub database: Database,
    /// Print JSON.
    #[arg(long, env = "PRESENCE_JSON", value_parser = BoolishValueParser::new())]
    pub json: bool,
}

#[derive(Debug, Args)]
pub(super) struct PrunePresences {
    #[command(flatten)]
    pub report: Report,
    /// Silence after which a presence is stale.
    #[arg(long, value_name = "D", env = "PRESENCE_MAX_AGE", default_value = "60s", value_parser = duration::parse)]
    pub max_age: Duration,
}

#[derive(Debug, Args)]
pub(super) struct Token {
    /// Whose token it is.
    #[arg(long, value_name = "ID", env = "PRESENCE_USER")]
    pub user: String,
    /// A room it is good for, or a prefix such as team:*; repeatable; all rooms unless given.
    #[arg(long = "room", value_name = "PATTERN", env = "PRESENCE_ROOM", value_parser = pattern)]
    pub rooms: Vec<String>,
    /// A JSON object to attach to the user's presences.
    #[arg(long, value_name = "JSON", env = "PRESENCE_INFO")]
    pub info: Option<String>,
    /// The client session that survives reconnects; one token a browser tab then.
    #[arg(long, value_name = "KEY", env = "PRESENCE_SESSION")]
    pub session: Option<String>,
    /// For how long it is good.
    #[arg(long, value_name = "D", env = "PRESENCE_EXPIRES_IN", default_value = "1h", value_parser = duration::parse)]
    pub expires_in: Duration,
    /// The server's secret; of several the first one signs.
    #[arg(long = "secret", value_name = "S", env = "PRESENCE_SECRET", hide_env_values = true, required = true, value_delimiter = '\n', value_parser = secret)]
    pub secrets: Vec<Secret>,
}

#[derive(Debug, Args)]
pub(super) struct Serve {
    /// Where to listen; repeatable (in the environment: by commas). With port 0 later addresses take
    /// the first one's port; of the default, the second may be unavailable.
    #[arg(long, value_name = "ADDR", env = "PRESENCE_BIND", default_value = DEFAULT_BIND, value_delimiter = ',', value_parser = bind)]
    pub bind: Vec<Bind>,
    /// Whether nobody said where to listen.
    #[arg(skip)]
    pub default_bind: bool,
    #[command(flatten)]
    pub database: Database,
    /// The Redis through which several nodes on one PostgreSQL share their rooms: redis://HOST[:PORT][/N].
    #[arg(long, value_name = "URL", env = "PRESENCE_REDIS", hide_env_values = true)]
    pub redis: Option<String>,
    /// The name of this node in the database; made up unless given.
    #[arg(long, value_name = "NAME", env = "PRESENCE_NODE")]
    pub node: Option<String>,
    /// How long the database believes a silent node.
    #[arg(long, value_name = "D", env = "PRESENCE_LEASE", default_value = "15s", value_parser = duration::parse)]
    pub lease: Duration,
    /// Silence after which a presence is stale.
    #[arg(long, value_name = "D", env = "PRESENCE_MAX_AGE", default_value = "60s", value_parser = duration::parse)]
    pub max_age: Duration,
    /// How long a connection with a session key that broke may take to come back; 0 for not at all.
    #[arg(long, value_name = "D", env = "PRESENCE_GRACE", default_value = "10s", value_parser = duration::parse_or_zero)]
    pub grace: Duration,
    /// After SIGTERM or SIGINT: how long /readyz says 503 while everything goes on and connections are
    /// still taken, before the stop begins.
    #[arg(long, value_name = "D", env = "PRESENCE_DRAIN", default_value = "0s", value_parser = duration::parse_or_zero)]
    pub drain: Duration,
    /// How often stale presences are removed [default: a quarter of max-age, at most 15s].
    #[arg(long, value_name = "D", env = "PRESENCE_PRUNE_INTERVAL", value_parser = duration::parse)]
    pub prune_interval: Option<Duration>,
    /// How often the rows of empty rooms are removed.
    #[arg(long, value_name = "D", env = "PRESENCE_PRUNE_ROOMS_INTERVAL", default_value = "600s", value_parser = duration::parse)]
    pub prune_rooms_interval: Duration,
    /// How often WebSockets are pinged, which keeps silent clients present; never unless given.
    #[arg(long, value_name = "D", env = "PRESENCE_PING_INTERVAL", value_parser = duration::parse)]
    pub ping_interval: Option<Duration>,
    /// The key of tokens; twice while it changes (in the environment: one a line).
    #[arg(long = "secret", value_name = "S", env = "PRESENCE_SECRET", hide_env_values = true, value_delimiter = '\n', value_parser = secret)]
    pub secrets: Vec<Secret>,
    /// Let people in without a token although there is a secret.
    #[arg(long, env = "PRESENCE_ALLOW_ANONYMOUS", value_parser = BoolishValueParser::new())]
    pub allow_anonymous: bool,
    /// The key of /api; without it only this machine is answered.
    #[arg(long, value_name = "K", env = "PRESENCE_API_KEY", hide_env_values = true, value_parser = secret)]
    pub api_key: Option<Secret>,
    /// An origin whose pages may use the server besides its own host, /api only with the --api-key:
    /// https://chat.example, https://*.chat.example, null, file://, app://x; or * for all, WebSockets
    /// only; repeatable (in the environment: by commas).
    #[arg(
        long = "allow-origin",
        value_name = "O",
        env = "PRESENCE_ALLOW_ORIGIN",
        value_delimiter = ',',
        value_parser = origin
    )]
    pub allowed_origins: Vec<AllowedOrigin>,
    /// The largest message of a client.
    #[arg(long, value_name = "BYTES", env = "PRESENCE_MAX_FRAME_SIZE", default_value = "65536", value_parser = clap::value_parser!(u32).range(1..=MAX_FRAME_SIZE))]
    pub max_frame_size: u32,
    /// The largest member list that is sent whole, in bytes; beyond it there are counts.
    #[arg(long, value_name = "BYTES", env = "PRESENCE_MAX_LIST_SIZE", default_value = "1048576", value_parser = clap::value_parser!(u32).range(1..))]
    pub max_list_size: u32,
    /// How many WebSockets may be open, and sessions fade, at once.
    #[arg(long, value_name = "N", env = "PRESENCE_MAX_CONNECTIONS", value_parser = clap::value_parser!(u32).range(1..))]
    pub max_connections: Option<u32>,
    /// How many connections a room may hold.
    #[arg(long, value_name = "N", env = "PRESENCE_MAX_ROOM_SIZE", value_parser = clap::value_parser!(u32).range(1..))]
    pub max_room_size: Option<u32>,
    /// How many frames a WebSocket may send per second.
    #[arg(long, value_name = "N", env = "PRESENCE_MAX_RATE", value_parser = clap::value_parser!(u32).range(1..))]
    pub max_rate: Option<u32>,
    /// How many threads serve [default: one per core].
    #[arg(long, value_name = "N", env = "PRESENCE_WORKERS", value_parser = clap::value_parser!(u16).range(1..=1024))]
    pub workers: Option<u16>,
    /// What to log: off, error, warn, info, debug or trace, also by module: info,actix_web=debug.
    #[arg(long, value_name = "LEVEL", env = "PRESENCE_LOG", default_value = "info", value_parser = log)]
    pub log: String,
}

/// What a message may need of memory on its way to everybody.
const MAX_FRAME_SIZE: i64 = 256 * 1024 * 1024;

/// Both loopbacks, since `localhost` may be either.
const DEFAULT_BIND: &str = "127.0.0.1:8080,[::1]:8080";

/// The addresses that one `ADDR` names.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Bind(pub Vec<SocketAddr>);

impl Cli {
    /// Reads a command line, in which `serve` may be left out.
    pub fn read(args: impl IntoIterator<Item = OsString>) -> Result<Self, clap::Error> {
        let mut args: Vec<OsString> = args.into_iter().collect();
        if args.is_empty() {
            args.push("presence".into());
        }
        let own = ["-h", "--help", "-V", "--version"];
        let first = args.get(1).map(|arg| arg.to_string_lossy());
        if first.is_none_or(|arg| arg.starts_with('-') && !own.contains(&&*arg)) {
            args.insert(1, "serve".into());
        }
        let mut matches = Self::command().try_get_matches_from(args)?;
        let default_bind = matches
            .subcommand_matches("serve")
            .is_some_and(|serve| serve.value_source("bind") == Some(ValueSource::DefaultValue));
        let mut cli = Self::from_arg_matches_mut(&mut matches)
            .map_err(|error| error.format(&mut Self::command()))?;
        if let Command::Serve(serve) = &mut cli.command {
            serve.default_bind = default_bind;
        }
        Ok(cli)
    }
}

impl Serve {
    /// Where to listen.
    pub fn addresses(&self) -> Addresses {
        let mut list = Vec::new();
        for address in self.bind.iter().flat_map(|bind| &bind.0) {
            if !list.contains(address) {
                list.push(*address);
            }
        }
        Addresses { list, first_suffices: self.default_bind }
    }
}

fn origin(text: &str) -> Result<AllowedOrigin, InvalidOrigin> {
    text.trim().parse()
}

fn bind(text: &str) -> Result<Bind, String> {
    let addresses: Vec<SocketAddr> = match text.trim().to_socket_addrs() {
        Ok(addresses) => addresses.collect(),
        Err(error) => {
            return Err(format!("an address is HOST:PORT, such as 127.0.0.1:8080: {error}"));
        }
    };
    if addresses.is_empty() {
        return Err("this host has no address".to_owned());
    }
    Ok(Bind(addresses))
}

fn secret(text: &str) -> Result<Secret, super::EmptySecret> {
    Secret::new(text)
}

/// A name of a room, or the beginning of one with a `*` after it.
fn pattern(text: &str) -> Result<String, actix_presence::InvalidName> {
    RoomName::new(text).map(|name| name.as_str().to_owned())
}

fn log(text: &str) -> Result<String, String> {
    const LEVELS: [&str; 6] = ["off", "error", "warn", "info", "debug", "trace"];
    let is_level = |part: &str| LEVELS.iter().any(|level| part.eq_ignore_ascii_case(level));
    // A word that is no level would be taken for a module of which everything is logged.
    let known = |part: &str| is_level(part.rsplit('=').next().unwrap_or_default().trim());
    if !text.split(',').all(known) || EnvFilter::try_new(text).is_err() {
        return Err("a level is one of off, error, warn, info, debug and trace".to_owned());
    }
    Ok(text.to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(line: &str) -> Result<Command, String> {
        let args = std::iter::once("presence").chain(line.split_whitespace()).map(OsString::from);
        Cli::read(args).map(|cli| cli.command).map_err(|error| error.to_string())
    }

    fn serve(line: &str) -> Serve {
        match read(line) {
            Ok(Command::Serve(serve)) => *serve,
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn the_flags_are_well_formed() {
        use clap::CommandFactory;
        Cli::command().debug_assert();
    }

    #[test]
    fn serve_is_the_command_unless_another_is_named() {
        assert_eq!(serve("--max-age 2m").max_age, Duration::from_secs(120));
        assert_eq!(serve("serve --max-age 500ms").max_age, Duration::from_millis(500));
        assert_eq!(serve("--secret=a --secret=b").secrets.len(), 2);
        let origins = serve("--allow-origin https://a.example,https://b.example").allowed_origins;
        assert_eq!(origins.len(), 2);
        assert!(matches!(read("rooms --json"), Ok(Command::Rooms(Report { json: true, .. }))));
        assert!(read("--version").is_err_and(|text| text.starts_with("presence ")));
    }

    #[test]
    fn both_loopbacks_are_listened_on_unless_told_and_only_then_one_suffices() {
        let of = |line: &str| serve(line).addresses();
        let list = |texts: &[&str]| -> Vec<SocketAddr> {
            texts.iter().map(|text| text.parse().unwrap()).collect()
        };
        let both = list(&["127.0.0.1:8080", "[::1]:8080"]);
        assert_eq!(of(""), Addresses { list: both.clone(), first_suffices: true });
        let told = Addresses { list: both, first_suffices: false };
        assert_eq!(of("--bind 127.0.0.1:8080 --bind [::1]:8080"), told);
        assert_eq!(of("--bind 127.0.0.1:8080,[::1]:8080 --bind 127.0.0.1:8080"), told);
        assert_eq!(of("--bind 0.0.0.0:80").list, list(&["0.0.0.0:80"]));
    }

    #[test]
    fn bad_values_and_what_there_is_not_are_refused_with_the_flag_named() {
        for line in [
            "--max-age 0",
            "--max-age abc",
            "--max-age 99999999999999999999s",
            "--lease 0s",
            "--prune-interval x",
            "--prune-rooms-interval 0",
            "--ping-interval 0",
            "--bind nonsense",
            "--bind 127.0.0.1:99999",
            "--workers 0",
            "--workers 100000",
            "--max-frame-size 0",
            "--max-list-size 0",
            "--max-connections 0",
            "--max-room-size 0",
            "--max-rate 0",
            "--max-rate -1",
            "--log loud",
            "--log actix_web=loud",
            "--allow-origin nonsense",
            "--grace -1s",
            "--grace x",
            "prune-presences --max-age 0",
        ] {
            let flag = line.split(' ').find(|word| word.starts_with("--")).unwrap();
            let message = read(line).err().unwrap_or_default();
            assert!(message.contains(flag) || message.contains("-1"), "{line}: {message}");
        }
        assert!(read("dance").is_err());
        assert!(read("token --user ada").is_err());
        assert!(read("token --secret s").is_err());
        assert!(read("--secret=").is_err());
    }

    #[test]
    fn a_level_may_differ_by_module() {
        for good in ["info", "WARN", "off", "info,actix_web=debug", "actix_presence::server=trace"]
        {
            assert_eq!(log(good).as_deref(), Ok(good));
        }
        for bad in ["", "loud", "info,", "info,loud", "a=b=c", "5x"] {
            assert!(log(bad).is_err(), "{bad}");
        }
    }
}

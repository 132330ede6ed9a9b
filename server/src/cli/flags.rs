//! The flags of the `presence` binary.
//!
//! Each can also be given as an environment variable `PRESENCE_<FLAG>`. Values that may contain secrets
//! are accepted as they are and checked later, because clap prints what it refuses.

use std::{ffi::OsString, time::Duration};

use clap::{
    Args, CommandFactory, FromArgMatches, Parser, Subcommand, builder::BoolishValueParser,
    parser::ValueSource,
};

use super::{
    listen::BindAddresses,
    values::{BindFlag, bind, duration, duration_or_zero, log, origin, pattern, secret},
};
use crate::{origin::AllowedOrigin, token::Secret};

/// Who is where, right now: rooms, presences, heartbeats and messages over WebSockets.
#[derive(Debug, Parser)]
#[command(
    name = "presence",
    version,
    // The same help whichever features of clap other packages ask for.
    term_width = 0,
    after_help = "Without a command, `serve` runs with its flags: presence --bind 127.0.0.1:9000\n\
        Every flag can also be given as an environment variable: PRESENCE_BIND=127.0.0.1:9000\n\
        A duration D is 500ms, 60s, 2m, or a number of seconds."
)]
pub(super) struct Cli {
    #[command(subcommand)]
    pub command: Command,
}

#[derive(Debug, Subcommand)]
pub(super) enum Command {
    /// Runs the server.
    Serve(Box<ServeFlags>),
    /// Removes stale presences that no live node owns from a database, and prints how many.
    PrunePresences(PruneFlags),
    /// Removes empty rooms from a database, and prints how many.
    PruneRooms(ListingFlags),
    /// Prints the rooms of a database, with the number of connections and users in each.
    Rooms(ListingFlags),
    /// Prints a signed token for a user.
    Token(TokenFlags),
    /// Migrates a database to this version; `serve` does it at its start.
    Migrate(DatabaseFlags),
}

#[derive(Debug, Args)]
pub(super) struct DatabaseFlags {
    /// The database: sqlite://PATH, sqlite::memory:, or postgres://USER:PASSWORD@HOST:PORT/NAME if the
    /// build has PostgreSQL.
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
pub(super) struct ListingFlags {
    #[command(flatten)]
    pub database: DatabaseFlags,
    /// Print JSON.
    #[arg(long, env = "PRESENCE_JSON", value_parser = BoolishValueParser::new())]
    pub json: bool,
}

#[derive(Debug, Args)]
pub(super) struct PruneFlags {
    #[command(flatten)]
    pub listing: ListingFlags,
    /// How long a connection may be silent before its presence is stale.
    #[arg(long, value_name = "D", env = "PRESENCE_MAX_AGE", default_value = "60s", value_parser = duration)]
    pub max_age: Duration,
}

#[derive(Debug, Args)]
pub(super) struct TokenFlags {
    /// The user's id.
    #[arg(long, value_name = "ID", env = "PRESENCE_USER")]
    pub user: String,
    /// A room in which the token is valid, or a prefix such as team:*; repeatable [default: all rooms].
    #[arg(long = "room", value_name = "PATTERN", env = "PRESENCE_ROOM", value_parser = pattern)]
    pub rooms: Vec<String>,
    /// A JSON object to attach to the user's presences.
    #[arg(long, value_name = "JSON", env = "PRESENCE_INFO")]
    pub info: Option<String>,
    /// The key of a client session, which survives reconnects; then each browser tab needs its own token.
    #[arg(long, value_name = "KEY", env = "PRESENCE_SESSION")]
    pub session: Option<String>,
    /// How long the token is valid.
    #[arg(long, value_name = "D", env = "PRESENCE_EXPIRES_IN", default_value = "1h", value_parser = duration)]
    pub expires_in: Duration,
    /// The server's secret; the first of several signs.
    #[arg(long = "secret", value_name = "S", env = "PRESENCE_SECRET", hide_env_values = true, required = true, value_delimiter = '\n', value_parser = secret)]
    pub secrets: Vec<Secret>,
}

#[derive(Debug, Args)]
pub(super) struct ServeFlags {
    /// Where to listen; repeatable (in the environment: separated by commas). With port 0, later addresses
    /// get the port of the first. The second default address may be unavailable.
    #[arg(long, value_name = "ADDR", env = "PRESENCE_BIND", default_value = DEFAULT_BIND, value_delimiter = ',', value_parser = bind)]
    pub bind: Vec<BindFlag>,
    /// Whether `bind` has its default value.
    #[arg(skip)]
    pub default_bind: bool,
    #[command(flatten)]
    pub database: DatabaseFlags,
    /// The Redis that connects several nodes on one PostgreSQL database: redis://HOST[:PORT][/N].
    #[arg(long, value_name = "URL", env = "PRESENCE_REDIS", hide_env_values = true)]
    pub redis: Option<String>,
    /// The name of this node in the database [default: generated].
    #[arg(long, value_name = "NAME", env = "PRESENCE_NODE")]
    pub node: Option<String>,
    /// How long a node counts as alive after it last renewed its lease in the database.
    #[arg(long, value_name = "D", env = "PRESENCE_LEASE", default_value = "15s", value_parser = duration)]
    pub lease: Duration,
    /// How long a connection may be silent before its presence is stale.
    #[arg(long, value_name = "D", env = "PRESENCE_MAX_AGE", default_value = "60s", value_parser = duration)]
    pub max_age: Duration,
    /// How long a presence with a session key waits for its client to reconnect; 0 for not at all.
    #[arg(long, value_name = "D", env = "PRESENCE_GRACE", default_value = "10s", value_parser = duration_or_zero)]
    pub grace: Duration,
    /// After SIGTERM or SIGINT: how long /readyz answers 503, while everything else goes on, before the
    /// server stops.
    #[arg(long, value_name = "D", env = "PRESENCE_DRAIN", default_value = "0s", value_parser = duration_or_zero)]
    pub drain: Duration,
    /// How often stale presences are removed [default: a quarter of max-age, at most 15s].
    #[arg(long, value_name = "D", env = "PRESENCE_PRUNE_INTERVAL", value_parser = duration)]
    pub prune_interval: Option<Duration>,
    /// How often the rows of empty rooms are removed.
    #[arg(long, value_name = "D", env = "PRESENCE_PRUNE_ROOMS_INTERVAL", default_value = "600s", value_parser = duration)]
    pub prune_rooms_interval: Duration,
    /// How often WebSockets are pinged, which keeps silent clients present [default: never].
    #[arg(long, value_name = "D", env = "PRESENCE_PING_INTERVAL", value_parser = duration)]
    pub ping_interval: Option<Duration>,
    /// The key that tokens are signed with; repeatable, to change it (in the environment: one per line).
    #[arg(long = "secret", value_name = "S", env = "PRESENCE_SECRET", hide_env_values = true, value_delimiter = '\n', value_parser = secret)]
    pub secrets: Vec<Secret>,
    /// Let clients in without a token although there is a secret.
    #[arg(long, env = "PRESENCE_ALLOW_ANONYMOUS", value_parser = BoolishValueParser::new())]
    pub allow_anonymous: bool,
    /// The key of /api [default: none, /api answers this machine only].
    #[arg(long, value_name = "K", env = "PRESENCE_API_KEY", hide_env_values = true, value_parser = secret)]
    pub api_key: Option<Secret>,
    /// An origin whose pages may use the server, besides pages of its own host: https://chat.example,
    /// https://*.chat.example, null, file://, app://x, or * for all; /api only with the --api-key;
    /// repeatable (in the environment: separated by commas).
    #[arg(long = "allow-origin", value_name = "O", env = "PRESENCE_ALLOW_ORIGIN", value_delimiter = ',', value_parser = origin)]
    pub allowed_origins: Vec<AllowedOrigin>,
    /// The largest message from a client.
    #[arg(long, value_name = "BYTES", env = "PRESENCE_MAX_FRAME_SIZE", default_value = "65536", value_parser = clap::value_parser!(u32).range(1..=MAX_FRAME_SIZE))]
    pub max_frame_size: u32,
    /// The largest member list that is sent; a larger one is replaced by counts.
    #[arg(long, value_name = "BYTES", env = "PRESENCE_MAX_LIST_SIZE", default_value = "1048576", value_parser = clap::value_parser!(u32).range(1..))]
    pub max_list_size: u32,
    /// How many WebSockets may be open, and presences wait for a reconnect, at the same time.
    #[arg(long, value_name = "N", env = "PRESENCE_MAX_CONNECTIONS", value_parser = clap::value_parser!(u32).range(1..))]
    pub max_connections: Option<u32>,
    /// How many connections may be in a room.
    #[arg(long, value_name = "N", env = "PRESENCE_MAX_ROOM_SIZE", value_parser = clap::value_parser!(u32).range(1..))]
    pub max_room_size: Option<u32>,
    /// How many frames a WebSocket may send per second.
    #[arg(long, value_name = "N", env = "PRESENCE_MAX_RATE", value_parser = clap::value_parser!(u32).range(1..))]
    pub max_rate: Option<u32>,
    /// How long an idle HTTP connection stays open: longer than a balancer keeps its own.
    #[arg(long, value_name = "D", env = "PRESENCE_KEEP_ALIVE", default_value = "75s", value_parser = duration)]
    pub keep_alive: Duration,
    /// How many worker threads to start [default: one per core].
    #[arg(long, value_name = "N", env = "PRESENCE_WORKERS", value_parser = clap::value_parser!(u16).range(1..=1024))]
    pub workers: Option<u16>,
    /// What to log: off, error, warn, info, debug or trace, or by module: info,actix_web=debug.
    #[arg(long, value_name = "LEVEL", env = "PRESENCE_LOG", default_value = "info", value_parser = log)]
    pub log: String,
}

/// Bounds the memory of a message on its way to a room.
const MAX_FRAME_SIZE: i64 = 256 * 1024 * 1024;

/// Both loopback addresses, because `localhost` may be either.
const DEFAULT_BIND: &str = "127.0.0.1:8080,[::1]:8080";

impl Cli {
    /// Parses a command line, in which `serve` may be omitted.
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

impl ServeFlags {
    /// Where to listen.
    pub fn addresses(&self) -> BindAddresses {
        let mut list = Vec::new();
        for address in self.bind.iter().flat_map(|bind| &bind.0) {
            if !list.contains(address) {
                list.push(*address);
            }
        }
        BindAddresses { list, first_suffices: self.default_bind }
    }
}

#[cfg(test)]
mod tests {
    use std::net::SocketAddr;

    use super::*;

    fn read(line: &str) -> Result<Command, String> {
        let args = std::iter::once("presence").chain(line.split_whitespace()).map(OsString::from);
        Cli::read(args).map(|cli| cli.command).map_err(|error| error.to_string())
    }

    fn serve(line: &str) -> ServeFlags {
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
    fn serve_is_the_default_command() {
        assert_eq!(serve("--max-age 2m").max_age, Duration::from_secs(120));
        assert_eq!(serve("serve --max-age 500ms").max_age, Duration::from_millis(500));
        assert_eq!(serve("--secret=a --secret=b").secrets.len(), 2);
        let origins = serve("--allow-origin https://a.example,https://b.example").allowed_origins;
        assert_eq!(origins.len(), 2);
        assert!(matches!(
            read("rooms --json"),
            Ok(Command::Rooms(ListingFlags { json: true, .. }))
        ));
        assert!(read("--version").is_err_and(|text| text.starts_with("presence ")));
    }

    #[test]
    fn by_default_it_binds_both_loopback_addresses_and_one_suffices() {
        let of = |line: &str| serve(line).addresses();
        let list = |texts: &[&str]| -> Vec<SocketAddr> {
            texts.iter().map(|text| text.parse().unwrap()).collect()
        };
        let both = list(&["127.0.0.1:8080", "[::1]:8080"]);
        assert_eq!(of(""), BindAddresses { list: both.clone(), first_suffices: true });
        let explicit = BindAddresses { list: both, first_suffices: false };
        assert_eq!(of("--bind 127.0.0.1:8080 --bind [::1]:8080"), explicit);
        assert_eq!(of("--bind 127.0.0.1:8080,[::1]:8080 --bind 127.0.0.1:8080"), explicit);
        assert_eq!(of("--bind 0.0.0.0:80").list, list(&["0.0.0.0:80"]));
    }

    #[test]
    fn bad_values_are_refused_with_the_name_of_the_flag() {
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
}

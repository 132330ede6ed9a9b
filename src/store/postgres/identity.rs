//! What the nodes of a database have in common on the bus, and for which database that was made.

use diesel::{
    OptionalExtension, QueryableByName,
    sql_types::{BigInt, Binary, Bool, Nullable},
};

use super::statement::{SchemaConnection, statement};
use crate::{
    model::ClusterIdentity,
    store::{StoreError, transaction::Failure},
};

/// The database, and whether the role may ask for the system. Asked for beforehand: PostgreSQL checks the
/// rights on a function of a statement also where it is not called.
const PLACE: &str = "
    SELECT oid::bigint AS database, coalesce(has_function_privilege(
        to_regprocedure('pg_catalog.pg_control_system()'), 'EXECUTE'), false) AS shows_system
    FROM pg_catalog.pg_database WHERE datname = current_database()";

const SYSTEM: &str = "SELECT system_identifier AS number FROM pg_catalog.pg_control_system()";

const READ: &str = "SELECT key, channel, system_identifier, database_oid FROM @cluster WHERE id";

/// Creates the row, or replaces one that was made for another database. What is not known (null) is not
/// another one. Of several that do so at once the others wait for the first, and find its row to be right.
const WRITE: &str = "
    INSERT INTO @cluster (key, channel, system_identifier, database_oid) VALUES ($1, $2, $3, $4)
    ON CONFLICT (id) DO UPDATE SET key = excluded.key, channel = excluded.channel,
        system_identifier = excluded.system_identifier, database_oid = excluded.database_oid
    WHERE cluster.database_oid <> excluded.database_oid
        OR cluster.system_identifier <> excluded.system_identifier";

/// Adds what the role that wrote the row could not read.
const COMPLETE: &str =
    "UPDATE @cluster SET system_identifier = $1 WHERE id AND system_identifier IS NULL";

#[derive(QueryableByName)]
struct Place {
    #[diesel(sql_type = BigInt)]
    database: i64,
    #[diesel(sql_type = Bool)]
    shows_system: bool,
}

#[derive(QueryableByName)]
struct Number {
    #[diesel(sql_type = BigInt)]
    number: i64,
}

#[derive(QueryableByName)]
struct Stored {
    #[diesel(sql_type = Binary)]
    key: Vec<u8>,
    #[diesel(sql_type = Binary)]
    channel: Vec<u8>,
    #[diesel(sql_type = Nullable<BigInt>)]
    system_identifier: Option<i64>,
    #[diesel(sql_type = BigInt)]
    database_oid: i64,
}

impl Stored {
    /// Whether it was made for this database, as far as the role can see.
    fn is_of(&self, system: Option<i64>, database: i64) -> bool {
        let other_system =
            system.zip(self.system_identifier).is_some_and(|(system, stored)| system != stored);
        self.database_oid == database && !other_system
    }

    fn identity(&self) -> Option<ClusterIdentity> {
        let (key, channel) = (self.key.as_slice().try_into(), self.channel.as_slice().try_into());
        Some(ClusterIdentity::new(key.ok()?, channel.ok()?))
    }
}

/// The identity of the database, which is created if there is none, and replaced if it was made for another
/// database. Runs in a transaction, which writes in those cases only.
pub(super) fn identity(conn: &mut SchemaConnection<'_>) -> Result<ClusterIdentity, Failure> {
    let Place { database, shows_system } = statement(PLACE).get_result(conn)?;
    let system = match shows_system {
        true => Some(statement(SYSTEM).get_result::<Number>(conn)?.number),
        false => None,
    };
    if let Some(stored) = read(conn)?
        && stored.is_of(system, database)
    {
        if system.is_some() && stored.system_identifier.is_none() {
            statement(COMPLETE).bind::<Nullable<BigInt>>(system).execute(conn)?;
        }
        return stored.identity().ok_or_else(unusable);
    }
    let (key, channel) = (random::<32>()?, random::<16>()?);
    statement(WRITE)
        .bind::<Binary>(key.to_vec())
        .bind::<Binary>(channel.to_vec())
        .bind::<Nullable<BigInt>>(system)
        .bind::<BigInt>(database)
        .execute(conn)?;
    read(conn)?.as_ref().and_then(Stored::identity).ok_or_else(unusable)
}

fn read(conn: &mut SchemaConnection<'_>) -> Result<Option<Stored>, Failure> {
    Ok(statement(READ).get_result(conn).optional()?)
}

/// The row was deleted at once, or is not what the table allows.
fn unusable() -> Failure {
    StoreError::unavailable("the table cluster has no usable row").into()
}

fn random<const BYTES: usize>() -> Result<[u8; BYTES], Failure> {
    let mut bytes = [0; BYTES];
    getrandom::fill(&mut bytes)
        .map_err(|error| StoreError::unavailable(format!("no random bytes: {error}")))?;
    Ok(bytes)
}

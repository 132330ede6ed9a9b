//! The prelude beside those of the crates that an app of actix-web and Diesel has.

// A name that two of them have is ambiguous where it is used, so each is used here.
#![deny(ambiguous_glob_imports)]

#[allow(unused_imports, reason = "the import is what is tested")]
use actix::prelude::*;
use actix_presence::prelude::*;
use diesel::prelude::*;

/// Uses each name.
macro_rules! use_all {
    ($($name:ident)*; $($function:ident)*) => {
        const NAMES: &[&str] = &[$(stringify!($name),)* $(stringify!($function)),*];
        const _: () = {
            $(let _ = size_of::<$name>();)*
            $(let _ = $function;)*
        };
    };
}

use_all! {
    PresenceConnection
    Admit
    Audience
    Cause
    Change
    CloseRoom
    ConnectionId
    Decision
    Dialect
    Diff
    Disconnect
    Epoch
    Explain
    Feed
    Flush
    FlushError
    ForwardMessage
    Forwarded
    GetOccupancy
    GetSnapshot
    GetStatus
    Heard
    IdleStep
    IdleWatch
    Info
    InvalidInfo
    InvalidName
    Join
    JoinError
    JoinRequest
    Joined
    Kick
    KickFrom
    Kicked
    Leave
    LeaveAll
    Left
    ListPresences
    ListRooms
    Member
    NodeName
    Occupancy
    Offline
    Outlet
    OutletStream
    Payload
    PhoenixSession
    Presence
    PresenceChanged
    PresenceClient
    PresenceConfig
    PresenceError
    PresenceHandle
    PrunePresences
    PruneReport
    PruneRooms
    Publish
    PublishError
    QueryError
    Rights
    RoomFilter
    RoomName
    RoomRegistry
    RoomSummary
    Scope
    SeenPresence
    SessionKey
    Snapshot
    StartError
    Status
    Subscribe
    SubscribeUsers
    SubscriptionId
    Touch
    Unsubscribe
    Update
    UpdateInfo
    UpdateUser
    UserChange
    UserChanged
    UserId
    UserUpdated
    WhereIs
    WsOptions
    WsSession
    WsSessionError
    ;
    configure_tcp
    watch_socket
}

#[test]
fn all_names_of_the_prelude_are_used_here() {
    let source = include_str!("../src/lib.rs");
    let (_, prelude) = source.split_once("pub mod prelude {").unwrap();
    let (_, exported) = prelude.split_once("pub use crate::{").unwrap();
    let (exported, _) = exported.split_once("};").unwrap();
    let exported: Vec<_> = exported.split(',').map(str::trim).filter(|it| !it.is_empty()).collect();
    assert_eq!(NAMES[1..], exported, "add new names to this test");
}

#[test]
fn the_methods_of_diesels_connection_are_in_scope() {
    let mut database = SqliteConnection::establish(":memory:").unwrap();
    let one = database.transaction(|database| {
        diesel::select(1.into_sql::<diesel::sql_types::Integer>()).get_result::<i32>(database)
    });
    assert_eq!(one, Ok(1));
}

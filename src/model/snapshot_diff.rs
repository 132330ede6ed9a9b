//! How two snapshots of a room differ.

use std::collections::HashMap;

use ahash::RandomState;
use serde::{Deserialize, Serialize};

use super::{Member, Presence, Snapshot, Update, UserId};

/// How a room differs from an earlier [`Snapshot`] of it: what the changes between come to. Nothing is known of
/// presences that came and went in between, nor why the others have left.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[non_exhaustive]
pub struct SnapshotDiff {
    /// Presences that were added.
    pub joins: Vec<Presence>,
    /// Presences that are gone.
    pub leaves: Vec<Presence>,
    /// Presences whose user or info has changed.
    pub updates: Vec<Update>,
    /// Users who were not in the room before.
    pub online: Vec<UserId>,
    /// Users who are not in the room any more.
    pub offline: Vec<UserId>,
}

impl SnapshotDiff {
    /// Whether the members are the same.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        *self == Self::default()
    }
}

impl Snapshot {
    /// What has changed since an earlier snapshot of the room; O(presences of both). For observers whose changes
    /// were [conflated](crate::Change::Resync).
    ///
    /// ```
    /// use actix_presence::{Change, PresenceChanged, Snapshot};
    ///
    /// /// Says who has come and gone since the snapshot, whatever was conflated, and keeps the new one.
    /// fn report(known: &mut Snapshot, event: PresenceChanged) {
    ///     let changes = event.snapshot.since(known);
    ///     println!("online: {:?}, offline: {:?}", changes.online, changes.offline);
    ///     *known = event.snapshot;
    /// }
    /// ```
    #[must_use]
    pub fn since(&self, before: &Self) -> SnapshotDiff {
        let mut changes = SnapshotDiff::default();
        let known = before.presences().map(|presence| (presence.connection, presence));
        let mut gone: HashMap<_, _, RandomState> = known.collect();
        for after in self.presences() {
            match gone.remove(&after.connection) {
                Some(before) if before == after => {}
                Some(before) if before.joined_at == after.joined_at => {
                    changes.updates.push(Update { before, after });
                }
                // It has left and joined again.
                Some(before) => {
                    gone.insert(before.connection, before);
                    changes.joins.push(after);
                }
                None => changes.joins.push(after),
            }
        }
        changes.leaves =
            before.presences().filter(|presence| gone.contains_key(&presence.connection)).collect();
        let absent = |users: &Self, from: &Self| -> Vec<_> {
            let ids = users.users().map(|Member { id, .. }| id);
            ids.filter(|id| from.user(id).is_none()).collect()
        };
        changes.online = absent(self, before);
        changes.offline = absent(before, self);
        changes
    }
}

//! The lock of the one server that uses a SQLite file.

use std::{
    fs::{self, File, TryLockError},
    io,
    path::{Path, PathBuf},
    thread,
    time::{Duration, Instant},
};

use super::files::{FileId, beside, directory};
use crate::{error_chain::error_chain, store::SqlitePath};

/// The lock of the one server that uses a SQLite file, held until it is dropped.
///
/// It is a lock on the file `PATH.lock` beside the database, which the operating system releases when the
/// process ends, in whatever way. The lock file stays: if it were deleted, two processes could lock two
/// files of the same name. If somebody else deletes it, the store that has the lock takes it again before
/// its next call. Commands that only read or prune need no lock.
#[derive(Debug)]
pub struct OwnerLock {
    path: PathBuf,
    locked: File,
}

/// Why the lock of a SQLite file cannot be taken.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum OwnerError {
    /// Another server uses the file; stop it, or use another file.
    #[error("another server uses this database (`{}` is locked{})", lock.display(), after(*waited))]
    Taken {
        /// The lock file.
        lock: PathBuf,
        /// How long the lock was waited for.
        waited: Duration,
    },
    /// The lock file cannot be created or locked.
    #[error("cannot lock `{}`: {}", lock.display(), error_chain(source))]
    Io {
        /// The lock file.
        lock: PathBuf,
        /// The error of the operating system.
        r#source: io::Error,
    },
}

/// How a lock that was waited for in vain goes on to be described.
fn after(waited: Duration) -> String {
    if waited.is_zero() { String::new() } else { format!(", also after a wait of {waited:?}") }
}

impl OwnerLock {
    /// Takes the lock, without waiting.
    ///
    /// # Errors
    ///
    /// [`OwnerError::Taken`] if another server has it.
    pub fn take(database: &SqlitePath) -> Result<Self, OwnerError> {
        Self::take_at(beside(&resolved(database.as_path()), ".lock"))
    }

    /// Takes the lock, and waits for as long for another server to release it. The database need not exist yet.
    ///
    /// # Errors
    ///
    /// [`OwnerError::Taken`] if another server still has it then. [`OwnerError::Io`] is not waited for.
    pub fn take_within(database: &SqlitePath, timeout: Duration) -> Result<Self, OwnerError> {
        /// No lock of a file has a timeout, so it is tried again and again.
        const RETRY_PAUSE: Duration = Duration::from_millis(10);
        let started = Instant::now();
        let mut waits = false;
        loop {
            // Read before the attempt, so that the last one is at the end of the wait.
            let left = timeout.saturating_sub(started.elapsed());
            // The path is resolved anew: a deploy may change a link.
            let lock = match Self::take(database) {
                Err(OwnerError::Taken { lock, .. }) => lock,
                taken => return taken,
            };
            if left.is_zero() {
                return Err(OwnerError::Taken { lock, waited: timeout });
            }
            if !std::mem::replace(&mut waits, true) {
                let lock = lock.display();
                tracing::info!(%lock, ?timeout, "another server uses this database: waiting for it to stop");
            }
            thread::sleep(left.min(RETRY_PAUSE));
        }
    }

    fn take_at(path: PathBuf) -> Result<Self, OwnerError> {
        /// The lock file may be deleted between opening and locking it, but not again and again.
        const ATTEMPTS: usize = 10;
        for _ in 0..ATTEMPTS {
            let io = |source| OwnerError::Io { lock: path.clone(), source };
            let options = File::options().create(true).truncate(false).write(true).open(&path);
            let locked = options.map_err(io)?;
            match locked.try_lock() {
                Ok(()) => {}
                Err(TryLockError::WouldBlock) => {
                    return Err(OwnerError::Taken { lock: path, waited: Duration::ZERO });
                }
                Err(TryLockError::Error(source)) => return Err(io(source)),
            }
            let lock = Self { path: path.clone(), locked };
            if lock.is_at_its_path() {
                return Ok(lock);
            }
        }
        let source = io::Error::other("it is deleted again and again");
        Err(OwnerError::Io { lock: path, source })
    }

    /// Takes the lock again if its file was deleted or replaced, since another server could lock the file
    /// that is at the path now. Returns whether that was necessary.
    pub(super) fn retake(&mut self) -> Result<bool, OwnerError> {
        if self.is_at_its_path() {
            return Ok(false);
        }
        *self = Self::take_at(self.path.clone())?;
        Ok(true)
    }

    fn is_at_its_path(&self) -> bool {
        let held = self.locked.metadata().ok().map(|file| FileId::of(&file));
        held.is_some() && held == FileId::at(&self.path)
    }

    /// The lock file.
    #[must_use]
    pub fn path(&self) -> &Path {
        &self.path
    }
}

/// The path of the database itself, even if the path is a link to it, and even if it does not exist yet.
fn resolved(path: &Path) -> PathBuf {
    /// As many links as Linux follows.
    const MAX_LINKS: usize = 40;
    let mut path = path.to_owned();
    for _ in 0..MAX_LINKS {
        match fs::read_link(&path) {
            Ok(target) => path = directory(&path).join(target),
            Err(_) => break,
        }
    }
    let parent = fs::canonicalize(directory(&path));
    match (fs::canonicalize(&path), parent, path.file_name()) {
        (Ok(path), ..) => path,
        (Err(_), Ok(parent), Some(name)) => parent.join(name),
        _ => path,
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Mutex;

    use super::*;

    fn database(directory: &Path, name: &str) -> SqlitePath {
        SqlitePath::new(directory.join(name).to_str().unwrap()).unwrap()
    }

    #[test]
    fn a_second_owner_is_refused_until_the_first_is_gone() {
        let directory = tempfile::tempdir().unwrap();
        let path = database(directory.path(), "a b?.db");
        let first = OwnerLock::take(&path).unwrap();
        assert_eq!(first.path(), directory.path().join("a b?.db.lock"));
        let refused = OwnerLock::take(&path).unwrap_err();
        assert!(refused.to_string().contains("a b?.db.lock"), "{refused}");
        assert!(matches!(refused, OwnerError::Taken { .. }));
        drop(first);
        OwnerLock::take(&path).unwrap();
    }

    #[test]
    fn a_lock_is_waited_for_until_its_owner_is_gone() {
        let directory = tempfile::tempdir().unwrap();
        let path = database(directory.path(), "a.db");
        let first = Mutex::new(Some(OwnerLock::take(&path).unwrap()));
        // The first line says that the lock is waited for.
        let release = move || {
            drop(first.lock().unwrap().take());
            io::sink()
        };
        let subscriber = tracing_subscriber::fmt().with_writer(release).finish();
        let take = || OwnerLock::take_within(&path, Duration::MAX);
        tracing::subscriber::with_default(subscriber, take).unwrap();
    }

    #[test]
    fn a_lock_that_stays_taken_is_refused_at_the_end_of_the_wait_and_not_before() {
        let directory = tempfile::tempdir().unwrap();
        let path = database(directory.path(), "a.db");
        let _first = OwnerLock::take(&path).unwrap();
        let (started, timeout) = (Instant::now(), Duration::from_millis(50));
        let refused = OwnerLock::take_within(&path, timeout).unwrap_err();
        assert!(started.elapsed() >= timeout);
        assert!(matches!(refused, OwnerError::Taken { waited, .. } if waited == timeout));
        let said = refused.to_string();
        assert!(said.contains("a.db.lock` is locked, also after a wait of 50ms"), "{said}");
    }

    #[cfg(unix)]
    #[test]
    fn a_link_to_the_database_is_the_same_database_also_before_it_exists() {
        let directory = tempfile::tempdir().unwrap();
        for exists in [false, true] {
            let names = [format!("a{exists}"), format!("b{exists}")];
            let [file, link] = names.map(|name| database(directory.path(), &name));
            if exists {
                File::create(file.as_path()).unwrap();
            }
            let target = file.as_path().file_name().unwrap();
            std::os::unix::fs::symlink(target, link.as_path()).unwrap();
            let _first = OwnerLock::take(&file).unwrap();
            assert!(matches!(OwnerLock::take(&link), Err(OwnerError::Taken { .. })), "{exists}");
        }
    }

    #[cfg(unix)]
    #[test]
    fn a_lock_whose_file_was_deleted_is_taken_again_unless_another_server_was_first() {
        let directory = tempfile::tempdir().unwrap();
        let path = database(directory.path(), "a.db");
        let mut first = OwnerLock::take(&path).unwrap();
        assert!(!first.retake().unwrap());
        fs::remove_file(first.path()).unwrap();
        assert!(first.retake().unwrap());
        assert!(matches!(OwnerLock::take(&path), Err(OwnerError::Taken { .. })));
        fs::remove_file(first.path()).unwrap();
        let second = OwnerLock::take(&path).unwrap();
        assert!(matches!(first.retake(), Err(OwnerError::Taken { .. })));
        drop(second);
        assert!(first.retake().unwrap());
    }

    #[test]
    fn a_missing_directory_is_reported_with_the_path_and_not_waited_for() {
        let directory = tempfile::tempdir().unwrap();
        let missing = database(directory.path(), "none/a");
        let refused = OwnerLock::take_within(&missing, Duration::MAX).unwrap_err();
        assert!(matches!(&refused, OwnerError::Io { lock, .. } if lock.ends_with("none/a.lock")));
    }
}

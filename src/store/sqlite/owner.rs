//! The lock that gives a SQLite file to one server.

use std::{
    fs::{self, File, TryLockError},
    io,
    path::{Path, PathBuf},
};

use crate::store::url::SqlitePath;

/// The lock of the one server that uses a SQLite file, held until it is dropped.
///
/// It is a lock on the file `PATH.lock` beside the database, which the operating system releases when the
/// process ends, in whatever way. The lock file stays: if it were deleted, two processes could lock two
/// files of the same name. Commands that only read or prune need no lock.
#[derive(Debug)]
pub struct OwnerLock {
    path: PathBuf,
    _locked: File,
}

/// Why the lock of a SQLite file cannot be taken.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum OwnerError {
    /// Another server uses the file; stop it, or use another file.
    #[error("another server uses this database (`{}` is locked)", lock.display())]
    Taken {
        /// The lock file.
        lock: PathBuf,
    },
    /// The lock file cannot be created or locked.
    #[error("cannot lock `{}`", lock.display())]
    Io {
        /// The lock file.
        lock: PathBuf,
        /// The error of the operating system.
        source: io::Error,
    },
}

impl OwnerLock {
    /// Takes the lock, without waiting.
    ///
    /// # Errors
    ///
    /// [`OwnerError::Taken`] if another server has it.
    pub fn take(database: &SqlitePath) -> Result<Self, OwnerError> {
        let path = lock_path(database);
        let io = |source| OwnerError::Io { lock: path.clone(), source };
        let file =
            File::options().create(true).truncate(false).write(true).open(&path).map_err(io)?;
        match file.try_lock() {
            Ok(()) => Ok(Self { path, _locked: file }),
            Err(TryLockError::WouldBlock) => Err(OwnerError::Taken { lock: path }),
            Err(TryLockError::Error(source)) => Err(OwnerError::Io { lock: path, source }),
        }
    }

    /// The lock file.
    #[must_use]
    pub fn path(&self) -> &Path {
        &self.path
    }
}

/// The path of the lock file: beside the database file itself, even if the path is a link to it.
fn lock_path(database: &SqlitePath) -> PathBuf {
    let path = database.as_path();
    let mut name = fs::canonicalize(path).unwrap_or_else(|_| path.to_owned()).into_os_string();
    name.push(".lock");
    name.into()
}

#[cfg(test)]
mod tests {
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

    #[cfg(unix)]
    #[test]
    fn a_link_to_the_database_is_the_same_database() {
        let directory = tempfile::tempdir().unwrap();
        let (file, link) = (database(directory.path(), "a"), database(directory.path(), "b"));
        File::create(file.as_path()).unwrap();
        std::os::unix::fs::symlink(file.as_path(), link.as_path()).unwrap();
        let _first = OwnerLock::take(&file).unwrap();
        assert!(matches!(OwnerLock::take(&link), Err(OwnerError::Taken { .. })));
    }

    #[test]
    fn a_missing_directory_is_reported_with_the_path() {
        let directory = tempfile::tempdir().unwrap();
        let refused = OwnerLock::take(&database(directory.path(), "none/a")).unwrap_err();
        assert!(matches!(&refused, OwnerError::Io { lock, .. } if lock.ends_with("none/a.lock")));
    }
}

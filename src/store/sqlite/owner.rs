//! The lock of the one server that uses a SQLite file.

use std::{
    fs::{self, File, TryLockError},
    io,
    path::{Path, PathBuf},
};

use super::files::{FileId, beside, directory};
use crate::store::SqlitePath;

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
        Self::take_at(beside(&resolved(database.as_path()), ".lock"))
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
                Err(TryLockError::WouldBlock) => return Err(OwnerError::Taken { lock: path }),
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
    fn a_missing_directory_is_reported_with_the_path() {
        let directory = tempfile::tempdir().unwrap();
        let refused = OwnerLock::take(&database(directory.path(), "none/a")).unwrap_err();
        assert!(matches!(&refused, OwnerError::Io { lock, .. } if lock.ends_with("none/a.lock")));
    }
}

//! The files of a database: whether they are still those that were opened, how large they are, and why
//! they cannot be used. SQLite says little about the last, so the system is asked.

use std::{
    ffi::OsString,
    fs::{self, File},
    io::{self, ErrorKind, Write},
    path::{Path, PathBuf},
};

use crate::store::StoreError;

/// The endings of the files that belong to a database, beside the database itself.
const LOG: &str = "-wal";
const SHARED_MEMORY: &str = "-shm";

/// The identity of a file.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct FileId(u64, u64);

impl FileId {
    #[cfg(unix)]
    pub fn of(file: &fs::Metadata) -> Self {
        use std::os::unix::fs::MetadataExt;
        Self(file.dev(), file.ino())
    }

    /// On other systems an open file cannot be replaced.
    #[cfg(not(unix))]
    pub fn of(_: &fs::Metadata) -> Self {
        Self(0, 0)
    }

    /// The identity of the file that is at the path now, if there is one.
    pub fn at(path: &Path) -> Option<Self> {
        fs::metadata(path).ok().map(|file| Self::of(&file))
    }
}

/// The write-ahead log of an open database, and its shared memory.
///
/// SQLite does not look at their names again: it goes on with files that were deleted, which nobody else
/// sees, and which are gone when it closes them.
#[derive(Clone, Copy, Debug)]
pub(super) struct LogFiles([Option<FileId>; 2]);

impl LogFiles {
    /// Those of the database at the path.
    pub fn of(database: &Path) -> Self {
        Self([LOG, SHARED_MEMORY].map(|ending| FileId::at(&beside(database, ending))))
    }

    /// The file that was deleted or replaced since, if one was.
    pub fn missing(&self, database: &Path) -> Option<PathBuf> {
        let now = Self::of(database);
        let lost = |at: usize| self.0[at].is_some() && self.0[at] != now.0[at];
        let ending = if lost(0) { LOG } else { SHARED_MEMORY };
        (lost(0) || lost(1)).then(|| beside(database, ending))
    }
}

/// The size of the write-ahead log, in bytes.
pub(super) fn log_size(database: &Path) -> u64 {
    fs::metadata(beside(database, LOG)).map_or(0, |log| log.len())
}

/// The file of the shared memory.
pub(super) fn shared_memory(database: &Path) -> PathBuf {
    beside(database, SHARED_MEMORY)
}

/// A path with this ending.
pub(super) fn beside(database: &Path, ending: &str) -> PathBuf {
    let mut name: OsString = database.as_os_str().to_owned();
    name.push(ending);
    name.into()
}

/// A file or directory that cannot be used, with the error of the system.
#[derive(Debug, thiserror::Error)]
#[error("cannot use `{}`: {source}", path.display())]
pub(super) struct UnusableFile {
    path: PathBuf,
    r#source: io::Error,
}

impl UnusableFile {
    pub fn new(path: &Path, source: impl Into<io::Error>) -> Self {
        Self { path: path.to_owned(), source: source.into() }
    }
}

/// The error with its cause, as far as the system knows it.
pub(super) fn explained(error: StoreError, database: &Path) -> StoreError {
    if !matches!(error, StoreError::Unavailable { .. } | StoreError::ReadOnly) {
        return error;
    }
    if is_at_size_limit(database) {
        return StoreError::Full;
    }
    let Err(unusable) = try_files(database) else { return error };
    match unusable.source.kind() {
        ErrorKind::StorageFull | ErrorKind::QuotaExceeded | ErrorKind::FileTooLarge => {
            StoreError::Full
        }
        ErrorKind::ReadOnlyFilesystem => StoreError::ReadOnly,
        ErrorKind::PermissionDenied => StoreError::Denied { source: unusable.into() },
        _ => StoreError::unavailable(unusable),
    }
}

/// Whether a file of the database has reached the size that the system allows this process for a file
/// (`ulimit -f`).
#[cfg(unix)]
fn is_at_size_limit(database: &Path) -> bool {
    use rustix::process::{Resource, getrlimit};

    /// The most that SQLite adds to a file at once: the limit is met before it is reached.
    const LARGEST_STEP: u64 = 64 * 1024;
    let Some(limit) = getrlimit(Resource::Fsize).current else { return false };
    let size = |path: &Path| fs::metadata(path).map_or(0, |file| file.len());
    let files = [LOG, SHARED_MEMORY].map(|ending| beside(database, ending));
    let largest = files.iter().map(|path| size(path)).fold(size(database), u64::max);
    largest.saturating_add(LARGEST_STEP) > limit
}

#[cfg(not(unix))]
fn is_at_size_limit(_: &Path) -> bool {
    false
}

/// Tries what SQLite does with the files: reading and writing each, and adding to their directory.
fn try_files(database: &Path) -> Result<(), UnusableFile> {
    for ending in ["", LOG, SHARED_MEMORY] {
        let path = beside(database, ending);
        may_use(&path).map_err(|source| UnusableFile::new(&path, source))?;
    }
    let trial = beside(database, &format!("-trial-{}", std::process::id()));
    let tried = add_file(&trial);
    // Also one that could not be written to its end, or that a process which was killed has left.
    let _ = fs::remove_file(&trial);
    let tried = tried.or_else(|error| match error.kind() {
        io::ErrorKind::AlreadyExists => Ok(()),
        _ => Err(error),
    });
    tried.map_err(|source| UnusableFile::new(directory(database), source))
}

/// Whether this process may read and write a file, if there is one.
///
/// The file is not opened for it: when a process closes a file, it loses its locks on it, and SQLite has
/// some.
#[cfg(unix)]
fn may_use(path: &Path) -> io::Result<()> {
    use rustix::{
        fs::{Access, AtFlags, CWD, accessat},
        io::Errno,
    };

    match accessat(CWD, path, Access::READ_OK | Access::WRITE_OK, AtFlags::EACCESS) {
        Ok(()) | Err(Errno::NOENT) => Ok(()),
        Err(error) => Err(error.into()),
    }
}

#[cfg(not(unix))]
fn may_use(_: &Path) -> io::Result<()> {
    Ok(())
}

fn add_file(path: &Path) -> io::Result<()> {
    // More than may be left in a block that is in use already.
    const SIZE: usize = 64 * 1024;
    let mut file = File::options().write(true).create_new(true).open(path)?;
    file.write_all(&[0; SIZE])?;
    file.sync_data()
}

/// The directory of a file.
pub(super) fn directory(file: &Path) -> &Path {
    let directory = file.parent().filter(|path| !path.as_os_str().is_empty());
    directory.unwrap_or(Path::new("."))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_log_that_was_deleted_or_replaced_is_missing() {
        let directory = tempfile::tempdir().unwrap();
        let database = directory.path().join("a.db");
        let none = LogFiles::of(&database);
        let [log, memory] = [LOG, SHARED_MEMORY].map(|ending| beside(&database, ending));
        for path in [&log, &memory] {
            fs::write(path, "").unwrap();
        }
        assert_eq!(none.missing(&database), None, "what was not there cannot be missing");
        let files = LogFiles::of(&database);
        fs::write(&log, "longer").unwrap();
        assert_eq!(files.missing(&database), None);
        let other = directory.path().join("other");
        fs::write(&other, "").unwrap();
        fs::rename(&other, &memory).unwrap();
        assert_eq!(files.missing(&database), Some(memory));
        fs::remove_file(&log).unwrap();
        assert_eq!(files.missing(&database), Some(log));
    }

    #[test]
    fn what_the_system_allows_is_not_explained() {
        let directory = tempfile::tempdir().unwrap();
        let database = directory.path().join("a.db");
        let error = explained(StoreError::unavailable("as it was"), &database);
        assert!(
            matches!(error, StoreError::Unavailable { source } if source.to_string() == "as it was")
        );
        assert_eq!(fs::read_dir(directory.path()).unwrap().count(), 0, "the trial leaves nothing");
    }

    #[test]
    fn a_missing_directory_is_named() {
        let directory = tempfile::tempdir().unwrap();
        let database = directory.path().join("none/a.db");
        let error = explained(StoreError::unavailable("unable to open"), &database);
        let said = error.to_string();
        assert!(said.contains("none`: No such file or directory"), "{said}");
    }
}

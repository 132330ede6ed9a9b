//! Another user, for whom permissions and limits count: the tests may run as root.

use std::{
    ffi::OsStr,
    fs,
    os::unix::fs::{MetadataExt, PermissionsExt, chown},
    path::{Path, PathBuf},
    process::Command,
    sync::{
        Arc,
        atomic::{AtomicU32, Ordering},
    },
};

use tempfile::TempDir;

use super::presence;

/// A user of the system without other processes, who owns a directory with a copy of the binary in it.
pub struct Somebody {
    id: u32,
    directory: Arc<TempDir>,
}

impl Somebody {
    /// `None` where the tests are not root, who alone may become somebody else.
    pub fn new() -> Option<Self> {
        static USERS: AtomicU32 = AtomicU32::new(0);
        if fs::metadata("/proc/self").unwrap().uid() != 0 {
            return None;
        }
        let id = 0x6000_0000 + std::process::id() * 64 + USERS.fetch_add(1, Ordering::Relaxed);
        let directory = Arc::new(tempfile::tempdir().unwrap());
        let somebody = Self { id, directory };
        // The one that was built may be where only root may look. A copy made by this process could not be
        // run while another test starts a process, which has its files for a moment.
        let mut copy = Command::new("cp");
        copy.arg(env!("CARGO_BIN_EXE_presence")).arg(somebody.binary());
        assert!(copy.status().unwrap().success());
        somebody.mode(0o755);
        chown(somebody.path(), Some(id), Some(id)).unwrap();
        Some(somebody)
    }

    pub fn directory(&self) -> Arc<TempDir> {
        self.directory.clone()
    }

    pub fn path(&self) -> &Path {
        self.directory.path()
    }

    pub fn url(&self) -> String {
        format!("sqlite://{}", self.database().display())
    }

    pub fn database(&self) -> PathBuf {
        self.path().join("presence.db")
    }

    fn binary(&self) -> PathBuf {
        self.path().join("binary")
    }

    /// Changes the permissions of the directory.
    pub fn mode(&self, mode: u32) {
        fs::set_permissions(self.path(), fs::Permissions::from_mode(mode)).unwrap();
    }

    /// The binary as this user.
    pub fn run<S: AsRef<str>>(&self, args: &[S]) -> Command {
        self.run_by(&[], args)
    }

    /// The binary as this user, with a limit of threads.
    pub fn run_with<S: AsRef<str>>(&self, threads: usize, args: &[S]) -> Command {
        let limit = format!("--nproc={threads}");
        self.run_by(&["prlimit".as_ref(), limit.as_ref()], args)
    }

    fn run_by<S: AsRef<str>>(&self, by: &[&OsStr], args: &[S]) -> Command {
        let served = presence(args);
        let mut command = Command::new("setpriv");
        let [user, group] = ["reuid", "regid"].map(|what| format!("--{what}={}", self.id));
        command.args([&user, &group, "--clear-groups"]).args(by);
        command.arg(self.binary()).args(served.get_args());
        for (name, _) in served.get_envs() {
            command.env_remove(name);
        }
        command.current_dir(self.path());
        command
    }
}

//! What the processes take: time, memory, and how many sockets.

use std::{
    fs, io,
    time::{Duration, Instant},
};

/// How busy this process and the server are while something is measured.
pub struct Meter {
    server: Option<u32>,
    begun: Instant,
    before: [Option<Usage>; 2],
}

/// What both took, and in what time.
#[derive(Clone, Copy, Debug)]
pub struct Busy {
    elapsed: Duration,
    client: Option<Usage>,
    server: Option<Usage>,
}

/// What the threads of a process have had.
#[derive(Clone, Copy, Debug)]
struct Usage {
    ran: Duration,
    /// How long they could have run, and waited for a core.
    waited: Duration,
}

impl Usage {
    fn since(self, before: Self) -> Self {
        Self {
            ran: self.ran.saturating_sub(before.ran),
            waited: self.waited.saturating_sub(before.waited),
        }
    }
}

impl Meter {
    pub fn start(server: Option<u32>) -> Self {
        Self { server, begun: Instant::now(), before: both(server) }
    }

    pub fn read(&self) -> Busy {
        let ([client, server], elapsed) = (both(self.server), self.begun.elapsed());
        let since = |before: Option<Usage>, now: Option<Usage>| Some(now?.since(before?));
        let [client_before, server_before] = self.before;
        Busy { elapsed, client: since(client_before, client), server: since(server_before, server) }
    }
}

impl Busy {
    /// Percents of one core.
    pub fn percents(&self) -> [Option<f64>; 2] {
        let percent = |usage: Usage| {
            (usage.ran.as_secs_f64() / self.elapsed.as_secs_f64() * 1000.0).round() / 10.0
        };
        [self.client.map(percent), self.server.map(percent)]
    }

    /// How long the server's threads ran.
    pub fn server(&self) -> Option<Duration> {
        self.server.map(|usage| usage.ran)
    }

    /// How long the server's threads waited for a core, added up: also for one another.
    pub fn server_waited(&self) -> Option<Duration> {
        self.server.map(|usage| usage.waited)
    }

    /// So many, in each second that the server was at work: a rate that does not fall when somebody
    /// else has the core meanwhile.
    pub fn per_server_second(&self, count: f64) -> Option<f64> {
        self.server().map(|time| (count / time.as_secs_f64()).round())
    }
}

fn both(server: Option<u32>) -> [Option<Usage>; 2] {
    [usage("self"), server.and_then(|pid| usage(&pid.to_string()))]
}

/// What the threads of a process have had together; on Linux.
fn usage(pid: &str) -> Option<Usage> {
    let mut sum = Usage { ran: Duration::ZERO, waited: Duration::ZERO };
    for task in fs::read_dir(format!("/proc/{pid}/task")).ok()? {
        let stat = fs::read_to_string(task.ok()?.path().join("schedstat")).ok()?;
        let mut nanos = stat.split_ascii_whitespace();
        let mut next = || Some(Duration::from_nanos(nanos.next()?.parse().ok()?));
        sum.ran += next()?;
        sum.waited += next()?;
    }
    Some(sum)
}

/// The resident memory of a process in bytes; on Linux.
pub fn resident(pid: u32) -> Option<u64> {
    let status = fs::read_to_string(format!("/proc/{pid}/status")).ok()?;
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:"))?;
    Some(line.trim().strip_suffix("kB")?.trim().parse::<u64>().ok()? * 1024)
}

/// Lets this process open so many sockets.
///
/// # Errors
///
/// If the system does not allow that many.
#[cfg(unix)]
pub fn allow_sockets(count: usize) -> io::Result<()> {
    use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
    // And what else is open.
    let needed = count as u64 + 64;
    let Rlimit { current, maximum } = getrlimit(Resource::Nofile);
    if current.is_none_or(|current| current >= needed) {
        return Ok(());
    }
    if maximum.is_some_and(|maximum| maximum < needed) {
        return Err(io::Error::other(format!("{needed} open files are needed: see ulimit -Hn")));
    }
    Ok(setrlimit(Resource::Nofile, Rlimit { current: Some(needed), maximum })?)
}

#[cfg(not(unix))]
pub fn allow_sockets(_: usize) -> io::Result<()> {
    Ok(())
}

//! Returns memory to the system after a crowd has left: glibc's allocator keeps what is freed to it.
//!
//! Compares what the process occupies with what is allocated, whatever it was allocated for: WebSockets,
//! plain HTTP, lists.

use std::{
    convert::Infallible,
    fs, io,
    sync::LazyLock,
    thread,
    time::{Duration, Instant},
};

use tokio::sync::oneshot;

/// How often to check.
const CHECK_INTERVAL: Duration = Duration::from_secs(2);
/// A check takes the allocator's locks: the pause after it is at least so many times as long.
const MIN_PAUSE_PER_CHECK: u32 = 200;
/// A trim is worth it from so many free bytes on, and from this fraction of what is allocated.
const MIN_FREE_BYTES: usize = 6 * 1024 * 1024;
const MIN_FREE_DIVISOR: usize = 8;

/// Starts the thread that trims regularly. The future waits for its end, and panics then: it only ends if
/// it has panicked.
pub(super) fn start() -> io::Result<impl Future<Output = ()>> {
    let (runs, ended) = oneshot::channel();
    // A thread of its own, since a check walks through everything that is free, and since the runtime
    // would start one at any later time, and panic where the system does not allow it.
    thread::Builder::new().name("memory".to_owned()).spawn(move || trim_regularly(runs))?;
    Ok(async {
        let Err(error) = ended.await;
        panic!("the thread that returns memory has ended: {error}");
    })
}

/// Drops the sender when it panics.
fn trim_regularly(_runs: oneshot::Sender<Infallible>) {
    let mut unreturnable = 0;
    let mut pause = CHECK_INTERVAL;
    loop {
        thread::sleep(pause);
        let begun = Instant::now();
        unreturnable = check(unreturnable);
        pause = CHECK_INTERVAL.max(begun.elapsed() * MIN_PAUSE_PER_CHECK);
    }
}

/// Trims if there is much to return beyond what the last trim could not, and returns what is left: free
/// pieces between others that are in use.
fn check(unreturnable: usize) -> usize {
    let Some(before) = MemoryUse::read() else { return unreturnable };
    if !before.is_worth_a_trim(unreturnable) {
        return unreturnable.min(before.free());
    }
    // SAFETY: any thread may call it at any time.
    unsafe { libc::malloc_trim(0) };
    let Some(after) = MemoryUse::read() else { return unreturnable };
    let (before, allocated) = (before.resident, after.allocated);
    tracing::debug!(before, after = after.resident, allocated, "returned memory to the system");
    after.free()
}

/// The memory of this process, in bytes.
#[derive(Clone, Copy, Debug)]
struct MemoryUse {
    /// What it occupies, without mapped files.
    resident: usize,
    allocated: usize,
}

impl MemoryUse {
    fn read() -> Option<Self> {
        Some(Self { resident: resident()?, allocated: allocated()? })
    }

    fn free(&self) -> usize {
        self.resident.saturating_sub(self.allocated)
    }

    fn is_worth_a_trim(&self, unreturnable: usize) -> bool {
        let gain = self.free().saturating_sub(unreturnable);
        gain >= MIN_FREE_BYTES.max(self.allocated / MIN_FREE_DIVISOR)
    }
}

fn resident() -> Option<usize> {
    let statm = fs::read_to_string("/proc/self/statm").ok()?;
    let mut pages = statm.split_ascii_whitespace().skip(1).map(|n| n.parse::<usize>().ok());
    let (resident, shared) = (pages.next()??, pages.next()??);
    // SAFETY: it only reads a constant of the system.
    let page = unsafe { libc::sysconf(libc::_SC_PAGESIZE) };
    Some(resident.saturating_sub(shared) * usize::try_from(page).ok()?)
}

/// `None` with a glibc before 2.33.
fn allocated() -> Option<usize> {
    type MallInfo2 = unsafe extern "C" fn() -> libc::mallinfo2;
    // Looked up by name, so that the binary also starts with an older glibc.
    static MALLINFO2: LazyLock<Option<MallInfo2>> = LazyLock::new(|| {
        // SAFETY: the name is terminated, and the function has this type.
        unsafe {
            let found = libc::dlsym(libc::RTLD_DEFAULT, c"mallinfo2".as_ptr());
            std::mem::transmute::<*mut libc::c_void, Option<MallInfo2>>(found)
        }
    });
    // SAFETY: any thread may call it at any time.
    let info = unsafe { (*MALLINFO2)?() };
    Some(info.uordblks + info.hblkhd)
}

#[cfg(test)]
mod tests {
    use super::*;

    const MIB: usize = 1024 * 1024;

    fn worth(resident: usize, allocated: usize, unreturnable: usize) -> bool {
        let memory = MemoryUse { resident: resident * MIB, allocated: allocated * MIB };
        memory.is_worth_a_trim(unreturnable * MIB)
    }

    #[test]
    fn a_trim_is_worth_it_if_much_is_free_beyond_what_the_last_one_left() {
        assert!(!worth(20, 15, 0), "little is free");
        assert!(worth(70, 15, 0));
        assert!(!worth(70, 15, 50), "what the last trim could not return");
        assert!(worth(90, 15, 50));
        assert!(!worth(1060, 1000, 0), "little of much");
        assert!(worth(1200, 1000, 0));
    }

    #[test]
    fn allocations_are_counted_until_they_are_freed() {
        let text = vec![b'x'; 64 * MIB];
        let with = MemoryUse::read().unwrap();
        assert!(with.allocated >= 64 * MIB && with.resident >= 64 * MIB, "{with:?}");
        drop(text);
        let without = allocated().unwrap();
        assert!(without + 32 * MIB < with.allocated, "{without} after {with:?}");
    }
}

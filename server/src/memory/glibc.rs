//! What the allocator of glibc holds, and how it is told to give it back.

use std::{
    fs,
    sync::LazyLock,
    time::{Duration, Instant},
};

use actix_web::rt::{task::spawn_blocking, time::sleep};

/// How often to look.
const INTERVAL: Duration = Duration::from_secs(2);
/// To look takes the allocator's locks; this share of the time at most.
const COST: u32 = 200;
/// So much has to be free for a trim, and this part of what is in use.
const FREE_BYTES: usize = 6 * 1024 * 1024;
const FREE_PART: usize = 8;

pub(super) async fn give_back() {
    let mut fragments = 0;
    let mut pause = INTERVAL;
    loop {
        sleep(pause).await;
        let begun = Instant::now();
        // Looks through all that is free.
        let looked = spawn_blocking(move || look(fragments)).await;
        fragments = looked.unwrap_or(fragments);
        pause = INTERVAL.max(begun.elapsed() * COST);
    }
}

/// Trims if there is much to gain beyond what the last trim left, and answers what is left now: pieces
/// between others that are in use.
fn look(fragments: usize) -> usize {
    let Some(memory) = Memory::read() else { return fragments };
    if !memory.is_worth_a_trim(fragments) {
        return fragments.min(memory.free());
    }
    // SAFETY: any thread may ask for it at any time.
    unsafe { libc::malloc_trim(0) };
    let Some(after) = Memory::read() else { return fragments };
    let (before, used) = (memory.resident, after.used);
    tracing::debug!(before, after = after.resident, used, "gave memory back to the system");
    after.free()
}

/// The memory of this process, in bytes.
#[derive(Clone, Copy, Debug)]
struct Memory {
    /// What it occupies besides mapped files.
    resident: usize,
    /// What the allocator has handed out.
    used: usize,
}

impl Memory {
    fn read() -> Option<Self> {
        Some(Self { resident: resident()?, used: used()? })
    }

    fn free(&self) -> usize {
        self.resident.saturating_sub(self.used)
    }

    fn is_worth_a_trim(&self, fragments: usize) -> bool {
        let gain = self.free().saturating_sub(fragments);
        gain >= FREE_BYTES.max(self.used / FREE_PART)
    }
}

fn resident() -> Option<usize> {
    let statm = fs::read_to_string("/proc/self/statm").ok()?;
    let mut pages = statm.split_ascii_whitespace().skip(1).map(|n| n.parse::<usize>().ok());
    let (resident, shared) = (pages.next()??, pages.next()??);
    // SAFETY: it only asks.
    let page = unsafe { libc::sysconf(libc::_SC_PAGESIZE) };
    Some(resident.saturating_sub(shared) * usize::try_from(page).ok()?)
}

/// `None` with a glibc before 2.33.
fn used() -> Option<usize> {
    type MallInfo2 = unsafe extern "C" fn() -> libc::mallinfo2;
    // Looked up by name, so that one can link with an older glibc, too.
    static MALLINFO2: LazyLock<Option<MallInfo2>> = LazyLock::new(|| {
        // SAFETY: the name ends with a zero, and what has it is a function of this type.
        unsafe {
            let found = libc::dlsym(libc::RTLD_DEFAULT, c"mallinfo2".as_ptr());
            std::mem::transmute::<*mut libc::c_void, Option<MallInfo2>>(found)
        }
    });
    // SAFETY: any thread may ask at any time.
    let info = unsafe { (*MALLINFO2)?() };
    Some(info.uordblks + info.hblkhd)
}

#[cfg(test)]
mod tests {
    use super::*;

    const MIB: usize = 1024 * 1024;

    fn worth(resident: usize, used: usize, fragments: usize) -> bool {
        let memory = Memory { resident: resident * MIB, used: used * MIB };
        memory.is_worth_a_trim(fragments * MIB)
    }

    #[test]
    fn a_trim_is_worth_it_when_much_is_free_that_the_last_one_did_not_leave() {
        assert!(!worth(20, 15, 0), "little is free");
        assert!(worth(70, 15, 0));
        assert!(!worth(70, 15, 50), "fragments that the last trim could not give back");
        assert!(worth(90, 15, 50));
        assert!(!worth(1060, 1000, 0), "little of much");
        assert!(worth(1200, 1000, 0));
    }

    #[test]
    fn what_was_allocated_is_in_use_and_what_was_freed_is_not() {
        let text = vec![b'x'; 64 * MIB];
        let with = Memory::read().unwrap();
        assert!(with.used >= 64 * MIB && with.resident >= 64 * MIB, "{with:?}");
        drop(text);
        let without = used().unwrap();
        assert!(without + 32 * MIB < with.used, "{without} after {with:?}");
    }
}

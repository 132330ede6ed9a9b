//! Memory that a crowd took, given back to the system when it has gone.
//!
//! The allocator of glibc keeps what is freed to it, and a storm of joins would be paid for until the
//! next start. Elsewhere nothing is done.

use std::time::Duration;

use super::ServerState;

/// How often to look.
const LOOK: Duration = Duration::from_secs(1);
/// So many sockets have to have closed, and this part of all.
const MANY: usize = 100;
const PART: usize = 8;

/// Has large pieces of memory taken from the system one by one, and given back one by one. To be called
/// before there are other threads.
///
/// By itself the allocator raises the size from which it does so whenever such a piece is given back.
pub(super) fn take_in_pieces() {
    #[cfg(all(target_os = "linux", target_env = "gnu"))]
    // SAFETY: changes a number of the allocator, and nobody uses it meanwhile.
    unsafe {
        libc::mallopt(libc::M_MMAP_THRESHOLD, 32 * 1024);
    }
}

/// Gives memory back whenever many have gone.
pub(super) async fn give_back(state: ServerState) {
    let mut tide = Tide::default();
    loop {
        actix_web::rt::time::sleep(LOOK).await;
        if tide.has_fallen(state.open_sockets()) {
            // Looks through all that is free.
            let _ = actix_web::rt::task::spawn_blocking(trim).await;
        }
    }
}

fn trim() {
    #[cfg(all(target_os = "linux", target_env = "gnu"))]
    // SAFETY: any thread may ask for it at any time.
    unsafe {
        libc::malloc_trim(0);
    }
}

/// How many there were at most since many went last.
#[derive(Default)]
struct Tide(usize);

impl Tide {
    /// Whether many have gone.
    fn has_fallen(&mut self, open: usize) -> bool {
        let gone = self.0.saturating_sub(open);
        let fallen = gone >= MANY.max(self.0 / PART);
        self.0 = if fallen { open } else { self.0.max(open) };
        fallen
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn memory_is_given_back_when_many_have_gone_and_not_when_a_few_come_and_go() {
        let mut tide = Tide::default();
        let mut falls = |open| tide.has_fallen(open);
        assert_eq!([50, 0, 99, 0].map(&mut falls), [false; 4], "a few");
        assert_eq!([6000, 5800, 5900, 5300].map(&mut falls), [false; 4], "a small part");
        assert_eq!([5250, 5250, 4700, 4500].map(&mut falls), [true, false, false, true]);
        assert_eq!([9000, 0, 0].map(&mut falls), [false, true, false]);
    }
}

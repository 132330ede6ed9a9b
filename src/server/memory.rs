//! Memory that a crowd took, given back to the system when it has gone.
//!
//! The allocator of glibc keeps what is freed to it, and a storm of joins would be paid for until the
//! next start. Elsewhere nothing is done.

use std::time::Duration;

use super::ServerState;

/// How often to look.
const LOOK: Duration = Duration::from_millis(500);
/// So many sockets have to have closed, and this part of all.
const MANY: usize = 100;
const PART: usize = 8;

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

/// The sockets that were open.
#[derive(Default)]
struct Tide {
    /// At most, since many went last.
    high: usize,
    /// When it was looked at last.
    last: usize,
}

impl Tide {
    /// Whether many have gone, and no more are going.
    fn has_fallen(&mut self, open: usize) -> bool {
        let falls = open < std::mem::replace(&mut self.last, open);
        let fallen = !falls && self.high.saturating_sub(open) >= MANY.max(self.high / PART);
        self.high = if fallen { open } else { self.high.max(open) };
        fallen
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn memory_is_given_back_when_many_have_gone_and_not_when_a_few_come_and_go() {
        let mut tide = Tide::default();
        let mut looks =
            |open: &[usize]| -> Vec<_> { open.iter().map(|open| tide.has_fallen(*open)).collect() };
        assert_eq!(looks(&[50, 0, 0, 99, 0, 0]), [false; 6], "a few");
        assert_eq!(looks(&[6000, 5800, 5900, 5300, 5300]), [false; 5], "a small part");
        assert_eq!(looks(&[5200, 4100, 4100, 4100]), [false, false, true, false]);
        assert_eq!(looks(&[9000, 8000, 10, 20, 20]), [false, false, false, true, false]);
    }
}

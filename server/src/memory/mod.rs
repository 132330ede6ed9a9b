//! Memory that a crowd took, given back to the system when it has gone.
//!
//! The allocator of glibc keeps what is freed to it. So it is looked at from time to time how much of
//! the memory that the process occupies is in use, whoever it was that used the rest: WebSockets, plain
//! HTTP, lists. With other allocators nothing is done.

#[cfg(all(target_os = "linux", target_env = "gnu"))]
mod glibc;

/// Gives memory back whenever much of it is free.
#[cfg(all(target_os = "linux", target_env = "gnu"))]
pub(super) async fn give_back() {
    glibc::give_back().await;
}

/// Does nothing, for ever.
#[cfg(not(all(target_os = "linux", target_env = "gnu")))]
pub(super) async fn give_back() {
    std::future::pending().await
}

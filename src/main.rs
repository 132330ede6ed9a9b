//! The `presence` server and its commands; see `presence --help`.

fn main() -> std::process::ExitCode {
    give_memory_back();
    actix_presence::server::main()
}

/// Has large pieces of memory taken from the system one by one, and given back one by one.
///
/// Otherwise the allocator of glibc keeps what a storm of joins took: it raises the size from which it
/// does so by itself whenever such a piece is given back.
fn give_memory_back() {
    #[cfg(all(target_os = "linux", target_env = "gnu"))]
    // SAFETY: changes a number of the allocator, before there are other threads.
    unsafe {
        libc::mallopt(libc::M_MMAP_THRESHOLD, 32 * 1024);
    }
}

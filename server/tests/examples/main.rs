//! The examples in processes of their own, talked to over real sockets and stopped by real signals.

#[path = "../../examples/desk/main.rs"]
mod desk;
#[path = "../../examples/mount.rs"]
mod mount;
mod mounting;
#[path = "../../../tests/examples/process.rs"]
mod process;
mod signals;
mod support;

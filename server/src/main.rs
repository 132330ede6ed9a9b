//! The `presence` server and its commands; see `presence --help`.

fn main() -> std::process::ExitCode {
    presence_server::main()
}

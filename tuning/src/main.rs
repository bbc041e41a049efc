//! `whimbrel-tune`: settings of the operating system for a Whimbrel server, checked, applied, taken back, and measured.

mod cli;
mod verify;

fn main() -> std::process::ExitCode {
    cli::main(std::env::args_os())
}

//! `whimbrel`: the server and the clients that come with it.

mod admin;
mod aside;
mod cli;
mod config;
mod memory;
mod serve;
mod shell;
mod token;
mod tuning;
mod units;

fn main() -> std::process::ExitCode {
    cli::main(std::env::args_os())
}

//! `whimbrel-bench`: load from outside, through the wire, and what it costs the server. See README.md.

#![deny(unsafe_code)]

mod acks;
mod buffers;
mod cli;
mod connect;
mod cpu;
mod disk;
mod drain;
mod environment;
mod floor;
mod idle;
mod load;
mod measure;
mod memory;
mod metrics;
mod pace;
mod process;
mod recovery;
mod report;
mod ring;
mod run;
mod scenario;
mod stall;
mod stats;
mod stops;
mod strace;
mod token;

fn main() -> std::process::ExitCode {
    cli::main()
}

//! `whimbrel-sim`: runs seeds and tells what they found.

mod cli;

fn main() {
    std::process::exit(cli::main());
}

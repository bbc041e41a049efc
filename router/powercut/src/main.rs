//! `whimbrel-powercut`: a real server on a file system of this program's own, whose power fails.
//!
//! The file system holds back what was not flushed. When the power fails nothing is answered any more, the server is killed,
//! and what was not flushed survives in part, torn and out of order; then the next server starts on that. Real sessions of the
//! client library send and receive, and a ledger of theirs says whether every promise was kept.

mod cli;
mod device;
mod disk;
mod fuse;
mod ledger;
mod life;
mod mount;
mod plant;
mod rng;
mod server;

fn main() {
    std::process::exit(cli::main());
}

//! What a disk does to a real server: `whimbrel-powercut` lets the power fail, `whimbrel-fulldisk` lets no space be left.
//!
//! Real sessions of the client library send and receive, and a ledger of theirs says whether every promise was kept.
//!
//! For the power the file system is this program's own: it holds back what was not flushed. When the power fails nothing is
//! answered any more, the server is killed, and what was not flushed survives in part, torn and out of order; then the next
//! server starts on that. For space it is a small one of the kernel's, which the server shares with a file that takes the rest.

mod cli;
mod device;
mod disk;
mod fill;
mod fuse;
mod ledger;
mod life;
mod mount;
mod pages;
mod plant;
mod rng;
mod server;

pub use cli::main as powercut;
pub use fill::main as fulldisk;

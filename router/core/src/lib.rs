//! The router's core: all decisions, and nothing else. No socket, clock, thread, random number or async function: what it
//! knows of these comes in as an argument, so that the simulator drives the very code that serves.
//!
//! A [`Shard`] is one function over a closed set of inputs. Its stages stand in files of their own, named in the order in
//! which a message meets them: [`conn`], [`session`], [`route`], [`chat`], [`outbox`], [`inbox`], [`replicate`],
//! [`deliver`], [`ack`].

#![forbid(unsafe_code)]

mod ack;
mod apply;
mod chat;
mod checkpoint;
mod cold;
mod conn;
mod counters;
mod deliver;
mod emptying;
pub mod ids;
mod image;
mod inbox;
pub mod io;
pub mod lane;
pub mod limits;
mod losses;
mod outbox;
mod partition;
mod recover;
mod repair;
mod replicate;
mod retry;
pub mod route;
mod scrub;
pub mod session;
mod shard;
mod store;
mod stuck;
pub mod survey;
mod timers;
pub mod token;

pub use counters::Counters;
pub use io::{Effect, Effects, Fatal, Input, Moving, Now, ShardConfig};
pub use lane::LaneItem;
pub use repair::{Repair, States, Trouble, Why};
pub use shard::{OpenError, Shard};

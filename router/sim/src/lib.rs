//! The whole node on one thread from a seed: the real core over the real log, with everything beneath them simulated: bytes,
//! blocks, time. A reference model watches what clients are told and finds what must not be.
//!
//! - [`run()`] runs one seed; [`Run`] names it, [`Outcome`] says what was found, [`Stats`] what happened.
//! - [`plant`] lists faults that can be planted at the bottom; [`hunt()`] sees that the checks find them.

#![forbid(unsafe_code)]

mod astray;
mod boot;
mod bottom;
mod cell;
pub mod check;
mod chores;
mod client;
mod conns;
mod disk;
mod ending;
mod hear;
mod hostile;
mod hunt;
mod lanes;
mod model;
mod node;
pub mod plant;
mod rng;
mod rot;
mod run;
mod socket;
mod stats;
pub mod steady;
mod tap;
mod tell;
mod tokens;
mod trace;
mod weather;
mod work;
mod world;

pub use hunt::{Catch, hunt};
pub use run::{DEFAULT_STEPS, Outcome, Run, dying_words, failure, run};
pub use stats::Stats;
pub use trace::Trace;

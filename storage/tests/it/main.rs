//! The log from outside: over memory that can lose power, and over real files.

// A failure of a test's own set-up is a failure of the test.
#![allow(clippy::unwrap_used)]

mod checkpoints;
mod datadir;
mod files;
mod model;
mod rig;
mod rot;
mod scrub;
mod staging;
mod torn;

//! The log from outside: over memory that can lose power, and over real files.

// A failure of a test's own set-up is a failure of the test.
#![allow(clippy::unwrap_used)]

mod checkpoints;
mod cold;
mod crash_matrix;
mod datadir;
mod empty;
mod ends;
mod files;
mod fuzz;
mod model;
mod plants;
mod readme;
mod rig;
mod rot;
mod rot_matrix;
mod scrub;
mod space;
mod staging;
mod torn;
mod unreadable;
mod verify;
mod warm;

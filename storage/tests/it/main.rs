//! The log from outside: over memory that can lose power, and over real files.

mod datadir;
mod files;
mod model;
mod rig;
mod rot;
mod staging;
mod torn;

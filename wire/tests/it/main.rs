//! The protocol's tests. `WHIMBREL_GOLDEN=write cargo test -p whimbrel-wire --test it golden` writes the vectors of this
//! version anew; those of a released version never change.

#![allow(clippy::unwrap_used)]

mod codes;
mod commands;
mod decoder;
mod facts;
mod fuzz;
mod golden;
mod hostile;
mod json;
mod protocol;
mod samples;

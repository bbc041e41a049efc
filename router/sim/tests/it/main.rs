//! What is true of the simulator as a whole.

mod command;
mod plants;
mod seeds;

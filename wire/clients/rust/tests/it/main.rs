//! The client against nodes that are scripts.

#![allow(clippy::unwrap_used)]

mod blocking;
mod inbox;
mod login;
mod model;
mod node;
mod sending;

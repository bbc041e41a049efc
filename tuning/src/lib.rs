//! Settings of the operating system for a Whimbrel server: what a profile wants, whether a machine meets it, and how to set it such
//! that it can be taken back.
//!
//! A [`profile`] names keys of the [`table`] with values; a [`plan`] is what that means on a [`machine`]; [`check`] judges it,
//! [`apply`] does it and [`revert`] undoes it, both by the journal of [`state`]. [`persist`] and [`export`] write it for others.
//! It knows nothing of the server.

pub mod apply;
pub mod check;
pub mod export;
pub mod machine;
pub mod persist;
pub mod plan;
pub mod profile;
pub mod recommend;
pub mod revert;
pub mod state;
pub mod table;
pub mod value;

//! What flatc made of `schema/`. Regenerate with `wire/generate.sh`; never edit.

#[allow(
    missing_docs,
    unsafe_op_in_unsafe_fn,
    unreachable_pub,
    deprecated,
    mismatched_lifetime_syntaxes,
    clippy::all,
    clippy::undocumented_unsafe_blocks,
    clippy::unwrap_used,
    clippy::wildcard_imports
)]
#[rustfmt::skip]
mod schema;

pub use schema::whimbrel::client;
pub use schema::whimbrel::log;

//! The programs against the real server.

mod command;
mod fulldisk;

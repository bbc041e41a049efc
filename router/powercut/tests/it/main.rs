//! The program against the real server.

mod command;

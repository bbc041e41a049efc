//! The program from outside: what it prints, what it does with files, processes and sockets. One binary, so that it is
//! linked once.

#![allow(clippy::unwrap_used, reason = "a test that cannot go on panics")]

mod admin;
mod clients;
mod common;
mod demo;
mod forget;
mod golden;
mod golden_data;
mod hostile;
mod log;
mod machine;
mod raw;
mod rot;
mod serve;
mod slow;
mod storage;
mod tuning;

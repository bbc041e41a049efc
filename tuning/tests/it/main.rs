//! The program from outside: on a made-up machine, and in a network namespace of its own.

mod golden;
mod machine;
mod namespace;
mod profiles;
mod tree;

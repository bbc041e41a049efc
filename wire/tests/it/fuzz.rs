//! What `cargo fuzz run frames` and `entry` do, a little of it, everywhere.

#[path = "../../../fuzz/src/entry.rs"]
mod entry;
#[path = "../../../fuzz/src/frames.rs"]
mod frames;
#[path = "../../../fuzz/src/mutate.rs"]
mod mutate;

#[test]
fn frames_under_mutations() {
    mutate::run(&["wire/golden/0.1.0/good", "wire/golden/0.1.0/hostile"], 5_000, frames::run);
}

#[test]
fn entries_under_mutations() {
    mutate::run(&["fuzz/seeds/entry"], 20_000, entry::run);
}

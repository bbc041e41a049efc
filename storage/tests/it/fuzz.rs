//! What `cargo fuzz run recovery` does, a little of it, everywhere.

#[path = "../../../fuzz/src/mutate.rs"]
mod mutate;
#[path = "../../../fuzz/src/recovery.rs"]
mod recovery;

#[test]
fn recovery_under_mutations() {
    mutate::run(&["fuzz/seeds/recovery"], 20_000, recovery::run);
}

//! The data of a Raft entry, as a start reads it out of the log: what is verified can be read without another look.

use whimbrel_wire::command::{CommandError, Entry, Verifier, command_at};

pub(crate) fn run(data: &[u8]) {
    let mut verifier = Verifier::default();
    for time in ["first", "second"] {
        let (quick, thorough) = (verifier.verify(data).map(|_| ()), Entry::verify(data).map(|_| ()));
        assert_eq!(quick, thorough, "looked at for the {time} time");
    }
    let entry = match Entry::verify(data) {
        Ok(entry) => entry,
        Err(error) => {
            // It can be told.
            assert!(!error.to_string().is_empty());
            return;
        }
    };
    let mut count = 0;
    for at in entry.iter() {
        count += 1;
        let bytes = &data[at.offset as usize..][..at.len as usize];
        // Printing reads every field, here through the tables that are not looked at again.
        let said = format!("{:?}", at.command);
        let again = command_at(bytes).map(|command| format!("{command:?}"));
        assert_eq!(again, Ok(said), "a command is the same in its entry and by itself");
    }
    assert_eq!(count, entry.count(), "all commands are given out");
    assert!(matches!(Entry::verify(&data[..8]), Err(CommandError::Short(8))));
}

//! The one place where tables are read without being verified: a command's table costs 98 ns to verify and 10 to read,
//! and it was written by this very program, in memory or under a checksum.

use flatbuffers::VerifierOptions;

use crate::command::{Command, CommandKind};
use crate::generated::log as fb;

/// What the table says. `None` for an unknown kind.
pub(crate) fn read_command<'a>(kind: u8, table: &'a [u8], payload: &'a [u8]) -> Option<Command<'a>> {
    macro_rules! read {
        ($name:ident) => {
            // SAFETY: `Entry::trusted` and `command_at` take only bytes that `EntryWriter` made in this process or that
            // were verified or checksummed since, so the root is a table of the kind that the header names.
            unsafe { flatbuffers::root_unchecked::<fb::$name<'a>>(table) }
        };
    }
    if table.len() < 8 {
        return None;
    }
    Some(match CommandKind::from_u8(kind)? {
        CommandKind::DeviceRegister => Command::DeviceRegister(read!(DeviceRegister)),
        CommandKind::ChatCreate => Command::ChatCreate(read!(ChatCreate)),
        CommandKind::ChatSend => Command::ChatSend(read!(ChatSend), payload),
        CommandKind::OutboxConfirm => Command::OutboxConfirm(read!(OutboxConfirm)),
        CommandKind::FanOut => Command::FanOut(read!(FanOut), payload),
        CommandKind::DeviceAck => Command::DeviceAck(read!(DeviceAck)),
    })
}

/// Whether the table is one of its kind.
pub(crate) fn verify_command(kind: u8, table: &[u8]) -> Result<(), ()> {
    let options = VerifierOptions {
        max_depth: 8,
        max_tables: 64,
        max_apparent_size: 1 << 20,
        ignore_missing_null_terminator: false,
    };
    macro_rules! verify {
        ($name:ident) => {
            flatbuffers::root_with_opts::<fb::$name<'_>>(&options, table).map(|_| ()).map_err(|_| ())
        };
    }
    match CommandKind::from_u8(kind).ok_or(())? {
        CommandKind::DeviceRegister => verify!(DeviceRegister),
        CommandKind::ChatCreate => verify!(ChatCreate),
        CommandKind::ChatSend => verify!(ChatSend),
        CommandKind::OutboxConfirm => verify!(OutboxConfirm),
        CommandKind::FanOut => verify!(FanOut),
        CommandKind::DeviceAck => verify!(DeviceAck),
    }
}

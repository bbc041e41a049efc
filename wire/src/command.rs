//! The data of a Raft entry: a header, then commands, each at a multiple of 8 bytes from the entry's start.
//!
//! ```text
//! entry    version u8 = 1 | 0 u8 | 0 u16 | count u32 | wall_ms u64
//! command  length u32 | kind u8 | 0 u8 | 0 u16 | table_len u32 | 0 u32 | table … | payload …
//! ```
//!
//! `length` counts header, table and payload; what fills up to the next multiple of 8 is zero.

use crate::generated::log as fb;
use crate::shape::Shapes;
use crate::trusted;

/// Bytes of an entry's header.
pub const ENTRY_HEADER_BYTES: usize = 16;
/// Bytes of a command's header.
pub const COMMAND_HEADER_BYTES: usize = 16;
/// Version in an entry's header.
pub const ENTRY_VERSION: u8 = 1;

/// What a command is. The number stands in its header and on disk.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
#[allow(missing_docs)]
pub enum CommandKind {
    DeviceRegister = 1,
    ChatCreate = 2,
    ChatSend = 3,
    OutboxConfirm = 4,
    FanOut = 5,
    DeviceAck = 6,
}

/// A command; see `schema/log.fbs`.
#[derive(Clone, Copy, Debug)]
#[allow(missing_docs)]
pub enum Command<'a> {
    DeviceRegister(fb::DeviceRegister<'a>),
    ChatCreate(fb::ChatCreate<'a>),
    /// With its payload.
    ChatSend(fb::ChatSend<'a>, &'a [u8]),
    OutboxConfirm(fb::OutboxConfirm<'a>),
    /// With its payload.
    FanOut(fb::FanOut<'a>, &'a [u8]),
    DeviceAck(fb::DeviceAck<'a>),
}

/// A command and its place.
#[derive(Clone, Copy, Debug)]
pub struct CommandAt<'a> {
    /// Of its header, from the entry's start.
    pub offset: u32,
    /// Header, table and payload.
    pub len: u32,
    /// What it says.
    pub command: Command<'a>,
}

/// Why bytes are not an entry.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[allow(missing_docs)]
pub enum CommandError {
    #[error("an entry of {0} bytes is shorter than its header")]
    Short(usize),
    #[error("unknown version {0} of an entry")]
    Version(u8),
    #[error("a command at byte {0} does not fit its entry")]
    Bounds(usize),
    #[error("unknown kind {kind} of the command at byte {offset}")]
    Kind { kind: u8, offset: usize },
    #[error("the table of the command at byte {0} is malformed")]
    Table(usize),
    #[error("{found} commands where {count} were announced")]
    Count { count: u32, found: u32 },
}

/// An entry's commands, their bounds and tables known to be right.
#[derive(Clone, Copy, Debug)]
pub struct Entry<'a> {
    bytes: &'a [u8],
}

/// Verifies entries, one after another: what it learns of one it need not look at in the next.
#[derive(Debug, Default)]
pub struct Verifier {
    shapes: Shapes,
}

impl Verifier {
    /// As [`Entry::verify`].
    pub fn verify<'a>(&mut self, bytes: &'a [u8]) -> Result<Entry<'a>, CommandError> {
        Entry::checked(bytes, |kind, table| self.shapes.verify(kind, table))
    }

    /// Reads one command, from its header on, as [`command_at`] does, and verifies its table: for bytes that may have changed on
    /// the disk since they were checked.
    pub fn command_at<'a>(&mut self, bytes: &'a [u8]) -> Result<Command<'a>, CommandError> {
        let raw = raw_at(bytes, 0)?.ok_or(CommandError::Short(0))?;
        let kind = CommandKind::from_u8(raw.kind).ok_or(CommandError::Kind { kind: raw.kind, offset: 0 })?;
        self.shapes.verify(kind, raw.table).map_err(|()| CommandError::Table(0))?;
        command_at(bytes)
    }
}

impl<'a> Entry<'a> {
    /// Verifies every table. For bytes from another node, or from a disk that may have been written by another program.
    pub fn verify(bytes: &'a [u8]) -> Result<Entry<'a>, CommandError> {
        Entry::checked(bytes, |kind, table| trusted::verify_command(kind as u8, table))
    }

    /// Checks bounds and kinds; the tables are believed. Only for bytes that this program wrote, in memory or under a
    /// checksum that was checked.
    pub fn trusted(bytes: &'a [u8]) -> Result<Entry<'a>, CommandError> {
        Entry::checked(bytes, |_, _| Ok(()))
    }

    fn checked(
        bytes: &'a [u8],
        mut check: impl FnMut(CommandKind, &'a [u8]) -> Result<(), ()>,
    ) -> Result<Entry<'a>, CommandError> {
        if bytes.len() < ENTRY_HEADER_BYTES {
            return Err(CommandError::Short(bytes.len()));
        }
        if bytes[0] != ENTRY_VERSION {
            return Err(CommandError::Version(bytes[0]));
        }
        let entry = Entry { bytes };
        let (mut at, mut found) = (ENTRY_HEADER_BYTES, 0);
        while let Some(raw) = raw_at(bytes, at)? {
            let kind = CommandKind::from_u8(raw.kind).ok_or(CommandError::Kind { kind: raw.kind, offset: at })?;
            check(kind, raw.table).map_err(|()| CommandError::Table(at))?;
            at = raw.next;
            found += 1;
        }
        match entry.count() == found {
            true => Ok(entry),
            false => Err(CommandError::Count { count: entry.count(), found }),
        }
    }

    /// The leader's wall time.
    pub fn wall_ms(&self) -> u64 {
        u64::from_le_bytes(self.bytes[8..16].try_into().expect("the header is there"))
    }

    /// How many commands.
    pub fn count(&self) -> u32 {
        u32::from_le_bytes(self.bytes[4..8].try_into().expect("the header is there"))
    }

    /// The commands in their order.
    pub fn iter(&self) -> impl Iterator<Item = CommandAt<'a>> + use<'a> {
        let bytes = self.bytes;
        let mut at = ENTRY_HEADER_BYTES;
        std::iter::from_fn(move || {
            let raw = raw_at(bytes, at).ok().flatten()?;
            let offset = at as u32;
            at = raw.next;
            let command = trusted::read_command(raw.kind, raw.table, raw.payload)?;
            Some(CommandAt { offset, len: raw.len, command })
        })
    }
}

impl CommandKind {
    pub(crate) fn from_u8(kind: u8) -> Option<CommandKind> {
        Some(match kind {
            1 => CommandKind::DeviceRegister,
            2 => CommandKind::ChatCreate,
            3 => CommandKind::ChatSend,
            4 => CommandKind::OutboxConfirm,
            5 => CommandKind::FanOut,
            6 => CommandKind::DeviceAck,
            _ => return None,
        })
    }
}

/// Reads one command, from its header on; its table is believed, as in [`Entry::trusted`].
pub fn command_at(bytes: &[u8]) -> Result<Command<'_>, CommandError> {
    let raw = raw_at(bytes, 0)?.ok_or(CommandError::Short(0))?;
    trusted::read_command(raw.kind, raw.table, raw.payload).ok_or(CommandError::Kind { kind: raw.kind, offset: 0 })
}

struct Raw<'a> {
    kind: u8,
    len: u32,
    table: &'a [u8],
    payload: &'a [u8],
    next: usize,
}

fn raw_at(bytes: &[u8], at: usize) -> Result<Option<Raw<'_>>, CommandError> {
    if at >= bytes.len() {
        return Ok(None);
    }
    let bounds = CommandError::Bounds(at);
    let head = bytes[at..].first_chunk::<COMMAND_HEADER_BYTES>().ok_or(bounds)?;
    let len = u32::from_le_bytes([head[0], head[1], head[2], head[3]]);
    let table_len = u32::from_le_bytes([head[8], head[9], head[10], head[11]]) as usize;
    let whole = bytes[at..].get(..len as usize).ok_or(bounds)?;
    let body = whole.get(COMMAND_HEADER_BYTES..).ok_or(bounds)?;
    if table_len > body.len() {
        return Err(bounds);
    }
    let (table, payload) = body.split_at(table_len);
    Ok(Some(Raw { kind: head[4], len, table, payload, next: at + (len as usize).next_multiple_of(8) }))
}

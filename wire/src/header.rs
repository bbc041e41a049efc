//! The fixed header of a frame: `length u32 | kind u8 | version u8 | flags u16 | table_len u32 | crc32c u32`.

/// Bytes of the header.
pub const HEADER_BYTES: usize = 16;
/// The version of the protocol that this code speaks.
pub const VERSION: u8 = 1;

/// What a frame is. The number stands in the header.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
#[repr(u8)]
#[allow(missing_docs)]
pub enum Kind {
    Hello = 1,
    Welcome = 2,
    Refused = 3,
    Ping = 4,
    Pong = 5,
    CreateChat = 6,
    ChatInfo = 7,
    Send = 8,
    Sent = 9,
    Deliver = 10,
    Ack = 11,
    GoAway = 12,
    Error = 13,
}

impl Kind {
    /// All kinds, in the order of their numbers.
    pub const ALL: [Kind; 13] = [
        Kind::Hello,
        Kind::Welcome,
        Kind::Refused,
        Kind::Ping,
        Kind::Pong,
        Kind::CreateChat,
        Kind::ChatInfo,
        Kind::Send,
        Kind::Sent,
        Kind::Deliver,
        Kind::Ack,
        Kind::GoAway,
        Kind::Error,
    ];

    /// The kind of this number.
    pub fn from_u8(number: u8) -> Option<Kind> {
        Kind::ALL.get(usize::from(number).wrapping_sub(1)).copied()
    }

    /// The version that stands in the header: that of a `Refused` is always 0, so that every client can read it.
    pub fn version(self) -> u8 {
        match self {
            Kind::Refused => 0,
            _ => VERSION,
        }
    }
}

/// A header's fields.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Header {
    /// The whole frame.
    pub(crate) length: u32,
    pub(crate) kind: u8,
    pub(crate) version: u8,
    pub(crate) flags: u16,
    pub(crate) table_len: u32,
    pub(crate) crc32c: u32,
}

impl Header {
    pub(crate) fn read(b: &[u8; HEADER_BYTES]) -> Header {
        Header {
            length: u32::from_le_bytes([b[0], b[1], b[2], b[3]]),
            kind: b[4],
            version: b[5],
            flags: u16::from_le_bytes([b[6], b[7]]),
            table_len: u32::from_le_bytes([b[8], b[9], b[10], b[11]]),
            crc32c: u32::from_le_bytes([b[12], b[13], b[14], b[15]]),
        }
    }

    /// The 12 bytes that the checksum covers, before the table and the payload.
    pub(crate) fn checked_bytes(&self) -> [u8; 12] {
        let mut b = [0; 12];
        b[..4].copy_from_slice(&self.length.to_le_bytes());
        b[4] = self.kind;
        b[5] = self.version;
        b[6..8].copy_from_slice(&self.flags.to_le_bytes());
        b[8..].copy_from_slice(&self.table_len.to_le_bytes());
        b
    }
}

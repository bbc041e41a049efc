//! A newtype for each kind of number, so that a chat's place can never be passed for an inbox's.

use std::cmp::Ordering;
use std::fmt;
use std::hash::{Hash, Hasher};

macro_rules! number {
    ($(#[$doc:meta])* $name:ident($inner:ty)) => {
        $(#[$doc])*
        #[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
        pub struct $name(pub $inner);

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                self.0.fmt(f)
            }
        }
    };
}

number!(
    /// One core's executor and all that it owns, numbered from 0 within a node.
    ShardId(u16)
);
number!(
    /// A fixed hash slice of all users and chats: the unit of replication.
    PartitionId(u16)
);
number!(
    /// An installation of a user, numbered by whoever issues the tokens.
    DeviceId(u32)
);
number!(
    /// Place of a message or a membership change in its chat: 1, 2, 3 …; 0 is "none".
    ChatSeq(u64)
);
number!(
    /// Place of a delivery in one device's inbox: 1, 2, 3 …; 0 is "none".
    InboxSeq(u64)
);
number!(
    /// A device's own counter of its sends; 0 is "none".
    ClientSeq(u64)
);
number!(
    /// Number of a device's inbox within its partition, given in the order in which devices were registered there.
    InboxId(u32)
);
number!(
    /// Number of a user within its partition, given in the order in which they were heard of since the start: it is in no entry
    /// and in no checkpoint.
    UserIndex(u32)
);
number!(
    /// What a request carries and its answer repeats.
    Correlation(u64)
);

/// A chat. Of a 1:1 chat the hash of the sorted pair of its users, of a group that of maker, device and nonce.
#[derive(Clone, Copy, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct ChatId(pub u128);

impl fmt::Debug for ChatId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:032x}", self.0)
    }
}

impl fmt::Display for ChatId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:032x}", self.0)
    }
}

/// A person: 1 to 39 bytes of `a-z 0-9 . _ + -`, held in place, so that it is copied without an allocation.
///
/// The name, then zeros, then its length: so the order of the bytes is that of the names, and five words tell two users
/// apart without a call.
#[derive(Clone, Copy)]
#[repr(align(8))]
pub struct UserId {
    bytes: [u8; UserId::MAX_BYTES + 1],
}

impl UserId {
    /// Longest name in bytes: with its length it fills five words, and a hyphenated UUID (36) fits.
    pub const MAX_BYTES: usize = whimbrel_wire::limits::USER_MAX_BYTES;

    /// Which bytes a name may have.
    const MAY_STAND: [bool; 256] = {
        let (mut table, mut byte) = ([false; 256], 0);
        while byte < table.len() {
            table[byte] = matches!(byte as u8, b'a'..=b'z' | b'0'..=b'9' | b'.' | b'_' | b'+' | b'-');
            byte += 1;
        }
        table
    };

    /// The user of this name, or `None` if it is empty, too long, or has another character than the ones allowed.
    pub fn new(name: &str) -> Option<UserId> {
        if name.is_empty() || name.len() > Self::MAX_BYTES {
            return None;
        }
        // Without a branch for each byte: a start makes one of most commands that it reads.
        if !name.bytes().fold(true, |ok, byte| ok & Self::MAY_STAND[usize::from(byte)]) {
            return None;
        }
        let mut bytes = [0; Self::MAX_BYTES + 1];
        bytes[..name.len()].copy_from_slice(name.as_bytes());
        bytes[Self::MAX_BYTES] = name.len() as u8;
        Some(UserId { bytes })
    }

    /// The name.
    pub fn as_str(&self) -> &str {
        let len = usize::from(self.bytes[Self::MAX_BYTES]);
        std::str::from_utf8(&self.bytes[..len]).expect("the constructor takes ASCII only")
    }

    /// Whether this is the user's name.
    #[inline]
    pub(crate) fn is_named(&self, name: &str) -> bool {
        let len = usize::from(self.bytes[Self::MAX_BYTES]);
        self.bytes[..len] == *name.as_bytes()
    }

    #[inline]
    fn words(&self) -> [u64; 5] {
        let (words, _) = self.bytes.as_chunks::<8>();
        std::array::from_fn(|n| u64::from_be_bytes(words[n]))
    }
}

impl PartialEq for UserId {
    #[inline]
    fn eq(&self, other: &UserId) -> bool {
        // Arrays are compared by a call.
        let (own, other) = (self.words(), other.words());
        (0..own.len()).fold(0, |differs, n| differs | (own[n] ^ other[n])) == 0
    }
}

impl Eq for UserId {}

impl PartialOrd for UserId {
    #[inline]
    fn partial_cmp(&self, other: &UserId) -> Option<Ordering> {
        Some(self.cmp(other))
    }
}

impl Ord for UserId {
    #[inline]
    fn cmp(&self, other: &UserId) -> Ordering {
        self.words().cmp(&other.words())
    }
}

impl Hash for UserId {
    #[inline]
    fn hash<H: Hasher>(&self, state: &mut H) {
        for word in self.words() {
            state.write_u64(word);
        }
    }
}

const _: () = assert!(size_of::<UserId>() == 5 * size_of::<u64>());

impl fmt::Debug for UserId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

impl fmt::Display for UserId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

/// A connection of one shard: the slot that the shell gave it, and a generation, so that what is late for a connection
/// that is gone never reaches the one that has its slot now.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct ConnId {
    /// Index of the shell's and the core's tables of connections.
    pub slot: u32,
    /// Rises each time the slot is given anew.
    pub generation: u32,
}

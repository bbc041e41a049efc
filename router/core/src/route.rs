//! Where users and chats live. Part of the wire's meaning: a load generator or another node computes the same.

use crate::ids::{ChatId, DeviceId, PartitionId, UserId};

/// The partition of a user's inboxes: the first 8 bytes of BLAKE3 of the name, little-endian, modulo the partitions.
pub fn partition_of_user(user: &UserId, partitions: u16) -> PartitionId {
    slice(user.as_str().as_bytes(), partitions)
}

/// The partition of a chat: as of a user, over the 16 bytes of the id, little-endian.
pub fn partition_of_chat(chat: ChatId, partitions: u16) -> PartitionId {
    slice(&chat.0.to_le_bytes(), partitions)
}

fn slice(bytes: &[u8], partitions: u16) -> PartitionId {
    let hash = blake3::hash(bytes);
    let number = u64::from_le_bytes(*hash.as_bytes().first_chunk().expect("a hash has 32 bytes"));
    PartitionId((number % u64::from(partitions)) as u16)
}

/// The id of the 1:1 chat of two users, whoever asks.
pub fn direct_chat(a: &UserId, b: &UserId) -> ChatId {
    let (first, second) = if a <= b { (a, b) } else { (b, a) };
    id(&[b"direct", first.as_str().as_bytes(), second.as_str().as_bytes()])
}

/// The id of a group: its maker's device and number, so that nobody else can name it first and asking twice makes one.
pub fn group_chat(maker: &UserId, device: DeviceId, nonce: u64) -> ChatId {
    id(&[b"group", maker.as_str().as_bytes(), &device.0.to_le_bytes(), &nonce.to_le_bytes()])
}

fn id(parts: &[&[u8]]) -> ChatId {
    let mut hasher = blake3::Hasher::new();
    for part in parts {
        // A zero between the parts: names have none, so no two lists of parts hash the same bytes.
        hasher.update(part).update(&[0]);
    }
    ChatId(u128::from_le_bytes(*hasher.finalize().as_bytes().first_chunk().expect("a hash has 32 bytes")))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_direct_chat_has_one_id_for_both() {
        let (a, b) = (UserId::new("alice").unwrap(), UserId::new("bob").unwrap());
        assert_eq!(direct_chat(&a, &b), direct_chat(&b, &a));
        assert_ne!(direct_chat(&a, &b), direct_chat(&a, &a));
        assert_ne!(group_chat(&a, DeviceId(1), 1), group_chat(&a, DeviceId(1), 2));
        assert_ne!(group_chat(&a, DeviceId(1), 1), group_chat(&b, DeviceId(1), 1));
    }

    /// Data directories and load generators depend on these: a change would lose every inbox.
    #[test]
    fn places_never_change() {
        let alice = UserId::new("alice").unwrap();
        let bob = UserId::new("bob").unwrap();
        assert_eq!(partition_of_user(&alice, 16), slice(b"alice", 16));
        let places = [partition_of_user(&alice, 256).0, partition_of_user(&bob, 256).0];
        let expected = [b"alice".as_slice(), b"bob"].map(|name| u16::from(blake3::hash(name).as_bytes()[0]));
        assert_eq!(places, expected);
    }
}

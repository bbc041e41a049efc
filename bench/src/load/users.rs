//! Who talks to whom.

/// The two of a pair; the first sends.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct PairUsers {
    pub(crate) sender: String,
    pub(crate) receiver: String,
}

/// The user of this number.
pub(crate) fn user(number: u32) -> String {
    format!("bench-{number:05}")
}

/// Pairs of users in the order of their numbers.
pub(crate) fn pairs(count: u32) -> Vec<PairUsers> {
    pairs_from(0, count)
}

/// The same, without the users of so many pairs before them.
pub(crate) fn pairs_from(first: u32, count: u32) -> Vec<PairUsers> {
    let all = first..first + count;
    all.map(|pair| PairUsers { sender: user(2 * pair), receiver: user(2 * pair + 1) }).collect()
}

/// Pairs whose two users live on the two different shards of a node; every second pair sends the other way.
pub(crate) fn pairs_across(count: u32, partitions: u16) -> Vec<PairUsers> {
    let mut waiting: [Vec<String>; 2] = [Vec::new(), Vec::new()];
    let mut pairs = Vec::new();
    for number in 0.. {
        if pairs.len() == count as usize {
            break;
        }
        let name = user(number);
        waiting[usize::from(shard_of(&name, partitions, 2))].push(name);
        if waiting.iter().all(|list| !list.is_empty()) {
            let [Some(a), Some(b)] = waiting.each_mut().map(Vec::pop) else { continue };
            let (sender, receiver) = if pairs.len() % 2 == 0 { (a, b) } else { (b, a) };
            pairs.push(PairUsers { sender, receiver });
        }
    }
    pairs
}

/// The shard that leads a user's inboxes: of the partition, which is the first 8 bytes of BLAKE3 of the name, little-endian,
/// modulo the partitions. A part of the protocol's meaning.
pub(crate) fn shard_of(user: &str, partitions: u16, shards: u16) -> u16 {
    let hash = blake3::hash(user.as_bytes());
    let mut first = [0; 8];
    first.copy_from_slice(&hash.as_bytes()[..8]);
    let partition = (u64::from_le_bytes(first) % u64::from(partitions)) as u16;
    partition % shards
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::BTreeSet;

    #[test]
    fn pairs_across_are_across_and_name_nobody_twice() {
        let pairs = pairs_across(100, 16);
        let mut names = BTreeSet::new();
        for (index, pair) in pairs.iter().enumerate() {
            let shards = [&pair.sender, &pair.receiver].map(|name| shard_of(name, 16, 2));
            assert_eq!(shards, if index % 2 == 0 { [0, 1] } else { [1, 0] });
            assert!(names.insert(pair.sender.clone()) && names.insert(pair.receiver.clone()));
        }
        assert_eq!(names.len(), 200);
    }

    #[test]
    fn names_have_the_length_that_the_floor_counts_with() {
        assert_eq!(user(7), "bench-00007");
        assert_eq!(user(14_999).len(), user(0).len());
    }
}

//! Tokens of the simulated world: real ones, from a key pair that is written here and protects nothing.

use std::cell::RefCell;
use std::collections::BTreeMap;

use pasetors::keys::AsymmetricSecretKey;
use pasetors::version4::{PublicToken, V4};

/// Seed and public key of an Ed25519 pair, the first of RFC 8032's test vectors.
const SECRET: [u8; 64] = [
    0x9d, 0x61, 0xb1, 0x9d, 0xef, 0xfd, 0x5a, 0x60, 0xba, 0x84, 0x4a, 0xf4, 0x92, 0xec, 0x2c, 0xc4, 0x44, 0x49, 0xc5,
    0x69, 0x7b, 0x32, 0x69, 0x19, 0x70, 0x3b, 0xac, 0x03, 0x1c, 0xae, 0x7f, 0x60, 0xd7, 0x5a, 0x98, 0x01, 0x82, 0xb1,
    0x0a, 0xb7, 0xd5, 0x4b, 0xfe, 0xd3, 0xc9, 0x64, 0x07, 0x3a, 0x0e, 0xe1, 0x72, 0xf3, 0xda, 0xa6, 0x23, 0x25, 0xaf,
    0x02, 0x1a, 0x68, 0xf7, 0x07, 0x51, 0x1a,
];

thread_local! {
    // Signing costs as much as a hundred steps, and the same devices log in again under every seed.
    static MINTED: RefCell<BTreeMap<(String, u32, bool), String>> = const { RefCell::new(BTreeMap::new()) };
}

/// What the node verifies with.
pub(crate) fn public_key() -> [u8; 32] {
    let mut key = [0; 32];
    key.copy_from_slice(&SECRET[32..]);
    key
}

/// A token of a device that counts for longer than any run, or stopped counting long before.
pub(crate) fn token(user: &str, device: u32, expired: bool) -> String {
    MINTED.with_borrow_mut(|minted| {
        minted.entry((user.to_owned(), device, expired)).or_insert_with(|| mint(user, device, expired)).clone()
    })
}

fn mint(user: &str, device: u32, expired: bool) -> String {
    let year = if expired { 2001 } else { 2999 };
    let claims = format!(r#"{{"user":"{user}","device":{device},"epoch":1,"exp":"{year}-01-01T00:00:00Z"}}"#);
    let key =
        AsymmetricSecretKey::<V4>::from(&SECRET).expect("64 bytes, the second half being the public key of the first");
    PublicToken::sign(&key, claims.as_bytes(), None, None).expect("claims are not empty")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_token_is_the_same_each_time() {
        assert_eq!(mint("alice", 1, false), token("alice", 1, false));
        assert_ne!(token("alice", 1, false), token("alice", 1, true));
    }
}

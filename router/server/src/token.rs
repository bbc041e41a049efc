//! Tokens: who makes them and with which keys. A node verifies them (`whimbrel_core::token`); this module only holds what
//! is around that: the key pair of a development node, the files it lies in, and minting.
//!
//! A token is PASETO v4.public with the claims `user`, `device`, `epoch` and `exp`. Keys are written as PASERK, one line.

use std::fs::{self, File, OpenOptions};
use std::io::{self, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context, anyhow};
use pasetors::claims::Claims;
use pasetors::keys::{AsymmetricKeyPair, AsymmetricPublicKey, AsymmetricSecretKey, Generate};
use pasetors::paserk::FormatAsPaserk;
use pasetors::version4::V4;

/// Epoch of the tokens of a development node. Its devices are never locked out, so it never rises.
pub(crate) const DEV_EPOCH: u32 = 1;

/// The key pair of a development node.
pub(crate) struct DevKeys {
    secret: AsymmetricSecretKey<V4>,
    public: [u8; 32],
}

/// What a token grants.
pub(crate) struct Grant<'a> {
    pub(crate) user: &'a str,
    pub(crate) device: u32,
    pub(crate) epoch: u32,
    pub(crate) ttl: Duration,
}

/// A token and until when it counts, in RFC 3339.
pub(crate) struct Minted {
    pub(crate) token: String,
    pub(crate) expires_at: String,
}

impl DevKeys {
    /// What a node verifies with.
    pub(crate) fn public_key_bytes(&self) -> [u8; 32] {
        self.public
    }

    /// A token that counts from now on for `ttl`.
    pub(crate) fn mint(&self, grant: &Grant<'_>) -> anyhow::Result<Minted> {
        let too_long = || {
            anyhow!("a token cannot count for {} days: the year would have five digits", grant.ttl.as_secs() / 86_400)
        };
        let mut claims = Claims::new_expires_in(&grant.ttl).map_err(|_| too_long())?;
        // A clock that is a second behind the minting one would refuse a token over these two, and nothing reads them.
        claims.remove_claim("iat");
        claims.remove_claim("nbf");
        let exp = claims.get_claim("exp").and_then(|exp| exp.as_str()).ok_or_else(too_long)?.to_owned();
        claims.add_additional("user", grant.user).context("claim `user`")?;
        claims.add_additional("device", grant.device).context("claim `device`")?;
        claims.add_additional("epoch", grant.epoch).context("claim `epoch`")?;
        let token = pasetors::public::sign(&self.secret, &claims, None, None).context("sign the token")?;
        Ok(Minted { token, expires_at: exp })
    }
}

/// The key pair in `data`, made if there is none. The caller holds the lock of the data directory.
pub(crate) fn load_or_create_dev_keys(data: &Path) -> anyhow::Result<DevKeys> {
    let keys = match load_dev_keys(data)? {
        Some(keys) => keys,
        None => {
            let pair = AsymmetricKeyPair::<V4>::generate().context("make a key pair")?;
            let keys = DevKeys { public: public_half(&pair.secret), secret: pair.secret };
            fs::create_dir_all(keys_dir(data)).with_context(|| format!("make {}", keys_dir(data).display()))?;
            write_key(&secret_path(data), &paserk(&keys.secret)?, 0o600)?;
            keys
        }
    };
    // Before anything counts by the key; of one that was found too, for who made it may have been killed before this.
    for directory in [keys_dir(data), data.to_owned()] {
        let sync = || File::open(&directory)?.sync_all();
        sync().with_context(|| format!("sync {}", directory.display()))?;
    }
    // Written last and again if missing: it follows from the secret one.
    if !public_path(data).exists() {
        let public = AsymmetricPublicKey::<V4>::from(&keys.public).context("public half of the key")?;
        write_key(&public_path(data), &paserk(&public)?, 0o644)?;
    }
    Ok(keys)
}

/// The key pair in `data`, or `None` if no development node was ever started there.
pub(crate) fn load_dev_keys(data: &Path) -> anyhow::Result<Option<DevKeys>> {
    let path = secret_path(data);
    let text = match fs::read_to_string(&path) {
        Ok(text) => text,
        Err(error) if matches!(error.kind(), io::ErrorKind::NotFound | io::ErrorKind::NotADirectory) => {
            return Ok(None);
        }
        Err(error) => return Err(error).with_context(|| format!("read {}", path.display())),
    };
    let secret = AsymmetricSecretKey::<V4>::try_from(text.trim()).map_err(|_| {
        anyhow!(
            "{} holds no PASERK `k4.secret` key; remove it and `whimbrel serve --dev` makes a new one",
            path.display()
        )
    })?;
    Ok(Some(DevKeys { public: public_half(&secret), secret }))
}

/// The key in a file that holds one PASERK `k4.public` line.
pub(crate) fn read_public_key(path: &Path) -> anyhow::Result<[u8; 32]> {
    let text = fs::read_to_string(path).with_context(|| format!("read the token key {}", path.display()))?;
    parse_public_key(&text).with_context(|| format!("token key {}", path.display()))
}

/// The key in a PASERK `k4.public` text.
pub(crate) fn parse_public_key(text: &str) -> anyhow::Result<[u8; 32]> {
    let key = AsymmetricPublicKey::<V4>::try_from(text.trim())
        .map_err(|_| anyhow!("not a PASERK public key: `k4.public.` and 43 base64url characters are expected"))?;
    key.as_bytes().try_into().context("a v4 public key has 32 bytes")
}

/// Where the public key of a development node lies.
pub(crate) fn public_path(data: &Path) -> PathBuf {
    keys_dir(data).join("dev.public")
}

/// Where the secret key of a development node lies.
pub(crate) fn secret_path(data: &Path) -> PathBuf {
    keys_dir(data).join("dev.secret")
}

fn keys_dir(data: &Path) -> PathBuf {
    data.join("keys")
}

/// An Ed25519 secret key as PASERK has it is seed and public key, 32 bytes each.
fn public_half(secret: &AsymmetricSecretKey<V4>) -> [u8; 32] {
    secret.as_bytes()[32..].try_into().expect("the type holds 64 bytes")
}

fn paserk(key: &impl FormatAsPaserk) -> anyhow::Result<String> {
    let mut text = String::new();
    key.fmt(&mut text).context("write a key as PASERK")?;
    text.push('\n');
    Ok(text)
}

/// Whole or not at all, and never readable by others on the way.
fn write_key(path: &Path, text: &str, mode: u32) -> anyhow::Result<()> {
    let write = || {
        let new = path.with_extension("new");
        // Left by a start that was cut off; `create_new` below must not follow a link.
        match fs::remove_file(&new) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
            _ => {}
        }
        let mut file = OpenOptions::new().write(true).create_new(true).mode(mode).open(&new)?;
        file.write_all(text.as_bytes())?;
        file.sync_all()?;
        fs::rename(&new, path)
    };
    write().with_context(|| format!("write {}", path.display()))
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::PermissionsExt;

    use pasetors::Public;
    use pasetors::token::UntrustedToken;

    fn grant(ttl_s: u64) -> Grant<'static> {
        Grant { user: "alice", device: 7, epoch: DEV_EPOCH, ttl: Duration::from_secs(ttl_s) }
    }

    #[test]
    fn the_second_start_finds_the_keys_of_the_first() {
        let data = tempfile::tempdir().unwrap();
        assert!(load_dev_keys(data.path()).unwrap().is_none());
        let first = load_or_create_dev_keys(data.path()).unwrap();
        let second = load_or_create_dev_keys(data.path()).unwrap();
        assert_eq!(first.public_key_bytes(), second.public_key_bytes());
        assert_eq!(read_public_key(&public_path(data.path())).unwrap(), first.public_key_bytes());
        let mode = fs::metadata(secret_path(data.path())).unwrap().permissions().mode();
        assert_eq!(mode & 0o777, 0o600);
    }

    #[test]
    fn a_lost_public_key_follows_from_the_secret_one() {
        let data = tempfile::tempdir().unwrap();
        let keys = load_or_create_dev_keys(data.path()).unwrap();
        fs::remove_file(public_path(data.path())).unwrap();
        load_or_create_dev_keys(data.path()).unwrap();
        assert_eq!(read_public_key(&public_path(data.path())).unwrap(), keys.public_key_bytes());
    }

    #[test]
    fn a_token_verifies_and_holds_the_four_claims_only() {
        let data = tempfile::tempdir().unwrap();
        let keys = load_or_create_dev_keys(data.path()).unwrap();
        let minted = keys.mint(&grant(60)).unwrap();
        let key = AsymmetricPublicKey::<V4>::from(&keys.public_key_bytes()).unwrap();
        let untrusted = UntrustedToken::<Public, V4>::try_from(&minted.token).unwrap();
        let trusted = pasetors::version4::PublicToken::verify(&key, &untrusted, None, None).unwrap();
        let claims: serde_json::Map<String, serde_json::Value> = serde_json::from_str(trusted.payload()).unwrap();
        assert_eq!(claims.len(), 4);
        assert_eq!(claims["user"], "alice");
        assert_eq!(claims["device"], 7);
        assert_eq!(claims["epoch"], DEV_EPOCH);
        assert_eq!(claims["exp"], minted.expires_at);
        assert!(minted.token.len() <= whimbrel_wire::limits::TOKEN_MAX_BYTES);
    }

    #[test]
    fn what_is_no_key_is_named() {
        let data = tempfile::tempdir().unwrap();
        fs::create_dir_all(keys_dir(data.path())).unwrap();
        fs::write(secret_path(data.path()), "k4.secret.AAAA").unwrap();
        let error = load_or_create_dev_keys(data.path()).err().unwrap().to_string();
        assert!(error.contains("dev.secret holds no PASERK"), "{error}");
        assert!(parse_public_key("k4.local.AAAA").is_err());
    }
}

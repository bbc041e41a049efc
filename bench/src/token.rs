//! Tokens of a development server, signed with the key in its data directory.

use std::path::Path;
use std::time::Duration;

use anyhow::{Context, anyhow};
use pasetors::claims::Claims;
use pasetors::keys::AsymmetricSecretKey;
use pasetors::version4::V4;

/// The device of every user here.
pub(crate) const DEVICE: u32 = 1;
/// Of the tokens that a development server makes itself.
const EPOCH: u32 = 1;
const TTL: Duration = Duration::from_secs(24 * 3600);

/// See the [module](self).
pub(crate) struct Minter {
    secret: AsymmetricSecretKey<V4>,
}

impl Minter {
    /// With the key in a data directory.
    pub(crate) fn load(data: &Path) -> anyhow::Result<Minter> {
        let path = data.join("keys/dev.secret");
        let text = std::fs::read_to_string(&path).with_context(|| {
            format!(
                "read {}: --data must name the data directory of a server started with `serve --dev`",
                path.display()
            )
        })?;
        let secret = AsymmetricSecretKey::<V4>::try_from(text.trim())
            .map_err(|_| anyhow!("{} holds no PASERK `k4.secret` key", path.display()))?;
        Ok(Minter { secret })
    }

    /// A token of a user's [`DEVICE`].
    pub(crate) fn mint(&self, user: &str) -> anyhow::Result<String> {
        let mut claims = Claims::new_expires_in(&TTL).context("claim `exp`")?;
        // A server whose clock is a second behind would refuse over these.
        claims.remove_claim("iat");
        claims.remove_claim("nbf");
        claims.add_additional("user", user).context("claim `user`")?;
        claims.add_additional("device", DEVICE).context("claim `device`")?;
        claims.add_additional("epoch", EPOCH).context("claim `epoch`")?;
        pasetors::public::sign(&self.secret, &claims, None, None).context("sign a token")
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use pasetors::Public;
    use pasetors::keys::{AsymmetricKeyPair, Generate};
    use pasetors::paserk::FormatAsPaserk;
    use pasetors::token::UntrustedToken;
    use pasetors::version4::PublicToken;

    #[test]
    fn a_token_says_what_the_server_reads() {
        let data = tempfile::tempdir().unwrap();
        let pair = AsymmetricKeyPair::<V4>::generate().unwrap();
        let mut text = String::new();
        pair.secret.fmt(&mut text).unwrap();
        std::fs::create_dir(data.path().join("keys")).unwrap();
        std::fs::write(data.path().join("keys/dev.secret"), text + "\n").unwrap();
        let token = Minter::load(data.path()).unwrap().mint("bench-00001").unwrap();
        let untrusted = UntrustedToken::<Public, V4>::try_from(&token).unwrap();
        let trusted = PublicToken::verify(&pair.public, &untrusted, None, None).unwrap();
        let claims: serde_json::Map<String, serde_json::Value> = serde_json::from_str(trusted.payload()).unwrap();
        assert_eq!(
            (&claims["user"], &claims["device"], &claims["epoch"]),
            (&"bench-00001".into(), &1.into(), &1.into())
        );
        assert!(claims.len() == 4 && claims.contains_key("exp"));
    }

    #[test]
    fn a_directory_without_keys_is_named() {
        let data = tempfile::tempdir().unwrap();
        let error = format!("{:#}", Minter::load(data.path()).err().unwrap());
        assert!(error.contains("serve --dev"), "{error}");
    }
}

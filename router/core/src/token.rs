//! Tokens: PASETO v4.public with the claims `user`, `device`, `epoch` and `exp`. Verified once a login, before any state
//! is made of it.

use pasetors::Public;
use pasetors::keys::AsymmetricPublicKey;
use pasetors::token::UntrustedToken;
use pasetors::version4::{PublicToken, V4};
use serde::Deserialize;
use whimbrel_wire::Code;

use crate::ids::{DeviceId, UserId};

/// What a valid token says.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Claims {
    /// Whose it is.
    pub user: UserId,
    /// For which installation.
    pub device: DeviceId,
    /// Rises when tokens of the device are revoked.
    pub epoch: u32,
}

#[derive(Deserialize)]
struct Payload<'a> {
    user: &'a str,
    device: u32,
    epoch: u32,
    exp: &'a str,
}

/// The claims of a token that is signed by `key` and has not expired at `wall_ms`.
pub fn verify(token: &str, key: &[u8; 32], wall_ms: u64) -> Result<Claims, Code> {
    let key = AsymmetricPublicKey::<V4>::from(key).map_err(|_| Code::BadToken)?;
    let untrusted = UntrustedToken::<Public, V4>::try_from(token).map_err(|_| Code::BadToken)?;
    // The signature only: the library's rules for claims read the machine's clock.
    let trusted = PublicToken::verify(&key, &untrusted, None, None).map_err(|_| Code::BadToken)?;
    let payload: Payload<'_> = serde_json::from_str(trusted.payload()).map_err(|_| Code::BadToken)?;
    let expires: jiff::Timestamp = payload.exp.parse().map_err(|_| Code::BadToken)?;
    if i128::from(expires.as_millisecond()) <= i128::from(wall_ms) {
        return Err(Code::ExpiredToken);
    }
    let user = UserId::new(payload.user).ok_or(Code::BadUser)?;
    Ok(Claims { user, device: DeviceId(payload.device), epoch: payload.epoch })
}

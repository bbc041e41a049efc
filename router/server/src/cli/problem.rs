//! What a refusal means to who typed the command, and what to do about it.

use whimbrel_wire::Code;

use crate::cli::access::Access;
use crate::cli::args::Target;
use crate::cli::link::Refusal;
use crate::cli::output::{Failure, printable};

/// The reason in words: the number's own, and what the server adds.
pub(super) fn reason(refusal: &Refusal) -> String {
    let reason = match refusal.code {
        Some(Code::ShuttingDown) => "it is shutting down".to_owned(),
        Some(code) => code.text().trim_end_matches('.').to_owned(),
        None => format!("the server refused with number {}, which this version does not know", refusal.number),
    };
    match refusal.detail.trim() {
        "" => reason,
        detail => format!("{reason} ({})", printable(detail)),
    }
}

/// The server did not let this device in, or does not want it any more.
pub(super) fn login(access: &Access, refusal: &Refusal) -> anyhow::Error {
    let who = format!("{}'s device {}", access.user, access.device);
    let failure = match refusal.code {
        Some(Code::BadToken) => {
            Failure::with_remedy(format!("{} does not accept the token", access.server), access.token_remedy())
        }
        Some(Code::ExpiredToken) => {
            Failure::with_remedy(format!("the token of {who} has expired"), access.expired_remedy())
        }
        Some(Code::StaleToken) => Failure::with_remedy(
            format!("the token of {who} is of an earlier epoch than one that this device has logged in with"),
            access.token_remedy(),
        ),
        Some(Code::WrongDevice) => Failure::with_remedy(
            match refusal.detail.as_str() {
                "" => format!("the token is not of {who}"),
                detail => format!("the token is not of {who}: {}", printable(detail)),
            },
            "name the user and device that it was made for: --as USER --device N",
        ),
        Some(Code::Replaced) => Failure::with_remedy(
            format!("{who} has logged in from somewhere else, and one login at a time counts"),
            format!("end that one, or be another device: --device {}", access.device.saturating_add(1)),
        ),
        Some(Code::UnsupportedVersion) => Failure::with_remedy(
            format!("{} speaks another version: {}", access.server, reason(refusal)),
            "use the whimbrel of that server",
        ),
        _ => Failure::new(format!("{} refused {who}: {}", access.server, reason(refusal))),
    };
    failure.into()
}

/// There is no such chat for this user.
pub(super) fn chat(access: &Access, target: &Target, refusal: &Refusal) -> Failure {
    match (refusal.code, target) {
        (Some(Code::UserUnknown), Target::User(user)) => Failure::with_remedy(
            format!("{user} has no device yet, so there is nobody to keep a message for"),
            format!("a first login makes one: {}", access.register_command(user)),
        ),
        (Some(Code::ChatUnknown), Target::Chat(id)) => Failure::with_remedy(
            format!("there is no chat {id}, or {} is no member of it", access.user),
            "`whimbrel group create` prints the id of the group it makes",
        ),
        _ => Failure::new(format!("{target}: {}", reason(refusal))),
    }
}

/// Nothing answers where the server should be.
pub(super) fn unreachable(access: &Access, why: &str) -> Failure {
    Failure::with_remedy(
        format!("no server at {}: {why}", access.server),
        format!("start one: {}; or name another: --server ADDR or WHIMBREL_SERVER", access.serve_command()),
    )
}

/// The server took the question and did not answer in time.
pub(super) fn timed_out(what: &str, timeout: std::time::Duration) -> Failure {
    Failure::with_remedy(format!("{what} within {timeout:?}"), "give it more time: --timeout TIME")
}

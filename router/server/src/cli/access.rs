//! How a client gets in: who it is, with which token, and where its server is.

use std::net::{SocketAddr, ToSocketAddrs};
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::Context;

use crate::cli::Identity;
use crate::cli::output::Failure;
use crate::cli::state::DeviceState;
use crate::token::{self, DEV_EPOCH, Grant};

/// A token that a client makes for itself lasts longer than any process that is likely to use it.
const SELF_MADE_TTL: Duration = Duration::from_secs(30 * 86_400);

/// The variable that holds a token.
const TOKEN_VARIABLE: &str = "WHIMBREL_TOKEN";

/// Where a token came from: what to do about one that is refused depends on it.
#[derive(Clone, Debug)]
pub(super) enum TokenSource {
    /// A file that was named.
    File(PathBuf),
    /// The environment.
    Environment,
    /// The development key of this data directory.
    DevKey(PathBuf),
}

/// Who a client is, and what it needs to log in.
#[derive(Clone, Debug)]
pub(super) struct Access {
    pub(super) user: String,
    pub(super) device: u32,
    pub(super) server: String,
    pub(super) data: PathBuf,
    pub(super) token: String,
    pub(super) source: TokenSource,
}

impl Access {
    /// Reads or makes the token.
    pub(super) fn of(identity: &Identity) -> anyhow::Result<Access> {
        let (token, source) = find_token(identity)?;
        Ok(Access {
            user: identity.user.clone(),
            device: identity.device,
            server: identity.server.clone(),
            data: identity.data.clone(),
            token,
            source,
        })
    }

    /// What the device remembers.
    pub(super) fn open_state(&self, identity: &Identity) -> anyhow::Result<DeviceState> {
        let dir = identity.state.clone().unwrap_or_else(|| self.data.join("clients"));
        DeviceState::open(&dir, &self.user, self.device)
    }

    /// The addresses behind the name of the server.
    pub(super) fn addresses(&self) -> anyhow::Result<Vec<SocketAddr>> {
        let found: Vec<SocketAddr> =
            self.server.to_socket_addrs().map_err(|error| self.bad_address(&error.to_string()))?.collect();
        if found.is_empty() {
            return Err(self.bad_address("no address"));
        }
        Ok(found)
    }

    fn bad_address(&self, why: &str) -> anyhow::Error {
        Failure::with_remedy(
            format!("no server address in `{}`: {why}", self.server),
            "name it as HOST:PORT with --server or WHIMBREL_SERVER, like 127.0.0.1:7400",
        )
        .into()
    }

    /// The command that starts the server this client looks for.
    pub(super) fn serve_command(&self) -> String {
        let listen = match self.server.as_str() {
            crate::cli::args::SERVER => String::new(),
            other => format!(" --listen {other}"),
        };
        format!("{} serve --dev{}{listen}", program(), data_option(&self.data))
    }

    /// The command that makes a device of `user` exist.
    pub(super) fn register_command(&self, user: &str) -> String {
        format!("{} recv --as {user} --count 0{}{}", program(), data_option(&self.data), self.server_option())
    }

    /// The command by which `user` talks to this one.
    pub(super) fn chat_command(&self, user: &str) -> String {
        let (data, server) = (data_option(&self.data), self.server_option());
        format!("{} chat --as {user} --to {}{data}{server}", program(), self.user)
    }

    fn server_option(&self) -> String {
        match self.server.as_str() {
            crate::cli::args::SERVER => String::new(),
            other => format!(" --server {other}"),
        }
    }

    /// What to do about a token that the server does not take.
    pub(super) fn token_remedy(&self) -> String {
        match &self.source {
            TokenSource::DevKey(data) => format!(
                "the token was made with the key in {}; is that the data directory of the server at {}? Name it with --data or WHIMBREL_DATA",
                data.display(),
                self.server
            ),
            TokenSource::File(path) => {
                format!(
                    "get a new token for {} and put it into {}; where the server is yours: {}",
                    self.user,
                    path.display(),
                    self.token_command()
                )
            }
            TokenSource::Environment => {
                format!(
                    "get a new token for {} and put it into {TOKEN_VARIABLE}; where the server is yours: {}",
                    self.user,
                    self.token_command()
                )
            }
        }
    }

    /// What to do about a token whose time is over.
    pub(super) fn expired_remedy(&self) -> String {
        match &self.source {
            TokenSource::DevKey(_) => {
                "it was made just now for 30 days: compare the clocks of this machine and the server".to_owned()
            }
            TokenSource::File(_) | TokenSource::Environment => self.token_remedy(),
        }
    }

    fn token_command(&self) -> String {
        let device = if self.device == 1 { String::new() } else { format!(" --device {}", self.device) };
        format!("{} token --user {}{device}{}", program(), self.user, data_option(&self.data))
    }
}

/// This program as it was called, so that a command that is proposed can be called too: it need not be in `PATH`.
fn program() -> String {
    let called = std::env::args_os().next().and_then(|name| name.into_string().ok());
    let usable =
        |name: &String| name.contains('/') && !name.contains(|c: char| c.is_whitespace() || "'\"\\$`".contains(c));
    called.filter(usable).unwrap_or_else(|| "whimbrel".to_owned())
}

/// The option that names `data`, where it is not the default.
pub(super) fn data_option(data: &Path) -> String {
    match data.to_str() {
        Some(crate::cli::args::DATA) => String::new(),
        _ => format!(" --data {}", data.display()),
    }
}

/// The failure of finding no development key.
pub(super) fn no_dev_key(data: &Path, otherwise: &str) -> anyhow::Error {
    Failure::with_remedy(
        format!("no development key in {}", data.display()),
        format!(
            "start the server once with `{} serve --dev{}`, or name its data directory with --data{otherwise}",
            program(),
            data_option(data)
        ),
    )
    .into()
}

fn find_token(identity: &Identity) -> anyhow::Result<(String, TokenSource)> {
    if let Some(path) = &identity.token {
        let text = std::fs::read_to_string(path).with_context(|| format!("read the token in {}", path.display()))?;
        return Ok((checked(&text, &path.display().to_string())?, TokenSource::File(path.clone())));
    }
    if let Some(text) = std::env::var_os(TOKEN_VARIABLE).filter(|text| !text.is_empty()) {
        return Ok((checked(&text.to_string_lossy(), TOKEN_VARIABLE)?, TokenSource::Environment));
    }
    let Some(keys) = token::load_dev_keys(&identity.data)? else {
        return Err(no_dev_key(
            &identity.data,
            &format!("; with another server's token: --token FILE or {TOKEN_VARIABLE}"),
        ));
    };
    let grant = Grant { user: &identity.user, device: identity.device, epoch: DEV_EPOCH, ttl: SELF_MADE_TTL };
    Ok((keys.mint(&grant)?.token, TokenSource::DevKey(identity.data.clone())))
}

/// A text that may be a token; whether it counts, the server decides.
fn checked(text: &str, origin: &str) -> anyhow::Result<String> {
    let token = text.trim();
    if !token.starts_with("v4.public.") || token.len() > whimbrel_wire::limits::TOKEN_MAX_BYTES {
        return Err(Failure::with_remedy(
            format!("{origin} holds no token"),
            "a token is one line that begins with `v4.public.`, as `whimbrel token` prints it",
        )
        .into());
    }
    Ok(token.to_owned())
}

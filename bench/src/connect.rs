//! Connecting sockets, and the descriptors that it takes.

use std::io;
use std::net::{SocketAddr, TcpStream};
use std::os::fd::OwnedFd;

use anyhow::{Context, bail};
use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};

/// A connected socket that sends at once.
pub(crate) fn connect(address: SocketAddr) -> anyhow::Result<OwnedFd> {
    let stream = TcpStream::connect(address).map_err(|error| explain(address, error))?;
    stream.set_nodelay(true).context("set TCP_NODELAY")?;
    Ok(OwnedFd::from(stream))
}

fn explain(address: SocketAddr, error: io::Error) -> anyhow::Error {
    let remedy = match error.raw_os_error() {
        Some(libc::ECONNREFUSED) => "nothing listens there: start `whimbrel serve --dev`, or use --spawn",
        Some(libc::EMFILE | libc::ENFILE) => "raise the limit of open files: `ulimit -n`",
        Some(libc::EADDRNOTAVAIL) => {
            "no free ports are left: wait a minute, or widen net.ipv4.ip_local_port_range with sysctl"
        }
        _ => "is the server alive?",
    };
    anyhow::anyhow!("cannot connect to {address}: {error}; {remedy}")
}

/// Raises the limit of open descriptors as far as it goes, and says if `needed` is more.
pub(crate) fn allow_descriptors(needed: u64) -> anyhow::Result<()> {
    let limit = getrlimit(Resource::Nofile);
    let maximum = limit.maximum.unwrap_or(u64::MAX);
    if limit.current.is_some_and(|current| current < maximum) {
        setrlimit(Resource::Nofile, Rlimit { current: limit.maximum, maximum: limit.maximum })
            .context("raise the limit of open files to its maximum")?;
    }
    if maximum < needed {
        bail!(
            "{needed} descriptors are needed and this process may have {maximum}: raise the limit of open files \
             (`ulimit -Hn`, or LimitNOFILE= of the service), or use a scenario with fewer connections"
        );
    }
    Ok(())
}

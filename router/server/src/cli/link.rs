//! One device's connection as the commands see it: events out, requests in, and a socket behind that is made again when it
//! breaks. The protocol is `whimbrel_client::Session`'s; here are the socket, the clock and the wait for both of them and for
//! whoever else may wake it.

use std::io::{self, Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::os::fd::AsFd;
use std::os::unix::net::UnixStream;
use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::Context;
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use socket2::{Domain, Socket, Type};
use whimbrel_client::Session;

use crate::cli::access::Access;

/// A connection attempt that takes longer is given up.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(5);

/// Wait before the first attempt to connect again; doubled each time up to the last.
const RETRY_FIRST: Duration = Duration::from_millis(50);
const RETRY_LAST: Duration = Duration::from_secs(2);

/// Bytes read from the socket at once.
const READ_BYTES: usize = 64 * 1024;

/// Wakes a [`Link::wait`] from another thread.
#[derive(Clone)]
pub(crate) struct Waker(Arc<UnixStream>);

impl Waker {
    pub(crate) fn wake(&self) {
        // A full pipe wakes as well as one more byte would.
        let _ = (&*self.0).write(&[1]);
    }
}

enum Socket_ {
    /// None until `retry_at`.
    Down { retry_at: Instant },
    /// The handshake is under way.
    Connecting { socket: TcpStream, since: Instant },
    Up { socket: TcpStream },
}

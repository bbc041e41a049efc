//! TCP_INFO of a socket, for which no library here has a safe call.

use std::io;
use std::mem;
use std::os::fd::{AsFd, AsRawFd};

/// The congestion window in packets.
pub(super) fn congestion_window(socket: &impl AsFd) -> io::Result<u32> {
    let mut length = mem::size_of::<libc::tcp_info>() as libc::socklen_t;
    // SAFETY: all-zero bytes are a valid `tcp_info`, which has numbers only. The kernel writes at most `length` bytes to it, and
    // both pointers are of locals that outlive the call; the descriptor is borrowed, so it is open.
    let (result, info) = unsafe {
        let mut info: libc::tcp_info = mem::zeroed();
        let to = (&raw mut info).cast();
        let fd = socket.as_fd().as_raw_fd();
        (libc::getsockopt(fd, libc::IPPROTO_TCP, libc::TCP_INFO, to, &raw mut length), info)
    };
    if result == 0 { Ok(info.tcpi_snd_cwnd) } else { Err(io::Error::last_os_error()) }
}

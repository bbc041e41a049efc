//! Probes of TCP over loopback, in the network namespace that this runs in.

#![forbid(unsafe_code)]

use std::io::{self, Read, Write};
use std::net::{Ipv4Addr, SocketAddr, TcpListener, TcpStream};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, ensure};
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::process::{Resource, getrlimit};
use socket2::{Domain, Socket, Type};

use super::tcp_info::congestion_window;

const CROWD: usize = 6_000;
const WAITING: usize = 512;
const OTHER_FILES: u64 = 64;
const PIECE: usize = 64 << 10;
const WARM_UP_BYTES: usize = 16 << 20;
const SPEED_BYTES: usize = 512 << 20;
const IDLE: Duration = Duration::from_secs(1);

/// What a socket may hold at most before a probe gives up waiting for it to be full.
const TAKEN_MAX: usize = 256 << 20;

fn listener(port: u16) -> anyhow::Result<(Socket, SocketAddr)> {
    let socket = Socket::new(Domain::IPV4, Type::STREAM, None)?;
    socket.set_reuse_port(true)?;
    socket.bind(&SocketAddr::from((Ipv4Addr::LOCALHOST, port)).into()).context("bind on loopback: is `lo` up?")?;
    socket.listen(i32::from(u16::MAX))?;
    let address = socket.local_addr()?.as_socket().context("an address")?;
    Ok((socket, address))
}

/// A connection that is being made; on loopback it is made, or dropped, when this returns.
fn connecting(address: SocketAddr) -> anyhow::Result<Socket> {
    let socket = Socket::new(Domain::IPV4, Type::STREAM, None)?;
    socket.set_nonblocking(true)?;
    match socket.connect(&address.into()) {
        Ok(()) => Ok(socket),
        Err(error) if error.raw_os_error() == Some(libc::EINPROGRESS) => Ok(socket),
        Err(error) => Err(error).context("connect over loopback"),
    }
}

fn is_ready(socket: &Socket, events: PollFlags) -> anyhow::Result<bool> {
    let mut polled = [PollFd::new(socket, events)];
    poll(&mut polled, Some(&Timespec { tv_sec: 0, tv_nsec: 0 }))?;
    Ok(polled[0].revents().contains(events))
}

/// Many connect, nobody accepts: how many are established.
pub(super) fn established_unaccepted() -> anyhow::Result<f64> {
    let limit = getrlimit(Resource::Nofile).current.unwrap_or(u64::MAX);
    ensure!(CROWD as u64 + OTHER_FILES <= limit, "needs {CROWD} descriptors: ulimit -n");
    let (_listener, address) = listener(0)?;
    let mut established = 0;
    let mut held = Vec::with_capacity(CROWD);
    for _ in 0..CROWD {
        let socket = connecting(address)?;
        established += usize::from(is_ready(&socket, PollFlags::OUT)?);
        held.push(socket);
    }
    Ok(established as f64)
}

/// Connections wait at two listeners of one port, one of them closes: how many can the other one accept.
pub(super) fn left_after_close() -> anyhow::Result<f64> {
    let (closing, address) = listener(0)?;
    let (staying, _) = listener(address.port())?;
    staying.set_nonblocking(true)?;
    let clients: Vec<Socket> = (0..WAITING).map(|_| connecting(address)).collect::<Result<_, _>>()?;
    drop(closing);
    let mut accepted = Vec::new();
    loop {
        match staying.accept() {
            Ok(connection) => accepted.push(connection),
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => break,
            Err(error) => return Err(error).context("accept"),
        }
    }
    drop(clients);
    Ok(accepted.len() as f64)
}

fn pair() -> anyhow::Result<(TcpStream, TcpStream)> {
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).context("bind on loopback: is `lo` up?")?;
    let client = TcpStream::connect(listener.local_addr()?)?;
    Ok((client, listener.accept()?.0))
}

/// Sends so many bytes; the other end reads them all.
fn send(from: &mut TcpStream, to: &TcpStream, bytes: usize) -> anyhow::Result<()> {
    let mut to = to.try_clone()?;
    let reader = thread::spawn(move || -> io::Result<()> {
        let mut buffer = vec![0; PIECE];
        let mut left = bytes;
        while left > 0 {
            let piece = left.min(PIECE);
            to.read_exact(&mut buffer[..piece])?;
            left -= piece;
        }
        Ok(())
    });
    let buffer = vec![0; PIECE];
    let mut left = bytes;
    while left > 0 {
        let piece = left.min(PIECE);
        from.write_all(&buffer[..piece])?;
        left -= piece;
    }
    reader.join().map_err(|_| anyhow::anyhow!("the reader panicked"))??;
    Ok(())
}

pub(super) fn window_after_idle() -> anyhow::Result<f64> {
    let (mut client, server) = pair()?;
    send(&mut client, &server, WARM_UP_BYTES)?;
    thread::sleep(IDLE);
    send(&mut client, &server, 1)?;
    Ok(f64::from(congestion_window(&client)?))
}

pub(super) fn taken_while_writable() -> anyhow::Result<f64> {
    let (client, server) = pair()?;
    let client = Socket::from(client);
    client.set_nonblocking(true)?;
    let buffer = vec![0; PIECE];
    let mut taken = 0;
    while is_ready(&client, PollFlags::OUT)? && taken < TAKEN_MAX {
        match client.send(&buffer) {
            Ok(bytes) => taken += bytes,
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => break,
            Err(error) => return Err(error).context("send"),
        }
    }
    drop(server);
    Ok(taken as f64)
}

pub(super) fn speed() -> anyhow::Result<f64> {
    let (mut client, server) = pair()?;
    send(&mut client, &server, WARM_UP_BYTES)?;
    let begun = Instant::now();
    send(&mut client, &server, SPEED_BYTES)?;
    Ok(SPEED_BYTES as f64 / 1e6 / begun.elapsed().as_secs_f64())
}

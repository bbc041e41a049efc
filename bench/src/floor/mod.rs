//! What the sockets alone cost, measured in the same run as the server: the denominator of `ratio_to_floor`.

use std::io::{self, Write};
use std::net::{SocketAddr, TcpListener};
use std::time::Duration;

use anyhow::Context;

use crate::measure::{Sample, Window, window};
use crate::process::{Server, ServerKind};
use crate::stats::median;

mod glommio;
mod load;
mod server;

pub(crate) use load::FloorLoad;

/// Bytes of the frames of a message with 128 bytes of payload; a test compares them with the wire's.
pub(crate) const SEND_BYTES: usize = 208;
pub(crate) const SENT_BYTES: usize = 96;
pub(crate) const DELIVER_BYTES: usize = 232;
pub(crate) const ACK_BYTES: usize = 40;
/// An echo as it is usually measured.
pub(crate) const ECHO_BYTES: usize = 128;

/// A floor whose echo costs more than this share of glommio's is no floor.
pub(crate) const ECHO_RATIO_MAX: f64 = 0.85;

/// The part of a floor server's process: binds, says where, serves until it is killed.
pub(crate) fn serve(kind: ServerKind, cpu: usize, slots: u32) -> anyhow::Result<()> {
    crate::process::pin(cpu)?;
    let work = match kind {
        ServerKind::Glommio => return glommio::serve(cpu, ready),
        ServerKind::Pairs => server::Work::Pairs,
        ServerKind::Echo => server::Work::Echo,
    };
    let listener = TcpListener::bind("127.0.0.1:0").context("listen on loopback")?;
    let socket = socket2::SockRef::from(&listener);
    // Inherited by what is accepted.
    socket.set_tcp_nodelay(true).context("set TCP_NODELAY")?;
    socket.listen(4096).context("listen on loopback")?;
    ready(listener.local_addr().context("the address that was bound")?)?;
    server::serve(listener, slots, work).context("the floor's io_uring")
}

fn ready(address: SocketAddr) -> io::Result<()> {
    let mut out = io::stdout().lock();
    writeln!(out, "ready {address}")?;
    out.flush()
}

/// The floor's server and its load, kept for a whole run.
pub(crate) struct Floor {
    server: Server,
    load: FloorLoad,
}

impl Floor {
    /// Started and connected.
    pub(crate) fn start(cpu: usize, connections: u32) -> anyhow::Result<Floor> {
        let server = Server::floor(ServerKind::Pairs, cpu, connections)?;
        let load = FloorLoad::pairs(server.address(), connections)?;
        Ok(Floor { server, load })
    }

    /// One window.
    pub(crate) fn round(&mut self, length: Window) -> anyhow::Result<Sample> {
        window(&mut self.load, self.server.clock(), length)
    }
}

/// CPU for one echo: of the floor's ring, and of glommio's `TcpStream`. Medians of rounds that alternate.
#[derive(Clone, Copy, Debug)]
pub(crate) struct EchoCheck {
    pub(crate) floor_ns: f64,
    pub(crate) glommio_ns: f64,
}

impl EchoCheck {
    /// The floor's over glommio's.
    pub(crate) fn ratio(&self) -> f64 {
        self.floor_ns / self.glommio_ns
    }

    /// An error if the floor is too slow to be one.
    pub(crate) fn require(&self) -> anyhow::Result<()> {
        if self.ratio() <= ECHO_RATIO_MAX {
            return Ok(());
        }
        anyhow::bail!(
            "the floor is slow here and would flatter the server: an echo costs {:.0} ns on its ring and {:.0} ns on glommio's \
             TcpStream, {:.2} of it where at most {ECHO_RATIO_MAX} is accepted. Measure again on a quiet machine",
            self.floor_ns,
            self.glommio_ns,
            self.ratio()
        )
    }
}

/// Measures both echoes on `connections`.
pub(crate) fn check_echo(cpu: usize, connections: u32, rounds: u32) -> anyhow::Result<EchoCheck> {
    let length = Window { warm_up: Duration::from_millis(150), length: Duration::from_millis(500) };
    let mut floor = EchoSide::start(ServerKind::Echo, cpu, connections)?;
    let mut glommio = EchoSide::start(ServerKind::Glommio, cpu, connections)?;
    for _ in 0..rounds {
        floor.round(length)?;
        glommio.round(length)?;
    }
    Ok(EchoCheck { floor_ns: median(&floor.cpu_ns_each), glommio_ns: median(&glommio.cpu_ns_each) })
}

/// One of the two echoes.
struct EchoSide {
    server: Server,
    load: FloorLoad,
    cpu_ns_each: Vec<f64>,
}

impl EchoSide {
    fn start(kind: ServerKind, cpu: usize, connections: u32) -> anyhow::Result<EchoSide> {
        let server = Server::floor(kind, cpu, connections)?;
        let load = FloorLoad::echo(server.address(), connections)?;
        Ok(EchoSide { server, load, cpu_ns_each: Vec::new() })
    }

    fn round(&mut self, length: Window) -> anyhow::Result<()> {
        let sample = window(&mut self.load, self.server.clock(), length)?;
        self.cpu_ns_each.push(sample.cpu_ns_each());
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use whimbrel_wire::{Builder, DeliverFields, Payload, SendFields, SentFields};

    #[test]
    fn the_floor_moves_as_many_bytes_as_the_frames_have() {
        let mut b = Builder::default();
        let (chat, payload) = (u128::MAX / 3, [0; 128]);
        let size = |write: &mut dyn FnMut(&mut Builder, &mut Vec<u8>), b: &mut Builder| {
            let mut out = Vec::new();
            write(b, &mut out);
            out.len()
        };
        let send = SendFields { correlation: 9, chat, client_seq: 9, prev: 8 };
        assert_eq!(size(&mut |b, out| b.send(out, &send, &payload), &mut b), SEND_BYTES);
        let sent = SentFields {
            correlation: 9,
            chat,
            client_seq: 9,
            chat_seq: 10,
            time_ms: 1,
            durability: whimbrel_wire::fb::Durability::OneNode,
            ..SentFields::default()
        };
        assert_eq!(size(&mut |b, out| b.sent(out, &sent), &mut b), SENT_BYTES);
        let deliver = DeliverFields {
            inbox_seq: 9,
            chat,
            chat_seq: 10,
            time_ms: 1,
            sender: "bench-00001",
            sender_device: 1,
            ..DeliverFields::default()
        };
        assert_eq!(size(&mut |b, out| b.deliver(out, &deliver, &payload, Payload::Inline), &mut b), DELIVER_BYTES);
        assert_eq!(size(&mut |b, out| b.ack(out, 9), &mut b), ACK_BYTES);
    }
}

//! What the sockets alone cost, measured in the same run as the server: the denominator of `ratio_to_floor`.

use std::fs::File;
use std::io::{self, Write};
use std::net::{SocketAddr, TcpListener};
use std::path::Path;
use std::time::Duration;

use anyhow::Context;

use crate::disk::file_of_zeros;
use crate::measure::{Sample, Window, window};
use crate::process::{Server, ServerKind};
use crate::stats::{Times, median};

mod durable;
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
pub(crate) fn serve(kind: ServerKind, cpu: usize, slots: u32, log: Option<&Path>) -> anyhow::Result<()> {
    crate::process::pin(cpu)?;
    let log = log.map(file_of_zeros).transpose()?;
    let work = match (kind, log) {
        (ServerKind::Glommio, _) => return glommio::serve(cpu, ready),
        (ServerKind::Durable, Some(log)) => Work::Durable(log),
        (ServerKind::Durable, None) => anyhow::bail!("a durable server needs --log"),
        (ServerKind::Pairs, _) => Work::Sockets(server::Work::Pairs),
        (ServerKind::Echo, _) => Work::Sockets(server::Work::Echo),
    };
    let listener = TcpListener::bind("127.0.0.1:0").context("listen on loopback")?;
    let socket = socket2::SockRef::from(&listener);
    // Inherited by what is accepted.
    socket.set_tcp_nodelay(true).context("set TCP_NODELAY")?;
    socket.listen(4096).context("listen on loopback")?;
    ready(listener.local_addr().context("the address that was bound")?)?;
    match work {
        Work::Sockets(work) => server::serve(listener, slots, work),
        Work::Durable(log) => durable::serve(listener, slots, log),
    }
    .context("the floor's io_uring")
}

enum Work {
    Sockets(server::Work),
    Durable(File),
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

/// The raw server with a disk and its load, kept for a whole run. It is loaded at an even pace.
pub(crate) struct DurableFloor {
    server: Server,
    load: FloorLoad,
}

impl DurableFloor {
    /// Started and connected; it writes to a file in `directory`.
    pub(crate) fn start(cpu: usize, connections: u32, directory: &Path) -> anyhow::Result<DurableFloor> {
        let server = Server::durable(cpu, connections, &directory.join("durable-floor"))?;
        let load = FloorLoad::pairs(server.address(), connections)?;
        Ok(DurableFloor { server, load })
    }

    /// One window with so many messages a second: and the times to their answers.
    pub(crate) fn round(&mut self, length: Window, per_s: f64) -> anyhow::Result<(Sample, Times)> {
        self.load.set_pace(per_s);
        let sample = window(&mut self.load, self.server.clock(), length)?;
        Ok((sample, self.load.take_answers()))
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
    use crate::measure::Load;
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

    #[test]
    fn the_durable_floor_answers_what_it_has_written_and_nothing_else() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("log");
        let log = file_of_zeros(&path).unwrap();
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let address = listener.local_addr().unwrap();
        std::thread::spawn(move || durable::serve(listener, 8, log));
        let mut load = FloorLoad::pairs(address, 8).unwrap();
        // More than are done: each pair has one in flight, the others wait for it.
        load.set_pace(20_000.0);
        load.measured(true);
        load.resume();
        while load.done() < 100 {
            load.turn().unwrap();
        }
        load.pause();
        while load.outstanding() > 0 {
            load.turn().unwrap();
        }
        let answers = load.take_answers();
        assert_eq!(answers.count(), load.done());
        let written = std::fs::read(&path).unwrap().iter().filter(|byte| **byte == b'm').count() as u64;
        assert_eq!(written, load.done() * SEND_BYTES as u64);
    }
}

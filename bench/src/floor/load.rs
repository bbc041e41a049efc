//! The load on the floor's servers, one message in flight on each pair (or each connection of an echo).

use std::net::SocketAddr;
use std::time::Duration;

use anyhow::{Context, bail};

use crate::connect::connect;
use crate::floor::{ACK_BYTES, DELIVER_BYTES, ECHO_BYTES, SEND_BYTES, SENT_BYTES};
use crate::measure::Load;
use crate::ring::{BufferShape, Event, Ring, Waits};

static MESSAGE: [u8; SEND_BYTES] = [b'm'; SEND_BYTES];
static ACK: [u8; ACK_BYTES] = [b'k'; ACK_BYTES];
static ECHO: [u8; ECHO_BYTES] = [b'e'; ECHO_BYTES];

const BUFFERS: BufferShape = BufferShape { count: 4096, size_bytes: 512 };

/// What a message is made of, for the load.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Shape {
    /// Even connections send; it is done when the answer came there and the message at the odd one.
    Pairs,
    /// Every connection sends, and gets the same back.
    Echo,
}

/// See the [module](self).
pub(crate) struct FloorLoad {
    ring: Ring,
    shape: Shape,
    /// Bytes still to come, by connection; 0 when what was expected has come.
    missing: Vec<u32>,
    done: u64,
    outstanding: u64,
    sending: bool,
}

impl FloorLoad {
    /// `connections` (even) in pairs.
    pub(crate) fn pairs(address: SocketAddr, connections: u32) -> anyhow::Result<FloorLoad> {
        Self::new(address, connections & !1, Shape::Pairs)
    }

    /// An echo on `connections`.
    pub(crate) fn echo(address: SocketAddr, connections: u32) -> anyhow::Result<FloorLoad> {
        Self::new(address, connections, Shape::Echo)
    }

    fn new(address: SocketAddr, connections: u32, shape: Shape) -> anyhow::Result<FloorLoad> {
        let mut ring = Ring::new(connections, BUFFERS).context("make an io_uring")?;
        ring.wait_so(Waits::Awake);
        // One after the other: the server numbers them in the order in which it accepts.
        for slot in 0..connections {
            ring.adopt(slot, connect(address)?).context("hand a socket to io_uring")?;
        }
        let missing = vec![0; connections as usize];
        Ok(FloorLoad { ring, shape, missing, done: 0, outstanding: 0, sending: false })
    }

    #[inline]
    fn start(&mut self, slot: u32) {
        self.outstanding += 1;
        match self.shape {
            Shape::Pairs => {
                self.missing[slot as usize] = SENT_BYTES as u32;
                self.missing[slot as usize + 1] = DELIVER_BYTES as u32;
                self.ring.send_static(slot, &MESSAGE);
            }
            Shape::Echo => {
                self.missing[slot as usize] = ECHO_BYTES as u32;
                self.ring.send_static(slot, &ECHO);
            }
        }
    }

    #[inline]
    fn received(&mut self, slot: u32, bytes: u32) -> anyhow::Result<()> {
        let missing = &mut self.missing[slot as usize];
        let Some(left) = missing.checked_sub(bytes) else {
            bail!("the floor's server sent {bytes} bytes where {missing} were due");
        };
        *missing = left;
        if left > 0 {
            return Ok(());
        }
        let first = match self.shape {
            Shape::Pairs => {
                if slot % 2 == 1 {
                    self.ring.send_static(slot, &ACK);
                }
                if self.missing[(slot ^ 1) as usize] > 0 {
                    return Ok(());
                }
                slot & !1
            }
            Shape::Echo => slot,
        };
        self.done += 1;
        self.outstanding -= 1;
        if self.sending {
            self.start(first);
        }
        Ok(())
    }
}

impl Load for FloorLoad {
    fn turn(&mut self) -> anyhow::Result<()> {
        self.ring.turn(Duration::from_millis(5)).context("io_uring_enter")?;
        while let Some(event) = self.ring.next() {
            match event {
                Event::Received { slot, filled } => {
                    let bytes = self.ring.bytes(&filled).len() as u32;
                    self.ring.give_back(filled);
                    self.received(slot, bytes)?;
                }
                Event::Ended { errno, .. } => {
                    bail!("the floor's server ended a connection: {}", std::io::Error::from_raw_os_error(errno));
                }
                Event::Accepted { .. } | Event::Sent { .. } => {}
            }
        }
        Ok(())
    }

    fn done(&self) -> u64 {
        self.done
    }

    fn idle(&self) -> Duration {
        self.ring.idle()
    }

    fn resume(&mut self) {
        self.sending = true;
        let step = match self.shape {
            Shape::Pairs => 2,
            Shape::Echo => 1,
        };
        for slot in (0..self.ring.slots()).step_by(step) {
            self.start(slot);
        }
    }

    fn pause(&mut self) {
        self.sending = false;
    }

    fn outstanding(&self) -> u64 {
        self.outstanding
    }
}

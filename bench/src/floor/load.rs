//! The load on the floor's servers, one message in flight on each pair (or each connection of an echo). The loop is closed, or, of
//! pairs, open: then a message's time counts from when it was due, and one that is due before the last one of its pair is done waits.

use std::collections::VecDeque;
use std::net::SocketAddr;
use std::time::{Duration, Instant};

use anyhow::{Context, bail};

use crate::connect::connect;
use crate::floor::{ACK_BYTES, DELIVER_BYTES, ECHO_BYTES, SEND_BYTES, SENT_BYTES};
use crate::measure::Load;
use crate::pace::Pace;
use crate::ring::{BufferShape, Event, Ring, Waits};
use crate::stats::Times;

static MESSAGE: [u8; SEND_BYTES] = [b'm'; SEND_BYTES];
static ACK: [u8; ACK_BYTES] = [b'k'; ACK_BYTES];
static ECHO: [u8; ECHO_BYTES] = [b'e'; ECHO_BYTES];

/// A turn waits so long for something to do at most.
const TURN: Duration = Duration::from_millis(5);

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
    /// `None` in a closed loop.
    pace: Option<Pace>,
    /// Open loop: when the message in flight on each pair was due, and those that wait for it to be done.
    sent_ns: Vec<u64>,
    due_ns: Vec<VecDeque<u64>>,
    clock: Instant,
    recording: bool,
    answers: Times,
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
        let pairs = connections as usize / 2;
        Ok(FloorLoad {
            ring,
            shape,
            missing,
            done: 0,
            outstanding: 0,
            sending: false,
            pace: None,
            sent_ns: vec![0; pairs],
            due_ns: vec![VecDeque::new(); pairs],
            clock: Instant::now(),
            recording: false,
            answers: Times::default(),
        })
    }

    /// From the next window on so many messages a second are due.
    pub(crate) fn set_pace(&mut self, per_s: f64) {
        assert!(self.shape == Shape::Pairs, "an echo has no pace");
        self.pace = Some(Pace::new(per_s));
    }

    /// Takes the times to the answers that were recorded since the last call.
    pub(crate) fn take_answers(&mut self) -> Times {
        std::mem::take(&mut self.answers)
    }

    fn now_ns(&self) -> u64 {
        self.clock.elapsed().as_nanos() as u64
    }

    /// Begins what is due, where the pair has nothing in flight.
    fn begin_due(&mut self) {
        if !self.sending || self.pace.is_none() {
            return;
        }
        let now_ns = self.now_ns();
        let pairs = self.due_ns.len() as u32;
        while let Some((pair, due_ns)) = self.pace.as_mut().and_then(|pace| pace.due(now_ns, pairs)) {
            self.due_ns[pair as usize].push_back(due_ns);
            self.outstanding += 1;
            let slot = 2 * pair;
            if self.missing[slot as usize] == 0 && self.missing[slot as usize + 1] == 0 {
                self.start_due(slot);
            }
        }
    }

    fn start_due(&mut self, slot: u32) {
        if let Some(due_ns) = self.due_ns[slot as usize / 2].pop_front() {
            self.sent_ns[slot as usize / 2] = due_ns;
            self.outstanding -= 1;
            self.start(slot);
        }
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
                } else if self.recording && self.pace.is_some() {
                    let ns = self.now_ns().saturating_sub(self.sent_ns[slot as usize / 2]);
                    self.answers.record(ns);
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
        match self.pace {
            // What was due is sent, also after the window.
            Some(_) => self.start_due(first),
            None if self.sending => self.start(first),
            None => {}
        }
        Ok(())
    }
}

impl Load for FloorLoad {
    fn turn(&mut self) -> anyhow::Result<()> {
        self.begin_due();
        let pace = self.pace.as_ref().filter(|_| self.sending);
        let wait = pace.map_or(TURN, |pace| pace.until_due(self.now_ns()).min(TURN));
        self.ring.turn(wait).context("io_uring_enter")?;
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
                Event::Accepted { .. } | Event::Sent { .. } | Event::Written { .. } => {}
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
        let now_ns = self.now_ns();
        if let Some(pace) = &mut self.pace {
            pace.resume(now_ns);
            return;
        }
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

    fn measured(&mut self, on: bool) {
        self.recording = on;
    }
}

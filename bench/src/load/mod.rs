//! The load: pairs of users on one thread and one ring, in a closed loop, or an open one. A message is done when its `Sent` came to the
//! sender and it was delivered to and acknowledged by the receiver; in a closed loop each sender keeps `in_flight` of them begun.
//!
//! Every frame is checked as a careful client would: checksum, table, payload, order, number.

use std::net::SocketAddr;
use std::time::Duration;

use anyhow::{Context, bail};

use crate::measure::Load;
use crate::ring::{BufferShape, Event, Ring, Stalls, Waits};
use crate::stats::Times;
use crate::token::Minter;

mod ledger;
mod login;
mod pairs;
mod stamp;
#[cfg(test)]
mod tests;
pub(crate) mod users;

pub(crate) use ledger::{Faults, Ledger};
pub(crate) use login::{Chat, Joined, hello, log_in, make_chats, reason};
pub(crate) use stamp::{STAMP_BYTES, Stamp, blank};

use pairs::{Pair, Peers};
use users::PairUsers;

/// What `Welcome` allows.
pub(crate) const IN_FLIGHT_MAX: u32 = 64;

/// Two deliveries of 16 in flight fill one; what is longer comes in several.
const BUFFERS: BufferShape = BufferShape { count: 4096, size_bytes: 2048 };

/// A turn waits so long for something to do at most.
const TURN: Duration = Duration::from_millis(5);

/// How much is to be loaded, and by whom.
#[derive(Clone, Debug)]
pub(crate) struct Plan {
    pub(crate) pairs: Vec<PairUsers>,
    pub(crate) in_flight: u32,
    pub(crate) payload_bytes: usize,
    /// Awake where the load has a core to itself: a load that sleeps is woken by the server's sends, at the server's cost, the
    /// more often the less it has to do. A client elsewhere costs no such thing.
    pub(crate) waits: Waits,
}

/// See the [module](self).
pub(crate) struct PairsLoad {
    ring: Ring,
    peers: Peers,
}

/// Times of what came in the measured parts of windows.
#[derive(Default)]
pub(crate) struct Latencies {
    /// From send to delivery.
    pub(crate) deliver: Times,
    /// From send to `Sent`.
    pub(crate) ack: Times,
}

impl PairsLoad {
    /// Logs everybody in and makes their chats.
    pub(crate) fn start(address: SocketAddr, minter: &Minter, plan: &Plan) -> anyhow::Result<PairsLoad> {
        let users: Vec<String> = plan.pairs.iter().flat_map(|p| [p.sender.clone(), p.receiver.clone()]).collect();
        let mut joined = log_in(address, minter, &users)?;
        let mut senders: Vec<&mut Joined> = joined.iter_mut().step_by(2).collect();
        let chats = login::make_chats(&mut senders, &plan.pairs)?;
        let mut ring = Ring::new(joined.len() as u32, BUFFERS).context("make an io_uring")?;
        ring.wait_so(plan.waits);
        let mut peers = Peers::new(plan, chats.into_iter().map(Pair::new).collect());
        for (slot, joined) in joined.into_iter().enumerate() {
            let (floor, inbox_seq) = (joined.floor, joined.inbox_seq);
            let (socket, decoder) = joined.into_parts();
            peers.join(decoder, floor, inbox_seq);
            ring.adopt(slot as u32, socket).context("hand a socket to io_uring")?;
        }
        Ok(PairsLoad { ring, peers })
    }

    /// Takes what was recorded since the last call.
    pub(crate) fn take_latencies(&mut self) -> Latencies {
        std::mem::take(&mut self.peers.latencies)
    }

    /// Takes the stalls of its own loop since the last call.
    pub(crate) fn take_stalls(&mut self) -> Stalls {
        self.ring.take_stalls()
    }

    /// From the next window on messages are due at an even pace, so many a second of all pairs together, whatever has become of
    /// those before them, and their times count from then; `None` is a closed loop.
    pub(crate) fn set_pace(&mut self, per_s: Option<f64>) {
        self.peers.set_pace(per_s);
    }

    /// From the next window on so many messages of a pair are in flight at most.
    pub(crate) fn set_in_flight(&mut self, in_flight: u32) {
        self.peers.in_flight = u64::from(in_flight);
    }

    /// What is broken so far. Call it when nothing is outstanding, or nothing will come any more.
    pub(crate) fn faults(&self) -> Faults {
        self.peers.faults()
    }

    /// For an error: how far the first pair is that has something outstanding.
    pub(crate) fn first_outstanding(&self) -> String {
        self.peers.first_outstanding()
    }

    /// Sends that were refused for the moment and sent again.
    pub(crate) fn refused(&self) -> u64 {
        self.peers.refused
    }

    /// Hands the ring what is to be sent: one send a connection and turn, acknowledgements last.
    fn flush(&mut self) {
        while let Some(slot) = self.peers.next_dirty() {
            if let Some(bytes) = self.peers.take_output(slot) {
                self.ring.send(slot, bytes);
            }
        }
    }
}

impl Load for PairsLoad {
    fn turn(&mut self) -> anyhow::Result<()> {
        self.peers.begin_due();
        self.flush();
        let wait = self.peers.until_due().map_or(TURN, |until| until.min(TURN));
        self.ring.turn(wait).context("io_uring_enter")?;
        while let Some(event) = self.ring.next() {
            match event {
                Event::Received { slot, filled } => {
                    let result = self.peers.received(slot, self.ring.bytes(&filled));
                    self.ring.give_back(filled);
                    result?;
                }
                Event::Sent { slot, bytes } => self.peers.sent(slot, bytes),
                Event::Ended { errno, .. } => {
                    bail!("the server ended a connection: {}", std::io::Error::from_raw_os_error(errno));
                }
                Event::Accepted { .. } | Event::Written { .. } => {}
            }
        }
        self.peers.send_again();
        Ok(())
    }

    fn done(&self) -> u64 {
        self.peers.done
    }

    fn idle(&self) -> Duration {
        self.ring.idle()
    }

    fn resume(&mut self) {
        self.peers.resume();
    }

    fn pause(&mut self) {
        self.peers.sending = false;
    }

    fn outstanding(&self) -> u64 {
        self.peers.outstanding()
    }

    fn measured(&mut self, on: bool) {
        self.peers.recording = on;
    }
}

//! The floor's servers: what the sockets alone cost. A process of its own, so that its CPU is counted as any server's.

use std::io;
use std::net::TcpListener;
use std::os::fd::OwnedFd;
use std::time::Duration;

use crate::floor::{ACK_BYTES, DELIVER_BYTES, ECHO_BYTES, SEND_BYTES, SENT_BYTES};
use crate::ring::{BufferShape, Event, Ring};

/// What the raw server does.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Work {
    /// A message from the even connection of a pair: bytes to the odd one, an answer to the even one. An acknowledgement
    /// from the odd one: nothing. Two receives and two sends for each message.
    Pairs,
    /// Each message back to where it came from: one receive and one send.
    Echo,
}

const MESSAGE: [u8; DELIVER_BYTES] = [b'm'; DELIVER_BYTES];
const ANSWER: [u8; SENT_BYTES] = [b'a'; SENT_BYTES];
const ECHO: [u8; ECHO_BYTES] = [b'e'; ECHO_BYTES];
pub(super) static MESSAGE_BYTES: &[u8] = &MESSAGE;
pub(super) static ANSWER_BYTES: &[u8] = &ANSWER;
static ECHO_ANSWER: &[u8] = &ECHO;

/// One buffer takes a whole message; so many can be received in one turn.
pub(super) const BUFFERS: BufferShape = BufferShape { count: 1024, size_bytes: 256 };

/// Serves `slots` connections at most, until it is killed.
pub(crate) fn serve(listener: TcpListener, slots: u32, work: Work) -> io::Result<()> {
    let mut ring = Ring::new(slots, BUFFERS)?;
    ring.listen(OwnedFd::from(listener));
    // Bytes of a message that have come; almost always it comes whole.
    let mut partial = vec![0u32; slots as usize];
    loop {
        ring.turn(Duration::from_secs(60))?;
        while let Some(event) = ring.next() {
            match event {
                Event::Received { slot, filled } => {
                    let bytes = ring.bytes(&filled).len() as u32;
                    ring.give_back(filled);
                    let whole = match work {
                        Work::Echo => ECHO_BYTES,
                        Work::Pairs if slot.is_multiple_of(2) => SEND_BYTES,
                        Work::Pairs => ACK_BYTES,
                    } as u32;
                    let have = &mut partial[slot as usize];
                    *have += bytes;
                    while *have >= whole {
                        *have -= whole;
                        answer(&mut ring, slot, work);
                    }
                }
                Event::Accepted { slot } => partial[slot as usize] = 0,
                Event::Ended { .. } | Event::Sent { .. } | Event::Written { .. } => {}
            }
        }
    }
}

#[inline]
fn answer(ring: &mut Ring, slot: u32, work: Work) {
    match work {
        Work::Echo => ring.send_static(slot, ECHO_ANSWER),
        Work::Pairs if slot.is_multiple_of(2) => {
            ring.send_static(slot + 1, MESSAGE_BYTES);
            ring.send_static(slot, ANSWER_BYTES);
        }
        Work::Pairs => {}
    }
}

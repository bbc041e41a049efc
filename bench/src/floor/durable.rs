//! The raw server with a disk: the same two receives and two sends for a message, and before it answers the message is on
//! stable storage. What comes while a write is in flight gathers for the next one. It parses, routes and remembers nothing.

use std::fs::File;
use std::io;
use std::net::TcpListener;
use std::os::fd::OwnedFd;
use std::rc::Rc;
use std::time::Duration;

use crate::disk::{BLOCK_BYTES, FILE_BYTES};
use crate::floor::server::{ANSWER_BYTES, BUFFERS, MESSAGE_BYTES};
use crate::floor::{ACK_BYTES, SEND_BYTES};
use crate::ring::{Event, Ring};

/// Serves `slots` connections at most, until it is killed. `log` is a file of [`FILE_BYTES`] zeros.
pub(crate) fn serve(listener: TcpListener, slots: u32, log: File) -> io::Result<()> {
    let mut ring = Ring::new(slots, BUFFERS)?;
    ring.listen(OwnedFd::from(listener));
    let log = Rc::new(log);
    let mut partial = vec![0u32; slots as usize];
    // Connections whose messages gather, and those whose are being written.
    let (mut gathered, mut written) = (Vec::new(), Vec::new());
    let mut batch = Some(Vec::new());
    let mut offset = 0;
    loop {
        ring.turn(Duration::from_secs(60))?;
        while let Some(event) = ring.next() {
            match event {
                Event::Received { slot, filled } => {
                    let bytes = ring.bytes(&filled).len() as u32;
                    ring.give_back(filled);
                    let is_message = slot.is_multiple_of(2);
                    let whole = if is_message { SEND_BYTES } else { ACK_BYTES } as u32;
                    let have = &mut partial[slot as usize];
                    *have += bytes;
                    while *have >= whole {
                        *have -= whole;
                        if is_message {
                            gathered.push(slot);
                        }
                    }
                }
                Event::Written { bytes, result } => {
                    result?;
                    batch = Some(bytes);
                    for slot in written.drain(..) {
                        ring.send_static(slot + 1, MESSAGE_BYTES);
                        ring.send_static(slot, ANSWER_BYTES);
                    }
                }
                Event::Accepted { slot } => partial[slot as usize] = 0,
                Event::Ended { .. } | Event::Sent { .. } => {}
            }
        }
        if !gathered.is_empty()
            && let Some(mut bytes) = batch.take()
        {
            std::mem::swap(&mut gathered, &mut written);
            bytes.clear();
            for _ in &written {
                bytes.extend_from_slice(&MESSAGE_BYTES[..SEND_BYTES]);
            }
            bytes.resize(bytes.len().next_multiple_of(BLOCK_BYTES), 0);
            if offset + bytes.len() as u64 > FILE_BYTES {
                offset = 0;
            }
            let at = offset;
            offset += bytes.len() as u64;
            ring.write(&log, bytes, at);
        }
    }
}

//! Simulated TCP connections: two streams of bytes between a client and the node. They lose and reorder nothing while the
//! connection lives; they split, delay, stall and break.

use std::collections::VecDeque;

use crate::rng::Rng;

/// Index of a socket in the world's table; never used again within a run.
pub(crate) type SocketIndex = usize;

/// One connection, as the kernels at both ends see it.
#[derive(Debug)]
pub(crate) struct Socket {
    /// Client to node: sent, not yet received.
    up: VecDeque<u8>,
    /// The client's end is closed, or the connection broke: nothing follows what is in `up`.
    up_ended: bool,
    /// Node to client: taken by the node's kernel, not yet received by the client.
    down: VecDeque<u8>,
    /// What `down` takes at most.
    down_capacity: usize,
    down_ended: bool,
    /// Nothing arrives at the node before.
    pub(crate) stalled_until_us: u64,
    /// The client has forgotten it without a word: what comes is taken and thrown away.
    pub(crate) abandoned: bool,
    /// A device is at the other end, not somebody who means ill.
    pub(crate) of_device: bool,
    pieces: Pieces,
    /// Where in a frame the node's receiving is.
    meter: Meter,
}

/// How a stream is cut.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Pieces {
    /// As much as there is.
    Whole,
    /// Anywhere, in pieces of a typical packet or less.
    Some,
    /// Mostly a few bytes.
    Crumbs,
}

impl Pieces {
    fn take(self, available: usize, rng: &mut Rng) -> usize {
        let most = match self {
            Pieces::Whole => return available,
            Pieces::Some if rng.per_mille(400) => return available,
            Pieces::Some => 1448,
            Pieces::Crumbs => {
                if rng.per_mille(800) {
                    40
                } else {
                    1
                }
            }
        };
        (1 + rng.index(most)).min(available)
    }
}

impl Socket {
    pub(crate) fn new(down_capacity: usize, pieces: Pieces) -> Socket {
        Socket {
            up: VecDeque::new(),
            up_ended: false,
            down: VecDeque::new(),
            down_capacity,
            down_ended: false,
            stalled_until_us: 0,
            abandoned: false,
            of_device: false,
            pieces,
            meter: Meter::default(),
        }
    }

    // ---- the client's end ----

    /// The client sends. Nothing is sent on a connection that is closed.
    pub(crate) fn client_writes(&mut self, bytes: &[u8]) {
        if !self.up_ended {
            self.up.extend(bytes);
        }
    }

    /// The client receives a piece, if there is one.
    pub(crate) fn client_reads(&mut self, rng: &mut Rng, into: &mut Vec<u8>) {
        let len = self.pieces.take(self.down.len(), rng);
        take(&mut self.down, len, into);
    }

    /// Bytes that wait for the client.
    pub(crate) fn client_readable(&self) -> usize {
        self.down.len()
    }

    /// All was received and nothing will follow.
    pub(crate) fn client_sees_end(&self) -> bool {
        self.down_ended && self.down.is_empty()
    }

    /// The client closes, or its connection breaks: of the bytes on their way to the node, `arriving` come through.
    pub(crate) fn client_closes(&mut self, arriving: usize) {
        self.up.truncate(arriving);
        self.up_ended = true;
        self.down.clear();
        self.down_ended = true;
    }

    /// Bytes on their way to the node.
    pub(crate) fn on_the_way_up(&self) -> usize {
        self.up.len()
    }

    /// The client's end is closed.
    pub(crate) fn client_closed(&self) -> bool {
        self.up_ended
    }

    // ---- the node's end ----

    /// Something for the node to receive.
    pub(crate) fn node_readable(&self) -> bool {
        !self.up.is_empty()
    }

    /// The node receives a piece.
    pub(crate) fn node_reads(&mut self, rng: &mut Rng, into: &mut Vec<u8>) {
        let len = self.pieces.take(self.up.len(), rng);
        let before = into.len();
        take(&mut self.up, len, into);
        self.meter.feed(&into[before..]);
    }

    /// What the node received so far ends in the middle of a frame.
    pub(crate) fn is_mid_frame(&self) -> bool {
        self.meter.have > 0
    }

    /// More of what came waits in another buffer.
    pub(crate) fn node_has_next_piece(&self) -> bool {
        !self.up.is_empty() && !matches!(self.pieces, Pieces::Whole)
    }

    /// All was received and nothing will follow.
    pub(crate) fn node_sees_end(&self) -> bool {
        self.up_ended && self.up.is_empty()
    }

    /// Sending fails, since nobody is there any more.
    pub(crate) fn node_write_fails(&self) -> bool {
        self.down_ended
    }

    /// Bytes that the node's kernel takes now.
    pub(crate) fn node_writable(&self) -> usize {
        if self.abandoned { usize::MAX } else { self.down_capacity - self.down.len().min(self.down_capacity) }
    }

    /// The node's kernel takes them.
    pub(crate) fn node_writes(&mut self, bytes: &[u8]) {
        if !self.abandoned && !self.down_ended {
            self.down.extend(bytes);
        }
    }

    /// The node closes; of what is on its way to the client, `arriving` bytes come through.
    pub(crate) fn node_closes(&mut self, arriving: usize) {
        self.down.truncate(arriving);
        self.down_ended = true;
        self.up.clear();
        self.up_ended = true;
    }

    /// Bytes on their way to the client.
    pub(crate) fn on_the_way_down(&self) -> usize {
        self.down.len()
    }

    /// No faults any more.
    pub(crate) fn heal(&mut self) {
        self.stalled_until_us = 0;
        self.down_capacity = self.down_capacity.max(64 * 1024);
        self.pieces = Pieces::Whole;
    }
}

/// Takes the first `len` bytes, in whole slices.
fn take(from: &mut VecDeque<u8>, len: usize, into: &mut Vec<u8>) {
    let (first, second) = from.as_slices();
    let cut = len.min(first.len());
    into.extend_from_slice(&first[..cut]);
    into.extend_from_slice(&second[..len - cut]);
    from.drain(..len);
}

/// Follows a stream of frames by their lengths.
#[derive(Debug, Default)]
struct Meter {
    length: [u8; 4],
    /// Bytes of the frame under way.
    have: usize,
}

impl Meter {
    fn feed(&mut self, mut bytes: &[u8]) {
        while let Some((&first, rest)) = bytes.split_first() {
            if let Some(byte) = self.length.get_mut(self.have) {
                *byte = first;
                self.have += 1;
                bytes = rest;
            } else {
                let missing = (u32::from_le_bytes(self.length) as usize).saturating_sub(self.have);
                let part = missing.min(bytes.len());
                self.have += part;
                bytes = &bytes[part..];
                // A length that cannot be ends nothing: such a stream is refused at once.
                if part == missing {
                    self.have = 0;
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_stream_arrives_whole_however_it_is_cut() {
        for pieces in [Pieces::Whole, Pieces::Some, Pieces::Crumbs] {
            let mut rng = Rng::new(1);
            let mut socket = Socket::new(10, pieces);
            let sent: Vec<u8> = (0..5000u32).map(|n| n as u8).collect();
            socket.client_writes(&sent);
            socket.client_closes(sent.len());
            let mut got = Vec::new();
            while !socket.node_sees_end() {
                socket.node_reads(&mut rng, &mut got);
            }
            assert_eq!(got, sent);
        }
    }

    #[test]
    fn a_stream_that_ends_in_a_frame_is_seen_to() {
        for cut in 0..=40 {
            let mut socket = Socket::new(10, Pieces::Whole);
            let mut frame = vec![0; 20];
            frame[0] = 20;
            socket.client_writes(&[frame.clone(), frame].concat());
            socket.client_closes(cut);
            socket.node_reads(&mut Rng::new(1), &mut Vec::new());
            assert_eq!(socket.is_mid_frame(), cut % 20 != 0, "{cut}");
        }
    }

    #[test]
    fn a_slow_client_holds_the_node_back() {
        let mut socket = Socket::new(10, Pieces::Whole);
        socket.node_writes(&[0; 10]);
        assert_eq!(socket.node_writable(), 0);
        socket.client_reads(&mut Rng::new(1), &mut Vec::new());
        assert_eq!(socket.node_writable(), 10);
    }
}

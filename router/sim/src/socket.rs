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
    pieces: Pieces,
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
            Pieces::Some if rng.per_mille(600) => return available,
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
            pieces,
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
        into.extend(self.down.drain(..len));
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
        into.extend(self.up.drain(..len));
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
    fn a_slow_client_holds_the_node_back() {
        let mut socket = Socket::new(10, Pieces::Whole);
        socket.node_writes(&[0; 10]);
        assert_eq!(socket.node_writable(), 0);
        socket.client_reads(&mut Rng::new(1), &mut Vec::new());
        assert_eq!(socket.node_writable(), 10);
    }
}

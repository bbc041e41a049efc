//! A shard's table of connections in the simulated shell: slots with generations, queues of bytes to send with one send in
//! flight each, connections that end, move, or wait for their last bytes.

use std::collections::VecDeque;

use whimbrel_core::ids::ConnId;

use crate::bottom::Bottom;
use crate::plant::Plant;
use crate::socket::SocketIndex;

/// How long the shell lets a connection that closes wait for a client that does not read.
const LINGER_US: u64 = 3_000_000;

/// Kind of a `Deliver`, at its place in the header.
const DELIVER: u8 = whimbrel_wire::Kind::Deliver as u8;
const KIND_OFFSET: usize = 4;

pub(crate) struct Conn {
    pub(crate) id: ConnId,
    pub(crate) socket: SocketIndex,
    pub(crate) detach: Detach,
    queue: VecDeque<Chunk>,
    sending: Option<Sending>,
    close_by_us: Option<u64>,
    /// Closing, and not even received from.
    deaf: bool,
    /// Its socket had no room, at least once.
    slow: bool,
}

/// How far a move is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Detach {
    No,
    /// The receive is being cancelled: until then bytes may still arrive.
    Wanted {
        quiet_at_us: u64,
    },
    /// The shard was told.
    Done,
}

/// A frame on its way out. A planted bug makes `counted` differ from the bytes that go.
struct Chunk {
    bytes: Vec<u8>,
    taken: usize,
    counted: usize,
}

struct Sending {
    done_us: u64,
    counted: u32,
}

/// What a connection has for its shard.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum News {
    Bytes,
    Written,
    Gone,
    Detached,
}

#[derive(Default)]
pub(crate) struct Conns {
    slots: Vec<Slot>,
    free: Vec<u32>,
}

#[derive(Default)]
struct Slot {
    generation: u32,
    conn: Option<Conn>,
}

impl Conns {
    pub(crate) fn open(&mut self, socket: SocketIndex) -> ConnId {
        let slot = self.free.pop().unwrap_or_else(|| {
            self.slots.push(Slot::default());
            self.slots.len() as u32 - 1
        });
        let it = &mut self.slots[slot as usize];
        it.generation += 1;
        let id = ConnId { slot, generation: it.generation };
        it.conn = Some(Conn {
            id,
            socket,
            detach: Detach::No,
            queue: VecDeque::new(),
            sending: None,
            close_by_us: None,
            deaf: false,
            slow: false,
        });
        id
    }

    pub(crate) fn get(&mut self, id: ConnId) -> Option<&mut Conn> {
        self.slots.get_mut(id.slot as usize)?.conn.as_mut().filter(|conn| conn.id == id)
    }

    /// The name is free again.
    pub(crate) fn release(&mut self, id: ConnId) -> Option<Conn> {
        self.get(id)?;
        self.free.push(id.slot);
        self.slots[id.slot as usize].conn.take()
    }

    pub(crate) fn iter(&self) -> impl Iterator<Item = &Conn> {
        self.slots.iter().filter_map(|slot| slot.conn.as_ref())
    }

    /// Hands the sockets what they take.
    pub(crate) fn send(&mut self, b: &mut Bottom) {
        for slot in &mut self.slots {
            if let Some(conn) = &mut slot.conn {
                conn.send(b);
            }
        }
    }
}

impl Conn {
    /// Puts a frame behind what waits already.
    pub(crate) fn queue(&mut self, b: &mut Bottom, bytes: Vec<u8>) {
        let counted = bytes.len();
        let deliver = bytes.get(KIND_OFFSET) == Some(&DELIVER);
        b.stats.slow_served += u64::from(deliver && self.slow);
        let chunk = Chunk { bytes, taken: 0, counted };
        if deliver && b.fuse.fires(Plant::SocketDrops) {
            self.queue.push_back(Chunk { bytes: Vec::new(), ..chunk });
            return;
        }
        let repeat = (deliver && b.fuse.fires(Plant::SocketRepeats)).then(|| chunk.bytes.clone());
        let behind = self.queue.back().filter(|last| last.taken == 0 && last.bytes.get(KIND_OFFSET) == Some(&DELIVER));
        if deliver && behind.is_some() && b.fuse.fires(Plant::SocketSwaps) {
            self.queue.insert(self.queue.len() - 1, chunk);
        } else {
            self.queue.push_back(chunk);
        }
        if let Some(bytes) = repeat {
            self.queue.push_back(Chunk { bytes, taken: 0, counted: 0 });
        }
    }

    /// Begins to close: once all is written, or the client has had its time.
    pub(crate) fn close(&mut self, b: &mut Bottom) {
        self.close_by_us.get_or_insert(b.now_us + LINGER_US);
        self.deaf = b.rng.per_mille(500);
    }

    /// When the first news will be there, if something is on its way.
    pub(crate) fn news_at(&self, b: &Bottom, each: &mut impl FnMut(News, u64)) {
        let socket = &b.sockets[self.socket];
        let reading = self.detach != Detach::Done && !self.deaf;
        if reading && socket.node_readable() {
            each(News::Bytes, socket.stalled_until_us);
        }
        if let Some(sending) = &self.sending {
            each(News::Written, sending.done_us);
        }
        let idle = self.sending.is_none() && self.queue.is_empty();
        if (reading && socket.node_sees_end()) || (!idle && self.sending.is_none() && socket.node_write_fails()) {
            each(News::Gone, 0);
        } else if let Some(close_by_us) = self.close_by_us {
            each(News::Gone, if idle { 0 } else { close_by_us });
        } else if let Detach::Wanted { quiet_at_us } = self.detach
            && idle
        {
            each(News::Detached, quiet_at_us);
        }
    }

    /// A send was taken by the socket: how many bytes it was.
    pub(crate) fn written(&mut self) -> Option<u32> {
        self.sending.take().map(|sending| sending.counted)
    }

    /// Nothing waits to be sent.
    pub(crate) fn is_idle(&self) -> bool {
        self.sending.is_none() && self.queue.is_empty()
    }

    fn send(&mut self, b: &mut Bottom) {
        if self.sending.is_some() || self.queue.is_empty() || b.sockets[self.socket].node_write_fails() {
            return;
        }
        let mut room = b.sockets[self.socket].node_writable();
        if room == 0 {
            self.slow = true;
            b.stats.slow_sends += 1;
            return;
        }
        if !b.healed && b.rng.per_mille(100) {
            room = 1 + b.rng.index(room.min(2000));
        }
        let mut counted = 0;
        while let Some(chunk) = self.queue.front_mut() {
            let take = room.min(chunk.bytes.len() - chunk.taken);
            b.sockets[self.socket].node_writes(&chunk.bytes[chunk.taken..chunk.taken + take]);
            chunk.taken += take;
            room -= take;
            let part = if chunk.taken == chunk.bytes.len() { chunk.counted } else { take.min(chunk.counted) };
            chunk.counted -= part;
            counted += part;
            if chunk.taken < chunk.bytes.len() {
                break;
            }
            self.queue.pop_front();
        }
        let late = if b.healed { 1500 } else { b.rng.around(b.weather.send_us) };
        self.sending = Some(Sending { done_us: b.now_us + late, counted: counted as u32 });
    }
}

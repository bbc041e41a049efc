//! What is to be sent on one connection, in order: frames copied together, and payloads straight from the log between them.
//! It lives on the shard's core, only while a connection has something to send.

#![forbid(unsafe_code)]

use bytes::Bytes;

/// A queue that goes back into the pool keeps at most so much memory.
const KEPT_BYTES: usize = 4096;

/// Queues kept for use anew. A turn needs one for each connection that it writes to.
const POOL_MAX: usize = 1024;

/// A payload gathers no more than so many dead bytes before it, when what is ahead of it was sent.
const COMPACT_BYTES: usize = 64 * 1024;

/// Bytes for one connection.
#[derive(Debug, Default)]
pub(super) struct SendQueue {
    /// Frames, or the heads of those whose payload is apart.
    heads: Vec<u8>,
    /// Payloads, each with the number of bytes of `heads` that go before it. Rising.
    payloads: Vec<(usize, Bytes)>,
    /// Bytes of both together.
    len: usize,
    /// How many of them were sent.
    sent: usize,
}

impl SendQueue {
    /// Puts a frame at the end.
    #[inline]
    pub(super) fn push(&mut self, head: &[u8], payload: Option<Bytes>) {
        self.heads.extend_from_slice(head);
        self.len += head.len();
        if let Some(payload) = payload {
            self.len += payload.len();
            self.payloads.push((self.heads.len(), payload));
        }
    }

    /// Puts all that another queue has left at the end.
    pub(super) fn append(&mut self, other: &mut SendQueue) {
        self.compact();
        other.compact();
        let before = self.heads.len();
        self.heads.extend_from_slice(&other.heads);
        self.payloads.extend(other.payloads.drain(..).map(|(at, payload)| (before + at, payload)));
        self.len += other.len;
        other.clear();
    }

    /// Bytes that are not sent.
    #[inline]
    pub(super) fn left(&self) -> usize {
        self.len - self.sent
    }

    /// The bytes that are not sent, if they lie in one piece.
    #[inline]
    pub(super) fn single(&self) -> Option<&[u8]> {
        self.payloads.is_empty().then(|| &self.heads[self.sent..])
    }

    /// The pieces that are not sent, in order, none empty.
    pub(super) fn pieces(&self) -> impl Iterator<Item = &[u8]> {
        let mut from = 0;
        let mut skip = self.sent;
        let ends = self.payloads.iter().map(|(at, payload)| (*at, &payload[..]));
        let all = ends.chain(std::iter::once((self.heads.len(), &[][..]))).flat_map(move |(at, payload)| {
            let head = &self.heads[from..at];
            from = at;
            [head, payload]
        });
        all.filter_map(move |piece| {
            let skipped = skip.min(piece.len());
            skip -= skipped;
            (skipped < piece.len()).then(|| &piece[skipped..])
        })
    }

    /// The socket took so many bytes.
    #[inline]
    pub(super) fn advance(&mut self, bytes: usize) {
        self.sent += bytes;
        assert!(self.sent <= self.len, "the socket took more than it was given");
        if self.sent == self.len {
            self.clear();
        } else if self.sent >= COMPACT_BYTES {
            self.compact();
        }
    }

    fn clear(&mut self) {
        self.heads.clear();
        self.payloads.clear();
        self.len = 0;
        self.sent = 0;
    }

    /// Lets go of whole payloads and of heads that were sent.
    fn compact(&mut self) {
        let mut dead_heads = 0;
        let mut dead_payloads = 0;
        let mut position = 0;
        for (at, payload) in &self.payloads {
            let end = position + (at - dead_heads) + payload.len();
            if end > self.sent {
                break;
            }
            position = end;
            dead_heads = *at;
            dead_payloads += 1;
        }
        let next_head = self.payloads.get(dead_payloads).map_or(self.heads.len(), |(at, _)| *at);
        let in_head = (self.sent - position).min(next_head - dead_heads);
        dead_heads += in_head;
        position += in_head;
        self.payloads.drain(..dead_payloads);
        for (at, _) in &mut self.payloads {
            *at -= dead_heads;
        }
        self.heads.drain(..dead_heads);
        self.len -= position;
        self.sent -= position;
    }
}

/// Empty queues, so that a send allocates nothing.
#[derive(Debug, Default)]
pub(super) struct QueuePool {
    #[expect(clippy::vec_box, reason = "a queue keeps its address from the connection to the kernel and back")]
    free: Vec<Box<SendQueue>>,
}

impl QueuePool {
    /// An empty queue.
    #[inline]
    pub(super) fn take(&mut self) -> Box<SendQueue> {
        self.free.pop().unwrap_or_default()
    }

    /// A queue that is not needed any more.
    #[inline]
    pub(super) fn put(&mut self, mut queue: Box<SendQueue>) {
        if self.free.len() < POOL_MAX && queue.heads.capacity() <= KEPT_BYTES {
            queue.clear();
            self.free.push(queue);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    use proptest::prelude::*;

    fn flat(queue: &SendQueue) -> Vec<u8> {
        queue.pieces().flatten().copied().collect()
    }

    proptest! {
        /// Whatever is pushed, appended and taken in whatever steps, the bytes leave whole and in order.
        #[test]
        fn bytes_leave_in_order(steps in prop::collection::vec((0usize..90, 0usize..90, 0usize..4, 0usize..200), 1..60)) {
            let mut queue = SendQueue::default();
            let mut model = std::collections::VecDeque::new();
            let mut next = 0u8;
            let mut fresh = |len: usize| -> Vec<u8> { (0..len).map(|_| { next = next.wrapping_add(1); next }).collect() };
            for (head, payload, way, take) in steps {
                let head = fresh(head);
                let payload = (way % 2 == 1).then(|| Bytes::from(fresh(payload)));
                model.extend(head.iter().chain(payload.iter().flatten()).copied());
                if way < 2 {
                    queue.push(&head, payload);
                } else {
                    let mut other = SendQueue::default();
                    other.push(&head, payload);
                    queue.append(&mut other);
                    prop_assert_eq!(other.left(), 0);
                }
                prop_assert_eq!(queue.left(), model.len());
                prop_assert!(flat(&queue).iter().eq(model.iter()));
                if let Some(single) = queue.single() {
                    prop_assert!(single.iter().eq(model.iter()));
                }
                let take = take.min(model.len());
                queue.advance(take);
                if take % 3 == 0 {
                    queue.compact();
                }
                model.drain(..take);
                prop_assert!(flat(&queue).iter().eq(model.iter()));
            }
        }
    }
}

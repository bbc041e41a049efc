//! What a message's payload says: of which run and pair it is, its number, when it was sent.

/// Bytes of a stamp: the shortest payload.
pub(crate) const STAMP_BYTES: usize = 32;

const FILLER: u8 = 0x5a;

/// See the [module](self).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Stamp {
    /// Tells messages of an earlier run on the same data apart.
    pub(crate) run: u64,
    pub(crate) pair: u32,
    pub(crate) number: u64,
    /// On the run's own clock.
    pub(crate) sent_ns: u64,
}

impl Stamp {
    /// Fills a payload of any length from [`STAMP_BYTES`] on; what is behind the stamp stays as [`blank`] made it.
    #[inline]
    pub(crate) fn write(&self, payload: &mut [u8]) {
        payload[0..8].copy_from_slice(&self.run.to_le_bytes());
        payload[8..12].copy_from_slice(&self.pair.to_le_bytes());
        payload[16..24].copy_from_slice(&self.number.to_le_bytes());
        payload[24..32].copy_from_slice(&self.sent_ns.to_le_bytes());
    }

    /// What a payload of this length says, or `None` if it is not one of ours, whole.
    #[inline]
    pub(crate) fn read(payload: &[u8], payload_bytes: usize) -> Option<Stamp> {
        let whole = payload.len() == payload_bytes && payload.get(STAMP_BYTES..)?.iter().all(|b| *b == FILLER);
        let word = |at: usize| payload.get(at..at + 8)?.try_into().ok().map(u64::from_le_bytes);
        let pair = word(8)?;
        let stamp = Stamp { run: word(0)?, pair: pair as u32, number: word(16)?, sent_ns: word(24)? };
        (whole && pair == u64::from(stamp.pair)).then_some(stamp)
    }
}

/// A payload without a stamp.
pub(crate) fn blank(payload_bytes: usize) -> Vec<u8> {
    let mut payload = vec![FILLER; payload_bytes];
    payload[..STAMP_BYTES].fill(0);
    payload
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_stamp_is_read_as_it_was_written() {
        for payload_bytes in [STAMP_BYTES, 128] {
            let stamp = Stamp { run: 1 << 60, pair: 7, number: 99, sent_ns: 12 };
            let mut payload = blank(payload_bytes);
            stamp.write(&mut payload);
            assert_eq!(Stamp::read(&payload, payload_bytes), Some(stamp));
            assert_eq!(Stamp::read(&payload[1..], payload_bytes), None);
            assert_eq!(Stamp::read(&payload, payload_bytes + 1), None);
            *payload.last_mut().unwrap() ^= 1;
            assert_ne!(Stamp::read(&payload, payload_bytes), Some(stamp));
        }
        assert_eq!(Stamp::read(&[], 0), None);
    }
}

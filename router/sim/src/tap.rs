//! What a client's end of a connection hears, frame by frame, before the client's own code sees a byte of it: the model
//! must not depend on the code that it judges.

use whimbrel_wire::{Decoder, FrameError, HEADER_BYTES, ServerFrame, limits};

use crate::check::{Check, Violation};

/// Cuts what a node sends into whole frames.
#[derive(Default)]
pub(crate) struct Tap {
    bytes: Vec<u8>,
    start: usize,
}

impl Tap {
    pub(crate) fn push(&mut self, bytes: &[u8]) {
        if self.start > 0 {
            self.bytes.drain(..self.start);
            self.start = 0;
        }
        self.bytes.extend_from_slice(bytes);
    }

    /// The next whole frame, if there is one.
    pub(crate) fn next(&mut self) -> Option<&[u8]> {
        let rest = &self.bytes[self.start..];
        let length = u32::from_le_bytes(*rest.first_chunk()?) as usize;
        // A length that cannot be is for `read` to refuse.
        let length = if (HEADER_BYTES..=limits::FRAME_MAX_BYTES).contains(&length) { length } else { rest.len() };
        let frame = rest.get(..length)?;
        self.start += length;
        Some(frame)
    }
}

/// What a frame says. A node never sends one that cannot be read.
pub(crate) fn read(bytes: &[u8]) -> Result<ServerFrame<'_>, Violation> {
    decode(bytes).map_err(|why| {
        Violation::new(Check::Phantom, format!("a node sends {} bytes that are no frame: {why}", bytes.len()))
    })
}

fn decode(bytes: &[u8]) -> Result<ServerFrame<'_>, String> {
    let told = |error: FrameError| error.to_string();
    // The frame lies whole in the input, so the decoder keeps nothing and the frame borrows from the input alone.
    let length = bytes.first_chunk::<HEADER_BYTES>().ok_or("too short")?;
    let table_len = u32::from_le_bytes([length[8], length[9], length[10], length[11]]) as usize;
    let mut decoder = Decoder::default();
    let frame = decoder.decode(&mut &*bytes, limits::FRAME_MAX_BYTES).map_err(told)?.ok_or("not whole")?;
    let body = &bytes[HEADER_BYTES..];
    let frame = whimbrel_wire::Frame {
        kind: frame.kind,
        version: frame.version,
        table: &body[..table_len],
        payload: &body[table_len..],
    };
    ServerFrame::parse(&frame).map_err(told)
}

//! The frame decoder and the tables of frames, under any bytes: what comes of them does not depend on how they are cut, what is
//! kept is never more than what came, and every field of what is taken can be read.

use whimbrel_wire::{ClientFrame, Decoder, FrameError, HEADER_BYTES, ServerFrame, limits};

pub(crate) fn run(data: &[u8]) {
    stream(data);
    stream(&repaired(data));
}

fn stream(data: &[u8]) {
    for max in [limits::FRAME_MAX_BYTES, 512] {
        let whole = decode(data, data.len().max(1), max);
        let piece = 2 + data.first().map_or(0, |byte| usize::from(*byte) % 61);
        for piece in [1, piece] {
            assert_eq!(decode(data, piece, max), whole, "cut into pieces of {piece} bytes");
        }
    }
}

/// What all frames say, to either side, and why the stream ended, if it did.
fn decode(data: &[u8], piece: usize, max: usize) -> (Vec<String>, Option<FrameError>) {
    let mut decoder = Decoder::default();
    let (mut said, mut fed, mut made) = (Vec::new(), 0, 0);
    for piece in data.chunks(piece) {
        fed += piece.len();
        let mut input = piece;
        loop {
            let mut rest = input;
            match decoder.decode(&mut rest, max) {
                Err(error) => return (said, Some(error)),
                Ok(None) => {
                    assert!(rest.is_empty(), "all is taken");
                    break;
                }
                Ok(Some(frame)) => {
                    made += HEADER_BYTES + frame.table.len() + frame.payload.len();
                    // Printing reads every field.
                    said.push(format!("{:?} {:?}", ClientFrame::parse(&frame), ServerFrame::parse(&frame)));
                }
            }
            input = &input[input.len() - rest.len()..];
        }
        assert_eq!(decoder.pending_bytes(), fed - made, "what is kept is what came");
    }
    (said, None)
}

/// The same stream with the checksums that belong to it, so that what lies behind them is reached.
fn repaired(data: &[u8]) -> Vec<u8> {
    let mut out = data.to_vec();
    let mut at = 0;
    while let Some(head) = out.get(at..at + HEADER_BYTES) {
        let length = u32::from_le_bytes([head[0], head[1], head[2], head[3]]) as usize;
        let Some(body) = out.get(at + HEADER_BYTES..at + length) else { break };
        let crc = crc32c::crc32c_append(crc32c::crc32c(&head[..12]), body);
        out[at + 12..at + 16].copy_from_slice(&crc.to_le_bytes());
        at += length;
    }
    out
}

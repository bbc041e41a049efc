//! Cuts a byte stream into frames. Nothing is allocated by a size that the peer named: what is kept of an incomplete
//! frame is what has arrived of it.

use crate::code::Code;
use crate::header::{HEADER_BYTES, Header, Kind};

/// One frame: bounds and checksum hold; version and kind are not judged yet.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Frame<'a> {
    /// As it stands in the header.
    pub kind: u8,
    /// As it stands in the header.
    pub version: u8,
    /// A FlatBuffers table, not verified.
    pub table: &'a [u8],
    /// Opaque.
    pub payload: &'a [u8],
}

/// Why bytes are not a frame, or not one that may come here.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[allow(missing_docs)]
pub enum FrameError {
    #[error("a frame of {length} bytes is shorter than its header")]
    TooShort { length: u32 },
    #[error("a frame of {length} bytes is longer than the {max} allowed here")]
    TooLarge { length: u32, max: usize },
    #[error("the table is longer than its frame")]
    BadTableLength,
    #[error("unknown flags {0:#06x}")]
    BadFlags(u16),
    #[error("the checksum does not match")]
    BadChecksum,
    #[error("the table is malformed or out of bounds")]
    BadTable,
    #[error("this kind of frame carries no payload")]
    UnexpectedPayload,
    #[error("the payload is longer than allowed")]
    PayloadTooLarge,
    #[error("unknown kind {0}")]
    UnknownKind(u8),
    #[error("{0:?} does not come from this side")]
    UnexpectedKind(Kind),
    #[error("unknown version {0}")]
    UnsupportedVersion(u8),
}

impl FrameError {
    /// The number of this error on the wire.
    pub fn code(&self) -> Code {
        match self {
            FrameError::TooShort { .. } | FrameError::BadTableLength | FrameError::BadFlags(_) => Code::BadFrame,
            FrameError::TooLarge { .. } => Code::FrameTooLarge,
            FrameError::BadChecksum => Code::BadChecksum,
            FrameError::BadTable | FrameError::UnexpectedPayload => Code::BadTable,
            FrameError::PayloadTooLarge => Code::PayloadTooLarge,
            FrameError::UnknownKind(_) => Code::UnknownKind,
            FrameError::UnexpectedKind(_) => Code::UnexpectedKind,
            FrameError::UnsupportedVersion(_) => Code::UnsupportedVersion,
        }
    }
}

/// Cuts one connection's bytes into frames. Idle it holds no memory of its own.
#[derive(Debug, Default)]
pub struct Decoder {
    pending: Vec<u8>,
    /// Bytes of `pending` that the last frame was made of.
    taken: usize,
}

impl Decoder {
    /// Goes on from the bytes of an incomplete frame.
    pub fn with_pending(pending: Vec<u8>) -> Decoder {
        Decoder { pending, taken: 0 }
    }

    /// The bytes of an incomplete frame.
    pub fn into_pending(mut self) -> Vec<u8> {
        self.drop_taken();
        self.pending
    }

    /// Whether no part of a frame is kept.
    pub fn is_empty(&self) -> bool {
        self.pending.len() == self.taken
    }

    /// Bytes kept of an incomplete frame.
    pub fn pending_bytes(&self) -> usize {
        self.pending.len() - self.taken
    }

    fn drop_taken(&mut self) {
        if self.taken == self.pending.len() {
            self.pending = Vec::new();
        } else if self.taken > 0 {
            self.pending.drain(..self.taken);
        }
        self.taken = 0;
    }

    /// The next frame, or `None` once `input` is used up; what is left of it is kept. A frame that lies whole in `input`
    /// is not copied. After an error the stream cannot be followed any further.
    ///
    /// A frame borrows from both, so a loop gives each call a cursor of its own:
    ///
    /// ```
    /// # use whimbrel_wire::{Builder, Decoder, limits};
    /// # let mut stream = Vec::new();
    /// # (1..4).for_each(|n| Builder::default().ping(&mut stream, n));
    /// # let (mut decoder, mut frames) = (Decoder::default(), 0);
    /// let mut input = &stream[..];
    /// loop {
    ///     let mut rest = input;
    ///     let Some(frame) = decoder.decode(&mut rest, limits::FRAME_MAX_BYTES)? else { break };
    ///     let used = input.len() - rest.len();
    ///     // What the frame says comes here.
    ///     # assert_eq!(frame.kind, 4);
    ///     # frames += 1;
    ///     input = &input[used..];
    /// }
    /// # assert_eq!(frames, 3);
    /// # Ok::<(), whimbrel_wire::FrameError>(())
    /// ```
    pub fn decode<'a>(&'a mut self, input: &mut &'a [u8], frame_max: usize) -> Result<Option<Frame<'a>>, FrameError> {
        if self.taken > 0 || (self.pending.is_empty() && self.pending.capacity() > 0) {
            self.drop_taken();
        }
        if self.pending.is_empty() {
            let Some(length) = whole(input, frame_max)? else {
                self.pending.extend_from_slice(input);
                *input = &[];
                return Ok(None);
            };
            let (frame, rest) = input.split_at(length);
            *input = rest;
            return parse(frame).map(Some);
        }
        if self.pending.len() < HEADER_BYTES {
            take(&mut self.pending, input, HEADER_BYTES);
        }
        if let Some(length) = announced(&self.pending, frame_max)? {
            take(&mut self.pending, input, length);
            if self.pending.len() >= length {
                self.taken = length;
                return parse(&self.pending[..length]).map(Some);
            }
        }
        Ok(None)
    }
}

/// Moves bytes of `input` until `pending` has `want`.
fn take(pending: &mut Vec<u8>, input: &mut &[u8], want: usize) {
    let count = want.saturating_sub(pending.len()).min(input.len());
    pending.extend_from_slice(&input[..count]);
    *input = &input[count..];
}

/// The length of the frame that `bytes` begin with, once its header is there and its bounds hold.
fn announced(bytes: &[u8], frame_max: usize) -> Result<Option<usize>, FrameError> {
    let Some(header) = bytes.first_chunk::<HEADER_BYTES>() else {
        return Ok(None);
    };
    let header = Header::read(header);
    let length = header.length as usize;
    if length < HEADER_BYTES {
        return Err(FrameError::TooShort { length: header.length });
    }
    if length > frame_max {
        return Err(FrameError::TooLarge { length: header.length, max: frame_max });
    }
    if header.table_len as usize > length - HEADER_BYTES {
        return Err(FrameError::BadTableLength);
    }
    if header.flags != 0 {
        return Err(FrameError::BadFlags(header.flags));
    }
    Ok(Some(length))
}

/// As `announced`, if the frame is there whole.
fn whole(bytes: &[u8], frame_max: usize) -> Result<Option<usize>, FrameError> {
    Ok(announced(bytes, frame_max)?.filter(|length| bytes.len() >= *length))
}

/// Checks the sum of a frame whose bounds hold.
fn parse(bytes: &[u8]) -> Result<Frame<'_>, FrameError> {
    let head = bytes.first_chunk::<HEADER_BYTES>().ok_or(FrameError::TooShort { length: bytes.len() as u32 })?;
    let header = Header::read(head);
    let body = &bytes[HEADER_BYTES..];
    let sum = crc32c::crc32c_append(crc32c::crc32c(&header.checked_bytes()), body);
    if sum != header.crc32c {
        return Err(FrameError::BadChecksum);
    }
    let (table, payload) = body.split_at(header.table_len as usize);
    Ok(Frame { kind: header.kind, version: header.version, table, payload })
}

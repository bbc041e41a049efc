//! The decoder under any bytes, in any pieces.

use proptest::collection::vec;
use proptest::prelude::{Strategy, any, prop_assert, prop_assert_eq, proptest};
use proptest::sample::Index;
use whimbrel_wire::{Builder, Decoder, FrameError, HEADER_BYTES, Kind, SendFields, VERSION, limits};

use crate::json::{self, To};
use crate::{hostile, samples};

const MAX: usize = limits::FRAME_MAX_BYTES;

/// A frame, owned.
type Owned = (u8, u8, Vec<u8>, Vec<u8>);

/// All frames of these pieces of a stream. No more is ever kept than was fed.
fn decode<'a>(pieces: impl IntoIterator<Item = &'a [u8]>, max: usize) -> Result<Vec<Owned>, FrameError> {
    let mut decoder = Decoder::default();
    let mut frames = Vec::new();
    let (mut fed, mut made) = (0, 0);
    for piece in pieces {
        fed += piece.len();
        let mut input = piece;
        loop {
            let mut rest = input;
            let Some(frame) = decoder.decode(&mut rest, max)? else {
                assert!(rest.is_empty(), "all is taken");
                break;
            };
            made += HEADER_BYTES + frame.table.len() + frame.payload.len();
            frames.push((frame.kind, frame.version, frame.table.to_vec(), frame.payload.to_vec()));
            input = &input[input.len() - rest.len()..];
        }
        assert_eq!(decoder.pending_bytes(), fed - made);
        assert!(decoder.pending_bytes() < max);
        assert_eq!(decoder.is_empty(), fed == made);
    }
    Ok(frames)
}

fn stream() -> Vec<u8> {
    let mut bytes: Vec<u8> =
        samples::good().iter().flat_map(|(_, _, kind, fields)| json::build(*kind, fields)).collect();
    Builder::default().send(&mut bytes, &SendFields::default(), &[9; 1_000]);
    bytes
}

#[test]
fn a_stream_cut_at_every_byte_boundary_gives_the_same_frames() {
    let bytes = stream();
    let whole = decode([&bytes[..]], MAX).unwrap();
    assert_eq!(whole.len(), samples::good().len() + 1);
    assert_eq!(decode(bytes.chunks(1), MAX).unwrap(), whole);
    for cut in 0..=bytes.len() {
        let (first, second) = bytes.split_at(cut);
        assert_eq!(decode([first, second], MAX).unwrap(), whole, "cut at {cut}");
    }
}

#[test]
fn a_frame_that_lies_whole_in_the_input_is_not_copied() {
    let bytes = stream();
    let mut decoder = Decoder::default();
    let mut input = &bytes[..];
    let frame = decoder.decode(&mut input, MAX).unwrap().unwrap();
    assert_eq!(frame.table.as_ptr(), bytes[HEADER_BYTES..].as_ptr());
}

#[test]
fn a_connection_that_moves_takes_its_bytes_along() {
    let bytes = stream();
    let whole = decode([&bytes[..]], MAX).unwrap();
    for cut in 0..bytes.len() {
        let mut decoder = Decoder::default();
        let mut before = Vec::new();
        let mut input = &bytes[..cut];
        loop {
            let mut rest = input;
            let Some(frame) = decoder.decode(&mut rest, MAX).unwrap() else { break };
            before.push((frame.kind, frame.version, frame.table.to_vec(), frame.payload.to_vec()));
            input = &input[input.len() - rest.len()..];
        }
        let mut moved = Decoder::with_pending(decoder.into_pending());
        let mut input = &bytes[cut..];
        loop {
            let mut rest = input;
            let Some(frame) = moved.decode(&mut rest, MAX).unwrap() else { break };
            before.push((frame.kind, frame.version, frame.table.to_vec(), frame.payload.to_vec()));
            input = &input[input.len() - rest.len()..];
        }
        assert_eq!(before, whole, "moved after {cut} bytes");
    }
}

#[test]
fn a_frame_of_exactly_the_largest_size_passes_and_one_byte_more_does_not() {
    let bytes = json::build(Kind::Ping, &serde_json::json!({ "correlation": 1 }));
    assert_eq!(decode([&bytes[..]], bytes.len()).unwrap().len(), 1);
    let error = decode([&bytes[..]], bytes.len() - 1).unwrap_err();
    assert_eq!(error, FrameError::TooLarge { length: bytes.len() as u32, max: bytes.len() - 1 });
}

#[test]
fn nothing_is_kept_for_a_frame_that_was_only_announced() {
    let mut header = json::build(Kind::Ping, &serde_json::json!({ "correlation": 1 }))[..HEADER_BYTES].to_vec();
    header[..4].copy_from_slice(&(MAX as u32).to_le_bytes());
    let mut decoder = Decoder::default();
    let mut input = &header[..];
    assert_eq!(decoder.decode(&mut input, MAX), Ok(None));
    assert!(decoder.into_pending().capacity() < 4 * HEADER_BYTES);
}

#[test]
fn every_flipped_bit_is_noticed() {
    for (name, _, kind, fields) in samples::good() {
        let good = json::build(kind, &fields);
        for bit in 0..good.len() * 8 {
            let mut bytes = good.clone();
            bytes[bit / 8] ^= 1 << (bit % 8);
            // A longer length is noticed once the rest is there, which is then the next frame's.
            bytes.extend_from_slice(&vec![0; MAX]);
            assert!(decode([&bytes[..]], MAX).is_err(), "bit {bit} of {name}");
        }
    }
}

fn pieces(bytes: &[u8], cuts: &[Index]) -> Vec<Vec<u8>> {
    let mut at: Vec<usize> = cuts.iter().map(|cut| cut.index(bytes.len() + 1)).collect();
    at.extend([0, bytes.len()]);
    at.sort_unstable();
    at.windows(2).map(|pair| bytes[pair[0]..pair[1]].to_vec()).collect()
}

fn frames() -> impl Strategy<Value = Vec<(u128, u64, Vec<u8>)>> {
    vec((any::<u128>(), any::<u64>(), vec(any::<u8>(), 0..300)), 0..12)
}

proptest! {
    #[test]
    fn any_cuts_give_the_same_frames(frames in frames(), cuts in vec(any::<Index>(), 0..40)) {
        let mut bytes = Vec::new();
        let mut build = Builder::default();
        for (chat, client_seq, payload) in &frames {
            build.send(&mut bytes, &SendFields { correlation: 1, chat: *chat, client_seq: *client_seq, prev: 0 }, payload);
        }
        let whole = decode([&bytes[..]], MAX).unwrap();
        prop_assert_eq!(whole.len(), frames.len());
        let cut = pieces(&bytes, &cuts);
        prop_assert_eq!(decode(cut.iter().map(Vec::as_slice), MAX).unwrap(), whole);
    }

    #[test]
    fn arbitrary_bytes_never_panic(bytes in vec(any::<u8>(), 0..4_096), cuts in vec(any::<Index>(), 0..10), max in 0usize..70_000) {
        let cut = pieces(&bytes, &cuts);
        let in_pieces = decode(cut.iter().map(Vec::as_slice), max.max(HEADER_BYTES));
        prop_assert_eq!(in_pieces.is_err(), decode([&bytes[..]], max.max(HEADER_BYTES)).is_err());
    }

    #[test]
    fn a_cut_frame_is_waited_for_or_refused(which in any::<Index>(), keep in any::<Index>()) {
        let samples = samples::good();
        let (_, _, kind, fields) = &samples[which.index(samples.len())];
        let bytes = json::build(*kind, fields);
        let cut = &bytes[..keep.index(bytes.len())];
        prop_assert_eq!(decode([cut], MAX), Ok(vec![]));
    }

    #[test]
    fn arbitrary_tables_never_panic(kind in 0u8..16, table in vec(any::<u8>(), 0..256), payload in vec(any::<u8>(), 0..8)) {
        let bytes = hostile::frame(kind, if kind == 3 { 0 } else { VERSION }, &table, &payload);
        let _ = json::read(&bytes, To::Server, MAX);
        let _ = json::read(&bytes, To::Client, MAX);
    }

    #[test]
    fn damaged_tables_never_panic(which in any::<Index>(), damage in vec((any::<Index>(), any::<u8>()), 1..6)) {
        let samples = samples::good();
        let (_, to, kind, fields) = &samples[which.index(samples.len())];
        let mut bytes = json::build(*kind, fields);
        for (at, value) in damage {
            let at = HEADER_BYTES + at.index(bytes.len() - HEADER_BYTES);
            bytes[at] = value;
        }
        hostile::seal(&mut bytes);
        if let Ok(read) = json::read(&bytes, *to, MAX) {
            prop_assert!(read.is_some());
        }
    }
}

//! In a steady state neither writing nor reading frames and commands allocates.

#![allow(clippy::unwrap_used)]

use std::alloc::{GlobalAlloc, Layout, System};
use std::cell::Cell;

use whimbrel_wire::command::Entry;
use whimbrel_wire::{
    Builder, ChatSendFields, ClientFrame, CommandBuilder, Decoder, DeliverFields, EntryWriter, Payload, SendFields,
    SentFields, limits,
};

struct Counting;

thread_local! {
    static ALLOCATIONS: Cell<u64> = const { Cell::new(0) };
}

// SAFETY: each call is passed on unchanged to the system's allocator, which keeps the contract; counting allocates nothing.
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        ALLOCATIONS.set(ALLOCATIONS.get() + 1);
        // SAFETY: the caller's promises are the ones that `System` asks for.
        unsafe { System.alloc(layout) }
    }

    unsafe fn dealloc(&self, ptr: *mut u8, layout: Layout) {
        // SAFETY: `ptr` came from `System` by `alloc` above.
        unsafe { System.dealloc(ptr, layout) }
    }
}

#[global_allocator]
static ALLOCATOR: Counting = Counting;

fn round(build: &mut Builder, out: &mut Vec<u8>) {
    out.clear();
    for seq in 1..=16 {
        build.send(out, &SendFields { correlation: seq, chat: 1, client_seq: seq, prev: seq - 1 }, &[7; 128]);
        build.sent(out, &SentFields { correlation: seq, chat: 1, client_seq: seq, ..SentFields::default() });
        let deliver =
            DeliverFields { inbox_seq: seq, chat: 1, chat_seq: seq, sender: "alice", ..DeliverFields::default() };
        build.deliver(out, &deliver, &[7; 128], Payload::Inline);
        build.ack(out, seq);
        build.ping(out, seq);
        build.pong(out, seq, seq);
    }
}

fn read(decoder: &mut Decoder, bytes: &[u8]) -> usize {
    let mut input = bytes;
    let mut payload_bytes = 0;
    loop {
        let mut rest = input;
        let Some(frame) = decoder.decode(&mut rest, limits::FRAME_MAX_BYTES).unwrap() else { return payload_bytes };
        if let Ok(ClientFrame::Send(_, payload)) = ClientFrame::parse(&frame) {
            payload_bytes += payload.len();
        }
        input = &input[input.len() - rest.len()..];
    }
}

#[test]
fn nothing_is_allocated_once_the_buffers_have_grown() {
    let (mut build, mut out, mut decoder) = (Builder::default(), Vec::new(), Decoder::default());
    let (mut commands, mut entry) = (CommandBuilder::default(), EntryWriter::default());
    let send = ChatSendFields { chat: 1, sender: "alice", device: 1, client_seq: 1, prev: 0 };
    round(&mut build, &mut out);
    entry.chat_send(&mut commands, &send, &[7; 128]);
    let bytes = entry.take(1);

    let before = ALLOCATIONS.get();
    let mut sum = 0;
    for _ in 0..100 {
        round(&mut build, &mut out);
        sum += read(&mut decoder, &out);
        sum += Entry::verify(&bytes).unwrap().iter().count();
    }
    assert_eq!(ALLOCATIONS.get() - before, 0);
    assert_eq!(sum, 100 * (16 * 128 + 1));
}

//! Facts about the FlatBuffers crate that the protocol is built around, so that a new version of it that differs is noticed.

use flatbuffers::FlatBufferBuilder;
use serde_json::json;
use whimbrel_wire::{Code, Kind, VERSION, fb, limits};

use crate::hostile;
use crate::json::{self, To};

fn ping() -> Vec<u8> {
    let mut b = FlatBufferBuilder::new();
    let root = fb::Ping::create(&mut b, &fb::PingArgs { correlation: 7 });
    b.finish_minimal(root);
    b.finished_data().to_vec()
}

#[test]
fn flatbuffers_accepts_bytes_behind_the_root_and_a_frame_does_not() {
    let mut table = ping();
    table.extend_from_slice(b"anything");
    assert_eq!(flatbuffers::root::<fb::Ping<'_>>(&table).unwrap().correlation(), 7);
    // Behind a frame's table comes its payload, and only two kinds may have one.
    let frame = hostile::frame(Kind::Ping as u8, VERSION, &ping(), b"anything");
    assert_eq!(json::read(&frame, To::Server, limits::FRAME_MAX_BYTES).unwrap_err().code(), Code::BadTable);
}

#[test]
fn flatbuffers_does_not_look_at_a_size_prefix_and_the_header_does() {
    let mut b = FlatBufferBuilder::new();
    let root = fb::Ping::create(&mut b, &fb::PingArgs { correlation: 7 });
    b.finish_size_prefixed(root, None);
    let mut prefixed = b.finished_data().to_vec();
    prefixed[..4].copy_from_slice(&12_345u32.to_le_bytes());
    assert_eq!(flatbuffers::size_prefixed_root::<fb::Ping<'_>>(&prefixed).unwrap().correlation(), 7);
    let mut frame = hostile::frame(Kind::Ping as u8, VERSION, &ping(), &[]);
    frame[8..12].copy_from_slice(&12_345u32.to_le_bytes());
    assert_eq!(json::read(&frame, To::Server, limits::FRAME_MAX_BYTES).unwrap_err().code(), Code::BadFrame);
}

/// The verifier lets a union's tag pass that it does not know, with nothing of its value checked. The schemas have none:
/// what a frame or command is stands in its header, and numbers that nobody knows are refused there.
#[test]
fn the_schemas_have_no_union() {
    for schema in [include_str!("../../schema/client.fbs"), include_str!("../../schema/log.fbs")] {
        let code = schema.lines().map(|line| line.split("//").next().unwrap_or(""));
        assert!(code.clone().all(|line| !line.split_whitespace().any(|word| word == "union")));
        assert!(code.clone().all(|line| !line.trim_start().starts_with("root_type")), "a kind is the header's to say");
    }
}

#[test]
fn flatbuffers_takes_one_table_for_another_of_the_same_layout() {
    // Ping and Ack are both one u64: nothing but the header's kind tells them apart.
    assert_eq!(flatbuffers::root::<fb::Ack<'_>>(&ping()).unwrap().floor(), 7);
}

#[test]
fn flatbuffers_accepts_numbers_that_an_enum_does_not_have() {
    let fields = json!({ "correlation": 1, "chat": "1", "client_seq": 1, "chat_seq": 1, "time_ms": 1, "durability": 99, "status": 98 });
    let frame = json::build(Kind::Sent, &fields);
    let (_, read) = json::read(&frame, To::Client, limits::FRAME_MAX_BYTES).unwrap().unwrap();
    assert_eq!((&read["durability"], &read["status"]), (&json!(99), &json!(98)));
}

#[test]
fn a_text_named_many_times_is_counted_each_time() {
    let mut b = FlatBufferBuilder::new();
    let text = b.create_string(&"x".repeat(1_000));
    let members = b.create_vector(&vec![text; 1_000]);
    let args = fb::CreateChatArgs { members: Some(members), ..fb::CreateChatArgs::default() };
    let root = fb::CreateChat::create(&mut b, &args);
    b.finish_minimal(root);
    let table = b.finished_data();
    let options =
        flatbuffers::VerifierOptions { max_apparent_size: 100_000, ..flatbuffers::VerifierOptions::default() };
    assert!(flatbuffers::root_with_opts::<fb::CreateChat<'_>>(&options, table).is_err());
    assert!(flatbuffers::root::<fb::CreateChat<'_>>(table).is_ok());
}

//! The hostile frames of this version's golden vectors: for each way of being wrong the number that it is answered with.

use flatbuffers::{FlatBufferBuilder, WIPOffset};
use whimbrel_wire::{
    Builder, Code, CreateChatFields, DeliverFields, HEADER_BYTES, HelloFields, Kind, Payload, SendFields, VERSION, fb,
    limits,
};

use crate::json::To;

/// One of them.
pub(crate) struct Hostile {
    pub(crate) name: String,
    pub(crate) to: To,
    pub(crate) frame_max: usize,
    /// `None`: no frame yet, the rest is waited for.
    pub(crate) code: Option<Code>,
    pub(crate) why: &'static str,
    pub(crate) bytes: Vec<u8>,
}

pub(crate) fn all() -> Vec<Hostile> {
    let mut all = headers();
    all.extend(kinds());
    all.extend(tables());
    all.extend(bounds());
    all
}

fn hostile(name: impl Into<String>, code: Code, why: &'static str, bytes: Vec<u8>) -> Hostile {
    Hostile { name: name.into(), to: To::Server, frame_max: limits::FRAME_MAX_BYTES, code: Some(code), why, bytes }
}

fn headers() -> Vec<Hostile> {
    let set = |at: usize, bytes: &[u8]| {
        let mut frame = ping();
        frame[at..at + bytes.len()].copy_from_slice(bytes);
        frame
    };
    let flip = |at: usize| {
        let mut frame = send(b"hello");
        frame[at] ^= 1;
        frame
    };
    let length = send(b"hello").len();
    let mut cut = ping();
    cut.pop();
    let mut flags = ping();
    flags[6] = 1;
    seal(&mut flags);
    vec![
        hostile("length_zero", Code::BadFrame, "shorter than its header", set(0, &0u32.to_le_bytes())),
        hostile("length_15", Code::BadFrame, "shorter than its header", set(0, &15u32.to_le_bytes())),
        hostile(
            "length_65537",
            Code::FrameTooLarge,
            "one byte more than the largest frame",
            set(0, &65_537u32.to_le_bytes()),
        ),
        hostile("length_4g", Code::FrameTooLarge, "all ones", set(0, &u32::MAX.to_le_bytes())),
        hostile(
            "http",
            Code::FrameTooLarge,
            "the letters are read as a length",
            b"GET / HTTP/1.1\r\nHost: whimbrel\r\n\r\n".to_vec(),
        ),
        hostile(
            "tls",
            Code::FrameTooLarge,
            "a TLS handshake on a plain port",
            b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03........".to_vec(),
        ),
        hostile(
            "table_longer_than_frame",
            Code::BadFrame,
            "table_len is length - 15",
            set(8, &(ping().len() as u32 - 15).to_le_bytes()),
        ),
        hostile("flags", Code::BadFrame, "a flag that nobody knows", flags),
        hostile("checksum_zero", Code::BadChecksum, "not computed", set(12, &[0; 4])),
        hostile("checksum_header", Code::BadChecksum, "a flipped bit of the kind", flip(4)),
        hostile("checksum_table", Code::BadChecksum, "a flipped bit of the table", flip(HEADER_BYTES + 4)),
        hostile("checksum_payload", Code::BadChecksum, "a flipped bit of the payload", flip(length - 1)),
        Hostile { code: None, ..hostile("cut", Code::BadFrame, "the last byte is missing: not wrong yet", cut) },
        Hostile {
            frame_max: limits::FRAME_MAX_BEFORE_LOGIN_BYTES,
            ..hostile(
                "large_before_login",
                Code::FrameTooLarge,
                "a good frame, but before the login",
                send(&[0; 2_048]),
            )
        },
    ]
}

fn kinds() -> Vec<Hostile> {
    let mut all = Vec::new();
    for kind in [0, 14, 255] {
        all.push(hostile(
            format!("kind_{kind}"),
            Code::UnknownKind,
            "no such kind; skipped",
            frame(kind, VERSION, &table(&ping()), &[]),
        ));
    }
    for version in [0, 2, 255] {
        let bytes = frame(Kind::Ping as u8, version, &table(&ping()), &[]);
        all.push(hostile(format!("version_{version}"), Code::UnsupportedVersion, "no such version", bytes));
    }
    let refused = Hostile {
        to: To::Client,
        ..hostile(
            "refused_version_1",
            Code::UnsupportedVersion,
            "the version of Refused is always 0",
            frame(3, 1, &table(&ping()), &[]),
        )
    };
    all.push(refused);
    let of_server = [Kind::Welcome, Kind::Refused, Kind::Pong, Kind::Sent, Kind::Deliver, Kind::GoAway, Kind::Error];
    let of_client = [Kind::Hello, Kind::Ping, Kind::CreateChat, Kind::Send, Kind::Ack];
    let wrong = of_server.map(|kind| (kind, To::Server)).into_iter().chain(of_client.map(|kind| (kind, To::Client)));
    for (kind, to) in wrong {
        let bytes = frame(kind as u8, kind.version(), &table(&ping()), &[]);
        let name = format!("{kind:?}_to_{to:?}").to_lowercase();
        all.push(Hostile { to, ..hostile(name, Code::UnexpectedKind, "only the other side sends it", bytes) });
    }
    all
}

fn tables() -> Vec<Hostile> {
    let with = |at: usize, bytes: &[u8]| {
        let mut table = table(&hello());
        table[at..at + bytes.len()].copy_from_slice(bytes);
        frame(Kind::Hello as u8, VERSION, &table, &[])
    };
    let good = table(&hello());
    let root = u32::from_le_bytes([good[0], good[1], good[2], good[3]]) as usize;
    let token = good.windows(5).position(|w| w == b"TOKEN").unwrap();
    let bad = |name: &str, why, bytes| hostile(name, Code::BadTable, why, bytes);
    vec![
        bad("table_empty", "no table at all", frame(Kind::Ping as u8, VERSION, &[], &[])),
        bad("table_short", "three bytes are no offset", frame(Kind::Ping as u8, VERSION, &[4, 0, 0], &[])),
        bad("root_outside", "the root lies outside", with(0, &0xffff_fff0u32.to_le_bytes())),
        bad("root_unaligned", "the root lies at an odd place", with(0, &(root as u32 + 1).to_le_bytes())),
        bad("vtable_outside", "the vtable lies outside", with(root, &i32::MIN.to_le_bytes())),
        bad("vtable_self", "the vtable is the table", with(root, &0i32.to_le_bytes())),
        bad("string_outside", "a text that ends outside", with(token - 4, &0x7fff_ffffu32.to_le_bytes())),
        bad("string_not_utf8", "a text that is none", with(token, &[0xff])),
        bad("string_without_end", "a text without its zero byte", with(token + 5, b"x")),
        bad("token_missing", "a required field is missing", raw(Kind::Hello, |_| vec![])),
        bad("chat_missing", "a required field is missing", raw(Kind::Send, |_| vec![])),
        bad("members_missing", "a required field is missing", raw(Kind::CreateChat, |_| vec![])),
        bad("same_text_1024_times", "small to send, large to look at", bomb()),
        bad(
            "payload_behind_ping",
            "only Send and Deliver carry one",
            frame(Kind::Ping as u8, VERSION, &table(&ping()), b"x"),
        ),
    ]
}

fn bounds() -> Vec<Hostile> {
    let hello_with = |token: usize, agent: usize| {
        built(|b, out| {
            let (token, agent) = ("t".repeat(token), "a".repeat(agent));
            b.hello(out, &HelloFields { correlation: 1, token: &token, agent: &agent, ..hello_fields() });
        })
    };
    let names: Vec<String> = (0..=limits::MEMBERS_MAX).map(|n| format!("u{n}")).collect();
    let names: Vec<&str> = names.iter().map(String::as_str).collect();
    let create = built(|b, out| {
        let fields =
            CreateChatFields { correlation: 1, kind: fb::ChatKind::Group, nonce: 1, members: &names, title: "" };
        b.create_chat(out, &fields);
    });
    let sender = "s".repeat(limits::USER_MAX_BYTES + 1);
    let deliver = DeliverFields { inbox_seq: 1, chat: 1, chat_seq: 1, sender: &sender, ..DeliverFields::default() };
    let deliver = built(|b, out| b.deliver(out, &deliver, b"x", Payload::Inline));
    vec![
        hostile("token_1025", Code::BadTable, "longer than a token may be", hello_with(limits::TOKEN_MAX_BYTES + 1, 1)),
        hostile("agent_65", Code::BadTable, "longer than an agent may be", hello_with(5, limits::AGENT_MAX_BYTES + 1)),
        hostile("members_1025", Code::BadTable, "more than a chat may have", create),
        hostile(
            "payload_65025",
            Code::PayloadTooLarge,
            "a frame, but no message",
            send(&vec![7; limits::PAYLOAD_MAX_BYTES + 1]),
        ),
        Hostile { to: To::Client, ..hostile("sender_40", Code::BadTable, "longer than a user's name may be", deliver) },
    ]
}

// ---- pieces ----

fn hello_fields() -> HelloFields<'static> {
    HelloFields { correlation: 1, version_min: 1, version_max: 1, device: 1, token: "TOKEN", ..HelloFields::default() }
}

fn built(write: impl FnOnce(&mut Builder, &mut Vec<u8>)) -> Vec<u8> {
    let mut out = Vec::new();
    write(&mut Builder::default(), &mut out);
    out
}

fn hello() -> Vec<u8> {
    built(|b, out| b.hello(out, &hello_fields()))
}

fn ping() -> Vec<u8> {
    built(|b, out| b.ping(out, 7))
}

fn send(payload: &[u8]) -> Vec<u8> {
    built(|b, out| b.send(out, &SendFields { correlation: 1, chat: 1, client_seq: 1, prev: 0 }, payload))
}

fn table(frame: &[u8]) -> Vec<u8> {
    let len = u32::from_le_bytes([frame[8], frame[9], frame[10], frame[11]]) as usize;
    frame[HEADER_BYTES..HEADER_BYTES + len].to_vec()
}

/// A frame around any bytes, its header and checksum right.
pub(crate) fn frame(kind: u8, version: u8, table: &[u8], payload: &[u8]) -> Vec<u8> {
    let mut out = ((HEADER_BYTES + table.len() + payload.len()) as u32).to_le_bytes().to_vec();
    out.extend_from_slice(&[kind, version, 0, 0]);
    out.extend_from_slice(&(table.len() as u32).to_le_bytes());
    out.extend_from_slice(&[0; 4]);
    out.extend_from_slice(table);
    out.extend_from_slice(payload);
    seal(&mut out);
    out
}

/// Makes the checksum right.
pub(crate) fn seal(frame: &mut [u8]) {
    let sum = crc32c::crc32c_append(crc32c::crc32c(&frame[..12]), &frame[HEADER_BYTES..]);
    frame[12..16].copy_from_slice(&sum.to_le_bytes());
}

/// A table of a correlation and these texts and vectors only, by their slots.
fn raw(
    kind: Kind,
    parts: impl FnOnce(&mut FlatBufferBuilder<'_>) -> Vec<(u16, WIPOffset<flatbuffers::UnionWIPOffset>)>,
) -> Vec<u8> {
    let mut b = FlatBufferBuilder::new();
    let parts = parts(&mut b);
    let start = b.start_table();
    b.push_slot::<u64>(4, 1, 0);
    for (slot, offset) in parts {
        b.push_slot_always(4 + 2 * slot, offset);
    }
    let root = b.end_table(start);
    b.finish_minimal(root);
    frame(kind as u8, VERSION, b.finished_data(), &[])
}

/// 1,024 members which are all the same 16 KiB.
fn bomb() -> Vec<u8> {
    raw(Kind::CreateChat, |b| {
        let text = b.create_string(&"x".repeat(16 * 1024));
        let members = b.create_vector(&vec![text; 1_024]);
        vec![(3, members.as_union_value())]
    })
}

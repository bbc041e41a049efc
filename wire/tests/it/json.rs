//! Frames as JSON and back: what the golden vectors say in words, and what other tests read whole frames with.

use serde_json::{Value, json};
use whimbrel_wire::{
    Builder, ChatInfoFields, ClientFrame, CreateChatFields, Decoder, DeliverFields, ErrorFields, Frame, FrameError,
    HelloFields, Kind, Payload, RefusedFields, SendFields, SentFields, ServerFrame, WelcomeFields, chat_id, fb, limits,
};

/// Who a frame is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum To {
    Server,
    Client,
}

/// What the bytes say to this side: kind and fields, if they are exactly one good frame.
pub(crate) fn read(bytes: &[u8], to: To, frame_max: usize) -> Result<Option<(Kind, Value)>, FrameError> {
    let mut decoder = Decoder::default();
    let mut input = bytes;
    let Some(frame) = decoder.decode(&mut input, frame_max)? else { return Ok(None) };
    assert!(input.is_empty(), "one frame");
    said(&frame, to).map(Some)
}

/// What a frame says to this side.
pub(crate) fn said(frame: &Frame<'_>, to: To) -> Result<(Kind, Value), FrameError> {
    Ok(match to {
        To::Server => of_client(&ClientFrame::parse(frame)?),
        To::Client => of_server(&ServerFrame::parse(frame)?),
    })
}

fn of_client(frame: &ClientFrame<'_>) -> (Kind, Value) {
    match frame {
        ClientFrame::Hello(f) => (
            Kind::Hello,
            json!({
                "correlation": f.correlation(), "version_min": f.version_min(), "version_max": f.version_max(),
                "capabilities": f.capabilities(), "token": f.token(), "device": f.device(), "floor": f.floor(), "agent": f.agent(),
            }),
        ),
        ClientFrame::Ping(f) => (Kind::Ping, json!({ "correlation": f.correlation() })),
        ClientFrame::CreateChat(f) => (
            Kind::CreateChat,
            json!({
                "correlation": f.correlation(), "kind": f.kind().0, "nonce": f.nonce(),
                "members": f.members().iter().collect::<Vec<_>>(), "title": f.title(),
            }),
        ),
        ClientFrame::ChatInfo(f) => chat_info(f),
        ClientFrame::Send(f, payload) => (
            Kind::Send,
            json!({
                "correlation": f.correlation(), "chat": hex_id(f.chat()), "client_seq": f.client_seq(), "prev": f.prev(),
                "payload": hex(payload),
            }),
        ),
        ClientFrame::Ack(f) => (Kind::Ack, json!({ "floor": f.floor() })),
    }
}

fn of_server(frame: &ServerFrame<'_>) -> (Kind, Value) {
    match frame {
        ServerFrame::Welcome(f) => (
            Kind::Welcome,
            json!({
                "correlation": f.correlation(), "version": f.version(), "capabilities": f.capabilities(), "user": f.user(),
                "device": f.device(), "generation": f.generation(), "head": f.head(), "floor": f.floor(),
                "credit_messages": f.credit_messages(), "credit_bytes": f.credit_bytes(), "frame_max_bytes": f.frame_max_bytes(),
                "sends_in_flight_max": f.sends_in_flight_max(), "keepalive_ms": f.keepalive_ms(),
                "server_time_ms": f.server_time_ms(), "shard": f.shard(),
            }),
        ),
        ServerFrame::Refused(f) => (
            Kind::Refused,
            json!({
                "correlation": f.correlation(), "code": f.code(), "retry_after_ms": f.retry_after_ms(),
                "version_min": f.version_min(), "version_max": f.version_max(), "detail": f.detail(),
            }),
        ),
        ServerFrame::Pong(f) => {
            (Kind::Pong, json!({ "correlation": f.correlation(), "server_time_ms": f.server_time_ms() }))
        }
        ServerFrame::ChatInfo(f) => chat_info(f),
        ServerFrame::Sent(f) => (
            Kind::Sent,
            json!({
                "correlation": f.correlation(), "chat": hex_id(f.chat()), "client_seq": f.client_seq(), "chat_seq": f.chat_seq(),
                "time_ms": f.time_ms(), "durability": f.durability().0, "status": f.status().0,
            }),
        ),
        ServerFrame::Deliver(f, payload) => (
            Kind::Deliver,
            json!({
                "inbox_seq": f.inbox_seq(), "chat": hex_id(f.chat()), "chat_seq": f.chat_seq(), "time_ms": f.time_ms(),
                "sender": f.sender(), "sender_device": f.sender_device(), "event": f.event().0,
                "members": f.members().map(|list| list.iter().collect::<Vec<_>>()), "title": f.title(), "payload": hex(payload),
            }),
        ),
        ServerFrame::GoAway(f) => {
            (Kind::GoAway, json!({ "code": f.code(), "retry_after_ms": f.retry_after_ms(), "detail": f.detail() }))
        }
        ServerFrame::Error(f) => (
            Kind::Error,
            json!({
                "correlation": f.correlation(), "code": f.code(), "retriable": f.retriable(), "closes": f.closes(),
                "retry_after_ms": f.retry_after_ms(), "kind": f.kind(), "client_seq": f.client_seq(), "detail": f.detail(),
            }),
        ),
    }
}

fn chat_info(f: &fb::ChatInfo<'_>) -> (Kind, Value) {
    let fields = json!({
        "correlation": f.correlation(), "chat": hex_id(f.chat()), "kind": f.kind().0, "title": f.title(),
        "members": f.members().map(|list| list.iter().collect::<Vec<_>>()), "last_seq": f.last_seq(),
        "last_client_seq": f.last_client_seq(), "created": f.created(), "time_ms": f.time_ms(),
    });
    (Kind::ChatInfo, fields)
}

/// The frame of these fields.
pub(crate) fn build(kind: Kind, v: &Value) -> Vec<u8> {
    let mut out = Vec::new();
    let b = &mut Builder::default();
    let correlation = n(v, "correlation");
    let members = names(v);
    match kind {
        Kind::Hello => b.hello(
            &mut out,
            &HelloFields {
                correlation,
                version_min: n(v, "version_min") as u8,
                version_max: n(v, "version_max") as u8,
                capabilities: n(v, "capabilities"),
                token: s(v, "token"),
                device: n(v, "device") as u32,
                floor: n(v, "floor"),
                agent: s(v, "agent"),
            },
        ),
        Kind::Welcome => b.welcome(&mut out, &welcome(v)),
        Kind::Refused => b.refused(
            &mut out,
            &RefusedFields {
                correlation,
                code: n(v, "code") as u16,
                retry_after_ms: n(v, "retry_after_ms") as u32,
                version_min: n(v, "version_min") as u8,
                version_max: n(v, "version_max") as u8,
                detail: s(v, "detail"),
            },
        ),
        Kind::Ping => b.ping(&mut out, correlation),
        Kind::Pong => b.pong(&mut out, correlation, n(v, "server_time_ms")),
        Kind::CreateChat => {
            let kind = fb::ChatKind(n(v, "kind") as u8);
            let fields =
                CreateChatFields { correlation, kind, nonce: n(v, "nonce"), members: &members, title: s(v, "title") };
            b.create_chat(&mut out, &fields);
        }
        Kind::ChatInfo => b.chat_info(
            &mut out,
            &ChatInfoFields {
                correlation,
                chat: chat(v),
                kind: fb::ChatKind(n(v, "kind") as u8),
                title: s(v, "title"),
                members: &members,
                last_seq: n(v, "last_seq"),
                last_client_seq: n(v, "last_client_seq"),
                created: v["created"] == true,
                time_ms: n(v, "time_ms"),
            },
        ),
        Kind::Send => {
            let fields = SendFields { correlation, chat: chat(v), client_seq: n(v, "client_seq"), prev: n(v, "prev") };
            b.send(&mut out, &fields, &unhex(s(v, "payload")));
        }
        Kind::Sent => b.sent(
            &mut out,
            &SentFields {
                correlation,
                chat: chat(v),
                client_seq: n(v, "client_seq"),
                chat_seq: n(v, "chat_seq"),
                time_ms: n(v, "time_ms"),
                durability: fb::Durability(n(v, "durability") as u8),
                status: fb::SentStatus(n(v, "status") as u8),
            },
        ),
        Kind::Deliver => {
            let fields = DeliverFields {
                inbox_seq: n(v, "inbox_seq"),
                chat: chat(v),
                chat_seq: n(v, "chat_seq"),
                time_ms: n(v, "time_ms"),
                sender: s(v, "sender"),
                sender_device: n(v, "sender_device") as u32,
                event: fb::Event(n(v, "event") as u8),
                members: &members,
                title: s(v, "title"),
            };
            b.deliver(&mut out, &fields, &unhex(s(v, "payload")), Payload::Inline);
        }
        Kind::Ack => b.ack(&mut out, n(v, "floor")),
        Kind::GoAway => b.go_away(&mut out, n(v, "code") as u16, n(v, "retry_after_ms") as u32, s(v, "detail")),
        Kind::Error => b.error(
            &mut out,
            &ErrorFields {
                correlation,
                code: n(v, "code") as u16,
                retriable: v["retriable"] == true,
                closes: v["closes"] == true,
                retry_after_ms: n(v, "retry_after_ms") as u32,
                kind: n(v, "kind") as u8,
                client_seq: n(v, "client_seq"),
                detail: s(v, "detail"),
            },
        ),
    }
    assert!(out.len() <= limits::FRAME_MAX_BYTES);
    out
}

fn welcome(v: &Value) -> WelcomeFields<'_> {
    WelcomeFields {
        correlation: n(v, "correlation"),
        version: n(v, "version") as u8,
        capabilities: n(v, "capabilities"),
        user: s(v, "user"),
        device: n(v, "device") as u32,
        generation: n(v, "generation"),
        head: n(v, "head"),
        floor: n(v, "floor"),
        credit_messages: n(v, "credit_messages") as u32,
        credit_bytes: n(v, "credit_bytes") as u32,
        frame_max_bytes: n(v, "frame_max_bytes") as u32,
        sends_in_flight_max: n(v, "sends_in_flight_max") as u32,
        keepalive_ms: n(v, "keepalive_ms") as u32,
        server_time_ms: n(v, "server_time_ms"),
        shard: n(v, "shard") as u16,
    }
}

fn n(v: &Value, name: &str) -> u64 {
    v[name].as_u64().unwrap_or(0)
}

fn s<'a>(v: &'a Value, name: &str) -> &'a str {
    v[name].as_str().unwrap_or("")
}

fn names(v: &Value) -> Vec<&str> {
    v["members"].as_array().map(|list| list.iter().filter_map(Value::as_str).collect()).unwrap_or_default()
}

fn chat(v: &Value) -> u128 {
    u128::from_str_radix(s(v, "chat"), 16).unwrap()
}

fn hex_id(id: &fb::ChatId) -> String {
    format!("{:032x}", chat_id(id))
}

/// Lower-case digits.
pub(crate) fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|b| format!("{b:02x}")).collect()
}

/// From digits.
pub(crate) fn unhex(text: &str) -> Vec<u8> {
    assert_eq!(text.len() % 2, 0);
    (0..text.len()).step_by(2).map(|at| u8::from_str_radix(&text[at..at + 2], 16).unwrap()).collect()
}

//! The good frames of this version's golden vectors: each kind once, and the shapes that differ.

use serde_json::{Value, json};
use whimbrel_wire::Kind;

use crate::json::To;

const CHAT: &str = "0123456789abcdeffedcba9876543210";
const TIME_MS: u64 = 1_795_500_000_123;

pub(crate) fn good() -> Vec<(&'static str, To, Kind, Value)> {
    let mut all = of_client();
    all.extend(of_server());
    all
}

fn of_client() -> Vec<(&'static str, To, Kind, Value)> {
    let token =
        "v4.public.eyJ1c2VyIjoiYWxpY2UiLCJkZXZpY2UiOjEsImVwb2NoIjoxLCJleHAiOiIyMDI2LTEyLTAxVDAwOjAwOjAwKzAwOjAwIn0";
    vec![
        (
            "hello",
            To::Server,
            Kind::Hello,
            json!({
                "correlation": 1, "version_min": 1, "version_max": 1, "capabilities": 0, "token": token, "device": 1, "floor": 41,
                "agent": "golden/0.1.0",
            }),
        ),
        (
            "hello_first",
            To::Server,
            Kind::Hello,
            json!({
                "correlation": 1, "version_min": 1, "version_max": 1, "capabilities": 0, "token": token, "device": 1, "floor": 0,
                "agent": null,
            }),
        ),
        ("ping", To::Server, Kind::Ping, json!({ "correlation": 7 })),
        (
            "create_chat_direct",
            To::Server,
            Kind::CreateChat,
            json!({
                "correlation": 2, "kind": 0, "nonce": 0, "members": ["bob"], "title": null,
            }),
        ),
        (
            "create_chat_group",
            To::Server,
            Kind::CreateChat,
            json!({
                "correlation": 3, "kind": 1, "nonce": 4_242_424_242u64, "members": ["bob", "carol", "dave"], "title": "Birds é 鳥",
            }),
        ),
        (
            "chat_info_question",
            To::Server,
            Kind::ChatInfo,
            json!({
                "correlation": 4, "chat": CHAT, "kind": 0, "title": null, "members": null, "last_seq": 0, "last_client_seq": 0,
                "created": false, "time_ms": 0,
            }),
        ),
        (
            "send",
            To::Server,
            Kind::Send,
            json!({
                "correlation": 5, "chat": CHAT, "client_seq": 3, "prev": 2, "payload": "68656c6c6f",
            }),
        ),
        (
            "send_empty",
            To::Server,
            Kind::Send,
            json!({
                "correlation": 6, "chat": CHAT, "client_seq": 1, "prev": 0, "payload": "",
            }),
        ),
        ("ack", To::Server, Kind::Ack, json!({ "floor": 42 })),
    ]
}

fn of_server() -> Vec<(&'static str, To, Kind, Value)> {
    vec![
        (
            "welcome",
            To::Client,
            Kind::Welcome,
            json!({
                "correlation": 1, "version": 1, "capabilities": 0, "user": "alice", "device": 1, "generation": 9, "head": 44,
                "floor": 41, "credit_messages": 256, "credit_bytes": 262_144, "frame_max_bytes": 65_536, "sends_in_flight_max": 64,
                "keepalive_ms": 90_000, "server_time_ms": TIME_MS, "shard": 1,
            }),
        ),
        (
            "refused",
            To::Client,
            Kind::Refused,
            json!({
                "correlation": 1, "code": 11, "retry_after_ms": 0, "version_min": 1, "version_max": 1, "detail": "since yesterday",
            }),
        ),
        (
            "refused_version",
            To::Client,
            Kind::Refused,
            json!({
                "correlation": 1, "code": 6, "retry_after_ms": 0, "version_min": 1, "version_max": 1, "detail": null,
            }),
        ),
        ("pong", To::Client, Kind::Pong, json!({ "correlation": 7, "server_time_ms": TIME_MS })),
        (
            "chat_info",
            To::Client,
            Kind::ChatInfo,
            json!({
                "correlation": 3, "chat": CHAT, "kind": 1, "title": "Birds é 鳥", "members": ["alice", "bob", "carol", "dave"],
                "last_seq": 12, "last_client_seq": 3, "created": true, "time_ms": TIME_MS,
            }),
        ),
        (
            "sent",
            To::Client,
            Kind::Sent,
            json!({
                "correlation": 5, "chat": CHAT, "client_seq": 3, "chat_seq": 13, "time_ms": TIME_MS, "durability": 1, "status": 0,
            }),
        ),
        (
            "sent_already_stored",
            To::Client,
            Kind::Sent,
            json!({
                "correlation": 8, "chat": CHAT, "client_seq": 2, "chat_seq": 0, "time_ms": 0, "durability": 1, "status": 2,
            }),
        ),
        (
            "deliver",
            To::Client,
            Kind::Deliver,
            json!({
                "inbox_seq": 42, "chat": CHAT, "chat_seq": 13, "time_ms": TIME_MS, "sender": "alice", "sender_device": 1, "event": 0,
                "members": null, "title": null, "payload": "68656c6c6f",
            }),
        ),
        (
            "deliver_chat_created",
            To::Client,
            Kind::Deliver,
            json!({
                "inbox_seq": 1, "chat": CHAT, "chat_seq": 1, "time_ms": TIME_MS, "sender": "alice", "sender_device": 1, "event": 1,
                "members": ["alice", "bob", "carol", "dave"], "title": "Birds é 鳥", "payload": "",
            }),
        ),
        ("go_away", To::Client, Kind::GoAway, json!({ "code": 17, "retry_after_ms": 1_000, "detail": "upgrade" })),
        (
            "error",
            To::Client,
            Kind::Error,
            json!({
                "correlation": 5, "code": 34, "retriable": true, "closes": false, "retry_after_ms": 50, "kind": 8, "client_seq": 3,
                "detail": null,
            }),
        ),
        (
            "error_closes",
            To::Client,
            Kind::Error,
            json!({
                "correlation": 0, "code": 2, "retriable": false, "closes": true, "retry_after_ms": 0, "kind": 0, "client_seq": 0,
                "detail": "at byte 1234",
            }),
        ),
    ]
}

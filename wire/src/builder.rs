//! Writes frames. One FlatBuffers builder is reused, so that in a steady state nothing is allocated.

use flatbuffers::{FlatBufferBuilder, ForwardsUOffset, Vector, WIPOffset};

use crate::generated::client as fb;
use crate::header::{HEADER_BYTES, Header, Kind};

/// Whether a `Deliver`'s payload is written behind its table.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Payload {
    /// It is.
    Inline,
    /// The header counts it, its bytes are for the caller to send right after.
    Apart,
}

/// Fields of the table of the same name; see `schema/client.fbs`.
#[derive(Clone, Copy, Debug, Default)]
#[allow(missing_docs)]
pub struct HelloFields<'a> {
    pub correlation: u64,
    pub version_min: u8,
    pub version_max: u8,
    pub capabilities: u64,
    pub token: &'a str,
    pub device: u32,
    pub floor: u64,
    pub agent: &'a str,
}

/// Fields of the table of the same name; see `schema/client.fbs`.
#[derive(Clone, Copy, Debug, Default)]
#[allow(missing_docs)]
pub struct WelcomeFields<'a> {
    pub correlation: u64,
    pub version: u8,
    pub capabilities: u64,
    pub user: &'a str,
    pub device: u32,
    pub generation: u64,
    pub head: u64,
    pub floor: u64,
    pub credit_messages: u32,
    pub credit_bytes: u32,
    pub frame_max_bytes: u32,
    pub sends_in_flight_max: u32,
    pub keepalive_ms: u32,
    pub server_time_ms: u64,
    pub shard: u16,
}

/// Fields of the table of the same name; see `schema/client.fbs`.
#[derive(Clone, Copy, Debug, Default)]
#[allow(missing_docs)]
pub struct RefusedFields<'a> {
    pub correlation: u64,
    pub code: u16,
    pub retry_after_ms: u32,
    pub version_min: u8,
    pub version_max: u8,
    pub detail: &'a str,
}

/// Fields of the table of the same name; see `schema/client.fbs`.
#[derive(Clone, Copy, Debug)]
#[allow(missing_docs)]
pub struct CreateChatFields<'a> {
    pub correlation: u64,
    pub kind: fb::ChatKind,
    pub nonce: u64,
    pub members: &'a [&'a str],
    pub title: &'a str,
}

/// Fields of the table of the same name; see `schema/client.fbs`.
#[derive(Clone, Copy, Debug, Default)]
#[allow(missing_docs)]
pub struct ChatInfoFields<'a> {
    pub correlation: u64,
    pub chat: u128,
    pub kind: fb::ChatKind,
    pub title: &'a str,
    pub members: &'a [&'a str],
    pub last_seq: u64,
    pub last_client_seq: u64,
    pub created: bool,
    pub time_ms: u64,
}

/// Fields of the table of the same name; see `schema/client.fbs`.
#[derive(Clone, Copy, Debug, Default)]
#[allow(missing_docs)]
pub struct SendFields {
    pub correlation: u64,
    pub chat: u128,
    pub client_seq: u64,
    pub prev: u64,
}

/// Fields of the table of the same name; see `schema/client.fbs`.
#[derive(Clone, Copy, Debug, Default)]
#[allow(missing_docs)]
pub struct SentFields {
    pub correlation: u64,
    pub chat: u128,
    pub client_seq: u64,
    pub chat_seq: u64,
    pub time_ms: u64,
    pub durability: fb::Durability,
    pub status: fb::SentStatus,
}

/// Fields of the table of the same name; see `schema/client.fbs`.
#[derive(Clone, Copy, Debug, Default)]
#[allow(missing_docs)]
pub struct DeliverFields<'a> {
    pub inbox_seq: u64,
    pub chat: u128,
    pub chat_seq: u64,
    pub time_ms: u64,
    pub sender: &'a str,
    pub sender_device: u32,
    pub event: fb::Event,
    /// Empty: the field is left out.
    pub members: &'a [&'a str],
    /// Empty: the field is left out.
    pub title: &'a str,
}

/// Fields of the table of the same name; see `schema/client.fbs`.
#[derive(Clone, Copy, Debug, Default)]
#[allow(missing_docs)]
pub struct ErrorFields<'a> {
    pub correlation: u64,
    pub code: u16,
    pub retriable: bool,
    pub closes: bool,
    pub retry_after_ms: u32,
    pub kind: u8,
    pub client_seq: u64,
    pub detail: &'a str,
}

/// Appends frames to a byte vector.
#[derive(Default)]
pub struct Builder {
    tables: FlatBufferBuilder<'static>,
}

/// A chat's id as the schema has it.
pub(crate) fn id(chat: u128) -> fb::ChatId {
    fb::ChatId::new(chat as u64, (chat >> 64) as u64)
}

/// A text, left out where it is empty.
pub(crate) fn text<'b>(tables: &mut FlatBufferBuilder<'b>, text: &str) -> Option<WIPOffset<&'b str>> {
    (!text.is_empty()).then(|| tables.create_string(text))
}

/// A vector of texts.
pub(crate) fn texts<'b>(
    tables: &mut FlatBufferBuilder<'b>,
    list: &[&str],
) -> WIPOffset<Vector<'b, ForwardsUOffset<&'b str>>> {
    let offsets: Vec<_> = list.iter().map(|text| tables.create_string(text)).collect();
    tables.create_vector(&offsets)
}

macro_rules! frame {
    ($self:ident, $out:ident, $kind:ident, $offset:expr) => {
        frame!($self, $out, $kind, $offset, &[], Payload::Inline)
    };
    ($self:ident, $out:ident, $kind:ident, $offset:expr, $payload:expr, $tail:expr) => {{
        let offset = $offset;
        $self.tables.finish_minimal(offset);
        append($out, Kind::$kind, $self.tables.finished_data(), $payload, $tail);
        $self.tables.reset();
    }};
}

impl Builder {
    /// Appends a `Hello`.
    pub fn hello(&mut self, out: &mut Vec<u8>, f: &HelloFields<'_>) {
        let agent = text(&mut self.tables, f.agent);
        let args = fb::HelloArgs {
            correlation: f.correlation,
            version_min: f.version_min,
            version_max: f.version_max,
            capabilities: f.capabilities,
            token: Some(self.tables.create_string(f.token)),
            device: f.device,
            floor: f.floor,
            agent,
        };
        frame!(self, out, Hello, fb::Hello::create(&mut self.tables, &args));
    }

    /// Appends a `Welcome`.
    pub fn welcome(&mut self, out: &mut Vec<u8>, f: &WelcomeFields<'_>) {
        let args = fb::WelcomeArgs {
            correlation: f.correlation,
            version: f.version,
            capabilities: f.capabilities,
            user: Some(self.tables.create_string(f.user)),
            device: f.device,
            generation: f.generation,
            head: f.head,
            floor: f.floor,
            credit_messages: f.credit_messages,
            credit_bytes: f.credit_bytes,
            frame_max_bytes: f.frame_max_bytes,
            sends_in_flight_max: f.sends_in_flight_max,
            keepalive_ms: f.keepalive_ms,
            server_time_ms: f.server_time_ms,
            shard: f.shard,
        };
        frame!(self, out, Welcome, fb::Welcome::create(&mut self.tables, &args));
    }

    /// Appends a `Refused`.
    pub fn refused(&mut self, out: &mut Vec<u8>, f: &RefusedFields<'_>) {
        let detail = text(&mut self.tables, f.detail);
        let args = fb::RefusedArgs {
            correlation: f.correlation,
            code: f.code,
            retry_after_ms: f.retry_after_ms,
            version_min: f.version_min,
            version_max: f.version_max,
            detail,
        };
        frame!(self, out, Refused, fb::Refused::create(&mut self.tables, &args));
    }

    /// Appends a `Ping`.
    pub fn ping(&mut self, out: &mut Vec<u8>, correlation: u64) {
        frame!(self, out, Ping, fb::Ping::create(&mut self.tables, &fb::PingArgs { correlation }));
    }

    /// Appends a `Pong`.
    pub fn pong(&mut self, out: &mut Vec<u8>, correlation: u64, server_time_ms: u64) {
        let args = fb::PongArgs { correlation, server_time_ms };
        frame!(self, out, Pong, fb::Pong::create(&mut self.tables, &args));
    }

    /// Appends a `CreateChat`.
    pub fn create_chat(&mut self, out: &mut Vec<u8>, f: &CreateChatFields<'_>) {
        let members = Some(texts(&mut self.tables, f.members));
        let title = text(&mut self.tables, f.title);
        let args = fb::CreateChatArgs { correlation: f.correlation, kind: f.kind, nonce: f.nonce, members, title };
        frame!(self, out, CreateChat, fb::CreateChat::create(&mut self.tables, &args));
    }

    /// Appends a `ChatInfo`.
    pub fn chat_info(&mut self, out: &mut Vec<u8>, f: &ChatInfoFields<'_>) {
        let members = (!f.members.is_empty()).then(|| texts(&mut self.tables, f.members));
        let title = text(&mut self.tables, f.title);
        let args = fb::ChatInfoArgs {
            correlation: f.correlation,
            chat: Some(&id(f.chat)),
            kind: f.kind,
            title,
            members,
            last_seq: f.last_seq,
            last_client_seq: f.last_client_seq,
            created: f.created,
            time_ms: f.time_ms,
        };
        frame!(self, out, ChatInfo, fb::ChatInfo::create(&mut self.tables, &args));
    }

    /// Appends a `Send` and its payload.
    pub fn send(&mut self, out: &mut Vec<u8>, f: &SendFields, payload: &[u8]) {
        let args = fb::SendArgs {
            correlation: f.correlation,
            chat: Some(&id(f.chat)),
            client_seq: f.client_seq,
            prev: f.prev,
        };
        frame!(self, out, Send, fb::Send::create(&mut self.tables, &args), payload, Payload::Inline);
    }

    /// Appends a `Sent`.
    pub fn sent(&mut self, out: &mut Vec<u8>, f: &SentFields) {
        let args = fb::SentArgs {
            correlation: f.correlation,
            chat: Some(&id(f.chat)),
            client_seq: f.client_seq,
            chat_seq: f.chat_seq,
            time_ms: f.time_ms,
            durability: f.durability,
            status: f.status,
        };
        frame!(self, out, Sent, fb::Sent::create(&mut self.tables, &args));
    }

    /// Appends a `Deliver`, with its payload or only counting it.
    pub fn deliver(&mut self, out: &mut Vec<u8>, f: &DeliverFields<'_>, payload: &[u8], tail: Payload) {
        let members = (!f.members.is_empty()).then(|| texts(&mut self.tables, f.members));
        let title = text(&mut self.tables, f.title);
        let args = fb::DeliverArgs {
            inbox_seq: f.inbox_seq,
            chat: Some(&id(f.chat)),
            chat_seq: f.chat_seq,
            time_ms: f.time_ms,
            sender: Some(self.tables.create_string(f.sender)),
            sender_device: f.sender_device,
            event: f.event,
            members,
            title,
        };
        frame!(self, out, Deliver, fb::Deliver::create(&mut self.tables, &args), payload, tail);
    }

    /// Appends an `Ack`.
    pub fn ack(&mut self, out: &mut Vec<u8>, floor: u64) {
        frame!(self, out, Ack, fb::Ack::create(&mut self.tables, &fb::AckArgs { floor }));
    }

    /// Appends a `GoAway`.
    pub fn go_away(&mut self, out: &mut Vec<u8>, code: u16, retry_after_ms: u32, detail: &str) {
        let detail = text(&mut self.tables, detail);
        let args = fb::GoAwayArgs { code, retry_after_ms, detail };
        frame!(self, out, GoAway, fb::GoAway::create(&mut self.tables, &args));
    }

    /// Appends an `Error`.
    pub fn error(&mut self, out: &mut Vec<u8>, f: &ErrorFields<'_>) {
        let detail = text(&mut self.tables, f.detail);
        let args = fb::ErrorArgs {
            correlation: f.correlation,
            code: f.code,
            retriable: f.retriable,
            closes: f.closes,
            retry_after_ms: f.retry_after_ms,
            kind: f.kind,
            client_seq: f.client_seq,
            detail,
        };
        frame!(self, out, Error, fb::Error::create(&mut self.tables, &args));
    }
}

fn append(out: &mut Vec<u8>, kind: Kind, table: &[u8], payload: &[u8], tail: Payload) {
    let header = Header {
        length: (HEADER_BYTES + table.len() + payload.len()) as u32,
        kind: kind as u8,
        version: kind.version(),
        flags: 0,
        table_len: table.len() as u32,
        crc32c: 0,
    };
    let checked = header.checked_bytes();
    let sum = crc32c::crc32c_append(crc32c::crc32c_append(crc32c::crc32c(&checked), table), payload);
    out.reserve(header.length as usize);
    out.extend_from_slice(&checked);
    out.extend_from_slice(&sum.to_le_bytes());
    out.extend_from_slice(table);
    if tail == Payload::Inline {
        out.extend_from_slice(payload);
    }
}

//! Writes the data of entries. There is one writer a partition and one builder of tables a shard.

use flatbuffers::FlatBufferBuilder;

use crate::builder::{id, text, texts};
use crate::command::{COMMAND_HEADER_BYTES, CommandKind, ENTRY_HEADER_BYTES, ENTRY_VERSION};
use crate::generated::{client, log as fb};

/// Fields of the table of the same name; see `schema/log.fbs`.
#[derive(Clone, Copy, Debug)]
#[allow(missing_docs)]
pub struct ChatCreateFields<'a> {
    pub chat: u128,
    pub kind: client::ChatKind,
    pub maker: &'a str,
    pub maker_device: u32,
    pub members: &'a [&'a str],
    pub title: &'a str,
}

/// Fields of the table of the same name; see `schema/log.fbs`.
#[derive(Clone, Copy, Debug)]
#[allow(missing_docs)]
pub struct ChatSendFields<'a> {
    pub chat: u128,
    pub sender: &'a str,
    pub device: u32,
    pub client_seq: u64,
    pub prev: u64,
}

/// Fields of the table of the same name; see `schema/log.fbs`.
#[derive(Clone, Copy, Debug)]
#[allow(missing_docs)]
pub struct FanOutFields<'a> {
    pub chat: u128,
    pub chat_seq: u64,
    pub prev: u64,
    pub time_ms: u64,
    pub sender: &'a str,
    pub sender_device: u32,
    pub event: client::Event,
    /// Empty: the field is left out.
    pub members: &'a [&'a str],
    /// Empty: the field is left out.
    pub title: &'a str,
}

/// The builder of a shard's commands' tables.
#[derive(Default)]
pub struct CommandBuilder {
    tables: FlatBufferBuilder<'static>,
}

/// Gathers commands into the data of one entry.
#[derive(Debug, Default)]
pub struct EntryWriter {
    bytes: Vec<u8>,
    count: u32,
    /// Bytes of the last entry: the next one begins with room for as many.
    last_len: usize,
}

macro_rules! command {
    ($self:ident, $b:ident, $kind:ident, $offset:expr) => {
        command!($self, $b, $kind, $offset, &[])
    };
    ($self:ident, $b:ident, $kind:ident, $offset:expr, $payload:expr) => {{
        let offset = $offset;
        $b.tables.finish_minimal(offset);
        $self.append(CommandKind::$kind, $b.tables.finished_data(), $payload);
        $b.tables.reset();
    }};
}

impl EntryWriter {
    /// Bytes gathered, header included.
    pub fn len_bytes(&self) -> usize {
        self.bytes.len()
    }

    /// Commands gathered.
    pub fn count(&self) -> u32 {
        self.count
    }

    /// Whether nothing is gathered.
    pub fn is_empty(&self) -> bool {
        self.count == 0
    }

    /// Everything gathered, as a writer that nothing is added to; this one begins the next entry, with room for as much.
    pub fn close(&mut self) -> EntryWriter {
        let next = EntryWriter { last_len: self.bytes.len(), ..EntryWriter::default() };
        std::mem::replace(self, next)
    }

    /// The entry's data, stamped with the leader's wall time; the writer is empty after it.
    pub fn take(&mut self, wall_ms: u64) -> Vec<u8> {
        let mut bytes = std::mem::take(&mut self.bytes);
        if bytes.is_empty() {
            bytes.resize(ENTRY_HEADER_BYTES, 0);
        }
        bytes[0] = ENTRY_VERSION;
        bytes[4..8].copy_from_slice(&self.count.to_le_bytes());
        bytes[8..16].copy_from_slice(&wall_ms.to_le_bytes());
        self.count = 0;
        bytes
    }

    /// Adds a `DeviceRegister`.
    pub fn device_register(&mut self, b: &mut CommandBuilder, user: &str, device: u32, token_epoch: u32) {
        let args = fb::DeviceRegisterArgs { user: Some(b.tables.create_string(user)), device, token_epoch };
        command!(self, b, DeviceRegister, fb::DeviceRegister::create(&mut b.tables, &args));
    }

    /// Adds a `ChatCreate`.
    pub fn chat_create(&mut self, b: &mut CommandBuilder, f: &ChatCreateFields<'_>) {
        let members = Some(texts(&mut b.tables, f.members));
        let title = text(&mut b.tables, f.title);
        let args = fb::ChatCreateArgs {
            chat: Some(&id(f.chat)),
            kind: f.kind,
            maker: Some(b.tables.create_string(f.maker)),
            maker_device: f.maker_device,
            members,
            title,
        };
        command!(self, b, ChatCreate, fb::ChatCreate::create(&mut b.tables, &args));
    }

    /// Adds a `ChatSend` and its payload.
    pub fn chat_send(&mut self, b: &mut CommandBuilder, f: &ChatSendFields<'_>, payload: &[u8]) {
        let args = fb::ChatSendArgs {
            chat: Some(&id(f.chat)),
            sender: Some(b.tables.create_string(f.sender)),
            device: f.device,
            client_seq: f.client_seq,
            prev: f.prev,
        };
        command!(self, b, ChatSend, fb::ChatSend::create(&mut b.tables, &args), payload);
    }

    /// Adds an `OutboxConfirm` of these chats, partitions and places.
    pub fn outbox_confirm(&mut self, b: &mut CommandBuilder, marks: &[(u128, u16, u64)]) {
        let marks = marks.iter().map(|(chat, partition, seq)| fb::ConfirmMark::new(&id(*chat), *seq, *partition));
        let args = fb::OutboxConfirmArgs { marks: Some(b.tables.create_vector_from_iter(marks)) };
        command!(self, b, OutboxConfirm, fb::OutboxConfirm::create(&mut b.tables, &args));
    }

    /// Adds a `FanOut` and its payload.
    pub fn fan_out(&mut self, b: &mut CommandBuilder, f: &FanOutFields<'_>, payload: &[u8]) {
        let members = (!f.members.is_empty()).then(|| texts(&mut b.tables, f.members));
        let title = text(&mut b.tables, f.title);
        let args = fb::FanOutArgs {
            chat: Some(&id(f.chat)),
            chat_seq: f.chat_seq,
            prev: f.prev,
            time_ms: f.time_ms,
            sender: Some(b.tables.create_string(f.sender)),
            sender_device: f.sender_device,
            event: f.event,
            members,
            title,
        };
        command!(self, b, FanOut, fb::FanOut::create(&mut b.tables, &args), payload);
    }

    /// Adds a `DeviceAck` of these inboxes and floors.
    pub fn device_ack(&mut self, b: &mut CommandBuilder, marks: &[(u32, u64)]) {
        let marks = marks.iter().map(|(inbox, floor)| fb::AckMark::new(*inbox, *floor));
        let args = fb::DeviceAckArgs { marks: Some(b.tables.create_vector_from_iter(marks)) };
        command!(self, b, DeviceAck, fb::DeviceAck::create(&mut b.tables, &args));
    }

    fn append(&mut self, kind: CommandKind, table: &[u8], payload: &[u8]) {
        if self.bytes.is_empty() {
            self.bytes.reserve(self.last_len);
            self.bytes.resize(ENTRY_HEADER_BYTES, 0);
        }
        // Whole commands at multiples of 8: what a table needs of alignment is counted from its own start.
        let padded = self.bytes.len().next_multiple_of(8);
        self.bytes.resize(padded, 0);
        let len = (COMMAND_HEADER_BYTES + table.len() + payload.len()) as u32;
        let mut head = [0; COMMAND_HEADER_BYTES];
        head[..4].copy_from_slice(&len.to_le_bytes());
        head[4] = kind as u8;
        head[8..12].copy_from_slice(&(table.len() as u32).to_le_bytes());
        self.bytes.extend_from_slice(&head);
        self.bytes.extend_from_slice(table);
        self.bytes.extend_from_slice(payload);
        self.count += 1;
    }
}

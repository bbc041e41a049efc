//! A client without a library: frames by hand, so that they can be wrong, and answers as they come.

use std::io::{ErrorKind, Read, Write};
use std::net::{Shutdown, TcpStream};

use whimbrel_wire::{
    Builder, Code, CreateChatFields, Decoder, HEADER_BYTES, HelloFields, SendFields, ServerFrame, VERSION, chat_id, fb,
    limits,
};

use crate::common::PATIENCE;

/// An answer, owned.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Reply {
    Welcome { head: u64, floor: u64, shard: u16 },
    Refused(Code),
    Error { correlation: u64, code: Code },
    GoAway(Code),
    Pong(u64),
    ChatInfo { correlation: u64, chat: u128, members: Vec<String> },
    Sent { client_seq: u64, chat_seq: u64, status: u8 },
    Deliver { inbox_seq: u64, chat: u128, chat_seq: u64, sender: String, message: Option<Vec<u8>> },
}

/// One connection.
pub(crate) struct Raw {
    stream: TcpStream,
    decoder: Decoder,
    unread: Vec<u8>,
    pub(crate) builder: Builder,
}

impl Raw {
    pub(crate) fn connect(address: &str) -> Raw {
        let stream = TcpStream::connect(address).expect("the server listens");
        stream.set_nodelay(true).expect("a TCP option");
        stream.set_read_timeout(Some(PATIENCE)).expect("a socket option");
        stream.set_write_timeout(Some(PATIENCE)).expect("a socket option");
        Raw { stream, decoder: Decoder::default(), unread: Vec::new(), builder: Builder::default() }
    }

    /// Connects and logs in as a user's device 1.
    pub(crate) fn log_in(address: &str, token: &str) -> (Raw, Reply) {
        let mut raw = Raw::connect(address);
        let hello = hello(token);
        raw.write(&hello);
        let reply = raw.reply();
        assert!(matches!(reply, Reply::Welcome { .. }), "{reply:?}");
        (raw, reply)
    }

    /// Bytes as they are. That the server has closed already is not the test's concern here.
    pub(crate) fn write(&mut self, bytes: &[u8]) {
        let _ = self.stream.write_all(bytes);
    }

    /// Whether the server still takes bytes.
    pub(crate) fn try_write(&mut self, bytes: &[u8]) -> bool {
        match self.stream.write_all(bytes) {
            Ok(()) => true,
            Err(error) if matches!(error.kind(), ErrorKind::BrokenPipe | ErrorKind::ConnectionReset) => false,
            Err(error) => panic!("the server neither reads nor closes: {error}"),
        }
    }

    /// No more bytes will come from here.
    pub(crate) fn finish(&self) {
        let _ = self.stream.shutdown(Shutdown::Write);
    }

    /// The next answer; `None` when the connection is closed.
    pub(crate) fn next(&mut self) -> Option<Reply> {
        loop {
            let mut input = self.unread.as_slice();
            let found = self.decoder.decode(&mut input, limits::FRAME_MAX_BYTES).expect("the server's frames are good");
            let found = found.map(|frame| owned(&ServerFrame::parse(&frame).expect("the server's tables are good")));
            self.unread = input.to_vec();
            if found.is_some() {
                return found;
            }
            let mut bytes = [0; 4096];
            match self.stream.read(&mut bytes) {
                Ok(0) => return None,
                Ok(read) => self.unread.extend_from_slice(&bytes[..read]),
                Err(error) if error.kind() == ErrorKind::ConnectionReset => return None,
                // A read with a timeout is not taken up again after a signal or a stop of the process.
                Err(error) if error.kind() == ErrorKind::Interrupted => {}
                Err(error) => panic!("no answer: {error}"),
            }
        }
    }

    /// The next answer, which must come.
    pub(crate) fn reply(&mut self) -> Reply {
        self.next().expect("an answer before the end")
    }

    /// The connection ends without another word.
    pub(crate) fn expect_end(&mut self) {
        assert_eq!(self.next(), None);
    }

    /// The server answers as usual.
    pub(crate) fn expect_alive(&mut self) {
        let mut ping = Vec::new();
        self.builder.ping(&mut ping, 4_711);
        self.write(&ping);
        loop {
            match self.reply() {
                Reply::Pong(4_711) => return,
                Reply::Deliver { .. } => {}
                other => panic!("{other:?} instead of a Pong"),
            }
        }
    }

    pub(crate) fn create_chat(&mut self, kind: fb::ChatKind, members: &[&str], title: &str) -> Reply {
        let mut frame = Vec::new();
        self.builder.create_chat(&mut frame, &CreateChatFields { correlation: 5, kind, nonce: 1, members, title });
        self.write(&frame);
        self.reply()
    }

    /// The 1:1 chat with a user.
    pub(crate) fn pair(&mut self, with: &str) -> u128 {
        match self.create_chat(fb::ChatKind::Direct, &[with], "") {
            Reply::ChatInfo { chat, .. } => chat,
            other => panic!("{other:?} instead of a chat"),
        }
    }

    pub(crate) fn send(&mut self, chat: u128, client_seq: u64, prev: u64, payload: &[u8]) {
        let mut frame = Vec::new();
        self.builder.send(&mut frame, &SendFields { correlation: client_seq, chat, client_seq, prev }, payload);
        self.write(&frame);
    }

    pub(crate) fn ack(&mut self, floor: u64) {
        let mut frame = Vec::new();
        self.builder.ack(&mut frame, floor);
        self.write(&frame);
    }
}

/// A Hello that is accepted if its token is.
pub(crate) fn hello(token: &str) -> Vec<u8> {
    let mut frame = Vec::new();
    Builder::default().hello(&mut frame, &hello_fields(token));
    frame
}

pub(crate) fn hello_fields(token: &str) -> HelloFields<'_> {
    HelloFields {
        correlation: 1,
        version_min: VERSION,
        version_max: VERSION,
        capabilities: 0,
        token,
        device: 1,
        floor: 0,
        agent: "raw test",
    }
}

/// A frame with any header and a true checksum.
pub(crate) fn frame(kind: u8, version: u8, flags: u16, table: &[u8], payload: &[u8]) -> Vec<u8> {
    let length = HEADER_BYTES + table.len() + payload.len();
    headed(
        u32::try_from(length).unwrap(),
        kind,
        version,
        flags,
        u32::try_from(table.len()).unwrap(),
        &[table, payload].concat(),
    )
}

/// A frame whose header says anything at all, with a checksum that is true of it.
pub(crate) fn headed(length: u32, kind: u8, version: u8, flags: u16, table_len: u32, body: &[u8]) -> Vec<u8> {
    let mut bytes = Vec::new();
    bytes.extend_from_slice(&length.to_le_bytes());
    bytes.extend_from_slice(&[kind, version]);
    bytes.extend_from_slice(&flags.to_le_bytes());
    bytes.extend_from_slice(&table_len.to_le_bytes());
    let checksum = crc32c::crc32c_append(crc32c::crc32c(&bytes), body);
    bytes.extend_from_slice(&checksum.to_le_bytes());
    bytes.extend_from_slice(body);
    bytes
}

fn owned(frame: &ServerFrame<'_>) -> Reply {
    let code = |number: u16| Code::from_u16(number).expect("a number of the error table");
    match frame {
        ServerFrame::Welcome(t) => Reply::Welcome { head: t.head(), floor: t.floor(), shard: t.shard() },
        ServerFrame::Refused(t) => Reply::Refused(code(t.code())),
        ServerFrame::Pong(t) => Reply::Pong(t.correlation()),
        ServerFrame::ChatInfo(t) => Reply::ChatInfo {
            correlation: t.correlation(),
            chat: chat_id(t.chat()),
            members: t.members().map(|members| members.iter().map(str::to_owned).collect()).unwrap_or_default(),
        },
        ServerFrame::Sent(t) => {
            Reply::Sent { client_seq: t.client_seq(), chat_seq: t.chat_seq(), status: t.status().0 }
        }
        ServerFrame::Deliver(t, payload) => Reply::Deliver {
            inbox_seq: t.inbox_seq(),
            chat: chat_id(t.chat()),
            chat_seq: t.chat_seq(),
            sender: t.sender().to_owned(),
            message: (t.event() == fb::Event::Message).then(|| payload.to_vec()),
        },
        ServerFrame::GoAway(t) => Reply::GoAway(code(t.code())),
        ServerFrame::Error(t) => Reply::Error { correlation: t.correlation(), code: code(t.code()) },
    }
}

//! The other end of a session: reads what it writes, and answers by script.

use whimbrel_client::{ChatKind, ClientError, Config, Event, Session};
use whimbrel_wire::{
    Builder, ChatInfoFields, ClientFrame, Code, Decoder, DeliverFields, ErrorFields, Payload, SentFields,
    WelcomeFields, chat_id, fb, limits,
};

/// What a client sent.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Heard {
    Hello { correlation: u64, floor: u64, token: String },
    Ping { correlation: u64 },
    Create { correlation: u64, members: Vec<String> },
    Info { correlation: u64, chat: u128 },
    Send { correlation: u64, chat: u128, client_seq: u64, prev: u64, payload: Vec<u8> },
    Ack { floor: u64 },
}

/// Cuts a client's bytes.
#[derive(Default)]
pub(crate) struct Ear {
    decoder: Decoder,
}

impl Ear {
    pub(crate) fn hear(&mut self, bytes: &[u8]) -> Vec<Heard> {
        let mut heard = Vec::new();
        let mut input = bytes;
        loop {
            let mut rest = input;
            let Some(frame) = self.decoder.decode(&mut rest, limits::FRAME_MAX_BYTES).unwrap() else { return heard };
            heard.push(match ClientFrame::parse(&frame).unwrap() {
                ClientFrame::Hello(f) => {
                    Heard::Hello { correlation: f.correlation(), floor: f.floor(), token: f.token().to_owned() }
                }
                ClientFrame::Ping(f) => Heard::Ping { correlation: f.correlation() },
                ClientFrame::CreateChat(f) => Heard::Create {
                    correlation: f.correlation(),
                    members: f.members().iter().map(str::to_owned).collect(),
                },
                ClientFrame::ChatInfo(f) => Heard::Info { correlation: f.correlation(), chat: chat_id(f.chat()) },
                ClientFrame::Send(f, payload) => Heard::Send {
                    correlation: f.correlation(),
                    chat: chat_id(f.chat()),
                    client_seq: f.client_seq(),
                    prev: f.prev(),
                    payload: payload.to_vec(),
                },
                ClientFrame::Ack(f) => Heard::Ack { floor: f.floor() },
            });
            input = &input[input.len() - rest.len()..];
        }
    }
}

/// Bytes of a frame.
pub(crate) fn bytes(write: impl FnOnce(&mut Builder, &mut Vec<u8>)) -> Vec<u8> {
    let mut out = Vec::new();
    write(&mut Builder::default(), &mut out);
    out
}

pub(crate) fn welcome(correlation: u64, head: u64, floor: u64) -> Vec<u8> {
    welcome_with(correlation, |fields| {
        fields.head = head;
        fields.floor = floor;
    })
}

pub(crate) fn welcome_with(correlation: u64, change: impl FnOnce(&mut WelcomeFields<'_>)) -> Vec<u8> {
    let mut fields = WelcomeFields {
        correlation,
        version: 1,
        user: "alice",
        device: 1,
        generation: 1,
        credit_messages: 256,
        credit_bytes: 262_144,
        frame_max_bytes: limits::FRAME_MAX_BYTES as u32,
        sends_in_flight_max: 64,
        keepalive_ms: 90_000,
        ..WelcomeFields::default()
    };
    change(&mut fields);
    bytes(|b, out| b.welcome(out, &fields))
}

pub(crate) fn chat_info(correlation: u64, chat: u128, last_client_seq: u64) -> Vec<u8> {
    let fields = ChatInfoFields {
        correlation,
        chat,
        kind: ChatKind::Group,
        title: "Birds",
        members: &["alice", "bob"],
        last_client_seq,
        ..ChatInfoFields::default()
    };
    bytes(|b, out| b.chat_info(out, &fields))
}

pub(crate) fn sent(chat: u128, client_seq: u64, chat_seq: u64) -> Vec<u8> {
    let durability = fb::Durability::OneNode;
    bytes(|b, out| b.sent(out, &SentFields { chat, client_seq, chat_seq, durability, ..SentFields::default() }))
}

pub(crate) fn error(correlation: u64, client_seq: u64, code: Code, retry_after_ms: u32) -> Vec<u8> {
    let fields = ErrorFields {
        correlation,
        code: code as u16,
        retriable: code.retriable(),
        closes: code.closes(),
        retry_after_ms,
        client_seq,
        ..ErrorFields::default()
    };
    bytes(|b, out| b.error(out, &fields))
}

pub(crate) fn deliver(inbox_seq: u64) -> Vec<u8> {
    let fields = DeliverFields {
        inbox_seq,
        chat: 7,
        chat_seq: inbox_seq,
        sender: "bob",
        sender_device: 1,
        ..DeliverFields::default()
    };
    bytes(|b, out| b.deliver(out, &fields, b"hi", Payload::Inline))
}

/// A session and what the other end of its connection hears.
pub(crate) struct Rig {
    pub(crate) session: Session,
    pub(crate) now_ms: u64,
    ear: Ear,
}

impl Rig {
    pub(crate) fn new() -> Rig {
        Rig::with(Config::new("alice", 1, "token"))
    }

    pub(crate) fn with(config: Config) -> Rig {
        Rig { session: Session::new(config), now_ms: 1_000, ear: Ear::default() }
    }

    /// A new connection, as far as the Hello.
    pub(crate) fn connect(&mut self) -> u64 {
        self.ear = Ear::default();
        self.session.connected(self.now_ms);
        match &self.heard()[..] {
            [Heard::Hello { correlation, .. }] => *correlation,
            other => panic!("{other:?}"),
        }
    }

    /// A new connection that is logged in; what is heard right after it.
    pub(crate) fn log_in(&mut self) -> Vec<Heard> {
        let correlation = self.connect();
        self.tell(&welcome(correlation, 0, 0));
        assert!(matches!(self.events()[..], [Event::Welcome(_)]));
        self.heard()
    }

    /// Logged in, with a chat that is known.
    pub(crate) fn in_chat(chat: u128, last_client_seq: u64) -> Rig {
        let mut rig = Rig::new();
        rig.log_in();
        rig.know(chat, last_client_seq);
        rig
    }

    pub(crate) fn know(&mut self, chat: u128, last_client_seq: u64) {
        let correlation = self.session.chat_info(chat);
        assert_eq!(self.heard(), [Heard::Info { correlation, chat }]);
        self.tell(&chat_info(correlation, chat, last_client_seq));
        assert!(matches!(self.events()[..], [Event::Chat { .. }]));
    }

    pub(crate) fn tell(&mut self, bytes: &[u8]) {
        self.session.receive(self.now_ms, bytes).unwrap();
    }

    pub(crate) fn tell_wrong(&mut self, bytes: &[u8]) -> ClientError {
        self.session.receive(self.now_ms, bytes).unwrap_err()
    }

    /// What goes out now.
    pub(crate) fn heard(&mut self) -> Vec<Heard> {
        let mut out = Vec::new();
        self.session.poll_transmit(self.now_ms, &mut out);
        self.ear.hear(&out)
    }

    /// Of what goes out now the numbers of the sends: correlation, number, the one before.
    pub(crate) fn sends(&mut self) -> Vec<(u64, u64, u64)> {
        let heard = self.heard().into_iter();
        heard
            .map(|heard| match heard {
                Heard::Send { correlation, client_seq, prev, .. } => (correlation, client_seq, prev),
                other => panic!("{other:?}"),
            })
            .collect()
    }

    pub(crate) fn events(&mut self) -> Vec<Event> {
        std::iter::from_fn(|| self.session.poll_event()).collect()
    }

    /// Time passes until the session wants to be called.
    pub(crate) fn pass(&mut self) -> Result<u64, ClientError> {
        let at = self.session.poll_timeout().unwrap();
        let passed = at.saturating_sub(self.now_ms);
        self.now_ms = self.now_ms.max(at);
        self.session.handle_timeout(self.now_ms).map(|()| passed)
    }
}

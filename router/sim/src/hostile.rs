//! Those who mean ill: each connects once, does one thing that must be refused, and looks at the answer.

use whimbrel_wire::{
    Builder, ChatInfoFields, Code, CreateChatFields, HelloFields, Kind, SendFields, ServerFrame, WelcomeFields, fb,
    limits,
};

use crate::bottom::Bottom;
use crate::check::{Check, Violation};
use crate::hear::Heard;
use crate::node::Node;
use crate::socket::{Pieces, Socket, SocketIndex};
use crate::tap::{self, Tap};
use crate::tokens;

/// Their name: a user of the node like any other, in nobody's chats.
const NAME: &str = "mallory";

/// How long they stay.
const STAYS_US: u64 = 30_000_000;

/// What any client may be told at any time.
const ALWAYS_POSSIBLE: [Code; 10] = [
    Code::ShuttingDown,
    Code::LoginTimeout,
    Code::KeepaliveTimeout,
    Code::NotReady,
    Code::InRepair,
    Code::Overloaded,
    Code::StorageFull,
    Code::TooManyConnections,
    Code::Replaced,
    Code::SlowReader,
];

/// Of those who want too much it takes more than a few until one gets it.
const GREEDY: [Deed; 2] = [Deed::NeverReads, Deed::Floods];

/// What one of them does.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Deed {
    Nothing,
    Garbage,
    HugeFrame,
    FrameTooLongBeforeLogin,
    HalfFrame,
    SendBeforeHello,
    OtherVersion,
    WrongToken,
    ExpiredToken,
    OtherDevice,
    BadUser,
    SecondHello,
    FrameOfANode,
    UnknownKind,
    AckAboveHead,
    BadClientSeq,
    NoMember,
    BadMembers,
    LongTitle,
    LongPayload,
    FlippedBit,
    BadTable,
    NeverReads,
    Floods,
}

impl Deed {
    const ALL: [Deed; 24] = [
        Deed::Nothing,
        Deed::Garbage,
        Deed::HugeFrame,
        Deed::FrameTooLongBeforeLogin,
        Deed::HalfFrame,
        Deed::SendBeforeHello,
        Deed::OtherVersion,
        Deed::WrongToken,
        Deed::ExpiredToken,
        Deed::OtherDevice,
        Deed::BadUser,
        Deed::SecondHello,
        Deed::FrameOfANode,
        Deed::UnknownKind,
        Deed::AckAboveHead,
        Deed::BadClientSeq,
        Deed::NoMember,
        Deed::BadMembers,
        Deed::LongTitle,
        Deed::LongPayload,
        Deed::FlippedBit,
        Deed::BadTable,
        Deed::NeverReads,
        Deed::Floods,
    ];

    /// Only after a login of their own.
    fn needs_login(self) -> bool {
        self as u8 >= Deed::SecondHello as u8
    }

    /// With what it must be refused.
    fn expected(self) -> &'static [Code] {
        match self {
            Deed::Nothing | Deed::HalfFrame => &[Code::LoginTimeout],
            // Whatever the bytes happen to look like.
            Deed::Garbage => &[Code::BadFrame, Code::FrameTooLarge, Code::BadChecksum],
            Deed::HugeFrame | Deed::FrameTooLongBeforeLogin => &[Code::FrameTooLarge],
            Deed::SendBeforeHello => &[Code::NotLoggedIn],
            Deed::OtherVersion => &[Code::UnsupportedVersion],
            Deed::WrongToken => &[Code::BadToken],
            Deed::ExpiredToken => &[Code::ExpiredToken],
            Deed::OtherDevice => &[Code::WrongDevice],
            Deed::BadUser => &[Code::BadUser],
            Deed::SecondHello => &[Code::AlreadyLoggedIn],
            Deed::FrameOfANode => &[Code::UnexpectedKind],
            Deed::UnknownKind => &[Code::UnknownKind],
            Deed::AckAboveHead => &[Code::AckAboveHead],
            Deed::BadClientSeq => &[Code::BadClientSeq],
            Deed::NoMember => &[Code::ChatUnknown],
            Deed::BadMembers => &[Code::BadMembers],
            Deed::LongTitle => &[Code::BadTitle, Code::BadTable],
            Deed::LongPayload => &[Code::PayloadTooLarge],
            Deed::FlippedBit => &[Code::BadChecksum, Code::BadFrame, Code::FrameTooLarge],
            Deed::BadTable => &[Code::BadTable],
            Deed::NeverReads => &[Code::SlowReader],
            Deed::Floods => &[Code::ChatUnknown, Code::TooManyInFlight],
        }
    }
}

pub(crate) struct Hostile {
    deed: Deed,
    device: u32,
    socket: Option<SocketIndex>,
    tap: Tap,
    builder: Builder,
    done: bool,
    closed_by: Option<Code>,
    until_us: u64,
    pub(crate) next_us: u64,
}

impl Hostile {
    pub(crate) fn new(b: &mut Bottom) -> Hostile {
        b.stats.hostile += 1;
        Hostile {
            deed: if b.rng.per_mille(250) { b.rng.pick(&GREEDY) } else { b.rng.pick(&Deed::ALL) },
            device: b.rng.between(1, 9) as u32,
            socket: None,
            tap: Tap::default(),
            builder: Builder::default(),
            done: false,
            closed_by: None,
            until_us: b.now_us + STAYS_US,
            next_us: b.now_us,
        }
    }

    /// Goes on. True once it is gone.
    pub(crate) fn act(&mut self, b: &mut Bottom, node: Option<&mut Node>) -> Result<bool, Violation> {
        self.next_us = b.now_us + b.rng.around(10 * b.weather.client_us);
        let Some(socket) = self.socket else {
            return Ok(!self.connect(b, node));
        };
        if self.deed != Deed::NeverReads || !self.done {
            let mut heard = Vec::new();
            let Bottom { rng, sockets, .. } = b;
            sockets[socket].client_reads(rng, &mut heard);
            self.tap.push(&heard);
        }
        let mut welcome = false;
        while let Some(bytes) = self.tap.next() {
            let frame = tap::read(bytes)?;
            b.trace.line(format_args!("{NAME}/{} hears {}", self.device, Heard(&frame)));
            let answer = judge(self.deed, &mut self.closed_by, &frame)?;
            welcome |= answer == Answer::Welcome;
            b.stats.hostile_refused += u64::from(answer == Answer::Refusal);
        }
        if welcome && !self.done {
            let bytes = self.deed_bytes(b);
            b.socket(socket).client_writes(&bytes);
            self.done = true;
        }
        let leaves = b.now_us >= self.until_us || b.rng.per_mille(5) || b.sockets[socket].client_sees_end();
        if leaves {
            self.leave(b);
        }
        Ok(leaves)
    }

    pub(crate) fn leave(&self, b: &mut Bottom) {
        if let Some(socket) = self.socket
            && !b.sockets[socket].client_closed()
        {
            let arriving = b.arriving(b.sockets[socket].on_the_way_up());
            b.socket(socket).client_closes(arriving);
        }
    }

    fn connect(&mut self, b: &mut Bottom, node: Option<&mut Node>) -> bool {
        let index = b.sockets.len();
        let crumbs = if GREEDY.contains(&self.deed) { Pieces::Whole } else { Pieces::Crumbs };
        let pieces = b.rng.pick(&[Pieces::Whole, Pieces::Some, crumbs]);
        b.sockets.push(Socket::new(4096, pieces));
        if !node.is_some_and(|node| node.accept(index, b)) {
            return false;
        }
        b.trace.line(format_args!("{NAME}/{} connects to do {:?}", self.device, self.deed));
        self.socket = Some(index);
        let bytes = if self.deed.needs_login() { self.hello(true, false) } else { self.deed_bytes(b) };
        b.socket(index).client_writes(&bytes);
        true
    }

    fn hello(&mut self, valid: bool, expired: bool) -> Vec<u8> {
        let mut token = tokens::token(NAME, self.device, expired);
        if !valid {
            // Another letter in the middle of the signature.
            let other = if token.ends_with('A') { 'B' } else { 'A' };
            let at = token.len() - 20;
            token.replace_range(at..=at, if token[at..=at] == *"A" { "B" } else { "A" });
            token.pop();
            token.push(other);
        }
        self.hello_with(&token, self.device, 1)
    }

    fn hello_with(&mut self, token: &str, device: u32, version_min: u8) -> Vec<u8> {
        let mut out = Vec::new();
        let fields = HelloFields {
            correlation: 1,
            version_min,
            version_max: version_min,
            token,
            device,
            agent: "evil",
            ..HelloFields::default()
        };
        self.builder.hello(&mut out, &fields);
        out
    }

    fn deed_bytes(&mut self, b: &mut Bottom) -> Vec<u8> {
        let mut out = Vec::new();
        let build = &mut self.builder;
        match self.deed {
            Deed::Nothing => {}
            Deed::Garbage => out = random_bytes(b, 200),
            Deed::HugeFrame => {
                out = random_bytes(b, 100);
                out[..8].copy_from_slice(&[0xff, 0xff, 0xff, 0x7f, Kind::Send as u8, 1, 0, 0]);
            }
            Deed::FrameTooLongBeforeLogin => {
                let fields = SendFields { correlation: 1, chat: 1, client_seq: 1, prev: 0 };
                build.send(&mut out, &fields, &[7; limits::FRAME_MAX_BEFORE_LOGIN_BYTES]);
            }
            Deed::HalfFrame => {
                out = self.hello(true, false);
                out.truncate(1 + b.rng.index(out.len() - 1));
            }
            Deed::SendBeforeHello => {
                build.send(&mut out, &SendFields { correlation: 1, chat: 1, client_seq: 1, prev: 0 }, b"x")
            }
            Deed::OtherVersion => {
                let token = tokens::token(NAME, self.device, false);
                out = self.hello_with(&token, self.device, 7);
            }
            Deed::WrongToken => out = self.hello(false, false),
            Deed::ExpiredToken => out = self.hello(true, true),
            Deed::OtherDevice => {
                let token = tokens::token(NAME, self.device, false);
                out = self.hello_with(&token, self.device + 1, 1);
            }
            Deed::BadUser => {
                let token = tokens::token("Not A Name", self.device, false);
                out = self.hello_with(&token, self.device, 1);
            }
            Deed::SecondHello => out = self.hello(true, false),
            Deed::FrameOfANode => build.welcome(&mut out, &WelcomeFields { user: NAME, ..WelcomeFields::default() }),
            Deed::UnknownKind => out = unknown_kind(),
            Deed::AckAboveHead => build.ack(&mut out, 1 << 40),
            Deed::BadClientSeq => {
                build.send(&mut out, &SendFields { correlation: 2, chat: 1, client_seq: 3, prev: 3 }, b"x")
            }
            Deed::NoMember => build.send(
                &mut out,
                &SendFields { correlation: 2, chat: b.rng.next().into(), client_seq: 1, prev: 0 },
                b"x",
            ),
            Deed::BadMembers => {
                build.create_chat(&mut out, &chat(fb::ChatKind::Direct, &["alice", "bob", "carol"], ""))
            }
            Deed::LongTitle => {
                let title = "t".repeat(limits::TITLE_MAX_BYTES + 1);
                build.create_chat(&mut out, &chat(fb::ChatKind::Group, &["alice"], &title));
            }
            Deed::LongPayload => {
                let payload = vec![1; limits::PAYLOAD_MAX_BYTES + 1];
                build.send(&mut out, &SendFields { correlation: 2, chat: 1, client_seq: 1, prev: 0 }, &payload);
            }
            Deed::FlippedBit => {
                build.ping(&mut out, 7);
                let at = b.rng.index(out.len());
                out[at] ^= 1 << b.rng.index(8);
                // A length that rose keeps the node waiting for the rest.
                out.extend_from_slice(&[0; 256]);
            }
            Deed::BadTable => out = bad_table(b),
            Deed::NeverReads => pings(build, b, &mut out),
            Deed::Floods => questions(build, b, &mut out),
        }
        out
    }
}

/// More pings than their answers have room for.
fn pings(build: &mut Builder, b: &Bottom, out: &mut Vec<u8>) {
    let answers = b.weather.bounds.queue_max_bytes as usize / whimbrel_wire::HEADER_BYTES;
    (0..answers as u64).for_each(|number| build.ping(out, number));
}

/// More than one session may have unanswered, about chats all over the node.
fn questions(build: &mut Builder, b: &mut Bottom, out: &mut Vec<u8>) {
    for correlation in 1..=300 {
        let chat = b.rng.next().into();
        build.chat_info(out, &ChatInfoFields { correlation, chat, ..ChatInfoFields::default() });
    }
}

fn chat<'a>(kind: fb::ChatKind, members: &'a [&'a str], title: &'a str) -> CreateChatFields<'a> {
    CreateChatFields { correlation: 2, kind, nonce: 1, members, title }
}

fn random_bytes(b: &mut Bottom, len: usize) -> Vec<u8> {
    (0..len).map(|_| b.rng.next() as u8).collect()
}

/// A frame whose sum is right, whatever is in it.
fn sealed(kind: u8, table: &[u8]) -> Vec<u8> {
    let mut out = Vec::new();
    out.extend_from_slice(&((whimbrel_wire::HEADER_BYTES + table.len()) as u32).to_le_bytes());
    out.extend_from_slice(&[kind, whimbrel_wire::VERSION, 0, 0]);
    out.extend_from_slice(&(table.len() as u32).to_le_bytes());
    let sum = crc32c::crc32c_append(crc32c::crc32c(&out), table);
    out.extend_from_slice(&sum.to_le_bytes());
    out.extend_from_slice(table);
    out
}

fn unknown_kind() -> Vec<u8> {
    sealed(77, &[0; 8])
}

fn bad_table(b: &mut Bottom) -> Vec<u8> {
    let mut table = random_bytes(b, 40);
    // An offset to the root that leads out of the table.
    table[..4].copy_from_slice(&[0, 1, 0, 0]);
    sealed(b.rng.pick(&[Kind::Send, Kind::Ack, Kind::Ping, Kind::CreateChat, Kind::ChatInfo]) as u8, &table)
}

/// What one of them is told, if it is what the deed deserves.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Answer {
    Welcome,
    Refusal,
    Pong,
}

fn judge(deed: Deed, closed_by: &mut Option<Code>, frame: &ServerFrame<'_>) -> Result<Answer, Violation> {
    let wrong =
        |text: String| Err(Violation::new(Check::WrongAnswer, format!("{NAME} does {deed:?} and is told {text}")));
    if let Some(code) = closed_by {
        return wrong(format!("more after {}", code.name()));
    }
    let (number, flags) = match frame {
        ServerFrame::Welcome(_) if deed.needs_login() => return Ok(Answer::Welcome),
        ServerFrame::Welcome(_) => return wrong("Welcome".into()),
        ServerFrame::Pong(_) => return Ok(Answer::Pong),
        ServerFrame::ChatInfo(_) | ServerFrame::Sent(_) | ServerFrame::Deliver(..) => {
            return wrong("what is not its to know".into());
        }
        ServerFrame::Refused(it) => (it.code(), None),
        ServerFrame::GoAway(it) => (it.code(), None),
        ServerFrame::Error(it) => (it.code(), Some((it.retriable(), it.closes()))),
    };
    let Some(code) = Code::from_u16(number) else { return wrong(format!("the unknown code {number}")) };
    if !deed.expected().contains(&code) && !ALWAYS_POSSIBLE.contains(&code) {
        return wrong(code.name().into());
    }
    if flags.is_some_and(|flags| flags != (code.retriable(), code.closes())) {
        return wrong(format!("{} with the flags {flags:?}", code.name()));
    }
    if code.closes() {
        *closed_by = Some(code);
    }
    Ok(Answer::Refusal)
}

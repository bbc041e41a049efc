//! A device: the session of the client library over a socket that does not block. It outlives the server's processes, and now
//! and then its own.

use std::collections::{BTreeMap, BTreeSet};
use std::io::{ErrorKind, Read, Write};
use std::net::TcpStream;
use std::time::{Duration, Instant};

use anyhow::Context;
use whimbrel_client::{Config, Content, Delivery, Event, Session};
use whimbrel_wire::{Code, Decoder, ServerFrame, limits};

use crate::ledger::{Finding, Given, Kind};

const READ_BYTES: usize = 64 << 10;

/// See the [module](self).
pub(crate) struct Device {
    pub(crate) user: &'static str,
    pub(crate) number: u32,
    pub(crate) session: Session,
    /// Chats whose facts the session has, by their place in the life's list.
    pub(crate) knows: BTreeSet<usize>,
    /// What was asked and not answered: the chat's place in the life's list.
    pub(crate) asked: BTreeMap<u64, usize>,
    /// Sends that it keeps begun.
    pub(crate) window: usize,
    /// Refusals that the session does not tell of, for it tries again: since the device looked last, in their order.
    pub(crate) refusals: Vec<Code>,
    decoder: Decoder,
    token: String,
    socket: Option<TcpStream>,
    begun: Instant,
    out: Vec<u8>,
}

impl Device {
    pub(crate) fn new(user: &'static str, number: u32, token: String) -> Device {
        let session = Session::new(Config::new(user, number, token.as_str()));
        Device {
            user,
            number,
            session,
            knows: BTreeSet::new(),
            asked: BTreeMap::new(),
            window: 1,
            refusals: Vec::new(),
            decoder: Decoder::default(),
            token,
            socket: None,
            begun: Instant::now(),
            out: Vec::new(),
        }
    }

    /// As it is written.
    pub(crate) fn name(&self) -> String {
        format!("{}/{}", self.user, self.number)
    }

    /// Nothing that it sent or asked is unanswered.
    pub(crate) fn is_settled(&self) -> bool {
        self.session.unanswered_sends() == 0 && self.asked.is_empty()
    }

    /// Its process ends, and a new one goes on from what a device has to keep. Only for one that is settled.
    pub(crate) fn forget(&mut self) {
        let config = Config::new(self.user, self.number, self.token.as_str());
        let (floor, next_client_seq) = (self.session.floor(), self.session.next_client_seq());
        self.session = Session::new(Config { floor, next_client_seq, ..config });
        self.knows.clear();
    }

    /// Another device of the same name, which remembers nothing.
    pub(crate) fn anew(&self) -> Device {
        Device::new(self.user, self.number, self.token.clone())
    }

    pub(crate) fn connect(&mut self, address: &str) -> anyhow::Result<()> {
        let socket = TcpStream::connect(address).with_context(|| format!("connect to {address}"))?;
        socket.set_nodelay(true).and_then(|()| socket.set_nonblocking(true)).context("set up a socket")?;
        self.socket = Some(socket);
        self.out.clear();
        self.decoder = Decoder::default();
        self.session.connected(self.now_ms());
        Ok(())
    }

    pub(crate) fn disconnect(&mut self) {
        self.socket = None;
        self.session.disconnected();
    }

    pub(crate) fn socket(&self) -> Option<&TcpStream> {
        self.socket.as_ref()
    }

    /// When the session wants to be looked at again.
    pub(crate) fn patience(&self) -> Duration {
        let at = self.session.poll_timeout().filter(|_| self.socket.is_some()).unwrap_or(u64::MAX);
        Duration::from_millis(at.saturating_sub(self.now_ms()))
    }

    /// Whether the socket has not taken all yet.
    pub(crate) fn has_output(&self) -> bool {
        !self.out.is_empty()
    }

    /// Writes what there is to say, as far as the socket takes it. `false` if the connection is lost.
    pub(crate) fn write(&mut self) -> bool {
        let now_ms = self.now_ms();
        let Some(socket) = &mut self.socket else { return true };
        self.session.poll_transmit(now_ms, &mut self.out);
        while !self.out.is_empty() {
            match socket.write(&self.out) {
                Ok(0) => return false,
                Ok(count) => drop(self.out.drain(..count)),
                Err(error) if error.kind() == ErrorKind::WouldBlock => break,
                Err(error) if error.kind() == ErrorKind::Interrupted => {}
                Err(_) => return false,
            }
        }
        true
    }

    /// Takes what has come. `Ok(false)` if the connection is lost; an error is what no node may send, or a silence.
    pub(crate) fn read(&mut self) -> Result<bool, whimbrel_client::ClientError> {
        let now_ms = self.now_ms();
        let Some(socket) = &mut self.socket else { return Ok(true) };
        let mut piece = vec![0; READ_BYTES];
        loop {
            match socket.read(&mut piece) {
                Ok(0) => return Ok(false),
                Ok(count) => {
                    note_refusals(&mut self.decoder, &piece[..count], &mut self.refusals)?;
                    self.session.receive(now_ms, &piece[..count])?;
                }
                Err(error) if error.kind() == ErrorKind::WouldBlock => break,
                Err(error) if error.kind() == ErrorKind::Interrupted => {}
                Err(_) => return Ok(false),
            }
        }
        if self.session.poll_timeout().is_some_and(|at| at <= now_ms) {
            self.session.handle_timeout(now_ms)?;
        }
        Ok(true)
    }

    /// What has happened to it, one by one.
    pub(crate) fn event(&mut self) -> Option<Event> {
        self.session.poll_event()
    }

    fn now_ms(&self) -> u64 {
        self.begun.elapsed().as_millis() as u64
    }
}

/// The session keeps what may be tried again to itself.
fn note_refusals(
    decoder: &mut Decoder,
    mut bytes: &[u8],
    refusals: &mut Vec<Code>,
) -> Result<(), whimbrel_client::ClientError> {
    loop {
        let mut rest = bytes;
        let Some(frame) = decoder.decode(&mut rest, limits::FRAME_MAX_BYTES)? else { return Ok(()) };
        if let Ok(ServerFrame::Error(error)) = ServerFrame::parse(&frame)
            && error.retriable()
        {
            refusals.extend(Code::from_u16(error.code()));
        }
        bytes = &bytes[bytes.len() - rest.len()..];
    }
}

impl<'a> Given<'a> {
    pub(crate) fn of(delivery: &'a Delivery) -> Given<'a> {
        let payload = match &delivery.content {
            Content::Message(payload) => Some(payload.as_slice()),
            Content::ChatCreated { .. } | Content::Unknown { .. } => None,
        };
        Given { inbox_seq: delivery.inbox_seq, chat: delivery.chat, chat_seq: delivery.chat_seq, payload }
    }
}

/// What a device hears that no server may say while it keeps its promises.
pub(crate) fn unexpected(name: &str, event: &Event) -> Finding {
    match event {
        Event::SendFailed { client_seq, refusal, .. } => {
            Finding::new(Kind::Refused, format!("send {client_seq} of {name}, for good: {refusal}"))
        }
        Event::RequestFailed { refusal, .. } => {
            Finding::new(Kind::Refused, format!("a question of {name} about a chat: {refusal}"))
        }
        Event::Refused(refusal) => Finding::new(Kind::Refused, format!("the login of {name}: {refusal}")),
        Event::GoAway(refusal) => Finding::new(Kind::Ended, format!("the server sends {name} away: {refusal}")),
        Event::Gap { expected, got } => {
            Finding::new(Kind::Lost, format!("{name}: place {got} of the inbox came instead of {expected}"))
        }
        Event::InboxLost { floor, head } => Finding::new(
            Kind::Lost,
            format!("{name} was given {floor} places of its inbox, and the server knows {head}"),
        ),
        Event::Welcome(_) | Event::Pong { .. } | Event::Delivered(_) | Event::Sent(_) | Event::Chat { .. } => {
            unreachable!("that is expected")
        }
    }
}

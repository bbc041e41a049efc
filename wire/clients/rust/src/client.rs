//! A blocking client for programs that want one connection and no event loop: a [`Session`], a `TcpStream`, and a new one when
//! that breaks. All that needs the clock or waits is in [`Client::wait`].

use std::hash::{BuildHasher, RandomState};
use std::io::{self, Read, Write};
use std::net::{TcpStream, ToSocketAddrs};
use std::time::{Duration, Instant};

use crate::event::{ClientError, Event, Refusal, SendError, SendNumber};
use crate::session::{Config, Session};
use whimbrel_wire::fb::ChatKind;

/// A connection attempt that takes longer is given up, and so is a write that the node does not take.
const SOCKET_TIMEOUT: Duration = Duration::from_secs(5);

/// Pause before connecting again: doubled each time from the first up to the last.
const PAUSE_FIRST_MS: u64 = 50;
const PAUSE_LAST_MS: u64 = 5_000;

/// Bytes read from the socket at once.
const READ_BYTES: usize = 64 * 1024;

/// See the head of this module.
pub struct Client {
    session: Session,
    address: String,
    socket: Option<TcpStream>,
    begun: Instant,
    /// Attempts since the last login.
    failures: u32,
    retry_at: Instant,
    /// What the node asked for when it closed.
    pause_min_ms: u64,
    /// Why another connection would be of no use.
    refused: Option<Refusal>,
    buffer: Vec<u8>,
    out: Vec<u8>,
}

impl Client {
    /// Connects to `host:port`. The first [`Event`] of [`Client::wait`] is the answer to the login.
    pub fn connect(address: impl Into<String>, config: Config) -> Result<Client, ClientError> {
        let mut client = Client {
            session: Session::new(config),
            address: address.into(),
            socket: None,
            begun: Instant::now(),
            failures: 0,
            retry_at: Instant::now(),
            pause_min_ms: 0,
            refused: None,
            buffer: vec![0; READ_BYTES],
            out: Vec::new(),
        };
        match client.dial() {
            Ok(socket) => client.adopt(socket),
            Err(error) => return Err(ClientError::Connect { address: client.address, error }),
        }
        Ok(client)
    }

    /// The next event, or `None` after `timeout` (a connection attempt that is under way may take longer). Connects again as
    /// often as it takes; an error means that no connection would help.
    pub fn wait(&mut self, timeout: Duration) -> Result<Option<Event>, ClientError> {
        let until = Instant::now() + timeout;
        loop {
            self.flush();
            if let Some(event) = self.session.poll_event() {
                self.note(&event);
                return Ok(Some(event));
            }
            if self.socket.is_none()
                && let Some(refusal) = &self.refused
            {
                return Err(ClientError::Refused(refusal.clone()));
            }
            // What has arrived already is taken even if there is no time to wait.
            self.step(until)?;
            self.flush();
            if Instant::now() >= until {
                let event = self.session.poll_event();
                event.iter().for_each(|event| self.note(event));
                return Ok(event);
            }
        }
    }

    /// See [`Session::create_chat`].
    pub fn create_chat(&mut self, kind: ChatKind, members: &[&str], title: &str, nonce: u64) -> u64 {
        let correlation = self.session.create_chat(kind, members, title, nonce);
        self.flush();
        correlation
    }

    /// See [`Session::chat_info`].
    pub fn chat_info(&mut self, chat: u128) -> u64 {
        let correlation = self.session.chat_info(chat);
        self.flush();
        correlation
    }

    /// See [`Session::send`].
    pub fn send(&mut self, chat: u128, payload: &[u8]) -> Result<SendNumber, SendError> {
        let number = self.session.send(chat, payload)?;
        self.flush();
        Ok(number)
    }

    /// See [`Session::resume_send`].
    pub fn resume_send(&mut self, chat: u128, number: SendNumber, payload: &[u8]) -> Result<(), SendError> {
        self.session.resume_send(chat, number, payload)?;
        self.flush();
        Ok(())
    }

    /// See [`Session::ack`].
    pub fn ack(&mut self, inbox_seq: u64) {
        self.session.ack(inbox_seq);
        self.flush();
    }

    /// See [`Session::ping`].
    pub fn ping(&mut self) -> u64 {
        let correlation = self.session.ping();
        self.flush();
        correlation
    }

    /// What the session knows of itself.
    pub fn session(&self) -> &Session {
        &self.session
    }

    /// See [`Session::set_token`].
    pub fn set_token(&mut self, token: impl Into<String>) {
        self.session.set_token(token);
    }

    /// The socket, while there is one: to wait for it together with something else, then [`Client::wait`] for no time.
    pub fn socket(&self) -> Option<&TcpStream> {
        self.socket.as_ref()
    }

    fn now_ms(&self) -> u64 {
        self.begun.elapsed().as_millis() as u64
    }

    /// Waits for one thing at most: bytes, a timeout of the session, or the time to connect again.
    fn step(&mut self, until: Instant) -> Result<(), ClientError> {
        let Some(socket) = &mut self.socket else {
            let pause = self.retry_at.min(until).saturating_duration_since(Instant::now());
            std::thread::sleep(pause);
            if Instant::now() >= self.retry_at {
                self.reconnect();
            }
            return Ok(());
        };
        let timeout_ms =
            self.session.poll_timeout().unwrap_or(u64::MAX).saturating_sub(self.begun.elapsed().as_millis() as u64);
        let patience = Duration::from_millis(timeout_ms).min(until.saturating_duration_since(Instant::now()));
        let read = read_within(socket, &mut self.buffer, patience);
        let now_ms = self.now_ms();
        let outcome = match read {
            Ok(0) => Err(None),
            Ok(count) => self.session.receive(now_ms, &self.buffer[..count]).map_err(Some),
            Err(error) if is_patience(&error) => self.session.handle_timeout(now_ms).map_err(Some),
            Err(_) => Err(None),
        };
        let Err(error) = outcome else { return Ok(()) };
        self.lost();
        match error {
            // Another connection would say the same.
            Some(error @ (ClientError::WrongUser { .. } | ClientError::Version(_))) => Err(error),
            Some(_) | None => Ok(()),
        }
    }

    /// Writes what the session has to say.
    fn flush(&mut self) {
        let now_ms = self.now_ms();
        let Some(socket) = &mut self.socket else { return };
        self.out.clear();
        self.session.poll_transmit(now_ms, &mut self.out);
        if !self.out.is_empty() && socket.write_all(&self.out).is_err() {
            self.lost();
        }
    }

    fn note(&mut self, event: &Event) {
        match event {
            Event::Welcome(_) => self.failures = 0,
            // The node closes after it; until then answers may still come.
            Event::Refused(refusal) | Event::GoAway(refusal) => {
                self.pause_min_ms = u64::from(refusal.retry_after_ms);
                if !refusal.may_reconnect() {
                    self.refused = Some(refusal.clone());
                }
            }
            _ => {}
        }
    }

    /// The connection is of no more use.
    fn lost(&mut self) {
        self.socket = None;
        self.session.disconnected();
        let pause_ms = (PAUSE_FIRST_MS << self.failures.min(16)).min(PAUSE_LAST_MS);
        // Half of it by chance, so that all clients of a node that restarts do not come back at once.
        let chance = RandomState::new().hash_one(self.failures) % (pause_ms / 2 + 1);
        self.failures += 1;
        self.retry_at = Instant::now() + Duration::from_millis((pause_ms / 2 + chance).max(self.pause_min_ms));
        self.pause_min_ms = 0;
    }

    fn reconnect(&mut self) {
        match self.dial() {
            Ok(socket) => self.adopt(socket),
            Err(_) => self.lost(),
        }
    }

    fn adopt(&mut self, socket: TcpStream) {
        self.socket = Some(socket);
        self.session.connected(self.now_ms());
        self.flush();
    }

    /// Resolved anew each time: a node may have moved.
    fn dial(&self) -> io::Result<TcpStream> {
        let mut last = io::Error::new(io::ErrorKind::NotFound, "the name has no address");
        for address in self.address.to_socket_addrs()? {
            match TcpStream::connect_timeout(&address, SOCKET_TIMEOUT) {
                Ok(socket) => {
                    socket.set_nodelay(true)?;
                    socket.set_write_timeout(Some(SOCKET_TIMEOUT))?;
                    return Ok(socket);
                }
                Err(error) => last = error,
            }
        }
        Err(last)
    }
}

/// Reads what comes within this time; what is there already if it is none.
fn read_within(socket: &mut TcpStream, buffer: &mut [u8], patience: Duration) -> io::Result<usize> {
    if patience < Duration::from_millis(1) {
        socket.set_nonblocking(true)?;
        let read = socket.read(buffer);
        socket.set_nonblocking(false)?;
        return read;
    }
    socket.set_read_timeout(Some(patience))?;
    socket.read(buffer)
}

fn is_patience(error: &io::Error) -> bool {
    matches!(error.kind(), io::ErrorKind::WouldBlock | io::ErrorKind::TimedOut | io::ErrorKind::Interrupted)
}

//! One device's connection as the commands see it: events out, requests in, and a socket behind that is made again when it
//! breaks. The protocol is [`Session`]'s; here are the socket, the clock, and the wait for both of them and for whoever else
//! may wake it. (The library's own blocking client cannot wait for a keyboard too.)

use std::collections::VecDeque;
use std::io::{self, Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::os::fd::AsFd;
use std::os::unix::net::UnixStream;
use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::Context;
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use socket2::{Domain, Protocol, Socket, Type};
pub(super) use whimbrel_client::{ChatFacts, Content, Delivery, Receipt, Refusal, Welcome};
use whimbrel_client::{ChatKind, ClientError, Config, Event as Told, SendNumber, Session};

use crate::cli::access::Access;
use crate::cli::problem;
use crate::cli::state::Memory;

/// A connection attempt that takes longer is given up.
const OPEN_TIMEOUT: Duration = Duration::from_secs(5);

/// Pause before connecting again; doubled each time up to the last.
const RETRY_FIRST: Duration = Duration::from_millis(50);
const RETRY_LAST: Duration = Duration::from_secs(2);

/// Bytes read from the socket at once.
const READ_BYTES: usize = 64 * 1024;

/// What happened.
#[derive(Clone, Debug)]
pub(super) enum Event {
    /// Logged in, for the first time or again.
    LoggedIn(Welcome),
    /// There is no connection, and why; another attempt is made by itself.
    Lost(Lost),
    /// The server does not want this device, and would not on another connection.
    Refused(Refusal),
    Delivered(Delivery),
    /// A message is stored.
    Stored(Receipt),
    /// A message is not stored and never will be.
    NotStored {
        client_seq: u64,
        refusal: Refusal,
    },
    /// The answer to a question about a chat.
    Chat {
        correlation: u64,
        facts: ChatFacts,
    },
    /// There is no answer to a question about a chat.
    NoAnswer {
        correlation: u64,
        refusal: Refusal,
    },
    /// The server has handled all that was sent before the ping of this number.
    Pong(u64),
    /// The server's inbox of this device is not the one that the device knows.
    Warning(Warning),
}

/// Why there is no connection.
#[derive(Clone, Debug)]
pub(super) struct Lost {
    pub(super) why: String,
    /// The server itself asked to come back later.
    pub(super) later: bool,
}

/// What should not be.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Warning {
    /// Deliveries are missing.
    Gap { expected: u64, got: u64 },
    /// The inbox ends before what was shown already.
    InboxLost { floor: u64, head: u64 },
}

impl std::fmt::Display for Warning {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Warning::Gap { expected, got } => {
                write!(f, "deliveries {expected} to {} are missing from the inbox", got - 1)
            }
            Warning::InboxLost { floor, head } => write!(
                f,
                "this device has seen {floor} deliveries and the server's inbox ends at {head}: the server has lost data, or is another one"
            ),
        }
    }
}

/// Wakes a [`Link::wait`] from another thread.
#[derive(Clone)]
pub(super) struct Waker(Arc<UnixStream>);

impl Waker {
    pub(super) fn wake(&self) {
        // A full pipe wakes as well as one byte more would.
        let _ = (&*self.0).write(&[1]);
    }
}

enum Connection {
    Down {
        retry_at: Instant,
    },
    /// The handshake is under way.
    Opening {
        socket: TcpStream,
        since: Instant,
    },
    Open {
        socket: TcpStream,
    },
}

/// See the head of this file.
pub(super) struct Link {
    session: Session,
    access: Access,
    connection: Connection,
    /// Attempts since the last login.
    failures: u32,
    /// What the server said before it closed.
    farewell: Option<Refusal>,
    queue: VecDeque<Event>,
    /// Bytes that the socket did not take yet.
    unwritten: Vec<u8>,
    buffer: Vec<u8>,
    woken: UnixStream,
    waker: Waker,
    begun: Instant,
}

impl Link {
    /// A link that will connect as soon as it is waited for.
    pub(super) fn new(access: &Access, memory: Memory) -> anyhow::Result<Link> {
        access.addresses()?;
        let (waker, woken) = UnixStream::pair().context("make a pair of sockets")?;
        waker.set_nonblocking(true).context("set a socket up")?;
        woken.set_nonblocking(true).context("set a socket up")?;
        let config = Config {
            floor: memory.floor,
            next_client_seq: memory.next_client_seq,
            agent: concat!("whimbrel/", env!("CARGO_PKG_VERSION")).to_owned(),
            ..Config::new(&access.user, access.device, &access.token)
        };
        Ok(Link {
            session: Session::new(config),
            access: access.clone(),
            connection: Connection::Down { retry_at: Instant::now() },
            failures: 0,
            farewell: None,
            queue: VecDeque::new(),
            unwritten: Vec::new(),
            buffer: vec![0; READ_BYTES],
            woken,
            waker: Waker(Arc::new(waker)),
            begun: Instant::now(),
        })
    }

    /// What wakes [`Link::wait`] early.
    pub(super) fn waker(&self) -> Waker {
        self.waker.clone()
    }

    /// Logged in.
    pub(super) fn is_up(&self) -> bool {
        self.session.is_ready()
    }

    /// Waits for the login. Fails at once if no server is there.
    pub(super) fn log_in(&mut self, timeout: Duration) -> anyhow::Result<Welcome> {
        let until = Instant::now() + timeout;
        loop {
            match self.wait(Some(until))? {
                Some(Event::LoggedIn(welcome)) => return Ok(welcome),
                Some(Event::Refused(refusal)) => return Err(problem::login(&self.access, &refusal)),
                Some(Event::Lost(Lost { why, later: false })) => {
                    return Err(problem::unreachable(&self.access, &why).into());
                }
                Some(Event::Warning(warning)) => eprintln!("whimbrel: {warning}"),
                Some(_) => {}
                None if Instant::now() >= until => {
                    return Err(problem::timed_out(&format!("no login at {}", self.access.server), timeout).into());
                }
                None => {}
            }
        }
    }

    /// The next event; `None` at `until`, or when it was woken.
    pub(super) fn wait(&mut self, until: Option<Instant>) -> anyhow::Result<Option<Event>> {
        let mut woken = false;
        loop {
            self.dial_if_due();
            self.flush();
            self.translate();
            if let Some(event) = self.queue.pop_front() {
                return Ok(Some(event));
            }
            if woken || until.is_some_and(|until| Instant::now() >= until) {
                return Ok(None);
            }
            woken = self.sleep(until)?;
        }
    }

    /// The delivery that has come behind the last event, if that is what has come.
    pub(super) fn next_delivery(&mut self) -> Option<Delivery> {
        match self.queue.pop_front() {
            Some(Event::Delivered(delivery)) => Some(delivery),
            Some(other) => {
                self.queue.push_front(other);
                None
            }
            None => None,
        }
    }

    /// Makes or finds the 1:1 chat with a user. The answer repeats the returned number.
    pub(super) fn create_direct(&mut self, user: &str) -> u64 {
        self.session.create_chat(ChatKind::Direct, &[user], "", 0)
    }

    /// Makes a group. The answer repeats the returned number.
    pub(super) fn create_group(&mut self, title: &str, members: &[String]) -> anyhow::Result<u64> {
        let mut nonce = [0; 8];
        rustix::rand::getrandom(&mut nonce, rustix::rand::GetRandomFlags::empty()).context("draw a random number")?;
        let members: Vec<&str> = members.iter().map(String::as_str).collect();
        Ok(self.session.create_chat(ChatKind::Group, &members, title, u64::from_le_bytes(nonce)))
    }

    /// Asks about a chat. The answer repeats the returned number.
    pub(super) fn chat_info(&mut self, chat: u128) -> u64 {
        self.session.chat_info(chat)
    }

    /// Takes a message for a chat that was answered about. It goes out with the next [`Link::wait`], so that its number can be
    /// noted before.
    pub(super) fn send(&mut self, chat: u128, payload: &[u8]) -> anyhow::Result<SendNumber> {
        Ok(self.session.send(chat, payload)?)
    }

    /// Takes a message of a former process with the number it had.
    pub(super) fn resume(&mut self, chat: u128, number: SendNumber, payload: &[u8]) -> anyhow::Result<()> {
        Ok(self.session.resume_send(chat, number, payload)?)
    }

    /// All deliveries up to this one were shown and noted.
    pub(super) fn ack(&mut self, inbox_seq: u64) {
        self.session.ack(inbox_seq);
    }

    /// Waits until the server has handled all that it was sent; closing at once might take it back. What comes meanwhile is
    /// not acknowledged and so comes again.
    pub(super) fn settle(&mut self, timeout: Duration) -> anyhow::Result<()> {
        if !self.is_up() {
            return Ok(());
        }
        let ping = self.session.ping();
        let until = Instant::now() + timeout;
        loop {
            match self.wait(Some(until))? {
                Some(Event::Pong(pong)) if pong == ping => return Ok(()),
                Some(Event::Lost(_) | Event::Refused(_)) => return Ok(()),
                Some(_) => {}
                None if Instant::now() >= until => return Ok(()),
                None => {}
            }
        }
    }

    // ---- the socket ----

    fn now_ms(&self) -> u64 {
        self.begun.elapsed().as_millis() as u64
    }

    fn dial_if_due(&mut self) {
        match self.connection {
            Connection::Down { retry_at } if retry_at <= Instant::now() => {}
            _ => return,
        }
        match self.open() {
            Ok(socket) => self.connection = Connection::Opening { socket, since: Instant::now() },
            Err(error) => self.lost(&error.to_string()),
        }
    }

    /// Begins a handshake. Names are resolved anew each time, and addresses taken in turn.
    fn open(&self) -> anyhow::Result<TcpStream> {
        let addresses = self.access.addresses()?;
        let address: SocketAddr = addresses[self.failures as usize % addresses.len()];
        let socket = Socket::new(Domain::for_address(address), Type::STREAM, Some(Protocol::TCP))?;
        socket.set_nonblocking(true)?;
        socket.set_tcp_nodelay(true)?;
        match socket.connect(&address.into()) {
            Ok(()) => Ok(socket.into()),
            Err(error) if error.raw_os_error() == Some(rustix::io::Errno::INPROGRESS.raw_os_error()) => {
                Ok(socket.into())
            }
            Err(error) => Err(error.into()),
        }
    }

    /// Hands the socket what the session has to say.
    fn flush(&mut self) {
        let now_ms = self.now_ms();
        let Connection::Open { socket } = &mut self.connection else { return };
        self.session.poll_transmit(now_ms, &mut self.unwritten);
        while !self.unwritten.is_empty() {
            match socket.write(&self.unwritten) {
                Ok(written) => drop(self.unwritten.drain(..written)),
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => return,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => return self.lost(&error.to_string()),
            }
        }
    }

    /// Sleeps until something happens, and takes what has come. Whether it was woken by a [`Waker`].
    fn sleep(&mut self, until: Option<Instant>) -> anyhow::Result<bool> {
        let timeout = self.wake_at(until).map(|at| at.saturating_duration_since(Instant::now()));
        // Rounded up: to wake a moment too early means to wake twice.
        let timeout = timeout.and_then(|timeout| Timespec::try_from(timeout + Duration::from_micros(500)).ok());
        let (woken, ready) = {
            let mut fds = vec![PollFd::new(&self.woken, PollFlags::IN)];
            match &self.connection {
                Connection::Down { .. } => {}
                Connection::Opening { socket, .. } => {
                    fds.push(PollFd::from_borrowed_fd(socket.as_fd(), PollFlags::OUT))
                }
                Connection::Open { socket } => {
                    let more = if self.unwritten.is_empty() { PollFlags::empty() } else { PollFlags::OUT };
                    fds.push(PollFd::from_borrowed_fd(socket.as_fd(), PollFlags::IN | more));
                }
            }
            match poll(&mut fds, timeout.as_ref()) {
                Ok(_) => {}
                Err(rustix::io::Errno::INTR) => return Ok(false),
                Err(error) => return Err(error).context("wait for the socket"),
            }
            (!fds[0].revents().is_empty(), fds.get(1).is_some_and(|fd| !fd.revents().is_empty()))
        };
        if woken {
            // How often it was woken does not matter.
            while matches!(self.woken.read(&mut [0; 64]), Ok(64)) {}
        }
        self.advance(ready);
        Ok(woken)
    }

    fn wake_at(&self, until: Option<Instant>) -> Option<Instant> {
        let own = match &self.connection {
            Connection::Down { retry_at } => Some(*retry_at),
            Connection::Opening { since, .. } => Some(*since + OPEN_TIMEOUT),
            // A time too far away to be one is none.
            Connection::Open { .. } => self
                .session
                .poll_timeout()
                .and_then(|at_ms| self.begun.checked_add(Duration::from_millis(at_ms.min(1 << 40)))),
        };
        own.into_iter().chain(until).min()
    }

    /// Takes what the socket has.
    fn advance(&mut self, ready: bool) {
        match &mut self.connection {
            Connection::Down { .. } => {}
            Connection::Opening { since, .. } if !ready => {
                if since.elapsed() >= OPEN_TIMEOUT {
                    self.lost("it does not answer");
                }
            }
            Connection::Opening { .. } => self.opened(),
            Connection::Open { .. } if ready => self.read(),
            Connection::Open { .. } => self.timeout(),
        }
    }

    fn opened(&mut self) {
        let down = Connection::Down { retry_at: Instant::now() };
        let Connection::Opening { socket, .. } = std::mem::replace(&mut self.connection, down) else { return };
        match socket.take_error() {
            Ok(None) => {
                self.connection = Connection::Open { socket };
                self.unwritten.clear();
                self.session.connected(self.now_ms());
            }
            Ok(Some(error)) | Err(error) => self.lost(&plain(&error)),
        }
    }

    fn read(&mut self) {
        let now_ms = self.now_ms();
        let Connection::Open { socket } = &mut self.connection else { return };
        let received = match socket.read(&mut self.buffer) {
            Ok(0) => return self.lost("it closed the connection"),
            Ok(count) => self.session.receive(now_ms, &self.buffer[..count]),
            Err(error) if matches!(error.kind(), io::ErrorKind::WouldBlock | io::ErrorKind::Interrupted) => return,
            Err(error) => return self.lost(&plain(&error)),
        };
        if let Err(error) = received {
            self.failed(error);
        }
    }

    fn timeout(&mut self) {
        let now_ms = self.now_ms();
        if self.session.poll_timeout().is_some_and(|at_ms| at_ms <= now_ms)
            && let Err(error) = self.session.handle_timeout(now_ms)
        {
            self.failed(error);
        }
    }

    /// The connection is of no more use. Where another would not be either, the farewell says so.
    fn failed(&mut self, error: ClientError) {
        if let ClientError::WrongUser { user, device } = &error {
            let code = whimbrel_wire::Code::WrongDevice;
            let detail = format!("it is of {user}'s device {device}");
            let refusal = Refusal { code: Some(code), number: code as u16, detail, retry_after_ms: 0 };
            self.queue.push_back(Event::Refused(refusal));
        }
        self.lost(&error.to_string());
    }

    fn lost(&mut self, why: &str) {
        self.session.disconnected();
        self.unwritten.clear();
        // What came before the end is told before it, and may say why.
        self.translate();
        let pause = RETRY_FIRST.saturating_mul(1 << self.failures.min(10)).min(RETRY_LAST);
        self.failures += 1;
        let farewell = self.farewell.take();
        let asked =
            farewell.as_ref().map_or(Duration::ZERO, |refusal| Duration::from_millis(refusal.retry_after_ms.into()));
        self.connection = Connection::Down { retry_at: Instant::now() + pause.max(asked) };
        let why = farewell.as_ref().map_or_else(|| why.to_owned(), problem::reason);
        self.queue.push_back(Event::Lost(Lost { why, later: farewell.is_some() }));
    }

    /// Moves what the session tells into the queue.
    fn translate(&mut self) {
        while let Some(told) = self.session.poll_event() {
            let event = match told {
                Told::Welcome(welcome) => {
                    self.failures = 0;
                    Event::LoggedIn(welcome)
                }
                Told::Refused(refusal) | Told::GoAway(refusal) if refusal.may_reconnect() => {
                    self.farewell = Some(refusal);
                    continue;
                }
                Told::Refused(refusal) | Told::GoAway(refusal) => Event::Refused(refusal),
                Told::Delivered(delivery) => Event::Delivered(delivery),
                Told::Sent(receipt) => Event::Stored(receipt),
                Told::SendFailed { client_seq, refusal, .. } => Event::NotStored { client_seq, refusal },
                Told::Chat { correlation, facts } => Event::Chat { correlation, facts },
                Told::RequestFailed { correlation, refusal } => Event::NoAnswer { correlation, refusal },
                Told::Pong { correlation, .. } => Event::Pong(correlation),
                Told::Gap { expected, got } => Event::Warning(Warning::Gap { expected, got }),
                Told::InboxLost { floor, head } => Event::Warning(Warning::InboxLost { floor, head }),
            };
            self.queue.push_back(event);
        }
    }
}

/// An error without its number.
fn plain(error: &io::Error) -> String {
    match error.kind() {
        io::ErrorKind::ConnectionRefused => "nothing listens there".to_owned(),
        io::ErrorKind::ConnectionReset => "the connection was cut".to_owned(),
        _ => error.to_string(),
    }
}

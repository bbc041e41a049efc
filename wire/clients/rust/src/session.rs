//! One device's conversation with a node, without a socket or a clock. It outlives its connections: what is unanswered goes
//! out again on the next one, under the same numbers and in the same order.
//!
//! After any other call, write what [`Session::poll_transmit`] gives, then take all of [`Session::poll_event`], and call
//! [`Session::handle_timeout`] once [`Session::poll_timeout`] has come. `now_ms` is any clock that never goes back.

mod receive;

use std::collections::{BTreeMap, BTreeSet, VecDeque};

use whimbrel_wire::{
    Builder, ChatInfoFields, CreateChatFields, Decoder, FrameError, HelloFields, SendFields, ServerFrame, VERSION, fb,
    limits,
};

use crate::event::{ClientError, Event, SendError, SendNumber};
use crate::sends::Sends;

/// A request without an answer for so long goes out again: a node under load may drop an answer that it can repeat.
const ANSWER_TIMEOUT_MS: u64 = 10_000;

/// A node that has not answered the login, or not closed after it said so, for so long is given up.
const LOGIN_TIMEOUT_MS: u64 = 10_000;

/// What a frame needs beside a payload; the same allowance as between the wire's own limits.
const FRAME_OVERHEAD_BYTES: usize = limits::FRAME_MAX_BYTES - limits::PAYLOAD_MAX_BYTES;

/// Who a session is, and where it goes on.
#[derive(Clone, Debug)]
pub struct Config {
    /// The user that the token is for.
    pub user: String,
    /// The device that the token is for.
    pub device: u32,
    /// What the node verifies.
    pub token: String,
    /// All deliveries up to this place are persisted.
    pub floor: u64,
    /// Above every number that this device has ever sent; 1 for a device that does not know, which is then told by the node
    /// chat by chat.
    pub next_client_seq: u64,
    /// What this program calls itself; shown to operators.
    pub agent: String,
}

impl Config {
    /// A device that remembers nothing.
    pub fn new(user: impl Into<String>, device: u32, token: impl Into<String>) -> Config {
        let agent = concat!("whimbrel-client/", env!("CARGO_PKG_VERSION")).to_owned();
        Config { user: user.into(), device, token: token.into(), floor: 0, next_client_seq: 1, agent }
    }
}

/// See the head of this module.
pub struct Session {
    config: Config,
    build: Builder,
    decoder: Decoder,
    phase: Phase,
    terms: Terms,
    clocks: Clocks,
    events: VecDeque<Event>,
    inbox: Inbox,
    sends: Sends,
    requests: BTreeMap<u64, Request>,
    /// Sends and requests on the wire, by correlation.
    flight: BTreeMap<u64, Flight>,
    /// Pings of the application: to be sent, and sent.
    pings: (Vec<u64>, BTreeSet<u64>),
    next_correlation: u64,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Phase {
    Offline,
    /// Hello is not written yet.
    Connected,
    /// Hello is written under this correlation.
    Greeting(u64),
    Ready,
    /// The node has said that it closes.
    Ending,
}

/// What the last Welcome has said.
#[derive(Clone, Copy, Debug)]
struct Terms {
    in_flight_max: usize,
    payload_max: usize,
    keepalive_ms: u64,
}

#[derive(Clone, Copy, Debug, Default)]
struct Clocks {
    heard_ms: u64,
    sent_ms: u64,
    pinged_ms: u64,
}

#[derive(Clone, Copy, Debug)]
struct Inbox {
    /// Acknowledged by the application: what the next Hello carries.
    floor: u64,
    /// The floor that the node was told.
    told: u64,
    /// Given to the application.
    seen: u64,
}

#[derive(Debug)]
struct Request {
    ask: Ask,
    on_wire: bool,
    not_before_ms: u64,
}

#[derive(Debug)]
enum Ask {
    Create { kind: fb::ChatKind, members: Vec<String>, title: String, nonce: u64 },
    Info { chat: u128 },
}

#[derive(Clone, Copy, Debug)]
struct Flight {
    deadline_ms: u64,
    /// Chat and number of a send; a request if there is none.
    send: Option<(u128, u64)>,
}

impl Session {
    /// A session that is not connected.
    pub fn new(config: Config) -> Session {
        let floor = config.floor;
        Session {
            sends: Sends::new(config.next_client_seq),
            config,
            build: Builder::default(),
            decoder: Decoder::default(),
            phase: Phase::Offline,
            terms: Terms { in_flight_max: 1, payload_max: limits::PAYLOAD_MAX_BYTES, keepalive_ms: 0 },
            clocks: Clocks::default(),
            events: VecDeque::new(),
            inbox: Inbox { floor, told: floor, seen: floor },
            requests: BTreeMap::new(),
            flight: BTreeMap::new(),
            pings: (Vec::new(), BTreeSet::new()),
            next_correlation: 1,
        }
    }

    /// There is a new connection; whatever was before it is gone.
    pub fn connected(&mut self, now_ms: u64) {
        self.disconnected();
        self.phase = Phase::Connected;
        self.clocks = Clocks { heard_ms: now_ms, sent_ms: now_ms, pinged_ms: now_ms };
    }

    /// The connection is gone. Pings are forgotten; all else that is unanswered waits for the next one.
    pub fn disconnected(&mut self) {
        self.phase = Phase::Offline;
        self.decoder = Decoder::default();
        self.flight.clear();
        self.pings.0.clear();
        self.pings.1.clear();
        self.sends.disconnected();
        for request in self.requests.values_mut() {
            request.on_wire = false;
            request.not_before_ms = 0;
        }
    }

    /// Bytes came from the node, in any pieces. After an error the connection is of no use: close it.
    pub fn receive(&mut self, now_ms: u64, bytes: &[u8]) -> Result<(), ClientError> {
        self.clocks.heard_ms = now_ms;
        let mut decoder = std::mem::take(&mut self.decoder);
        let mut input = bytes;
        loop {
            let mut rest = input;
            let Some(frame) = decoder.decode(&mut rest, limits::FRAME_MAX_BYTES)? else { break };
            let used = input.len() - rest.len();
            match ServerFrame::parse(&frame) {
                Ok(frame) => self.on_frame(now_ms, &frame)?,
                // A newer node may have more to say than this version understands.
                Err(FrameError::UnknownKind(_)) => {}
                Err(error) => return Err(error.into()),
            }
            input = &input[used..];
        }
        self.decoder = decoder;
        Ok(())
    }

    /// What happened next, if anything.
    pub fn poll_event(&mut self) -> Option<Event> {
        self.events.pop_front()
    }

    /// Appends what is to be written to the connection now: at most what the node allows to be unanswered.
    pub fn poll_transmit(&mut self, now_ms: u64, out: &mut Vec<u8>) {
        let before = out.len();
        match self.phase {
            Phase::Offline | Phase::Greeting(_) | Phase::Ending => return,
            Phase::Connected => self.transmit_hello(out),
            Phase::Ready => {
                if self.inbox.told < self.inbox.floor {
                    self.inbox.told = self.inbox.floor;
                    self.build.ack(out, self.inbox.floor);
                }
                self.transmit_requests(now_ms, out);
                self.transmit_sends(now_ms, out);
                self.transmit_pings(now_ms, out);
            }
        }
        if out.len() > before {
            self.clocks.sent_ms = now_ms;
        }
    }

    /// When [`Session::handle_timeout`] is to be called, if nothing happens before. A time that has passed means now.
    pub fn poll_timeout(&self) -> Option<u64> {
        let mut at = self.silent_at()?;
        if self.phase == Phase::Ready {
            at = self.flight.values().map(|flight| flight.deadline_ms).chain(self.ping_at()).fold(at, u64::min);
            if self.flight.len() < self.terms.in_flight_max {
                let requests =
                    self.requests.values().filter(|request| !request.on_wire).map(|request| request.not_before_ms);
                at = requests.chain(self.sends.ready_at()).fold(at, u64::min);
            }
        }
        Some(at)
    }

    /// The time of [`Session::poll_timeout`] has come. After an error the connection is of no use: close it.
    pub fn handle_timeout(&mut self, now_ms: u64) -> Result<(), ClientError> {
        if self.silent_at().is_some_and(|at| at <= now_ms) {
            return Err(ClientError::Silent);
        }
        let overdue: Vec<_> =
            self.flight.iter().filter(|(_, flight)| flight.deadline_ms <= now_ms).map(|(c, f)| (*c, *f)).collect();
        for (correlation, flight) in overdue {
            self.flight.remove(&correlation);
            self.again(correlation, flight, now_ms);
        }
        Ok(())
    }

    /// Makes a chat or finds it: a 1:1 chat by its other member, a group by this device and `nonce`, which a device draws
    /// at random once per group. The returned number is repeated by the answer, [`Event::Chat`] or [`Event::RequestFailed`].
    pub fn create_chat(&mut self, kind: fb::ChatKind, members: &[&str], title: &str, nonce: u64) -> u64 {
        let members = members.iter().map(|member| (*member).to_owned()).collect();
        self.request(Ask::Create { kind, members, title: title.to_owned(), nonce })
    }

    /// Asks about a chat. The returned number is repeated by the answer, [`Event::Chat`] or [`Event::RequestFailed`].
    pub fn chat_info(&mut self, chat: u128) -> u64 {
        self.request(Ask::Info { chat })
    }

    /// Takes a message for a chat that this session knows from [`Event::Chat`]. It goes out once there is a connection, and
    /// again until it is answered by [`Event::Sent`] or [`Event::SendFailed`].
    pub fn send(&mut self, chat: u128, payload: &[u8]) -> Result<SendNumber, SendError> {
        self.check_payload(payload)?;
        self.sends.push(chat, payload)
    }

    /// Takes a message that an earlier session of this device has given these numbers and that was not answered then. All of
    /// a chat come in the order of their numbers, before new ones to that chat.
    pub fn resume_send(&mut self, chat: u128, number: SendNumber, payload: &[u8]) -> Result<(), SendError> {
        self.check_payload(payload)?;
        self.sends.resume(chat, number, payload)
    }

    /// All deliveries up to this place are persisted: the node may forget them. A place that was not delivered in this
    /// session is taken for the last one that was.
    pub fn ack(&mut self, inbox_seq: u64) {
        self.inbox.floor = self.inbox.floor.max(inbox_seq.min(self.inbox.seen));
    }

    /// Asks the node for a sign of life: [`Event::Pong`] with the returned number, after all that the node was told before.
    /// There is none if the connection goes before it comes, or if there is none.
    pub fn ping(&mut self) -> u64 {
        let correlation = self.correlation();
        if self.phase != Phase::Offline {
            self.pings.0.push(correlation);
        }
        correlation
    }

    /// Logged in.
    pub fn is_ready(&self) -> bool {
        self.phase == Phase::Ready
    }

    /// Sends without a final answer.
    pub fn unanswered_sends(&self) -> usize {
        self.sends.count()
    }

    /// Requests about chats without a final answer.
    pub fn unanswered_requests(&self) -> usize {
        self.requests.len()
    }

    /// Above every number that this device is known to have sent.
    pub fn next_client_seq(&self) -> u64 {
        self.sends.next()
    }

    /// The highest place that the application has acknowledged.
    pub fn floor(&self) -> u64 {
        self.inbox.floor
    }

    /// The token of the next login.
    pub fn set_token(&mut self, token: impl Into<String>) {
        self.config.token = token.into();
    }

    /// The longest payload that can be sent.
    pub fn payload_max(&self) -> usize {
        self.terms.payload_max
    }

    // ---- what goes out ----

    fn correlation(&mut self) -> u64 {
        let correlation = self.next_correlation;
        self.next_correlation += 1;
        correlation
    }

    fn request(&mut self, ask: Ask) -> u64 {
        let correlation = self.correlation();
        self.requests.insert(correlation, Request { ask, on_wire: false, not_before_ms: 0 });
        correlation
    }

    fn check_payload(&self, payload: &[u8]) -> Result<(), SendError> {
        let (bytes, max) = (payload.len(), self.terms.payload_max);
        if bytes > max { Err(SendError::TooLarge { bytes, max }) } else { Ok(()) }
    }

    fn transmit_hello(&mut self, out: &mut Vec<u8>) {
        let correlation = self.correlation();
        self.phase = Phase::Greeting(correlation);
        self.inbox.told = self.inbox.floor;
        let fields = HelloFields {
            correlation,
            version_min: VERSION,
            version_max: VERSION,
            capabilities: 0,
            token: &self.config.token,
            device: self.config.device,
            floor: self.inbox.floor,
            agent: &self.config.agent,
        };
        self.build.hello(out, &fields);
    }

    fn transmit_requests(&mut self, now_ms: u64, out: &mut Vec<u8>) {
        let Session { requests, flight, build, terms, .. } = self;
        for (&correlation, request) in requests.iter_mut() {
            if flight.len() >= terms.in_flight_max {
                return;
            }
            if request.on_wire || request.not_before_ms > now_ms {
                continue;
            }
            request.on_wire = true;
            flight.insert(correlation, Flight { deadline_ms: now_ms + ANSWER_TIMEOUT_MS, send: None });
            match &request.ask {
                Ask::Create { kind, members, title, nonce } => {
                    let members: Vec<&str> = members.iter().map(String::as_str).collect();
                    let fields = CreateChatFields { correlation, kind: *kind, nonce: *nonce, members: &members, title };
                    build.create_chat(out, &fields);
                }
                Ask::Info { chat } => {
                    build.chat_info(out, &ChatInfoFields { correlation, chat: *chat, ..ChatInfoFields::default() })
                }
            }
        }
    }

    fn transmit_sends(&mut self, now_ms: u64, out: &mut Vec<u8>) {
        while self.flight.len() < self.terms.in_flight_max {
            let Some((chat, client_seq)) = self.sends.ready(now_ms) else { return };
            // A number of its own for each transmission: a late answer to an earlier one must not count for a later one.
            let correlation = self.correlation();
            let Some(outgoing) = self.sends.begin(chat, client_seq, correlation) else { return };
            let fields = SendFields { correlation, chat, client_seq, prev: outgoing.prev };
            self.build.send(out, &fields, outgoing.payload);
            let flight = Flight { deadline_ms: now_ms + ANSWER_TIMEOUT_MS, send: Some((chat, client_seq)) };
            self.flight.insert(correlation, flight);
        }
    }

    fn transmit_pings(&mut self, now_ms: u64, out: &mut Vec<u8>) {
        for correlation in std::mem::take(&mut self.pings.0) {
            self.build.ping(out, correlation);
            self.pings.1.insert(correlation);
            self.clocks.pinged_ms = now_ms;
        }
        if self.ping_at().is_some_and(|at| at <= now_ms) {
            let correlation = self.correlation();
            self.build.ping(out, correlation);
            self.clocks.pinged_ms = now_ms;
        }
    }

    /// A third of the keepalive time after the last thing sent or heard, whichever is longer ago: both sides must hear.
    fn ping_at(&self) -> Option<u64> {
        let Clocks { heard_ms, sent_ms, pinged_ms } = self.clocks;
        let third = (self.terms.keepalive_ms / 3).max(1);
        (self.terms.keepalive_ms > 0).then(|| heard_ms.min(sent_ms).max(pinged_ms) + third)
    }

    fn silent_at(&self) -> Option<u64> {
        match self.phase {
            Phase::Offline => None,
            Phase::Connected | Phase::Greeting(_) | Phase::Ending => Some(self.clocks.heard_ms + LOGIN_TIMEOUT_MS),
            Phase::Ready if self.terms.keepalive_ms == 0 => Some(u64::MAX),
            Phase::Ready => Some(self.clocks.heard_ms + self.terms.keepalive_ms),
        }
    }
}

//! What a session tells its application.

use whimbrel_wire::{Code, FrameError, Kind, fb};

pub use whimbrel_wire::fb::{Durability, SentStatus};

/// Something that happened to a session, in the order in which it happened.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Event {
    /// Logged in, for the first time or again.
    Welcome(Welcome),
    /// The login was refused; the node closes the connection.
    Refused(Refusal),
    /// The next place of this device's inbox. Persist it, then [`Session::ack`](crate::Session::ack).
    Delivered(Delivery),
    /// A message is stored; see [`Receipt::durability`] for what that means.
    Sent(Receipt),
    /// A message is not stored and never will be under this number; the number is not used again.
    SendFailed {
        /// Which chat.
        chat: u128,
        /// Which send.
        client_seq: u64,
        /// Why.
        refusal: Refusal,
    },
    /// The answer to `create_chat` or `chat_info`.
    Chat {
        /// What `create_chat` or `chat_info` returned.
        correlation: u64,
        /// What the node says.
        facts: ChatFacts,
    },
    /// `create_chat` or `chat_info` was refused for good.
    RequestFailed {
        /// What `create_chat` or `chat_info` returned.
        correlation: u64,
        /// Why.
        refusal: Refusal,
    },
    /// The answer to [`Session::ping`](crate::Session::ping).
    Pong {
        /// What `ping` returned.
        correlation: u64,
        /// The node's clock.
        server_time_ms: u64,
    },
    /// The node is about to close the connection.
    GoAway(Refusal),
    /// Places of the inbox are missing: the delivery after this event is not the next one.
    Gap {
        /// The place that should have come.
        expected: u64,
        /// The one that came.
        got: u64,
    },
    /// The node's inbox of this device ends below what the device was given: the node has lost its data. Deliveries go on
    /// after `head`, so the floor to persist is now at most that.
    InboxLost {
        /// What the device was given, or has persisted.
        floor: u64,
        /// Where the node's inbox ends.
        head: u64,
    },
}

/// What a node tells at login.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Welcome {
    /// The user of the token.
    pub user: String,
    /// The device of the token.
    pub device: u32,
    /// Rises with each login of this device; begins anew when the node is restarted.
    pub generation: u64,
    /// The newest place of the device's inbox; 0 for an empty one that never had any.
    pub head: u64,
    /// Deliveries begin after this place.
    pub floor: u64,
    /// Deliveries that the node sends without an acknowledgement.
    pub credit_messages: u32,
    /// Payload bytes that the node sends without an acknowledgement.
    pub credit_bytes: u32,
    /// The longest frame that the node takes.
    pub frame_max_bytes: u32,
    /// Requests that may be unanswered at a time.
    pub sends_in_flight_max: u32,
    /// The node closes a connection from which it has heard nothing for so long.
    pub keepalive_ms: u32,
    /// The node's clock.
    pub server_time_ms: u64,
    /// The shard that serves the device.
    pub shard: u16,
}

/// Why something was refused.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Refusal {
    /// The reason, if this version of the library knows its number.
    pub code: Option<Code>,
    /// The number of the reason.
    pub number: u16,
    /// What the node adds for a person; often empty.
    pub detail: String,
    /// How long to wait before trying again; 0 if the node does not say.
    pub retry_after_ms: u32,
}

/// One place of a device's inbox.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Delivery {
    /// The place.
    pub inbox_seq: u64,
    /// The chat.
    pub chat: u128,
    /// The place in the chat.
    pub chat_seq: u64,
    /// When it was stored, in milliseconds since 1970.
    pub time_ms: u64,
    /// Who sent the message or made the chat.
    pub sender: String,
    /// From which device.
    pub sender_device: u32,
    /// What it is.
    pub content: Content,
}

/// What a place in a chat holds.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Content {
    /// A message's payload, as it was sent.
    Message(Vec<u8>),
    /// The chat was made.
    ChatCreated {
        /// All members, sorted, the maker among them.
        members: Vec<String>,
        /// Empty for a 1:1 chat.
        title: String,
    },
    /// A newer node has put something there that this version does not know. It is acknowledged like the others.
    Unknown {
        /// The number of the event.
        event: u8,
        /// Its payload.
        payload: Vec<u8>,
    },
}

/// What a node promises about a send.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Receipt {
    /// The chat.
    pub chat: u128,
    /// The send.
    pub client_seq: u64,
    /// The message's place in its chat; 0 for [`SentStatus::AlreadyStored`].
    pub chat_seq: u64,
    /// When it was stored, in milliseconds since 1970.
    pub time_ms: u64,
    /// Where it is stored.
    pub durability: Durability,
    /// Stored now or before.
    pub status: SentStatus,
}

/// What a node says of a chat.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ChatFacts {
    /// Its id.
    pub chat: u128,
    /// 1:1 or group.
    pub kind: fb::ChatKind,
    /// Empty for a 1:1 chat.
    pub title: String,
    /// All members, sorted.
    pub members: Vec<String>,
    /// Its newest place.
    pub last_seq: u64,
    /// This device's newest stored send in it; 0 for none.
    pub last_client_seq: u64,
    /// Made by this request.
    pub created: bool,
    /// When it was made, in milliseconds since 1970.
    pub time_ms: u64,
}

/// The numbers of a send. A device that outlives its process keeps them with the message until that is answered.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct SendNumber {
    /// The send.
    pub client_seq: u64,
    /// The send to the same chat before it.
    pub prev: u64,
}

/// Why a message is not taken for sending.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum SendError {
    /// Without the chat's facts the message's number might be one that was used before.
    #[error("the chat is not known to this session: call create_chat or chat_info and wait for Event::Chat")]
    ChatNotKnown,
    /// It does not fit a frame.
    #[error("the payload has {bytes} bytes; at most {max} fit")]
    TooLarge {
        /// It has.
        bytes: usize,
        /// It may have.
        max: usize,
    },
    /// Too much waits already.
    #[error("too many messages wait to be sent; wait for Event::Sent")]
    QueueFull,
    /// The numbers of a resumed send cannot be: not 1 or more, not above `prev`, or not above those that already wait.
    #[error("send {client_seq} after {prev} does not follow what waits in this chat already")]
    BadNumber {
        /// As given.
        client_seq: u64,
        /// As given.
        prev: u64,
    },
}

/// Why a connection is of no more use, or why a [`Client`](crate::Client) gives up.
#[derive(Debug, thiserror::Error)]
pub enum ClientError {
    /// The node sends what is no frame of this protocol.
    #[error("the node does not speak this protocol: {0}")]
    Frame(#[from] FrameError),
    /// The node sends a frame at a time when it may not.
    #[error("the node sent {0:?} when it may not")]
    Unexpected(Kind),
    /// The token is for someone else than the configuration says.
    #[error("the node logged in {user}'s device {device}, for that is whom the token is for")]
    WrongUser {
        /// The token's.
        user: String,
        /// The token's.
        device: u32,
    },
    /// The node chose a version that was not offered.
    #[error("the node chose version {0}, which was not offered")]
    Version(u8),
    /// The node has said nothing for longer than it may.
    #[error("the node is silent")]
    Silent,
    /// The node does not let this device in, or does not want it any more, and would not on another connection.
    #[error("the node refuses this device: {0}")]
    Refused(Refusal),
    /// No connection could be made at first.
    #[error("cannot connect to {address}: {error}")]
    Connect {
        /// As given.
        address: String,
        /// What went wrong.
        error: std::io::Error,
    },
}

impl Refusal {
    pub(crate) fn new(number: u16, detail: Option<&str>, retry_after_ms: u32) -> Refusal {
        Refusal { code: Code::from_u16(number), number, detail: detail.unwrap_or_default().to_owned(), retry_after_ms }
    }

    /// Whether another connection may do better, or would only end for the same reason.
    pub fn may_reconnect(&self) -> bool {
        match self.code {
            Some(Code::LoginTimeout | Code::KeepaliveTimeout) | None => true,
            Some(code) => code.retriable(),
        }
    }
}

impl std::fmt::Display for Refusal {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self.code {
            Some(code) => f.write_str(code.text())?,
            None => write!(f, "reason number {}, which this version does not know.", self.number)?,
        }
        if self.detail.is_empty() { Ok(()) } else { write!(f, " ({})", self.detail) }
    }
}

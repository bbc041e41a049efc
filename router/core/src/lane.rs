//! Items of a lane: what one shard of a node tells another. In a lane's order; a lane loses nothing while the process lives.

use bytes::Bytes;

use crate::ids::{ChatId, ChatSeq, ClientSeq, ConnId, Correlation, DeviceId, PartitionId, ShardId, UserId};

/// Who waits for an answer: a connection of a shard, and the number that the answer repeats.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Asker {
    /// Where the connection is.
    pub shard: ShardId,
    /// The connection.
    pub conn: ConnId,
    /// Repeated in the answer.
    pub correlation: Correlation,
}

/// What one shard tells another. What comes with every message is held in place: a box would be allocated by one core and
/// freed by another.
#[derive(Clone, Debug)]
pub enum LaneItem {
    /// A client's request, to the shard of the chat's partition.
    Request(Request),
    /// The answer to a client's request, to the shard of its connection.
    Answer(Answer),
    /// A fan-out record, to the shard of a partition of members.
    FanOut(FanOut),
    /// The fan-out records of a chat are applied up to a place, to the shard of the chat's partition.
    Confirm(Confirm),
    /// Do these users have a device? To the shard of their partition.
    AskUsers(Box<AskUsers>),
    /// The answer.
    UsersKnown(Box<UsersKnown>),
    /// This shard has no space for new messages, and all share one disk. It says so again and again while it is so.
    NoSpace {
        /// No segment could be made. Otherwise one is being made, and it will have space soon unless that fails.
        disk_full: bool,
    },
}

/// A client's request for a chat, from a session that is logged in.
#[derive(Clone, Debug)]
pub struct Request {
    /// Who waits for the answer.
    pub asker: Asker,
    /// The session's user.
    pub user: UserId,
    /// The session's device.
    pub device: DeviceId,
    /// What it asks.
    pub ask: Ask,
}

/// What a client can ask of a chat.
#[derive(Clone, Debug)]
pub enum Ask {
    /// Make it or find it.
    Create {
        /// The chat's id, which follows from the rest.
        chat: ChatId,
        /// 1:1 or group.
        group: bool,
        /// All members, the maker among them, sorted, without repeats.
        members: Vec<UserId>,
        /// Empty for a 1:1 chat.
        title: String,
    },
    /// Tell about it.
    Info {
        /// Which.
        chat: ChatId,
    },
    /// Store a message in it.
    Send {
        /// Which.
        chat: ChatId,
        /// The device's counter.
        client_seq: ClientSeq,
        /// The device's send to this chat before it.
        prev: ClientSeq,
        /// Never parsed.
        payload: Bytes,
    },
}

/// An answer to a client's request.
#[derive(Clone, Debug)]
pub struct Answer {
    /// Who waits.
    pub asker: Asker,
    /// What it is told.
    pub reply: Reply,
}

/// What a client can be answered.
#[derive(Clone, Debug)]
pub enum Reply {
    /// To `Send`.
    Sent {
        /// Which chat.
        chat: ChatId,
        /// The device's counter.
        client_seq: ClientSeq,
        /// The message's place; none if it is too long ago.
        chat_seq: ChatSeq,
        /// When it was stored, by its entry.
        time_ms: u64,
        /// Now, before, or long before.
        status: SentStatus,
    },
    /// To `CreateChat` and `ChatInfo`.
    Chat(Box<ChatFacts>),
    /// No, with the reason.
    Refused {
        /// Why.
        code: whimbrel_wire::Code,
        /// The kind of the frame that asked.
        kind: whimbrel_wire::Kind,
        /// Of a `Send`, else none.
        client_seq: ClientSeq,
        /// For a person.
        detail: String,
    },
}

/// See the wire's table of the same name.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum SentStatus {
    /// Stored now.
    Stored,
    /// Stored before; the same answer again.
    Repeated,
    /// Stored before, too long ago for its answer to be kept.
    AlreadyStored,
}

/// What a member may know of a chat.
#[derive(Clone, Debug)]
pub struct ChatFacts {
    /// Which.
    pub chat: ChatId,
    /// 1:1 or group.
    pub group: bool,
    /// Empty for a 1:1 chat.
    pub title: String,
    /// Sorted.
    pub members: std::sync::Arc<[UserId]>,
    /// Its newest place.
    pub last_seq: ChatSeq,
    /// The asking device's newest send in it.
    pub last_client_seq: ClientSeq,
    /// Made by this request.
    pub created: bool,
    /// When it was made, by its entry.
    pub time_ms: u64,
}

/// One place of a chat on its way to a partition that has members.
#[derive(Clone, Debug)]
pub struct FanOut {
    /// The partition of the chat.
    pub source: PartitionId,
    /// The partition of members.
    pub target: PartitionId,
    /// The chat.
    pub chat: ChatId,
    /// The place.
    pub chat_seq: ChatSeq,
    /// The place before it that went to the same partition.
    pub prev: ChatSeq,
    /// The command of the chat's entry that holds it, header and all: a view of the log. Empty if it is asked only whether the
    /// partition would take it.
    pub command: Bytes,
    /// When it was stored, by its entry.
    pub time_ms: u64,
}

/// A partition's answer to fan-out records of a chat.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Confirm {
    /// The partition of the chat.
    pub source: PartitionId,
    /// The partition of members.
    pub target: PartitionId,
    /// The chat.
    pub chat: ChatId,
    /// All up to this place are applied.
    pub applied: ChatSeq,
    /// A record was refused, since it does not follow what is applied: go on from there.
    pub rewind: bool,
}

/// Before a chat is made: which of its users have a device?
#[derive(Clone, Debug)]
pub struct AskUsers {
    /// The partition of the chat.
    pub source: PartitionId,
    /// The partition of the users.
    pub target: PartitionId,
    /// The chat to be made.
    pub chat: ChatId,
    /// All of that partition's.
    pub users: Vec<UserId>,
}

/// The answer to [`AskUsers`].
#[derive(Clone, Debug)]
pub struct UsersKnown {
    /// The partition of the chat.
    pub source: PartitionId,
    /// The partition of the users.
    pub target: PartitionId,
    /// The chat to be made.
    pub chat: ChatId,
    /// What was found.
    pub found: UsersFound,
}

/// Whether users have devices.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum UsersFound {
    /// All have one.
    All,
    /// This one has none.
    Unknown(UserId),
    /// Their partition does not serve yet, so it cannot tell.
    NotReady,
    /// Their partition is in repair, so it cannot tell.
    InRepair,
}

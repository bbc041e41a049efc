//! The error table: stable numbers, what a client may do about each, and what a person is told.

macro_rules! codes {
    ($($(#[$doc:meta])* $name:ident = $number:literal, $label:literal, $retriable:ident, $closes:ident, $text:literal;)*) => {
        /// Why something was refused. The number is stable.
        #[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
        #[repr(u16)]
        pub enum Code {
            $(#[doc = $text] $name = $number,)*
        }

        impl Code {
            /// All codes, in the order of their numbers.
            pub const ALL: &'static [Code] = &[$(Code::$name),*];

            /// Place in [`Code::ALL`], for tables by reason.
            pub fn index(self) -> usize {
                Code::ALL.iter().position(|c| *c == self).expect("ALL names every code")
            }

            /// The code of this number.
            pub fn from_u16(number: u16) -> Option<Code> {
                match number {
                    $($number => Some(Code::$name),)*
                    _ => None,
                }
            }

            /// Label in metrics and machine-readable output.
            pub fn name(self) -> &'static str {
                match self { $(Code::$name => $label,)* }
            }

            /// Whether the same request may be accepted later.
            pub fn retriable(self) -> bool {
                match self { $(Code::$name => codes!(@$retriable),)* }
            }

            /// Whether the node closes the connection after saying so.
            pub fn closes(self) -> bool {
                match self { $(Code::$name => codes!(@$closes),)* }
            }

            /// One sentence for a person.
            pub fn text(self) -> &'static str {
                match self { $(Code::$name => $text,)* }
            }
        }
    };
    (@retriable) => { true };
    (@closes) => { true };
    (@final) => { false };
    (@stays) => { false };
}

codes! {
    BadFrame = 1, "bad_frame", final, closes, "The header is malformed; the stream cannot be followed any further.";
    BadChecksum = 2, "bad_checksum", final, closes, "The checksum does not match the bytes.";
    FrameTooLarge = 3, "frame_too_large", final, closes, "The frame is longer than allowed here; see frame_max_bytes in Welcome.";
    UnknownKind = 4, "unknown_kind", final, stays, "This node does not know this kind of frame; it was skipped.";
    BadTable = 5, "bad_table", final, closes, "The table is malformed, a field is missing or too long.";
    UnsupportedVersion = 6, "unsupported_version", final, closes, "This node does not speak that version; use one of the range in Refused.";
    NotLoggedIn = 7, "not_logged_in", final, closes, "The first frame of a connection must be Hello.";
    AlreadyLoggedIn = 8, "already_logged_in", final, closes, "Hello comes once a connection.";
    UnexpectedKind = 9, "unexpected_kind", final, closes, "Only a node sends this kind of frame.";
    BadToken = 10, "bad_token", final, closes, "The token is not signed by the key of this cluster; get a new one.";
    ExpiredToken = 11, "expired_token", final, closes, "The token has expired; get a new one.";
    StaleToken = 12, "stale_token", final, closes, "The token was revoked by a later one of this device; get a new one.";
    WrongDevice = 13, "wrong_device", final, closes, "The token is for another device than Hello names.";
    LoginTimeout = 14, "login_timeout", final, closes, "No Hello came in time.";
    KeepaliveTimeout = 15, "keepalive_timeout", final, closes, "Nothing came for the keepalive time; send Ping at a third of it.";
    Replaced = 16, "replaced", final, closes, "The same device logged in on a newer connection.";
    ShuttingDown = 17, "shutting_down", retriable, closes, "The node is shutting down; connect again, to another if there is one.";
    SlowReader = 18, "slow_reader", retriable, closes, "Too much waits to be read by this client; connect again, it is served from the log.";
    Overloaded = 20, "overloaded", retriable, stays, "The node has more work than it may take; send again after the retry time.";
    NotReady = 21, "not_ready", retriable, stays, "The partition does not serve yet; send again after the retry time.";
    StorageFull = 22, "storage_full", retriable, stays, "The disk is full; the node takes no new messages until space returns.";
    TooManyInFlight = 23, "too_many_in_flight", retriable, stays, "More requests are unanswered than Welcome allows; wait for answers.";
    TooManyConnections = 24, "too_many_connections", retriable, closes, "The node has as many connections as it may take.";
    InRepair = 25, "in_repair", retriable, stays, "A part of the data is damaged and is served again once it is repaired; everything else is served.";
    ChatUnknown = 30, "chat_unknown", final, stays, "There is no such chat, or this user is not a member of it.";
    UserUnknown = 31, "user_unknown", final, stays, "This user has no device yet; a first login makes one.";
    BadMembers = 32, "bad_members", final, stays, "A 1:1 chat has one other member; a group has 1 to 1024 members, each once, with valid names.";
    BadTitle = 33, "bad_title", final, stays, "A group's title has at most 128 bytes; a 1:1 chat has none.";
    OutOfOrder = 34, "out_of_order", retriable, stays, "The send before this one is not stored yet; send that one first.";
    PayloadMismatch = 35, "payload_mismatch", final, stays, "This client_seq was used before with another payload.";
    BadClientSeq = 36, "bad_client_seq", final, stays, "client_seq starts at 1 and is greater than prev.";
    PayloadTooLarge = 37, "payload_too_large", final, stays, "The payload is longer than a message may be.";
    AckAboveHead = 38, "ack_above_head", final, closes, "An acknowledgement names more than the inbox ever held.";
    BadUser = 39, "bad_user", final, closes, "A user's name has 1 to 39 characters of a-z 0-9 . _ + -";
    Internal = 50, "internal", retriable, closes, "The node failed at this; connect again.";
}

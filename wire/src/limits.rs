//! Bounds of the wire, told to a client at login, and the relations between them.

/// A whole frame, header included.
pub const FRAME_MAX_BYTES: usize = 65_536;
/// A whole frame before the login: only a `Hello` has to fit.
pub const FRAME_MAX_BEFORE_LOGIN_BYTES: usize = 2_048;
/// A message's payload: what is left of a frame when the largest table of a `Deliver` of a message is in it.
pub const PAYLOAD_MAX_BYTES: usize = FRAME_MAX_BYTES - 512;
/// A user's name.
pub const USER_MAX_BYTES: usize = 39;
/// Members of a chat.
pub const MEMBERS_MAX: usize = 1_024;
/// A group's title.
pub const TITLE_MAX_BYTES: usize = 128;
/// A token.
pub const TOKEN_MAX_BYTES: usize = 1_024;
/// What a client calls itself.
pub const AGENT_MAX_BYTES: usize = 64;
/// Text for a person in an answer.
pub const DETAIL_MAX_BYTES: usize = 256;

const _: () = {
    // A Hello with the longest token and agent fits before the login.
    assert!(TOKEN_MAX_BYTES + AGENT_MAX_BYTES + 256 < FRAME_MAX_BEFORE_LOGIN_BYTES);
    // A ChatInfo with all members fits a frame: an offset, a length, a terminator and padding for each name.
    assert!(MEMBERS_MAX * (USER_MAX_BYTES + 13) + TITLE_MAX_BYTES + 256 < FRAME_MAX_BYTES);
};

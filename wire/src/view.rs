//! What a frame says: its table verified once, at the edge, with bounds so tight that hostile tables cost little.

use flatbuffers::{Follow, ForwardsUOffset, Vector, Verifiable, VerifierOptions};

use crate::frame::{Frame, FrameError};
use crate::generated::client as fb;
use crate::header::{Kind, VERSION};
use crate::limits;

/// What a client sends.
#[derive(Clone, Copy, Debug)]
#[allow(missing_docs)]
pub enum ClientFrame<'a> {
    Hello(fb::Hello<'a>),
    Ping(fb::Ping<'a>),
    CreateChat(fb::CreateChat<'a>),
    ChatInfo(fb::ChatInfo<'a>),
    /// With its payload.
    Send(fb::Send<'a>, &'a [u8]),
    Ack(fb::Ack<'a>),
}

/// What a node sends.
#[derive(Clone, Copy, Debug)]
#[allow(missing_docs)]
pub enum ServerFrame<'a> {
    Welcome(fb::Welcome<'a>),
    Refused(fb::Refused<'a>),
    Pong(fb::Pong<'a>),
    ChatInfo(fb::ChatInfo<'a>),
    Sent(fb::Sent<'a>),
    /// With its payload.
    Deliver(fb::Deliver<'a>, &'a [u8]),
    GoAway(fb::GoAway<'a>),
    Error(fb::Error<'a>),
}

impl<'a> ClientFrame<'a> {
    /// What this frame of a client says.
    pub fn parse(frame: &Frame<'a>) -> Result<ClientFrame<'a>, FrameError> {
        let kind = kind_of(frame)?;
        if kind != Kind::Send && !frame.payload.is_empty() {
            return Err(FrameError::UnexpectedPayload);
        }
        Ok(match kind {
            Kind::Hello => {
                let hello = table::<fb::Hello<'a>>(frame)?;
                short(Some(hello.token()), limits::TOKEN_MAX_BYTES)?;
                short(hello.agent(), limits::AGENT_MAX_BYTES)?;
                ClientFrame::Hello(hello)
            }
            Kind::Ping => ClientFrame::Ping(table(frame)?),
            Kind::CreateChat => {
                let create = table::<fb::CreateChat<'a>>(frame)?;
                members(Some(create.members()))?;
                ClientFrame::CreateChat(create)
            }
            Kind::ChatInfo => ClientFrame::ChatInfo(table(frame)?),
            Kind::Send => {
                if frame.payload.len() > limits::PAYLOAD_MAX_BYTES {
                    return Err(FrameError::PayloadTooLarge);
                }
                ClientFrame::Send(table(frame)?, frame.payload)
            }
            Kind::Ack => ClientFrame::Ack(table(frame)?),
            Kind::Welcome | Kind::Refused | Kind::Pong | Kind::Sent | Kind::Deliver | Kind::GoAway | Kind::Error => {
                return Err(FrameError::UnexpectedKind(kind));
            }
        })
    }
}

impl<'a> ServerFrame<'a> {
    /// What this frame of a node says.
    pub fn parse(frame: &Frame<'a>) -> Result<ServerFrame<'a>, FrameError> {
        let kind = kind_of(frame)?;
        if kind != Kind::Deliver && !frame.payload.is_empty() {
            return Err(FrameError::UnexpectedPayload);
        }
        Ok(match kind {
            Kind::Welcome => ServerFrame::Welcome(table(frame)?),
            Kind::Refused => ServerFrame::Refused(table(frame)?),
            Kind::Pong => ServerFrame::Pong(table(frame)?),
            Kind::ChatInfo => {
                let info = table::<fb::ChatInfo<'a>>(frame)?;
                members(info.members())?;
                ServerFrame::ChatInfo(info)
            }
            Kind::Sent => ServerFrame::Sent(table(frame)?),
            Kind::Deliver => {
                let deliver = table::<fb::Deliver<'a>>(frame)?;
                short(Some(deliver.sender()), limits::USER_MAX_BYTES)?;
                members(deliver.members())?;
                ServerFrame::Deliver(deliver, frame.payload)
            }
            Kind::GoAway => ServerFrame::GoAway(table(frame)?),
            Kind::Error => ServerFrame::Error(table(frame)?),
            Kind::Hello | Kind::Ping | Kind::CreateChat | Kind::Send | Kind::Ack => {
                return Err(FrameError::UnexpectedKind(kind));
            }
        })
    }
}

/// A chat's id as one number.
pub fn chat_id(id: &fb::ChatId) -> u128 {
    u128::from(id.lo()) | u128::from(id.hi()) << 64
}

fn kind_of(frame: &Frame<'_>) -> Result<Kind, FrameError> {
    let known = Kind::from_u8(frame.kind);
    let expected = known.map_or(VERSION, Kind::version);
    if frame.version != expected {
        return Err(FrameError::UnsupportedVersion(frame.version));
    }
    known.ok_or(FrameError::UnknownKind(frame.kind))
}

fn table<'a, T>(frame: &Frame<'a>) -> Result<T, FrameError>
where
    T: Follow<'a, Inner = T> + Verifiable + 'a,
{
    let options = VerifierOptions {
        max_depth: 8,
        max_tables: 64,
        max_apparent_size: limits::FRAME_MAX_BYTES * 2,
        ignore_missing_null_terminator: false,
    };
    flatbuffers::root_with_opts::<T>(&options, frame.table).map_err(|_| FrameError::BadTable)
}

fn short(text: Option<&str>, max: usize) -> Result<(), FrameError> {
    match text {
        Some(text) if text.len() > max => Err(FrameError::BadTable),
        _ => Ok(()),
    }
}

/// Not more than a chat may have; the maker itself need not be named, so one more is not refused here.
fn members(list: Option<Vector<'_, ForwardsUOffset<&str>>>) -> Result<(), FrameError> {
    match list {
        Some(list) if list.len() > limits::MEMBERS_MAX => Err(FrameError::BadTable),
        _ => Ok(()),
    }
}

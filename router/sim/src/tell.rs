//! How inputs and effects are told in the story: short, and the same in every run of a seed.

use std::fmt::{Display, Formatter, Result};

use whimbrel_core::ids::ConnId;
use whimbrel_core::io::{Effect, Input};
use whimbrel_core::lane::{Ask, LaneItem, Reply};
use whimbrel_storage::{ColdDone, ColdWork};
use whimbrel_wire::Kind;

use crate::model::short;
use crate::trace::Digest;

/// An input.
pub(crate) struct Told<'a>(pub(crate) &'a Input<'a>);

/// An effect, and the bytes that it names.
pub(crate) struct Wanted<'a>(pub(crate) &'a Effect, pub(crate) &'a [u8]);

struct Item<'a>(&'a LaneItem);
struct Name(ConnId);

impl Display for Name {
    fn fmt(&self, f: &mut Formatter<'_>) -> Result {
        write!(f, "c{}.{}", self.0.slot, self.0.generation)
    }
}

impl Display for Told<'_> {
    fn fmt(&self, f: &mut Formatter<'_>) -> Result {
        match self.0 {
            Input::Connected { conn } => write!(f, "connected {}", Name(*conn)),
            Input::Received { conn, bytes } => {
                write!(f, "received {} {} bytes {:08x}", Name(*conn), bytes.len(), Digest::of(bytes) as u32)
            }
            Input::Written { conn, bytes } => write!(f, "written {} {bytes}", Name(*conn)),
            Input::Disconnected { conn } => write!(f, "disconnected {}", Name(*conn)),
            Input::Detached { conn } => write!(f, "detached {}", Name(*conn)),
            Input::Adopted { conn, moving } => write!(f, "adopted {} with {} bytes", Name(*conn), moving.unread.len()),
            Input::Lane { from, item } => write!(f, "lane from {from} {}", Item(item)),
            Input::LogWritten { write } => write!(f, "flushed {write:?}"),
            Input::LogFailed { write } => write!(f, "flush failed {write:?}"),
            Input::SegmentReady { segment, .. } => write!(f, "segment ready {segment:?}"),
            Input::SegmentFailed { segment } => write!(f, "segment failed {segment:?}"),
            Input::CheckpointTaken { number } => write!(f, "checkpoint {number} taken"),
            Input::CheckpointWritten { number } => write!(f, "checkpoint {number} written"),
            Input::CheckpointFailed { number } => write!(f, "checkpoint {number} failed"),
            Input::ColdDone(done) => match &**done {
                ColdDone::Copied(copied) => write!(f, "{} places copied", copied.moved.len()),
                ColdDone::Erased(erase) => write!(f, "{:?} erased, done: {}", erase.segment(), erase.is_done()),
                ColdDone::Sorted(sort) => write!(f, "{} places sorted", sort.places()),
            },
            Input::ColdFailed => f.write_str("cold work failed"),
            Input::ReadIn { checked } => write!(f, "read in {:?}, {} rotten", checked.segment, checked.rot.len()),
            Input::Scrubbed { checked } => write!(f, "scrubbed {:?}, {} rotten", checked.segment, checked.rot.len()),
            Input::Timeout => f.write_str("timeout"),
            Input::Stop => f.write_str("stop"),
            Input::TurnEnd { more } => write!(f, "turn end{}", if *more { ", more waits" } else { "" }),
        }
    }
}

impl Display for Wanted<'_> {
    fn fmt(&self, f: &mut Formatter<'_>) -> Result {
        match self.0 {
            Effect::Send { conn, head, payload } => {
                let kind = self.1.get(head.start + 4).copied().unwrap_or(0);
                let apart = payload.as_ref().map_or(0, bytes::Bytes::len);
                write!(f, "send {} {} {}+{apart} bytes", Name(*conn), kind_name(kind), head.len())
            }
            Effect::Close { conn } => write!(f, "close {}", Name(*conn)),
            Effect::Detach { conn } => write!(f, "detach {}", Name(*conn)),
            Effect::Move { conn, to, moving } => {
                write!(f, "move {} to {to} with {} bytes", Name(*conn), moving.unread.len())
            }
            Effect::Lane { to, item } => write!(f, "lane to {to} {}", Item(item)),
            Effect::WriteLog(write) => {
                write!(
                    f,
                    "write {:?} {:?}@{} {} bytes",
                    write.id,
                    write.segment,
                    write.offset,
                    write.batch.as_ref().len()
                )
            }
            Effect::PrepareSegment { segment, reuse: None } => write!(f, "prepare {segment:?}"),
            Effect::PrepareSegment { segment, reuse: Some(old) } => write!(f, "prepare {segment:?} of {:?}", old.id),
            Effect::RemoveSegment(retired) => write!(f, "remove {:?}", retired.id),
            Effect::Checkpoint { number, bytes, last } => {
                let end = if last.is_some() { ", the last" } else { "" };
                write!(f, "checkpoint {number} {} bytes {:08x}{end}", bytes.len(), Digest::of(bytes) as u32)
            }
            Effect::Cold(ColdWork::Copy(copy)) => write!(f, "copy {} places", copy.places()),
            Effect::Cold(ColdWork::Erase(erase)) => write!(f, "erase {:?}", erase.segment()),
            Effect::Cold(ColdWork::Sort(sort)) => write!(f, "sort {} places", sort.places()),
            Effect::ReadIn { is, .. } => write!(f, "read in {:?}", is.id),
            Effect::Scrub { is, .. } => write!(f, "scrub {:?}", is.id),
            Effect::Tell(trouble) => write!(f, "tell {trouble:?}"),
            Effect::WakeAt { mono_us } => write!(f, "wake at {mono_us}"),
            Effect::Stopped => f.write_str("stopped"),
            Effect::Fatal(fatal) => write!(f, "fatal {fatal:?}"),
        }
    }
}

impl Display for Item<'_> {
    fn fmt(&self, f: &mut Formatter<'_>) -> Result {
        match self.0 {
            LaneItem::Request(it) => {
                write!(f, "request {} of {}/{}: ", it.asker.correlation, it.user, it.device)?;
                match &it.ask {
                    Ask::Create { chat, members, .. } => write!(f, "create {} of {}", short(chat.0), members.len()),
                    Ask::Info { chat } => write!(f, "info {}", short(chat.0)),
                    Ask::Send { chat, client_seq, prev, payload } => {
                        write!(f, "send {} {client_seq} after {prev}, {} bytes", short(chat.0), payload.len())
                    }
                }
            }
            LaneItem::Answer(it) => {
                write!(f, "answer {} for {}@{}: ", it.asker.correlation, Name(it.asker.conn), it.asker.shard)?;
                match &it.reply {
                    Reply::Sent { chat, client_seq, chat_seq, status, .. } => {
                        write!(f, "sent {client_seq} {}/{chat_seq} {status:?}", short(chat.0))
                    }
                    Reply::Chat(it) => write!(f, "chat {} up to {}", short(it.chat.0), it.last_seq),
                    Reply::Refused { code, client_seq, .. } => write!(f, "refused {client_seq} {}", code.name()),
                }
            }
            LaneItem::FanOut(it) => {
                write!(
                    f,
                    "fan-out p{}>p{} {}/{} after {}",
                    it.source,
                    it.target,
                    short(it.chat.0),
                    it.chat_seq,
                    it.prev
                )
            }
            LaneItem::Confirm(it) => {
                let rewind = if it.rewind { " rewind" } else { "" };
                write!(f, "confirm p{}<p{} {}/{}{rewind}", it.source, it.target, short(it.chat.0), it.applied)
            }
            LaneItem::AskUsers(it) => write!(f, "ask users p{}>p{} {}", it.source, it.target, short(it.chat.0)),
            LaneItem::NoSpace { disk_full } => f.write_str(if *disk_full { "disk full" } else { "no space" }),
            LaneItem::UsersKnown(it) => {
                write!(f, "users known p{}<p{} {} found {:?}", it.source, it.target, short(it.chat.0), it.found)
            }
        }
    }
}

/// The kinds that a node sends.
pub(crate) fn kind_name(kind: u8) -> &'static str {
    const KINDS: [(Kind, &str); 13] = [
        (Kind::Hello, "Hello"),
        (Kind::Welcome, "Welcome"),
        (Kind::Refused, "Refused"),
        (Kind::Ping, "Ping"),
        (Kind::Pong, "Pong"),
        (Kind::CreateChat, "CreateChat"),
        (Kind::ChatInfo, "ChatInfo"),
        (Kind::Send, "Send"),
        (Kind::Sent, "Sent"),
        (Kind::Deliver, "Deliver"),
        (Kind::Ack, "Ack"),
        (Kind::GoAway, "GoAway"),
        (Kind::Error, "Error"),
    ];
    KINDS.into_iter().find(|&(it, _)| it as u8 == kind).map_or("?", |(_, name)| name)
}

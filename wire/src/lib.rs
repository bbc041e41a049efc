//! The binary protocol of Whimbrel: bytes to frames and frames to bytes. Pure: no socket, no clock.
//!
//! A frame is a fixed header, one FlatBuffers table and an opaque payload. [`Decoder`] cuts a byte stream into [`Frame`]s,
//! [`ClientFrame`] and [`ServerFrame`] are what they say, verified once, and [`Builder`] writes them. The same tables,
//! in [`command`], are what the entries of the log carry. `PROTOCOL.md` describes all of it for other languages.

#![deny(unsafe_code)]

mod builder;
mod code;
pub mod command;
mod command_build;
mod frame;
#[allow(unsafe_code)]
mod generated;
mod header;
pub mod limits;
mod shape;
#[allow(unsafe_code)]
mod trusted;
mod view;

pub use builder::{
    Builder, ChatInfoFields, CreateChatFields, DeliverFields, ErrorFields, HelloFields, Payload, RefusedFields,
    SendFields, SentFields, WelcomeFields,
};
pub use code::Code;
pub use command_build::{ChatCreateFields, ChatSendFields, CommandBuilder, EntryWriter, FanOutFields};
pub use frame::{Decoder, Frame, FrameError};
pub use generated::{client as fb, log as fb_log};
pub use header::{HEADER_BYTES, Kind, VERSION};
pub use view::{ClientFrame, ServerFrame, chat_id};

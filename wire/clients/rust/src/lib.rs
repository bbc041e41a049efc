//! A client of Whimbrel. [`Session`] is one device's conversation with a node as a pure state machine: bytes in, events out,
//! no socket, no clock. [`Client`] puts a blocking `TcpStream` around it and connects again when that breaks.
//!
//! What a device must keep on disk of itself:
//!
//! - the **floor**: the highest `inbox_seq` that it has persisted, written before it calls [`Session::ack`];
//! - **`next_client_seq`**, or at least each message with its number before it goes out. A device that keeps neither is
//!   told its last number by the node ([`ChatFacts`]), but cannot know what became of sends that were under way.
//!
//! ```no_run
//! use std::time::Duration;
//! use whimbrel_client::{ChatKind, Client, Config, Event};
//!
//! let config = Config { floor: 0, ..Config::new("alice", 1, "v4.public.…") };
//! let mut client = Client::connect("127.0.0.1:7400", config)?;
//! client.create_chat(ChatKind::Direct, &["bob"], "", 0);
//! while let Some(event) = client.wait(Duration::from_secs(5))? {
//!     match event {
//!         Event::Chat { facts, .. } => {
//!             client.send(facts.chat, b"hello")?;
//!         }
//!         Event::Delivered(delivery) => {
//!             // Persist it first.
//!             client.ack(delivery.inbox_seq);
//!         }
//!         Event::Sent(receipt) => println!("stored as number {} of the chat", receipt.chat_seq),
//!         _ => {}
//!     }
//! }
//! # Ok::<(), Box<dyn std::error::Error>>(())
//! ```

#![forbid(unsafe_code)]

mod client;
mod event;
mod sends;
mod session;

pub use client::Client;
pub use event::{
    ChatFacts, ClientError, Content, Delivery, Durability, Event, Receipt, Refusal, SendError, SendNumber, SentStatus,
    Welcome,
};
pub use session::{Config, Session};
pub use whimbrel_wire::Code;
pub use whimbrel_wire::fb::ChatKind;

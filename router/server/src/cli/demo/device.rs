//! A device of the demo: a thread with a connection of its own, which notes what it sends and what it is given.

use std::collections::HashMap;
use std::sync::Arc;
use std::sync::mpsc::{self, Receiver, Sender, TryRecvError};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use anyhow::{Context, anyhow};
use whimbrel_client::SentStatus;

use crate::cli::access::Access;
use crate::cli::demo::ledger::{self, MessageId, Person};
use crate::cli::demo::stage::{ChatName, Stage};
use crate::cli::link::{Content, Delivery, Event, Link, Receipt, Waker};
use crate::cli::problem;
use crate::cli::state::Memory;

/// What a device is told to do.
pub(super) enum Order {
    /// Makes or finds the 1:1 chat with a user, and tells it under `name`.
    Pair { name: ChatName, with: &'static str },
    /// Makes a group, and tells it under its title.
    Group { title: ChatName, members: Vec<String> },
    /// Asks about a chat that somebody else has made, and tells it under `name`.
    Learn { name: ChatName, chat: u128 },
    /// Sends a message that the ledger knows.
    Send { chat: u128, id: MessageId, text: String },
    /// Finishes what is under way and logs out.
    Leave,
}

/// The reins of a device.
pub(super) struct Device {
    orders: Sender<Order>,
    waker: Waker,
    thread: JoinHandle<anyhow::Result<Memory>>,
}

impl Device {
    /// Logs in, going on from what the device remembers.
    pub(super) fn log_in(person: Person, access: Access, memory: Memory, stage: &Arc<Stage>) -> anyhow::Result<Device> {
        let (orders, inbox) = mpsc::channel();
        let link = Link::new(&access, memory)?;
        let waker = link.waker();
        let stage = Arc::clone(stage);
        let mut life = Life {
            person,
            access,
            link,
            memory,
            stage,
            orders: inbox,
            asked: HashMap::new(),
            under_way: HashMap::new(),
            leaving: false,
        };
        let thread = thread::spawn(move || {
            let lived = life.live();
            if let Err(error) = &lived {
                life.stage.tell(|seen| seen.failed = Some(format!("{}: {error:#}", life.access.user)));
            }
            life.stage.tell(|seen| {
                seen.shard.insert(life.person, None);
            });
            lived.map(|()| life.memory)
        });
        Ok(Device { orders, waker, thread })
    }

    /// Tells the device what to do next.
    pub(super) fn order(&self, order: Order) -> anyhow::Result<()> {
        self.orders.send(order).ok().context("the device has ended")?;
        self.waker.wake();
        Ok(())
    }

    /// Logs out. What the device remembers.
    pub(super) fn log_out(self) -> anyhow::Result<Memory> {
        self.order(Order::Leave)?;
        self.thread.join().map_err(|_| anyhow!("a device's thread panicked"))?
    }
}

struct Life {
    person: Person,
    access: Access,
    link: Link,
    memory: Memory,
    stage: Arc<Stage>,
    orders: Receiver<Order>,
    /// Names of chats that were asked for.
    asked: HashMap<u64, ChatName>,
    /// Numbers of sends without an answer.
    under_way: HashMap<u64, MessageId>,
    leaving: bool,
}

impl Life {
    fn live(&mut self) -> anyhow::Result<()> {
        while !(self.leaving && self.under_way.is_empty()) {
            if let Some(event) = self.link.wait(None)? {
                self.on_event(event)?;
            }
            loop {
                match self.orders.try_recv() {
                    Ok(order) => self.on_order(order)?,
                    Err(TryRecvError::Empty) => break,
                    Err(TryRecvError::Disconnected) => return Ok(()),
                }
            }
        }
        self.link.settle(Duration::from_secs(5))
    }

    fn on_order(&mut self, order: Order) -> anyhow::Result<()> {
        match order {
            Order::Pair { name, with } => {
                let question = self.link.create_direct(with);
                self.asked.insert(question, name);
            }
            Order::Group { title, members } => {
                let question = self.link.create_group(title, &members)?;
                self.asked.insert(question, title);
            }
            Order::Learn { name, chat } => {
                let question = self.link.chat_info(chat);
                self.asked.insert(question, name);
            }
            Order::Send { chat, id, text } => self.send(chat, id, &text)?,
            Order::Leave => self.leaving = true,
        }
        Ok(())
    }

    fn send(&mut self, chat: u128, id: MessageId, text: &str) -> anyhow::Result<()> {
        // Noted before it is sent: whoever gets it must find it there.
        self.stage.tell(|seen| {
            seen.sent_at.insert(id, Instant::now());
        });
        let number = self.link.send(chat, format!("#{id} {text}").as_bytes())?;
        self.memory.next_client_seq = number.client_seq + 1;
        self.under_way.insert(number.client_seq, id);
        Ok(())
    }

    fn on_event(&mut self, event: Event) -> anyhow::Result<()> {
        let person = self.person;
        match event {
            Event::LoggedIn(welcome) => self.stage.tell(|seen| {
                seen.shard.insert(person, Some(welcome.shard));
            }),
            Event::Lost(_) => self.stage.tell(|seen| {
                seen.shard.insert(person, None);
            }),
            Event::Delivered(delivery) => self.on_delivery(&delivery)?,
            Event::Stored(receipt) => self.on_stored(&receipt),
            Event::Chat { correlation, facts } => {
                if let Some(name) = self.asked.remove(&correlation) {
                    self.stage.tell(|seen| {
                        seen.chats.insert((person, name), facts.chat);
                    });
                }
            }
            Event::Pong(_) => {}
            Event::Warning(warning) => anyhow::bail!("{warning}"),
            Event::Refused(refusal) => return Err(problem::login(&self.access, &refusal)),
            Event::NotStored { client_seq, refusal } => {
                anyhow::bail!("send {client_seq} was refused: {}", problem::reason(&refusal))
            }
            Event::NoAnswer { refusal, .. } => {
                anyhow::bail!("a question about a chat was refused: {}", problem::reason(&refusal))
            }
        }
        Ok(())
    }

    fn on_delivery(&mut self, delivery: &Delivery) -> anyhow::Result<()> {
        let now = Instant::now();
        let message = match &delivery.content {
            Content::Message(payload) => Some(message_id(payload).context("a message came that is not of the demo")?),
            Content::ChatCreated { .. } | Content::Unknown { .. } => None,
        };
        let item =
            ledger::Seen { inbox_seq: delivery.inbox_seq, chat: delivery.chat, chat_seq: delivery.chat_seq, message };
        self.stage.tell(|seen| {
            seen.ledger.see(self.person, item);
            if let Some(sent_at) = message.and_then(|id| seen.sent_at.get(&id)) {
                seen.delivered_after.push(now.duration_since(*sent_at));
            }
        });
        self.memory.floor = delivery.inbox_seq;
        self.link.ack(delivery.inbox_seq);
        Ok(())
    }

    fn on_stored(&mut self, receipt: &Receipt) {
        let now = Instant::now();
        let Some(id) = self.under_way.remove(&receipt.client_seq) else { return };
        self.stage.tell(|seen| {
            seen.ledger.acknowledge(id, receipt.chat_seq);
            if let Some(sent_at) = seen.sent_at.get(&id) {
                seen.acknowledged_after.push(now.duration_since(*sent_at));
            }
            if receipt.status != SentStatus::Stored {
                seen.repeated += 1;
            }
        });
    }
}

/// The number that a message of the demo begins with.
fn message_id(payload: &[u8]) -> Option<MessageId> {
    std::str::from_utf8(payload).ok()?.strip_prefix('#')?.split(' ').next()?.parse().ok()
}

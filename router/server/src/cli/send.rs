//! `whimbrel send`: one message, and what the server promised about it.

use std::io::{self, Read};
use std::process::ExitCode;
use std::time::Instant;

use anyhow::Context;
use serde_json::json;
use whimbrel_client::{Durability, SentStatus};

use crate::cli::SendArgs;
use crate::cli::access::Access;
use crate::cli::args::{self, Target};
use crate::cli::link::{Event, Link, Receipt};
use crate::cli::output::{Failure, Out, chat_text};
use crate::cli::problem;
use crate::cli::state::DeviceState;

pub(super) fn run(args: &SendArgs) -> anyhow::Result<ExitCode> {
    let payload = payload(&args.text)?;
    let target = args.whither.target().context("clap demands one of --to and --chat")?;
    let access = Access::of(&args.identity)?;
    let state = access.open_state(&args.identity)?;
    let mut link = Link::new(&access, state.memory())?;
    let until = Instant::now() + args.timeout;
    link.log_in(args.timeout)?;
    let mut sender = Sender { args, access: &access, state, link, until };
    sender.resume()?;
    let chat = sender.chat(&target)?;
    let begun = Instant::now();
    let receipt = sender.send(&target, chat, &payload)?;
    print(args, &receipt, begun.elapsed().as_micros())?;
    Ok(ExitCode::SUCCESS)
}

struct Sender<'a> {
    args: &'a SendArgs,
    access: &'a Access,
    state: DeviceState,
    link: Link,
    until: Instant,
}

impl Sender<'_> {
    /// Messages that a chat left unsent go first: after a higher number theirs would be taken for repetitions.
    fn resume(&mut self) -> anyhow::Result<()> {
        for message in self.state.outgoing().to_vec() {
            let chat = args::chat(&message.chat).map_err(Failure::new)?;
            self.link.resume(chat, message.number(), message.text.as_bytes())?;
        }
        Ok(())
    }

    fn chat(&mut self, target: &Target) -> anyhow::Result<u128> {
        let question = match target {
            Target::Chat(id) => self.link.chat_info(args::chat(id).map_err(Failure::new)?),
            Target::User(user) => self.link.create_direct(user),
        };
        loop {
            match self.next("no answer came")? {
                Event::Chat { correlation, facts } if correlation == question => return Ok(facts.chat),
                Event::NoAnswer { correlation, refusal } if correlation == question => {
                    return Err(problem::chat(self.access, target, &refusal).into());
                }
                _ => {}
            }
        }
    }

    fn send(&mut self, target: &Target, chat: u128, payload: &[u8]) -> anyhow::Result<Receipt> {
        let number = self.link.send(chat, payload)?;
        // Whatever becomes of it, the number is never used for another message.
        self.state.used(number.client_seq)?;
        loop {
            match self.next("no acknowledgement came, so the message may be stored or not,")? {
                Event::Stored(receipt) if receipt.client_seq == number.client_seq => return Ok(receipt),
                Event::NotStored { client_seq, refusal } if client_seq == number.client_seq => {
                    return Err(problem::chat(self.access, target, &refusal).into());
                }
                _ => {}
            }
        }
    }

    /// The next event; what concerns messages of an earlier chat is noted on the way.
    fn next(&mut self, otherwise: &str) -> anyhow::Result<Event> {
        loop {
            match self.link.wait(Some(self.until))? {
                Some(Event::Refused(refusal)) => return Err(problem::login(self.access, &refusal)),
                Some(Event::Warning(warning)) => eprintln!("whimbrel: {warning}"),
                Some(event) => {
                    if let Event::Stored(Receipt { client_seq, .. }) | Event::NotStored { client_seq, .. } = &event {
                        self.state.answered(*client_seq)?;
                    }
                    return Ok(event);
                }
                None if Instant::now() >= self.until => {
                    return Err(problem::timed_out(otherwise, self.args.timeout).into());
                }
                None => {}
            }
        }
    }
}

/// The text, or what standard input holds.
fn payload(text: &str) -> anyhow::Result<Vec<u8>> {
    let payload = if text == "-" {
        let mut bytes = Vec::new();
        io::stdin().lock().read_to_end(&mut bytes).context("read standard input")?;
        bytes
    } else {
        text.as_bytes().to_vec()
    };
    let max = whimbrel_wire::limits::PAYLOAD_MAX_BYTES;
    if payload.len() > max {
        return Err(Failure::new(format!("the message has {} bytes; at most {max} fit", payload.len())).into());
    }
    Ok(payload)
}

fn print(args: &SendArgs, receipt: &Receipt, latency_us: u128) -> anyhow::Result<()> {
    let mut out = Out::stdout();
    if args.json {
        return out.json(&json!({
            "chat": chat_text(receipt.chat),
            "chat_seq": receipt.chat_seq,
            "client_seq": receipt.client_seq,
            "durability": durability(receipt.durability),
            "status": status(receipt.status),
            "time_ms": receipt.time_ms,
            "latency_us": latency_us as u64,
        }));
    }
    out.line(&format!(
        "stored: chat {} chat_seq {} durability {}",
        chat_text(receipt.chat),
        receipt.chat_seq,
        durability(receipt.durability)
    ))
}

/// What the acknowledgement promises, in a word.
fn durability(durability: Durability) -> &'static str {
    match durability {
        Durability::OneNode => "one_node",
        Durability::Majority => "majority",
        _ => "none",
    }
}

fn status(status: SentStatus) -> &'static str {
    match status {
        SentStatus::Stored => "stored",
        SentStatus::Repeated => "repeated",
        _ => "already_stored",
    }
}

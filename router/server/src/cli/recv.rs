//! `whimbrel recv`: what waits for a device is printed, noted as seen, and acknowledged, in that order.

use std::process::ExitCode;
use std::time::{Duration, Instant};

use serde_json::{Value, json};

use crate::cli::RecvArgs;
use crate::cli::access::Access;
use crate::cli::link::{Content, Delivery, Event, Link, Warning, Welcome};
use crate::cli::output::{Failure, Out, chat_text, hex, payload_text, printable};
use crate::cli::problem;
use crate::cli::state::DeviceState;

/// A login is given this long even where messages are not.
const LOGIN_TIMEOUT: Duration = Duration::from_secs(5);

/// Printed before they are noted and acknowledged together.
const BATCH: usize = 64;

pub(super) fn run(args: &RecvArgs) -> anyhow::Result<ExitCode> {
    let access = Access::of(&args.identity)?;
    let mut state = access.open_state(&args.identity)?;
    let mut link = Link::new(&access, state.memory())?;
    let welcome = link.log_in(args.timeout.max(LOGIN_TIMEOUT))?;
    let mut out = Out::stdout();
    if args.count == Some(0) {
        tell_login(args, &access, &welcome, &mut out)?;
    } else {
        // What was acknowledged from elsewhere does not come again.
        state.shown(welcome.floor)?;
        let mut reader =
            Reader { args, access: &access, state: &mut state, link: &mut link, out, left: args.count, lost: None };
        let read = reader.read(welcome.head);
        // However it ended: what was printed is acknowledged.
        link.settle(LOGIN_TIMEOUT)?;
        read?;
    }
    Ok(ExitCode::SUCCESS)
}

fn tell_login(args: &RecvArgs, access: &Access, welcome: &Welcome, out: &mut Out) -> anyhow::Result<()> {
    let waiting = welcome.head.saturating_sub(welcome.floor);
    if args.json {
        return out.json(&json!({
            "user": access.user,
            "device": access.device,
            "shard": welcome.shard,
            "head": welcome.head,
            "floor": welcome.floor,
            "waiting": waiting,
        }));
    }
    out.line(&format!("{}, device {}: logged in at {}; {waiting} waiting", access.user, access.device, access.server))
}

struct Reader<'a> {
    args: &'a RecvArgs,
    access: &'a Access,
    state: &'a mut DeviceState,
    link: &'a mut Link,
    out: Out,
    /// Messages to go; `None` has no end.
    left: Option<u64>,
    /// Why there is no connection.
    lost: Option<String>,
}

impl Reader<'_> {
    /// Until all asked for are read, or nothing came for the timeout.
    fn read(&mut self, head: u64) -> anyhow::Result<()> {
        // With a timeout of 0 what waited at login is still waited for.
        let only_waiting = self.args.timeout.is_zero();
        let patience = if only_waiting { LOGIN_TIMEOUT } else { self.args.timeout };
        let mut until = Instant::now() + patience;
        while self.left != Some(0) {
            if only_waiting && self.state.floor() >= head {
                return self.enough();
            }
            match self.link.wait(Some(until))? {
                Some(Event::Delivered(delivery)) => {
                    self.batch(delivery)?;
                    until = Instant::now() + patience;
                }
                Some(Event::Refused(refusal)) => return Err(problem::login(self.access, &refusal)),
                Some(Event::Warning(warning)) => {
                    eprintln!("whimbrel: {warning}");
                    if let Warning::InboxLost { head, .. } = warning {
                        self.state.inbox_lost(head)?;
                    }
                }
                Some(Event::Lost(lost)) => self.lost = Some(lost.why),
                Some(Event::LoggedIn(_)) => self.lost = None,
                Some(Event::Pong(_)) => {}
                Some(Event::Stored(_) | Event::NotStored { .. } | Event::Chat { .. } | Event::NoAnswer { .. }) => {}
                None if Instant::now() >= until => return self.enough(),
                None => {}
            }
        }
        Ok(())
    }

    /// Nothing more came: a failure only where more was asked for, or nothing could come.
    fn enough(&self) -> anyhow::Result<()> {
        if let Some(why) = &self.lost {
            return Err(problem::unreachable(self.access, why).into());
        }
        match (self.left, self.args.count) {
            (Some(left), Some(count)) => {
                let what =
                    format!("{} of {count} messages came within {:?} of each other", count - left, self.args.timeout);
                Err(Failure::with_remedy(what, "give them more time: --timeout TIME").into())
            }
            _ => Ok(()),
        }
    }

    /// Prints a delivery and those that came with it. What was printed is noted even if the next cannot be.
    fn batch(&mut self, first: Delivery) -> anyhow::Result<()> {
        let mut delivery = first;
        let mut shown = 0;
        let mut printed = Ok(());
        for count in 1..=BATCH {
            printed = self.print(&delivery);
            if printed.is_err() {
                break;
            }
            shown = delivery.inbox_seq;
            if let (Content::Message(_), Some(left)) = (&delivery.content, &mut self.left) {
                *left -= 1;
            }
            // One that is taken out of the queue is printed.
            if self.left == Some(0) || count == BATCH {
                break;
            }
            match self.link.next_delivery() {
                Some(next) => delivery = next,
                None => break,
            }
        }
        if shown > 0 {
            self.state.shown(shown)?;
            self.link.ack(shown);
        }
        printed
    }

    fn print(&mut self, delivery: &Delivery) -> anyhow::Result<()> {
        if self.args.json {
            return self.out.json(&as_json(delivery));
        }
        match as_line(delivery) {
            Some(line) => self.out.line(&line),
            None => Ok(()),
        }
    }
}

fn as_json(delivery: &Delivery) -> Value {
    let mut value = json!({
        "inbox_seq": delivery.inbox_seq,
        "chat": chat_text(delivery.chat),
        "chat_seq": delivery.chat_seq,
        "time_ms": delivery.time_ms,
        "sender": delivery.sender,
        "sender_device": delivery.sender_device,
    });
    match &delivery.content {
        Content::Message(payload) => {
            value["event"] = "message".into();
            match std::str::from_utf8(payload) {
                Ok(text) => value["text"] = text.into(),
                Err(_) => value["payload_hex"] = hex(payload).into(),
            }
        }
        Content::ChatCreated { title, members } => {
            value["event"] = "chat_created".into();
            value["title"] = title.as_str().into();
            value["members"] = members.as_slice().into();
        }
        Content::Unknown { event, payload } => {
            value["event"] = format!("unknown_{event}").into();
            value["payload_hex"] = hex(payload).into();
        }
    }
    value
}

/// The line of a delivery; the making of a 1:1 chat has none.
fn as_line(delivery: &Delivery) -> Option<String> {
    match &delivery.content {
        Content::Message(payload) => Some(format!("{}: {}", delivery.sender, payload_text(payload))),
        Content::ChatCreated { title, members } if title.is_empty() && members.len() == 2 => None,
        Content::ChatCreated { title, members } => {
            let title = if title.is_empty() { String::new() } else { format!(" “{}”", printable(title)) };
            Some(format!(
                "* {} made the group{title} of {}: chat {}",
                delivery.sender,
                members.join(", "),
                chat_text(delivery.chat)
            ))
        }
        Content::Unknown { event, .. } => {
            Some(format!("* {} did what this version does not know (event {event})", delivery.sender))
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn delivery(content: Content) -> Delivery {
        Delivery {
            inbox_seq: 3,
            chat: 255,
            chat_seq: 2,
            time_ms: 1_000,
            sender: "bob".into(),
            sender_device: 1,
            content,
        }
    }

    #[test]
    fn json_holds_text_or_bytes() {
        let text = as_json(&delivery(Content::Message(b"hi\n\x1b[2J".to_vec())));
        assert_eq!(text["text"], "hi\n\u{1b}[2J");
        assert_eq!(text["chat"], "000000000000000000000000000000ff");
        let bytes = as_json(&delivery(Content::Message(vec![0xff, 0x00])));
        assert_eq!((bytes.get("text"), &bytes["payload_hex"]), (None, &json!("ff00")));
    }

    #[test]
    fn lines_are_harmless_and_single() {
        assert_eq!(as_line(&delivery(Content::Message(b"a\nb".to_vec()))).unwrap(), "bob: a\\nb");
        let pair = vec!["alice".to_owned(), "bob".to_owned()];
        assert_eq!(as_line(&delivery(Content::ChatCreated { title: String::new(), members: pair.clone() })), None);
        let group = as_line(&delivery(Content::ChatCreated { title: "Birds".into(), members: pair })).unwrap();
        assert_eq!(group, "* bob made the group “Birds” of alice, bob: chat 000000000000000000000000000000ff");
    }
}

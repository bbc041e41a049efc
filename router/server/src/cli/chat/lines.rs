//! What typed lines mean and how events read, as plain functions.

use crate::cli::access::Access;
use crate::cli::args::{self, Target};
use crate::cli::chat::screen::{Tone, clock};
use crate::cli::link::{Content, Delivery, Welcome};
use crate::cli::output::{chat_text, payload_text, printable};
use crate::cli::state::KnownChat;

/// What `/help` shows.
pub(super) const HELP: [&str; 7] = [
    "/to NAME    talk to NAME from now on",
    "/chat ID    talk in the chat with this id",
    "/who        who you are, whom you talk to, what waits",
    "/drop       forget what waits for somebody who never logged in",
    "/help       this",
    "/quit       leave; Ctrl-C and Ctrl-D do too",
    "//text      a message that begins with a slash",
];

/// A typed line.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Typed<'a> {
    Message(&'a str),
    To(Target),
    Who,
    Drop,
    Help,
    Quit,
    /// Why it means nothing.
    Wrong(String),
}

impl Typed<'_> {
    pub(super) fn parse(line: &str) -> Typed<'_> {
        let Some(command) = line.strip_prefix('/') else { return Typed::Message(line) };
        if command.starts_with('/') {
            return Typed::Message(command);
        }
        let (word, rest) = command.split_once(char::is_whitespace).unwrap_or((command, ""));
        match (word, rest.trim()) {
            ("to", name) => args::user(name)
                .map_or_else(|why| Typed::Wrong(format!("/to NAME: {why}")), |user| Typed::To(Target::User(user))),
            ("chat", id) => args::chat(id).map_or_else(
                |why| Typed::Wrong(format!("/chat ID: {why}")),
                |chat| Typed::To(Target::Chat(chat_text(chat))),
            ),
            ("who", "") => Typed::Who,
            ("drop", "") => Typed::Drop,
            ("help", "") => Typed::Help,
            ("quit" | "exit" | "q", "") => Typed::Quit,
            _ => Typed::Wrong(format!(
                "there is no /{}; /help shows what there is, and //text sends a text with a slash",
                printable(word)
            )),
        }
    }
}

/// What a chat is called by one of its members: its title, or else the others.
pub(super) fn name(title: &str, members: &[String], me: &str) -> String {
    if !title.is_empty() {
        return title.to_owned();
    }
    let others: Vec<&str> = members.iter().map(String::as_str).filter(|member| *member != me).collect();
    if others.is_empty() { me.to_owned() } else { others.join(", ") }
}

/// How a delivery reads; `None` for what says nothing to a person.
pub(super) fn delivery(
    delivery: &Delivery,
    me: &str,
    known: Option<&KnownChat>,
    current: bool,
) -> Option<(Tone, String)> {
    let time = clock(delivery.time_ms, &jiff::ZonedDateTime::now());
    let sender = if delivery.sender == me { "you" } else { &delivery.sender };
    match &delivery.content {
        Content::Message(payload) => {
            let text = payload_text(payload);
            let tone = if delivery.sender == me { Tone::Own } else { Tone::Theirs };
            Some((
                tone,
                match known {
                    _ if current => format!("{time} {sender}: {text}"),
                    Some(known) if !known.group && known.name == delivery.sender => format!("{time} [{sender}] {text}"),
                    Some(known) => format!("{time} [{}] {sender}: {text}", printable(&known.name)),
                    None => format!("{time} [chat {}] {sender}: {text}", &chat_text(delivery.chat)[..8]),
                },
            ))
        }
        Content::Unknown { event, .. } => {
            Some((Tone::Notice, format!("{time} {sender} did what this version does not know (event {event})")))
        }
        // That a 1:1 chat exists is seen by its first message.
        Content::ChatCreated { .. } if known.is_none_or(|known| !known.group) => None,
        Content::ChatCreated { title, members } => {
            let title = if title.is_empty() { String::new() } else { format!(" “{}”", printable(title)) };
            let members = members.join(", ");
            Some((
                Tone::Notice,
                format!(
                    "{time} {sender} made the group{title} of {members}; to talk there: /chat {}",
                    chat_text(delivery.chat)
                ),
            ))
        }
    }
}

/// How an own message reads once it is stored.
pub(super) fn stored(time_ms: u64, to: Option<&str>, text: &str) -> String {
    let to = to.map_or(String::new(), |to| format!(" to {to}"));
    format!("{} you{to}: {} ✓", clock(time_ms, &jiff::ZonedDateTime::now()), printable(text))
}

/// How an own message reads while it is not.
pub(super) fn waiting(text: &str, whom: &str) -> String {
    format!("  …   you: {} (waiting for {whom})", printable(text))
}

/// The first line.
pub(super) fn logged_in(access: &Access, welcome: &Welcome) -> String {
    let waiting = welcome.head.saturating_sub(welcome.floor);
    let waiting = if waiting == 0 { String::new() } else { format!("; {waiting} waiting") };
    format!(
        "you are {}, device {}, at {}{waiting}. /help shows the commands",
        access.user, access.device, access.server
    )
}

/// A number of messages, as a person says it.
pub(super) fn messages(count: usize) -> String {
    if count == 1 { "1 message".to_owned() } else { format!("{count} messages") }
}

/// The verb that goes with it.
pub(super) fn is_are(count: usize) -> &'static str {
    if count == 1 { "is" } else { "are" }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lines_are_messages_or_commands() {
        assert_eq!(Typed::parse("hello"), Typed::Message("hello"));
        assert_eq!(Typed::parse("//etc/passwd"), Typed::Message("/etc/passwd"));
        assert_eq!(Typed::parse("/to bob"), Typed::To(Target::User("bob".into())));
        assert_eq!(Typed::parse("/quit"), Typed::Quit);
        assert_eq!(Typed::parse("/who"), Typed::Who);
        for wrong in ["/to", "/to Bob", "/chat 12", "/nothing", "/quit now", "/"] {
            assert!(matches!(Typed::parse(wrong), Typed::Wrong(_)), "{wrong}");
        }
    }

    #[test]
    fn a_chat_is_called_by_its_title_or_the_others() {
        let members = ["alice".to_owned(), "bob".to_owned(), "carol".to_owned()];
        assert_eq!(name("Birds", &members, "alice"), "Birds");
        assert_eq!(name("", &members, "alice"), "bob, carol");
        assert_eq!(name("", &members[..1], "alice"), "alice");
    }

    #[test]
    fn a_message_says_from_where_unless_it_is_looked_at() {
        let message = |sender: &str| Delivery {
            inbox_seq: 1,
            chat: 0xabcd_ef00 << 96,
            chat_seq: 2,
            time_ms: jiff::Timestamp::now().as_millisecond() as u64,
            sender: sender.to_owned(),
            sender_device: 1,
            content: Content::Message(b"hi".to_vec()),
        };
        let line = |sender, known: Option<(bool, &str)>, current| {
            let known = known.map(|(group, name)| KnownChat { group, name: name.to_owned() });
            let (_, line) = delivery(&message(sender), "alice", known.as_ref(), current).unwrap();
            line.split_once(' ').unwrap().1.to_owned()
        };
        assert_eq!(line("bob", Some((false, "bob")), true), "bob: hi");
        assert_eq!(line("bob", Some((false, "bob")), false), "[bob] hi");
        assert_eq!(line("alice", Some((false, "bob")), false), "[bob] you: hi");
        assert_eq!(line("bob", Some((true, "Birds")), false), "[Birds] bob: hi");
        assert_eq!(line("bob", None, false), "[chat abcdef00] bob: hi");
    }
}

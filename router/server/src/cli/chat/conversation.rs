//! A chat while it lasts: what is typed becomes messages, what comes becomes lines, and nothing typed is forgotten. Lives on
//! a thread of its own, beside the one that reads the keyboard.
//!
//! A typed message is a draft until its chat's id is known, then it has a number and is under way, then it is stored. The
//! device's file knows it from the first moment, so that it goes out later if this process ends before.

use std::collections::{BTreeMap, HashMap, HashSet};
use std::sync::mpsc::{Receiver, TryRecvError};
use std::time::{Duration, Instant};

use crate::cli::access::Access;
use crate::cli::args::{self, Target};
use crate::cli::chat::keyboard::{Input, Prompt};
use crate::cli::chat::lines;
use crate::cli::chat::screen::{Screen, Tone};
use crate::cli::link::{ChatFacts, Content, Delivery, Event, Link, Receipt, Refusal, Welcome};
use crate::cli::output::{Failure, chat_text, printable};
use crate::cli::problem;
use crate::cli::state::{DeviceState, Draft, KnownChat, Outgoing};

/// A message that is not stored after so long is shown as waiting.
const SHOWN_AS_WAITING_AFTER: Duration = Duration::from_millis(400);

/// Who leaves a terminal waits this long for answers that are under way.
const LEAVE_TERMINAL: Duration = Duration::from_secs(1);

/// Input from a file or a pipe ends before its last messages are stored; this long is waited for them.
const LEAVE_PLAIN: Duration = Duration::from_secs(10);

/// A message with a number that is not stored yet.
struct UnderWay {
    to: Target,
    text: String,
    typed_at: Instant,
    shown_waiting: bool,
}

/// Two parts: what outlives this process or leads out of it, and what the conversation itself knows.
pub(super) struct Conversation {
    access: Access,
    state: DeviceState,
    link: Link,
    screen: Screen,
    prompt: Prompt,
    inputs: Receiver<Input>,
    /// Whom typed lines are for.
    current: Option<Target>,
    /// Given on the command line: if it does not exist, there is no conversation.
    demanded: Option<Target>,
    /// Ids of chats that the server of this session has confirmed.
    ids: HashMap<Target, u128>,
    /// Questions that are not answered: by correlation, about whom.
    asked: HashMap<u64, Target>,
    /// Chats whose name was asked for, so that it is not asked twice.
    named: HashSet<u128>,
    under_way: BTreeMap<u64, UnderWay>,
    /// When the oldest draft is shown as waiting; `None` once they are.
    draft_since: Option<Instant>,
    said_down: bool,
    /// Until when what is under way is waited for.
    leaving: Option<Instant>,
}

/// What a conversation is made of.
pub(super) struct Parts {
    pub(super) access: Access,
    pub(super) state: DeviceState,
    pub(super) link: Link,
    pub(super) screen: Screen,
    pub(super) prompt: Prompt,
    pub(super) inputs: Receiver<Input>,
    pub(super) target: Option<Target>,
}

impl Conversation {
    pub(super) fn new(parts: Parts) -> Conversation {
        let Parts { access, state, link, screen, prompt, inputs, target } = parts;
        Conversation {
            access,
            state,
            link,
            screen,
            prompt,
            inputs,
            current: target.clone(),
            demanded: target,
            ids: HashMap::new(),
            asked: HashMap::new(),
            named: HashSet::new(),
            under_way: BTreeMap::new(),
            draft_since: None,
            said_down: false,
            leaving: None,
        }
    }

    /// Goes on until the person leaves. The number of messages that are kept for the next time.
    pub(super) fn run(&mut self) -> anyhow::Result<usize> {
        self.pick_up()?;
        self.set_prompt();
        while !self.over() {
            let wake_at = self.next_wake();
            if let Some(event) = self.link.wait(wake_at)? {
                self.on_event(event)?;
            }
            self.take_inputs()?;
            self.show_waiting()?;
        }
        self.link.settle(LEAVE_TERMINAL)?;
        Ok(self.under_way.len() + self.state.drafts().len())
    }

    /// What a former process left unsent.
    fn pick_up(&mut self) -> anyhow::Result<()> {
        for message in self.state.outgoing().to_vec() {
            let Ok(chat) = args::chat(&message.chat) else { continue };
            self.link.resume(message.client_seq, message.prev, chat, message.text.as_bytes())?;
            let under_way = UnderWay { to: message.to, text: message.text, typed_at: Instant::now(), shown_waiting: true };
            self.under_way.insert(message.client_seq, under_way);
        }
        let kept = self.under_way.len() + self.state.drafts().len();
        if kept > 0 {
            self.notice(&format!("{} from last time {} sent as soon as the server answers", lines::messages(kept), lines::is_are(kept)))?;
        }
        Ok(())
    }

    fn over(&self) -> bool {
        let nothing_left = self.under_way.is_empty() && self.state.drafts().is_empty();
        self.leaving.is_some_and(|until| nothing_left || Instant::now() >= until)
    }

    fn next_wake(&self) -> Option<Instant> {
        let waiting = self.under_way.values().filter(|message| !message.shown_waiting).map(|message| message.typed_at);
        let shown = waiting.chain(self.draft_since).map(|since| since + SHOWN_AS_WAITING_AFTER);
        shown.chain(self.leaving).min()
    }

    fn take_inputs(&mut self) -> anyhow::Result<()> {
        loop {
            match self.inputs.try_recv() {
                Ok(Input::Line(line)) => self.on_line(&line)?,
                Ok(Input::Leave) | Err(TryRecvError::Disconnected) => {
                    self.leaving.get_or_insert_with(|| Instant::now() + LEAVE_TERMINAL);
                    return Ok(());
                }
                Ok(Input::End) => {
                    self.leaving.get_or_insert_with(|| Instant::now() + LEAVE_PLAIN);
                    return Ok(());
                }
                Err(TryRecvError::Empty) => return Ok(()),
            }
        }
    }

    fn on_line(&mut self, line: &str) -> anyhow::Result<()> {
        match lines::Typed::parse(line) {
            lines::Typed::Message(text) => self.on_message(text),
            lines::Typed::To(target) => {
                self.current = Some(target.clone());
                self.set_prompt();
                self.find(&target)
            }
            lines::Typed::Who => self.tell_who(),
            lines::Typed::Help => lines::HELP.iter().try_for_each(|line| self.notice(line)),
            lines::Typed::Quit => {
                self.leaving.get_or_insert_with(|| Instant::now() + LEAVE_TERMINAL);
                Ok(())
            }
            lines::Typed::Wrong(why) => self.notice(&why),
        }
    }

    fn on_message(&mut self, text: &str) -> anyhow::Result<()> {
        let Some(to) = self.current.clone() else {
            return self.notice("to whom? /to NAME begins a chat");
        };
        if text.len() > whimbrel_wire::limits::PAYLOAD_MAX_BYTES {
            let max = whimbrel_wire::limits::PAYLOAD_MAX_BYTES;
            return self.notice(&format!("not sent: it has {} bytes, a message has at most {max}", text.len()));
        }
        // After a draft to the same chat it is a draft too: they go out in the order in which they were typed.
        if let Some(&chat) = self.ids.get(&to)
            && self.state.next_draft(&to).is_none()
        {
            return self.send(&to, chat, text, false);
        }
        self.state.draft(Draft { to: to.clone(), text: text.to_owned() })?;
        self.draft_since.get_or_insert_with(Instant::now);
        self.find(&to)
    }

    /// Gives a message its number, and hands it to the link once that is on disk.
    fn send(&mut self, to: &Target, chat: u128, text: &str, drafted: bool) -> anyhow::Result<()> {
        let number = self.link.send(chat, text.as_bytes())?;
        let message = Outgoing {
            client_seq: number.client_seq,
            prev: number.prev,
            chat: chat_text(chat),
            to: to.clone(),
            text: text.to_owned(),
        };
        if drafted {
            self.state.sending_draft(message)?;
        } else {
            self.state.sending(message)?;
        }
        let shown_waiting = drafted && self.draft_since.is_none();
        let under_way = UnderWay { to: to.clone(), text: text.to_owned(), typed_at: Instant::now(), shown_waiting };
        self.under_way.insert(number.client_seq, under_way);
        Ok(())
    }

    /// Asks for the id of a chat, if there is a server to ask and it was not asked.
    fn find(&mut self, target: &Target) -> anyhow::Result<()> {
        if !self.link.is_up() || self.ids.contains_key(target) || self.asked.values().any(|asked| asked == target) {
            return Ok(());
        }
        let correlation = match target {
            Target::User(user) => self.link.create_direct(user)?,
            Target::Chat(chat) => self.link.chat_info(args::chat(chat).map_err(Failure::new)?)?,
        };
        self.asked.insert(correlation, target.clone());
        Ok(())
    }

    fn on_event(&mut self, event: Event) -> anyhow::Result<()> {
        match event {
            Event::LoggedIn(welcome) => self.on_welcome(&welcome),
            Event::Lost(why) => self.on_lost(&why),
            Event::Refused(refusal) => Err(problem::login(&self.access, &refusal)),
            Event::Delivered(delivery) => self.on_delivery(delivery),
            Event::Stored(receipt) => self.on_stored(&receipt),
            Event::NotStored { client_seq, refusal } => self.on_not_stored(client_seq, &refusal),
            Event::Chat { correlation, facts } => self.on_chat(correlation, facts),
            Event::NoAnswer { correlation, refusal } => self.on_no_answer(correlation, &refusal),
        }
    }

    fn on_welcome(&mut self, welcome: &Welcome) -> anyhow::Result<()> {
        if self.said_down {
            self.notice("the server is back")?;
        } else {
            self.notice(&lines::logged_in(&self.access, welcome))?;
        }
        self.said_down = false;
        self.asked.clear();
        let mut wanted: Vec<Target> = self.state.drafts().iter().map(|draft| draft.to.clone()).collect();
        wanted.extend(self.current.clone());
        wanted.iter().try_for_each(|target| self.find(target))
    }

    fn on_lost(&mut self, why: &str) -> anyhow::Result<()> {
        self.asked.clear();
        if self.said_down {
            return Ok(());
        }
        self.said_down = true;
        self.notice(&format!("{why}. What you type is kept and sent when it is back; to start it: {}", self.access.serve_command()))
    }

    fn on_delivery(&mut self, delivery: Delivery) -> anyhow::Result<()> {
        self.learn_name(&delivery)?;
        let shown = lines::delivery(&delivery, &self.access.user, self.name_of(delivery.chat), self.is_current(delivery.chat));
        if let Some((tone, line)) = shown {
            self.screen.show(tone, &line)?;
        }
        self.state.shown(delivery.inbox_seq)?;
        self.link.ack(delivery.inbox_seq)
    }

    /// What the chat of a delivery is called: the making of it says so, else the server is asked, once.
    fn learn_name(&mut self, delivery: &Delivery) -> anyhow::Result<()> {
        let chat = chat_text(delivery.chat);
        if let Content::ChatCreated { title, members } = &delivery.content {
            let known = KnownChat { group: !title.is_empty() || members.len() != 2, name: lines::name(title, members, &self.access.user) };
            self.state.name_chat(chat, known)?;
        } else if self.state.chat(&chat).is_none() && self.named.insert(delivery.chat) {
            self.link.chat_info(delivery.chat)?;
        }
        Ok(())
    }

    fn name_of(&self, chat: u128) -> Option<&KnownChat> {
        self.state.chat(&chat_text(chat))
    }

    fn is_current(&self, chat: u128) -> bool {
        match &self.current {
            None => false,
            Some(target) if self.ids.get(target) == Some(&chat) => true,
            Some(Target::Chat(id)) => *id == chat_text(chat),
            Some(Target::User(user)) => self.name_of(chat).is_some_and(|known| !known.group && known.name == *user),
        }
    }

    fn on_stored(&mut self, receipt: &Receipt) -> anyhow::Result<()> {
        let Some(message) = self.under_way.remove(&receipt.client_seq) else { return Ok(()) };
        let to = (self.current.as_ref() != Some(&message.to)).then(|| self.label(&message.to));
        self.screen.show(Tone::Own, &lines::stored(receipt.time_ms, to.as_deref(), &message.text))?;
        self.state.answered(receipt.client_seq)
    }

    fn on_not_stored(&mut self, client_seq: u64, refusal: &Refusal) -> anyhow::Result<()> {
        if let Some(message) = self.under_way.remove(&client_seq) {
            self.not_sent(&message.text, refusal)?;
        }
        self.state.answered(client_seq)
    }

    fn on_chat(&mut self, correlation: u64, facts: ChatFacts) -> anyhow::Result<()> {
        let known = KnownChat { group: facts.group, name: lines::name(&facts.title, &facts.members, &self.access.user) };
        self.state.name_chat(chat_text(facts.chat), known)?;
        let Some(target) = self.asked.remove(&correlation) else { return Ok(()) };
        self.ids.insert(target.clone(), facts.chat);
        self.set_prompt();
        while let Some(draft) = self.state.next_draft(&target).cloned() {
            self.send(&target, facts.chat, &draft.text, true)?;
        }
        Ok(())
    }

    fn on_no_answer(&mut self, correlation: u64, refusal: &Refusal) -> anyhow::Result<()> {
        let Some(target) = self.asked.remove(&correlation) else { return Ok(()) };
        let failure = problem::chat(&self.access, &target, refusal);
        for draft in self.state.drop_drafts(&target)? {
            self.not_sent(&draft.text, refusal)?;
        }
        if self.demanded.as_ref() == Some(&target) {
            return Err(failure.into());
        }
        if self.current.as_ref() == Some(&target) {
            self.current = None;
            self.set_prompt();
        }
        self.notice(&failure.one_line())
    }

    fn not_sent(&mut self, text: &str, refusal: &Refusal) -> anyhow::Result<()> {
        self.screen.show(Tone::Own, &format!("✗ not sent: {} ({})", printable(text), refusal.text()))
    }

    /// Shows what is not stored after a moment, so that a typed line never just disappears.
    fn show_waiting(&mut self) -> anyhow::Result<()> {
        let due = |since: Instant, up: bool| !up || since.elapsed() >= SHOWN_AS_WAITING_AFTER;
        let up = self.link.is_up();
        let mut shown: Vec<String> = Vec::new();
        for message in self.under_way.values_mut() {
            if !message.shown_waiting && due(message.typed_at, up) {
                message.shown_waiting = true;
                shown.push(message.text.clone());
            }
        }
        if self.draft_since.is_some_and(|since| due(since, up)) {
            self.draft_since = None;
            // Of several typed since, all are shown: the first of them set the time.
            shown.extend(self.unshown_drafts());
        }
        shown.iter().try_for_each(|text| self.screen.show(Tone::Own, &lines::waiting(text)))
    }

    fn unshown_drafts(&self) -> Vec<String> {
        self.state.drafts().iter().map(|draft| draft.text.clone()).collect()
    }

    fn tell_who(&mut self) -> anyhow::Result<()> {
        let state = if self.link.is_up() { "logged in" } else { "not connected" };
        self.notice(&format!("you are {}, device {}, {state} at {}", self.access.user, self.access.device, self.access.server))?;
        match self.current.clone() {
            None => self.notice("you talk to nobody; /to NAME begins a chat")?,
            Some(target) => {
                let id = self.ids.get(&target).map_or(String::new(), |&chat| format!(" (chat {})", chat_text(chat)));
                self.notice(&format!("you talk to {}{id}", self.label(&target)))?;
            }
        }
        let waiting = self.under_way.len() + self.state.drafts().len();
        if waiting > 0 {
            self.notice(&format!("{} {} not stored yet", lines::messages(waiting), lines::is_are(waiting)))?;
        }
        Ok(())
    }

    /// What a target is called: a group by its title once that is known.
    fn label(&self, target: &Target) -> String {
        match target {
            Target::User(user) => user.clone(),
            Target::Chat(chat) => self.state.chat(chat).map_or_else(|| format!("chat {}", &chat[..8]), |known| printable(&known.name).into_owned()),
        }
    }

    fn set_prompt(&self) {
        self.prompt.set(match &self.current {
            Some(target) => format!("to {}> ", self.label(target)),
            None => "> ".to_owned(),
        });
    }

    fn notice(&mut self, line: &str) -> anyhow::Result<()> {
        self.screen.show(Tone::Notice, line)
    }
}

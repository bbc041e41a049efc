//! A chat while it lasts: what is typed becomes messages, what comes becomes lines, and nothing typed is forgotten. Lives on
//! a thread of its own, beside the one that reads the keyboard.
//!
//! A typed message is a draft until its chat's id is known, then it has a number and is under way, then it is stored. The
//! device's file knows it from the first moment, so that it goes out later if this process ends before.

use std::collections::{BTreeMap, HashMap, HashSet};
use std::sync::mpsc::{Receiver, TryRecvError};
use std::time::{Duration, Instant};

use whimbrel_client::{ChatKind, Code};

use crate::cli::access::Access;
use crate::cli::args::{self, Target};
use crate::cli::chat::keyboard::{Input, Prompt};
use crate::cli::chat::lines;
use crate::cli::chat::screen::{Screen, Tone};
use crate::cli::link::{ChatFacts, Content, Delivery, Event, Link, Lost, Receipt, Refusal, Warning, Welcome};
use crate::cli::output::{Failure, chat_text, printable};
use crate::cli::problem;
use crate::cli::state::{DeviceState, Draft, KnownChat, Outgoing};

/// A message that is not stored after so long is shown as waiting.
const SHOWN_AS_WAITING_AFTER: Duration = Duration::from_millis(400);

/// Who has never logged in is looked for again this often.
const ASK_AGAIN_AFTER: Duration = Duration::from_secs(1);

/// Who leaves a terminal waits this long for answers that are under way.
const LEAVE_TERMINAL: Duration = Duration::from_secs(1);

/// Input from a file or a pipe ends before its last messages are stored; this long is waited for each of them.
const LEAVE_PLAIN: Duration = Duration::from_secs(10);

/// No more is taken from the input while so many messages are not stored: each is on disk, and in the session's memory.
const KEPT_MAX: usize = 256;

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
    /// Given on the command line of a program: if it does not exist, there is no conversation.
    demanded: Option<Target>,
    /// Whom a person wants to talk to though they never logged in; asked for again from time to time.
    absent: BTreeMap<Target, Instant>,
    /// Ids of chats that the server of this session has confirmed.
    ids: HashMap<Target, u128>,
    /// Questions that are not answered: by correlation, about whom.
    asked: HashMap<u64, Target>,
    /// Chats whose name was asked for, so that it is not asked twice.
    named: HashSet<u128>,
    under_way: BTreeMap<u64, UnderWay>,
    /// Drafts that are not shown as waiting yet, and since when.
    unshown: Vec<(Instant, Draft)>,
    was_up: bool,
    said_down: bool,
    /// A person waits for others to come; a program does not.
    patient: bool,
    /// No more input will come.
    ended: bool,
    /// Messages that were not taken, and never will be.
    failed: usize,
    /// Until when what is under way is waited for: at the end, and where no more input is taken.
    leaving: Option<Instant>,
}

/// What became of what was typed.
#[derive(Clone, Copy, Debug)]
pub(super) struct Outcome {
    /// Messages that are kept for the next time.
    pub(super) kept: usize,
    /// Messages that were not taken.
    pub(super) failed: usize,
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
        let patient = screen.is_terminal();
        let conversation = Conversation {
            access,
            state,
            link,
            screen,
            prompt,
            inputs,
            current: target.clone(),
            demanded: target.filter(|target| !patient || !matches!(target, Target::User(_))),
            patient,
            absent: BTreeMap::new(),
            ids: HashMap::new(),
            asked: HashMap::new(),
            named: HashSet::new(),
            under_way: BTreeMap::new(),
            unshown: Vec::new(),
            was_up: false,
            said_down: false,
            ended: false,
            failed: 0,
            leaving: None,
        };
        conversation.set_prompt();
        conversation
    }

    /// Goes on until the person leaves.
    pub(super) fn run(&mut self) -> anyhow::Result<Outcome> {
        self.pick_up()?;
        while !self.over() {
            let wake_at = self.next_wake();
            if let Some(event) = self.link.wait(wake_at)? {
                self.on_event(event)?;
            }
            self.take_inputs()?;
            self.ask_again()?;
            self.show_waiting()?;
        }
        self.link.settle(LEAVE_TERMINAL)?;
        Ok(Outcome { kept: self.kept(), failed: self.failed })
    }

    /// What a former process left unsent.
    fn pick_up(&mut self) -> anyhow::Result<()> {
        for message in self.state.outgoing().to_vec() {
            let Ok(chat) = args::chat(&message.chat) else { continue };
            self.link.resume(chat, message.number(), message.text.as_bytes())?;
            let under_way =
                UnderWay { to: message.to, text: message.text, typed_at: Instant::now(), shown_waiting: true };
            self.under_way.insert(message.client_seq, under_way);
        }
        let kept = self.kept();
        if kept > 0 {
            self.notice(&format!("{} from last time {} not stored yet", lines::messages(kept), lines::is_are(kept)))?;
        }
        let mut wanted: Vec<Target> = self.state.drafts().iter().map(|draft| draft.to.clone()).collect();
        wanted.extend(self.current.clone());
        wanted.iter().try_for_each(|target| self.find(target))
    }

    /// Messages that are not stored.
    fn kept(&self) -> usize {
        self.under_way.len() + self.state.drafts().len()
    }

    fn over(&self) -> bool {
        self.leaving.is_some_and(|until| self.kept() == 0 || Instant::now() >= until)
    }

    fn next_wake(&self) -> Option<Instant> {
        let waiting = self.under_way.values().filter(|message| !message.shown_waiting).map(|message| message.typed_at);
        let drafts = self.unshown.iter().map(|(since, _)| *since);
        let shown = waiting.chain(drafts).map(|since| since + SHOWN_AS_WAITING_AFTER);
        shown.chain(self.leaving).chain(self.absent.values().copied()).min()
    }

    fn take_inputs(&mut self) -> anyhow::Result<()> {
        loop {
            if !self.patient && self.kept() >= KEPT_MAX {
                self.leaving.get_or_insert_with(|| Instant::now() + LEAVE_PLAIN);
                return Ok(());
            }
            match self.inputs.try_recv() {
                Ok(Input::Line(line, _dealt_with)) => self.on_line(&line)?,
                Ok(Input::Leave) | Err(TryRecvError::Disconnected) => return self.leave(LEAVE_TERMINAL),
                Ok(Input::End) => return self.leave(LEAVE_PLAIN),
                Err(TryRecvError::Empty) => return Ok(()),
            }
        }
    }

    fn leave(&mut self, patience: Duration) -> anyhow::Result<()> {
        self.ended = true;
        self.leaving.get_or_insert_with(|| Instant::now() + patience);
        Ok(())
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
            lines::Typed::Drop => self.drop_drafts(),
            lines::Typed::Help => lines::HELP.iter().try_for_each(|line| self.notice(line)),
            lines::Typed::Quit => self.leave(LEAVE_TERMINAL),
            lines::Typed::Wrong(why) => self.notice(&why),
        }
    }

    fn on_message(&mut self, text: &str) -> anyhow::Result<()> {
        let Some(to) = self.current.clone() else {
            self.failed += 1;
            return self.notice("to whom? /to NAME begins a chat");
        };
        if text.len() > whimbrel_wire::limits::PAYLOAD_MAX_BYTES {
            let max = whimbrel_wire::limits::PAYLOAD_MAX_BYTES;
            self.failed += 1;
            return self.notice(&format!("not sent: it has {} bytes, a message has at most {max}", text.len()));
        }
        // After a draft to the same chat it is a draft too: they go out in the order in which they were typed.
        if let Some(&chat) = self.ids.get(&to)
            && self.state.next_draft(&to).is_none()
        {
            return self.send(&to, chat, text, false);
        }
        let draft = Draft { to: to.clone(), text: text.to_owned() };
        self.state.draft(draft.clone())?;
        self.unshown.push((Instant::now(), draft));
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
        let unshown = self.unshown.iter().position(|(_, draft)| draft.to == *to);
        let shown_waiting = drafted && unshown.map(|place| self.unshown.remove(place)).is_none();
        let under_way = UnderWay { to: to.clone(), text: text.to_owned(), typed_at: Instant::now(), shown_waiting };
        self.under_way.insert(number.client_seq, under_way);
        Ok(())
    }

    /// Asks for the id of a chat, once. The answer may have to wait for a server.
    fn find(&mut self, target: &Target) -> anyhow::Result<()> {
        if self.ids.contains_key(target)
            || self.absent.contains_key(target)
            || self.asked.values().any(|asked| asked == target)
        {
            return Ok(());
        }
        let correlation = match target {
            Target::User(user) => self.link.create_direct(user),
            Target::Chat(chat) => self.link.chat_info(args::chat(chat).map_err(Failure::new)?),
        };
        self.asked.insert(correlation, target.clone());
        Ok(())
    }

    fn on_event(&mut self, event: Event) -> anyhow::Result<()> {
        match event {
            Event::LoggedIn(welcome) => self.on_welcome(&welcome),
            Event::Lost(lost) => self.on_lost(&lost),
            Event::Refused(refusal) => Err(problem::login(&self.access, &refusal)),
            Event::Delivered(delivery) => self.on_delivery(delivery),
            Event::Stored(receipt) => self.on_stored(&receipt),
            Event::NotStored { client_seq, refusal } => self.on_not_stored(client_seq, &refusal),
            Event::Chat { correlation, facts } => self.on_chat(correlation, facts),
            Event::NoAnswer { correlation, refusal } => self.on_no_answer(correlation, &refusal),
            Event::Pong(_) => Ok(()),
            Event::Warning(warning) => self.on_warning(warning),
        }
    }

    fn on_welcome(&mut self, welcome: &Welcome) -> anyhow::Result<()> {
        if self.was_up {
            self.notice("the server is back")?;
        } else {
            self.notice(&lines::logged_in(&self.access, welcome))?;
        }
        self.was_up = true;
        self.said_down = false;
        Ok(())
    }

    fn on_lost(&mut self, lost: &Lost) -> anyhow::Result<()> {
        if self.said_down {
            return Ok(());
        }
        self.said_down = true;
        let what = if self.was_up { "lost the server" } else { "no server" };
        let command = self.access.serve_command();
        self.notice(&format!(
            "{what}: {}. To start it: {command}. What you type is kept and sent when it is back",
            lost.why
        ))
    }

    fn on_warning(&mut self, warning: Warning) -> anyhow::Result<()> {
        if let Warning::InboxLost { head, .. } = warning {
            self.state.inbox_lost(head)?;
        }
        self.notice(&warning.to_string())
    }

    fn on_delivery(&mut self, delivery: Delivery) -> anyhow::Result<()> {
        self.learn_name(&delivery)?;
        let shown =
            lines::delivery(&delivery, &self.access.user, self.name_of(delivery.chat), self.is_current(delivery.chat));
        if let Some((tone, line)) = shown {
            self.screen.show(tone, &line)?;
        }
        self.state.shown(delivery.inbox_seq)?;
        self.link.ack(delivery.inbox_seq);
        Ok(())
    }

    /// What the chat of a delivery is called: the making of it says so, else the server is asked, once.
    fn learn_name(&mut self, delivery: &Delivery) -> anyhow::Result<()> {
        let chat = chat_text(delivery.chat);
        if let Content::ChatCreated { title, members } = &delivery.content {
            let known = KnownChat {
                group: !title.is_empty() || members.len() != 2,
                name: lines::name(title, members, &self.access.user),
            };
            self.state.name_chat(chat, known)?;
        } else if self.state.chat(&chat).is_none() && self.named.insert(delivery.chat) {
            self.link.chat_info(delivery.chat);
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
        if !self.patient && self.leaving.is_some() {
            self.leaving = self.ended.then(|| Instant::now() + LEAVE_PLAIN);
        }
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
        let known = KnownChat {
            group: facts.kind == ChatKind::Group,
            name: lines::name(&facts.title, &facts.members, &self.access.user),
        };
        self.state.name_chat(chat_text(facts.chat), known)?;
        let Some(target) = self.asked.remove(&correlation) else { return Ok(()) };
        if self.absent.remove(&target).is_some() {
            self.notice(&format!("{target} is there now"))?;
        }
        self.ids.insert(target.clone(), facts.chat);
        self.set_prompt();
        while let Some(draft) = self.state.next_draft(&target).cloned() {
            self.send(&target, facts.chat, &draft.text, true)?;
        }
        Ok(())
    }

    /// Looks again for those who were not there.
    fn ask_again(&mut self) -> anyhow::Result<()> {
        let now = Instant::now();
        let due: Vec<Target> =
            self.absent.iter().filter(|(_, at)| **at <= now).map(|(target, _)| target.clone()).collect();
        for target in due {
            self.absent.insert(target.clone(), now + ASK_AGAIN_AFTER);
            if let Target::User(user) = &target
                && !self.asked.values().any(|asked| *asked == target)
            {
                let question = self.link.create_direct(user);
                self.asked.insert(question, target);
            }
        }
        Ok(())
    }

    fn on_no_answer(&mut self, correlation: u64, refusal: &Refusal) -> anyhow::Result<()> {
        let Some(target) = self.asked.remove(&correlation) else { return Ok(()) };
        if self.patient
            && refusal.code == Some(Code::UserUnknown)
            && let Target::User(user) = &target
        {
            let line = format!(
                "{user} has never logged in. What you type is kept until then; in another terminal: {}",
                self.access.chat_command(user)
            );
            return match self.absent.insert(target, Instant::now() + ASK_AGAIN_AFTER) {
                None => self.notice(&line),
                Some(_) => Ok(()),
            };
        }
        let failure = problem::chat(&self.access, &target, refusal);
        self.unshown.retain(|(_, draft)| draft.to != target);
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
        self.failed += 1;
        self.screen.show(Tone::Own, &format!("✗ not sent: {} ({})", printable(text), problem::reason(refusal)))
    }

    /// Shows what is not stored after a moment, so that a typed line never just disappears.
    fn show_waiting(&mut self) -> anyhow::Result<()> {
        // While the first connection is being made nobody waits yet.
        let due = |since: Instant, down: bool| down || since.elapsed() >= SHOWN_AS_WAITING_AFTER;
        let down = self.said_down;
        let mut shown: Vec<(Target, String)> = Vec::new();
        for message in self.under_way.values_mut() {
            if !message.shown_waiting && due(message.typed_at, down) {
                message.shown_waiting = true;
                shown.push((message.to.clone(), message.text.clone()));
            }
        }
        let (now_due, later) = std::mem::take(&mut self.unshown).into_iter().partition(|(since, _)| due(*since, down));
        self.unshown = later;
        shown.extend(Vec::into_iter(now_due).map(|(_, draft)| (draft.to, draft.text)));
        for (to, text) in shown {
            let whom = if self.absent.contains_key(&to) { to.to_string() } else { "the server".to_owned() };
            self.screen.show(Tone::Own, &lines::waiting(&text, &whom))?;
        }
        Ok(())
    }

    /// Forgets what was typed to those who are not there.
    fn drop_drafts(&mut self) -> anyhow::Result<()> {
        let mut dropped = 0;
        for target in self.absent.keys() {
            dropped += self.state.drop_drafts(target)?.len();
            self.unshown.retain(|(_, draft)| draft.to != *target);
        }
        self.notice(&format!("{} dropped", lines::messages(dropped)))
    }

    fn tell_who(&mut self) -> anyhow::Result<()> {
        let state = if self.link.is_up() { "logged in" } else { "not connected" };
        self.notice(&format!(
            "you are {}, device {}, {state} at {}",
            self.access.user, self.access.device, self.access.server
        ))?;
        match self.current.clone() {
            None => self.notice("you talk to nobody; /to NAME begins a chat")?,
            Some(target) => {
                let id = self.ids.get(&target).map_or(String::new(), |&chat| format!(" (chat {})", chat_text(chat)));
                self.notice(&format!("you talk to {}{id}", self.label(&target)))?;
            }
        }
        let waiting = self.kept();
        if waiting > 0 {
            self.notice(&format!("{} {} not stored yet", lines::messages(waiting), lines::is_are(waiting)))?;
        }
        Ok(())
    }

    /// What a target is called: a group by its title once that is known.
    fn label(&self, target: &Target) -> String {
        match target {
            Target::User(user) => user.clone(),
            Target::Chat(chat) => self
                .state
                .chat(chat)
                .map_or_else(|| format!("chat {}", &chat[..8]), |known| printable(&known.name).into_owned()),
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

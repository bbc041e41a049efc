//! The life of one small disk: a server, devices that talk, one of them away, and now and then no space at all.
//!
//! Each fill-up goes until every sender is refused, and then all else has to go on: who is there is given what was acknowledged,
//! and what they acknowledge is committed. Then space returns, for others give it back or the device that was away fetches its
//! messages, and sends have to be taken again by the same process. Some servers are killed on the way, and the next one starts
//! without space.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use anyhow::Context;
use rustix::event::{PollFd, PollFlags};
use whimbrel_client::{ChatKind, Event};
use whimbrel_wire::Code;

use super::space::{Ballast, Want, free_bytes};
use crate::cli::last_lines;
use crate::device::{Device, unexpected};
use crate::ledger::{DeviceId, Finding, Given, Kind, Ledger, MessageId};
use crate::rng::Rng;
use crate::server::{PATIENCE, Server, Setting, Started, token, wait};

/// Users, each with one device.
const USERS: [&str; 4] = ["alice", "bob", "carol", "dave"];

/// The one that is away while the disk fills.
const AWAY: DeviceId = 2;

/// Those that send.
const SENDERS: [DeviceId; 2] = [0, 3];

/// Who makes each chat, the users besides, and whether the one that is away is in it.
const CHATS: [(DeviceId, &[&str]); 4] =
    [(0, &["bob"]), (0, &["carol"]), (3, &["carol"]), (3, &["alice", "bob", "carol"])];

/// Sends of a device that are unanswered.
const WINDOW: usize = 6;

/// A device is taken for refused when it was so often since the last of its sends was taken.
const REFUSED: u64 = 8;

/// After space has returned a device is refused at most so often before one of its sends is taken. The server looks for space
/// every second; a session tries each of its chats again after a fifth of a second at first, and then ever later.
const RETRIES_MAX: u64 = 100;

/// The same after the device that was away has returned, with all that it has to fetch and the log to forget first.
const DRAIN_RETRIES_MAX: u64 = 1000;

/// Before each fill-up so much is free: what was delivered is gone from the disk, but for segments that are used again.
const FREE_BYTES: u64 = 4 << 20;

/// Payloads have so many bytes: a segment has room for some dozens.
const PAYLOAD: (u64, u64) = (2_000, 40_000);

/// Somebody else takes the rest of the disk after so many acknowledgements.
const BALLAST_AFTER: (u64, u64) = (1, 60);

/// How often the server is killed, in a thousand: before it refuses, and while it does.
const KILLED_EARLY_PER_MILLE: u64 = 200;
const KILLED_FULL_PER_MILLE: u64 = 300;

/// How many times in a row while it does: no start may use up what is kept for what was accepted.
const KILLS_FULL: (u64, u64) = (1, 6);

/// Of the server under test.
const SEGMENT_SIZE: &str = "1MiB";
const FORGET_AFTER: &str = "1s";

/// How often it is looked whether the program was interrupted, and whether acknowledgements are committed.
const LOOK_AGAIN: Duration = Duration::from_millis(20);

/// Lines of the server's log that a finding comes with.
const LOG_LINES: usize = 30;

/// What can be planted.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
pub(crate) enum Fault {
    /// Space is said to have returned, and has not
    Kept,
}

/// What a life is given.
#[derive(Clone, Copy)]
pub(crate) struct Plan<'a> {
    pub(crate) seed: u64,
    pub(crate) fault: Option<Fault>,
    pub(crate) fills: u64,
    pub(crate) program: &'a Path,
    /// On a disk that has space.
    pub(crate) directory: &'a Path,
    /// The small one.
    pub(crate) space: &'a Path,
    pub(crate) is_interrupted: &'a dyn Fn() -> bool,
}

/// Somebody wants this program to end.
#[derive(Debug, thiserror::Error)]
#[error("interrupted")]
pub(crate) struct Interrupted;

/// What came of it.
#[derive(Clone, Debug, Default)]
pub(crate) struct Story {
    pub(crate) fills: u64,
    pub(crate) by_messages: u64,
    pub(crate) by_bytes: u64,
    pub(crate) by_files: u64,
    pub(crate) kills: u64,
    /// Starts of a server while no space was left.
    pub(crate) starts_full: u64,
    /// Sends refused for want of space, and for other reasons that pass.
    pub(crate) refused: u64,
    pub(crate) overloaded: u64,
    pub(crate) sent: u64,
    pub(crate) acknowledged: u64,
    pub(crate) delivered: u64,
    /// Most refusals of a device after space returned, or the one that was away, until a send of it was taken.
    pub(crate) retries_max: u64,
    pub(crate) drain_retries_max: u64,
    pub(crate) finding: Option<Finding>,
    /// The last of the server's log, if something was found.
    pub(crate) log: String,
}

struct Chat {
    maker: DeviceId,
    members: BTreeSet<DeviceId>,
    /// Once it is made.
    id: Option<u128>,
}

/// What was said about a device's sends since it was last looked at.
#[derive(Clone, Copy, Debug, Default)]
struct Heard {
    /// Refused for want of space since one was taken.
    refused: u64,
    /// Refused for want of space before the first was taken.
    refused_first: u64,
    /// One was taken.
    taken: bool,
}

struct Life<'a> {
    plan: Plan<'a>,
    chance: Rng,
    server: Server,
    address: String,
    devices: Vec<Device>,
    heard: [Heard; USERS.len()],
    chats: Vec<Chat>,
    ledger: Ledger,
    story: Story,
}

/// Lives it. An error is no finding, but a test that could not be made.
pub(crate) fn live(plan: Plan<'_>) -> anyhow::Result<Story> {
    let (server, address) = match start(&plan)? {
        (server, Started::Ready(address)) => (server, address),
        (_, Started::Refused(finding)) => anyhow::bail!("on an empty disk the server does not start: {finding}"),
        (_, Started::PowerFailed) => unreachable!("there is no power to fail"),
    };
    let mut life = Life {
        plan,
        chance: Rng::new(plan.seed),
        server,
        address,
        devices: Vec::new(),
        heard: Default::default(),
        chats: Vec::new(),
        ledger: Ledger::new(plan.seed, USERS.len()),
        story: Story::default(),
    };
    let lived = life.fill_ups();
    let mut story = life.story;
    story.sent = life.ledger.sent();
    story.acknowledged = life.ledger.acknowledged;
    story.delivered = life.ledger.given;
    // The disk can be unmounted once it is gone.
    drop(life.server);
    if let Err(error) = lived {
        story.finding = Some(error.downcast::<Finding>()?);
        story.log = last_lines(&log(&plan), LOG_LINES)?;
    }
    Ok(story)
}

/// On the disk that fills, for that is where many have it.
fn log(plan: &Plan<'_>) -> PathBuf {
    plan.space.join("server.log")
}

fn start(plan: &Plan<'_>) -> anyhow::Result<(Server, Started)> {
    let mut server = Server::start(&Setting {
        program: plan.program,
        data: &plan.space.join("data"),
        log: &log(plan),
        segment_size: SEGMENT_SIZE,
        forget_after: FORGET_AFTER,
        machine: None,
    })?;
    let started = server.wait_until_ready()?;
    Ok((server, started))
}

impl Life<'_> {
    fn fill_ups(&mut self) -> anyhow::Result<()> {
        self.make_devices()?;
        self.connect(|_| true)?;
        for (maker, users) in CHATS {
            self.make_chat(maker, users);
        }
        self.run("chats", |life| life.chats.iter().all(|it| it.id.is_some()) && life.is_settled())?;
        while self.story.fills < self.plan.fills {
            self.fill_up()?;
            self.story.fills += 1;
            if self.story.fills.is_multiple_of(10) {
                let Story { fills, refused, .. } = self.story;
                eprintln!(
                    "{fills} fill-ups, {} acknowledged, {refused} refused, nothing lost",
                    self.ledger.acknowledged
                );
            }
        }
        self.end()
    }

    /// Fills the disk and has space return.
    fn fill_up(&mut self) -> anyhow::Result<()> {
        let space = self.plan.space;
        self.run("the log to let go of what was delivered", |_| {
            free_bytes(space).is_ok_and(|free| free >= FREE_BYTES)
        })?;
        let first = self.ledger.next_id();
        self.devices[AWAY].disconnect();
        let want = [None, Some(Want::Bytes), Some(Want::Bytes), Some(Want::Files)][self.chance.index(4)];
        *match want {
            None => &mut self.story.by_messages,
            Some(Want::Bytes) => &mut self.story.by_bytes,
            Some(Want::Files) => &mut self.story.by_files,
        } += 1;
        let mut ballast = None;
        if let Some(want) = want {
            let (low, high) = BALLAST_AFTER;
            let enough = self.ledger.acknowledged + self.chance.between(low, high);
            self.run_with("the first sends", Life::say_more, |life| life.ledger.acknowledged >= enough)?;
            let taken = Ballast::new(self.plan.space, want)?;
            self.run("somebody else to take the rest", |_| taken.is_full())?;
            ballast = Some(taken);
            if self.chance.per_mille(KILLED_EARLY_PER_MILLE) {
                self.kill_and_start()?;
            }
        }
        self.heard = Default::default();
        let refused = |life: &Life<'_>| SENDERS.iter().all(|&sender| life.heard[sender].refused >= REFUSED);
        self.run_with("refusals", Life::say_more, refused)?;
        self.check_service(first)?;
        if self.chance.per_mille(KILLED_FULL_PER_MILLE) {
            let (low, high) = KILLS_FULL;
            for _ in 0..self.chance.between(low, high) {
                self.kill_and_start()?;
                self.check_service(first)?;
            }
        }
        // Who waits for space is refused, is refused, and is taken.
        self.heard = Default::default();
        match ballast {
            Some(ballast) if self.chance.per_mille(500) => {
                let kept = match self.plan.fault {
                    Some(Fault::Kept) => Some(ballast),
                    None => ballast.release().map(|()| None)?,
                };
                let most = self.until_taken(RETRIES_MAX)?;
                drop(kept);
                self.story.retries_max = self.story.retries_max.max(most);
                self.connect(|device| device == AWAY)?;
            }
            ballast => {
                self.connect(|device| device == AWAY)?;
                let most = self.until_taken(DRAIN_RETRIES_MAX)?;
                self.story.drain_retries_max = self.story.drain_retries_max.max(most);
                ballast.map(Ballast::release).transpose()?;
            }
        }
        self.settle()
    }

    /// While nothing new is taken, all else goes on.
    fn check_service(&mut self, first: MessageId) -> anyhow::Result<()> {
        let here: BTreeSet<DeviceId> = (0..USERS.len()).filter(|&device| device != AWAY).collect();
        self.run("deliveries to who is there, on a full disk", |life| life.ledger.has_come_to(first, &here))?;
        // The one that never sends is logged in again, to see that its acknowledgements are committed.
        let reader = 1;
        self.devices[reader].disconnect();
        self.check_floor(reader)?;
        self.connect(|device| device == reader)
    }

    /// Until each sender that waits has had a send taken. The most refusals that one had before.
    fn until_taken(&mut self, bound: u64) -> anyhow::Result<u64> {
        let waits: Vec<DeviceId> =
            SENDERS.into_iter().filter(|&sender| self.devices[sender].session.unanswered_sends() > 0).collect();
        let refusals =
            |life: &Life<'_>| waits.iter().map(|&sender| life.heard[sender].refused_first).max().unwrap_or(0);
        self.run("sends to be taken again", |life| {
            waits.iter().all(|&sender| life.heard[sender].taken) || refusals(life) > bound
        })?;
        let most = refusals(self);
        if most > bound {
            let what = format!("space has returned, and a device was refused more than {bound} times");
            return Err(Finding::new(Kind::Refused, what).into());
        }
        Ok(most)
    }

    fn kill_and_start(&mut self) -> anyhow::Result<()> {
        self.server.kill()?;
        self.story.kills += 1;
        let connected: Vec<bool> = self.devices.iter().map(|device| device.socket().is_some()).collect();
        for device in &mut self.devices {
            // What the dead server had still said counts. A connection that is cut in the middle of a frame ends so.
            let _ = device.read();
            device.disconnect();
        }
        self.hear()?;
        self.story.starts_full += 1;
        let (server, started) = start(&self.plan)?;
        self.server = server;
        match started {
            Started::Ready(address) => self.address = address,
            Started::PowerFailed => unreachable!("there is no power to fail"),
            Started::Refused(finding) => return Err(finding.into()),
        }
        self.connect(|device| connected[device])
    }

    /// The devices get their tokens by the key that the server made.
    fn make_devices(&mut self) -> anyhow::Result<()> {
        let directory = self.plan.directory.join("tokens");
        let keys = directory.join("keys");
        std::fs::create_dir_all(&keys).with_context(|| format!("make {}", keys.display()))?;
        std::fs::copy(self.plan.space.join("data/keys/dev.secret"), keys.join("dev.secret"))
            .context("copy the development key")?;
        for user in USERS {
            let mut device = Device::new(user, 1, token(self.plan.program, &directory, user, 1)?);
            device.window = WINDOW;
            self.devices.push(device);
        }
        Ok(())
    }

    fn connect(&mut self, which: impl Fn(DeviceId) -> bool) -> anyhow::Result<()> {
        let which: Vec<DeviceId> = (0..self.devices.len()).filter(|&device| which(device)).collect();
        for &device in &which {
            self.devices[device].connect(&self.address)?;
        }
        self.run("logins", |life| which.iter().all(|&device| life.devices[device].session.is_ready()))
    }

    fn make_chat(&mut self, maker: DeviceId, users: &[&str]) {
        let place = self.chats.len();
        let member = |device: &DeviceId| users.contains(&USERS[*device]) || *device == maker;
        let members = (0..USERS.len()).filter(member).collect();
        let (kind, title) = if users.len() == 1 { (ChatKind::Direct, "") } else { (ChatKind::Group, "Waders") };
        let device = &mut self.devices[maker];
        let question = device.session.create_chat(kind, users, title, self.chance.next());
        device.asked.insert(question, place);
        self.chats.push(Chat { maker, members, id: None });
    }

    fn is_settled(&self) -> bool {
        self.ledger.is_acknowledged() && self.devices.iter().all(Device::is_settled)
    }

    /// Brings all to rest and checks it. What is sent last in each chat has arrived: then everything before has, or is lost.
    fn settle(&mut self) -> anyhow::Result<()> {
        self.run("acknowledgements", Life::is_settled)?;
        let mut last = Vec::new();
        for place in 0..self.chats.len() {
            // Two of different users, for a message does not come to the device that sent it.
            let members = &self.chats[place].members;
            for closer in [members.first().copied(), members.last().copied()].into_iter().flatten() {
                last.push(self.send(closer, place, 16)?);
            }
        }
        self.run("what was sent last", |life| {
            life.ledger.is_acknowledged() && last.iter().all(|&id| life.ledger.has_arrived(id))
        })?;
        Ok(self.ledger.check_arrival()?)
    }

    /// All inboxes are empty, and it stops when it is asked to.
    fn end(&mut self) -> anyhow::Result<()> {
        self.devices.iter_mut().for_each(Device::disconnect);
        (0..self.devices.len()).try_for_each(|device| self.check_empty(device))?;
        match self.server.ask_to_stop()? {
            Some(status) if status.success() => Ok(()),
            Some(status) => Err(Finding::new(Kind::Ended, format!("after SIGTERM: {status}")).into()),
            None => Err(Finding::new(Kind::Stuck, "it does not end after SIGTERM").into()),
        }
    }

    fn say_more(&mut self) -> anyhow::Result<()> {
        for sender in SENDERS {
            let device = &self.devices[sender];
            let knows: Vec<usize> = device.knows.iter().copied().collect();
            for _ in device.session.unanswered_sends()..device.window {
                let place = knows[self.chance.index(knows.len())];
                let (low, high) = PAYLOAD;
                let bytes = self.chance.between(low, high) as usize;
                self.send(sender, place, bytes)?;
            }
        }
        Ok(())
    }

    fn send(&mut self, from: DeviceId, place: usize, bytes: usize) -> anyhow::Result<MessageId> {
        let chat = &self.chats[place];
        let id = chat.id.context("a chat that a device knows is made")?;
        let recipients = chat.members.iter().copied().filter(|&member| member != from).collect();
        let payload = self.ledger.next_payload(bytes);
        let number = self.devices[from].session.send(id, &payload).context("give a message to a session")?;
        Ok(self.ledger.send(from, number.client_seq, id, recipients))
    }

    fn run(&mut self, what: &str, done: impl Fn(&Self) -> bool) -> anyhow::Result<()> {
        self.run_with(what, |_| Ok(()), done)
    }

    /// Goes on until `done`.
    fn run_with(
        &mut self,
        what: &str,
        more: impl Fn(&mut Self) -> anyhow::Result<()>,
        done: impl Fn(&Self) -> bool,
    ) -> anyhow::Result<()> {
        let begun = Instant::now();
        loop {
            self.hear()?;
            more(self)?;
            for device in 0..self.devices.len() {
                if !self.devices[device].write() {
                    return Err(self.lost_connection(device)?.into());
                }
            }
            // What is acknowledged has gone out with the rest.
            if done(self) {
                return Ok(());
            }
            if (self.plan.is_interrupted)() {
                return Err(Interrupted.into());
            }
            if begun.elapsed() > PATIENCE {
                return Err(Finding::new(Kind::Stuck, format!("waited {} s for {what}", PATIENCE.as_secs())).into());
            }
            self.wait()?;
            for device in 0..self.devices.len() {
                match self.devices[device].read() {
                    Ok(true) => {}
                    Ok(false) => return Err(self.lost_connection(device)?.into()),
                    Err(error) => {
                        let what = format!("{}: {error}", self.devices[device].name());
                        return Err(Finding::new(Kind::Wrong, what).into());
                    }
                }
            }
        }
    }

    /// Waits for a socket, for a session's clock, or for the server to end.
    fn wait(&mut self) -> anyhow::Result<()> {
        let mut fds = vec![PollFd::new(self.server.ended(), PollFlags::IN)];
        for device in &self.devices {
            if let Some(socket) = device.socket() {
                let flags = if device.has_output() { PollFlags::IN | PollFlags::OUT } else { PollFlags::IN };
                fds.push(PollFd::new(socket, flags));
            }
        }
        let patience = self.devices.iter().map(Device::patience).min().unwrap_or(LOOK_AGAIN).min(LOOK_AGAIN);
        wait(&mut fds, patience)?;
        let ended = !fds[0].revents().is_empty();
        if ended { Err(self.ended()?.into()) } else { Ok(()) }
    }

    /// The server has no reason to let a connection go.
    fn lost_connection(&mut self, device: DeviceId) -> anyhow::Result<Finding> {
        let mut fds = [PollFd::new(self.server.ended(), PollFlags::IN)];
        if wait(&mut fds, Duration::from_millis(200))? > 0 {
            return self.ended();
        }
        let name = self.devices[device].name();
        Ok(Finding::new(Kind::Ended, format!("the server let the connection of {name} go")))
    }

    fn ended(&mut self) -> anyhow::Result<Finding> {
        let how = self.server.status()?.map_or_else(|| "and is not gone yet".to_owned(), |status| status.to_string());
        Ok(Finding::new(Kind::Ended, format!("the server ended by itself: {how}")))
    }

    fn hear(&mut self) -> anyhow::Result<()> {
        for device in 0..self.devices.len() {
            for code in std::mem::take(&mut self.devices[device].refusals) {
                self.on_refusal(device, code);
            }
            while let Some(event) = self.devices[device].event() {
                self.on_event(device, event)?;
            }
        }
        Ok(())
    }

    fn on_refusal(&mut self, device: DeviceId, code: Code) {
        match code {
            Code::StorageFull => {
                self.story.refused += 1;
                let heard = &mut self.heard[device];
                heard.refused += 1;
                heard.refused_first += u64::from(!heard.taken);
            }
            // What follows one that was refused is out of order.
            Code::OutOfOrder => {}
            _ => self.story.overloaded += 1,
        }
    }

    fn on_event(&mut self, device: DeviceId, event: Event) -> anyhow::Result<()> {
        match event {
            Event::Welcome(_) | Event::Pong { .. } => Ok(()),
            Event::Delivered(delivery) => {
                self.ledger.give(device, Given::of(&delivery))?;
                self.devices[device].session.ack(delivery.inbox_seq);
                Ok(())
            }
            Event::Sent(receipt) => {
                let heard = &mut self.heard[device];
                (heard.refused, heard.taken) = (0, true);
                Ok(self.ledger.acknowledge(device, receipt.client_seq, receipt.chat_seq)?)
            }
            Event::Chat { correlation, facts } => self.on_chat(device, correlation, facts.chat),
            other => Err(unexpected(&self.devices[device].name(), &other).into()),
        }
    }

    /// A chat was made, or one of its members asked about it.
    fn on_chat(&mut self, device: DeviceId, correlation: u64, chat: u128) -> anyhow::Result<()> {
        let place = self.devices[device].asked.remove(&correlation).context("an answer to what was asked")?;
        self.devices[device].knows.insert(place);
        let it = &mut self.chats[place];
        if device == it.maker && it.id.is_none() {
            it.id = Some(chat);
            for &member in it.members.iter().filter(|&&member| member != device) {
                let device = &mut self.devices[member];
                let question = device.session.chat_info(chat);
                device.asked.insert(question, place);
            }
        }
        Ok(())
    }

    /// A device of the same name that remembers nothing finds nothing waiting.
    fn check_empty(&mut self, of: DeviceId) -> anyhow::Result<()> {
        let head = self.check_floor(of)?;
        let expected = self.ledger.head(of);
        if head != expected {
            let name = self.devices[of].name();
            let what = format!("{name} had {expected} places of its inbox, and the server knows {head}");
            return Err(Finding::new(Kind::Lost, what).into());
        }
        Ok(())
    }

    /// What a device has acknowledged is committed; newer places may have come meanwhile. The head of its inbox. It may have to be
    /// looked at more than once, for that is done a while after it was received.
    fn check_floor(&mut self, of: DeviceId) -> anyhow::Result<u64> {
        let begun = Instant::now();
        let expected = self.ledger.head(of);
        loop {
            let mut device = self.devices[of].anew();
            device.connect(&self.address)?;
            let welcome = loop {
                anyhow::ensure!(device.write(), "the connection of {} is lost", device.name());
                if let Some(Event::Welcome(welcome)) = device.event() {
                    break welcome;
                }
                let socket = device.socket().context("it is connected")?;
                let mut fds = [PollFd::new(socket, PollFlags::IN), PollFd::new(self.server.ended(), PollFlags::IN)];
                if wait(&mut fds, PATIENCE)? == 0 || !device.read().context("read a welcome")? {
                    return Err(Finding::new(Kind::Refused, format!("{} cannot log in", device.name())).into());
                }
            };
            let (name, floor, head) = (device.name(), welcome.floor, welcome.head);
            drop(device);
            if head < expected {
                let what = format!("{name} had {expected} places of its inbox, and the server knows {head}");
                return Err(Finding::new(Kind::Lost, what).into());
            }
            if floor >= expected {
                return Ok(head);
            }
            if begun.elapsed() > PATIENCE {
                let what = format!("the inbox of {name} has {} places that were acknowledged", expected - floor);
                return Err(Finding::new(Kind::Stuck, what).into());
            }
            // The others' sessions go on meanwhile.
            self.run_for(LOOK_AGAIN)?;
        }
    }

    fn run_for(&mut self, time: Duration) -> anyhow::Result<()> {
        let begun = Instant::now();
        self.run("a moment to pass", |_| begun.elapsed() >= time)
    }
}

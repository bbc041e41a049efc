//! The life of one disk under one seed: servers that start on it, devices that talk, power that fails.
//!
//! After each start everything is brought to rest and checked: what was sent is acknowledged at last, and what was
//! acknowledged has come to every device once, in order. Then the devices talk until the power fails again. Now and then it
//! fails already while the server starts, or while all is brought to rest. And now and then a write of the log fails before the
//! power does: then the server has to end by itself, and to write nothing more there.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};
use std::time::Instant;

use anyhow::Context;
use rustix::event::{PollFd, PollFlags};
use whimbrel_client::{ChatKind, Event, Receipt};

use crate::device::{Device, unexpected};
use crate::disk::{Damage, Disk};
use crate::fuse::{Fault, Machine};
use crate::ledger::{DeviceId, Finding, Given, Kind, Ledger, MessageId};
use crate::mount::Mounted;
use crate::plant::Plant;
use crate::rng::Rng;
use crate::server::{PATIENCE, Server, Setting, Started, token, wait};

/// Users and their devices.
const DEVICES: [(&str, u32); 6] = [("alice", 1), ("alice", 2), ("bob", 1), ("carol", 1), ("dave", 1), ("erin", 1)];

/// Chats to begin with: who makes them and the users besides.
const CHATS: [(DeviceId, &[&str]); 3] = [(0, &["bob"]), (3, &["dave"]), (2, &["alice", "carol", "dave", "erin"])];

/// Changes and flushes after which the power fails: while the server starts, and while the devices talk.
const EARLY: (u64, u64) = (1, 60);
const LATER: (u64, u64) = (1, 1_200);

/// How often it fails early, in a thousand.
const EARLY_PER_MILLE: u64 = 300;

/// How often only the server dies, in a thousand: then all that was written is still read, and not yet stable.
const ONLY_KILLED_PER_MILLE: u64 = 200;

/// How often a write of the log fails first, in a thousand, and the code that the server ends with then.
const BROKEN_PER_MILLE: u64 = 150;
const BROKEN_CODE: i32 = 74;

/// Payloads have so many bytes; a few have many more, so that batches have many pages and segments fill.
const PAYLOAD: (u64, u64) = (4, 1_500);
const PAYLOAD_LARGE: (u64, u64) = (8_000, 40_000);
const LARGE_PER_MILLE: u64 = 50;

/// Of the server under test: segments of the log, of which many are made, and the usual time to forget.
const SEGMENT_SIZE: &str = "512KiB";
const FORGET_AFTER: &str = "10m";

/// What a life is given.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Plan<'a> {
    pub(crate) seed: u64,
    pub(crate) cuts: u64,
    pub(crate) plant: Option<Plant>,
    /// A write of the log fails each time that the power would fail late.
    pub(crate) errors: bool,
    pub(crate) program: &'a Path,
    /// An empty directory on a disk that stays.
    pub(crate) directory: &'a Path,
}

/// What came of it.
#[derive(Clone, Debug, Default)]
pub(crate) struct Story {
    pub(crate) cuts: u64,
    /// How often only the server died.
    pub(crate) kills: u64,
    /// Ends of either kind before the server was ready.
    pub(crate) early: u64,
    /// How often a write of the log failed before that, and the server ended by itself.
    /// In the order of [`Fault::ALL`].
    pub(crate) broken: [u64; Fault::ALL.len()],
    pub(crate) sent: u64,
    pub(crate) acknowledged: u64,
    pub(crate) delivered: u64,
    pub(crate) chats: u64,
    /// Sends that were stored before a cut and acknowledged after it.
    pub(crate) repeated: u64,
    pub(crate) operations: u64,
    pub(crate) damage: Damage,
    pub(crate) finding: Option<Finding>,
}

struct Chat {
    maker: DeviceId,
    members: BTreeSet<DeviceId>,
    /// Once it is made.
    id: Option<u128>,
}

/// How far it came.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Went {
    Done,
    PowerFailed,
    /// A write of the log failed, and the server ended.
    Broken,
}

struct Life<'a> {
    plan: Plan<'a>,
    /// When and how the power fails.
    fate: Rng,
    /// Whether and how a write of the log fails first.
    breaks: Rng,
    /// What the devices do. A stream of its own, for how much is drawn from it depends on how quick all is.
    chance: Rng,
    machine: Machine,
    devices: Vec<Device>,
    chats: Vec<Chat>,
    ledger: Ledger,
    /// The development key that the tokens are made with.
    key: Vec<u8>,
    /// Nothing more is to go wrong with connections than what a stop does.
    stopping: bool,
    story: Story,
}

/// Lives it. An error is no finding, but a test that could not be made.
pub(crate) fn live(plan: Plan<'_>) -> anyhow::Result<Story> {
    let mut fate = Rng::new(plan.seed);
    let machine = Machine::new(Disk::new(fate.next(), plan.plant)).context("make an eventfd")?;
    let mut life = Life {
        ledger: Ledger::new(plan.seed, DEVICES.len()),
        plan,
        chance: fate.fork(1),
        breaks: Rng::new(!plan.seed),
        fate,
        machine,
        devices: Vec::new(),
        chats: Vec::new(),
        key: Vec::new(),
        stopping: false,
        story: Story::default(),
    };
    let lived = life.rounds();
    life.story.sent = life.ledger.sent();
    life.story.acknowledged = life.ledger.acknowledged;
    life.story.delivered = life.ledger.given;
    life.story.chats = life.chats.iter().filter(|chat| chat.id.is_some()).count() as u64;
    life.story.operations += life.machine.operations();
    match lived {
        Ok(()) => {}
        Err(error) => life.story.finding = Some(error.downcast::<Finding>()?),
    }
    Ok(life.story)
}

impl Life<'_> {
    fn rounds(&mut self) -> anyhow::Result<()> {
        while self.story.cuts < self.plan.cuts {
            let mut torn = self.fate.fork(2);
            let only_killed = self.fate.per_mille(ONLY_KILLED_PER_MILLE);
            self.round()?;
            self.story.operations += self.machine.operations();
            let disk = if only_killed {
                self.story.kills += 1;
                let mut disk = self.machine.look(Disk::clone);
                if self.breaks.per_mille(500) {
                    disk.evict();
                }
                disk
            } else {
                let (disk, damage) = self.machine.look(|disk| disk.after_cut(&mut torn));
                self.story.cuts += 1;
                self.story.damage += damage;
                disk
            };
            self.machine = Machine::new(disk).context("make an eventfd")?;
        }
        self.last_round()
    }

    /// One server, until the power fails.
    fn round(&mut self) -> anyhow::Result<()> {
        let early = self.fate.per_mille(EARLY_PER_MILLE);
        let (low, high) = if early { EARLY } else { LATER };
        let after = self.fate.between(low, high);
        let breaks = self.breaks.per_mille(if self.plan.errors { 1000 } else { BROKEN_PER_MILLE });
        let how = self.breaks.index(Fault::ALL.len());
        // What a lie leads to is told apart best without.
        let fault = (breaks && !early && self.plan.plant.is_none()).then_some(Fault::ALL[how]);
        if early {
            self.machine.fail_after(Some(after));
        }
        let mounted = self.mount()?;
        let mut server = self.start()?;
        match self.until_rest(&mut server)? {
            Went::PowerFailed => {}
            Went::Broken => anyhow::bail!("a write failed, and was not to"),
            Went::Done => {
                match fault {
                    Some(fault) => self.machine.break_after(after, fault),
                    None if early => {}
                    None => self.machine.fail_after(Some(after)),
                }
                if self.talk(&server)? == Went::Broken {
                    self.check_broken(how, &mut server)?;
                }
            }
        }
        server.kill()?;
        drop(server);
        self.hear_the_last()?;
        mounted.unmount()
    }

    /// The server, which has ended, said why.
    fn check_broken(&mut self, how: usize, server: &mut Server) -> anyhow::Result<()> {
        let status = server.status()?.context("the server has ended")?;
        if status.code() != Some(BROKEN_CODE) {
            let what = format!("after a failed {} of its log: {status}, and not {BROKEN_CODE}", Fault::ALL[how].name());
            return Err(Finding::new(Kind::Ended, what).into());
        }
        self.story.broken[how] += 1;
        Ok(())
    }

    /// One server to the end: all inboxes are empty, and it stops when it is asked to.
    fn last_round(&mut self) -> anyhow::Result<()> {
        let mounted = self.mount()?;
        let mut server = self.start()?;
        let address = match self.until_rest_at(&mut server)? {
            Some(address) => address,
            None => anyhow::bail!("the power failed, and was not to"),
        };
        self.stopping = true;
        self.devices.iter_mut().for_each(Device::disconnect);
        for device in 0..self.devices.len() {
            self.check_empty(device, &address, &server)?;
        }
        match server.ask_to_stop()? {
            Some(status) if status.success() => mounted.unmount(),
            Some(status) => Err(Finding::new(Kind::Ended, format!("after SIGTERM: {status}")).into()),
            None => Err(Finding::new(Kind::Stuck, "it does not end after SIGTERM").into()),
        }
    }

    fn mount(&self) -> anyhow::Result<Mounted> {
        let path = self.plan.directory.join("disk");
        if !path.exists() {
            std::fs::create_dir(&path).with_context(|| format!("make {}", path.display()))?;
        }
        Mounted::new(&self.machine, &path).with_context(|| format!("mount on {}", path.display()))
    }

    fn start(&self) -> anyhow::Result<Server> {
        let directory = self.plan.directory;
        Server::start(&Setting {
            program: self.plan.program,
            data: &directory.join("disk/data"),
            log: &server_log(directory),
            segment_size: SEGMENT_SIZE,
            forget_after: FORGET_AFTER,
            machine: Some(&self.machine),
        })
    }

    fn until_rest(&mut self, server: &mut Server) -> anyhow::Result<Went> {
        let address = self.until_rest_at(server)?;
        Ok(if address.is_some() { Went::Done } else { Went::PowerFailed })
    }

    /// From the start of a server until all is acknowledged and has arrived. The server's address, unless the power fails.
    fn until_rest_at(&mut self, server: &mut Server) -> anyhow::Result<Option<String>> {
        let address = match server.wait_until_ready()? {
            Started::Ready(address) => address,
            Started::PowerFailed => {
                self.story.early += 1;
                return Ok(None);
            }
            Started::Refused(Finding { kind, what }) => {
                let log = std::fs::read_to_string(server_log(self.plan.directory)).context("read the server's log")?;
                let said = log.lines().last().unwrap_or("nothing");
                return Err(Finding::new(kind, format!("{what}; it said: {said}")).into());
            }
        };
        self.check_key()?;
        for device in &mut self.devices {
            if device.is_settled() && self.chance.per_mille(200) {
                device.forget();
            }
            device.connect(&address)?;
        }
        if self.run(server, "logins", |life| life.devices.iter().all(|it| it.session.is_ready()))? != Went::Done {
            return Ok(None);
        }
        self.ask_for_chats();
        let went = self.settle(server)?;
        Ok((went == Went::Done).then_some(address))
    }

    /// The key that the server made is there after each cut. At the first server the devices get their tokens by it.
    fn check_key(&mut self) -> anyhow::Result<()> {
        let read = |disk: &Disk| disk.contents("data/keys/dev.secret").map(<[u8]>::to_vec);
        let key = self.machine.look(read).context("the server made a key")?;
        if self.devices.is_empty() {
            let directory = self.plan.directory.join("tokens");
            let keys = directory.join("keys");
            std::fs::create_dir_all(&keys).with_context(|| format!("make {}", keys.display()))?;
            std::fs::write(keys.join("dev.secret"), &key).context("copy the development key")?;
            for (user, number) in DEVICES {
                self.devices.push(Device::new(user, number, token(self.plan.program, &directory, user, number)?));
            }
            self.key = key;
        } else if self.key != key {
            return Err(Finding::new(Kind::Lost, "the development key is another one after the cut").into());
        }
        Ok(())
    }

    /// Chats are made when all have logged in, for who has no device cannot be a member; what a device does not know of them
    /// it asks.
    fn ask_for_chats(&mut self) {
        if self.chats.is_empty() {
            for (maker, users) in CHATS {
                self.make_chat(maker, users);
            }
        }
        for place in 0..self.chats.len() {
            self.tell_members(place);
        }
    }

    fn make_chat(&mut self, maker: DeviceId, users: &[&str]) {
        let place = self.chats.len();
        let member = |device: &(usize, &(&str, u32))| users.contains(&device.1.0) || device.1.0 == DEVICES[maker].0;
        let members = DEVICES.iter().enumerate().filter(member).map(|(index, _)| index).collect();
        let (kind, title) = if users.len() == 1 { (ChatKind::Direct, "") } else { (ChatKind::Group, "Waders") };
        let device = &mut self.devices[maker];
        let question = device.session.create_chat(kind, users, title, self.chance.next());
        device.asked.insert(question, place);
        self.chats.push(Chat { maker, members, id: None });
    }

    /// Has the members of a chat that was made ask for its facts.
    fn tell_members(&mut self, place: usize) {
        let Chat { id: Some(id), members, .. } = &self.chats[place] else { return };
        for &member in members {
            let device = &mut self.devices[member];
            if !device.knows.contains(&place) && !device.asked.values().any(|&asked| asked == place) {
                let question = device.session.chat_info(*id);
                device.asked.insert(question, place);
            }
        }
    }

    /// Brings all to rest and checks it. What is sent last in each chat has arrived: then everything before has, or is lost.
    fn settle(&mut self, server: &Server) -> anyhow::Result<Went> {
        let at_rest = |life: &Life<'_>| life.ledger.is_acknowledged() && life.devices.iter().all(Device::is_settled);
        let went = self.run(server, "acknowledgements", at_rest)?;
        if went != Went::Done {
            return Ok(went);
        }
        let mut last = Vec::new();
        for place in 0..self.chats.len() {
            // Two of different users, for a message does not come to the device that sent it.
            let members = &self.chats[place].members;
            let closers = [members.first().copied(), members.last().copied()];
            for closer in closers.into_iter().flatten() {
                last.push(self.send(closer, place, 16)?);
            }
        }
        let arrived =
            |life: &Life<'_>| life.ledger.is_acknowledged() && last.iter().all(|&id| life.ledger.has_arrived(id));
        let went = self.run(server, "what was sent last", arrived)?;
        if went != Went::Done {
            return Ok(went);
        }
        self.ledger.check_arrival()?;
        Ok(Went::Done)
    }

    /// Talks until the power fails, or a write of the log. Somebody may be away meanwhile, and somebody makes a group.
    fn talk(&mut self, server: &Server) -> anyhow::Result<Went> {
        if self.chance.per_mille(300) {
            let away = self.chance.index(self.devices.len());
            self.devices[away].disconnect();
        }
        if self.chance.per_mille(300) {
            let maker = self.chance.index(self.devices.len());
            let others: Vec<&str> =
                ["alice", "bob", "carol"].into_iter().filter(|&it| it != DEVICES[maker].0).collect();
            self.make_chat(maker, &others);
        }
        for device in &mut self.devices {
            device.window = self.chance.between(1, 12) as usize;
        }
        self.run_with(server, "the power or a write to fail, and the server's end", Life::say_more, |_| false)
    }

    fn say_more(&mut self) -> anyhow::Result<()> {
        for sender in 0..self.devices.len() {
            let device = &self.devices[sender];
            if device.socket().is_none() || device.knows.is_empty() {
                continue;
            }
            let knows: Vec<usize> = device.knows.iter().copied().collect();
            for _ in device.session.unanswered_sends()..device.window {
                let place = knows[self.chance.index(knows.len())];
                let (low, high) = if self.chance.per_mille(LARGE_PER_MILLE) { PAYLOAD_LARGE } else { PAYLOAD };
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

    fn run(&mut self, server: &Server, what: &str, done: impl Fn(&Self) -> bool) -> anyhow::Result<Went> {
        self.run_with(server, what, |_| Ok(()), done)
    }

    /// Goes on until `done`, or until the power fails.
    fn run_with(
        &mut self,
        server: &Server,
        what: &str,
        more: impl Fn(&mut Self) -> anyhow::Result<()>,
        done: impl Fn(&Self) -> bool,
    ) -> anyhow::Result<Went> {
        let begun = Instant::now();
        loop {
            self.hear()?;
            more(self)?;
            for device in 0..self.devices.len() {
                if !self.devices[device].write() {
                    self.lost_connection(device, server)?;
                }
            }
            if self.machine.has_failed() {
                return Ok(Went::PowerFailed);
            }
            if self.machine.went_on() {
                return Err(Finding::new(Kind::WentOn, "a write of its log failed, and it writes there again").into());
            }
            if self.machine.has_broken() && server.has_ended()? {
                return Ok(Went::Broken);
            }
            if done(self) {
                return Ok(Went::Done);
            }
            if begun.elapsed() > PATIENCE {
                return Err(Finding::new(Kind::Stuck, format!("waited {} s for {what}", PATIENCE.as_secs())).into());
            }
            self.wait(server)?;
            for device in 0..self.devices.len() {
                match self.devices[device].read() {
                    Ok(true) => {}
                    Ok(false) => self.lost_connection(device, server)?,
                    Err(error) => {
                        let what = format!("{}: {error}", self.devices[device].name());
                        return Err(Finding::new(Kind::Wrong, what).into());
                    }
                }
            }
        }
    }

    /// Waits for a socket, for the power to fail, or for the server to end.
    fn wait(&self, server: &Server) -> anyhow::Result<()> {
        let mut fds =
            vec![PollFd::new(self.machine.failure(), PollFlags::IN), PollFd::new(server.ended(), PollFlags::IN)];
        for device in &self.devices {
            if let Some(socket) = device.socket() {
                let flags = if device.has_output() { PollFlags::IN | PollFlags::OUT } else { PollFlags::IN };
                fds.push(PollFd::new(socket, flags));
            }
        }
        let patience = self.devices.iter().map(Device::patience).min().unwrap_or(PATIENCE).min(PATIENCE);
        wait(&mut fds, patience)?;
        if !fds[1].revents().is_empty() && !self.machine.has_failed() && !self.machine.has_broken() {
            return Err(Finding::new(Kind::Ended, "the server ended by itself").into());
        }
        Ok(())
    }

    /// Only a server that ends lets a connection go, and it ends only when the power or a write of its log fails.
    fn lost_connection(&mut self, device: DeviceId, server: &Server) -> anyhow::Result<()> {
        self.devices[device].disconnect();
        if self.machine.has_failed() || self.machine.has_broken() {
            return Ok(());
        }
        wait(&mut [PollFd::new(server.ended(), PollFlags::IN)], std::time::Duration::ZERO)?;
        let name = self.devices[device].name();
        Err(Finding::new(Kind::Ended, format!("the server let the connection of {name} go")).into())
    }

    /// What the dead server had still said counts.
    fn hear_the_last(&mut self) -> anyhow::Result<()> {
        for device in &mut self.devices {
            // A connection that is cut in the middle of a frame ends so.
            let _ = device.read();
            device.disconnect();
        }
        self.hear()
    }

    fn hear(&mut self) -> anyhow::Result<()> {
        for device in 0..self.devices.len() {
            while let Some(event) = self.devices[device].event() {
                self.on_event(device, event)?;
            }
        }
        Ok(())
    }

    fn on_event(&mut self, device: DeviceId, event: Event) -> anyhow::Result<()> {
        match event {
            Event::Welcome(_) | Event::Pong { .. } => Ok(()),
            Event::Delivered(delivery) => {
                self.ledger.give(device, Given::of(&delivery))?;
                self.devices[device].session.ack(delivery.inbox_seq);
                Ok(())
            }
            Event::Sent(receipt) => Ok(self.on_sent(device, &receipt)?),
            Event::Chat { correlation, facts } => {
                let place = self.devices[device].asked.remove(&correlation).context("an answer to what was asked")?;
                self.devices[device].knows.insert(place);
                if device == self.chats[place].maker && self.chats[place].id.is_none() {
                    self.chats[place].id = Some(facts.chat);
                    self.tell_members(place);
                }
                Ok(())
            }
            other => Err(unexpected(&self.devices[device].name(), &other).into()),
        }
    }

    fn on_sent(&mut self, device: DeviceId, receipt: &Receipt) -> Result<(), Finding> {
        if receipt.status != whimbrel_client::SentStatus::Stored {
            self.story.repeated += 1;
        }
        self.ledger.acknowledge(device, receipt.client_seq, receipt.chat_seq)
    }

    /// A device of the same name that remembers nothing finds nothing waiting. Its acknowledgements are committed a while
    /// after they were received, so it may have to look more than once.
    fn check_empty(&mut self, of: DeviceId, address: &str, server: &Server) -> anyhow::Result<()> {
        let begun = Instant::now();
        let expected = self.ledger.head(of);
        loop {
            let mut device = self.devices[of].anew();
            device.connect(address)?;
            let welcome = loop {
                anyhow::ensure!(device.write(), "the connection of {} is lost", device.name());
                if let Some(Event::Welcome(welcome)) = device.event() {
                    break welcome;
                }
                let socket = device.socket().context("it is connected")?;
                let mut fds = [PollFd::new(socket, PollFlags::IN), PollFd::new(server.ended(), PollFlags::IN)];
                if wait(&mut fds, PATIENCE)? == 0 || !device.read().context("read a welcome")? {
                    return Err(Finding::new(Kind::Refused, format!("{} cannot log in", device.name())).into());
                }
            };
            if welcome.head != expected {
                let what = format!(
                    "{} had {expected} places of its inbox, and the server knows {}",
                    device.name(),
                    welcome.head
                );
                return Err(Finding::new(Kind::Lost, what).into());
            }
            if welcome.floor == welcome.head {
                return Ok(());
            }
            if begun.elapsed() > PATIENCE {
                let what = format!(
                    "the inbox of {} has {} places that were acknowledged",
                    device.name(),
                    expected - welcome.floor
                );
                return Err(Finding::new(Kind::Stuck, what).into());
            }
            wait(&mut [PollFd::new(server.ended(), PollFlags::IN)], LOOK_AGAIN)?;
        }
    }
}

/// How long it may take to see that acknowledgements are committed.
const LOOK_AGAIN: std::time::Duration = std::time::Duration::from_millis(20);

/// What all servers of a life log to.
pub(crate) fn server_log(directory: &Path) -> PathBuf {
    directory.join("server.log")
}

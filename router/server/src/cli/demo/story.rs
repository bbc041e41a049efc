//! The acts of the demo, in their order.

use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::{Context, bail};

use crate::cli::access::{Access, TokenSource};
use crate::cli::demo::device::{Device, Order};
use crate::cli::demo::ledger::Person;
use crate::cli::demo::process::{ServerProcess, data_dir};
use crate::cli::demo::stage::{ChatName, Seen, Stage};
use crate::cli::demo::{Latency, Patience, Timeline, quantiles};
use crate::cli::link::Link;
use crate::cli::state::Memory;
use crate::token::{DEV_EPOCH, Grant, load_dev_keys};

const NAMES: [&str; 5] = ["alice", "bob", "carol", "dave", "erin"];
const ALICE: Person = 0;
const BOB: Person = 1;
const CAROL: Person = 2;
const DAVE: Person = 3;

/// Messages of each act.
const TALK: usize = 200;
const GROUP_EACH: usize = 20;
const OFFLINE: usize = 40;
const STREAM: usize = 600;

/// The server is killed when so many of the stream are acknowledged: in its middle.
const KILL_AFTER: usize = 200;

/// Runs everything; what the clients see of it is told to the stage.
pub(super) fn tell(
    stage: &Arc<Stage>,
    directory: &Path,
    patience: &Patience,
    timeline: &mut Timeline,
) -> anyhow::Result<Vec<Latency>> {
    let server = ServerProcess::start(directory, "127.0.0.1:0", patience)?;
    timeline.say(&format!(
        "server: process {}, two shards, {}, data in {}",
        server.pid(),
        server.address,
        data_dir(directory).display()
    ))?;
    let mut demo = Demo {
        stage: Arc::clone(stage),
        devices: Vec::new(),
        memories: vec![Memory::NEW; NAMES.len()],
        address: server.address.clone(),
        server: Some(server),
        latencies: Vec::new(),
        directory,
        patience,
        timeline,
    };
    demo.log_in()?;
    let pair = demo.talk()?;
    let group = demo.group()?;
    demo.offline(group)?;
    demo.crash(pair, group)?;
    demo.check_empty()?;
    let code = demo.server.take().context("the server runs")?.stop(patience)?;
    if code != 0 {
        bail!("the server ended with exit code {code} after SIGTERM");
    }
    demo.timeline.say("server: SIGTERM, exit code 0")?;
    Ok(demo.latencies)
}

impl Seen {
    /// Whether everything sent is acknowledged, and with everybody it is for who is not away.
    fn settled(&self) -> bool {
        let ledger = &self.ledger;
        let here = (0..NAMES.len()).filter(|person| !self.away.contains(person));
        ledger.acknowledged() == ledger.sent()
            && here.into_iter().all(|person| ledger.messages_of(person) >= ledger.due_to(person))
    }
}

struct Demo<'a> {
    stage: Arc<Stage>,
    /// By person; `None` while logged out.
    devices: Vec<Option<Device>>,
    memories: Vec<Memory>,
    address: String,
    server: Option<ServerProcess>,
    latencies: Vec<Latency>,
    directory: &'a Path,
    patience: &'a Patience,
    timeline: &'a mut Timeline,
}

impl Demo<'_> {
    fn log_in(&mut self) -> anyhow::Result<()> {
        for person in 0..NAMES.len() {
            let device = Device::log_in(person, self.access(person)?, Memory::NEW, &self.stage)?;
            self.devices.push(Some(device));
        }
        self.stage.until(self.patience, "five logins", |seen| {
            (0..NAMES.len()).all(|person| seen.shard.get(&person).is_some_and(Option::is_some))
        })?;
        let shards: Vec<u16> =
            self.stage.look(|seen| (0..NAMES.len()).filter_map(|person| *seen.shard.get(&person)?).collect());
        let on = |shard: u16| {
            let names: Vec<&str> =
                NAMES.iter().zip(&shards).filter(|(_, at)| **at == shard).map(|(name, _)| *name).collect();
            names.join(", ")
        };
        if on(0).is_empty() || on(1).is_empty() {
            bail!("all five devices are on one shard, so nothing would cross between two");
        }
        self.timeline.say(&format!("logged in: {} on shard 0; {} on shard 1", on(0), on(1)))
    }

    /// Alice and bob in turn, one message at a time.
    fn talk(&mut self) -> anyhow::Result<u128> {
        self.forget_latency();
        let chat = self.chat(ALICE, "pair", Order::Pair { name: "pair", with: NAMES[BOB] }, &[BOB])?;
        for turn in 0..TALK {
            let (from, to) = if turn % 2 == 0 { (ALICE, BOB) } else { (BOB, ALICE) };
            self.send(from, chat, vec![to], "how are the tides?")?;
            self.settle("a message of alice and bob")?;
        }
        self.tell_latency("pair", &format!("alice and bob: {TALK} messages, one at a time"))?;
        Ok(chat)
    }

    /// Five people, all at once.
    fn group(&mut self) -> anyhow::Result<u128> {
        let members = NAMES[1..].iter().map(|name| (*name).to_owned()).collect();
        self.forget_latency();
        let chat = self.chat(ALICE, "Waders", Order::Group { title: "Waders", members }, &others(ALICE))?;
        for turn in 0..GROUP_EACH * NAMES.len() {
            let from = turn % NAMES.len();
            self.send(from, chat, others(from), "seen one!")?;
        }
        self.settle("the group's messages")?;
        self.tell_latency("group", &format!("group of five: {} messages, all talk at once", GROUP_EACH * NAMES.len()))?;
        Ok(chat)
    }

    /// Carol is away; what is sent to her waits.
    fn offline(&mut self, group: u128) -> anyhow::Result<()> {
        self.log_out(CAROL)?;
        let order = Order::Pair { name: "alice and carol", with: NAMES[CAROL] };
        let pair = self.chat(ALICE, "alice and carol", order, &[])?;
        for turn in 0..OFFLINE {
            if turn % 2 == 0 {
                self.send(ALICE, pair, vec![CAROL], "read this when you are back")?;
            } else {
                self.send(DAVE, group, others(DAVE), "carol is away")?;
            }
        }
        self.settle("messages to who is away")?;
        let had = self.stage.look(|seen| seen.ledger.messages_of(CAROL));
        self.timeline.say(&format!("carol is offline: {OFFLINE} messages to her are acknowledged and wait"))?;
        let begun = Instant::now();
        self.come_back(CAROL)?;
        self.stage.until(self.patience, "carol's messages", |seen| {
            seen.ledger.messages_of(CAROL) >= seen.ledger.due_to(CAROL)
        })?;
        let got = self.stage.look(|seen| seen.ledger.messages_of(CAROL)) - had;
        self.timeline
            .say(&format!("carol is back: {got} messages in {:.1} ms", begun.elapsed().as_secs_f64() * 1e3))?;
        Ok(())
    }

    /// SIGKILL in the middle of a stream of sends.
    fn crash(&mut self, pair: u128, group: u128) -> anyhow::Result<()> {
        let before = self.stage.look(|seen| seen.ledger.acknowledged());
        for turn in 0..STREAM {
            match turn % 3 {
                0 => self.send(ALICE, pair, vec![BOB], "before, during or after?")?,
                1 => self.send(BOB, pair, vec![ALICE], "we shall see")?,
                _ => self.send(DAVE, group, others(DAVE), "hold on to something")?,
            }
        }
        self.stage.until(self.patience, "the stream to be under way", |seen| {
            seen.ledger.acknowledged() >= before + KILL_AFTER
        })?;
        let server = self.server.take().context("the server runs")?;
        let pid = server.pid();
        server.kill()?;
        let begun = Instant::now();
        let done = self.stage.look(|seen| seen.ledger.acknowledged()) - before;
        if done == STREAM {
            bail!("all of the stream was acknowledged before the server was killed");
        }
        self.timeline.say(&format!(
            "server: process {pid} killed with SIGKILL; {done} of {STREAM} messages acknowledged, {} not",
            STREAM - done
        ))?;
        let server = ServerProcess::start(self.directory, &self.address, self.patience)?;
        self.timeline.say(&format!(
            "server: process {} on the same data, ready after {:.0} ms",
            server.pid(),
            begun.elapsed().as_secs_f64() * 1e3
        ))?;
        self.server = Some(server);
        self.settle("the rest of the stream")?;
        let repeated = self.stage.look(|seen| seen.repeated);
        self.timeline.say(&format!("clients: connected again and resent; all {STREAM} acknowledged and delivered, {repeated} had been stored before the crash"))
    }

    /// All leave; then each device logs in anew, remembering nothing, and finds nothing waiting.
    fn check_empty(&mut self) -> anyhow::Result<()> {
        for person in 0..NAMES.len() {
            self.log_out(person)?;
        }
        for (person, name) in NAMES.iter().enumerate() {
            let expected = self.stage.look(|seen| seen.ledger.deliveries_of(person)) as u64;
            loop {
                let mut link = Link::new(&self.access(person)?, Memory { floor: 0, ..self.memories[person] })?;
                let welcome = link.log_in(Duration::from_secs(5))?;
                if welcome.head != expected {
                    bail!("{name}'s inbox ends at {}, and {expected} deliveries came", welcome.head);
                }
                if welcome.floor == welcome.head {
                    break;
                }
                // An acknowledgement is committed together with others, at most a second after it was received.
                self.patience.pause("acknowledgements to be committed")?;
            }
        }
        self.timeline.say("inboxes: each device logged in anew; all are empty")
    }

    fn access(&self, person: Person) -> anyhow::Result<Access> {
        let data = data_dir(self.directory);
        let keys = load_dev_keys(&data)?.context("the server made a key pair")?;
        let ttl = Duration::from_secs(3_600);
        let token = keys.mint(&Grant { user: NAMES[person], device: 1, epoch: DEV_EPOCH, ttl })?.token;
        Ok(Access {
            user: NAMES[person].to_owned(),
            device: 1,
            server: self.address.clone(),
            source: TokenSource::DevKey(data.clone()),
            data,
            token,
        })
    }

    fn device(&self, person: Person) -> anyhow::Result<&Device> {
        self.devices[person].as_ref().with_context(|| format!("{} is logged in", NAMES[person]))
    }

    fn send(&self, from: Person, chat: u128, recipients: Vec<Person>, text: &str) -> anyhow::Result<()> {
        let mut id = 0;
        self.stage.tell(|seen| id = seen.ledger.send(from, chat, recipients));
        self.device(from)?.order(Order::Send { chat, id, text: text.to_owned() })
    }

    fn forget_latency(&self) {
        self.stage.tell(|seen| {
            seen.acknowledged_after.clear();
            seen.delivered_after.clear();
        });
    }

    fn tell_latency(&mut self, act: &'static str, what: &str) -> anyhow::Result<()> {
        let (acknowledged, delivered) =
            self.stage.look(|seen| (quantiles(&seen.acknowledged_after), quantiles(&seen.delivered_after)));
        let (acknowledged, delivered) = acknowledged.zip(delivered).context("messages were sent")?;
        self.latencies.push(Latency { act, acknowledged, delivered });
        self.timeline.say(what)?;
        self.timeline.say(&format!("    acknowledged {acknowledged}; delivered {delivered}"))
    }

    /// Makes a chat; the others who will send there learn of it.
    fn chat(&self, maker: Person, name: ChatName, order: Order, others: &[Person]) -> anyhow::Result<u128> {
        self.device(maker)?.order(order)?;
        let known = |seen: &Seen, person: Person| seen.chats.get(&(person, name)).copied();
        self.stage.until(self.patience, "a chat to be made", |seen| known(seen, maker).is_some())?;
        let chat = self.stage.look(|seen| known(seen, maker)).context("the chat was made")?;
        for &person in others {
            self.device(person)?.order(Order::Learn { name, chat })?;
        }
        self.stage.until(self.patience, "a chat to be known", |seen| {
            others.iter().all(|&person| known(seen, person).is_some())
        })?;
        Ok(chat)
    }

    fn settle(&self, what: &str) -> anyhow::Result<()> {
        self.stage.until(self.patience, what, Seen::settled)
    }

    fn log_out(&mut self, person: Person) -> anyhow::Result<()> {
        if let Some(device) = self.devices[person].take() {
            self.stage.tell(|seen| {
                seen.away.insert(person);
            });
            self.memories[person] = device.log_out()?;
        }
        Ok(())
    }

    fn come_back(&mut self, person: Person) -> anyhow::Result<()> {
        let device = Device::log_in(person, self.access(person)?, self.memories[person], &self.stage)?;
        self.devices[person] = Some(device);
        self.stage.tell(|seen| {
            seen.away.remove(&person);
        });
        Ok(())
    }
}

fn others(person: Person) -> Vec<Person> {
    (0..NAMES.len()).filter(|&other| other != person).collect()
}

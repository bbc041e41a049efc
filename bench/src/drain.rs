//! Devices that were away come back: they log in, are given what has waited for them, and acknowledge it.
//!
//! Each round first refills the inboxes, which is not measured: each device has somebody who writes to it. Then all come at
//! once, on a ring of the load's core that stays awake. The server's CPU time counts from before they connect until their
//! acknowledgements are committed, which is a while after the last one came; that they are is checked by another login.

use std::path::Path;
use std::time::{Duration, Instant};

use anyhow::{Context, bail};
use whimbrel_wire::{Builder, Decoder, ServerFrame, fb, limits};

use crate::connect::{allow_descriptors, connect};
use crate::cpu::{self, Disturbance, MachineTicks};
use crate::environment::{Scratch, environment};
use crate::load::users::{self, PairUsers};
use crate::load::{Chat, Faults, Joined, Ledger, Stamp, blank, hello, log_in, make_chats, reason};
use crate::measure::Sample;
use crate::process::{Server, Start, find_whimbrel};
use crate::report::Report;
use crate::ring::{BufferShape, Event, Ring, Waits};
use crate::run::{LOAD_CPU, OTHER_DESCRIPTORS, Options, Target, describe, stop};
use crate::scenario::Scenario;
use crate::stats::median;
use crate::token::Minter;

/// Messages of each writer that are in flight while inboxes are filled.
const FILL: usize = 32;

/// Acknowledgements are committed at most a second after they came.
const COMMITTED: Duration = Duration::from_secs(1);

/// What has not come for so long after the last that came is lost.
const PATIENCE: Duration = Duration::from_secs(20);

/// A turn waits so long for something to do at most.
const TURN: Duration = Duration::from_millis(5);

/// A drain comes in large pieces.
const BUFFERS: BufferShape = BufferShape { count: 1024, size_bytes: 16_384 };

/// One server, several rounds.
pub(crate) fn run(options: &Options) -> anyhow::Result<Report> {
    let scenario = &options.scenario;
    let Target::Spawn { whimbrel, data } = &options.target else {
        bail!("a drain scenario begins with empty inboxes, of a server that it starts itself: use --spawn");
    };
    allow_descriptors(u64::from(scenario.connections_max()) + OTHER_DESCRIPTORS)?;
    let whimbrel = find_whimbrel(whimbrel.as_deref())?;
    let before = MachineTicks::read();
    crate::process::pin(LOAD_CPU)?;
    let scratch = Scratch::new(data.as_deref())?;
    let mut report = measure(scenario, &whimbrel, scratch.path()).map_err(|error| scratch.explain(error))?;
    let Disturbance { steal_share, others_share } = MachineTicks::read().disturbance(before);
    report.detail.steal_share = steal_share;
    report.detail.others_share = others_share;
    Ok(report)
}

fn measure(scenario: &Scenario, whimbrel: &Path, scratch: &Path) -> anyhow::Result<Report> {
    let data = scratch.join("server");
    let cpus = scenario.server_cpus.as_str();
    let start = Start { program: whimbrel, data: &data, shards: 1, cpus, environment: &scenario.environment };
    let server = Server::whimbrel(&start)?;
    let pairs = users::pairs(scenario.devices);
    let mut inboxes = Inboxes::new(&pairs, scenario, &server, Minter::load(&data)?)?;
    let mut samples = Vec::new();
    for round in 1..=scenario.rounds {
        inboxes.fill()?;
        let sample = inboxes.drain(&server)?;
        eprintln!("round {round}: {}", describe(&sample));
        samples.push(sample);
        if inboxes.faults().any() {
            break;
        }
        inboxes.check_empty(&server)?;
    }
    let commands = [("server".to_owned(), start.command_line())];
    let mut report = Report::new(&scenario.name, environment(scenario, &commands)?);
    let sum = |of: fn(&Sample) -> u64| samples.iter().map(of).sum::<u64>();
    let wall_ns = sum(|it| it.wall_ns).max(1) as f64;
    report.delivered = Some(sum(|it| it.done));
    report.delivered_per_s = Some(sum(|it| it.done) as f64 / wall_ns * 1e9);
    report.detail.server_rounds_ns = samples.iter().map(Sample::cpu_ns_each).collect();
    report.server_cpu_ns_per_delivered = Some(median(&report.detail.server_rounds_ns));
    report.detail.server_busy = Some(sum(|it| it.server_cpu_ns) as f64 / wall_ns);
    report.detail.generator_busy = Some(sum(|it| it.generator_cpu_ns) as f64 / wall_ns);
    let threads = cpu::by_thread_name(server.pid());
    report.detail.server_threads_cpu_s = threads.into_iter().map(|(name, ns)| (name, ns as f64 / 1e9)).collect();
    let faults = inboxes.faults();
    report.lost = Some(faults.lost);
    report.duplicated = Some(faults.duplicated);
    report.reordered = Some(faults.reordered);
    drop(inboxes);
    stop(server);
    Ok(report)
}

/// The devices, those who write to them, and what came.
pub(crate) struct Inboxes {
    writers: Vec<Joined>,
    chats: Vec<Chat>,
    names: Vec<String>,
    tokens: Vec<String>,
    minter: Minter,
    devices: Vec<Device>,
    /// Messages that each device was sent so far, and is sent each round.
    sent: u64,
    messages: u64,
    payload_bytes: usize,
    run: u64,
}

/// What a device keeps.
#[derive(Default)]
struct Device {
    ledger: Ledger,
    /// The last place of its inbox that came.
    inbox_seq: u64,
    /// Of this connection:
    decoder: Decoder,
    welcome: bool,
    acked: u64,
    output: Vec<u8>,
    sending: bool,
}

impl Inboxes {
    /// Logs everybody in once, for who never did cannot be written to, and makes the chats.
    pub(crate) fn new(
        pairs: &[PairUsers],
        scenario: &Scenario,
        server: &Server,
        minter: Minter,
    ) -> anyhow::Result<Inboxes> {
        let names: Vec<String> = pairs.iter().map(|pair: &PairUsers| pair.receiver.clone()).collect();
        drop(log_in(server.address(), &minter, &names)?);
        let writers: Vec<String> = pairs.iter().map(|pair| pair.sender.clone()).collect();
        let mut writers = log_in(server.address(), &minter, &writers)?;
        let chats = make_chats(&mut writers.iter_mut().collect::<Vec<_>>(), pairs)?;
        let since_1970 = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).unwrap_or_default();
        Ok(Inboxes {
            writers,
            chats,
            tokens: names.iter().map(|name| minter.mint(name)).collect::<Result<_, _>>()?,
            devices: names.iter().map(|_| Device::default()).collect(),
            names,
            minter,
            sent: 0,
            messages: u64::from(scenario.messages),
            payload_bytes: scenario.payload_bytes,
            run: since_1970.as_nanos() as u64,
        })
    }

    /// Sends each device its messages while it is away, to all of them at a time.
    pub(crate) fn fill(&mut self) -> anyhow::Result<()> {
        let numbers: Vec<u64> = (self.sent + 1..=self.sent + self.messages).collect();
        for piece in numbers.chunks(FILL) {
            for pair in 0..self.writers.len() {
                self.store(pair, piece)?;
            }
        }
        self.sent += self.messages;
        Ok(())
    }

    /// The same, to one after the other: what waits for one lies together in the log.
    pub(crate) fn fill_in_turn(&mut self) -> anyhow::Result<()> {
        let numbers: Vec<u64> = (self.sent + 1..=self.sent + self.messages).collect();
        for pair in 0..self.writers.len() {
            for piece in numbers.chunks(FILL) {
                self.store(pair, piece)?;
            }
        }
        self.sent += self.messages;
        Ok(())
    }

    fn store(&mut self, pair: usize, numbers: &[u64]) -> anyhow::Result<()> {
        let payload = |&number: &u64| {
            let mut payload = blank(self.payload_bytes);
            Stamp { run: self.run, pair: pair as u32, number, sent_ns: 0 }.write(&mut payload);
            payload
        };
        let payloads: Vec<Vec<u8>> = numbers.iter().map(payload).collect();
        self.writers[pair].store(&self.chats[pair], numbers[0], &payloads).with_context(|| format!("fill inbox {pair}"))
    }

    /// All devices come and take what waits for them.
    fn drain(&mut self, server: &Server) -> anyhow::Result<Sample> {
        let begun = Instant::now();
        let (server_ns, own_ns) = (server.clock().now_ns()?, cpu::this_thread_ns()?);
        let before = self.received();
        let mut ring = self.ring()?;
        for slot in 0..self.devices.len() as u32 {
            self.come(slot, server, &mut ring)?;
        }
        let mut last = (before, Instant::now());
        while !self.have_all(self.devices.len()) && last.1.elapsed() < PATIENCE {
            self.turn(&mut ring, TURN)?;
            let now = self.received();
            if now != last.0 {
                last = (now, Instant::now());
            }
        }
        let wall_ns = begun.elapsed().as_nanos() as u64;
        let generator_cpu_ns = (cpu::this_thread_ns()? - own_ns).saturating_sub(ring.idle().as_nanos() as u64);
        std::thread::sleep(COMMITTED);
        let server_cpu_ns = server.clock().now_ns()? - server_ns;
        Ok(Sample { done: self.received() - before, wall_ns, server_cpu_ns, generator_cpu_ns })
    }

    /// Those who write go away.
    pub(crate) fn leave(&mut self) {
        self.writers.clear();
    }

    /// A ring on which all of them can come.
    pub(crate) fn ring(&self) -> anyhow::Result<Ring> {
        let mut ring = Ring::new(self.devices.len() as u32, BUFFERS).context("make an io_uring")?;
        ring.wait_so(Waits::Awake);
        Ok(ring)
    }

    /// One device comes.
    pub(crate) fn come(&mut self, slot: u32, server: &Server, ring: &mut Ring) -> anyhow::Result<()> {
        let device = &mut self.devices[slot as usize];
        ring.adopt(slot, connect(server.address())?).context("hand a socket to io_uring")?;
        device.come(&self.tokens[slot as usize]);
        device.write(slot, ring);
        Ok(())
    }

    /// Whether so many of them, from the first on, have all that was sent to them.
    pub(crate) fn have_all(&self, devices: usize) -> bool {
        self.devices[..devices].iter().all(|device| device.is_done(self.sent))
    }

    /// Takes what came to those that are here; waits for it for so long at most.
    pub(crate) fn turn(&mut self, ring: &mut Ring, wait: Duration) -> anyhow::Result<()> {
        ring.turn(wait).context("io_uring_enter")?;
        while let Some(event) = ring.next() {
            match event {
                Event::Received { slot, filled } => {
                    let expected = Expected { run: self.run, pair: slot, chat: self.chats[slot as usize].id };
                    let device = &mut self.devices[slot as usize];
                    let result = device.received(ring.bytes(&filled), &expected, self.payload_bytes);
                    ring.give_back(filled);
                    result.with_context(|| format!("device {slot}"))?;
                }
                Event::Sent { slot, .. } => self.devices[slot as usize].sending = false,
                Event::Ended { slot, errno } => {
                    bail!("the server ended connection {slot}: {}", std::io::Error::from_raw_os_error(errno));
                }
                Event::Accepted { .. } | Event::Written { .. } => {}
            }
        }
        for (slot, device) in (0..).zip(&mut self.devices) {
            device.write(slot, ring);
        }
        Ok(())
    }

    pub(crate) fn received(&self) -> u64 {
        self.devices.iter().map(|device| device.ledger.highest()).sum()
    }

    pub(crate) fn faults(&self) -> Faults {
        self.devices.iter().fold(Faults::default(), |sum, device| sum.plus(device.ledger.faults(self.sent)))
    }

    /// All that came was acknowledged, and the server has committed that.
    fn check_empty(&self, server: &Server) -> anyhow::Result<()> {
        let joined = log_in(server.address(), &self.minter, &self.names)?;
        for ((joined, device), name) in joined.iter().zip(&self.devices).zip(&self.names) {
            if (joined.floor, joined.head) != (device.inbox_seq, device.inbox_seq) {
                bail!(
                    "{name} acknowledged {} places of its inbox; the server says {} of {}",
                    device.inbox_seq,
                    joined.floor,
                    joined.head
                );
            }
        }
        Ok(())
    }
}

/// What a message to a device has to be.
struct Expected {
    run: u64,
    pair: u32,
    chat: u128,
}

impl Device {
    /// A new connection, on which it logs in.
    fn come(&mut self, token: &str) {
        self.decoder = Decoder::default();
        self.welcome = false;
        self.acked = self.inbox_seq;
        self.output = hello(token, self.inbox_seq);
        self.sending = false;
    }

    /// Sends what there is, an acknowledgement of all that came included; one send is in flight.
    fn write(&mut self, slot: u32, ring: &mut Ring) {
        if self.sending {
            return;
        }
        if self.inbox_seq > self.acked {
            self.acked = self.inbox_seq;
            Builder::default().ack(&mut self.output, self.inbox_seq);
        }
        if !self.output.is_empty() {
            self.sending = true;
            ring.send(slot, std::mem::take(&mut self.output));
        }
    }

    /// All has come, and the acknowledgement is with the kernel.
    fn is_done(&self, sent: u64) -> bool {
        self.ledger.highest() == sent && self.acked == self.inbox_seq && !self.sending
    }

    fn received(&mut self, bytes: &[u8], expected: &Expected, payload_bytes: usize) -> anyhow::Result<()> {
        // Taken out for as long as its frames borrow it.
        let mut decoder = std::mem::take(&mut self.decoder);
        let mut input = bytes;
        loop {
            let mut rest = input;
            let Some(frame) = decoder.decode(&mut rest, limits::FRAME_MAX_BYTES)? else { break };
            input = &input[input.len() - rest.len()..];
            match ServerFrame::parse(&frame)? {
                ServerFrame::Deliver(deliver, payload) => {
                    self.on_deliver(&deliver, payload, expected, payload_bytes)?
                }
                ServerFrame::Welcome(_) if !self.welcome => self.welcome = true,
                ServerFrame::Refused(refused) => bail!("login refused: {}", reason(refused.code(), refused.detail())),
                ServerFrame::Error(error) => bail!("refused: {}", reason(error.code(), error.detail())),
                ServerFrame::GoAway(away) => bail!("the server said goodbye: {}", reason(away.code(), away.detail())),
                ServerFrame::Welcome(_) | ServerFrame::Sent(_) | ServerFrame::Pong(_) | ServerFrame::ChatInfo(_) => {
                    bail!("an answer to what was not asked")
                }
            }
        }
        self.decoder = decoder;
        Ok(())
    }

    fn on_deliver(
        &mut self,
        deliver: &fb::Deliver<'_>,
        payload: &[u8],
        expected: &Expected,
        payload_bytes: usize,
    ) -> anyhow::Result<()> {
        if deliver.inbox_seq() != self.inbox_seq + 1 {
            bail!("inbox_seq {} came after {}: what is between them is missing", deliver.inbox_seq(), self.inbox_seq);
        }
        self.inbox_seq = deliver.inbox_seq();
        if deliver.event() != fb::Event::Message {
            return Ok(());
        }
        let stamp = Stamp::read(payload, payload_bytes).context("a payload that this bench did not send")?;
        if (stamp.run, stamp.pair) != (expected.run, expected.pair)
            || whimbrel_wire::chat_id(deliver.chat()) != expected.chat
        {
            bail!("a message of pair {} came", stamp.pair);
        }
        self.ledger.delivered(stamp.number, deliver.chat_seq());
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use whimbrel_wire::{DeliverFields, Payload, WelcomeFields};

    const EXPECTED: Expected = Expected { run: 5, pair: 2, chat: 77 };

    fn message(inbox_seq: u64, pair: u32, number: u64) -> Vec<u8> {
        let mut payload = blank(128);
        Stamp { run: 5, pair, number, sent_ns: 0 }.write(&mut payload);
        let fields =
            DeliverFields { inbox_seq, chat: 77, chat_seq: inbox_seq, sender: "s", ..DeliverFields::default() };
        let mut out = Vec::new();
        Builder::default().deliver(&mut out, &fields, &payload, Payload::Inline);
        out
    }

    /// A device that had four places of its inbox, and is logged in again.
    fn device() -> Device {
        let mut device = Device { inbox_seq: 4, ..Device::default() };
        device.come("token");
        let mut welcome = Vec::new();
        Builder::default().welcome(&mut welcome, &WelcomeFields { user: "u", ..WelcomeFields::default() });
        device.received(&welcome, &EXPECTED, 128).unwrap();
        assert!(device.received(&welcome, &EXPECTED, 128).is_err(), "a login is answered once");
        device
    }

    #[test]
    fn what_comes_goes_on_after_what_came_and_each_once() {
        let mut device = device();
        for (inbox_seq, number) in [(5, 1), (6, 2), (7, 2)] {
            device.received(&message(inbox_seq, 2, number), &EXPECTED, 128).unwrap();
        }
        assert_eq!(device.ledger.faults(3), Faults { lost: 1, duplicated: 1, reordered: 0 });
        assert!(!device.is_done(2), "it is not acknowledged");
        device.acked = 7;
        assert!(device.is_done(2) && !device.is_done(3));
    }

    #[test]
    fn a_gap_and_what_is_not_for_it_end_the_run() {
        assert!(device().received(&message(6, 2, 1), &EXPECTED, 128).is_err(), "a gap");
        assert!(device().received(&message(5, 3, 1), &EXPECTED, 128).is_err(), "of another pair");
        assert!(device().received(&message(5, 2, 1), &EXPECTED, 64).is_err(), "of another size");
    }
}

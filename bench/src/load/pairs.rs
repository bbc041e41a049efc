//! The state of all pairs and connections, without sockets: bytes in, bytes out.

use std::collections::VecDeque;
use std::time::{Duration, Instant};

use anyhow::{Context, bail};
use whimbrel_wire::{Builder, Decoder, SendFields, ServerFrame, fb, limits};

use super::ledger::{Faults, Ledger};
use super::login::{Chat, reason};
use super::stamp::{Stamp, blank};
use super::{IN_FLIGHT_MAX, Latencies, Plan};
use crate::pace::Pace;

/// One connection: even ones send, the odd one after it receives.
struct Peer {
    decoder: Decoder,
    /// Frames to send with the next turn.
    output: Vec<u8>,
    /// A send is in flight.
    sending: bool,
    /// It is in the list of those that have something to send.
    dirty: bool,
    /// The last delivery that came, and the last one that was acknowledged.
    inbox_seq: u64,
    acked: u64,
}

/// One chat of two.
pub(super) struct Pair {
    chat: Chat,
    /// Numbers begin at 1 with this run; `client_seq` goes on from the chat's last.
    begun: u64,
    /// Up to here `Sent` came.
    stored: u64,
    ledger: Ledger,
    /// When each of the last messages was sent, by number modulo the size.
    sent_ns: [u64; IN_FLIGHT_MAX as usize],
    /// A send was refused: all that were not stored go again at this time.
    again_at: Option<Instant>,
    /// Open loop: when messages were due that wait for one in flight to be done.
    due_ns: VecDeque<u64>,
}

impl Pair {
    pub(super) fn new(chat: Chat) -> Pair {
        Pair {
            chat,
            begun: 0,
            stored: 0,
            ledger: Ledger::default(),
            sent_ns: [0; IN_FLIGHT_MAX as usize],
            again_at: None,
            due_ns: VecDeque::new(),
        }
    }

    fn done(&self) -> u64 {
        self.stored.min(self.ledger.highest())
    }
}

/// See the [module](self).
pub(super) struct Peers {
    pairs: Vec<Pair>,
    peers: Vec<Peer>,
    dirty: Vec<u32>,
    /// Pairs with a time to send again.
    waiting: Vec<u32>,
    builder: Builder,
    payload: Vec<u8>,
    pub(super) in_flight: u64,
    /// `None` in a closed loop.
    pace: Option<Pace>,
    run: u64,
    clock: Instant,
    pub(super) done: u64,
    pub(super) sending: bool,
    pub(super) recording: bool,
    pub(super) latencies: Latencies,
    pub(super) refused: u64,
}

impl Peers {
    pub(super) fn new(plan: &Plan, pairs: Vec<Pair>) -> Peers {
        let since_1970 = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).unwrap_or_default();
        Peers {
            peers: Vec::with_capacity(2 * pairs.len()),
            pairs,
            dirty: Vec::new(),
            waiting: Vec::new(),
            builder: Builder::default(),
            payload: blank(plan.payload_bytes),
            in_flight: u64::from(plan.in_flight),
            pace: None,
            run: since_1970.as_nanos() as u64,
            clock: Instant::now(),
            done: 0,
            sending: false,
            recording: false,
            latencies: Latencies::default(),
            refused: 0,
        }
    }

    /// The next connection, in the order of the slots.
    pub(super) fn join(&mut self, decoder: Decoder, floor: u64, inbox_seq: u64) {
        let slot = self.peers.len() as u32;
        self.peers.push(Peer { decoder, output: Vec::new(), sending: false, dirty: false, inbox_seq, acked: floor });
        if inbox_seq > floor {
            self.mark(slot);
        }
    }

    /// Begins as many messages as may be in flight, or, in an open loop, lets the first be due.
    pub(super) fn resume(&mut self) {
        self.sending = true;
        let now_ns = self.now_ns();
        if let Some(pace) = &mut self.pace {
            pace.resume(now_ns);
            return;
        }
        for pair in 0..self.pairs.len() as u32 {
            self.begin(pair);
        }
    }

    /// From the next window on so many messages a second are due, all pairs together; `None` closes the loop. A message's
    /// time counts from when it was due, also if it could not be sent then.
    pub(super) fn set_pace(&mut self, per_s: Option<f64>) {
        self.pace = per_s.map(Pace::new);
    }

    /// Begins what is due.
    pub(super) fn begin_due(&mut self) {
        if self.pace.is_none() || !self.sending {
            return;
        }
        let now_ns = self.now_ns();
        let pairs = self.pairs.len() as u32;
        while let Some((pair, due_ns)) = self.pace.as_mut().and_then(|pace| pace.due(now_ns, pairs)) {
            self.pairs[pair as usize].due_ns.push_back(due_ns);
            self.begin(pair);
        }
    }

    /// How long until the next message is due.
    pub(super) fn until_due(&self) -> Option<Duration> {
        let pace = self.pace.as_ref().filter(|_| self.sending)?;
        Some(pace.until_due(self.now_ns()))
    }

    /// Begun and not done.
    pub(super) fn outstanding(&self) -> u64 {
        self.pairs.iter().map(|pair| pair.begun - pair.done() + pair.due_ns.len() as u64).sum()
    }

    /// Messages that became done, of the pair that has the fewest.
    #[cfg(test)]
    pub(super) fn done_of_each(&self) -> u64 {
        self.pairs.iter().map(Pair::done).min().unwrap_or(0)
    }

    /// For an error: how far the first pair is that has something outstanding.
    pub(super) fn first_outstanding(&self) -> String {
        let stuck = self.pairs.iter().position(|pair| pair.begun > pair.done());
        stuck.map_or_else(String::new, |at| {
            let pair = &self.pairs[at];
            format!(
                "pair {at} began {}, {} are stored, {} delivered{}",
                pair.begun,
                pair.stored,
                pair.ledger.highest(),
                if pair.again_at.is_some() { ", the rest waits to be sent again" } else { "" }
            )
        })
    }

    pub(super) fn faults(&self) -> Faults {
        self.pairs.iter().fold(Faults::default(), |sum, pair| sum.plus(pair.ledger.faults(pair.begun)))
    }

    /// A connection that has something to send.
    pub(super) fn next_dirty(&mut self) -> Option<u32> {
        let slot = self.dirty.pop()?;
        self.peers[slot as usize].dirty = false;
        Some(slot)
    }

    /// What the connection sends now, its acknowledgement included; `None` while its last send is in flight.
    pub(super) fn take_output(&mut self, slot: u32) -> Option<Vec<u8>> {
        let peer = &mut self.peers[slot as usize];
        if peer.sending {
            return None;
        }
        if peer.inbox_seq > peer.acked {
            peer.acked = peer.inbox_seq;
            self.builder.ack(&mut peer.output, peer.inbox_seq);
        }
        if peer.output.is_empty() {
            return None;
        }
        peer.sending = true;
        Some(std::mem::take(&mut peer.output))
    }

    /// A send was taken whole; its memory serves again.
    pub(super) fn sent(&mut self, slot: u32, mut bytes: Vec<u8>) {
        let peer = &mut self.peers[slot as usize];
        peer.sending = false;
        if peer.output.is_empty() {
            bytes.clear();
            peer.output = bytes;
        }
        if !peer.output.is_empty() || peer.inbox_seq > peer.acked {
            self.mark(slot);
        }
    }

    /// Bytes came.
    pub(super) fn received(&mut self, slot: u32, bytes: &[u8]) -> anyhow::Result<()> {
        // Taken out for as long as its frames borrow it.
        let mut decoder = std::mem::take(&mut self.peers[slot as usize].decoder);
        let mut input = bytes;
        loop {
            let mut rest = input;
            let Some(frame) = decoder.decode(&mut rest, limits::FRAME_MAX_BYTES)? else { break };
            input = &input[input.len() - rest.len()..];
            let frame = ServerFrame::parse(&frame)?;
            self.frame(slot, &frame).with_context(|| format!("connection {slot}"))?;
        }
        self.peers[slot as usize].decoder = decoder;
        Ok(())
    }

    /// Sends anew what was refused, where the time for it has come.
    pub(super) fn send_again(&mut self) {
        if !self.waiting.is_empty() {
            self.send_again_at(Instant::now());
        }
    }

    fn send_again_at(&mut self, now: Instant) {
        let mut index = 0;
        while index < self.waiting.len() {
            let pair = self.waiting[index];
            let state = &mut self.pairs[pair as usize];
            if state.again_at.is_some_and(|at| at > now) {
                index += 1;
                continue;
            }
            state.again_at = None;
            let (from, to) = (state.stored + 1, state.begun);
            self.waiting.swap_remove(index);
            for number in from..=to {
                // Byte for byte what was sent before: it may be stored already, with only its answer missing.
                let state = &self.pairs[pair as usize];
                let sent_ns = state.sent_ns[number as usize % state.sent_ns.len()];
                self.write_send(pair, number, sent_ns);
            }
        }
    }

    fn frame(&mut self, slot: u32, frame: &ServerFrame<'_>) -> anyhow::Result<()> {
        match frame {
            ServerFrame::Sent(sent) => self.on_sent(slot, sent),
            ServerFrame::Deliver(deliver, payload) => self.on_deliver(slot, deliver, payload),
            ServerFrame::Error(error) => self.on_error(slot, error),
            ServerFrame::GoAway(away) => bail!("the server said goodbye: {}", reason(away.code(), away.detail())),
            ServerFrame::Welcome(_) | ServerFrame::Refused(_) => bail!("a login was answered twice"),
            ServerFrame::Pong(_) | ServerFrame::ChatInfo(_) => Ok(()),
        }
    }

    fn on_sent(&mut self, slot: u32, sent: &fb::Sent<'_>) -> anyhow::Result<()> {
        let pair = slot / 2;
        let now_ns = self.now_ns();
        let state = &mut self.pairs[pair as usize];
        let number = sent.client_seq().saturating_sub(state.chat.last_client_seq);
        if slot % 2 == 1 || number == 0 || number > state.begun || whimbrel_wire::chat_id(sent.chat()) != state.chat.id
        {
            bail!("an answer to a send that was not made: client_seq {}", sent.client_seq());
        }
        if sent.durability() == fb::Durability::None {
            bail!("a send was acknowledged before it was durable");
        }
        // Sends of a chat are stored in order, so an answer counts for those before it; a resent one is answered again.
        if number <= state.stored {
            return Ok(());
        }
        let before = state.done();
        state.stored = number;
        if self.recording {
            let sent_ns = state.sent_ns[number as usize % state.sent_ns.len()];
            self.latencies.ack.record(now_ns.saturating_sub(sent_ns));
        }
        self.advance(pair, before);
        Ok(())
    }

    fn on_deliver(&mut self, slot: u32, deliver: &fb::Deliver<'_>, payload: &[u8]) -> anyhow::Result<()> {
        let peer = &mut self.peers[slot as usize];
        if deliver.inbox_seq() != peer.inbox_seq + 1 {
            bail!("inbox_seq {} came after {}: what is between them is missing", deliver.inbox_seq(), peer.inbox_seq);
        }
        peer.inbox_seq = deliver.inbox_seq();
        self.mark(slot);
        if deliver.event() != fb::Event::Message {
            return Ok(());
        }
        let Some(stamp) = Stamp::read(payload, self.payload.len()) else {
            bail!("a payload that this bench did not send");
        };
        // Left in the inbox by an earlier run.
        if stamp.run != self.run {
            return Ok(());
        }
        let now_ns = self.now_ns();
        let pair = slot / 2;
        let state = &mut self.pairs[pair as usize];
        if slot.is_multiple_of(2) || stamp.pair != pair || whimbrel_wire::chat_id(deliver.chat()) != state.chat.id {
            bail!("a message of pair {} came to connection {slot}", stamp.pair);
        }
        let before = state.done();
        state.ledger.delivered(stamp.number, deliver.chat_seq());
        if self.recording {
            self.latencies.deliver.record(now_ns.saturating_sub(stamp.sent_ns));
        }
        self.advance(pair, before);
        Ok(())
    }

    fn on_error(&mut self, slot: u32, error: &fb::Error<'_>) -> anyhow::Result<()> {
        if !error.retriable() || error.closes() || error.client_seq() == 0 {
            bail!("refused: {}", reason(error.code(), error.detail()));
        }
        self.refused += 1;
        let pair = &mut self.pairs[slot as usize / 2];
        if pair.again_at.is_none() {
            pair.again_at = Some(Instant::now() + Duration::from_millis(u64::from(error.retry_after_ms().max(1))));
            self.waiting.push(slot / 2);
        }
        Ok(())
    }

    /// Counts what became done since it was `before`, and begins as many anew.
    #[inline]
    fn advance(&mut self, pair: u32, before: u64) {
        let state = &self.pairs[pair as usize];
        self.done += state.done() - before;
        // What was due is sent, also after the window.
        if self.sending || !state.due_ns.is_empty() {
            self.begin(pair);
        }
    }

    #[inline]
    fn begin(&mut self, pair: u32) {
        loop {
            let state = &mut self.pairs[pair as usize];
            if state.begun - state.done() >= self.in_flight {
                return;
            }
            let due_ns = match self.pace {
                Some(_) => match state.due_ns.pop_front() {
                    Some(due_ns) => Some(due_ns),
                    None => return,
                },
                None => None,
            };
            state.begun += 1;
            let number = state.begun;
            let sent_ns = due_ns.unwrap_or_else(|| self.now_ns());
            self.write_send(pair, number, sent_ns);
        }
    }

    #[inline]
    fn write_send(&mut self, pair: u32, number: u64, sent_ns: u64) {
        let state = &mut self.pairs[pair as usize];
        let slots = state.sent_ns.len();
        state.sent_ns[number as usize % slots] = sent_ns;
        Stamp { run: self.run, pair, number, sent_ns }.write(&mut self.payload);
        let client_seq = state.chat.last_client_seq + number;
        let fields = SendFields { correlation: client_seq + 2, chat: state.chat.id, client_seq, prev: client_seq - 1 };
        let slot = 2 * pair;
        self.builder.send(&mut self.peers[slot as usize].output, &fields, &self.payload);
        self.mark(slot);
    }

    #[inline]
    fn mark(&mut self, slot: u32) {
        let peer = &mut self.peers[slot as usize];
        if !peer.dirty {
            peer.dirty = true;
            self.dirty.push(slot);
        }
    }

    #[inline]
    fn now_ns(&self) -> u64 {
        self.clock.elapsed().as_nanos() as u64
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::load::users;
    use crate::ring::Waits;
    use whimbrel_wire::{ClientFrame, DeliverFields, ErrorFields, Payload, SentFields};

    const CHAT: Chat = Chat { id: 77, last_client_seq: 40 };

    fn rig(in_flight: u32) -> Peers {
        let plan = Plan { pairs: users::pairs(1), in_flight, payload_bytes: 128, waits: Waits::Asleep };
        let mut peers = Peers::new(&plan, vec![Pair::new(CHAT)]);
        peers.join(Decoder::default(), 0, 0);
        peers.join(Decoder::default(), 3, 3);
        peers
    }

    /// What the connection would send now: (client_seq, payload) of sends, (floor, nothing) of acknowledgements.
    fn output(peers: &mut Peers, slot: u32) -> Vec<(u64, Vec<u8>)> {
        while peers.next_dirty().is_some() {}
        let Some(bytes) = peers.take_output(slot) else { return Vec::new() };
        let mut decoder = Decoder::default();
        let mut input = bytes.as_slice();
        let mut frames = Vec::new();
        loop {
            let mut rest = input;
            let Some(frame) = decoder.decode(&mut rest, limits::FRAME_MAX_BYTES).unwrap() else { break };
            input = &input[input.len() - rest.len()..];
            frames.push(match ClientFrame::parse(&frame).unwrap() {
                ClientFrame::Send(send, payload) => {
                    assert_eq!(send.prev(), send.client_seq() - 1);
                    (send.client_seq(), payload.to_vec())
                }
                ClientFrame::Ack(ack) => (ack.floor(), Vec::new()),
                other => panic!("unexpected {other:?}"),
            });
        }
        peers.sent(slot, bytes);
        frames
    }

    fn sent(client_seq: u64) -> Vec<u8> {
        let mut out = Vec::new();
        let durability = fb::Durability::OneNode;
        let fields =
            SentFields { chat: CHAT.id, client_seq, chat_seq: client_seq, durability, ..SentFields::default() };
        Builder::default().sent(&mut out, &fields);
        out
    }

    fn deliver(inbox_seq: u64, payload: &[u8]) -> Vec<u8> {
        let mut out = Vec::new();
        let fields =
            DeliverFields { inbox_seq, chat: CHAT.id, chat_seq: inbox_seq, sender: "s", ..DeliverFields::default() };
        Builder::default().deliver(&mut out, &fields, payload, Payload::Inline);
        out
    }

    #[test]
    fn in_an_open_loop_what_is_due_is_sent_when_it_can_be_and_its_time_counts_from_when_it_was_due() {
        let mut peers = rig(1);
        peers.set_pace(Some(10.0));
        peers.resume();
        peers.clock -= Duration::from_secs(1);
        // Due 750, 850 and 950 ms after the clock began; the last one is not there yet if this took no time at all.
        peers.pace.as_mut().unwrap().resume(750_000_000);
        peers.begin_due();
        assert!(peers.outstanding() >= 3);
        let due = |frames: &[(u64, Vec<u8>)]| Stamp::read(&frames[0].1, 128).unwrap().sent_ns;
        let first = output(&mut peers, 0);
        assert_eq!((first.len(), due(&first)), (1, 750_000_000), "one is in flight");
        // The window is over: what was due is sent all the same.
        peers.sending = false;
        peers.received(0, &sent(41)).unwrap();
        peers.received(1, &deliver(4, &first[0].1)).unwrap();
        let second = output(&mut peers, 0);
        assert_eq!((second.len(), due(&second)), (1, 850_000_000));
        assert!(peers.until_due().is_none());
    }

    #[test]
    fn a_message_is_done_when_stored_and_delivered_and_the_next_follows() {
        let mut peers = rig(1);
        peers.resume();
        let first = output(&mut peers, 0);
        assert_eq!(first.iter().map(|f| f.0).collect::<Vec<_>>(), [41]);
        peers.received(0, &sent(41)).unwrap();
        assert_eq!((peers.done, peers.outstanding()), (0, 1));
        peers.received(1, &deliver(4, &first[0].1)).unwrap();
        assert_eq!((peers.done, peers.outstanding()), (1, 1));
        assert_eq!(output(&mut peers, 1), [(4, Vec::new())]);
        assert_eq!(output(&mut peers, 0)[0].0, 42);
        assert!(output(&mut peers, 1).is_empty());
    }

    #[test]
    fn what_is_refused_for_the_moment_goes_again_in_order() {
        let mut peers = rig(3);
        peers.resume();
        assert_eq!(output(&mut peers, 0).len(), 3);
        peers.received(0, &sent(41)).unwrap();
        let mut refusal = Vec::new();
        let fields = ErrorFields { code: 20, retriable: true, client_seq: 42, ..ErrorFields::default() };
        Builder::default().error(&mut refusal, &fields);
        peers.received(0, &refusal).unwrap();
        peers.received(0, &refusal).unwrap();
        peers.send_again_at(Instant::now() + Duration::from_secs(1));
        assert_eq!(output(&mut peers, 0).iter().map(|f| f.0).collect::<Vec<_>>(), [42, 43]);
        assert_eq!((peers.refused, peers.waiting.len()), (2, 0));
    }

    #[test]
    fn paused_it_ends_and_what_did_not_come_is_lost() {
        let mut peers = rig(2);
        peers.resume();
        let payloads = output(&mut peers, 0);
        peers.sending = false;
        peers.received(0, &sent(42)).unwrap();
        peers.received(1, &deliver(4, &payloads[0].1)).unwrap();
        assert_eq!((peers.done, peers.outstanding()), (1, 1));
        assert!(output(&mut peers, 0).is_empty());
        assert_eq!(peers.faults(), Faults { lost: 1, ..Faults::default() });
        peers.received(1, &deliver(5, &payloads[0].1)).unwrap();
        assert_eq!(peers.faults(), Faults { lost: 1, duplicated: 1, ..Faults::default() });
    }

    #[test]
    fn what_breaks_the_protocol_ends_the_run() {
        let error = |peers: &mut Peers, slot, bytes: &[u8]| format!("{:#}", peers.received(slot, bytes).unwrap_err());
        let mut peers = rig(1);
        peers.resume();
        assert!(error(&mut peers, 0, &sent(42)).contains("not made"));
        let mut peers = rig(1);
        assert!(error(&mut peers, 1, &deliver(5, &[0; 128])).contains("missing"));
        let mut peers = rig(1);
        assert!(error(&mut peers, 1, &deliver(4, &[0; 12])).contains("did not send"));
        let mut bad = deliver(4, &[0; 128]);
        *bad.last_mut().unwrap() ^= 1;
        assert!(error(&mut rig(1), 1, &bad).contains("checksum"));
    }

    #[test]
    fn what_an_earlier_run_left_is_acknowledged_and_not_counted() {
        let mut peers = rig(1);
        let mut payload = blank(128);
        Stamp { run: 1, pair: 0, number: 9, sent_ns: 0 }.write(&mut payload);
        peers.received(1, &deliver(4, &payload)).unwrap();
        assert_eq!(output(&mut peers, 1), [(4, Vec::new())]);
        assert!(!peers.faults().any());
    }
}

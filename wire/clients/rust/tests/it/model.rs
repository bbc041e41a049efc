//! A session against a node that keeps the rules of sends and breaks everything else: it refuses for now or for good, drops
//! answers, and its connection breaks at any byte. At the end all is answered, nothing is stored twice, and each chat holds
//! its messages in the order in which they were sent.

use std::collections::BTreeMap;

use proptest::collection::vec;
use proptest::prelude::{ProptestConfig, Strategy, any, prop_oneof, proptest};
use proptest::sample::Index;
use whimbrel_client::{Config, Event, SendNumber, Session};
use whimbrel_wire::Code;

use crate::node::{Ear, Heard, chat_info, error, sent, welcome_with};

const CHATS: u128 = 3;

#[derive(Clone, Debug)]
enum Step {
    Send {
        chat: u128,
    },
    /// So many of the bytes on the way to the node arrive.
    Up(Index),
    /// So many of the bytes on the way to the client arrive.
    Down(Index),
    /// The node's mood at its next sends.
    Mood(Mood),
    Break {
        up: Index,
        down: Index,
    },
    /// The client's process ends, and the next one resumes what was unanswered.
    Restart,
    Pass,
}

#[derive(Clone, Copy, Debug)]
enum Mood {
    Good,
    Overloaded,
    Never,
    /// Stores, and drops the answer.
    Mute,
}

fn steps() -> impl Strategy<Value = Vec<Step>> {
    let index = any::<Index>;
    let mood = prop_oneof![
        3 => proptest::strategy::Just(Mood::Good),
        1 => proptest::strategy::Just(Mood::Overloaded),
        1 => proptest::strategy::Just(Mood::Never),
        1 => proptest::strategy::Just(Mood::Mute),
    ];
    let step = prop_oneof![
        6 => (1..=CHATS).prop_map(|chat| Step::Send { chat }),
        6 => index().prop_map(Step::Up),
        6 => index().prop_map(Step::Down),
        2 => mood.prop_map(Step::Mood),
        1 => (index(), index()).prop_map(|(up, down)| Step::Break { up, down }),
        1 => proptest::strategy::Just(Step::Restart),
        2 => proptest::strategy::Just(Step::Pass),
    ];
    vec(step, 0..200)
}

/// What a node keeps of the device in a chat.
#[derive(Default)]
struct Chat {
    watermark: u64,
    stored: Vec<u64>,
}

struct World {
    session: Session,
    now_ms: u64,
    up: Vec<u8>,
    down: Vec<u8>,
    ear: Ear,
    chats: BTreeMap<u128, Chat>,
    mood: Mood,
    /// What the device keeps on disk: unanswered sends.
    outgoing: BTreeMap<u64, (u128, u64)>,
    sent: BTreeMap<u128, Vec<u64>>,
    refused: Vec<u64>,
    acknowledged: Vec<u64>,
}

impl World {
    fn new() -> World {
        let mut world = World {
            session: Session::new(Config::new("alice", 1, "token")),
            now_ms: 0,
            up: Vec::new(),
            down: Vec::new(),
            ear: Ear::default(),
            chats: BTreeMap::new(),
            mood: Mood::Good,
            outgoing: BTreeMap::new(),
            sent: BTreeMap::new(),
            refused: Vec::new(),
            acknowledged: Vec::new(),
        };
        world.connect();
        world.ask();
        world.flow();
        world
    }

    fn ask(&mut self) {
        for chat in 1..=CHATS {
            self.session.chat_info(chat);
        }
    }

    fn connect(&mut self) {
        self.up.clear();
        self.down.clear();
        self.ear = Ear::default();
        self.session.connected(self.now_ms);
        self.transmit();
    }

    fn transmit(&mut self) {
        self.session.poll_transmit(self.now_ms, &mut self.up);
    }

    fn step(&mut self, step: &Step) {
        match step {
            Step::Send { chat } => {
                if let Ok(SendNumber { client_seq, prev }) = self.session.send(*chat, b"x") {
                    self.outgoing.insert(client_seq, (*chat, prev));
                    self.sent.entry(*chat).or_default().push(client_seq);
                }
            }
            Step::Up(index) => self.up(index.index(self.up.len() + 1)),
            Step::Down(index) => self.down(index.index(self.down.len() + 1)),
            Step::Mood(mood) => self.mood = *mood,
            Step::Break { up, down } => {
                self.up(up.index(self.up.len() + 1));
                self.down(down.index(self.down.len() + 1));
                self.session.disconnected();
                self.connect();
            }
            Step::Restart => self.restart(),
            Step::Pass => self.pass(),
        }
        self.transmit();
    }

    fn restart(&mut self) {
        let next_client_seq = self.session.next_client_seq();
        self.session = Session::new(Config { next_client_seq, ..Config::new("alice", 1, "token") });
        for (client_seq, (chat, prev)) in &self.outgoing {
            let number = SendNumber { client_seq: *client_seq, prev: *prev };
            self.session.resume_send(*chat, number, b"x").unwrap();
        }
        self.ask();
        self.connect();
    }

    fn pass(&mut self) {
        self.now_ms = self.now_ms.max(self.session.poll_timeout().unwrap());
        if self.session.handle_timeout(self.now_ms).is_err() {
            self.session.disconnected();
            self.connect();
        }
    }

    /// Bytes reach the node.
    fn up(&mut self, count: usize) {
        let bytes: Vec<u8> = self.up.drain(..count).collect();
        for heard in self.ear.hear(&bytes) {
            self.hear(&heard);
        }
    }

    fn hear(&mut self, heard: &Heard) {
        let answer = match heard {
            Heard::Hello { correlation, .. } => welcome_with(*correlation, |fields| fields.sends_in_flight_max = 5),
            Heard::Info { correlation, chat } => {
                chat_info(*correlation, *chat, self.chats.get(chat).map_or(0, |known| known.watermark))
            }
            Heard::Send { correlation, chat, client_seq, prev, .. } => {
                self.hear_send(*correlation, *chat, *client_seq, *prev)
            }
            Heard::Ping { correlation } => crate::node::bytes(|b, out| b.pong(out, *correlation, 0)),
            Heard::Create { .. } | Heard::Ack { .. } => panic!("{heard:?}"),
        };
        self.down.extend_from_slice(&answer);
    }

    fn hear_send(&mut self, correlation: u64, chat: u128, client_seq: u64, prev: u64) -> Vec<u8> {
        assert!(client_seq > prev, "{client_seq} after {prev}");
        let known = self.chats.entry(chat).or_default();
        if client_seq > known.watermark {
            match self.mood {
                Mood::Overloaded => return error(correlation, client_seq, Code::Overloaded, 20),
                Mood::Never => return error(correlation, client_seq, Code::ChatUnknown, 0),
                Mood::Good | Mood::Mute => {}
            }
            if prev > known.watermark {
                return error(correlation, client_seq, Code::OutOfOrder, 20);
            }
            known.watermark = client_seq;
            known.stored.push(client_seq);
        }
        if matches!(self.mood, Mood::Mute) { vec![] } else { sent(chat, client_seq, 1) }
    }

    /// Bytes reach the client.
    fn down(&mut self, count: usize) {
        let bytes: Vec<u8> = self.down.drain(..count).collect();
        self.session.receive(self.now_ms, &bytes).unwrap();
        while let Some(event) = self.session.poll_event() {
            match event {
                Event::Sent(receipt) => {
                    assert!(self.outgoing.remove(&receipt.client_seq).is_some(), "answered twice");
                    self.acknowledged.push(receipt.client_seq);
                }
                Event::SendFailed { client_seq, .. } => {
                    assert!(self.outgoing.remove(&client_seq).is_some(), "answered twice");
                    self.refused.push(client_seq);
                }
                Event::Welcome(_) | Event::Chat { .. } => {}
                other => panic!("{other:?}"),
            }
        }
    }

    /// All that is on its way arrives, until nothing is.
    fn flow(&mut self) {
        while !self.up.is_empty() || !self.down.is_empty() {
            self.up(self.up.len());
            self.down(self.down.len());
            self.transmit();
        }
    }

    fn heal(&mut self) {
        self.mood = Mood::Good;
        for _ in 0..50 {
            self.flow();
            if self.session.unanswered_sends() + self.session.unanswered_requests() == 0 {
                return;
            }
            self.pass();
            self.transmit();
        }
        panic!("stuck with {:?}", self.outgoing);
    }

    fn check(&self) {
        assert!(self.outgoing.is_empty());
        for (chat, sent) in &self.sent {
            let expected: Vec<u64> = sent.iter().filter(|number| !self.refused.contains(number)).copied().collect();
            let stored = self.chats.get(chat).map_or(&[][..], |known| &known.stored[..]);
            assert_eq!(stored, expected, "chat {chat}");
            assert!(expected.iter().all(|number| self.acknowledged.contains(number)));
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 512, ..ProptestConfig::default() })]

    #[test]
    fn all_sends_are_stored_once_and_in_order(steps in steps()) {
        let mut world = World::new();
        steps.iter().for_each(|step| world.step(step));
        world.heal();
        world.check();
    }
}

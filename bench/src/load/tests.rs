//! The whole load, ring and sockets included, against a server of a few lines that keeps or breaks its promises on purpose.

use std::collections::HashMap;
use std::io::{Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::sync::{Arc, Mutex};
use std::thread;

use pasetors::keys::{AsymmetricKeyPair, Generate};
use pasetors::paserk::FormatAsPaserk;
use pasetors::version4::V4;
use whimbrel_wire::{
    Builder, ChatInfoFields, ClientFrame, Decoder, DeliverFields, Payload, SentFields, WelcomeFields, fb, limits,
};

use super::{Faults, PairsLoad, Plan, users};
use crate::measure::{Load, drain};
use crate::ring::Waits;
use crate::token::Minter;

/// What the server does to the message with this `client_seq` of each sender.
#[derive(Clone, Copy)]
enum Trick {
    None,
    Repeat(u64),
    Swap(u64),
}

/// By the number of a connection: its socket, and the last place in its inbox.
type Inboxes = Arc<Mutex<HashMap<usize, (TcpStream, u64)>>>;

struct Connection {
    number: usize,
    inboxes: Inboxes,
    builder: Builder,
    trick: Trick,
    chat_seq: u64,
    held: Option<(u64, Vec<u8>)>,
}

impl Connection {
    fn answer(&mut self, frame: ClientFrame<'_>, out: &mut Vec<u8>) {
        let chat = self.number as u128 + 1000;
        match frame {
            ClientFrame::Hello(_) => {
                let fields = WelcomeFields { correlation: 1, user: "u", ..WelcomeFields::default() };
                self.builder.welcome(out, &fields);
            }
            ClientFrame::CreateChat(create) => {
                let fields = ChatInfoFields { correlation: create.correlation(), chat, ..ChatInfoFields::default() };
                self.builder.chat_info(out, &fields);
            }
            ClientFrame::Send(send, payload) => {
                let durability = fb::Durability::OneNode;
                let fields = SentFields {
                    correlation: send.correlation(),
                    chat,
                    client_seq: send.client_seq(),
                    durability,
                    ..SentFields::default()
                };
                self.builder.sent(out, &fields);
                self.chat_seq += 1;
                let message = (self.chat_seq, payload.to_vec());
                match self.trick {
                    Trick::Swap(at) if at == send.client_seq() => self.held = Some(message),
                    Trick::Repeat(at) if at == send.client_seq() => {
                        self.deliver(&message);
                        self.deliver(&message);
                    }
                    _ => {
                        self.deliver(&message);
                        if let Some(held) = self.held.take() {
                            self.deliver(&held);
                        }
                    }
                }
            }
            ClientFrame::Ack(_) => {}
            ClientFrame::Ping(_) | ClientFrame::ChatInfo(_) => panic!("the load does not send these"),
        }
    }

    fn deliver(&mut self, (chat_seq, payload): &(u64, Vec<u8>)) {
        let mut inboxes = self.inboxes.lock().unwrap();
        let (socket, inbox_seq) = inboxes.get_mut(&(self.number + 1)).unwrap();
        *inbox_seq += 1;
        let fields = DeliverFields {
            inbox_seq: *inbox_seq,
            chat: self.number as u128 + 1000,
            chat_seq: *chat_seq,
            sender: "u",
            ..DeliverFields::default()
        };
        let mut out = Vec::new();
        self.builder.deliver(&mut out, &fields, payload, Payload::Inline);
        socket.write_all(&out).unwrap();
    }

    fn serve(mut self, mut socket: TcpStream) {
        let mut decoder = Decoder::default();
        let mut chunk = [0; 1000];
        loop {
            let bytes = socket.read(&mut chunk).unwrap_or(0);
            if bytes == 0 {
                return;
            }
            let (mut input, mut out) = (&chunk[..bytes], Vec::new());
            loop {
                let mut rest = input;
                let Some(frame) = decoder.decode(&mut rest, limits::FRAME_MAX_BYTES).unwrap() else { break };
                input = &input[input.len() - rest.len()..];
                self.answer(ClientFrame::parse(&frame).unwrap(), &mut out);
            }
            if socket.write_all(&out).is_err() {
                return;
            }
        }
    }
}

fn serve(trick: Trick) -> SocketAddr {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = listener.local_addr().unwrap();
    thread::spawn(move || {
        let inboxes = Inboxes::default();
        for (number, socket) in listener.incoming().enumerate() {
            let socket = socket.unwrap();
            inboxes.lock().unwrap().insert(number, (socket.try_clone().unwrap(), 0));
            let (inboxes, builder) = (inboxes.clone(), Builder::default());
            let connection = Connection { number, inboxes, builder, trick, chat_seq: 0, held: None };
            thread::spawn(move || connection.serve(socket));
        }
    });
    address
}

fn minter() -> Minter {
    let data = tempfile::tempdir().unwrap();
    let mut text = String::new();
    AsymmetricKeyPair::<V4>::generate().unwrap().secret.fmt(&mut text).unwrap();
    std::fs::create_dir(data.path().join("keys")).unwrap();
    std::fs::write(data.path().join("keys/dev.secret"), text).unwrap();
    Minter::load(data.path()).unwrap()
}

/// Ten messages a pair and more, on three pairs.
fn faults(trick: Trick) -> Faults {
    let plan = Plan { pairs: users::pairs(3), in_flight: 4, payload_bytes: 128, waits: Waits::Asleep };
    let mut load = PairsLoad::start(serve(trick), &minter(), &plan).unwrap();
    load.measured(true);
    load.resume();
    while load.peers.done_of_each() < 10 {
        load.turn().unwrap();
    }
    load.pause();
    drain(&mut load).unwrap();
    assert_eq!(load.outstanding(), 0);
    let latencies = load.take_latencies();
    assert!(latencies.deliver.percentiles().is_some() && latencies.ack.percentiles().is_some());
    load.faults()
}

#[test]
fn an_honest_server_has_no_faults() {
    assert_eq!(faults(Trick::None), Faults::default());
}

#[test]
fn a_server_that_repeats_is_caught() {
    assert_eq!(faults(Trick::Repeat(3)), Faults { duplicated: 3, ..Faults::default() });
}

#[test]
fn a_server_that_swaps_is_caught() {
    assert_eq!(faults(Trick::Swap(3)), Faults { reordered: 3, ..Faults::default() });
}

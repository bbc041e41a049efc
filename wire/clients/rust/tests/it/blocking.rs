//! The blocking client over real sockets.

use std::io::{Read, Write};
use std::net::{TcpListener, TcpStream};
use std::thread;
use std::time::Duration;

use whimbrel_client::{Client, ClientError, Config, Event};
use whimbrel_wire::{Code, RefusedFields};

use crate::node::{Ear, Heard, bytes, chat_info, deliver, sent, welcome};

/// Far beyond what anything here takes.
const LONG: Duration = Duration::from_secs(60);

struct Node {
    socket: TcpStream,
    ear: Ear,
    heard: Vec<Heard>,
}

impl Node {
    fn accept(listener: &TcpListener) -> Node {
        Node { socket: listener.accept().unwrap().0, ear: Ear::default(), heard: Vec::new() }
    }

    fn next(&mut self) -> Heard {
        let mut buffer = [0; 4096];
        while self.heard.is_empty() {
            let count = self.socket.read(&mut buffer).unwrap();
            assert_ne!(count, 0, "closed");
            self.heard = self.ear.hear(&buffer[..count]);
        }
        self.heard.remove(0)
    }

    fn tell(&mut self, bytes: &[u8]) {
        self.socket.write_all(bytes).unwrap();
    }

    fn log_in(&mut self) -> u64 {
        let Heard::Hello { correlation, floor, .. } = self.next() else { panic!("no Hello") };
        self.tell(&welcome(correlation, floor, floor));
        floor
    }
}

fn client(listener: &TcpListener) -> Client {
    Client::connect(listener.local_addr().unwrap().to_string(), Config::new("alice", 1, "token")).unwrap()
}

fn next(client: &mut Client) -> Event {
    client.wait(LONG).unwrap().expect("an event")
}

#[test]
fn a_broken_connection_is_made_again_and_what_was_unanswered_goes_out_again() {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let mut client = client(&listener);
    let node = thread::spawn(move || {
        let mut node = Node::accept(&listener);
        assert_eq!(node.log_in(), 0);
        let Heard::Info { correlation, chat } = node.next() else { panic!("no question") };
        node.tell(&chat_info(correlation, chat, 0));
        let first = node.next();
        assert!(matches!(first, Heard::Send { client_seq: 1, .. }));
        node.tell(&deliver(1));
        assert_eq!(node.next(), Heard::Ack { floor: 1 });
        drop(node);
        let mut node = Node::accept(&listener);
        assert_eq!(node.log_in(), 1);
        let Heard::Send { client_seq, payload, .. } = node.next() else { panic!("no send") };
        assert_eq!((client_seq, &payload[..]), (1, &b"hello"[..]));
        let answer = sent(7, 1, 5);
        node.tell(&answer[..9]);
        node.tell(&answer[9..]);
        let Heard::Ping { correlation } = node.next() else { panic!("no ping") };
        node.tell(&bytes(|b, out| b.pong(out, correlation, 1)));
    });
    assert!(matches!(next(&mut client), Event::Welcome(_)));
    client.chat_info(7);
    assert!(matches!(next(&mut client), Event::Chat { .. }));
    client.send(7, b"hello").unwrap();
    assert!(matches!(next(&mut client), Event::Delivered(_)));
    client.ack(1);
    assert!(matches!(next(&mut client), Event::Welcome(_)));
    assert!(matches!(next(&mut client), Event::Sent(_)));
    let correlation = client.ping();
    assert_eq!(next(&mut client), Event::Pong { correlation, server_time_ms: 1 });
    node.join().unwrap();
}

#[test]
fn a_refusal_that_stands_is_an_error_after_its_event() {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let mut client = client(&listener);
    let node = thread::spawn(move || {
        let mut node = Node::accept(&listener);
        let Heard::Hello { correlation, .. } = node.next() else { panic!("no Hello") };
        let fields = RefusedFields { correlation, code: Code::BadToken as u16, ..RefusedFields::default() };
        node.tell(&bytes(|b, out| b.refused(out, &fields)));
    });
    assert!(matches!(next(&mut client), Event::Refused(_)));
    let error = client.wait(LONG).unwrap_err();
    assert!(matches!(error, ClientError::Refused(refusal) if refusal.code == Some(Code::BadToken)));
    node.join().unwrap();
}

#[test]
fn no_time_to_wait_takes_what_is_there() {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let mut client = client(&listener);
    let mut node = Node::accept(&listener);
    assert_eq!(client.wait(Duration::ZERO).unwrap(), None);
    node.log_in();
    // The bytes are in this machine's own loopback, and arrive whenever they do.
    while client.wait(Duration::ZERO).unwrap().is_none() {}
    assert!(client.session().is_ready() && client.socket().is_some());
}

#[test]
fn nobody_there_is_an_error_that_names_the_address() {
    let address = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().to_string();
    let error = Client::connect(&address, Config::new("alice", 1, "token")).err().unwrap();
    assert!(error.to_string().contains(&address));
}

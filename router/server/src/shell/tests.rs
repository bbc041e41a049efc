//! The shell's parts against a real ring and real sockets. Every wait ends by an event; its bound is there only so that a hung
//! test fails.

use std::io::{Read, Write};
use std::net::{Shutdown, SocketAddr, TcpStream};
use std::os::fd::AsRawFd;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use bytes::Bytes;
use rustix::event::{EventfdFlags, PollFd, PollFlags};
use socket2::{Domain, Socket, Type};
use whimbrel_core::ids::{ChatId, ChatSeq, ConnId, PartitionId, ShardId};
use whimbrel_core::lane::{Confirm, LaneItem};

use super::conn::{Conns, News};
use super::lane::{Lanes, Mesh};
use super::ring::{Completion, Ring, SUBMISSIONS, Wait};
use super::sleep::Waker;

const PATIENCE: Duration = Duration::from_secs(30);

/// Later than any deadline that a test made.
const MUCH_LATER_US: u64 = 3_600_000_000;

/// A shell without a shard.
struct Station {
    ring: Ring,
    conns: Conns,
    listener: Socket,
    address: SocketAddr,
    heard: Vec<Heard>,
}

#[derive(Debug, PartialEq, Eq)]
enum Heard {
    Connected(ConnId),
    Received(ConnId, Vec<u8>),
    Written(ConnId, u32),
    Disconnected(ConnId),
    Detached(ConnId),
    MovedOut(u32),
    MovedIn(u64, u32),
}

impl Station {
    fn new() -> Station {
        let mut ring = Ring::new(64).unwrap();
        let listener = Socket::new(Domain::IPV4, Type::STREAM, None).unwrap();
        listener.bind(&SocketAddr::from(([127, 0, 0, 1], 0)).into()).unwrap();
        listener.listen(64).unwrap();
        let address = listener.local_addr().unwrap().as_socket().unwrap();
        ring.accept(listener.as_raw_fd());
        Station { ring, conns: Conns::default(), listener, address, heard: Vec::new() }
    }

    /// A client, and its connection here.
    fn connect(&mut self) -> (TcpStream, ConnId) {
        self.submit();
        let client = TcpStream::connect(self.address).unwrap();
        client.set_read_timeout(Some(PATIENCE)).unwrap();
        let conn = self.until(|heard| match heard {
            Heard::Connected(conn) => Some(*conn),
            _ => None,
        });
        (client, conn)
    }

    /// Hands the kernel what the last turn left.
    fn submit(&mut self) {
        self.conns.flush(&mut self.ring);
        self.ring.enter(Wait::No).unwrap();
    }

    /// Until all sockets are closed.
    fn until_empty(&mut self) {
        while self.conns.open_count() > 0 {
            self.turn();
        }
        self.submit();
    }

    /// Turns until something is heard.
    fn until<T>(&mut self, found: impl Fn(&Heard) -> Option<T>) -> T {
        loop {
            if let Some(index) = self.heard.iter().position(|heard| found(heard).is_some()) {
                return found(&self.heard.remove(index)).unwrap();
            }
            self.turn();
        }
    }

    fn turn(&mut self) {
        self.conns.flush(&mut self.ring);
        let nothing = self.conns.news.is_empty();
        let quiet = self.ring.enter(if nothing { Wait::UpTo(PATIENCE) } else { Wait::No }).unwrap();
        assert!(!nothing || !quiet, "nothing comes any more; heard so far: {:?}", self.heard);
        while let Some(completion) = self.ring.next() {
            self.take(completion);
        }
        for news in self.conns.news.drain(..) {
            self.heard.push(match news {
                News::Disconnected(conn) => Heard::Disconnected(conn),
                News::Detached(conn) => Heard::Detached(conn),
            });
        }
    }

    fn take(&mut self, completion: Completion) {
        let Station { ring, conns, heard, .. } = self;
        match completion {
            Completion::Accepted { result, .. } => heard.push(Heard::Connected(conns.open(result.unwrap(), ring))),
            Completion::Received { slot, filled, more } => {
                if let Some(conn) = conns.received(slot, more, ring) {
                    heard.push(Heard::Received(conn, ring.bytes(&filled).to_vec()));
                }
                ring.give_back(filled);
            }
            Completion::ReceiveEnded { slot, errno } => conns.receive_ended(slot, errno, 0, ring),
            Completion::Sent { slot, queue, result } => {
                heard.extend(conns.sent(slot, queue, result, ring).map(|(conn, bytes)| Heard::Written(conn, bytes)));
            }
            Completion::MovedOut { slot, result } => {
                result.unwrap();
                conns.moved(slot, ring);
                heard.push(Heard::MovedOut(slot));
            }
            Completion::Shut { slot } => conns.was_shut(slot, ring),
            Completion::MovedIn { id, slot } => heard.push(Heard::MovedIn(id, slot)),
            Completion::Woken => {}
            Completion::LogWritten { .. } | Completion::NotWoken { .. } | Completion::Failed { .. } => {
                panic!("{completion:?}")
            }
        }
    }

    fn receive(&mut self, conn: ConnId, expected: &[u8]) {
        let mut bytes = Vec::new();
        while bytes.len() < expected.len() {
            bytes.extend(self.until(|heard| match heard {
                Heard::Received(from, bytes) if *from == conn => Some(bytes.clone()),
                _ => None,
            }));
        }
        assert_eq!(bytes, expected);
    }

    fn until_gone(&mut self, conn: ConnId) {
        self.until(|heard| (*heard == Heard::Disconnected(conn)).then_some(()));
        self.submit();
    }
}

#[test]
fn frames_and_payloads_arrive_in_order_and_are_counted() {
    let mut station = Station::new();
    let (mut client, conn) = station.connect();
    client.write_all(b"hello").unwrap();
    station.receive(conn, b"hello");
    let mut expected: Vec<u8> = Vec::new();
    for i in 0..200_usize {
        let head = [i as u8; 7];
        let payload = (i % 3 == 0).then(|| Bytes::from(vec![!(i as u8); 500 + i]));
        expected.extend(head.iter().chain(payload.iter().flatten()));
        station.conns.send(conn, &head, payload);
    }
    let total = expected.len() as u32;
    let mut written = 0;
    while written < total {
        written += station.until(|heard| match heard {
            Heard::Written(to, bytes) if *to == conn => Some(*bytes),
            _ => None,
        });
    }
    assert_eq!(written, total);
    let mut got = vec![0; expected.len()];
    client.read_exact(&mut got).unwrap();
    assert_eq!(got, expected);
}

/// The queue of requests runs full in the middle of sends in pieces: what describes the pieces is cleared by a submission, and
/// must not be used again for the next ones before the kernel has read it.
#[test]
fn pieces_stay_with_their_connection_when_the_submission_queue_runs_full() {
    let mut station = Station::new();
    let mut clients: Vec<_> = (0..8).map(|_| station.connect()).collect();
    for before in 0..8 {
        station.submit();
        // With the one that ends it, so many places are left as there are sends before it runs full.
        station.ring.murmur(SUBMISSIONS as usize - before - 1);
        for (number, (_, conn)) in clients.iter().enumerate() {
            let number = number as u8;
            station.conns.send(*conn, &[number; 9], Some(Bytes::from(vec![number; 2_000 + usize::from(number)])));
        }
        station.submit();
        for (number, (client, _)) in clients.iter_mut().enumerate() {
            let mut got = vec![0; 9 + 2_000 + number];
            client.read_exact(&mut got).unwrap();
            assert!(got.iter().all(|&byte| usize::from(byte) == number), "{number} got another's bytes");
        }
        // Their completions.
        for _ in 0..clients.len() {
            station.until(|heard| matches!(heard, Heard::Written(..)).then_some(()));
        }
    }
}

/// The same for the time of an alarm, which would be freed.
#[test]
fn an_alarm_rings_although_the_submission_queue_was_full() {
    let mut ring = Ring::new(4).unwrap();
    ring.murmur(SUBMISSIONS as usize - 1);
    ring.alarm(0, 1_000);
    let mut woken = 0;
    // The murmur's end, and the alarm.
    while woken < 2 {
        let quiet = ring.enter(Wait::UpTo(PATIENCE)).unwrap();
        assert!(!quiet, "it never rings");
        while let Some(completion) = ring.next() {
            assert!(matches!(completion, Completion::Woken), "{completion:?}");
            woken += 1;
        }
    }
}

#[test]
fn a_slow_reader_gets_all_of_a_long_queue() {
    let mut station = Station::new();
    let (client, conn) = station.connect();
    let payload = Bytes::from((0..4_000_000_u32).map(|i| (i / 7) as u8).collect::<Vec<_>>());
    station.conns.send(conn, b"head", Some(payload.clone()));
    let reader = std::thread::spawn(move || {
        let mut client = client;
        let mut got = vec![0; 4 + 4_000_000 + 4];
        client.read_exact(&mut got).unwrap();
        got
    });
    station.until(|heard| matches!(heard, Heard::Written(..)).then_some(()));
    // It goes behind what is left of the first.
    station.conns.send(conn, b"tail", None);
    station.conns.close(conn, 0, &mut station.ring);
    station.until_gone(conn);
    let got = reader.join().unwrap();
    assert!(got.starts_with(b"head") && got[4..4_000_004] == payload[..] && got.ends_with(b"tail"));
}

#[test]
fn what_is_said_while_a_send_is_not_reaped_yet_goes_out_after_it() {
    let mut station = Station::new();
    let (mut client, conn) = station.connect();
    station.conns.send(conn, b"first", None);
    station.submit();
    // A shard that is full leaves its completions for the next turn, and ends this one.
    station.conns.send(conn, b"second", None);
    station.conns.flush(&mut station.ring);
    for expected in [5, 6] {
        let bytes = station.until(|heard| match heard {
            Heard::Written(to, bytes) if *to == conn => Some(*bytes),
            _ => None,
        });
        assert_eq!(bytes, expected);
    }
    let mut read = [0; 11];
    client.read_exact(&mut read).unwrap();
    assert_eq!(&read, b"firstsecond");
}

#[test]
fn what_was_sent_before_a_close_is_read_although_bytes_came_unread() {
    let mut station = Station::new();
    let (mut client, conn) = station.connect();
    client.write_all(&[1; 100_000]).unwrap();
    station.conns.send(conn, b"goodbye", None);
    station.conns.close(conn, 0, &mut station.ring);
    station.until_gone(conn);
    let mut text = Vec::new();
    client.read_to_end(&mut text).unwrap();
    assert_eq!(text, b"goodbye");
    assert_eq!(station.conns.open_count(), 1, "it waits for the client's end");
    drop(client);
    station.until_empty();
}

#[test]
fn a_client_that_ended_its_half_is_still_answered() {
    let mut station = Station::new();
    let (mut client, conn) = station.connect();
    client.write_all(b"question").unwrap();
    client.shutdown(Shutdown::Write).unwrap();
    station.receive(conn, b"question");
    station.conns.send(conn, b"answer", None);
    station.until_gone(conn);
    let mut text = Vec::new();
    station.until_empty();
    client.read_to_end(&mut text).unwrap();
    assert_eq!(text, b"answer");
}

#[test]
fn a_client_that_reads_nothing_is_given_up() {
    let mut station = Station::new();
    let (client, conn) = station.connect();
    station.conns.send(conn, b"", Some(Bytes::from(vec![0; 32 << 20])));
    station.until(|heard| matches!(heard, Heard::Written(..)).then_some(()));
    station.conns.close(conn, 0, &mut station.ring);
    assert!(station.conns.next_deadline_us().is_some());
    station.conns.expire(MUCH_LATER_US, &mut station.ring);
    station.until_gone(conn);
    station.until_empty();
    drop(client);
    // The slot comes again under another name.
    let (_client, next) = station.connect();
    assert_eq!(next.slot, conn.slot);
    assert!(next.generation > conn.generation);
    station.conns.send(conn, b"late", None);
    station.conns.close(conn, 0, &mut station.ring);
    assert_eq!(station.conns.open_count(), 1, "what is late for the former does not reach the latter");
}

#[test]
fn a_socket_moves_to_another_ring_with_nothing_lost() {
    let mut source = Station::new();
    let mut target = Station::new();
    let (mut client, conn) = source.connect();
    client.write_all(b"before").unwrap();
    source.receive(conn, b"before");
    source.conns.detach(conn, &mut source.ring);
    source.until(|heard| (*heard == Heard::Detached(conn)).then_some(()));
    // Nobody receives now: this waits in the socket.
    client.write_all(b"between").unwrap();
    assert!(source.conns.begin_move(conn));
    assert!(!source.conns.begin_move(conn), "once");
    source.ring.move_out(conn.slot, target.ring.fd(), 77);
    source.ring.enter(Wait::No).unwrap();
    let slot = target.until(|heard| match heard {
        Heard::MovedIn(77, slot) => Some(*slot),
        _ => None,
    });
    source.until(|heard| (*heard == Heard::MovedOut(conn.slot)).then_some(()));
    assert_eq!(source.conns.open_count(), 0);
    let moved = target.conns.open(slot, &mut target.ring);
    client.write_all(b" and after").unwrap();
    target.receive(moved, b"between and after");
    target.conns.send(moved, b"welcome", None);
    target.conns.close(moved, 0, &mut target.ring);
    target.until_gone(moved);
    let mut text = Vec::new();
    client.read_to_end(&mut text).unwrap();
    assert_eq!(text, b"welcome");
    assert!(source.listener.local_addr().is_ok());
}

/// The kernel runs deferred work in portions, and most of this brings no completion. Whenever the ring says that it may be
/// slept, the event has to come.
#[test]
fn what_the_ring_has_left_undone_ends_its_sleep() {
    let mut ring = Ring::new(4).unwrap();
    let event = rustix::event::eventfd(0, EventfdFlags::CLOEXEC).unwrap();
    ring.register_event(event.as_raw_fd()).unwrap();
    let patience = rustix::event::Timespec::try_from(PATIENCE).unwrap();
    for _ in 0..100 {
        ring.murmur(200);
        ring.enter(Wait::No).unwrap();
        ring.notify(true);
        while ring.next().is_none() {
            if ring.enter(Wait::Look).unwrap() {
                let mut written = [PollFd::new(&event, PollFlags::IN)];
                let ready = rustix::event::poll(&mut written, Some(&patience)).unwrap();
                assert_eq!(ready, 1, "it slept over its completion");
                rustix::io::read(&event, &mut [0; 8]).unwrap();
            }
        }
        ring.notify(false);
    }
}

fn item(number: u64) -> LaneItem {
    let partition = PartitionId(0);
    let applied = ChatSeq(number);
    LaneItem::Confirm(Confirm { source: partition, target: partition, chat: ChatId(0), applied, rewind: false })
}

fn number(item: &LaneItem) -> u64 {
    match item {
        LaneItem::Confirm(confirm) => confirm.applied.0,
        other => panic!("{other:?}"),
    }
}

/// Two shards hand a number to and fro. Each sleeps as soon as its lanes are empty, so a single lost wake stops both; and the
/// loser of every race is the one that hangs here.
#[test]
fn no_wake_is_lost() {
    const ROUNDS: u64 = 20_000;
    let mesh = Arc::new(Mesh::new(vec![Waker::new().unwrap(), Waker::new().unwrap()]));
    let sleeps = Arc::new(AtomicU64::new(0));
    let play = |own: u16| {
        let (mesh, sleeps) = (mesh.clone(), sleeps.clone());
        move || {
            let peer = ShardId(1 - own);
            let mut ring = Ring::new(4).unwrap();
            mesh.set_ring(ShardId(own), ring.fd());
            let mut lanes = Lanes::new(mesh.clone(), ShardId(own));
            // Both rings stay until both are done.
            let mut last = 0;
            if own == 0 {
                while mesh.ring(peer).is_none() {
                    std::thread::yield_now();
                }
                lanes.push(peer, item(1));
                lanes.send(&mut ring);
                ring.enter(Wait::No).unwrap();
            }
            while last < ROUNDS - 1 {
                while let Some(mut batch) = lanes.pop(peer) {
                    for it in batch.items.drain(..) {
                        last = number(&it);
                        lanes.push(peer, item(last + 1));
                    }
                    lanes.done(peer, 1, batch.items);
                }
                lanes.send(&mut ring);
                ring.enter(Wait::No).unwrap();
                while ring.next().is_some() {}
                if last < ROUNDS - 1 && lanes.fall_asleep() {
                    sleeps.fetch_add(1, Ordering::Relaxed);
                    let quiet = ring.enter(Wait::UpTo(PATIENCE)).unwrap();
                    assert!(!quiet, "a wake was lost at {last}");
                    lanes.wake_up();
                }
            }
            ring
        }
    };
    let other = std::thread::spawn({
        let play = play(1);
        move || drop(play())
    });
    let ring = play(0)();
    other.join().unwrap();
    drop(ring);
    assert!(sleeps.load(Ordering::Relaxed) > 0, "nobody ever slept: nothing was tested");
}

#[test]
fn a_lane_is_bounded_and_says_when_it_has_room_again() {
    let mesh = Arc::new(Mesh::new(vec![Waker::new().unwrap(), Waker::new().unwrap()]));
    let mut ring = Ring::new(4).unwrap();
    let mut sender = Lanes::new(mesh.clone(), ShardId(0));
    let receiver = Lanes::new(mesh, ShardId(1));
    let mut room = vec![0; 2];
    assert!(sender.room(&mut room));
    let capacity = room[1];
    let mut sent = 0;
    // One item a turn: it is the batches that run out of places first, and then wait.
    while room[1] > 0 {
        sent += 1;
        sender.push(ShardId(1), item(sent));
        sender.send(&mut ring);
        assert!(!sender.room(&mut room), "it had room all the time");
        assert_eq!(room[1], capacity - sent as usize);
    }
    assert!(sender.is_stuck(&room));
    let mut expected = 1;
    while expected <= sent {
        let Some(mut batch) = receiver.pop(ShardId(0)) else {
            sender.send(&mut ring);
            continue;
        };
        let count = batch.items.len();
        for it in batch.items.drain(..) {
            assert_eq!(number(&it), expected);
            expected += 1;
        }
        receiver.done(ShardId(0), count, batch.items);
    }
    assert!(sender.room(&mut room));
    assert_eq!(room[1], capacity);
    assert!(!sender.is_stuck(&room));
}

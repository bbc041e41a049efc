//! Readers that are slow, or never read: what they cost the server, and what they get in the end.

use crate::common::Server;
use crate::raw::{Raw, Reply};

/// What a server may need more for a backlog of any size: staging of two shards, queues, and what the allocator keeps.
const MEMORY_MAX_BYTES: u64 = 32 << 20;

#[test]
fn a_device_that_does_not_read_is_served_when_it_does() {
    let dir = tempfile::tempdir().unwrap();
    let server = Server::start(dir.path());
    let (mut bob, _) = Raw::log_in(&server.address, &server.token("bob"));
    let (mut alice, _) = Raw::log_in(&server.address, &server.token("alice"));
    let chat = alice.pair("bob");
    // More than a device's credit in messages and in bytes.
    let messages = 600;
    let payload = |number: u64| [number.to_le_bytes().as_slice(), &[7; 1_000]].concat();
    for number in 1..=messages {
        alice.send(chat, number, number - 1, &payload(number));
        assert!(matches!(alice.reply(), Reply::Sent { .. }));
    }
    for expected in 1..=messages + 1 {
        match bob.reply() {
            Reply::Deliver { inbox_seq, message, .. } => {
                assert_eq!(inbox_seq, expected);
                assert_eq!(message, (expected > 1).then(|| payload(expected - 1)));
            }
            other => panic!("{other:?}"),
        }
        // As late as possible: every hundredth.
        if expected % 100 == 0 {
            bob.ack(expected);
        }
    }
    bob.ack(messages + 1);
    bob.expect_alive();
}

/// One device stops reading and 60 MB of messages come for it. They lie in the log, not in memory, others notice nothing, and
/// later it gets them all.
#[test]
fn a_reader_that_stops_costs_no_memory_and_disturbs_nobody() {
    const MESSAGES: u64 = 1_000;
    let dir = tempfile::tempdir().unwrap();
    let server = Server::start(dir.path());
    let (mut bob, _) = Raw::log_in(&server.address, &server.token("bob"));
    let (mut dave, _) = Raw::log_in(&server.address, &server.token("dave"));
    let (mut alice, _) = Raw::log_in(&server.address, &server.token("alice"));
    let (mut carol, _) = Raw::log_in(&server.address, &server.token("carol"));
    let (to_bob, to_dave) = (alice.pair("bob"), carol.pair("dave"));
    assert!(matches!(dave.reply(), Reply::Deliver { inbox_seq: 1, message: None, .. }));
    let payload = |number: u64| [number.to_le_bytes().as_slice(), &vec![number as u8; 60_000]].concat();
    let before = server.own_memory();
    let mut most = 0;
    for number in 1..=MESSAGES {
        alice.send(to_bob, number, number - 1, &payload(number));
        let stored = alice.reply();
        assert!(matches!(stored, Reply::Sent { .. }), "{stored:?}");
        if number % 10 == 0 {
            let number = number / 10;
            carol.send(to_dave, number, number - 1, b"beside it");
            assert!(matches!(carol.reply(), Reply::Sent { .. }));
            match dave.reply() {
                Reply::Deliver { inbox_seq, .. } => assert_eq!(inbox_seq, number + 1),
                other => panic!("{other:?}"),
            }
            dave.ack(number + 1);
            most = server.own_memory().max(most);
        }
    }
    assert!(most < before + MEMORY_MAX_BYTES, "{before} bytes before, {most} with a backlog");
    for place in 1..=MESSAGES + 1 {
        match bob.reply() {
            Reply::Deliver { inbox_seq, message, .. } => {
                assert_eq!(inbox_seq, place);
                assert!(message == (place > 1).then(|| payload(place - 1)), "delivery {place} is not what was sent");
            }
            other => panic!("{other:?}"),
        }
        bob.ack(place);
    }
    bob.expect_alive();
}

/// One that asks and never reads the answers is closed when too much waits for it, and finds all in its inbox later.
#[test]
fn who_asks_and_never_reads_is_closed() {
    let dir = tempfile::tempdir().unwrap();
    let mut server = Server::start(dir.path());
    let token = server.token("bob");
    let (mut bob, _) = Raw::log_in(&server.address, &token);
    let (mut alice, _) = Raw::log_in(&server.address, &server.token("alice"));
    let chat = alice.pair("bob");
    alice.send(chat, 1, 0, b"for later");
    assert!(matches!(alice.reply(), Reply::Sent { .. }));
    let mut pings = Vec::new();
    for number in 0..1_000 {
        bob.builder.ping(&mut pings, number);
    }
    let before = server.own_memory();
    while bob.try_write(&pings) {}
    let after = server.own_memory();
    assert!(after < before + MEMORY_MAX_BYTES, "{before} bytes before, {after} after");
    assert!(server.runs());
    alice.expect_alive();
    let (mut bob, _) = Raw::log_in(&server.address, &token);
    assert!(matches!(bob.reply(), Reply::Deliver { inbox_seq: 1, .. }));
    let second = bob.reply();
    assert!(matches!(&second, Reply::Deliver { message: Some(text), .. } if text == b"for later"), "{second:?}");
    drop(bob);
    server.terminate();
    let (status, errors) = server.wait();
    assert_eq!(status.code(), Some(0));
    assert!(errors.contains("slow_reader=1"), "{errors}");
}

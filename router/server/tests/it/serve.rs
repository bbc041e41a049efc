//! A server's life: start, the ways a start fails, a clean end, and a crash.

use std::fs;
use std::net::TcpListener;

use crate::common::{Server, serve, serve_shards, text};
use crate::raw::{Raw, Reply, hello};
use whimbrel_wire::{Code, fb};

#[test]
fn sigterm_says_goodbye_and_exits_0() {
    let dir = tempfile::tempdir().unwrap();
    let server = Server::start(dir.path());
    let (mut raw, _) = Raw::log_in(&server.address, &server.token("alice"));
    server.terminate();
    assert_eq!(raw.next(), Some(Reply::GoAway(Code::ShuttingDown)));
    raw.expect_end();
    let (status, errors) = server.wait();
    assert_eq!(status.code(), Some(0), "{errors}");
}

#[test]
fn a_second_server_on_the_same_data_is_told_who_has_it() {
    let dir = tempfile::tempdir().unwrap();
    let mut server = Server::start(dir.path());
    let second = serve(dir.path(), "127.0.0.1:0").output().unwrap();
    assert_eq!(second.status.code(), Some(1));
    let error = text(&second.stderr);
    assert!(error.contains(&server.pid().to_string()), "{error}");
    assert!(error.contains(dir.path().to_str().unwrap()), "{error}");
    assert!(server.runs());
}

#[test]
fn a_taken_port_is_named() {
    let taken = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = taken.local_addr().unwrap().to_string();
    let dir = tempfile::tempdir().unwrap();
    let output = serve(dir.path(), &address).output().unwrap();
    assert_eq!(output.status.code(), Some(1));
    let error = text(&output.stderr);
    assert!(error.contains(&address) && error.contains("--listen"), "{error}");
}

#[test]
fn a_data_directory_that_cannot_be_written_is_named() {
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("a-file");
    fs::write(&file, "").unwrap();
    let output = serve(&file, "127.0.0.1:0").output().unwrap();
    assert_eq!(output.status.code(), Some(1));
    assert!(text(&output.stderr).contains("a-file"), "{}", text(&output.stderr));
}

#[test]
fn another_number_of_shards_is_refused() {
    let dir = tempfile::tempdir().unwrap();
    let server = Server::start(dir.path());
    server.terminate();
    server.wait();
    let output = serve_shards(dir.path(), "127.0.0.1:0", 1).output().unwrap();
    assert_eq!(output.status.code(), Some(1));
    let error = text(&output.stderr);
    let data = dir.path().to_str().unwrap();
    assert!(error.contains(data) && error.contains("shards = 2, not 1") && error.contains("start with 2"), "{error}");
}

#[test]
fn unknown_keys_name_the_nearest() {
    let dir = tempfile::tempdir().unwrap();
    let config = dir.path().join("whimbrel.toml");
    fs::write(&config, "shrads = 2\n").unwrap();
    let output = serve(&dir.path().join("data"), "127.0.0.1:0").arg("--config").arg(&config).output().unwrap();
    assert_eq!(output.status.code(), Some(2));
    let error = text(&output.stderr);
    assert!(error.contains("shrads") && error.contains("shards"), "{error}");
    assert!(!dir.path().join("data").exists(), "nothing is made by a start that fails");
}

#[test]
fn without_dev_a_key_is_demanded() {
    let dir = tempfile::tempdir().unwrap();
    let output = crate::common::whimbrel()
        .args(["serve", "--listen", "127.0.0.1:0", "--data"])
        .arg(dir.path().join("data"))
        .output()
        .unwrap();
    assert_eq!(output.status.code(), Some(1));
    assert!(text(&output.stderr).contains("--dev"), "{}", text(&output.stderr));
}

#[test]
fn a_login_that_does_not_come_ends_the_connection() {
    let dir = tempfile::tempdir().unwrap();
    let mut command = serve(dir.path(), "127.0.0.1:0");
    command.env("WHIMBREL_LOGIN_TIMEOUT", "100ms");
    let server = Server::start_by(command, dir.path());
    let mut silent = Raw::connect(&server.address);
    assert_eq!(silent.next(), Some(Reply::Refused(Code::LoginTimeout)));
    silent.expect_end();
}

#[test]
fn a_session_that_says_nothing_ends() {
    let dir = tempfile::tempdir().unwrap();
    let mut command = serve(dir.path(), "127.0.0.1:0");
    command.env("WHIMBREL_KEEPALIVE", "100ms");
    let server = Server::start_by(command, dir.path());
    let (mut silent, _) = Raw::log_in(&server.address, &server.token("alice"));
    assert_eq!(silent.next(), Some(Reply::GoAway(Code::KeepaliveTimeout)));
    silent.expect_end();
}

#[test]
fn one_connection_too_many_is_told_so() {
    let dir = tempfile::tempdir().unwrap();
    let mut command = serve_shards(dir.path(), "127.0.0.1:0", 1);
    command.env("WHIMBREL_CONNECTIONS", "2");
    let server = Server::start_by(command, dir.path());
    let (mut alice, _) = Raw::log_in(&server.address, &server.token("alice"));
    let (bob, _) = Raw::log_in(&server.address, &server.token("bob"));
    let mut carol = Raw::connect(&server.address);
    assert_eq!(carol.next(), Some(Reply::Refused(Code::TooManyConnections)));
    carol.expect_end();
    alice.expect_alive();
    drop(bob);
    // There is a place again once the server has heard that bob left.
    let token = server.token("carol");
    loop {
        let mut attempt = Raw::connect(&server.address);
        attempt.write(&hello(&token));
        match attempt.reply() {
            Reply::Welcome { .. } => break,
            Reply::Refused(Code::TooManyConnections) => {}
            other => panic!("{other:?}"),
        }
    }
}

/// More connections than the ring has places for: some are not even accepted, and it goes on when there are places again.
#[test]
fn a_crowd_at_the_door_is_survived() {
    let dir = tempfile::tempdir().unwrap();
    let mut command = serve_shards(dir.path(), "127.0.0.1:0", 1);
    command.env("WHIMBREL_CONNECTIONS", "2");
    let server = Server::start_by(command, dir.path());
    let token = server.token("alice");
    let (mut alice, _) = Raw::log_in(&server.address, &token);
    let crowd: Vec<Raw> = (0..400).map(|_| Raw::connect(&server.address)).collect();
    alice.expect_alive();
    drop(crowd);
    drop(alice);
    loop {
        let mut attempt = Raw::connect(&server.address);
        attempt.write(&hello(&token));
        match attempt.next() {
            Some(Reply::Welcome { .. }) => break,
            Some(Reply::Refused(Code::TooManyConnections)) | None => {}
            other => panic!("{other:?}"),
        }
    }
    server.terminate();
    let (status, errors) = server.wait();
    assert_eq!(status.code(), Some(0), "{errors}");
}

/// A stop in the middle of a stream of sends: what it acknowledged it has, and what it did not it may have.
#[test]
fn what_was_acknowledged_outlives_sigterm() {
    let dir = tempfile::tempdir().unwrap();
    let server = Server::start(dir.path());
    Raw::log_in(&server.address, &server.token("bob"));
    let (mut alice, _) = Raw::log_in(&server.address, &server.token("alice"));
    let chat = alice.pair("bob");
    let (mut sent, mut acknowledged, mut goodbye) = (0, 0, false);
    loop {
        if !goodbye && sent < acknowledged + 32 {
            sent += 1;
            alice.send(chat, sent, sent - 1, &sent.to_le_bytes());
            continue;
        }
        match alice.next() {
            Some(Reply::Sent { client_seq, .. }) => {
                assert_eq!(client_seq, acknowledged + 1, "in order");
                acknowledged = client_seq;
                if acknowledged == 200 {
                    server.terminate();
                }
            }
            Some(Reply::GoAway(Code::ShuttingDown)) => goodbye = true,
            Some(Reply::Error { code, .. }) => assert!(code.retriable(), "{code:?}"),
            None => break,
            Some(other) => panic!("{other:?}"),
        }
    }
    assert!(goodbye && acknowledged >= 200);
    let (status, errors) = server.wait();
    assert_eq!(status.code(), Some(0), "{errors}");

    let server = Server::start(dir.path());
    let (mut bob, welcome) = Raw::log_in(&server.address, &server.token("bob"));
    let Reply::Welcome { head, .. } = welcome else { unreachable!() };
    assert!(head > acknowledged, "{head} of {acknowledged} and the making of the chat");
    for place in 1..=head {
        match bob.reply() {
            Reply::Deliver { inbox_seq, message, .. } => {
                assert_eq!(inbox_seq, place);
                assert_eq!(message, (place > 1).then(|| (place - 1).to_le_bytes().to_vec()));
            }
            other => panic!("{other:?}"),
        }
        if place % 100 == 0 {
            bob.ack(place);
        }
    }
}

/// Everybody sees the same sequence, whichever core they are on.
#[test]
fn a_group_across_shards_has_one_sequence() {
    const MESSAGES: u64 = 30;
    let dir = tempfile::tempdir().unwrap();
    let server = Server::start(dir.path());
    let people = ["alice", "bob", "carol", "dave", "erin", "frank"];
    let mut shards = Vec::new();
    let mut members: Vec<Raw> = Vec::new();
    for name in people {
        let (raw, welcome) = Raw::log_in(&server.address, &server.token(name));
        let Reply::Welcome { shard, .. } = welcome else { unreachable!() };
        shards.push(shard);
        members.push(raw);
    }
    assert!(shards.contains(&0) && shards.contains(&1), "{shards:?}");
    let chat = match members[0].create_chat(fb::ChatKind::Group, &people[1..], "Waders") {
        Reply::ChatInfo { chat, members, .. } => {
            assert_eq!(members, people);
            chat
        }
        other => panic!("{other:?}"),
    };
    // All talk at once.
    for number in 1..=MESSAGES {
        for (name, member) in people.iter().zip(&mut members) {
            member.send(chat, number, number - 1, format!("{name} {number}").as_bytes());
        }
    }
    let total = 1 + MESSAGES * people.len() as u64;
    let mut sequences = Vec::new();
    for (name, member) in people.iter().zip(&mut members) {
        let mut sequence = vec![String::new(); total as usize + 1];
        let (mut delivered, mut stored) = (0, 0);
        // The maker's device does not hear of the making.
        let expected = total - MESSAGES - u64::from(*name == "alice");
        while delivered < expected || stored < MESSAGES {
            let (place, text) = match member.reply() {
                Reply::Deliver { inbox_seq, chat_seq, message, sender, .. } => {
                    delivered += 1;
                    assert_eq!(inbox_seq, delivered);
                    assert!(message.is_none() || sender != *name, "what oneself sent is not delivered");
                    (chat_seq, message.map_or("made".to_owned(), |bytes| String::from_utf8(bytes).unwrap()))
                }
                Reply::Sent { client_seq, chat_seq, .. } => {
                    stored += 1;
                    assert_eq!(client_seq, stored);
                    (chat_seq, format!("{name} {client_seq}"))
                }
                other => panic!("{other:?}"),
            };
            let place = &mut sequence[place as usize];
            assert!(place.is_empty(), "{name}: {text} where {place} is");
            *place = text;
        }
        sequences.push(sequence.split_off(2));
    }
    assert!(sequences[0].iter().all(|text| !text.is_empty()));
    assert!(sequences.iter().all(|sequence| *sequence == sequences[0]));
}

#[test]
fn what_was_acknowledged_outlives_sigkill() {
    let dir = tempfile::tempdir().unwrap();
    let server = Server::start(dir.path());
    // Five people, so that their partitions lie on both shards.
    let people = ["bob", "carol", "dave", "erin", "frank"];
    let mut shards = Vec::new();
    for name in people {
        let (_, welcome) = Raw::log_in(&server.address, &server.token(name));
        let Reply::Welcome { shard, .. } = welcome else { unreachable!() };
        shards.push(shard);
    }
    assert!(shards.contains(&0) && shards.contains(&1), "{shards:?}");
    let (mut alice, _) = Raw::log_in(&server.address, &server.token("alice"));
    let chats: Vec<u128> = people.iter().map(|name| alice.pair(name)).collect();
    let mut client_seq = 0;
    for round in 0..20_u64 {
        for &chat in &chats {
            client_seq += 1;
            let prev = if round == 0 { 0 } else { client_seq - chats.len() as u64 };
            alice.send(chat, client_seq, prev, format!("round {round}").as_bytes());
            assert!(matches!(alice.reply(), Reply::Sent { .. }));
        }
    }
    let address = server.address.clone();
    server.kill();

    let server = Server::start_on(dir.path(), &address);
    for name in people {
        let (mut raw, welcome) = Raw::log_in(&server.address, &server.token(name));
        let Reply::Welcome { head, floor, .. } = welcome else { unreachable!() };
        // The last ones may have been acknowledged and not yet put into inboxes: they come now.
        assert!(head <= 21 && floor == 0, "{name}: {head} {floor}");
        for expected in 1..=21 {
            match raw.reply() {
                Reply::Deliver { inbox_seq, chat_seq, message, .. } => {
                    assert_eq!((inbox_seq, chat_seq), (expected, expected));
                    let text = (expected > 1).then(|| format!("round {}", expected - 2).into_bytes());
                    assert_eq!(message, text);
                }
                other => panic!("{other:?}"),
            }
        }
    }
    // A send that is repeated after the crash is known to be one.
    let (mut alice, _) = Raw::log_in(&server.address, &server.token("alice"));
    alice.send(chats[0], 1, 0, b"round 0");
    let repeated = loop {
        match alice.reply() {
            Reply::Deliver { .. } => {}
            reply => break reply,
        }
    };
    assert_eq!(repeated, Reply::Sent { client_seq: 1, chat_seq: 2, status: 1 });
}

#[test]
fn every_request_of_a_flood_is_answered_once() {
    let dir = tempfile::tempdir().unwrap();
    let server = Server::start(dir.path());
    Raw::log_in(&server.address, &server.token("bob"));
    let (mut alice, _) = Raw::log_in(&server.address, &server.token("alice"));
    let chat = alice.pair("bob");
    let flood: u64 = 300;
    for number in 1..=flood {
        alice.send(chat, number, number - 1, b"flood");
    }
    let mut answered = vec![0; flood as usize + 1];
    let mut stored = Vec::new();
    for _ in 0..flood {
        match alice.reply() {
            Reply::Sent { client_seq, chat_seq, .. } => {
                answered[client_seq as usize] += 1;
                stored.push((client_seq, chat_seq));
            }
            Reply::Error { correlation, code } => {
                assert!(code.retriable(), "{code:?}");
                answered[correlation as usize] += 1;
            }
            other => panic!("{other:?}"),
        }
    }
    assert!(answered[1..].iter().all(|&count| count == 1));
    // What was stored is the flood's beginning, in its order.
    assert!(
        stored.iter().zip(1..).all(|(&(client_seq, chat_seq), place)| (client_seq, chat_seq) == (place, place + 1))
    );
    alice.expect_alive();
}

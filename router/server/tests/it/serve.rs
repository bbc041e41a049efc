//! A server's life: start, the ways a start fails, a clean end, and a crash.

use std::fs;
use std::net::TcpListener;

use crate::common::{Server, lines, serve, text, wait, wait_for};
use crate::raw::{Raw, Reply};
use whimbrel_wire::Code;

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
    let output = serve(dir.path(), "127.0.0.1:0").args(["--shards", "1"]).output().unwrap();
    assert_ne!(output.status.code(), Some(0));
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
    assert_ne!(output.status.code(), Some(0));
    assert!(text(&output.stderr).contains("--dev"), "{}", text(&output.stderr));
}

#[test]
fn a_login_that_does_not_come_ends_the_connection() {
    let dir = tempfile::tempdir().unwrap();
    let mut child = serve(dir.path(), "127.0.0.1:0")
        .env("WHIMBREL_LOGIN_TIMEOUT", "100ms")
        .stdout(std::process::Stdio::piped())
        .spawn()
        .unwrap();
    let ready = wait_for(&lines(child.stdout.take().unwrap()), "ready ");
    let address = ready.split(' ').nth(1).unwrap();
    let mut silent = Raw::connect(address);
    assert_eq!(silent.next(), Some(Reply::Refused(Code::LoginTimeout)));
    silent.expect_end();
    child.kill().unwrap();
    wait(&mut child);
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
        assert_eq!((head, floor), (21, 0), "the chat's making and 20 messages wait for {name}");
        for expected in 1..=head {
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

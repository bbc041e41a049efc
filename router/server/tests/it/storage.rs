//! A disk that fills up or fails under a running server: it refuses, or it stops and says so; it never acknowledges what is
//! not there.

use std::fs;
use std::path::Path;
use std::process::Command;

use crate::common::{Server, serve_shards};
use crate::raw::{Raw, Reply};
use whimbrel_wire::Code;

/// One shard with segments that are soon full.
fn small(data: &Path) -> Command {
    let mut command = serve_shards(data, "127.0.0.1:0", 1);
    command.env("WHIMBREL_SEGMENT_SIZE", "1MiB");
    command
}

fn payload(number: u64) -> Vec<u8> {
    [number.to_le_bytes().as_slice(), &[number as u8; 20_000]].concat()
}

/// Reads and acknowledges what is for bob: the making of the chat and these messages. The newest may be on its way to his inbox.
fn expect_delivered(server: &Server, messages: u64) {
    let (mut bob, welcome) = Raw::log_in(&server.address, &server.token("bob"));
    let Reply::Welcome { floor, .. } = welcome else { unreachable!() };
    for place in floor + 1..=messages + 1 {
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

#[test]
fn where_no_segment_can_be_made_sends_are_refused_until_one_can() {
    let dir = tempfile::tempdir().unwrap();
    let server = Server::start_by(small(dir.path()), dir.path());
    Raw::log_in(&server.address, &server.token("bob"));
    let (mut alice, _) = Raw::log_in(&server.address, &server.token("alice"));
    let chat = alice.pair("bob");
    // In the way of the next one, as a full disk is.
    let segments = dir.path().join("shard-0");
    let obstacle = (1..).map(|id| segments.join(format!("{id:010}.seg"))).find(|path| !path.exists()).unwrap();
    fs::create_dir(&obstacle).unwrap();
    let mut stored = 0;
    loop {
        alice.send(chat, stored + 1, stored, &payload(stored + 1));
        match alice.reply() {
            Reply::Sent { .. } => stored += 1,
            Reply::Error { code, .. } => {
                assert!(matches!(code, Code::StorageFull | Code::Overloaded), "{code:?}");
                if code == Code::StorageFull {
                    break;
                }
            }
            other => panic!("{other:?}"),
        }
        assert!(stored < 1_000, "three segments cannot hold so much");
    }
    // What is there is delivered, and whoever is there is served.
    expect_delivered(&server, stored);
    alice.expect_alive();
    fs::remove_dir(&obstacle).unwrap();
    loop {
        alice.send(chat, stored + 1, stored, &payload(stored + 1));
        match alice.reply() {
            Reply::Sent { .. } => break,
            Reply::Error { code, .. } => assert!(code.retriable(), "{code:?}"),
            other => panic!("{other:?}"),
        }
    }
    expect_delivered(&server, stored + 1);
    server.terminate();
    let (status, errors) = server.wait();
    assert_eq!(status.code(), Some(0), "{errors}");
    assert!(errors.contains("cannot make a segment of the log") && errors.contains("storage_full="), "{errors}");
}

#[test]
fn where_the_log_cannot_be_written_the_server_stops_and_keeps_what_it_acknowledged() {
    let dir = tempfile::tempdir().unwrap();
    let server = Server::start_by(small(dir.path()), dir.path());
    Raw::log_in(&server.address, &server.token("bob"));
    let (mut alice, _) = Raw::log_in(&server.address, &server.token("alice"));
    let chat = alice.pair("bob");
    // A spare one goes; the log finds out when it wants to write there.
    let spare = dir.path().join("shard-0/0000000002.seg");
    let hidden = dir.path().join("elsewhere");
    fs::rename(&spare, &hidden).unwrap();
    let mut stored = 0;
    loop {
        alice.send(chat, stored + 1, stored, &payload(stored + 1));
        match alice.next() {
            Some(Reply::Sent { .. }) => stored += 1,
            None => break,
            Some(other) => panic!("{other:?}"),
        }
        assert!(stored < 1_000, "one segment cannot hold so much");
    }
    assert!(stored > 0);
    let (status, errors) = server.wait();
    assert_eq!(status.code(), Some(74), "{errors}");
    assert!(errors.contains("nothing more is acknowledged") && errors.contains("start again"), "{errors}");
    fs::rename(&hidden, &spare).unwrap();
    let server = Server::start_by(small(dir.path()), dir.path());
    expect_delivered(&server, stored);
}

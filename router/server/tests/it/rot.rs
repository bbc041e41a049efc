//! A log that rotted under a real server: the partition concerned refuses and says so, all others are served, and when the
//! bytes are there again everything is as it was.

use std::fs;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use whimbrel_core::ids::{PartitionId, UserId};
use whimbrel_core::route;
use whimbrel_wire::Code;

use crate::admin::status;
use crate::common::{PATIENCE, Server, lines, serve_shards, wait};
use crate::raw::{Raw, Reply, hello};

/// Of a server for development.
const PARTITIONS: u16 = 16;

fn server(data: &Path) -> Server {
    Server::start_by(command(data), data)
}

fn command(data: &Path) -> Command {
    let mut command = serve_shards(data, "127.0.0.1:0", 1);
    command.env("WHIMBREL_SEGMENT_SIZE", "1MiB").env("WHIMBREL_STORAGE_SCRUB_INTERVAL", "1s");
    command
}

fn partition(user: &str) -> PartitionId {
    route::partition_of_user(&UserId::new(user).unwrap(), PARTITIONS)
}

/// The secret of a user, as it is sent to him and to nobody else.
fn secret(user: &str) -> Vec<u8> {
    format!("only {user} is to read this, and he is to read all of it").into_bytes()
}

/// Alice and users of as many partitions as there are, and the chats that she has with them.
fn people(server: &Server) -> (Vec<String>, Raw, Vec<u128>) {
    let mut users: Vec<String> = Vec::new();
    for n in 0..200 {
        let name = format!("user{n}");
        if partition(&name) != partition("alice") && users.iter().all(|user| partition(user) != partition(&name)) {
            users.push(name);
        }
    }
    assert_eq!(users.len(), 15);
    for user in &users {
        Raw::log_in(&server.address, &server.token(user));
    }
    let (mut alice, _) = Raw::log_in(&server.address, &server.token("alice"));
    let chats = users.iter().map(|user| alice.pair(user)).collect();
    (users, alice, chats)
}

/// The same, and each of them has been sent a secret, which waits.
fn with_secrets(server: &Server) -> (Vec<String>, Raw, Vec<u128>) {
    let (users, mut alice, chats) = people(server);
    for (user, chat) in users.iter().zip(&chats) {
        alice.send(*chat, 1, 0, &secret(user));
        assert!(matches!(alice.reply(), Reply::Sent { .. }));
        assert_eq!(waiting(server, user), [secret(user)]);
    }
    (users, alice, chats)
}

/// What waits for a user: messages up to the one that is his secret. Nothing is acknowledged.
fn waiting(server: &Server, user: &str) -> Vec<Vec<u8>> {
    let (mut device, _) = Raw::log_in(&server.address, &server.token(user));
    let mut messages: Vec<Vec<u8>> = Vec::new();
    while messages.last() != Some(&secret(user)) {
        match device.reply() {
            Reply::Deliver { message, .. } => messages.extend(message),
            other => panic!("{other:?}"),
        }
    }
    messages
}

/// Whether a user may come in.
fn answer(server: &Server, user: &str) -> Reply {
    let mut raw = Raw::connect(&server.address);
    raw.write(&hello(&server.token(user)));
    raw.reply()
}

/// Where the secret of a user stands last in the log: in the record by which it came to his partition.
fn find(data: &Path, user: &str) -> (PathBuf, u64) {
    let mut found = None;
    let mut paths: Vec<_> = fs::read_dir(data.join("shard-0")).unwrap().map(|entry| entry.unwrap().path()).collect();
    paths.retain(|path| path.extension().is_some_and(|it| it == "seg"));
    paths.sort();
    for path in paths {
        let (bytes, secret) = (fs::read(&path).unwrap(), secret(user));
        for (at, window) in bytes.windows(secret.len()).enumerate() {
            if window == secret {
                found = Some((path.clone(), at as u64));
            }
        }
    }
    found.expect("it is in the log")
}

/// Turns a bit over, on the disk.
fn flip((path, at): &(PathBuf, u64)) {
    let file = fs::OpenOptions::new().read(true).write(true).open(path).unwrap();
    let mut byte = [0];
    file.read_exact_at(&mut byte, *at).unwrap();
    file.write_all_at(&[byte[0] ^ 0x20], *at).unwrap();
    file.sync_all().unwrap();
}

/// Looks again until it is so. What never becomes so hangs, and only then does the bound count.
fn until(what: &str, mut holds: impl FnMut() -> bool) {
    let begun = std::time::Instant::now();
    while !holds() {
        assert!(begun.elapsed() < PATIENCE, "not yet: {what}");
        std::thread::park_timeout(std::time::Duration::from_millis(50));
    }
}

/// The user whose partition is damaged is refused, those of other partitions have all that waits for them.
fn only_he_is_refused(server: &Server, users: &[String], damaged: &str) {
    for user in users {
        if user == damaged {
            assert_eq!(answer(server, user), Reply::Refused(Code::InRepair));
        } else {
            assert_eq!(waiting(server, user), [secret(user)], "{user}");
        }
    }
}

/// The segments of a shard, in their order.
fn segments(data: &Path, shard: &str) -> Vec<PathBuf> {
    let mut paths: Vec<_> = fs::read_dir(data.join(shard)).unwrap().map(|entry| entry.unwrap().path()).collect();
    paths.retain(|path| path.extension().is_some_and(|it| it == "seg"));
    paths.sort();
    paths
}

#[test]
fn a_bit_in_an_unused_segment_keeps_nobody_from_being_served() {
    let dir = tempfile::tempdir().unwrap();
    let start = || {
        let mut command = serve_shards(dir.path(), "127.0.0.1:0", 2);
        command.env("WHIMBREL_SEGMENT_SIZE", "1MiB");
        Server::start_by(command, dir.path())
    };
    let first = start();
    let (users, _alice, _) = with_secrets(&first);
    until("there are spare segments", || {
        ["shard-0", "shard-1"].iter().all(|shard| segments(dir.path(), shard).len() > 2)
    });
    first.kill();
    // In the first page of one, and in the zeros of one of the other shard.
    for (shard, at) in [("shard-0", 30), ("shard-1", 700_000)] {
        flip(&(segments(dir.path(), shard).pop().unwrap(), at));
    }
    let second = start();
    for user in &users {
        assert_eq!(waiting(&second, user), [secret(user)], "{user}");
    }
    let put_aside = || {
        let status = status(&second);
        let files = status["put_aside"].as_array().into_iter().flatten();
        files.map(|it| (it["file"].as_str().unwrap().to_owned(), it["bytes"].as_u64().unwrap())).collect::<Vec<_>>()
    };
    let aside = put_aside();
    assert!(
        aside.len() == 2 && aside.iter().all(|(file, bytes)| file.ends_with(".seg.bad") && *bytes == 1 << 20),
        "{aside:?}"
    );
    // It is as whoever looked at it says, while the server runs.
    let away = dir.path().join("elsewhere");
    fs::rename(dir.path().join(&aside[0].0), &away).unwrap();
    assert_eq!(put_aside(), aside[1..]);
    fs::rename(&away, dir.path().join(&aside[0].0)).unwrap();
    second.kill();
    for shard in ["shard-0", "shard-1"] {
        let names = fs::read_dir(dir.path().join(shard)).unwrap().map(|entry| entry.unwrap().file_name());
        let aside = names.filter(|name| name.to_str().is_some_and(|name| name.ends_with(".seg.bad")));
        assert_eq!(aside.count(), 1, "{shard}");
    }
}

#[test]
fn rot_in_the_middle_of_a_log_stops_one_partition_until_the_bytes_are_back() {
    let dir = tempfile::tempdir().unwrap();
    let first = server(dir.path());
    let (users, _alice, chats) = with_secrets(&first);
    first.kill();
    let damaged = &users[4];
    let place = find(dir.path(), damaged);
    flip(&place);

    let second = server(dir.path());
    only_he_is_refused(&second, &users, damaged);
    let (mut alice, _) = Raw::log_in(&second.address, &second.token("alice"));
    let serves =
        |chat: u128| route::partition_of_chat(whimbrel_core::ids::ChatId(chat), PARTITIONS) != partition(damaged);
    for (user, chat) in users.iter().zip(&chats) {
        alice.send(*chat, 2, 1, b"and this");
        match alice.reply() {
            Reply::Sent { .. } => assert!(serves(*chat), "{user}: stored in a partition that is in repair"),
            Reply::Error { code, .. } => assert!(code == Code::InRepair && !serves(*chat), "{user}: {code:?}"),
            other => panic!("{other:?}"),
        }
    }
    // Nobody knows whether he has a device: that is in his partition.
    match alice.create_chat(whimbrel_wire::fb::ChatKind::Group, &[damaged], "new") {
        Reply::Error { code, .. } => assert_eq!(code, Code::InRepair),
        other => panic!("{other:?}"),
    }
    let status = second.ok(&["status"]);
    assert!(status.contains("1 partition is in repair"), "{status}");
    let status: serde_json::Value = serde_json::from_str(&second.ok(&["status", "--json"])).unwrap();
    assert_eq!((&status["shards"][0]["in_repair"], &status["shards"][0]["partitions"]), (&1.into(), &16.into()));
    second.terminate();
    let (ended, errors) = second.wait();
    assert!(ended.success(), "{errors}");
    let partition_text = format!("partition={}", partition(damaged).0);
    let told: Vec<_> = errors.lines().filter(|line| line.contains("a partition is in repair")).collect();
    assert!(told.len() == 1 && told[0].contains(&partition_text) && told[0].contains("segment="), "{errors}");
    let checkpoints = fs::read_dir(dir.path().join("shard-0")).unwrap();
    assert!(
        checkpoints.into_iter().all(|it| it.unwrap().path().extension().is_none_or(|it| it != "ckpt")),
        "nothing is settled before it is repaired"
    );

    flip(&place);
    let third = server(dir.path());
    for (user, chat) in users.iter().zip(&chats) {
        let (mut device, _) = Raw::log_in(&third.address, &third.token(user));
        let mut messages: Vec<Vec<u8>> = Vec::new();
        while messages.len() < if serves(*chat) { 2 } else { 1 } {
            match device.reply() {
                Reply::Deliver { message, .. } => messages.extend(message),
                other => panic!("{other:?}"),
            }
        }
        assert_eq!(messages[0], secret(user));
        assert!(messages.get(1).is_none_or(|second| second == b"and this"));
    }
    third.terminate();
    let (_, errors) = third.wait();
    assert!(!errors.contains("repair"), "{errors}");
}

#[test]
fn the_scrubber_finds_what_rots_in_a_log_that_is_served() {
    let dir = tempfile::tempdir().unwrap();
    let server = server(dir.path());
    let (users, mut alice, _) = with_secrets(&server);
    let damaged = &users[2];
    let place = find(dir.path(), damaged);
    // Until another segment is written: to her own other chat, in which nobody else is.
    let Reply::ChatInfo { chat: own, .. } = alice.create_chat(whimbrel_wire::fb::ChatKind::Group, &["alice"], "own")
    else {
        panic!("no chat")
    };
    for n in 1..=40 {
        alice.send(own, n, n - 1, &[7; 40_000]);
        loop {
            match alice.reply() {
                Reply::Sent { .. } => break,
                Reply::Deliver { .. } => {}
                Reply::Error { code, .. } if code.retriable() => alice.send(own, n, n - 1, &[7; 40_000]),
                other => panic!("{other:?}"),
            }
        }
    }
    assert_eq!(answer(&server, damaged), Reply::Welcome { head: 2, floor: 0, shard: 0 });
    flip(&place);
    until("the scrubber finds it", || answer(&server, damaged) == Reply::Refused(Code::InRepair));
    only_he_is_refused(&server, &users, damaged);
    alice.expect_alive();
    server.terminate();
    let (ended, errors) = server.wait();
    assert!(ended.success(), "{errors}");
    assert!(errors.contains("the log is damaged") && errors.contains("messages that wait to be delivered"), "{errors}");

    // The next start finds it too, before it serves him; and with the right bytes he has everything.
    let server = self::server(dir.path());
    only_he_is_refused(&server, &users, damaged);
    server.kill();
    flip(&place);
    let server = self::server(dir.path());
    for user in &users {
        assert_eq!(waiting(&server, user), [secret(user)], "{user}");
    }
}

/// All files of a shard, with what is in them.
fn files(data: &Path, shard: &str) -> Vec<(PathBuf, Vec<u8>)> {
    let mut files: Vec<_> = fs::read_dir(data.join(shard))
        .unwrap()
        .map(|entry| entry.unwrap().path())
        .map(|path| (path.clone(), fs::read(path).unwrap()))
        .collect();
    files.sort();
    files
}

#[test]
fn a_log_that_does_not_open_stops_its_shard_and_not_the_node() {
    let dir = tempfile::tempdir().unwrap();
    let start = |shards| {
        let mut command = serve_shards(dir.path(), "127.0.0.1:0", shards);
        command.env("WHIMBREL_SEGMENT_SIZE", "1MiB");
        command
    };
    let first = Server::start_by(start(2), dir.path());
    let (users, _alice, chats) = with_secrets(&first);
    first.kill();
    // The log of one shard has no beginning any more.
    let (there, away) = (segments(dir.path(), "shard-1").remove(0), dir.path().join("away"));
    fs::rename(&there, &away).unwrap();
    let before = files(dir.path(), "shard-1");

    let second = Server::start_by(start(2), dir.path());
    let is_shut = |partition: PartitionId| partition.0 % 2 == 1;
    for user in &users {
        if is_shut(partition(user)) {
            assert_eq!(answer(&second, user), Reply::Refused(Code::InRepair), "{user}");
        } else {
            assert_eq!(waiting(&second, user), [secret(user)], "{user}");
        }
    }
    // Whoever is served sends to whoever is not: it waits for him.
    let sender = users.iter().find(|user| !is_shut(partition(user))).unwrap();
    let (mut device, _) = Raw::log_in(&second.address, &second.token(sender));
    let mut stored = Vec::new();
    for (user, chat) in users.iter().zip(&chats).filter(|(user, _)| *user == sender) {
        let serves = !is_shut(route::partition_of_chat(whimbrel_core::ids::ChatId(*chat), PARTITIONS));
        device.send(*chat, 1, 0, b"and this");
        let answer = loop {
            match device.reply() {
                Reply::Deliver { .. } => {}
                other => break other,
            }
        };
        match answer {
            Reply::Sent { .. } => assert!(serves, "{user}"),
            Reply::Error { code, .. } => assert!(code == Code::InRepair && !serves, "{user}: {code:?}"),
            other => panic!("{other:?}"),
        }
        stored.push(serves);
    }
    assert_eq!(stored.len(), 1);
    let status: serde_json::Value = serde_json::from_str(&second.ok(&["status", "--json"])).unwrap();
    assert_eq!((&status["shards"][0]["in_repair"], &status["shards"][1]["in_repair"]), (&0.into(), &8.into()));
    second.terminate();
    let (ended, errors) = second.wait();
    assert!(ended.success(), "{errors}");
    let told: Vec<_> = errors.lines().filter(|line| line.contains("the log of a shard does not open")).collect();
    assert!(told.len() == 1 && told[0].contains("shard=1") && told[0].contains("segment 1"), "{errors}");
    assert!(files(dir.path(), "shard-1") == before, "nothing is written where nothing is known");

    fs::rename(&away, &there).unwrap();
    let third = Server::start_by(start(2), dir.path());
    for user in &users {
        assert_eq!(waiting(&third, user), [secret(user)], "{user}");
    }
    third.kill();

    // Where no log opens nobody is served. The one has a checkpoint from its clean end, and not what that points to.
    fs::remove_file(&there).unwrap();
    segments(dir.path(), "shard-0").iter().for_each(|path| fs::remove_file(path).unwrap());
    let mut refused = start(2).stdout(Stdio::null()).stderr(Stdio::piped()).spawn().unwrap();
    let lines = lines(refused.stderr.take().unwrap());
    assert_eq!(wait(&mut refused).code(), Some(1));
    let errors = lines.iter().collect::<Vec<_>>().join("\n");
    assert!(errors.contains("segment 1") && errors.contains("backup"), "{errors}");
}

//! Delivered means deleted: in the bytes of a real data directory, while the server runs. And what a checkpoint holds is what
//! was there.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use crate::admin::{metric, metrics, status, sum};
use crate::common::{PATIENCE, Server, serve_shards};
use crate::raw::{Raw, Reply, hello};
use whimbrel_wire::Code;

/// Stands in a payload and nowhere else.
const MARK: &[u8] = b"this is a secret of alice and bob";

/// Files are looked through in such pieces.
const PAGE: usize = 4096;

/// Stands before the number of a message.
const FOR_BOB: &str = "bob waits for message ";

/// Two shards that forget soon.
fn forgetful(data: &Path) -> Command {
    forgetful_shards(data, 2)
}

fn forgetful_shards(data: &Path, shards: u16) -> Command {
    let mut command = serve_shards(data, "127.0.0.1:0", shards);
    command.env("WHIMBREL_SEGMENT_SIZE", "1MiB").env("WHIMBREL_STORAGE_FORGET_AFTER", "1s");
    command
}

/// Files of the data directory that have the mark in them, whatever they are for.
fn marked(data: &Path) -> Vec<PathBuf> {
    with_bytes(data, MARK).into_iter().map(|(path, _)| path).collect()
}

/// Each place of each file at which these bytes stand, with the two that follow.
fn with_bytes(data: &Path, mark: &[u8]) -> Vec<(PathBuf, [u8; 2])> {
    let mut found = Vec::new();
    let mut folders = vec![data.to_owned()];
    while let Some(folder) = folders.pop() {
        for entry in fs::read_dir(folder).unwrap() {
            let path = entry.unwrap().path();
            if path.is_dir() {
                folders.push(path);
                continue;
            }
            // One that is gone by now has nothing in it.
            let bytes = fs::read(&path).unwrap_or_default();
            for start in (0..bytes.len()).step_by(PAGE) {
                // Most of a segment is zeros, and these are compared at once.
                if bytes[start..].starts_with(&[0; PAGE]) {
                    continue;
                }
                let end = bytes.len().min(start + PAGE + mark.len() + 1);
                for window in bytes[start..end].windows(mark.len() + 2).filter(|window| window.starts_with(mark)) {
                    found.push((path.clone(), window[mark.len()..].try_into().unwrap()));
                }
            }
        }
    }
    found
}

/// Which messages for bob are in some file.
fn of_bob(data: &Path) -> Vec<String> {
    let numbers = with_bytes(data, FOR_BOB.as_bytes()).into_iter();
    let mut numbers: Vec<String> = numbers.map(|(_, number)| String::from_utf8_lossy(&number).into_owned()).collect();
    numbers.sort();
    numbers.dedup();
    numbers
}

fn checkpoints(data: &Path, shard: u16) -> usize {
    let folder = data.join(format!("shard-{shard}"));
    let names = fs::read_dir(folder).unwrap().map(|entry| entry.unwrap().file_name().into_string().unwrap());
    names.filter(|name| name.ends_with(".ckpt")).count()
}

/// Looks again until it is so. What never becomes so hangs, and only then does the bound count.
fn until(what: &str, mut holds: impl FnMut() -> bool) {
    let begun = std::time::Instant::now();
    while !holds() {
        assert!(begun.elapsed() < PATIENCE, "not yet: {what}");
        std::thread::park_timeout(std::time::Duration::from_millis(50));
    }
}

/// Receives and acknowledges so many messages.
fn drain(server: &Server, user: &str, count: usize) -> Vec<Vec<u8>> {
    let (mut device, welcome) = Raw::log_in(&server.address, &server.token(user));
    let Reply::Welcome { floor, .. } = welcome else { unreachable!() };
    let messages = receive(&mut device, floor, count);
    device.expect_alive();
    messages
}

fn receive(device: &mut Raw, floor: u64, count: usize) -> Vec<Vec<u8>> {
    let (mut messages, mut last) = (Vec::new(), floor);
    while messages.len() < count {
        match device.reply() {
            Reply::Deliver { inbox_seq, message, .. } => {
                assert_eq!(inbox_seq, last + 1);
                last = inbox_seq;
                messages.extend(message);
            }
            other => panic!("{other:?}"),
        }
    }
    device.ack(last);
    messages
}

#[test]
fn what_everybody_has_is_gone_from_every_file_and_what_waits_is_not() {
    let dir = tempfile::tempdir().unwrap();
    let server = Server::start_by(forgetful(dir.path()), dir.path());
    Raw::log_in(&server.address, &server.token("bob"));
    let (mut alice, _) = Raw::log_in(&server.address, &server.token("alice"));
    let chat = alice.pair("bob");
    let secrets: Vec<Vec<u8>> = (0..20u8).map(|n| [MARK, &[n; 3000]].concat()).collect();
    for (n, secret) in (1..).zip(&secrets) {
        alice.send(chat, n, n - 1, secret);
        assert!(matches!(alice.reply(), Reply::Sent { .. }));
    }
    // Nobody has them: checkpoints come and go, and they stay.
    until("two checkpoints of each shard", || checkpoints(dir.path(), 0) == 2 && checkpoints(dir.path(), 1) == 2);
    assert!(!marked(dir.path()).is_empty());
    server.kill();

    // Nor are they gone for a process that begins with what the checkpoints say.
    let server = Server::start_by(forgetful(dir.path()), dir.path());
    assert_eq!(drain(&server, "bob", secrets.len()), secrets);
    until("no file has the mark", || marked(dir.path()).is_empty());

    // It goes on in the segments that are left, and remembers what it must.
    let (mut alice, _) = Raw::log_in(&server.address, &server.token("alice"));
    alice.send(chat, 20, 19, &secrets[19]);
    assert!(
        matches!(alice.reply(), Reply::Sent { .. }),
        "a message that was sent again is known, though its bytes are gone"
    );
    alice.send(chat, 21, 20, b"goodbye");
    assert!(matches!(alice.reply(), Reply::Sent { .. }));
    assert_eq!(drain(&server, "bob", 1), [b"goodbye"]);
    assert!(marked(dir.path()).is_empty());
    server.terminate();
    let (status, errors) = server.wait();
    assert!(status.success(), "{errors}");

    // After a clean end nothing is left to be read.
    let server = Server::start_by(forgetful(dir.path()), dir.path());
    let (_, welcome) = Raw::log_in(&server.address, &server.token("bob"));
    assert!(matches!(welcome, Reply::Welcome { head, floor, .. } if head == floor), "{welcome:?}");
    server.terminate();
    let (_, errors) = server.wait();
    assert!(errors.contains("records=0"), "{errors}");
}

#[test]
fn what_everybody_has_is_gone_though_something_waits_beside_it() {
    let dir = tempfile::tempdir().unwrap();
    let server = Server::start_by(forgetful(dir.path()), dir.path());
    Raw::log_in(&server.address, &server.token("bob"));
    let (mut carol, _) = Raw::log_in(&server.address, &server.token("carol"));
    let (mut alice, _) = Raw::log_in(&server.address, &server.token("alice"));
    let (with_bob, with_carol) = (alice.pair("bob"), alice.pair("carol"));
    let for_carol: Vec<Vec<u8>> = (0..20u8).map(|n| [b"for carol ".as_slice(), MARK, &[n; 3000]].concat()).collect();
    let for_bob: Vec<Vec<u8>> = (0..20).map(|n| format!("{FOR_BOB}{n:02}").into_bytes()).collect();
    for n in 1..=20 {
        alice.send(with_carol, n, n - 1, &for_carol[n as usize - 1]);
        assert!(matches!(alice.reply(), Reply::Sent { .. }));
        alice.send(with_bob, n, n - 1, &for_bob[n as usize - 1]);
        assert!(matches!(alice.reply(), Reply::Sent { .. }));
    }
    // Her inbox begins with the chat itself, and so does bob's.
    assert_eq!(receive(&mut carol, 0, 20), for_carol);
    until("no file has what carol has", || marked(dir.path()).is_empty());
    assert_eq!(of_bob(dir.path()).len(), 20, "what waits is there");

    // What was moved is there after a loss of the process, and is delivered as it was.
    server.kill();
    let server = Server::start_by(forgetful(dir.path()), dir.path());
    let (mut bob, welcome) = Raw::log_in(&server.address, &server.token("bob"));
    let Reply::Welcome { floor: 0, .. } = welcome else { panic!("{welcome:?}") };
    let (mut first, mut last) = (Vec::new(), 0);
    while first.len() < 20 {
        match bob.reply() {
            Reply::Deliver { inbox_seq, message, .. } => {
                last = inbox_seq;
                first.extend(message);
            }
            other => panic!("{other:?}"),
        }
    }
    assert_eq!(first, for_bob);
    // He keeps the last five for later: what lies beside them is overwritten.
    bob.ack(last - 5);
    bob.expect_alive();
    until("no file has what bob has by now", || of_bob(dir.path()) == ["15", "16", "17", "18", "19"]);
    server.terminate();
    let (status, errors) = server.wait();
    assert!(status.success(), "{errors}");
    let server = Server::start_by(forgetful(dir.path()), dir.path());
    assert_eq!(drain(&server, "bob", 5), for_bob[15..]);
    until("no file has anything", || of_bob(dir.path()).is_empty());
}

#[test]
fn who_waits_for_what_is_in_a_lost_segment_is_refused_until_it_is_back() {
    let dir = tempfile::tempdir().unwrap();
    let server = Server::start_by(forgetful(dir.path()), dir.path());
    Raw::log_in(&server.address, &server.token("bob"));
    let (mut alice, _) = Raw::log_in(&server.address, &server.token("alice"));
    let chat = alice.pair("bob");
    alice.send(chat, 1, 0, MARK);
    assert!(matches!(alice.reply(), Reply::Sent { .. }));
    until("two checkpoints of each shard", || checkpoints(dir.path(), 0) == 2 && checkpoints(dir.path(), 1) == 2);
    server.terminate();
    assert!(server.wait().0.success());
    let lost = marked(dir.path());
    for path in &lost {
        fs::rename(path, path.with_extension("lost")).unwrap();
    }
    let server = Server::start_by(forgetful(dir.path()), dir.path());
    let mut bob = Raw::connect(&server.address);
    bob.write(&hello(&server.token("bob")));
    assert_eq!(bob.reply(), Reply::Refused(Code::InRepair));
    server.terminate();
    let (status, errors) = server.wait();
    assert!(status.success() && errors.contains("a partition is in repair"), "{errors}");
    for path in &lost {
        fs::rename(path.with_extension("lost"), path).unwrap();
    }
    let server = Server::start_by(forgetful(dir.path()), dir.path());
    assert_eq!(drain(&server, "bob", 1), [MARK]);
}

/// The most that the kernel holds of what was sent on a connection and not received.
fn kernel_holds_bytes() -> u64 {
    let [sending, receiving] = ["tcp_wmem", "tcp_rmem"].map(|name| {
        let three = fs::read_to_string(format!("/proc/sys/net/ipv4/{name}")).unwrap();
        three.split_whitespace().last().unwrap().parse::<u64>().unwrap()
    });
    sending + receiving
}

/// Bob reads nothing, and says again and again that he is there. What waits on his connection lies in the segments in which the
/// messages for carol lie, who has them all.
#[test]
fn what_everybody_has_is_gone_though_somebody_pings_and_reads_nothing_of_what_lies_beside_it() {
    let dir = tempfile::tempdir().unwrap();
    let server = Server::start_by(forgetful_shards(dir.path(), 1), dir.path());
    let (mut bob, _) = Raw::log_in(&server.address, &server.token("bob"));
    let (mut carol, _) = Raw::log_in(&server.address, &server.token("carol"));
    let (mut alice, _) = Raw::log_in(&server.address, &server.token("alice"));
    let (with_bob, with_carol) = (alice.pair("bob"), alice.pair("carol"));
    let large = vec![7; 60_000];
    let mut carol_has = 0;
    // He acknowledges all that he was sent, so that he is sent more, until the kernel takes no more of it.
    let mut goes_on = |server: &Server, carol_has: u64| {
        let status = status(server);
        let sent = sum(&status, "delivered") - carol_has;
        bob.ack(sent);
        let mut ping = Vec::new();
        bob.builder.ping(&mut ping, 1);
        bob.write(&ping);
        status["shards"][0]["refused"]["slow_reader"] == 1
    };
    for n in 1..=kernel_holds_bytes() / 60_000 + 20 {
        alice.send(with_bob, n, n - 1, &large);
        assert!(matches!(alice.reply(), Reply::Sent { .. }));
        alice.send(with_carol, n, n - 1, MARK);
        assert!(matches!(alice.reply(), Reply::Sent { .. }));
        let before = u64::from(carol_has > 0) + carol_has;
        receive(&mut carol, before, 1);
        carol_has += 1;
        if n % 3 == 0 && goes_on(&server, carol_has + 1) {
            break;
        }
    }
    until("who reads nothing is closed", || goes_on(&server, carol_has + 1));
    until("no file has what carol has", || {
        goes_on(&server, carol_has + 1);
        marked(dir.path()).is_empty()
    });
}

/// Checkpoints between the last commit and the end of the bytes. One closes their segment, and with the next one none of the two that
/// are kept needs it any more. Where something waits beside them, the second one after the closing notes it, the next one points to
/// copies, and with the one after that no checkpoint knows the segment.
const STEPS_ALONE: u64 = 2;
const STEPS_BESIDE: u64 = 5;

/// Checkpoints written, and commands applied.
fn progress(server: &Server) -> (u64, u64) {
    let body = metrics(server);
    (metric(&body, "whimbrel_checkpoints_total", ""), metric(&body, "whimbrel_commands_applied_total", ""))
}

/// The times to forget that are tried, in seconds; a step is an eighth. Until all of a message is committed it takes some 1.1 s, and with
/// the first ones a busy machine gets three tries at steps of 2 s. One that is too busy for these has longer ones.
const TRIES: [u64; 6] = [16, 16, 16, 32, 32, 64];

/// Measures from the last commit, that of the acknowledgement or of the chat's own confirmation, to the first look at all files
/// that finds nothing, and holds it against the server's own steps; the time is printed. A machine that is busy adds steps, so the
/// best of some tries counts; and a try in which a step ended before all was committed says nothing, for then it takes less.
#[test]
fn bytes_are_gone_after_as_many_checkpoints_as_it_takes_and_no_more() {
    for (is_beside, allowed) in [(false, STEPS_ALONE), (true, STEPS_BESIDE)] {
        let mut best = None;
        for seconds in TRIES {
            best = best.into_iter().chain(steps_until_gone(seconds, is_beside)).min();
            if best.is_some_and(|steps| steps <= allowed) {
                break;
            }
        }
        let Some(steps) = best else {
            panic!(
                "in no try all was committed before the next checkpoint, not in 8 s either: is this machine standing still?"
            )
        };
        assert!(steps <= allowed, "the bytes were there for {steps} checkpoints, and {allowed} have to do");
    }
}

/// How many checkpoints were written from the last commit until no file has the bytes, alone or beside what waits; `None` if one
/// was before that.
fn steps_until_gone(forget_after_seconds: u64, is_beside: bool) -> Option<u64> {
    let dir = tempfile::tempdir().unwrap();
    let mut command = forgetful_shards(dir.path(), 1);
    command.env("WHIMBREL_STORAGE_FORGET_AFTER", format!("{forget_after_seconds}s"));
    let server = Server::start_by(command, dir.path());
    Raw::log_in(&server.address, &server.token("bob"));
    let (mut carol, _) = Raw::log_in(&server.address, &server.token("carol"));
    let (mut alice, _) = Raw::log_in(&server.address, &server.token("alice"));
    let (with_bob, with_carol) = (alice.pair("bob"), alice.pair("carol"));
    // What bob never fetches makes a checkpoint due. Just after one it is longest until the next.
    let (before, _) = progress(&server);
    let mut for_bob = 0;
    let mut send_to_bob = |alice: &mut Raw| {
        for_bob += 1;
        alice.send(with_bob, for_bob, for_bob - 1, b"for later");
        assert!(matches!(alice.reply(), Reply::Sent { .. }));
    };
    send_to_bob(&mut alice);
    until("a checkpoint", || progress(&server).0 > before);
    let (at_send, _) = progress(&server);
    if is_beside {
        send_to_bob(&mut alice);
    }
    alice.send(with_carol, 1, 0, MARK);
    assert!(matches!(alice.reply(), Reply::Sent { .. }));
    // The making of the chat stands before it.
    receive(&mut carol, 0, 1);
    let mut last = progress(&server);
    let (mut committed, mut since) = (last.0, std::time::Instant::now());
    until("no file has what carol has", || {
        let now = progress(&server);
        if now.1 != last.1 {
            (committed, since) = (last.0, std::time::Instant::now());
        }
        last = now;
        marked(dir.path()).is_empty()
    });
    let (took, steps) = (since.elapsed().as_secs_f64(), progress(&server).0 - committed);
    let counts = committed == at_send;
    eprintln!(
        "gone from every file, {}: {took:.1} s after the last commit, {steps} checkpoints of {} s{}",
        if is_beside { "beside what waits" } else { "alone" },
        forget_after_seconds / 8,
        if counts { "" } else { "; does not count" },
    );
    counts.then_some(steps)
}

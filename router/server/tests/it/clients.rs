//! The commands as a person and a script use them, against a real server.

use std::fs;
use std::io::Write;
use std::process::Stdio;

use crate::common::{Server, lines, text, wait, wait_for};
use serde_json::Value;

fn json_lines(text: &str) -> Vec<Value> {
    text.lines().map(|line| serde_json::from_str(line).expect(line)).collect()
}

fn texts(lines: &[Value]) -> Vec<&str> {
    lines.iter().filter(|line| line["event"] == "message").map(|line| line["text"].as_str().unwrap()).collect()
}

#[test]
fn a_message_waits_and_is_received_once() {
    let dir = tempfile::tempdir().unwrap();
    let server = Server::start(dir.path());
    assert!(server.ok(&["recv", "--as", "bob", "--count", "0"]).contains("bob, device 1: logged in"));
    let sent: Value =
        serde_json::from_str(&server.ok(&["send", "--as", "alice", "--to", "bob", "--json", "hello bob"])).unwrap();
    assert_eq!((&sent["durability"], &sent["status"]), (&"one_node".into(), &"stored".into()));
    assert_eq!(server.ok(&["recv", "--as", "bob", "--count", "1"]), "alice: hello bob\n");
    assert_eq!(server.ok(&["recv", "--as", "bob", "--timeout", "0s"]), "");
}

#[test]
fn many_messages_come_in_order_and_what_is_not_asked_for_waits() {
    let dir = tempfile::tempdir().unwrap();
    let server = Server::start(dir.path());
    server.ok(&["recv", "--as", "bob", "--count", "0"]);
    let all: Vec<String> = (0..10).map(|n| format!("message {n}")).collect();
    for message in &all {
        server.ok(&["send", "--as", "alice", "--to", "bob", message]);
    }
    let first = json_lines(&server.ok(&["recv", "--as", "bob", "--count", "4", "--json"]));
    assert_eq!(texts(&first), all[..4]);
    let rest = json_lines(&server.ok(&["recv", "--as", "bob", "--timeout", "0s", "--json"]));
    assert_eq!(texts(&rest), all[4..]);
    let seqs: Vec<u64> = first.iter().chain(&rest).map(|line| line["inbox_seq"].as_u64().unwrap()).collect();
    assert_eq!(seqs, (1..=11).collect::<Vec<_>>());
}

#[test]
fn a_long_backlog_comes_whole() {
    let dir = tempfile::tempdir().unwrap();
    let server = Server::start(dir.path());
    server.ok(&["recv", "--as", "bob", "--count", "0"]);
    let mut chat = server
        .client(&["chat", "--as", "alice", "--to", "bob"])
        .stdin(Stdio::piped())
        .stdout(Stdio::null())
        .spawn()
        .unwrap();
    let all: Vec<String> = (0..300).map(|n| format!("message {n}")).collect();
    chat.stdin.take().unwrap().write_all(all.join("\n").as_bytes()).unwrap();
    assert_eq!(wait(&mut chat).code(), Some(0));
    let some = json_lines(&server.ok(&["recv", "--as", "bob", "--count", "100", "--json"]));
    let rest = json_lines(&server.ok(&["recv", "--as", "bob", "--timeout", "0s", "--json"]));
    assert_eq!([texts(&some), texts(&rest)].concat(), all);
}

#[test]
fn too_few_messages_are_a_failure() {
    let dir = tempfile::tempdir().unwrap();
    let server = Server::start(dir.path());
    server.ok(&["recv", "--as", "bob", "--count", "0"]);
    server.ok(&["send", "--as", "alice", "--to", "bob", "the only one"]);
    let output = server.run(&["recv", "--as", "bob", "--count", "2", "--timeout", "100ms"]);
    assert_eq!(output.status.code(), Some(1));
    assert_eq!(text(&output.stdout), "alice: the only one\n");
    assert!(text(&output.stderr).contains("1 of 2"), "{}", text(&output.stderr));
}

#[test]
fn what_was_shown_is_not_shown_again_though_the_server_never_heard() {
    let dir = tempfile::tempdir().unwrap();
    let server = Server::start(dir.path());
    server.ok(&["recv", "--as", "bob", "--count", "0"]);
    for message in ["one", "two", "three"] {
        server.ok(&["send", "--as", "alice", "--to", "bob", message]);
    }
    // As if the process had been killed after it noted two messages and before it acknowledged them.
    let state = r#"{"version":1,"user":"bob","device":1,"floor":3,"next_client_seq":1}"#;
    fs::write(server.data.join("clients/bob.1.json"), state).unwrap();
    assert_eq!(server.ok(&["recv", "--as", "bob", "--count", "1"]), "alice: three\n");
}

#[test]
fn a_reader_that_goes_away_is_no_failure_and_loses_nothing() {
    let dir = tempfile::tempdir().unwrap();
    let server = Server::start(dir.path());
    server.ok(&["recv", "--as", "bob", "--count", "0"]);
    server.ok(&["send", "--as", "alice", "--to", "bob", "to nobody's ears"]);
    let mut child = server.client(&["recv", "--as", "bob"]).stdout(Stdio::piped()).spawn().unwrap();
    drop(child.stdout.take());
    assert_eq!(wait(&mut child).code(), Some(0));
    assert_eq!(server.ok(&["recv", "--as", "bob", "--count", "1"]), "alice: to nobody's ears\n");
}

#[test]
fn groups_are_made_shown_and_heard() {
    let dir = tempfile::tempdir().unwrap();
    let server = Server::start(dir.path());
    for user in ["bob", "carol"] {
        server.ok(&["recv", "--as", user, "--count", "0"]);
    }
    let chat = server.ok(&["group", "create", "--as", "alice", "--title", "Waders", "bob", "carol"]).trim().to_owned();
    let shown: Value =
        serde_json::from_str(&server.ok(&["group", "show", "--as", "carol", "--chat", &chat, "--json"])).unwrap();
    assert_eq!((&shown["title"], &shown["members"]), (&"Waders".into(), &serde_json::json!(["alice", "bob", "carol"])));
    server.ok(&["send", "--as", "bob", "--chat", &chat, "seen one"]);
    let heard = server.ok(&["recv", "--as", "carol", "--count", "1"]);
    assert_eq!(heard, format!("* alice made the group “Waders” of alice, bob, carol: chat {chat}\nbob: seen one\n"));
    let stranger = server.run(&["group", "show", "--as", "dave", "--chat", &chat]);
    assert_eq!(stranger.status.code(), Some(1));
    assert!(text(&stranger.stderr).contains("dave is no member"), "{}", text(&stranger.stderr));
}

#[test]
fn errors_name_the_remedy() {
    let dir = tempfile::tempdir().unwrap();
    let server = Server::start(dir.path());
    let fails = |arguments: &[&str], parts: &[&str]| {
        let output = server.run(arguments);
        assert_eq!(output.status.code(), Some(1), "{arguments:?}");
        let error = text(&output.stderr);
        assert!(parts.iter().all(|part| error.contains(part)), "{arguments:?}: {error}");
    };
    let data = server.data.display().to_string();
    fails(
        &["send", "--as", "alice", "--to", "nobody", "hi"],
        &["nobody has no device yet", "whimbrel recv --as nobody --count 0"],
    );
    fails(
        &["group", "create", "--as", "alice", "nobody"],
        &["nobody has no device yet", "whimbrel recv --as nobody --count 0"],
    );
    fails(
        &["recv", "--as", "alice", "--server", "127.0.0.1:1"],
        &["no server at 127.0.0.1:1", "whimbrel serve --dev", &data],
    );
    fails(&["recv", "--as", "alice", "--server", "nonsense"], &["no server address in `nonsense`", "HOST:PORT"]);

    let token = dir.path().join("token");
    fs::write(&token, server.ok(&["token", "--user", "alice", "--ttl", "0s"])).unwrap();
    let path = token.to_str().unwrap();
    fails(&["recv", "--as", "alice", "--token", path], &["has expired", "whimbrel token --user alice"]);
    fs::write(&token, server.token("alice")).unwrap();
    fails(
        &["recv", "--as", "alice", "--device", "2", "--token", path],
        &["the token is not of alice's device 2", "--device"],
    );
    fails(&["recv", "--as", "bob", "--token", path], &["the token is not of bob's device 1", "--as"]);
    fs::write(&token, "not a token").unwrap();
    fails(&["recv", "--as", "alice", "--token", path], &["holds no token", "v4.public."]);

    let other_dir = tempfile::tempdir().unwrap();
    let other = Server::start(other_dir.path());
    fails(&["recv", "--as", "alice", "--server", &other.address], &["does not accept the token", "--data"]);
}

#[test]
fn a_token_may_come_from_the_environment() {
    let dir = tempfile::tempdir().unwrap();
    let server = Server::start(dir.path());
    let elsewhere = tempfile::tempdir().unwrap();
    let token = server.token("alice");
    let output = server
        .client(&["recv", "--as", "alice", "--count", "0"])
        .env("WHIMBREL_DATA", elsewhere.path())
        .env("WHIMBREL_TOKEN", token)
        .output()
        .unwrap();
    assert!(output.status.success(), "{}", text(&output.stderr));
}

#[test]
fn a_message_may_come_from_standard_input() {
    let dir = tempfile::tempdir().unwrap();
    let server = Server::start(dir.path());
    server.ok(&["recv", "--as", "bob", "--count", "0"]);
    let mut child = server
        .client(&["send", "--as", "alice", "--to", "bob", "-"])
        .stdin(Stdio::piped())
        .stdout(Stdio::null())
        .spawn()
        .unwrap();
    child.stdin.take().unwrap().write_all(b"\xff\x00 not text").unwrap();
    assert!(wait(&mut child).success());
    let heard = json_lines(&server.ok(&["recv", "--as", "bob", "--count", "1", "--json"]));
    let message = heard.iter().find(|line| line["event"] == "message").unwrap();
    assert_eq!(message["payload_hex"], "ff00206e6f742074657874");
}

#[test]
fn a_device_is_one_process_at_a_time() {
    let dir = tempfile::tempdir().unwrap();
    let server = Server::start(dir.path());
    let mut chat =
        server.client(&["chat", "--as", "alice"]).stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().unwrap();
    wait_for(&lines(chat.stdout.take().unwrap()), "you are alice");
    let second = server.run(&["recv", "--as", "alice"]);
    assert_eq!(second.status.code(), Some(1));
    let error = text(&second.stderr);
    assert!(error.contains(&format!("in use by process {}", chat.id())) && error.contains("--device 2"), "{error}");
    drop(chat.stdin.take());
    assert_eq!(wait(&mut chat).code(), Some(0));
}

#[test]
fn two_chat_over_pipes() {
    let dir = tempfile::tempdir().unwrap();
    let server = Server::start(dir.path());
    server.ok(&["recv", "--as", "bob", "--count", "0"]);
    let begin = |user: &str, with: &str| {
        let mut child = server
            .client(&["chat", "--as", user, "--to", with])
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let heard = lines(child.stdout.take().unwrap());
        let keys = child.stdin.take().unwrap();
        (child, heard, keys)
    };
    let (mut alice, to_alice, mut alice_keys) = begin("alice", "bob");
    writeln!(alice_keys, "hello bob").unwrap();
    wait_for(&to_alice, "you: hello bob ✓");
    let (mut bob, to_bob, mut bob_keys) = begin("bob", "alice");
    wait_for(&to_bob, "alice: hello bob");
    writeln!(bob_keys, "//hello\u{7}").unwrap();
    wait_for(&to_alice, "bob: /hello\\u{7}");
    writeln!(alice_keys, "/nonsense").unwrap();
    wait_for(&to_alice, "there is no /nonsense");
    writeln!(alice_keys, "/quit").unwrap();
    assert_eq!(wait(&mut alice).code(), Some(0));
    drop(bob_keys);
    assert_eq!(wait(&mut bob).code(), Some(0));
}

#[test]
fn a_program_hears_by_the_exit_code_that_a_line_was_not_sent() {
    let dir = tempfile::tempdir().unwrap();
    let server = Server::start(dir.path());
    server.ok(&["recv", "--as", "bob", "--count", "0"]);
    let mut chat = server
        .client(&["chat", "--as", "alice", "--to", "bob"])
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    let mut keys = chat.stdin.take().unwrap();
    writeln!(keys, "{}", "x".repeat(70_000)).unwrap();
    writeln!(keys, "short enough").unwrap();
    drop(keys);
    let output = chat.wait_with_output().unwrap();
    assert_eq!(output.status.code(), Some(1));
    let shown = text(&output.stdout);
    assert!(shown.contains("not sent: it has 70000 bytes") && shown.contains("you: short enough ✓"), "{shown}");
    assert!(text(&output.stderr).contains("1 message not sent"), "{}", text(&output.stderr));
    assert_eq!(server.ok(&["recv", "--as", "bob", "--count", "1"]), "alice: short enough\n");
}

#[test]
fn what_is_typed_while_the_server_is_down_is_sent_when_it_is_back() {
    let dir = tempfile::tempdir().unwrap();
    let server = Server::start(dir.path());
    server.ok(&["recv", "--as", "bob", "--count", "0"]);
    let mut chat = server
        .client(&["chat", "--as", "alice", "--to", "bob"])
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    let shown = lines(chat.stdout.take().unwrap());
    let mut keys = chat.stdin.take().unwrap();
    writeln!(keys, "before").unwrap();
    wait_for(&shown, "you: before ✓");
    let (address, data) = (server.address.clone(), server.data.clone());
    server.kill();
    wait_for(&shown, "kept");
    writeln!(keys, "while it is down").unwrap();
    wait_for(&shown, "while it is down (waiting for the server)");
    let server = Server::start_on(&data, &address);
    wait_for(&shown, "you: while it is down ✓");
    drop(keys);
    assert_eq!(wait(&mut chat).code(), Some(0));
    assert_eq!(server.ok(&["recv", "--as", "bob", "--count", "2"]), "alice: before\nalice: while it is down\n");
}

#[test]
fn what_was_not_sent_is_sent_by_the_next_chat() {
    let dir = tempfile::tempdir().unwrap();
    let server = Server::start(dir.path());
    for user in ["alice", "bob"] {
        server.ok(&["recv", "--as", user, "--count", "0"]);
    }
    let (address, data) = (server.address.clone(), server.data.clone());
    server.kill();
    let client = |arguments: &[&str]| {
        let mut command = crate::common::whimbrel();
        command.args(arguments).env("WHIMBREL_SERVER", &address).env("WHIMBREL_DATA", &data).stdin(Stdio::piped());
        command
    };
    let mut chat = client(&["chat", "--as", "alice", "--to", "bob"]).stdout(Stdio::piped()).spawn().unwrap();
    let shown = lines(chat.stdout.take().unwrap());
    let mut keys = chat.stdin.take().unwrap();
    writeln!(keys, "nobody listens").unwrap();
    wait_for(&shown, "nobody listens (waiting for the server)");
    writeln!(keys, "/quit").unwrap();
    assert_eq!(wait(&mut chat).code(), Some(1));

    let server = Server::start_on(&data, &address);
    let mut chat = client(&["chat", "--as", "alice"]).stdout(Stdio::piped()).spawn().unwrap();
    wait_for(&lines(chat.stdout.take().unwrap()), "nobody listens ✓");
    chat.stdin.take();
    assert_eq!(wait(&mut chat).code(), Some(0));
    assert_eq!(server.ok(&["recv", "--as", "bob", "--count", "1"]), "alice: nobody listens\n");
}

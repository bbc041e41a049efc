//! Data directories that released versions wrote are read by this one, whole: `tests/golden-data/README.md` says what is in
//! them.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use serde_json::Value;

use crate::common::Server;

/// The 1:1 chat has its making, thirteen messages, and then this test's.
const PLACE_OF_THE_NEXT: u64 = 15;

fn archives() -> Vec<PathBuf> {
    let directory = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/golden-data");
    let files = fs::read_dir(directory).unwrap().map(|file| file.unwrap().path());
    let mut archives: Vec<PathBuf> =
        files.filter(|path| path.extension().is_some_and(|extension| extension == "gz")).collect();
    archives.sort();
    archives
}

/// What waits for a device, as lines of JSON, messages only.
fn waiting(server: &Server, user: &str, device: &str, count: usize) -> Vec<Value> {
    let count = count.to_string();
    let lines = server.ok(&["recv", "--as", user, "--device", device, "--count", &count, "--json"]);
    let all = lines.lines().map(|line| serde_json::from_str::<Value>(line).unwrap());
    let messages = all.filter(|line| line["event"] == "message").collect();
    assert_eq!(
        server.ok(&["recv", "--as", user, "--device", device, "--timeout", "0s", "--json"]),
        "",
        "{user} has more"
    );
    messages
}

/// The texts of messages that begin with a word, in the order in which they came.
fn texts<'a>(messages: &'a [Value], begin: &str) -> Vec<&'a str> {
    messages.iter().map(|message| message["text"].as_str().unwrap()).filter(|text| text.starts_with(begin)).collect()
}

fn numbered(begin: &str, numbers: std::ops::RangeInclusive<u32>) -> Vec<String> {
    numbers.map(|n| format!("{begin} {n}")).collect()
}

#[test]
fn what_released_versions_wrote_is_read() {
    let archives = archives();
    let own = format!("{}.tar.gz", env!("CARGO_PKG_VERSION"));
    assert!(archives.iter().any(|path| path.ends_with(&own)), "a release keeps a data directory: make.sh");
    for archive in archives {
        let directory = tempfile::tempdir().unwrap();
        let unpacked = Command::new("tar").arg("-xzf").arg(&archive).arg("-C").arg(directory.path()).status().unwrap();
        assert!(unpacked.success(), "{}", archive.display());
        let server = Server::start(&directory.path().join("data"));
        is_whole(&server);
        goes_on(&server);
        server.terminate();
        let (status, errors) = server.wait();
        assert!(status.success(), "{}: {errors}", archive.display());
    }
}

/// Nothing that waited is missing, and nothing that was acknowledged comes again.
fn is_whole(server: &Server) {
    let group = numbered("group", 1..=2);
    let first = waiting(server, "bob", "1", 8);
    assert_eq!(texts(&first, "alice to bob"), numbered("alice to bob", 5..=10));
    assert_eq!(texts(&first, "group"), group);
    let second = waiting(server, "bob", "2", 15);
    assert_eq!(texts(&second, "alice to bob"), numbered("alice to bob", 1..=10));
    assert_eq!(texts(&second, "bob to alice"), numbered("bob to alice", 1..=3), "his own, from the other device");
    assert_eq!(texts(&second, "group"), group);
    let dave = waiting(server, "dave", "1", 10);
    assert_eq!(texts(&dave, "group"), group);
    let large = texts(&dave, "large");
    assert!(large.iter().all(|text| text.len() == 50_000) && large.len() == 8, "{} large messages", large.len());
    let order: Vec<&str> = large.iter().map(|text| &text[..7]).collect();
    assert_eq!(order, numbered("large", 1..=8));
    assert_eq!(texts(&waiting(server, "carol", "1", 1), "group"), ["group 1"]);
    let chat = dave.iter().find(|message| message["text"] == "group 1").unwrap()["chat"].as_str().unwrap();
    let shown: Value =
        serde_json::from_str(&server.ok(&["group", "show", "--as", "dave", "--chat", chat, "--json"])).unwrap();
    assert_eq!(shown["members"], serde_json::json!(["alice", "bob", "carol", "dave"]));
}

/// A message that was sent before is known again, and the next one follows the last.
fn goes_on(server: &Server) {
    let sent: Value =
        serde_json::from_str(&server.ok(&["send", "--as", "alice", "--to", "bob", "alice to bob 11", "--json"]))
            .unwrap();
    assert_eq!(sent["chat_seq"], PLACE_OF_THE_NEXT, "{sent}");
    assert_eq!(texts(&waiting(server, "bob", "1", 1), "alice"), ["alice to bob 11"]);
    assert_eq!(texts(&waiting(server, "alice", "1", 4), "bob to alice"), numbered("bob to alice", 1..=3));
}

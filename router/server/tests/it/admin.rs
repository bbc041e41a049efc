//! The admin thread and `whimbrel status`, against real servers.

use std::fs;
use std::io::{Read, Write};
use std::net::{TcpListener, TcpStream};
use std::path::Path;
use std::time::Instant;

use serde_json::Value;

use crate::common::{PATIENCE, Server, run, serve, text};

/// An answer over HTTP: the line with the code, the head, the body.
struct Answer {
    code: String,
    head: String,
    body: String,
}

/// Where the admin thread of a server listens.
fn admin_address(data: &Path) -> String {
    fs::read_to_string(data.join("admin")).expect("the data directory says where").trim().to_owned()
}

fn ask(address: &str, method: &str, path: &str) -> Answer {
    let mut stream = TcpStream::connect(address).unwrap();
    stream.set_read_timeout(Some(PATIENCE)).unwrap();
    write!(stream, "{method} {path} HTTP/1.1\r\nHost: here\r\nConnection: close\r\n\r\n").unwrap();
    let mut answer = String::new();
    stream.read_to_string(&mut answer).unwrap();
    let (head, body) = answer.split_once("\r\n\r\n").expect("a head and a body");
    let code = head.split(' ').nth(1).expect("a code").to_owned();
    Answer { code, head: head.to_lowercase(), body: body.to_owned() }
}

/// The text of `/metrics`.
pub(crate) fn metrics(server: &Server) -> String {
    get(server, "/metrics").body
}

fn get(server: &Server, path: &str) -> Answer {
    ask(&admin_address(&server.data), "GET", path)
}

/// What `whimbrel status --json` says.
pub(crate) fn status(server: &Server) -> Value {
    serde_json::from_str(&server.ok(&["status", "--json"])).unwrap()
}

/// A number of all shards together.
pub(crate) fn sum(status: &Value, name: &str) -> u64 {
    let shards = status["shards"].as_array().unwrap();
    shards.iter().map(|shard| shard[name].as_u64().unwrap_or_else(|| panic!("{name} in {status}"))).sum()
}

/// A counter of all shards together, as /metrics has it.
pub(crate) fn metric(body: &str, name: &str, label: &str) -> u64 {
    let lines = body.lines().filter(|line| line.starts_with(&format!("{name}{{")) && line.contains(label));
    lines.map(|line| line.rsplit(' ').next().unwrap().parse::<u64>().unwrap()).sum()
}

#[test]
fn status_tells_what_was_done_before_it_was_asked() {
    let dir = tempfile::tempdir().unwrap();
    let server = Server::start(dir.path());
    server.ok(&["recv", "--as", "bob", "--count", "0"]);
    for number in 0..3 {
        // It is asked at once each time: what was acknowledged must be in it.
        server.ok(&["send", "--as", "alice", "--to", "bob", &format!("number {number}")]);
        assert_eq!(sum(&status(&server), "stored"), number + 1);
    }
    let before = status(&server);
    assert_eq!((sum(&before, "delivered"), sum(&before, "logins")), (0, 4));
    server.ok(&["recv", "--as", "bob", "--count", "3"]);
    // That the chat was made is delivered too.
    assert_eq!(sum(&status(&server), "delivered"), 4);
    let begun = Instant::now();
    let after = loop {
        let status = status(&server);
        if sum(&status, "acknowledged") == 4 && sum(&status, "waiting") == 0 {
            break status;
        }
        assert!(begun.elapsed() < PATIENCE, "it was never acknowledged: {status}");
    };
    assert_eq!(after["pid"].as_u64(), Some(u64::from(server.pid())));
    assert_eq!(after["listen"].as_str(), Some(server.address.as_str()));
    assert_eq!(after["admin"].as_str(), Some(admin_address(dir.path()).as_str()));
    assert_eq!(after["shards"].as_array().unwrap().len(), 2);
    assert!(sum(&after, "turns") > 0 && sum(&after, "segments") >= 2);
    assert!(after["shards"][0]["turn_us"]["max"].as_u64() >= after["shards"][0]["turn_us"]["p50"].as_u64());

    let table = server.ok(&["status"]);
    for part in ["serving   all 2 shards", "shard 0", "shard 1", "connections", "turn p99.999", "log on disk"] {
        assert!(table.contains(part), "{part}: {table}");
    }
    let by_address = run(&["status", "--admin", &admin_address(dir.path())]);
    assert!(by_address.status.success(), "{}", text(&by_address.stderr));
}

#[test]
fn metrics_count_what_is_stored_and_why_something_was_refused() {
    let dir = tempfile::tempdir().unwrap();
    let server = Server::start(dir.path());
    server.ok(&["recv", "--as", "bob", "--count", "0"]);
    server.ok(&["send", "--as", "alice", "--to", "bob", "hello"]);
    let mut hostile = TcpStream::connect(&server.address).unwrap();
    hostile.write_all(&[0; 64]).unwrap();
    hostile.read_to_end(&mut Vec::new()).unwrap();
    let answer = get(&server, "/metrics");
    assert_eq!(answer.code, "200");
    assert!(answer.head.contains("content-type: application/openmetrics-text; version=1.0.0"), "{}", answer.head);
    assert_eq!(metric(&answer.body, "whimbrel_messages_stored_total", ""), 1);
    assert_eq!(metric(&answer.body, "whimbrel_refused_total", "reason=\"bad_frame\""), 1);
    assert_eq!(metric(&answer.body, "whimbrel_refused_total", ""), 1);
    assert!(!answer.body.contains("bob") && !answer.body.contains("alice"), "a user is named");
    assert!(answer.body.ends_with("# EOF\n"));
    let shown = server.ok(&["status"]);
    assert!(shown.contains("refused: bad_frame"), "{shown}");
}

#[test]
fn health_and_readiness_name_each_shard() {
    let dir = tempfile::tempdir().unwrap();
    let server = Server::start(dir.path());
    for path in ["/healthz", "/readyz"] {
        let answer = get(&server, path);
        assert_eq!(answer.code, "200", "{path}: {}", answer.body);
        let report: Value = serde_json::from_str(&answer.body).unwrap();
        assert_eq!(report["ok"], true);
        let shards = report["shards"].as_array().unwrap();
        assert_eq!(shards.len(), 2);
        assert!((0..).zip(shards).all(|(at, it)| it["shard"] == at && it["stage"] == "accepting" && it["ok"] == true));
    }
    let lost = get(&server, "/");
    assert_eq!((lost.code.as_str(), lost.body.contains("/metrics")), ("404", true));
    assert_eq!(ask(&admin_address(dir.path()), "POST", "/status").code, "405");
}

#[test]
fn a_stop_ends_the_admin_thread_whoever_is_connected() {
    let dir = tempfile::tempdir().unwrap();
    let server = Server::start(dir.path());
    let address = admin_address(dir.path());
    // More than are taken at a time: some say nothing, some half of something.
    let crowd: Vec<TcpStream> = (0..20).map(|_| TcpStream::connect(&address).unwrap()).collect();
    for mut stream in crowd.iter().step_by(2) {
        stream.write_all(b"GET /metr").unwrap();
    }
    server.terminate();
    let (status, errors) = server.wait();
    assert_eq!(status.code(), Some(0), "{errors}");
    assert!(!dir.path().join("admin").exists(), "nobody listens there any more");
    drop(crowd);
    // Nor is a server that has ended taken for one that runs.
    let output = run(&["status", "--data", dir.path().to_str().unwrap()]);
    assert_eq!(output.status.code(), Some(1));
    let error = text(&output.stderr);
    assert!(error.contains("no server with an admin address runs on") && error.contains("whimbrel serve"), "{error}");
}

#[test]
fn a_taken_port_names_the_remedy() {
    let dir = tempfile::tempdir().unwrap();
    let taken = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = taken.local_addr().unwrap().to_string();
    let output = serve(dir.path(), "127.0.0.1:0").args(["--admin", &address]).output().unwrap();
    assert_eq!(output.status.code(), Some(1));
    let error = text(&output.stderr);
    assert!(error.contains(&address) && error.contains("--admin none"), "{error}");
}

#[test]
fn without_an_admin_address_nothing_listens() {
    let dir = tempfile::tempdir().unwrap();
    fs::create_dir_all(dir.path()).unwrap();
    // What a killed server left.
    fs::write(dir.path().join("admin"), "127.0.0.1:1\n").unwrap();
    let mut command = serve(dir.path(), "127.0.0.1:0");
    command.env("WHIMBREL_ADMIN_LISTEN", "none");
    let server = Server::start_by(command, dir.path());
    assert!(!dir.path().join("admin").exists());
    let output = server.run(&["status"]);
    assert_eq!(output.status.code(), Some(1));
    assert!(text(&output.stderr).contains("no server with an admin address"), "{}", text(&output.stderr));
    server.terminate();
    assert_eq!(server.wait().0.code(), Some(0));
}

#[test]
fn a_killed_server_is_not_taken_for_another() {
    let dir = tempfile::tempdir().unwrap();
    let (first, second) = (dir.path().join("first"), dir.path().join("second"));
    let killed = Server::start(&first);
    let pid = killed.pid();
    killed.kill();
    assert!(first.join("admin").exists(), "it could not remove it");
    let output = run(&["status", "--data", first.to_str().unwrap()]);
    assert_eq!(output.status.code(), Some(1));
    let error = text(&output.stderr);
    // By now its port may be somebody else's, who is not taken for it either.
    assert!(error.contains("no server") || error.contains("is not the admin address"), "{error}");

    // Another one gets its port.
    let other = Server::start(&second);
    fs::copy(second.join("admin"), first.join("admin")).unwrap();
    let output = run(&["status", "--data", first.to_str().unwrap()]);
    assert_eq!(output.status.code(), Some(1));
    let error = text(&output.stderr);
    assert!(error.contains(&format!("not for process {pid}")), "{error}");
    assert!(other.ok(&["status"]).contains("second"));

    // It starts again, and says where it is now.
    let again = Server::start(&first);
    assert_eq!(status(&again)["pid"].as_u64(), Some(u64::from(again.pid())));
}

#[test]
fn where_no_status_is_the_reason_and_the_remedy_are_told() {
    let dir = tempfile::tempdir().unwrap();
    let server = Server::start(&dir.path().join("data"));
    let absent = dir.path().join("absent");
    let (absent, empty) = (absent.to_str().unwrap(), dir.path().to_str().unwrap());
    for (arguments, part) in [
        (["--data", absent], "is not there"),
        (["--data", empty], "is not the data directory of a server"),
        (["--admin", &server.address], "is not the admin address of a server"),
        (["--admin", "127.0.0.1:1"], "no server at 127.0.0.1:1"),
    ] {
        let output = run(&[&["status"][..], &arguments].concat());
        let error = text(&output.stderr);
        assert_eq!(output.status.code(), Some(1), "{error}");
        assert!(error.contains(part) && error.contains("--admin"), "{error}");
        assert_eq!(error.lines().count(), 2, "what, and what to do: {error}");
    }
}

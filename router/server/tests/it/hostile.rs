//! What bad input gets: a numbered refusal, the connection closed where the error table says so, and a server that goes on
//! as if nothing had been. All over real sockets.

use crate::common::Server;
use crate::raw::{Raw, Reply, frame, headed, hello, hello_fields};
use whimbrel_wire::{Builder, Code, Kind, VERSION, fb, limits};

/// Frames, and what each gets, where it comes first on a connection.
fn before_login(server: &Server) -> Vec<(&'static str, Vec<u8>, Code)> {
    let good = hello(&server.token("alice"));
    let table = &good[16..];
    let mut torn = good.clone();
    *torn.last_mut().unwrap() ^= 1;
    let built = |change: &dyn Fn(&mut whimbrel_wire::HelloFields<'_>)| {
        let token = server.token("alice");
        let mut fields = hello_fields(&token);
        change(&mut fields);
        let mut bytes = Vec::new();
        Builder::default().hello(&mut bytes, &fields);
        bytes
    };
    let mut ping = Vec::new();
    Builder::default().ping(&mut ping, 1);
    let table_len = u32::try_from(table.len()).unwrap();
    vec![
        ("shorter than its header", headed(15, 1, VERSION, 0, 0, &[]), Code::BadFrame),
        ("empty", headed(0, 1, VERSION, 0, 0, &[]), Code::BadFrame),
        ("larger than a login may be", headed(2_049, 1, VERSION, 0, 16, &[]), Code::FrameTooLarge),
        ("four gigabytes", headed(u32::MAX, 1, VERSION, 0, 16, &[]), Code::FrameTooLarge),
        ("table longer than the frame", headed(16 + table_len, 1, VERSION, 0, table_len + 1, table), Code::BadFrame),
        ("table of four gigabytes", headed(16 + table_len, 1, VERSION, 0, u32::MAX, table), Code::BadFrame),
        ("flags", frame(1, VERSION, 1, table, &[]), Code::BadFrame),
        ("wrong checksum", torn, Code::BadChecksum),
        ("no table", frame(1, VERSION, 0, &[], &[]), Code::BadTable),
        ("table of noise", frame(1, VERSION, 0, &[0xff; 64], &[]), Code::BadTable),
        ("payload where none belongs", frame(1, VERSION, 0, table, b"payload"), Code::BadTable),
        ("unknown version", frame(1, 9, 0, table, &[]), Code::UnsupportedVersion),
        ("version range above ours", built(&|f| (f.version_min, f.version_max) = (9, 10)), Code::UnsupportedVersion),
        ("not Hello", ping, Code::NotLoggedIn),
        ("what only a node sends", frame(Kind::Welcome as u8, VERSION, 0, table, &[]), Code::UnexpectedKind),
        ("token of noise", built(&|f| f.token = "v4.public.bm9pc2U"), Code::BadToken),
        ("empty token", built(&|f| f.token = ""), Code::BadToken),
        ("another device's token", built(&|f| f.device = 2), Code::WrongDevice),
    ]
}

#[test]
fn a_bad_first_frame_is_refused_by_number_and_closed() {
    let dir = tempfile::tempdir().unwrap();
    let server = Server::start(dir.path());
    let hello = hello(&server.token("alice"));
    let mut codes = Vec::new();
    for (what, bytes, code) in before_login(&server) {
        let mut raw = Raw::connect(&server.address);
        // What comes after it comes too late, good as it is.
        raw.write(&[&bytes[..], &hello].concat());
        assert_eq!(raw.next(), Some(Reply::Refused(code)), "{what}");
        raw.expect_end();
        codes.push(code);
    }
    Raw::log_in(&server.address, &server.token("alice")).0.expect_alive();
    expect_counted(server, &codes);
}

/// Ends the server: it has to have counted these refusals, each by its reason, and to have lived until now.
fn expect_counted(server: Server, codes: &[Code]) {
    server.terminate();
    let (status, errors) = server.wait();
    assert_eq!(status.code(), Some(0), "{errors}");
    for code in codes {
        let expected = codes.iter().filter(|other| *other == code).count();
        let part = format!("{}=", code.name());
        let counts = errors.split(|c: char| !(c.is_ascii_alphanumeric() || c == '_' || c == '='));
        let counted: usize =
            counts.filter_map(|word| word.strip_prefix(&part)).map(|count| count.parse::<usize>().unwrap()).sum();
        assert_eq!(counted, expected, "{part}\n{errors}");
    }
}

#[test]
fn garbage_is_refused_by_number_and_closed() {
    let dir = tempfile::tempdir().unwrap();
    let server = Server::start(dir.path());
    let token = server.token("alice");
    let noise = |seed: u64| {
        // Any generator will do: splitmix64.
        let word = |n: u64| {
            let mut z = (seed << 32 | n).wrapping_mul(0x9e37_79b9_7f4a_7c15);
            z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
            (z ^ (z >> 27)).to_le_bytes()
        };
        (0..400).flat_map(word).collect::<Vec<u8>>()
    };
    let mut garbage: Vec<Vec<u8>> = (0..100).map(noise).collect();
    garbage.push(b"GET / HTTP/1.1\r\nHost: whimbrel\r\n\r\n".to_vec());
    garbage.push(vec![0; 4_000]);
    garbage.push(vec![0xff; 4_000]);
    garbage.push(b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03 a TLS client says hello".to_vec());
    for (number, bytes) in garbage.iter().enumerate() {
        let mut raw = Raw::connect(&server.address);
        raw.write(bytes);
        raw.finish();
        let reply = raw.next();
        let refused = matches!(reply, Some(Reply::Refused(Code::BadFrame | Code::FrameTooLarge | Code::BadChecksum)));
        assert!(refused, "{number}: {reply:?}");
        raw.expect_end();
        // The same after a login.
        let (mut raw, _) = Raw::log_in(&server.address, &token);
        raw.write(bytes);
        raw.finish();
        match raw.next() {
            Some(Reply::Error { code, .. }) => assert!(code.closes(), "{number}: {code:?}"),
            // The length that it seems to name had not come.
            None => {}
            other => panic!("{number}: {other:?}"),
        }
        raw.expect_end();
    }
    expect_counted(server, &[]);
}

/// Frames, and what each gets after the login.
fn after_login(server: &Server) -> Vec<(&'static str, Vec<u8>, Code)> {
    let good = hello(&server.token("alice"));
    let mut ping = Vec::new();
    Builder::default().ping(&mut ping, 1);
    let mut torn = ping.clone();
    *torn.last_mut().unwrap() ^= 1;
    let mut padded = ping[16..].to_vec();
    padded.extend_from_slice(&[0; 9]);
    let mut ack = Vec::new();
    Builder::default().ack(&mut ack, 1_000_000);
    let too_long = u32::try_from(limits::FRAME_MAX_BYTES + 1).unwrap();
    vec![
        ("second Hello", good, Code::AlreadyLoggedIn),
        ("what only a node sends", frame(Kind::Deliver as u8, VERSION, 0, &ping[16..], &[]), Code::UnexpectedKind),
        ("unknown kind", frame(200, VERSION, 0, b"anything", b"at all"), Code::UnknownKind),
        ("kind 0", frame(0, VERSION, 0, &[], &[]), Code::UnknownKind),
        ("unknown version", frame(Kind::Ping as u8, 9, 0, &ping[16..], &[]), Code::UnsupportedVersion),
        ("too large", headed(too_long, Kind::Send as u8, VERSION, 0, 16, &[]), Code::FrameTooLarge),
        ("too short", headed(3, Kind::Ping as u8, VERSION, 0, 0, &[]), Code::BadFrame),
        ("wrong checksum", torn, Code::BadChecksum),
        ("table of noise", frame(Kind::Send as u8, VERSION, 0, &[0x80; 40], &[]), Code::BadTable),
        ("payload where none belongs", frame(Kind::Ping as u8, VERSION, 0, &ping[16..], b"x"), Code::BadTable),
        ("acknowledgement of what was never delivered", ack, Code::AckAboveHead),
    ]
}

#[test]
fn a_bad_frame_after_login_is_answered_by_number() {
    let dir = tempfile::tempdir().unwrap();
    let server = Server::start(dir.path());
    let token = server.token("alice");
    let mut codes = Vec::new();
    for (what, bytes, code) in after_login(&server) {
        let (mut raw, _) = Raw::log_in(&server.address, &token);
        raw.write(&bytes);
        let answered = match raw.next() {
            Some(Reply::Error { code, .. } | Reply::GoAway(code)) => Some(code),
            other => panic!("{what}: {other:?}"),
        };
        assert_eq!(answered, Some(code), "{what}");
        if code.closes() {
            raw.expect_end();
        } else {
            raw.expect_alive();
        }
        codes.push(code);
    }
    expect_counted(server, &codes);
}

#[test]
fn a_request_that_cannot_be_met_is_answered_and_the_connection_lives() {
    let dir = tempfile::tempdir().unwrap();
    let server = Server::start(dir.path());
    server.ok(&["recv", "--as", "bob", "--count", "0"]);
    let (mut raw, _) = Raw::log_in(&server.address, &server.token("alice"));
    let code = |reply: Reply| match reply {
        Reply::Error { code, .. } => code,
        other => panic!("{other:?}"),
    };
    let direct = fb::ChatKind::Direct;
    let group = fb::ChatKind::Group;
    assert_eq!(code(raw.create_chat(direct, &["nobody"], "")), Code::UserUnknown);
    assert_eq!(code(raw.create_chat(group, &["bob", "nobody"], "Birds")), Code::UserUnknown);
    assert_eq!(code(raw.create_chat(direct, &[], "")), Code::BadMembers);
    assert_eq!(code(raw.create_chat(direct, &["bob", "bob"], "")), Code::BadMembers);
    assert_eq!(code(raw.create_chat(group, &["Bob!"], "Birds")), Code::BadMembers);
    assert_eq!(code(raw.create_chat(group, &["bob"], &"x".repeat(limits::TITLE_MAX_BYTES + 1))), Code::BadTitle);

    let chat = raw.pair("bob");
    let mut sent = |chat, client_seq, prev, payload: &[u8]| {
        raw.send(chat, client_seq, prev, payload);
        raw.reply()
    };
    assert_eq!(code(sent(1, 1, 0, b"to nowhere")), Code::ChatUnknown);
    assert_eq!(code(sent(chat, 0, 0, b"number 0")), Code::BadClientSeq);
    assert_eq!(code(sent(chat, 5, 5, b"after itself")), Code::BadClientSeq);
    assert_eq!(code(sent(chat, 9, 8, b"after one that never came")), Code::OutOfOrder);
    assert_eq!(code(sent(chat, 9, 0, &vec![7; limits::PAYLOAD_MAX_BYTES + 1])), Code::PayloadTooLarge);
    let first = sent(chat, 1, 0, b"first");
    assert!(matches!(first, Reply::Sent { client_seq: 1, status: 0, .. }), "{first:?}");
    let Reply::Sent { chat_seq, .. } = first else { unreachable!() };
    assert_eq!(sent(chat, 1, 0, b"first"), Reply::Sent { client_seq: 1, chat_seq, status: 1 });
    assert_eq!(code(sent(chat, 1, 0, b"another")), Code::PayloadMismatch);
    raw.expect_alive();
}

#[test]
fn a_frame_may_be_split_anywhere() {
    let dir = tempfile::tempdir().unwrap();
    let server = Server::start(dir.path());
    server.ok(&["recv", "--as", "bob", "--count", "0"]);
    let (mut raw, _) = Raw::log_in(&server.address, &server.token("alice"));
    let chat = raw.pair("bob");
    let mut frame = Vec::new();
    let fields = whimbrel_wire::SendFields { correlation: 1, chat, client_seq: 1, prev: 0 };
    raw.builder.send(&mut frame, &fields, b"in two pieces");
    for at in 1..frame.len() {
        // The first piece comes along with a whole frame whose answer shows that it was read.
        let mut first = Vec::new();
        raw.builder.ping(&mut first, at as u64);
        first.extend_from_slice(&frame[..at]);
        raw.write(&first);
        assert_eq!(raw.reply(), Reply::Pong(at as u64));
        raw.write(&frame[at..]);
        let reply = raw.reply();
        assert!(matches!(reply, Reply::Sent { client_seq: 1, .. }), "split at {at}: {reply:?}");
    }
}

#[test]
fn a_login_may_come_byte_by_byte() {
    let dir = tempfile::tempdir().unwrap();
    let server = Server::start(dir.path());
    let hello = hello(&server.token("alice"));
    for at in 1..hello.len() {
        let mut raw = Raw::connect(&server.address);
        raw.write(&hello[..at]);
        raw.write(&hello[at..]);
        assert!(matches!(raw.reply(), Reply::Welcome { .. }), "split at {at}");
    }
    let mut raw = Raw::connect(&server.address);
    for byte in &hello {
        raw.write(&[*byte]);
    }
    assert!(matches!(raw.reply(), Reply::Welcome { .. }));
}

#[test]
fn who_leaves_in_the_middle_of_a_frame_costs_nothing() {
    let dir = tempfile::tempdir().unwrap();
    let mut server = Server::start(dir.path());
    let token = server.token("alice");
    let hello = hello(&token);
    for at in 0..hello.len() {
        let mut raw = Raw::connect(&server.address);
        raw.write(&hello[..at]);
        raw.finish();
        // Whatever it says to that, it closes.
        while raw.next().is_some() {}
    }
    assert!(server.runs());
    Raw::log_in(&server.address, &token).0.expect_alive();
}

#[test]
fn tokens_count_only_as_they_should() {
    let dir = tempfile::tempdir().unwrap();
    let server = Server::start(dir.path());
    let other_dir = tempfile::tempdir().unwrap();
    let other = Server::start(other_dir.path());
    let refused = |token: &str| {
        let mut raw = Raw::connect(&server.address);
        raw.write(&hello(token));
        let reply = raw.reply();
        raw.expect_end();
        reply
    };
    let expired = server.ok(&["token", "--user", "alice", "--ttl", "0s"]);
    assert_eq!(refused(expired.trim()), Reply::Refused(Code::ExpiredToken));
    assert_eq!(refused(&other.token("alice")), Reply::Refused(Code::BadToken));
    // Refused before any state was made: nobody knows alice.
    let (mut bob, _) = Raw::log_in(&server.address, &server.token("bob"));
    assert!(matches!(
        bob.create_chat(fb::ChatKind::Direct, &["alice"], ""),
        Reply::Error { code: Code::UserUnknown, .. }
    ));
    let newer = server.ok(&["token", "--user", "carol", "--epoch", "5"]);
    Raw::log_in(&server.address, newer.trim());
    let older = server.ok(&["token", "--user", "carol", "--epoch", "4"]);
    assert_eq!(refused(older.trim()), Reply::Refused(Code::StaleToken));
}

#[test]
fn the_newest_login_of_a_device_counts() {
    let dir = tempfile::tempdir().unwrap();
    let server = Server::start(dir.path());
    let token = server.token("alice");
    let (mut first, _) = Raw::log_in(&server.address, &token);
    let (mut second, _) = Raw::log_in(&server.address, &token);
    assert_eq!(first.next(), Some(Reply::GoAway(Code::Replaced)));
    first.expect_end();
    second.expect_alive();
}

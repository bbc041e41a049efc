//! Login, life and end of a connection.

use whimbrel_client::{ClientError, Config, Event};
use whimbrel_wire::{Code, Kind, RefusedFields};

use crate::node::{Heard, Rig, bytes, chat_info, deliver, error, sent, welcome, welcome_with};

#[test]
fn the_first_frame_is_a_hello_and_nothing_else_goes_out_before_the_welcome() {
    let mut rig = Rig::with(Config { floor: 41, ..Config::new("alice", 1, "token") });
    let chat = rig.session.chat_info(7);
    assert_eq!(rig.session.poll_timeout(), None);
    rig.session.connected(rig.now_ms);
    assert_eq!(rig.heard(), [Heard::Hello { correlation: 2, floor: 41, token: "token".into() }]);
    assert_eq!(rig.heard(), []);
    assert!(!rig.session.is_ready());
    rig.tell(&welcome(2, 44, 41));
    let events = rig.events();
    let [Event::Welcome(welcome)] = &events[..] else { panic!("{events:?}") };
    assert_eq!((welcome.head, welcome.floor, welcome.keepalive_ms), (44, 41, 90_000));
    assert!(rig.session.is_ready());
    assert_eq!(rig.heard(), [Heard::Info { correlation: chat, chat: 7 }]);
}

#[test]
fn a_refusal_says_whether_another_connection_would_help() {
    for (code, may) in
        [(Code::ExpiredToken, false), (Code::TooManyConnections, true), (Code::UnsupportedVersion, false)]
    {
        let mut rig = Rig::new();
        let correlation = rig.connect();
        let fields = RefusedFields {
            correlation,
            code: code as u16,
            retry_after_ms: 9,
            detail: "so",
            ..RefusedFields::default()
        };
        rig.tell(&bytes(|b, out| b.refused(out, &fields)));
        let events = rig.events();
        let [Event::Refused(refusal)] = &events[..] else { panic!("{events:?}") };
        assert_eq!((refusal.code, refusal.detail.as_str(), refusal.retry_after_ms), (Some(code), "so", 9));
        assert_eq!(refusal.may_reconnect(), may);
        assert!(refusal.to_string().starts_with(code.text()) && refusal.to_string().ends_with("(so)"));
        assert_eq!(rig.heard(), []);
    }
}

#[test]
fn a_reason_that_this_version_does_not_know_keeps_its_number() {
    let mut rig = Rig::new();
    rig.log_in();
    rig.tell(&bytes(|b, out| b.go_away(out, 999, 5, "")));
    let events = rig.events();
    let [Event::GoAway(refusal)] = &events[..] else { panic!("{events:?}") };
    assert_eq!((refusal.code, refusal.number), (None, 999));
    assert!(refusal.may_reconnect());
}

#[test]
fn after_go_away_nothing_goes_out_and_answers_still_count() {
    let mut rig = Rig::in_chat(7, 0);
    rig.session.send(7, b"a").unwrap();
    assert_eq!(rig.sends().len(), 1);
    rig.tell(&bytes(|b, out| b.go_away(out, Code::ShuttingDown as u16, 5, "")));
    rig.session.send(7, b"b").unwrap();
    assert_eq!(rig.heard(), []);
    rig.tell(&sent(7, 1, 1));
    assert!(matches!(rig.events()[..], [Event::GoAway(_), Event::Sent(_)]));
    // A node that does not close is given up.
    assert!(matches!(rig.pass(), Err(ClientError::Silent)));
}

#[test]
fn an_error_that_closes_is_the_end_whatever_it_answers() {
    let mut rig = Rig::in_chat(7, 0);
    rig.session.send(7, b"a").unwrap();
    let correlation = rig.sends()[0].0;
    rig.tell(&error(correlation, 1, Code::Internal, 0));
    assert!(matches!(&rig.events()[..], [Event::GoAway(refusal)] if refusal.code == Some(Code::Internal)));
    assert_eq!(rig.heard(), []);
    // It was for now only: the send goes out again on the next connection.
    let again = rig.log_in();
    assert!(matches!(again[..], [Heard::Send { client_seq: 1, .. }]), "{again:?}");
}

#[test]
fn a_node_that_is_not_one_is_left() {
    let wrong = |bytes: &[u8]| {
        let mut rig = Rig::new();
        rig.connect();
        rig.tell_wrong(bytes)
    };
    assert!(matches!(wrong(b"HTTP/1.1 400 Bad Request\r\n\r\n"), ClientError::Frame(_)));
    assert!(matches!(wrong(&deliver(1)), ClientError::Unexpected(Kind::Deliver)));
    assert!(matches!(wrong(&sent(1, 1, 1)), ClientError::Unexpected(Kind::Sent)));
    assert!(matches!(wrong(&chat_info(1, 1, 1)), ClientError::Unexpected(Kind::ChatInfo)));
    assert!(matches!(wrong(&welcome(77, 0, 0)), ClientError::Unexpected(Kind::Welcome)));
    assert!(matches!(wrong(&bytes(|b, out| b.ping(out, 1))), ClientError::Frame(_)));
    let other = welcome_with(1, |fields| fields.user = "mallory");
    assert!(matches!(wrong(&other), ClientError::WrongUser { user, .. } if user == "mallory"));
    assert!(matches!(wrong(&welcome_with(1, |fields| fields.device = 2)), ClientError::WrongUser { device: 2, .. }));
    assert!(matches!(wrong(&welcome_with(1, |fields| fields.version = 9)), ClientError::Version(9)));
}

#[test]
fn a_kind_that_this_version_does_not_know_is_skipped() {
    let mut rig = Rig::new();
    rig.log_in();
    let mut unknown = bytes(|b, out| b.pong(out, 1, 1));
    unknown[4] = 99;
    let sum = crc32c::crc32c_append(crc32c::crc32c(&unknown[..12]), &unknown[16..]);
    unknown[12..16].copy_from_slice(&sum.to_le_bytes());
    unknown.extend_from_slice(&deliver(1));
    rig.tell(&unknown);
    assert!(matches!(rig.events()[..], [Event::Delivered(_)]));
}

#[test]
fn a_quiet_connection_is_pinged_at_a_third_of_the_keepalive() {
    let mut rig = Rig::new();
    rig.log_in();
    for _ in 0..5 {
        assert_eq!(rig.pass().unwrap(), 30_000);
        let heard = rig.heard();
        let [Heard::Ping { correlation }] = heard[..] else { panic!("{heard:?}") };
        rig.tell(&bytes(|b, out| b.pong(out, correlation, 1)));
        // The application did not ask.
        assert_eq!(rig.events(), []);
    }
}

#[test]
fn a_node_that_only_takes_is_pinged_too_and_left_when_it_stays_silent() {
    let mut rig = Rig::new();
    rig.log_in();
    rig.tell(&deliver(1));
    for step in 1..=2 {
        rig.now_ms += 15_000;
        rig.session.ack(1);
        rig.heard();
        rig.now_ms += 15_000;
        rig.session.handle_timeout(rig.now_ms).unwrap();
        assert!(matches!(rig.heard()[..], [Heard::Ping { .. }]), "after {step} thirds");
    }
    assert_eq!(rig.session.poll_timeout(), Some(rig.now_ms + 30_000));
    assert!(matches!(rig.pass(), Err(ClientError::Silent)));
}

#[test]
fn a_login_without_an_answer_is_given_up() {
    let mut rig = Rig::new();
    rig.connect();
    assert!(matches!(rig.pass(), Err(ClientError::Silent)));
}

#[test]
fn a_ping_of_the_application_is_answered_to_it() {
    let mut rig = Rig::new();
    rig.log_in();
    let correlation = rig.session.ping();
    assert_eq!(rig.heard(), [Heard::Ping { correlation }]);
    rig.tell(&bytes(|b, out| b.pong(out, correlation, 5)));
    assert_eq!(rig.events(), [Event::Pong { correlation, server_time_ms: 5 }]);
    rig.tell(&bytes(|b, out| b.pong(out, correlation, 5)));
    assert_eq!(rig.events(), []);
}

#[test]
fn requests_outlive_a_connection_and_their_answers_count_once() {
    let mut rig = Rig::new();
    rig.log_in();
    let correlation = rig.session.create_chat(whimbrel_client::ChatKind::Direct, &["bob"], "", 0);
    let asked = [Heard::Create { correlation, members: vec!["bob".into()] }];
    assert_eq!(rig.heard(), asked);
    rig.session.disconnected();
    assert_eq!(rig.log_in(), asked);
    rig.tell(&error(correlation, 0, Code::NotReady, 70));
    assert_eq!(rig.heard(), []);
    assert_eq!(rig.pass().unwrap(), 70);
    assert_eq!(rig.heard(), asked);
    rig.tell(&chat_info(correlation, 7, 0));
    rig.tell(&chat_info(correlation, 7, 0));
    assert!(matches!(rig.events()[..], [Event::Chat { correlation: c, .. }] if c == correlation));
    let second = rig.session.chat_info(8);
    rig.heard();
    rig.tell(&error(second, 0, Code::ChatUnknown, 0));
    assert!(matches!(rig.events()[..], [Event::RequestFailed { correlation, .. }] if correlation == second));
    assert_eq!(rig.session.unanswered_requests(), 0);
}

#[test]
fn bytes_in_any_pieces_give_the_same_events() {
    let mut stream = welcome(1, 3, 0);
    (1..=3).for_each(|seq| stream.extend_from_slice(&deliver(seq)));
    let told = |pieces: &[&[u8]]| {
        let mut rig = Rig::new();
        rig.connect();
        pieces.iter().for_each(|piece| rig.tell(piece));
        rig.events()
    };
    let whole = told(&[&stream]);
    assert_eq!(whole.len(), 4);
    for cut in 0..=stream.len() {
        assert_eq!(told(&[&stream[..cut], &stream[cut..]]), whole, "cut at {cut}");
    }
}

//! Sends: their numbers, their order, and that they go out until they are answered.

use whimbrel_client::{Config, Event, SendError, SendNumber, SentStatus};
use whimbrel_wire::{Code, SentFields, fb, limits};

use crate::node::{Heard, Rig, bytes, error, sent, welcome_with};

/// Messages to chat 7, each its own index.
fn send_many(rig: &mut Rig, count: u8) {
    for n in 0..count {
        rig.session.send(7, &[n]).unwrap();
    }
}

/// The numbers alone.
fn numbers(sends: &[(u64, u64, u64)]) -> Vec<(u64, u64)> {
    sends.iter().map(|(_, client_seq, prev)| (*client_seq, *prev)).collect()
}

#[test]
fn numbers_go_on_from_what_the_node_knows() {
    let mut rig = Rig::in_chat(7, 41);
    assert_eq!(rig.session.send(7, b"a"), Ok(SendNumber { client_seq: 42, prev: 41 }));
    assert_eq!(rig.session.send(7, b"b"), Ok(SendNumber { client_seq: 43, prev: 42 }));
    assert_eq!(numbers(&rig.sends()), [(42, 41), (43, 42)]);
    // The counter is the device's, `prev` the chat's.
    rig.know(8, 3);
    assert_eq!(rig.session.send(8, b"c"), Ok(SendNumber { client_seq: 44, prev: 3 }));
    assert_eq!(rig.session.send(7, b"d"), Ok(SendNumber { client_seq: 45, prev: 43 }));
    assert_eq!(rig.session.next_client_seq(), 46);
}

#[test]
fn a_counter_that_was_kept_is_never_gone_below() {
    let mut rig = Rig::with(Config { next_client_seq: 100, ..Config::new("alice", 1, "token") });
    rig.log_in();
    rig.know(7, 41);
    assert_eq!(rig.session.send(7, b"a"), Ok(SendNumber { client_seq: 100, prev: 41 }));
}

#[test]
fn a_chat_has_to_be_known_and_a_payload_to_fit() {
    let mut rig = Rig::in_chat(7, 0);
    assert_eq!(rig.session.send(8, b"a"), Err(SendError::ChatNotKnown));
    let bytes = limits::PAYLOAD_MAX_BYTES + 1;
    assert_eq!(rig.session.send(7, &vec![0; bytes]), Err(SendError::TooLarge { bytes, max: bytes - 1 }));
    assert_eq!(rig.session.send(7, &vec![0; bytes - 1]), Ok(SendNumber { client_seq: 1, prev: 0 }));
    let waiting: Vec<_> = (0..10_000).map(|_| rig.session.send(7, b"")).take_while(Result::is_ok).collect();
    assert!(waiting.len() < 5_000);
    assert_eq!(rig.session.send(7, b""), Err(SendError::QueueFull));
}

#[test]
fn an_answer_is_told_once() {
    let mut rig = Rig::in_chat(7, 0);
    rig.session.send(7, b"a").unwrap();
    rig.sends();
    let fields = SentFields {
        chat: 7,
        client_seq: 1,
        chat_seq: 12,
        time_ms: 5,
        durability: fb::Durability::Majority,
        status: SentStatus::Repeated,
        ..SentFields::default()
    };
    let answer = bytes(|b, out| b.sent(out, &fields));
    rig.tell(&answer);
    rig.tell(&answer);
    let events = rig.events();
    let [Event::Sent(receipt)] = &events[..] else { panic!("{events:?}") };
    assert_eq!((receipt.chat, receipt.client_seq, receipt.chat_seq, receipt.time_ms), (7, 1, 12, 5));
    assert_eq!((receipt.durability, receipt.status), (fb::Durability::Majority, SentStatus::Repeated));
    assert_eq!(rig.session.unanswered_sends(), 0);
}

#[test]
fn what_is_unanswered_goes_out_again_with_its_numbers_and_in_its_order() {
    let mut rig = Rig::in_chat(7, 0);
    send_many(&mut rig, 4);
    assert_eq!(numbers(&rig.sends()), [(1, 0), (2, 1), (3, 2), (4, 3)]);
    rig.tell(&sent(7, 1, 1));
    assert!(matches!(rig.events()[..], [Event::Sent(_)]));
    rig.session.disconnected();
    rig.session.send(7, &[4]).unwrap();
    let again = rig.log_in();
    let again: Vec<_> = again
        .iter()
        .map(|heard| match heard {
            Heard::Send { client_seq, prev, payload, .. } => (*client_seq, *prev, payload[0]),
            other => panic!("{other:?}"),
        })
        .collect();
    assert_eq!(again, [(2, 1, 1), (3, 2, 2), (4, 3, 3), (5, 4, 4)]);
}

#[test]
fn no_more_goes_out_unanswered_than_the_node_allows() {
    let mut rig = Rig::new();
    let correlation = rig.connect();
    rig.tell(&welcome_with(correlation, |fields| fields.sends_in_flight_max = 2));
    rig.events();
    rig.know(7, 0);
    send_many(&mut rig, 5);
    assert_eq!(numbers(&rig.sends()), [(1, 0), (2, 1)]);
    assert_eq!(rig.sends(), []);
    rig.tell(&sent(7, 1, 1));
    assert_eq!(numbers(&rig.sends()), [(3, 2)]);
    // A request counts too.
    rig.tell(&sent(7, 2, 2));
    rig.session.chat_info(8);
    assert!(matches!(rig.heard()[..], [Heard::Info { chat: 8, .. }]));
    assert_eq!(rig.sends(), []);
}

#[test]
fn a_chat_that_was_refused_for_now_goes_back_to_its_first_send() {
    let mut rig = Rig::in_chat(7, 0);
    rig.know(8, 0);
    send_many(&mut rig, 3);
    let sends = rig.sends();
    rig.tell(&error(sends[0].0, 1, Code::Overloaded, 70));
    // Two answers are out: resending now would only be refused for its order.
    rig.now_ms += 100;
    assert_eq!(rig.sends(), []);
    // Another chat is not held back.
    rig.session.send(8, b"x").unwrap();
    let other = rig.sends();
    assert_eq!(numbers(&other), [(4, 0)]);
    rig.tell(&sent(8, 4, 1));
    rig.tell(&error(sends[1].0, 2, Code::OutOfOrder, 0));
    rig.tell(&error(sends[2].0, 3, Code::OutOfOrder, 0));
    assert_eq!(rig.sends(), []);
    assert_eq!(rig.pass().unwrap(), 100);
    assert_eq!(numbers(&rig.sends()), [(1, 0), (2, 1), (3, 2)]);
    assert!(matches!(rig.events()[..], [Event::Sent(_)]));
}

#[test]
fn a_send_that_was_refused_for_good_is_left_out_of_the_order() {
    let mut rig = Rig::in_chat(7, 0);
    send_many(&mut rig, 3);
    let sends = rig.sends();
    rig.tell(&sent(7, 1, 1));
    rig.tell(&error(sends[1].0, 2, Code::PayloadTooLarge, 0));
    rig.tell(&error(sends[2].0, 3, Code::OutOfOrder, 10));
    let events = rig.events();
    assert!(
        matches!(&events[..], [Event::Sent(_), Event::SendFailed { chat: 7, client_seq: 2, refusal }] if refusal.code == Some(Code::PayloadTooLarge))
    );
    rig.pass().unwrap();
    assert_eq!(numbers(&rig.sends()), [(3, 1)]);
    // Its number is not used again.
    assert_eq!(rig.session.send(7, b"d"), Ok(SendNumber { client_seq: 4, prev: 3 }));
}

#[test]
fn an_answer_that_does_not_come_is_asked_for_again() {
    let mut rig = Rig::in_chat(7, 0);
    send_many(&mut rig, 2);
    let first = rig.sends();
    assert_eq!(rig.pass().unwrap(), 10_000);
    let second = rig.sends();
    assert_eq!(numbers(&second), numbers(&first));
    assert!(second[0].0 > first[1].0, "a transmission has a correlation of its own");
    // A late no to the first transmission does not count: the second one is on its way.
    rig.tell(&error(first[0].0, 1, Code::ChatUnknown, 0));
    rig.tell(&error(first[1].0, 2, Code::Overloaded, 5));
    assert_eq!((rig.events(), rig.sends()), (vec![], vec![]));
    // A late yes does.
    rig.tell(&sent(7, 1, 1));
    rig.tell(&sent(7, 2, 2));
    assert_eq!(rig.events().len(), 2);
}

#[test]
fn sends_of_a_former_process_go_on_with_their_numbers() {
    let mut rig = Rig::with(Config { next_client_seq: 9, ..Config::new("alice", 1, "token") });
    rig.session.resume_send(7, SendNumber { client_seq: 5, prev: 3 }, b"a").unwrap();
    rig.session.resume_send(7, SendNumber { client_seq: 8, prev: 5 }, b"b").unwrap();
    let wrong = |rig: &mut Rig, client_seq, prev| rig.session.resume_send(7, SendNumber { client_seq, prev }, b"x");
    for (client_seq, prev) in [(0, 0), (5, 5), (8, 5), (6, 5)] {
        assert_eq!(wrong(&mut rig, client_seq, prev), Err(SendError::BadNumber { client_seq, prev }));
    }
    // The chat is known by them.
    assert_eq!(rig.session.send(7, b"c"), Ok(SendNumber { client_seq: 9, prev: 8 }));
    let heard = rig.log_in();
    let heard: Vec<_> = heard
        .iter()
        .map(|heard| match heard {
            Heard::Send { client_seq, prev, .. } => (*client_seq, *prev),
            other => panic!("{other:?}"),
        })
        .collect();
    assert_eq!(heard, [(5, 3), (8, 5), (9, 8)]);
}

#[test]
fn a_resumed_send_does_not_wait_for_one_that_was_never_stored() {
    let mut rig = Rig::new();
    // 4 was refused for good in the former process, after 5 had been given its numbers.
    rig.session.resume_send(7, SendNumber { client_seq: 5, prev: 4 }, b"a").unwrap();
    let heard = rig.log_in();
    let [Heard::Send { correlation, client_seq: 5, prev: 4, .. }] = heard[..] else { panic!("{heard:?}") };
    rig.tell(&error(correlation, 5, Code::OutOfOrder, 10));
    rig.pass().unwrap();
    assert_eq!(numbers(&rig.sends()), [(5, 0)]);
    rig.tell(&sent(7, 5, 1));
    assert_eq!(rig.session.send(7, b"b"), Ok(SendNumber { client_seq: 6, prev: 5 }));
}

#[test]
fn what_the_node_knows_does_not_push_prev_above_a_resumed_send() {
    let mut rig = Rig::new();
    rig.session.resume_send(7, SendNumber { client_seq: 5, prev: 4 }, b"a").unwrap();
    let heard = rig.log_in();
    assert!(matches!(heard[..], [Heard::Send { .. }]));
    rig.know(7, 9);
    rig.session.disconnected();
    let heard = rig.log_in();
    assert!(matches!(heard[..], [Heard::Send { client_seq: 5, prev: 4, .. }]), "{heard:?}");
    assert_eq!(rig.session.send(7, b"b").unwrap().client_seq, 10);
}

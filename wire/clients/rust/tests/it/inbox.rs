//! Deliveries, floors and acknowledgements.

use whimbrel_client::{Config, Content, Event};
use whimbrel_wire::{DeliverFields, Payload, fb};

use crate::node::{Heard, Rig, bytes, deliver, welcome};

fn places(events: &[Event]) -> Vec<u64> {
    let delivered = events.iter().filter_map(|event| match event {
        Event::Delivered(delivery) => Some(delivery.inbox_seq),
        _ => None,
    });
    delivered.collect()
}

#[test]
fn a_delivery_is_given_once_however_often_it_comes() {
    let mut rig = Rig::new();
    rig.log_in();
    (1..=3).for_each(|seq| rig.tell(&deliver(seq)));
    assert_eq!(places(&rig.events()), [1, 2, 3]);
    rig.session.ack(2);
    assert_eq!(rig.heard(), [Heard::Ack { floor: 2 }]);
    rig.session.disconnected();
    let correlation = rig.connect();
    // The node has not heard of the acknowledgement of 2 but for the Hello, and sends 3 again.
    rig.tell(&welcome(correlation, 4, 2));
    rig.tell(&deliver(3));
    rig.tell(&deliver(4));
    assert_eq!(places(&rig.events()), [4]);
    rig.session.ack(4);
    assert_eq!(rig.heard(), [Heard::Ack { floor: 4 }]);
}

#[test]
fn the_hello_carries_the_floor_and_what_is_below_it_is_discarded() {
    let mut rig = Rig::with(Config { floor: 5, ..Config::new("alice", 1, "token") });
    rig.session.connected(rig.now_ms);
    assert!(matches!(rig.heard()[..], [Heard::Hello { floor: 5, .. }]));
    rig.tell(&welcome(1, 7, 5));
    (4..=7).for_each(|seq| rig.tell(&deliver(seq)));
    let events = rig.events();
    assert_eq!(places(&events), [6, 7]);
    assert!(!events.iter().any(|event| matches!(event, Event::Gap { .. })));
    // The node sent what was acknowledged, so it does not know: it is told.
    assert_eq!(rig.heard(), [Heard::Ack { floor: 5 }]);
}

#[test]
fn acknowledgements_are_explicit_cumulative_and_never_ahead() {
    let mut rig = Rig::new();
    rig.log_in();
    (1..=3).for_each(|seq| rig.tell(&deliver(seq)));
    assert_eq!(rig.heard(), []);
    rig.session.ack(1);
    rig.session.ack(3);
    rig.session.ack(2);
    assert_eq!(rig.heard(), [Heard::Ack { floor: 3 }]);
    assert_eq!(rig.heard(), []);
    rig.session.ack(1_000);
    assert_eq!((rig.heard(), rig.session.floor()), (vec![], 3));
}

#[test]
fn an_acknowledgement_without_a_connection_goes_with_the_next_hello() {
    let mut rig = Rig::new();
    rig.log_in();
    rig.tell(&deliver(1));
    rig.session.disconnected();
    rig.session.ack(1);
    rig.session.connected(rig.now_ms);
    assert!(matches!(rig.heard()[..], [Heard::Hello { floor: 1, .. }]));
}

#[test]
fn a_jump_is_a_gap() {
    let mut rig = Rig::new();
    rig.log_in();
    rig.tell(&deliver(1));
    rig.tell(&deliver(4));
    rig.tell(&deliver(5));
    let events = rig.events();
    assert_eq!(events[1], Event::Gap { expected: 2, got: 4 });
    assert_eq!(places(&events), [1, 4, 5]);
    assert_eq!(events.len(), 4);
}

#[test]
fn what_another_program_of_the_device_acknowledged_is_no_gap() {
    let mut rig = Rig::new();
    let correlation = rig.connect();
    rig.tell(&welcome(correlation, 9, 8));
    rig.tell(&deliver(9));
    let events = rig.events();
    assert!(matches!(events[..], [Event::Welcome(_), Event::Delivered(_)]), "{events:?}");
}

#[test]
fn a_node_that_lost_the_inbox_is_noticed_and_goes_on_from_its_head() {
    let mut rig = Rig::with(Config { floor: 9, ..Config::new("alice", 1, "token") });
    let correlation = rig.connect();
    rig.tell(&welcome(correlation, 2, 2));
    assert_eq!(rig.events()[1..], [Event::InboxLost { floor: 9, head: 2 }]);
    rig.tell(&deliver(3));
    assert_eq!(places(&rig.events()), [3]);
    rig.session.ack(3);
    assert_eq!(rig.heard(), [Heard::Ack { floor: 3 }]);
}

#[test]
fn deliveries_say_what_they_are() {
    let mut rig = Rig::new();
    rig.log_in();
    let fields = DeliverFields {
        inbox_seq: 1,
        chat: 9,
        chat_seq: 1,
        time_ms: 5,
        sender: "bob",
        sender_device: 3,
        event: fb::Event::ChatCreated,
        members: &["alice", "bob"],
        title: "Birds",
    };
    rig.tell(&bytes(|b, out| b.deliver(out, &fields, b"", Payload::Inline)));
    let later = DeliverFields { inbox_seq: 2, event: fb::Event(77), members: &[], title: "", ..fields };
    rig.tell(&bytes(|b, out| b.deliver(out, &later, b"?", Payload::Inline)));
    rig.tell(&deliver(3));
    let contents: Vec<Content> = rig
        .events()
        .into_iter()
        .map(|event| match event {
            Event::Delivered(delivery) => delivery.content,
            other => panic!("{other:?}"),
        })
        .collect();
    let created = Content::ChatCreated { members: vec!["alice".into(), "bob".into()], title: "Birds".into() };
    assert_eq!(
        contents,
        [created, Content::Unknown { event: 77, payload: b"?".to_vec() }, Content::Message(b"hi".to_vec())]
    );
}

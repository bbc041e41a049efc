//! Each check of the model fails when it should, and none when it should not: a chat of two with three devices.

use super::*;

const CHAT: u128 = 0xabcd << 104;

/// alice's device, and bob's two.
const ALICE: DeviceIndex = 0;
const BOB: DeviceIndex = 1;
const BOB_TOO: DeviceIndex = 2;

fn greeting(floor: u64, head: u64) -> Greeting {
    Greeting { hello_floor: floor, head, floor, credit_messages: 4, shard: 0 }
}

/// All are logged in, and alice has made the chat; nobody was sent anything.
fn world() -> Model {
    let mut model = Model::default();
    let alice = model.add_user("alice".into());
    let bob = model.add_user("bob".into());
    assert_eq!(model.add_device(alice, 1), ALICE);
    assert_eq!(model.add_device(bob, 1), BOB);
    assert_eq!(model.add_device(bob, 2), BOB_TOO);
    for device in [ALICE, BOB, BOB_TOO] {
        model.hello(device, 0);
        model.welcome(device, &greeting(0, 0)).unwrap();
    }
    let wish = model.wish(ALICE, false, "", vec![alice, bob]);
    model.users_known(wish).unwrap();
    model.found(wish, CHAT).unwrap();
    model
}

fn created(model: &mut Model, device: DeviceIndex, inbox_seq: u64) -> Checked {
    let created = Some((vec!["alice", "bob"], ""));
    let it = Delivery {
        inbox_seq,
        chat: CHAT,
        chat_seq: 1,
        time_ms: 1,
        sender: "alice",
        sender_device: 1,
        created,
        payload: &[],
    };
    model.deliver(device, &it)?;
    model.shown(device, inbox_seq, (CHAT, 1), &[])
}

/// alice sends: the payload, by which the message is known again.
fn send(model: &mut Model, client_seq: u64) -> Vec<u8> {
    let mut bytes = Vec::new();
    payload(model.messages.len(), 20, &mut bytes);
    model.send(ALICE, CHAT, client_seq, &bytes);
    bytes
}

fn deliver(model: &mut Model, device: DeviceIndex, (inbox_seq, chat_seq): (u64, u64), payload: &[u8]) -> Checked {
    let it = Delivery {
        inbox_seq,
        chat: CHAT,
        chat_seq,
        time_ms: chat_seq,
        sender: "alice",
        sender_device: 1,
        created: None,
        payload,
    };
    model.deliver(device, &it)?;
    model.shown(device, inbox_seq, (CHAT, chat_seq), payload)
}

fn check(result: Checked) -> Check {
    result.unwrap_err().check
}

#[test]
fn what_is_right_passes() {
    let mut model = world();
    let one = send(&mut model, 1);
    model.sent(ALICE, CHAT, 1, Some((2, 2))).unwrap();
    for device in [BOB, BOB_TOO] {
        created(&mut model, device, 1).unwrap();
        deliver(&mut model, device, (2, 2), &one).unwrap();
    }
    model.complete().unwrap();
    assert_eq!((model.acknowledged, model.delivered), (1, 4));
}

#[test]
fn a_message_that_one_device_never_got_is_lost() {
    let mut model = world();
    let one = send(&mut model, 1);
    model.sent(ALICE, CHAT, 1, Some((2, 2))).unwrap();
    for device in [BOB, BOB_TOO] {
        created(&mut model, device, 1).unwrap();
    }
    deliver(&mut model, BOB, (2, 2), &one).unwrap();
    assert_eq!(check(model.complete()), Check::Lost);
}

#[test]
fn a_message_that_was_acknowledged_without_a_place_and_is_nowhere_is_lost() {
    let mut model = world();
    send(&mut model, 1);
    for device in [BOB, BOB_TOO] {
        created(&mut model, device, 1).unwrap();
    }
    model.complete().unwrap();
    model.sent(ALICE, CHAT, 1, None).unwrap();
    assert_eq!(check(model.complete()), Check::Lost);
}

#[test]
fn a_device_that_came_later_need_not_have_what_was_before() {
    let mut model = world();
    let late = model.add_device(1, 3);
    let one = send(&mut model, 1);
    let two = send(&mut model, 2);
    for device in [BOB, BOB_TOO] {
        created(&mut model, device, 1).unwrap();
        deliver(&mut model, device, (2, 2), &one).unwrap();
        deliver(&mut model, device, (3, 3), &two).unwrap();
    }
    model.complete().unwrap();
    model.hello(late, 0);
    model.welcome(late, &greeting(0, 1)).unwrap();
    deliver(&mut model, late, (1, 3), &two).unwrap();
    model.complete().unwrap();
    send(&mut model, 3);
    model.sent(ALICE, CHAT, 3, Some((4, 4))).unwrap();
    assert_eq!(check(model.complete()), Check::Lost);
}

#[test]
fn an_inbox_that_ends_below_what_was_kept_has_lost_it() {
    let mut model = world();
    assert_eq!(check(model.welcome(BOB, &greeting(3, 2))), Check::Lost);
    assert_eq!(check(model.welcome(BOB, &Greeting { floor: 4, ..greeting(0, 9) })), Check::Lost);
}

#[test]
fn the_same_place_twice_is_a_duplicate() {
    let mut model = world();
    created(&mut model, BOB, 1).unwrap();
    assert_eq!(check(created(&mut model, BOB, 1)), Check::Duplicate);
    let mut model = world();
    created(&mut model, BOB, 1).unwrap();
    assert_eq!(check(created(&mut model, BOB, 2)), Check::Duplicate);
}

#[test]
fn one_send_at_two_places_is_a_duplicate() {
    let mut model = world();
    let one = send(&mut model, 1);
    created(&mut model, BOB, 1).unwrap();
    deliver(&mut model, BOB, (2, 2), &one).unwrap();
    assert_eq!(check(deliver(&mut model, BOB, (3, 3), &one)), Check::Duplicate);
    assert_eq!(check(model.sent(ALICE, CHAT, 1, Some((4, 4)))), Check::Duplicate);
}

#[test]
fn what_nobody_sent_is_a_phantom() {
    let mut model = world();
    let mut one = send(&mut model, 1);
    created(&mut model, BOB, 1).unwrap();
    one[15] ^= 1;
    assert_eq!(check(deliver(&mut model, BOB, (2, 2), &one)), Check::Phantom);
    assert_eq!(check(deliver(&mut model, BOB, (3, 2), b"nobody sent this")), Check::Phantom);
    assert_eq!(check(model.sent(ALICE, CHAT, 9, Some((2, 2)))), Check::Phantom);
}

#[test]
fn two_orders_of_one_chat_are_out_of_order() {
    let mut model = world();
    let (one, two) = (send(&mut model, 1), send(&mut model, 2));
    for device in [BOB, BOB_TOO] {
        created(&mut model, device, 1).unwrap();
    }
    deliver(&mut model, BOB, (2, 2), &one).unwrap();
    deliver(&mut model, BOB, (3, 3), &two).unwrap();
    // The first message it is at a place that holds another one for the first device.
    assert_eq!(check(deliver(&mut model, BOB_TOO, (2, 3), &one)), Check::Duplicate);
    let mut model = world();
    let (_, two) = (send(&mut model, 1), send(&mut model, 2));
    created(&mut model, BOB, 1).unwrap();
    deliver(&mut model, BOB, (2, 2), &two).unwrap();
    assert_eq!(check(model.sent(ALICE, CHAT, 1, Some((3, 3)))), Check::OutOfOrder);
}

#[test]
fn a_skipped_number_is_a_gap_and_a_late_one_is_out_of_order() {
    let mut model = world();
    let one = send(&mut model, 1);
    let late = |model: &mut Model, inbox_seq| model.numbered(BOB, inbox_seq);
    late(&mut model, 2).unwrap();
    assert_eq!(check(late(&mut model, 1)), Check::OutOfOrder);
    late(&mut model, 4).unwrap();
    assert_eq!(check(model.detached(BOB)), Check::Gap);
    assert_eq!(check(model.shown(BOB, 3, (CHAT, 2), &one)), Check::Phantom);
}

#[test]
fn a_place_that_nobody_was_told_of_is_a_gap() {
    let mut model = world();
    send(&mut model, 1);
    created(&mut model, BOB, 1).unwrap();
    created(&mut model, BOB_TOO, 1).unwrap();
    model.sent(ALICE, CHAT, 1, Some((3, 3))).unwrap();
    assert_eq!(check(model.complete()), Check::Gap);
}

#[test]
fn what_is_only_said_to_be_stored_already_has_one_of_the_places_that_nobody_was_told_of() {
    let mut model = Model::default();
    let alice = model.add_user("alice".into());
    let device = model.add_device(alice, 1);
    let wish = model.wish(device, true, "", vec![alice]);
    model.found(wish, CHAT).unwrap();
    (1..=3).for_each(|n| model.send(device, CHAT, n, &[n as u8; 16]));
    model.sent(device, CHAT, 1, None).unwrap();
    model.sent(device, CHAT, 2, Some((3, 3))).unwrap();
    model.complete().unwrap();
    model.sent(device, CHAT, 3, Some((5, 5))).unwrap();
    assert_eq!(check(model.complete()), Check::Gap);
}

#[test]
fn more_than_the_credit_is_too_much() {
    let mut model = world();
    model.acked(BOB, 1);
    for inbox_seq in 1..=5 {
        model.numbered(BOB, inbox_seq).unwrap();
    }
    assert_eq!(check(model.numbered(BOB, 6)), Check::Credit);
}

#[test]
fn refusals_that_have_no_reason_are_wrong() {
    let mut model = world();
    send(&mut model, 1);
    assert_eq!(check(model.refused(ALICE, 1, "chat_unknown")), Check::WrongAnswer);
    let wish = model.wish(BOB, true, "group", vec![0, 1]);
    assert_eq!(check(model.user_unknown(wish)), Check::WrongAnswer);
    let carol = model.add_user("carol".into());
    model.add_device(carol, 1);
    let wish = model.wish(BOB, true, "group", vec![0, carol]);
    model.user_unknown(wish).unwrap();
    assert_eq!(check(model.users_known(wish)), Check::WrongAnswer);
}

#[test]
fn who_joins_those_who_wait_for_a_chat_gets_their_answer() {
    let mut model = world();
    let carol = model.add_user("carol".into());
    let device = model.add_device(carol, 1);
    let early = model.wish(ALICE, false, "", vec![0, carol]);
    model.hello(device, 0);
    model.welcome(device, &greeting(0, 0)).unwrap();
    // carol came after the question and before the second wish, which is answered with the first.
    let joint = model.wish(ALICE, false, "", vec![0, carol]);
    model.user_unknown(early).unwrap();
    model.user_unknown(joint).unwrap();
    let late = model.wish(ALICE, false, "", vec![0, carol]);
    assert_eq!(check(model.user_unknown(late)), Check::WrongAnswer);
}

#[test]
fn a_chat_that_is_known_has_all_its_users() {
    let mut model = world();
    let carol = model.add_user("carol".into());
    model.add_device(carol, 1);
    let wish = model.wish(ALICE, false, "", vec![0, carol]);
    model.found(wish, CHAT + 1).unwrap();
    let again = model.wish(ALICE, false, "", vec![0, carol]);
    model.user_unknown(wish).unwrap();
    // As of the time of the first one, which was open then.
    model.user_unknown(again).unwrap();
    let again = model.wish(ALICE, false, "", vec![0, carol]);
    assert_eq!(check(model.user_unknown(again)), Check::WrongAnswer);
}

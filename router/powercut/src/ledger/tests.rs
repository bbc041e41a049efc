use super::*;

const CHAT: u128 = 7;

/// Device 0 has sent three messages to devices 1 and 2; all are acknowledged.
fn ledger() -> Ledger {
    let mut ledger = Ledger::new(1, 3);
    for number in 1..4 {
        ledger.send(0, number, CHAT, BTreeSet::from([1, 2]));
        ledger.acknowledge(0, number, number).unwrap();
    }
    ledger
}

fn give(ledger: &mut Ledger, to: DeviceId, inbox_seq: u64, chat_seq: u64, id: MessageId) -> Result<(), Kind> {
    let payload = payload(1, id, 100);
    ledger.give(to, Given { inbox_seq, chat: CHAT, chat_seq, payload: Some(&payload) }).map_err(|finding| finding.kind)
}

#[test]
fn what_comes_as_it_was_sent_is_good() {
    let mut ledger = ledger();
    for to in [1, 2] {
        for id in 1..4 {
            give(&mut ledger, to, id.into(), id.into(), id).unwrap();
        }
    }
    assert!(ledger.is_acknowledged() && ledger.has_arrived(3));
    assert_eq!(ledger.check_arrival(), Ok(()));
    assert_eq!((ledger.sent(), ledger.acknowledged, ledger.given, ledger.head(1)), (3, 3, 6, 3));
}

#[test]
fn what_was_acknowledged_and_never_came_is_lost() {
    let mut ledger = ledger();
    for id in 1..4 {
        give(&mut ledger, 1, id.into(), id.into(), id).unwrap();
    }
    for id in 1..3 {
        give(&mut ledger, 2, id.into(), id.into(), id).unwrap();
    }
    assert_eq!(ledger.check_arrival().unwrap_err().kind, Kind::Lost);
    assert!(!ledger.has_arrived(3));
}

#[test]
fn a_gap_of_an_inbox_and_a_gap_of_a_chat_are_losses() {
    assert_eq!(give(&mut ledger(), 1, 2, 2, 2), Err(Kind::Lost));
    let mut ledger = Ledger::new(1, 3);
    ledger.send(0, 1, CHAT, BTreeSet::from([1]));
    ledger.acknowledge(0, 1, 2).unwrap();
    give(&mut ledger, 1, 1, 2, 1).unwrap();
    assert_eq!(ledger.check_arrival().unwrap_err().kind, Kind::Lost);
}

#[test]
fn what_comes_again_is_found() {
    let mut ledger = ledger();
    give(&mut ledger, 1, 1, 1, 1).unwrap();
    assert_eq!(give(&mut ledger, 1, 1, 1, 1), Err(Kind::Duplicated), "the same place");
    assert_eq!(give(&mut ledger, 1, 2, 2, 1), Err(Kind::Duplicated), "the next place");
}

#[test]
fn another_order_and_another_place_are_found() {
    let mut ledger = ledger();
    give(&mut ledger, 1, 1, 2, 2).unwrap();
    assert_eq!(give(&mut ledger, 1, 2, 1, 1), Err(Kind::Reordered), "places of a chat");
    let mut ledger = self::ledger();
    assert_eq!(give(&mut ledger, 1, 1, 2, 1), Err(Kind::Reordered), "not where its sender was told");
    assert_eq!(ledger.acknowledge(0, 3, 9).map_err(|it| it.kind), Ok(()), "a place of its own");
    assert_eq!(ledger.acknowledge(0, 3, 1).unwrap_err().kind, Kind::Reordered, "that of another");
}

#[test]
fn what_nobody_sent_is_found() {
    let mut ledger = ledger();
    assert_eq!(give(&mut ledger, 1, 1, 1, 9), Err(Kind::Wrong));
    assert_eq!(give(&mut ledger, 0, 1, 1, 1), Err(Kind::Wrong), "not for its sender");
    let mut bytes = payload(1, 1, 100);
    bytes[99] ^= 1;
    let given = Given { inbox_seq: 2, chat: CHAT, chat_seq: 2, payload: Some(&bytes) };
    assert_eq!(ledger.give(1, given).unwrap_err().kind, Kind::Wrong, "a bit is another one");
    assert_eq!(ledger.acknowledge(1, 1, 1).unwrap_err().kind, Kind::Wrong);
}

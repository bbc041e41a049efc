//! A backlog of which not all is in memory.

use whimbrel_core::Input;
use whimbrel_core::ids::ConnId;
use whimbrel_core::limits::Bounds;
use whimbrel_storage::{LogOptions, SegmentId};
use whimbrel_wire::Kind;

use super::Node;

/// Four segments may be in memory beside the one that is written.
fn with_little_memory() -> Node {
    let options = LogOptions { segment_size: 384 << 10, ..LogOptions::new(0) };
    // Nothing is moved meanwhile.
    let bounds = Bounds { forget_after_us: 365 * 86_400_000_000, ..Bounds::default() };
    Node::with(1, bounds, LogOptions { warm_max: options.warm_least(), ..options })
}

fn numbered(number: u64) -> Vec<u8> {
    [vec![7; 30_000].as_slice(), &number.to_le_bytes()].concat()
}

/// Numbers of the messages that a connection was given, in this order.
fn numbers(node: &Node, conn: ConnId) -> Vec<u64> {
    let frames = node.sent.iter().filter(|(to, frame)| *to == conn && frame[4] == Kind::Deliver as u8);
    // The making of the chat came first.
    let frames = frames.map(|(_, frame)| frame).filter(|frame| frame.len() > 30_000);
    let each = |frame: &Vec<u8>| {
        let number = u64::from_le_bytes(*frame.last_chunk().unwrap());
        assert!(frame.ends_with(&numbered(number)), "message {number} is not what was sent");
        number
    };
    frames.map(each).collect()
}

#[test]
fn a_backlog_above_what_may_be_in_memory_is_read_in_a_segment_at_a_time() {
    let mut node = with_little_memory();
    let (alice, bob) = (node.log_in(0, "alice", 1), node.log_in(1, "bob", 1));
    node.turn();
    let chat = node.pair(alice, "alice", "bob");
    node.tell(Input::Disconnected { conn: bob });
    let sent = 200;
    (1..=sent).for_each(|number| node.send(alice, chat, number, &numbered(number)));
    node.turns(10);
    assert_eq!(node.read_in, [], "all that was fanned out was in memory yet");
    let mut waits: Vec<SegmentId> = node.disk.segments().collect();
    waits.retain(|id| !node.shard.waiting_in(*id, 0..node.options.segment_size).is_empty());
    assert!(waits.len() > 12, "{waits:?}");
    let bob = node.log_in(2, "bob", 1);
    node.turn();
    node.read(bob, 0);
    assert_eq!(numbers(&node, bob), (1..=sent).collect::<Vec<_>>());
    // Each once, when the first message in it is wanted. The last is written yet.
    waits.pop();
    assert_eq!(node.read_in, waits);
}

#[test]
fn of_many_who_each_want_another_segment_each_gets_on_with_what_is_read_in() {
    let mut node = with_little_memory();
    let alice = node.log_in(0, "alice", 1);
    let friends: Vec<String> = (1..=12).map(|friend| format!("friend{friend}")).collect();
    // What waits for each lies in segments of its own.
    for (slot, friend) in (1..).zip(&friends) {
        let conn = node.log_in(slot, friend, 1);
        node.turn();
        let chat = node.pair(alice, "alice", friend);
        node.tell(Input::Disconnected { conn });
        (1..=8).for_each(|number| node.send(alice, chat, number, &numbered(number)));
    }
    node.turns(10);
    let back: Vec<_> = (100..).zip(&friends).map(|(slot, friend)| node.log_in(slot, friend, 1)).collect();
    node.turn();
    for &conn in &back {
        assert_eq!(numbers(&node, conn), [1, 2, 3, 4, 5, 6, 7, 8], "all of it is within its credit");
    }
    let mut segments = node.read_in.clone();
    segments.sort_unstable();
    segments.dedup();
    assert!(segments.len() > 12, "{segments:?}");
    assert!(node.read_in.len() < 2 * segments.len(), "{} were read in for {}", node.read_in.len(), segments.len());
}

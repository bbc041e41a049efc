//! A backlog of which not all is in memory.

use std::collections::BTreeSet;

use whimbrel_core::Input;
use whimbrel_core::ids::{ChatId, ConnId};
use whimbrel_core::lane::LaneItem;
use whimbrel_core::limits::{Bounds, READY_PLACES_MAX};
use whimbrel_storage::{LogOptions, SegmentId};
use whimbrel_wire::{Kind, SendFields};

use super::{Node, one_here_and_others_away};

/// Four segments may be in memory beside the one that is written.
fn with_little_memory() -> Node {
    with_little_memory_of(1)
}

/// The first of so many shards.
pub(super) fn with_little_memory_of(shards: u16) -> Node {
    let options = LogOptions { segment_size: 384 << 10, ..LogOptions::new(0) };
    // Nothing is moved meanwhile.
    let bounds = Bounds { forget_after_us: 365 * 86_400_000_000, ..Bounds::default() };
    Node::with(shards, bounds, LogOptions { warm_max: options.warm_least(), ..options })
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

#[test]
fn of_many_chats_that_wait_for_one_segment_no_turn_takes_more_than_a_few() {
    let mut node = with_little_memory_of(2);
    let (alice, friends) = one_here_and_others_away();
    let conn = node.log_in(0, &alice, 1);
    node.turn();
    let chats = 3 * READY_PLACES_MAX;
    node.confirms = true;
    let made: Vec<ChatId> = friends.take(chats).map(|friend| node.pair_away(conn, &alice, &friend)).collect();
    // No lane has room for what is sent to them. The first messages lie in one segment, and the others in more than may be in memory.
    node.lane_room = 0;
    for some in made.chunks(32) {
        for chat in some {
            let fields = SendFields { correlation: 1, chat: chat.0, client_seq: 1, prev: 0 };
            node.say(conn, |b, out| b.send(out, &fields, &[7; 8]));
        }
        node.turn();
    }
    made.iter().for_each(|chat| node.send(conn, *chat, 2, &[7; 7_000]));
    node.turns(10);

    node.to_lanes.clear();
    node.read_in.clear();
    node.fan_outs_max = 0;
    node.lane_room = 4096;
    node.restart(2);
    let places = node.to_lanes.iter().filter_map(|item| if let LaneItem::FanOut(it) = item { Some(it) } else { None });
    let sent: BTreeSet<_> = places.map(|it| (it.chat, it.chat_seq)).collect();
    assert_eq!(sent.len(), 2 * chats, "each chat's messages");
    assert!(node.fan_outs_max <= READY_PLACES_MAX, "{} in one turn", node.fan_outs_max);
    let mut segments = node.read_in.clone();
    segments.sort_unstable();
    segments.dedup();
    assert!(segments.len() > 6, "{segments:?}");
    assert_eq!(node.read_in.len(), segments.len(), "each was read in once: {:?}", node.read_in);
}

//! A partition that does not answer: in repair, or without room.

use whimbrel_core::Input;
use whimbrel_core::ids::{ChatId, ChatSeq, ConnId, PartitionId, ShardId};
use whimbrel_core::lane::{Confirm, FanOut, LaneItem};
use whimbrel_core::limits::{Bounds, OUTBOX_RETRY_DOUBLINGS, OUTBOX_RETRY_US, QUESTIONS_MAX};
use whimbrel_core::route;
use whimbrel_storage::SegmentId;

use super::memory::with_little_memory_of;
use super::{Node, name, one_here_and_others_away};

/// The longest time between two questions.
const SLOWEST_US: u64 = OUTBOX_RETRY_US << OUTBOX_RETRY_DOUBLINGS;

/// What went to the other shard since this was asked last: places, and questions.
fn fan_outs(node: &mut Node) -> (Vec<FanOut>, Vec<FanOut>) {
    let all = node.to_lanes.drain(..).filter_map(|it| if let LaneItem::FanOut(it) = it { Some(it) } else { None });
    all.partition(|it| !it.command.is_empty())
}

fn places(of: &[FanOut]) -> Vec<u64> {
    of.iter().map(|it| it.chat_seq.0).collect()
}

fn pass(node: &mut Node, us: u64) {
    for _ in 0..us / 20_000 {
        node.now.mono_us += 18_000;
        node.turn();
    }
}

/// What the other shard says to what it was sent or asked.
fn answer(node: &mut Node, to: &FanOut, applied: u64, rewind: bool) {
    let FanOut { source, target, chat, .. } = *to;
    let confirm = Confirm { source, target, chat, applied: ChatSeq(applied), rewind };
    node.tell(Input::Lane { from: ShardId(1), item: LaneItem::Confirm(confirm) });
}

/// A chat with a member of the other shard, which has its making, the first place, and says nothing more.
fn with_a_silent_one(node: &mut Node) -> (ConnId, ChatId) {
    let (alice, mut friends) = one_here_and_others_away();
    let conn = node.log_in(0, &alice, 1);
    node.turn();
    node.confirms = true;
    let chat = node.pair_away(conn, &alice, &friends.next().unwrap());
    node.turns(2);
    fan_outs(node);
    node.confirms = false;
    (conn, chat)
}

#[test]
fn who_does_not_answer_is_asked_less_and_less_often_and_nothing_is_read_in_for_it() {
    let mut node = with_little_memory_of(2);
    let (conn, chat) = with_a_silent_one(&mut node);
    let last = 200;
    (1..=last).for_each(|number| node.send(conn, chat, number, &[7; 20_000]));
    assert_eq!(fan_outs(&mut node).0.first().map(|it| it.chat_seq), Some(ChatSeq(2)));

    pass(&mut node, 10_000_000);
    fan_outs(&mut node);
    node.read_in.clear();
    pass(&mut node, 10 * SLOWEST_US);
    let (sent, asked) = fan_outs(&mut node);
    assert!(sent.is_empty(), "it is sent nothing: {sent:?}");
    assert!((9..=11).contains(&asked.len()), "asked {} times in ten of the longest times", asked.len());
    assert!(asked.iter().all(|it| (it.chat_seq, it.prev) == (ChatSeq(2), ChatSeq(1))), "{asked:?}");
    assert_eq!(node.read_in, [], "nothing is read in for who takes nothing");

    // It has room again, and confirms from then on.
    node.confirms = true;
    answer(&mut node, &asked[0], 1, true);
    node.turns(20);
    assert_eq!(places(&fan_outs(&mut node).0), (2..=last + 1).collect::<Vec<_>>(), "all that waited, in its order");
    let mut segments: Vec<SegmentId> = node.read_in.clone();
    segments.sort_unstable();
    segments.dedup();
    assert!(segments.len() > 4 && segments.len() == node.read_in.len(), "each was read in once: {:?}", node.read_in);
}

#[test]
fn an_answer_that_was_lost_is_asked_for_soon() {
    let mut node = Node::new(2, Bounds::default());
    let (conn, chat) = with_a_silent_one(&mut node);
    node.send(conn, chat, 1, b"one");
    pass(&mut node, OUTBOX_RETRY_US + 50_000);
    let (sent, asked) = fan_outs(&mut node);
    assert_eq!((places(&sent), places(&asked)), (vec![2], vec![2]));
    // It has the place.
    answer(&mut node, &asked[0], 2, false);
    node.send(conn, chat, 2, b"two");
    let (sent, asked) = fan_outs(&mut node);
    assert_eq!((places(&sent), places(&asked)), (vec![3], vec![]));
}

#[test]
fn who_has_answered_is_not_waited_for_as_long_as_it_was_silent() {
    let mut node = Node::new(2, Bounds::default());
    let (conn, chat) = with_a_silent_one(&mut node);
    node.send(conn, chat, 1, b"one");
    pass(&mut node, 10 * SLOWEST_US);
    // Until it is asked the next time, so that the longest time is ahead.
    fan_outs(&mut node);
    let asked = (0..200)
        .find_map(|_| {
            pass(&mut node, 20_000);
            fan_outs(&mut node).1.pop()
        })
        .unwrap();
    answer(&mut node, &asked, 1, true);
    node.turns(2);
    assert_eq!(places(&fan_outs(&mut node).0), [2]);
    // And what it is sent is lost.
    pass(&mut node, OUTBOX_RETRY_US + 50_000);
    assert_eq!(places(&fan_outs(&mut node).1), [2]);
    pass(&mut node, 2 * OUTBOX_RETRY_US + 50_000);
    assert_eq!(places(&fan_outs(&mut node).1), [2], "the time has doubled once");
}

#[test]
fn who_is_silent_is_asked_when_something_new_comes_for_it_but_not_for_each() {
    let mut node = Node::new(2, Bounds::default());
    let (conn, chat) = with_a_silent_one(&mut node);
    node.send(conn, chat, 1, b"one");
    pass(&mut node, 10 * SLOWEST_US);
    fan_outs(&mut node);
    let before = node.shard.counters().asked;
    // In half the longest time.
    for number in 2..=41 {
        node.send(conn, chat, number, b"more");
        pass(&mut node, SLOWEST_US / 80);
    }
    let (sent, asked) = fan_outs(&mut node);
    assert_eq!(sent.len(), 0);
    assert!((3..=5).contains(&asked.len()), "asked {} times", asked.len());
    assert_eq!(node.shard.counters().asked - before, asked.len() as u64);
    assert!(asked.iter().all(|it| it.chat_seq == ChatSeq(2)));
}

#[test]
fn of_many_who_are_silent_no_turn_asks_more_than_some_and_none_by_a_full_lane() {
    let mut node = Node::new(2, Bounds::default());
    let (alice, friends) = one_here_and_others_away();
    let conn = node.log_in(0, &alice, 1);
    node.turn();
    node.confirms = true;
    let many = 2 * QUESTIONS_MAX + 10;
    let chats: Vec<ChatId> = friends.take(many).map(|friend| node.pair_away(conn, &alice, &friend)).collect();
    node.turns(2);
    node.confirms = false;
    chats.iter().for_each(|chat| node.send(conn, *chat, 1, b"one"));
    let before = node.shard.counters().asked;
    node.lane_room = 0;
    pass(&mut node, 2 * SLOWEST_US);
    assert_eq!(node.shard.counters().asked, before, "the lane is full");
    fan_outs(&mut node);
    node.lane_room = 4096;
    node.fan_outs_max = 0;
    // None has been waited for meanwhile.
    node.now.mono_us += OUTBOX_RETRY_US;
    node.turns(20);
    assert_eq!(fan_outs(&mut node).1.len(), many);
    assert!(node.fan_outs_max <= QUESTIONS_MAX, "{} in one turn", node.fan_outs_max);
}

#[test]
fn a_partition_says_whether_it_would_take_a_place() {
    let mut node = Node::new(2, Bounds::default());
    let (alice, mut friends) = one_here_and_others_away();
    let conn = node.log_in(0, &alice, 1);
    node.turn();
    node.pair_away(conn, &alice, &friends.next().unwrap());
    node.turns(2);
    let making = fan_outs(&mut node).0.remove(0);
    // As if a chat of the other shard had been made so, with a member here.
    let target = route::partition_of_user(&name(&alice), 16);
    let making = FanOut { source: PartitionId(1), target, chat: ChatId(77), ..making };
    let tell = |node: &mut Node, it: FanOut| node.tell(Input::Lane { from: ShardId(1), item: LaneItem::FanOut(it) });
    let ask = |node: &mut Node, place: u64| {
        let prev = ChatSeq(place - 1);
        tell(node, FanOut { chat_seq: ChatSeq(place), prev, command: bytes::Bytes::new(), ..making.clone() });
    };
    let said = |node: &mut Node| {
        node.turns(2);
        let confirms = node.to_lanes.drain(..).filter_map(|it| match it {
            LaneItem::Confirm(it) => Some((it.applied.0, it.rewind)),
            _ => None,
        });
        confirms.collect::<Vec<_>>()
    };
    let commands = node.shard.counters().commands;
    ask(&mut node, 1);
    assert_eq!(said(&mut node), [(0, true)], "it is sent from there on");
    ask(&mut node, 5);
    assert_eq!(said(&mut node), [(0, true)], "what comes before it is not here");
    assert_eq!(node.shard.counters().commands, commands, "a question is written nowhere");
    tell(&mut node, making.clone());
    ask(&mut node, 1);
    assert_eq!(said(&mut node), [(1, false)], "it is being written: the answer comes when it is");
    ask(&mut node, 1);
    assert_eq!(said(&mut node), [(1, false)], "it has it");
}

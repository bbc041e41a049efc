//! A partition that does not answer: in repair, or without room.

use whimbrel_core::Input;
use whimbrel_core::ids::{ChatSeq, PartitionId, ShardId};
use whimbrel_core::lane::{Confirm, FanOut, LaneItem};
use whimbrel_core::limits::{Bounds, OUTBOX_RETRY_DOUBLINGS, OUTBOX_RETRY_US};
use whimbrel_core::route;
use whimbrel_storage::SegmentId;

use super::memory::with_little_memory_of;
use super::{Node, name, one_here_and_others_away};

/// What went to the other shard of a chat since this was asked last.
fn fan_outs(node: &mut Node) -> Vec<FanOut> {
    let places = node.to_lanes.drain(..).filter_map(|it| if let LaneItem::FanOut(it) = it { Some(it) } else { None });
    places.collect()
}

fn pass(node: &mut Node, us: u64) {
    for _ in 0..us / 20_000 {
        node.now.mono_us += 18_000;
        node.turn();
    }
}

#[test]
fn who_does_not_answer_is_asked_less_and_less_often_and_nothing_is_read_in_for_it() {
    let mut node = with_little_memory_of(2);
    let (alice, mut friends) = one_here_and_others_away();
    let conn = node.log_in(0, &alice, 1);
    node.turn();
    node.confirms = true;
    let chat = node.pair_away(conn, &alice, &friends.next().unwrap());
    node.turns(2);
    fan_outs(&mut node);
    node.confirms = false;
    let last = 200;
    for number in 1..=last {
        let payload = vec![7; 20_000];
        node.send(conn, chat, number, &payload);
    }
    // The making of the chat has the first place.
    let sent: Vec<ChatSeq> =
        fan_outs(&mut node).iter().filter(|it| !it.command.is_empty()).map(|it| it.chat_seq).collect();
    assert_eq!(sent.first(), Some(&ChatSeq(2)));

    pass(&mut node, 10_000_000);
    fan_outs(&mut node);
    node.read_in.clear();
    let slowest_us = OUTBOX_RETRY_US << OUTBOX_RETRY_DOUBLINGS;
    pass(&mut node, 10 * slowest_us);
    let asked = fan_outs(&mut node);
    assert!((9..=11).contains(&asked.len()), "asked {} times in ten of the longest times", asked.len());
    for question in &asked {
        assert_eq!((question.chat_seq, question.prev), (ChatSeq(2), ChatSeq(1)));
        assert!(question.command.is_empty(), "it is sent nothing");
    }
    assert_eq!(node.read_in, [], "nothing is read in for who takes nothing");

    // It has room again, and confirms from then on.
    node.confirms = true;
    let FanOut { source, target, .. } = asked[0];
    let confirm = Confirm { source, target, chat, applied: ChatSeq(1), rewind: true };
    node.tell(Input::Lane { from: ShardId(1), item: LaneItem::Confirm(confirm) });
    node.turns(20);
    let mut came: Vec<u64> = fan_outs(&mut node).iter().map(|it| it.chat_seq.0).collect();
    came.dedup();
    assert_eq!(came, (2..=last + 1).collect::<Vec<_>>(), "all that waited, in its order");
    let mut segments: Vec<SegmentId> = node.read_in.clone();
    segments.dedup();
    assert!(segments.len() > 4 && segments.len() == node.read_in.len(), "each was read in once: {:?}", node.read_in);
}

#[test]
fn an_answer_that_was_lost_is_asked_for_soon() {
    let mut node = Node::new(2, Bounds::default());
    let (alice, mut friends) = one_here_and_others_away();
    let conn = node.log_in(0, &alice, 1);
    node.turn();
    node.confirms = true;
    let chat = node.pair_away(conn, &alice, &friends.next().unwrap());
    node.turns(2);
    fan_outs(&mut node);
    node.confirms = false;
    node.send(conn, chat, 1, b"one");
    node.confirms = true;
    pass(&mut node, 2 * OUTBOX_RETRY_US);
    // To the question the node answers that it has the place.
    let all = fan_outs(&mut node);
    let [place, question] = &all[..] else { panic!("{all:?}") };
    assert_eq!((place.chat_seq, question.chat_seq), (ChatSeq(2), ChatSeq(2)));
    assert!(!place.command.is_empty() && question.command.is_empty());
    node.send(conn, chat, 2, b"two");
    let all = fan_outs(&mut node);
    assert_eq!(all.iter().map(|it| (it.chat_seq, it.command.is_empty())).collect::<Vec<_>>(), [(ChatSeq(3), false)]);
}

#[test]
fn a_partition_says_whether_it_would_take_a_place() {
    let mut node = Node::new(2, Bounds::default());
    // Of a chat of the other shard, with a member here.
    let (alice, mut friends) = one_here_and_others_away();
    let chat = route::direct_chat(&name(&alice), &name(&friends.next().unwrap()));
    let target = route::partition_of_user(&name(&alice), 16);
    let source = PartitionId(1);
    let ask = |node: &mut Node, place: u64| {
        let question = FanOut {
            source,
            target,
            chat,
            chat_seq: ChatSeq(place),
            prev: ChatSeq(place - 1),
            command: bytes::Bytes::new(),
            time_ms: 0,
        };
        node.to_lanes.clear();
        node.tell(Input::Lane { from: ShardId(1), item: LaneItem::FanOut(question) });
        node.turns(2);
        let confirms = node.to_lanes.drain(..).filter_map(|it| match it {
            LaneItem::Confirm(confirm) => Some((confirm.applied, confirm.rewind)),
            _ => None,
        });
        confirms.collect::<Vec<_>>()
    };
    assert_eq!(ask(&mut node, 1), [(ChatSeq(0), true)], "it is sent from there on");
    assert_eq!(ask(&mut node, 5), [(ChatSeq(0), true)], "what comes before it is not here");
    assert_eq!(node.shard.counters().commands, 0, "a question is written nowhere");
}

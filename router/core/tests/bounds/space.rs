//! Where there is little space on the disk, or none.

use whimbrel_core::limits::NO_SPACE_US;

use super::*;

#[test]
fn a_full_disk_keeps_its_last_segment_for_acknowledgements_and_all_shards_refuse() {
    let mut node = Node::new(2, Bounds::default());
    // Of partitions that this shard has.
    let here = |user: &&str| route::partition_of_user(&name(user), 16).0.is_multiple_of(2);
    let users = ["alice", "bob", "carol", "dave", "erin", "frank", "grace", "heidi", "ivan", "judy"];
    let (pairs, users): (Vec<_>, Vec<_>) = {
        let users: Vec<&str> = users.into_iter().filter(here).collect();
        let is_here = |(a, b): &(&str, &str)| {
            route::partition_of_chat(route::direct_chat(&name(a), &name(b)), 16).0.is_multiple_of(2)
        };
        let pairs = users.iter().flat_map(|a| users.iter().map(move |b| (*a, *b))).filter(|(a, b)| a < b);
        (pairs.filter(is_here).collect(), users)
    };
    let (from, to) = *pairs.first().unwrap();
    assert!(users.len() >= 2);
    let (sender, reader) = (node.log_in(0, from, 1), node.log_in(1, to, 1));
    node.turn();
    let chat = node.pair(sender, from, to);
    node.disk_full = true;
    let mut number = 0;
    while node.shard.counters().refused_for(Code::StorageFull) == 0 {
        number += 1;
        node.send(sender, chat, number, &[7; 30_000]);
        assert!(number < 1000, "three segments cannot hold so much");
    }
    let stored = node.count(sender, Kind::Sent);
    // It says so at once, and again.
    node.now.mono_us += 1_000_000;
    node.turns(2);
    let said = node.to_lanes.iter().filter(|item| matches!(item, LaneItem::NoSpace { disk_full: true })).count();
    assert!(said >= 2, "{said}");
    // All that was stored is delivered, and acknowledgements are committed.
    for _ in 0..stored {
        let delivered = node.count(reader, Kind::Deliver) as u64;
        node.say(reader, |b, out| b.ack(out, delivered));
        node.turns(2);
    }
    assert_eq!(node.count(reader, Kind::Deliver), stored + 1, "the making of the chat came first");
    node.now.mono_us += 1_000_000;
    node.turns(3);
    assert_eq!(node.shard.waiting(), 0);

    // Space returns, and the other shard has none yet.
    node.disk_full = false;
    node.now.mono_us += 1_000_000;
    node.tell(Input::Lane { from: ShardId(1), item: LaneItem::NoSpace { disk_full: true } });
    node.turns(3);
    let refused = node.shard.counters().refused_for(Code::StorageFull);
    node.send(sender, chat, number, b"too soon");
    node.turn();
    assert_eq!(node.shard.counters().refused_for(Code::StorageFull), refused + 1, "another shard has no space");
    node.now.mono_us += 1_000_000;
    node.turn();
    node.send(sender, chat, number, b"at last");
    node.turn();
    assert_eq!(node.count(sender, Kind::Sent), stored + 1);
}

#[test]
fn nothing_is_taken_that_has_no_room_when_the_disk_is_found_full_late() {
    let mut node = Node::new(2, Bounds::default());
    let [from, to, away] = three_on_one_shard();
    let (sender, reader, gone) = (node.log_in(0, &from, 1), node.log_in(1, &to, 1), node.log_in(2, &away, 1));
    node.turn();
    // What waits for the one that is away keeps every segment.
    let mut next = [(node.pair(sender, &from, &to), 1), (node.pair(sender, &from, &away), 1)];
    node.tell(Input::Disconnected { conn: gone });
    // The log is filled faster than the next segment is made.
    node.disk_waits = true;
    node.send_until_refused(sender, &mut next, 1000);
    let refused = node.shard.counters().refused_for(Code::Overloaded);
    let is_said = |node: &Node, full: bool| {
        node.to_lanes.iter().any(|it| matches!(it, LaneItem::NoSpace { disk_full } if *disk_full == full))
    };
    let said = (is_said(&node, false), is_said(&node, true));
    node.is_found_full();
    assert!(is_said(&node, true), "it is said at once");
    node.send_until_refused(sender, &mut next, 1000);
    let full = node.shard.counters().refused_for(Code::StorageFull);
    // With the making of the chat there is one more than was sent.
    assert_eq!(node.read(reader, 0) as u64, next[0].1, "who is there gets all that was taken");
    assert_eq!(node.count(sender, Kind::Sent) as u64, next[0].1 + next[1].1 - 2);
    // Only what the one that is away has not fetched waits.
    assert_eq!(node.shard.waiting() as u64, next[1].1);
    assert_eq!((refused, full), (1, 1), "the next segment might yet have come");
    assert_eq!(said, (true, false), "what another shard takes has no room here either, and may have soon");
}

#[test]
fn what_another_shard_has_no_room_for_just_now_is_refused_as_busy_and_only_a_full_disk_as_that() {
    let mut node = Node::new(2, Bounds::default());
    let [from, to, _] = three_on_one_shard();
    let (sender, _) = (node.log_in(0, &from, 1), node.log_in(1, &to, 1));
    node.turn();
    let chat = node.pair(sender, &from, &to);
    let refused =
        |node: &Node| [Code::Overloaded, Code::StorageFull].map(|code| node.shard.counters().refused_for(code));
    // Where both is said, by different shards, it is full.
    for (disk_full, expected) in [(false, [1, 0]), (true, [1, 1]), (false, [1, 2])] {
        node.tell(Input::Lane { from: ShardId(1), item: LaneItem::NoSpace { disk_full } });
        node.send(sender, chat, 1, b"whimbrel");
        assert_eq!((refused(&node), node.count(sender, Kind::Sent)), (expected, 0));
    }
    node.now.mono_us += NO_SPACE_US;
    node.send(sender, chat, 1, b"whimbrel");
    assert_eq!((refused(&node), node.count(sender, Kind::Sent)), ([1, 2], 1));
}

#[test]
fn starts_on_a_full_disk_do_not_use_up_what_is_kept_for_what_was_accepted() {
    let mut node = Node::new(1, Bounds::default());
    let [from, to, away] = three_on_one_shard();
    let (mut sender, mut reader) = (node.log_in(0, &from, 1), node.log_in(1, &to, 1));
    let gone = node.log_in(2, &away, 1);
    node.turn();
    let mut next = [(node.pair(sender, &from, &to), 1), (node.pair(sender, &from, &away), 1)];
    node.tell(Input::Disconnected { conn: gone });
    node.disk_full = true;
    node.send_until_refused(sender, &mut next, 1000);
    let mut has = node.read(reader, 0);
    assert_eq!(has as u64, next[0].1);
    for start in 1..=12 {
        // It takes a while until it knows that there is no space.
        node.disk_waits = true;
        node.restart(1);
        (sender, reader) = (node.log_in(10 * start, &from, 1), node.log_in(10 * start + 1, &to, 1));
        node.turn();
        node.send_until_refused(sender, &mut next, 20);
        node.is_found_full();
        has = node.read(reader, has);
        assert_eq!(has as u64, next[0].1, "start {start}: who is there gets all that was taken");
    }
    // The one that was away comes, and there is space again without another disk.
    node.disk_full = false;
    let gone = node.log_in(1000, &away, 1);
    node.turn();
    assert_eq!(node.read(gone, 0) as u64, next[1].1);
    let stored = node.count(sender, Kind::Sent);
    node.send_until_refused(sender, &mut next, 1);
    assert_eq!(node.count(sender, Kind::Sent), stored + 2);
}

#[test]
fn a_start_is_ready_when_it_knows_what_space_there_is() {
    let mut disk = RamDisk::new(0, 7);
    let shard = open(1, Bounds::default(), options(), &mut disk);
    let mut node = Node::new(1, Bounds::default());
    (node.shard, node.disk, node.disk_waits) = (shard, disk, true);
    node.turns(50);
    assert!(!node.shard.is_ready(), "of one segment there is nothing that could be taken");
    node.is_found_full();
    assert!(node.shard.is_ready(), "who is there is served");
}

//! Partitions of which something is lost. One that is in repair takes no part in anything: it serves nobody, confirms nothing,
//! does not vote, and writes nothing. The others of its shard go on.
//!
//! While there is one, its shard makes no checkpoint and lets go of no segment: what could not be read may be there again after
//! a restart, and then all that it needs has to be as it was.

use std::collections::BTreeSet;
use std::fmt;
use std::ops::Range;

use whimbrel_storage::{Checked, Location, Loss, Rot, RotReason, SegmentId};
use whimbrel_wire::{Code, Kind};

use crate::conn::Stage;
use crate::ids::{ConnId, PartitionId};
use crate::io::Effects;
use crate::lane::{Answer, Reply};
use crate::losses::Losses;
use crate::replicate::Origin;
use crate::route;
use crate::shard::Shard;

/// Something that whoever looks after the machine has to know.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Trouble {
    /// Bytes of the log are not what was written.
    Rot(Rot),
    /// A partition is in repair from now on.
    Repair(Repair),
}

/// A partition that is in repair.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Repair {
    /// Which.
    pub partition: PartitionId,
    /// Why.
    pub why: Why,
    /// The damage that it comes from, where that is known.
    pub rot: Option<Rot>,
}

/// What of a partition is lost.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Why {
    /// Entries of its log: behind this one another follows than the next.
    Hole {
        /// The last one before the hole.
        last: u64,
        /// The first one behind it.
        next: u64,
    },
    /// This entry of its log.
    Entry(u64),
    /// Nothing of it stands behind the damage that would show that none of its log is in it.
    Unproven,
    /// Messages that somebody waits for.
    Waiting,
    /// Perhaps all of it: the log of its shard does not open.
    Shut,
}

/// How many partitions of a shard are in which state.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct States {
    /// Not serving yet.
    pub starting: u64,
    /// Serving.
    pub serving: u64,
    /// In repair.
    pub repair: u64,
}

impl fmt::Display for Why {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Why::Hole { last, next } => write!(f, "behind entry {last} of its log comes entry {next}"),
            Why::Entry(index) => write!(f, "entry {index} of its log is damaged"),
            Why::Unproven => {
                f.write_str("nothing of it stands behind the damage, so that some of its log may be lost in it")
            }
            Why::Waiting => f.write_str("messages that wait to be delivered are damaged"),
            Why::Shut => f.write_str("the log of its shard does not open"),
        }
    }
}

impl Shard {
    /// How many partitions are in which state.
    pub fn states(&self) -> States {
        let repair = self.partitions.iter().filter(|partition| partition.repair.is_some()).count() as u64;
        let serving = self.partitions.iter().filter(|partition| partition.serving).count() as u64;
        States { starting: self.partitions.len() as u64 - serving - repair, serving, repair }
    }

    /// Partitions in repair.
    pub fn in_repair(&self) -> impl Iterator<Item = Repair> {
        self.partitions.iter().filter_map(|partition| partition.repair)
    }

    /// The partitions that serve and wait for something in these bytes of the log: for whoever checks what damage there must do.
    pub fn waiting_in(&self, segment: SegmentId, bytes: Range<u32>) -> Vec<PartitionId> {
        let waits = |p: &usize| {
            let touches =
                |it: Location| it.segment == segment && it.offset < bytes.end && bytes.start < it.offset + it.len;
            self.partitions[*p].serving && self.partitions[*p].state.places().any(touches)
        };
        (0..self.partitions.len()).filter(waits).map(|p| self.config.partition_at(p)).collect()
    }

    /// Whether it is known of all that is in the log who needs it: only then may any of it go.
    pub(crate) fn may_let_go(&self) -> bool {
        self.is_whole && self.in_repair == 0
    }

    /// Something of a partition is lost.
    pub(crate) fn begin_repair(&mut self, fx: &mut Effects, p: usize, why: Why, rot: Option<Rot>) {
        if self.partitions[p].repair.is_some() {
            return;
        }
        let repair = Repair { partition: self.config.partition_at(p), why, rot };
        self.trouble.push(Trouble::Repair(repair));
        let partition = &mut self.partitions[p];
        partition.repair = Some(repair);
        self.in_repair += 1;
        partition.serving = false;
        for inbox in std::mem::take(&mut partition.acks) {
            partition.state.inboxes[inbox.0 as usize].ack_dirty = false;
        }
        let (origins, gathered_bytes) = partition.give_up();
        self.gathered_bytes -= gathered_bytes;
        for at in self.confirms.extract_if(.., |at| at.p == p) {
            self.partitions[p].state.chats[at.chat].targets[at.target].dirty = false;
        }
        self.abandon_checkpoint();
        self.refuse_waiting(fx, origins);
        self.refuse_creations_in(fx, repair.partition);
        self.part_from_devices_of(fx, repair.partition);
    }

    /// Whoever waits for something to be applied is told that it may not be. If it is in the log nevertheless it is known when it
    /// is sent again.
    fn refuse_waiting(&mut self, fx: &mut Effects, origins: Vec<Origin>) {
        for origin in origins {
            match origin {
                // Its connection is looked at with the others.
                Origin::Nobody | Origin::Login(_) => {}
                Origin::Ask(asker, client_seq) => {
                    let reply = Reply::refused(Code::InRepair, Kind::Send, client_seq.0, "");
                    self.answer(fx, Answer { asker, reply });
                }
            }
        }
    }

    fn refuse_creations_in(&mut self, fx: &mut Effects, partition: PartitionId) {
        let partitions = self.config.partitions;
        let chats: Vec<_> = self.creating_order.iter().map(|(_, chat)| *chat).collect();
        for chat in chats.into_iter().filter(|chat| route::partition_of_chat(*chat, partitions) == partition) {
            self.refuse_creation(fx, chat, &Reply::refused(Code::InRepair, Kind::CreateChat, 0, ""));
        }
    }

    fn part_from_devices_of(&mut self, fx: &mut Effects, partition: PartitionId) {
        let (p, partitions) = (self.rank(partition), self.config.partitions);
        for slot in 0..self.conns.len() {
            let Some(it) = &self.conns[slot] else { continue };
            let is_of_it = match &it.stage {
                Stage::Open(session) => usize::from(session.partition) == p,
                Stage::Registering { login, .. } => route::partition_of_user(&login.user, partitions) == partition,
                Stage::Fresh | Stage::Leaving { .. } | Stage::Closing => false,
            };
            if is_of_it {
                let conn = ConnId { slot: slot as u32, generation: it.generation };
                self.go_away(fx, conn, Code::InRepair);
            }
        }
    }

    /// Something was read that may not be as it was written: whoever waits for what is lost is in repair.
    pub(crate) fn learn(&mut self, fx: &mut Effects, checked: Checked) {
        let segment = checked.segment;
        self.log.was_read(segment, &checked.unreadable());
        let ends_early = self.log.end_of(segment).is_some_and(|end| checked.end < end);
        if checked.rot.is_empty() && !ends_early {
            return;
        }
        let mut checked = checked;
        // In a cold segment zeros in the place of a payload hold, as one that is erased: what it was is not known.
        let is_unknown = |rot: &Rot| segment.is_cold() && rot.reason == RotReason::Unreadable;
        let rots = std::mem::take(&mut checked.rot).into_iter();
        let rots = rots.map(|rot| if is_unknown(&rot) { Rot { loss: Loss::Unknown, ..rot } } else { rot }).collect();
        // In a cold one behind the end that was found there may be more by now.
        self.learn_of(fx, &rots, |place| if segment.is_cold() { None } else { checked.lost(place) });
    }

    /// These pieces of the log are not as they were written, nor is what lies `beyond`. Each place that waits is looked at once,
    /// however many they are.
    pub(crate) fn learn_of(
        &mut self,
        fx: &mut Effects,
        rots: &BTreeSet<Rot>,
        beyond: impl Fn(Location) -> Option<Rot>,
    ) {
        // In a cold segment what nobody waits for may be half overwritten.
        for &rot in rots.iter().filter(|rot| !rot.segment.is_cold()) {
            self.note(rot);
        }
        let losses = Losses::of(rots);
        for p in 0..self.partitions.len() {
            if self.partitions[p].repair.is_some() {
                continue;
            }
            let places = self.partitions[p].state.places();
            let compared = &mut self.compared;
            let found = places.inspect(|_| *compared += 1).find_map(|place| losses.at(place).or_else(|| beyond(place)));
            let Some(rot) = found else { continue };
            if self.partitions[p].serving {
                self.note(rot);
                self.begin_repair(fx, p, Why::Waiting, found);
            } else {
                // Whether it waits for that is known once it serves, and nobody is told before.
                self.doubtful.extend(rots.iter().chain([&rot]));
            }
        }
    }

    /// How many places were compared with damage so far: for whoever checks that no turn does too much of it.
    pub fn compared(&self) -> u64 {
        self.compared
    }

    /// Bytes were found that are not what was written.
    pub(crate) fn note(&mut self, rot: Rot) {
        if self.rot.insert(rot) {
            self.counters.rot_found += 1;
            self.trouble.push(Trouble::Rot(rot));
        }
    }

    /// What is known of the damage at a place that is not as it was written, or cannot be looked at.
    pub(crate) fn rot_at(&self, location: Location) -> Option<Rot> {
        let unreadable = |rot: &Rot| rot.reason == RotReason::Unreadable && rot.overlaps(location);
        self.rot
            .iter()
            .find(|rot| rot.touches(location))
            .or_else(|| self.rot.iter().find(|rot| unreadable(rot)))
            .copied()
    }

    /// Of a partition that has applied all that is in its log: whether something that it waits for is known to be lost. What
    /// a checkpoint points to may have been let go by a record behind it, so it is not asked before.
    pub(crate) fn lost_at_start(&self, p: usize) -> Option<(Why, Option<Rot>)> {
        if self.rot.is_empty() && self.doubtful.is_empty() && self.log.missing().is_none() {
            return None;
        }
        let (known, doubtful) = (Losses::of(&self.rot), Losses::of(&self.doubtful));
        let rot = |place: Location| known.at(place).or_else(|| doubtful.at(place));
        let is_lost = |place: &Location| !self.log.has_segment(*place) || rot(*place).is_some();
        self.partitions[p].state.places().find(is_lost).map(|place| (Why::Waiting, rot(place)))
    }
}

//! The simulated process: its shards, their lanes, its starts and its ends.

use std::collections::HashSet;

use whimbrel_core::ids::ShardId;
use whimbrel_core::io::ShardConfig;
use whimbrel_storage::{LogOptions, SegmentId};

use crate::boot::boot;
use crate::bottom::Bottom;
use crate::cell::Cell;
use crate::check::Violation;
use crate::disk::{Crash, SimDisk};
use crate::lanes::{Lanes, Shared};
use crate::rot::Damage;
use crate::socket::SocketIndex;
use crate::stats::Stats;
use crate::tokens;

/// How often what is damaged is brought back while the node is down.
const MENDED_PER_MILLE: u64 = 300;

/// How often the disk does not give a page of what the next start reads, where it rots.
const PAGE_LOST_PER_MILLE: u64 = 300;

pub(crate) struct Node {
    cells: Vec<Cell>,
    shared: Shared,
    stopping: bool,
}

impl Node {
    /// Opens all shards on their disks.
    pub(crate) fn start(disks: Vec<SimDisk>, b: &mut Bottom) -> Result<Node, Violation> {
        let shards = b.weather.shards;
        // A machine that was off counts its time anew.
        let booted_us = if b.rng.per_mille(300) { b.now_us } else { 0 };
        let mut cells = Vec::with_capacity(disks.len());
        for (id, mut disk) in (0..).map(ShardId).zip(disks) {
            let config = ShardConfig {
                shard: id,
                shards,
                partitions: b.weather.partitions,
                token_key: tokens::public_key(),
                seed: b.rng.next(),
                bounds: b.weather.bounds,
            };
            let options = LogOptions {
                segment_size: b.weather.segment_bytes,
                batch_max: b.weather.batch_bytes,
                warm_max: u64::from(b.weather.segment_bytes) * if b.rng.per_mille(500) { 4 } else { 1 << 20 },
                ..LogOptions::new(id.0)
            };
            let shard = boot(&config, options, &mut disk, b)?;
            b.stats.truncated += u64::from(shard.recovered().truncated.is_some());
            b.stats.starts_from_checkpoint += u64::from(shard.recovered().checkpoint.is_some());
            // What a checkpoint has in its inboxes waits before the first input.
            b.waiting += shard.waiting() as u64;
            b.trace.line(format_args!("{id} starts"));
            cells.push(Cell::new(id, shard, disk, shards, booted_us));
        }
        let mut lanes = Lanes::new(shards, b.weather.lane_capacity);
        if b.healed {
            lanes.heal();
        }
        Ok(Node { cells, shared: Shared { lanes, moving: Vec::new() }, stopping: false })
    }

    /// When each shard has something to do.
    pub(crate) fn ready_at(&self, b: &Bottom) -> impl Iterator<Item = (usize, u64)> {
        self.cells.iter().enumerate().filter_map(|(index, cell)| Some((index, cell.ready_at(b, &self.shared)?)))
    }

    pub(crate) fn turn(&mut self, shard: usize, b: &mut Bottom) -> Result<(), Violation> {
        self.cells[shard].turn(b, &mut self.shared)
    }

    /// A client connects: whichever shard the kernel likes accepts it. Nobody does once the node stops.
    pub(crate) fn accept(&mut self, socket: SocketIndex, b: &mut Bottom) -> bool {
        if self.stopping {
            return false;
        }
        let shard = b.rng.index(self.cells.len());
        self.cells[shard].arrivals.push_back(socket);
        true
    }

    /// No faults any more.
    pub(crate) fn heal(&mut self) {
        self.shared.lanes.heal();
    }

    /// Somebody asks the process to stop.
    pub(crate) fn stop(&mut self, b: &mut Bottom) {
        self.stopping = true;
        b.stats.stops += 1;
        for cell in &mut self.cells {
            cell.stop_at_us = Some(b.now_us + b.rng.around(1000));
        }
    }

    pub(crate) fn is_stopping(&self) -> bool {
        self.stopping
    }

    /// All shards have nothing left to do after a stop.
    pub(crate) fn is_stopped(&self) -> bool {
        self.stopping && self.cells.iter().all(|cell| cell.stopped)
    }

    /// A shard wants the process to end, for it cannot keep its promises any more.
    pub(crate) fn wants_end(&self) -> bool {
        self.cells.iter().any(|cell| cell.ended)
    }

    /// Power is gone, for a planted fault wants it so.
    pub(crate) fn power_fails(&self) -> bool {
        self.cells.iter().any(|cell| cell.power_fails)
    }

    /// The process ends; what remains are its disks.
    pub(crate) fn end(self, how: Crash, b: &mut Bottom) -> Vec<SimDisk> {
        b.trace.line(format_args!("the node ends: {how:?}"));
        for socket in self.cells.iter().flat_map(Cell::sockets).chain(self.shared.moving.iter().map(|it| it.socket)) {
            let arriving = b.arriving(b.sockets[socket].on_the_way_down());
            b.socket(socket).node_closes(arriving);
        }
        b.waiting = 0;
        b.rots.in_repair.clear();
        let mut disks: Vec<SimDisk> = self.cells.into_iter().map(|cell| cell.crash(how, b)).collect();
        for disk in &mut disks {
            // Somebody has brought a copy of what was damaged, or will later.
            if disk.damage.as_ref().is_some_and(|damage| damage.is_gone) || b.rots.rng.per_mille(MENDED_PER_MILLE) {
                disk.mend(b);
            }
            if !b.healed && b.weather.rots_per_mille > 0 && b.rots.rng.per_mille(PAGE_LOST_PER_MILLE) {
                disk.lose_page(b);
            }
        }
        disks
    }

    /// Nothing is under way between or beneath the shards, and all of them serve.
    pub(crate) fn is_idle(&self) -> bool {
        self.shared.lanes.is_empty()
            && self.shared.moving.is_empty()
            && self.cells.iter().all(|cell| cell.is_idle() && cell.shard.is_ready())
    }

    /// The first segment, with its shard, in which one of these stands.
    pub(crate) fn find_on_disk(&self, marks: &HashSet<[u8; 8]>) -> Option<(ShardId, SegmentId)> {
        self.cells.iter().find_map(|cell| Some((cell.id, cell.disk.find(marks)?)))
    }

    /// All partitions serve, or are in repair.
    pub(crate) fn is_ready(&self) -> bool {
        self.cells.iter().all(|cell| cell.shard.is_ready())
    }

    /// A segment of some shard rots.
    pub(crate) fn rot(&mut self, b: &mut Bottom) {
        let shard = b.rots.rng.index(self.cells.len());
        self.cells[shard].disk.rot(b);
    }

    /// Something is damaged.
    pub(crate) fn is_damaged(&self) -> bool {
        self.cells.iter().any(|cell| cell.disk.damage.is_some() || cell.disk.shut)
    }

    /// Something is damaged in the log itself, and no shard has said so.
    pub(crate) fn hides_damage(&self) -> bool {
        // In a cold segment only what somebody waits for matters, and that was looked at when it was read.
        let hidden = |damage: &Damage| !damage.is_noticed && !damage.is_gone && !damage.segment.is_cold();
        self.cells.iter().filter_map(|cell| cell.disk.damage.as_ref()).any(hidden)
    }

    /// Adds what its shards have counted.
    pub(crate) fn tally(&self, stats: &mut Stats) {
        self.cells.iter().for_each(|cell| cell.tally(stats));
    }

    /// Deliveries that wait in inboxes for an acknowledgement.
    pub(crate) fn waiting(&self) -> u64 {
        self.cells.iter().map(|cell| cell.shard.waiting() as u64).sum()
    }
}

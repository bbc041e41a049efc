//! The world of a run: one node, its clients, those who mean ill, and what breaks. One thing happens at a time; chance says
//! which of those that are due. After the steps all faults end, and the world has to come to rest in bounded time.

use std::collections::HashSet;

use whimbrel_core::limits::MS;

use crate::bottom::Bottom;
use crate::check::{Check, Violation};
use crate::client::Client;
use crate::disk::{Crash, SimDisk};
use crate::ending::has_rested;
use crate::hostile::Hostile;
use crate::model::Model;
use crate::node::Node;
use crate::plant::Fuse;
use crate::rng::Rng;
use crate::rot::Rots;
use crate::run::Run;
use crate::stats::Stats;
use crate::trace::Trace;
use crate::weather::{FORGETS_SOON_US, Weather};

mod damaged;
mod full;

/// How long the healed world may take to come to rest: many times the longest retry of the protocol, and the time after which
/// a silent connection is given up on both sides.
const REST_WITHIN_US: u64 = 400_000_000;

/// Things that may happen in that time; more means that it turns in circles.
const REST_WITHIN_THINGS: u64 = 1_000_000;

/// What is confirmed by the members' partitions is committed by then, so that an outbox lets go of it.
const CONFIRMED_US: u64 = 1_500 * MS;

/// So long nothing may be under way or delivered before the world counts as at rest: longer than any retry within the node.
const QUIET_US: u64 = 2_500_000;

/// Those who mean ill at one time.
const HOSTILE_MAX: usize = 6;

pub(crate) struct World {
    b: Bottom,
    model: Model,
    node: Option<Node>,
    /// While the node is down: its disks, and when it starts again.
    down: Option<(u64, Vec<SimDisk>)>,
    clients: Vec<Client>,
    hostile: Vec<Hostile>,
}

/// Who can do something.
#[derive(Clone, Copy, Debug)]
enum Actor {
    Shard(usize),
    Client(usize),
    Hostile(usize),
    Restart,
}

impl World {
    pub(crate) fn new(what: Run, trace: Trace) -> World {
        let mut rng = Rng::new(what.seed);
        let mut weather = Weather::new(&mut rng.fork(1));
        what.plant.into_iter().for_each(|plant| weather.suit(plant));
        let fuse = Fuse::new(what.plant, rng.fork(2), trace.clone());
        trace.line(format_args!("{weather:?}"));
        let disks = (0..weather.shards).map(|shard| SimDisk::new(shard, rng.next())).collect();
        let mut people = rng.fork(3);
        let b = Bottom {
            now_us: 0,
            wall_off_ms: 0,
            rng,
            rots: Rots::new(what.seed),
            sockets: Vec::new(),
            fuse,
            trace,
            weather,
            waiting: 0,
            full: false,
            healed: false,
            stats: Stats::default(),
        };
        let mut world = World {
            b,
            model: Model::default(),
            node: None,
            down: Some((0, disks)),
            clients: Vec::new(),
            hostile: Vec::new(),
        };
        world.populate(&mut people);
        world
    }

    fn populate(&mut self, rng: &mut Rng) {
        const NAMES: [&str; 8] = ["alice", "bob", "carol", "dave", "erin", "frank", "grace", "heidi"];
        for name in NAMES.into_iter().take(self.b.weather.users) {
            let user = self.model.add_user(name.to_owned());
            for number in 1..=rng.between(1, self.b.weather.devices_max) as u32 {
                let device = self.model.add_device(user, number);
                self.clients.push(Client::new(device, name, number, &self.b.weather, rng));
            }
        }
    }

    pub(crate) fn run(&mut self, steps: u64) -> Result<(), Violation> {
        while self.b.stats.steps < steps {
            self.misfortune();
            self.happen()?;
        }
        self.start_while_full()?;
        self.heal();
        self.rest_damaged()?;
        self.come_to_rest()?;
        self.model.complete()?;
        self.restart_and_look()?;
        self.forget()
    }

    /// Once everybody has everything and the time is up, no byte of a message is on any disk. Where that time is minutes nobody
    /// waits for it.
    fn forget(&mut self) -> Result<(), Violation> {
        let forget_after_us = self.b.weather.bounds.forget_after_us;
        if forget_after_us > FORGETS_SOON_US {
            return Ok(());
        }
        let until_us = self.b.now_us + forget_after_us + CONFIRMED_US;
        for _ in 0..REST_WITHIN_THINGS {
            if self.b.now_us >= until_us {
                break;
            }
            self.happen()?;
        }
        let marks: HashSet<[u8; 8]> =
            self.model.messages.iter().filter_map(|message| message.payload.get(8..16)?.try_into().ok()).collect();
        let Some(node) = &self.node else { return Ok(()) };
        self.b.stats.forgotten_worlds += 1;
        match node.find_on_disk(&marks) {
            None => Ok(()),
            Some((shard, segment)) => {
                let text =
                    format!("bytes of a message are in segment {segment} of shard {shard}, and nobody waits for it");
                Err(Violation::new(Check::NotForgotten, text))
            }
        }
    }

    /// What happened, and how often the planted bug fired.
    pub(crate) fn end(mut self) -> (Stats, u64) {
        self.b.stats.acknowledged = self.model.acknowledged;
        self.b.stats.delivered = self.model.delivered;
        self.b.stats.sent = self.model.messages.len() as u64;
        self.b.stats.chats = self.model.chats.len() as u64;
        self.b.stats.spread_groups = self.model.spread_groups() as u64;
        self.b.stats.group_delivered = self.model.group_delivered;
        self.b.stats.resends = self.model.resends;
        self.b.stats.waited = self.model.waited;
        self.b.stats.credit_used_up = self.model.credit_used_up;
        if let Some(node) = &self.node {
            node.tally(&mut self.b.stats);
        }
        (self.b.stats, self.b.fuse.fired())
    }

    /// One thing happens.
    fn happen(&mut self) -> Result<(), Violation> {
        let now_us = self.b.now_us;
        let mut due = Vec::new();
        let mut next_us = u64::MAX;
        let mut see = |actor: Actor, at_us: u64| {
            if at_us <= now_us {
                due.push(actor);
            } else {
                next_us = next_us.min(at_us);
            }
        };
        if let Some(node) = &self.node {
            node.ready_at(&self.b).for_each(|(shard, at_us)| see(Actor::Shard(shard), at_us));
        }
        if let Some((at_us, _)) = &self.down {
            see(Actor::Restart, *at_us);
        }
        self.clients.iter().enumerate().for_each(|(index, client)| see(Actor::Client(index), client.due_us(&self.b)));
        self.hostile.iter().enumerate().for_each(|(index, hostile)| see(Actor::Hostile(index), hostile.next_us));
        if due.is_empty() {
            self.b.pass(next_us - now_us);
            return Ok(());
        }
        let actor = due[self.b.rng.index(due.len())];
        let pace_us = self.b.weather.pace_us;
        let pause_us = if self.b.healed { 1 } else { self.b.rng.around(pace_us) };
        self.b.pass(pause_us);
        self.act(actor)
    }

    fn act(&mut self, actor: Actor) -> Result<(), Violation> {
        let World { b, model, node, clients, hostile, down } = self;
        match actor {
            Actor::Shard(shard) => {
                if let Some(node) = node {
                    node.turn(shard, b)?;
                    if node.power_fails() {
                        self.end_node(Crash::PowerCut);
                    } else if node.wants_end() {
                        self.crash();
                    } else if node.is_stopped() {
                        b.stats.clean_stops += 1;
                        self.end_node(Crash::Killed);
                    }
                }
            }
            Actor::Client(index) => clients[index].act(b, model, node.as_mut())?,
            Actor::Hostile(index) => {
                if hostile[index].act(b, node.as_mut())? {
                    hostile.swap_remove(index);
                }
            }
            Actor::Restart => {
                if let Some((_, disks)) = down.take() {
                    *node = Some(Node::start(disks, b)?);
                }
            }
        }
        Ok(())
    }

    /// Things that befall the node, or do not.
    fn misfortune(&mut self) {
        let w = &self.b.weather;
        let chances =
            [w.crash_per_mille, w.stop_per_mille, w.hostile_per_mille, w.sleep_per_mille, w.wall_jump_per_mille];
        let [crash, stop, hostile, sleep, wall_jump] = chances.map(|chance| self.b.rng.per_mille(chance));
        if let Some(node) = &mut self.node
            && self.b.weather.rots_per_mille > 0
            && self.b.rots.rng.per_mille(self.b.weather.rots_per_mille)
        {
            node.rot(&mut self.b);
        }
        if crash && self.node.is_some() {
            self.b.stats.crashes += 1;
            self.crash();
        }
        if stop && let Some(node) = self.node.as_mut().filter(|node| !node.is_stopping()) {
            node.stop(&mut self.b);
        }
        if hostile && self.hostile.len() < HOSTILE_MAX {
            self.hostile.push(Hostile::new(&mut self.b));
        }
        if sleep {
            // Nothing happens anywhere for a while: all timers run out at once.
            let us = self.b.rng.pick(&[1_000_000, 20_000_000, 100_000_000]);
            self.b.pass(us);
        }
        if wall_jump {
            let ms = self.b.rng.pick(&[1_000, 60_000, 3_600_000, 40_000_000]);
            self.b.wall_off_ms += if self.b.rng.per_mille(500) { ms } else { -ms };
        }
    }

    fn crash(&mut self) {
        let how = if self.b.rng.per_mille(600) { Crash::PowerCut } else { Crash::Killed };
        self.end_node(how);
    }

    fn end_node(&mut self, how: Crash) {
        if let Some(node) = self.node.take() {
            let disks = node.end(how, &mut self.b);
            let pause_us = if self.b.healed { 0 } else { self.b.rng.around(20_000) };
            self.down = Some((self.b.now_us + pause_us, disks));
        }
    }

    /// From here on nothing breaks any more, everybody is there and reads.
    fn heal(&mut self) {
        self.b.trace.line(format_args!("all faults end"));
        self.b.healed = true;
        for socket in &mut self.b.sockets {
            socket.heal();
        }
        for hostile in self.hostile.drain(..) {
            hostile.leave(&mut self.b);
        }
        for socket in &mut self.b.sockets {
            if socket.abandoned {
                socket.client_closes(0);
            }
        }
        if let Some((at_us, _)) = &mut self.down {
            *at_us = self.b.now_us;
        }
        if let Some(node) = &mut self.node {
            node.heal();
        }
        for client in &mut self.clients {
            client.heal(&self.b);
        }
    }

    fn come_to_rest(&mut self) -> Result<(), Violation> {
        let until_us = self.b.now_us + REST_WITHIN_US;
        let mut quiet_since_us = self.b.now_us;
        let mut delivered = self.model.delivered;
        for _ in 0..REST_WITHIN_THINGS {
            if self.b.now_us >= until_us {
                break;
            }
            self.happen()?;
            if delivered != self.model.delivered || !self.is_at_rest() {
                delivered = self.model.delivered;
                quiet_since_us = self.b.now_us;
            } else if self.b.now_us - quiet_since_us >= QUIET_US {
                return Ok(());
            }
        }
        let unrest = self.unrest();
        self.b.trace.line(format_args!("no rest: {}", unrest.text));
        Err(unrest)
    }

    fn is_at_rest(&self) -> bool {
        let node_rests = |node: &Node| !node.is_stopping() && node.is_idle() && node.waiting() == 0;
        self.node.as_ref().is_some_and(node_rests)
            && self.clients.iter().all(|client| client.unrest(&self.model).is_none())
    }

    /// What somebody still waits for.
    fn unrest(&self) -> Violation {
        let client = self.clients.iter().find_map(|client| client.unrest(&self.model));
        no_rest(client, self.node.as_ref().map(Node::waiting), self.model.complete())
    }

    /// What is durable is so after one more crash: the inboxes are empty before anybody has said a word, and stay so.
    fn restart_and_look(&mut self) -> Result<(), Violation> {
        if self.b.rng.per_mille(700) {
            return Ok(());
        }
        self.crash();
        let Some((_, disks)) = self.down.take() else { return Ok(()) };
        if let Some(shard) = disks.iter().position(|disk| disk.undamaged.is_none() && !has_rested(&disk.ram)) {
            let text = format!("shard {shard} rested, and its last records have no batch behind them");
            return Err(Violation::new(Check::Unnoticed, text));
        }
        let mut node = Node::start(disks, &mut self.b)?;
        for _ in 0..REST_WITHIN_THINGS {
            if node.is_idle() {
                break;
            }
            let next = node.ready_at(&self.b).min_by_key(|&(_, at_us)| at_us);
            let Some((shard, at_us)) = next else { break };
            self.b.pass(at_us.saturating_sub(self.b.now_us) + 1);
            node.turn(shard, &mut self.b)?;
        }
        let waiting = node.waiting();
        self.node = Some(node);
        if waiting > 0 {
            let text = format!("all was acknowledged and committed; after a crash {waiting} deliveries wait again");
            return Err(Violation::new(Check::InboxNotEmpty, text));
        }
        self.come_to_rest()?;
        self.model.complete()
    }
}

/// What is wrong with a world that does not come to rest: what a client still waits for, the deliveries that wait in the node if
/// there is one, and whether everybody has seen all there was.
fn no_rest(client: Option<String>, waiting: Option<u64>, complete: Result<(), Violation>) -> Violation {
    let stuck = |text: String| Violation::new(Check::Stuck, text);
    match (client, waiting, complete) {
        (Some(text), _, _) => stuck(text),
        (None, None, _) => stuck("the node is not back".into()),
        (None, Some(0), _) => stuck("the node does not become idle".into()),
        (None, Some(waiting), Ok(())) => {
            Violation::new(Check::InboxNotEmpty, format!("all is acknowledged, and {waiting} deliveries wait"))
        }
        (None, Some(waiting), Err(missing)) => stuck(format!("{waiting} deliveries wait and do not come: {missing}")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_world_that_does_not_rest_is_stuck_unless_only_inboxes_hold_what_was_seen() {
        let check =
            |client: Option<&str>, waiting, complete| no_rest(client.map(str::to_owned), waiting, complete).check;
        let missing = || Err(Violation::new(Check::Lost, "a message"));
        assert_eq!(check(None, Some(3), Ok(())), Check::InboxNotEmpty);
        assert_eq!(check(None, Some(3), missing()), Check::Stuck);
        assert_eq!(check(None, Some(0), Ok(())), Check::Stuck);
        assert_eq!(check(None, None, Ok(())), Check::Stuck);
        assert_eq!(check(Some("alice waits"), Some(3), Ok(())), Check::Stuck);
    }
}

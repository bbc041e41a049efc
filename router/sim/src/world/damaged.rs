//! A world in which something is damaged comes to rest, all the same: what is damaged is found, and whoever has lost nothing by
//! it is served. Then the bytes are brought back, and all is as if they had never been others.

use whimbrel_core::ids::ChatId;
use whimbrel_core::route;
use whimbrel_wire::Code;

use super::{Node, QUIET_US, REST_WITHIN_THINGS, SimDisk, World};
use crate::check::{Check, Violation};
use crate::disk::Crash;
use crate::model::UserIndex;

/// Beside two sweeps of the scrubber, that may take.
const WITHIN_US: u64 = 60_000_000;

/// With less room for what waits, what is not served may take all of it.
const ROOM_FOR_ALL: usize = 1000;

impl World {
    /// See the head of the file.
    pub(super) fn rest_damaged(&mut self) -> Result<(), Violation> {
        if !self.is_damaged() {
            return Ok(());
        }
        self.come_to_rest_damaged()?;
        self.end_node(Crash::Killed);
        for disk in self.down.iter_mut().flat_map(|(_, disks)| disks) {
            disk.mend(&mut self.b);
        }
        Ok(())
    }

    fn come_to_rest_damaged(&mut self) -> Result<(), Violation> {
        let until_us = self.b.now_us + 2 * self.b.weather.bounds.scrub_interval_us + WITHIN_US;
        let (mut quiet_since_us, mut delivered) = (self.b.now_us, self.model.delivered);
        for _ in 0..REST_WITHIN_THINGS {
            if self.b.now_us >= until_us {
                break;
            }
            self.happen()?;
            if !self.is_damaged() {
                // It was brought back, or is in none of the segments that are there.
                return Ok(());
            }
            if delivered != self.model.delivered || self.unrest_damaged().is_some() {
                (quiet_since_us, delivered) = (self.b.now_us, self.model.delivered);
            } else if self.b.now_us - quiet_since_us >= QUIET_US {
                self.b.stats.damaged_worlds += 1;
                return self.complete_damaged();
            }
        }
        let text = self.unrest_damaged().unwrap_or_else(|| "something is always delivered".into());
        let check = if self.node.as_ref().is_some_and(Node::hides_damage) { Check::Unnoticed } else { Check::Stuck };
        Err(Violation::new(check, format!("while something is damaged: {text}")))
    }

    fn is_damaged(&self) -> bool {
        let is_down = |(_, disks): &(u64, Vec<SimDisk>)| disks.iter().any(|disk| disk.damage.is_some() || disk.shut);
        self.node.as_ref().is_some_and(Node::is_damaged) || self.down.as_ref().is_some_and(is_down)
    }

    /// What is not as it has to be by and by.
    fn unrest_damaged(&self) -> Option<String> {
        let Some(node) = &self.node else { return Some("the node is not back".into()) };
        if !node.is_ready() {
            return Some("some partition neither serves nor is in repair".into());
        }
        if node.hides_damage() {
            return Some("it was read and not told".into());
        }
        if self.b.weather.bounds.inbox_pointers < ROOM_FOR_ALL {
            return None;
        }
        self.clients.iter().find_map(|client| {
            if self.b.rots.in_repair.contains(&client.partition(&self.b)) {
                let refused = client.refused == Some(Code::InRepair);
                (!refused).then(|| format!("{} is not refused: its partition is in repair", client.name))
            } else {
                client.unrest_where(&self.model, &|chat| self.serves_chat(chat))
            }
        })
    }

    fn complete_damaged(&self) -> Result<(), Violation> {
        if self.b.weather.bounds.inbox_pointers < ROOM_FOR_ALL {
            return Ok(());
        }
        let serves_user = |user: UserIndex| {
            let mut clients = self.clients.iter().filter(|client| self.model.user_of(client.device) == user);
            clients.all(|client| !self.b.rots.in_repair.contains(&client.partition(&self.b)))
        };
        self.model.complete_where(&serves_user, &|chat| self.serves_chat(chat))
    }

    fn serves_chat(&self, chat: u128) -> bool {
        let partition = route::partition_of_chat(ChatId(chat), self.b.weather.partitions);
        !self.b.rots.in_repair.contains(&partition.0)
    }
}

//! Disks that stay full while the node is killed and starts, again and again, and everybody goes on as before. Each start writes
//! something, and there is no space but what was kept. Nothing is lost by it, and with space all goes on: the healed world sees to that.

use super::World;
use crate::check::Violation;

/// How long each of these lives is at most: long enough for a start, logins and messages.
const LIFE_US: u64 = 1_500_000;

/// And so many things happen in it at most.
const LIFE_THINGS: u64 = 600;

impl World {
    /// See the head of the file.
    pub(super) fn start_while_full(&mut self) -> Result<(), Violation> {
        if self.b.weather.full_starts == 0 {
            return Ok(());
        }
        self.b.trace.line(format_args!("the disks stay full"));
        self.b.full = true;
        for _ in 0..self.b.weather.full_starts {
            self.crash();
            for disk in self.down.iter_mut().flat_map(|(_, disks)| disks) {
                disk.share(&mut self.b);
            }
            self.b.stats.full_starts += 1;
            let (until_us, delivered) = (self.b.now_us + LIFE_US, self.model.delivered);
            let mut has_served = false;
            for _ in 0..LIFE_THINGS {
                if self.b.now_us >= until_us {
                    break;
                }
                self.happen()?;
                has_served |= self.node.as_ref().is_some_and(|node| node.is_ready());
            }
            self.b.stats.full_served += u64::from(has_served);
            self.b.stats.full_delivered += self.model.delivered - delivered;
        }
        self.b.full = false;
        Ok(())
    }
}

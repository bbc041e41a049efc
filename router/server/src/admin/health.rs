//! Whether the node lives, and whether it serves. Plain functions of what was seen of the shards.

use std::time::Duration;

use serde::{Deserialize, Serialize};

use crate::shell::Stage;

/// A shard that has not turned for so long hangs. Shards are asked to each second, and the longest that one has to do in a
/// turn takes milliseconds.
pub(crate) const HANGS_AFTER: Duration = Duration::from_secs(5);

/// What was seen of a shard.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Seen {
    pub(crate) stage: Stage,
    /// Since it published last.
    pub(crate) ago: Duration,
    /// Partitions in repair.
    pub(crate) in_repair: u64,
}

/// What `/healthz` and `/readyz` answer.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub(crate) struct Report {
    pub(crate) ok: bool,
    pub(crate) uptime_seconds: u64,
    pub(crate) shards: Vec<ShardReport>,
}

/// Of one shard.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub(crate) struct ShardReport {
    pub(crate) shard: u16,
    pub(crate) ok: bool,
    pub(crate) stage: Stage,
    /// Partitions that are in repair, if there are any. No reason not to be ready: all others are served, and nobody else serves
    /// those.
    #[serde(default, skip_serializing_if = "is_zero")]
    pub(crate) in_repair: u64,
    /// Why it is not.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) problem: Option<String>,
}

/// Lives: no shard hangs. One that reads its log has not turned yet, and lives; one that has ended needs to turn no more.
pub(crate) fn alive(shards: &[Seen], uptime: Duration) -> Report {
    report(shards, uptime, hangs)
}

/// Serves: all shards accept connections, and none hangs.
pub(crate) fn ready(shards: &[Seen], uptime: Duration) -> Report {
    report(shards, uptime, |seen| {
        hangs(seen).or(match seen.stage {
            Stage::Opening => Some("it reads its log".to_owned()),
            Stage::Starting => Some("it waits until all partitions of all shards serve".to_owned()),
            Stage::Accepting => None,
            Stage::Stopping => Some("it is shutting down".to_owned()),
            Stage::Ended => Some("it has ended".to_owned()),
        })
    })
}

fn hangs(seen: &Seen) -> Option<String> {
    let turns = match seen.stage {
        Stage::Opening | Stage::Ended => false,
        Stage::Starting | Stage::Accepting | Stage::Stopping => true,
    };
    (turns && seen.ago > HANGS_AFTER).then(|| format!("it has not turned for {} s", seen.ago.as_secs()))
}

fn is_zero(count: &u64) -> bool {
    *count == 0
}

fn report(shards: &[Seen], uptime: Duration, problem: impl Fn(&Seen) -> Option<String>) -> Report {
    let of = |(shard, seen): (u16, &Seen)| {
        let problem = problem(seen);
        ShardReport { shard, ok: problem.is_none(), stage: seen.stage, in_repair: seen.in_repair, problem }
    };
    let shards: Vec<_> = (0..).zip(shards).map(of).collect();
    Report { ok: shards.iter().all(|shard| shard.ok), uptime_seconds: uptime.as_secs(), shards }
}

#[cfg(test)]
mod tests {
    use super::*;

    const STAGES: [Stage; 5] = [Stage::Opening, Stage::Starting, Stage::Accepting, Stage::Stopping, Stage::Ended];

    fn seen(stage: Stage, seconds: u64) -> Seen {
        Seen { stage, ago: Duration::from_secs(seconds), in_repair: 0 }
    }

    #[test]
    fn a_shard_with_partitions_in_repair_is_ready_and_says_so() {
        let shards = [seen(Stage::Accepting, 0), Seen { in_repair: 2, ..seen(Stage::Accepting, 0) }];
        let report = ready(&shards, Duration::ZERO);
        assert!(report.ok);
        let json = serde_json::to_string(&report).unwrap();
        assert!(json.matches("in_repair").count() == 1 && json.contains("\"in_repair\":2"), "{json}");
    }

    #[test]
    fn a_shard_that_does_not_turn_is_named() {
        let shards = [seen(Stage::Accepting, 0), seen(Stage::Accepting, 7), seen(Stage::Accepting, 1)];
        for report in [alive(&shards, Duration::ZERO), ready(&shards, Duration::ZERO)] {
            assert!(!report.ok);
            let not_ok: Vec<_> = report.shards.iter().filter(|it| !it.ok).map(|it| it.shard).collect();
            assert_eq!(not_ok, [1]);
            assert_eq!(report.shards[1].problem.as_deref(), Some("it has not turned for 7 s"));
        }
    }

    #[test]
    fn only_accepting_is_ready_and_every_stage_lives() {
        for stage in STAGES {
            let shards = [seen(Stage::Accepting, 0), seen(stage, 0)];
            assert!(alive(&shards, Duration::ZERO).ok, "{stage:?}");
            assert_eq!(ready(&shards, Duration::ZERO).ok, stage == Stage::Accepting, "{stage:?}");
        }
    }

    #[test]
    fn neither_a_long_recovery_nor_the_end_is_a_hang() {
        for (stage, lives) in STAGES.into_iter().zip([true, false, false, false, true]) {
            assert_eq!(alive(&[seen(stage, 3600)], Duration::ZERO).ok, lives, "{stage:?}");
        }
    }
}

//! What `/status` answers and `whimbrel status` prints: the node and each of its shards, as numbers that a person asks for.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};

use hdrhistogram::Histogram;
use serde::{Deserialize, Serialize};
use whimbrel_storage::PutAside;
use whimbrel_tune::check::ProfileState;
use whimbrel_wire::Code;

use super::metrics;
use super::node::Node;
use crate::shell::{Snapshot, Stage};
use crate::tuning;

/// A node.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(crate) struct Status {
    pub(crate) version: String,
    pub(crate) commit: String,
    pub(crate) pid: u32,
    pub(crate) uptime_seconds: u64,
    pub(crate) data: PathBuf,
    pub(crate) listen: SocketAddr,
    pub(crate) admin: SocketAddr,
    /// Absent where the server was told no profile.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) tuning: Option<Tuning>,
    /// Damaged files that starts put aside. Absent where there are none.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub(crate) put_aside: Vec<Aside>,
    pub(crate) shards: Vec<ShardStatus>,
}

/// A damaged file that a start put aside. Nothing reads it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Aside {
    /// In the data directory.
    pub(crate) file: PathBuf,
    pub(crate) bytes: u64,
}

/// How the tuning profile stands, that the server was told.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Tuning {
    pub(crate) profile: String,
    pub(crate) met: usize,
    pub(crate) short: usize,
    /// Settings that this machine does not have.
    pub(crate) missing: usize,
    /// What shows what is short, and what mends it. Absent where nothing is.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) mend: Option<String>,
}

/// One of its shards. Counts are since the start.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(crate) struct ShardStatus {
    pub(crate) shard: u16,
    pub(crate) stage: Stage,
    /// Since this was so. More than a second or two means that it hangs.
    pub(crate) age_ms: u64,
    pub(crate) partitions: u64,
    /// Those that are damaged and refuse until they are repaired.
    pub(crate) in_repair: u64,
    pub(crate) connections: u64,
    pub(crate) waiting: u64,
    pub(crate) logins: u64,
    pub(crate) stored: u64,
    pub(crate) repeated: u64,
    pub(crate) delivered: u64,
    pub(crate) acknowledged: u64,
    /// By reason, those that there were.
    pub(crate) refused: BTreeMap<String, u64>,
    /// By reason, those that there were.
    pub(crate) dropped: BTreeMap<String, u64>,
    pub(crate) log_bytes: u64,
    pub(crate) segments: u64,
    /// Pieces of the log that are not what was written.
    pub(crate) rot_found: u64,
    /// Files of the log that nobody needs and that are not removed yet.
    #[serde(default)]
    pub(crate) leftovers: u64,
    pub(crate) turns: u64,
    pub(crate) turn_us: Quantiles,
    /// Less the time in which the thread had no core; absent where the kernel does not say it.
    pub(crate) turn_own_us: Option<Quantiles>,
}

/// Of the lengths of turns, in microseconds.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Quantiles {
    pub(crate) p50: u64,
    pub(crate) p99: u64,
    pub(crate) p999: u64,
    pub(crate) p99999: u64,
    pub(crate) max: u64,
}

impl Status {
    /// Of a node whose shards have published this.
    pub(super) fn of(node: &Node, snapshots: &[Snapshot]) -> Status {
        let about = &node.about;
        Status {
            version: env!("CARGO_PKG_VERSION").to_owned(),
            commit: env!("WHIMBREL_COMMIT").to_owned(),
            pid: std::process::id(),
            uptime_seconds: node.uptime().as_secs(),
            data: about.data.clone(),
            listen: about.listen,
            admin: about.admin,
            tuning: tuning::state_now().as_ref().map(Tuning::of),
            put_aside: (0..snapshots.len() as u16).flat_map(|shard| put_aside(&about.data, shard)).collect(),
            shards: (0..)
                .zip(snapshots)
                .map(|(shard, snapshot)| ShardStatus::of(shard, snapshot, about.segment_size))
                .collect(),
        }
    }
}

/// As the directory has them now: whoever sees them may remove them.
fn put_aside(data: &Path, shard: u16) -> Vec<Aside> {
    let found = whimbrel_storage::put_aside(data, shard).inspect_err(|error| {
        tracing::warn!(shard, %error, "cannot look for damaged files that were put aside");
    });
    let aside = |PutAside { name, bytes }| Aside { file: Path::new(&format!("shard-{shard}")).join(name), bytes };
    found.unwrap_or_default().into_iter().map(aside).collect()
}

impl Tuning {
    fn of(state: &ProfileState) -> Tuning {
        let ProfileState { profile, met, short, missing, .. } = state;
        let mend = tuning::mend(state);
        Tuning { profile: profile.clone(), met: *met, short: *short, missing: *missing, mend }
    }
}

impl ShardStatus {
    fn of(shard: u16, snapshot: &Snapshot, segment_size: u32) -> ShardStatus {
        let Snapshot { at, stage, core, now, turns, .. } = snapshot;
        let refused = Code::ALL.iter().map(|code| (code.name(), core.refused_for(*code)));
        ShardStatus {
            shard,
            stage: *stage,
            age_ms: at.elapsed().as_millis() as u64,
            partitions: now.starting + now.serving + now.in_repair,
            in_repair: now.in_repair,
            connections: now.connections,
            waiting: now.waiting,
            logins: core.logins,
            stored: core.stored,
            repeated: core.repeated,
            delivered: core.delivered,
            acknowledged: core.acknowledged,
            refused: those_that_there_were(refused),
            dropped: those_that_there_were(metrics::drops(snapshot)),
            log_bytes: now.log_bytes,
            segments: now.log_bytes / u64::from(segment_size),
            rot_found: core.rot_found,
            leftovers: now.leftovers,
            turns: turns.wall.len(),
            turn_us: Quantiles::of(&turns.wall),
            turn_own_us: turns.own.as_ref().map(Quantiles::of),
        }
    }
}

impl Quantiles {
    fn of(lengths: &Histogram<u64>) -> Quantiles {
        Quantiles {
            p50: lengths.value_at_quantile(0.5),
            p99: lengths.value_at_quantile(0.99),
            p999: lengths.value_at_quantile(0.999),
            p99999: lengths.value_at_quantile(0.999_99),
            max: lengths.max(),
        }
    }
}

fn those_that_there_were(counts: impl Iterator<Item = (&'static str, u64)>) -> BTreeMap<String, u64> {
    counts.filter(|(_, count)| *count > 0).map(|(reason, count)| (reason.to_owned(), count)).collect()
}

//! `/metrics`: a table of names, from which the text in OpenMetrics and the list in router/METRICS.md come.

use std::fmt;
use std::time::Duration;

use hdrhistogram::Histogram;
use prometheus_client::collector::Collector;
use prometheus_client::encoding::{DescriptorEncoder, MetricEncoder, NoLabelSet, text};
use prometheus_client::metrics::MetricType;
use prometheus_client::registry::{Registry, Unit};
use whimbrel_wire::Code;

use super::node::Node;
use crate::shell::{Chore, Snapshot, Stage};

/// Of the text.
pub(super) const CONTENT_TYPE: &str = "application/openmetrics-text; version=1.0.0; charset=utf-8";

/// Upper bounds of the buckets of turns.
const BOUNDS_US: [u64; 14] =
    [10, 20, 50, 100, 200, 500, 1_000, 2_000, 5_000, 10_000, 50_000, 100_000, 500_000, 1_000_000];

/// Quantiles of turns, and how they are labelled.
const QUANTILES: [(&str, f64); 5] = [("0.5", 0.5), ("0.99", 0.99), ("0.999", 0.999), ("0.99999", 0.999_99), ("1", 1.0)];

/// A number that a shard publishes, and for the test that none is forgotten the part of [`Snapshot`] and the field.
pub(super) struct Source {
    #[cfg(test)]
    pub(super) part: &'static str,
    #[cfg(test)]
    pub(super) field: &'static str,
    get: fn(&Snapshot) -> u64,
}

macro_rules! source {
    ($part:ident.$field:ident) => {
        Source {
            #[cfg(test)]
            part: stringify!($part),
            #[cfg(test)]
            field: stringify!($field),
            get: |snapshot| snapshot.$part.$field,
        }
    };
}

/// One number of each shard.
pub(super) struct Metric {
    pub(super) source: Source,
    name: &'static str,
    unit: Option<Unit>,
    help: &'static str,
}

const fn metric(source: Source, name: &'static str, unit: Option<Unit>, help: &'static str) -> Metric {
    Metric { source, name, unit, help }
}

/// What only grows.
pub(super) const COUNTERS: &[Metric] = &[
    metric(source!(core.stored), "whimbrel_messages_stored", None, "Messages stored, each the first time"),
    metric(source!(core.repeated), "whimbrel_messages_repeated", None, "Sends of messages that were stored before"),
    metric(
        source!(core.delivered),
        "whimbrel_messages_delivered",
        None,
        "Messages, and news that a chat was made, sent to devices; repeats too",
    ),
    metric(
        source!(core.acknowledged),
        "whimbrel_messages_acknowledged",
        None,
        "Of these, those whose acknowledgement is committed",
    ),
    metric(source!(core.logins), "whimbrel_logins", None, "Logins"),
    metric(
        source!(core.inbox_lost),
        "whimbrel_inboxes_lost",
        None,
        "Logins of devices that know more than this node: it has lost what they had",
    ),
    metric(source!(core.entries), "whimbrel_entries_applied", None, "Raft entries applied"),
    metric(source!(core.commands), "whimbrel_commands_applied", None, "Commands applied, several an entry"),
    metric(source!(core.writes), "whimbrel_log_writes_wanted", None, "Writes of the log that the core asked for"),
    metric(
        source!(core.resent),
        "whimbrel_fan_outs_resent",
        None,
        "Times that a partition of a chat's members said from which message on it is to be sent them again",
    ),
    metric(
        source!(core.asked),
        "whimbrel_fan_outs_asked",
        None,
        "Times that a partition was asked whether it takes a chat's messages, for it had not confirmed them: it has no room, is in repair, writes slowly, or its answer was lost",
    ),
    metric(source!(core.checkpoints), "whimbrel_checkpoints", None, "Checkpoints written"),
    metric(source!(core.checkpoint_bytes), "whimbrel_checkpoint_written", Some(Unit::Bytes), "Bytes of them"),
    metric(
        source!(core.checkpoints_failed),
        "whimbrel_checkpoints_failed",
        None,
        "Checkpoints that could not be written; each is tried again after a second",
    ),
    metric(
        source!(core.moved),
        "whimbrel_messages_moved",
        None,
        "Waiting messages moved out of segments that are emptied",
    ),
    metric(source!(core.moved_bytes), "whimbrel_log_moved", Some(Unit::Bytes), "Bytes of their records"),
    metric(
        source!(core.moved_padding),
        "whimbrel_log_moved_padding",
        Some(Unit::Bytes),
        "Bytes by which these were filled up to whole pages",
    ),
    metric(
        source!(core.moves_rotten),
        "whimbrel_messages_rotten",
        None,
        "Waiting messages that could not be moved, for they are not as they were written",
    ),
    metric(
        source!(core.moves_failed),
        "whimbrel_moves_failed",
        None,
        "Moving or overwriting that failed; each is tried again with the next checkpoint",
    ),
    metric(
        source!(core.erased_bytes),
        "whimbrel_log_erased",
        Some(Unit::Bytes),
        "Bytes written to overwrite what is dead beside what waits",
    ),
    metric(
        source!(core.zeroed_bytes),
        "whimbrel_log_zeroed",
        Some(Unit::Bytes),
        "Bytes of segments overwritten with zeros to be used again",
    ),
    metric(
        source!(core.scrubbed),
        "whimbrel_segments_scrubbed",
        None,
        "Segments of the log that were read to see whether they are as they were written",
    ),
    metric(source!(core.scrubbed_bytes), "whimbrel_scrubbed", Some(Unit::Bytes), "Bytes of them"),
    metric(
        source!(core.rot_found),
        "whimbrel_rot_found",
        None,
        "Pieces of the log that are not what was written, by whatever read them; any is reason to check the disk",
    ),
    metric(source!(shell.turns), "whimbrel_turns", None, "Turns"),
    metric(source!(shell.sleeps), "whimbrel_sleeps", None, "Sleeps on the eventfd, after a short wait in the ring"),
    metric(source!(shell.received), "whimbrel_receives", None, "Receives that brought bytes"),
    metric(source!(shell.received_bytes), "whimbrel_received", Some(Unit::Bytes), "Bytes received from clients"),
    metric(source!(shell.sent_bytes), "whimbrel_sent", Some(Unit::Bytes), "Bytes sent to clients"),
    metric(source!(shell.log_writes), "whimbrel_log_writes", None, "Writes of the log begun, each a flush"),
    metric(
        source!(shell.log_bytes),
        "whimbrel_log_written",
        Some(Unit::Bytes),
        "Bytes of the log whose writes were begun",
    ),
    metric(source!(shell.accepted), "whimbrel_connections_accepted", None, "Connections accepted"),
    metric(
        source!(shell.moved_out),
        "whimbrel_connections_moved_out",
        None,
        "Connections handed to the shard of their device",
    ),
    metric(
        source!(shell.moved_in),
        "whimbrel_connections_moved_in",
        None,
        "Connections taken over from the shard that accepted them",
    ),
    metric(source!(shell.lane_items), "whimbrel_lane_items", None, "Items that came from other shards"),
    metric(source!(shell.segments_begun), "whimbrel_segments_begun", None, "Segments of the log begun to be written"),
    metric(source!(shell.segments_made), "whimbrel_segments_made", None, "Segments made ahead, new ones and used ones"),
    metric(
        source!(shell.segments_reused),
        "whimbrel_segments_reused",
        None,
        "Of these, those asked to be made of a file that nobody needs any more",
    ),
    metric(
        source!(shell.cold_reads),
        "whimbrel_cold_reads",
        None,
        "Segments to be read in before something in them goes out",
    ),
    metric(source!(ring.enters), "whimbrel_ring_enters", None, "System calls to the ring"),
    metric(source!(ring.completions), "whimbrel_ring_completions", None, "Completions of the ring"),
    metric(source!(ring.sends), "whimbrel_ring_sends", None, "Sends asked of the ring"),
    metric(source!(ring.vectored), "whimbrel_ring_sends_vectored", None, "Of these, sends in pieces"),
    metric(source!(ring.receives), "whimbrel_ring_receives_armed", None, "Receives armed, each for many"),
];

/// What goes up and down.
pub(super) const GAUGES: &[Metric] = &[
    metric(source!(now.connections), "whimbrel_connections", None, "Connections open"),
    metric(source!(now.waiting), "whimbrel_messages_waiting", None, "Messages that wait in inboxes"),
    metric(
        source!(now.log_bytes),
        "whimbrel_log_size",
        Some(Unit::Bytes),
        "Size of the log's segments, spare ones too",
    ),
    metric(
        source!(now.warm_bytes),
        "whimbrel_log_warm",
        Some(Unit::Bytes),
        "Size of those that are closed and taken to be in memory; above storage.warm_bytes they are read in again",
    ),
    metric(
        source!(now.leftovers),
        "whimbrel_log_leftovers",
        None,
        "Files of the log that nobody needs and that are not removed yet; one that stays is reason to look at the server's log",
    ),
];

/// Partitions, by what they do.
pub(super) const PARTITIONS: &[(&str, Source)] =
    &[("starting", source!(now.starting)), ("serving", source!(now.serving)), ("repair", source!(now.in_repair))];

/// What was dropped, and why.
pub(super) const DROPS: &[(&str, Source)] = &[
    ("lane_backlog_full", source!(core.lane_dropped)),
    ("connection_gone", source!(core.answers_unclaimed)),
    ("accept_failed", source!(shell.accept_failed)),
    ("move_failed", source!(shell.move_failed)),
];

/// What was dropped, by reason.
pub(super) fn drops(snapshot: &Snapshot) -> impl Iterator<Item = (&'static str, u64)> {
    DROPS.iter().map(|(reason, source)| (*reason, (source.get)(snapshot)))
}

/// The text for what the shards have published.
pub(super) fn encode(node: &Node, snapshots: Vec<Snapshot>) -> String {
    let mut registry = Registry::default();
    registry.register_collector(Box::new(Scrape {
        uptime: node.uptime(),
        segment_size: node.about.segment_size,
        snapshots,
    }));
    let mut out = String::new();
    text::encode(&mut out, &registry).expect("a string takes what is written to it");
    out
}

/// What one answer is made of.
pub(super) struct Scrape {
    pub(super) uptime: Duration,
    pub(super) segment_size: u32,
    pub(super) snapshots: Vec<Snapshot>,
}

impl fmt::Debug for Scrape {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Scrape").finish_non_exhaustive()
    }
}

impl Collector for Scrape {
    fn encode(&self, mut encoder: DescriptorEncoder<'_>) -> fmt::Result {
        self.node(&mut encoder)?;
        for metric in COUNTERS {
            self.each(&mut encoder, metric, MetricType::Counter)?;
        }
        for metric in GAUGES {
            self.each(&mut encoder, metric, MetricType::Gauge)?;
        }
        self.shards(&mut encoder)?;
        self.reasons(&mut encoder)?;
        self.turns(&mut encoder)
    }
}

impl Scrape {
    fn node(&self, encoder: &mut DescriptorEncoder<'_>) -> fmt::Result {
        let help = "The program that runs";
        let mut build = encoder.encode_descriptor("whimbrel_build", help, None, MetricType::Info)?;
        build.encode_info(&[("version", env!("CARGO_PKG_VERSION")), ("commit", env!("WHIMBREL_COMMIT"))])?;
        let help = "Since the start of the process";
        let mut uptime = encoder.encode_descriptor("whimbrel_uptime", help, Some(&Unit::Seconds), MetricType::Gauge)?;
        uptime.encode_gauge(&self.uptime.as_secs_f64())
    }

    /// The snapshots and the label of their shard.
    fn by_shard(&self) -> impl Iterator<Item = ([(&'static str, u64); 1], &Snapshot)> {
        (0..).map(|shard| [("shard", shard)]).zip(&self.snapshots)
    }

    fn each(&self, encoder: &mut DescriptorEncoder<'_>, metric: &Metric, kind: MetricType) -> fmt::Result {
        let Metric { source, name, unit, help } = metric;
        let mut family = encoder.encode_descriptor(name, help, unit.as_ref(), kind)?;
        for (shard, snapshot) in self.by_shard() {
            let value = (source.get)(snapshot);
            let mut of_shard = family.encode_family(&shard)?;
            match kind {
                MetricType::Counter => of_shard.encode_counter::<NoLabelSet, _, f64>(&value, None)?,
                _ => of_shard.encode_gauge(&(value as f64))?,
            }
        }
        Ok(())
    }

    fn shards(&self, encoder: &mut DescriptorEncoder<'_>) -> fmt::Result {
        self.gauge(encoder, "whimbrel_log_segments", None, "Segments of the log, spare ones too", |it| {
            (it.now.log_bytes / u64::from(self.segment_size)) as f64
        })?;
        self.gauge(encoder, "whimbrel_accepting", None, "1 if the shard accepts connections", |it| {
            f64::from(u8::from(it.stage == Stage::Accepting))
        })?;
        let help = "Partitions of the shard; those in repair are damaged and refuse, and any is reason to act";
        let mut family = encoder.encode_descriptor("whimbrel_partitions", help, None, MetricType::Gauge)?;
        for (shard, snapshot) in self.by_shard() {
            for (state, source) in PARTITIONS {
                let labels = (shard, [("state", *state)]);
                family.encode_family(&labels)?.encode_gauge(&((source.get)(snapshot) as f64))?;
            }
        }
        let help = "Since the shard last published; more than a second or two means that it hangs";
        self.gauge(encoder, "whimbrel_shard_age", Some(&Unit::Seconds), help, |it| it.at.elapsed().as_secs_f64())
    }

    fn gauge(
        &self,
        encoder: &mut DescriptorEncoder<'_>,
        name: &str,
        unit: Option<&Unit>,
        help: &str,
        get: impl Fn(&Snapshot) -> f64,
    ) -> fmt::Result {
        let mut family = encoder.encode_descriptor(name, help, unit, MetricType::Gauge)?;
        for (shard, snapshot) in self.by_shard() {
            family.encode_family(&shard)?.encode_gauge(&get(snapshot))?;
        }
        Ok(())
    }

    /// What has a reason: every one that there is, so that none appears only when it is too late to compare.
    fn reasons(&self, encoder: &mut DescriptorEncoder<'_>) -> fmt::Result {
        let help = "Refusals, by the name of their number in wire/PROTOCOL.md";
        let mut family = encoder.encode_descriptor("whimbrel_refused", help, None, MetricType::Counter)?;
        for (shard, snapshot) in self.by_shard() {
            for code in Code::ALL {
                reason(&mut family, shard, code.name(), snapshot.core.refused_for(*code))?;
            }
        }
        let help = "What was dropped; all of it is asked for or sent again";
        let mut family = encoder.encode_descriptor("whimbrel_dropped", help, None, MetricType::Counter)?;
        for (shard, snapshot) in self.by_shard() {
            for (why, count) in drops(snapshot) {
                reason(&mut family, shard, why, count)?;
            }
        }
        Ok(())
    }

    fn turns(&self, encoder: &mut DescriptorEncoder<'_>) -> fmt::Result {
        let wall: fn(&Snapshot) -> Option<&Histogram<u64>> = |it| Some(&it.turns.wall);
        let own: fn(&Snapshot) -> Option<&Histogram<u64>> = |it| it.turns.own.as_ref();
        let chores: fn(&Snapshot) -> Option<&Histogram<u64>> = |it| Some(&it.turns.chores);
        let kinds = [
            (wall, "whimbrel_turn", "whimbrel_turn_quantile", "Length of turns"),
            (own, "whimbrel_turn_own", "whimbrel_turn_own_quantile", "Length of turns less the time without a core"),
            (
                chores,
                "whimbrel_turn_chores",
                "whimbrel_turn_chores_quantile",
                "What of the length of turns the log's chores took",
            ),
        ];
        for (lengths, name, quantile_name, help) in kinds {
            let mut family = encoder.encode_descriptor(name, help, Some(&Unit::Seconds), MetricType::Histogram)?;
            for (shard, snapshot) in self.by_shard() {
                if let Some(lengths) = lengths(snapshot) {
                    histogram(&mut family.encode_family(&shard)?, lengths)?;
                }
            }
            let help = format!("{help}: quantiles since the start, 1 is the longest");
            let mut family =
                encoder.encode_descriptor(quantile_name, &help, Some(&Unit::Seconds), MetricType::Gauge)?;
            for ([shard], snapshot) in self.by_shard() {
                let shard = (shard.0, shard.1.to_string());
                for (label, quantile) in lengths(snapshot).into_iter().flat_map(|_| QUANTILES) {
                    let value = lengths(snapshot).map_or(0, |it| it.value_at_quantile(quantile));
                    let labels = [shard.clone(), ("quantile", label.to_owned())];
                    family.encode_family(&labels)?.encode_gauge(&seconds(value))?;
                }
            }
        }
        self.long_turns(encoder)
    }

    fn long_turns(&self, encoder: &mut DescriptorEncoder<'_>) -> fmt::Result {
        let help = "Turns above a millisecond, less the time without a core, by what of the log's chores was in them";
        let mut family = encoder.encode_descriptor("whimbrel_turns_long", help, None, MetricType::Counter)?;
        for (shard, snapshot) in self.by_shard() {
            let long = &snapshot.turns.long;
            let with = Chore::ALL.iter().zip(long.with).map(|((_, name), count)| (*name, count));
            for (name, count) in [("none", long.none)].into_iter().chain(with) {
                family.encode_family(&(shard, [("with", name)]))?.encode_counter::<NoLabelSet, _, f64>(&count, None)?;
            }
        }
        Ok(())
    }
}

fn reason(family: &mut MetricEncoder<'_>, shard: [(&'static str, u64); 1], why: &str, count: u64) -> fmt::Result {
    family.encode_family(&(shard, [("reason", why)]))?.encode_counter::<NoLabelSet, _, f64>(&count, None)
}

/// Each bucket has what the one before it has not; lengths that the histogram takes for one go into the same.
fn histogram(encoder: &mut MetricEncoder<'_>, lengths: &Histogram<u64>) -> fmt::Result {
    let mut below = 0;
    let mut buckets: Vec<(f64, u64)> = Vec::with_capacity(BOUNDS_US.len() + 1);
    for bound_us in BOUNDS_US {
        let up_to = lengths.count_between(0, bound_us);
        buckets.push((seconds(bound_us), up_to - below));
        below = up_to;
    }
    buckets.push((f64::MAX, lengths.len() - below));
    let sum_us: f64 =
        lengths.iter_recorded().map(|it| it.count_at_value() as f64 * it.value_iterated_to() as f64).sum();
    encoder.encode_histogram::<NoLabelSet>(sum_us / 1e6, lengths.len(), &buckets, None)
}

fn seconds(us: u64) -> f64 {
    us as f64 / 1e6
}

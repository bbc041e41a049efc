//! What a run says, in JSON and in words. `bench/README.md` documents each field.

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::time::Duration;

use serde::{Deserialize, Serialize};

use crate::stats::{Percentiles, median};
use crate::stops::Span;

/// The schema of [`Report`].
pub(crate) const SCHEMA: &str = "whimbrel-bench/1";

/// A field that the scenario does not measure is null.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Report {
    pub(crate) schema: String,
    pub(crate) scenario: String,
    pub(crate) delivered: Option<u64>,
    pub(crate) delivered_per_s: Option<f64>,
    pub(crate) server_cpu_ns_per_delivered: Option<f64>,
    pub(crate) floor_cpu_ns_per_delivered: Option<f64>,
    pub(crate) ratio_to_floor: Option<f64>,
    pub(crate) ratio_to_one_shard: Option<f64>,
    pub(crate) latency_us: Option<Percentiles>,
    pub(crate) ack_latency_us: Option<Percentiles>,
    pub(crate) lost: Option<u64>,
    pub(crate) duplicated: Option<u64>,
    pub(crate) reordered: Option<u64>,
    pub(crate) user_bytes_per_connection: Option<f64>,
    pub(crate) kernel_bytes_per_connection: Option<f64>,
    pub(crate) syscalls_per_delivered: Option<f64>,
    pub(crate) disk_flush_us: Option<Percentiles>,
    /// `acks`: p99 of `Sent` at half load over the disk's own, median of the rounds.
    pub(crate) ack_ratio_to_flush: Option<f64>,
    /// `acks`: p99 of `Sent` over that of a raw server that flushes each batch, at the same pace, median of the rounds.
    pub(crate) ack_ratio_to_raw: Option<f64>,
    /// `recovery`: time from the start of the server until it serves over the time to read what it reads, medians.
    pub(crate) recovery_ratio_to_read: Option<f64>,
    /// `recovery`: the same time over that to read as much by a thread for each shard while as much CPU time is used, medians.
    pub(crate) recovery_ratio_to_floor: Option<f64>,
    /// `recovery`: milliseconds from the start until it serves after a clean shutdown.
    pub(crate) clean_open_ms: Option<f64>,
    /// `stall`: turns of the shard less the time without a core, in microseconds.
    pub(crate) turn_own_us: Option<Turns>,
    pub(crate) env: Environment,
    pub(crate) detail: Detail,
}

/// Lengths of turns in microseconds.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub(crate) struct Turns {
    pub(crate) count: u64,
    pub(crate) p50: f64,
    pub(crate) p999: f64,
    pub(crate) p99999: f64,
    pub(crate) max: f64,
}

/// See [`crate::stops`].
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub(crate) struct MachineStops {
    pub(crate) count: usize,
    pub(crate) share: f64,
    pub(crate) longest_ms: f64,
}

impl MachineStops {
    /// Of these in so much time.
    pub(crate) fn of(stops: &[Span], time: Duration) -> MachineStops {
        let lengths = stops.iter().map(|(from, to)| (to - from) as f64 / 1e6);
        MachineStops {
            count: stops.len(),
            share: lengths.clone().sum::<f64>() / time.as_secs_f64(),
            longest_ms: lengths.fold(0.0, f64::max) * 1e3,
        }
    }
}

/// On what it was measured.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub(crate) struct Environment {
    pub(crate) kernel: String,
    pub(crate) cpu: String,
    pub(crate) cores: usize,
    pub(crate) commit: String,
    /// The scenario, and the command lines of the servers.
    pub(crate) settings: BTreeMap<String, serde_json::Value>,
}

/// What helps to judge the figures above; may change without a new schema.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub(crate) struct Detail {
    /// CPU for one echo of the floor's ring over that of glommio's `TcpStream`.
    pub(crate) floor_echo_cpu_ns: Option<f64>,
    pub(crate) glommio_echo_cpu_ns: Option<f64>,
    /// CPU for each message, by round.
    pub(crate) floor_rounds_ns: Vec<f64>,
    pub(crate) server_rounds_ns: Vec<f64>,
    /// Of the server that is compared: one shard in `lanes`, more pairs in `pairs100`.
    pub(crate) compared_rounds_ns: Vec<f64>,
    pub(crate) ratio_of_more_pairs: Option<f64>,
    /// The floor on as many connections as more pairs have, and its ratio to the floor on few.
    pub(crate) floor_of_more_rounds_ns: Vec<f64>,
    pub(crate) floor_ratio_of_more_pairs: Option<f64>,
    /// Cores kept busy, and the share of its core that the load kept busy, over the server's rounds.
    pub(crate) server_busy: Option<f64>,
    pub(crate) generator_busy: Option<f64>,
    /// Share of the machine that others on the same hardware took.
    pub(crate) steal_share: f64,
    /// Share of the machine that other processes took.
    pub(crate) others_share: f64,
    /// Sends that were refused for the moment and sent again.
    pub(crate) refused: u64,
    /// CPU seconds of the server's threads that live, by name.
    pub(crate) server_threads_cpu_s: BTreeMap<String, f64>,
    pub(crate) syscalls_by_name: BTreeMap<String, u64>,
    /// `acks`: by round, and what the closed loop did.
    pub(crate) ack_ratio_rounds: Vec<f64>,
    pub(crate) ack_ratio_to_raw_rounds: Vec<f64>,
    /// `acks`: p99 of the raw server's answers over the disk's own, median of the rounds: what no server avoids here.
    pub(crate) raw_ratio_to_flush: Option<f64>,
    /// `acks`: times of a millisecond and more in which the load, which never sleeps, had no core.
    pub(crate) load_stalls_per_s: Option<f64>,
    pub(crate) load_stalled_share: Option<f64>,
    pub(crate) load_stall_max_ms: Option<f64>,
    /// `acks`: of the raw server, its answers and its CPU for each message by round.
    pub(crate) raw_ack_latency_us: Option<Percentiles>,
    pub(crate) raw_rounds_ns: Vec<f64>,
    pub(crate) full_load_per_s: Option<f64>,
    /// `recovery`: by round.
    pub(crate) recovery_rounds_ms: Vec<f64>,
    pub(crate) read_rounds_ms: Vec<f64>,
    pub(crate) recovery_cpu_rounds_ms: Vec<f64>,
    /// Of what the starts are compared with, and the share of the machine that its host took meanwhile, median.
    pub(crate) recovery_floor_rounds_ms: Vec<f64>,
    pub(crate) recovery_floor_steal_share: Option<f64>,
    pub(crate) clean_open_rounds_ms: Vec<f64>,
    /// Bytes that were read, and of all segments.
    pub(crate) read_bytes: Option<u64>,
    pub(crate) log_bytes: Option<u64>,
    /// `stall`: what went on meanwhile, by its name.
    pub(crate) chores: BTreeMap<String, u64>,
    /// `stall`: turns above a millisecond, by what was in them.
    pub(crate) long_turns: BTreeMap<String, u64>,
    /// `stall`: what of each turn the log's chores took, of most of them nothing; and the same without the machine's stops.
    pub(crate) turn_chores_us: Option<Turns>,
    pub(crate) turn_chores_running_p99999_us: Option<f64>,
    pub(crate) turn_chores_running_max_us: Option<f64>,
    /// `stall`, `acks`: times of a millisecond and more in which the whole machine stood still.
    pub(crate) machine_stops: Option<MachineStops>,
    /// `stall`: the turns above a millisecond without what of them lay in such times.
    pub(crate) long_turns_running: BTreeMap<String, u64>,
    pub(crate) turn_running_p99999_us: Option<f64>,
    pub(crate) turn_running_max_us: Option<f64>,
}

impl Report {
    /// With nothing measured yet.
    pub(crate) fn new(scenario: &str, env: Environment) -> Report {
        Report {
            schema: SCHEMA.to_owned(),
            scenario: scenario.to_owned(),
            delivered: None,
            delivered_per_s: None,
            server_cpu_ns_per_delivered: None,
            floor_cpu_ns_per_delivered: None,
            ratio_to_floor: None,
            ratio_to_one_shard: None,
            latency_us: None,
            ack_latency_us: None,
            lost: None,
            duplicated: None,
            reordered: None,
            user_bytes_per_connection: None,
            kernel_bytes_per_connection: None,
            syscalls_per_delivered: None,
            disk_flush_us: None,
            ack_ratio_to_flush: None,
            ack_ratio_to_raw: None,
            recovery_ratio_to_read: None,
            recovery_ratio_to_floor: None,
            clean_open_ms: None,
            turn_own_us: None,
            env,
            detail: Detail::default(),
        }
    }

    /// For a person.
    pub(crate) fn text(&self) -> String {
        let mut out = format!("{} at {}\n", self.scenario, self.env.commit);
        let mut line = |name: &str, value: Option<String>| {
            if let Some(value) = value {
                // Writing to a string does not fail.
                let _ = writeln!(out, "  {name:<28} {value}");
            }
        };
        let number = |value: Option<f64>, digits: usize| value.map(|v| format!("{v:.digits$}"));
        let times = |p: Option<Percentiles>| {
            p.map(|p| format!("p50 {:.0}  p99 {:.0}  p99.9 {:.0}  max {:.0}", p.p50, p.p99, p.p999, p.max))
        };
        line("delivered", self.delivered.map(|n| n.to_string()));
        line("delivered per s", number(self.delivered_per_s, 0));
        line("server CPU ns per delivered", number(self.server_cpu_ns_per_delivered, 0));
        line("floor CPU ns per delivered", number(self.floor_cpu_ns_per_delivered, 0));
        line("ratio to floor", number(self.ratio_to_floor, 3));
        line("ratio to one shard", number(self.ratio_to_one_shard, 3));
        line("ratio of more pairs", number(self.detail.ratio_of_more_pairs, 3));
        line("ratio of more pairs, floor", number(self.detail.floor_ratio_of_more_pairs, 3));
        line("latency µs", times(self.latency_us));
        line("ack latency µs", times(self.ack_latency_us));
        line("disk flush µs", times(self.disk_flush_us));
        line("full load per s", number(self.detail.full_load_per_s, 0));
        line("ack p99 to flush p99", number(self.ack_ratio_to_flush, 2));
        line("raw server's ack latency µs", times(self.detail.raw_ack_latency_us));
        line("raw server CPU ns each", number(median_of(&self.detail.raw_rounds_ns), 0));
        line("raw server's p99 to flush p99", number(self.detail.raw_ratio_to_flush, 2));
        let stalls =
            self.detail.load_stalls_per_s.zip(self.detail.load_stalled_share).zip(self.detail.load_stall_max_ms);
        let stalls = stalls.map(|((each_s, share), max)| {
            format!("{each_s:.0} a second, {:.1} % of the time, at most {max:.0} ms", share * 100.0)
        });
        line("stalls of the load's core", stalls);
        line("ack p99 to raw server's", number(self.ack_ratio_to_raw, 2));
        line("recovery ms, median", number(median_of(&self.detail.recovery_rounds_ms), 0));
        line("reading alone ms, median", number(median_of(&self.detail.read_rounds_ms), 0));
        line("CPU ms of a start, median", number(median_of(&self.detail.recovery_cpu_rounds_ms), 0));
        line("recovery to reading", number(self.recovery_ratio_to_read, 2));
        line("reading and that CPU ms", number(median_of(&self.detail.recovery_floor_rounds_ms), 0));
        let percent = |share: Option<f64>| share.map(|share| format!("{:.0} %", share * 100.0));
        line("of it taken by the host", percent(self.detail.recovery_floor_steal_share));
        line("recovery to reading and CPU", number(self.recovery_ratio_to_floor, 2));
        line("clean open ms", number(self.clean_open_ms, 0));
        line("turns", self.turn_own_us.map(|it| it.count.to_string()));
        let turns = |turns: Option<Turns>| {
            turns.map(|it| {
                format!("p50 {:.0}  p99.9 {:.0}  p99.999 {:.0}  max {:.0}", it.p50, it.p999, it.p99999, it.max)
            })
        };
        line("own time of a turn µs", turns(self.turn_own_us));
        line("of it for chores µs", turns(self.detail.turn_chores_us));
        line("meanwhile", named(&self.detail.chores));
        line("turns above 1 ms", self.turn_own_us.map(|_| named(&self.detail.long_turns).unwrap_or("none".into())));
        let stops = self
            .detail
            .machine_stops
            .map(|it| format!("{}, {:.1} % of the time, at most {:.1} ms", it.count, it.share * 100.0, it.longest_ms));
        line("stops of the machine", stops);
        let running = self.detail.turn_running_p99999_us.zip(self.detail.turn_running_max_us);
        let tail = |tail: (f64, f64)| format!("p99.999 {:.0}  max {:.0}", tail.0, tail.1);
        line("turns without those µs", running.map(tail));
        let chores = self.detail.turn_chores_running_p99999_us.zip(self.detail.turn_chores_running_max_us);
        line("chores without those µs", chores.map(tail));
        let above = running.map(|_| named(&self.detail.long_turns_running).unwrap_or("none".into()));
        line("of those above 1 ms", above);
        line("lost, duplicated, reordered", self.promises());
        line("user bytes per connection", number(self.user_bytes_per_connection, 0));
        line("kernel bytes per connection", number(self.kernel_bytes_per_connection, 0));
        line("system calls per delivered", number(self.syscalls_per_delivered, 3));
        out
    }

    fn promises(&self) -> Option<String> {
        Some(format!("{}, {}, {}", self.lost?, self.duplicated?, self.reordered?))
    }
}

fn median_of(values: &[f64]) -> Option<f64> {
    (!values.is_empty()).then(|| median(values))
}

/// Counts with their names.
fn named(counts: &BTreeMap<String, u64>) -> Option<String> {
    let each = counts.iter().filter(|(_, count)| **count > 0).map(|(name, count)| format!("{count} {name}"));
    let all = each.collect::<Vec<_>>().join(", ");
    (!all.is_empty()).then_some(all)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Programs read these: a change is a new schema.
    #[test]
    fn the_fields_of_the_schema() {
        let report = Report::new("pairs", Environment::default());
        let json = serde_json::to_value(&report).unwrap();
        let fields: Vec<&str> = json.as_object().unwrap().keys().map(String::as_str).collect();
        let mut expected = [
            "schema",
            "scenario",
            "delivered",
            "delivered_per_s",
            "server_cpu_ns_per_delivered",
            "floor_cpu_ns_per_delivered",
            "ratio_to_floor",
            "ratio_to_one_shard",
            "latency_us",
            "ack_latency_us",
            "lost",
            "duplicated",
            "reordered",
            "user_bytes_per_connection",
            "kernel_bytes_per_connection",
            "syscalls_per_delivered",
            "disk_flush_us",
            "ack_ratio_to_flush",
            "ack_ratio_to_raw",
            "recovery_ratio_to_read",
            "recovery_ratio_to_floor",
            "clean_open_ms",
            "turn_own_us",
            "env",
            "detail",
        ];
        expected.sort_unstable();
        let mut sorted = fields.clone();
        sorted.sort_unstable();
        assert_eq!(sorted, expected);
        assert_eq!(json["schema"], "whimbrel-bench/1");
        let env: Vec<&str> = json["env"].as_object().unwrap().keys().map(String::as_str).collect();
        assert!(["kernel", "cpu", "cores", "commit", "settings"].iter().all(|name| env.contains(name)));
    }

    #[test]
    fn stops_have_a_share_of_the_time() {
        let stops = MachineStops::of(&[(5_000, 6_000), (7_000, 10_000)], Duration::from_millis(100));
        assert!((stops.share - 0.04).abs() < 1e-9, "{stops:?}");
        assert_eq!((stops.count, stops.longest_ms), (2, 3.0));
        assert_eq!(
            MachineStops::of(&[], Duration::from_secs(1)),
            MachineStops { count: 0, share: 0.0, longest_ms: 0.0 }
        );
    }

    #[test]
    fn what_is_written_can_be_read() {
        let mut report = Report::new("pairs", Environment::default());
        report.latency_us = Some(Percentiles { p50: 1.0, p99: 2.0, p999: 3.0, max: 4.0 });
        report.lost = Some(0);
        let text = serde_json::to_string(&report).unwrap();
        assert!(text.contains(r#""latency_us":{"p50":1.0,"p99":2.0,"p999":3.0,"max":4.0}"#), "{text}");
        assert_eq!(serde_json::from_str::<Report>(&text).unwrap(), report);
    }

    #[test]
    fn every_field_is_documented() {
        let readme = include_str!("../README.md");
        let report = serde_json::to_value(Report::new("pairs", Environment::default())).unwrap();
        for part in [&report, &report["env"], &report["detail"]] {
            for field in part.as_object().unwrap().keys() {
                assert!(readme.contains(&format!("`{field}`")), "README.md does not name `{field}`");
            }
        }
    }

    #[test]
    fn people_see_what_was_measured_only() {
        let mut report = Report::new("idle", Environment::default());
        report.user_bytes_per_connection = Some(812.4);
        assert_eq!(report.text(), "idle at \n  user bytes per connection    812\n");
    }
}

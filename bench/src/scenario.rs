//! Scenario files.

use std::collections::BTreeMap;
use std::path::Path;

use anyhow::{Context, bail};
use serde::{Deserialize, Serialize};
use whimbrel_wire::limits::PAYLOAD_MAX_BYTES;

use crate::load::{IN_FLIGHT_MAX, STAMP_BYTES};

/// What is to be measured. `bench/README.md` describes each key.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Scenario {
    /// Stands in the report.
    pub(crate) name: String,
    pub(crate) kind: Kind,
    /// Pairs of users, each with a connection; one side of each sends.
    #[serde(default)]
    pub(crate) pairs: u32,
    /// Messages that each sender keeps in flight.
    #[serde(default = "one")]
    pub(crate) in_flight: u32,
    #[serde(default = "payload_bytes")]
    pub(crate) payload_bytes: usize,
    /// Times that floor and server alternate.
    #[serde(default = "rounds")]
    pub(crate) rounds: u32,
    /// Measured seconds of each.
    #[serde(default = "round_seconds")]
    pub(crate) round_seconds: f64,
    /// `pairs`: alternate with a second server that has so many pairs, and report what a message costs there by comparison.
    #[serde(default)]
    pub(crate) more_pairs: Option<u32>,
    /// Cores of the server, as `whimbrel serve --cpus` takes them.
    #[serde(default = "server_cpus")]
    pub(crate) server_cpus: String,
    /// Environment of the server. What is not named is as `serve --dev` has it.
    #[serde(default = "environment")]
    pub(crate) environment: BTreeMap<String, String>,
    /// `drain`: devices that were away, and messages that wait for each.
    #[serde(default)]
    pub(crate) devices: u32,
    #[serde(default)]
    pub(crate) messages: u32,
    /// `recovery`: MiB of the log, half of which is behind the newest checkpoint.
    #[serde(default)]
    pub(crate) log_mib: u32,
    /// `recovery`: shards of the server.
    #[serde(default = "one_shard")]
    pub(crate) shards: u16,
    /// `acks`: the share of full load at which answers are timed.
    #[serde(default = "half")]
    pub(crate) load_share: f64,
    /// `stall`: messages a second, all pairs together.
    #[serde(default)]
    pub(crate) per_s: f64,
    /// `idle`: connections that are held.
    #[serde(default)]
    pub(crate) connections: u32,
}

/// Of what kind a scenario is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub(crate) enum Kind {
    /// Pairs on a server of one shard.
    Pairs,
    /// Pairs whose two users live on different shards of two, and the same pairs on one shard.
    Lanes,
    /// Devices that come back and take what has waited for them.
    Drain,
    /// Connections that log in and do nothing.
    Idle,
    /// Answers at half load against the disk's own flushes.
    Acks,
    /// Starts after a crash against reading alone, and starts after a clean shutdown.
    Recovery,
    /// Turns while the log's chores go on.
    Stall,
}

fn one() -> u32 {
    1
}

fn one_shard() -> u16 {
    1
}

fn half() -> f64 {
    0.5
}

fn payload_bytes() -> usize {
    128
}

fn rounds() -> u32 {
    5
}

fn round_seconds() -> f64 {
    3.0
}

/// Segments as in production: those of a development server are so small that making them would be measured.
fn environment() -> BTreeMap<String, String> {
    BTreeMap::from([("WHIMBREL_SEGMENT_SIZE".to_owned(), "64MiB".to_owned())])
}

fn server_cpus() -> String {
    "0".to_owned()
}

impl Scenario {
    /// From a file.
    pub(crate) fn read(path: &Path) -> anyhow::Result<Scenario> {
        let text = std::fs::read_to_string(path).with_context(|| format!("read the scenario {}", path.display()))?;
        Self::parse(&text).with_context(|| format!("scenario {}", path.display()))
    }

    fn parse(text: &str) -> anyhow::Result<Scenario> {
        let scenario: Scenario = toml::from_str(text)?;
        scenario.check()?;
        Ok(scenario)
    }

    /// With this many measured seconds of the server instead of the file's.
    pub(crate) fn lasting(mut self, seconds: Option<f64>) -> anyhow::Result<Scenario> {
        if let Some(seconds) = seconds {
            self.round_seconds = seconds / f64::from(self.rounds);
            self.check()?;
        }
        Ok(self)
    }

    /// Connections of the load at its largest.
    pub(crate) fn connections_max(&self) -> u32 {
        match self.kind {
            Kind::Pairs | Kind::Lanes => 2 * self.pairs.max(self.more_pairs.unwrap_or(0)),
            Kind::Acks => 2 * self.pairs,
            Kind::Recovery | Kind::Stall => 2 * self.pairs + 2 * self.devices,
            Kind::Drain => 2 * self.devices,
            Kind::Idle => self.connections,
        }
    }

    fn check(&self) -> anyhow::Result<()> {
        let positive = |name: &str, value: u32| match value {
            0 => Err(anyhow::anyhow!("`{name}` must be at least 1")),
            _ => Ok(()),
        };
        match self.kind {
            Kind::Pairs | Kind::Lanes | Kind::Acks => positive("pairs", self.pairs)?,
            Kind::Recovery => {
                positive("pairs", self.pairs)?;
                positive("devices", self.devices)?;
                positive("log_mib", self.log_mib)?;
                positive("shards", self.shards.into())?;
            }
            Kind::Stall => {
                positive("pairs", self.pairs)?;
                positive("devices", self.devices)?;
                positive("messages", self.messages)?;
                if !(self.per_s.is_finite() && (1.0..=1e6).contains(&self.per_s)) {
                    bail!("`per_s` is from 1 to a million messages a second");
                }
            }
            Kind::Drain => {
                positive("devices", self.devices)?;
                positive("messages", self.messages)?;
            }
            Kind::Idle => positive("connections", self.connections)?,
        }
        if !(self.load_share > 0.0 && self.load_share <= 1.0) {
            bail!("`load_share` is above 0 and at most 1");
        }
        positive("rounds", self.rounds)?;
        if self.more_pairs.is_some() && self.kind != Kind::Pairs {
            bail!("`more_pairs` is only for kind = \"pairs\"");
        }
        if !(1..=IN_FLIGHT_MAX).contains(&self.in_flight) {
            bail!("`in_flight` is from 1 to {IN_FLIGHT_MAX}");
        }
        if !(STAMP_BYTES..=PAYLOAD_MAX_BYTES).contains(&self.payload_bytes) {
            bail!("`payload_bytes` is from {STAMP_BYTES} to {PAYLOAD_MAX_BYTES}");
        }
        if !(self.round_seconds.is_finite() && self.round_seconds > 0.0 && self.round_seconds <= 3600.0) {
            bail!("a round is longer than nothing and at most an hour");
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_scenarios_here_are_good() {
        let directory = Path::new(env!("CARGO_MANIFEST_DIR")).join("scenarios");
        let mut names = Vec::new();
        for file in std::fs::read_dir(directory).unwrap() {
            let path = file.unwrap().path();
            let scenario = Scenario::read(&path).unwrap();
            assert_eq!(Some(scenario.name.as_str()), path.file_stem().and_then(|stem| stem.to_str()));
            names.push(scenario.name);
        }
        names.sort();
        assert_eq!(names, ["acks", "drain", "idle", "lanes", "pairs", "pairs100", "pairs16", "recovery", "stall"]);
    }

    #[test]
    fn what_is_left_out_has_a_default() {
        let scenario = Scenario::parse("name = 'p'\nkind = 'pairs'\npairs = 7").unwrap();
        assert_eq!((scenario.in_flight, scenario.payload_bytes, scenario.rounds), (1, 128, 5));
        assert_eq!(scenario.connections_max(), 14);
        let longer = scenario.lasting(Some(30.0)).unwrap();
        assert_eq!(longer.round_seconds, 6.0);
        assert!(longer.lasting(Some(0.0)).is_err());
    }

    #[test]
    fn what_is_wrong_is_named() {
        for (text, named) in [
            ("name = 'p'\nkind = 'pairs'", "`pairs`"),
            ("name = 'p'\nkind = 'idle'", "`connections`"),
            ("name = 'p'\nkind = 'drain'\nmessages = 1", "`devices`"),
            ("name = 'p'\nkind = 'drain'\ndevices = 1", "`messages`"),
            ("name = 'p'\nkind = 'pairs'\npairs = 1\nin_flight = 65", "`in_flight`"),
            ("name = 'p'\nkind = 'pairs'\npairs = 1\npayload_bytes = 8", "`payload_bytes`"),
            ("name = 'p'\nkind = 'pairs'\npairs = 1\ninflight = 1", "inflight"),
            ("name = 'p'\nkind = 'lanes'\npairs = 1\nmore_pairs = 2", "`more_pairs`"),
            ("name = 'p'\nkind = 'acks'\npairs = 1\nload_share = 1.5", "`load_share`"),
            ("name = 'p'\nkind = 'recovery'\npairs = 1\ndevices = 1", "`log_mib`"),
            ("name = 'p'\nkind = 'stall'\npairs = 1\ndevices = 1\nmessages = 1", "`per_s`"),
            ("name = 'p'\nkind = 'media'", "media"),
        ] {
            let error = format!("{:#}", Scenario::parse(text).unwrap_err());
            assert!(error.contains(named), "{error} does not name {named}");
        }
    }
}

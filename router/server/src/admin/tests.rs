//! `/metrics` and its list, as equal to what the shards count as a test can make them.

use std::collections::BTreeSet;
use std::path::Path;
use std::time::Duration;

use prometheus_client::encoding::text;
use prometheus_client::registry::Registry;
use whimbrel_wire::Code;

use super::metrics::{COUNTERS, DROPS, GAUGES, PARTITIONS, Scrape, Source};
use crate::shell::Snapshot;

/// Where the names are listed.
const LIST: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/../METRICS.md");

/// The list in [`LIST`] is between these.
const BEGIN: &str = "<!-- names, written by `UPDATE_GOLDEN=1 cargo test -p whimbrel names` -->\n";
const END: &str = "<!-- end -->\n";

fn encode(snapshots: Vec<Snapshot>) -> String {
    let mut registry = Registry::default();
    let scrape = Scrape { uptime: Duration::from_secs(3), segment_size: 4 << 20, snapshots };
    registry.register_collector(Box::new(scrape));
    let mut out = String::new();
    text::encode(&mut out, &registry).unwrap();
    out
}

/// Fields of a struct, by what it prints of itself.
fn fields(value: &impl std::fmt::Debug) -> BTreeSet<String> {
    let printed = format!("{value:?}");
    let words = printed.split([' ', '{', ',', '[']);
    words.filter_map(|word| word.strip_suffix(':')).map(str::to_owned).collect()
}

fn sources() -> impl Iterator<Item = &'static Source> {
    let metrics = COUNTERS.iter().chain(GAUGES).map(|metric| &metric.source);
    metrics.chain(DROPS.iter().chain(PARTITIONS).map(|(_, source)| source))
}

#[test]
fn fields_are_found() {
    #[derive(Debug)]
    #[expect(dead_code, reason = "it is only printed")]
    struct Some {
        first: u64,
        second: [u64; 2],
        last: u64,
    }
    let found = fields(&Some { first: 1, second: [2, 3], last: 4 });
    assert_eq!(found.into_iter().collect::<Vec<_>>(), ["first", "last", "second"]);
}

#[test]
fn everything_that_is_counted_has_a_name() {
    let snapshot = Snapshot::before_the_first_turn();
    let parts = [
        ("core", fields(&snapshot.core)),
        ("shell", fields(&snapshot.shell)),
        ("ring", fields(&snapshot.ring)),
        ("now", fields(&snapshot.now)),
    ];
    for (part, mut counted) in parts {
        // It has a label for each reason instead.
        counted.remove("refused");
        let named: Vec<&str> = sources().filter(|source| source.part == part).map(|source| source.field).collect();
        let once: BTreeSet<String> = named.iter().map(|field| (*field).to_owned()).collect();
        assert_eq!(once.len(), named.len(), "a number of `{part}` has two names");
        assert_eq!(once, counted, "numbers of `{part}` and names for them, in router/server/src/admin/metrics.rs");
    }
}

#[test]
fn each_number_goes_out_under_its_own_name() {
    let mut snapshots = vec![Snapshot::before_the_first_turn(), Snapshot::before_the_first_turn()];
    snapshots[1].core.stored = 17;
    snapshots[1].core.lane_dropped = 18;
    snapshots[1].shell.log_bytes = 19;
    snapshots[1].now.log_bytes = 8 << 20;
    snapshots[1].now.in_repair = 2;
    snapshots[1].core.refused[Code::Overloaded.index()] = 20;
    for length_us in [5, 900, 1_500, 70_000_000] {
        snapshots[1].turns.wall.saturating_record(length_us);
    }
    snapshots[1].turns.long.with[1] = 21;
    snapshots[0].turns.own = None;
    let text = encode(snapshots);
    for line in [
        "whimbrel_uptime_seconds 3.0",
        "whimbrel_messages_stored_total{shard=\"1\"} 17",
        "whimbrel_messages_stored_total{shard=\"0\"} 0",
        "whimbrel_dropped_total{shard=\"1\",reason=\"lane_backlog_full\"} 18",
        "whimbrel_log_written_bytes_total{shard=\"1\"} 19",
        "whimbrel_log_size_bytes{shard=\"1\"} 8388608.0",
        "whimbrel_log_segments{shard=\"1\"} 2.0",
        "whimbrel_partitions{shard=\"1\",state=\"repair\"} 2.0",
        "whimbrel_refused_total{shard=\"1\",reason=\"overloaded\"} 20",
        "whimbrel_accepting{shard=\"1\"} 0.0",
        "whimbrel_turn_seconds_bucket{le=\"0.00001\",shard=\"1\"} 1",
        "whimbrel_turn_seconds_bucket{le=\"0.001\",shard=\"1\"} 2",
        "whimbrel_turn_seconds_bucket{le=\"0.002\",shard=\"1\"} 3",
        "whimbrel_turn_seconds_bucket{le=\"+Inf\",shard=\"1\"} 4",
        "whimbrel_turn_seconds_count{shard=\"1\"} 4",
        "whimbrel_turn_own_seconds_count{shard=\"1\"} 0",
        "whimbrel_turns_long_total{shard=\"1\",with=\"checkpoint\"} 21",
        "whimbrel_turns_long_total{shard=\"1\",with=\"none\"} 0",
    ] {
        assert!(text.lines().any(|it| it == line), "`{line}` is not in\n{text}");
    }
    assert!(!text.contains("whimbrel_turn_own_seconds_count{shard=\"0\"}"), "what is not known is not told as 0");
    assert!(text.ends_with("# EOF\n"));
}

#[test]
fn every_reason_has_its_label() {
    let text = encode(vec![Snapshot::before_the_first_turn()]);
    let labels = |name: &str| -> BTreeSet<String> {
        let lines = text.lines().filter(|line| line.starts_with(&format!("{name}{{")));
        lines.filter_map(|line| line.split("reason=\"").nth(1)?.split('"').next()).map(str::to_owned).collect()
    };
    let codes: BTreeSet<String> = Code::ALL.iter().map(|code| code.name().to_owned()).collect();
    assert_eq!(labels("whimbrel_refused_total"), codes);
    assert_eq!(labels("whimbrel_dropped_total"), DROPS.iter().map(|(reason, _)| (*reason).to_owned()).collect());
}

#[test]
fn labels_name_shards_and_reasons_and_nobody() {
    let text = encode(vec![Snapshot::before_the_first_turn(); 3]);
    let mut keys = BTreeSet::new();
    for labels in text.lines().filter_map(|line| line.split_once('{')?.1.split_once('}')).map(|it| it.0) {
        keys.extend(labels.split(',').filter_map(|label| label.split_once('=')).map(|(key, _)| key.to_owned()));
    }
    let known = ["commit", "le", "quantile", "reason", "shard", "state", "version", "with"].map(str::to_owned);
    assert_eq!(keys, BTreeSet::from(known));
}

/// The table of names that the text has.
fn names(text: &str) -> String {
    let mut table = "| name | type | labels | |\n|---|---|---|---|\n".to_owned();
    let lines: Vec<&str> = text.lines().collect();
    for (at, line) in lines.iter().enumerate() {
        let Some((name, help)) = line.strip_prefix("# HELP ").and_then(|rest| rest.split_once(' ')) else { continue };
        let kind = lines[at + 1].rsplit(' ').next().unwrap();
        let sample = lines[at..].iter().find(|line| !line.starts_with('#')).unwrap();
        let labels: Vec<&str> = sample
            .split_once('{')
            .map(|(_, rest)| rest.split_once('}').unwrap().0)
            .into_iter()
            .flat_map(|labels| labels.split(','))
            .filter_map(|label| label.split('=').next())
            .collect();
        let name = if kind == "counter" { format!("{name}_total") } else { name.to_owned() };
        table += &format!("| `{name}` | {kind} | {} | {} |\n", labels.join(", "), help.trim_end_matches('.'));
    }
    table
}

#[test]
fn the_names_are_those_of_the_list() {
    let found = names(&encode(vec![Snapshot::before_the_first_turn()]));
    let list = std::fs::read_to_string(Path::new(LIST)).unwrap();
    let (before, rest) = list.split_once(BEGIN).expect("the list has a begin");
    let (listed, after) = rest.split_once(END).expect("the list has an end");
    if std::env::var_os("UPDATE_GOLDEN").is_some() {
        std::fs::write(Path::new(LIST), format!("{before}{BEGIN}\n{found}\n{END}{after}")).unwrap();
        return;
    }
    assert!(listed.trim() == found.trim(), "UPDATE_GOLDEN=1 writes router/METRICS.md anew\n--- found\n{found}");
}

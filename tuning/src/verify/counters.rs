//! The kernel's own counters of what went wrong: of this network namespace /proc/net/netstat, of the machine /proc/net/softnet_stat.

#![forbid(unsafe_code)]

use std::collections::BTreeMap;

use whimbrel_tune::machine::Machine;

/// Those of /proc/net/netstat that a profile may lower.
const NETSTAT: [&str; 4] = ["ListenOverflows", "ListenDrops", "TCPMemoryPressures", "TCPTimeouts"];

/// Columns of /proc/net/softnet_stat, in hexadecimal digits, one line a core.
const SOFTNET: [(usize, &str); 2] = [(1, "softnet dropped"), (2, "softnet time_squeeze")];

pub(crate) type Counters = BTreeMap<&'static str, u64>;

/// What they stand at.
pub(crate) fn read(machine: &Machine) -> Counters {
    let netstat = machine.read("/proc/net/netstat").unwrap_or_default();
    let softnet = machine.read("/proc/net/softnet_stat").unwrap_or_default();
    let mut counters = Counters::new();
    counters.extend(NETSTAT.into_iter().filter_map(|name| Some((name, netstat_value(&netstat, name)?))));
    for (column, name) in SOFTNET {
        let values = softnet.lines().filter_map(|line| line.split_whitespace().nth(column));
        counters.insert(name, values.filter_map(|text| u64::from_str_radix(text, 16).ok()).sum());
    }
    counters
}

/// A line of names, then a line of numbers.
fn netstat_value(text: &str, name: &str) -> Option<u64> {
    let lines: Vec<&str> = text.lines().collect();
    lines.chunks_exact(2).find_map(|pair| {
        let index = pair[0].split_whitespace().position(|word| word == name)?;
        pair[1].split_whitespace().nth(index)?.parse().ok()
    })
}

/// By how much they grew; added to what is there.
pub(crate) fn add_growth(into: &mut Counters, before: &Counters, after: &Counters) {
    for (&name, &value) in after {
        *into.entry(name).or_default() += value.saturating_sub(before.get(name).copied().unwrap_or(0));
    }
}

/// Pages of TCP's buffers, and sockets, of /proc/net/sockstat.
pub(crate) fn tcp_memory(machine: &Machine) -> Option<(u64, u64)> {
    let sockstat = machine.read("/proc/net/sockstat").ok()?;
    let line = sockstat.lines().find_map(|line| line.strip_prefix("TCP:"))?;
    let words: Vec<&str> = line.split_whitespace().collect();
    let after = |name: &str| words.iter().position(|word| *word == name).and_then(|at| words.get(at + 1)?.parse().ok());
    Some((after("mem")?, after("inuse")?))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn counters_are_found_by_their_names() {
        let text = "TcpExt: SyncookiesSent ListenOverflows ListenDrops\nTcpExt: 0 7 9\nIpExt: InNoRoutes\nIpExt: 3\n";
        assert_eq!(netstat_value(text, "ListenDrops"), Some(9));
        assert_eq!(netstat_value(text, "InNoRoutes"), Some(3));
        assert_eq!(netstat_value(text, "TCPTimeouts"), None);
    }

    #[test]
    fn growth_adds_up() {
        let mut sum = Counters::new();
        add_growth(&mut sum, &[("a", 1)].into(), &[("a", 4), ("b", 2)].into());
        add_growth(&mut sum, &[("a", 4)].into(), &[("a", 5)].into());
        assert_eq!(sum, [("a", 4), ("b", 2)].into());
    }
}

//! Which profile, which cores and which values fit this machine and what is expected of it, each with its reason.

#![forbid(unsafe_code)]

use serde::Serialize;

use crate::machine::Machine;
use crate::value::{cpu_list, print_cpu_list};

/// From so many connections on memory is the question and not time.
const MANY_CONNECTIONS: u64 = 200_000;

/// From so many bytes on a message is long; from so many a second on bandwidth is the question.
const LONG_MESSAGE_BYTES: u64 = 16 * 1024;
const MUCH_BYTES_PER_S: u64 = 100_000_000;

/// A connection that is idle and logged in: in the server and in the kernel, as the bench's scenario `idle` measures it with
/// 15,000 of them. README.md has the figures and the command.
const CONNECTION_BYTES: u64 = 543 + 5_199;

/// CPU of a server for a message, as the bench's scenario `pairs` measures it, and how full a core may be.
const MESSAGE_CPU_NS: u64 = 16_800;
const CORE_FULL_PERCENT: u64 = 70;

/// Locked memory of a shard: six of them fit into 8 MiB.
const SHARD_LOCKED_BYTES: u64 = (8 << 20) / 6;

/// Descriptors of the process that are not connections: spare places of each shard, and files.
const SHARD_SPARE_FILES: u64 = 256;
const OTHER_FILES: u64 = 1024;

/// With more cores than this, one is left to everything else.
const CORES_ALL_USED: usize = 8;

/// What is expected of a node.
#[derive(Clone, Copy, Debug, Default, Serialize)]
pub struct Expected {
    /// Connections at once.
    pub connections: Option<u64>,
    /// Messages a second.
    pub rate: Option<u64>,
    /// Bytes of a message.
    pub message_size: Option<u64>,
}

/// What the machine is.
#[derive(Clone, Debug, Serialize)]
pub struct Facts {
    /// The kernel's release.
    pub kernel: String,
    /// Whether it runs on a hypervisor.
    pub is_virtual: bool,
    /// Cores that are online, hyperthreads counted.
    pub cpus: usize,
    /// Of each physical core one.
    pub physical: Vec<usize>,
    /// Cores of each NUMA node.
    pub nodes: Vec<Vec<usize>>,
    /// RAM.
    pub memory_bytes: u64,
    /// Network cards.
    pub nics: Vec<Nic>,
}

/// A network card.
#[derive(Clone, Debug, Serialize)]
pub struct Nic {
    /// Its name.
    pub name: String,
    /// Receive queues.
    pub queues: usize,
    /// Its NUMA node, if it has one.
    pub node: Option<usize>,
}

/// A value and the reason for it.
#[derive(Clone, Debug, Serialize)]
pub struct Computed {
    /// Its key.
    pub key: String,
    /// The value.
    pub value: String,
    /// Why.
    pub reason: String,
}

/// What fits.
#[derive(Clone, Debug, Serialize)]
pub struct Recommendation {
    /// The machine.
    pub facts: Facts,
    /// What was expected of it.
    pub expected: Expected,
    /// The profile.
    pub profile: &'static str,
    /// Why this one.
    pub profile_reason: String,
    /// Cores for the shards, for the server's setting `cpus`.
    pub cpus: String,
    /// Why these.
    pub cpus_reason: String,
    /// Shards: one a core.
    pub shards: usize,
    /// Values for this machine.
    pub values: Vec<Computed>,
    /// What will not do.
    pub warnings: Vec<String>,
}

/// Looks at the machine.
#[must_use]
pub fn facts(machine: &Machine) -> Facts {
    let cpus = machine.cpus();
    let first_sibling = |cpu: &usize| {
        let place = format!("/sys/devices/system/cpu/cpu{cpu}/topology/thread_siblings_list");
        let siblings = machine.read(&place).map(|text| cpu_list(&text)).unwrap_or_default();
        siblings.first().is_none_or(|first| first == cpu)
    };
    let physical = cpus.iter().copied().filter(first_sibling).collect();
    let folder = "/sys/devices/system/node";
    let nodes = machine
        .names(folder)
        .into_iter()
        .filter(|name| name.strip_prefix("node").is_some_and(|number| number.parse::<u32>().is_ok()));
    let nodes = nodes
        .filter_map(|node| machine.read(&format!("{folder}/{node}/cpulist")).ok())
        .map(|text| cpu_list(&text))
        .filter(|cpus| !cpus.is_empty());
    let nic = |name: String| {
        let queues = machine.names(&format!("/sys/class/net/{name}/queues"));
        let node = machine.read(&format!("/sys/class/net/{name}/device/numa_node")).ok();
        Nic {
            queues: queues.iter().filter(|queue| queue.starts_with("rx-")).count(),
            // -1 is no node.
            node: node.and_then(|text| text.trim().parse().ok()),
            name,
        }
    };
    let cpuinfo = machine.read("/proc/cpuinfo").unwrap_or_default();
    let flags = cpuinfo.lines().find(|line| line.starts_with("flags")).unwrap_or_default();
    Facts {
        kernel: machine.read("/proc/sys/kernel/osrelease").unwrap_or_default().trim().to_owned(),
        is_virtual: flags.split_whitespace().any(|flag| flag == "hypervisor"),
        cpus: cpus.len(),
        physical,
        nodes: nodes.collect(),
        memory_bytes: machine.memory_bytes().unwrap_or(0),
        nics: machine.nics().into_iter().map(nic).collect(),
    }
}

/// Says what fits.
#[must_use]
pub fn recommend(machine: &Machine, expected: Expected) -> Recommendation {
    let facts = facts(machine);
    let (profile, profile_reason) = choose_profile(expected);
    let (cpus, cpus_reason) = choose_cpus(&facts);
    let values = values(&facts, machine.page_bytes(), expected, cpus.len());
    let warnings = warnings(&facts, expected, cpus.len());
    Recommendation {
        profile,
        profile_reason,
        cpus: print_cpu_list(&cpus),
        cpus_reason,
        shards: cpus.len(),
        values,
        warnings,
        facts,
        expected,
    }
}

fn choose_profile(expected: Expected) -> (&'static str, String) {
    let bytes_per_s = expected.rate.unwrap_or(0).saturating_mul(expected.message_size.unwrap_or(0));
    match expected {
        Expected { connections: Some(connections), .. } if connections >= MANY_CONNECTIONS => (
            "connections-1m",
            format!("{connections} connections are {MANY_CONNECTIONS} or more: memory is the question"),
        ),
        Expected { message_size: Some(bytes), .. } if bytes >= LONG_MESSAGE_BYTES => {
            ("throughput", format!("messages of {bytes} bytes are long: {LONG_MESSAGE_BYTES} or more"))
        }
        _ if bytes_per_s >= MUCH_BYTES_PER_S => (
            "throughput",
            format!("{bytes_per_s} bytes a second are {MUCH_BYTES_PER_S} or more: bandwidth is the question"),
        ),
        _ => ("latency", "neither many connections nor much bandwidth is expected: time is the question".to_owned()),
    }
}

fn choose_cpus(facts: &Facts) -> (Vec<usize>, String) {
    let mut cpus = facts.physical.clone();
    let mut reasons = vec![if facts.physical.len() < facts.cpus {
        "one of each pair of hyperthreads, for two shards on one core take each other's time".to_owned()
    } else {
        "each core once".to_owned()
    }];
    let node = facts.nics.iter().find_map(|nic| nic.node);
    if facts.nodes.len() > 1 {
        let node = node.unwrap_or(0);
        let near = facts.nodes.get(node).cloned().unwrap_or_default();
        cpus.retain(|cpu| near.contains(cpu));
        reasons.push(format!("of NUMA node {node}, where the network card is: a lane between nodes is slow. Run a second server on the other"));
    }
    if cpus.len() > CORES_ALL_USED {
        let left = cpus.remove(0);
        reasons.push(format!("core {left} is left to the kernel and everything else"));
    }
    (cpus, reasons.join("; "))
}

fn values(facts: &Facts, page_bytes: u64, expected: Expected, shards: usize) -> Vec<Computed> {
    let mut values = Vec::new();
    let mut add = |key: &str, value: String, reason: String| values.push(Computed { key: key.into(), value, reason });
    let pages = facts.memory_bytes / page_bytes.max(1);
    let tcp_mem = [12, 18, 25].map(|percent| (pages * percent / 100).to_string()).join(" ");
    add("net.ipv4.tcp_mem", tcp_mem, "12, 18 and 25 % of RAM, in pages".to_owned());
    let shards = shards as u64;
    add(
        "limit.memlock",
        (shards * SHARD_LOCKED_BYTES).to_string(),
        format!("the rings of {shards} shards, for a process without CAP_IPC_LOCK; six shards fit into 8 MiB"),
    );
    if let Some(connections) = expected.connections {
        let files = connections + shards * SHARD_SPARE_FILES + OTHER_FILES;
        add(
            "limit.nofile",
            files.to_string(),
            format!("a descriptor for each of {connections} connections, and some to spare"),
        );
        add("fs.nr_open", files.to_string(), "no limit of open files may be above it".to_owned());
        let queue = (connections / shards.max(1)).clamp(4096, 65_535);
        add(
            "net.core.somaxconn",
            queue.to_string(),
            "all clients of a shard come back at once; 65,535 at most".to_owned(),
        );
        let each = connections.div_ceil(shards.max(1));
        add("WHIMBREL_CONNECTIONS", each.to_string(), "the server's limits.connections, which is a shard's".to_owned());
    }
    values
}

fn warnings(facts: &Facts, expected: Expected, shards: usize) -> Vec<String> {
    let mut warnings = Vec::new();
    if let Some(connections) = expected.connections {
        let needed = connections.saturating_mul(CONNECTION_BYTES);
        let mib = |bytes: u64| bytes >> 20;
        if needed > facts.memory_bytes / 2 {
            warnings.push(format!(
                "{connections} idle connections take some {} MiB of the {} MiB of RAM (extrapolated from 15,000): more than half. Take a \
                 larger machine, or several",
                mib(needed),
                mib(facts.memory_bytes)
            ));
        }
    }
    if let Some(rate) = expected.rate {
        let cores = rate.saturating_mul(MESSAGE_CPU_NS * 100).div_ceil(1_000_000_000 * CORE_FULL_PERCENT);
        if cores > shards as u64 {
            warnings.push(format!(
                "{rate} messages a second need some {cores} cores ({MESSAGE_CPU_NS} ns a message, a core {CORE_FULL_PERCENT} % full), \
                 and there are {shards}"
            ));
        }
    }
    if facts.is_virtual {
        warnings.push(
            "on a hypervisor: frequency, idle states and the disk's real scheduler are the host's; pin the virtual cores there"
                .to_owned(),
        );
    }
    if facts.nics.iter().any(|nic| nic.queues < shards) {
        let few = facts.nics.iter().filter(|nic| nic.queues < shards);
        let few: Vec<String> = few.map(|nic| format!("{} has {}", nic.name, nic.queues)).collect();
        warnings.push(format!(
            "fewer receive queues than shards ({}): `throughput` spreads their packets over the cores (nic.rps)",
            few.join(", ")
        ));
    }
    warnings
}

#[cfg(test)]
mod tests {
    use super::*;

    fn expecting(connections: u64, rate: u64, message_size: u64) -> Expected {
        let some = |number| (number > 0).then_some(number);
        Expected { connections: some(connections), rate: some(rate), message_size: some(message_size) }
    }

    #[test]
    fn what_is_expected_chooses_the_profile() {
        let choose = |connections, rate, size| choose_profile(expecting(connections, rate, size)).0;
        assert_eq!(choose(0, 0, 0), "latency");
        assert_eq!(choose(1_000_000, 0, 0), "connections-1m");
        assert_eq!(choose(1_000, 100, 1 << 20), "throughput");
        assert_eq!(choose(1_000, 1_000_000, 200), "throughput");
        assert_eq!(choose(1_000, 1_000, 200), "latency");
    }

    #[test]
    fn shards_get_whole_cores_near_the_card() {
        let facts = Facts {
            kernel: String::new(),
            is_virtual: false,
            cpus: 40,
            physical: (0..20).collect(),
            nodes: vec![(0..10).chain(20..30).collect(), (10..20).chain(30..40).collect()],
            memory_bytes: 64 << 30,
            nics: vec![Nic { name: "eth0".into(), queues: 16, node: Some(1) }],
        };
        let (cpus, why) = choose_cpus(&facts);
        assert_eq!(cpus, (11..20).collect::<Vec<_>>());
        assert!(why.contains("NUMA node 1") && why.contains("core 10 is left"), "{why}");
        assert_eq!(warnings(&facts, expecting(1_000_000, 0, 0), 9), Vec::<String>::new());
        assert!(warnings(&facts, expecting(10_000_000, 0, 0), 9)[0].contains("more than half"));
        assert!(warnings(&facts, expecting(0, 1_000_000, 0), 9)[0].contains("need some 24 cores"));
    }
}

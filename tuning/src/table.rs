//! What each key is: where it stands, which values it takes, when it counts as met, and how bad it is if not. A profile names keys
//! of this table only. What a key is good for stands in the profiles, and what popular guides name for nothing in [`FOLKLORE`].

#![forbid(unsafe_code)]

use serde::Serialize;

/// When a value that is there already counts as met, and what is written otherwise.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Rule {
    /// Only the profile's value.
    Exactly,
    /// The profile's or more, number by number: it only raises.
    AtLeast,
    /// The profile's or less: it only lowers.
    AtMost,
    /// A range that contains the profile's: it only widens.
    Widen,
}

/// How bad it is if a key is not met.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Severity {
    /// It costs a little speed or memory.
    Minor,
    /// Under load, connections or time are lost.
    Warning,
    /// The server cannot start or cannot hold what the profile is for.
    Critical,
}

/// Which texts are values of a key.
#[derive(Clone, Copy, Debug)]
pub enum Shape {
    /// So many whole numbers.
    Numbers(usize),
    /// A whole number of this range, which the kernel's documentation gives.
    Range(u64, u64),
    /// A whole number or this word, which stands for no limit.
    NumberOr(&'static str),
    /// One of these words.
    Word(&'static [&'static str]),
}

/// By what means a key is read and set.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Means {
    /// A file below /proc/sys.
    Sysctl,
    /// A limit of the server's process, by its name in /proc/PID/limits. Set for new sessions and for the service.
    Limit(&'static str),
    /// A limit of the server's control group, by the file's name. Set for the service.
    Cgroup(&'static str),
    /// A file below /sys that shows all choices, the one that counts in brackets.
    Choice(&'static str),
    /// The frequency governor of every core.
    Governor,
    /// The switches of the idle states of every core.
    IdleStates,
    /// The cores of the network cards' interrupts.
    IrqAffinity,
    /// Files of the cards' queues.
    Queues(Queue),
    /// A ring of the network cards: `rx` or `tx`, by ethtool.
    Ring(&'static str),
    /// The scheduler of every disk.
    Scheduler,
    /// An option of the file system that the data lie on. The table of mounts is its owner's: it is only checked.
    Mount,
    /// A parameter of a module that is loaded: its module and its name.
    Module(&'static str, &'static str),
}

/// Which of the files of a network card's queues.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Queue {
    /// Cores that may work off a receive queue.
    Rps,
    /// Entries of the flow table of a receive queue.
    Rfs,
    /// Cores that send through a queue.
    Xps,
}

/// One key.
#[derive(Clone, Copy, Debug)]
pub struct Known {
    /// Its name, as profiles have it.
    pub key: &'static str,
    /// By what means it is read and set.
    pub means: Means,
    /// When it counts as met.
    pub rule: Rule,
    /// Which values it takes.
    pub shape: Shape,
    /// How bad it is if it is not met.
    pub severity: Severity,
    /// Another key that the kernel sets to 0 when this one is set, and the other way round.
    pub twin: Option<&'static str>,
}

use Means::{Cgroup, Choice, Governor, IdleStates, IrqAffinity, Limit, Module, Mount, Queues, Ring, Scheduler, Sysctl};
use Rule::{AtLeast, AtMost, Exactly, Widen};
use Severity::{Critical, Minor, Warning};
use Shape::{NumberOr, Numbers, Range, Word};

const fn known(key: &'static str, means: Means, rule: Rule, shape: Shape, severity: Severity) -> Known {
    Known { key, means, rule, shape, severity, twin: None }
}

const fn twins(key: &'static str, rule: Rule, twin: &'static str) -> Known {
    Known { key, means: Sysctl, rule, shape: Numbers(1), severity: Minor, twin: Some(twin) }
}

const THP: &str = "/sys/kernel/mm/transparent_hugepage/enabled";
const THP_DEFRAG: &str = "/sys/kernel/mm/transparent_hugepage/defrag";

/// All keys, in the order of their names.
pub const KEYS: &[Known] = &[
    known("block.scheduler", Scheduler, Exactly, Word(&["none", "mq-deadline", "kyber", "bfq"]), Minor),
    known("cgroup.cpu.max", Cgroup("cpu.max"), AtLeast, NumberOr("max"), Warning),
    known("cgroup.memory.high", Cgroup("memory.high"), AtLeast, NumberOr("max"), Warning),
    known("cpu.governor", Governor, Exactly, Word(&["performance", "powersave", "schedutil", "ondemand"]), Minor),
    known("cpu.idle_latency_us", IdleStates, AtMost, Numbers(1), Minor),
    known("fs.file-max", Sysctl, AtLeast, Numbers(1), Critical),
    known("fs.nr_open", Sysctl, AtLeast, Numbers(1), Critical),
    known("irq.nic_affinity", IrqAffinity, Exactly, Word(&["spread"]), Minor),
    known("kernel.io_uring_disabled", Sysctl, AtMost, Range(0, 2), Critical),
    known("kernel.numa_balancing", Sysctl, Exactly, Range(0, 3), Minor),
    known("limit.memlock", Limit("Max locked memory"), AtLeast, NumberOr("unlimited"), Warning),
    known("limit.nofile", Limit("Max open files"), AtLeast, NumberOr("unlimited"), Critical),
    known("module.nf_conntrack.hashsize", Module("nf_conntrack", "hashsize"), AtLeast, Numbers(1), Minor),
    known("mount.atime", Mount, Exactly, Word(&["noatime"]), Minor),
    known("net.core.netdev_budget", Sysctl, AtLeast, Numbers(1), Minor),
    known("net.core.netdev_max_backlog", Sysctl, AtLeast, Numbers(1), Minor),
    known("net.core.rps_sock_flow_entries", Sysctl, AtLeast, Numbers(1), Minor),
    known("net.core.somaxconn", Sysctl, AtLeast, Numbers(1), Warning),
    known("net.ipv4.ip_local_port_range", Sysctl, Widen, Numbers(2), Warning),
    known("net.ipv4.tcp_max_orphans", Sysctl, AtLeast, Numbers(1), Minor),
    known("net.ipv4.tcp_max_syn_backlog", Sysctl, AtLeast, Numbers(1), Warning),
    known("net.ipv4.tcp_max_tw_buckets", Sysctl, AtLeast, Numbers(1), Minor),
    known("net.ipv4.tcp_mem", Sysctl, AtLeast, Numbers(3), Critical),
    known("net.ipv4.tcp_migrate_req", Sysctl, Exactly, Range(0, 1), Warning),
    known("net.ipv4.tcp_notsent_lowat", Sysctl, AtMost, Numbers(1), Minor),
    known("net.ipv4.tcp_rmem", Sysctl, AtLeast, Numbers(3), Warning),
    known("net.ipv4.tcp_slow_start_after_idle", Sysctl, Exactly, Range(0, 1), Warning),
    known("net.ipv4.tcp_tw_reuse", Sysctl, Exactly, Range(0, 2), Minor),
    known("net.ipv4.tcp_wmem", Sysctl, AtLeast, Numbers(3), Warning),
    known("net.netfilter.nf_conntrack_max", Sysctl, AtLeast, Numbers(1), Critical),
    known("nic.rfs", Queues(Queue::Rfs), AtLeast, Numbers(1), Minor),
    known("nic.rps", Queues(Queue::Rps), Exactly, Word(&["spread", "off"]), Minor),
    known("nic.rx_ring", Ring("rx"), AtLeast, NumberOr("max"), Minor),
    known("nic.tx_ring", Ring("tx"), AtLeast, NumberOr("max"), Minor),
    known("nic.xps", Queues(Queue::Xps), Exactly, Word(&["spread"]), Minor),
    known(
        "thp.defrag",
        Choice(THP_DEFRAG),
        Exactly,
        Word(&["always", "defer", "defer+madvise", "madvise", "never"]),
        Minor,
    ),
    known("thp.enabled", Choice(THP), Exactly, Word(&["always", "madvise", "never"]), Warning),
    twins("vm.dirty_background_bytes", Exactly, "vm.dirty_background_ratio"),
    twins("vm.dirty_bytes", Exactly, "vm.dirty_ratio"),
    known("vm.max_map_count", Sysctl, AtLeast, Numbers(1), Warning),
    known("vm.stat_interval", Sysctl, AtLeast, Numbers(1), Minor),
    known("vm.swappiness", Sysctl, AtMost, Range(0, 200), Minor),
];

/// Keys that popular guides set and that do nothing for this server, each with the reason. No profile has them.
pub const FOLKLORE: &[(&str, &str)] = &[
    ("fs.epoll.max_user_watches", "the server waits by io_uring and makes no epoll watches"),
    ("fs.aio-max-nr", "the server writes by io_uring; this bounds the older io_submit(2)"),
    (
        "kernel.sched_min_granularity_ns",
        "moved to /sys/kernel/debug/sched in Linux 5.13, and gone with the EEVDF scheduler in 6.6",
    ),
    (
        "kernel.sched_migration_cost_ns",
        "shards are pinned, so the scheduler has nothing to move; in debugfs since Linux 5.13",
    ),
    ("net.core.busy_poll", "for poll(2) and select(2) only; io_uring has a registration of its own for it"),
    ("net.core.busy_read", "for reads that block; the server's never do"),
    ("net.core.netdev_tstamp_prequeue", "moves when a packet gets its timestamp; nobody here asks for one"),
    ("net.core.optmem_max", "ancillary data of a socket; the server sends none"),
    ("net.core.rmem_default", "for sockets other than TCP: tcp_rmem takes its place"),
    ("net.core.rmem_max", "bounds SO_RCVBUF, which the server does not set; TCP's own growth is bounded by tcp_rmem"),
    ("net.core.wmem_default", "for sockets other than TCP: tcp_wmem takes its place"),
    ("net.core.wmem_max", "bounds SO_SNDBUF, which the server does not set; TCP's own growth is bounded by tcp_wmem"),
    (
        "net.ipv4.tcp_fastopen",
        "saves a round trip where both ends ask for it by an option of the socket; the server does not",
    ),
    (
        "net.ipv4.tcp_fin_timeout",
        "shortens FIN_WAIT_2 of sockets that nobody holds, and not TIME_WAIT, which is a constant",
    ),
    (
        "net.ipv4.tcp_keepalive_time",
        "for sockets with SO_KEEPALIVE; the server has a keepalive of its own in its protocol",
    ),
    ("net.ipv4.tcp_low_latency", "has had no effect since Linux 4.14, and is kept for scripts that write it"),
    ("net.ipv4.tcp_moderate_rcvbuf", "on by default"),
    ("net.ipv4.tcp_no_metrics_save", "forgets what was learned of a path: worse for clients who come back"),
    ("net.ipv4.tcp_sack", "on by default; off costs throughput with each loss"),
    ("net.ipv4.tcp_syncookies", "on by default: it helps exactly when tcp_max_syn_backlog is full"),
    ("net.ipv4.tcp_timestamps", "on by default; without it tcp_tw_reuse has no effect and TIME_WAIT is less safe"),
    ("net.ipv4.tcp_tw_recycle", "removed in Linux 4.12; it broke clients behind one address"),
    ("net.ipv4.tcp_window_scaling", "on by default"),
    ("vm.overcommit_memory", "the server reserves no memory that it does not use"),
    ("vm.zone_reclaim_mode", "0 by default since Linux 3.16"),
];

/// The key of this name.
#[must_use]
pub fn find(key: &str) -> Option<&'static Known> {
    KEYS.iter().find(|known| known.key == key)
}

/// A name that differs in more than a third of its letters is no slip of the finger.
const NEAREST_MIN: f64 = 0.66;

/// Of these names the nearest one, if it is near.
#[must_use]
pub fn nearest<'a>(name: &str, names: impl IntoIterator<Item = &'a str>) -> Option<String> {
    let rated = names.into_iter().map(|known| (strsim::normalized_damerau_levenshtein(name, known), known));
    let best = rated.filter(|(rate, _)| *rate >= NEAREST_MIN).max_by(|a, b| a.0.total_cmp(&b.0));
    best.map(|(_, known)| known.to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn keys_stand_once_and_in_order() {
        assert!(KEYS.is_sorted_by(|a, b| a.key < b.key));
        assert!(FOLKLORE.iter().all(|(key, why)| find(key).is_none() && !why.is_empty()));
    }

    #[test]
    fn a_slip_of_the_finger_finds_its_key() {
        let names = || KEYS.iter().map(|known| known.key);
        assert_eq!(nearest("net.core.somaxcon", names()).as_deref(), Some("net.core.somaxconn"));
        assert_eq!(nearest("something.else", names()), None);
    }
}

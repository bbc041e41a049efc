//! Probes: for a key, the one figure that it changes, measured directly over loopback or in this process. A figure that a probe
//! cannot take here is none; each probe leaves nothing behind.

mod connections;
mod mappings;
mod tcp_info;

/// A probe.
pub(crate) struct Probe {
    /// The key.
    pub(crate) key: &'static str,
    /// What is measured.
    pub(crate) what: &'static str,
    /// Its unit.
    pub(crate) unit: &'static str,
    /// Whether less of it is better.
    pub(crate) less_is_better: bool,
    /// Measures it.
    pub(crate) run: fn() -> anyhow::Result<f64>,
}

/// All of them.
pub(crate) const PROBES: &[Probe] = &[
    Probe {
        key: "net.core.somaxconn",
        what: "of 6,000 connections that come while nobody accepts, those established",
        unit: "",
        less_is_better: false,
        run: connections::established_unaccepted,
    },
    Probe {
        key: "net.ipv4.tcp_migrate_req",
        what: "of 512 connections that wait at two listeners of one port, those left when one closes",
        unit: "",
        less_is_better: false,
        run: connections::left_after_close,
    },
    Probe {
        key: "net.ipv4.tcp_slow_start_after_idle",
        what: "congestion window after an idle second",
        unit: "packets",
        less_is_better: false,
        run: connections::window_after_idle,
    },
    Probe {
        key: "net.ipv4.tcp_notsent_lowat",
        what: "taken for a peer that does not read, while the socket says that it is writable",
        unit: "B",
        less_is_better: true,
        run: connections::taken_while_writable,
    },
    Probe {
        key: "net.ipv4.tcp_rmem",
        what: "one connection's speed over loopback",
        unit: "MB/s",
        less_is_better: false,
        run: connections::speed,
    },
    Probe {
        key: "net.ipv4.tcp_wmem",
        what: "one connection's speed over loopback",
        unit: "MB/s",
        less_is_better: false,
        run: connections::speed,
    },
    Probe {
        key: "vm.max_map_count",
        what: "mappings that a process can make, 150,000 at most",
        unit: "",
        less_is_better: false,
        run: mappings::most,
    },
];

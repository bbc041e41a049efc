//! A made-up machine: a tree of files with `/proc`, `/sys` and `/etc`, and the program run on it.

use std::collections::BTreeMap;
use std::fs;
use std::os::unix::fs::{PermissionsExt, symlink};
use std::path::{Path, PathBuf};
use std::process::{Command, Output};

use tempfile::TempDir;

/// The program.
pub(crate) const PROGRAM: &str = env!("CARGO_BIN_EXE_whimbrel-tune");

/// What every file says: a machine of four cores and 16 GiB with one network card and one disk, as a stock kernel sets it up. It
/// tracks no connections.
const FILES: &[(&str, &str)] = &[
    ("proc/sys/kernel/random/boot_id", "6c2b0a44-0f5e-4f7a-9a51-5d4a1f3b7c10\n"),
    ("proc/sys/kernel/osrelease", "6.18.0\n"),
    ("proc/sys/kernel/io_uring_disabled", "2\n"),
    ("proc/sys/kernel/numa_balancing", "1\n"),
    ("proc/sys/fs/file-max", "1600000\n"),
    ("proc/sys/fs/nr_open", "1048576\n"),
    ("proc/sys/vm/max_map_count", "65530\n"),
    ("proc/sys/vm/dirty_bytes", "0\n"),
    ("proc/sys/vm/dirty_ratio", "20\n"),
    ("proc/sys/vm/dirty_background_bytes", "0\n"),
    ("proc/sys/vm/dirty_background_ratio", "10\n"),
    ("proc/sys/vm/swappiness", "60\n"),
    ("proc/sys/vm/stat_interval", "1\n"),
    ("proc/sys/net/core/netdev_budget", "300\n"),
    ("proc/sys/net/core/netdev_max_backlog", "1000\n"),
    ("proc/sys/net/core/rps_sock_flow_entries", "0\n"),
    ("proc/sys/net/core/somaxconn", "128\n"),
    ("proc/sys/net/ipv4/ip_local_port_range", "32768\t60999\n"),
    ("proc/sys/net/ipv4/tcp_max_orphans", "65536\n"),
    ("proc/sys/net/ipv4/tcp_max_syn_backlog", "1024\n"),
    ("proc/sys/net/ipv4/tcp_max_tw_buckets", "65536\n"),
    ("proc/sys/net/ipv4/tcp_mem", "190000\t253000\t380000\n"),
    ("proc/sys/net/ipv4/tcp_migrate_req", "0\n"),
    ("proc/sys/net/ipv4/tcp_notsent_lowat", "4294967295\n"),
    ("proc/sys/net/ipv4/tcp_rmem", "4096\t131072\t33554432\n"),
    ("proc/sys/net/ipv4/tcp_slow_start_after_idle", "1\n"),
    ("proc/sys/net/ipv4/tcp_tw_reuse", "2\n"),
    ("proc/sys/net/ipv4/tcp_wmem", "4096\t16384\t4194304\n"),
    ("proc/meminfo", "MemTotal:       16777216 kB\nMemFree:         9000000 kB\n"),
    ("proc/cpuinfo", "processor\t: 0\nflags\t\t: fpu sse2\n"),
    (
        "proc/self/limits",
        "Limit                     Soft Limit           Hard Limit           Units     \nMax open files            1024               \
         524288               files     \nMax locked memory         8388608              8388608              bytes     \n",
    ),
    ("proc/self/cgroup", "0::/system.slice/whimbrel.service\n"),
    (
        "proc/self/mounts",
        "/dev/sda1 / ext4 rw,relatime 0 0\ncgroup2 /sys/fs/cgroup cgroup2 rw,nosuid 0 0\n/dev/sda2 /var/lib xfs rw,relatime 0 0\n",
    ),
    ("sys/fs/cgroup/system.slice/cpu.max", "max 100000\n"),
    ("sys/fs/cgroup/system.slice/whimbrel.service/cpu.max", "150000 100000\n"),
    ("sys/fs/cgroup/system.slice/whimbrel.service/memory.high", "max\n"),
    ("sys/kernel/mm/transparent_hugepage/enabled", "[always] madvise never\n"),
    ("sys/kernel/mm/transparent_hugepage/defrag", "always defer defer+madvise [madvise] never\n"),
    ("sys/devices/system/cpu/online", "0-3\n"),
    ("sys/devices/system/node/node0/cpulist", "0-3\n"),
    ("sys/class/net/eth0/device/numa_node", "0\n"),
    ("sys/class/net/eth0/device/msi_irqs/40", "msix\n"),
    ("sys/class/net/eth0/device/msi_irqs/41", "msix\n"),
    ("sys/class/net/eth0/queues/rx-0/rps_cpus", "0\n"),
    ("sys/class/net/eth0/queues/rx-0/rps_flow_cnt", "0\n"),
    ("sys/class/net/eth0/queues/rx-1/rps_cpus", "0\n"),
    ("sys/class/net/eth0/queues/rx-1/rps_flow_cnt", "0\n"),
    ("sys/class/net/eth0/queues/tx-0/xps_cpus", "0\n"),
    ("sys/class/net/eth0/queues/tx-1/xps_cpus", "f\n"),
    ("sys/class/net/lo/queues/rx-0/rps_cpus", "0\n"),
    ("proc/irq/40/smp_affinity_list", "0-3\n"),
    ("proc/irq/41/smp_affinity_list", "1\n"),
    ("sys/block/sda/device/model", "disk\n"),
    ("sys/block/sda/queue/scheduler", "none [mq-deadline] kyber bfq\n"),
    ("sys/block/loop0/queue/scheduler", "[none] mq-deadline\n"),
    ("etc/sysctl.d/10-distribution.conf", "kernel.kptr_restrict = 1\n"),
    ("rings/rx", "512\n"),
    ("rings/tx", "4096\n"),
];

/// Its rings are files of the tree. With a file `kill-before` or `kill-after`, whoever sets a ring is killed then.
const ETHTOOL: &str = r#"#!/bin/sh
rings=$(dirname "$0")/../../rings
case $1 in
-g) printf 'Ring parameters for %s:\nPre-set maximums:\nRX:\t4096\nTX:\t4096\nCurrent hardware settings:\nRX:\t%s\nTX:\t%s\n' \
        "$2" "$(cat "$rings/rx")" "$(cat "$rings/tx")" ;;
-G) [ ! -e "$rings/kill-before" ] || { kill -9 $PPID; exit; }
    echo "$4" >"$rings/$3"
    [ ! -e "$rings/kill-after" ] || kill -9 $PPID ;;
esac
"#;

/// A made-up machine.
pub(crate) struct Machine {
    directory: TempDir,
}

/// How a command ended.
#[derive(Debug)]
pub(crate) struct Done {
    /// None if it was killed.
    pub(crate) code: Option<i32>,
    pub(crate) out: String,
    pub(crate) err: String,
}

impl From<Output> for Done {
    fn from(output: Output) -> Done {
        let text = |bytes: &[u8]| String::from_utf8(bytes.to_vec()).expect("text");
        Done { code: output.status.code(), out: text(&output.stdout), err: text(&output.stderr) }
    }
}

impl Machine {
    pub(crate) fn new() -> Machine {
        let machine = Machine { directory: tempfile::tempdir().expect("a directory") };
        for (path, text) in FILES {
            machine.write(path, text);
        }
        for cpu in 0..4 {
            let folder = format!("sys/devices/system/cpu/cpu{cpu}");
            machine.write(&format!("{folder}/cpufreq/scaling_governor"), "powersave\n");
            machine.write(&format!("{folder}/topology/thread_siblings_list"), &format!("{cpu}\n"));
            for (state, latency) in [(0, 0), (1, 2), (2, 133)] {
                machine.write(&format!("{folder}/cpuidle/state{state}/latency"), &format!("{latency}\n"));
                machine.write(&format!("{folder}/cpuidle/state{state}/disable"), "0\n");
            }
        }
        machine.write("usr/sbin/ethtool", ETHTOOL);
        let ethtool = machine.path("usr/sbin/ethtool");
        fs::set_permissions(ethtool, fs::Permissions::from_mode(0o755)).expect("an executable");
        fs::create_dir_all(machine.path("proc/self/ns")).expect("a folder");
        symlink("net:[4026531840]", machine.path("proc/self/ns/net")).expect("a link");
        machine
    }

    pub(crate) fn path(&self, path: &str) -> PathBuf {
        self.directory.path().join(path)
    }

    pub(crate) fn write(&self, path: &str, text: &str) {
        let path = self.path(path);
        fs::create_dir_all(path.parent().expect("a folder")).expect("a folder");
        fs::write(path, text).expect("a file");
    }

    pub(crate) fn read(&self, path: &str) -> String {
        fs::read_to_string(self.path(path)).unwrap_or_else(|error| panic!("{path}: {error}"))
    }

    pub(crate) fn remove(&self, path: &str) {
        fs::remove_file(self.path(path)).expect("a file");
    }

    pub(crate) fn command(&self, words: &str) -> Command {
        let mut command = Command::new(PROGRAM);
        command.arg("--root").arg(self.directory.path()).args(words.split(' '));
        command.env_remove("WHIMBREL_DATA");
        command
    }

    pub(crate) fn run(&self, words: &str) -> Done {
        self.command(words).output().expect("the program").into()
    }

    /// All that can be changed, by its path. Of a choice only the word that counts, for a real kernel keeps the others.
    pub(crate) fn values(&self) -> BTreeMap<String, String> {
        let mut found = BTreeMap::new();
        for top in ["proc", "sys", "etc", "rings"] {
            self.collect(&self.path(top), &mut found);
        }
        found
    }

    fn collect(&self, folder: &Path, found: &mut BTreeMap<String, String>) {
        for entry in fs::read_dir(folder).expect("a folder") {
            let path = entry.expect("an entry").path();
            let name = path.strip_prefix(self.directory.path()).expect("below").display().to_string();
            if path.is_symlink() {
                continue;
            }
            if path.is_dir() {
                found.insert(format!("{name}/"), String::new());
                self.collect(&path, found);
            } else {
                let text = fs::read_to_string(&path).expect("text");
                let is_choice = name.ends_with("scheduler") || name.contains("transparent_hugepage");
                found.insert(name, if is_choice { whimbrel_tune::value::chosen(&text).to_owned() } else { text });
            }
        }
    }
}

//! What connections hold: in the server's own memory, and in the kernel.

use std::fs;

use anyhow::Context;

/// Anonymous memory of a process that is in RAM: heap, stacks, rings; not the mapped log.
pub(crate) fn rss_anon_bytes(pid: u32) -> anyhow::Result<u64> {
    let path = format!("/proc/{pid}/status");
    let text = fs::read_to_string(&path).with_context(|| format!("read {path}"))?;
    Ok(kib(&text, "RssAnon:").with_context(|| format!("no RssAnon in {path}"))? * 1024)
}

/// Memory of the kernel that grows with connections, of the whole machine.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct KernelMemory {
    /// Sockets, files, requests of io_uring that wait: all are objects of slabs.
    slab_bytes: u64,
    /// Tables of descriptors and of sockets that are too large for a slab.
    other_bytes: u64,
    /// Buffers of TCP.
    tcp_bytes: u64,
}

impl KernelMemory {
    /// Now.
    pub(crate) fn read() -> anyhow::Result<KernelMemory> {
        let read = |path: &str| fs::read_to_string(path).with_context(|| format!("read {path}"));
        Self::parse(&read("/proc/meminfo")?, &read("/proc/net/sockstat")?)
            .context("/proc/meminfo or /proc/net/sockstat")
    }

    fn parse(meminfo: &str, sockstat: &str) -> Option<KernelMemory> {
        let sum = |names: &[&str]| names.iter().map(|name| kib(meminfo, name)).sum::<Option<u64>>();
        let tcp = sockstat.lines().find(|line| line.starts_with("TCP:"))?;
        let pages: u64 = tcp.split_ascii_whitespace().skip_while(|word| *word != "mem").nth(1)?.parse().ok()?;
        Some(KernelMemory {
            slab_bytes: sum(&["Slab:"])? * 1024,
            other_bytes: sum(&["KernelStack:", "PageTables:", "Percpu:", "VmallocUsed:"])? * 1024,
            tcp_bytes: pages * 4096,
        })
    }

    /// All of it.
    pub(crate) fn total_bytes(&self) -> u64 {
        self.slab_bytes + self.other_bytes + self.tcp_bytes
    }
}

/// What `connections` hold at one end, from the growth of the machine's kernel memory: both ends are on this machine.
pub(crate) fn kernel_bytes_per_connection(before: KernelMemory, after: KernelMemory, connections: u32) -> f64 {
    per_connection(before.total_bytes(), after.total_bytes(), 2 * connections)
}

/// Growth for each; below zero where something else shrank more.
pub(crate) fn per_connection(before_bytes: u64, after_bytes: u64, connections: u32) -> f64 {
    (after_bytes as f64 - before_bytes as f64) / f64::from(connections.max(1))
}

/// The number behind a name in a file of the `Name:  123 kB` kind.
fn kib(text: &str, name: &str) -> Option<u64> {
    text.lines().find_map(|line| line.strip_prefix(name)?.split_ascii_whitespace().next()?.parse().ok())
}

#[cfg(test)]
mod tests {
    use super::*;

    const MEMINFO: &str = "MemTotal: 9 kB\nSlab:  100 kB\nSReclaimable: 60 kB\nKernelStack: 1 kB\nPageTables: 2 kB\n\
                           VmallocTotal: 9999 kB\nVmallocUsed:  3 kB\nPercpu: 4 kB\n";
    const SOCKSTAT: &str = "sockets: used 13\nTCP: inuse 1 orphan 0 tw 4 alloc 1 mem 5\nUDP: inuse 0 mem 7\n";

    #[test]
    fn kernel_memory_is_slabs_tables_and_buffers() {
        let memory = KernelMemory::parse(MEMINFO, SOCKSTAT).unwrap();
        let expected = KernelMemory { slab_bytes: 102_400, other_bytes: 10_240, tcp_bytes: 20_480 };
        assert_eq!(memory, expected);
        assert_eq!(KernelMemory::parse("Slab: 1 kB", SOCKSTAT), None);
        assert_eq!(KernelMemory::parse(MEMINFO, "TCP: inuse 1"), None);
    }

    #[test]
    fn both_ends_are_here() {
        let before = KernelMemory { slab_bytes: 1000, other_bytes: 0, tcp_bytes: 0 };
        let after = KernelMemory { slab_bytes: 3000, other_bytes: 600, tcp_bytes: 400 };
        assert_eq!(kernel_bytes_per_connection(before, after, 10), 150.0);
    }

    #[test]
    fn this_process_has_memory() {
        assert!(rss_anon_bytes(std::process::id()).unwrap() > 4096);
        assert!(rss_anon_bytes(u32::MAX).is_err());
    }
}

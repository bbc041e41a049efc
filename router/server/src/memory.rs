//! How much of the machine's memory the logs may count on, and how a core's thread gets its own.

#![forbid(unsafe_code)]

use anyhow::bail;
use whimbrel_storage::LogOptions;
use whimbrel_tune::machine::Machine;

use crate::units::print_size;

/// So much of what the process may use is for what it has written or read last: the rest is for what the program has itself, and for
/// the segments that are written and made.
const PART: u64 = 2;

/// How a control group is limited: where the groups of a version lie, and the files. Above `memory.high` the kernel takes pages back.
const V2: (&str, &[&str]) = ("/sys/fs/cgroup", &["memory.max", "memory.high"]);
const V1: (&str, &[&str]) = ("/sys/fs/cgroup/memory", &["memory.limit_in_bytes"]);

/// What [`LogOptions::warm_max`] is of each shard's log, where so much was asked for, or nothing.
pub(crate) fn warm_max(asked: Option<u64>, shards: u16, log: &LogOptions, machine: &Machine) -> anyhow::Result<u64> {
    let (shards, least) = (u64::from(shards), log.warm_least());
    if let Some(asked) = asked {
        if asked / shards < least {
            bail!(
                "`storage.warm_bytes` = {} is too little: {shards} shards with segments of {} need {} or more",
                print_size(asked),
                print_size(log.segment_size.into()),
                print_size(shards * least)
            );
        }
        return Ok(asked / shards);
    }
    let Some(usable) = usable(machine) else {
        tracing::warn!(
            each_shard = print_size(log.warm_max),
            "/proc/meminfo does not say how much memory there is: set `storage.warm_bytes` to what the log may count on"
        );
        return Ok(log.warm_max);
    };
    Ok((usable / PART / shards).max(least))
}

/// Blocks that a thread asks for and gives back before it begins, each below what the allocator has the kernel map by itself.
const BLOCK_BYTES: usize = 120 << 10;
const BLOCKS: usize = 128;

/// Lets the calling thread's heap grow without the kernel for a while. glibc makes that of any thread but the first accessible page by
/// page, each time with a call that waits for all others that change the process's memory map. What was accessible once stays so, and
/// has no memory until it is used again.
pub(crate) fn widen_heap() {
    let blocks: [Vec<u8>; BLOCKS] = std::array::from_fn(|_| Vec::with_capacity(BLOCK_BYTES));
    drop(std::hint::black_box(blocks));
}

/// The memory that this process may use: the machine's, or less if its control group has less. `None` where that is not to be known.
fn usable(machine: &Machine) -> Option<u64> {
    let groups = machine.read("/proc/self/cgroup").unwrap_or_default();
    let limits = groups.lines().filter_map(|line| {
        // Number, controllers, path; of version 2 there is one, without controllers.
        let (number, rest) = line.split_once(':')?;
        let (controllers, path) = rest.split_once(':')?;
        let is_v1 = controllers.split(',').any(|controller| controller == "memory");
        let place = if is_v1 { V1 } else { V2 };
        (is_v1 || number == "0" && controllers.is_empty()).then(|| limit(machine, place, path))?
    });
    machine.memory_bytes().map(|all| limits.fold(all, u64::min))
}

/// What holds for a group holds for those in it: the least of the limits from it upwards.
fn limit(machine: &Machine, (root, files): (&str, &[&str]), group: &str) -> Option<u64> {
    let mut path = group.trim_end_matches('/');
    let mut least: Option<u64> = None;
    loop {
        // Where there is none it says `max`, or is not there. In a container the upper ones are not there either.
        for file in files {
            let text = machine.read(&format!("{root}{path}/{file}")).unwrap_or_default();
            least = least.into_iter().chain(text.trim().parse()).min();
        }
        let Some((above, _)) = path.rsplit_once('/') else { return least };
        path = above;
    }
}

#[cfg(test)]
mod tests {
    use std::fs;

    use super::*;

    const GIB: u64 = 1 << 30;

    /// A machine with 16 GiB and these files, and what a process may use of it.
    fn usable_with(files: &[(&str, &str)]) -> Option<u64> {
        let dir = tempfile::tempdir().unwrap();
        for (place, text) in files {
            let path = dir.path().join(place);
            fs::create_dir_all(path.parent().unwrap()).unwrap();
            fs::write(path, text).unwrap();
        }
        usable(&Machine::at(dir.path()))
    }

    const MACHINE: (&str, &str) = ("proc/meminfo", "MemTotal:       16777216 kB\nMemFree:         9000000 kB\n");

    #[test]
    fn the_least_of_all_limits_counts() {
        let v2 = ("proc/self/cgroup", "0::/system.slice/whimbrel.service\n");
        let slice = |text| ("sys/fs/cgroup/system.slice/memory.max", text);
        let high = ("sys/fs/cgroup/system.slice/whimbrel.service/memory.high", "1073741824\n");
        let service = |text| ("sys/fs/cgroup/system.slice/whimbrel.service/memory.max", text);
        let cases: &[(&[_], u64)] = &[
            (&[MACHINE], 16),
            (&[MACHINE, v2], 16),
            (&[MACHINE, v2, slice("max\n"), service("max\n")], 16),
            (&[MACHINE, v2, slice("max\n"), service("2147483648\n")], 2),
            (&[MACHINE, v2, slice("1073741824\n"), service("2147483648\n")], 1),
            (&[MACHINE, v2, slice("max\n"), service("1099511627776\n")], 16),
            (&[MACHINE, v2, high, service("2147483648\n")], 1),
            // A container that sees its own group as the root.
            (&[MACHINE, ("proc/self/cgroup", "0::/\n"), ("sys/fs/cgroup/memory.max", "3221225472\n")], 3),
        ];
        for (files, gib) in cases {
            assert_eq!(usable_with(files), Some(gib * GIB), "{files:?}");
        }
    }

    #[test]
    fn control_groups_of_version_1_count_too() {
        let groups = ("proc/self/cgroup", "5:cpu,cpuacct:/a\n4:memory:/docker/b\n0::/c\n");
        let of = |place, text| [MACHINE, groups, (place, text)];
        let cases = [
            (of("sys/fs/cgroup/memory/docker/b/memory.limit_in_bytes", "4294967296\n"), 4),
            (of("sys/fs/cgroup/memory/memory.limit_in_bytes", "5368709120\n"), 5),
            (of("sys/fs/cgroup/memory/memory.limit_in_bytes", "9223372036854771712\n"), 16),
            (of("sys/fs/cgroup/memory/a/memory.limit_in_bytes", "1073741824\n"), 16),
        ];
        for (files, gib) in cases {
            assert_eq!(usable_with(&files), Some(gib * GIB), "{files:?}");
        }
    }

    #[test]
    fn half_of_the_memory_is_shared_by_the_shards() {
        let dir = tempfile::tempdir().unwrap();
        let machine = Machine::at(dir.path());
        let log = LogOptions { segment_size: 64 << 20, ..LogOptions::new(0) };
        let each = |asked, shards| warm_max(asked, shards, &log, &machine);
        assert_eq!(each(None, 3).unwrap(), log.warm_max, "nobody says how much there is");
        fs::create_dir(dir.path().join("proc")).unwrap();
        fs::write(dir.path().join("proc/meminfo"), MACHINE.1).unwrap();
        assert_eq!(each(None, 4).unwrap(), 2 * GIB);
        assert_eq!(each(None, 1000).unwrap(), log.warm_least(), "some always");
        assert_eq!(each(Some(3 * GIB), 4).unwrap(), 3 * GIB / 4);
        assert_eq!(each(Some(GIB), 4).unwrap(), log.warm_least());
        let error = each(Some(GIB - 1), 4).unwrap_err().to_string();
        assert!(error.contains("4 shards with segments of 64MiB need 1024MiB or more"), "{error}");
    }
}

//! What a profile means on this machine: for each setting the places where it stands, what is there, and what would be written.
//! Reads only.

#![forbid(unsafe_code)]

use std::io;

use serde::{Deserialize, Serialize};

use crate::machine::Machine;
use crate::profile::{Profile, Setting};
use crate::table::{Known, Means, Queue};
use crate::value::{choices, chosen, fields, is_met, mask, plain_mask, shown, write_for};

/// Where one value stands.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Place {
    /// A file of the kernel's.
    File(String),
    /// A ring of a network card: the card, `rx` or `tx`.
    Ring(String, String),
}

/// One place of a setting.
#[derive(Clone, Debug, Serialize)]
pub struct Target {
    /// Where.
    pub place: Place,
    /// What stands there, byte for byte.
    pub current: String,
    /// What would be written.
    pub write: String,
    /// Whether what stands there is enough.
    pub met: bool,
}

/// What is known of a setting on this machine.
#[derive(Clone, Debug)]
pub enum Found {
    /// It stands in these places.
    Targets(Vec<Target>),
    /// It belongs to the server's process or service: what is so, and whether that is enough.
    Service {
        /// What is so.
        current: String,
        /// Whether that is enough.
        met: bool,
    },
    /// It is its owner's to change: what is so, whether that is enough, and how to change it.
    Advice {
        /// What is so.
        current: String,
        /// Whether that is enough.
        met: bool,
        /// How to change it.
        remedy: String,
    },
    /// This kernel, namespace or machine does not have it: why.
    Missing(String),
    /// It is there and cannot be read: why.
    Unreadable(String),
}

/// A setting and what is known of it.
#[derive(Clone, Debug)]
pub struct Planned {
    /// The setting.
    pub setting: Setting,
    /// Its value on this machine.
    pub wanted: String,
    /// What is known of it.
    pub found: Found,
}

/// Finds all settings of a profile on a machine. `data` is where the server's data lie.
#[must_use]
pub fn plan(machine: &Machine, profile: &Profile, data: &str) -> Vec<Planned> {
    let one = |setting: &Setting| {
        let wanted = setting.value_on(machine);
        let found = find(machine, setting.known, &wanted, data);
        Planned { setting: setting.clone(), wanted, found }
    };
    profile.settings.iter().map(one).collect()
}

fn find(machine: &Machine, known: &Known, wanted: &str, data: &str) -> Found {
    match known.means {
        Means::Sysctl => one_file(machine, known, &sysctl_place(known.key), wanted),
        Means::Module(module, name) => {
            one_file(machine, known, &format!("/sys/module/{module}/parameters/{name}"), wanted)
        }
        Means::Limit(name) => limit(machine, known, name, wanted),
        Means::Cgroup(file) => cgroup(machine, known, file, wanted),
        Means::Choice(place) => choice_files(machine, vec![place.to_owned()], wanted, "this kernel has no huge pages"),
        Means::Governor => {
            let files =
                cpu_files(machine, |cpu| vec![format!("/sys/devices/system/cpu/{cpu}/cpufreq/scaling_governor")]);
            governor(machine, files, wanted)
        }
        Means::IdleStates => idle_states(machine, wanted),
        Means::IrqAffinity => irq_affinity(machine),
        Means::Queues(queue) => queues(machine, known, queue, wanted),
        Means::Ring(direction) => rings(machine, direction, wanted),
        Means::Scheduler => {
            let files = machine.disks().into_iter().map(|disk| format!("/sys/block/{disk}/queue/scheduler")).collect();
            choice_files(machine, files, wanted, "there is no disk whose scheduler can be chosen")
        }
        Means::Mount => mount(machine, wanted, data),
    }
}

/// Where a sysctl stands.
#[must_use]
pub fn sysctl_place(key: &str) -> String {
    format!("/proc/sys/{}", key.replace('.', "/"))
}

/// Targets from files; those that are not there are left out.
fn from_files(
    machine: &Machine,
    places: impl IntoIterator<Item = String>,
    missing: &str,
    target: impl Fn(&str) -> Option<(String, bool)>,
) -> Found {
    let mut targets = Vec::new();
    for place in places {
        match machine.read(&place) {
            Ok(current) => {
                let Some((write, met)) = target(&current) else {
                    return Found::Missing(format!("{place} does not offer it: {}", shown(&current)));
                };
                targets.push(Target { place: Place::File(place), current, write: format!("{write}\n"), met });
            }
            Err(error) if is_missing(&error) => {}
            Err(error) => return Found::Unreadable(format!("{place}: {error}")),
        }
    }
    if targets.is_empty() { Found::Missing(missing.to_owned()) } else { Found::Targets(targets) }
}

fn is_missing(error: &io::Error) -> bool {
    // A queue's file that its card does not support is there and says so when it is read.
    let unsupported = [libc::EOPNOTSUPP, libc::ENODEV].map(Some);
    error.kind() == io::ErrorKind::NotFound || unsupported.contains(&error.raw_os_error())
}

fn one_file(machine: &Machine, known: &Known, place: &str, wanted: &str) -> Found {
    let missing = match known.means {
        Means::Module(module, _) => format!("the module {module} is not loaded"),
        _ if known.key.starts_with("net.") => "this kernel or network namespace does not have it".to_owned(),
        _ => "this kernel does not have it".to_owned(),
    };
    from_files(machine, [place.to_owned()], &missing, |current| {
        Some((write_for(known, current, wanted), is_met(known, current, wanted)))
    })
}

fn choice_files(machine: &Machine, places: Vec<String>, wanted: &str, missing: &str) -> Found {
    from_files(machine, places, missing, |current| {
        choices(current).iter().any(|choice| choice == wanted).then(|| (wanted.to_owned(), chosen(current) == wanted))
    })
}

fn governor(machine: &Machine, places: Vec<String>, wanted: &str) -> Found {
    from_files(machine, places, "the cores' frequency is not this kernel's to choose", |current| {
        Some((wanted.to_owned(), current.trim() == wanted))
    })
}

/// A place in each core's folder.
fn cpu_files(machine: &Machine, files: impl Fn(&str) -> Vec<String>) -> Vec<String> {
    machine.cpus().into_iter().flat_map(|cpu| files(&format!("cpu{cpu}"))).collect()
}

fn idle_states(machine: &Machine, wanted: &str) -> Found {
    let most: u64 = wanted.parse().unwrap_or(u64::MAX);
    let slow = |cpu: &str| {
        let folder = format!("/sys/devices/system/cpu/{cpu}/cpuidle");
        let states = machine.names(&folder).into_iter().filter(|state| {
            let latency = machine.read(&format!("{folder}/{state}/latency")).ok();
            latency.and_then(|text| text.trim().parse::<u64>().ok()).is_some_and(|latency| latency > most)
        });
        states.map(|state| format!("{folder}/{state}/disable")).collect()
    };
    let files = cpu_files(machine, slow);
    from_files(machine, files, "no idle state takes that long to leave", |current| {
        Some(("1".to_owned(), current.trim() == "1"))
    })
}

fn irq_affinity(machine: &Machine) -> Found {
    let cpus = machine.cpus();
    let mut places = Vec::new();
    for nic in machine.nics() {
        let device = format!("/sys/class/net/{nic}/device");
        let folders = [format!("{device}/msi_irqs"), format!("{device}/../msi_irqs")];
        let irqs = folders.iter().map(|folder| machine.names(folder)).find(|irqs| !irqs.is_empty());
        for (index, irq) in irqs.unwrap_or_default().into_iter().enumerate() {
            if let Some(cpu) = cpus.get(index % cpus.len().max(1)) {
                places.push((format!("/proc/irq/{irq}/smp_affinity_list"), cpu.to_string()));
            }
        }
    }
    each_file(machine, places, "no network card has interrupts of its own", |current, write| current.trim() == write)
}

/// Targets from files, each with a value of its own.
fn each_file(
    machine: &Machine,
    places: Vec<(String, String)>,
    missing: &str,
    is_met: impl Fn(&str, &str) -> bool,
) -> Found {
    let mut targets = Vec::new();
    for (place, write) in places {
        match from_files(machine, [place], missing, |current| Some((write.clone(), is_met(current, &write)))) {
            Found::Targets(found) => targets.extend(found),
            Found::Missing(_) => {}
            other => return other,
        }
    }
    if targets.is_empty() { Found::Missing(missing.to_owned()) } else { Found::Targets(targets) }
}

fn queues(machine: &Machine, known: &Known, queue: Queue, wanted: &str) -> Found {
    let cpus = machine.cpus();
    let mut places = Vec::new();
    for nic in machine.nics() {
        let folder = format!("/sys/class/net/{nic}/queues");
        let names = machine.names(&folder);
        let of = |prefix: &str| names.iter().filter(|name| name.starts_with(prefix)).cloned().collect::<Vec<_>>();
        let (receive, send) = (of("rx-"), of("tx-"));
        match queue {
            Queue::Rps => {
                let few = wanted == "spread" && receive.len() < cpus.len();
                let value = if few { mask(&cpus) } else { "0".to_owned() };
                places.extend(receive.iter().map(|name| (format!("{folder}/{name}/rps_cpus"), value.clone())));
            }
            Queue::Rfs => {
                let all: u64 = wanted.parse().unwrap_or(0);
                let each = all / receive.len().max(1) as u64;
                places.extend(receive.iter().map(|name| (format!("{folder}/{name}/rps_flow_cnt"), each.to_string())));
            }
            Queue::Xps => {
                for (index, name) in send.iter().enumerate() {
                    let mine: Vec<usize> = cpus.iter().copied().filter(|cpu| cpu % send.len() == index).collect();
                    places.push((format!("{folder}/{name}/xps_cpus"), mask(&mine)));
                }
            }
        }
    }
    each_file(machine, places, "no network card has such queues", |current, write| match queue {
        Queue::Rfs => is_met(known, current, write),
        Queue::Rps | Queue::Xps => plain_mask(current) == plain_mask(write),
    })
}

fn limit(machine: &Machine, known: &Known, name: &str, wanted: &str) -> Found {
    let place = format!("/proc/{}/limits", machine.process());
    let text = match machine.read(&place) {
        Ok(text) => text,
        Err(error) => return Found::Unreadable(format!("{place}: {error}")),
    };
    // Name, soft limit, hard limit, unit. The server raises its soft limit itself.
    let hard = text.lines().find_map(|line| line.strip_prefix(name)).and_then(|rest| fields(rest).get(1).copied());
    match hard {
        Some(hard) => Found::Service { current: hard.to_owned(), met: is_met(known, hard, wanted) },
        None => Found::Missing(format!("{place} has no line `{name}`")),
    }
}

fn cgroup(machine: &Machine, known: &Known, file: &str, wanted: &str) -> Found {
    let place = format!("/proc/{}/cgroup", machine.process());
    let groups = machine.read(&place).unwrap_or_default();
    let mounts = machine.read("/proc/self/mounts").unwrap_or_default();
    let mount = mounts.lines().map(fields).find(|line| line.get(2) == Some(&"cgroup2"));
    let group = groups.lines().find_map(|line| line.strip_prefix("0::"));
    let (Some(mount), Some(group)) = (mount, group) else {
        return Found::Missing("there are no control groups of version 2".to_owned());
    };
    // What holds for a group holds for those in it: the tightest counts.
    let mut path = group.trim_end_matches('/');
    let mut tightest: Option<String> = None;
    loop {
        if let Ok(text) = machine.read(&format!("{}{path}/{file}", mount[1])) {
            let value = fields(&text).first().copied().unwrap_or_default().to_owned();
            if tightest.as_ref().is_none_or(|tightest| is_met(known, tightest, &value)) {
                tightest = Some(value);
            }
        }
        let Some((above, _)) = path.rsplit_once('/') else { break };
        path = above;
    }
    match tightest {
        Some(current) => Found::Service { met: is_met(known, &current, wanted), current },
        None => Found::Missing("the process is in no control group that limits it".to_owned()),
    }
}

fn mount(machine: &Machine, wanted: &str, data: &str) -> Found {
    let mounts = machine.read("/proc/self/mounts").unwrap_or_default();
    let below = |point: &str| {
        let point = point.trim_end_matches('/');
        data.strip_prefix(point).is_some_and(|rest| rest.is_empty() || rest.starts_with('/'))
    };
    let all = mounts.lines().map(fields).filter(|line| line.len() > 3 && below(line[1]));
    // Of equal ones the later lies on top.
    let Some(line) = all.max_by_key(|line| line[1].len()) else {
        return Found::Missing(format!("no file system is mounted at {data}"));
    };
    let met = line[3].split(',').any(|option| option == wanted);
    let times = ["noatime", "relatime", "lazytime", "strictatime"];
    let current = line[3].split(',').find(|option| times.contains(option)).unwrap_or("strictatime").to_owned();
    let remedy = format!("mount -o remount,{wanted} {0}, and the same option for {0} in /etc/fstab", line[1]);
    Found::Advice { current, met, remedy }
}

fn rings(machine: &Machine, direction: &str, wanted: &str) -> Found {
    let mut targets = Vec::new();
    for nic in machine.nics() {
        let Some(mut command) = machine.ethtool(&["-g", &nic]) else {
            return Found::Missing("ethtool is not installed: apt-get install ethtool".to_owned());
        };
        let Ok(output) = command.output() else { continue };
        let Some((most, current)) = ring_sizes(&String::from_utf8_lossy(&output.stdout), direction) else { continue };
        let want = wanted.parse().unwrap_or(most).min(most);
        let place = Place::Ring(nic, direction.to_owned());
        let (met, write) = (current >= want, format!("{}\n", want.max(current)));
        targets.push(Target { place, current: format!("{current}\n"), write, met });
    }
    if targets.is_empty() {
        return Found::Missing("no network card here has rings that can be set".to_owned());
    }
    Found::Targets(targets)
}

/// Of what `ethtool -g` prints: the largest size, and the current one.
#[must_use]
pub fn ring_sizes(text: &str, direction: &str) -> Option<(u64, u64)> {
    let label = format!("{}:", direction.to_uppercase());
    let mut sizes = text.lines().filter_map(|line| line.trim().strip_prefix(&label)?.trim().parse().ok());
    Some((sizes.next()?, sizes.next()?))
}

impl Target {
    /// What stands there, for a person.
    #[must_use]
    pub fn current_text(&self, known: &Known) -> String {
        match (known.means, self.current.trim()) {
            (Means::IdleStates, "0") => "slower ones on".to_owned(),
            (Means::IdleStates, _) => "slower ones off".to_owned(),
            _ => shown(chosen(&self.current)),
        }
    }

    /// What would be written, for a person.
    #[must_use]
    pub fn write_text(&self, known: &Known) -> String {
        Target { current: self.write.clone(), ..self.clone() }.current_text(known)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ring_sizes_are_read() {
        let text = "Ring parameters for eth0:\nPre-set maximums:\nRX:\t\t4096\nRX Mini:\tn/a\nTX:\t\t2048\nCurrent hardware \
                    settings:\nRX:\t\t512\nRX Mini:\tn/a\nTX:\t\t256\n";
        assert_eq!(ring_sizes(text, "rx"), Some((4096, 512)));
        assert_eq!(ring_sizes(text, "tx"), Some((2048, 256)));
        assert_eq!(ring_sizes("no such device", "rx"), None);
    }
}

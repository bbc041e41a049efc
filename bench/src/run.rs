//! One run of a scenario of messages: floor and servers alternate, and the medians are compared.

use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context, bail};
use serde::Deserialize;

use crate::connect::allow_descriptors;
use crate::cpu::{self, Disturbance, MachineTicks};
use crate::disk::FlushProbe;
use crate::environment::{Scratch, environment};
use crate::floor::{Floor, check_echo};
use crate::load::users::{self, PairUsers};
use crate::load::{Faults, PairsLoad, Plan};
use crate::measure::{Sample, Window, window};
use crate::process::{Server, Start, find_whimbrel};
use crate::report::Report;
use crate::ring::Waits;
use crate::scenario::{Kind, Scenario};
use crate::stats::median;
use crate::strace;
use crate::token::Minter;

/// The core of the servers of one shard, and that of the load.
pub(crate) const SERVER_CPU: usize = 0;
pub(crate) const LOAD_CPU: usize = 1;

const WARM_UP: Duration = Duration::from_millis(500);
const ECHO_ROUNDS: u32 = 3;
const FLUSHES_A_ROUND: usize = 64;
const STRACE: Duration = Duration::from_secs(5);
/// Descriptors for everything but connections.
pub(crate) const OTHER_DESCRIPTORS: u64 = 64;

/// What the command line asked for.
#[derive(Clone, Debug)]
pub(crate) struct Options {
    pub(crate) scenario: Scenario,
    pub(crate) target: Target,
    /// Count system calls too.
    pub(crate) strace: bool,
}

/// Which server.
#[derive(Clone, Debug)]
pub(crate) enum Target {
    /// Started for this run, with data below a directory.
    Spawn { whimbrel: Option<PathBuf>, data: Option<PathBuf> },
    /// Started by somebody else, with this data directory.
    Running { address: SocketAddr, data: PathBuf },
}

/// Does it.
pub(crate) fn run(options: &Options) -> anyhow::Result<Report> {
    allow_descriptors(u64::from(options.scenario.connections_max()) + OTHER_DESCRIPTORS)?;
    let before = MachineTicks::read();
    crate::process::pin(LOAD_CPU)?;
    let scratch = Scratch::new(match &options.target {
        Target::Spawn { data, .. } => data.as_deref(),
        Target::Running { .. } => None,
    })?;
    // The scratch directory goes with the servers' logs in it.
    let mut report = measure(options, scratch.path()).map_err(|error| scratch.explain(error))?;
    if let Target::Spawn { .. } = options.target {
        let Disturbance { steal_share, others_share } = MachineTicks::read().disturbance(before);
        report.detail.steal_share = steal_share;
        report.detail.others_share = others_share;
    }
    Ok(report)
}

fn measure(options: &Options, scratch: &Path) -> anyhow::Result<Report> {
    let scenario = &options.scenario;
    let connections = 2 * scenario.pairs;
    eprintln!("echo: the floor's ring against glommio's TcpStream, {connections} connections");
    let echo = check_echo(SERVER_CPU, connections, ECHO_ROUNDS)?;
    eprintln!("echo: {:.0} ns against {:.0} ns, {:.2}", echo.floor_ns, echo.glommio_ns, echo.ratio());
    echo.require()?;
    let mut subjects = subjects(options, scratch)?;
    let commands: Vec<_> = subjects.iter().map(|s| (s.name.to_owned(), s.command.clone())).collect();
    let mut report = Report::new(&scenario.name, environment(scenario, &commands)?);
    report.detail.floor_echo_cpu_ns = Some(echo.floor_ns);
    report.detail.glommio_echo_cpu_ns = Some(echo.glommio_ns);
    rounds(scenario, &mut subjects, scratch, &mut report)?;
    if let (true, Some(subject)) = (options.strace, subjects.first_mut()) {
        eprintln!("strace: {} s", STRACE.as_secs());
        let counted = strace::count(&mut subject.load, subject.server.pid(), STRACE, scratch)?;
        report.syscalls_per_delivered = Some(counted.per_delivered());
        report.detail.syscalls_by_name = counted.by_name.into_iter().collect();
    }
    fill(&mut report, scenario, &mut subjects);
    for subject in subjects {
        drop(subject.load);
        stop(subject.server);
    }
    Ok(report)
}

/// Floor and servers in turn, each silent while another is measured.
fn rounds(scenario: &Scenario, subjects: &mut [Subject], scratch: &Path, report: &mut Report) -> anyhow::Result<()> {
    let mut probe = FlushProbe::new(scratch)?;
    let mut floor = Floor::start(SERVER_CPU, 2 * scenario.pairs)?;
    let more = scenario.more_pairs.map(|pairs| Floor::start(SERVER_CPU, 2 * pairs));
    let mut floor_of_more = more.transpose()?;
    let length = Window { warm_up: WARM_UP, length: Duration::from_secs_f64(scenario.round_seconds) };
    for round in 1..=scenario.rounds {
        probe.round(FLUSHES_A_ROUND)?;
        let sample = floor.round(length)?;
        eprintln!("round {round}: floor {}", describe(&sample));
        report.detail.floor_rounds_ns.push(sample.cpu_ns_each());
        if let Some(floor) = &mut floor_of_more {
            let sample = floor.round(length)?;
            eprintln!("round {round}: floor of more pairs {}", describe(&sample));
            report.detail.floor_of_more_rounds_ns.push(sample.cpu_ns_each());
        }
        for subject in &mut *subjects {
            let sample = window(&mut subject.load, subject.server.clock(), length)?;
            eprintln!("round {round}: {} {}", subject.name, describe(&sample));
            subject.samples.push(sample);
        }
    }
    report.disk_flush_us = probe.percentiles();
    Ok(())
}

/// Asks a server to end. What was measured counts even if it does not.
pub(crate) fn stop(server: Server) {
    if let Err(error) = server.stop() {
        eprintln!("warning: {error:#}");
    }
}

/// A server and its load. The first of a run is what the report is about, a second one is what it is compared with.
struct Subject {
    name: &'static str,
    command: String,
    server: Server,
    load: PairsLoad,
    samples: Vec<Sample>,
}

impl Subject {
    fn cpu_ns_each(&self) -> Vec<f64> {
        self.samples.iter().map(Sample::cpu_ns_each).collect()
    }
}

fn subjects(options: &Options, scratch: &Path) -> anyhow::Result<Vec<Subject>> {
    let scenario = &options.scenario;
    let (whimbrel, cpus) = match &options.target {
        Target::Spawn { whimbrel, .. } => (find_whimbrel(whimbrel.as_deref())?, scenario.server_cpus.as_str()),
        Target::Running { address, data } => {
            if scenario.kind == Kind::Lanes || scenario.more_pairs.is_some() {
                bail!("scenario {} compares two servers, which it starts itself: use --spawn", scenario.name);
            }
            let server = Server::running(*address, data)?;
            let command = format!("process {} at {address}", server.pid());
            return Ok(vec![loaded("server", command, server, data, plan(scenario, users::pairs(scenario.pairs)))?]);
        }
    };
    let spawn =
        |name: &'static str, shards: u16, cpus: &str, pairs: &dyn Fn(&Path) -> anyhow::Result<Vec<PairUsers>>| {
            let data = scratch.join(name);
            let start = Start { program: &whimbrel, data: &data, shards, cpus, environment: &scenario.environment };
            let server = Server::whimbrel(&start)?;
            let command = start.command_line();
            loaded(name, command, server, &data, plan(scenario, pairs(&data)?))
        };
    match scenario.kind {
        Kind::Pairs => {
            let mut all = vec![spawn("server", 1, cpus, &|_| Ok(users::pairs(scenario.pairs)))?];
            if let Some(more) = scenario.more_pairs {
                all.push(spawn("more-pairs", 1, cpus, &|_| Ok(users::pairs(more)))?);
            }
            Ok(all)
        }
        Kind::Lanes => {
            let across = |data: &Path| Ok(users::pairs_across(scenario.pairs, partitions(data)?));
            let one = SERVER_CPU.to_string();
            Ok(vec![spawn("two-shards", 2, cpus, &across)?, spawn("one-shard", 1, &one, &across)?])
        }
        Kind::Drain | Kind::Idle | Kind::Acks | Kind::Recovery | Kind::Stall => {
            bail!("scenario {} has no pairs", scenario.name)
        }
    }
}

fn plan(scenario: &Scenario, pairs: Vec<PairUsers>) -> Plan {
    let waits = match scenario.kind {
        Kind::Pairs => Waits::Awake,
        // Its core is the second shard's too.
        _ => Waits::Asleep,
    };
    Plan { pairs, in_flight: scenario.in_flight, payload_bytes: scenario.payload_bytes, waits }
}

fn loaded(name: &'static str, command: String, server: Server, data: &Path, plan: Plan) -> anyhow::Result<Subject> {
    eprintln!("{name}: {} pairs log in at {}", plan.pairs.len(), server.address());
    let load = PairsLoad::start(server.address(), &Minter::load(data)?, &plan)?;
    Ok(Subject { name, command, server, load, samples: Vec::new() })
}

/// Partitions of the cluster that a data directory belongs to.
fn partitions(data: &Path) -> anyhow::Result<u16> {
    #[derive(Deserialize)]
    struct Identity {
        partitions: u16,
    }
    let path = data.join("whimbrel.json");
    let text = std::fs::read_to_string(&path).with_context(|| format!("read {}", path.display()))?;
    let identity: Identity = serde_json::from_str(&text).with_context(|| path.display().to_string())?;
    Ok(identity.partitions)
}

/// For a line of progress.
pub(crate) fn describe(sample: &Sample) -> String {
    format!(
        "{:.0} ns each, {:.0} a second, server {:.2} busy, load {:.2} busy",
        sample.cpu_ns_each(),
        sample.per_s(),
        sample.server_busy(),
        sample.generator_busy()
    )
}

fn fill(report: &mut Report, scenario: &Scenario, subjects: &mut [Subject]) {
    let [first, others @ ..] = subjects else { return };
    let sum = |of: fn(&Sample) -> u64| first.samples.iter().map(of).sum::<u64>();
    let (done, wall_ns) = (sum(|s| s.done), sum(|s| s.wall_ns).max(1));
    let (server_ns, generator_ns) = (sum(|s| s.server_cpu_ns), sum(|s| s.generator_cpu_ns));
    let floor = median(&report.detail.floor_rounds_ns);
    let each = median(&first.cpu_ns_each());
    report.delivered = Some(done);
    report.delivered_per_s = Some(done as f64 / wall_ns as f64 * 1e9);
    report.server_cpu_ns_per_delivered = Some(each);
    report.floor_cpu_ns_per_delivered = Some(floor);
    report.ratio_to_floor = Some(each / floor);
    report.detail.server_rounds_ns = first.cpu_ns_each();
    report.detail.server_busy = Some(server_ns as f64 / wall_ns as f64);
    report.detail.generator_busy = Some(generator_ns as f64 / wall_ns as f64);
    if let [other] = others {
        let other_each = median(&other.cpu_ns_each());
        report.detail.compared_rounds_ns = other.cpu_ns_each();
        match scenario.kind {
            Kind::Lanes => report.ratio_to_one_shard = Some(each / other_each),
            Kind::Pairs => {
                report.detail.ratio_of_more_pairs = Some(other_each / each);
                report.detail.floor_ratio_of_more_pairs = Some(median(&report.detail.floor_of_more_rounds_ns) / floor);
            }
            _ => {}
        }
    }
    let latencies = first.load.take_latencies();
    report.latency_us = latencies.deliver.percentiles();
    report.ack_latency_us = latencies.ack.percentiles();
    let threads = cpu::by_thread_name(first.server.pid());
    report.detail.server_threads_cpu_s = threads.into_iter().map(|(name, ns)| (name, ns as f64 / 1e9)).collect();
    let faults = subjects.iter().fold(Faults::default(), |sum, subject| sum.plus(subject.load.faults()));
    report.detail.refused = subjects.iter().map(|subject| subject.load.refused()).sum();
    report.lost = Some(faults.lost);
    report.duplicated = Some(faults.duplicated);
    report.reordered = Some(faults.reordered);
}

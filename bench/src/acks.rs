//! How long a sender waits for `Sent` while the server has half of what it can do, against the disk's own flushes.
//!
//! First a closed loop finds full load. Then an open loop at half of it and a writer that shares nothing with the server
//! alternate: each is silent while the other is measured. The writer does what the server's log did in the window before: as
//! many writes a second, each of the mean size, each durable. Times of the open loop count from when a message was due.
//! A raw server that only flushes what came and answers has its turn as well, at the same pace: what it cannot do, none can.

use std::path::Path;
use std::time::{Duration, Instant};

use anyhow::{Context, bail};

use crate::connect::allow_descriptors;
use crate::cpu::{self, Disturbance, MachineTicks};
use crate::disk::FlushProbe;
use crate::environment::{Scratch, environment};
use crate::floor::DurableFloor;
use crate::load::{IN_FLIGHT_MAX, PairsLoad, Plan, users};
use crate::measure::{Sample, Window, window};
use crate::metrics::Metrics;
use crate::process::{Server, Start, find_whimbrel};
use crate::report::{MachineStops, Report};
use crate::ring::Waits;
use crate::run::{LOAD_CPU, OTHER_DESCRIPTORS, Options, SERVER_CPU, Target, describe, stop};
use crate::scenario::Scenario;
use crate::stats::{Times, median};
use crate::stops::Stops;
use crate::token::Minter;

const WARM_UP: Duration = Duration::from_millis(500);

/// Windows of the closed loop, of which the median counts.
const FULL_LOAD_ROUNDS: u32 = 3;

/// The block in which the log's batches are placed.
const BLOCK_BYTES: f64 = 4096.0;

/// One server, alternating with a writer.
pub(crate) fn run(options: &Options) -> anyhow::Result<Report> {
    let Target::Spawn { whimbrel, data } = &options.target else {
        bail!(
            "an acks scenario writes beside the server's log on the same disk, whose data it places itself: use --spawn"
        );
    };
    // The raw server's load has as many connections.
    allow_descriptors(2 * u64::from(options.scenario.connections_max()) + OTHER_DESCRIPTORS)?;
    let whimbrel = find_whimbrel(whimbrel.as_deref())?;
    let before = MachineTicks::read();
    crate::process::pin(LOAD_CPU)?;
    let scratch = Scratch::new(data.as_deref())?;
    let measured = measure(&options.scenario, &whimbrel, scratch.path());
    let mut report = measured.map_err(|error| scratch.explain(error))?;
    let Disturbance { steal_share, others_share } = MachineTicks::read().disturbance(before);
    report.detail.steal_share = steal_share;
    report.detail.others_share = others_share;
    Ok(report)
}

fn measure(scenario: &Scenario, whimbrel: &Path, scratch: &Path) -> anyhow::Result<Report> {
    let data = scratch.join("server");
    let cpus = scenario.server_cpus.as_str();
    let start = Start { program: whimbrel, data: &data, shards: 1, cpus, environment: &scenario.environment };
    let server = Server::whimbrel(&start)?;
    let plan = Plan {
        pairs: users::pairs(scenario.pairs),
        in_flight: scenario.in_flight,
        payload_bytes: scenario.payload_bytes,
        waits: Waits::Awake,
    };
    let mut load = PairsLoad::start(server.address(), &Minter::load(&data)?, &plan)?;
    let mut probe = FlushProbe::new(scratch)?;
    let mut raw = DurableFloor::start(SERVER_CPU, 2 * scenario.pairs, scratch)?;
    let length = Window { warm_up: WARM_UP, length: Duration::from_secs_f64(scenario.round_seconds) };

    let mut full = Vec::new();
    for round in 1..=FULL_LOAD_ROUNDS {
        let sample = window(&mut load, server.clock(), length)?;
        eprintln!("full load {round}: {}", describe(&sample));
        full.push(sample.per_s());
    }
    let full_per_s = median(&full);
    drop(load.take_latencies());
    load.take_stalls();
    load.set_pace(Some(full_per_s * scenario.load_share));
    load.set_in_flight(IN_FLIGHT_MAX);

    let (mut acks, mut flushes, mut deliveries) = (Times::default(), Times::default(), Times::default());
    let (mut raw_acks, mut stalls) = (Times::default(), Vec::new());
    let (mut samples, mut raw_samples) = (Vec::new(), Vec::new());
    let (mut ratios, mut raw_ratios, mut raw_to_flush) = (Vec::new(), Vec::new(), Vec::new());
    let (watch, begun) = (Stops::watch_if_allowed([SERVER_CPU, LOAD_CPU]), Instant::now());
    for round in 1..=scenario.rounds {
        let before = Writes::read(&data)?;
        let sample = window(&mut load, server.clock(), length)?;
        let latencies = load.take_latencies();
        stalls.push(load.take_stalls());
        let writes = Writes::read(&data)?.since(before);
        let seconds = sample.wall_ns as f64 / 1e9 + WARM_UP.as_secs_f64();
        // From the core that the log is written from: it may be further from the disk's interrupts than another.
        crate::process::pin(SERVER_CPU)?;
        let paced = probe.paced(writes.blocks(), writes.count / seconds, length.length)?;
        crate::process::pin(LOAD_CPU)?;
        let (raw_sample, raw_answers) = raw.round(length, full_per_s * scenario.load_share)?;
        let p99 = |times: &Times| times.percentiles().map(|it| it.p99).context("nothing was timed");
        let (ack, flush) = (p99(&latencies.ack)?, p99(&paced)?);
        eprintln!(
            "round {round}: {}; p99 of Sent {ack:.0} µs, of {:.0} flushes of {} KiB a second {flush:.0} µs, ratio {:.2}",
            describe(&sample),
            writes.count / seconds,
            writes.blocks() * 4,
            ack / flush
        );
        let raw_ack = p99(&raw_answers)?;
        eprintln!(
            "round {round}: raw server {}; p99 of its answers {raw_ack:.0} µs, ratio {:.2}",
            describe(&raw_sample),
            ack / raw_ack
        );
        ratios.push(ack / flush);
        raw_ratios.push(ack / raw_ack);
        raw_to_flush.push(raw_ack / flush);
        raw_samples.push(raw_sample);
        raw_acks.add(&raw_answers);
        acks.add(&latencies.ack);
        deliveries.add(&latencies.deliver);
        flushes.add(&paced);
        samples.push(sample);
    }

    let watched = begun.elapsed();
    let stops = watch.map(Stops::end).transpose()?;
    let mut report =
        Report::new(&scenario.name, environment(scenario, &[("server".to_owned(), start.command_line())])?);
    let sum = |of: fn(&Sample) -> u64| samples.iter().map(of).sum::<u64>();
    let wall_ns = sum(|it| it.wall_ns).max(1) as f64;
    report.delivered = Some(sum(|it| it.done));
    report.delivered_per_s = Some(sum(|it| it.done) as f64 / wall_ns * 1e9);
    report.detail.server_rounds_ns = samples.iter().map(Sample::cpu_ns_each).collect();
    report.server_cpu_ns_per_delivered = Some(median(&report.detail.server_rounds_ns));
    report.ack_ratio_to_flush = Some(median(&ratios));
    report.detail.ack_ratio_rounds = ratios;
    report.detail.raw_ratio_to_flush = Some(median(&raw_to_flush));
    report.ack_ratio_to_raw = Some(median(&raw_ratios));
    report.detail.ack_ratio_to_raw_rounds = raw_ratios;
    report.detail.raw_ack_latency_us = raw_acks.percentiles();
    report.detail.raw_rounds_ns = raw_samples.iter().map(Sample::cpu_ns_each).collect();
    report.detail.full_load_per_s = Some(full_per_s);
    let window_s = (scenario.round_seconds + WARM_UP.as_secs_f64()) * stalls.len() as f64;
    report.detail.load_stalls_per_s = Some(stalls.iter().map(|it| it.count).sum::<u64>() as f64 / window_s);
    report.detail.load_stalled_share = Some(stalls.iter().map(|it| it.total.as_secs_f64()).sum::<f64>() / window_s);
    report.detail.load_stall_max_ms = stalls.iter().map(|it| it.longest.as_secs_f64() * 1e3).max_by(f64::total_cmp);
    report.detail.machine_stops = stops.map(|stops| MachineStops::of(&stops, watched));
    report.latency_us = deliveries.percentiles();
    report.ack_latency_us = acks.percentiles();
    report.disk_flush_us = flushes.percentiles();
    report.detail.server_busy = Some(sum(|it| it.server_cpu_ns) as f64 / wall_ns);
    report.detail.generator_busy = Some(sum(|it| it.generator_cpu_ns) as f64 / wall_ns);
    report.detail.refused = load.refused();
    let threads = cpu::by_thread_name(server.pid());
    report.detail.server_threads_cpu_s = threads.into_iter().map(|(name, ns)| (name, ns as f64 / 1e9)).collect();
    let faults = load.faults();
    report.lost = Some(faults.lost);
    report.duplicated = Some(faults.duplicated);
    report.reordered = Some(faults.reordered);
    drop(load);
    stop(server);
    Ok(report)
}

/// Writes of the server's log so far.
#[derive(Clone, Copy)]
struct Writes {
    count: f64,
    bytes: f64,
}

impl Writes {
    fn read(data: &Path) -> anyhow::Result<Writes> {
        let metrics = Metrics::read(data)?;
        Ok(Writes {
            count: metrics.sum("whimbrel_log_writes_total")?,
            bytes: metrics.sum("whimbrel_log_written_bytes_total")?,
        })
    }

    fn since(self, before: Writes) -> Writes {
        Writes { count: (self.count - before.count).max(1.0), bytes: self.bytes - before.bytes }
    }

    /// Of the mean one.
    fn blocks(self) -> usize {
        (self.bytes / self.count / BLOCK_BYTES).round().max(1.0) as usize
    }
}

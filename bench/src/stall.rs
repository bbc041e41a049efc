//! Turns of a shard while the log's chores go on: segments roll and are used again, checkpoints are made, and devices come back
//! to messages that are in memory no more.
//!
//! First the inboxes of devices that are away are filled, one after the other, so that each has its own part of the log; the
//! server stops, and nothing of its data stays in the page cache. Then it is loaded at an even pace while the devices come
//! back, evenly over the time. What counts is what the server says of its turns then, less the time in which it had no core.

use std::path::Path;
use std::time::{Duration, Instant};

use anyhow::bail;

use crate::connect::allow_descriptors;
use crate::cpu::{self, Disturbance, MachineTicks};
use crate::drain::Inboxes;
use crate::environment::{Scratch, environment};
use crate::load::{IN_FLIGHT_MAX, PairsLoad, Plan, users};
use crate::measure::{Load, drain};
use crate::metrics::Metrics;
use crate::process::{Server, Start, find_whimbrel};
use crate::recovery::leave_the_cache;
use crate::report::{Report, Turns};
use crate::ring::Waits;
use crate::run::{LOAD_CPU, OTHER_DESCRIPTORS, Options, Target, stop};
use crate::scenario::Scenario;
use crate::token::Minter;

/// What has not come so long after the end of the load is lost.
const PATIENCE: Duration = Duration::from_secs(20);

/// What is reported of that which went on, and the server's name for it.
const CHORES: [(&str, &str); 6] = [
    ("log writes", "whimbrel_log_writes_total"),
    ("segments begun", "whimbrel_segments_begun_total"),
    ("segments made", "whimbrel_segments_made_total"),
    ("of used ones", "whimbrel_segments_reused_total"),
    ("checkpoints", "whimbrel_checkpoints_total"),
    ("cold reads", "whimbrel_cold_reads_total"),
];

/// What may be in a turn, as the server labels it.
const IN_A_TURN: [&str; 5] = ["none", "segment", "checkpoint", "cold_read", "login"];

/// See the [module](self).
pub(crate) fn run(options: &Options) -> anyhow::Result<Report> {
    let Target::Spawn { whimbrel, data } = &options.target else {
        bail!("a stall scenario stops its server and starts it again: use --spawn");
    };
    allow_descriptors(u64::from(options.scenario.connections_max()) + OTHER_DESCRIPTORS)?;
    let whimbrel = find_whimbrel(whimbrel.as_deref())?;
    crate::process::pin(LOAD_CPU)?;
    let scratch = Scratch::new(data.as_deref())?;
    measure(&options.scenario, &whimbrel, scratch.path()).map_err(|error| scratch.explain(error))
}

fn measure(scenario: &Scenario, whimbrel: &Path, scratch: &Path) -> anyhow::Result<Report> {
    let data = scratch.join("server");
    let cpus = scenario.server_cpus.as_str();
    let start = Start { program: whimbrel, data: &data, shards: 1, cpus, environment: &scenario.environment };
    let server = Server::whimbrel(&start)?;
    let away = users::pairs_from(scenario.pairs, scenario.devices);
    let mut inboxes = Inboxes::new(&away, scenario, &server, Minter::load(&data)?)?;
    eprintln!("filling the inboxes of {} devices, {} messages each", scenario.devices, scenario.messages);
    inboxes.fill_in_turn()?;
    inboxes.leave();
    server.stop()?;
    leave_the_cache(&data)?;

    let server = Server::whimbrel(&start)?;
    let plan = Plan {
        pairs: users::pairs(scenario.pairs),
        in_flight: IN_FLIGHT_MAX,
        payload_bytes: scenario.payload_bytes,
        waits: Waits::Awake,
    };
    let mut load = PairsLoad::start(server.address(), &Minter::load(&data)?, &plan)?;
    load.set_pace(Some(scenario.per_s));
    let length = Duration::from_secs_f64(scenario.round_seconds * f64::from(scenario.rounds));
    eprintln!("{} messages a second for {} s, while the devices come back", scenario.per_s, length.as_secs());
    let before = MachineTicks::read();
    let mut ring = inboxes.ring()?;
    let mut come = 0;
    load.resume();
    load.measured(true);
    let begun = Instant::now();
    while begun.elapsed() < length {
        load.turn()?;
        inboxes.turn(&mut ring, Duration::ZERO)?;
        let due = begun.elapsed().as_secs_f64() / length.as_secs_f64() * f64::from(scenario.devices);
        // The last ones have a tenth of the time for themselves.
        if f64::from(come) < due * 1.1 && come < scenario.devices {
            inboxes.come(come, &server, &mut ring)?;
            come += 1;
        }
    }
    load.measured(false);
    load.pause();
    drain(&mut load)?;
    let ended = Instant::now();
    while !inboxes.have_all(scenario.devices as usize) && ended.elapsed() < PATIENCE {
        inboxes.turn(&mut ring, Duration::from_millis(5))?;
    }
    let metrics = Metrics::read(&data)?;
    let Disturbance { steal_share, others_share } = MachineTicks::read().disturbance(before);

    let mut report =
        Report::new(&scenario.name, environment(scenario, &[("server".to_owned(), start.command_line())])?);
    report.detail.steal_share = steal_share;
    report.detail.others_share = others_share;
    report.delivered = Some(load.done() + inboxes.received());
    let latencies = load.take_latencies();
    report.latency_us = latencies.deliver.percentiles();
    report.ack_latency_us = latencies.ack.percentiles();
    report.turn_own_us = Some(turns(&metrics)?);
    for (name, metric) in CHORES {
        report.detail.chores.insert(name.to_owned(), metrics.sum(metric)? as u64);
    }
    for what in IN_A_TURN {
        let count = metrics.sum_of("whimbrel_turns_long_total", &format!("with=\"{what}\"")) as u64;
        report.detail.long_turns.insert(what.to_owned(), count);
    }
    report.detail.refused = load.refused();
    let threads = cpu::by_thread_name(server.pid());
    report.detail.server_threads_cpu_s = threads.into_iter().map(|(name, ns)| (name, ns as f64 / 1e9)).collect();
    let faults = load.faults().plus(inboxes.faults());
    report.lost = Some(faults.lost);
    report.duplicated = Some(faults.duplicated);
    report.reordered = Some(faults.reordered);
    drop((load, ring));
    stop(server);
    Ok(report)
}

fn turns(metrics: &Metrics) -> anyhow::Result<Turns> {
    let at = |quantile: &str| {
        let label = format!("quantile=\"{quantile}\"");
        anyhow::Ok(metrics.max("whimbrel_turn_own_quantile_seconds", &label)? * 1e6)
    };
    Ok(Turns {
        count: metrics.sum("whimbrel_turn_own_seconds_count")? as u64,
        p50: at("0.5")?,
        p999: at("0.999")?,
        p99999: at("0.99999")?,
        max: at("1")?,
    })
}

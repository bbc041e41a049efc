//! Turns of a shard while the log's chores go on: segments roll and are used again, checkpoints are made, and devices come back
//! to messages that are in memory no more.
//!
//! First the inboxes of devices that are away are filled, one after the other, so that each has its own part of the log; the
//! server stops, and nothing of its data stays in the page cache. Then it is loaded at an even pace while the devices come
//! back, evenly over the time. What counts is what the server says of its turns then, less the time in which it had no core.
//!
//! A virtual machine may be stopped as a whole, of which the server knows nothing: it takes the time for its own. So it is asked to log each
//! turn above a millisecond, and what of it lay in a [stop](crate::stops) is told apart.

use std::path::Path;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use anyhow::{Context, bail};

use crate::connect::allow_descriptors;
use crate::cpu::{self, Disturbance, MachineTicks};
use crate::drain::Inboxes;
use crate::environment::{Scratch, environment};
use crate::load::{IN_FLIGHT_MAX, PairsLoad, Plan, users};
use crate::measure::{Load, drain};
use crate::metrics::Metrics;
use crate::process::{Server, Start, find_whimbrel};
use crate::recovery::leave_the_cache;
use crate::report::{MachineStops, Report, Turns};
use crate::ring::Waits;
use crate::run::{LOAD_CPU, OTHER_DESCRIPTORS, Options, SERVER_CPU, Target, stop};
use crate::scenario::Scenario;
use crate::stops::{Span, Stops, within};
use crate::token::Minter;

/// What has not come so long after the end of the load is lost.
const PATIENCE: Duration = Duration::from_secs(20);

/// Settings with which a server logs each turn above a millisecond.
const LOG_LONG_TURNS: [(&str, &str); 2] = [("WHIMBREL_LOG_LEVEL", "debug"), ("WHIMBREL_LOG_FORMAT", "json")];

/// The highest length of a turn that it does not log.
const LONG_US: u64 = 1_000;

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
const IN_A_TURN: [&str; 5] = ["none", "segment", "checkpoint", "cold_read", "move"];

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

    let mut settings = scenario.environment.clone();
    settings.extend(LOG_LONG_TURNS.map(|(name, value)| (name.to_owned(), value.to_owned())));
    let start = Start { environment: &settings, ..start };
    let server = Server::whimbrel(&start)?;
    let plan = Plan {
        pairs: users::pairs(scenario.pairs),
        in_flight: IN_FLIGHT_MAX,
        payload_bytes: scenario.payload_bytes,
        // Awake it keeps a core busy, and a machine that has used up what it is to have is stopped.
        waits: Waits::Asleep,
    };
    let mut load = PairsLoad::start(server.address(), &Minter::load(&data)?, &plan)?;
    load.set_pace(Some(scenario.per_s));
    let length = Duration::from_secs_f64(scenario.round_seconds * f64::from(scenario.rounds));
    eprintln!("{} messages a second for {} s, while the devices come back", scenario.per_s, length.as_secs());
    let before = MachineTicks::read();
    let mut ring = inboxes.ring()?;
    let mut come = 0;
    let watch = Stops::watch_if_allowed([SERVER_CPU, LOAD_CPU]);
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
    let (watched, stops) = (begun.elapsed(), watch.map(Stops::end).transpose()?);
    let Disturbance { steal_share, others_share } = MachineTicks::read().disturbance(before);

    let mut report =
        Report::new(&scenario.name, environment(scenario, &[("server".to_owned(), start.command_line())])?);
    report.detail.steal_share = steal_share;
    report.detail.others_share = others_share;
    report.delivered = Some(load.done() + inboxes.received());
    let latencies = load.take_latencies();
    report.latency_us = latencies.deliver.percentiles();
    report.ack_latency_us = latencies.ack.percentiles();
    let (own, chores) = (turns(&metrics, "own")?, turns(&metrics, "chores")?);
    report.turn_own_us = Some(own);
    report.detail.turn_chores_us = Some(chores);
    if let Some(stops) = stops {
        report.detail.machine_stops = Some(MachineStops::of(&stops, watched));
        running(&mut report, own, chores, &long_turns(&data.with_extension("log"))?, &stops);
    }
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

/// A turn above a millisecond.
struct LongTurn {
    /// Microseconds since 1970.
    ended_us: u64,
    wall_us: u64,
    own_us: u64,
    /// What of it the log's chores took.
    chores_us: u64,
    with: String,
}

/// Those that a server has logged.
fn long_turns(log: &Path) -> anyhow::Result<Vec<LongTurn>> {
    let text = std::fs::read_to_string(log).with_context(|| format!("read {}", log.display()))?;
    let now_us = SystemTime::now().duration_since(UNIX_EPOCH).context("the clock is before 1970")?.as_micros() as u64;
    let read = |line| LongTurn::read(line, now_us).with_context(|| format!("no long turn can be read in this: {line}"));
    text.lines().filter(|line| line.contains("a long turn")).map(read).collect()
}

const DAY_US: u64 = 86_400_000_000;

impl LongTurn {
    /// From a line that was logged within the twelve hours before `now_us`.
    fn read(line: &str, now_us: u64) -> Option<LongTurn> {
        let line: serde_json::Value = serde_json::from_str(line).ok()?;
        let fields = line.get("fields")?;
        let clock = line.get("timestamp")?.as_str()?.split_once('T')?.1.strip_suffix('Z')?;
        let (seconds, micros) = clock.split_once('.')?;
        let seconds = seconds.split(':').try_fold(0, |sum, part| Some(sum * 60 + part.parse::<u64>().ok()?))?;
        let micros: u64 = format!("{micros:0<6}").get(..6)?.parse().ok()?;
        let of_today_us = now_us - now_us % DAY_US + seconds * 1_000_000 + micros;
        let is_of_yesterday = of_today_us > now_us + DAY_US / 2;
        Some(LongTurn {
            ended_us: if is_of_yesterday { of_today_us - DAY_US } else { of_today_us },
            wall_us: fields.get("wall_us")?.as_u64()?,
            own_us: fields.get("own_us")?.as_u64()?,
            chores_us: fields.get("chores_us")?.as_u64()?,
            with: fields.get("with")?.as_str()?.to_owned(),
        })
    }
}

/// What is left of the long turns without what of them lay in stops of the machine.
fn running(report: &mut Report, own: Turns, chores: Turns, long: &[LongTurn], stops: &[Span]) {
    let (mut turns, mut of_chores) = (Vec::with_capacity(long.len()), Vec::with_capacity(long.len()));
    for turn in long {
        let stopped_us = within(stops, (turn.ended_us - turn.wall_us, turn.ended_us));
        // Where the thread had no core it may have been for the stop: that is off already.
        let running_us = turn.own_us.saturating_sub(stopped_us.saturating_sub(turn.wall_us - turn.own_us));
        turns.push(running_us);
        // Nobody knows in which part of the turn the stop lay: for what is certain it was not among the chores.
        of_chores.push(turn.chores_us.min(running_us));
        if running_us > LONG_US {
            for with in turn.with.split(' ') {
                let with = if with.is_empty() { "none" } else { with };
                *report.detail.long_turns_running.entry(with.to_owned()).or_default() += 1;
            }
        }
    }
    // One in a hundred thousand is longer. All that are not among these are at most a millisecond.
    let longer = (own.count as f64 * 1e-5) as usize;
    let tail = |mut lengths: Vec<u64>, as_measured: Turns| {
        lengths.sort_unstable_by(|a, b| b.cmp(a));
        let at = |index: usize| lengths.get(index).map_or(LONG_US, |us| *us.max(&LONG_US)) as f64;
        (Some(at(longer).min(as_measured.p99999)), Some(at(0).min(as_measured.max)))
    };
    let detail = &mut report.detail;
    (detail.turn_running_p99999_us, detail.turn_running_max_us) = tail(turns, own);
    (detail.turn_chores_running_p99999_us, detail.turn_chores_running_max_us) = tail(of_chores, chores);
}

/// What the server says of its turns' `part`.
fn turns(metrics: &Metrics, part: &str) -> anyhow::Result<Turns> {
    let at = |quantile: &str| {
        let label = format!("quantile=\"{quantile}\"");
        anyhow::Ok(metrics.max(&format!("whimbrel_turn_{part}_quantile_seconds"), &label)? * 1e6)
    };
    Ok(Turns {
        count: metrics.sum(&format!("whimbrel_turn_{part}_seconds_count"))? as u64,
        p50: at("0.5")?,
        p999: at("0.999")?,
        p99999: at("0.99999")?,
        max: at("1")?,
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::report::Environment;

    const MIDNIGHT_US: u64 = 20_000 * DAY_US;

    fn line(clock: &str, own_us: u64, chores_us: u64, with: &str) -> String {
        let wall_us = own_us + 500;
        let times = format!(r#""wall_us":{wall_us},"own_us":{own_us},"chores_us":{chores_us}"#);
        let fields = format!(r#"{{"message":"a long turn",{times},"with":"{with}"}}"#);
        format!(r#"{{"timestamp":"2026-11-30T{clock}Z","level":"DEBUG","fields":{fields},"target":"t"}}"#)
    }

    #[test]
    fn long_turns_are_read_across_midnight() {
        let at = |clock, now_us| LongTurn::read(&line(clock, 7, 0, ""), now_us).unwrap().ended_us;
        assert_eq!(at("01:02:03.000004", MIDNIGHT_US + DAY_US / 2), MIDNIGHT_US + 3_723_000_004);
        assert_eq!(at("23:59:59.5", MIDNIGHT_US + 5), MIDNIGHT_US - 500_000);
        assert!(LongTurn::read("a long turn", MIDNIGHT_US).is_none());
    }

    #[test]
    fn what_lies_in_a_stop_is_taken_off_a_turn() {
        let now_us = MIDNIGHT_US + DAY_US / 2;
        let read =
            |clock, own_us, chores_us, with| LongTurn::read(&line(clock, own_us, chores_us, with), now_us).unwrap();
        let long = [
            read("01:00:00.010000", 9_000, 0, ""),
            read("01:00:01.000000", 3_000, 2_000, "segment checkpoint"),
            read("01:00:02.000000", 1_500, 1_400, "move"),
        ];
        let hour = MIDNIGHT_US + 3_600_000_000;
        let stops = [(hour, hour + 8_500), (hour + 1_998_500, hour + 1_999_600)];
        let mut report = Report::new("stall", Environment::default());
        let own = Turns { count: 200_000, p50: 20.0, p999: 900.0, p99999: 3_000.0, max: 9_000.0 };
        let chores = Turns { p50: 0.0, p999: 0.0, p99999: 1_400.0, max: 2_000.0, ..own };
        running(&mut report, own, chores, &long, &stops);
        let detail = &report.detail;
        let above: Vec<_> = detail.long_turns_running.iter().map(|(name, count)| (name.as_str(), *count)).collect();
        assert_eq!(above, [("checkpoint", 1), ("none", 1), ("segment", 1)]);
        assert_eq!((detail.turn_running_p99999_us, detail.turn_running_max_us), (Some(1_000.0), Some(3_000.0)));
        let of_chores = (detail.turn_chores_running_p99999_us, detail.turn_chores_running_max_us);
        assert_eq!(of_chores, (Some(1_000.0), Some(2_000.0)));
    }
}

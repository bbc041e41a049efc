//! The command line.

mod plants;
mod seeds;
mod steady;

use std::fs::File;
use std::io::{self, BufWriter, Write};
use std::ops::Range;
use std::path::PathBuf;

use anyhow::{Context, anyhow, bail};
use clap::{CommandFactory, Parser, Subcommand};
use whimbrel_sim::plant::Plant;
use whimbrel_sim::steady::Steady;
use whimbrel_sim::{DEFAULT_STEPS, Run, Trace};
use whimbrel_storage::limits::SEGMENT_DEV_BYTES;

/// Runs a whole Whimbrel node on one thread from a seed, breaks what may break beneath it, and checks what its clients see
#[derive(Debug, Parser)]
#[command(name = "whimbrel-sim", version, subcommand_negates_reqs = true, after_help = EXAMPLES)]
struct Args {
    /// Run this seed
    #[arg(long, value_name = "N", conflicts_with = "seeds", required_unless_present_any = ["seeds", "list_plants"])]
    seed: Option<u64>,
    /// Run the seeds from A up to, and without, B, as in 0..1000
    #[arg(long, value_name = "A..B", value_parser = parse_seeds)]
    seeds: Option<Range<u64>>,
    /// Inputs that the shards are given before all faults end and the node has to come to rest
    #[arg(long, value_name = "M", default_value_t = DEFAULT_STEPS)]
    steps: u64,
    /// Plant a fault; --list-plants names them
    #[arg(long, value_name = "NAME", value_parser = parse_plant)]
    plant: Option<Plant>,
    /// Write the whole story of a seed to a file
    #[arg(long, value_name = "FILE", requires = "seed")]
    trace: Option<PathBuf>,
    /// Print one JSON object in place of text
    #[arg(long, global = true)]
    json: bool,
    /// List the faults that can be planted
    #[arg(long)]
    list_plants: bool,
    #[command(subcommand)]
    command: Option<Command>,
}

const EXAMPLES: &str = "\
Examples:
  whimbrel-sim --seeds 0..1000             find seeds that break a promise
  whimbrel-sim --seed 42 --trace story.txt tell all that happens under one
  whimbrel-sim plants                      see that the checks can fail
  whimbrel-sim forgetting                  see what forgetting writes

The same seed and steps give the same story, byte for byte. The exit code is 0 if nothing was found, 1 if something was,
2 if the command is wrong.";

#[derive(Debug, Subcommand)]
enum Command {
    /// Plant each fault in turn, and run seeds until the check that it is planted for finds it, or it is seen to be healed
    Plants {
        /// Give a fault up after so many seeds
        #[arg(long, value_name = "N", default_value_t = 1000)]
        within: u64,
        /// Inputs of a run before its faults end
        #[arg(long, value_name = "M", default_value_t = DEFAULT_STEPS)]
        steps: u64,
    },
    /// Let simulated days pass in which a part of the messages waits for long, and say what is written so that all others are
    /// forgotten in time
    Forgetting {
        /// How long a message waits whose device is away; as long again is measured
        #[arg(long, value_name = "D", default_value_t = 3, value_parser = clap::value_parser!(u64).range(1..=30))]
        days: u64,
        /// Messages a second
        #[arg(long, value_name = "N", default_value_t = 2, value_parser = clap::value_parser!(u64).range(1..=100))]
        rate: u64,
        /// Bytes of a message
        #[arg(long, value_name = "N", default_value_t = 160, value_parser = clap::value_parser!(u32).range(1..=60_000))]
        payload: u32,
    },
}

/// Runs the program and gives its exit code.
pub(crate) fn main() -> i32 {
    if std::env::args_os().len() == 1 {
        let _ = Args::command().print_help();
        return 0;
    }
    let args = match Args::try_parse() {
        Ok(args) => args,
        Err(error) => {
            // Help and version are answers, all else is a wrong command.
            let code = error.exit_code();
            let _ = error.print();
            return code;
        }
    };
    seeds::tell_aborts();
    match carry_out(&args) {
        Ok(true) => 0,
        Ok(false) => 1,
        Err(error) if is_broken_pipe(&error) => 0,
        Err(error) => {
            eprintln!("whimbrel-sim: {error:#}");
            2
        }
    }
}

fn carry_out(args: &Args) -> anyhow::Result<bool> {
    if args.list_plants {
        return list_plants(args.json).map(|()| true);
    }
    if let Some(Command::Plants { within, steps }) = args.command {
        return plants::hunt_all(within, steps, args.json);
    }
    if let Some(Command::Forgetting { days, rate, payload }) = args.command {
        let payload_bytes = payload as usize;
        let what = Steady { wait_days: days, rate, payload_bytes, segment_bytes: SEGMENT_DEV_BYTES };
        return steady::forgetting(what, args.json);
    }
    let run = |seed| Run { seed, steps: args.steps, plant: args.plant };
    if let Some(seeds) = args.seeds.clone() {
        return seeds::many(seeds, run, args.json);
    }
    let seed = args.seed.context("one of --seed, --seeds or --list-plants is needed")?;
    let trace = match &args.trace {
        Some(path) => {
            let file = File::create(path).with_context(|| format!("write the trace to {}", path.display()))?;
            Trace::to_file(Box::new(BufWriter::new(file)))
        }
        None => Trace::default(),
    };
    seeds::one(run(seed), trace, args.json)
}

fn list_plants(json: bool) -> anyhow::Result<()> {
    let mut out = io::stdout().lock();
    if json {
        let list: Vec<_> = Plant::ALL
            .iter()
            .map(|it| serde_json::json!({ "name": it.name(), "story": it.story(), "trips": trips(*it) }))
            .collect();
        writeln!(out, "{}", serde_json::Value::from(list))?;
    } else {
        for plant in Plant::ALL {
            let trips = if plant.must_be_healed() { "must be healed".to_owned() } else { trips(plant).join(", ") };
            writeln!(out, "{:<16} {} ({trips})", plant.name(), plant.story())?;
        }
    }
    Ok(())
}

/// Names of the checks that it may trip.
fn trips(plant: Plant) -> Vec<&'static str> {
    plant.trips().iter().map(|check| check.name()).collect()
}

fn parse_seeds(text: &str) -> anyhow::Result<Range<u64>> {
    let range = text.split_once("..").and_then(|(start, end)| Some(start.parse().ok()?..end.parse().ok()?));
    let range: Range<u64> = range.ok_or_else(|| anyhow!("write it as A..B with two numbers, as in 0..1000"))?;
    if range.is_empty() {
        bail!(
            "no seed is in it: B is not included and has to be above A, as in {0}..{1}",
            range.start,
            range.start.saturating_add(1)
        );
    }
    Ok(range)
}

fn parse_plant(text: &str) -> anyhow::Result<Plant> {
    Plant::named(text).ok_or_else(|| anyhow!("there is no such fault; --list-plants names them"))
}

fn is_broken_pipe(error: &anyhow::Error) -> bool {
    error.downcast_ref::<io::Error>().is_some_and(|error| error.kind() == io::ErrorKind::BrokenPipe)
}

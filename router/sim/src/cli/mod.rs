//! The command line.

mod plants;
mod seeds;

use std::fs::File;
use std::io::{self, BufWriter, Write};
use std::ops::Range;
use std::path::PathBuf;

use anyhow::{Context, anyhow};
use clap::{Parser, Subcommand};
use whimbrel_sim::plant::Plant;
use whimbrel_sim::{DEFAULT_STEPS, Run, Trace};

/// Runs a whole Whimbrel node on one thread from a seed, breaks what may break beneath it, and checks what its clients see.
///
/// The exit code is 0 if nothing was found, 1 if something was, 2 if the command is wrong.
#[derive(Debug, Parser)]
#[command(name = "whimbrel-sim", version, arg_required_else_help = true, subcommand_negates_reqs = true)]
struct Args {
    /// Run this seed
    #[arg(long, value_name = "N", conflicts_with = "seeds", required_unless_present_any = ["seeds", "list_plants"])]
    seed: Option<u64>,
    /// Run the seeds from A up to, and without, B
    #[arg(long, value_name = "A..B", value_parser = parse_seeds)]
    seeds: Option<Range<u64>>,
    /// Inputs of a run before its faults end
    #[arg(long, value_name = "M", default_value_t = DEFAULT_STEPS)]
    steps: u64,
    /// Plant a bug; see --list-plants
    #[arg(long, value_name = "NAME", value_parser = parse_plant)]
    plant: Option<Plant>,
    /// Write the whole story of a seed to a file
    #[arg(long, value_name = "FILE", requires = "seed")]
    trace: Option<PathBuf>,
    /// Print one JSON object in place of text
    #[arg(long, global = true)]
    json: bool,
    /// List the bugs that can be planted
    #[arg(long)]
    list_plants: bool,
    #[command(subcommand)]
    command: Option<Command>,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Plant each bug in turn and run seeds until a check finds it
    Plants {
        /// Give a bug up after so many seeds
        #[arg(long, value_name = "N", default_value_t = 1000)]
        within: u64,
        /// Inputs of a run before its faults end
        #[arg(long, value_name = "M", default_value_t = DEFAULT_STEPS)]
        steps: u64,
    },
}

/// Runs the program and gives its exit code.
pub(crate) fn main() -> i32 {
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
        return plants::hunt(within, steps, args.json);
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
        let list: Vec<_> =
            Plant::ALL.iter().map(|it| serde_json::json!({ "name": it.name(), "story": it.story() })).collect();
        writeln!(out, "{}", serde_json::Value::from(list))?;
    } else {
        for plant in Plant::ALL {
            writeln!(out, "{:<16} {}", plant.name(), plant.story())?;
        }
    }
    Ok(())
}

fn parse_seeds(text: &str) -> anyhow::Result<Range<u64>> {
    let wrong = || anyhow!("expected A..B with A below B, as in 0..1000");
    let (start, end) = text.split_once("..").ok_or_else(wrong)?;
    let range = start.parse().map_err(|_| wrong())?..end.parse().map_err(|_| wrong())?;
    if range.is_empty() { Err(wrong()) } else { Ok(range) }
}

fn parse_plant(text: &str) -> anyhow::Result<Plant> {
    Plant::named(text).ok_or_else(|| anyhow!("no such bug; --list-plants names them"))
}

fn is_broken_pipe(error: &anyhow::Error) -> bool {
    error.downcast_ref::<io::Error>().is_some_and(|error| error.kind() == io::ErrorKind::BrokenPipe)
}

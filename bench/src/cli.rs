//! The command line. Progress goes to stderr, figures to stdout or a file. Exit codes: 0 measured, 1 not, or a promise was
//! broken, 2 not understood.

use std::fs;
use std::io::{self, Write};
use std::net::{SocketAddr, ToSocketAddrs};
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::Duration;

use anyhow::{Context, bail};
use clap::{ArgGroup, Args, Parser, Subcommand};

use crate::connect::allow_descriptors;
use crate::floor::{self, Floor, check_echo};
use crate::measure::Window;
use crate::process::{self, ServerKind};
use crate::report::Report;
use crate::run::{self, LOAD_CPU, OTHER_DESCRIPTORS, Options, SERVER_CPU, Target};
use crate::scenario::{Kind, Scenario};
use crate::stats::median;
use crate::{acks, drain, idle, load, recovery, stall};

/// Loads a Whimbrel server through its wire protocol and says what it costs, against a floor measured in the same run.
#[derive(Parser)]
#[command(name = "whimbrel-bench", version = concat!(env!("CARGO_PKG_VERSION"), " (", env!("WHIMBREL_COMMIT"), ")"))]
#[command(disable_help_subcommand = true, subcommand_required = true, arg_required_else_help = true)]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// Run a scenario. Exits with 1 if a message was lost, came twice or came out of order.
    Run(RunArguments),
    /// Measure only what the sockets cost: the denominator of ratio_to_floor.
    Floor(FloorArguments),
    /// A server of the bench's own, started by the other commands.
    #[command(hide = true)]
    FloorServer(FloorServerArguments),
}

#[derive(Args)]
#[command(group = ArgGroup::new("target").required(true))]
struct RunArguments {
    /// A scenario file, such as bench/scenarios/pairs.toml.
    scenario: PathBuf,
    /// Start the `whimbrel` beside this program, on data of its own; it must be of the same commit.
    #[arg(long, group = "target")]
    spawn: bool,
    /// Load the server at this address; --data names its data directory, where its development key lies.
    #[arg(long, value_name = "ADDR", group = "target", requires = "data")]
    server: Option<String>,
    /// With --server: its data directory. With --spawn: where data is kept for the run [default: target/bench-data].
    #[arg(long, value_name = "DIR")]
    data: Option<PathBuf>,
    /// Write the report as JSON to this file; `-` is stdout, in place of the text.
    #[arg(long, value_name = "FILE")]
    json: Option<PathBuf>,
    /// Measured seconds of the server, all rounds together [default: what the scenario says].
    #[arg(long, value_name = "N")]
    seconds: Option<f64>,
    /// The `whimbrel` to start, instead of the one beside this program.
    #[arg(long, value_name = "PATH", requires = "spawn")]
    whimbrel: Option<PathBuf>,
    /// Count the server's system calls too, by `strace -c -f`, after everything else.
    #[arg(long)]
    strace: bool,
}

#[derive(Args)]
struct FloorArguments {
    /// Connections, two a pair.
    #[arg(long, value_name = "N", default_value_t = 2000, value_parser = clap::value_parser!(u32).range(2..))]
    connections: u32,
    /// Measured seconds, all rounds together.
    #[arg(long, value_name = "N", default_value_t = 10.0)]
    seconds: f64,
    /// Write the figures as JSON to this file; `-` is stdout, in place of the text.
    #[arg(long, value_name = "FILE")]
    json: Option<PathBuf>,
}

#[derive(Args)]
struct FloorServerArguments {
    #[arg(long, value_enum)]
    kind: ServerKind,
    #[arg(long)]
    cpu: usize,
    #[arg(long)]
    slots: u32,
    /// What a durable one writes to; it is made.
    #[arg(long, required_if_eq("kind", "durable"))]
    log: Option<PathBuf>,
}

/// Does what the command line says.
pub(crate) fn main() -> ExitCode {
    let result = match Cli::parse().command {
        Command::Run(arguments) => match Scenario::read(&arguments.scenario).and_then(|s| s.lasting(arguments.seconds))
        {
            Ok(scenario) => run_command(scenario, arguments),
            Err(error) => {
                eprintln!("error: {error:#}");
                return ExitCode::from(2);
            }
        },
        Command::Floor(arguments) => floor_command(&arguments),
        Command::FloorServer(arguments) => {
            let FloorServerArguments { kind, cpu, slots, log } = arguments;
            process::die_with_parent().and_then(|()| floor::serve(kind, cpu, slots, log.as_deref()))
        }
    };
    match result {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) if is_broken_pipe(&error) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("error: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn run_command(scenario: Scenario, arguments: RunArguments) -> anyhow::Result<()> {
    let target = match (arguments.server, arguments.data) {
        (Some(server), Some(data)) => Target::Running { address: resolve(&server)?, data },
        (_, data) => Target::Spawn { whimbrel: arguments.whimbrel, data },
    };
    let options = Options { scenario, target, strace: arguments.strace };
    let report = match options.scenario.kind {
        Kind::Pairs | Kind::Lanes => run::run(&options)?,
        Kind::Drain => drain::run(&options)?,
        Kind::Idle => idle::run(&options)?,
        Kind::Acks => acks::run(&options)?,
        Kind::Recovery => recovery::run(&options)?,
        Kind::Stall => stall::run(&options)?,
    };
    let json = serde_json::to_string_pretty(&report).context("the report as JSON")?;
    publish(arguments.json.as_deref(), &json, &report.text())?;
    judge(&report)
}

/// What makes a run no good although it was measured, and what makes it doubtful.
fn judge(report: &Report) -> anyhow::Result<()> {
    if let (Some(load), Some(server)) = (report.detail.generator_busy, report.detail.server_busy)
        && load > 0.95
        && server < 0.95
    {
        eprintln!(
            "warning: the load kept its core {load:.2} busy and the server only {server:.2}: the load is the bottleneck, and \
             latencies are its own"
        );
    }
    let disturbed = report.detail.steal_share + report.detail.others_share;
    if disturbed > 0.03 {
        eprintln!(
            "warning: other processes took {:.0} % of this machine and other machines {:.0} %: measure again when it is quiet",
            report.detail.others_share * 100.0,
            report.detail.steal_share * 100.0
        );
    }
    let faults = load::Faults {
        lost: report.lost.unwrap_or(0),
        duplicated: report.duplicated.unwrap_or(0),
        reordered: report.reordered.unwrap_or(0),
    };
    if faults.any() {
        bail!("lost {}, duplicated {}, reordered {}", faults.lost, faults.duplicated, faults.reordered);
    }
    Ok(())
}

fn floor_command(arguments: &FloorArguments) -> anyhow::Result<()> {
    const ROUNDS: u32 = 5;
    if !(arguments.seconds.is_finite() && arguments.seconds > 0.0 && arguments.seconds <= 3600.0) {
        bail!("--seconds is more than 0 and at most 3600");
    }
    allow_descriptors(u64::from(arguments.connections) + OTHER_DESCRIPTORS)?;
    process::pin(LOAD_CPU)?;
    let echo = check_echo(SERVER_CPU, arguments.connections, 3)?;
    let mut floor = Floor::start(SERVER_CPU, arguments.connections)?;
    let length = Window {
        warm_up: Duration::from_millis(300),
        length: Duration::from_secs_f64(arguments.seconds / f64::from(ROUNDS)),
    };
    let mut rounds = Vec::new();
    for round in 1..=ROUNDS {
        let sample = floor.round(length)?;
        eprintln!("round {round}: floor {}", run::describe(&sample));
        rounds.push(sample.cpu_ns_each());
    }
    let each = median(&rounds);
    let json = serde_json::json!({
        "schema": "whimbrel-bench-floor/1",
        "connections": arguments.connections,
        "floor_cpu_ns_per_delivered": each,
        "floor_echo_cpu_ns": echo.floor_ns,
        "glommio_echo_cpu_ns": echo.glommio_ns,
        "rounds_ns": rounds,
    });
    let text = format!(
        "floor on {} connections\n  CPU ns per delivered         {each:.0}\n  CPU ns per echo              {:.0}\n  \
         glommio TcpStream            {:.0}\n  ratio of the echoes          {:.2}\n",
        arguments.connections,
        echo.floor_ns,
        echo.glommio_ns,
        echo.ratio()
    );
    publish(arguments.json.as_deref(), &format!("{json:#}"), &text)?;
    echo.require()
}

fn resolve(server: &str) -> anyhow::Result<SocketAddr> {
    let found = server.to_socket_addrs().with_context(|| format!("--server {server}: HOST:PORT is expected"))?.next();
    found.with_context(|| format!("--server {server}: no such host"))
}

fn publish(file: Option<&Path>, json: &str, text: &str) -> anyhow::Result<()> {
    let mut out = io::stdout().lock();
    match file {
        Some(path) if path == Path::new("-") => writeln!(out, "{json}")?,
        Some(path) => {
            fs::write(path, format!("{json}\n")).with_context(|| format!("write {}", path.display()))?;
            write!(out, "{text}")?;
        }
        None => write!(out, "{text}")?,
    }
    Ok(out.flush()?)
}

fn is_broken_pipe(error: &anyhow::Error) -> bool {
    error.downcast_ref::<io::Error>().is_some_and(|error| error.kind() == io::ErrorKind::BrokenPipe)
}

#[cfg(test)]
mod tests {
    use super::*;
    use clap::CommandFactory;

    #[test]
    fn the_command_line_is_sound() {
        Cli::command().debug_assert();
        let parse = |words: &str| Cli::try_parse_from(words.split(' '));
        assert!(parse("whimbrel-bench run x.toml --spawn --seconds 3 --json -").is_ok());
        assert!(parse("whimbrel-bench run x.toml --server 127.0.0.1:7400 --data d").is_ok());
        assert!(parse("whimbrel-bench run x.toml").is_err(), "no server was named");
        assert!(parse("whimbrel-bench run x.toml --server 127.0.0.1:7400").is_err(), "no key to log in with");
        assert!(parse("whimbrel-bench run x.toml --spawn --server 127.0.0.1:7400 --data d").is_err());
    }
}

//! The command line.

use std::collections::BTreeMap;
use std::io::{self, Write};
use std::path::{Path, PathBuf};
use std::time::Instant;

use anyhow::Context;
use clap::{Args, Parser, Subcommand};
use serde_json::json;

use crate::fuse::Fault;
use crate::life::{Plan, Story, live, server_log};
use crate::mount;
use crate::pages;
use crate::plant::Plant;
use crate::server;

/// Cuts of one disk; then the next seed begins with an empty one.
const CUTS_A_LIFE: u64 = 10;

/// Lines of the server's log that a finding comes with.
const LOG_LINES: usize = 12;

/// Cuts the power of a real `whimbrel serve` on a file system of its own, again and again, and checks that nothing that was
/// acknowledged is lost, doubled or out of order.
#[derive(Debug, Parser)]
#[command(name = "whimbrel-powercut", version, after_help = AFTER_HELP)]
struct Cli {
    #[command(subcommand)]
    command: Option<Command>,
    #[command(flatten)]
    run: RunArgs,
}

const AFTER_HELP: &str = "\
Examples:
  whimbrel-powercut --seed 1 --cuts 10
  whimbrel-powercut --seed 1 --cuts 5 --errors        a failed write comes first each time
  whimbrel-powercut --seed 7 --cuts 3 --plant fsync   that it can fail
  whimbrel-powercut plants                            each lie is found out
  whimbrel-powercut pages                             pages that cannot be read at a start

A disk lives for ten cuts; with more, the seeds after N follow. Needs /dev/fuse and the right to mount; without, it says so in
one line and ends with 0. The exit code is 0 if nothing was found, 1 if something was, 2 if it could not be done.";

#[derive(Clone, Debug, Args)]
struct RunArgs {
    /// What chance begins with
    #[arg(long, value_name = "N", default_value_t = 1)]
    seed: u64,
    /// How often the power fails
    #[arg(long, value_name = "N", default_value_t = CUTS_A_LIFE)]
    cuts: u64,
    /// A lie for the file system to tell
    #[arg(long, value_name = "LIE")]
    plant: Option<Plant>,
    /// Let a write or a flush of the log fail, too, whenever the power would fail under a server that is ready; without this it
    /// does one time in seven
    #[arg(long, conflicts_with = "plant")]
    errors: bool,
    #[command(flatten)]
    common: CommonArgs,
}

#[derive(Clone, Debug, Args)]
struct CommonArgs {
    /// Server to test [default: the whimbrel beside this program]
    #[arg(long, value_name = "PATH", global = true)]
    whimbrel: Option<PathBuf>,
    /// Print JSON
    #[arg(long, global = true)]
    json: bool,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Plant each lie in turn, and cut until it is found out
    Plants {
        /// Give a lie up after so many cuts
        #[arg(long, value_name = "N", default_value_t = 50)]
        within: u64,
    },
    /// Start a server on a disk that does not give one page of a log, for some of them, and see that no start ends by a signal
    Pages,
}

/// Runs `whimbrel-powercut` and gives its exit code.
pub fn main() -> i32 {
    let cli = match Cli::try_parse() {
        Ok(cli) => cli,
        Err(error) => {
            // Help and version are answers, all else is a wrong command.
            let code = error.exit_code();
            let _ = error.print();
            return code;
        }
    };
    match carry_out(&cli) {
        Ok(true) => 0,
        Ok(false) => 1,
        Err(error) if is_broken_pipe(&error) => 0,
        Err(error) => {
            eprintln!("whimbrel-powercut: {error:#}");
            2
        }
    }
}

fn carry_out(cli: &Cli) -> anyhow::Result<bool> {
    let common = &cli.run.common;
    mount::mounts_of_our_own().context("make a mount namespace")?;
    if let Some(reason) = mount::why_not()? {
        return skip(&reason, common.json).map(|()| true);
    }
    let program = server::program(common.whimbrel.as_deref())?;
    match cli.command {
        Some(Command::Plants { within }) => hunt(&program, cli.run.seed, within, common.json),
        Some(Command::Pages) => lose_pages(&program, common.json),
        None => many(&cli.run, &program),
    }
}

fn skip(reason: &str, json: bool) -> anyhow::Result<()> {
    if json {
        return say(&json!({ "skipped": reason }).to_string());
    }
    say(&format!("power cuts: skipped, {reason}"))
}

/// A part of a run: one disk.
struct Part {
    seed: u64,
    story: Story,
    /// The last of the server's log, if something was found.
    log: String,
}

fn many(args: &RunArgs, program: &Path) -> anyhow::Result<bool> {
    let begun = Instant::now();
    let mut all = Story::default();
    let mut found = None;
    for seed in args.seed.. {
        let cuts = (args.cuts - all.cuts).min(CUTS_A_LIFE);
        let part = one(Chosen { seed, cuts, plant: args.plant, errors: args.errors }, program)?;
        all.add(&part.story);
        if let Some(finding) = part.story.finding.clone() {
            found = Some((part, cuts, finding));
            break;
        }
        if all.cuts >= args.cuts {
            break;
        }
        eprintln!("seed {seed}: {cuts} cuts, {} acknowledged, nothing lost", part.story.acknowledged);
    }
    let repeat = found.as_ref().map(|(part, cuts, _)| repeat(part.seed, *cuts, args));
    if args.common.json {
        let mut report = all.json();
        report["took_ms"] = json!(begun.elapsed().as_millis() as u64);
        report["finding"] = json!(found.as_ref().map(|(_, _, it)| json!({ "kind": it.kind.name(), "what": it.what })));
        report["repeat"] = json!(repeat);
        say(&report.to_string())?;
    } else {
        say(&format!("{} in {:.1} s", all.text(), begun.elapsed().as_secs_f64()))?;
    }
    if let (Some((part, _, finding)), Some(repeat)) = (&found, &repeat) {
        eprint!("{}", part.log);
        eprintln!("found after {} cuts of seed {}: {finding}", part.story.cuts, part.seed);
        eprintln!("repeat: {repeat}");
    }
    Ok(found.is_none())
}

/// Each lie is found out within so many cuts.
fn hunt(program: &Path, seed: u64, within: u64, json: bool) -> anyhow::Result<bool> {
    let mut good = true;
    let mut list = Vec::new();
    for plant in Plant::ALL {
        let mut cuts = 0;
        let mut found = None;
        for seed in seed.. {
            let chosen = Chosen { seed, cuts: CUTS_A_LIFE.min(within - cuts), plant: Some(plant), errors: false };
            let part = one(chosen, program)?;
            cuts += part.story.cuts;
            found = part.story.finding;
            if found.is_some() || cuts >= within {
                break;
            }
        }
        good &= found.is_some();
        let what = found.as_ref().map_or_else(|| "NOT FOUND".to_owned(), ToString::to_string);
        if json {
            list.push(json!({ "plant": plant.name(), "cuts": cuts, "found": found.map(|it| it.kind.name()) }));
        } else {
            say(&format!("{:<9} after {cuts} cuts: {what}", plant.name()))?;
        }
    }
    if json {
        say(&serde_json::Value::from(list).to_string())?;
    }
    Ok(good)
}

fn lose_pages(program: &Path, json: bool) -> anyhow::Result<bool> {
    let directory =
        tempfile::Builder::new().prefix("whimbrel-powercut-").tempdir().context("make a temporary directory")?;
    let all = pages::lose_each(program, directory.path())?;
    if json {
        let list =
            all.iter().map(|it| json!({ "page": it.page, "serves": it.serves, "shut": it.shut, "code": it.code }));
        say(&serde_json::Value::from_iter(list).to_string())?;
    } else {
        for it in &all {
            let came = match it.code {
                _ if it.shut => "served but for this shard, whose log does not open".to_owned(),
                _ if it.serves => "served without it".to_owned(),
                Some(code) => format!("refused, exit code {code}"),
                None => "ENDED BY A SIGNAL".to_owned(),
            };
            say(&format!("{:<36} {came}", it.page))?;
        }
    }
    Ok(all.iter().all(pages::Lost::is_right))
}

/// What a life is made from.
struct Chosen {
    seed: u64,
    cuts: u64,
    plant: Option<Plant>,
    errors: bool,
}

fn one(chosen: Chosen, program: &Path) -> anyhow::Result<Part> {
    let Chosen { seed, cuts, plant, errors } = chosen;
    let directory =
        tempfile::Builder::new().prefix("whimbrel-powercut-").tempdir().context("make a temporary directory")?;
    let story = live(Plan { seed, cuts, plant, errors, program, directory: directory.path() })?;
    let log = match &story.finding {
        Some(_) => last_lines(&server_log(directory.path()), LOG_LINES)?,
        None => String::new(),
    };
    Ok(Part { seed, story, log })
}

pub(crate) fn last_lines(path: &Path, count: usize) -> anyhow::Result<String> {
    let text = std::fs::read_to_string(path).with_context(|| format!("read {}", path.display()))?;
    let lines: Vec<&str> = text.lines().collect();
    Ok(lines[lines.len().saturating_sub(count)..].iter().map(|line| format!("server: {line}\n")).collect())
}

fn repeat(seed: u64, cuts: u64, args: &RunArgs) -> String {
    let plant = args.plant.map_or_else(String::new, |plant| format!(" --plant {}", plant.name()));
    let errors = if args.errors { " --errors" } else { "" };
    format!("whimbrel-powercut --seed {seed} --cuts {cuts}{plant}{errors}")
}

impl Story {
    fn add(&mut self, more: &Story) {
        self.cuts += more.cuts;
        self.kills += more.kills;
        self.early += more.early;
        self.broken.iter_mut().zip(more.broken).for_each(|(sum, more)| *sum += more);
        self.sent += more.sent;
        self.acknowledged += more.acknowledged;
        self.delivered += more.delivered;
        self.chats += more.chats;
        self.repeated += more.repeated;
        self.operations += more.operations;
        self.damage += more.damage;
    }

    fn text(&self) -> String {
        format!(
            "power cuts: {}, kills: {} ({} of both before the server was ready, {} after a write of the log failed), \
             {} messages acknowledged, {} deliveries, {} repeated, {} unflushed sectors kept, {} lost, {} names kept, {} lost",
            self.cuts,
            self.kills,
            self.early,
            self.broken.iter().sum::<u64>(),
            self.acknowledged,
            self.delivered,
            self.repeated,
            self.damage.sectors_kept,
            self.damage.sectors_lost,
            self.damage.names_kept,
            self.damage.names_lost,
        )
    }

    fn json(&self) -> serde_json::Value {
        json!({
            "cuts": self.cuts,
            "kills": self.kills,
            "before_ready": self.early,
            "failed": Fault::ALL.iter().zip(self.broken).map(|(fault, count)| (fault.name(), count)).collect::<BTreeMap<_, _>>(),
            "sent": self.sent,
            "acknowledged": self.acknowledged,
            "delivered": self.delivered,
            "chats": self.chats,
            "repeated": self.repeated,
            "operations": self.operations,
            "sectors_kept": self.damage.sectors_kept,
            "sectors_lost": self.damage.sectors_lost,
            "names_kept": self.damage.names_kept,
            "names_lost": self.damage.names_lost,
        })
    }
}

pub(crate) fn say(line: &str) -> anyhow::Result<()> {
    let mut out = io::stdout().lock();
    writeln!(out, "{line}").and_then(|()| out.flush()).context("write to the standard output")
}

pub(crate) fn is_broken_pipe(error: &anyhow::Error) -> bool {
    error.downcast_ref::<io::Error>().is_some_and(|error| error.kind() == io::ErrorKind::BrokenPipe)
}

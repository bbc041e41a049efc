//! A disk that has no space left: its life, and the command line of it.

mod life;
mod space;

use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Instant;

use anyhow::Context;
use clap::Parser;
use serde_json::json;

use self::life::{Fault, Interrupted, Plan, Story, live};
use self::space::{Kind, Space};
use crate::cli::{is_broken_pipe, say};
use crate::{mount, server};

/// Fills a small file system under a real `whimbrel serve`, again and again, by messages that nobody fetches and by somebody
/// else's file, and checks that it refuses and resumes, and that nothing that was acknowledged is lost, doubled or out of order.
#[derive(Debug, Parser)]
#[command(name = "whimbrel-fulldisk", version, after_help = AFTER_HELP)]
struct Cli {
    /// File system to fill
    #[arg(long, value_enum, default_value = "tmpfs")]
    fs: Kind,
    /// How often it is filled
    #[arg(long, value_name = "N", default_value_t = 10)]
    fills: u64,
    /// A fault to be found: that the check can fail
    #[arg(long, value_enum)]
    plant: Option<Fault>,
    /// What chance begins with
    #[arg(long, value_name = "N", default_value_t = 1)]
    seed: u64,
    /// Server to test [default: the whimbrel beside this program]
    #[arg(long, value_name = "PATH")]
    whimbrel: Option<PathBuf>,
    /// Print JSON
    #[arg(long)]
    json: bool,
}

const AFTER_HELP: &str = "\
Examples:
  whimbrel-fulldisk --fs tmpfs --fills 5
  whimbrel-fulldisk --fs ext4 --fills 100 --json
  whimbrel-fulldisk --fills 20 --plant kept   that it can fail

Needs root, and for ext4 mkfs.ext4 and a loop device; without, it says so in one line and ends with 0. The exit code is 0 if
nothing was found, 1 if something was, 2 if it could not be done, 130 if it was interrupted.";

/// Runs `whimbrel-fulldisk` and gives its exit code.
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
        Err(error) if error.is::<Interrupted>() => 130,
        Err(error) => {
            eprintln!("whimbrel-fulldisk: {error:#}");
            2
        }
    }
}

fn carry_out(cli: &Cli) -> anyhow::Result<bool> {
    let interrupted = Arc::new(AtomicBool::new(false));
    for signal in [signal_hook::consts::SIGINT, signal_hook::consts::SIGTERM] {
        signal_hook::flag::register(signal, Arc::clone(&interrupted)).context("handle signals")?;
    }
    mount::mounts_of_our_own().context("make a mount namespace")?;
    let directory =
        tempfile::Builder::new().prefix("whimbrel-fulldisk-").tempdir().context("make a temporary directory")?;
    let space = match Space::new(cli.fs, directory.path())? {
        Ok(space) => space,
        Err(reason) => return skip(cli, &reason).map(|()| true),
    };
    let program = server::program(cli.whimbrel.as_deref())?;
    let begun = Instant::now();
    let plan = Plan {
        seed: cli.seed,
        fault: cli.plant,
        fills: cli.fills,
        program: &program,
        directory: directory.path(),
        space: space.path(),
        is_interrupted: &|| interrupted.load(Ordering::Relaxed),
    };
    let lived = live(plan);
    // Also on the way out of a failure, before the directory goes.
    space.unmount()?;
    let story = lived?;
    let took = begun.elapsed();
    if cli.json {
        let mut report = story.json();
        report["fs"] = json!(cli.fs.name());
        report["took_ms"] = json!(took.as_millis() as u64);
        say(&report.to_string())?;
    } else {
        say(&format!("full disk, {}: {} in {:.1} s", cli.fs.name(), story.text(), took.as_secs_f64()))?;
    }
    if let Some(finding) = &story.finding {
        eprint!("{}", story.log);
        eprintln!("found in fill {}: {finding}", story.fills + 1);
        let plant = cli.plant.map_or("", |Fault::Kept| " --plant kept");
        eprintln!("repeat: whimbrel-fulldisk --fs {} --fills {} --seed {}{plant}", cli.fs.name(), cli.fills, cli.seed);
    }
    Ok(story.finding.is_none())
}

fn skip(cli: &Cli, reason: &str) -> anyhow::Result<()> {
    if cli.json {
        return say(&json!({ "fs": cli.fs.name(), "skipped": reason }).to_string());
    }
    say(&format!("full disk, {}: skipped, {reason}", cli.fs.name()))
}

impl Story {
    fn text(&self) -> String {
        format!(
            "{} fill-ups ({} by messages, {} by bytes of others, {} by files of others), {} kills, {} starts without space, \
             {} sends refused as storage_full, {} as overloaded, {} messages acknowledged, {} deliveries; refused at most {} times after \
             space returned, {} times while a device made room",
            self.fills,
            self.by_messages,
            self.by_bytes,
            self.by_files,
            self.kills,
            self.starts_full,
            self.refused,
            self.overloaded,
            self.acknowledged,
            self.delivered,
            self.retries_max,
            self.drain_retries_max,
        )
    }

    fn json(&self) -> serde_json::Value {
        json!({
            "fills": self.fills,
            "by_messages": self.by_messages,
            "by_bytes": self.by_bytes,
            "by_files": self.by_files,
            "kills": self.kills,
            "starts_full": self.starts_full,
            "refused": self.refused,
            "overloaded": self.overloaded,
            "sent": self.sent,
            "acknowledged": self.acknowledged,
            "delivered": self.delivered,
            "retries_max": self.retries_max,
            "drain_retries_max": self.drain_retries_max,
            "finding": self.finding.as_ref().map(|it| json!({ "kind": it.kind.name(), "what": it.what })),
        })
    }
}

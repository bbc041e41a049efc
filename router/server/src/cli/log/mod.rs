//! `whimbrel log`: a data directory and its disk, looked at without a server.

mod bench;
mod inspect;
mod limit;
mod progress;
mod records;
mod shard;
mod table;
mod verify;

use std::path::PathBuf;
use std::process::ExitCode;

use clap::{Args, Subcommand};

use crate::cli::args;

#[derive(Subcommand)]
pub(super) enum LogCommand {
    /// Check every byte of a data directory that no server has, and change nothing
    #[command(after_help = VERIFY_HELP)]
    Verify(VerifyArgs),
    /// Show what the logs of a data directory hold: checkpoints, segments, partitions, single records
    #[command(after_help = INSPECT_HELP)]
    Inspect(InspectArgs),
    /// Measure what a disk can do for a log: how long a flush takes, and how many records a second it allows
    #[command(after_help = BENCH_HELP)]
    Bench(BenchArgs),
}

const VERIFY_HELP: &str = "\
It reads every segment and checkpoint of every shard, from the disk and not from the cache, and checks the format of the \
directory, headers, the checksums of batches, records and checkpoints, that batches follow each other over all segments, and \
entries in each partition. It goes on behind damage and prints one line for each: where, what, and whose records, as far as \
they can be told. A last batch that a crash tore is reported and is no damage: the next start truncates it. Nothing in it was \
acknowledged, unless the disk damaged it, which looks the same in the very last batch.

In a cold segment (numbers from 2147483648 on) only what the newest checkpoint points to counts. Zeros in the place of a payload \
that nobody waits for are right; one that is half overwritten is what a crash may leave, and is noted as no damage.

A directory that a server holds is refused, and while this looks no server starts on it.

Exit codes: 0 nothing is damaged, 1 something is, or not all could be checked, 2 wrong usage.

Examples:
  whimbrel log verify /srv/whimbrel-data
  whimbrel log verify --json /mnt/snapshot | jq '.findings[].text'";

const INSPECT_HELP: &str = "\
Without --segment: of each shard its checkpoints, its segments with how much in them is still waited for, and its partitions. \
How much that is comes from the newest checkpoint; what was delivered since still counts. With --segment: the records of that \
segment, one a line. --json prints one object a line; `type` says of what: directory, shard, checkpoint, segment, partition, \
finding, record, bad_record, stray.

What is in a record are users' messages. They are shown with --payload only.

Examples:
  whimbrel log inspect /srv/whimbrel-data
  whimbrel log inspect --segment 7 --shard 0 /srv/whimbrel-data | head
  whimbrel log inspect --json /srv/whimbrel-data | jq 'select(.type == \"segment\")'";

const BENCH_HELP: &str = "\
It writes batches of 1, 16 and 256 records of 160 bytes as the log does, one after the other, each flushed before the next: \
with RWF_DSYNC through the page cache, which is how the log writes, and with O_DIRECT. Their records a second are the limit that \
one shard's durable figures on this disk are compared with. Disks have moods: compare only figures of one run, on a machine \
with nothing else to do.

DIR need not be a data directory. The files have no names: nothing remains of them, however the program ends.

Examples:
  whimbrel log bench /srv/whimbrel-data
  whimbrel log bench --seconds 60 --size 4GiB --json /srv";

#[derive(Args)]
pub(super) struct VerifyArgs {
    /// Data directory
    #[arg(value_name = "DIR")]
    data: PathBuf,
    /// Print JSON, one document
    #[arg(long)]
    json: bool,
}

#[derive(Args)]
pub(super) struct InspectArgs {
    /// Data directory
    #[arg(value_name = "DIR")]
    data: PathBuf,
    /// Show the records of the segment with this number
    #[arg(long, value_name = "N")]
    segment: Option<u32>,
    /// Only this shard
    #[arg(long, value_name = "N")]
    shard: Option<u16>,
    /// Show what is in the records too: users' messages
    #[arg(long, requires = "segment")]
    payload: bool,
    /// Print JSON, one object a line
    #[arg(long)]
    json: bool,
}

#[derive(Args)]
pub(super) struct BenchArgs {
    /// Directory on the disk to be measured
    #[arg(value_name = "DIR")]
    directory: PathBuf,
    /// About how long it measures; making its files comes before, and takes no longer
    #[arg(long, value_name = "N", default_value_t = 10, value_parser = clap::value_parser!(u32).range(1..=3600))]
    seconds: u32,
    /// Bytes that it writes to, over and over
    #[arg(long, value_name = "SIZE", default_value = "256MiB", value_parser = args::bench_size)]
    size: u64,
    /// Print JSON, one document
    #[arg(long)]
    json: bool,
}

pub(super) fn run(command: &LogCommand) -> anyhow::Result<ExitCode> {
    match command {
        LogCommand::Verify(args) => verify::run(args),
        LogCommand::Inspect(args) => inspect::run(args),
        LogCommand::Bench(args) => bench::run(args),
    }
}

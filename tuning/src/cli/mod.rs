//! The command line: one struct a subcommand, from which help, completion and parsing come, and one function a subcommand.
//!
//! Exit codes: 0 done, 1 something is left to do, 2 wrong usage or a profile that is not in order, and then nothing was changed.

#![forbid(unsafe_code)]

mod change;
mod measure;
mod output;
mod read;

use std::ffi::OsString;
use std::path::PathBuf;
use std::process::ExitCode;

use clap::{Args, CommandFactory, Parser, Subcommand, ValueEnum};
use whimbrel_tune::apply::ApplyError;
use whimbrel_tune::machine::Machine;
use whimbrel_tune::profile::{self, Profile, ProfileError};
use whimbrel_tune::state;

use output::{StdoutClosed, Usage};

const EXAMPLES: &str = "\
Examples:
  whimbrel-tune recommend --connections 1000000    which profile and which cores fit this machine
  whimbrel-tune check latency                      what of it is not met here
  whimbrel-tune apply latency --dry-run            what would be changed
  sudo whimbrel-tune apply latency --persist       change it, now and after each restart
  sudo whimbrel-tune revert                        put back what was there before
  sudo whimbrel-tune verify latency --bench pairs  whether it helps here

Exit codes: 0 done, 1 something is left to do, 2 wrong usage or a bad profile (nothing was changed).";

/// Settings of the operating system for a Whimbrel server: checked, applied, taken back, and measured
#[derive(Parser)]
#[command(name = "whimbrel-tune", version, max_term_width = 100, after_help = EXAMPLES, disable_help_subcommand = true)]
struct Cli {
    #[command(flatten)]
    place: PlaceArgs,
    #[command(subcommand)]
    command: Option<Command>,
}

/// Where things are.
#[derive(Args)]
struct PlaceArgs {
    /// Take profiles from this directory and not from the program
    #[arg(long, value_name = "DIR", global = true)]
    profiles: Option<PathBuf>,
    /// Where the journal of what was changed is kept
    #[arg(long, value_name = "DIR", global = true, default_value = state::DIRECTORY)]
    state: PathBuf,
    /// The tree with /proc, /sys and /etc
    #[arg(long, value_name = "DIR", global = true, default_value = "/", hide = true)]
    root: PathBuf,
    /// Where the server's data lie: its file system's options are looked at
    #[arg(long, value_name = "DIR", global = true, default_value = "/var/lib/whimbrel", env = "WHIMBREL_DATA")]
    data: String,
    /// Print JSON
    #[arg(long, global = true)]
    json: bool,
}

#[derive(Subcommand)]
enum Command {
    /// List the profiles
    List,
    /// Print a profile's settings, with the reason for each
    Show(ProfileArgs),
    /// Print what a key does, what the profiles set it to, and why
    Explain {
        /// The key, like net.core.somaxconn; without one, all keys are listed
        key: Option<String>,
    },
    /// Check this machine against a profile; exit code 1 if something is not met
    Check(CheckArgs),
    /// Print what `apply` would change
    Diff(ProfileArgs),
    /// Set what a profile wants, and keep a journal of what was there before
    Apply(ApplyArgs),
    /// Put back all that `apply` has changed, the files of --persist too
    Revert,
    /// Measure what a profile changes here: apply it, measure, revert it, measure, in turns
    Verify(VerifyArgs),
    /// Say which profile, cores and values fit this machine
    Recommend(RecommendArgs),
    /// Print a profile in the form of another tool
    Export {
        /// Which form
        format: Format,
        #[command(flatten)]
        profile: ProfileArgs,
    },
    /// Print the completion script of a shell
    Completions {
        /// Which shell
        shell: clap_complete::Shell,
    },
}

/// Which profile.
#[derive(Args)]
struct ProfileArgs {
    /// A profile's name, or the path of a .conf file
    profile: String,
    /// These keys of it only
    #[arg(long, value_name = "KEY", num_args = 1.., value_delimiter = ',')]
    only: Vec<String>,
}

#[derive(Args)]
struct CheckArgs {
    #[command(flatten)]
    profile: ProfileArgs,
    /// The server's process, whose limits count, and not this one
    #[arg(long, value_name = "PID")]
    pid: Option<u32>,
}

#[derive(Args)]
struct ApplyArgs {
    #[command(flatten)]
    profile: ProfileArgs,
    /// Change nothing; print what would be changed
    #[arg(long)]
    dry_run: bool,
    /// Also write files that set it again after a restart of the machine
    #[arg(long)]
    persist: bool,
}

#[derive(Args)]
struct VerifyArgs {
    #[command(flatten)]
    profile: ProfileArgs,
    /// A scenario of whimbrel-bench, by its name or file; without one, each key is probed by itself
    #[arg(long, value_name = "SCENARIO")]
    bench: Option<String>,
    /// How often it is measured with and without
    #[arg(long, value_name = "N", default_value_t = 5, value_parser = clap::value_parser!(u32).range(3..=100))]
    rounds: u32,
    /// Measured seconds of each run of the bench [default: what the scenario says]
    #[arg(long, value_name = "N", requires = "bench")]
    seconds: Option<f64>,
    /// The bench [default: the whimbrel-bench beside this program]
    #[arg(long, value_name = "PATH", requires = "bench")]
    bench_binary: Option<PathBuf>,
    /// Apply nothing in between: shows what chance alone makes of it
    #[arg(long)]
    null: bool,
}

#[derive(Args)]
struct RecommendArgs {
    /// Connections at once
    #[arg(long, value_name = "N")]
    connections: Option<u64>,
    /// Messages a second
    #[arg(long, value_name = "N")]
    rate: Option<u64>,
    /// Bytes of a message
    #[arg(long, value_name = "BYTES")]
    message_size: Option<u64>,
}

/// Forms of other tools.
#[derive(Clone, Copy, ValueEnum)]
enum Format {
    /// A file for /etc/sysctl.d
    #[value(name = "sysctl.d")]
    SysctlD,
    /// A profile of TuneD
    Tuned,
    /// A drop-in of the server's unit
    Systemd,
    /// Tasks of Ansible
    Ansible,
    /// A shell script for this machine
    Script,
}

impl PlaceArgs {
    fn machine(&self) -> Machine {
        Machine::at(&self.root)
    }

    /// The journal's directory, which is below the tree unless it is said.
    fn state(&self) -> PathBuf {
        if self.state == std::path::Path::new(state::DIRECTORY) {
            return self.machine().path(state::DIRECTORY);
        }
        self.state.clone()
    }

    fn load(&self, args: &ProfileArgs) -> Result<Profile, ProfileError> {
        profile::load(&args.profile, self.profiles.as_deref())?.only(&args.only)
    }

    fn load_all(&self) -> Result<Vec<Profile>, ProfileError> {
        match &self.profiles {
            None => profile::built_in(),
            Some(directory) => {
                let names = profile::in_directory(directory)?;
                names.iter().map(|name| profile::load(name, Some(directory))).collect()
            }
        }
    }
}

/// Does what the arguments say and tells how it went.
pub(crate) fn main(arguments: impl IntoIterator<Item = OsString>) -> ExitCode {
    let cli = match Cli::try_parse_from(arguments) {
        Ok(cli) => cli,
        Err(error) => {
            // A closed pipe under the help is no failure, and there is nowhere to tell of another one.
            let _ = error.print();
            return ExitCode::from(if error.use_stderr() { 2 } else { 0 });
        }
    };
    match run(cli) {
        Ok(code) => code,
        Err(error) if error.is::<StdoutClosed>() => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("whimbrel-tune: {error:#}");
            let is_usage = error.is::<ProfileError>()
                || error.is::<Usage>()
                || matches!(error.downcast_ref(), Some(ApplyError::Value { .. }));
            ExitCode::from(if is_usage { 2 } else { 1 })
        }
    }
}

fn run(cli: Cli) -> anyhow::Result<ExitCode> {
    let place = cli.place;
    let Some(command) = cli.command else {
        output::print(&Cli::command().render_help().to_string())?;
        return Ok(ExitCode::SUCCESS);
    };
    match command {
        Command::List => read::list(&place),
        Command::Show(args) => read::show(&place, &args),
        Command::Explain { key } => read::explain(&place, key.as_deref()),
        Command::Check(args) => read::check(&place, &args),
        Command::Diff(args) => change::diff(&place, &args),
        Command::Apply(args) => change::apply(&place, &args),
        Command::Revert => change::revert(&place),
        Command::Verify(args) => measure::verify(&place, &args),
        Command::Recommend(args) => read::recommend(&place, &args),
        Command::Export { format, profile } => read::export(&place, format, &profile),
        Command::Completions { shell } => {
            let mut script = Vec::new();
            clap_complete::generate(shell, &mut Cli::command(), "whimbrel-tune", &mut script);
            output::print(&String::from_utf8_lossy(&script))?;
            Ok(ExitCode::SUCCESS)
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_command_line_is_sound() {
        Cli::command().debug_assert();
        let parse = |words: &str| Cli::try_parse_from(words.split(' '));
        assert!(parse("whimbrel-tune apply latency --only net.core.somaxconn vm.swappiness --persist --json").is_ok());
        assert!(parse("whimbrel-tune verify latency --rounds 1").is_err(), "one round has no interval");
        assert!(parse("whimbrel-tune verify latency --seconds 2").is_err(), "seconds of what");
    }
}

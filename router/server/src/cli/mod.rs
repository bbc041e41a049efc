//! The command line: one struct a subcommand, from which help, completion and parsing come, and one function a subcommand.
//!
//! Exit codes: 0 done, 1 failed, 2 wrong usage. A reader that goes away (`| head`) is not a failure.

#![forbid(unsafe_code)]

mod access;
mod args;
mod chat;
mod demo;
mod group;
mod link;
mod log;
mod output;
mod problem;
mod recv;
mod send;
mod serve;
mod state;
mod status;
mod tokens;

use std::ffi::OsString;
use std::path::PathBuf;
use std::process::ExitCode;
use std::time::Duration;

use clap::{Args, CommandFactory, Parser, Subcommand};

use crate::cli::args::Target;
use crate::cli::output::{Failure, Out, StdoutClosed};

/// Version and the commit it was built from.
const VERSION: &str = concat!(env!("CARGO_PKG_VERSION"), " (", env!("WHIMBREL_COMMIT"), ")");

const EXAMPLES: &str = "\
Examples:
  whimbrel demo                            everything at once, in a directory of its own
  whimbrel serve --dev                     a server on this machine, data in ./whimbrel-data
  whimbrel chat --as alice --to bob        a conversation; bob answers in another terminal

Exit codes: 0 done, 1 failed, 2 wrong usage.";

/// A messenger's server side: a router that keeps every message it acknowledged until each device has it.
#[derive(Parser)]
#[command(name = "whimbrel", version = VERSION, max_term_width = 100, after_help = EXAMPLES)]
struct Cli {
    #[command(subcommand)]
    command: Option<Command>,
}

#[derive(Subcommand)]
enum Command {
    /// Run a server
    Serve(ServeArgs),
    /// Make a token of a user's device, with the development key in the data directory
    Token(TokenArgs),
    /// Talk: type, and read what comes
    Chat(ChatArgs),
    /// Send one message and wait until it is stored
    Send(SendArgs),
    /// Print the messages that wait for a device, and acknowledge them
    Recv(RecvArgs),
    /// Show what a running server does: connections, messages, refusals, the log, lengths of turns
    Status(StatusArgs),
    /// Make a group, or look at one
    #[command(subcommand)]
    Group(GroupCommand),
    /// Look at a data directory and its disk, without a server: check it, show what is in it, measure
    #[command(subcommand)]
    Log(log::LogCommand),
    /// Show it all working: a server, a group, an offline device, a killed process; and check what arrived
    Demo(DemoArgs),
    /// Print the completion script of a shell
    Completions {
        /// Which shell
        shell: clap_complete::Shell,
    },
}

/// Where a server keeps its data and clients keep theirs.
const DATA_HELP: &str = "Data directory: development keys, and what the devices of this machine remember";

#[derive(Args)]
struct ServeArgs {
    /// Configuration in TOML; the environment (WHIMBREL_*) and then these options take precedence
    #[arg(long, value_name = "FILE")]
    config: Option<PathBuf>,
    /// Data directory [default: whimbrel-data]
    #[arg(long, value_name = "DIR")]
    data: Option<PathBuf>,
    /// Address to listen on; port 0 takes a free one [default: 127.0.0.1:7400]
    #[arg(long, value_name = "ADDR")]
    listen: Option<String>,
    /// Address for /metrics, /healthz, /readyz and `whimbrel status`, or `none` [default: 127.0.0.1:7401]
    #[arg(long, value_name = "ADDR")]
    admin: Option<String>,
    /// Shards, one a core; fixed once the data directory exists
    #[arg(long, value_name = "N")]
    shards: Option<u16>,
    /// Cores to pin the shards to, like 0,2-3; `none` does not pin
    #[arg(long, value_name = "LIST")]
    cpus: Option<String>,
    /// For development: makes a key pair in the data directory, with which `whimbrel token` and the clients here make tokens
    #[arg(long)]
    dev: bool,
    /// End with the process that started this one
    #[arg(long, hide = true)]
    die_with_parent: bool,
}

#[derive(Args)]
struct TokenArgs {
    /// User that the token is for
    #[arg(long, value_name = "USER", value_parser = args::user)]
    user: String,
    /// Device that the token is for
    #[arg(long, value_name = "N", default_value_t = 1)]
    device: u32,
    /// How long it counts: 90s, 15m, 12h, 30d
    #[arg(long, value_name = "TIME", default_value = "30d", value_parser = args::duration)]
    ttl: Duration,
    /// Token epoch: a device's tokens of a lower one than it last logged in with are refused
    #[arg(long, value_name = "N", default_value_t = crate::token::DEV_EPOCH)]
    epoch: u32,
    #[arg(long, value_name = "DIR", env = "WHIMBREL_DATA", default_value = args::DATA, help = DATA_HELP)]
    data: PathBuf,
    /// Print JSON
    #[arg(long)]
    json: bool,
}

/// Who a client is and where its server is.
#[derive(Args)]
struct Identity {
    /// User to act as
    #[arg(long = "as", value_name = "USER", value_parser = args::user)]
    user: String,
    /// Device of that user; each has an inbox of its own
    #[arg(long, value_name = "N", default_value_t = 1)]
    device: u32,
    /// Address of the server
    #[arg(long, value_name = "ADDR", env = "WHIMBREL_SERVER", default_value = args::SERVER)]
    server: String,
    #[arg(long, value_name = "DIR", env = "WHIMBREL_DATA", default_value = args::DATA, help = DATA_HELP)]
    data: PathBuf,
    /// File that holds the device's token; else the token in WHIMBREL_TOKEN, else one made with the development key
    #[arg(long, value_name = "FILE")]
    token: Option<PathBuf>,
    /// Where the device remembers what it has seen and sent [default: the data directory's clients/]
    #[arg(long, value_name = "DIR")]
    state: Option<PathBuf>,
}

/// Which chat: one of the two.
#[derive(Args)]
#[group(multiple = false)]
struct Whither {
    /// The chat with this user, made if there is none
    #[arg(long, value_name = "USER", value_parser = args::user)]
    to: Option<String>,
    /// The chat with this id, as `group create` prints it
    #[arg(long, value_name = "ID", value_parser = args::chat)]
    chat: Option<u128>,
}

impl Whither {
    fn target(&self) -> Option<Target> {
        match (&self.to, self.chat) {
            (Some(user), _) => Some(Target::User(user.clone())),
            (None, Some(chat)) => Some(Target::Chat(output::chat_text(chat))),
            (None, None) => None,
        }
    }
}

#[derive(Args)]
struct ChatArgs {
    #[command(flatten)]
    identity: Identity,
    #[command(flatten)]
    whither: Whither,
}

#[derive(Args)]
#[command(mut_group("Whither", |group| group.required(true)))]
struct SendArgs {
    #[command(flatten)]
    identity: Identity,
    #[command(flatten)]
    whither: Whither,
    /// The message; `-` reads it from standard input
    text: String,
    /// How long to wait for the acknowledgement
    #[arg(long, value_name = "TIME", default_value = "5s", value_parser = args::duration)]
    timeout: Duration,
    /// Print JSON
    #[arg(long)]
    json: bool,
}

#[derive(Args)]
struct RecvArgs {
    #[command(flatten)]
    identity: Identity,
    /// Leave after so many messages, and fail if fewer come; 0 only logs in, which makes the device exist
    #[arg(long, value_name = "K")]
    count: Option<u64>,
    /// Leave when nothing came for so long; 0s takes only what waits already
    #[arg(long, value_name = "TIME", default_value = "5s", value_parser = args::duration)]
    timeout: Duration,
    /// Print JSON, one object a line
    #[arg(long)]
    json: bool,
}

#[derive(Args)]
struct StatusArgs {
    /// Data directory of the server, which says where it listens for this
    #[arg(long, value_name = "DIR", env = "WHIMBREL_DATA", default_value = args::DATA)]
    data: PathBuf,
    /// Admin address of the server, of another machine too; the data directory is not asked then
    #[arg(long, value_name = "ADDR", value_parser = args::host_and_port)]
    admin: Option<String>,
    /// How long to wait for the answer
    #[arg(long, value_name = "TIME", default_value = "5s", value_parser = args::duration)]
    timeout: Duration,
    /// Print JSON
    #[arg(long)]
    json: bool,
}

#[derive(Subcommand)]
enum GroupCommand {
    /// Make a group and print its id
    Create(GroupCreateArgs),
    /// Print a group's title and members
    Show(GroupShowArgs),
}

#[derive(Args)]
struct GroupCreateArgs {
    #[command(flatten)]
    identity: Identity,
    /// The group's name
    #[arg(long, default_value = "")]
    title: String,
    /// The others; who makes the group is a member anyway
    #[arg(value_name = "MEMBER", required = true, value_parser = args::user)]
    members: Vec<String>,
    /// How long to wait for the answer
    #[arg(long, value_name = "TIME", default_value = "5s", value_parser = args::duration)]
    timeout: Duration,
    /// Print JSON
    #[arg(long)]
    json: bool,
}

#[derive(Args)]
struct GroupShowArgs {
    #[command(flatten)]
    identity: Identity,
    /// Its id, as `group create` printed it
    #[arg(long, value_name = "ID", value_parser = args::chat)]
    chat: u128,
    /// How long to wait for the answer
    #[arg(long, value_name = "TIME", default_value = "5s", value_parser = args::duration)]
    timeout: Duration,
    /// Print JSON
    #[arg(long)]
    json: bool,
}

#[derive(Args)]
struct DemoArgs {
    /// Keep the directory with the server's data and log
    #[arg(long)]
    keep: bool,
    /// Print the result as JSON; the timeline goes to standard error
    #[arg(long)]
    json: bool,
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
            report(&error);
            ExitCode::FAILURE
        }
    }
}

/// Tells of a failure and what to do about it.
fn report(error: &anyhow::Error) {
    eprintln!("whimbrel: {}", in_one_line(error));
    if let Some(remedy) = error.downcast_ref::<Failure>().and_then(Failure::remedy) {
        eprintln!("  {remedy}");
    }
}

/// An error and its causes. Many tell of their cause themselves: it is not told again.
fn in_one_line(error: &anyhow::Error) -> String {
    error.chain().map(ToString::to_string).fold(String::new(), |told, cause| match told.as_str() {
        "" => cause,
        told_already if told_already.ends_with(&cause) => told,
        _ => format!("{told}: {cause}"),
    })
}

fn run(cli: Cli) -> anyhow::Result<ExitCode> {
    let mut out = Out::stdout();
    let Some(command) = cli.command else {
        out.text(&Cli::command().render_help().to_string())?;
        return Ok(ExitCode::SUCCESS);
    };
    match command {
        Command::Serve(args) => serve::run(args),
        Command::Token(args) => tokens::run(&args),
        Command::Chat(args) => chat::run(&args),
        Command::Send(args) => send::run(&args),
        Command::Recv(args) => recv::run(&args),
        Command::Status(args) => status::run(&args),
        Command::Group(command) => group::run(&command),
        Command::Log(command) => log::run(&command),
        Command::Demo(args) => demo::run(&args),
        Command::Completions { shell } => {
            let mut script = Vec::new();
            clap_complete::generate(shell, &mut Cli::command(), "whimbrel", &mut script);
            out.text(&String::from_utf8_lossy(&script))?;
            Ok(ExitCode::SUCCESS)
        }
    }
}

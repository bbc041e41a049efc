//! `whimbrel serve`: from settings to running shards, and to their end.

#![forbid(unsafe_code)]

use std::io::{self, IsTerminal, Read, Write};
use std::net::{SocketAddr, TcpListener};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::Sender;
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, anyhow, bail};
use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
use signal_hook::consts::{SIGINT, SIGTERM};
use socket2::{Domain, Protocol, Socket, Type};
use tracing_subscriber::EnvFilter;
use whimbrel_core::ids::ShardId;
use whimbrel_core::io::ShardConfig;
use whimbrel_core::limits::Bounds;
use whimbrel_storage::{Asked, DataDir, LogOptions, Shape};
use whimbrel_tune::machine::Machine;

use crate::admin::{About, Admin, Node, place};
use crate::aside::Aside;
use crate::config::{Cpus, LogFormat, Settings};
use crate::memory;
use crate::shell::{self, ShardStart, Shards, Told};
use crate::token;
use crate::tuning;
use crate::units::print_size;

/// Exit code of a bug: an assertion failed.
const EXIT_BUG: i32 = 70;

/// Exit code after a second signal.
const EXIT_HURRIED: i32 = 1;

/// Partitions of a new cluster.
const PARTITIONS: u16 = 256;
const PARTITIONS_DEV: u16 = 16;

/// Places for sockets beyond those that may log in: for the ones that are told so, and the ones that close.
const SLOTS_SPARE: u32 = 256;

/// Descriptors of the process that are not sockets of clients, those of the admin thread included.
const OTHER_FILES: u64 = 96;

/// After a process was killed the kernel ends its ring in its own time, and holds its port as long.
const PORT_PATIENCE: Duration = Duration::from_secs(2);

/// Signals that come so soon after the first are the same wish: `timeout` sends two, a terminal one to a whole group.
const SAME_SIGNAL: Duration = Duration::from_millis(300);

/// Whoever watches comes seldom.
const ADMIN_BACKLOG: i32 = 128;

/// A stop that takes longer is reported.
const STOP_PATIENCE: Duration = Duration::from_secs(10);

/// Runs a server until a signal ends it. Returns the exit code.
pub(crate) fn run(settings: Settings) -> anyhow::Result<i32> {
    start_log(&settings);
    let serving = Arc::new(AtomicBool::new(false));
    end_on_panic(serving.clone());
    tracing::debug!("settings:\n{settings}");
    if !settings.dev && settings.token_key.is_none() {
        bail!(
            "no key to verify tokens with: set `token_key` (WHIMBREL_TOKEN_KEY) to the public key of whoever makes the tokens, or start \
             with --dev, which makes a key pair in the data directory"
        );
    }
    tuning::raise_locked_memory();
    shell::check_io_uring()?;
    let (data, cpus) = open_data(&settings)?;
    let shards = data.identity().shards;
    let warm_max = memory::warm_max(settings.warm_bytes, shards, &data.log_options(0), &Machine::default())?;
    let token_key = match settings.token_key {
        Some(key) => key,
        None => token::load_or_create_dev_keys(data.path())?.public_key_bytes(),
    };
    let slots = slots(settings.bounds.connections);
    let bounds =
        Bounds { connections: settings.bounds.connections.min(slots.saturating_sub(SLOTS_SPARE)), ..settings.bounds };
    if let Some(profile) = &settings.tuning_profile {
        tuning::report(profile, data.path())?;
    }
    let (address, listeners) = bind(settings.listen, shards)?;
    let admin_socket = settings.admin_address().map(bind_admin).transpose()?;
    let aside = Aside::new(spare_cpus(&cpus)?);
    let mut starts = Vec::with_capacity(listeners.len());
    for (number, (listener, cpu)) in (0..).zip(listeners.into_iter().zip(cpus)) {
        let shard = ShardId(number);
        let partitions = data.identity().partitions;
        let config = ShardConfig { shard, shards, partitions, token_key, seed: random()?, bounds };
        let disk = data.disk(number).with_context(|| format!("open the directory of shard {shard}"))?;
        let log = LogOptions { warm_max, ..data.log_options(number) };
        starts.push(ShardStart { config, log, disk, listener, cpu, aside: aside.clone(), slots });
    }
    tracing::info!(
        version = env!("CARGO_PKG_VERSION"), commit = env!("WHIMBREL_COMMIT"), data = %data.path().display(), shards,
        partitions = data.identity().partitions, connections = bounds.connections, dev = settings.dev,
        warm_bytes_of_a_shard = print_size(warm_max), "starting"
    );
    let running = Shards::start(starts)?;
    let admin = start_admin(admin_socket, &data, address, &running, aside)?;
    hear_signals(running.teller())?;
    let code = watch(&running, shards, || {
        serving.store(true, Ordering::Relaxed);
        announce(address, shards, data.path());
    })?;
    if let Some(admin) = admin {
        admin.stop()?;
    }
    tracing::info!(code, "ended");
    Ok(code)
}

/// Follows the shards from their start to their end.
fn watch(running: &Shards, shards: u16, announce: impl Fn()) -> anyhow::Result<i32> {
    let all = usize::from(shards);
    let (mut shut, mut ready, mut listening, mut stopped, mut ended) = (0, 0, 0, vec![false; all], 0);
    let mut stopping_since: Option<Instant> = None;
    let mut reported = false;
    loop {
        let timeout = stopping_since.filter(|_| !reported).map(|since| STOP_PATIENCE.saturating_sub(since.elapsed()));
        match running.wait(timeout) {
            Some(Told::Opened(shard)) => tracing::debug!(shard = shard.0, "its log is read"),
            // Where there is nobody else to serve, nobody is served.
            Some(Told::Shut(shard, error)) if shut + 1 == all => {
                return Err(anyhow!(error).context("open the log").context(format!("shard {shard}")));
            }
            Some(Told::Shut(shard, error)) => {
                shut += 1;
                tracing::error!(
                    shard = shard.0, %error,
                    "the log of a shard does not open: all its partitions are in repair, and their users and chats are refused (in_repair), \
                     until a start finds it whole; the other shards serve if theirs open"
                );
            }
            Some(Told::Ready(shard)) => {
                tracing::debug!(shard = shard.0, "all its partitions serve");
                ready += 1;
                if ready == all {
                    running.accept();
                }
            }
            Some(Told::Listening(shard)) => {
                tracing::debug!(shard = shard.0, "it accepts connections");
                listening += 1;
                if listening == all {
                    announce();
                }
            }
            Some(Told::Signal) if stopping_since.is_some_and(|since| since.elapsed() < SAME_SIGNAL) => {}
            Some(Told::Signal) if stopping_since.is_some() => {
                tracing::warn!("a second signal: ending at once");
                return Ok(EXIT_HURRIED);
            }
            Some(Told::Signal) if ready < all => {
                tracing::info!("a signal before the start was over: ending");
                return Ok(0);
            }
            Some(Told::Signal) => {
                tracing::info!("stopping: saying goodbye to the clients");
                stopping_since = Some(Instant::now());
                running.stop();
            }
            Some(Told::Stopped(shard)) => {
                stopped[usize::from(shard.0)] = true;
                if stopped.iter().all(|&stopped| stopped) {
                    running.end();
                }
            }
            Some(Told::Ended(_, Err(error))) => return Err(error),
            Some(Told::Ended(shard, Ok(()))) => {
                tracing::debug!(shard = shard.0, "its thread has ended");
                ended += 1;
                if ended == all {
                    return Ok(0);
                }
            }
            None => {
                let open: Vec<_> = (0..all).filter(|&shard| !stopped[shard]).collect();
                tracing::warn!(
                    shards_that_run = ?open, seconds = STOP_PATIENCE.as_secs(),
                    "the stop hangs; most likely the disk does not finish a write. A second signal ends the process at once; nothing \
                     acknowledged is lost by it"
                );
                reported = true;
            }
        }
    }
}

/// The one line on standard output, for whoever started this to wait for.
fn announce(address: SocketAddr, shards: u16, data: &Path) {
    let mut out = io::stdout().lock();
    let line = format!("ready {address} shards={shards} data={} pid={}\n", data.display(), std::process::id());
    // Whoever started it may not listen; it serves all the same.
    let _ = out.write_all(line.as_bytes()).and_then(|()| out.flush());
    tracing::info!(%address, shards, "serving");
}

/// Shards of a new data directory with `--dev`, unless it is said: six are what 8 MiB of locked memory, the usual limit, allow.
const DEV_SHARDS_MAX: u16 = 4;

/// Opens the data directory and finds a core for each of its shards.
fn open_data(settings: &Settings) -> anyhow::Result<(DataDir, Vec<Option<usize>>)> {
    let allowed = allowed_cpus()?;
    let pool = match &settings.cpus {
        Cpus::These(cpus) => cpus.clone(),
        Cpus::Allowed | Cpus::None => allowed.clone(),
    };
    let pinned = settings.cpus != Cpus::None;
    if let (Cpus::These(_), Some(shards)) = (&settings.cpus, settings.shards)
        && pool.len() < usize::from(shards)
    {
        bail!("--cpus names {} for {shards} shards: name one for each, or `--cpus none`", pool.len());
    }
    if let Some(shards) = settings.shards.filter(|&shards| pinned && usize::from(shards) > pool.len()) {
        bail!("{}", too_many_shards(shards, pool.len()));
    }
    let (partitions, segment_size) = if settings.dev {
        (PARTITIONS_DEV, whimbrel_storage::limits::SEGMENT_DEV_BYTES)
    } else {
        (PARTITIONS, whimbrel_storage::limits::SEGMENT_BYTES)
    };
    // A new directory gets a shard for each core; for development a few do, with the locked memory that everybody has.
    let most = if settings.dev && !matches!(settings.cpus, Cpus::These(_)) { DEV_SHARDS_MAX } else { u16::MAX };
    let shards = u16::try_from(pool.len()).unwrap_or(u16::MAX).min(partitions).min(most);
    let new = Shape { partitions, shards, segment_size };
    let asked = Asked { partitions: settings.partitions, shards: settings.shards, segment_size: settings.segment_size };
    let data = DataDir::open(&settings.data, new, asked)?;
    let shards = usize::from(data.identity().shards);
    if !pinned {
        return Ok((data, vec![None; shards]));
    }
    if shards > pool.len() {
        bail!("{}: {}", data.path().display(), too_many_shards(data.identity().shards, pool.len()));
    }
    Ok((data, pool.into_iter().take(shards).map(Some).collect()))
}

fn too_many_shards(shards: u16, cpus: usize) -> String {
    format!(
        "{shards} shards, but {cpus} cores may be used: start with --shards {cpus} (a new data directory), with more cores, or with \
         `--cpus none`, which pins no shard to a core"
    )
}

fn allowed_cpus() -> anyhow::Result<Vec<usize>> {
    let set = rustix::thread::sched_getaffinity(None).context("ask which cores may be used")?;
    Ok((0..rustix::thread::CpuSet::MAX_CPU).filter(|&cpu| set.is_set(cpu)).collect())
}

/// Starts the admin thread, if there is to be one.
fn start_admin(
    socket: Option<(SocketAddr, TcpListener)>,
    data: &DataDir,
    listen: SocketAddr,
    running: &Shards,
    aside: Aside,
) -> anyhow::Result<Option<Admin>> {
    // What a process before this one left says where nobody listens any more.
    place::remove(data.path())?;
    let Some((admin, socket)) = socket else { return Ok(None) };
    let segment_size = data.identity().segment_size;
    let about = About { data: absolute(data.path())?, listen, admin, segment_size, started: Instant::now() };
    Admin::start(socket, Node::new(about, running.board()), aside).map(Some)
}

/// A directory as whoever works elsewhere finds it.
fn absolute(path: &Path) -> anyhow::Result<PathBuf> {
    path.canonicalize().with_context(|| format!("find {}", path.display()))
}

/// Where no shard is, if all shards have their cores and there are more.
fn spare_cpus(shards: &[Option<usize>]) -> anyhow::Result<Vec<usize>> {
    let spare = |allowed: Vec<usize>| allowed.into_iter().filter(|&cpu| !shards.contains(&Some(cpu))).collect();
    if shards.contains(&None) { Ok(Vec::new()) } else { allowed_cpus().map(spare) }
}

/// The socket of the admin thread, listening.
fn bind_admin(address: SocketAddr) -> anyhow::Result<(SocketAddr, TcpListener)> {
    let socket = bind_alone(address, "--admin (`--admin none` goes without /metrics and `whimbrel status`)")?;
    let address = socket.local_addr()?.as_socket().context("the address of a TCP socket")?;
    socket.listen(ADMIN_BACKLOG).context("listen for whoever watches")?;
    socket.set_nonblocking(true).context("set a socket to not block")?;
    Ok((address, socket.into()))
}

/// Sockets that the shards will listen on, one each, all on one address. They are bound and do not listen yet.
fn bind(address: SocketAddr, shards: u16) -> anyhow::Result<(SocketAddr, Vec<Socket>)> {
    let first = bind_alone(address, "--listen")?;
    let address = first.local_addr()?.as_socket().context("the address of a TCP socket")?;
    // From here on its siblings may bind the same address, and nobody else's sockets.
    first.set_reuse_port(true).context("share the port between shards")?;
    let mut listeners = vec![first];
    for _ in 1..shards {
        let socket = new_socket(address)?;
        socket.set_reuse_port(true).context("share the port between shards")?;
        socket.bind(&address.into()).with_context(|| format!("bind {address} for another shard"))?;
        listeners.push(socket);
    }
    Ok((address, listeners))
}

/// Binds without sharing, which fails if any other process has the port, even one that would share it.
fn bind_alone(address: SocketAddr, option: &str) -> anyhow::Result<Socket> {
    let begun = Instant::now();
    let socket = new_socket(address)?;
    loop {
        let Err(error) = socket.bind(&address.into()) else { return Ok(socket) };
        let remedy = match error.raw_os_error() {
            Some(libc::EADDRINUSE) if begun.elapsed() < PORT_PATIENCE => {
                thread::sleep(Duration::from_millis(10));
                continue;
            }
            Some(libc::EADDRINUSE) => "another process listens there; stop it, or choose another port with",
            Some(libc::EACCES) => "ports below 1024 need CAP_NET_BIND_SERVICE; choose another port with",
            Some(libc::EADDRNOTAVAIL) => "this machine has no such address; choose another with",
            _ => "choose another address with",
        };
        return Err(anyhow!(error).context(format!("cannot listen on {address}: {remedy} {option}")));
    }
}

fn new_socket(address: SocketAddr) -> anyhow::Result<Socket> {
    let socket =
        Socket::new(Domain::for_address(address), Type::STREAM, Some(Protocol::TCP)).context("make a socket")?;
    socket.set_reuse_address(true).context("set SO_REUSEADDR")?;
    // Accepted sockets inherit it. What is to leave together leaves in one send.
    socket.set_tcp_nodelay(true).context("set TCP_NODELAY")?;
    Ok(socket)
}

/// Raises the limit of open files as far as it goes, and says how many places for sockets each shard has by it.
fn slots(connections: u32) -> u32 {
    let Rlimit { current, maximum } = getrlimit(Resource::Nofile);
    let raised = setrlimit(Resource::Nofile, Rlimit { current: maximum, maximum }).is_ok();
    let limit = if raised { maximum } else { current }.unwrap_or(u64::MAX);
    let wanted = u64::from(connections.saturating_add(SLOTS_SPARE));
    let slots = wanted.min(limit.saturating_sub(OTHER_FILES)).max(u64::from(SLOTS_SPARE) + 1);
    if slots < wanted {
        tracing::warn!(
            limit,
            connections = slots - u64::from(SLOTS_SPARE),
            "the limit of open files leaves a shard fewer connections than limits.connections; raise it (`ulimit -Hn`, systemd: LimitNOFILE=)"
        );
    }
    slots as u32
}

fn random() -> anyhow::Result<u64> {
    let mut bytes = [0; 8];
    rustix::rand::getrandom(&mut bytes, rustix::rand::GetRandomFlags::empty()).context("read random bytes")?;
    Ok(u64::from_le_bytes(bytes))
}

/// Tells of each SIGTERM and SIGINT.
fn hear_signals(teller: Sender<Told>) -> anyhow::Result<()> {
    let (mut reader, writer) = UnixStream::pair().context("make a socket pair")?;
    signal_hook::low_level::pipe::register(SIGTERM, writer.try_clone()?).context("handle SIGTERM")?;
    signal_hook::low_level::pipe::register(SIGINT, writer).context("handle SIGINT")?;
    thread::Builder::new().name("signals".to_owned()).spawn(move || {
        let mut byte = [0];
        while reader.read_exact(&mut byte).is_ok() {
            if teller.send(Told::Signal).is_err() {
                return;
            }
        }
    })?;
    Ok(())
}

fn start_log(settings: &Settings) {
    let filter = EnvFilter::builder().parse_lossy(&settings.log_level);
    // A line that cannot be written is lost: to complain of it on the same standard error would end the process.
    let log = tracing_subscriber::fmt()
        .with_writer(io::stderr)
        .with_ansi(io::stderr().is_terminal())
        .with_env_filter(filter)
        .log_internal_errors(false);
    // Where there is one already, as in a test, it stays.
    let _ = match settings.log_format {
        LogFormat::Text => log.try_init(),
        LogFormat::Json => log.json().try_init(),
    };
}

/// A bug in one shard ends all: going on without it would leave its users waiting. Before it serves, a panic of glommio is
/// no bug but a ring that it could not make.
fn end_on_panic(serving: Arc<AtomicBool>) {
    let report = std::panic::take_hook();
    std::panic::set_hook(Box::new(move |info| {
        let glommio = info.location().is_some_and(|location| location.file().contains("/glommio-"));
        if glommio && !serving.load(Ordering::Relaxed) {
            eprintln!("whimbrel: a shard's executor cannot make its io_urings; {}", shell::MEMLOCK_REMEDY);
            std::process::exit(1);
        }
        report(info);
        std::process::exit(EXIT_BUG);
    }));
}

//! What a connection holds that is logged in and silent.

use std::collections::BTreeMap;
use std::path::Path;
use std::time::{Duration, Instant};

use anyhow::{Context, bail};

use crate::connect::allow_descriptors;
use crate::environment::{Scratch, environment};
use crate::load::{log_in, users};
use crate::memory::{KernelMemory, kernel_bytes_per_connection, per_connection, rss_anon_bytes};
use crate::process::{Server, Start, find_whimbrel};
use crate::report::Report;
use crate::ring::{BufferShape, Event, Ring};
use crate::run::{OTHER_DESCRIPTORS, Options, Target, stop};
use crate::token::Minter;

/// What was begun ends before memory is read: gathered acknowledgements, freed objects of the kernel.
const SETTLE: Duration = Duration::from_secs(3);

/// The setting of a server that bounds its connections.
const CONNECTIONS: &str = "WHIMBREL_CONNECTIONS";

const BUFFERS: BufferShape = BufferShape { count: 64, size_bytes: 2048 };

/// Two servers, one after the other: one that may have a single connection, one that has them all.
pub(crate) fn run(options: &Options) -> anyhow::Result<Report> {
    let scenario = &options.scenario;
    let Target::Spawn { whimbrel, data } = &options.target else {
        bail!("an idle scenario compares two servers, which it starts itself: use --spawn");
    };
    allow_descriptors(u64::from(scenario.connections) + OTHER_DESCRIPTORS)?;
    let whimbrel = find_whimbrel(whimbrel.as_deref())?;
    let scratch = Scratch::new(data.as_deref())?;
    let hold = |name: &str, connections, limit: Option<u32>| {
        let mut environment = scenario.environment.clone();
        environment.extend(limit.map(|limit| (CONNECTIONS.to_owned(), limit.to_string())));
        hold(&whimbrel, &scratch.path().join(name), connections, &environment).map_err(|error| scratch.explain(error))
    };
    let one = hold("one", 1, Some(1))?;
    eprintln!("idle: limited to one connection, {} KiB of anonymous memory", one.user_bytes / 1024);
    let all = hold("all", scenario.connections, None)?;
    eprintln!("idle: {} connections, {} KiB of anonymous memory", scenario.connections, all.user_bytes / 1024);
    let commands = [("one".to_owned(), one.command), ("server".to_owned(), all.command)];
    let mut report = Report::new(&scenario.name, environment(scenario, &commands)?);
    report.user_bytes_per_connection = Some(per_connection(one.user_bytes, all.user_bytes, scenario.connections));
    report.kernel_bytes_per_connection = Some(all.kernel_bytes_each);
    Ok(report)
}

struct Held {
    user_bytes: u64,
    kernel_bytes_each: f64,
    command: String,
}

/// Starts a server, logs in that many users, waits, reads, and ends it.
fn hold(
    whimbrel: &Path,
    data: &Path,
    connections: u32,
    environment: &BTreeMap<String, String>,
) -> anyhow::Result<Held> {
    let start = Start { program: whimbrel, data, shards: 1, cpus: "0", environment };
    let server = Server::whimbrel(&start)?;
    let minter = Minter::load(data)?;
    let names: Vec<String> = (0..connections).map(users::user).collect();
    // Both ends are held by a ring in the same way, so that half of what both hold is one end's.
    let mut ring = Ring::new(connections, BUFFERS).context("make an io_uring")?;
    let before = KernelMemory::read()?;
    for (slot, joined) in log_in(server.address(), &minter, &names)?.into_iter().enumerate() {
        ring.adopt(slot as u32, joined.into_parts().0).context("hand a socket to io_uring")?;
    }
    let start_of_silence = Instant::now();
    while start_of_silence.elapsed() < SETTLE {
        ring.turn(Duration::from_millis(100)).context("io_uring_enter")?;
        while let Some(event) = ring.next() {
            match event {
                Event::Received { filled, .. } => ring.give_back(filled),
                Event::Ended { slot, errno } => {
                    bail!("connection {slot} ended: {}", std::io::Error::from_raw_os_error(errno));
                }
                Event::Accepted { .. } | Event::Sent { .. } | Event::Written { .. } => {}
            }
        }
    }
    let after = KernelMemory::read()?;
    let held = Held {
        user_bytes: rss_anon_bytes(server.pid())?,
        kernel_bytes_each: kernel_bytes_per_connection(before, after, connections),
        command: start.command_line(),
    };
    drop(ring);
    stop(server);
    Ok(held)
}

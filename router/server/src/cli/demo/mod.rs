//! `whimbrel demo`: a real server in a process of its own, real clients over TCP, a crash in the middle; and at the end a
//! comparison of what was sent with what arrived, by what the clients saw alone.

mod device;
mod ledger;
mod process;
mod stage;
mod story;

use std::io;
use std::process::ExitCode;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, bail};
use serde_json::json;

use crate::cli::DemoArgs;
use crate::cli::demo::ledger::Verdict;
use crate::cli::demo::stage::Stage;
use crate::cli::output::{Out, StdoutClosed};

/// The demo takes a few seconds; one that takes this long has failed.
const LIMIT: Duration = Duration::from_secs(60);

pub(super) fn run(args: &DemoArgs) -> anyhow::Result<ExitCode> {
    let patience = Patience::until_interrupted()?;
    let directory =
        tempfile::Builder::new().prefix("whimbrel-demo-").tempdir().context("make a temporary directory")?;
    let mut timeline = Timeline { begun: Instant::now(), quiet: args.json };
    let stage = Arc::new(Stage::default());
    let told = story::tell(&stage, directory.path(), &patience, &mut timeline);
    let (verdict, repeated) = stage.look(|seen| (seen.ledger.verdict(), seen.repeated));
    let good = told.is_ok() && verdict.good();
    let unwatched = patience.interrupted() || told.as_ref().is_err_and(|error| error.is::<StdoutClosed>());
    // A demo that nobody watches any more leaves nothing behind; a failed one leaves all there is to find out why.
    if args.keep || !(good || unwatched) {
        eprintln!(
            "whimbrel: the demo's directory is {}; the server's log there is server.log",
            directory.keep().display()
        );
    }
    let (latencies, failure) = match told {
        Ok(latencies) => (latencies, None),
        Err(error) if unwatched => return Err(error),
        Err(error) => (Vec::new(), Some(error)),
    };
    // Also of a demo that could not go on: what was lost is why.
    conclude(args, &Outcome { verdict, latencies, repeated, good }, timeline.begun.elapsed())?;
    match failure {
        Some(error) => Err(error),
        None if good => Ok(ExitCode::SUCCESS),
        None => Ok(ExitCode::FAILURE),
    }
}

/// What a demo comes to.
struct Outcome {
    verdict: Verdict,
    latencies: Vec<Latency>,
    /// Sends that were stored before a crash and acknowledged after it.
    repeated: usize,
    good: bool,
}

/// How quick an act was.
struct Latency {
    act: &'static str,
    acknowledged: Quantiles,
    delivered: Quantiles,
}

fn conclude(args: &DemoArgs, outcome: &Outcome, took: Duration) -> anyhow::Result<()> {
    let verdict = &outcome.verdict;
    for wrong in &verdict.wrong {
        eprintln!("whimbrel: {wrong}");
    }
    let mut out = Out::stdout();
    if args.json {
        let latencies: serde_json::Map<String, serde_json::Value> = outcome
            .latencies
            .iter()
            .map(|of| {
                (of.act.to_owned(), json!({ "acknowledged": of.acknowledged.json(), "delivered": of.delivered.json() }))
            })
            .collect();
        return out.json(&json!({
            "sent": verdict.sent,
            "acknowledged": verdict.acknowledged,
            "delivered": verdict.delivered,
            "lost": verdict.lost,
            "duplicated": verdict.duplicated,
            "reordered": verdict.reordered,
            "wrong": verdict.wrong,
            "resent": outcome.repeated,
            "latency_us": latencies,
            "took_ms": took.as_millis() as u64,
            "good": outcome.good,
        }));
    }
    out.line(&format!(
        "demo: sent {}, acknowledged {}, delivered {}, lost {}, duplicated {}, reordered {}",
        verdict.sent, verdict.acknowledged, verdict.delivered, verdict.lost, verdict.duplicated, verdict.reordered
    ))
}

/// Ends a demo that takes too long, and one that is interrupted.
struct Patience {
    until: Instant,
    interrupted: Arc<AtomicBool>,
}

impl Patience {
    /// How long one look at it may be delayed.
    const STEP: Duration = Duration::from_millis(20);

    fn until_interrupted() -> io::Result<Patience> {
        let interrupted = Arc::new(AtomicBool::new(false));
        for signal in [signal_hook::consts::SIGINT, signal_hook::consts::SIGTERM, signal_hook::consts::SIGHUP] {
            signal_hook::flag::register(signal, Arc::clone(&interrupted))?;
        }
        Ok(Patience { until: Instant::now() + LIMIT, interrupted })
    }

    fn interrupted(&self) -> bool {
        self.interrupted.load(Ordering::Relaxed)
    }

    /// Fails if it is over.
    fn check(&self, what: &str) -> anyhow::Result<()> {
        if self.interrupted() {
            bail!("interrupted while waiting for {what}");
        }
        if Instant::now() >= self.until {
            bail!("waited {} s in all, at last for {what}", LIMIT.as_secs());
        }
        Ok(())
    }

    /// Waits one step.
    fn pause(&self, what: &str) -> anyhow::Result<()> {
        self.check(what)?;
        thread::sleep(Patience::STEP);
        Ok(())
    }
}

/// Lines with the time since the beginning.
struct Timeline {
    begun: Instant,
    quiet: bool,
}

impl Timeline {
    fn say(&mut self, line: &str) -> anyhow::Result<()> {
        let line = format!("{:7.3} s  {line}", self.begun.elapsed().as_secs_f64());
        if self.quiet {
            eprintln!("{line}");
            return Ok(());
        }
        Out::stdout().line(&line)
    }
}

/// Two places in a sorted row of times.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Quantiles {
    p50: Duration,
    p99: Duration,
}

impl Quantiles {
    fn json(self) -> serde_json::Value {
        json!({ "p50": self.p50.as_micros() as u64, "p99": self.p99.as_micros() as u64 })
    }
}

impl std::fmt::Display for Quantiles {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let ms = |time: Duration| time.as_secs_f64() * 1e3;
        write!(f, "p50 {:.2} ms, p99 {:.2} ms", ms(self.p50), ms(self.p99))
    }
}

fn quantiles(times: &[Duration]) -> Option<Quantiles> {
    let mut times = times.to_vec();
    times.sort_unstable();
    let at = |percent: usize| times.get((times.len() * percent).div_ceil(100).max(1) - 1).copied();
    Some(Quantiles { p50: at(50)?, p99: at(99)? })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn quantiles_are_of_what_was_measured() {
        let times: Vec<Duration> = (1..=100).rev().map(Duration::from_millis).collect();
        let found = quantiles(&times).unwrap();
        assert_eq!((found.p50, found.p99), (Duration::from_millis(50), Duration::from_millis(99)));
        assert_eq!(quantiles(&times[..1]).unwrap().p50, Duration::from_millis(100));
        assert_eq!(quantiles(&[]), None);
    }
}

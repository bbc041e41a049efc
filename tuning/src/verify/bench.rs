//! One run of whimbrel-bench, and the figures that it reports.

#![forbid(unsafe_code)]

use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::Duration;

use anyhow::{Context, bail};
use serde_json::Value;
use whimbrel_tune::machine::Machine;

use super::counters::tcp_memory;

/// The report that is understood.
const SCHEMA: &str = "whimbrel-bench/1";

/// How often the socket memory is looked at while the bench runs.
const SAMPLE: Duration = Duration::from_millis(100);

/// Where a figure stands in the report, its unit, and whether less of it is better.
const FIGURES: [(&str, &str, bool); 8] = [
    ("/server_cpu_ns_per_delivered", "ns", true),
    ("/ratio_to_floor", "", true),
    ("/delivered_per_s", "/s", false),
    ("/latency_us/p50", "us", true),
    ("/latency_us/p99", "us", true),
    ("/user_bytes_per_connection", "B", true),
    ("/kernel_bytes_per_connection", "B", true),
    ("/disk_flush_us/p50", "us", true),
];

/// What to run.
pub(crate) struct Bench {
    pub(crate) binary: PathBuf,
    pub(crate) scenario: PathBuf,
    pub(crate) seconds: Option<f64>,
}

/// A figure of one run.
pub(crate) struct Figure {
    pub(crate) name: String,
    pub(crate) unit: &'static str,
    pub(crate) less_is_better: bool,
    pub(crate) value: f64,
}

impl Bench {
    /// Finds the bench beside this program, and the scenario by its name or as a file.
    pub(crate) fn find(binary: Option<&Path>, scenario: &str, seconds: Option<f64>) -> anyhow::Result<Bench> {
        let own = std::env::current_exe().context("where this program lies")?;
        let beside = own.with_file_name("whimbrel-bench");
        let binary = binary.unwrap_or(&beside).to_owned();
        if !binary.is_file() {
            bail!(
                "there is no {}: build it (cargo build --release --workspace), or name it: --bench-binary PATH",
                binary.display()
            );
        }
        let named = format!("bench/scenarios/{scenario}.toml");
        // From the top of a checkout, or beside the folder that it was built in.
        let above = binary.ancestors().nth(3).unwrap_or(Path::new(".")).join(&named);
        let candidates = [PathBuf::from(scenario), PathBuf::from(&named), above];
        let Some(scenario) = candidates.into_iter().find(|path| path.is_file()) else {
            bail!("there is no scenario {scenario}: name one of bench/scenarios, or a file");
        };
        Ok(Bench { binary, scenario, seconds })
    }

    /// Runs it once. Its progress goes to standard error.
    pub(crate) fn run(&self, machine: &Machine) -> anyhow::Result<Vec<Figure>> {
        let mut command = Command::new(&self.binary);
        command.arg("run").arg(&self.scenario).args(["--spawn", "--json", "-"]);
        if let Some(seconds) = self.seconds {
            command.args(["--seconds", &seconds.to_string()]);
        }
        let child = command.stdin(Stdio::null()).stdout(Stdio::piped()).spawn();
        let child = child.with_context(|| format!("start {}", self.binary.display()))?;
        let (output, peak) = wait_and_sample(child, machine)?;
        if !output.status.success() {
            bail!("{} {}: see what it said above", self.binary.display(), output.status);
        }
        let report: Value = serde_json::from_slice(&output.stdout).context("the report of the bench")?;
        if report["schema"] != SCHEMA {
            bail!(
                "the bench's report is {}, and {SCHEMA} is understood: use the bench of this build",
                report["schema"]
            );
        }
        let mut figures = figures(&report);
        if let Some(pages) = peak {
            let value = (pages * machine.page_bytes()) as f64;
            let name = "peak of TCP's buffers, all sockets".to_owned();
            figures.push(Figure { name, unit: "B", less_is_better: true, value });
        }
        Ok(figures)
    }
}

fn figures(report: &Value) -> Vec<Figure> {
    let one = |&(pointer, unit, less_is_better): &(&str, &'static str, bool)| {
        let value = report.pointer(pointer)?.as_f64()?;
        Some(Figure { name: pointer[1..].replace('/', "."), unit, less_is_better, value })
    };
    FIGURES.iter().filter_map(one).collect()
}

/// Waits for the child, and says the most pages that TCP's buffers had meanwhile.
fn wait_and_sample(child: Child, machine: &Machine) -> anyhow::Result<(std::process::Output, Option<u64>)> {
    let is_done = AtomicBool::new(false);
    thread::scope(|scope| {
        let sampler = scope.spawn(|| {
            let mut peak = None;
            while !is_done.load(Ordering::Relaxed) {
                peak = peak.max(tcp_memory(machine).map(|(pages, _)| pages));
                thread::park_timeout(SAMPLE);
            }
            peak
        });
        let output = child.wait_with_output();
        is_done.store(true, Ordering::Relaxed);
        sampler.thread().unpark();
        let peak = sampler.join().map_err(|_| anyhow::anyhow!("the sampler panicked"))?;
        Ok((output.context("wait for the bench")?, peak))
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_a_scenario_does_not_measure_is_left_out() {
        let report = serde_json::json!({
            "schema": SCHEMA, "ratio_to_floor": null, "kernel_bytes_per_connection": 5199.0, "latency_us": { "p50": 80.0, "p99": 120 },
        });
        let names: Vec<String> = figures(&report).into_iter().map(|figure| figure.name).collect();
        assert_eq!(names, ["latency_us.p50", "latency_us.p99", "kernel_bytes_per_connection"]);
    }
}

//! `verify`.

#![forbid(unsafe_code)]

use std::fmt::Write as _;
use std::process::ExitCode;

use whimbrel_tune::apply::Fate;

use super::output::{Usage, print, print_json, table as columns};
use super::{PlaceArgs, VerifyArgs};
use crate::verify::{Bench, Compared, Report, Verdict, Verify};

pub(super) fn verify(place: &PlaceArgs, args: &VerifyArgs) -> anyhow::Result<ExitCode> {
    if args.seconds.is_some_and(|seconds| !(seconds > 0.0 && seconds <= 3600.0)) {
        return Err(Usage("--seconds is more than 0 and at most 3600".to_owned()).into());
    }
    let verify = Verify {
        machine: place.machine(),
        profile: place.load(&args.profile)?,
        state: place.state(),
        data: place.data.clone(),
        rounds: args.rounds,
        null: args.null,
    };
    let report = match &args.bench {
        Some(scenario) => {
            let bench = Bench::find(args.bench_binary.as_deref(), scenario, args.seconds);
            verify.by_bench(&bench.map_err(|error| Usage(format!("{error:#}")))?)?
        }
        None => verify.by_probes()?,
    };
    if place.json {
        print_json(&report)?;
    } else {
        print(&text(&report))?;
    }
    Ok(ExitCode::SUCCESS)
}

fn text(report: &Report) -> String {
    let what = report.scenario.as_deref().map_or("probes".to_owned(), |scenario| format!("scenario {scenario}"));
    let mut text = format!("{}, {what}, {} rounds without and with", report.profile, report.rounds);
    text.push_str(if report.null { ", nothing applied: what shows here is chance\n" } else { "\n" });
    let count = |fate| report.settings.iter().filter(|step| step.fate == fate).count();
    if !report.null {
        let (changed, kept, missing) = (count(Fate::Changed), count(Fate::Kept), count(Fate::Missing));
        let _ = writeln!(
            text,
            "settings: {changed} changed, read back and put back; {kept} enough already; {missing} not here"
        );
    }
    for step in report.settings.iter().filter(|step| step.fate == Fate::Refused) {
        let _ = writeln!(text, "refused: {}: {}", step.key, step.note);
    }
    if !report.figures.is_empty() {
        let head = ["figure", "without", "with", "change", "95 % interval", ""].map(str::to_owned).to_vec();
        let rows: Vec<_> = std::iter::once(head).chain(report.figures.iter().map(row)).collect();
        let _ = write!(text, "\n{}", columns(&rows));
    }
    let grown: Vec<Vec<String>> = std::iter::once(["kernel counter", "without", "with"].map(str::to_owned).to_vec())
        .chain(
            report
                .counters
                .iter()
                .map(|(name, (without, with))| vec![(*name).to_owned(), without.to_string(), with.to_string()]),
        )
        .collect();
    let _ = write!(text, "\n{}", columns(&grown));
    if !report.not_probed.is_empty() {
        let _ = writeln!(text, "\nno probe, measure with --bench: {}", report.not_probed.join(", "));
    }
    for (key, why) in &report.not_taken {
        let _ = writeln!(text, "\nnot measured here: {key}: {why}");
    }
    let said = summary(&report.figures);
    let _ = writeln!(text, "\n{}{said}", if report.null { "by chance alone: " } else { "" });
    text
}

fn row(figure: &Compared) -> Vec<String> {
    let (low, high) = figure.interval;
    let change = format!("{:+.1} %", figure.change_percent);
    let interval = format!("{low:+.1} to {high:+.1} %");
    let verdict = match figure.verdict {
        Verdict::Better => "better",
        Verdict::Worse => "worse",
        Verdict::NoEffect => "no effect measured",
    };
    let value = |value: f64| format!("{} {}", number(value), figure.unit).trim().to_owned();
    vec![
        figure.name.clone(),
        value(figure.without_median),
        value(figure.with_median),
        change,
        interval,
        verdict.to_owned(),
    ]
}

/// Whole, unless it is small.
fn number(value: f64) -> String {
    if value.abs() >= 100.0 || value.fract() == 0.0 { format!("{value:.0}") } else { format!("{value:.2}") }
}

fn summary(figures: &[Compared]) -> String {
    let names = |verdict| {
        let of = figures.iter().filter(move |figure| figure.verdict == verdict);
        of.map(|figure| figure.name.split(": ").next().unwrap_or_default()).collect::<Vec<_>>().join(", ")
    };
    let (better, worse) = (names(Verdict::Better), names(Verdict::Worse));
    match (better.is_empty(), worse.is_empty()) {
        (true, true) => "no effect measured here".to_owned(),
        (false, true) => format!("better here: {better}"),
        (true, false) => format!("worse here: {worse}"),
        (false, false) => format!("better here: {better}; worse here: {worse}"),
    }
}

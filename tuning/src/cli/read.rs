//! Commands that change nothing: `list`, `show`, `explain`, `check`, `recommend`, `export`.

#![forbid(unsafe_code)]

use std::fmt::Write as _;
use std::process::ExitCode;
use std::time::Instant;

use serde::Serialize;
use serde_json::json;
use whimbrel_tune::check::{Checked, ProfileState, Standing, check as check_profile};
use whimbrel_tune::export as forms;
use whimbrel_tune::plan::plan;
use whimbrel_tune::profile::Setting;
use whimbrel_tune::recommend::{Expected, Recommendation, recommend as recommend_for};
use whimbrel_tune::state;
use whimbrel_tune::table::{self, FOLKLORE, KEYS, Rule, Severity};

use super::output::{Usage, print, print_json, table as columns};
use super::{CheckArgs, Format, PlaceArgs, ProfileArgs, RecommendArgs};

pub(super) fn list(place: &PlaceArgs) -> anyhow::Result<ExitCode> {
    let profiles = place.load_all()?;
    let applied = state::applied(&place.state())?;
    if place.json {
        let all = profiles.iter().map(|profile| {
            let is_applied = applied.contains(&profile.name);
            json!({ "name": profile.name, "title": profile.title, "settings": profile.settings.len(), "applied": is_applied })
        });
        print_json(&all.collect::<Vec<_>>())?;
        return Ok(ExitCode::SUCCESS);
    }
    let rows = profiles.iter().map(|profile| {
        let mark = if applied.contains(&profile.name) { "applied" } else { "" };
        vec![profile.name.clone(), mark.to_owned(), profile.title.clone()]
    });
    print(&columns(&rows.collect::<Vec<_>>()))?;
    Ok(ExitCode::SUCCESS)
}

pub(super) fn show(place: &PlaceArgs, args: &ProfileArgs) -> anyhow::Result<ExitCode> {
    let profile = place.load(args)?;
    if place.json {
        print_json(&profile)?;
        return Ok(ExitCode::SUCCESS);
    }
    let mut text = format!("{}: {}\n", profile.name, profile.title);
    for setting in &profile.settings {
        let _ = writeln!(text, "\n{} = {}", setting.key, setting.value);
        describe(&mut text, setting);
    }
    print(&text)?;
    Ok(ExitCode::SUCCESS)
}

fn describe(text: &mut String, setting: &Setting) {
    let scaled = setting.percent_of_ram.as_ref().map(|percent| {
        let percent: Vec<String> = percent.iter().map(ToString::to_string).collect();
        format!("{} % of this machine's RAM, in pages", percent.join(" "))
    });
    let fields = [
        ("what", setting.what.as_str()),
        ("why", setting.why.as_str()),
        ("cost", setting.cost.as_str()),
        ("computed", scaled.as_deref().unwrap_or_default()),
        ("source", setting.source.as_str()),
    ];
    for (name, field) in fields.into_iter().filter(|(_, field)| !field.is_empty()) {
        let _ = writeln!(text, "  {name:8} {field}");
    }
}

#[derive(Serialize)]
struct Explained<'a> {
    key: &'a str,
    rule: Rule,
    severity: Severity,
    what: &'a str,
    cost: &'a str,
    source: &'a str,
    profiles: Vec<serde_json::Value>,
}

pub(super) fn explain(place: &PlaceArgs, key: Option<&str>) -> anyhow::Result<ExitCode> {
    let Some(key) = key else { return explain_all(place) };
    if let Some((key, why)) = FOLKLORE.iter().find(|(folklore, _)| *folklore == key) {
        if place.json {
            print_json(&json!({ "key": key, "does_nothing": why }))?;
        } else {
            print(&format!("{key}\n  is in no profile: {why}\n"))?;
        }
        return Ok(ExitCode::SUCCESS);
    }
    let names = KEYS.iter().map(|known| known.key).chain(FOLKLORE.iter().map(|(key, _)| *key));
    let Some(known) = table::find(key) else {
        let nearest = table::nearest(key, names).map(|name| format!("; did you mean `{name}`?")).unwrap_or_default();
        return Err(Usage(format!("`{key}` is not a key that is known here{nearest}")).into());
    };
    let profiles = place.load_all()?;
    let uses = || {
        profiles.iter().flat_map(|profile| {
            profile.settings.iter().filter(|setting| setting.key == key).map(|setting| (profile.name.as_str(), setting))
        })
    };
    let first = uses().next().map(|(_, setting)| setting);
    let field = |get: fn(&Setting) -> &String| first.map(|setting| get(setting).as_str()).unwrap_or_default();
    let (what, cost, source) = (field(|s| &s.what), field(|s| &s.cost), field(|s| &s.source));
    if place.json {
        let profiles =
            uses().map(|(name, setting)| json!({ "profile": name, "value": setting.value, "why": setting.why }));
        let (rule, severity) = (known.rule, known.severity);
        print_json(&Explained { key, rule, severity, what, cost, source, profiles: profiles.collect() })?;
        return Ok(ExitCode::SUCCESS);
    }
    let rule = match known.rule {
        Rule::Exactly => "set to the profile's value",
        Rule::AtLeast => "only raised: what is higher stays",
        Rule::AtMost => "only lowered: what is lower stays",
        Rule::Widen => "only widened: a range that contains it stays",
    };
    let severity = severity_text(known.severity);
    let mut text = format!(
        "{key}\n  what     {what}\n  cost     {cost}\n  source   {source}\n  rule     {rule}\n  if not   {severity}\n"
    );
    for (name, setting) in uses() {
        let _ = writeln!(text, "\n{name}: {}\n  why      {}", setting.value, setting.why);
    }
    print(&text)?;
    Ok(ExitCode::SUCCESS)
}

fn explain_all(place: &PlaceArgs) -> anyhow::Result<ExitCode> {
    if place.json {
        let known =
            KEYS.iter().map(|known| json!({ "key": known.key, "rule": known.rule, "severity": known.severity }));
        let folklore = FOLKLORE.iter().map(|(key, why)| json!({ "key": key, "does_nothing": why }));
        print_json(&known.chain(folklore).collect::<Vec<_>>())?;
        return Ok(ExitCode::SUCCESS);
    }
    let known = KEYS.iter().map(|known| format!("{}\n", known.key)).collect::<String>();
    let folklore = FOLKLORE.iter().map(|(key, _)| format!("{key}\n")).collect::<String>();
    print(&format!(
        "Keys of the profiles:\n{known}\nKeys of popular guides that do nothing for this server:\n{folklore}"
    ))?;
    Ok(ExitCode::SUCCESS)
}

fn severity_text(severity: Severity) -> &'static str {
    match severity {
        Severity::Minor => "minor",
        Severity::Warning => "warning",
        Severity::Critical => "critical",
    }
}

pub(super) fn check(place: &PlaceArgs, args: &CheckArgs) -> anyhow::Result<ExitCode> {
    let begun = Instant::now();
    let profile = place.load(&args.profile)?;
    let machine = match args.pid {
        Some(pid) => place.machine().with_process(pid),
        None => place.machine(),
    };
    let state = check_profile(&machine, &profile, &place.data);
    if place.json {
        let mut json = serde_json::to_value(&state)?;
        json["took_ms"] = json!(begun.elapsed().as_secs_f64() * 1e3);
        print_json(&json)?;
    } else {
        print(&check_text(&state))?;
    }
    Ok(if state.short == 0 { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

fn check_text(state: &ProfileState) -> String {
    let mut text = format!("{}: {} met, {} short, {} not here\n", state.profile, state.met, state.short, state.missing);
    let rows = |wanted: Standing| {
        let of = state.settings.iter().filter(move |checked| checked.standing == wanted);
        of.map(check_row).collect::<Vec<_>>()
    };
    for (title, standing) in [
        ("short", Standing::Short),
        ("unreadable", Standing::Unreadable),
        ("not here", Standing::Missing),
        ("met", Standing::Met),
    ] {
        let rows = rows(standing);
        if !rows.is_empty() {
            let _ = write!(text, "\n{title}\n{}", columns(&rows));
        }
    }
    text
}

fn check_row(checked: &Checked) -> Vec<String> {
    let place = if checked.places > 1 { format!(" ({} places)", checked.places) } else { String::new() };
    let key = format!("  {}{place}", checked.key);
    match checked.standing {
        Standing::Met => vec![key, checked.current.clone()],
        Standing::Missing | Standing::Unreadable => {
            vec![key, severity_text(checked.severity).into(), checked.remedy.clone()]
        }
        Standing::Short => {
            let values = format!("{} -> {}", checked.current, checked.wanted);
            vec![key, severity_text(checked.severity).into(), values, checked.remedy.clone()]
        }
    }
}

pub(super) fn recommend(place: &PlaceArgs, args: &RecommendArgs) -> anyhow::Result<ExitCode> {
    let expected = Expected { connections: args.connections, rate: args.rate, message_size: args.message_size };
    let found = recommend_for(&place.machine(), expected);
    if place.json {
        print_json(&found)?;
    } else {
        print(&recommend_text(&found))?;
    }
    Ok(ExitCode::SUCCESS)
}

fn recommend_text(found: &Recommendation) -> String {
    let facts = &found.facts;
    let nics: Vec<String> =
        facts.nics.iter().map(|nic| format!("{} with {} receive queues", nic.name, nic.queues)).collect();
    let nics = if nics.is_empty() { "no network card".to_owned() } else { nics.join(", ") };
    let place = if facts.is_virtual { ", virtual" } else { "" };
    let (profile, cpus) = (found.profile, &found.cpus);
    let mut text = format!(
        "machine  {} cores ({} physical), NUMA nodes: {}, {} MiB, {nics}, kernel {}{place}\n",
        facts.cpus,
        facts.physical.len(),
        facts.nodes.len().max(1),
        facts.memory_bytes >> 20,
        facts.kernel
    );
    let _ = write!(
        text,
        "\nprofile  {profile}\n         {}\n         sudo whimbrel-tune apply {profile}\n",
        found.profile_reason
    );
    let _ = write!(text, "\ncpus     {cpus}\n         {}\n", found.cpus_reason);
    let _ = write!(
        text,
        "         whimbrel serve --cpus {cpus} (or WHIMBREL_CPUS={cpus}): shards of a new data directory: {}\n\n",
        found.shards
    );
    let rows = found.values.iter().map(|value| vec![value.key.clone(), value.value.clone(), value.reason.clone()]);
    text.push_str(&columns(&rows.collect::<Vec<_>>()));
    for warning in &found.warnings {
        let _ = writeln!(text, "\nnote     {warning}");
    }
    text
}

pub(super) fn export(place: &PlaceArgs, format: Format, args: &ProfileArgs) -> anyhow::Result<ExitCode> {
    let profile = place.load(args)?;
    let machine = place.machine();
    if matches!(format, Format::SysctlD) && !args.only.is_empty() {
        return Err(Usage("--only does not go with sysctl.d, which is the whole file: leave it away".to_owned()).into());
    }
    let text = match format {
        Format::SysctlD => forms::sysctl_d(&machine, &profile),
        Format::Tuned => forms::tuned(&machine, &profile),
        Format::Systemd => forms::systemd(&profile),
        Format::Ansible => forms::ansible(&machine, &profile),
        Format::Script => forms::script(&profile, &plan(&machine, &profile, &place.data), true),
    };
    if place.json {
        print_json(&json!({ "profile": profile.name, "text": text }))?;
    } else {
        print(&text)?;
    }
    Ok(ExitCode::SUCCESS)
}

//! `whimbrel status`: asks a running server's admin thread, and prints a table.

use std::net::{SocketAddr, ToSocketAddrs};
use std::path::Path;
use std::process::ExitCode;
use std::time::Duration;

use anyhow::Context;
use bytes::Bytes;
use http_body_util::{BodyExt, Empty, Limited};
use hyper::client::conn::http1;
use hyper::{Request, StatusCode};
use hyper_util::rt::TokioIo;
use tokio::net::TcpStream;

use crate::admin::place;
use crate::admin::status::{Aside, Quantiles, ShardStatus, Status, Tuning};
use crate::cli::StatusArgs;
use crate::cli::output::{Failure, Out};
use crate::shell::Stage;

/// No answer is longer: a shard takes less than 4 KiB of it.
const ANSWER_MAX_BYTES: usize = 16 << 20;

/// Shards side by side; of more there are several tables.
const COLUMNS: usize = 6;

pub(super) fn run(args: &StatusArgs) -> anyhow::Result<ExitCode> {
    let (address, named) = find(args)?;
    let status = ask(address, &named, args)?;
    if args.admin.is_none()
        && let Some(owner) = place::owner(&args.data)
        && owner != status.pid
    {
        let data = args.data.display();
        let what = format!(
            "no server runs on {data}: {named} answers for process {} on {}, not for process {owner}",
            status.pid,
            status.data.display()
        );
        return Err(Failure::with_remedy(what, start_one(&args.data)).into());
    }
    let mut out = Out::stdout();
    if args.json {
        out.json(&status)?;
    } else {
        out.text(&table(&status))?;
    }
    Ok(ExitCode::SUCCESS)
}

/// Where to ask, and how that is known.
fn find(args: &StatusArgs) -> anyhow::Result<(SocketAddr, String)> {
    if let Some(name) = &args.admin {
        let mut found = name.to_socket_addrs().map_err(|error| {
            Failure::with_remedy(format!("cannot find {name}: {error}"), "name it as HOST:PORT, like 127.0.0.1:7401")
        })?;
        let address = found.next().with_context(|| format!("{name} has no address"))?;
        return Ok((address, name.clone()));
    }
    let address =
        place::read(&args.data).map_err(|error| Failure::with_remedy(error.to_string(), start_one(&args.data)))?;
    Ok((address, format!("{address} (from {})", args.data.join("admin").display())))
}

fn start_one(data: &Path) -> String {
    format!("start one: whimbrel serve --dev --data {}; or name another: --data DIR or --admin ADDR", data.display())
}

fn ask(address: SocketAddr, named: &str, args: &StatusArgs) -> anyhow::Result<Status> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_io().enable_time().build()?;
    let (code, body) = runtime.block_on(async {
        let socket = within(args.timeout, TcpStream::connect(address))
            .await?
            .map_err(|error| Failure::with_remedy(format!("no server at {named}: {error}"), start_one(&args.data)))?;
        within(args.timeout, get(socket, address, "/status")).await?.map_err(|error| {
            Failure::with_remedy(format!("{named} is not the admin address of a server: {error:#}"), OTHER_ADDRESS)
        })
    })?;
    if code != StatusCode::OK {
        let what = format!("{named} is not the admin address of a server: it answered {code}");
        return Err(Failure::with_remedy(what, OTHER_ADDRESS).into());
    }
    serde_json::from_slice(&body).map_err(|error| {
        let what = format!("{named} answered with a status that this version does not know: {error}");
        Failure::with_remedy(what, "use the whimbrel of that server").into()
    })
}

/// What to do if somebody else answers.
const OTHER_ADDRESS: &str =
    "it is `[admin] listen` of the server (--admin), which is not where clients connect; or name its data: --data DIR";

async fn within<T>(time: Duration, future: impl Future<Output = T>) -> Result<T, Failure> {
    tokio::time::timeout(time, future)
        .await
        .map_err(|_| Failure::with_remedy(format!("no answer within {time:?}"), "give it more time: --timeout TIME"))
}

async fn get(socket: TcpStream, host: SocketAddr, path: &str) -> anyhow::Result<(StatusCode, Bytes)> {
    let (mut sender, connection) = http1::handshake(TokioIo::new(socket)).await?;
    // What is wrong with the connection is told by the answer that does not come.
    tokio::spawn(connection);
    let request = Request::get(path).header("host", host.to_string()).body(Empty::<Bytes>::new())?;
    let answer = sender.send_request(request).await?;
    let code = answer.status();
    let body =
        Limited::new(answer.into_body(), ANSWER_MAX_BYTES).collect().await.map_err(|error| anyhow::anyhow!(error))?;
    Ok((code, body.to_bytes()))
}

/// The node, then a column for each shard and one for all.
fn table(status: &Status) -> String {
    let mut text = String::new();
    for (label, value) in about(status) {
        text += &format!("{label:<9} {value}\n");
    }
    let rows = rows(&status.shards);
    let blocks = status.shards.len().div_ceil(COLUMNS);
    for block in 0..blocks {
        let shown = block * COLUMNS..status.shards.len().min((block + 1) * COLUMNS);
        let last = block + 1 == blocks;
        text += "\n";
        for row in &rows {
            let cells = row.cells[shown.clone()].iter().chain(last.then_some(&row.all));
            let line = cells.fold(format!("{:<26}", row.label), |line, cell| format!("{line} {cell:>11}"));
            text += line.trim_end();
            text += "\n";
        }
    }
    text
}

/// The lines above the table.
fn about(status: &Status) -> Vec<(&'static str, String)> {
    let serving = status.shards.iter().filter(|shard| shard.stage == Stage::Accepting).count();
    let all = status.shards.len();
    let mut lines = vec![
        ("version", format!("{} ({})", status.version, status.commit)),
        ("process", format!("{}, up {}", status.pid, time_text(status.uptime_seconds))),
        ("listens", format!("{}, admin {}", status.listen, status.admin)),
        ("data", status.data.display().to_string()),
        ("serving", if serving == all { format!("all {all} shards") } else { format!("{serving} of {all} shards") }),
    ];
    let in_repair: u64 = status.shards.iter().map(|shard| shard.in_repair).sum();
    if in_repair > 0 {
        let partitions = if in_repair == 1 { "partition is" } else { "partitions are" };
        let text =
            format!("{in_repair} {partitions} in repair and refused: the server's log says which, why, and what to do");
        lines.push(("damaged", text));
    }
    lines.extend(status.tuning.as_ref().map(|tuning| ("tuning", tuning_text(tuning))));
    if !status.put_aside.is_empty() {
        lines.push(("aside", aside_text(&status.put_aside)));
    }
    lines
}

/// No more of them are named.
const ASIDE_NAMED: usize = 8;

fn aside_text(aside: &[Aside]) -> String {
    let mut names: Vec<String> = aside.iter().take(ASIDE_NAMED).map(|it| it.file.display().to_string()).collect();
    if aside.len() > ASIDE_NAMED {
        names.push("…".to_owned());
    }
    format!(
        "{} damaged {} put aside by a start, {}: remove once `whimbrel log verify` finds no damage: {}",
        aside.len(),
        if aside.len() == 1 { "file" } else { "files" },
        bytes_text(aside.iter().map(|it| it.bytes).sum()),
        names.join(" ")
    )
}

fn tuning_text(Tuning { profile, short, mend, .. }: &Tuning) -> String {
    match mend {
        None => format!("{profile}, as it should be"),
        Some(mend) => {
            format!("{profile}, {short} {} short; to mend: {mend}", if *short == 1 { "setting" } else { "settings" })
        }
    }
}

struct Row {
    label: String,
    cells: Vec<String>,
    /// The last column.
    all: String,
}

fn rows(shards: &[ShardStatus]) -> Vec<Row> {
    let row = |label: &str, cell: &dyn Fn(&ShardStatus) -> String, all: String| Row {
        label: label.to_owned(),
        cells: shards.iter().map(cell).collect(),
        all,
    };
    let sum = |label: &str, get: &dyn Fn(&ShardStatus) -> u64, text: fn(u64) -> String| {
        row(label, &|shard| text(get(shard)), text(shards.iter().map(get).sum()))
    };
    let mut rows = vec![
        row("", &|shard| format!("shard {}", shard.shard), "all".to_owned()),
        row("stage", &|shard| stage_text(shard.stage).to_owned(), String::new()),
        sum("partitions", &|shard| shard.partitions, number),
        sum("connections", &|shard| shard.connections, number),
        sum("waiting messages", &|shard| shard.waiting, number),
        sum("logins", &|shard| shard.logins, number),
        sum("stored", &|shard| shard.stored, number),
        sum("stored before (repeats)", &|shard| shard.repeated, number),
        sum("delivered", &|shard| shard.delivered, number),
        sum("acknowledged", &|shard| shard.acknowledged, number),
        sum("log on disk", &|shard| shard.log_bytes, bytes_text),
        sum("segments", &|shard| shard.segments, number),
        sum("turns", &|shard| shard.turns, number),
    ];
    for (label, get) in [
        ("in repair", (|it| it.in_repair) as fn(&ShardStatus) -> u64),
        ("rot found in the log", |it| it.rot_found),
        ("files not removed yet", |it| it.leftovers),
    ] {
        if shards.iter().any(|shard| get(shard) > 0) {
            rows.push(sum(label, &get, number));
        }
    }
    rows.extend(quantile_rows(shards, "turn", &|shard| Some(shard.turn_us)));
    rows.extend(quantile_rows(shards, "turn's own", &|shard| shard.turn_own_us));
    for (what, of) in [("refused", (|it| &it.refused) as fn(&ShardStatus) -> &_), ("dropped", |it| &it.dropped)] {
        let mut reasons: Vec<&String> = shards.iter().flat_map(|shard| of(shard).keys()).collect();
        reasons.sort();
        reasons.dedup();
        for reason in reasons {
            rows.push(sum(&format!("{what}: {reason}"), &|shard| of(shard).get(reason).copied().unwrap_or(0), number));
        }
    }
    rows
}

/// Of all shards together the longest.
fn quantile_rows(
    shards: &[ShardStatus],
    label: &str,
    of: &dyn Fn(&ShardStatus) -> Option<Quantiles>,
) -> impl Iterator<Item = Row> {
    type Get = fn(Quantiles) -> u64;
    let columns: [(&str, Get); 5] =
        [("p50", |q| q.p50), ("p99", |q| q.p99), ("p99.9", |q| q.p999), ("p99.999", |q| q.p99999), ("max", |q| q.max)];
    columns.into_iter().map(move |(name, get)| {
        let text = |us: Option<u64>| us.map_or("unknown".to_owned(), us_text);
        Row {
            label: format!("{label} {name}"),
            cells: shards.iter().map(|shard| text(of(shard).map(get))).collect(),
            all: text(shards.iter().filter_map(|shard| of(shard).map(get)).max()),
        }
    })
}

fn stage_text(stage: Stage) -> &'static str {
    match stage {
        Stage::Opening => "opening",
        Stage::Starting => "starting",
        Stage::Accepting => "accepting",
        Stage::Stopping => "stopping",
        Stage::Ended => "ended",
    }
}

fn number(count: u64) -> String {
    count.to_string()
}

fn us_text(us: u64) -> String {
    match us {
        0..1_000 => format!("{us} µs"),
        1_000..1_000_000 => format!("{:.1} ms", us as f64 / 1e3),
        _ => format!("{:.1} s", us as f64 / 1e6),
    }
}

pub(super) fn bytes_text(bytes: u64) -> String {
    match bytes {
        0..0x400 => format!("{bytes} B"),
        0x400..0x10_0000 => format!("{:.1} KiB", bytes as f64 / 1024.0),
        0x10_0000..0x4000_0000 => format!("{:.1} MiB", bytes as f64 / f64::from(1 << 20)),
        _ => format!("{:.1} GiB", bytes as f64 / f64::from(1 << 30)),
    }
}

pub(super) fn time_text(seconds: u64) -> String {
    let (days, hours, minutes) = (seconds / 86_400, seconds / 3_600 % 24, seconds / 60 % 60);
    match seconds {
        0..60 => format!("{seconds} s"),
        60..3_600 => format!("{minutes} min {} s", seconds % 60),
        3_600..86_400 => format!("{hours} h {minutes} min"),
        _ => format!("{days} d {hours} h"),
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use super::*;

    fn shard(shard: u16) -> ShardStatus {
        let turn_us = Quantiles { p50: 12, p99: 480, p999: 1_200, p99999: 2_500, max: 1_500_000 };
        ShardStatus {
            shard,
            stage: Stage::Accepting,
            age_ms: 3,
            partitions: 8,
            in_repair: 0,
            connections: 10,
            waiting: 2,
            logins: 12,
            stored: 100,
            repeated: 1,
            delivered: 99,
            acknowledged: 98,
            refused: BTreeMap::from([("overloaded".to_owned(), 7)]),
            dropped: BTreeMap::new(),
            log_bytes: 8 << 20,
            segments: 2,
            rot_found: 0,
            leftovers: 0,
            turns: 1_000,
            turn_us,
            turn_own_us: (shard == 0).then_some(Quantiles { max: 900, ..turn_us }),
        }
    }

    fn status(shards: u16) -> Status {
        Status {
            version: "1.2.3".to_owned(),
            commit: "0123456789ab".to_owned(),
            pid: 42,
            uptime_seconds: 7_380,
            data: "data".into(),
            listen: "127.0.0.1:7400".parse().unwrap(),
            admin: "127.0.0.1:7401".parse().unwrap(),
            tuning: None,
            put_aside: Vec::new(),
            shards: (0..shards).map(shard).collect(),
        }
    }

    #[test]
    fn the_profile_is_shown_where_one_is_set() {
        let mut status = status(1);
        assert!(!table(&status).contains("tuning"), "none is set");
        assert!(!serde_json::to_string(&status).unwrap().contains("tuning"));
        let mut tuning = Tuning { profile: "latency".to_owned(), met: 9, short: 0, missing: 2, mend: None };
        status.tuning = Some(tuning.clone());
        assert!(table(&status).contains("tuning    latency, as it should be\n"));
        (tuning.short, tuning.mend) = (3, Some("whimbrel-tune apply latency".to_owned()));
        status.tuning = Some(tuning.clone());
        let text = table(&status);
        assert!(text.contains("tuning    latency, 3 settings short; to mend: whimbrel-tune apply latency\n"), "{text}");
        let json = serde_json::to_string(&status).unwrap();
        assert_eq!(serde_json::from_str::<Status>(&json).unwrap().tuning, Some(tuning), "{json}");
    }

    #[test]
    fn a_table_has_a_column_for_each_shard_and_one_for_all() {
        let text = table(&status(2));
        let line = |label: &str| {
            let line = text.lines().find(|line| line.starts_with(label)).unwrap_or_else(|| panic!("{label}\n{text}"));
            line[label.len()..].split_whitespace().collect::<Vec<_>>().join(" ")
        };
        assert_eq!(line("version"), "1.2.3 (0123456789ab)");
        assert_eq!(line("process"), "42, up 2 h 3 min");
        assert_eq!(line("serving"), "all 2 shards");
        assert_eq!(line("stored  "), "100 100 200");
        assert_eq!(line("log on disk"), "8.0 MiB 8.0 MiB 16.0 MiB");
        assert_eq!(line("turn p99.9 "), "1.2 ms 1.2 ms 1.2 ms");
        assert_eq!(line("turn max"), "1.5 s 1.5 s 1.5 s", "of all the longest");
        assert_eq!(line("turn's own max"), "900 µs unknown 900 µs");
        assert_eq!(line("refused: overloaded"), "7 7 14");
        assert!(!text.contains("dropped"), "what there was not is not shown: {text}");
    }

    #[test]
    fn damage_shows_and_is_not_shown_where_there_is_none() {
        let mut status = status(2);
        assert!(!table(&status).contains("repair") && !table(&status).contains("rot"));
        status.shards[1].in_repair = 1;
        status.shards[0].rot_found = 3;
        status.shards[1].leftovers = 4;
        let aside = |number: u32| Aside { file: format!("shard-0/000000000{number}.ckpt.bad").into(), bytes: 1 << 19 };
        status.put_aside = (1..=9).map(aside).collect();
        let text = table(&status);
        assert!(text.contains("damaged   1 partition is in repair and refused"), "{text}");
        assert!(text.lines().any(|line| line.starts_with("in repair") && line.ends_with(" 1")), "{text}");
        assert!(text.lines().any(|line| line.starts_with("rot found in the log") && line.ends_with(" 3")), "{text}");
        assert!(text.lines().any(|line| line.starts_with("files not removed yet") && line.ends_with(" 4")), "{text}");
        assert!(text.contains("aside     9 damaged files put aside by a start, 4.5 MiB: remove once"), "{text}");
        assert!(text.contains(" shard-0/0000000008.ckpt.bad …\n"), "{text}");
    }

    #[test]
    fn many_shards_are_several_tables() {
        let text = table(&status(13));
        assert_eq!(text.matches("\nconnections").count(), 3);
        assert_eq!(text.matches(" shard 12").count(), 1);
        let all: Vec<_> = text.lines().filter(|line| line.starts_with("connections")).collect();
        assert!(all[2].ends_with(" 130") && !all[0].contains("130"), "{text}");
        assert!(text.lines().all(|line| line.chars().count() <= 110), "{text}");
    }

    #[test]
    fn a_shard_that_does_not_serve_shows() {
        let mut status = status(2);
        status.shards[1].stage = Stage::Opening;
        let text = table(&status);
        assert!(text.contains("serving   1 of 2 shards\n") && text.contains("opening"), "{text}");
    }
}

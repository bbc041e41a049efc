//! `whimbrel-sim forgetting`: what forgetting writes.

use std::io::{self, IsTerminal, Write};

use whimbrel_sim::steady::{self, Costs, Steady};

/// Bytes appended or moved, by bytes appended, at most.
const AMPLIFICATION_MAX: f64 = 1.2;

/// Prints what it costs; whether it is within its bar.
pub(super) fn forgetting(what: Steady, json: bool) -> anyhow::Result<bool> {
    let is_terminal = io::stderr().is_terminal();
    let costs = steady::run(what, &mut |hour, of| {
        if is_terminal {
            eprint!("\rhour {hour} of {of} ");
        }
    });
    if is_terminal {
        eprintln!("\r{:30}", "");
    }
    let holds = costs.amplification() <= AMPLIFICATION_MAX;
    let mut out = io::stdout().lock();
    if json {
        writeln!(out, "{}", as_json(&what, &costs, holds))?;
    } else {
        write!(out, "{}", as_text(&what, &costs, holds))?;
    }
    Ok(holds)
}

fn as_json(what: &Steady, costs: &Costs, holds: bool) -> serde_json::Value {
    serde_json::json!({
        "wait_days": what.wait_days,
        "messages_per_second": what.rate,
        "payload_bytes": what.payload_bytes,
        "segment_bytes": what.segment_bytes,
        "messages": costs.messages,
        "appended_bytes": costs.appended_bytes,
        "moved_bytes": costs.moved_bytes,
        "write_amplification": costs.amplification(),
        "write_amplification_max": AMPLIFICATION_MAX,
        "holds": holds,
        "padding_bytes": costs.padding_bytes,
        "moved_padding_bytes": costs.moved_padding_bytes,
        "erased_bytes": costs.erased_bytes,
        "zeroed_bytes": costs.zeroed_bytes,
        "checkpoint_bytes": costs.checkpoint_bytes,
        "disk_bytes": costs.disk_bytes,
        "waiting_messages": costs.waiting,
    })
}

fn as_text(what: &Steady, costs: &Costs, holds: bool) -> String {
    let share = |bytes: u64| format!("{:>14} bytes {:>6.3}", bytes, bytes as f64 / costs.appended_bytes.max(1) as f64);
    format!(
        "{} simulated days of {} messages a second of {} bytes; 1 in 20 waits for {} days, the others for half a minute at most.\n\
         Counted over the last {} days, each as a share of what was appended:\n\
         appended            {}\n\
         moved               {}\n\
         appended and moved  {:>14}       {:>6.3}  at most {AMPLIFICATION_MAX}: {}\n\
         apart from these:\n\
         padding             {}\n\
         padding of moved    {}\n\
         overwritten beside  {}\n\
         zeroed for reuse    {}\n\
         checkpoints         {}\n\
         At the end {} messages waited, and the segments had {} bytes.\n",
        2 * what.wait_days,
        what.rate,
        what.payload_bytes,
        what.wait_days,
        what.wait_days,
        share(costs.appended_bytes),
        share(costs.moved_bytes),
        "",
        costs.amplification(),
        if holds { "met" } else { "MISSED" },
        share(costs.padding_bytes),
        share(costs.moved_padding_bytes),
        share(costs.erased_bytes),
        share(costs.zeroed_bytes),
        share(costs.checkpoint_bytes),
        costs.waiting,
        costs.disk_bytes,
    )
}

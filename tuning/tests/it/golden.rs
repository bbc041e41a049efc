//! What each subcommand prints on the made-up machine. After a change that is meant: `INSTA_UPDATE=always cargo test -p
//! whimbrel-tune`, and read the difference.

use crate::machine::Machine;

/// What is printed, and the exit code; the directory of the machine is cut out.
fn printed(machine: &Machine, words: &str) -> String {
    let done = machine.run(words);
    let root = machine.path("").display().to_string();
    let text = format!("$ whimbrel-tune {words}\n{}{}exit code {:?}\n", done.out, done.err, done.code.unwrap_or(-1));
    let text = text.replace(root.trim_end_matches('/'), "ROOT");
    // The time is another each time.
    let line =
        |line: &str| if line.contains("\"took_ms\"") { "  \"took_ms\": TIME".to_owned() } else { line.to_owned() };
    text.lines().map(line).collect::<Vec<_>>().join("\n")
}

/// One snapshot of several commands, run one after the other on one machine.
macro_rules! golden {
    ($name:ident, $($words:expr),+ $(,)?) => {
        #[test]
        fn $name() {
            let machine = Machine::new();
            let all: Vec<String> = [$($words),+].map(|words| printed(&machine, words)).into();
            insta::with_settings!({ omit_expression => true, prepend_module_to_snapshot => false }, {
                insta::assert_snapshot!(stringify!($name), all.join("\n\n"));
            });
        }
    };
}

golden!(list, "list", "list --json");
golden!(show, "show dev", "show dev --json --only net.core.somaxconn", "show nothing");
golden!(
    explain,
    "explain net.ipv4.tcp_mem",
    "explain vm.swappiness --json",
    "explain net.ipv4.tcp_low_latency",
    "explain vm.swapiness"
);
golden!(explain_all, "explain");
golden!(
    check,
    "check latency",
    "check dev --only net.core.somaxconn --json",
    "check load-generator --only net.ipv4.tcp_tw_reuse"
);
golden!(diff, "diff throughput", "diff dev --json --only net.core.somaxconn");
golden!(apply_dry_run, "apply latency --dry-run --persist", "apply dev --dry-run --json --only net.core.somaxconn");
golden!(
    apply_and_revert,
    "apply throughput --persist",
    "apply dev --json --only net.core.somaxconn thp.enabled",
    "list",
    "revert",
    "revert --json"
);
golden!(verify, "verify latency", "verify latency --rounds 1");
golden!(
    recommend,
    "recommend",
    "recommend --connections 1000000 --rate 200000 --message-size 200",
    "recommend --message-size 100000 --json"
);
golden!(export_sysctl_d, "export sysctl.d connections-1m");
golden!(export_tuned, "export tuned latency");
golden!(export_systemd, "export systemd connections-1m");
golden!(export_ansible, "export ansible latency");
golden!(export_script, "export script throughput", "export script dev --json --only net.core.somaxconn");
golden!(help, "--help", "apply --help", "verify --help", "frobnicate");

/// The files that outlive a restart, each as its reader wants it.
#[test]
fn persisted_files() {
    let machine = Machine::new();
    assert_eq!(machine.run("apply throughput --persist").code, Some(0));
    machine.write("sys/module/nf_conntrack/parameters/hashsize", "16384\n");
    machine.write("proc/sys/net/netfilter/nf_conntrack_max", "131072\n");
    assert_eq!(machine.run("apply connections-1m --persist").code, Some(0));
    let files = machine.values().into_iter().filter(|(path, _)| path.contains("whimbrel") && !path.ends_with('/'));
    let text: Vec<String> = files.map(|(path, text)| format!("== {path}\n{text}")).collect();
    insta::with_settings!({ omit_expression => true, prepend_module_to_snapshot => false }, {
        insta::assert_snapshot!("persisted_files", text.join("\n"));
    });
}

//! Stories on the real kernel: each test runs itself again in a network namespace of its own, where it is root and disturbs
//! nobody. Only keys below /proc/sys/net are touched, of those that a namespace has of its own.

use std::collections::BTreeMap;
use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::Command;

use tempfile::TempDir;
use whimbrel_tune::plan::sysctl_place;
use whimbrel_tune::profile::{load, names};
use whimbrel_tune::table::Means;

use crate::machine::{Done, PROGRAM};

const INSIDE: &str = "WHIMBREL_TUNE_TEST_INSIDE";

/// How a namespace is made: as root, or as somebody who is root in it.
const WAYS: [&[&str]; 2] = [&["--net", "--mount"], &["--net", "--mount", "--map-root-user"]];

/// Runs the story in a namespace, and says so where that is not permitted.
fn in_a_namespace(name: &str, story: fn(&Inside)) {
    if std::env::var_os(INSIDE).is_some() {
        return story(&Inside { directory: tempfile::tempdir().expect("a directory") });
    }
    let works = |way: &&&[&str]| {
        let probe = "test -w /proc/sys/net/core/somaxconn";
        Command::new("unshare")
            .args(**way)
            .args(["sh", "-c", probe])
            .output()
            .is_ok_and(|output| output.status.success())
    };
    let Some(way) = WAYS.iter().find(works) else {
        eprintln!("{name}: SKIPPED, a network namespace with its own /proc/sys/net is not permitted here");
        return;
    };
    let this = std::env::current_exe().expect("this test");
    let test = format!("namespace::{name}");
    let ran =
        Command::new("unshare").args(*way).arg(this).args(["--exact", &test, "--nocapture"]).env(INSIDE, "1").output();
    let done = Done::from(ran.expect("unshare"));
    assert!(done.code == Some(0) && done.out.contains("1 passed"), "{}{}", done.out, done.err);
}

struct Inside {
    directory: TempDir,
}

impl Inside {
    fn state(&self) -> String {
        self.directory.path().join("state").display().to_string()
    }

    fn command(&self, words: &str) -> Command {
        let mut command = Command::new(PROGRAM);
        command.args(["--state", &self.state()]).args(words.split_whitespace()).env_remove("WHIMBREL_DATA");
        command
    }

    fn run(&self, words: &str) -> Done {
        self.command(words).output().expect("the program").into()
    }
}

/// The profile's keys of the network that this namespace has.
fn keys(profile: &str) -> Vec<String> {
    let settings = load(profile, None).expect("a profile").settings;
    let of_network = settings.into_iter().filter(|setting| {
        setting.known.means == Means::Sysctl
            && setting.key.starts_with("net.")
            && Path::new(&sysctl_place(&setting.key)).exists()
    });
    // Connection tracking, where it is loaded, belongs to the machine.
    of_network.map(|setting| setting.key).filter(|key| !key.contains("netfilter")).collect()
}

fn only(profile: &str) -> String {
    format!("{profile} --only {}", keys(profile).join(" "))
}

/// All keys of all profiles, byte for byte.
fn values() -> BTreeMap<String, Vec<u8>> {
    let all = names().into_iter().flat_map(keys);
    all.map(|key| (key.clone(), fs::read(sysctl_place(&key)).expect("a value"))).collect()
}

fn value(key: &str) -> String {
    fs::read_to_string(sysctl_place(key)).expect("a value").trim().replace('\t', " ")
}

#[test]
fn every_profile_is_applied_and_reverted_byte_for_byte() {
    in_a_namespace("every_profile_is_applied_and_reverted_byte_for_byte", |inside| {
        let before = values();
        assert!(before.len() >= 8, "{:?}", before.keys());
        for profile in names() {
            let applied = inside.run(&format!("apply {}", only(profile)));
            assert_eq!(applied.code, Some(0), "{applied:?}");
            assert_ne!(values(), before, "{profile} changes nothing");
            let checked = inside.run(&format!("check {}", only(profile)));
            assert_eq!(checked.code, Some(0), "{checked:?}");
            let reverted = inside.run("revert");
            assert_eq!(reverted.code, Some(0), "{reverted:?}");
            assert_eq!(values(), before, "{profile}");
        }
    });
}

#[test]
fn the_first_original_wins_and_nothing_is_lowered() {
    in_a_namespace("the_first_original_wins_and_nothing_is_lowered", |inside| {
        // Fields separated by tabs, one of which is higher than any profile's.
        fs::write(sysctl_place("net.ipv4.tcp_rmem"), "4096\t131072\t50000000\n").expect("a value");
        fs::write(sysctl_place("net.ipv4.tcp_wmem"), "4096 16384 4194304").expect("a value");
        let before = values();
        for profile in ["connections-1m", "latency", "throughput"] {
            let done = inside.run(&format!("apply {}", only(profile)));
            assert_eq!(done.code, Some(0), "{done:?}");
        }
        assert_eq!(value("net.core.somaxconn"), "65535");
        assert_eq!(value("net.ipv4.tcp_rmem"), "4096 131072 50000000");
        assert_eq!(value("net.ipv4.tcp_wmem"), "4096 16384 16777216");
        assert_eq!(inside.run("revert").code, Some(0));
        assert_eq!(values(), before);
    });
}

/// Real deaths: the kernel ends the program when its journal grows beyond a limit of the size of files, in the middle of a line
/// that is being written, each time at another place.
#[test]
fn a_death_while_the_journal_is_written_is_reverted() {
    in_a_namespace("a_death_while_the_journal_is_written_is_reverted", |inside| {
        let before = values();
        let mut deaths = 0;
        let mut halves = 0;
        for blocks in 1..=4 {
            let words = format!(
                "ulimit -f {blocks}; exec {PROGRAM} --state {} apply {}",
                inside.state(),
                only("connections-1m")
            );
            let done = Command::new("sh").args(["-c", &words]).output().expect("a shell");
            deaths += u32::from(done.status.code().is_none());
            halves += u32::from(values() != before);
            let reverted = inside.run("revert");
            assert_eq!(reverted.code, Some(0), "{reverted:?}");
            assert_eq!(values(), before, "after {blocks} blocks");
        }
        assert!(deaths > 0 && halves > 0, "{deaths} deaths, {halves} of them with something changed");
    });
}

#[test]
fn a_value_that_the_kernel_refuses_leaves_nothing_changed() {
    in_a_namespace("a_value_that_the_kernel_refuses_leaves_nothing_changed", |inside| {
        let before = values();
        let own = inside.directory.path().join("own.conf");
        let text = "# Own.\n\nnet.ipv4.tcp_migrate_req = 1\nnet.ipv4.tcp_wmem = 4097 16385 5000000\nnet.core.somaxconn = 99999999999\n\
                    # End: 3 settings.\n";
        fs::write(&own, text).expect("a profile");
        let refused = inside.run(&format!("apply {}", own.display()));
        assert_eq!(refused.code, Some(2), "{refused:?}");
        assert!(refused.err.contains("the kernel refuses `99999999999` for net.core.somaxconn"), "{}", refused.err);
        assert_eq!(values(), before);
        assert!(inside.run("revert").out.contains("nothing to revert"));
        // What an earlier run had changed stays, and can still be reverted.
        assert_eq!(inside.run("apply dev --only net.ipv4.tcp_slow_start_after_idle").code, Some(0));
        assert_eq!(inside.run(&format!("apply {}", own.display())).code, Some(2));
        assert_eq!(
            (value("net.ipv4.tcp_slow_start_after_idle").as_str(), value("net.ipv4.tcp_migrate_req").as_str()),
            ("0", "0")
        );
        assert_eq!(inside.run("revert").code, Some(0));
        assert_eq!(values(), before);
    });
}

#[test]
fn what_a_namespace_does_not_have_is_skipped() {
    in_a_namespace("what_a_namespace_does_not_have_is_skipped", |inside| {
        if Path::new(&sysctl_place("net.ipv4.tcp_mem")).exists() {
            eprintln!("SKIPPED: this kernel shows tcp_mem in every namespace");
            return;
        }
        let done = inside.run("apply connections-1m --only net.ipv4.tcp_mem net.ipv4.tcp_migrate_req");
        assert_eq!(done.code, Some(0), "{done:?}");
        assert!(done.out.contains("1 changed, 0 enough already, 1 not here"), "{}", done.out);
        assert_eq!(inside.run("revert").code, Some(0));
    });
}

#[test]
fn another_namespace_is_not_touched_by_revert() {
    in_a_namespace("another_namespace_is_not_touched_by_revert", |inside| {
        let before = values();
        assert_eq!(inside.run(&format!("apply {}", only("latency"))).code, Some(0));
        let applied = values();
        let elsewhere = Command::new("unshare").args(["--net", PROGRAM, "--state", &inside.state(), "revert"]).output();
        let elsewhere = Done::from(elsewhere.expect("unshare"));
        assert_eq!(elsewhere.code, Some(1), "{elsewhere:?}");
        assert!(elsewhere.out.contains("revert there (nsenter --net)"), "{}", elsewhere.out);
        assert_eq!(values(), applied);
        assert_eq!(inside.run("revert").code, Some(0));
        assert_eq!(values(), before);
    });
}

#[test]
fn a_read_only_tree_is_told_and_scripted() {
    in_a_namespace("a_read_only_tree_is_told_and_scripted", |inside| {
        let before = values();
        let mount = "mount --bind /proc/sys /proc/sys && mount -o remount,bind,ro /proc/sys";
        let mounted = Command::new("sh").args(["-c", mount]).output().expect("a shell");
        assert!(mounted.status.success(), "{}", String::from_utf8_lossy(&mounted.stderr));
        let done = inside.run("apply latency --only net.core.somaxconn");
        assert_eq!(done.code, Some(1), "{done:?}");
        assert!(
            done.out.contains("it is read-only here")
                && done.out.contains("change raise /proc/sys/net/core/somaxconn 16384")
        );
        assert!(inside.run("revert").out.contains("nothing to revert"), "nothing was changed");
        assert_eq!(values(), before);
    });
}

/// Somebody who is not root changes nothing, keeps no journal, and gets a script that root can run.
#[test]
fn without_root_there_is_a_script() {
    in_a_namespace("without_root_there_is_a_script", |inside| {
        let before = values();
        let mut command = inside.command(&format!("apply {}", only("latency")));
        // In a user namespace of one user there is nobody else to be.
        command.uid(65_534).gid(65_534);
        let Ok(output) = command.output() else {
            eprintln!("SKIPPED: there is no other user here");
            return;
        };
        let done = Done::from(output);
        assert_eq!(done.code, Some(1), "{done:?}");
        assert!(done.out.contains("denied (warning)  net.core.somaxconn") && done.out.contains("sudo"), "{}", done.out);
        assert_eq!(values(), before);
        // What root applied others may see, and not revert.
        let open = fs::Permissions::from_mode(0o755);
        fs::set_permissions(inside.directory.path(), open).expect("a directory that others may enter");
        assert_eq!(inside.run("apply latency --only net.ipv4.tcp_migrate_req").code, Some(0));
        let other =
            |words: &str| Done::from(inside.command(words).uid(65_534).gid(65_534).output().expect("the program"));
        assert!(other("list").out.contains("latency         applied"), "{:?}", other("list"));
        let denied = other("revert");
        assert!(denied.code == Some(1) && denied.err.contains("run it with sudo"), "{denied:?}");
        assert_eq!(inside.run("revert").code, Some(0));
        let (_, script) = done.out.split_once("as a script for who can:\n\n").expect("a script");
        let script_file = inside.directory.path().join("script");
        fs::write(&script_file, script).expect("a file");
        let ran = Done::from(Command::new("sh").arg(script_file).output().expect("a shell"));
        assert_eq!(ran.code, Some(0), "{ran:?}");
        assert_eq!(inside.run(&format!("check {}", only("latency"))).code, Some(0));
    });
}

/// The file alone, without this program, does the same.
#[test]
fn sysctl_reads_the_files() {
    in_a_namespace("sysctl_reads_the_files", |inside| {
        for profile in names() {
            let conf = load(profile, None).expect("a profile").conf;
            let keys = keys(profile);
            let own =
                |line: &&str| line.split_once(" = ").is_some_and(|(key, _)| keys.iter().any(|known| known == key));
            let file = inside.directory.path().join("file.conf");
            let lines: Vec<String> = conf
                .lines()
                .filter(|line| line.starts_with('#') || own(line))
                .map(|line| format!("{line}\n"))
                .collect();
            fs::write(&file, lines.concat()).expect("a file");
            let Ok(output) = Command::new("sysctl").arg("-p").arg(&file).output() else {
                eprintln!("SKIPPED: sysctl is not installed");
                return;
            };
            let done = Done::from(output);
            assert_eq!(done.code, Some(0), "{profile}: {done:?}");
            assert_eq!(inside.run(&format!("check {}", only(profile))).code, Some(0), "{profile}");
        }
    });
}

/// Probes measure in the namespace that they run in, and leave nothing applied.
#[test]
fn a_probe_sees_its_key() {
    in_a_namespace("a_probe_sees_its_key", |inside| {
        let up = Command::new("ip").args(["link", "set", "lo", "up"]).output();
        if !up.is_ok_and(|output| output.status.success()) {
            eprintln!("SKIPPED: ip(8) is not installed, so loopback is down");
            return;
        }
        let before = values();
        let probe = "--rounds 3 --json --only net.ipv4.tcp_migrate_req net.ipv4.tcp_notsent_lowat";
        let verdicts = |words: &str| {
            let done = inside.run(words);
            assert_eq!(done.code, Some(0), "{done:?}");
            let report: serde_json::Value = serde_json::from_str(&done.out).expect("JSON");
            let figures = report["figures"].as_array().expect("figures").clone();
            figures.iter().map(|figure| (figure["without"].clone(), figure["with"].clone())).collect::<Vec<_>>()
        };
        let measured = verdicts(&format!("verify latency {probe}"));
        assert_eq!(measured.len(), 2);
        for round in 0..3 {
            let migrated = &measured[0];
            assert_eq!(migrated.1[round], 512.0, "all are left with it");
            assert!(migrated.0[round].as_f64() < Some(512.0), "some are lost without it");
            let taken = &measured[1];
            assert!(taken.1[round].as_f64() < taken.0[round].as_f64(), "less is taken with it");
        }
        for (without, with) in verdicts(&format!("verify latency --null {probe}")).into_iter().take(1) {
            assert!(without[0].as_f64() < Some(512.0) && with[0].as_f64() < Some(512.0), "nothing is applied");
        }
        assert_eq!(values(), before);
        assert!(inside.run("revert").out.contains("nothing to revert"));
    });
}

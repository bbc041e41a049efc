//! Stories on a made-up machine: what is applied is there, what is reverted is as it was, and what is wrong changes nothing.

use std::fs;
use std::io::Read;
use std::process::{Command, Stdio};

use whimbrel_tune::profile::{load, names};

use crate::machine::Machine;

const JOURNAL: &str = "var/lib/whimbrel-tune/journal";

#[test]
fn a_profile_that_was_applied_is_met_and_reverted_byte_for_byte() {
    for profile in names() {
        let machine = Machine::new();
        let before = machine.values();
        let applied = machine.run(&format!("apply {profile}"));
        assert_eq!(applied.code, Some(0), "{profile}: {applied:?}");
        assert_ne!(machine.values(), before, "{profile} changes nothing");
        let checked = machine.run(&format!("check {profile} --json"));
        let report: serde_json::Value = serde_json::from_str(&checked.out).expect("JSON");
        for setting in report["settings"].as_array().expect("settings") {
            let key = setting["key"].as_str().expect("a key");
            // What counts from a process's start on, and what is its owner's.
            let is_left = key.starts_with("limit.") || key.starts_with("cgroup.") || key == "mount.atime";
            assert!(is_left || setting["standing"] != "short", "{profile}: {setting}");
        }
        assert!(report["took_ms"].as_f64().is_some_and(|ms| ms > 0.0));
        let again = machine.run(&format!("apply {profile}"));
        assert!(again.out.contains(" 0 changed,"), "{}", again.out);
        let reverted = machine.run("revert");
        assert_eq!(reverted.code, Some(0), "{reverted:?}");
        assert_eq!(machine.values(), before, "{profile}");
        assert!(!machine.path(JOURNAL).exists());
    }
}

#[test]
fn after_two_applies_the_first_original_comes_back() {
    let machine = Machine::new();
    let before = machine.values();
    for profile in ["latency", "connections-1m", "throughput"] {
        assert_eq!(machine.run(&format!("apply {profile} --persist")).code, Some(0));
    }
    // What was raised by one is not lowered by the next.
    assert_eq!(machine.read("proc/sys/net/core/somaxconn"), "65535\n");
    assert_eq!(machine.read("proc/sys/vm/dirty_bytes"), "1073741824\n");
    assert!(machine.run("list").out.contains("latency         applied"));
    assert_eq!(machine.run("revert").code, Some(0));
    assert_eq!(machine.values(), before);
    assert!(machine.run("revert").out.contains("nothing to revert"));
}

#[test]
fn what_was_higher_stays_higher_also_in_the_files() {
    let machine = Machine::new();
    machine.write("proc/sys/net/core/somaxconn", "70000\n");
    machine.write("proc/self/limits", "Max open files            1024                 1048576              files\n");
    assert_eq!(machine.run("apply latency --persist").code, Some(0));
    assert_eq!(machine.read("proc/sys/net/core/somaxconn"), "70000\n");
    let sysctl = machine.read("etc/sysctl.d/60-whimbrel.conf");
    assert!(sysctl.contains("net.core.somaxconn = 70000\n"), "{sysctl}");
    let service = machine.read("etc/systemd/system/whimbrel.service.d/60-whimbrel.conf");
    assert!(service.contains("LimitNOFILE=1048576\n"), "{service}");
}

/// Real kills: the program dies within a change of the card's ring, before or after it, with other changes done and others not.
#[test]
fn a_kill_between_two_changes_is_reverted() {
    for moment in ["kill-before", "kill-after"] {
        let machine = Machine::new();
        let before = machine.values();
        machine.write(&format!("rings/{moment}"), "");
        let killed = machine.run("apply throughput");
        assert_eq!(killed.code, None, "{killed:?}");
        assert_eq!(machine.read("proc/sys/net/core/somaxconn"), "16384\n", "it was changed before");
        assert!(machine.read("sys/block/sda/queue/scheduler").contains("[mq-deadline]"), "it comes after");
        machine.remove(&format!("rings/{moment}"));
        assert_eq!(machine.read("rings/rx"), if moment == "kill-after" { "4096\n" } else { "512\n" });
        // Even when another profile is applied over it.
        assert_eq!(machine.run("apply connections-1m").code, Some(0));
        assert_eq!(machine.run("revert").code, Some(0));
        assert_eq!(machine.values(), before, "{moment}");
    }
}

#[test]
fn a_torn_line_of_the_journal_is_cut_off_and_a_damaged_one_stops_everything() {
    let machine = Machine::new();
    let before = machine.values();
    assert_eq!(machine.run("apply latency --only vm.swappiness").code, Some(0));
    let whole = machine.read(JOURNAL);
    machine.write(JOURNAL, &format!("{whole}{{\"record\":\"change\",\"key\":\"vm.st"));
    assert_eq!(machine.run("apply latency --only vm.stat_interval").code, Some(0));
    assert_eq!(machine.read(JOURNAL).lines().count(), 4);
    let applied = machine.values();
    machine.write(JOURNAL, &format!("nonsense\n{}", machine.read(JOURNAL)));
    let refused = machine.run("revert");
    assert_eq!(refused.code, Some(1));
    assert!(refused.err.contains("line 1 is not understood"), "{}", refused.err);
    assert_eq!(machine.values(), applied);
    let mended: String = machine.read(JOURNAL).lines().skip(1).map(|line| format!("{line}\n")).collect();
    machine.write(JOURNAL, &mended);
    assert_eq!(machine.run("revert").code, Some(0));
    assert_eq!(machine.values(), before);
}

#[test]
fn a_file_cut_anywhere_is_refused_and_changes_nothing() {
    let machine = Machine::new();
    let before = machine.values();
    for ending in ["conf", "toml"] {
        let whole = |ending: &str| {
            fs::read_to_string(format!("{}/profiles/latency.{ending}", env!("CARGO_MANIFEST_DIR"))).expect("a profile")
        };
        let text = whole(ending);
        for cut in (0..text.len()).filter(|&cut| text.is_char_boundary(cut)) {
            machine.write("p/latency.conf", &whole("conf"));
            machine.write("p/latency.toml", &whole("toml"));
            machine.write(&format!("p/latency.{ending}"), &text[..cut]);
            let found = load("latency", Some(&machine.path("p")));
            assert!(found.is_err(), "cut after {cut} bytes: {:?}", &text[cut.saturating_sub(60)..cut]);
        }
        let apply = machine.run(&format!("apply latency --profiles {}", machine.path("p").display()));
        assert_eq!(apply.code, Some(2), "{apply:?}");
    }
    assert_eq!(machine.values(), before);
}

/// The same two keys in the right form; each case spoils it.
const SOUND: &str = "# Two.\n\nnet.core.somaxconn = 4096\nvm.swappiness = 10\n# End: 2 settings.\n";

#[test]
fn bad_input_ends_with_2_and_changes_nothing() {
    let machine = Machine::new();
    let before = machine.values();
    machine.write("own/two.conf", SOUND);
    let own = machine.path("own");
    for (words, said) in [
        ("apply latancy", "did you mean `latency`?"),
        ("check nothing.at/all.conf", "cannot read the profile"),
        ("apply latency --only net.core.somaxcon", "did you mean `net.core.somaxconn`?"),
        ("explain net.core.somaxcon", "did you mean `net.core.somaxconn`?"),
        ("apply tow --profiles OWN", "did you mean `two`?"),
        ("export sysctl.d latency --only vm.swappiness", "--only does not go with"),
        ("verify latency --bench no-such-scenario --bench-binary /bin/true", "there is no scenario"),
    ] {
        let done = machine.run(&words.replace("OWN", &own.display().to_string()));
        assert_eq!(done.code, Some(2), "{words}: {done:?}");
        assert!(done.err.contains(said), "{words}: {}", done.err);
    }
    for (from, to, said) in [
        ("vm.swappiness = 10", "vm.swapiness = 10", "did you mean `vm.swappiness`?"),
        ("vm.swappiness = 10", "vm.swappiness = 201", "from 0 to 200"),
        ("vm.swappiness = 10", "vm.swappiness =", "the value is missing"),
        ("vm.swappiness = 10", "vm.swappiness", "`key = value` is expected"),
        ("vm.swappiness = 10", "net.core.somaxconn = 5", "stands there twice"),
        ("vm.swappiness = 10", "limit.nofile = 10", "belongs in the .toml"),
        ("somaxconn = 4096", "somaxconn = many", "a whole number is expected"),
        ("# End: 2 settings.\n", "", "cut short"),
        ("# End: 2", "# End: 3", "cut short"),
    ] {
        machine.write("own/two.conf", &SOUND.replace(from, to));
        let done = machine.run(&format!("apply {}/two.conf", own.display()));
        assert_eq!(done.code, Some(2), "{to}: {done:?}");
        assert!(done.err.contains(said), "{to}: {}", done.err);
    }
    assert_eq!(machine.values(), before);
    assert!(!machine.path(JOURNAL).exists());
    machine.write("own/two.conf", SOUND);
    assert_eq!(machine.run(&format!("apply {}/two.conf", own.display())).code, Some(0), "it is sound as it is");
}

#[test]
fn what_does_not_hold_its_value_is_told() {
    let machine = Machine::new();
    machine.remove("proc/sys/vm/stat_interval");
    std::os::unix::fs::symlink("/dev/null", machine.path("proc/sys/vm/stat_interval")).expect("a link");
    let done = machine.run("apply latency --only vm.stat_interval vm.swappiness");
    assert_eq!(done.code, Some(1));
    assert!(
        done.out.contains("refused (minor)  vm.stat_interval") && done.out.contains("the kernel took 10"),
        "{}",
        done.out
    );
    assert_eq!(machine.read("proc/sys/vm/swappiness"), "10\n", "the rest is done all the same");
}

#[test]
fn what_is_not_here_is_told_and_skipped() {
    let machine = Machine::new();
    let done = machine.run("apply connections-1m --only net.netfilter.nf_conntrack_max module.nf_conntrack.hashsize");
    assert_eq!(done.code, Some(0), "{done:?}");
    assert!(
        done.out.contains("2 not here") && done.out.contains("the module nf_conntrack is not loaded"),
        "{}",
        done.out
    );
    let checked = machine.run("check connections-1m --only net.netfilter.nf_conntrack_max");
    assert_eq!(checked.code, Some(0), "{checked:?}");
}

/// After a start of the machine only what still is as it was set is put back.
#[test]
fn after_a_restart_what_others_set_is_left_alone() {
    let machine = Machine::new();
    assert_eq!(
        machine.run("apply latency --persist --only vm.swappiness vm.stat_interval vm.dirty_bytes").code,
        Some(0)
    );
    machine.write("proc/sys/kernel/random/boot_id", "another\n");
    machine.write("proc/sys/vm/stat_interval", "3\n");
    machine.write("proc/sys/vm/dirty_ratio", "0\n");
    assert_eq!(machine.run("revert").code, Some(0));
    assert_eq!(machine.read("proc/sys/vm/swappiness"), "60\n");
    assert_eq!(machine.read("proc/sys/vm/stat_interval"), "3\n");
    assert_eq!(
        (machine.read("proc/sys/vm/dirty_bytes"), machine.read("proc/sys/vm/dirty_ratio")),
        ("0\n".into(), "20\n".into())
    );
    assert!(!machine.path("etc/sysctl.d/60-whimbrel.conf").exists());
}

/// At a start of the machine the files of two profiles must not lower what one of them raised, whichever was applied last.
#[test]
fn the_files_of_two_profiles_hold_the_higher_of_both() {
    for order in [["latency", "connections-1m"], ["connections-1m", "latency"]] {
        let machine = Machine::new();
        machine.write("etc/systemd/system/whimbrel.service", "[Service]\nLimitMEMLOCK=1:infinity\n");
        for profile in order {
            assert_eq!(machine.run(&format!("apply {profile} --persist")).code, Some(0));
        }
        let sysctl = machine.read("etc/sysctl.d/60-whimbrel.conf");
        for line in ["net.core.somaxconn = 65535", "vm.stat_interval = 10", "fs.nr_open = 2097152"] {
            assert_eq!(sysctl.lines().filter(|found| *found == line).count(), 1, "{order:?}: {sysctl}");
        }
        let service = machine.read("etc/systemd/system/whimbrel.service.d/60-whimbrel.conf");
        assert_eq!(service.matches("LimitNOFILE=").count(), 1, "{service}");
        assert!(service.contains("LimitNOFILE=1100000\n") && service.contains("[Service]\n"), "{order:?}: {service}");
    }
}

#[test]
fn a_file_that_was_there_before_comes_back() {
    let machine = Machine::new();
    machine.write("etc/sysctl.d/60-whimbrel.conf", "# the operator's own\nkernel.kptr_restrict = 2\n");
    let before = machine.values();
    assert_eq!(machine.run("apply latency --persist").code, Some(0));
    assert_ne!(machine.values(), before);
    assert_eq!(machine.run("revert").code, Some(0));
    assert_eq!(machine.values(), before);
}

/// A limit of open files above fs.nr_open in /etc/security keeps everybody from logging in.
#[test]
fn no_limit_above_what_the_kernel_permits_is_written() {
    let machine = Machine::new();
    let done = machine.run("apply connections-1m --persist --only limit.nofile");
    assert!(done.out.contains("in no file: limit.nofile: 1100000 is above fs.nr_open, 1048576"), "{}", done.out);
    assert!(!machine.path("etc/security").exists());
    let done = machine.run("apply connections-1m --persist --only limit.nofile fs.nr_open");
    assert_eq!(done.code, Some(0), "{done:?}");
    assert!(machine.read("etc/security/limits.d/60-whimbrel.conf").contains("* - nofile 1100000\n"));
}

#[test]
fn the_script_does_what_apply_does() {
    for profile in names() {
        let (scripted, applied) = (Machine::new(), Machine::new());
        assert_eq!(applied.run(&format!("apply {profile}")).code, Some(0));
        let script = scripted.run(&format!("export script {profile}"));
        assert_eq!(script.code, Some(0));
        scripted.write("script", &script.out);
        let path = std::env::var("PATH").unwrap_or_default();
        let path = format!("{}:{path}", scripted.path("usr/sbin").display());
        let root = scripted.path("");
        let root = root.to_str().expect("text").trim_end_matches('/').to_owned();
        let ran = Command::new("sh").arg(scripted.path("script")).env("ROOT", root).env("PATH", path).output();
        let ran = ran.expect("a shell");
        assert!(ran.status.success(), "{profile}: {}", String::from_utf8_lossy(&ran.stderr));
        // The script has no tabs between the numbers, which the kernel does not mind.
        let plain = |machine: &Machine| {
            let values = machine.values().into_iter().filter(|(path, _)| !path.starts_with("etc"));
            values.map(|(path, text)| (path, text.replace('\t', " "))).collect::<Vec<_>>()
        };
        let before = plain(&Machine::new());
        let (of_script, of_apply) = (plain(&scripted), plain(&applied));
        assert_eq!(of_script, of_apply, "{profile}");
        assert_ne!(of_script, before, "{profile}");
    }
}

#[test]
fn only_one_works_at_a_time() {
    let machine = Machine::new();
    let _journal = whimbrel_tune::state::Journal::open(&machine.path("var/lib/whimbrel-tune")).expect("a journal");
    let done = machine.run("apply latency");
    assert_eq!(done.code, Some(1));
    assert!(done.err.contains("another whimbrel-tune works"), "{}", done.err);
    assert_eq!(machine.read("proc/sys/vm/swappiness"), "60\n");
}

#[test]
fn a_reader_that_goes_away_is_no_failure() {
    let machine = Machine::new();
    for words in ["show latency", "check latency --json", "completions bash", "--help", "apply latency --dry-run"] {
        // Gone before the program begins: it would not notice one that leaves when all is said.
        let (reader, writer) = std::io::pipe().expect("a pipe");
        drop(reader);
        let mut child = machine.command(words).stdout(writer).stderr(Stdio::piped()).spawn().expect("the program");
        let mut said = String::new();
        child.stderr.take().expect("a pipe").read_to_string(&mut said).expect("text");
        assert_eq!((child.wait().expect("an end").code(), said.as_str()), (Some(0), ""), "{words}");
    }
}

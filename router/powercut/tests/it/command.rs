//! The program as a user meets it. It tests the `whimbrel` beside it, which `cargo test --workspace` builds; where nothing can
//! be mounted it says so, and so do these.

use std::process::Command;

/// Exit code, what it says on stdout, what on stderr.
fn answer(args: &[&str]) -> (i32, String, String) {
    let out = Command::new(env!("CARGO_BIN_EXE_whimbrel-powercut")).args(args).output().expect("the program starts");
    let text = |bytes: &[u8]| String::from_utf8(bytes.to_vec()).expect("it prints text");
    (out.status.code().expect("it ends by itself"), text(&out.stdout), text(&out.stderr))
}

/// Whether it could not be done here.
fn skipped(out: &str) -> bool {
    let skipped = out.contains("skipped");
    if skipped {
        eprintln!("{out}");
    }
    skipped
}

#[test]
fn nothing_acknowledged_is_lost_by_power_cuts() {
    let (code, out, error) = answer(&["--seed", "11", "--cuts", "4", "--json"]);
    assert_eq!(code, 0, "{out}{error}");
    if skipped(&out) {
        return;
    }
    let report: serde_json::Value = serde_json::from_str(&out).expect("JSON");
    assert_eq!(report["cuts"], 4, "{report}");
    assert_eq!(report["acknowledged"], report["sent"], "all is acknowledged at last: {report}");
    for what in ["acknowledged", "delivered", "chats", "operations", "sectors_kept", "sectors_lost"] {
        assert!(report[what].as_u64().is_some_and(|count| count > 0), "{what}: {report}");
    }
    assert!(report["finding"].is_null() && report["repeat"].is_null(), "{report}");
}

/// Each way in which a write of the log can fail is met by a real server, which ends with the code for it (or that is a finding),
/// and what it acknowledged is there at the next start: with the power cut in between, with what lay in the cache forgotten, and
/// without either.
#[test]
fn a_server_of_which_a_write_or_a_flush_failed_ends_and_nothing_acknowledged_is_lost() {
    let (code, out, error) = answer(&["--seed", "3", "--cuts", "6", "--errors", "--json"]);
    assert_eq!(code, 0, "{out}{error}");
    if skipped(&out) {
        return;
    }
    let report: serde_json::Value = serde_json::from_str(&out).expect("JSON");
    for what in ["flush", "write", "short write"] {
        assert!(report["failed"][what].as_u64().is_some_and(|count| count > 0), "{what}: {report}");
    }
    assert_eq!(report["acknowledged"], report["sent"], "all is acknowledged at last: {report}");
}

#[test]
fn each_lie_of_the_file_system_is_found_out() {
    let (code, out, error) = answer(&["plants", "--json"]);
    assert_eq!(code, 0, "{out}{error}");
    if skipped(&out) {
        return;
    }
    let list: serde_json::Value = serde_json::from_str(&out).expect("JSON");
    let names: Vec<&str> = list.as_array().expect("a list").iter().filter_map(|it| it["plant"].as_str()).collect();
    assert_eq!(names, ["fsync", "fsyncdir", "torn"]);
}

#[test]
fn no_start_ends_by_a_signal_where_the_disk_does_not_give_a_page() {
    let (code, out, error) = answer(&["pages", "--json"]);
    assert_eq!(code, 0, "{out}{error}");
    if skipped(&out) {
        return;
    }
    let list: serde_json::Value = serde_json::from_str(&out).expect("JSON");
    let list = list.as_array().expect("a list");
    assert_eq!(list.len(), 10, "{out}");
    // Of the segment in which the log is its first page says nothing that is not known otherwise, and no page of the last spare one
    // is needed. Behind the last batch, here in the first pages, nobody knows where the log ended: the other shard serves.
    for (nth, shut) in [(0, false), (4, true), (5, false), (6, false), (7, false), (8, false), (9, false)] {
        assert_eq!((&list[nth]["serves"], &list[nth]["shut"]), (&true.into(), &shut.into()), "{}", list[nth]);
    }
}

#[test]
fn a_finding_comes_with_its_command() {
    let (code, out, error) = answer(&["--seed", "1", "--cuts", "20", "--plant", "fsync"]);
    if skipped(&out) {
        return;
    }
    assert_eq!(code, 1, "{out}{error}");
    assert!(error.contains("repeat: whimbrel-powercut --seed 1 --cuts 10 --plant fsync\n"), "{error}");
    assert!(error.contains("server: ") && error.contains("found after "), "{error}");
}

#[test]
fn a_wrong_command_names_the_remedy() {
    for (args, remedy) in [
        (&["--plant", "nothing"][..], "possible values: fsync, fsyncdir, torn"),
        (&["--cuts", "many"], "invalid digit"),
        (&["--whimbrel", "/nowhere/whimbrel"], "/nowhere/whimbrel"),
    ] {
        let (code, out, error) = answer(args);
        if !skipped(&out) {
            assert_eq!(code, 2, "{args:?}: {error}");
            assert!(error.contains(remedy), "{args:?}: {error}");
        }
    }
}

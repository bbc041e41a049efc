//! `whimbrel-fulldisk` as a user meets it. Where nothing can be mounted it says so, and so do these.

use std::process::Command;

/// Exit code, what it says on stdout, what on stderr.
fn answer(args: &[&str]) -> (i32, String, String) {
    let out = Command::new(env!("CARGO_BIN_EXE_whimbrel-fulldisk")).args(args).output().expect("the program starts");
    let text = |bytes: &[u8]| String::from_utf8(bytes.to_vec()).expect("it prints text");
    (out.status.code().expect("it ends by itself"), text(&out.stdout), text(&out.stderr))
}

#[test]
fn a_full_disk_refuses_and_resumes_and_loses_nothing() {
    for fs in ["tmpfs", "ext4"] {
        let (code, out, error) = answer(&["--fs", fs, "--fills", "2", "--seed", "5", "--json"]);
        assert_eq!(code, 0, "{out}{error}");
        let report: serde_json::Value = serde_json::from_str(&out).expect("JSON");
        assert_eq!(report["fs"], fs);
        if report["skipped"].is_string() {
            eprintln!("{out}");
            continue;
        }
        assert_eq!(report["fills"], 2, "{report}");
        assert_eq!(report["acknowledged"], report["sent"], "all is acknowledged at last: {report}");
        for what in ["refused", "acknowledged", "delivered"] {
            assert!(report[what].as_u64().is_some_and(|count| count > 0), "{what}: {report}");
        }
        assert!(report["finding"].is_null(), "{report}");
    }
}

#[test]
fn space_that_never_returns_is_found() {
    let (code, out, error) = answer(&["--fs", "tmpfs", "--fills", "20", "--seed", "1", "--plant", "kept"]);
    if out.contains("skipped") {
        eprintln!("{out}");
        return;
    }
    assert_eq!(code, 1, "{out}{error}");
    assert!(error.contains("space has returned, and a device was refused more than 100 times"), "{error}");
    assert!(error.contains("repeat: whimbrel-fulldisk --fs tmpfs --fills 20 --seed 1 --plant kept\n"), "{error}");
}

#[test]
fn a_wrong_command_names_the_remedy() {
    for (args, remedy) in [
        (&["--fs", "xfs"][..], "possible values: tmpfs, ext4"),
        (&["--fills", "many"], "invalid digit"),
        (&["--whimbrel", "/nowhere/whimbrel"], "/nowhere/whimbrel"),
    ] {
        let (code, out, error) = answer(args);
        if !out.contains("skipped") {
            assert_eq!(code, 2, "{args:?}: {error}");
            assert!(error.contains(remedy), "{args:?}: {error}");
        }
    }
}

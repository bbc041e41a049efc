//! What the command line prints, byte for byte. `UPDATE_GOLDEN=1 cargo test -p whimbrel golden` writes the files
//! anew; read the difference before it is committed.

use std::fs;
use std::path::Path;

use crate::common::{run, text};

/// Compares exit code, standard output and standard error of a run with tests/golden/NAME.txt.
fn golden(name: &str, arguments: &[&str]) {
    let output = run(arguments);
    let found = format!(
        "$ whimbrel {}\n[exit code {}]\n{}{}",
        arguments.join(" "),
        output.status.code().expect("it was not killed"),
        text(&output.stdout),
        text(&output.stderr)
    );
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/golden").join(format!("{name}.txt"));
    if std::env::var_os("UPDATE_GOLDEN").is_some() {
        fs::write(&path, &found).unwrap();
    }
    let expected = fs::read_to_string(&path).unwrap_or_default();
    assert!(found == expected, "{name}: UPDATE_GOLDEN=1 accepts\n--- expected\n{expected}\n--- found\n{found}");
}

#[test]
fn help() {
    golden("help", &[]);
    golden("help_serve", &["serve", "--help"]);
    golden("help_token", &["token", "--help"]);
    golden("help_chat", &["chat", "--help"]);
    golden("help_send", &["send", "--help"]);
    golden("help_recv", &["recv", "--help"]);
    golden("help_group_create", &["group", "create", "--help"]);
    golden("help_group_show", &["group", "show", "--help"]);
    golden("help_status", &["status", "--help"]);
    golden("help_demo", &["demo", "--help"]);
    golden("help_log", &["log", "--help"]);
    golden("help_log_verify", &["log", "verify", "--help"]);
    golden("help_log_inspect", &["log", "inspect", "--help"]);
    golden("help_log_bench", &["log", "bench", "--help"]);
}

#[test]
fn help_is_the_same_asked_for_or_not() {
    assert_eq!(text(&run(&[]).stdout), text(&run(&["--help"]).stdout));
    assert_eq!(text(&run(&[]).stdout), text(&run(&["help"]).stdout));
}

#[test]
fn wrong_usage_is_2() {
    golden("usage_unknown_command", &["sned"]);
    golden("usage_user", &["send", "--as", "Alice", "--to", "bob", "hi"]);
    golden("usage_nobody", &["send", "--as", "alice", "hi"]);
    golden("usage_both", &["send", "--as", "alice", "--to", "bob", "--chat", "000000000000000000000000000000ff", "hi"]);
    golden("usage_chat", &["group", "show", "--as", "alice", "--chat", "12"]);
    golden("usage_time", &["recv", "--as", "alice", "--timeout", "5"]);
    golden("usage_admin", &["status", "--admin", "7401"]);
    golden("usage_log", &["log"]);
    golden("usage_payload", &["log", "inspect", "--payload", "data"]);
    golden("usage_size", &["log", "bench", "--size", "16MB", "."]);
    golden("usage_seconds", &["log", "bench", "--seconds", "0", "."]);
    golden("usage_no_member", &["group", "create", "--as", "alice"]);
}

#[test]
fn the_version_names_the_commit() {
    let version = text(&run(&["--version"]).stdout);
    let commit =
        version.trim().strip_prefix("whimbrel 0.1.0 (").and_then(|rest| rest.strip_suffix(')')).expect(&version);
    let digits = commit.strip_suffix("-dirty").unwrap_or(commit);
    assert!(commit == "unknown" || (digits.len() == 12 && digits.bytes().all(|b| b.is_ascii_hexdigit())), "{version}");
}

#[test]
fn without_keys_the_remedy_is_named() {
    let dir = tempfile::tempdir().unwrap();
    let data = dir.path().to_str().unwrap();
    for arguments in [vec!["token", "--user", "a"], vec!["recv", "--as", "a"], vec!["chat", "--as", "a"]] {
        let output = run(&[arguments, vec!["--data", data]].concat());
        assert_eq!(output.status.code(), Some(1));
        let error = text(&output.stderr);
        assert!(error.contains(&format!("no development key in {data}")), "{error}");
        assert!(error.contains(&format!("whimbrel serve --dev --data {data}")), "{error}");
    }
}

#[test]
fn completion_scripts_name_the_subcommands() {
    for shell in ["bash", "zsh", "fish"] {
        let output = run(&["completions", shell]);
        assert!(output.status.success());
        let script = text(&output.stdout);
        assert!(
            ["serve", "chat", "recv", "status", "log", "verify", "inspect", "demo"]
                .iter()
                .all(|name| script.contains(name)),
            "{shell}"
        );
    }
}

//! The server and the operating system's settings: it says what is not as its profile wants it, and starts all the same.

use std::fs;

use crate::common::{Server, run, serve, text};

/// One value that no machine has, and one that every machine meets.
const PROFILE: &str =
    "# Out of reach.\n\nnet.core.somaxconn = 2147483647\nkernel.io_uring_disabled = 2\n# End: 2 settings.\n";

#[test]
fn each_shortfall_is_told_once_with_the_command_that_mends_it() {
    let dir = tempfile::tempdir().unwrap();
    let profile = dir.path().join("own.conf");
    fs::write(&profile, PROFILE).unwrap();
    let mut command = serve(&dir.path().join("data"), "127.0.0.1:0");
    command.env("WHIMBREL_TUNING_PROFILE", &profile);
    let server = Server::start_by(command, &dir.path().join("data"));
    server.terminate();
    let (status, errors) = server.wait();
    assert_eq!(status.code(), Some(0), "{errors}");
    let warnings: Vec<&str> =
        errors.lines().filter(|line| line.contains("WARN") && line.contains("tuning: ")).collect();
    assert_eq!(warnings.len(), 1, "{errors}");
    assert!(warnings[0].contains("own.conf --only net.core.somaxconn"), "{errors}");
    assert!(errors.contains("the profile was checked") && errors.contains("met=1 short=1"), "{errors}");
}

#[test]
fn a_profile_that_does_not_exist_is_wrong_usage() {
    let dir = tempfile::tempdir().unwrap();
    let config = dir.path().join("whimbrel.toml");
    fs::write(&config, "[tuning]\nprofile = \"latancy\"\n").unwrap();
    let output = run(&[
        "serve",
        "--dev",
        "--config",
        config.to_str().unwrap(),
        "--data",
        dir.path().join("d").to_str().unwrap(),
    ]);
    assert_eq!(output.status.code(), Some(2));
    assert!(text(&output.stderr).contains("did you mean `latency`?"), "{}", text(&output.stderr));
}

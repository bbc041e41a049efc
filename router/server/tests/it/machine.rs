//! What a machine may forbid or lack: a start works, or fails with the remedy, and never with a panic.

use std::os::unix::process::CommandExt;
use std::process::{Command, Stdio};
use std::sync::mpsc::RecvTimeoutError;

use crate::common::{PATIENCE, Server, lines, serve, wait};
use crate::raw::{Raw, Reply};

/// Root gives capabilities away by `setpriv`; anybody else has none.
fn without_capabilities(names: &[&str], command: &Command) -> Command {
    if !rustix::process::geteuid().is_root() {
        return through(&[], command);
    }
    let dropped = names.iter().map(|name| format!("-{name}")).collect::<Vec<_>>().join(",");
    through(&["setpriv", "--bounding-set", &dropped, "--inh-caps", &dropped], command)
}

/// The command, run by a program that takes it as its last arguments.
fn through(prefix: &[&str], command: &Command) -> Command {
    let mut words = prefix.iter().map(AsRef::as_ref).chain([command.get_program()]).chain(command.get_args());
    let mut changed = Command::new(words.next().expect("at least the program itself"));
    changed.args(words).stdin(Stdio::null());
    for (name, value) in command.get_envs() {
        match value {
            Some(value) => changed.env(name, value),
            None => changed.env_remove(name),
        };
    }
    changed
}

/// Whether a server gets ready. If not, it has to end with exit code 1 and an error that says each of `parts`.
fn starts_or_says(mut command: Command, parts: &[&str]) -> bool {
    let mut child = command.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
    let ready = lines(child.stdout.take().unwrap()).recv_timeout(PATIENCE);
    let errors = lines(child.stderr.take().unwrap());
    match &ready {
        Ok(line) => {
            assert!(line.starts_with("ready "), "{line}");
            child.kill().unwrap();
        }
        Err(RecvTimeoutError::Timeout) => child.kill().unwrap(),
        Err(RecvTimeoutError::Disconnected) => {}
    }
    let status = wait(&mut child);
    let errors = errors.iter().collect::<Vec<_>>().join("\n");
    if ready.is_err() {
        assert_eq!(status.code(), Some(1), "{errors}");
        assert!(parts.iter().all(|part| errors.contains(part)), "{errors}");
        assert!(!errors.contains("panicked"), "{errors}");
    }
    ready.is_ok()
}

#[test]
fn two_shards_start_without_the_right_to_lock_memory() {
    let dir = tempfile::tempdir().unwrap();
    let command = without_capabilities(&["ipc_lock"], &serve(dir.path(), "127.0.0.1:0"));
    let server = Server::start_by(command, dir.path());
    // Each of the two on a shard of its own.
    let mut both = Vec::new();
    for name in ["alice", "bob"] {
        let (raw, welcome) = Raw::log_in(&server.address, &server.token(name));
        let Reply::Welcome { shard, .. } = welcome else { unreachable!() };
        both.push((shard, raw));
    }
    assert_ne!(both[0].0, both[1].0);
    let alice = &mut both[0].1;
    let chat = alice.pair("bob");
    alice.send(chat, 1, 0, b"hello");
    assert!(matches!(alice.reply(), Reply::Sent { .. }));
    server.terminate();
    let (status, errors) = server.wait();
    assert_eq!(status.code(), Some(0), "{errors}");
}

#[test]
fn a_low_limit_of_locked_memory_suffices_or_names_the_remedy() {
    for kib in [0, 64, 256, 512, 1024, 4096] {
        let dir = tempfile::tempdir().unwrap();
        let limit = format!("--memlock={0}:{0}", kib * 1024);
        let command = without_capabilities(&["ipc_lock"], &serve(dir.path(), "127.0.0.1:0"));
        let command = through(&["prlimit", &limit], &command);
        starts_or_says(command, &["the limit of locked memory is too low", "LimitMEMLOCK", "--shards"]);
    }
    // 8 MiB, the usual limit, are enough for two shards: it starts, once those of other tests have given theirs back.
    let dir = tempfile::tempdir().unwrap();
    let command = without_capabilities(&["ipc_lock"], &serve(dir.path(), "127.0.0.1:0"));
    Server::start_by(through(&["prlimit", "--memlock=8388608:8388608"], &command), dir.path()).kill();
}

#[test]
fn a_low_limit_of_open_files_suffices_or_names_the_remedy() {
    let mut started = Vec::new();
    for files in [16, 32, 64, 256, 1024] {
        let dir = tempfile::tempdir().unwrap();
        let limit = format!("--nofile={files}:{files}");
        let command = through(&["prlimit", &limit], &serve(dir.path(), "127.0.0.1:0"));
        started.push(starts_or_says(command, &["open files", "LimitNOFILE"]));
    }
    assert_eq!(started.last(), Some(&true), "1024, the usual limit, are enough");
}

#[test]
fn where_io_uring_is_forbidden_the_remedy_is_named() {
    for (errno, parts) in [
        (libc::EPERM, ["io_uring is forbidden", "kernel.io_uring_disabled", "seccomp"]),
        (libc::ENOSYS, ["has no io_uring", "seccomp", "6.1"]),
    ] {
        let dir = tempfile::tempdir().unwrap();
        let mut command = serve(&dir.path().join("data"), "127.0.0.1:0");
        forbid_io_uring(&mut command, errno);
        assert!(!starts_or_says(command, &parts));
        assert!(!dir.path().join("data").exists(), "nothing is made by a start that fails");
    }
}

/// Lets the kernel refuse a program to make rings, as a container's seccomp profile does.
fn forbid_io_uring(command: &mut Command, errno: i32) {
    let step = |code: u32, jf: u8, k: u32| libc::sock_filter { code: code as u16, jt: 0, jf, k };
    let returns = libc::BPF_RET | libc::BPF_K;
    let mut filter = [
        // The number of the call is the first word.
        step(libc::BPF_LD | libc::BPF_W | libc::BPF_ABS, 0, 0),
        step(libc::BPF_JMP | libc::BPF_JEQ | libc::BPF_K, 1, libc::SYS_io_uring_setup as u32),
        step(returns, 0, libc::SECCOMP_RET_ERRNO | errno as u32),
        step(returns, 0, libc::SECCOMP_RET_ALLOW),
    ];
    let install = move || {
        let program = libc::sock_fprog { len: filter.len() as u16, filter: filter.as_mut_ptr() };
        // SAFETY: the first call takes numbers only; the second reads `program` and the filter, which outlive it.
        let failed = unsafe {
            libc::prctl(libc::PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0) != 0
                || libc::prctl(libc::PR_SET_SECCOMP, libc::SECCOMP_MODE_FILTER, &raw const program) != 0
        };
        if failed { Err(std::io::Error::last_os_error()) } else { Ok(()) }
    };
    // SAFETY: between fork and exec it makes two system calls and allocates nothing.
    unsafe { command.pre_exec(install) };
}

#[test]
fn a_data_directory_of_somebody_else_is_named() {
    use std::os::unix::fs::PermissionsExt;
    let dir = tempfile::tempdir().unwrap();
    let data = dir.path().join("data");
    std::fs::create_dir(&data).unwrap();
    std::fs::set_permissions(&data, std::fs::Permissions::from_mode(0o500)).unwrap();
    // Even root has to keep to permissions without these two.
    let command = without_capabilities(&["dac_override", "dac_read_search"], &serve(&data, "127.0.0.1:0"));
    assert!(!starts_or_says(command, &["no permission", data.to_str().unwrap(), "chown"]));
    std::fs::set_permissions(&data, std::fs::Permissions::from_mode(0o700)).unwrap();
    let command = without_capabilities(&["dac_override", "dac_read_search"], &serve(&data, "127.0.0.1:0"));
    assert!(starts_or_says(command, &[]));
}

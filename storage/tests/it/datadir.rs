//! The lock and the identity of a data directory.

use std::fs;
use std::io::{BufRead, BufReader};
use std::path::Path;
use std::process::{Command, Stdio};

use whimbrel_storage::{Asked, DataDir, DataDirError, Shape};

const SHAPE: Shape = Shape { partitions: 16, shards: 2, segment_size: 4 << 20 };
const HOLDS: &str = "WHIMBREL_TEST_HOLDS";

fn open(path: &Path) -> Result<DataDir, DataDirError> {
    DataDir::open(path, SHAPE, Asked::default())
}

#[test]
fn a_directory_keeps_what_it_was_made_with() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("a/b");
    let asked = Asked { shards: Some(3), ..Asked::default() };
    let made = DataDir::open(&path, SHAPE, asked).unwrap();
    let identity = made.identity().clone();
    assert_eq!((identity.partitions, identity.shards, identity.segment_size), (16, 3, 4 << 20));
    assert_eq!(identity.cluster.len(), 32);
    assert_eq!(made.log_options(1).segment_size, 4 << 20);
    made.disk(1).unwrap();
    assert!(path.join("shard-1").is_dir());
    drop(made);
    assert_eq!(open(&path).unwrap().identity(), &identity);
}

#[test]
fn another_number_of_shards_is_refused_with_the_number_to_use() {
    let dir = tempfile::tempdir().unwrap();
    drop(open(dir.path()).unwrap());
    let asked = Asked { shards: Some(5), ..Asked::default() };
    let error = DataDir::open(dir.path(), SHAPE, asked).unwrap_err();
    assert!(matches!(error, DataDirError::Mismatch { name: "shards", found: 2, asked: 5, .. }));
    assert!(error.to_string().contains("start with 2, or with an empty directory"), "{error}");
    let asked = Asked { shards: Some(2), partitions: Some(16), ..Asked::default() };
    DataDir::open(dir.path(), SHAPE, asked).unwrap();
}

#[test]
fn a_directory_is_open_once_in_a_process() {
    let dir = tempfile::tempdir().unwrap();
    let first = open(dir.path()).unwrap();
    let error = open(dir.path()).unwrap_err();
    let pid = std::process::id();
    assert!(error.to_string().contains(&format!("in use by process {pid}: stop it")), "{error}");
    drop(first);
    open(dir.path()).unwrap();
}

#[test]
fn a_directory_that_another_process_holds_is_refused_with_its_pid_until_it_dies() {
    if let Ok(path) = std::env::var(HOLDS) {
        // The other process: this very test, started again below. It holds the lock until its input ends or it is killed.
        let _held = open(Path::new(&path)).unwrap();
        println!("\nheld");
        let _ = std::io::stdin().lock().read_line(&mut String::new());
        return;
    }
    let dir = tempfile::tempdir().unwrap();
    let name = "datadir::a_directory_that_another_process_holds_is_refused_with_its_pid_until_it_dies";
    let mut other = Command::new(std::env::current_exe().unwrap())
        .args(["--exact", name, "--nocapture"])
        .env(HOLDS, dir.path())
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    let output = BufReader::new(other.stdout.take().unwrap());
    assert!(output.lines().map_while(Result::ok).any(|line| line == "held"));
    let error = open(dir.path()).unwrap_err();
    assert!(error.to_string().contains(&format!("process {}", other.id())), "{error}");
    other.kill().unwrap();
    other.wait().unwrap();
    open(dir.path()).unwrap();
}

#[test]
fn logs_without_an_identity_are_not_given_a_new_one() {
    let dir = tempfile::tempdir().unwrap();
    let made = open(dir.path()).unwrap();
    made.disk(0).unwrap();
    drop(made);
    fs::remove_file(dir.path().join("whimbrel.json")).unwrap();
    assert!(matches!(open(dir.path()), Err(DataDirError::IdentityMissing { .. })));
}

#[test]
fn an_unknown_format_and_a_damaged_identity_are_refused_by_name() {
    let dir = tempfile::tempdir().unwrap();
    let made = open(dir.path()).unwrap();
    drop(made);
    let file = dir.path().join("whimbrel.json");
    fs::write(&file, r#"{"format": 9, "anything": "else"}"#).unwrap();
    assert!(matches!(open(dir.path()), Err(DataDirError::Format { found: 9, known: 2, .. })));
    for text in ["", "{}", r#"{"format": 1}"#, r#"{"format": "1"}"#] {
        fs::write(&file, text).unwrap();
        assert!(matches!(open(dir.path()), Err(DataDirError::BadIdentity { .. })), "{text}");
    }
}

#[test]
fn a_file_in_the_place_of_the_directory_is_refused_by_name() {
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("file");
    fs::write(&file, "").unwrap();
    assert!(matches!(open(&file), Err(DataDirError::NotADirectory { .. })));
    assert!(matches!(open(&file.join("below")), Err(DataDirError::NotADirectory { .. })));
}

#[test]
fn a_shape_that_cannot_be_is_refused_and_leaves_no_identity() {
    let dir = tempfile::tempdir().unwrap();
    let asked = Asked { shards: Some(17), ..Asked::default() };
    assert!(matches!(DataDir::open(dir.path(), SHAPE, asked), Err(DataDirError::Shape(_))));
    let asked = Asked { segment_size: Some(1000), ..Asked::default() };
    assert!(matches!(DataDir::open(dir.path(), SHAPE, asked), Err(DataDirError::Shape(_))));
    assert!(!dir.path().join("whimbrel.json").exists());
}

//! `whimbrel log`: a data directory looked at without a server. Each class of damage on a copy of a real one is found by name,
//! place and partition, and nothing is ever changed.

use std::collections::BTreeMap;
use std::fs::{self, File, OpenOptions};
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};
use std::time::{Duration, Instant, SystemTime};

use serde_json::Value;

use crate::common::{PATIENCE, Server, run, serve, text, wait, whimbrel};

/// The data directory of 0.1.0: two shards, segments of 260 KiB, no checkpoint.
fn golden(below: &Path) -> PathBuf {
    let archive = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/golden-data/0.1.0.tar.gz");
    assert!(Command::new("tar").arg("-xzf").arg(archive).arg("-C").arg(below).status().unwrap().success());
    below.join("data")
}

/// The same after servers of today have run on it, so that it has two checkpoints a shard.
fn with_checkpoints(below: &Path) -> PathBuf {
    let data = golden(below);
    for _ in 0..2 {
        let server = Server::start(&data);
        server.terminate();
        let (status, errors) = server.wait();
        assert!(status.success(), "{errors}");
    }
    data
}

fn log(command: &str, data: &Path, more: &[&str]) -> Output {
    whimbrel().arg("log").arg(command).arg(data).args(more).output().unwrap()
}

/// What verifying prints as JSON, with the exit code that belongs to it.
fn verify(data: &Path) -> Value {
    let before = everything(data);
    let output = log("verify", data, &["--json"]);
    assert!(everything(data) == before, "something was changed");
    let found: Value = serde_json::from_slice(&output.stdout).unwrap_or_else(|_| panic!("{output:?}"));
    assert_eq!(output.status.code(), Some(i32::from(found["whole"] == false)), "{output:?}");
    assert_eq!(found["whole"], found["damaged"] == 0);
    found
}

/// Every file with its bytes and the time of its last change.
fn everything(data: &Path) -> BTreeMap<PathBuf, (Vec<u8>, SystemTime)> {
    let mut found = BTreeMap::new();
    let mut folders = vec![data.to_owned()];
    while let Some(folder) = folders.pop() {
        for entry in fs::read_dir(folder).unwrap() {
            let path = entry.unwrap().path();
            if path.is_dir() {
                folders.push(path);
            } else {
                let changed = fs::metadata(&path).unwrap().modified().unwrap();
                found.insert(path.clone(), (fs::read(&path).unwrap(), changed));
            }
        }
    }
    found
}

fn segment(data: &Path, shard: u16, id: u32) -> PathBuf {
    data.join(format!("shard-{shard}/{id:010}.seg"))
}

fn write(path: &Path, at: u64, bytes: &[u8]) {
    OpenOptions::new().write(true).open(path).unwrap().write_all_at(bytes, at).unwrap();
}

fn flip(path: &Path, at: u64) {
    let file = OpenOptions::new().read(true).write(true).open(path).unwrap();
    let mut byte = [0];
    file.read_exact_at(&mut byte, at).unwrap();
    file.write_all_at(&[byte[0] ^ 4], at).unwrap();
}

/// Where the records of a segment are, as `inspect` says.
fn records(data: &Path, shard: u16, id: u32) -> Vec<Value> {
    let output = log("inspect", data, &["--segment", &id.to_string(), "--shard", &shard.to_string(), "--json"]);
    assert!(output.status.success(), "{output:?}");
    lines(&output)
}

fn lines(output: &Output) -> Vec<Value> {
    text(&output.stdout).lines().map(|line| serde_json::from_str(line).unwrap()).collect()
}

/// One class of damage on a copy of the golden directory: what it is, how it is made, how it is told.
struct Damage {
    reason: &'static str,
    make: fn(&Path),
    told: &'static str,
}

const DAMAGES: [Damage; 13] = [
    Damage {
        reason: "segment_header",
        make: |data| flip(&segment(data, 0, 2), 25),
        told: "shard 0: segment 2, byte 0: the segment's header is not valid",
    },
    Damage {
        reason: "segment_header",
        // In its padding.
        make: |data| flip(&segment(data, 0, 2), 3000),
        told: "shard 0: segment 2, byte 0: the segment's header is not valid",
    },
    Damage {
        reason: "batch_missing",
        make: |data| flip(&segment(data, 0, 2), 57_344 + 9),
        told: "shard 0: segment 2, byte 57344: batch 27 is missing, and a later one is there; gone: partition 10 \
               entry 11",
    },
    Damage {
        reason: "batch",
        make: |data| flip(&segment(data, 0, 2), 57_408 + 17),
        told: "shard 0: segment 2, byte 57344: batch 27 is damaged: record 1, at byte 57408: its header does not \
               match its checksum; gone: partition 10 entry 11",
    },
    Damage {
        reason: "batch",
        make: |data| flip(&segment(data, 0, 2), 57_408 + 5000),
        told: "shard 0: segment 2, byte 57344: batch 27 is damaged: record 1, at byte 57408: its payload does not \
               match its checksum; gone: partition 10 entry 11",
    },
    Damage {
        reason: "batch",
        // Behind its last record.
        make: |data| flip(&segment(data, 0, 2), 110_592 - 1),
        told: "shard 0: segment 2, byte 57344: batch 27 is damaged: its padding is not zeros; gone: partition 10 \
               entry 11",
    },
    Damage {
        reason: "batch_missing",
        // A write that was reported and never made.
        make: |data| write(&segment(data, 0, 2), 57_344, &[0; 106_496]),
        told: "shard 0: segment 2, byte 57344: batches 27 to 28 are missing, and a later one is there; gone: \
               partition 10 entries 11 to 12",
    },
    Damage {
        reason: "batch_misplaced",
        // A write that went to another place.
        make: |data| {
            let file = File::open(segment(data, 0, 2)).unwrap();
            let mut batch = vec![0; 53_248];
            file.read_exact_at(&mut batch, 4096).unwrap();
            write(&segment(data, 0, 2), 57_344, &batch);
        },
        told: "shard 0: segment 2, byte 57344: batch 26 lies there, which belongs elsewhere; gone: partition 10 \
               entry 11",
    },
    Damage {
        reason: "segment_missing",
        make: |data| fs::remove_file(segment(data, 0, 2)).unwrap(),
        told: "shard 0: segment 2, byte 0: the segment is missing; gone: partition 10 entries 10 to 13",
    },
    Damage {
        reason: "segment_foreign",
        make: |data| assert!(fs::copy(segment(data, 1, 2), segment(data, 0, 2)).is_ok()),
        told: "shard 0: segment 2, byte 0: the file is segment 2 of shard 1: put it back where it belongs; gone: \
               partition 10 entries 10 to 13",
    },
    Damage {
        reason: "segment_length",
        make: |data| OpenOptions::new().write(true).open(segment(data, 0, 5)).unwrap().set_len(8192).unwrap(),
        told: "shard 0: segment 5, byte 0: the file has 8192 bytes, its header says 266240, and segments of this \
               directory have 266240",
    },
    Damage {
        reason: "segment_format",
        make: |data| {
            let path = segment(data, 0, 2);
            let mut page = vec![0; 64];
            File::open(&path).unwrap().read_exact_at(&mut page, 0).unwrap();
            page[8] = 9;
            let crc = crc32c::crc32c(&page[..60]);
            page[60..64].copy_from_slice(&crc.to_le_bytes());
            write(&path, 0, &page);
        },
        told: "shard 0: segment 2, byte 0: the segment has format 9: use a version of whimbrel that knows it; gone: \
               partition 10 entries 10 to 13",
    },
    Damage {
        reason: "stray",
        make: |data| write(&segment(data, 0, 5), 200_000, b"where nobody wrote"),
        told: "shard 0: segment 5, byte 196608: there are 4096 bytes where none were written",
    },
];

#[test]
fn a_whole_directory_is_found_whole_and_left_as_it_is() {
    let dir = tempfile::tempdir().unwrap();
    let data = golden(dir.path());
    let found = verify(&data);
    assert_eq!((&found["findings"], &found["notes"]), (&serde_json::json!([]), &serde_json::json!([])));
    for (name, expected) in
        [("format", 1), ("shards", 2), ("segments", 10), ("batches", 80), ("records", 125), ("bytes", 2_662_400)]
    {
        assert_eq!(found[name], expected, "{name}");
    }
    let output = log("verify", &data, &[]);
    assert!(output.status.success() && output.stderr.is_empty(), "{output:?}");
    let told = text(&output.stdout);
    let expected = "2 shards, 10 segments, 0 checkpoints, 80 batches, 125 records; 2.5 MiB in ";
    assert!(told.starts_with(expected) && told.ends_with(" MB/s\nwhole\n"), "{told}");
}

#[test]
fn each_class_of_damage_is_told_by_place_reason_and_partition() {
    for (nth, Damage { reason, make, told }) in DAMAGES.iter().enumerate() {
        let dir = tempfile::tempdir().unwrap();
        let data = golden(dir.path());
        make(&data);
        let found = verify(&data);
        let findings = found["findings"].as_array().unwrap();
        let texts: Vec<_> = findings.iter().map(|finding| finding["text"].as_str().unwrap()).collect();
        assert_eq!(findings.len(), 1, "{nth}: {texts:?}");
        assert_eq!((&findings[0]["reason"], &findings[0]["severity"]), (&(*reason).into(), &"damage".into()), "{nth}");
        assert_eq!(format!("shard 0: {}", texts[0]), *told, "{nth}");
        let output = log("verify", &data, &[]);
        let (lines, errors) = (text(&output.stdout), text(&output.stderr));
        assert!(lines.lines().any(|line| line == *told) && lines.ends_with("damaged: 1 finding\n"), "{nth}: {lines}");
        assert!(errors.contains("nothing was changed\n  keep a copy of the directory as it is"), "{nth}: {errors}");
    }
}

#[test]
fn a_torn_last_batch_is_reported_and_is_no_damage() {
    let dir = tempfile::tempdir().unwrap();
    let data = golden(dir.path());
    let last = records(&data, 0, 3).last().unwrap()["offset"].as_u64().unwrap();
    flip(&segment(&data, 0, 3), last + 20);
    let found = verify(&data);
    let [finding] = &found["findings"].as_array().unwrap()[..] else { panic!("{found}") };
    assert_eq!((&finding["reason"], &finding["severity"]), (&"torn".into(), &"torn".into()));
    assert_eq!((&found["torn"], &found["whole"]), (&1.into(), &true.into()));
    let told = text(&log("verify", &data, &[]).stdout);
    assert!(told.ends_with("\nwhole, but for 1 last batch that a crash tore\n"), "{told}");
    // As it says, the next start deals with it.
    let server = Server::start(&data);
    server.terminate();
    let (status, errors) = server.wait();
    assert!(status.success() && errors.contains("torn"), "{errors}");
    assert_eq!(verify(&data)["findings"], serde_json::json!([]));
}

#[test]
fn damage_of_checkpoints_and_of_what_they_stand_on_is_found() {
    let reasons = |data: &Path| -> Vec<String> {
        let found = verify(data);
        let texts = found["findings"].as_array().unwrap().iter();
        texts.map(|finding| format!("{} {}", finding["reason"].as_str().unwrap(), finding["checkpoint"])).collect()
    };
    let dir = tempfile::tempdir().unwrap();
    let data = with_checkpoints(dir.path());
    assert_eq!(reasons(&data), [""; 0]);
    let found = verify(&data);
    assert_eq!((&found["checkpoints"], &found["format"]), (&4.into(), &2.into()));
    // The mark of a clean end and the bytes that are kept for checkpoints are known.
    assert_eq!(found["notes"], serde_json::json!([]));
    let newest = data.join("shard-0/0000000002.ckpt");
    let older = data.join("shard-0/0000000001.ckpt");
    flip(&newest, 200);
    assert_eq!(reasons(&data), ["checkpoint 2"]);
    flip(&older, 30);
    assert_eq!(reasons(&data), ["checkpoint 2", "checkpoint 1", "no_checkpoint null"]);
    flip(&older, 30);
    flip(&newest, 200);
    assert_eq!(reasons(&data), [""; 0]);
    // Messages wait in the first segment, and no record behind the checkpoint lets go of them.
    fs::rename(segment(&data, 0, 1), data.join("hidden")).unwrap();
    let found = verify(&data);
    let told = found["findings"][0]["text"].as_str().unwrap();
    assert!(told.starts_with("segment 1, byte 0: the segment is missing; concerns partition"), "{found}");
    fs::rename(data.join("hidden"), segment(&data, 0, 1)).unwrap();
    // The checkpoint says that there was more in the log than there is.
    let output = log("inspect", &data, &["--shard", "0", "--json"]);
    let shard = lines(&output).into_iter().find(|line| line["type"] == "shard").unwrap();
    let (id, end) = (shard["end"]["segment"].as_u64().unwrap() as u32, shard["end"]["offset"].as_u64().unwrap());
    // The log goes on in a new segment, or behind its last batch.
    let id = if end == 4096 { id - 1 } else { id };
    let last = records(&data, 0, id).last().unwrap()["offset"].as_u64().unwrap();
    write(&segment(&data, 0, id), last / 4096 * 4096, &[0; 4096]);
    assert_eq!(reasons(&data), ["batch_missing null"]);
}

#[test]
fn a_lost_log_of_a_shard_is_found() {
    let dir = tempfile::tempdir().unwrap();
    let data = with_checkpoints(dir.path());
    fs::rename(data.join("shard-1"), dir.path().join("elsewhere")).unwrap();
    let found = verify(&data);
    assert_eq!(found["findings"][0]["reason"], "shard_empty");
    assert_eq!(found["findings"][0]["shard"], 1);
}

#[test]
fn what_is_not_of_a_log_is_noted_and_is_no_damage() {
    let dir = tempfile::tempdir().unwrap();
    let data = golden(dir.path());
    for name in [
        "shard-0/0000000009.tmp",
        "shard-0/0000000003.ckpt.bad",
        "shard-0/0000000003.2.ckpt.bad",
        "shard-0/0000000004.seg.bad",
        "shard-1/notes.txt",
        "shard-7/any",
    ] {
        fs::create_dir_all(data.join(name).parent().unwrap()).unwrap();
        fs::write(data.join(name), "any").unwrap();
    }
    let found = verify(&data);
    let notes: Vec<_> = found["notes"].as_array().unwrap().iter().map(|note| note.as_str().unwrap()).collect();
    assert_eq!(notes.len(), 6, "{notes:?}");
    for part in [
        "0000000009.tmp was being made",
        "0000000003.ckpt.bad is a damaged checkpoint of 3 B that",
        "0000000003.2.ckpt.bad is a damaged checkpoint of 3 B that",
        "0000000004.seg.bad is a damaged spare segment of 3 B that",
        "notes.txt is no file",
        "shard-7 is not of",
    ] {
        assert!(notes.iter().any(|note| note.contains(part)), "{part}: {notes:?}");
    }
}

#[test]
fn what_is_no_data_directory_is_refused_with_the_remedy() {
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("file");
    fs::write(&file, "").unwrap();
    let empty = dir.path().join("empty");
    fs::create_dir(&empty).unwrap();
    let lost = golden(dir.path());
    fs::remove_file(lost.join("whimbrel.json")).unwrap();
    let newer = dir.path().join("newer");
    fs::create_dir(&newer).unwrap();
    fs::write(newer.join("whimbrel.json"), r#"{"format": 9}"#).unwrap();
    for (path, part) in [
        (&file, "is not a directory: name a data directory"),
        (&empty, "has no whimbrel.json. Name one"),
        (&dir.path().join("nowhere"), "does not exist: name a data directory"),
        (&lost, "has logs but no whimbrel.json: restore that file"),
        (&newer, "has format 9, this program reads 2: use the version"),
    ] {
        for command in ["verify", "inspect"] {
            let output = log(command, path, &[]);
            let errors = text(&output.stderr);
            assert!(output.status.code() == Some(1) && errors.contains(part), "{command} {}: {errors}", path.display());
            assert!(output.stdout.is_empty());
        }
    }
    assert!(fs::read_dir(&empty).unwrap().next().is_none(), "nothing is made");
}

#[test]
fn a_directory_that_a_server_has_is_refused_and_one_that_is_looked_at_is_not_served() {
    let dir = tempfile::tempdir().unwrap();
    let data = dir.path().join("data");
    let server = Server::start(&data);
    for command in ["verify", "inspect"] {
        let output = log(command, &data, &[]);
        let errors = text(&output.stderr);
        assert_eq!(output.status.code(), Some(1));
        assert!(errors.contains(&format!("is in use by process {}", server.pid())), "{errors}");
        assert!(errors.contains("Stop it first"), "{errors}");
    }
    server.kill();
    assert_eq!(verify(&data)["whole"], true);
    // Whoever looks holds the lock as this test does here.
    let lock = File::open(data.join("lock")).unwrap();
    rustix::fs::flock(&lock, rustix::fs::FlockOperation::NonBlockingLockShared).unwrap();
    assert_eq!(verify(&data)["whole"], true, "any number may look");
    let output = serve(&data, "127.0.0.1:0").output().unwrap();
    let errors = text(&output.stderr);
    assert!(!output.status.success() && errors.contains("is in use by another process"), "{errors}");
}

#[test]
fn inspect_adds_up_and_tells_what_is_waited_for() {
    let dir = tempfile::tempdir().unwrap();
    let data = with_checkpoints(dir.path());
    let output = log("inspect", &data, &["--json"]);
    assert!(output.status.success() && output.stderr.is_empty(), "{output:?}");
    let all = lines(&output);
    let of = |kind: &str| all.iter().filter(|line| line["type"] == kind).collect::<Vec<_>>();
    let sum = |lines: &[&Value], name: &str| lines.iter().map(|line| line[name].as_u64().unwrap()).sum::<u64>();
    assert_eq!((of("directory").len(), of("shard").len(), of("checkpoint").len()), (1, 2, 4));
    let (segments, partitions) = (of("segment"), of("partition"));
    assert_eq!(sum(&segments, "records"), sum(&partitions, "entries") + sum(&partitions, "hard_states"));
    assert_eq!(sum(&segments, "records"), sum(&of("shard"), "records"));
    assert_eq!(partitions.len(), 16);
    // tests/golden-data/README.md: what waits for whom.
    let waiting: u64 = partitions.iter().map(|line| line["checkpoint"]["waiting"].as_u64().unwrap()).sum();
    let live: u64 = segments.iter().map(|line| line["live"]["places"].as_u64().unwrap()).sum();
    assert!(waiting >= 8 + 15 + 10 && live >= 8, "{waiting} waiting, in {live} places");
    let bytes: u64 = segments.iter().map(|line| line["live"]["bytes"].as_u64().unwrap()).sum();
    assert!(bytes >= 8 * 50_000, "the large ones wait: {bytes}");
    assert!(
        segments.iter().any(|line| line["kept_for"] == "spare")
            && segments.iter().any(|line| line["kept_for"] == "log")
    );
    let tables = text(&log("inspect", &data, &[]).stdout);
    for head in ["  checkpoint", "  segment", "  partition", "shard 1: the log ends in segment "] {
        assert!(tables.lines().any(|line| line.starts_with(head)), "{head}: {tables}");
    }
}

#[test]
fn records_are_listed_without_what_is_in_them() {
    let dir = tempfile::tempdir().unwrap();
    let data = golden(dir.path());
    let message = "alice to bob 1";
    let digits: String = message.bytes().map(|byte| format!("{byte:02x}")).collect();
    for more in [&[][..], &["--json"], &["--segment", "1"], &["--segment", "1", "--json"]] {
        let output = log("inspect", &data, more);
        let all = text(&output.stdout) + &text(&output.stderr);
        assert!(output.status.success() && !all.contains(message) && !all.contains(&digits), "{more:?}");
    }
    let output = log("inspect", &data, &["--segment", "1", "--json", "--payload"]);
    assert!(text(&output.stdout).contains(&digits), "asked for, it is shown");
    assert!(text(&output.stderr).contains("users' messages in it: keep it to yourself"));
    assert!(text(&log("inspect", &data, &["--segment", "1", "--payload"]).stdout).contains("|alice to bob 1"));
    // In order, and as many as the segment has.
    let records = records(&data, 0, 1);
    assert_eq!(records.len(), 43);
    assert!(records.iter().enumerate().all(|(nth, it)| it["record"] == nth as u64 + 1 && it["good"] == true));
    assert!(records.windows(2).all(|two| two[0]["offset"].as_u64() < two[1]["offset"].as_u64()));
    // One that is damaged is listed too, and those behind it.
    flip(&segment(&data, 0, 1), records[18]["offset"].as_u64().unwrap() + 40);
    let text = text(&log("inspect", &data, &["--segment", "1", "--shard", "0"]).stdout);
    assert_eq!(text.matches("its payload does not match its checksum").count(), 1, "{text}");
    assert_eq!(text.matches(" good\n").count(), 42);
}

#[test]
fn what_is_not_there_names_what_is() {
    let dir = tempfile::tempdir().unwrap();
    let data = golden(dir.path());
    let output = log("inspect", &data, &["--segment", "77"]);
    assert!(
        text(&output.stderr).contains("shard 0 has segments from 1 to 5, shard 1 has segments from 1 to 5"),
        "{output:?}"
    );
    let output = log("inspect", &data, &["--shard", "2"]);
    assert!(text(&output.stderr).contains("it has shards 0 to 1: --shard N"), "{output:?}");
}

#[test]
fn a_reader_that_goes_away_is_no_failure() {
    let dir = tempfile::tempdir().unwrap();
    let data = golden(dir.path());
    for more in
        [&["inspect"][..], &["inspect", "--json"], &["inspect", "--segment", "1"], &["verify"], &["verify", "--json"]]
    {
        let (reader, writer) = std::io::pipe().unwrap();
        drop(reader);
        let output = whimbrel().arg("log").args(more).arg(&data).stdout(writer).output().unwrap();
        assert_eq!((output.status.code(), text(&output.stderr)), (Some(0), String::new()), "{more:?}");
    }
}

#[test]
fn bench_measures_and_leaves_nothing() {
    let dir = tempfile::tempdir().unwrap();
    let directory = dir.path().to_str().unwrap();
    let output = run(&["log", "bench", "--seconds", "1", "--size", "16MiB", "--json", directory]);
    assert!(output.status.success() && output.stderr.is_empty(), "{output:?}");
    let found: Value = serde_json::from_slice(&output.stdout).unwrap();
    let limits = found["limits"].as_array().unwrap();
    let records: Vec<_> = limits.iter().map(|limit| limit["records"].as_u64().unwrap()).collect();
    assert_eq!(records, [1, 16, 256]);
    assert!(limits.iter().all(|limit| limit["records_per_second"].as_f64().unwrap() > 0.0));
    for flushes in found["flushes"].as_array().unwrap() {
        let counts: u64 = flushes["histogram"].as_array().unwrap().iter().map(|it| it["count"].as_u64().unwrap()).sum();
        assert_eq!(flushes["flushes"], counts);
    }
    assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 0);
    let output = run(&["log", "bench", "--seconds", "1", "--size", "16MiB", &format!("{directory}/nowhere")]);
    assert!(
        output.status.code() == Some(1) && text(&output.stderr).contains("name a directory on the disk"),
        "{output:?}"
    );
}

#[test]
fn an_interrupted_bench_leaves_nothing_and_so_does_a_killed_one() {
    for (signal, code) in [(rustix::process::Signal::INT, Some(1)), (rustix::process::Signal::KILL, None)] {
        let dir = tempfile::tempdir().unwrap();
        let directory = dir.path().to_str().unwrap();
        let mut bench = whimbrel()
            .args(["log", "bench", "--seconds", "600", "--size", "16MiB", directory])
            .stdout(Stdio::null())
            .stderr(Stdio::piped())
            .spawn()
            .unwrap();
        // It has begun once it has a file there, which has no name.
        let begun = Instant::now();
        let files = PathBuf::from(format!("/proc/{}/fd", bench.id()));
        let has_file = || {
            let links =
                fs::read_dir(&files).into_iter().flatten().filter_map(|entry| fs::read_link(entry.ok()?.path()).ok());
            links.into_iter().any(|link| link.starts_with(directory))
        };
        while !has_file() {
            assert!(begun.elapsed() < PATIENCE, "it has no file");
            std::thread::park_timeout(Duration::from_millis(5));
        }
        assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 0, "its files have no names");
        rustix::process::kill_process(rustix::process::Pid::from_child(&bench), signal).unwrap();
        let errors = std::io::read_to_string(bench.stderr.take().unwrap()).unwrap();
        assert_eq!(wait(&mut bench).code(), code, "{errors}");
        assert!(code.is_none() || errors.contains("nothing remains of them"), "{errors}");
        assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 0);
    }
}

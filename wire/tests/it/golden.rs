//! Replays the vectors of every released version byte for byte, both ways. What flatc does not notice, such as a struct that
//! grew or a field that became required, ends here.

use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};

use serde_json::{Value, json};
use whimbrel_wire::{Code, Kind, VERSION};

use crate::json::{self, To};
use crate::{hostile, samples};

/// Frames of this version of the package.
const THIS: &str = "0.1.0";

fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("golden")
}

/// All vectors of one sort: their names, bytes and descriptions.
fn vectors(sort: &str) -> Vec<(String, Vec<u8>, Value)> {
    let mut found = Vec::new();
    for version in fs::read_dir(root()).unwrap().map(|entry| entry.unwrap().path()).filter(|path| path.is_dir()) {
        let mut paths: Vec<_> = fs::read_dir(version.join(sort)).unwrap().map(|entry| entry.unwrap().path()).collect();
        paths.sort();
        for bin in paths.iter().filter(|path| path.extension().is_some_and(|e| e == "bin")) {
            let text = fs::read_to_string(bin.with_extension("json")).unwrap();
            let name = bin.strip_prefix(root()).unwrap().display().to_string();
            found.push((name, fs::read(bin).unwrap(), serde_json::from_str(&text).unwrap()));
        }
        assert_eq!(paths.len() % 2, 0, "each .bin has its .json in {}", version.display());
    }
    assert!(!found.is_empty());
    found
}

fn to(v: &Value) -> To {
    match v["to"].as_str() {
        Some("server") => To::Server,
        Some("client") => To::Client,
        other => panic!("to whom is {other:?}"),
    }
}

fn name_of(to: To) -> &'static str {
    match to {
        To::Server => "server",
        To::Client => "client",
    }
}

/// What of a header stands in its description.
fn header(bytes: &[u8]) -> Value {
    let word = |at: usize| u32::from_le_bytes(bytes[at..at + 4].try_into().unwrap());
    json!({ "length": word(0), "kind": bytes[4], "version": bytes[5], "flags": 0, "table_len": word(8), "crc32c": format!("{:08x}", word(12)) })
}

#[test]
fn golden_good_frames_are_read_and_written_the_same() {
    write_if_asked();
    for (name, bytes, v) in vectors("good") {
        let (kind, fields) = json::read(&bytes, to(&v), whimbrel_wire::limits::FRAME_MAX_BYTES).unwrap().unwrap();
        assert_eq!(format!("{kind:?}"), v["kind"], "{name}");
        assert_eq!(fields, v["fields"], "{name}");
        assert_eq!(header(&bytes), v["header"], "{name}");
        assert_eq!(json::hex(&json::build(kind, &v["fields"])), json::hex(&bytes), "{name}");
    }
}

#[test]
fn golden_hostile_frames_are_refused_with_their_number() {
    write_if_asked();
    for (name, bytes, v) in vectors("hostile") {
        let frame_max = v["frame_max"].as_u64().unwrap() as usize;
        let read = json::read(&bytes, to(&v), frame_max);
        match v["code"].as_u64() {
            None => assert_eq!(read, Ok(None), "{name}"),
            Some(number) => {
                let code = read.expect_err(&name).code();
                assert_eq!(
                    (code as u64, code.name(), code.closes()),
                    (number, v["name"].as_str().unwrap(), v["closes"] == true),
                    "{name}"
                );
            }
        }
    }
}

#[test]
fn golden_vectors_of_this_version_are_complete() {
    write_if_asked();
    let good = vectors("good");
    let of_this = |name: &str| name.starts_with(THIS);
    let kinds: BTreeSet<_> = good.iter().filter(|(name, ..)| of_this(name)).map(|(_, bytes, _)| bytes[4]).collect();
    assert_eq!(kinds, Kind::ALL.iter().map(|kind| *kind as u8).collect());
    assert_eq!(good.iter().filter(|(name, ..)| of_this(name)).count(), samples::good().len());
    let hostile = vectors("hostile");
    let codes: BTreeSet<_> = hostile.iter().filter_map(|(.., v)| v["code"].as_u64()).collect();
    let wire = [
        Code::BadFrame,
        Code::BadChecksum,
        Code::FrameTooLarge,
        Code::UnknownKind,
        Code::BadTable,
        Code::UnsupportedVersion,
        Code::UnexpectedKind,
        Code::PayloadTooLarge,
    ];
    assert_eq!(codes, wire.iter().map(|code| *code as u64).collect());
    assert_eq!(hostile.iter().filter(|(name, ..)| of_this(name)).count(), hostile::all().len());
}

/// The answer to a wrong version has to be read by a client of any version, so its bytes are fixed here too.
#[test]
fn golden_refused_has_the_layout_that_never_changes() {
    let bytes = json::unhex(REFUSED);
    let read = json::read(&bytes, To::Client, whimbrel_wire::limits::FRAME_MAX_BYTES).unwrap().unwrap();
    let fields = json!({
        "correlation": 1, "code": 11, "retry_after_ms": 0, "version_min": 1, "version_max": 1, "detail": "since yesterday",
    });
    assert_eq!(read, (Kind::Refused, fields.clone()));
    assert_eq!(json::hex(&json::build(Kind::Refused, &fields)), REFUSED);
    assert_eq!(bytes[5], 0, "its version is 0, whatever the protocol's is ({VERSION})");
}

const REFUSED: &str = "50000000030000004000000088e6b33614000000100018000c00060000000400050008001000000001010b00100000000100000000000000000000000f00000073696e63652079657374657264617900";

fn write_if_asked() {
    if std::env::var_os("WHIMBREL_GOLDEN").is_none_or(|mode| mode != "write") {
        return;
    }
    static ONCE: std::sync::Once = std::sync::Once::new();
    ONCE.call_once(write);
}

fn write() {
    for sort in ["good", "hostile"] {
        fs::create_dir_all(root().join(THIS).join(sort)).unwrap();
    }
    let put = |sort: &str, name: &str, bytes: &[u8], v: &Value| {
        let path = root().join(THIS).join(sort).join(name);
        fs::write(path.with_extension("bin"), bytes).unwrap();
        fs::write(path.with_extension("json"), serde_json::to_string_pretty(v).unwrap() + "\n").unwrap();
    };
    for (name, to, kind, fields) in samples::good() {
        let bytes = json::build(kind, &fields);
        let v = json!({ "to": name_of(to), "kind": format!("{kind:?}"), "header": header(&bytes), "fields": fields });
        put("good", name, &bytes, &v);
    }
    for h in hostile::all() {
        let v = json!({
            "to": name_of(h.to), "frame_max": h.frame_max, "why": h.why, "code": h.code.map(|code| code as u16),
            "name": h.code.map(Code::name), "closes": h.code.map(Code::closes),
        });
        put("hostile", &h.name, &h.bytes, &v);
    }
}

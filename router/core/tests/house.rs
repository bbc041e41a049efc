//! Keeps the house in order: what documents name exists, the pure crates stay pure, files stay one thing.

use std::fs;
use std::path::{Path, PathBuf};

const DOCUMENTED: [&str; 6] = ["md", "rs", "toml", "conf", "sh", "fbs"];

fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../..").canonicalize().expect("the workspace")
}

/// Files of the source tree with this extension, relative to the root.
fn files(extension: &str) -> Vec<PathBuf> {
    let root = root();
    let mut found = Vec::new();
    let mut folders = vec![root.clone()];
    while let Some(folder) = folders.pop() {
        for entry in fs::read_dir(&folder).expect("a readable folder") {
            let path = entry.expect("an entry").path();
            let name = path.file_name().and_then(|name| name.to_str()).unwrap_or_default();
            if path.is_dir() {
                if !name.starts_with('.') && name != "target" && name != "whimbrel-data" {
                    folders.push(path);
                }
            } else if path.extension().is_some_and(|it| it == extension) {
                found.push(path.strip_prefix(&root).expect("below the root").to_owned());
            }
        }
    }
    found.sort();
    found
}

/// Those that people wrote.
fn sources() -> Vec<PathBuf> {
    files("rs").into_iter().filter(|path| !path.iter().any(|part| part == "generated")).collect()
}

fn text(path: &Path) -> String {
    fs::read_to_string(root().join(path)).unwrap_or_else(|error| panic!("{}: {error}", path.display()))
}

fn is_test(path: &Path) -> bool {
    path.iter().any(|part| part == "tests" || part == "tests.rs")
}

/// Source without the tests at its end and without comments.
fn code(source: &str) -> String {
    let source = source.split("#[cfg(test)]\nmod ").next().unwrap_or_default();
    source.lines().filter(|line| !line.trim_start().starts_with("//")).collect::<Vec<_>>().join("\n")
}

/// What looks like a file of this tree in a document.
fn named_paths(document: &str) -> Vec<String> {
    let mut found = Vec::new();
    for piece in document.split(['`', '(', ')', '|', ' ', '\n', ',']) {
        let piece = piece.trim_end_matches('.');
        let is_file = piece.rsplit_once('.').is_some_and(|(stem, end)| DOCUMENTED.contains(&end) && !stem.is_empty());
        if is_file && !piece.contains("://") && !piece.contains(['*', '<', '$']) {
            found.push(piece.to_owned());
        }
    }
    found
}

/// Whether the file stands there or, if it is a bare name, anywhere.
fn stands(named: &str, beside: &Path, all: &[PathBuf]) -> bool {
    root().join(named).exists()
        || root().join(beside).join(named).exists()
        || (!named.contains('/') && all.iter().any(|path| path.file_name().is_some_and(|name| name == named)))
}

fn impurities(source: &str) -> Vec<&'static str> {
    const BANNED: [&str; 10] = [
        "glommio",
        "std::net",
        "std::fs",
        "std::env",
        "Instant::now",
        "SystemTime",
        "std::thread",
        "thread::spawn",
        "async fn",
        "rand::",
    ];
    let code = code(source);
    BANNED.into_iter().filter(|name| code.contains(name)).collect()
}

/// Lines with an `unsafe` block above which nobody says why it is sound.
fn unexplained_unsafe(source: &str) -> Vec<usize> {
    let lines: Vec<&str> = source.lines().collect();
    let is_bare = |index: usize| {
        let line = lines[index];
        let opens = !line.trim_start().starts_with("//") && (line.contains("unsafe {") || line.contains("unsafe impl"));
        opens && !lines[index.saturating_sub(8)..=index].iter().any(|line| line.contains("SAFETY:"))
    };
    (0..lines.len()).filter(|&index| is_bare(index)).map(|index| index + 1).collect()
}

#[test]
fn documents_name_files_that_exist() {
    // Said not to exist yet; the reader's own.
    let others = ["mesh.fbs", "SCENARIO.toml"];
    let all: Vec<PathBuf> = DOCUMENTED.into_iter().flat_map(files).collect();
    let documents = files("md");
    assert!(documents.len() >= 5, "{documents:?}");
    for document in documents {
        let beside = document.parent().unwrap_or(Path::new(""));
        for named in named_paths(&text(&document)) {
            let fine = others.contains(&named.as_str()) || stands(&named, beside, &all);
            assert!(fine, "{} names {named}, which does not exist", document.display());
        }
    }
}

#[test]
fn paths_are_found_in_documents() {
    let found = named_paths("see [a](wire/PROTOCOL.md), `chat.rs` and https://x.org/y.md, v1.2.");
    assert_eq!(found, ["wire/PROTOCOL.md", "chat.rs"]);
    assert!(!stands("no-such-file.rs", Path::new(""), &files("rs")));
}

#[test]
fn only_what_belongs_there_stands_at_the_top() {
    let allowed = ["Cargo.toml", "Cargo.lock", "LICENSE", "README.md", "wire", "storage", "router", "bench", "tuning"];
    // Read by cargo's tools only from there; made by commands of the README.
    let others = ["clippy.toml", "rustfmt.toml", "target", "whimbrel-data"];
    for entry in fs::read_dir(root()).expect("the workspace") {
        let name = entry.expect("an entry").file_name().into_string().expect("a readable name");
        let fits = name.starts_with('.') || allowed.contains(&name.as_str()) || others.contains(&name.as_str());
        assert!(fits, "{name} does not belong at the top of the tree");
    }
}

#[test]
fn the_pure_crates_are_pure() {
    for path in sources() {
        if path.starts_with("router/core/src") || path.starts_with("wire/src") {
            assert_eq!(impurities(&text(&path)), [""; 0], "{}", path.display());
        }
    }
    assert_eq!(impurities("fn f() { std::thread::yield_now() }"), ["std::thread"]);
    assert!(impurities("// std::thread\n#[cfg(test)]\nmod tests { use std::fs; }").is_empty());
}

#[test]
fn files_are_one_thing_each() {
    for path in sources() {
        let lines = text(&path).lines().count();
        assert!(lines <= 700, "{} has {lines} lines: split it", path.display());
    }
}

#[test]
fn nothing_is_left_for_later_or_taken_on_trust() {
    // In two pieces, so that this file does not find itself.
    let marks = [["TO", "DO"], ["FIX", "ME"], ["unimple", "mented!("], ["to", "do!("]].map(|pieces| pieces.concat());
    for path in sources() {
        let source = text(&path);
        for mark in &marks {
            assert!(!source.contains(mark.as_str()), "{} has {mark}", path.display());
        }
        if !is_test(&path) {
            assert!(!code(&source).contains(".unwrap()"), "{} unwraps", path.display());
            assert_eq!(unexplained_unsafe(&source), [0; 0], "{}: unsafe without a reason", path.display());
        }
    }
    assert_eq!(unexplained_unsafe("let a = 1;\nlet b = unsafe { f() };"), [2]);
    assert!(unexplained_unsafe("// SAFETY: it holds.\nlet b = unsafe { f() };").is_empty());
}

//! Keeps the house in order: what documents name exists, the pure crates stay pure, files stay one thing. Each rule is a
//! function over text, and is shown to find what it is there for.

use std::fs;
use std::path::{Path, PathBuf};

/// Files longer than this are two things.
const LINES_MAX: usize = 700;

/// Endings by which a word of a document is taken for a file of this tree.
const DOCUMENTED: [&str; 6] = ["md", "rs", "toml", "conf", "sh", "fbs"];

/// Named in documents, and not in the tree: said not to exist yet; a reader's own.
const ELSEWHERE: [&str; 2] = ["mesh.fbs", "SCENARIO.toml"];

/// What may stand at the top besides names that begin with a dot.
const TOP: [&str; 10] =
    ["Cargo.toml", "Cargo.lock", "LICENSE", "README.md", "wire", "storage", "router", "bench", "tuning", "fuzz"];

/// Settings of cargo's tools, and what the commands of the README make.
const TOP_TOO: [&str; 2] = ["target", "whimbrel-data"];

/// What the core and the wire cannot name: sockets, files, clocks, threads, chance, futures.
const IMPURE: [&str; 11] = [
    "glommio",
    "io_uring",
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
                if !name.starts_with('.') && !TOP_TOO.contains(&name) {
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

/// What looks like a file or a folder of this tree in a document.
fn named_paths(document: &str) -> Vec<String> {
    let mut found = Vec::new();
    for piece in document.split(['`', '(', ')', '|', ' ', '\n', ',', ';', '"']) {
        let piece = piece.trim_end_matches(['.', ':']);
        let piece = piece.split('#').next().unwrap_or_default();
        // A test in a file.
        let piece = piece.split("::").next().unwrap_or_default();
        let is_file = piece.rsplit_once('.').is_some_and(|(stem, end)| DOCUMENTED.contains(&end) && !stem.is_empty());
        let is_ci = piece.starts_with(".ci/");
        // A folder ends in a slash where it is linked, or begins with one of the top.
        let top = piece.split('/').next().unwrap_or_default();
        let is_folder = piece.contains('/') && TOP.contains(&top);
        if (is_file || is_ci || is_folder) && !piece.contains("://") && !piece.contains(['*', '<', '$', '…']) {
            found.push(piece.to_owned());
        }
    }
    found
}

/// Tests that a document names, as `tests/it/file.rs::test`: file and test.
fn named_tests(document: &str) -> Vec<(&str, &str)> {
    let pieces = document.split(['`', ' ', '\n', ',', ';', '|', '(', ')']);
    let tests = pieces.filter_map(|piece| piece.split_once("::"));
    tests.filter(|(file, test)| file.ends_with(".rs") && !test.is_empty()).collect()
}

/// Whether a source has a test of this name.
fn has_test(source: &str, name: &str) -> bool {
    source.split(&format!("fn {name}(")).next().filter(|before| before.len() < source.len()).is_some_and(|before| {
        before.lines().rev().take_while(|line| line.starts_with("#[")).any(|line| line == "#[test]")
    })
}

/// Whether the file stands there or, if it is a bare name, anywhere.
fn stands(named: &str, beside: &Path, all: &[PathBuf]) -> bool {
    root().join(named).exists()
        || root().join(beside).join(named).exists()
        || (!named.contains('/') && all.iter().any(|path| path.file_name().is_some_and(|name| name == named)))
}

fn belongs_at_the_top(name: &str) -> bool {
    name.starts_with('.') || TOP.contains(&name) || TOP_TOO.contains(&name)
}

fn impurities(source: &str) -> Vec<&'static str> {
    let code = code(source);
    IMPURE.into_iter().filter(|name| code.contains(name)).collect()
}

/// Lines that open an `unsafe` block above which nobody says why it is sound.
fn unexplained_unsafe(source: &str) -> Vec<usize> {
    let lines: Vec<&str> = source.lines().collect();
    let is_bare = |index: usize| {
        let line = lines[index];
        let opens = !line.trim_start().starts_with("//") && (line.contains("unsafe {") || line.contains("unsafe impl"));
        opens && !lines[index.saturating_sub(8)..=index].iter().any(|line| line.contains("SAFETY:"))
    };
    (0..lines.len()).filter(|&index| is_bare(index)).map(|index| index + 1).collect()
}

/// What is wrong with a file of source.
fn faults(path: &Path, source: &str) -> Vec<String> {
    // In two pieces, so that this file does not find itself.
    let marks = [["TO", "DO"], ["FIX", "ME"], ["unimple", "mented!("], ["to", "do!("]].map(|pieces| pieces.concat());
    let mut faults = Vec::new();
    let lines = source.lines().count();
    if lines > LINES_MAX {
        faults.push(format!("{lines} lines: it is two things"));
    }
    faults.extend(marks.iter().filter(|mark| source.contains(*mark)).map(|mark| format!("{mark}: something is left")));
    if !is_test(path) {
        if code(source).contains(".unwrap()") {
            faults.push("unwraps outside of tests".to_owned());
        }
        faults.extend(unexplained_unsafe(source).into_iter().map(|line| format!("line {line}: unsafe, and no SAFETY")));
    }
    if path.starts_with("router/core/src") || path.starts_with("wire/src") {
        faults.extend(impurities(source).into_iter().map(|name| format!("names {name}, and is to be pure")));
    }
    faults
}

#[test]
fn documents_name_what_exists() {
    let all: Vec<PathBuf> = DOCUMENTED.into_iter().flat_map(files).collect();
    let documents = files("md");
    for expected in ["README.md", "router/ARCHITECTURE.md", "router/CHANGELOG.md"] {
        assert!(documents.iter().any(|path| path == Path::new(expected)), "there is no {expected}");
    }
    for document in documents {
        let beside = document.parent().unwrap_or(Path::new(""));
        for named in named_paths(&text(&document)) {
            let made = TOP_TOO.iter().any(|made| named.starts_with(&format!("{made}/")));
            let fine = made || ELSEWHERE.contains(&named.as_str()) || stands(&named, beside, &all);
            assert!(fine, "{} names {named}, which does not exist", document.display());
        }
    }
}

#[test]
fn paths_are_found_in_documents() {
    let found = named_paths("see [a](wire/PROTOCOL.md), `chat.rs`, [w](wire/) or `.ci/run`; https://x.org/y.md, v1.2.");
    assert_eq!(found, ["wire/PROTOCOL.md", "chat.rs", "wire/", ".ci/run"]);
    assert_eq!(named_paths("`router/core/src/gone`: no more"), ["router/core/src/gone"]);
    let all = files("rs");
    assert!(stands("house.rs", Path::new(""), &all) && stands("src/shard.rs", Path::new("router/core"), &all));
    assert!(!stands("no-such-file.rs", Path::new(""), &all) && !stands("router/core/src/gone", Path::new(""), &all));
}

#[test]
fn the_readme_names_tests_that_are_there() {
    let readme = text(Path::new("README.md"));
    let tests = named_tests(&readme);
    for promise in ["P1", "P2", "P3", "P5"] {
        let is_named = |line: &str| line.starts_with(&format!("| {promise} |")) && !named_tests(line).is_empty();
        assert!(readme.lines().any(is_named), "no test is named that would fail without {promise}");
    }
    for (file, test) in tests {
        assert!(has_test(&text(Path::new(file)), test), "README.md names {test}, which is no test of {file}");
    }
    for line in readme.lines() {
        for patch in line.split('`').filter(|piece| piece.ends_with(".patch")) {
            assert!(root().join(patch).exists(), "README.md names {patch}, which does not exist");
        }
    }
}

#[test]
fn tests_are_found_in_documents_and_sources() {
    assert_eq!(named_tests("see `a/b.rs::it_holds`, `Log::hold` and c.rs::x"), [("a/b.rs", "it_holds"), ("c.rs", "x")]);
    let source = "#[test]\nfn one() {}\n\nfn two() {}\n";
    assert!(has_test(source, "one") && !has_test(source, "two") && !has_test(source, "three"));
    assert_eq!(named_paths("`storage/tests/it/rot.rs::x`"), ["storage/tests/it/rot.rs"]);
}

#[test]
fn only_what_belongs_there_stands_at_the_top() {
    for entry in fs::read_dir(root()).expect("the workspace") {
        let name = entry.expect("an entry").file_name().into_string().expect("a readable name");
        assert!(belongs_at_the_top(&name), "{name} does not belong at the top of the tree");
    }
    assert!(belongs_at_the_top("wire") && belongs_at_the_top(".gitignore"));
    assert!(!belongs_at_the_top("docs") && !belongs_at_the_top("CHANGELOG.md") && !belongs_at_the_top("notes.txt"));
}

#[test]
fn sources_are_in_order() {
    let sources = sources();
    assert!(sources.len() > 100, "only {} files were found", sources.len());
    let found: Vec<String> = sources
        .iter()
        .flat_map(|path| faults(path, &text(path)).into_iter().map(|fault| format!("{}: {fault}", path.display())))
        .collect();
    assert!(found.is_empty(), "{}", found.join("\n"));
}

#[test]
fn faults_are_found_in_sources() {
    let of = |path: &str, source: &str| faults(Path::new(path), source).len();
    let long = "\n".repeat(LINES_MAX + 1);
    let later = ["// TO", "DO: later"].concat();
    for (fault, source) in [
        ("length", long.as_str()),
        ("work left", later.as_str()),
        ("unwrap", "fn f() { g().unwrap() }"),
        ("unsafe", "let a = 1;\nlet b = unsafe { f() };"),
        ("a thread", "fn f() { std::thread::yield_now() }"),
        ("a clock", "let now = Instant::now();"),
        ("a future", "async fn f() {}"),
    ] {
        assert_eq!(of("router/core/src/made_up.rs", source), 1, "{fault}");
    }
    assert_eq!(of("router/server/src/made_up.rs", "async fn f() { Instant::now() }"), 0);
    assert_eq!(of("router/core/tests/made_up.rs", "fn f() { g().unwrap() }"), 0);
    assert_eq!(of("wire/src/made_up.rs", "// std::thread\n#[cfg(test)]\nmod tests { use std::fs; }"), 0);
    assert_eq!(of("storage/src/made_up.rs", "// SAFETY: it holds.\nlet b = unsafe { f() };"), 0);
    assert_eq!(unexplained_unsafe("let a = 1;\nlet b = unsafe { f() };"), [2]);
}

#[test]
fn this_version_stands_in_the_changelog() {
    let heading = format!("\n## {} (", env!("CARGO_PKG_VERSION"));
    assert!(text(Path::new("router/CHANGELOG.md")).contains(&heading), "no heading{heading}…");
}

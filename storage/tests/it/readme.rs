//! What README.md says of failures is what tests show: every test that its table names is there, and is a test.

use std::fs;
use std::path::{Path, PathBuf};

const HEADING: &str = "## What survives which failure";

/// Rows of the table below the heading: their first cell and their last one.
fn rows(document: &str) -> Vec<(String, String)> {
    let section = document.split(HEADING).nth(1).unwrap_or_default().split("\n## ").next().unwrap_or_default();
    let cells = |line: &str| -> Option<(String, String)> {
        let cells = line.trim().strip_prefix('|')?.strip_suffix('|')?;
        let (first, last) = (cells.split(" | ").next()?, cells.rsplit(" | ").next()?);
        Some((first.trim().to_owned(), last.trim().to_owned()))
    };
    // Two lines are its head.
    section.lines().filter_map(cells).skip(2).collect()
}

/// The tests that a cell names: the file, as it is named, and the function.
fn named(cell: &str) -> Vec<(String, String)> {
    let mut file = None;
    let mut found = Vec::new();
    for name in cell.split('`').skip(1).step_by(2) {
        if name.ends_with(".rs") {
            file = Some(name.to_owned());
        } else {
            found.push((file.clone().unwrap_or_default(), name.to_owned()));
        }
    }
    found
}

/// What is wrong with a test that is named.
fn fault(source: &str, test: &str) -> Option<String> {
    let lines: Vec<&str> = source.lines().collect();
    let is_it = |line: &&str| line.trim_start().starts_with(&format!("fn {test}("));
    let Some(at) = lines.iter().position(is_it) else { return Some(format!("there is no {test}")) };
    let attributes = lines[..at].iter().rev().take_while(|line| line.trim_start().starts_with('#'));
    let is_test = attributes.map(|line| line.trim()).any(|line| line == "#[test]");
    (!is_test).then(|| format!("{test} is no test"))
}

#[test]
fn every_failure_names_its_tests_and_they_are_there() {
    let storage = Path::new(env!("CARGO_MANIFEST_DIR"));
    let rows = rows(&fs::read_to_string(storage.join("README.md")).unwrap());
    assert!(rows.len() >= 20, "{} rows", rows.len());
    for (failure, cell) in rows {
        let tests = named(&cell);
        assert!(!tests.is_empty(), "{failure}: no test");
        for (file, test) in tests {
            let places = [storage.join(&file), storage.join("..").join(&file)];
            let path: Option<&PathBuf> = places.iter().find(|path| path.is_file());
            let path = path.unwrap_or_else(|| panic!("{failure}: there is no {file}"));
            let fault = fault(&fs::read_to_string(path).unwrap(), &test);
            assert_eq!(fault, None, "{failure}: {file}");
        }
    }
}

#[test]
fn rows_and_tests_are_found_in_documents() {
    let document = format!(
        "# A\n\n{HEADING}\n\n| a | b | c |\n|---|---|---|\n| x | y | `tests/t.rs`: `one`, `two`; `u.rs`: `three` |\n\n## B\n\n| n | n | n |\n"
    );
    let rows = rows(&document);
    assert_eq!(rows.len(), 1);
    assert_eq!(rows[0].0, "x");
    let expected = [("tests/t.rs", "one"), ("tests/t.rs", "two"), ("u.rs", "three")];
    assert_eq!(named(&rows[0].1), expected.map(|(file, test)| (file.to_owned(), test.to_owned())));
    let source = "#[test]\nfn one() {}\n\n#[test]\n#[should_panic]\nfn two() {}\n\nfn three() {}\n";
    assert_eq!([fault(source, "one"), fault(source, "two")], [None, None]);
    assert_eq!(fault(source, "three"), Some("three is no test".to_owned()));
    assert_eq!(fault(source, "on"), Some("there is no on".to_owned()));
}

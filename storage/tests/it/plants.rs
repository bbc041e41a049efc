//! The patches that `.ci/plants` applies to see a named test fail: each still applies, and the test that it names is there.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

fn top() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("..").canonicalize().unwrap()
}

fn patches() -> Vec<PathBuf> {
    let mut found = Vec::new();
    for folder in ["storage/plants", "router/plants"] {
        let paths = fs::read_dir(top().join(folder)).unwrap().map(|entry| entry.unwrap().path());
        found.extend(paths.filter(|path| path.extension().is_some_and(|it| it == "patch")));
    }
    found.sort();
    found
}

/// A line of a patch's head.
fn field<'a>(patch: &'a str, name: &str) -> &'a str {
    let value = patch.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(": "));
    value.unwrap_or_else(|| panic!("it has no line that begins with {name}"))
}

/// Whether a source below this folder has a function of this name.
fn has_function(folder: &Path, name: &str) -> bool {
    fs::read_dir(folder).unwrap().map(|entry| entry.unwrap().path()).any(|path| {
        if path.is_dir() {
            return has_function(&path, name);
        }
        path.extension().is_some_and(|it| it == "rs")
            && fs::read_to_string(&path).unwrap().contains(&format!("fn {name}("))
    })
}

#[test]
fn every_patch_applies() {
    let patches = patches();
    assert!(patches.len() > 20, "only {} patches", patches.len());
    for path in patches {
        let out = Command::new("git").current_dir(top()).args(["apply", "--check"]).arg(&path).output().expect("git");
        let errors = String::from_utf8_lossy(&out.stderr);
        assert!(out.status.success(), "{}: make it anew, for the source has changed: {errors}", path.display());
    }
}

#[test]
fn every_patch_names_what_fails_with_it() {
    for path in patches() {
        let patch = fs::read_to_string(&path).unwrap();
        let (removes, runs, says) = (field(&patch, "Removes"), field(&patch, "Runs"), field(&patch, "Says"));
        assert!(!removes.is_empty() && !says.is_empty(), "{}", path.display());
        let Some((command, test)) = runs.split_once(" -- --exact ") else {
            assert!(runs.contains("whimbrel-powercut --seed "), "{}: {runs}", path.display());
            continue;
        };
        let package = command.rsplit_once(" -p ").and_then(|(_, rest)| rest.split_whitespace().next()).unwrap();
        let folder = match package.strip_prefix("whimbrel-") {
            Some("storage") => top().join("storage"),
            Some(name) => top().join("router").join(name),
            None => top().join("router/server"),
        };
        let name = test.rsplit("::").next().unwrap();
        let is_there = ["src", "tests"].iter().any(|it| has_function(&folder.join(it), name));
        assert!(is_there, "{}: there is no test {test}", path.display());
    }
}

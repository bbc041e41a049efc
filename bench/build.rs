//! Tells the binary which commit it was built from: `WHIMBREL_COMMIT`. A server of another commit is refused.

use std::path::Path;
use std::process::Command;

/// What the two binaries are made of, from the workspace's top. A change there may make the tree differ from its commit.
const SOURCES: [&str; 8] =
    ["Cargo.toml", "Cargo.lock", "wire", "storage", "router/core", "router/server", "bench", "tuning"];

fn main() {
    let top = Path::new(env!("CARGO_MANIFEST_DIR")).join("..");
    for source in SOURCES {
        println!("cargo::rerun-if-changed={}", top.join(source).display());
    }
    // A commit changes these. Asked of git, for in a linked worktree .git is a file and they are elsewhere.
    for name in ["HEAD", "logs/HEAD"] {
        if let Some(path) = git(&top, &["rev-parse", "--git-path", name])
            && top.join(&path).exists()
        {
            println!("cargo::rerun-if-changed={}", top.join(path).display());
        }
    }
    println!("cargo::rustc-env=WHIMBREL_COMMIT={}", commit(&top).unwrap_or_else(|| "unknown".into()));
}

/// Twelve digits of the commit, with `-dirty` where tracked files differ from it; `None` outside of a git tree. The server's
/// build script says the same.
fn commit(top: &Path) -> Option<String> {
    let commit = git(top, &["rev-parse", "--short=12", "HEAD"])?;
    let changes = git(top, &["status", "--porcelain", "--untracked-files=no"])?;
    Some(if changes.is_empty() { commit } else { format!("{commit}-dirty") })
}

fn git(top: &Path, arguments: &[&str]) -> Option<String> {
    let output = Command::new("git").arg("--no-optional-locks").arg("-C").arg(top).args(arguments).output().ok()?;
    output.status.success().then(|| String::from_utf8_lossy(&output.stdout).trim().to_owned())
}

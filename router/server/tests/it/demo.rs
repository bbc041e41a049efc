//! The demo is a test too: it fails if a message that was acknowledged is not where it should be.

use crate::common::{text, whimbrel};

#[test]
fn the_demo_loses_nothing() {
    let output = whimbrel().arg("demo").output().unwrap();
    let shown = text(&output.stdout);
    assert_eq!(output.status.code(), Some(0), "{shown}{}", text(&output.stderr));
    let last = shown.lines().last().unwrap();
    let count = last.strip_prefix("demo: sent ").and_then(|rest| rest.split(',').next()).expect(last);
    assert_eq!(
        last,
        format!("demo: sent {count}, acknowledged {count}, delivered {count}, lost 0, duplicated 0, reordered 0")
    );
    assert!(shown.contains("killed with SIGKILL"), "{shown}");
}

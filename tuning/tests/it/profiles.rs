//! The profiles, the table and the documents agree, and everything has its source.

use std::fs;

use whimbrel_tune::profile::built_in;
use whimbrel_tune::table::{FOLKLORE, KEYS};

#[test]
fn every_key_of_every_profile_has_reasons_and_a_source() {
    for profile in built_in().expect("profiles") {
        assert!(profile.title.ends_with('.') && profile.settings.len() >= 7, "{}", profile.name);
        for setting in &profile.settings {
            let of = format!("{} in {}", setting.key, profile.name);
            for (field, text) in [("What", &setting.what), ("Why", &setting.why), ("Cost", &setting.cost)] {
                assert!(text.len() > 4 && text.ends_with('.'), "{of}: {field}: {text:?}");
            }
            let is_kernels = setting.source.starts_with("https://docs.kernel.org/");
            assert!(
                is_kernels || setting.source.starts_with("https://man7.org/linux/man-pages/"),
                "{of}: {}",
                setting.source
            );
        }
    }
}

#[test]
fn every_key_of_the_table_is_in_a_profile() {
    let profiles = built_in().expect("profiles");
    let is_used = |key: &str| profiles.iter().any(|profile| profile.settings.iter().any(|setting| setting.key == key));
    for known in KEYS {
        assert!(is_used(known.key), "{} is in no profile", known.key);
    }
}

/// Ports belong to who opens connections: a server opens none.
#[test]
fn only_the_load_generator_sets_ports() {
    for profile in built_in().expect("profiles") {
        let sets_ports = profile
            .settings
            .iter()
            .any(|setting| ["net.ipv4.ip_local_port_range", "net.ipv4.tcp_tw_reuse"].contains(&setting.key.as_str()));
        assert_eq!(sets_ports, profile.name == "load-generator", "{}", profile.name);
    }
}

/// The README has a row for each key: what was measured, or that nothing was.
#[test]
fn the_readme_has_a_row_for_every_key() {
    let readme = fs::read_to_string(concat!(env!("CARGO_MANIFEST_DIR"), "/README.md")).expect("a README");
    for key in KEYS.iter().map(|known| known.key).chain(FOLKLORE.iter().map(|(key, _)| *key)) {
        let row = readme.lines().find(|line| line.starts_with("| ") && line.contains(&format!("`{key}`")));
        assert!(row.is_some_and(|row| row.matches(" | ").count() >= 1), "{key} has no row");
    }
}

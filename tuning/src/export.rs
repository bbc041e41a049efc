//! A profile in the forms of other tools, for those who set machines up with them.

#![forbid(unsafe_code)]

use std::fmt::Write as _;

use crate::machine::Machine;
use crate::persist::service_line;
use crate::plan::{Found, Place, Planned};
use crate::profile::{Profile, Setting};
use crate::table::{Means, Rule};
use crate::value::shown;

/// The sysctl.d file with its comments; what follows from RAM is computed for this machine.
#[must_use]
pub fn sysctl_d(machine: &Machine, profile: &Profile) -> String {
    let line = |line: &str| {
        let setting = line.split_once('=').and_then(|(key, _)| find(profile, key.trim()));
        match setting.filter(|setting| setting.percent_of_ram.is_some()) {
            Some(setting) => format!("{} = {}\n", setting.key, setting.value_on(machine)),
            None => format!("{line}\n"),
        }
    };
    profile.conf.lines().map(line).collect()
}

fn find<'a>(profile: &'a Profile, key: &str) -> Option<&'a Setting> {
    profile.settings.iter().find(|setting| setting.key == key)
}

fn sysctls<'a>(machine: &'a Machine, profile: &'a Profile) -> impl Iterator<Item = (&'a str, String)> + 'a {
    let all = profile.settings.iter().filter(|setting| setting.known.means == Means::Sysctl);
    all.map(|setting| (setting.key.as_str(), setting.value_on(machine)))
}

fn value(profile: &Profile, key: &str) -> Option<String> {
    find(profile, key).map(|setting| setting.value.clone())
}

/// What no other form has a place for.
fn left_out(profile: &Profile, is_in: impl Fn(&str) -> bool) -> String {
    let rest = profile.settings.iter().filter(|setting| setting.known.means != Means::Sysctl && !is_in(&setting.key));
    let keys: Vec<&str> = rest.map(|setting| setting.key.as_str()).collect();
    if keys.is_empty() { String::new() } else { format!("# Not in this form: {}.\n", keys.join(", ")) }
}

/// A profile of TuneD: `/etc/tuned/whimbrel-PROFILE/tuned.conf`, then `tuned-adm profile whimbrel-PROFILE`.
#[must_use]
pub fn tuned(machine: &Machine, profile: &Profile) -> String {
    let name = &profile.name;
    let mut text = format!(
        "# /etc/tuned/whimbrel-{name}/tuned.conf, then: tuned-adm profile whimbrel-{name}\n# TuneD sets values, also where they \
         were higher.\n"
    );
    let is_in = |key: &str| {
        matches!(key, "thp.enabled" | "thp.defrag" | "cpu.governor" | "cpu.idle_latency_us" | "block.scheduler")
    };
    text.push_str(&left_out(profile, is_in));
    let _ = write!(text, "[main]\nsummary={}\n\n[sysctl]\n", profile.title);
    for (key, value) in sysctls(machine, profile) {
        let _ = writeln!(text, "{key}={value}");
    }
    let mut section = |name: &str, lines: &[(&str, Option<String>)]| {
        let lines: Vec<String> =
            lines.iter().filter_map(|(key, value)| Some(format!("{key}={}\n", value.as_ref()?))).collect();
        if !lines.is_empty() {
            let _ = write!(text, "\n[{name}]\n{}", lines.concat());
        }
    };
    section(
        "vm",
        &[
            ("transparent_hugepages", value(profile, "thp.enabled")),
            ("transparent_hugepage.defrag", value(profile, "thp.defrag")),
        ],
    );
    section(
        "cpu",
        &[("governor", value(profile, "cpu.governor")), ("force_latency", value(profile, "cpu.idle_latency_us"))],
    );
    section("disk", &[("elevator", value(profile, "block.scheduler"))]);
    text
}

/// A drop-in of the server's unit.
#[must_use]
pub fn systemd(profile: &Profile) -> String {
    let name = &profile.name;
    let mut text = format!(
        "# /etc/systemd/system/whimbrel.service.d/60-whimbrel-{name}.conf, then: systemctl daemon-reload\n# The sysctls go to \
         /etc/sysctl.d/60-whimbrel-{name}.conf: whimbrel-tune export sysctl.d {name}\n"
    );
    text.push_str(&left_out(profile, |key| service_line(key, "max").is_some()));
    text.push_str("[Service]\n");
    for setting in &profile.settings {
        if let Some((name, value)) = service_line(&setting.key, &setting.value) {
            let _ = writeln!(text, "{name}{value}");
        }
    }
    text
}

/// Tasks of Ansible: a list to include in a play that becomes root.
#[must_use]
pub fn ansible(machine: &Machine, profile: &Profile) -> String {
    let name = &profile.name;
    let mut text = format!(
        "# Tasks for a play with `become: true`; needs the collection ansible.posix. It sets values, also where they were higher.\n\
         {}---\n- name: Sysctls of whimbrel's profile {name}\n  ansible.posix.sysctl:\n    name: \"{{{{ item.name }}}}\"\n    value: \
         \"{{{{ item.value }}}}\"\n    sysctl_file: /etc/sysctl.d/60-whimbrel-{name}.conf\n    sysctl_set: true\n    # A key that \
         the machine does not have is no failure.\n    ignoreerrors: true\n  loop:\n",
        left_out(profile, |key| service_line(key, "max").is_some())
    );
    for (key, value) in sysctls(machine, profile) {
        let _ = writeln!(text, "    - {{ name: {key}, value: \"{value}\" }}");
    }
    let drop_in = systemd(profile);
    let lines = drop_in.lines().filter(|line| !line.starts_with('#')).map(|line| format!("      {line}\n"));
    let folder = "/etc/systemd/system/whimbrel.service.d";
    let _ = write!(
        text,
        "\n- name: Folder of the unit's drop-ins\n  ansible.builtin.file:\n    path: {folder}\n    state: directory\n    mode: \
         \"0755\"\n\n- name: Limits of whimbrel.service\n  ansible.builtin.copy:\n    dest: {folder}/60-whimbrel-{name}.conf\n    mode: \
         \"0644\"\n    content: |\n{}",
        lines.collect::<String>()
    );
    text
}

const SCRIPT: &str = r#"set -u
root=${ROOT:-}
failed=0
put() { # PLACE VALUE
    [ -e "$root$1" ] || { echo "skipped, not here: $1" >&2; return; }
    printf '%s\n' "$2" 2>/dev/null >"$root$1" || { echo "refused: $1 = $2" >&2; failed=1; }
}
change() { # RULE PLACE NUMBER...: raise, lower or widen what is there
    rule=$1 place=$2; shift 2
    [ -e "$root$place" ] || { echo "skipped, not here: $place" >&2; return; }
    new="" same=1 first=1
    for have in $(cat "$root$place"); do
        want=${1:-$have}; [ $# = 0 ] || shift
        case $rule$first in raise*|widen0) test=-gt ;; *) test=-lt ;; esac
        if [ "$want" "$test" "$have" ]; then new="$new $want" same=0; else new="$new $have"; fi
        first=0
    done
    [ "$same" = 1 ] || put "$place" "${new# }"
}
"#;

/// A shell script that does on this machine what `apply` would do. With `all`, also what is done already.
#[must_use]
pub fn script(profile: &Profile, plan: &[Planned], all: bool) -> String {
    let mut text = format!(
        "#!/bin/sh\n# What `whimbrel-tune apply {0}` does, for this machine and to be run as root. It keeps no journal:\n# what \
         it changes, `whimbrel-tune revert` cannot take back.\n{SCRIPT}",
        profile.name
    );
    for planned in plan {
        let Found::Targets(targets) = &planned.found else {
            let _ = writeln!(text, "# Not by this script: {}{}", planned.setting.key, unscripted(&planned.found));
            continue;
        };
        let numbers = planned.wanted.split_whitespace().all(|field| field.parse::<u64>().is_ok());
        let rule = match planned.setting.known.rule {
            _ if !numbers || planned.setting.known.means != Means::Sysctl => "",
            Rule::Exactly => "",
            Rule::AtLeast => "change raise ",
            Rule::AtMost => "change lower ",
            Rule::Widen => "change widen ",
        };
        for target in targets.iter().filter(|target| all || !target.met) {
            let _ = match &target.place {
                Place::File(path) if rule.is_empty() => writeln!(text, "put {path} '{}'", shown(&target.write)),
                Place::File(path) => writeln!(text, "{rule}{path} {}", planned.wanted),
                Place::Ring(nic, direction) => {
                    writeln!(text, "ethtool -G {nic} {direction} {} || failed=1", target.write.trim())
                }
            };
        }
    }
    text.push_str("exit $failed\n");
    text
}

fn unscripted(found: &Found) -> String {
    match found {
        Found::Missing(why) | Found::Unreadable(why) => format!(", {why}"),
        Found::Service { .. } => ", it counts from the server's start on: whimbrel-tune export systemd".to_owned(),
        Found::Advice { remedy, .. } => format!(": {remedy}"),
        Found::Targets(_) => String::new(),
    }
}

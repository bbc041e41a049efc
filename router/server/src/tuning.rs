//! The operating system's settings, of which the server is told a profile (`tuning.profile`): at the start it raises its own soft
//! limits and says what is not as the profile wants it, each once and with the command that mends it. It changes nothing else, and
//! starts all the same. Runs before the shards do.

#![forbid(unsafe_code)]

use std::path::{Path, PathBuf};
use std::sync::OnceLock;

use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
use whimbrel_tune::check::{Checked, ProfileState, Standing, check};
use whimbrel_tune::machine::Machine;
use whimbrel_tune::profile;

/// The profile that this server was told, and where its data lie: once, at the start.
static TOLD: OnceLock<(String, PathBuf)> = OnceLock::new();

/// Says whether there is such a profile, by its name or the path of its file.
pub(crate) fn known_profile(name: &str) -> Result<String, String> {
    profile::load(name, None).map(|_| name.to_owned()).map_err(|error| error.to_string())
}

/// Raises the soft limit of locked memory to the hard one; `serve` does the same with that of open files.
pub(crate) fn raise_locked_memory() {
    let Rlimit { current, maximum } = getrlimit(Resource::Memlock);
    if current != maximum
        && let Err(error) = setrlimit(Resource::Memlock, Rlimit { current: maximum, maximum })
    {
        tracing::warn!(%error, "the soft limit of locked memory stays as it is; raise it with `ulimit -l`");
    }
}

/// How a profile stands on this machine, for this process and the file system of its data. It serialises, for whoever shows it.
pub(crate) fn state(name: &str, data: &Path) -> anyhow::Result<ProfileState> {
    let profile = profile::load(name, None)?;
    let data = data.canonicalize().unwrap_or_else(|_| data.to_owned());
    Ok(check(&Machine::default(), &profile, &data.to_string_lossy()))
}

/// The same of the profile that this server was told, as it is now; absent where it was told none, or where its file is gone since.
pub(crate) fn state_now() -> Option<ProfileState> {
    let (name, data) = TOLD.get()?;
    state(name, data).inspect_err(|error| tracing::warn!(%error, "tuning: the profile cannot be read any more")).ok()
}

/// What mends a profile: of one setting its own command, of several the one for all; where they differ, what lists them all.
pub(crate) fn mend(state: &ProfileState) -> Option<String> {
    let short = state.shortfalls();
    let (first, rest) = short.split_first()?;
    // The name by which it was loaded, which may be a path, stands in the remedies only.
    let all = |short: &Checked| Some(short.remedy.strip_suffix(&format!(" --only {}", short.key))?.to_owned());
    match all(first) {
        _ if rest.is_empty() => Some(first.remedy.clone()),
        Some(apply) if rest.iter().all(|short| all(short).as_ref() == Some(&apply)) => Some(apply),
        _ => Some(format!("whimbrel-tune check {}", TOLD.get().map_or(&state.profile, |(name, _)| name))),
    }
}

/// Writes into the log what is not as the profile wants it.
pub(crate) fn report(name: &str, data: &Path) -> anyhow::Result<()> {
    let state = state(name, data)?;
    TOLD.get_or_init(|| (name.to_owned(), data.to_owned()));
    for short in state.shortfalls() {
        let (key, current, wanted, remedy) = (&short.key, &short.current, &short.wanted, &short.remedy);
        let severity = short.severity;
        match short.standing {
            Standing::Unreadable => tracing::warn!(%key, "tuning: it cannot be read: {remedy}"),
            Standing::Short | Standing::Met | Standing::Missing => {
                tracing::warn!(%key, %current, %wanted, ?severity, "tuning: not as {name} wants it; to mend it: {remedy}");
            }
        }
    }
    let (met, short, missing) = (state.met, state.short, state.missing);
    tracing::info!(profile = name, met, short, missing, "tuning: the profile was checked");
    Ok(())
}

#[cfg(test)]
mod tests {
    use whimbrel_tune::table::Severity;

    use super::*;

    #[test]
    fn what_mends_it_is_one_command() {
        let state = |remedies: &[&str]| {
            let one = |remedy: &&str| Checked {
                key: remedy.rsplit(' ').next().unwrap().to_owned(),
                standing: Standing::Short,
                severity: Severity::Minor,
                wanted: String::new(),
                current: String::new(),
                places: 1,
                remedy: (*remedy).to_owned(),
            };
            let settings: Vec<_> = remedies.iter().map(one).collect();
            ProfileState { profile: "own".to_owned(), met: 0, short: settings.len(), missing: 0, settings }
        };
        let (a, b) = ("whimbrel-tune apply /etc/own.conf --only a", "whimbrel-tune apply /etc/own.conf --only b");
        assert_eq!(mend(&state(&[])), None);
        assert_eq!(mend(&state(&[a])).as_deref(), Some(a));
        assert_eq!(mend(&state(&[a, b])).as_deref(), Some("whimbrel-tune apply /etc/own.conf"));
        let other = "mount -o remount,noatime /";
        assert_eq!(mend(&state(&[a, other])).as_deref(), Some("whimbrel-tune check own"));
    }
}

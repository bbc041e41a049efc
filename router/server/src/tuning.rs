//! The operating system's settings, of which the server is told a profile (`tuning.profile`): at the start it raises its own soft
//! limits and says what is not as the profile wants it, each once and with the command that mends it. It changes nothing else, and
//! starts all the same. Runs before the shards do.

#![forbid(unsafe_code)]

use std::path::Path;

use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
use whimbrel_tune::check::{ProfileState, Standing, check};
use whimbrel_tune::machine::Machine;
use whimbrel_tune::profile;

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

/// Writes into the log what is not as the profile wants it.
pub(crate) fn report(name: &str, data: &Path) -> anyhow::Result<()> {
    let state = state(name, data)?;
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

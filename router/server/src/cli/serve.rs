//! `whimbrel serve`: from options to a server's settings.

use std::process::ExitCode;

use anyhow::Context;
use rustix::process::{Signal, set_parent_process_death_signal};

use crate::cli::{ServeArgs, report};
use crate::config::{Overrides, Settings};

pub(super) fn run(args: ServeArgs) -> anyhow::Result<ExitCode> {
    if args.die_with_parent {
        set_parent_process_death_signal(Some(Signal::KILL)).context("ask to end with the parent process")?;
    }
    let overrides = Overrides {
        data: args.data,
        listen: args.listen,
        admin: args.admin,
        shards: args.shards,
        cpus: args.cpus,
        dev: args.dev,
    };
    let settings = match Settings::load(args.config.as_deref(), overrides) {
        Ok(settings) => settings,
        Err(error) => {
            // What is wrong is how it was called, and calling it again as it was cannot help.
            report(&error);
            return Ok(ExitCode::from(2));
        }
    };
    let code = crate::serve::run(settings)?;
    Ok(u8::try_from(code).map_or(ExitCode::FAILURE, ExitCode::from))
}

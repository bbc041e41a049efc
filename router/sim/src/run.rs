//! One run of a seed, and what is known after it.

use std::cell::RefCell;
use std::panic::{self, AssertUnwindSafe, PanicHookInfo};
use std::sync::Once;

use crate::check::{Check, Violation};
use crate::plant::Plant;
use crate::stats::Stats;
use crate::trace::Trace;
use crate::world::World;

/// What to run.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Run {
    /// Decides everything.
    pub seed: u64,
    /// Inputs that the shards are given before all faults end and the world has to come to rest.
    pub steps: u64,
    /// A bug to plant.
    pub plant: Option<Plant>,
}

/// Steps of a run unless something else is said.
pub const DEFAULT_STEPS: u64 = 2000;

impl Run {
    /// The command that repeats it.
    pub fn command(&self) -> String {
        let plant = self.plant.map_or_else(String::new, |plant| format!(" --plant {}", plant.name()));
        format!("whimbrel-sim --seed {} --steps {}{plant}", self.seed, self.steps)
    }
}

/// What a run gave.
#[derive(Clone, Debug)]
pub struct Outcome {
    /// The first check that failed.
    pub violation: Option<Violation>,
    /// What happened.
    pub stats: Stats,
    /// Of the whole story: the same run has the same.
    pub digest: u64,
    /// Its last lines.
    pub story: String,
    /// How often the planted bug fired.
    pub fired: u64,
}

thread_local! {
    /// Of the run under way on this thread, for the one who has to tell of its panic.
    static UNDER_WAY: RefCell<Option<(Run, Trace)>> = const { RefCell::new(None) };
    static LAST_PANIC: RefCell<String> = const { RefCell::new(String::new()) };
}

/// Runs a seed, telling `trace`.
pub fn run(what: Run, trace: Trace) -> Outcome {
    quiet_panics();
    UNDER_WAY.set(Some((what, trace.clone())));
    let mut world = World::new(what, trace.clone());
    let result = panic::catch_unwind(AssertUnwindSafe(|| world.run(what.steps)));
    UNDER_WAY.set(None);
    let violation = match result {
        Ok(result) => result.err(),
        Err(_) => Some(Violation::new(Check::Panic, LAST_PANIC.take())),
    };
    let (stats, fired) = world.end();
    Outcome { violation, stats, digest: trace.digest(), story: trace.story(), fired }
}

/// The failure of a run whose process is about to end, as a program that aborts on panic must tell it.
pub fn dying_words(info: &PanicHookInfo<'_>) -> Option<(Run, String)> {
    let (run, trace) = UNDER_WAY.try_with(|under_way| under_way.take()).ok()??;
    let text = failure(&run, &Violation::new(Check::Panic, panic_text(info)), &trace.story());
    Some((run, text))
}

/// A failure, told in full.
pub fn failure(run: &Run, violation: &Violation, story: &str) -> String {
    format!("{story}seed {} violates {violation}\nrepeat: {}\n", run.seed, run.command())
}

fn panic_text(info: &PanicHookInfo<'_>) -> String {
    let payload = info.payload();
    let what = payload.downcast_ref::<&str>().copied().or_else(|| payload.downcast_ref::<String>().map(String::as_str));
    let what = what.unwrap_or("a panic without words");
    info.location().map_or_else(|| what.to_owned(), |at| format!("{what} ({}:{})", at.file(), at.line()))
}

/// Panics of a run are findings and told as such; all others go on to whoever told them before.
fn quiet_panics() {
    static ONCE: Once = Once::new();
    ONCE.call_once(|| {
        let others = panic::take_hook();
        panic::set_hook(Box::new(move |info| {
            let ours = UNDER_WAY.try_with(|it| it.try_borrow().is_ok_and(|it| it.is_some())).unwrap_or(false);
            if ours && cfg!(panic = "unwind") {
                LAST_PANIC.set(panic_text(info));
            } else {
                others(info);
            }
        }));
    });
}

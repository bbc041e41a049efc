//! A bar on standard error while something takes long, if that is a terminal; and an end when somebody asks for it.

use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use indicatif::{ProgressBar, ProgressStyle};
use signal_hook::consts::{SIGHUP, SIGINT, SIGTERM};

/// In a narrower terminal a bar is a number.
const COLUMNS: u16 = 80;

/// Whether the process was asked to end. A second signal ends it at once.
#[derive(Clone, Debug)]
pub(super) struct Interrupt(Arc<AtomicBool>);

impl Interrupt {
    pub(super) fn listen() -> io::Result<Interrupt> {
        let asked = Arc::new(AtomicBool::new(false));
        for signal in [SIGINT, SIGTERM, SIGHUP] {
            // In this order: the first one sets what the second one looks at.
            signal_hook::flag::register_conditional_shutdown(signal, 1, Arc::clone(&asked))?;
            signal_hook::flag::register(signal, Arc::clone(&asked))?;
        }
        Ok(Interrupt(asked))
    }

    pub(super) fn asked(&self) -> bool {
        self.0.load(Ordering::Relaxed)
    }
}

/// A bar over a number of bytes.
pub(super) fn bytes(total: u64, what: &str) -> ProgressBar {
    bar(total, what, "{msg} [{bar:20}] {bytes}/{total_bytes} {bytes_per_sec}, {eta} left")
}

/// A bar over a time, in milliseconds.
pub(super) fn time(total: Duration) -> ProgressBar {
    bar(total.as_millis() as u64, "", "[{bar:20}] {percent} %, {msg}")
}

fn bar(total: u64, what: &str, template: &str) -> ProgressBar {
    // One line, or it would be drawn over what stands above it.
    let columns = rustix::termios::tcgetwinsize(io::stderr()).map_or(0, |size| size.ws_col);
    let template = if columns < COLUMNS { "{msg} {percent} %" } else { template };
    let style = ProgressStyle::with_template(template).expect("a valid template").progress_chars("##-");
    ProgressBar::new(total).with_style(style).with_message(what.to_owned())
}

//! The story of a run: a line for all that happens. The last lines are kept for the one who has to find out why, all of them
//! run through a digest that tells two runs apart, and all are written to a file on demand.

use std::cell::RefCell;
use std::collections::VecDeque;
use std::fmt;
use std::io::{self, Write};
use std::rc::Rc;

/// Lines that a failure prints.
const KEPT_LINES: usize = 60;

/// A handle on the story; clones tell the same one.
#[derive(Clone, Default)]
pub struct Trace {
    inner: Rc<RefCell<Inner>>,
}

#[derive(Default)]
struct Inner {
    now_us: u64,
    last: VecDeque<String>,
    digest: Digest,
    file: Option<Box<dyn Write>>,
    file_error: Option<io::Error>,
}

impl Trace {
    /// A story that is also written to `file`.
    pub fn to_file(file: Box<dyn Write>) -> Trace {
        let trace = Trace::default();
        trace.inner.borrow_mut().file = Some(file);
        trace
    }

    /// Sets the time that stands before the lines from now on.
    pub fn at(&self, now_us: u64) {
        self.inner.borrow_mut().now_us = now_us;
    }

    /// Tells a line.
    pub fn line(&self, what: fmt::Arguments<'_>) {
        let inner = &mut *self.inner.borrow_mut();
        let mut line =
            if inner.last.len() == KEPT_LINES { inner.last.pop_front().unwrap_or_default() } else { String::new() };
        line.clear();
        let _ = fmt::Write::write_fmt(&mut line, format_args!("{:>10} {what}\n", inner.now_us));
        inner.digest.add(line.as_bytes());
        if let Some(file) = &mut inner.file
            && let Err(error) = file.write_all(line.as_bytes())
        {
            inner.file_error = Some(error);
            inner.file = None;
        }
        inner.last.push_back(line);
    }

    /// Of all lines so far.
    pub fn digest(&self) -> u64 {
        self.inner.borrow().digest.0
    }

    /// The last lines, oldest first.
    pub fn story(&self) -> String {
        match self.inner.try_borrow() {
            Ok(inner) => inner.last.iter().map(String::as_str).collect(),
            // A panic while a line was told.
            Err(_) => String::new(),
        }
    }

    /// Writes out what a file still lacks.
    ///
    /// # Errors
    /// The first one that the file gave.
    pub fn finish(&self) -> io::Result<()> {
        let inner = &mut *self.inner.borrow_mut();
        if let Some(error) = inner.file_error.take() {
            return Err(error);
        }
        inner.file.as_mut().map_or(Ok(()), |file| file.flush())
    }
}

/// FNV-1a, 64 bits: it has to tell runs apart, not to withstand anybody.
pub(crate) struct Digest(pub(crate) u64);

impl Default for Digest {
    fn default() -> Self {
        Digest(0xcbf2_9ce4_8422_2325)
    }
}

impl Digest {
    pub(crate) fn add(&mut self, bytes: &[u8]) {
        for &byte in bytes {
            self.0 = (self.0 ^ u64::from(byte)).wrapping_mul(0x0100_0000_01b3);
        }
    }

    pub(crate) fn of(bytes: &[u8]) -> u64 {
        let mut digest = Digest::default();
        digest.add(bytes);
        digest.0
    }
}

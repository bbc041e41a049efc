//! Lies that the file system can be made to tell, to see that they are found out.

use clap::ValueEnum;

/// A lie.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(crate) enum Plant {
    /// A later flush of a file than its first is reported and nothing is made stable
    Fsync,
    /// A flush of a directory with segments of the log is reported and no name is made stable
    Fsyncdir,
    /// A later flush of a file than its first is reported, and one sector of what was written is not stable
    Torn,
}

impl Plant {
    /// All of them.
    pub(crate) const ALL: [Plant; 3] = [Plant::Fsync, Plant::Fsyncdir, Plant::Torn];

    /// As it is written on the command line.
    pub(crate) fn name(self) -> &'static str {
        match self {
            Plant::Fsync => "fsync",
            Plant::Fsyncdir => "fsyncdir",
            Plant::Torn => "torn",
        }
    }
}

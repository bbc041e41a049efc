//! The names of what can go wrong, and how a failure is told.

use std::fmt;

/// What a run is checked for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Check {
    /// Acknowledged, and not delivered to a device that had to get it.
    Lost,
    /// Delivered twice above the floor, or one send stored at two places of its chat.
    Duplicate,
    /// Delivered, but never sent like that.
    Phantom,
    /// Two devices saw one chat in different orders, or deliveries came in another order than their numbers say.
    OutOfOrder,
    /// A number is missing in a sequence that is dense by promise.
    Gap,
    /// Everybody acknowledged everything, and something still waits.
    InboxNotEmpty,
    /// Everybody acknowledged everything, the time is up, and bytes of a message are still on a disk.
    NotForgotten,
    /// Healed, and yet somebody still waits for something after a bounded time.
    Stuck,
    /// A refusal or a status that the model does not allow.
    WrongAnswer,
    /// More deliveries unacknowledged than the node itself allowed.
    Credit,
    /// The node refuses to start, or to serve a part, on a disk that did only what disks may do.
    Start,
    /// The node starts on a disk that does not hold what was written to it, and does not say so.
    Unnoticed,
    /// An assertion of the code under test.
    Panic,
}

impl Check {
    /// All of them.
    pub const ALL: [Check; 13] = [
        Check::Lost,
        Check::Duplicate,
        Check::Phantom,
        Check::OutOfOrder,
        Check::Gap,
        Check::InboxNotEmpty,
        Check::NotForgotten,
        Check::Stuck,
        Check::WrongAnswer,
        Check::Credit,
        Check::Start,
        Check::Unnoticed,
        Check::Panic,
    ];

    /// As it is printed.
    pub fn name(self) -> &'static str {
        match self {
            Check::Lost => "lost",
            Check::Duplicate => "duplicate",
            Check::Phantom => "phantom",
            Check::OutOfOrder => "out_of_order",
            Check::Gap => "gap",
            Check::InboxNotEmpty => "inbox_not_empty",
            Check::NotForgotten => "not_forgotten",
            Check::Stuck => "stuck",
            Check::WrongAnswer => "wrong_answer",
            Check::Credit => "credit",
            Check::Start => "start",
            Check::Unnoticed => "unnoticed",
            Check::Panic => "panic",
        }
    }
}

impl fmt::Display for Check {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

/// A check that failed, and how.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Violation {
    /// Which.
    pub check: Check,
    /// In words.
    pub text: String,
}

impl Violation {
    /// A failure of `check`.
    pub fn new(check: Check, text: impl Into<String>) -> Violation {
        Violation { check, text: text.into() }
    }
}

impl fmt::Display for Violation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {}", self.check, self.text)
    }
}

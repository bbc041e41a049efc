//! What a person types, read on the main thread; what it leads to happens on another.

use std::io::{self, BufRead};
use std::sync::mpsc::{self, Sender};
use std::sync::{Arc, Mutex, PoisonError};

use rustyline::error::ReadlineError;
use rustyline::{
    Cmd, ConditionalEventHandler, Config, DefaultEditor, Event, EventContext, EventHandler, KeyCode, KeyEvent,
    Modifiers, Movement, RepeatCount,
};

use crate::cli::chat::lines::Typed;

/// Something typed.
#[derive(Debug)]
pub(super) enum Input {
    /// A line with something in it. Dropped together with what may come with it once it is dealt with.
    Line(String, Option<Sender<()>>),
    /// Ctrl-C, Ctrl-D or `/quit`.
    Leave,
    /// The input that is no terminal has ended.
    End,
}

/// Takes what was typed; `false` when nobody wants any more.
pub(super) type Take = dyn Fn(Input) -> bool + Send + Sync;

/// What stands before the line that is being typed. The conversation sets it, the next line after a command shows it.
#[derive(Clone, Default)]
pub(super) struct Prompt(Arc<Mutex<String>>);

impl Prompt {
    pub(super) fn set(&self, text: String) {
        *self.0.lock().unwrap_or_else(PoisonError::into_inner) = text;
    }

    fn get(&self) -> String {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }
}

/// An editor of lines in a terminal.
pub(super) fn editor() -> anyhow::Result<DefaultEditor> {
    Ok(DefaultEditor::with_config(Config::builder().auto_add_history(true).build())?)
}

/// Reads lines from a terminal and hands them on until nobody takes them or the person leaves.
pub(super) fn read_terminal(editor: &mut DefaultEditor, prompt: &Prompt, take: Arc<Take>) -> anyhow::Result<()> {
    let enter = OnEnter { take: Arc::clone(&take) };
    editor.bind_sequence(KeyEvent(KeyCode::Enter, Modifiers::NONE), EventHandler::Conditional(Box::new(enter)));
    loop {
        match editor.readline(&prompt.get()) {
            Ok(line) => {
                if !hand_on(line, &*take) {
                    return Ok(());
                }
            }
            Err(ReadlineError::Interrupted | ReadlineError::Eof) => {
                take(Input::Leave);
                return Ok(());
            }
            Err(error) => return Err(error.into()),
        }
    }
}

/// Reads lines from what is no terminal.
pub(super) fn read_plain(take: &Take) -> anyhow::Result<()> {
    for line in io::stdin().lock().lines() {
        if !hand_on(line?, take) {
            return Ok(());
        }
    }
    take(Input::End);
    Ok(())
}

/// Whether there is a next line to read.
fn hand_on(line: String, take: &Take) -> bool {
    if Typed::parse(&line) == Typed::Quit {
        take(Input::Leave);
        return false;
    }
    if line.trim().is_empty() {
        return true;
    }
    // A command may change the prompt: the next one is read when it is dealt with.
    let (dealt_with, waited_for) = mpsc::channel();
    let taken = take(Input::Line(line, Some(dealt_with)));
    let _ = waited_for.recv();
    taken
}

/// Enter takes a message off the line at once: it comes back above, with a mark of what became of it. Commands are
/// accepted as lines, and so stay visible and let the prompt change.
struct OnEnter {
    take: Arc<Take>,
}

impl ConditionalEventHandler for OnEnter {
    fn handle(&self, _: &Event, _: RepeatCount, _: bool, context: &EventContext<'_>) -> Option<Cmd> {
        let line = context.line();
        match Typed::parse(line) {
            _ if line.trim().is_empty() => Some(Cmd::Noop),
            Typed::Message(_) if (self.take)(Input::Line(line.to_owned(), None)) => {
                Some(Cmd::Kill(Movement::WholeBuffer))
            }
            _ => None,
        }
    }
}

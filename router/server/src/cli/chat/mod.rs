//! `whimbrel chat`: a person, or a program through a pipe, talks. The keyboard and the conversation have a thread each, for
//! both have to be waited for.

mod conversation;
mod keyboard;
mod lines;
mod screen;

use std::io::{self, IsTerminal, Write};
use std::process::ExitCode;
use std::sync::Arc;
use std::sync::mpsc::{self, Receiver};
use std::thread;

use anyhow::anyhow;
use rustix::termios::{OptionalActions, Termios, tcgetattr, tcsetattr};

use crate::cli::access::Access;
use crate::cli::args::Target;
use crate::cli::chat::conversation::{Conversation, Outcome, Parts};
use crate::cli::chat::keyboard::{Input, Prompt, Take};
use crate::cli::chat::screen::Screen;
use crate::cli::link::Link;
use crate::cli::output::{Failure, Out};
use crate::cli::state::DeviceState;
use crate::cli::{ChatArgs, report};

pub(super) fn run(args: &ChatArgs) -> anyhow::Result<ExitCode> {
    let access = Access::of(&args.identity)?;
    let state = access.open_state(&args.identity)?;
    let link = Link::new(&access, state.memory())?;
    let waker = link.waker();
    let (sender, inputs) = mpsc::channel();
    let take: Arc<Take> = Arc::new(move |input| {
        let taken = sender.send(input).is_ok();
        waker.wake();
        taken
    });
    let begin = Begin { access, state, link, inputs, target: args.whither.target() };
    if io::stdin().is_terminal() && io::stdout().is_terminal() { in_terminal(begin, take) } else { plain(begin, take) }
}

/// A conversation that has no screen yet.
struct Begin {
    access: Access,
    state: DeviceState,
    link: Link,
    inputs: Receiver<Input>,
    target: Option<Target>,
}

impl Begin {
    fn with(self, screen: Screen, prompt: Prompt) -> Conversation {
        let Begin { access, state, link, inputs, target } = self;
        Conversation::new(Parts { access, state, link, screen, prompt, inputs, target })
    }
}

fn in_terminal(begin: Begin, take: Arc<Take>) -> anyhow::Result<ExitCode> {
    let user = begin.access.user.clone();
    let mut editor = keyboard::editor()?;
    let screen = Screen::Terminal(Box::new(editor.create_external_printer()?));
    let prompt = Prompt::default();
    let mut conversation = begin.with(screen, prompt.clone());
    let terminal = tcgetattr(io::stdin())?;
    let talk = thread::spawn(move || conversation.run().unwrap_or_else(|error| end_in_terminal(&terminal, &error)));
    keyboard::read_terminal(&mut editor, &prompt, take)?;
    // What is shown from here on is written at once and not above a line that is being typed.
    drop(editor);
    let Outcome { kept, .. } = talk.join().map_err(|_| anyhow!("the conversation's thread panicked"))?;
    if kept > 0 {
        Out::stdout().line(&kept_line(kept, &user))?;
    }
    Ok(ExitCode::SUCCESS)
}

/// Ends the process although the keyboard is being waited for, with the terminal as it was found.
fn end_in_terminal(terminal: &Termios, error: &anyhow::Error) -> ! {
    // There is nobody left to tell of another failure.
    let _ = tcsetattr(io::stdin(), OptionalActions::Now, terminal);
    let _ = io::stdout().write_all(b"\r\x1b[K");
    let _ = io::stdout().flush();
    report(error);
    std::process::exit(1)
}

fn plain(begin: Begin, take: Arc<Take>) -> anyhow::Result<ExitCode> {
    let remedy = begin.access.serve_command();
    let user = begin.access.user.clone();
    let mut conversation = begin.with(Screen::Plain(Out::stdout()), Prompt::default());
    // Not joined: it may wait for input that never comes.
    thread::spawn(move || {
        if let Err(error) = keyboard::read_plain(&*take) {
            report(&error);
            take(Input::End);
        }
    });
    match conversation.run()? {
        Outcome { kept: 0, failed: 0 } => Ok(ExitCode::SUCCESS),
        Outcome { kept: 0, failed } => Err(Failure::new(format!("{} not sent", lines::messages(failed))).into()),
        Outcome { kept, .. } => {
            Err(Failure::with_remedy(kept_line(kept, &user), format!("start the server: {remedy}")).into())
        }
    }
}

fn kept_line(kept: usize, user: &str) -> String {
    format!("{} not stored yet: kept, and sent when {user} chats here again", lines::messages(kept))
}

//! `whimbrel group`: making a group and looking at one.

use std::process::ExitCode;
use std::time::{Duration, Instant};

use serde_json::json;

use crate::cli::access::Access;
use crate::cli::args::Target;
use crate::cli::link::{ChatFacts, Event, Link, Refusal};
use crate::cli::output::{Failure, Out, chat_text, printable};
use crate::cli::state::DeviceState;
use crate::cli::{GroupCommand, GroupCreateArgs, GroupShowArgs, Identity, problem};

pub(super) fn run(command: &GroupCommand) -> anyhow::Result<ExitCode> {
    match command {
        GroupCommand::Create(args) => create(args),
        GroupCommand::Show(args) => show(args),
    }
}

fn create(args: &GroupCreateArgs) -> anyhow::Result<ExitCode> {
    let (access, _state, mut link) = log_in(&args.identity, args.timeout)?;
    let question = link.create_group(&args.title, &args.members)?;
    match answer(&mut link, &access, question, args.timeout)? {
        Ok(facts) if args.json => Out::stdout().json(&as_json(&facts))?,
        Ok(facts) => Out::stdout().line(&chat_text(facts.chat))?,
        Err(refusal) => return Err(not_created(&access, args, &refusal).into()),
    }
    Ok(ExitCode::SUCCESS)
}

fn show(args: &GroupShowArgs) -> anyhow::Result<ExitCode> {
    let (access, _state, mut link) = log_in(&args.identity, args.timeout)?;
    let question = link.chat_info(args.chat);
    let mut out = Out::stdout();
    match answer(&mut link, &access, question, args.timeout)? {
        Ok(facts) if args.json => out.json(&as_json(&facts))?,
        Ok(facts) => {
            out.line(&format!("chat:     {}", chat_text(facts.chat)))?;
            out.line(&format!("title:    {}", printable(&facts.title)))?;
            out.line(&format!("members:  {}", facts.members.join(", ")))?;
            out.line(&format!("last_seq: {}", facts.last_seq))?;
        }
        Err(refusal) => return Err(problem::chat(&access, &Target::Chat(chat_text(args.chat)), &refusal).into()),
    }
    Ok(ExitCode::SUCCESS)
}

/// The state is held so that no other process is this device meanwhile.
fn log_in(identity: &Identity, timeout: Duration) -> anyhow::Result<(Access, DeviceState, Link)> {
    let access = Access::of(identity)?;
    let state = access.open_state(identity)?;
    let mut link = Link::new(&access, state.memory())?;
    link.log_in(timeout)?;
    Ok((access, state, link))
}

/// Waits for the answer to a question about a chat.
fn answer(
    link: &mut Link,
    access: &Access,
    question: u64,
    timeout: Duration,
) -> anyhow::Result<Result<ChatFacts, Refusal>> {
    let until = Instant::now() + timeout;
    loop {
        match link.wait(Some(until))? {
            Some(Event::Chat { correlation, facts }) if correlation == question => return Ok(Ok(facts)),
            Some(Event::NoAnswer { correlation, refusal }) if correlation == question => return Ok(Err(refusal)),
            Some(Event::Refused(refusal)) => return Err(problem::login(access, &refusal)),
            Some(_) => {}
            None if Instant::now() >= until => return Err(problem::timed_out("no answer came", timeout).into()),
            None => {}
        }
    }
}

fn not_created(access: &Access, args: &GroupCreateArgs, refusal: &Refusal) -> Failure {
    // Which of the members it is, the server says in its detail.
    let unknown = args.members.iter().find(|member| {
        args.members.len() == 1
            || refusal
                .detail
                .split_whitespace()
                .any(|word| word.trim_matches(['`', '"', '\'', ',', ':']) == member.as_str())
    });
    match unknown {
        Some(member) if refusal.code == Some(whimbrel_wire::Code::UserUnknown) => {
            problem::chat(access, &Target::User(member.clone()), refusal)
        }
        _ => Failure::with_remedy(
            format!("the group was not made: {}", problem::reason(refusal)),
            format!("each member needs a device; a first login makes one: {}", access.register_command("MEMBER")),
        ),
    }
}

fn as_json(facts: &ChatFacts) -> serde_json::Value {
    json!({
        "chat": chat_text(facts.chat),
        "title": facts.title,
        "members": facts.members,
        "last_seq": facts.last_seq,
        "created": facts.created,
        "time_ms": facts.time_ms,
    })
}

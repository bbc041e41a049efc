//! What a device remembers between two processes: how far it has read, the number of its next send, the messages that no
//! answer came for, and what its chats are called. It is on disk before the server is told: an acknowledgement makes the
//! server forget a message, and a number that was sent once must never stand for another message.
//!
//! One file a device, replaced whole, and a lock beside it, so that two processes cannot be the same device at once.

use std::collections::BTreeMap;
use std::fs::{self, File, OpenOptions};
use std::io::{self, Read, Write};
use std::path::{Path, PathBuf};

use anyhow::Context;
use rustix::fs::{FlockOperation, flock};
use serde::{Deserialize, Serialize};
use whimbrel_client::SendNumber;

use crate::cli::args::Target;
use crate::cli::output::Failure;

/// Layout of the file.
const VERSION: u32 = 1;

/// The state of one device, held by this process alone.
pub(super) struct DeviceState {
    path: PathBuf,
    contents: Contents,
    /// Holds the lock as long as it is open.
    _lock: File,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Contents {
    version: u32,
    user: String,
    device: u32,
    /// All deliveries up to this one were shown.
    floor: u64,
    /// Above every number that was ever sent.
    next_client_seq: u64,
    /// In the order of their numbers.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    outgoing: Vec<Outgoing>,
    /// In the order in which they were typed.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    drafts: Vec<Draft>,
    /// By their ids in hexadecimal digits.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    chats: BTreeMap<String, KnownChat>,
}

/// Where a device goes on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Memory {
    /// All deliveries up to this one were shown.
    pub(super) floor: u64,
    /// Above every number that was ever sent.
    pub(super) next_client_seq: u64,
}

impl Memory {
    /// Of a device that was never there before.
    pub(super) const NEW: Memory = Memory { floor: 0, next_client_seq: 1 };
}

/// A message that was given a number, and no final answer yet.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Outgoing {
    pub(super) client_seq: u64,
    pub(super) prev: u64,
    /// In hexadecimal digits.
    pub(super) chat: String,
    pub(super) to: Target,
    pub(super) text: String,
}

impl Outgoing {
    /// What it was sent under.
    pub(super) fn number(&self) -> SendNumber {
        SendNumber { client_seq: self.client_seq, prev: self.prev }
    }
}

/// A message whose chat's id is not known yet: no server was there to ask.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Draft {
    pub(super) to: Target,
    pub(super) text: String,
}

/// What a person calls a chat.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct KnownChat {
    pub(super) group: bool,
    /// Of a 1:1 chat the other one, of a group its title.
    pub(super) name: String,
}

impl DeviceState {
    /// The device's state in `dir`, a new one if there is none. Fails if another process holds it.
    pub(super) fn open(dir: &Path, user: &str, device: u32) -> anyhow::Result<DeviceState> {
        fs::create_dir_all(dir).map_err(|error| {
            Failure::with_remedy(
                format!("make {}: {error}", dir.display()),
                "name a directory that you may write: --state DIR",
            )
        })?;
        let lock = lock(&dir.join(format!("{user}.{device}.lock")), user, device)?;
        let path = dir.join(format!("{user}.{device}.json"));
        let contents = match fs::read_to_string(&path) {
            Ok(text) => parse(&text, user, device).map_err(|why| {
                Failure::with_remedy(
                    format!("{} is no device state that this version reads: {why}", path.display()),
                    format!("to start over as a new device: --device {}", device.saturating_add(1)),
                )
            })?,
            Err(error) if error.kind() == io::ErrorKind::NotFound => Contents::new(user, device),
            Err(error) => return Err(error).with_context(|| format!("read {}", path.display())),
        };
        Ok(DeviceState { path, contents, _lock: lock })
    }

    pub(super) fn floor(&self) -> u64 {
        self.contents.floor
    }

    /// What a login and the numbers of sends go on from.
    pub(super) fn memory(&self) -> Memory {
        Memory { floor: self.contents.floor, next_client_seq: self.contents.next_client_seq }
    }

    /// Sends that were not answered.
    pub(super) fn outgoing(&self) -> &[Outgoing] {
        &self.contents.outgoing
    }

    /// Messages without a number.
    pub(super) fn drafts(&self) -> &[Draft] {
        &self.contents.drafts
    }

    /// What a chat is called, if this device has heard.
    pub(super) fn chat(&self, chat: &str) -> Option<&KnownChat> {
        self.contents.chats.get(chat)
    }

    /// Notes that everything up to `floor` was shown. On disk when this returns.
    pub(super) fn shown(&mut self, floor: u64) -> anyhow::Result<()> {
        if floor <= self.contents.floor {
            return Ok(());
        }
        self.change(|contents| contents.floor = floor)
    }

    /// Notes that the server's inbox ends at `head`, before what was shown: deliveries go on from there.
    pub(super) fn inbox_lost(&mut self, head: u64) -> anyhow::Result<()> {
        self.change(|contents| contents.floor = contents.floor.min(head))
    }

    /// Notes that `client_seq` was used. On disk when this returns.
    pub(super) fn used(&mut self, client_seq: u64) -> anyhow::Result<()> {
        self.change(|contents| contents.next_client_seq = contents.next_client_seq.max(client_seq + 1))
    }

    /// Notes a message that is about to be sent. On disk when this returns.
    pub(super) fn sending(&mut self, message: Outgoing) -> anyhow::Result<()> {
        self.change(|contents| {
            contents.next_client_seq = contents.next_client_seq.max(message.client_seq + 1);
            contents.outgoing.push(message);
        })
    }

    /// Forgets a message that was answered for good.
    pub(super) fn answered(&mut self, client_seq: u64) -> anyhow::Result<()> {
        if !self.contents.outgoing.iter().any(|message| message.client_seq == client_seq) {
            return Ok(());
        }
        self.change(|contents| contents.outgoing.retain(|message| message.client_seq != client_seq))
    }

    /// Notes a message whose chat is not known yet.
    pub(super) fn draft(&mut self, draft: Draft) -> anyhow::Result<()> {
        self.change(|contents| contents.drafts.push(draft))
    }

    /// The first message to `to` that has no number.
    pub(super) fn next_draft(&self, to: &Target) -> Option<&Draft> {
        self.contents.drafts.iter().find(|draft| draft.to == *to)
    }

    /// Notes that a draft has got its number: the first one to its target.
    pub(super) fn sending_draft(&mut self, message: Outgoing) -> anyhow::Result<()> {
        if let Some(first) = self.contents.drafts.iter().position(|draft| draft.to == message.to) {
            self.contents.drafts.remove(first);
        }
        self.sending(message)
    }

    /// Forgets the messages to `to` that have no number. Returns them.
    pub(super) fn drop_drafts(&mut self, to: &Target) -> anyhow::Result<Vec<Draft>> {
        let (dropped, kept) = self.contents.drafts.iter().cloned().partition::<Vec<_>, _>(|draft| draft.to == *to);
        if !dropped.is_empty() {
            self.change(|contents| contents.drafts = kept)?;
        }
        Ok(dropped)
    }

    /// Notes what a chat is called.
    pub(super) fn name_chat(&mut self, chat: String, known: KnownChat) -> anyhow::Result<()> {
        if self.contents.chats.get(&chat) == Some(&known) {
            return Ok(());
        }
        self.change(|contents| {
            contents.chats.insert(chat, known);
        })
    }

    fn change(&mut self, change: impl FnOnce(&mut Contents)) -> anyhow::Result<()> {
        change(&mut self.contents);
        write(&self.path, &self.contents).with_context(|| format!("write {}", self.path.display()))
    }
}

impl Contents {
    fn new(user: &str, device: u32) -> Contents {
        Contents {
            version: VERSION,
            user: user.to_owned(),
            device,
            floor: Memory::NEW.floor,
            next_client_seq: Memory::NEW.next_client_seq,
            outgoing: Vec::new(),
            drafts: Vec::new(),
            chats: BTreeMap::new(),
        }
    }
}

fn parse(text: &str, user: &str, device: u32) -> Result<Contents, String> {
    #[derive(Deserialize)]
    struct Head {
        version: u32,
    }
    let head: Head = serde_json::from_str(text).map_err(|error| error.to_string())?;
    if head.version != VERSION {
        return Err(format!("it has version {}, expected is {VERSION}", head.version));
    }
    let contents: Contents = serde_json::from_str(text).map_err(|error| error.to_string())?;
    if contents.user != user || contents.device != device {
        return Err(format!("it is of {}'s device {}", contents.user, contents.device));
    }
    Ok(contents)
}

/// Whole or not at all, and durable: the new text, then its name.
fn write(path: &Path, contents: &Contents) -> io::Result<()> {
    let new = path.with_extension("new");
    let mut file = File::create(&new)?;
    serde_json::to_writer(&mut file, contents)?;
    file.write_all(b"\n")?;
    file.sync_data()?;
    fs::rename(&new, path)?;
    match path.parent() {
        Some(dir) => File::open(dir)?.sync_all(),
        None => Ok(()),
    }
}

/// The lock file is never removed: who holds an unlinked one would not hold out the next.
fn lock(path: &Path, user: &str, device: u32) -> anyhow::Result<File> {
    let mut file = OpenOptions::new()
        .read(true)
        .write(true)
        .create(true)
        .truncate(false)
        .open(path)
        .with_context(|| format!("open {}", path.display()))?;
    match flock(&file, FlockOperation::NonBlockingLockExclusive) {
        Ok(()) => {}
        Err(rustix::io::Errno::WOULDBLOCK) => {
            let mut holder = String::new();
            // Only for the message; the holder may be just writing it.
            let _ = file.read_to_string(&mut holder);
            let holder = match holder.trim() {
                "" => "another process".to_owned(),
                pid => format!("process {pid}"),
            };
            return Err(Failure::with_remedy(
                format!("{user}'s device {device} is in use by {holder}"),
                format!("end that one, or be another device of {user}: --device {}", device.saturating_add(1)),
            )
            .into());
        }
        Err(error) => return Err(error).with_context(|| format!("lock {}", path.display())),
    }
    file.set_len(0)
        .and_then(|()| writeln!(file, "{}", std::process::id()))
        .with_context(|| format!("write {}", path.display()))?;
    Ok(file)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn bob() -> Target {
        Target::User("bob".into())
    }

    fn message(client_seq: u64) -> Outgoing {
        Outgoing { client_seq, prev: client_seq - 1, chat: "00".into(), to: bob(), text: "hi".into() }
    }

    #[test]
    fn the_next_process_knows_what_this_one_noted() {
        let dir = tempfile::tempdir().unwrap();
        let mut state = DeviceState::open(dir.path(), "alice", 1).unwrap();
        assert_eq!(state.memory(), Memory::NEW);
        state.shown(7).unwrap();
        state.shown(5).unwrap();
        state.sending(message(1)).unwrap();
        state.sending(message(2)).unwrap();
        state.used(3).unwrap();
        state.answered(1).unwrap();
        state.answered(99).unwrap();
        state.draft(Draft { to: bob(), text: "first".into() }).unwrap();
        state.draft(Draft { to: Target::User("carol".into()), text: "second".into() }).unwrap();
        state.name_chat("00".into(), KnownChat { group: false, name: "bob".into() }).unwrap();
        drop(state);
        let mut state = DeviceState::open(dir.path(), "alice", 1).unwrap();
        assert_eq!(state.memory(), Memory { floor: 7, next_client_seq: 4 });
        assert_eq!(state.outgoing(), [message(2)]);
        assert_eq!(state.chat("00").unwrap().name, "bob");
        assert_eq!(state.next_draft(&bob()).unwrap().text, "first");
        state.sending_draft(message(4)).unwrap();
        assert_eq!((state.next_draft(&bob()), state.drafts().len()), (None, 1));
        assert_eq!(state.outgoing(), [message(2), message(4)]);
    }

    #[test]
    fn one_process_a_device() {
        let dir = tempfile::tempdir().unwrap();
        let first = DeviceState::open(dir.path(), "alice", 1).unwrap();
        let error = DeviceState::open(dir.path(), "alice", 1).err().unwrap();
        assert_eq!(error.to_string(), format!("alice's device 1 is in use by process {}", std::process::id()));
        assert!(error.downcast_ref::<Failure>().unwrap().remedy().unwrap().contains("--device 2"));
        DeviceState::open(dir.path(), "alice", 2).unwrap();
        drop(first);
        DeviceState::open(dir.path(), "alice", 1).unwrap();
    }

    #[test]
    fn a_file_of_another_version_is_refused_and_kept() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("alice.1.json");
        for wrong in
            ["", "{}", r#"{"version":2}"#, r#"{"version":1,"user":"bob","device":1,"floor":0,"next_client_seq":1}"#]
        {
            fs::write(&path, wrong).unwrap();
            assert!(DeviceState::open(dir.path(), "alice", 1).is_err(), "{wrong}");
            assert_eq!(fs::read_to_string(&path).unwrap(), wrong);
        }
    }
}

//! Inboxes: fan-out records on the shard of a partition of members. A record is proposed if it follows what is applied
//! and proposed, confirmed again if it is applied already, and sent back for a rewind otherwise.

use whimbrel_wire::command::Command;
use whimbrel_wire::{FanOutFields, fb};

use crate::ids::{ChatSeq, PartitionId, UserIndex};
use crate::io::Effects;
use crate::lane::{Confirm, FanOut, LaneItem};
use crate::limits;
use crate::partition::Inbox;
use crate::replicate::{Origin, Partition};
use crate::shard::Shard;

impl Shard {
    pub(crate) fn on_fan_out(&mut self, fx: &mut Effects, fan_out: &FanOut) {
        let p = self.rank(fan_out.target);
        if !self.partitions[p].serving || !self.has_room_for_fan_out() {
            // The outbox asks later, and sends again.
            return;
        }
        if self.pointers > self.config.bounds.inbox_pointers / 2 && self.is_over_share(p, fan_out) {
            return;
        }
        let state = &mut self.partitions[p].state;
        let index = state.local(fan_out.chat, || fan_out.source);
        let local = &mut state.locals[index];
        let (applied, proposed) = (local.applied, local.proposed);
        if fan_out.chat_seq <= applied {
            return self.confirm(fx, fan_out, applied, false);
        }
        if fan_out.chat_seq <= proposed {
            return;
        }
        if fan_out.prev != proposed {
            return self.confirm(fx, fan_out, applied, proposed == applied);
        }
        if fan_out.command.is_empty() {
            // A question: it would be taken.
            return self.confirm(fx, fan_out, applied, true);
        }
        // It may be out of a page that left memory on its way. Then it is sent again, and found damaged there.
        let command = self.verifier.command_at(&fan_out.command);
        let Ok(command @ (Command::ChatSend(..) | Command::ChatCreate(_))) = command else { return };
        local.proposed = fan_out.chat_seq;
        let members = std::mem::take(&mut local.members);
        self.propose_fan_out(p, fan_out, &command, &members);
        self.partitions[p].state.locals[index].members = members;
    }

    /// Not a question of the record's size: were a long one passed over and the short one behind it looked at, that one
    /// would ask for the long one again, and so on.
    fn has_room_for_fan_out(&self) -> bool {
        // Above what sends may take: what was accepted comes through also where nothing new is.
        let gather_max = self.config.bounds.gather_max_bytes + self.config.bounds.gather_max_bytes / 2;
        // On a full disk the last segment is for acknowledgements, by which there is space again.
        self.gathered_bytes <= gather_max
            && self.pointers < self.config.bounds.inbox_pointers
            && !self.has_only_reserve()
    }

    /// Whether some device of these users has more waiting than its share. On a crowded shard their chat waits, and those of
    /// others go on: one device that never comes back must not take the room of all.
    /// Like room it is not a question of the single record.
    fn is_over_share(&self, p: usize, fan_out: &FanOut) -> bool {
        let share = self.config.bounds.inbox_pointers / limits::INBOX_SHARE;
        let state = &self.partitions[p].state;
        let Some(local) = state.local_if_known(fan_out.chat) else { return false };
        let is_over = |inbox: &Inbox| inbox.head().0 - inbox.acked.0 > share as u64;
        let mut inboxes = local.members.iter().flat_map(|user| state.inboxes_of(*user));
        fan_out.chat_seq > local.applied && inboxes.any(|(_, inbox)| is_over(inbox))
    }

    /// Whether a device other than the sender's will be there when a record that is proposed now is applied. The sender of a
    /// 1:1 chat mostly has one, and then its partition need not store the payload a second time. Who may yet come before the
    /// record counts: devices that are being registered, and all members of a chat whose making is not applied here.
    fn has_audience(&self, p: usize, members: &[UserIndex], sender: &str, device: u32) -> bool {
        let Partition { state, registering, .. } = &self.partitions[p];
        let is_other = |inbox: &Inbox| inbox.device.0 != device || !state.name(inbox.owner).is_named(sender);
        let mut inboxes = members.iter().flat_map(|user| state.inboxes_of(*user));
        *registering > 0 || members.is_empty() || inboxes.any(|(_, inbox)| is_other(inbox))
    }

    fn propose_fan_out(&mut self, p: usize, fan_out: &FanOut, command: &Command<'_>, members: &[UserIndex]) {
        let base = FanOutFields {
            chat: fan_out.chat.0,
            chat_seq: fan_out.chat_seq.0,
            prev: fan_out.prev.0,
            time_ms: fan_out.time_ms,
            sender: "",
            sender_device: 0,
            event: fb::Event::Message,
            members: &[],
            title: "",
        };
        let has_audience = match command {
            Command::ChatSend(send, _) => self.has_audience(p, members, send.sender(), send.device()),
            _ => true,
        };
        let partition = &mut self.partitions[p];
        let before = partition.gather.len_bytes();
        match command {
            Command::ChatSend(send, payload) => {
                let fields = FanOutFields { sender: send.sender(), sender_device: send.device(), ..base };
                let payload: &[u8] = if has_audience { payload } else { &[] };
                partition.gather.fan_out(&mut self.commands, &fields, payload);
            }
            Command::ChatCreate(create) => {
                let members: Vec<&str> = create.members().iter().collect();
                let fields = FanOutFields {
                    sender: create.maker(),
                    sender_device: create.maker_device(),
                    event: fb::Event::ChatCreated,
                    members: &members,
                    title: create.title().unwrap_or(""),
                    ..base
                };
                partition.gather.fan_out(&mut self.commands, &fields, &[]);
            }
            Command::DeviceRegister(_) | Command::OutboxConfirm(_) | Command::FanOut(..) | Command::DeviceAck(_) => {
                unreachable!("a chat's places are messages and its making")
            }
        }
        self.gathered(p, Origin::Nobody, before);
    }

    /// Tells a chat's shard how far its records are applied here.
    pub(crate) fn confirm(&mut self, fx: &mut Effects, fan_out: &FanOut, applied: ChatSeq, rewind: bool) {
        self.confirm_to(
            fx,
            fan_out.source,
            Confirm { source: fan_out.source, target: fan_out.target, chat: fan_out.chat, applied, rewind },
        );
    }

    pub(crate) fn confirm_to(&mut self, fx: &mut Effects, source: PartitionId, confirm: Confirm) {
        self.tell(fx, self.config.shard_of(source), LaneItem::Confirm(confirm));
    }
}

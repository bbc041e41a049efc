//! Checkpoints: an image of every partition, made a slice at a time between turns' work, so that the log before it can be let
//! go and a start need not read it.
//!
//! A partition's image is its state as it was when its turn came, at the entry that was then applied. What changes while it
//! is being made is copied into it first: `image_chat` and its like are called before any change of replicated state. So
//! the image is of one moment, and no turn makes more than a slice of it. On its way it does what [`crate::emptying`] wants.

use whimbrel_storage::{Checkpoint, CheckpointWriter, Location, Log, Position};

use crate::emptying::Marks;
use crate::ids::{InboxId, InboxSeq};
use crate::image::{self, Head, Sizes};
use crate::io::{Effect, Effects};
use crate::limits::{self, Bounds};
use crate::partition::PartitionState;
use crate::shard::Shard;

/// When checkpoints are made, and what became of the last ones.
#[derive(Debug, Default)]
pub(crate) struct Rounds {
    /// Rises with each one that is begun: what stands in `imaged` of the objects that are in it.
    round: u32,
    /// When the next is due, if anything has changed.
    next_us: u64,
    /// What the log had written when the last one began.
    written_bytes: u64,
    /// Bytes of the last one.
    image_bytes: u64,
    /// The last one failed: the next does not close a segment again, or each failure would use one up.
    failed: bool,
    /// Given to the disk whole, and not answered.
    finishing: Option<Checkpoint>,
    /// The shard stops, and its last one is there or cannot be.
    is_last_done: bool,
}

/// A checkpoint that is being made.
#[derive(Debug)]
pub(crate) struct Sweep {
    writer: CheckpointWriter,
    round: u32,
    /// The rank of the partition whose image is being made, once `sizes` is there.
    p: usize,
    sizes: Option<Sizes>,
    /// The next object, counted through chats, inboxes and local chats.
    next: usize,
    piece: Vec<u8>,
    marks: Marks,
    /// Of an inbox, at a time.
    places: u64,
    bytes: u64,
    /// Pieces that were given out and not taken.
    outstanding: u32,
}

/// Copies a chat into the image that is being made, if it is to be in it and is not yet: before any change of it.
#[inline]
pub(crate) fn image_chat(sweep: &mut Option<Sweep>, log: &mut Log, p: usize, state: &mut PartitionState, index: usize) {
    if let Some(sweep) = sweep
        && let Some(sizes) = sweep.sizes_of(p)
        && index < sizes.chats as usize
    {
        sweep.chat(log, state, index);
    }
}

/// The same for an inbox. What waits in it only has to be in the image before it is let go: [`image_waiting`].
#[inline]
pub(crate) fn image_inbox(sweep: &mut Option<Sweep>, p: usize, state: &mut PartitionState, inbox: InboxId) {
    if let Some(sweep) = sweep
        && let Some(sizes) = sweep.sizes_of(p)
        && inbox.0 < sizes.inboxes
    {
        sweep.inbox(state, inbox.0 as usize);
    }
}

/// The same for an inbox and what waits in it up to a place.
#[inline]
pub(crate) fn image_waiting(
    sweep: &mut Option<Sweep>,
    log: &mut Log,
    p: usize,
    state: &mut PartitionState,
    inbox: InboxId,
    through: InboxSeq,
) {
    if let Some(sweep) = sweep
        && let Some(sizes) = sweep.sizes_of(p)
        && inbox.0 < sizes.inboxes
    {
        sweep.inbox(state, inbox.0 as usize);
        sweep.waiting(log, state, inbox.0 as usize, through);
    }
}

/// The same for a chat as a partition of members knows it.
#[inline]
pub(crate) fn image_local(sweep: &mut Option<Sweep>, p: usize, state: &mut PartitionState, index: usize) {
    if let Some(sweep) = sweep
        && let Some(sizes) = sweep.sizes_of(p)
        && index < sizes.locals as usize
    {
        sweep.local(state, index);
    }
}

impl Sweep {
    #[inline]
    fn sizes_of(&self, p: usize) -> Option<Sizes> {
        if p == self.p { self.sizes } else { None }
    }

    fn chat(&mut self, log: &mut Log, state: &mut PartitionState, index: usize) {
        let chat = &mut state.chats[index];
        if chat.imaged != self.round {
            chat.imaged = self.round;
            chat.outbox.iter_mut().for_each(|place| self.marks.visit(log, &mut place.command));
            image::put_chat(&mut self.piece, index, chat);
        }
    }

    fn inbox(&mut self, state: &mut PartitionState, index: usize) {
        let inbox = &mut state.inboxes[index];
        if inbox.imaged != self.round {
            inbox.imaged = self.round;
            inbox.to_image = (inbox.floor, inbox.head());
            let inbox = &state.inboxes[index];
            image::put_inbox(&mut self.piece, index, state.name(inbox.owner), inbox);
        }
    }

    /// What waits in an inbox, up to this place or the last that is to be in the image.
    fn waiting(&mut self, log: &mut Log, state: &mut PartitionState, index: usize, through: InboxSeq) {
        let inbox = &mut state.inboxes[index];
        let (after, end) = inbox.to_image;
        let through = through.min(end);
        if through <= after {
            return;
        }
        // What lies before the first one that is to follow has followed, or it would not have been let go.
        let range = (after.0 - inbox.floor.0) as usize..(through.0 - inbox.floor.0) as usize;
        for place in inbox.waiting.range_mut(range.clone()) {
            self.marks.visit(log, place);
        }
        image::put_waiting(&mut self.piece, index, inbox.waiting.range(range));
        inbox.to_image.0 = through;
    }

    fn local(&mut self, state: &mut PartitionState, index: usize) {
        let local = &mut state.locals[index];
        if local.imaged != self.round {
            local.imaged = self.round;
            image::put_local(&mut self.piece, index, state);
        }
    }

    /// The next object of the partition; false if there is none.
    fn step(&mut self, log: &mut Log, state: &mut PartitionState, sizes: Sizes) -> bool {
        let (chats, inboxes) = (sizes.chats as usize, sizes.inboxes as usize);
        let at = self.next;
        if at < chats {
            self.chat(log, state, at);
        } else if at < chats + inboxes {
            let index = at - chats;
            self.inbox(state, index);
            let (after, end) = state.inboxes[index].to_image;
            self.waiting(log, state, index, InboxSeq(after.0 + self.places));
            if after.0 + self.places < end.0 {
                // A long one takes several steps.
                return true;
            }
        } else if at < chats + inboxes + sizes.locals as usize {
            self.local(state, at - chats - inboxes);
        } else {
            return false;
        }
        self.next += 1;
        true
    }

    /// What is made so far, as it is written.
    fn take_piece(&mut self) -> Vec<u8> {
        let mut bytes = Vec::with_capacity(self.piece.len() + 128);
        if self.bytes == 0 {
            self.writer.begin(&mut bytes);
        }
        if !self.piece.is_empty() {
            self.writer.piece(&self.piece, &mut bytes);
            self.piece.clear();
        }
        self.bytes += bytes.len() as u64;
        bytes
    }

    /// Gives out what is made so far.
    fn give_out(&mut self, fx: &mut Effects) {
        let bytes = self.take_piece();
        self.outstanding += 1;
        fx.list.push(Effect::Checkpoint { number: self.writer.checkpoint().number, bytes, last: None });
    }
}

impl Shard {
    /// Gives up a checkpoint that is being made, unless all of it was given out.
    pub(crate) fn abandon_checkpoint(&mut self) {
        if let Some(sweep) = self.sweep.take() {
            self.abandon_marks(sweep.marks);
        }
    }

    /// Lets go of segments that nobody needs, if that is known of each.
    pub(crate) fn retire(&mut self) {
        if self.may_let_go() {
            self.log.retire();
        }
    }

    /// At the end of a turn: begins a checkpoint that is due, or goes on with the one that is being made.
    pub(crate) fn checkpoint(&mut self, fx: &mut Effects) {
        if self.sweep.is_none() {
            if !self.checkpoint_is_due() {
                return;
            }
            self.begin_checkpoint();
        }
        if let Some(mut sweep) = self.sweep.take() {
            let ended = sweep.outstanding < limits::IMAGE_PIECES_MAX && self.sweep_slice(fx, &mut sweep);
            if ended {
                self.finish_checkpoint(fx, sweep);
            } else {
                self.sweep = Some(sweep);
            }
        }
    }

    /// Whether a checkpoint is being made.
    pub fn is_imaging(&self) -> bool {
        self.sweep.is_some()
    }

    /// Whether the end of this turn may have more to do than to look whether there is something.
    pub fn has_chores(&self) -> bool {
        self.sweep.is_some() || self.now.mono_us >= self.rounds.next_us
    }

    /// When a turn is wanted for checkpoints, on the monotone clock.
    pub(crate) fn checkpoint_wake_us(&self) -> Option<u64> {
        match &self.sweep {
            Some(sweep) if sweep.outstanding < limits::IMAGE_PIECES_MAX => Some(self.now.mono_us),
            Some(_) => None,
            None if self.rounds.finishing.is_some() || self.stopping || !self.may_let_go() || !self.has_changed() => {
                None
            }
            None => Some(self.rounds.next_us),
        }
    }

    fn checkpoint_is_due(&mut self) -> bool {
        let now_us = self.now.mono_us;
        let grown = self.log.written_bytes() - self.rounds.written_bytes;
        let enough = (self.config.bounds.checkpoint_segments * u64::from(self.segment_bytes))
            .max(limits::CHECKPOINT_IMAGES * self.rounds.image_bytes);
        if self.rounds.next_us == 0 {
            self.rounds.next_us = now_us + self.config.bounds.forget_after_us / limits::FORGET_STEPS;
        }
        if (now_us < self.rounds.next_us && grown < enough)
            || self.rounds.finishing.is_some()
            || self.stopping
            || !self.may_let_go()
        {
            return false;
        }
        if now_us < self.rounds.next_us {
            return !self.rounds.failed;
        }
        if !self.has_changed() {
            self.rounds.next_us = now_us + self.config.bounds.forget_after_us / limits::FORGET_STEPS;
            return false;
        }
        if self.may_seal() {
            // What has become dead in the segment that is written is let go with it.
            self.log.seal();
        }
        true
    }

    /// Whether the segment that is written may be closed. Where none can be made the spares are for what was accepted.
    fn may_seal(&self) -> bool {
        !self.rounds.failed && !self.log.lacks_spares() && self.log.can_seal()
    }

    /// The same where the shard stops: then the next start has nothing to read of that segment. A node that is stopped soon after its
    /// start may not have made all spares yet. The next start needs room for something new, or it would first make a segment.
    fn may_seal_at_last(&self) -> bool {
        let after = u64::from(self.log.spares()) * u64::from(self.segment_bytes);
        !self.rounds.failed && !self.disk_full && after >= self.scarce_bytes() && self.log.can_seal()
    }

    /// Whether anything happened since both checkpoints that are kept, or is in a segment that can be closed by now.
    fn has_changed(&self) -> bool {
        if self.may_seal() || self.wants_marks() {
            return true;
        }
        let grown = |kept: Option<Checkpoint>| kept.is_none_or(|it| self.log.has_grown_since(it.position));
        grown(self.log.older_checkpoint()) || grown(self.log.newest_checkpoint())
    }

    fn begin_checkpoint(&mut self) {
        let position = self.log.position();
        let writer = if self.lags_behind(position) { None } else { self.log.begin_checkpoint(position) };
        let Some(writer) = writer else {
            // It passes within a turn, or with the next segment that is made.
            self.rounds.next_us = self.now.mono_us + limits::CHECKPOINT_SOON_US;
            return;
        };
        self.rounds.next_us = self.now.mono_us + self.config.bounds.forget_after_us / limits::FORGET_STEPS;
        self.rounds.round += 1;
        self.rounds.written_bytes = self.log.written_bytes();
        let Bounds { image_piece_bytes, image_slice_bytes, image_places: places, .. } = self.config.bounds;
        let piece = Vec::with_capacity(image_piece_bytes + image_slice_bytes);
        let round = self.rounds.round;
        let marks = self.begin_marks(position, writer.checkpoint().number);
        let sweep = Sweep { writer, round, p: 0, sizes: None, next: 0, piece, marks, places, bytes: 0, outstanding: 0 };
        self.sweep = Some(sweep);
    }

    /// Whether some partition has an entry before this position that is not applied, so that the log from there on would not
    /// be enough. It passes within a turn.
    fn lags_behind(&self, position: Position) -> bool {
        let is_before = |it: Location| (it.segment, it.offset) < (position.segment, position.offset);
        self.partitions.iter().any(|partition| partition.group.store().first_waiting().is_some_and(is_before))
    }

    /// Makes a slice of the images; true once all are made.
    fn sweep_slice(&mut self, fx: &mut Effects, sweep: &mut Sweep) -> bool {
        let since = sweep.piece.len();
        let Bounds { image_objects, image_slice_bytes, image_piece_bytes, .. } = self.config.bounds;
        for _ in 0..image_objects {
            if sweep.piece.len() >= image_piece_bytes {
                sweep.give_out(fx);
                return false;
            }
            if sweep.piece.len() - since >= image_slice_bytes {
                return false;
            }
            let Some(partition) = self.partitions.get_mut(sweep.p) else { return true };
            let sizes = match sweep.sizes {
                Some(sizes) => sizes,
                None => {
                    let state = &partition.state;
                    let sizes = Sizes {
                        chats: state.chats.len() as u32,
                        inboxes: state.inboxes.len() as u32,
                        locals: state.locals.len() as u32,
                    };
                    let store = partition.group.store();
                    let head = Head {
                        partition: self.config.partition_at(sweep.p),
                        applied: store.applied(),
                        hard_state: store.hard_state().clone(),
                        wall_ms: partition.wall_ms,
                        sizes,
                    };
                    head.put(&mut sweep.piece);
                    sweep.sizes = Some(sizes);
                    sizes
                }
            };
            if !sweep.step(&mut self.log, &mut partition.state, sizes) {
                sweep.p += 1;
                sweep.sizes = None;
                sweep.next = 0;
            }
        }
        false
    }

    fn finish_checkpoint(&mut self, fx: &mut Effects, mut sweep: Sweep) {
        let checkpoint = sweep.writer.checkpoint();
        let mut bytes = sweep.take_piece();
        let marks = std::mem::take(&mut sweep.marks);
        sweep.writer.end(self.log.through(), &mut bytes);
        self.rounds.image_bytes = sweep.bytes;
        self.rounds.finishing = Some(checkpoint);
        // The newest one becomes the older of the two.
        let keep_from = self.log.newest_checkpoint().map_or(0, |newest| newest.number);
        fx.list.push(Effect::Checkpoint { number: checkpoint.number, bytes, last: Some(keep_from) });
        self.end_marks(fx, marks);
    }

    pub(crate) fn on_checkpoint_taken(&mut self, number: u64) {
        if let Some(sweep) = &mut self.sweep
            && sweep.writer.checkpoint().number == number
        {
            sweep.outstanding -= 1;
        }
    }

    pub(crate) fn on_checkpoint_written(&mut self, number: u64) {
        let done = self.rounds.finishing.take().filter(|checkpoint| checkpoint.number == number);
        let checkpoint = done.expect("a checkpoint that was given out whole is answered");
        self.rounds.failed = false;
        self.log.checkpoint_written(checkpoint);
        self.retire();
        self.counters.checkpoints += 1;
        self.counters.checkpoint_bytes += self.rounds.image_bytes;
    }

    pub(crate) fn on_checkpoint_failed(&mut self, number: u64) {
        if let Some(sweep) = self.sweep.take_if(|sweep| sweep.writer.checkpoint().number == number) {
            self.abandon_marks(sweep.marks);
        }
        if self.rounds.finishing.is_some_and(|checkpoint| checkpoint.number == number) {
            self.rounds.finishing = None;
        }
        self.counters.checkpoints_failed += 1;
        self.rounds.failed = true;
        self.rounds.next_us = self.now.mono_us + limits::CHECKPOINT_RETRY_US;
        if self.stopping {
            // The log has all of it.
            self.rounds.is_last_done = true;
        }
    }

    /// Makes the last checkpoint of a shard that stops, so that the next start has nothing to read. True once it is there, or
    /// cannot be.
    pub(crate) fn last_checkpoint(&mut self) -> bool {
        if self.rounds.is_last_done || !self.may_let_go() {
            return true;
        }
        if self.sweep.is_some() || self.rounds.finishing.is_some() {
            return false;
        }
        if self.log.newest_checkpoint().is_some_and(|newest| newest.position == self.log.position()) {
            self.rounds.is_last_done = true;
            return true;
        }
        if self.may_seal_at_last() {
            self.log.seal();
        }
        self.begin_checkpoint();
        if self.sweep.is_none() {
            // The position is in a segment that is not made yet: a start reads a little.
            self.rounds.is_last_done = true;
        }
        self.sweep.is_none()
    }
}

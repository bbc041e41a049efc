//! What happened in a run: the proof that the weather is not vacuous.

macro_rules! stats {
    ($($(#[doc = $doc:literal])* $name:ident,)*) => {
        /// Counts of a run, or of several together.
        #[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
        pub struct Stats {
            $($(#[doc = $doc])* pub $name: u64,)*
        }

        impl Stats {
            /// Both together.
            pub fn add(&mut self, other: &Stats) {
                $(self.$name += other.$name;)*
            }

            /// By name, in the order in which they are printed.
            pub fn fields(&self) -> Vec<(&'static str, u64)> {
                vec![$((stringify!($name), self.$name),)*]
            }
        }
    };
}

stats! {
    /// Inputs that shards were given.
    steps,
    /// Those that carried received bytes or a lane's item.
    load_steps,
    /// Messages that clients wanted stored.
    sent,
    /// Those that were acknowledged.
    acknowledged,
    /// Deliveries that reached a client, repeated ones after a reconnect too.
    delivered,
    /// Those of chats of a group.
    group_delivered,
    /// Places of a chat on their way from one shard to another.
    fan_outs,
    /// Chats that were made.
    chats,
    /// Groups with messages whose members were served by different shards.
    spread_groups,
    /// Logins that were accepted.
    logins,
    /// Connections that moved to another shard.
    moves,
    /// Connections that broke, most in the middle of something.
    breaks,
    /// Connections of devices of which the node saw the end in the middle of a frame.
    cut_frames,
    /// Messages that went out again under their number, without an answer.
    resends,
    /// Messages that went out again although answered.
    probes,
    /// Connections whose device logged in on another one.
    replaced,
    /// Connections of somebody who means ill.
    hostile,
    /// Checkpoints written.
    checkpoints,
    /// Turns that ended in the middle of making one.
    imaging_turns,
    /// Checkpoints that could not be written.
    checkpoints_failed,
    /// Checkpoints that a crash left damaged.
    checkpoints_rotten,
    /// Checkpoints that were in their place and answered as failed.
    checkpoints_unsure,
    /// Checkpoints that a crash found in their place, and not answered.
    checkpoints_unanswered,
    /// Checkpoints for which a disk had no space.
    checkpoints_without_space,
    /// Segments for which a disk had no space.
    segments_without_space,
    /// Starts on disks that stayed full over several of them.
    full_starts,
    /// Those after which all shards served.
    full_served,
    /// Messages that were kept by a device while it was so.
    full_delivered,
    /// Flushes that took seconds.
    slow_flushes,
    /// Segments and pieces of checkpoints that took seconds.
    slow_chores,
    /// Power cuts that showed that a block of a write was on stable storage elsewhere.
    misdirected,
    /// Starts that noticed it.
    misdirected_noticed,
    /// Starts of a shard whose log does not open, beside others that serve.
    shut,
    /// Segments in which something rotted while the node ran.
    rots,
    /// Those of which a page could not be read.
    pages_unreadable,
    /// Those of which it was told.
    rots_noticed,
    /// Those that were used for something else before anybody noticed.
    rots_gone,
    /// Partitions that were in repair by it.
    repairs,
    /// Requests and connections that were refused for it.
    in_repair_refused,
    /// Worlds that came to rest with something damaged.
    damaged_worlds,
    /// Starts that found something that could not be read, and left it at that.
    starts_unreadable,
    /// Starts that had one to go on from.
    starts_from_checkpoint,
    /// Starts that found a page which the disk does not give, and went on.
    starts_with_lost_pages,
    /// Bits that were turned over in the last records of logs that had rested.
    last_flipped,
    /// Bits that were turned over in the batch without records behind these.
    empty_flipped,
    /// Starts that found the mark of a clean end, and no batch behind it.
    starts_from_end,
    /// Marks of a clean end that a crash brought back.
    ends_back,
    /// Segments that were made of others.
    segments_reused,
    /// Segments that were read in before they were looked at.
    read_in,
    /// Places that were moved to cold segments.
    moved,
    /// Steps of erasing what is dead in them.
    erased,
    /// Those that left a page alone which the disk did not give.
    erased_beside_lost,
    /// Lists of what waits that were sorted off the core.
    sorted,
    /// Lists that were not, for the work on them failed.
    sorts_failed,
    /// Lists that a crash found in the middle of it.
    sorts_cut,
    /// Work on them that failed.
    moves_failed,
    /// Segments that were read to see whether they are as they were written.
    scrubbed,
    /// Worlds in which everything was forgotten at the end.
    forgotten_worlds,
    /// Refusals that they heard.
    hostile_refused,
    /// Crashes of the node.
    crashes,
    /// Crashes that took something written and not flushed along.
    lost_writes,
    /// Crashes that left a part of what was not flushed.
    torn,
    /// Starts at which recovery cut a torn last batch off.
    truncated,
    /// Log writes that failed.
    failed_writes,
    /// Stops that somebody asked for.
    stops,
    /// Those that came to their end: all refused, told, flushed.
    clean_stops,
    /// Turns that began with a lane full.
    full_lanes,
    /// Fan-outs that went back to what was confirmed.
    rewinds,
    /// Questions whether a partition would take what it had not confirmed.
    questions,
    /// Sends for which a socket had no room.
    slow_sends,
    /// Deliveries from the log to a connection after that.
    slow_served,
    /// Connections that were closed since their client did not read.
    slow_closed,
    /// Deliveries that waited in the log for their device to log in.
    waited,
    /// Deliveries that used a device's credit up.
    credit_used_up,
    /// Requests that were refused for want of room.
    overloaded,
    /// Requests that were refused since a disk had no room for another segment.
    storage_full,
    /// Requests that were refused since their session had too many.
    too_many_in_flight,
}

impl Stats {
    /// Share of the steps that carried received bytes or a lane's item.
    pub fn load_share(&self) -> f64 {
        self.load_steps as f64 / self.steps.max(1) as f64
    }
}

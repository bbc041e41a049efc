//! Sessions: a device's logged-in life on a connection. The newest attachment of a device wins.

use whimbrel_wire::{Code, VERSION, WelcomeFields, fb, limits as wire};

use crate::conn::Stage;
use crate::ids::{ConnId, Correlation, DeviceId, InboxId, InboxSeq, UserId};
use crate::io::Effects;
use crate::limits;
use crate::replicate::Origin;
use crate::route;
use crate::shard::Shard;
use crate::token;

/// A `Hello` whose token was verified.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Login {
    /// Repeated in the `Welcome`.
    pub correlation: Correlation,
    /// By the token.
    pub user: UserId,
    /// By the token.
    pub device: DeviceId,
    /// By the token.
    pub token_epoch: u32,
    /// What the device says it has persisted.
    pub floor: InboxSeq,
}

/// One device's logged-in life on a connection.
#[derive(Debug)]
pub(crate) struct Session {
    pub(crate) user: UserId,
    pub(crate) device: DeviceId,
    /// Rank of the user's partition.
    pub(crate) partition: u16,
    pub(crate) inbox: InboxId,
    /// Delivered on this connection up to here.
    pub(crate) sent: InboxSeq,
    /// Payload bytes delivered and not acknowledged.
    pub(crate) in_flight_bytes: u32,
    /// Requests not answered.
    pub(crate) requests: u32,
}

impl Shard {
    pub(crate) fn on_hello(&mut self, fx: &mut Effects, conn: ConnId, hello: &fb::Hello<'_>) {
        let correlation = Correlation(hello.correlation());
        if hello.version_min() > VERSION || hello.version_max() < VERSION {
            return self.refuse_hello(fx, conn, correlation, Code::UnsupportedVersion, "");
        }
        let claims = match token::verify(hello.token(), &self.config.token_key, self.now.wall_ms) {
            Ok(claims) => claims,
            Err(code) => return self.refuse_hello(fx, conn, correlation, code, ""),
        };
        if claims.device.0 != hello.device() {
            return self.refuse_hello(fx, conn, correlation, Code::WrongDevice, "");
        }
        let login = Login {
            correlation,
            user: claims.user,
            device: claims.device,
            token_epoch: claims.epoch,
            floor: InboxSeq(hello.floor()),
        };
        let home = self.config.shard_of(route::partition_of_user(&login.user, self.config.partitions));
        if home == self.config.shard {
            self.login(fx, conn, login);
        } else {
            self.leave(fx, conn, home, login);
        }
    }

    /// On the shard of the user: lets the device in, once it exists.
    pub(crate) fn login(&mut self, fx: &mut Effects, conn: ConnId, login: Login) {
        let refuse = |code| (code, login.correlation);
        let p = self.rank(route::partition_of_user(&login.user, self.config.partitions));
        let partition = &mut self.partitions[p];
        let known = partition.state.inbox_of(&login.user, login.device);
        let epoch = known.map(|inbox| partition.state.inboxes[inbox.0 as usize].token_epoch);
        let refused = match (self.stopping, partition.serving, epoch) {
            (true, _, _) => Some(refuse(Code::ShuttingDown)),
            (_, false, _) => Some(refuse(partition.why_not())),
            (_, _, Some(epoch)) if login.token_epoch < epoch => Some(refuse(Code::StaleToken)),
            _ => None,
        };
        if let Some((code, correlation)) = refused {
            return self.refuse_hello(fx, conn, correlation, code, "");
        }
        match known {
            Some(inbox) if epoch == Some(login.token_epoch) => self.attach(fx, conn, &login, p, inbox),
            _ => self.register(fx, conn, login, p),
        }
    }

    fn register(&mut self, fx: &mut Effects, conn: ConnId, login: Login, p: usize) {
        if self.disk_full {
            return self.refuse_hello(fx, conn, login.correlation, Code::StorageFull, "");
        }
        if self.is_scarce() || self.gathered_bytes > self.config.bounds.gather_max_bytes {
            return self.refuse_hello(fx, conn, login.correlation, Code::Overloaded, "");
        }
        let partition = &mut self.partitions[p];
        let before = partition.gather.len_bytes();
        partition.gather.device_register(&mut self.commands, login.user.as_str(), login.device.0, login.token_epoch);
        partition.registering += 1;
        self.gathered(p, Origin::Login(conn), before);
        if let Some(it) = self.conn(conn) {
            it.stage = Stage::Registering { login: Box::new(login), unread: Vec::new() };
            self.timers.logins.push_back((self.now.mono_us + self.config.bounds.login_us, conn));
        }
    }

    /// The device of a connection that waits for it is applied.
    pub(crate) fn registered(&mut self, fx: &mut Effects, conn: ConnId, p: usize) {
        let Some(it) = self.conn(conn) else { return };
        let stage = std::mem::replace(&mut it.stage, Stage::Fresh);
        let Stage::Registering { login, unread } = stage else {
            // It was told to close meanwhile.
            it.stage = stage;
            return;
        };
        self.login(fx, conn, *login);
        if !unread.is_empty() {
            self.on_received(fx, conn, &unread);
        }
        self.mark_dirty(p);
    }

    fn attach(&mut self, fx: &mut Effects, conn: ConnId, login: &Login, p: usize, id: InboxId) {
        let inbox = &mut self.partitions[p].state.inboxes[id.0 as usize];
        let older = inbox.attached.replace(conn);
        inbox.generation += 1;
        let (generation, head) = (inbox.generation, inbox.head());
        let lost = login.floor > head;
        if lost {
            self.counters.inbox_lost += 1;
        } else if login.floor > inbox.acked {
            self.acknowledge(p, id, login.floor);
        }
        // What was acknowledged on an older connection is acknowledged.
        let floor = self.partitions[p].state.inboxes[id.0 as usize].acked;
        self.counters.logins += 1;
        let Some(it) = self.conn(conn) else { return };
        it.stage = Stage::Open(Box::new(Session {
            user: login.user,
            device: login.device,
            partition: p as u16,
            inbox: id,
            sent: floor,
            in_flight_bytes: 0,
            requests: 0,
        }));
        if let Some(older) = older {
            self.go_away(fx, older, Code::Replaced);
        }
        let bounds = self.config.bounds;
        let welcome = WelcomeFields {
            correlation: login.correlation.0,
            version: VERSION,
            capabilities: 0,
            user: login.user.as_str(),
            device: login.device.0,
            generation,
            head: head.0,
            floor: floor.0,
            credit_messages: bounds.credit_messages,
            credit_bytes: bounds.credit_bytes,
            frame_max_bytes: wire::FRAME_MAX_BYTES as u32,
            sends_in_flight_max: limits::SENDS_IN_FLIGHT_MAX,
            keepalive_ms: (bounds.keepalive_us / limits::MS) as u32,
            server_time_ms: self.now.wall_ms,
            shard: self.config.shard.0,
        };
        self.send_frame(fx, conn, |frames, out| frames.welcome(out, &welcome));
        self.timers.keepalives.push_back((self.now.mono_us + bounds.keepalive_us, conn));
        self.want_delivery(conn);
    }

    /// Unties a connection's session from its inbox.
    pub(crate) fn detach_session(&mut self, conn: ConnId) {
        let Some(session) = self.session(conn) else { return };
        let (p, id) = (usize::from(session.partition), session.inbox);
        let inbox = &mut self.partitions[p].state.inboxes[id.0 as usize];
        if inbox.attached == Some(conn) {
            inbox.attached = None;
        }
    }
}

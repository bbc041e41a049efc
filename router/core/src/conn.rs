//! Connections: bytes to frames, what a frame may be before and after the login, keepalive, and how a connection ends or
//! moves to the shard of its user.

use whimbrel_wire::{
    ClientFrame, Code, Decoder, ErrorFields, Frame, FrameError, Kind, RefusedFields, VERSION, limits as wire,
};

use crate::ids::{ConnId, Correlation, ShardId};
use crate::io::{Effect, Effects, Moving};
use crate::session::{Login, Session};
use crate::shard::Shard;
use crate::stuck::Ages;

/// One socket, as the core knows it.
#[derive(Debug)]
pub(crate) struct Conn {
    pub(crate) generation: u32,
    pub(crate) stage: Stage,
    pub(crate) decoder: Decoder,
    /// Bytes sent and not reported as written.
    pub(crate) queued_bytes: u32,
    pub(crate) ages: Ages,
    pub(crate) heard_us: u64,
    /// In the shard's list of those to deliver to.
    pub(crate) to_deliver: bool,
    /// It looks again when a segment is read in.
    pub(crate) waits_for_segment: bool,
}

/// How far a connection is.
#[derive(Debug)]
pub(crate) enum Stage {
    /// Has to say Hello.
    Fresh,
    /// Said it, and goes to the shard of its user; what arrives meanwhile goes along.
    Leaving { to: ShardId, moving: Box<Moving> },
    /// Said it, and its device is being registered; what arrives meanwhile is looked at after.
    Registering { login: Box<Login>, unread: Vec<u8> },
    /// Logged in.
    Open(Box<Session>),
    /// Was told to close; nothing is read any more.
    Closing,
}

impl Shard {
    pub(crate) fn on_connected(&mut self, fx: &mut Effects, conn: ConnId) {
        self.place(conn, Stage::Fresh);
        if self.stopping {
            self.refuse_hello(fx, conn, Correlation(0), Code::ShuttingDown, "");
        } else if self.connections > self.config.bounds.connections {
            self.refuse_hello(fx, conn, Correlation(0), Code::TooManyConnections, "");
        } else {
            let due = self.now.mono_us + self.config.bounds.login_us;
            self.timers.logins.push_back((due, conn));
        }
    }

    /// A connection that another shard moved here: its Hello is verified, its bytes are looked at after the login.
    pub(crate) fn on_adopted(&mut self, fx: &mut Effects, conn: ConnId, moving: Moving) {
        self.place(conn, Stage::Fresh);
        self.login(fx, conn, moving.login);
        if !moving.unread.is_empty() {
            self.on_received(fx, conn, &moving.unread);
        }
    }

    fn place(&mut self, conn: ConnId, stage: Stage) {
        let slot = conn.slot as usize;
        if self.conns.len() <= slot {
            self.conns.resize_with(slot + 1, || None);
        }
        assert!(self.conns[slot].is_none(), "a slot is given anew only after its connection is gone");
        self.connections += 1;
        self.conns[slot] = Some(Conn {
            generation: conn.generation,
            stage,
            decoder: Decoder::default(),
            queued_bytes: 0,
            ages: Ages::default(),
            heard_us: self.now.mono_us,
            to_deliver: false,
            waits_for_segment: false,
        });
    }

    pub(crate) fn conn(&mut self, conn: ConnId) -> Option<&mut Conn> {
        self.conns.get_mut(conn.slot as usize)?.as_mut().filter(|it| it.generation == conn.generation)
    }

    pub(crate) fn session(&mut self, conn: ConnId) -> Option<&mut Session> {
        match &mut self.conn(conn)?.stage {
            Stage::Open(session) => Some(session),
            Stage::Fresh | Stage::Leaving { .. } | Stage::Registering { .. } | Stage::Closing => None,
        }
    }

    pub(crate) fn on_received(&mut self, fx: &mut Effects, conn: ConnId, bytes: &[u8]) {
        let now_us = self.now.mono_us;
        let Some(it) = self.conn(conn) else { return };
        it.heard_us = now_us;
        // The decoder is taken out while its frames are handled, for a frame borrows it.
        let mut decoder = std::mem::take(&mut it.decoder);
        let mut input = bytes;
        while !self.set_aside(fx, conn, &mut decoder, &mut input) {
            let frame_max = match self.session(conn) {
                Some(_) => wire::FRAME_MAX_BYTES,
                None => wire::FRAME_MAX_BEFORE_LOGIN_BYTES,
            };
            // A cursor of its own for each frame, for the frame borrows it together with the decoder.
            let mut cursor = input;
            let decoded = decoder.decode(&mut cursor, frame_max);
            let used = input.len() - cursor.len();
            match decoded {
                Ok(Some(frame)) => self.on_frame(fx, conn, &frame),
                Ok(None) => break,
                Err(error) => self.refuse_frame(fx, conn, None, error),
            }
            input = &input[used..];
        }
        if let Some(it) = self.conn(conn) {
            it.decoder = decoder;
        }
    }

    /// Where a connection cannot read on now, its bytes wait, up to the bound of one frame. True if they do, or if
    /// nothing is to be read any more.
    fn set_aside(&mut self, fx: &mut Effects, conn: ConnId, decoder: &mut Decoder, input: &mut &[u8]) -> bool {
        let Some(it) = self.conn(conn) else { return true };
        let unread = match &mut it.stage {
            Stage::Fresh | Stage::Open(_) => return false,
            Stage::Closing => return true,
            Stage::Leaving { moving, .. } => &mut moving.unread,
            Stage::Registering { unread, .. } => unread,
        };
        unread.extend(std::mem::take(decoder).into_pending());
        unread.extend_from_slice(input);
        *input = &[];
        if unread.len() > wire::FRAME_MAX_BYTES {
            self.close_with_error(fx, conn, Code::TooManyInFlight, Kind::Hello);
        }
        true
    }

    fn on_frame(&mut self, fx: &mut Effects, conn: ConnId, frame: &Frame<'_>) {
        let parsed = match ClientFrame::parse(frame) {
            Ok(parsed) => parsed,
            Err(error) => return self.refuse_frame(fx, conn, Some(frame), error),
        };
        let open = self.session(conn).is_some();
        match parsed {
            ClientFrame::Hello(_) if open => self.close_with_error(fx, conn, Code::AlreadyLoggedIn, Kind::Hello),
            ClientFrame::Hello(hello) => self.on_hello(fx, conn, &hello),
            ClientFrame::Ping(_)
            | ClientFrame::CreateChat(_)
            | ClientFrame::ChatInfo(_)
            | ClientFrame::Send(..)
            | ClientFrame::Ack(_)
                if !open =>
            {
                self.refuse_hello(fx, conn, Correlation(0), Code::NotLoggedIn, "");
            }
            ClientFrame::Ping(ping) => self.pong(fx, conn, ping.correlation()),
            ClientFrame::CreateChat(create) => self.on_create_chat(fx, conn, &create),
            ClientFrame::ChatInfo(info) => self.on_chat_info(fx, conn, &info),
            ClientFrame::Send(send, payload) => self.on_send(fx, conn, &send, payload),
            ClientFrame::Ack(ack) => self.on_ack(fx, conn, ack.floor()),
        }
    }

    fn refuse_frame(&mut self, fx: &mut Effects, conn: ConnId, frame: Option<&Frame<'_>>, error: FrameError) {
        let code = error.code();
        let detail = error.to_string();
        if self.session(conn).is_none() {
            // Also an unknown kind: before the login there is nothing that could be skipped.
            return self.refuse_hello(fx, conn, Correlation(0), code, &detail);
        }
        let correlation = match frame.map(|frame| ClientFrame::parse(&Frame { payload: &[], ..*frame })) {
            Some(Ok(ClientFrame::Send(send, _))) => (send.correlation(), send.client_seq()),
            _ => (0, 0),
        };
        let fields = ErrorFields {
            correlation: correlation.0,
            code: code as u16,
            retriable: code.retriable(),
            closes: code.closes(),
            retry_after_ms: 0,
            kind: frame.map_or(0, |frame| frame.kind),
            client_seq: correlation.1,
            detail: &detail,
        };
        self.counters.refuse(code);
        self.send_frame(fx, conn, |frames, out| frames.error(out, &fields));
        if code.closes() {
            self.close(fx, conn);
        }
    }

    /// An error of a session that ends it.
    pub(crate) fn close_with_error(&mut self, fx: &mut Effects, conn: ConnId, code: Code, kind: Kind) {
        self.counters.refuse(code);
        let fields = ErrorFields {
            code: code as u16,
            retriable: code.retriable(),
            closes: true,
            kind: kind as u8,
            detail: code.text(),
            ..ErrorFields::default()
        };
        self.send_frame(fx, conn, |frames, out| frames.error(out, &fields));
        self.close(fx, conn);
    }

    /// When somebody who is refused now is to come back; 0 if there is no use in it.
    pub(crate) fn retry_after_ms(&mut self, code: Code) -> u32 {
        self.retry.after_ms(self.now.mono_us, code, self.config.bounds.retry_after_ms)
    }

    /// No to a Hello, or to what came in its place; always closes.
    pub(crate) fn refuse_hello(&mut self, fx: &mut Effects, conn: ConnId, to: Correlation, code: Code, detail: &str) {
        self.counters.refuse(code);
        let retry_after_ms = self.retry_after_ms(code);
        let fields = RefusedFields {
            correlation: to.0,
            code: code as u16,
            retry_after_ms,
            version_min: VERSION,
            version_max: VERSION,
            detail: if detail.is_empty() { code.text() } else { detail },
        };
        self.send_frame(fx, conn, |frames, out| frames.refused(out, &fields));
        self.close(fx, conn);
    }

    /// Ends a session or a connection that the node does not want any more, and says why.
    pub(crate) fn go_away(&mut self, fx: &mut Effects, conn: ConnId, code: Code) {
        if self.session(conn).is_none() {
            return self.refuse_hello(fx, conn, Correlation(0), code, "");
        }
        self.counters.refuse(code);
        let retry_ms = self.retry_after_ms(code);
        self.send_frame(fx, conn, |frames, out| frames.go_away(out, code as u16, retry_ms, code.text()));
        self.close(fx, conn);
    }

    pub(crate) fn say_go_away(&mut self, fx: &mut Effects) {
        for slot in 0..self.conns.len() {
            let Some(it) = &self.conns[slot] else { continue };
            if !matches!(it.stage, Stage::Closing) {
                let conn = ConnId { slot: slot as u32, generation: it.generation };
                self.go_away(fx, conn, Code::ShuttingDown);
            }
        }
    }

    fn pong(&mut self, fx: &mut Effects, conn: ConnId, correlation: u64) {
        let wall_ms = self.now.wall_ms;
        self.send_frame(fx, conn, |frames, out| frames.pong(out, correlation, wall_ms));
    }

    /// Sends one frame that `write` appends. A connection whose queue is over its bound is closed: what it was to be told
    /// it finds in its inbox when it returns.
    pub(crate) fn send_frame(
        &mut self,
        fx: &mut Effects,
        conn: ConnId,
        write: impl FnOnce(&mut whimbrel_wire::Builder, &mut Vec<u8>),
    ) {
        let queue_max = self.config.bounds.queue_max_bytes;
        let slot = conn.slot as usize;
        let Some(it) = self.conns.get_mut(slot).and_then(Option::as_mut) else { return };
        if it.generation != conn.generation || matches!(it.stage, Stage::Closing) {
            return;
        }
        let start = fx.bytes.len();
        write(&mut self.frames, &mut fx.bytes);
        let head = start..fx.bytes.len();
        it.queued_bytes += head.len() as u32;
        let slow = it.queued_bytes > queue_max;
        let list = it.ages.begin();
        fx.list.push(Effect::Send { conn, head, payload: None });
        if list {
            self.list_age(conn);
        }
        if slow {
            self.counters.refuse(Code::SlowReader);
            self.close(fx, conn);
        }
    }

    pub(crate) fn close(&mut self, fx: &mut Effects, conn: ConnId) {
        self.detach_session(conn);
        let Some(it) = self.conn(conn) else { return };
        if !matches!(it.stage, Stage::Closing) {
            it.stage = Stage::Closing;
            fx.list.push(Effect::Close { conn });
        }
    }

    pub(crate) fn on_written(&mut self, conn: ConnId, bytes: u32) {
        let Some(it) = self.conn(conn) else { return };
        it.queued_bytes = it.queued_bytes.checked_sub(bytes).expect("only what was sent is written");
        it.ages.taken(bytes);
        if matches!(it.stage, Stage::Open(_)) {
            self.want_delivery(conn);
        }
    }

    pub(crate) fn on_disconnected(&mut self, conn: ConnId) {
        self.detach_session(conn);
        if self.conn(conn).is_some() {
            self.conns[conn.slot as usize] = None;
            self.connections -= 1;
        }
    }

    /// Sends a connection that said Hello to the shard of its user.
    pub(crate) fn leave(&mut self, fx: &mut Effects, conn: ConnId, to: ShardId, login: Login) {
        let Some(it) = self.conn(conn) else { return };
        it.stage = Stage::Leaving { to, moving: Box::new(Moving { login, unread: Vec::new() }) };
        fx.list.push(Effect::Detach { conn });
    }

    pub(crate) fn on_detached(&mut self, fx: &mut Effects, conn: ConnId) {
        let Some(it) = self.conn(conn) else { return };
        if !matches!(it.stage, Stage::Leaving { .. }) {
            return;
        }
        let Some(it) = self.conns[conn.slot as usize].take() else { return };
        self.connections -= 1;
        if let Stage::Leaving { to, moving } = it.stage {
            fx.list.push(Effect::Move { conn, to, moving });
        }
    }

    /// Closes connections that did not log in, or of which nothing was heard, in time.
    pub(crate) fn close_silent(&mut self, fx: &mut Effects) {
        let now_us = self.now.mono_us;
        while let Some((_, conn)) = self.timers.logins.pop_front_if(|(due, _)| *due <= now_us) {
            match self.conn(conn).map(|it| &it.stage) {
                Some(Stage::Fresh) => self.refuse_hello(fx, conn, Correlation(0), Code::LoginTimeout, ""),
                // The log takes too long. Devices that exist need no write to come in: they are not to be kept out by this.
                Some(Stage::Registering { .. }) => self.refuse_hello(fx, conn, Correlation(0), Code::Overloaded, ""),
                Some(Stage::Leaving { .. } | Stage::Open(_) | Stage::Closing) | None => {}
            }
        }
        let keepalive_us = self.config.bounds.keepalive_us;
        while let Some((_, conn)) = self.timers.keepalives.pop_front_if(|(due, _)| *due <= now_us) {
            let Some(it) = self.conn(conn) else { continue };
            let due = it.heard_us + keepalive_us;
            if matches!(it.stage, Stage::Closing) {
                continue;
            }
            if due <= now_us {
                self.go_away(fx, conn, Code::KeepaliveTimeout);
            } else {
                // Out of order by less than one keepalive: looked at late by as much at most.
                self.timers.keepalives.push_back((due, conn));
            }
        }
    }
}

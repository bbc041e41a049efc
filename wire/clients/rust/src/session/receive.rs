//! What a node's frames do to a session.

use whimbrel_wire::{Code, Kind, ServerFrame, VERSION, chat_id, fb, limits};

use super::{FRAME_OVERHEAD_BYTES, Flight, Inbox, Phase, Session, Terms};
use crate::event::{ChatFacts, ClientError, Content, Delivery, Event, Receipt, Refusal, Welcome};
use crate::sends::RETRY_AFTER_MS;

impl Session {
    pub(super) fn on_frame(&mut self, now_ms: u64, frame: &ServerFrame<'_>) -> Result<(), ClientError> {
        let greeting = matches!(self.phase, Phase::Greeting(_));
        let served = matches!(self.phase, Phase::Ready | Phase::Ending);
        let only_if = |may: bool, kind: Kind| if may { Ok(()) } else { Err(ClientError::Unexpected(kind)) };
        match frame {
            ServerFrame::Welcome(welcome) => {
                only_if(self.phase == Phase::Greeting(welcome.correlation()), Kind::Welcome)?;
                return self.on_welcome(welcome);
            }
            ServerFrame::Refused(refused) => {
                only_if(greeting, Kind::Refused)?;
                self.phase = Phase::Ending;
                let refusal = Refusal::new(refused.code(), refused.detail(), refused.retry_after_ms());
                self.events.push_back(Event::Refused(refusal));
            }
            ServerFrame::GoAway(away) => self.end(Refusal::new(away.code(), away.detail(), away.retry_after_ms())),
            ServerFrame::Error(error) => self.on_error(now_ms, error),
            ServerFrame::Pong(pong) => {
                only_if(served, Kind::Pong)?;
                if self.pings.1.remove(&pong.correlation()) {
                    self.events.push_back(Event::Pong {
                        correlation: pong.correlation(),
                        server_time_ms: pong.server_time_ms(),
                    });
                }
            }
            ServerFrame::ChatInfo(info) => {
                only_if(served, Kind::ChatInfo)?;
                self.on_chat_info(info);
            }
            ServerFrame::Sent(sent) => {
                only_if(served, Kind::Sent)?;
                self.on_sent(sent);
            }
            ServerFrame::Deliver(deliver, payload) => {
                only_if(served, Kind::Deliver)?;
                self.on_deliver(deliver, payload);
            }
        }
        Ok(())
    }

    fn on_welcome(&mut self, welcome: &fb::Welcome<'_>) -> Result<(), ClientError> {
        if welcome.version() != VERSION {
            return Err(ClientError::Version(welcome.version()));
        }
        if welcome.user() != self.config.user || welcome.device() != self.config.device {
            return Err(ClientError::WrongUser { user: welcome.user().to_owned(), device: welcome.device() });
        }
        self.phase = Phase::Ready;
        self.terms = Terms {
            in_flight_max: welcome.sends_in_flight_max().max(1) as usize,
            payload_max: (welcome.frame_max_bytes() as usize)
                .saturating_sub(FRAME_OVERHEAD_BYTES)
                .min(limits::PAYLOAD_MAX_BYTES),
            keepalive_ms: u64::from(welcome.keepalive_ms()),
        };
        self.events.push_back(Event::Welcome(Welcome {
            user: welcome.user().to_owned(),
            device: welcome.device(),
            generation: welcome.generation(),
            head: welcome.head(),
            floor: welcome.floor(),
            credit_messages: welcome.credit_messages(),
            credit_bytes: welcome.credit_bytes(),
            frame_max_bytes: welcome.frame_max_bytes(),
            sends_in_flight_max: welcome.sends_in_flight_max(),
            keepalive_ms: welcome.keepalive_ms(),
            server_time_ms: welcome.server_time_ms(),
            shard: welcome.shard(),
        }));
        let head = welcome.head();
        if self.inbox.seen > head {
            self.events.push_back(Event::InboxLost { floor: self.inbox.seen, head });
            self.inbox = Inbox { floor: self.inbox.floor.min(head), told: self.inbox.floor.min(head), seen: head };
        } else {
            self.inbox.seen = self.inbox.seen.max(welcome.floor());
        }
        Ok(())
    }

    fn on_deliver(&mut self, deliver: &fb::Deliver<'_>, payload: &[u8]) {
        let got = deliver.inbox_seq();
        if got <= self.inbox.seen {
            // Given to the application before. If acknowledged too, the node has not heard of it: say so again.
            if got <= self.inbox.floor {
                self.inbox.told = self.inbox.told.min(got.saturating_sub(1));
            }
            return;
        }
        let expected = self.inbox.seen + 1;
        if got != expected {
            self.events.push_back(Event::Gap { expected, got });
        }
        self.inbox.seen = got;
        let content = match deliver.event() {
            fb::Event::Message => Content::Message(payload.to_vec()),
            fb::Event::ChatCreated => Content::ChatCreated {
                members: deliver.members().iter().flatten().map(str::to_owned).collect(),
                title: deliver.title().unwrap_or_default().to_owned(),
            },
            other => Content::Unknown { event: other.0, payload: payload.to_vec() },
        };
        self.events.push_back(Event::Delivered(Delivery {
            inbox_seq: got,
            chat: chat_id(deliver.chat()),
            chat_seq: deliver.chat_seq(),
            time_ms: deliver.time_ms(),
            sender: deliver.sender().to_owned(),
            sender_device: deliver.sender_device(),
            content,
        }));
    }

    fn on_sent(&mut self, sent: &fb::Sent<'_>) {
        let (chat, client_seq) = (chat_id(sent.chat()), sent.client_seq());
        // Nobody waits for an answer that came before.
        let Some(wire) = self.sends.stored(chat, client_seq) else { return };
        if let Some(correlation) = wire {
            self.flight.remove(&correlation);
        }
        self.events.push_back(Event::Sent(Receipt {
            chat,
            client_seq,
            chat_seq: sent.chat_seq(),
            time_ms: sent.time_ms(),
            durability: sent.durability(),
            status: sent.status(),
        }));
    }

    fn on_chat_info(&mut self, info: &fb::ChatInfo<'_>) {
        let correlation = info.correlation();
        if self.requests.remove(&correlation).is_none() {
            return;
        }
        self.flight.remove(&correlation);
        let facts = ChatFacts {
            chat: chat_id(info.chat()),
            kind: info.kind(),
            title: info.title().unwrap_or_default().to_owned(),
            members: info.members().iter().flatten().map(str::to_owned).collect(),
            last_seq: info.last_seq(),
            last_client_seq: info.last_client_seq(),
            created: info.created(),
            time_ms: info.time_ms(),
        };
        self.sends.learn(facts.chat, facts.last_client_seq);
        self.events.push_back(Event::Chat { correlation, facts });
    }

    fn on_error(&mut self, now_ms: u64, error: &fb::Error<'_>) {
        let correlation = error.correlation();
        let refusal = Refusal::new(error.code(), error.detail(), error.retry_after_ms());
        let ending = error.closes().then(|| refusal.clone());
        match self.flight.get(&correlation).copied() {
            Some(flight) if error.retriable() => {
                self.flight.remove(&correlation);
                if let (Some((chat, client_seq)), Some(Code::OutOfOrder)) = (flight.send, refusal.code) {
                    self.sends.out_of_order(chat, client_seq, correlation);
                }
                let pause_ms =
                    if error.retry_after_ms() == 0 { RETRY_AFTER_MS } else { u64::from(error.retry_after_ms()) };
                self.again(correlation, flight, now_ms + pause_ms);
            }
            Some(Flight { send: Some((chat, client_seq)), .. }) => {
                self.flight.remove(&correlation);
                if self.sends.refused(chat, client_seq, correlation) {
                    self.events.push_back(Event::SendFailed { chat, client_seq, refusal });
                }
            }
            // A request keeps its number, so that an answer that came after its time counts too.
            Some(Flight { send: None, .. }) | None if !error.retriable() => {
                self.flight.remove(&correlation);
                if self.requests.remove(&correlation).is_some() {
                    self.events.push_back(Event::RequestFailed { correlation, refusal });
                }
            }
            Some(_) | None => {}
        }
        if let Some(refusal) = ending {
            self.end(refusal);
        }
    }

    /// A send or request, no longer in flight, goes out again.
    pub(super) fn again(&mut self, correlation: u64, flight: Flight, not_before_ms: u64) {
        match flight.send {
            Some((chat, client_seq)) => self.sends.again(chat, client_seq, correlation, not_before_ms),
            None => {
                if let Some(request) = self.requests.get_mut(&correlation) {
                    request.on_wire = false;
                    request.not_before_ms = not_before_ms;
                }
            }
        }
    }

    fn end(&mut self, refusal: Refusal) {
        self.phase = Phase::Ending;
        self.events.push_back(Event::GoAway(refusal));
    }
}

//! What the clients of the demo did and saw, and whether it is what was promised. Nothing here comes from the server's
//! own account of itself.

use std::collections::{BTreeMap, HashMap, HashSet};

/// A message of the demo; its text begins with it.
pub(super) type MessageId = u32;

/// Index of a person (each has one device) among the demo's people.
pub(super) type Person = usize;

/// Something that a device was given.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Seen {
    pub(super) inbox_seq: u64,
    pub(super) chat: u128,
    pub(super) chat_seq: u64,
    /// `None` for what is no message, such as the making of a chat.
    pub(super) message: Option<MessageId>,
}

#[derive(Debug)]
struct Sent {
    from: Person,
    chat: u128,
    recipients: Vec<Person>,
    acknowledged: bool,
    /// Place in the chat, if the acknowledgement named it.
    place: Option<u64>,
}

/// Everything that happened, in the order in which it did.
#[derive(Debug, Default)]
pub(super) struct Ledger {
    sent: BTreeMap<MessageId, Sent>,
    seen: HashMap<Person, Vec<Seen>>,
}

/// The count of it.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Verdict {
    pub(super) sent: usize,
    pub(super) acknowledged: usize,
    /// Messages that reached everybody they were for.
    pub(super) delivered: usize,
    /// Acknowledged messages that somebody did not get, for each whom they did not reach.
    pub(super) lost: usize,
    pub(super) duplicated: usize,
    pub(super) reordered: usize,
    /// What else was wrong: a gap in a sequence, a message that nobody sent, two messages in one place.
    pub(super) wrong: Vec<String>,
}

impl Verdict {
    /// Whether every promise was kept, and to everybody.
    pub(super) fn good(&self) -> bool {
        let nothing_bad = self.lost == 0 && self.duplicated == 0 && self.reordered == 0 && self.wrong.is_empty();
        nothing_bad && self.sent == self.acknowledged && self.sent == self.delivered
    }
}

impl Ledger {
    /// A message is about to be sent. Returns its number.
    pub(super) fn send(&mut self, from: Person, chat: u128, recipients: Vec<Person>) -> MessageId {
        let id = self.sent.len() as MessageId + 1;
        self.sent.insert(id, Sent { from, chat, recipients, acknowledged: false, place: None });
        id
    }

    /// The server said that a message is stored; 0 is no place.
    pub(super) fn acknowledge(&mut self, id: MessageId, chat_seq: u64) {
        if let Some(sent) = self.sent.get_mut(&id) {
            sent.acknowledged = true;
            sent.place = (chat_seq > 0).then_some(chat_seq);
        }
    }

    /// A device was given something.
    pub(super) fn see(&mut self, person: Person, seen: Seen) {
        self.seen.entry(person).or_default().push(seen);
    }

    /// Messages sent so far.
    pub(super) fn sent(&self) -> usize {
        self.sent.len()
    }

    /// Messages acknowledged so far.
    pub(super) fn acknowledged(&self) -> usize {
        self.sent.values().filter(|sent| sent.acknowledged).count()
    }

    /// Deliveries that `person` has got so far: the head of the inbox, if nothing is missing.
    pub(super) fn deliveries_of(&self, person: Person) -> usize {
        self.seen.get(&person).map_or(0, Vec::len)
    }

    /// Messages that `person` has got so far.
    pub(super) fn messages_of(&self, person: Person) -> usize {
        self.seen.get(&person).map_or(0, |seen| seen.iter().filter(|seen| seen.message.is_some()).count())
    }

    /// Messages that `person` should have when everything sent so far has arrived.
    pub(super) fn due_to(&self, person: Person) -> usize {
        self.sent.values().filter(|sent| sent.recipients.contains(&person)).count()
    }

    /// Compares what was seen with what was sent.
    pub(super) fn verdict(&self) -> Verdict {
        let mut verdict = Verdict { sent: self.sent(), acknowledged: self.acknowledged(), ..Verdict::default() };
        for (&person, seen) in &self.seen {
            self.check_order(person, seen, &mut verdict);
            self.check_each(person, seen, &mut verdict);
        }
        self.check_arrival(&mut verdict);
        self.check_places(&mut verdict);
        verdict.wrong.sort();
        verdict
    }

    /// An inbox counts 1, 2, 3 …; each chat in it goes up; and so do the messages of each sender in it.
    fn check_order(&self, person: Person, seen: &[Seen], verdict: &mut Verdict) {
        let mut chats: HashMap<u128, u64> = HashMap::new();
        let mut senders: HashMap<(u128, Person), MessageId> = HashMap::new();
        for (place, item) in seen.iter().enumerate() {
            if item.inbox_seq != place as u64 + 1 {
                verdict.wrong.push(format!(
                    "person {person}: delivery {} of the inbox came as number {}",
                    item.inbox_seq,
                    place + 1
                ));
            }
            let last = chats.entry(item.chat).or_default();
            let chat_in_order = item.chat_seq > *last;
            *last = item.chat_seq.max(*last);
            let sender_in_order =
                item.message.and_then(|id| self.sent.get(&id).map(|sent| (id, sent.from))).is_none_or(|(id, from)| {
                    let last = senders.entry((item.chat, from)).or_default();
                    let in_order = id > *last;
                    *last = id.max(*last);
                    in_order
                });
            if !(chat_in_order && sender_in_order) {
                verdict.reordered += 1;
            }
        }
    }

    /// Each message once, to whom it was for, in the place that its sender was told.
    fn check_each(&self, person: Person, seen: &[Seen], verdict: &mut Verdict) {
        let mut had = HashSet::new();
        for item in seen {
            let Some(id) = item.message else { continue };
            if !had.insert(id) {
                verdict.duplicated += 1;
                continue;
            }
            match self.sent.get(&id) {
                Some(sent) if sent.chat == item.chat && sent.recipients.contains(&person) => {
                    if let Some(place) = sent.place.filter(|&place| place != item.chat_seq) {
                        verdict.wrong.push(format!(
                            "message {id} has place {place} to its sender, {} to person {person}",
                            item.chat_seq
                        ));
                    }
                }
                Some(_) => verdict.wrong.push(format!("message {id} came to person {person}, for whom it is not")),
                None => verdict.wrong.push(format!("message {id}, which nobody sent, came to person {person}")),
            }
        }
    }

    fn check_arrival(&self, verdict: &mut Verdict) {
        let had: HashMap<Person, HashSet<MessageId>> = self
            .seen
            .iter()
            .map(|(&person, seen)| (person, seen.iter().filter_map(|seen| seen.message).collect()))
            .collect();
        for (id, sent) in &self.sent {
            let missing =
                sent.recipients.iter().filter(|person| !had.get(person).is_some_and(|had| had.contains(id))).count();
            if missing == 0 {
                verdict.delivered += 1;
            } else if sent.acknowledged {
                verdict.lost += missing;
            }
        }
    }

    /// The places of a chat, from all who know them, are 1, 2, 3 … without a gap, each taken once.
    fn check_places(&self, verdict: &mut Verdict) {
        let mut places: BTreeMap<u128, BTreeMap<u64, HashSet<Option<MessageId>>>> = BTreeMap::new();
        for item in self.seen.values().flatten() {
            places.entry(item.chat).or_default().entry(item.chat_seq).or_default().insert(item.message);
        }
        for (&id, sent) in &self.sent {
            if let Some(place) = sent.place {
                places.entry(sent.chat).or_default().entry(place).or_default().insert(Some(id));
            }
        }
        for (chat, places) in &places {
            for (expected, (&place, holders)) in (1..).zip(places) {
                if place != expected {
                    verdict.wrong.push(format!("chat {chat:032x} has a gap: {place} follows {}", expected - 1));
                    break;
                }
                if holders.len() > 1 {
                    verdict.wrong.push(format!("chat {chat:032x} has {} things in place {place}", holders.len()));
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const CHAT: u128 = 7;

    /// Person 0 makes the chat and sends three messages to 1 and 2, who get everything.
    fn story() -> Ledger {
        let mut ledger = Ledger::default();
        for person in 0..3 {
            ledger.see(person, Seen { inbox_seq: 1, chat: CHAT, chat_seq: 1, message: None });
        }
        for place in 2..5 {
            let id = ledger.send(0, CHAT, vec![1, 2]);
            ledger.acknowledge(id, place);
            for person in 1..3 {
                ledger.see(person, Seen { inbox_seq: place, chat: CHAT, chat_seq: place, message: Some(id) });
            }
        }
        ledger
    }

    fn of(ledger: &mut Ledger, person: Person) -> &mut Vec<Seen> {
        ledger.seen.get_mut(&person).unwrap()
    }

    #[test]
    fn a_good_story_is_good() {
        let verdict = story().verdict();
        assert_eq!(verdict, Verdict { sent: 3, acknowledged: 3, delivered: 3, ..Verdict::default() });
        assert!(verdict.good());
    }

    #[test]
    fn a_lost_message_is_found() {
        let mut ledger = story();
        of(&mut ledger, 2).pop();
        let verdict = ledger.verdict();
        assert_eq!((verdict.lost, verdict.delivered, verdict.good()), (1, 2, false));
    }

    #[test]
    fn what_was_not_acknowledged_is_not_lost_but_not_good_either() {
        let mut ledger = story();
        ledger.send(0, CHAT, vec![1]);
        let verdict = ledger.verdict();
        assert_eq!((verdict.lost, verdict.sent, verdict.acknowledged, verdict.good()), (0, 4, 3, false));
    }

    #[test]
    fn a_message_shown_twice_is_found() {
        let mut ledger = story();
        let again = Seen { inbox_seq: 5, ..of(&mut ledger, 1)[3] };
        of(&mut ledger, 1).push(again);
        let verdict = ledger.verdict();
        assert_eq!((verdict.duplicated, verdict.good()), (1, false));
    }

    #[test]
    fn another_order_is_found() {
        let mut ledger = story();
        let seen = of(&mut ledger, 1);
        seen.swap(2, 3);
        (seen[2].inbox_seq, seen[3].inbox_seq) = (3, 4);
        let verdict = ledger.verdict();
        assert_eq!((verdict.reordered, verdict.lost, verdict.good()), (1, 0, false));
    }

    #[test]
    fn a_gap_a_phantom_and_a_shared_place_are_found() {
        let mut ledger = story();
        of(&mut ledger, 1).push(Seen { inbox_seq: 6, chat: CHAT, chat_seq: 6, message: Some(99) });
        let verdict = ledger.verdict();
        assert_eq!(verdict.wrong.len(), 3, "{:?}", verdict.wrong);
        let mut ledger = story();
        ledger.acknowledge(3, 3);
        assert!(!ledger.verdict().good());
    }
}

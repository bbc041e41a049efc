//! Entries of the log: written, read both ways, damaged.

use proptest::collection::vec;
use proptest::prelude::{any, prop_assert_eq, proptest};
use whimbrel_wire::command::{
    COMMAND_HEADER_BYTES, Command, CommandError, ENTRY_HEADER_BYTES, Entry, Verifier, command_at,
};
use whimbrel_wire::{ChatCreateFields, ChatSendFields, CommandBuilder, EntryWriter, FanOutFields, chat_id, fb};

const CHAT: u128 = 0x0123_4567_89ab_cdef_fedc_ba98_7654_3210;

/// One of each kind.
fn entry(wall_ms: u64) -> Vec<u8> {
    let (mut writer, mut b) = (EntryWriter::default(), CommandBuilder::default());
    writer.device_register(&mut b, "alice", 1, 7);
    let members = ["alice", "bob"];
    let create = ChatCreateFields {
        chat: CHAT,
        kind: fb::ChatKind::Group,
        maker: "alice",
        maker_device: 1,
        members: &members,
        title: "Birds",
    };
    writer.chat_create(&mut b, &create);
    writer.chat_send(
        &mut b,
        &ChatSendFields { chat: CHAT, sender: "alice", device: 1, client_seq: 3, prev: 2 },
        b"hello",
    );
    writer.outbox_confirm(&mut b, &[(CHAT, 5, 9), (1, 6, 10)]);
    let fan_out = FanOutFields {
        chat: CHAT,
        chat_seq: 9,
        prev: 8,
        time_ms: 77,
        sender: "alice",
        sender_device: 1,
        event: fb::Event::Message,
        members: &[],
        title: "",
    };
    writer.fan_out(&mut b, &fan_out, b"hello again");
    writer.device_ack(&mut b, &[(1, 2), (3, 4)]);
    assert_eq!(writer.count(), 6);
    let len = writer.len_bytes();
    let bytes = writer.take(wall_ms);
    assert_eq!(bytes.len(), len);
    assert!(writer.is_empty() && writer.len_bytes() == 0);
    bytes
}

fn tell(command: &Command<'_>) -> String {
    match command {
        Command::DeviceRegister(c) => format!("register {}/{} epoch {}", c.user(), c.device(), c.token_epoch()),
        Command::ChatCreate(c) => format!(
            "create {:x} {:?} by {}/{} of {:?} titled {:?}",
            chat_id(c.chat()),
            c.kind(),
            c.maker(),
            c.maker_device(),
            c.members().iter().collect::<Vec<_>>(),
            c.title()
        ),
        Command::ChatSend(c, payload) => {
            format!(
                "send {:x} {}/{} {} after {}: {payload:?}",
                chat_id(c.chat()),
                c.sender(),
                c.device(),
                c.client_seq(),
                c.prev()
            )
        }
        Command::OutboxConfirm(c) => {
            let marks: Vec<_> = c
                .marks()
                .iter()
                .map(|m| format!("{:x}/{}/{}", chat_id(m.chat()), m.partition(), m.chat_seq()))
                .collect();
            format!("confirm {}", marks.join(" "))
        }
        Command::FanOut(c, payload) => format!(
            "fan out {:x} {} after {} at {} of {}/{} {:?} {:?} {:?}: {payload:?}",
            chat_id(c.chat()),
            c.chat_seq(),
            c.prev(),
            c.time_ms(),
            c.sender(),
            c.sender_device(),
            c.event(),
            c.members().map(|list| list.len()),
            c.title()
        ),
        Command::DeviceAck(c) => {
            format!("ack {:?}", c.marks().iter().map(|m| (m.inbox(), m.floor())).collect::<Vec<_>>())
        }
    }
}

#[test]
fn what_was_written_is_read_both_ways() {
    let bytes = entry(1_234);
    let told = |entry: &Entry<'_>| entry.iter().map(|at| tell(&at.command)).collect::<Vec<_>>();
    let verified = Entry::verify(&bytes).unwrap();
    assert_eq!((verified.wall_ms(), verified.count()), (1_234, 6));
    let commands = told(&verified);
    assert_eq!(
        commands,
        [
            "register alice/1 epoch 7",
            "create 123456789abcdeffedcba9876543210 Group by alice/1 of [\"alice\", \"bob\"] titled Some(\"Birds\")",
            "send 123456789abcdeffedcba9876543210 alice/1 3 after 2: [104, 101, 108, 108, 111]",
            "confirm 123456789abcdeffedcba9876543210/5/9 1/6/10",
            "fan out 123456789abcdeffedcba9876543210 9 after 8 at 77 of alice/1 Message None None: [104, 101, 108, 108, 111, 32, 97, 103, 97, 105, 110]",
            "ack [(1, 2), (3, 4)]",
        ]
    );
    assert_eq!(told(&Entry::trusted(&bytes).unwrap()), commands);
}

#[test]
fn a_command_is_found_again_by_its_place() {
    let bytes = entry(1);
    for at in Entry::trusted(&bytes).unwrap().iter() {
        assert_eq!(at.offset % 8, 0);
        let (start, len) = (at.offset as usize, at.len as usize);
        assert_eq!(tell(&command_at(&bytes[start..start + len]).unwrap()), tell(&at.command));
        // The bytes behind it do not matter.
        assert_eq!(tell(&command_at(&bytes[start..]).unwrap()), tell(&at.command));
        assert!(command_at(&bytes[start..start + len - 1]).is_err());
        assert!(command_at(&bytes[start..start + COMMAND_HEADER_BYTES - 1]).is_err());
    }
    assert!(command_at(&[]).is_err());
}

#[test]
fn a_command_is_verified_by_its_place() {
    let bytes = entry(1);
    let (mut verifier, mut refused, mut all) = (Verifier::default(), 0, 0);
    for at in Entry::trusted(&bytes).unwrap().iter() {
        let command = &bytes[at.offset as usize..(at.offset + at.len) as usize];
        assert_eq!(tell(&verifier.command_at(command).unwrap()), tell(&at.command));
        assert!(verifier.command_at(&command[..command.len() - 1]).is_err());
        // Where the root of its table is, somewhere else: flatbuffers would follow it anywhere.
        for bit in 0..32 {
            let mut other = command.to_vec();
            other[COMMAND_HEADER_BYTES + bit / 8] ^= 1 << (bit % 8);
            (refused, all) = (refused + u32::from(verifier.command_at(&other).is_err()), all + 1);
            // Those that hold by chance are tables.
            let _ = verifier.command_at(&other).map(|command| tell(&command));
        }
    }
    assert!(refused > all * 9 / 10, "{refused} of {all}");
    assert!(verifier.command_at(&[]).is_err());
}

#[test]
fn an_empty_entry_is_one() {
    let bytes = EntryWriter::default().take(5);
    assert_eq!(bytes.len(), ENTRY_HEADER_BYTES);
    let entry = Entry::verify(&bytes).unwrap();
    assert_eq!((entry.wall_ms(), entry.count(), entry.iter().count()), (5, 0, 0));
}

#[test]
fn a_damaged_entry_is_refused_with_its_reason() {
    let good = entry(1);
    let with = |at: usize, value: u8| {
        let mut bytes = good.clone();
        bytes[at] = value;
        bytes
    };
    let error = |bytes: &[u8]| Entry::verify(bytes).unwrap_err();
    assert_eq!(error(&good[..15]), CommandError::Short(15));
    assert_eq!(error(&with(0, 2)), CommandError::Version(2));
    assert_eq!(error(&with(4, 7)), CommandError::Count { count: 7, found: 6 });
    assert_eq!(error(&with(ENTRY_HEADER_BYTES, 0)), CommandError::Bounds(ENTRY_HEADER_BYTES));
    assert_eq!(error(&with(ENTRY_HEADER_BYTES + 3, 0xff)), CommandError::Bounds(ENTRY_HEADER_BYTES));
    assert_eq!(error(&with(ENTRY_HEADER_BYTES + 4, 9)), CommandError::Kind { kind: 9, offset: ENTRY_HEADER_BYTES });
    assert_eq!(error(&with(ENTRY_HEADER_BYTES + 10, 0xff)), CommandError::Bounds(ENTRY_HEADER_BYTES));
    assert_eq!(
        error(&with(ENTRY_HEADER_BYTES + COMMAND_HEADER_BYTES + 3, 0x7f)),
        CommandError::Table(ENTRY_HEADER_BYTES)
    );
    assert!(matches!(error(&good[..good.len() - 1]), CommandError::Bounds(_)));
}

proptest! {
    #[test]
    fn arbitrary_bytes_never_panic(mut bytes in vec(any::<u8>(), 0..512), plausible in any::<bool>()) {
        if plausible && bytes.len() > ENTRY_HEADER_BYTES + COMMAND_HEADER_BYTES {
            let len = (bytes.len() - ENTRY_HEADER_BYTES) as u32;
            bytes[..8].copy_from_slice(&[1, 0, 0, 0, 1, 0, 0, 0]);
            bytes[16..20].copy_from_slice(&len.to_le_bytes());
            bytes[20] %= 7;
            bytes[24..28].copy_from_slice(&(len - COMMAND_HEADER_BYTES as u32).to_le_bytes());
        }
        if let Ok(entry) = Entry::verify(&bytes) {
            entry.iter().for_each(|at| drop(tell(&at.command)));
        }
    }

    #[test]
    fn damaged_entries_never_panic(at in 0usize..10_000, value in any::<u8>()) {
        let mut bytes = entry(1);
        let at = at % bytes.len();
        bytes[at] = value;
        if let Ok(entry) = Entry::verify(&bytes) {
            entry.iter().for_each(|at| drop(tell(&at.command)));
        }
    }

    #[test]
    fn payloads_come_back_whole(payloads in vec(vec(any::<u8>(), 0..200), 0..20)) {
        let (mut writer, mut b) = (EntryWriter::default(), CommandBuilder::default());
        for (index, payload) in payloads.iter().enumerate() {
            let fields = ChatSendFields { chat: CHAT, sender: "alice", device: 1, client_seq: index as u64 + 1, prev: index as u64 };
            writer.chat_send(&mut b, &fields, payload);
        }
        let bytes = writer.take(9);
        let entry = Entry::verify(&bytes).unwrap();
        let read: Vec<Vec<u8>> = entry
            .iter()
            .map(|at| match at.command {
                Command::ChatSend(_, payload) => payload.to_vec(),
                other => panic!("{other:?}"),
            })
            .collect();
        prop_assert_eq!(read, payloads);
    }
}

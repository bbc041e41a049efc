//! Verifying the tables of commands as thoroughly as flatbuffers does, and several times as fast: a start verifies every
//! command that a log has.
//!
//! The tables of one kind that this program writes begin alike: where the table is, its vtable, and where that one is. All that
//! flatbuffers looks at in such a beginning, and at the fields that lie in the table itself, follows from these bytes and the length,
//! so that it is looked at once. What a field refers to is looked at each time. Whatever is not known is left to flatbuffers.

use crate::command::CommandKind;
use crate::trusted;

/// Beginnings of one kind that are kept.
const SHAPES_MAX: usize = 16;

/// Longer beginnings, and tables, are not kept. Below this the limits that flatbuffers is told are never met.
const HEAD_MAX_BYTES: usize = 64;
const TABLE_MAX_BYTES: usize = 64 << 10;

/// The vtable's own length and the table's, before the places of the fields.
const VTABLE_HEAD_BYTES: usize = 4;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Field {
    /// In the table itself.
    Inline,
    Text,
    /// A vector of structs, each of so many bytes.
    Structs(usize),
    /// A table that has it is left to flatbuffers.
    Other,
}

/// The fields of a table, by their ids in `schema/log.fbs`. One that is not listed is [`Field::Other`].
const fn fields(kind: CommandKind) -> &'static [Field] {
    use Field::{Inline, Other, Structs, Text};
    match kind {
        CommandKind::DeviceRegister => &[Text, Inline, Inline],
        CommandKind::ChatCreate => &[Inline, Inline, Text, Inline, Other, Text],
        CommandKind::ChatSend => &[Inline, Text, Inline, Inline, Inline],
        CommandKind::OutboxConfirm => &[Structs(32)],
        CommandKind::FanOut => &[Inline, Inline, Inline, Inline, Text, Inline, Inline, Other, Text],
        CommandKind::DeviceAck => &[Structs(16)],
    }
}

/// Beginnings of tables that hold, by kind.
#[derive(Debug, Default)]
pub(crate) struct Shapes {
    kinds: [Vec<Shape>; CommandKind::DeviceAck as usize],
}

#[derive(Debug)]
struct Shape {
    head: Vec<u8>,
    /// Of the shortest table with it that held.
    len_min: usize,
    /// Where what refers to something else is.
    references: Vec<(usize, Field)>,
}

impl Shapes {
    /// Whether the table is one of its kind.
    pub(crate) fn verify(&mut self, kind: CommandKind, table: &[u8]) -> Result<(), ()> {
        let shapes = &mut self.kinds[kind as usize - 1];
        let known = shapes.iter_mut().find(|shape| table.starts_with(&shape.head));
        if known.as_ref().is_some_and(|shape| shape.holds(table)) {
            return Ok(());
        }
        trusted::verify_command(kind as u8, table)?;
        match known {
            Some(shape) => shape.len_min = shape.len_min.min(table.len()),
            None => shapes.extend(Shape::of(kind, table).filter(|_| shapes.len() < SHAPES_MAX)),
        }
        Ok(())
    }
}

impl Shape {
    /// Of a table that was verified, if it is worth while.
    fn of(kind: CommandKind, table: &[u8]) -> Option<Shape> {
        let at = u32_at(table, 0)?;
        let vtable = at.checked_sub(u32_at(table, at)?)?;
        let vtable_len = u16_at(table, vtable)?;
        let head = table.get(..at + 4)?;
        // Then nothing of it can change without the head.
        if vtable + vtable_len > at || head.len() > HEAD_MAX_BYTES {
            return None;
        }
        let mut references = Vec::new();
        let places = (VTABLE_HEAD_BYTES..vtable_len).step_by(2);
        let known = fields(kind).iter().copied().chain(std::iter::repeat(Field::Other));
        for (place, field) in places.zip(known) {
            match (u16_at(table, vtable + place)?, field) {
                (0, _) | (_, Field::Inline) => {}
                (_, Field::Other) => return None,
                (offset, field) => references.push((at + offset, field)),
            }
        }
        Some(Shape { head: head.to_vec(), len_min: table.len(), references })
    }

    /// Of a table that begins so.
    fn holds(&self, table: &[u8]) -> bool {
        (self.len_min..TABLE_MAX_BYTES).contains(&table.len())
            && self.references.iter().all(|&(at, field)| refers(table, at, field).is_some())
    }
}

/// Whether what a field refers to is there, as flatbuffers has it.
fn refers(table: &[u8], at: usize, field: Field) -> Option<()> {
    let to = at.checked_add(u32_at(table, at)?)?;
    let count = u32_at(table, to).filter(|_| to.is_multiple_of(4))?;
    let rest = &table[to + 4..];
    match field {
        Field::Text => {
            let text = rest.get(..count)?;
            let is_text = text.is_ascii() || std::str::from_utf8(text).is_ok();
            (is_text && rest.get(count) == Some(&0)).then_some(())
        }
        Field::Structs(bytes) => rest.get(..count.checked_mul(bytes)?).map(|_| ()),
        Field::Inline | Field::Other => None,
    }
}

fn u16_at(bytes: &[u8], at: usize) -> Option<usize> {
    bytes.get(at..)?.first_chunk().map(|bytes| usize::from(u16::from_le_bytes(*bytes)))
}

fn u32_at(bytes: &[u8], at: usize) -> Option<usize> {
    bytes.get(at..)?.first_chunk().map(|bytes| u32::from_le_bytes(*bytes) as usize)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::command::{COMMAND_HEADER_BYTES, ENTRY_HEADER_BYTES};
    use crate::{ChatCreateFields, ChatSendFields, CommandBuilder, EntryWriter, FanOutFields, fb};

    /// Tables of every kind, with names of many lengths, with and without what may be left out.
    fn tables() -> Vec<(CommandKind, Vec<u8>)> {
        let mut tables = Vec::new();
        let mut write = |each: &dyn Fn(&mut EntryWriter, &mut CommandBuilder)| {
            let (mut writer, mut b) = (EntryWriter::default(), CommandBuilder::default());
            each(&mut writer, &mut b);
            let entry = writer.take(1);
            let (head, rest) = entry[ENTRY_HEADER_BYTES..].split_at(COMMAND_HEADER_BYTES);
            let table_len = u32_at(head, 8).unwrap();
            tables.push((CommandKind::from_u8(head[4]).unwrap(), rest[..table_len].to_vec()));
        };
        for name in ["b", "äh", "rail", "curlew", "whimbrel", "spoonbill", "oystercatcher", "bar-tailed-godwit"] {
            for n in [0, 7] {
                write(&|w, b| w.device_register(b, name, n as u32, 3));
                let (title, members) = (if n == 0 { "" } else { name }, [name, "dunlin"]);
                let create = ChatCreateFields {
                    chat: 5,
                    kind: fb::ChatKind::Group,
                    maker: name,
                    maker_device: 1,
                    members: &members,
                    title,
                };
                write(&|w, b| w.chat_create(b, &create));
                let send = ChatSendFields { chat: 5, sender: name, device: 1, client_seq: 9, prev: n };
                write(&|w, b| w.chat_send(b, &send, &[7; 20]));
                let members: &[&str] = if n == 0 { &[] } else { &members };
                let fan_out = FanOutFields {
                    chat: 5,
                    chat_seq: 2,
                    prev: n,
                    time_ms: 3,
                    sender: name,
                    sender_device: 4,
                    event: fb::Event::Message,
                    members,
                    title,
                };
                write(&|w, b| w.fan_out(b, &fan_out, &[7; 20]));
                write(&|w, b| w.fan_out(b, &FanOutFields { members: &[], ..fan_out }, &[]));
                write(&|w, b| w.outbox_confirm(b, &vec![(1, 2, 3); n as usize]));
                write(&|w, b| w.device_ack(b, &vec![(1, 2); n as usize]));
            }
        }
        tables
    }

    const ROUNDS: u32 = 200_000;

    #[test]
    fn it_says_what_flatbuffers_says_whatever_byte_is_another() {
        let tables = tables();
        let mut shapes = Shapes::default();
        tables.iter().for_each(|(kind, table)| shapes.verify(*kind, table).unwrap());
        let quick = |shapes: &Shapes, kind: CommandKind, table: &[u8]| {
            let known = shapes.kinds[kind as usize - 1].iter().find(|shape| table.starts_with(&shape.head));
            known.is_some_and(|shape| shape.holds(table))
        };
        let (mut quickly, mut accepted, mut refused) = (0_u64, 0_u64, 0_u64);
        let mut same = |kind: CommandKind, table: &[u8]| {
            let thorough = trusted::verify_command(kind as u8, table).is_ok();
            assert!(thorough || !quick(&shapes, kind, table), "{kind:?} {table:?}");
            quickly += u64::from(quick(&shapes, kind, table));
            (accepted, refused) = (accepted + u64::from(thorough), refused + u64::from(!thorough));
        };
        for (kind, table) in &tables {
            same(*kind, table);
            for len in 0..table.len() {
                same(*kind, &table[..len]);
            }
            for at in 0..table.len() {
                let mut other = table.clone();
                for value in (0..=u8::MAX).filter(|&value| value != table[at]) {
                    other[at] = value;
                    same(*kind, &other);
                }
            }
        }
        assert!(quickly > 100_000 && accepted >= quickly && refused > 100_000, "{quickly} {accepted} {refused}");
    }

    #[test]
    fn what_it_learns_of_forged_tables_misleads_it_nowhere() {
        let tables = tables();
        let (mut state, mut quickly, mut learnt) = (0x2545_F491_4F6C_DD1D_u64, 0_u32, 0);
        let mut below = |end: usize| {
            state ^= state << 13;
            state ^= state >> 7;
            state ^= state << 17;
            (state % end as u64) as usize
        };
        let mut shapes = Shapes::default();
        for round in 0..ROUNDS {
            if round % 64 == 0 {
                // Of forged tables there are more than it keeps.
                shapes = Shapes::default();
            }
            let (kind, table) = &tables[below(tables.len())];
            let mut table = table.clone();
            for _ in 0..below(4) {
                // Offsets are small numbers, most of them even.
                let (at, value) = (below(table.len().min(48)), below(table.len() + 8) as u8);
                table[at] = if value % 4 == 1 { value } else { value & !1 };
            }
            if below(3) == 0 {
                table.resize(below(table.len() + 16), 0);
            }
            // Often learnt whole, and then met shorter.
            for len in [table.len(), table.len() - below(table.len() + 1), table.len()] {
                let table = &table[..len];
                let known = shapes.kinds[*kind as usize - 1].iter().find(|shape| table.starts_with(&shape.head));
                quickly += u32::from(known.is_some_and(|shape| shape.holds(table)));
                let thorough = trusted::verify_command(*kind as u8, table);
                assert_eq!(shapes.verify(*kind, table), thorough, "{kind:?} {table:?}");
            }
            learnt = learnt.max(shapes.kinds.iter().map(Vec::len).sum());
        }
        assert!(quickly > ROUNDS / 5 && learnt > 12, "{quickly} {learnt}");
    }

    #[test]
    fn what_is_written_most_is_verified_quickly() {
        let mut shapes = Shapes::default();
        let tables = tables();
        tables.iter().for_each(|(kind, table)| shapes.verify(*kind, table).unwrap());
        let mut quick = [0; 7];
        for (kind, table) in &tables {
            let known = shapes.kinds[*kind as usize - 1].iter().find(|shape| table.starts_with(&shape.head));
            quick[*kind as usize] += u32::from(known.is_some_and(|shape| shape.holds(table)));
        }
        // All of them but the making of chats, and fan-out records that have members.
        assert_eq!(quick, [0, 16, 0, 16, 16, 24, 16]);
    }
}

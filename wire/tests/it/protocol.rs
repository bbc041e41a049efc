//! PROTOCOL.md says what the code does.

use whimbrel_wire::{Builder, ChatInfoFields, Code, DeliverFields, HelloFields, Kind, Payload, fb, limits};

const PROTOCOL: &str = include_str!("../../PROTOCOL.md");
const SCHEMA: &str = include_str!("../../schema/client.fbs");

/// The part under a heading, up to the next one of its level or above.
fn section(heading: &str) -> &'static str {
    let start = PROTOCOL.find(&format!("\n{heading}\n")).unwrap_or_else(|| panic!("no {heading}")) + heading.len() + 2;
    let level = heading.split(' ').next().unwrap();
    let rest = &PROTOCOL[start..];
    let end =
        rest.lines().position(|line| line.starts_with('#') && line.split(' ').next().unwrap().len() <= level.len());
    let end = end.map_or(rest.len(), |lines| rest.lines().take(lines).map(|line| line.len() + 1).sum());
    &rest[..end]
}

/// The rows of a section's tables, without heads.
fn rows(section: &str) -> Vec<Vec<String>> {
    let cells = |line: &str| line.trim_matches('|').split('|').map(|cell| cell.trim().to_owned()).collect::<Vec<_>>();
    let rows = section.lines().filter(|line| line.starts_with('|')).map(cells);
    rows.filter(|row| row.iter().all(|cell| cell != "---")).skip(1).collect()
}

#[test]
fn the_error_table_is_the_one_of_the_code() {
    let yes = |is: bool| if is { "yes" } else { "no" }.to_owned();
    let of_code = |code: &Code| {
        vec![
            (*code as u16).to_string(),
            code.name().to_owned(),
            yes(code.retriable()),
            yes(code.closes()),
            code.text().to_owned(),
        ]
    };
    assert_eq!(rows(section("## 6. Errors")), Code::ALL.iter().map(of_code).collect::<Vec<_>>());
}

#[test]
fn the_kinds_are_those_of_the_code() {
    let rows = rows(section("## 3. Kinds"));
    let kinds: Vec<_> = rows.iter().take(Kind::ALL.len()).map(|row| (row[0].clone(), row[1].clone())).collect();
    let of_code = |kind: &Kind| ((*kind as u8).to_string(), format!("{kind:?}"));
    assert_eq!(kinds, Kind::ALL.iter().map(of_code).collect::<Vec<_>>());
}

/// The fields of a table of the schema: id, name, type, as PROTOCOL.md writes them.
fn fields(table: &str) -> Vec<Vec<String>> {
    let start = SCHEMA.find(&format!("table {table} {{")).unwrap_or_else(|| panic!("no table {table}"));
    let body = &SCHEMA[start..];
    let body = &body[body.find('{').unwrap() + 1..body.find('}').unwrap()];
    let field = |text: &str| {
        let (name, rest) = text.trim().split_once(':').unwrap();
        let (kind, attributes) = rest.split_once(" (").unwrap();
        let id = attributes.trim_start_matches("id: ").trim_end_matches(')').split(',').next().unwrap();
        let required = if attributes.contains("required") { "!" } else { "" };
        vec![id.to_owned(), name.to_owned(), format!("{kind}{required}")]
    };
    body.split(';').filter(|text| !text.trim().is_empty()).map(field).collect()
}

#[test]
fn every_field_of_every_kind_is_described() {
    for kind in Kind::ALL {
        let table = format!("{kind:?}");
        let described: Vec<_> = rows(section(&format!("### {table}"))).iter().map(|row| row[..3].to_vec()).collect();
        assert_eq!(described, fields(&table), "{table}");
    }
}

#[test]
fn the_limits_are_those_of_the_code() {
    let limits = [
        ("FRAME_MAX_BYTES", limits::FRAME_MAX_BYTES),
        ("FRAME_MAX_BEFORE_LOGIN_BYTES", limits::FRAME_MAX_BEFORE_LOGIN_BYTES),
        ("PAYLOAD_MAX_BYTES", limits::PAYLOAD_MAX_BYTES),
        ("TOKEN_MAX_BYTES", limits::TOKEN_MAX_BYTES),
        ("AGENT_MAX_BYTES", limits::AGENT_MAX_BYTES),
        ("USER_MAX_BYTES", limits::USER_MAX_BYTES),
        ("TITLE_MAX_BYTES", limits::TITLE_MAX_BYTES),
        ("MEMBERS_MAX", limits::MEMBERS_MAX),
        ("DETAIL_MAX_BYTES", limits::DETAIL_MAX_BYTES),
    ];
    let told: Vec<_> =
        rows(section("## 7. Limits")).iter().map(|row| (row[0].replace('`', ""), row[1].replace(',', ""))).collect();
    assert_eq!(told, limits.map(|(name, value)| (name.to_owned(), value.to_string())));
    let declared = include_str!("../../src/limits.rs").lines().filter(|line| line.starts_with("pub const")).count();
    assert_eq!(declared, limits.len(), "a limit that PROTOCOL.md does not name");
}

#[test]
fn the_frame_that_is_printed_is_the_one_that_is_built() {
    let dump: String = section("## 1. Frames")
        .lines()
        .filter(|line| {
            line.starts_with("    ") && line.trim_start().split(' ').next().is_some_and(|word| word.len() == 2)
        })
        .map(|line| line.trim_start().split("   ").next().unwrap())
        .flat_map(|bytes| bytes.split_whitespace())
        .collect();
    let mut frame = Vec::new();
    Builder::default().ping(&mut frame, 7);
    assert_eq!(crate::json::unhex(&dump), frame);
}

#[test]
fn the_checksum_is_the_one_that_is_described() {
    assert_eq!(crc32c::crc32c(b"123456789"), 0xe306_9283);
    assert!(PROTOCOL.contains("0xE3069283"));
}

#[test]
fn the_files_that_are_named_exist() {
    for path in ["schema/client.fbs", "golden/0.1.0/good/ping.bin", "clients/rust"] {
        assert!(PROTOCOL.contains(path), "{path}");
        assert!(std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join(path).exists(), "{path}");
    }
}

#[test]
fn the_largest_frames_fit() {
    let (token, agent) = ("t".repeat(limits::TOKEN_MAX_BYTES), "a".repeat(limits::AGENT_MAX_BYTES));
    let (user, title) = ("u".repeat(limits::USER_MAX_BYTES), "t".repeat(limits::TITLE_MAX_BYTES));
    let members = vec![&user[..]; limits::MEMBERS_MAX];
    let max = u64::MAX;
    let fits = |frame_max: usize, write: &dyn Fn(&mut Builder, &mut Vec<u8>)| {
        let mut out = Vec::new();
        write(&mut Builder::default(), &mut out);
        assert!(out.len() <= frame_max, "{} bytes", out.len());
    };
    fits(limits::FRAME_MAX_BEFORE_LOGIN_BYTES, &|b, out| {
        let fields = HelloFields {
            correlation: max,
            version_min: 1,
            version_max: 1,
            capabilities: max,
            token: &token,
            device: u32::MAX,
            floor: max,
            agent: &agent,
        };
        b.hello(out, &fields);
    });
    let deliver = DeliverFields {
        inbox_seq: max,
        chat: u128::MAX,
        chat_seq: max,
        time_ms: max,
        sender: &user,
        sender_device: u32::MAX,
        event: fb::Event(255),
        ..DeliverFields::default()
    };
    fits(limits::FRAME_MAX_BYTES, &|b, out| {
        b.deliver(out, &deliver, &vec![0; limits::PAYLOAD_MAX_BYTES], Payload::Inline)
    });
    let created = DeliverFields { members: &members, title: &title, ..deliver };
    fits(limits::FRAME_MAX_BYTES, &|b, out| b.deliver(out, &created, b"", Payload::Inline));
    let info = ChatInfoFields {
        correlation: max,
        chat: u128::MAX,
        kind: fb::ChatKind::Group,
        title: &title,
        members: &members,
        last_seq: max,
        last_client_seq: max,
        created: true,
        time_ms: max,
    };
    fits(limits::FRAME_MAX_BYTES, &|b, out| b.chat_info(out, &info));
}

#[test]
fn a_payload_apart_is_the_same_frame() {
    let fields = DeliverFields { inbox_seq: 1, chat: 1, chat_seq: 1, sender: "bob", ..DeliverFields::default() };
    let (mut inline, mut apart) = (Vec::new(), Vec::new());
    let mut b = Builder::default();
    b.deliver(&mut inline, &fields, b"hello", Payload::Inline);
    b.deliver(&mut apart, &fields, b"hello", Payload::Apart);
    apart.extend_from_slice(b"hello");
    assert_eq!(inline, apart);
}

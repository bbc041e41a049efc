//! Values: what is one, when one is met by another, and what is written. Pure.

#![forbid(unsafe_code)]

use crate::table::{Known, Rule, Shape};

/// No limit, as a number.
const ENDLESS: u64 = u64::MAX;

/// Says what is expected if a text is not a value of this key.
///
/// # Errors
/// What values of this key look like.
pub fn validate(known: &Known, text: &str) -> Result<(), String> {
    let numbers = |count| fields(text).len() == count && fields(text).iter().all(|field| field.parse::<u64>().is_ok());
    match known.shape {
        Shape::Numbers(1) if numbers(1) => Ok(()),
        Shape::Numbers(1) => Err("a whole number is expected".to_owned()),
        Shape::Numbers(2) if numbers(2) && number(fields(text)[0]) <= number(fields(text)[1]) => Ok(()),
        Shape::Numbers(2) => Err("two whole numbers are expected, the lower one first".to_owned()),
        Shape::Numbers(count) if numbers(count) && fields(text).is_sorted_by_key(|field| number(field)) => Ok(()),
        Shape::Numbers(count) => Err(format!("{count} whole numbers are expected, none less than the one before it")),
        Shape::Range(low, high) if numbers(1) && (low..=high).contains(&number(text.trim())) => Ok(()),
        Shape::Range(low, high) => Err(format!("a whole number from {low} to {high} is expected")),
        Shape::NumberOr(word) if text.trim() == word || numbers(1) => Ok(()),
        Shape::NumberOr(word) => Err(format!("a whole number or `{word}` is expected")),
        Shape::Word(words) if words.contains(&text.trim()) => Ok(()),
        Shape::Word(words) => Err(format!("one of {} is expected", words.join(", "))),
    }
}

/// What to write so that the key is met, of what there is and what is wanted. It is what there is, if that is enough.
#[must_use]
pub fn write_for(known: &Known, current: &str, wanted: &str) -> String {
    let (have, want) = (fields(current), fields(wanted));
    let larger = |a: &str, b: &str| if number(a) >= number(b) { a.to_owned() } else { b.to_owned() };
    let smaller = |a: &str, b: &str| if number(a) <= number(b) { a.to_owned() } else { b.to_owned() };
    let each = |choose: &dyn Fn(&str, &str) -> String| {
        let chosen: Vec<String> = have.iter().zip(&want).map(|(have, want)| choose(have, want)).collect();
        chosen.join("\t")
    };
    match known.rule {
        _ if have.len() != want.len() => want.join("\t"),
        Rule::Exactly => want.join("\t"),
        Rule::AtLeast => each(&larger),
        Rule::AtMost => each(&smaller),
        Rule::Widen => format!("{}\t{}", smaller(have[0], want[0]), larger(have[1], want[1])),
    }
}

/// Whether what there is is enough.
#[must_use]
pub fn is_met(known: &Known, current: &str, wanted: &str) -> bool {
    fields(&write_for(known, current, wanted)) == fields(current)
}

/// Fields, which the kernel separates by tabs and people by spaces.
#[must_use]
pub fn fields(text: &str) -> Vec<&str> {
    text.split_ascii_whitespace().collect()
}

/// For a person: fields with single spaces.
#[must_use]
pub fn shown(text: &str) -> String {
    fields(text).join(" ")
}

/// A field as a number; `max` and `unlimited` are endless.
fn number(field: &str) -> u64 {
    field.parse().unwrap_or(ENDLESS)
}

/// Of a file that shows all choices the one in brackets: `always [madvise] never`. A file with one word is that word.
#[must_use]
pub fn chosen(text: &str) -> &str {
    let in_brackets = text.split_once('[').and_then(|(_, rest)| rest.split_once(']')).map(|(word, _)| word);
    in_brackets.unwrap_or(text).trim()
}

/// The choices of such a file.
#[must_use]
pub fn choices(text: &str) -> Vec<String> {
    fields(text).into_iter().map(|word| word.trim_matches(['[', ']']).to_owned()).collect()
}

/// A set of cores as the kernel's files have it: groups of eight hexadecimal digits.
#[must_use]
pub fn mask(cpus: &[usize]) -> String {
    let groups = cpus.iter().max().map_or(1, |most| most / 32 + 1);
    let mut words = vec![0_u32; groups];
    for cpu in cpus {
        words[groups - 1 - cpu / 32] |= 1 << (cpu % 32);
    }
    let rest = words[1..].iter().map(|word| format!(",{word:08x}"));
    std::iter::once(format!("{:x}", words[0])).chain(rest).collect()
}

/// A mask without what does not count, such that equal sets are equal texts.
#[must_use]
pub fn plain_mask(text: &str) -> String {
    let digits: String = text.trim().chars().filter(|c| *c != ',').collect();
    digits.trim_start_matches('0').to_owned()
}

/// A list of cores like `0-3,8`. What is not one is empty.
#[must_use]
pub fn cpu_list(text: &str) -> Vec<usize> {
    let ranges = text.trim().split(',').filter_map(|part| {
        let (first, last) = part.split_once('-').unwrap_or((part, part));
        Some(first.parse::<usize>().ok()?..=last.parse::<usize>().ok()?)
    });
    ranges.flatten().collect()
}

/// Cores as a list: `0,2-3`.
#[must_use]
pub fn print_cpu_list(cpus: &[usize]) -> String {
    let mut ranges: Vec<(usize, usize)> = Vec::new();
    for &cpu in cpus {
        match ranges.last_mut() {
            Some((_, last)) if *last + 1 == cpu => *last = cpu,
            _ => ranges.push((cpu, cpu)),
        }
    }
    let texts = ranges.iter().map(|&(first, last)| match last - first {
        0 => first.to_string(),
        1 => format!("{first},{last}"),
        _ => format!("{first}-{last}"),
    });
    texts.collect::<Vec<_>>().join(",")
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::table::find;

    fn written(key: &str, current: &str, wanted: &str) -> String {
        write_for(find(key).expect("a key"), current, wanted)
    }

    #[test]
    fn what_is_higher_stays() {
        assert_eq!(written("net.core.somaxconn", "128\n", "4096"), "4096");
        assert_eq!(written("net.core.somaxconn", "65535\n", "4096"), "65535");
        let rmem = "net.ipv4.tcp_rmem";
        assert_eq!(written(rmem, "4096\t131072\t33554432\n", "4096 262144 16777216"), "4096\t262144\t33554432");
        assert!(is_met(find(rmem).expect("a key"), "4096\t131072\t33554432\n", "4096 131072 16777216"));
        assert_eq!(written("limit.memlock", "unlimited", "8388608"), "unlimited");
        assert_eq!(written("cgroup.cpu.max", "50000", "max"), "max");
    }

    #[test]
    fn ranges_widen_and_ceilings_sink() {
        let ports = "net.ipv4.ip_local_port_range";
        assert_eq!(written(ports, "32768\t60999\n", "16000 65000"), "16000\t65000");
        assert_eq!(written(ports, "1024\t60999\n", "16000 65000"), "1024\t65000");
        assert_eq!(written("vm.swappiness", "60\n", "10"), "10");
        assert_eq!(written("vm.swappiness", "1\n", "10"), "1");
        assert_eq!(written("net.ipv4.tcp_migrate_req", "0\n", "1"), "1");
    }

    #[test]
    fn what_is_no_value_is_refused() {
        for (key, wrong) in [
            ("net.core.somaxconn", "4096 1"),
            ("net.core.somaxconn", "-1"),
            ("net.core.somaxconn", ""),
            ("net.ipv4.tcp_rmem", "4096 131072"),
            ("net.ipv4.tcp_rmem", "4096 131072 1"),
            ("net.ipv4.ip_local_port_range", "65000 16000"),
            ("net.ipv4.tcp_migrate_req", "2"),
            ("thp.enabled", "sometimes"),
            ("limit.nofile", "many"),
        ] {
            assert!(validate(find(key).expect("a key"), wrong).is_err(), "{key} = {wrong}");
        }
        assert!(validate(find("limit.memlock").expect("a key"), "unlimited").is_ok());
    }

    #[test]
    fn masks_and_lists() {
        assert_eq!(mask(&[0, 1]), "3");
        assert_eq!(mask(&[0, 33]), "2,00000001");
        assert_eq!(plain_mask("00000000,00000003\n"), plain_mask("3"));
        assert_eq!(plain_mask("0\n"), plain_mask("00000000"));
        assert_eq!(cpu_list("0-2,8\n"), [0, 1, 2, 8]);
        assert_eq!(print_cpu_list(&[0, 1, 2, 8, 10, 11]), "0-2,8,10,11");
        assert_eq!(chosen("always [madvise] never\n"), "madvise");
        assert_eq!(choices("none [mq-deadline]\n"), ["none", "mq-deadline"]);
    }
}

//! The error table.

use std::collections::BTreeSet;

use whimbrel_wire::Code;

#[test]
fn numbers_and_names_are_unique_and_numbers_rise() {
    let numbers: Vec<u16> = Code::ALL.iter().map(|code| *code as u16).collect();
    assert!(numbers.windows(2).all(|pair| pair[0] < pair[1]));
    assert_eq!(Code::ALL.iter().map(|code| code.name()).collect::<BTreeSet<_>>().len(), Code::ALL.len());
    assert_eq!(Code::ALL.iter().map(|code| code.text()).collect::<BTreeSet<_>>().len(), Code::ALL.len());
}

#[test]
fn every_number_leads_back_to_its_code() {
    for number in 0..=u16::MAX {
        match Code::from_u16(number) {
            Some(code) => assert_eq!(code as u16, number),
            None => assert!(Code::ALL.iter().all(|code| *code as u16 != number)),
        }
    }
    for (index, code) in Code::ALL.iter().enumerate() {
        assert_eq!(code.index(), index);
    }
}

#[test]
fn texts_are_sentences_and_names_are_labels() {
    for code in Code::ALL {
        assert!(
            code.text().len() < 120
                && code.text().starts_with(|c: char| c.is_ascii_uppercase() || code.text().starts_with("client_seq"))
        );
        assert!(code.name().bytes().all(|b| b.is_ascii_lowercase() || b == b'_'));
        // Debug name and label say the same.
        assert_eq!(code.name().replace('_', ""), format!("{code:?}").to_lowercase());
    }
}

//! Reading one segment alone: every damage in it is found, and what is said to be lost is lost.

use std::fs;

use whimbrel_storage::ram::RamDisk;
use whimbrel_storage::{
    Checked, Disk, FileDisk, FileSource, Location, LogOptions, Loss, Memory, Rot, RotReason, SegmentId, SegmentIs,
    Source, check_segment,
};

use crate::rig::{Kept, OPTIONS, Random, Rig};

const ID: SegmentId = SegmentId(1);

/// A sealed segment with four batches, and the records in it.
fn sealed() -> (SegmentIs, Vec<u8>, Vec<Kept>) {
    let options = LogOptions { segment_size: 32 << 10, batch_max: 8 << 10, ..OPTIONS };
    let mut rig = Rig::new(options);
    rig.batch(&[40, 0, 1700]);
    rig.batch(&[3000, 2500]);
    rig.batch(&[5]);
    rig.batch(&[900, 900, 900]);
    rig.log.seal();
    rig.batch(&[1]);
    let is = rig.log.segment_is(ID).unwrap();
    assert_eq!((rig.log.sealed_behind(SegmentId(0)), rig.log.sealed_behind(ID), rig.log.sealed()), (Some(ID), None, 1));
    rig.kept.retain(|kept| kept.location.segment == ID);
    (is, rig.disk.contents(ID).unwrap(), rig.kept)
}

fn check(is: &SegmentIs, bytes: &[u8]) -> Checked {
    check_segment(is, &mut Memory(bytes))
}

/// Whether these bytes of a record are those that were written, with its header.
fn is_as_it_was(kept: &Kept, bytes: &[u8], was: &[u8]) -> bool {
    let (from, end) = (kept.location.offset as usize - 32, (kept.location.offset + kept.location.len) as usize);
    bytes[from..end] == was[from..end]
}

/// Where a record is, its header included.
fn place(kept: &Kept) -> Location {
    Location { offset: kept.location.offset - 32, len: kept.location.len + 32, ..kept.location }
}

#[test]
fn a_segment_that_is_as_it_was_written_is_found_so() {
    let (is, bytes, kept) = sealed();
    let found = check(&is, &bytes);
    assert_eq!((found.batches, found.end, found.bytes), (4, 24 << 10, 32 << 10));
    assert!(found.rot.is_empty());
    assert!(kept.iter().all(|kept| found.lost(kept.location).is_none()));
    // Also where only its own header says which it is.
    assert_eq!(check(&SegmentIs { generation: None, ..is }, &bytes), found);
}

#[test]
fn every_bit_is_guarded_and_what_is_read_as_whole_is_whole() {
    let (is, was, kept) = sealed();
    let mut bytes = was.clone();
    for at in 0..bytes.len() {
        for bit in 0..8 {
            bytes[at] ^= 1 << bit;
            let found = check(&is, &bytes);
            assert!(!found.rot.is_empty(), "bit {bit} of byte {at}");
            for kept in &kept {
                assert!(
                    is_as_it_was(kept, &bytes, &was) || found.lost(place(kept)).is_some(),
                    "bit {bit} of byte {at}: {kept:?}"
                );
            }
            bytes[at] ^= 1 << bit;
        }
    }
}

#[test]
fn a_damaged_payload_costs_its_own_record_and_names_it() {
    let (is, was, kept) = sealed();
    for (n, damaged) in kept.iter().enumerate().filter(|(_, kept)| kept.location.len > 0) {
        let mut bytes = was.clone();
        bytes[damaged.location.offset as usize] ^= 4;
        let found = check(&is, &bytes);
        let [Rot { reason: RotReason::Batch, loss: Loss::Record(header), .. }] = found.rot[..] else {
            panic!("{:?}", found.rot)
        };
        assert_eq!(header, damaged.header);
        for (other, kept) in kept.iter().enumerate() {
            assert_eq!(found.lost(place(kept)).is_some(), other == n, "{kept:?}");
        }
    }
}

#[test]
fn a_damaged_header_page_costs_nothing() {
    let (is, was, kept) = sealed();
    for generation in [is.generation, None] {
        for at in 0..4096 {
            let mut bytes = was.clone();
            bytes[at] ^= 1;
            let found = check(&SegmentIs { generation, ..is }, &bytes);
            let [Rot { reason: RotReason::SegmentHeader, loss: Loss::Nothing, .. }] = found.rot[..] else {
                // Its generation is only believed if nothing else says another.
                panic!("byte {at}: {:?}", found.rot)
            };
            assert!(kept.iter().all(|kept| found.lost(kept.location).is_none()), "byte {at}");
        }
    }
}

#[test]
fn batches_that_are_gone_are_missed_where_somebody_waits_for_them() {
    let (is, was, kept) = sealed();
    for lost in 0..4 {
        let mut bytes = was.clone();
        // Batches of one page, two, one, one; the third begins behind the second.
        let (from, pages) = [(4096, 4096), (8192, 8192), (16_384, 4096), (20_480, 4096)][lost];
        bytes[from..from + pages].fill(0);
        let found = check(&is, &bytes);
        for kept in &kept {
            let gone = (from..from + pages).contains(&(kept.location.offset as usize));
            assert_eq!(found.lost(place(kept)).is_some(), gone, "batch {lost}: {kept:?}");
        }
        // The last one leaves no trace but the places that point there.
        assert_eq!(found.rot.is_empty(), lost == 3);
        assert_eq!(found.end, if lost == 3 { 20 << 10 } else { 24 << 10 });
    }
    let found = check(&is, &vec![0; was.len()]);
    assert!(kept.iter().all(|kept| found.lost(place(kept)).is_some()));
}

#[test]
fn a_batch_of_elsewhere_does_not_pass() {
    let (is, was, _) = sealed();
    for (from, to) in [(4096, 16_384), (16_384, 4096), (20_480, 16_384), (16_384, 24_576)] {
        let mut bytes = was.clone();
        bytes.copy_within(from..from + 4096, to);
        assert!(!check(&is, &bytes).rot.is_empty(), "{from} to {to}");
    }
    let other = SegmentIs { generation: is.generation.map(|generation| generation ^ 1), ..is };
    assert_eq!(check(&other, &was).batches, 0, "one that was made anew under its name");
}

#[test]
fn random_damage_is_the_same_in_memory_and_in_a_file() {
    let (is, was, kept) = sealed();
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("segment");
    let mut random = Random(17);
    for _ in 0..200 {
        let mut bytes = was.clone();
        for _ in 0..=random.below(3) {
            let from = random.below(bytes.len() as u64) as usize;
            let end = (from + 1 + random.below(5000) as usize).min(bytes.len());
            if random.below(2) == 0 {
                bytes[from] ^= 1 << random.below(8);
            } else {
                bytes[from..end].fill(random.below(3) as u8);
            }
        }
        let found = check(&is, &bytes);
        assert!(bytes == was || !found.rot.is_empty() || found.end < 24 << 10);
        for kept in &kept {
            assert!(is_as_it_was(kept, &bytes, &was) || found.lost(place(kept)).is_some(), "{kept:?}");
        }
        fs::write(&path, &bytes).unwrap();
        let mut source = FileSource::open(&path, is.size_bytes, None).unwrap();
        assert_eq!(check_segment(&is, &mut source), found);
    }
}

#[test]
fn a_file_of_another_length_is_an_error_and_a_segment_of_a_disk_is_found_by_its_number() {
    let dir = tempfile::tempdir().unwrap();
    let mut disk = FileDisk::open(dir.path(), 3).unwrap();
    disk.create(ID, 64 << 10).unwrap();
    let is = SegmentIs { shard: 3, id: ID, size_bytes: 64 << 10, generation: None };
    let found = check_segment(&is, &mut disk.source(&is, Some(1 << 30)).unwrap());
    assert_eq!((found.batches, found.end, found.rot.len()), (0, 4096, 0));
    let error = disk.source(&SegmentIs { size_bytes: 32 << 10, ..is }, None).err().unwrap();
    assert!(error.to_string().contains("has 65536 bytes, a segment has 32768"), "{error}");
    assert!(disk.source(&SegmentIs { id: SegmentId(2), ..is }, None).is_err());
}

/// A disk that does not give these bytes.
struct Bad<'a>(&'a [u8], std::ops::Range<u32>);

impl Source for Bad<'_> {
    fn at(&mut self, range: std::ops::Range<u32>) -> &[u8] {
        &self.0[range.start as usize..range.end as usize]
    }

    fn unreadable(&self) -> &[std::ops::Range<u32>] {
        std::slice::from_ref(&self.1)
    }
}

#[test]
fn pages_that_cannot_be_read_are_told_and_cost_what_was_in_them() {
    let (is, was, kept) = sealed();
    let mut zeroed = was.clone();
    zeroed[12_288..16_384].fill(0);
    let found = check_segment(&is, &mut Bad(&zeroed, 12_288..16_384));
    assert!(found.rot.iter().any(|rot| (rot.offset, rot.reason) == (12_288, RotReason::Unreadable)));
    for kept in &kept {
        let gone = !is_as_it_was(kept, &zeroed, &was);
        assert!(!gone || found.lost(place(kept)).is_some(), "{kept:?}");
    }
    // In the unused end nothing is lost.
    let found = check_segment(&is, &mut Bad(&was, 28_672..32_768));
    assert_eq!(found.rot.len(), 1);
    assert!(kept.iter().all(|kept| found.lost(place(kept)).is_none()));
}

#[test]
fn the_disk_in_memory_is_checked_by_its_mapping() {
    let mut disk = RamDisk::new(3, 5);
    let mapping = disk.create(ID, 64 << 10).unwrap();
    let is = SegmentIs { shard: 3, id: ID, size_bytes: 64 << 10, generation: None };
    assert!(check(&is, &mapping).rot.is_empty());
    disk.flip_bit(ID, 9000, 1).unwrap();
    assert_eq!(check(&is, &mapping).rot[0].reason, RotReason::Stray);
}

use super::*;

const SEEDS: u64 = 200;

/// A file in the root, with its name and four sectors of ones stable.
fn disk(plant: Option<Plant>) -> (Disk, Ino) {
    let mut disk = Disk::new(1, None);
    let ino = disk.create(ROOT, OsStr::new("file"), 0o600).unwrap().ino;
    disk.write(ino, 0, &[1; 4 * SECTOR]).unwrap();
    disk.fsync(ino).unwrap();
    disk.fsyncdir(ROOT).unwrap();
    disk.plant = plant;
    (disk, ino)
}

fn after(disk: &Disk, seed: u64) -> Disk {
    disk.after_cut(&mut Rng::new(seed)).0
}

/// All that a cut may leave of `file`, over many seeds.
fn contents(disk: &Disk) -> BTreeSet<Option<Vec<u8>>> {
    (0..SEEDS).map(|seed| after(disk, seed).contents("file").ok().map(<[u8]>::to_vec)).collect()
}

#[test]
fn what_was_flushed_survives_every_cut() {
    let (mut disk, ino) = disk(None);
    disk.write(ino, 0, &[2; 2 * SECTOR]).unwrap();
    disk.fsync(ino).unwrap();
    let expected = [[2; 2 * SECTOR], [1; 2 * SECTOR]].concat();
    assert_eq!(contents(&disk), BTreeSet::from([Some(expected)]));
}

#[test]
fn what_was_not_flushed_survives_in_any_sectors() {
    let (mut disk, ino) = disk(None);
    disk.write(ino, 0, &[2; 2 * SECTOR]).unwrap();
    let found = contents(&disk);
    for first in [1, 2] {
        for second in [1, 2] {
            let expected = [vec![first; SECTOR], vec![second; SECTOR], vec![1; 2 * SECTOR]].concat();
            assert!(found.contains(&Some(expected)), "sectors of {first} and {second}");
        }
    }
    assert_eq!(found.len(), 4, "and in no other way");
}

#[test]
fn a_version_that_was_overwritten_may_be_the_one_that_survives() {
    let (mut disk, ino) = disk(None);
    for version in 2..4 {
        disk.write(ino, 0, &[version; SECTOR]).unwrap();
    }
    let found: BTreeSet<u8> = contents(&disk).into_iter().map(|it| it.unwrap()[0]).collect();
    assert_eq!(found, BTreeSet::from([1, 2, 3]));
}

#[test]
fn a_length_that_was_not_flushed_is_any() {
    let (mut disk, ino) = disk(None);
    disk.write(ino, 4 * SECTOR as u64, &[2; SECTOR]).unwrap();
    let longer: BTreeSet<usize> = contents(&disk).into_iter().map(|it| it.unwrap().len()).collect();
    assert!(longer.contains(&(4 * SECTOR)) && longer.contains(&(5 * SECTOR)) && longer.len() > 2, "{longer:?}");
    disk.fsync(ino).unwrap();
    disk.set_len(ino, 0).unwrap();
    let shorter: BTreeSet<usize> = contents(&disk).into_iter().map(|it| it.unwrap().len()).collect();
    assert!(shorter.contains(&0) && shorter.contains(&(5 * SECTOR)), "{shorter:?}");
    disk.fsync(ino).unwrap();
    assert_eq!(contents(&disk), BTreeSet::from([Some(Vec::new())]));
}

#[test]
fn names_survive_once_their_directory_was_flushed() {
    let (mut disk, _) = disk(None);
    let tmp = disk.create(ROOT, OsStr::new("tmp"), 0o600).unwrap().ino;
    disk.write(tmp, 0, b"new").unwrap();
    disk.fsync(tmp).unwrap();
    disk.rename(ROOT, OsStr::new("tmp"), OsStr::new("file")).unwrap();
    let found = contents(&disk);
    let (old, new) = (Some(vec![1; 4 * SECTOR]), Some(b"new".to_vec()));
    assert_eq!(found, BTreeSet::from([old, new.clone()]), "the old one or the new one, whole");
    disk.fsyncdir(ROOT).unwrap();
    assert_eq!(contents(&disk), BTreeSet::from([new]));
    disk.unlink(ROOT, OsStr::new("file")).unwrap();
    assert_eq!(contents(&disk).len(), 2, "there or gone");
    disk.fsyncdir(ROOT).unwrap();
    assert_eq!(contents(&disk), BTreeSet::from([None]));
}

#[test]
fn nothing_has_two_names_after_a_cut() {
    let (mut disk, _) = disk(None);
    disk.create(ROOT, OsStr::new("a"), 0o600).unwrap();
    disk.rename(ROOT, OsStr::new("a"), OsStr::new("b")).unwrap();
    disk.rename(ROOT, OsStr::new("b"), OsStr::new("c")).unwrap();
    for seed in 0..SEEDS {
        let names = after(&disk, seed).names(ROOT).unwrap();
        let inodes: BTreeSet<Ino> = names.iter().map(|(_, facts)| facts.ino).collect();
        assert_eq!(inodes.len(), names.len(), "seed {seed}: {names:?}");
    }
}

#[test]
fn each_lie_loses_what_was_flushed() {
    for plant in [Plant::Fsync, Plant::Torn] {
        let (mut disk, ino) = disk(Some(plant));
        disk.write(ino, 0, &[2; 4 * SECTOR]).unwrap();
        disk.fsync(ino).unwrap();
        let lost = contents(&disk).into_iter().map(|it| it.unwrap().chunks(SECTOR).filter(|it| it[0] == 1).count());
        let lost: BTreeSet<usize> = lost.collect();
        let expected = if plant == Plant::Torn { BTreeSet::from([0, 1]) } else { (0..=4).collect() };
        assert_eq!(lost, expected, "{}: sectors lost", plant.name());
    }
    let (mut disk, _) = disk(Some(Plant::Fsyncdir));
    disk.create(ROOT, OsStr::new("0000000001.seg"), 0o600).unwrap();
    disk.fsyncdir(ROOT).unwrap();
    let counts: BTreeSet<usize> = (0..SEEDS).map(|seed| after(&disk, seed).names(ROOT).unwrap().len()).collect();
    assert_eq!(counts, BTreeSet::from([1, 2]));
}

#[test]
fn wrong_requests_are_refused() {
    let (mut disk, ino) = disk(None);
    assert_eq!(disk.create(ROOT, OsStr::new("file"), 0).unwrap_err(), Errno::EXIST);
    assert_eq!(disk.write(ino, u64::MAX, b"x").unwrap_err(), Errno::FBIG);
    assert_eq!(disk.write(ROOT, 0, b"x").unwrap_err(), Errno::ISDIR);
    assert_eq!(disk.lookup(ino, OsStr::new("x")).unwrap_err(), Errno::NOTDIR);
    assert_eq!(disk.unlink(ROOT, OsStr::new("x")).unwrap_err(), Errno::NOENT);
    assert_eq!(disk.read(ino, 1 << 40, 10).unwrap(), b"");
}

#[test]
fn what_a_flush_failed_on_is_read_and_gone_with_the_power_or_from_the_cache_until_it_is_written_again() {
    let (mut disk, ino) = disk(None);
    disk.write(ino, 0, &[2; 4 * SECTOR]).unwrap();
    disk.fail_fsync(ino).unwrap();
    assert_eq!(disk.contents("file").unwrap(), [2; 4 * SECTOR]);
    // That all is well says a flush with nothing to flush.
    disk.fsync(ino).unwrap();
    let found = contents(&disk);
    assert_eq!(found.len(), 1, "what is stable is decided when the flush fails");
    let stable = found.into_iter().next().flatten().unwrap();
    assert!(stable.contains(&1), "not all of it");
    let mut evicted = disk.clone();
    evicted.evict();
    assert_eq!(evicted.contents("file").unwrap(), stable);
    disk.write(ino, 0, &[2; 4 * SECTOR]).unwrap();
    assert!(contents(&disk).contains(&Some(stable)), "before the flush it may still be what it was");
    disk.fsync(ino).unwrap();
    assert_eq!(contents(&disk), BTreeSet::from([Some(vec![2; 4 * SECTOR])]));
}

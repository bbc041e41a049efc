//! The targets without a fuzzer: over their seeds, and over mutations of these that are the same every time.

use std::fs;
use std::path::Path;

/// Runs a target over all files of these folders, given from the top of the tree, and over so many mutations of them.
pub(crate) fn run(folders: &[&str], mutations: u64, target: impl Fn(&[u8])) {
    let seeds = seeds(folders);
    assert!(!seeds.is_empty(), "no seeds in {folders:?}");
    for (name, seed) in &seeds {
        let _told = Told(name.clone());
        target(seed);
    }
    let seeds: Vec<Vec<u8>> = seeds.into_iter().map(|(_, bytes)| bytes).collect();
    for number in 0..mutations {
        let _told = Told(format!("mutation {number}"));
        target(&mutated(number, &seeds));
    }
}

/// Says what the target was given when it panicked.
struct Told(String);

impl Drop for Told {
    fn drop(&mut self) {
        if std::thread::panicking() {
            eprintln!("the target was given {}", self.0);
        }
    }
}

fn seeds(folders: &[&str]) -> Vec<(String, Vec<u8>)> {
    let top = Path::new(env!("CARGO_MANIFEST_DIR"))
        .ancestors()
        .find(|it| it.join("Cargo.lock").exists() && it.join("fuzz").exists());
    let top = top.expect("the top of the tree");
    let mut found = Vec::new();
    for folder in folders {
        let entries = fs::read_dir(top.join(folder)).expect("a folder of seeds");
        let paths = entries.map(|entry| entry.expect("an entry").path());
        for path in paths.filter(|path| path.extension().is_none_or(|it| it != "json")) {
            found.push((path.display().to_string(), fs::read(&path).expect("a seed")));
        }
    }
    found.sort();
    found
}

/// One of the seeds, changed in one to eight places; the same for the same number.
fn mutated(number: u64, seeds: &[Vec<u8>]) -> Vec<u8> {
    let mut random = Random(number);
    let mut bytes = seeds[random.below(seeds.len())].clone();
    for _ in 0..1 + random.below(8) {
        let at = random.below(bytes.len() + 1);
        match random.below(8) {
            0 | 1 => bytes.get_mut(at).into_iter().for_each(|byte| *byte ^= 1 << random.below(8)),
            2 => bytes.get_mut(at).into_iter().for_each(|byte| *byte = random.next() as u8),
            3 => bytes.insert(at, random.next() as u8),
            4 => drop(bytes.drain(at..(at + 1 + random.below(8)).min(bytes.len()))),
            // A number that means something: 0, 1, a little below a power of two.
            5 => {
                let number = [0, 1, 0x7f, 0xff, 0xffff, 0x7fff_ffff, u64::MAX, random.next()][random.below(8)];
                let len = [1, 2, 4, 8][random.below(4)];
                let end = (at + len).min(bytes.len());
                bytes[at..end].copy_from_slice(&number.to_le_bytes()[..end - at]);
            }
            6 => {
                let other = &seeds[random.below(seeds.len())];
                let from = random.below(other.len() + 1);
                let to = (from + 1 + random.below(64)).min(other.len());
                bytes.splice(at..at, other[from..to].iter().copied());
            }
            _ => bytes.truncate(at),
        }
    }
    bytes
}

/// Numbers from a seed (splitmix64).
struct Random(u64);

impl Random {
    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let x = (self.0 ^ (self.0 >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        let x = (x ^ (x >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        x ^ (x >> 31)
    }

    fn below(&mut self, bound: usize) -> usize {
        (self.next() % bound as u64) as usize
    }
}

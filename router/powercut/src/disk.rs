//! A file system in memory that can lose power: the model, without a mount.
//!
//! What is read is what was written last. What is on stable storage is less: for each sector of a file that was written and
//! not flushed, all it has held since the last flush is kept, and for each directory every change of a name that was not
//! flushed. [`Disk::after_cut`] gives the disk as it may be after a loss of power.
//!
//! A flush may fail ([`Disk::fail_fsync`]). Then it is as Linux has it: what was written is read still, and a later flush answers that
//! all is well, but it is stable only once it was written again; and at any time what is read may be what is stable.

use std::collections::{BTreeMap, BTreeSet};
use std::ffi::{OsStr, OsString};

use rustix::io::Errno;

use crate::plant::Plant;
use crate::rng::Rng;

/// What a disk writes whole or not at all.
const SECTOR: usize = 512;

/// Contents of an unflushed sector that are kept: the stable one and the newest of those that were overwritten since.
const VERSIONS_MAX: usize = 4;

/// A file is at most so long; nothing here is near it, so that a wild offset is an error and no allocation.
const FILE_MAX_BYTES: u64 = 1 << 30;

/// Segments with this number and later ones are no part of the log, but what waited was moved to them.
const COLD_FROM: u32 = 1 << 31;

/// What a disk loses at once.
const PAGE_BYTES: u64 = 4096;

/// The root directory.
pub(crate) const ROOT: Ino = 1;

/// Number of a file or directory.
pub(crate) type Ino = u64;

type Sector = [u8; SECTOR];

/// See the [module](self).
#[derive(Clone, Debug)]
pub(crate) struct Disk {
    inodes: BTreeMap<Ino, Inode>,
    next: Ino,
    plant: Option<Plant>,
    chance: Rng,
    /// A page that cannot be read any more: of which file, and where it begins.
    lost_page: Option<(Ino, u64)>,
}

#[derive(Clone, Debug)]
struct Inode {
    mode: u32,
    body: Body,
}

#[derive(Clone, Debug)]
enum Body {
    File(File),
    Directory(Directory),
}

/// What stands in a directory, for whoever looks.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Facts {
    pub(crate) ino: Ino,
    pub(crate) is_directory: bool,
    pub(crate) mode: u32,
    pub(crate) size: u64,
}

/// What a cut did to what was not flushed.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Damage {
    /// Sectors that hold what was written last.
    pub(crate) sectors_kept: u64,
    /// Sectors that hold something older.
    pub(crate) sectors_lost: u64,
    /// Changes of names that are there.
    pub(crate) names_kept: u64,
    /// Changes of names that are not.
    pub(crate) names_lost: u64,
}

impl std::ops::AddAssign for Damage {
    fn add_assign(&mut self, more: Damage) {
        self.sectors_kept += more.sectors_kept;
        self.sectors_lost += more.sectors_lost;
        self.names_kept += more.names_kept;
        self.names_lost += more.names_lost;
    }
}

#[derive(Clone, Debug, Default)]
struct File {
    data: Vec<u8>,
    stable_len: usize,
    /// It was flushed once, honestly: what is made whole would be missed at the first look, so a lie is about what is written
    /// to it later.
    made: bool,
    /// For each sector that was written and not flushed: the stable contents, then those written and overwritten since.
    unflushed: BTreeMap<usize, Vec<Sector>>,
    /// For each sector of which a flush failed, and that was not written since: the stable contents. No flush changes them.
    given_up: BTreeMap<usize, Sector>,
}

#[derive(Clone, Debug, Default)]
struct Directory {
    names: BTreeMap<OsString, Ino>,
    stable: BTreeMap<OsString, Ino>,
    unflushed: Vec<Change>,
}

/// A change of a directory, which happens whole or not at all.
#[derive(Clone, Debug)]
struct Change {
    gone: Option<OsString>,
    there: Option<(OsString, Ino)>,
}

impl Disk {
    /// An empty one, which tells this lie.
    pub(crate) fn new(seed: u64, plant: Option<Plant>) -> Disk {
        let root = Inode { mode: 0o755, body: Body::Directory(Directory::default()) };
        Disk { inodes: BTreeMap::from([(ROOT, root)]), next: ROOT + 1, plant, chance: Rng::new(seed), lost_page: None }
    }

    /// Facts of a file or directory.
    pub(crate) fn facts(&self, ino: Ino) -> Result<Facts, Errno> {
        let inode = self.inodes.get(&ino).ok_or(Errno::NOENT)?;
        let (is_directory, size) = match &inode.body {
            Body::File(file) => (false, file.data.len() as u64),
            Body::Directory(_) => (true, 0),
        };
        Ok(Facts { ino, is_directory, mode: inode.mode, size })
    }

    /// Finds a name.
    pub(crate) fn lookup(&self, parent: Ino, name: &OsStr) -> Result<Facts, Errno> {
        let ino = *self.directory(parent)?.names.get(name).ok_or(Errno::NOENT)?;
        self.facts(ino)
    }

    /// The whole contents of a file by its path from the root.
    pub(crate) fn contents(&self, path: &str) -> Result<&[u8], Errno> {
        let mut ino = ROOT;
        for name in path.split('/') {
            ino = self.lookup(ino, OsStr::new(name))?.ino;
        }
        Ok(&self.file(ino)?.data)
    }

    /// All names of a directory.
    pub(crate) fn names(&self, ino: Ino) -> Result<Vec<(OsString, Facts)>, Errno> {
        let names = &self.directory(ino)?.names;
        names.iter().map(|(name, &ino)| Ok((name.clone(), self.facts(ino)?))).collect()
    }

    /// Bytes of a file, fewer at its end.
    pub(crate) fn read(&self, ino: Ino, offset: u64, size: usize) -> Result<&[u8], Errno> {
        let is_lost = |(file, page)| file == ino && page < offset + size as u64 && offset < page + PAGE_BYTES;
        if self.lost_page.is_some_and(is_lost) {
            return Err(Errno::IO);
        }
        let data = &self.file(ino)?.data;
        let start = usize::try_from(offset).map_err(|_| Errno::INVAL)?.min(data.len());
        Ok(&data[start..data.len().min(start.saturating_add(size))])
    }

    /// The page of a file that begins here cannot be read any more.
    pub(crate) fn lose_page(&mut self, ino: Ino, offset: u64) {
        self.lost_page = Some((ino, offset));
    }

    /// Makes an empty file.
    pub(crate) fn create(&mut self, parent: Ino, name: &OsStr, mode: u32) -> Result<Facts, Errno> {
        self.make(parent, name, mode, Body::File(File::default()))
    }

    /// Makes an empty directory.
    pub(crate) fn mkdir(&mut self, parent: Ino, name: &OsStr, mode: u32) -> Result<Facts, Errno> {
        self.make(parent, name, mode, Body::Directory(Directory::default()))
    }

    fn make(&mut self, parent: Ino, name: &OsStr, mode: u32, body: Body) -> Result<Facts, Errno> {
        let ino = self.next;
        let directory = self.directory_mut(parent)?;
        if directory.names.contains_key(name) {
            return Err(Errno::EXIST);
        }
        directory.change(Change { gone: None, there: Some((name.to_owned(), ino)) });
        self.next += 1;
        self.inodes.insert(ino, Inode { mode: mode & 0o7777, body });
        self.facts(ino)
    }

    /// Takes the name of a file away; whoever has it open keeps it.
    pub(crate) fn unlink(&mut self, parent: Ino, name: &OsStr) -> Result<(), Errno> {
        if self.lookup(parent, name)?.is_directory {
            return Err(Errno::ISDIR);
        }
        self.directory_mut(parent)?.change(Change { gone: Some(name.to_owned()), there: None });
        Ok(())
    }

    /// Gives a file another name in its directory, which may be that of a file that is there.
    pub(crate) fn rename(&mut self, parent: Ino, source: &OsStr, target: &OsStr) -> Result<(), Errno> {
        let ino = self.lookup(parent, source)?.ino;
        let change = Change { gone: Some(source.to_owned()), there: Some((target.to_owned(), ino)) };
        self.directory_mut(parent)?.change(change);
        Ok(())
    }

    /// Sets permissions.
    pub(crate) fn set_mode(&mut self, ino: Ino, mode: u32) -> Result<(), Errno> {
        self.inodes.get_mut(&ino).ok_or(Errno::NOENT)?.mode = mode & 0o7777;
        Ok(())
    }

    /// Makes a file shorter or, with zeros, longer.
    pub(crate) fn set_len(&mut self, ino: Ino, len: u64) -> Result<(), Errno> {
        let len = within_bounds(len)?;
        let file = self.file_mut(ino)?;
        for sector in len / SECTOR..file.data.len().div_ceil(SECTOR) {
            file.keep(sector);
        }
        file.data.resize(len, 0);
        Ok(())
    }

    /// Makes a file at least so long.
    pub(crate) fn allocate(&mut self, ino: Ino, end: u64) -> Result<(), Errno> {
        let end = within_bounds(end)?;
        let data = &mut self.file_mut(ino)?.data;
        data.resize(data.len().max(end), 0);
        Ok(())
    }

    /// Writes bytes that are read from now on, and that are stable only after a flush.
    pub(crate) fn write(&mut self, ino: Ino, offset: u64, bytes: &[u8]) -> Result<(), Errno> {
        let end = within_bounds(offset.saturating_add(bytes.len() as u64))?;
        let file = self.file_mut(ino)?;
        let start = end - bytes.len();
        for sector in start / SECTOR..end.div_ceil(SECTOR) {
            file.keep(sector);
        }
        file.data.resize(file.data.len().max(end), 0);
        file.data[start..end].copy_from_slice(bytes);
        Ok(())
    }

    /// All that was written to a file is stable when this returns, if it does not lie.
    pub(crate) fn fsync(&mut self, ino: Ino) -> Result<(), Errno> {
        let plant = self.plant;
        let chance = self.chance.next();
        let file = self.file_mut(ino)?;
        let made = std::mem::replace(&mut file.made, true);
        let plant = plant.filter(|_| made);
        match plant {
            Some(Plant::Fsync) => {}
            Some(Plant::Torn) => {
                file.stable_len = file.data.len();
                let sectors: Vec<usize> = file.unflushed.keys().copied().collect();
                let skipped = (!sectors.is_empty()).then(|| sectors[Rng::new(chance).index(sectors.len())]);
                file.unflushed.retain(|&sector, _| Some(sector) == skipped);
            }
            Some(Plant::Fsyncdir) | None => {
                file.stable_len = file.data.len();
                file.unflushed.clear();
            }
        }
        Ok(())
    }

    /// A flush that fails: of what it was to make stable, only some sectors are, and no later flush will see to the others.
    pub(crate) fn fail_fsync(&mut self, ino: Ino) -> Result<(), Errno> {
        let mut chance = self.chance.fork(ino);
        let file = self.file_mut(ino)?;
        let survives = chance.below(3) * 250;
        for (sector, versions) in std::mem::take(&mut file.unflushed) {
            if !chance.per_mille(survives) {
                file.given_up.insert(sector, versions[0]);
            }
        }
        Ok(())
    }

    /// What lies in the cache, clean and other than what is stable, is forgotten, as a kernel may do at any time with what is clean.
    pub(crate) fn evict(&mut self) {
        for inode in self.inodes.values_mut() {
            if let Body::File(file) = &mut inode.body {
                file.evict();
            }
        }
    }

    /// The directory of the log that has this file as a segment, and not as one that messages were moved to.
    pub(crate) fn log_of(&self, ino: Ino) -> Option<Ino> {
        let is_segment = |name: &OsStr| {
            let number = name.to_str().and_then(|name| name.strip_suffix(".seg")).map(str::parse::<u32>);
            number.is_some_and(|number| number.is_ok_and(|number| number < COLD_FROM))
        };
        let has_it = |body: &Body| match body {
            Body::Directory(it) => it.names.iter().any(|(name, &other)| other == ino && is_segment(name)),
            Body::File(_) => false,
        };
        self.inodes.iter().find(|(_, inode)| has_it(&inode.body)).map(|(&directory, _)| directory)
    }

    /// All names of a directory are stable when this returns, if it does not lie.
    pub(crate) fn fsyncdir(&mut self, ino: Ino) -> Result<(), Errno> {
        let may_lie = self.plant == Some(Plant::Fsyncdir);
        let directory = self.directory_mut(ino)?;
        let has_segments = || directory.names.keys().any(|name| name.as_encoded_bytes().ends_with(b".seg"));
        if !(may_lie && has_segments()) {
            directory.stable = directory.names.clone();
            directory.unflushed.clear();
        }
        Ok(())
    }

    /// The disk after a loss of power, as chance has it: of each sector and name what is stable, what was written last, or
    /// something between. All of it is stable then.
    pub(crate) fn after_cut(&self, chance: &mut Rng) -> (Disk, Damage) {
        let mut damage = Damage::default();
        let mut after = self.clone();
        for inode in after.inodes.values_mut() {
            match &mut inode.body {
                Body::File(file) => file.cut(chance, &mut damage),
                Body::Directory(directory) => directory.cut(chance, &mut damage),
            }
        }
        let mut reached = BTreeSet::new();
        let mut ahead = vec![ROOT];
        while let Some(ino) = ahead.pop() {
            reached.insert(ino);
            if let Ok(directory) = after.directory(ino) {
                ahead.extend(directory.names.values());
            }
        }
        after.inodes.retain(|ino, _| reached.contains(ino));
        (after, damage)
    }

    fn file(&self, ino: Ino) -> Result<&File, Errno> {
        match &self.inodes.get(&ino).ok_or(Errno::NOENT)?.body {
            Body::File(file) => Ok(file),
            Body::Directory(_) => Err(Errno::ISDIR),
        }
    }

    fn file_mut(&mut self, ino: Ino) -> Result<&mut File, Errno> {
        match &mut self.inodes.get_mut(&ino).ok_or(Errno::NOENT)?.body {
            Body::File(file) => Ok(file),
            Body::Directory(_) => Err(Errno::ISDIR),
        }
    }

    fn directory(&self, ino: Ino) -> Result<&Directory, Errno> {
        match &self.inodes.get(&ino).ok_or(Errno::NOENT)?.body {
            Body::Directory(directory) => Ok(directory),
            Body::File(_) => Err(Errno::NOTDIR),
        }
    }

    fn directory_mut(&mut self, ino: Ino) -> Result<&mut Directory, Errno> {
        match &mut self.inodes.get_mut(&ino).ok_or(Errno::NOENT)?.body {
            Body::Directory(directory) => Ok(directory),
            Body::File(_) => Err(Errno::NOTDIR),
        }
    }
}

fn within_bounds(end: u64) -> Result<usize, Errno> {
    if end > FILE_MAX_BYTES { Err(Errno::FBIG) } else { Ok(end as usize) }
}

impl File {
    /// The sector as it is read, with zeros beyond the end of the file.
    fn sector(&self, sector: usize) -> Sector {
        let start = (sector * SECTOR).min(self.data.len());
        let found = &self.data[start..self.data.len().min(start + SECTOR)];
        let mut bytes = [0; SECTOR];
        bytes[..found.len()].copy_from_slice(found);
        bytes
    }

    /// Keeps what a sector holds before it is written.
    fn keep(&mut self, sector: usize) {
        let now = self.sector(sector);
        let stable = self.given_up.remove(&sector);
        let versions = self.unflushed.entry(sector).or_insert_with(|| stable.into_iter().collect());
        if versions.len() == VERSIONS_MAX {
            versions.remove(1);
        }
        versions.push(now);
    }

    fn evict(&mut self) {
        for (sector, stable) in std::mem::take(&mut self.given_up) {
            let start = (sector * SECTOR).min(self.data.len());
            let end = self.data.len().min(start + SECTOR);
            self.data[start..end].copy_from_slice(&stable[..end - start]);
        }
    }

    fn cut(&mut self, chance: &mut Rng, damage: &mut Damage) {
        damage.sectors_lost += self.given_up.len() as u64;
        self.evict();
        if self.unflushed.is_empty() && self.stable_len == self.data.len() {
            return;
        }
        // Each file its own share of what survives: nothing, all, or a part.
        let survives = chance.below(5) * 250;
        let (shorter, longer) = (self.stable_len.min(self.data.len()), self.stable_len.max(self.data.len()));
        let written = self.data.len();
        self.data.resize(longer, 0);
        for (sector, versions) in std::mem::take(&mut self.unflushed) {
            if chance.per_mille(survives) {
                damage.sectors_kept += 1;
                continue;
            }
            damage.sectors_lost += 1;
            // The stable one, or one that was overwritten since; the file may have been shorter then.
            let version = versions[if chance.per_mille(700) { 0 } else { chance.index(versions.len()) }];
            let start = (sector * SECTOR).min(longer);
            let end = longer.min(start + SECTOR);
            self.data[start..end].copy_from_slice(&version[..end - start]);
        }
        let len = match chance.below(3) {
            0 => self.stable_len,
            1 => written,
            _ => chance.between(shorter as u64, longer as u64) as usize,
        };
        self.data.truncate(len);
        self.stable_len = len;
    }
}

impl Directory {
    fn change(&mut self, change: Change) {
        change.apply(&mut self.names);
        self.unflushed.push(change);
    }

    fn cut(&mut self, chance: &mut Rng, damage: &mut Damage) {
        let changes = std::mem::take(&mut self.unflushed);
        // As a journal has it, all up to some change; or any of them.
        let all_until = chance.per_mille(500).then(|| chance.between(0, changes.len() as u64) as usize);
        let survives = chance.below(5) * 250;
        for (number, change) in changes.iter().enumerate() {
            if all_until.map_or_else(|| chance.per_mille(survives), |until| number < until) {
                damage.names_kept += 1;
                change.apply(&mut self.stable);
            } else {
                damage.names_lost += 1;
            }
        }
        self.names = self.stable.clone();
    }
}

impl Change {
    fn apply(&self, names: &mut BTreeMap<OsString, Ino>) {
        if let Some(gone) = &self.gone {
            names.remove(gone);
        }
        if let Some((name, ino)) = &self.there {
            // Nothing has two names: the change that gave it the other one may not have survived.
            names.retain(|_, other| other != ino);
            names.insert(name.clone(), *ino);
        }
    }
}

#[cfg(test)]
mod tests;

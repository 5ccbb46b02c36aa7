//! A disk with a write cache: what was written is there until the power goes, what was flushed is there afterwards.
//!
//! Of what was written and not flushed, a real disk may have any part on its medium, in any order, and of two writes to
//! a sector either. It promises no more than that a sector is whole. [`Loss`] says which part it is.

use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt as _;
use std::path::Path;

use rand::Rng;

/// What a disk writes whole.
const SECTOR: usize = 512;
/// The file system keeps its superblock here and relies on finding it whole: it is written at once or not at all.
const SUPERBLOCK_END: u64 = 4096;

/// What of the unflushed writes is lost.
#[derive(Clone, Copy, Debug)]
pub enum Loss {
    /// None of it: a disk without a cache.
    Nothing,
    /// All of it: the strictest disk there can be.
    Everything,
    /// Everything after a moment, whose last write is torn: a disk that keeps to the order.
    Tail,
    /// Each sector with this chance, whatever was written before or after it.
    Sectors(f64),
}

impl Loss {
    /// Any of them.
    pub fn any(chance: &mut impl Rng) -> Self {
        match chance.random_range(0..6) {
            0 => Self::Nothing,
            1 | 2 => Self::Everything,
            3 => Self::Tail,
            _ => Self::Sectors(chance.random_range(0.05..0.95)),
        }
    }
}

/// What a cut did.
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq)]
pub struct Cut {
    /// Writes that were not flushed.
    pub unflushed: usize,
    /// Sectors of them that are on the medium all the same.
    pub kept: usize,
    /// And those that are lost.
    pub lost: usize,
}

/// The disk. Two files: what readers see, and what would be left now.
#[derive(Debug)]
pub(super) struct Device {
    seen: File,
    medium: File,
    /// In the order in which they came.
    unflushed: Vec<(u64, Vec<u8>)>,
    /// The medium is what it is, and everything else goes on for the processes that do not know yet.
    is_cut: bool,
    flushes: u64,
}

impl Device {
    /// A disk with what is on `medium`; `seen` is overwritten.
    pub(super) fn new(seen: &Path, medium: &Path) -> io::Result<Self> {
        let open = |path| File::options().read(true).write(true).open(path);
        Ok(Self {
            seen: open(seen)?,
            medium: open(medium)?,
            unflushed: Vec::new(),
            is_cut: false,
            flushes: 0,
        })
    }

    pub(super) fn read(&self, offset: u64, bytes: &mut [u8]) -> io::Result<()> {
        self.seen.read_exact_at(bytes, offset)
    }

    pub(super) fn write(&mut self, offset: u64, bytes: &[u8]) -> io::Result<()> {
        self.seen.write_all_at(bytes, offset)?;
        if !self.is_cut {
            self.unflushed.push((offset, bytes.to_vec()));
        }
        Ok(())
    }

    /// Everything that was written is on stable storage.
    pub(super) fn flush(&mut self) -> io::Result<()> {
        self.flushes += 1;
        if !self.is_cut {
            for (offset, bytes) in self.unflushed.drain(..) {
                self.medium.write_all_at(&bytes, offset)?;
            }
        }
        Ok(())
    }

    /// The power goes.
    pub(super) fn cut(&mut self, loss: Loss, chance: &mut impl Rng) -> io::Result<Cut> {
        self.is_cut = true;
        let writes = std::mem::take(&mut self.unflushed);
        let mut cut = Cut { unflushed: writes.len(), ..Cut::default() };
        let end = chance.random_range(0..=writes.len());
        for (number, (offset, bytes)) in writes.iter().enumerate() {
            let whole = if *offset < SUPERBLOCK_END { bytes.len() } else { SECTOR };
            for (sector, part) in bytes.chunks(whole.max(1)).enumerate() {
                let is_kept = match loss {
                    Loss::Nothing => true,
                    Loss::Everything => false,
                    Loss::Tail => number < end || (number == end && chance.random()),
                    Loss::Sectors(lost) => !chance.random_bool(lost),
                };
                let count = part.len().div_ceil(SECTOR);
                if is_kept {
                    self.medium.write_all_at(part, offset + (sector * whole) as u64)?;
                    cut.kept += count;
                } else {
                    cut.lost += count;
                }
            }
        }
        Ok(cut)
    }

    /// How many writes a cut could lose.
    pub(super) fn unflushed(&self) -> usize {
        self.unflushed.len()
    }

    pub(super) fn flushes(&self) -> u64 {
        self.flushes
    }
}

#[cfg(test)]
mod tests {
    use rand::SeedableRng as _;
    use rand::rngs::StdRng;

    use super::*;
    use crate::place::Dir;

    const BYTES: u64 = 64 << 10;
    const PAGE: usize = 4096;

    /// A disk where a flushed page of ones was written over by twos and, elsewhere, threes.
    fn written(dir: &Dir) -> Device {
        let (seen, medium) = (dir.path().join("seen"), dir.path().join("medium"));
        for file in [&seen, &medium] {
            File::create(file).unwrap().set_len(BYTES).unwrap();
        }
        let mut device = Device::new(&seen, &medium).unwrap();
        device.write(8192, &[1; PAGE]).unwrap();
        device.flush().unwrap();
        device.write(8192, &[2; PAGE]).unwrap();
        device.write(16384, &[3; PAGE]).unwrap();
        device
    }

    fn left(dir: &Dir, offset: usize) -> Vec<u8> {
        std::fs::read(dir.path().join("medium")).unwrap()[offset..offset + PAGE].to_vec()
    }

    #[test]
    fn what_was_flushed_is_left_and_the_rest_as_the_loss_says() {
        for (loss, first, second) in [(Loss::Everything, 1, 0), (Loss::Nothing, 2, 3)] {
            let dir = Dir::new("device").unwrap();
            let mut device = written(&dir);
            let mut seen = [0; PAGE];
            device.read(8192, &mut seen).unwrap();

            device.cut(loss, &mut StdRng::seed_from_u64(1)).unwrap();

            assert_eq!(seen, [2; PAGE]);
            assert_eq!((left(&dir, 8192), left(&dir, 16384)), (vec![first; PAGE], vec![second; PAGE]));
        }
    }

    #[test]
    fn sectors_are_lost_one_by_one_and_whole() {
        let dir = Dir::new("device").unwrap();
        let mut device = written(&dir);

        let cut = device.cut(Loss::Sectors(0.5), &mut StdRng::seed_from_u64(7)).unwrap();

        assert_eq!((cut.unflushed, cut.kept + cut.lost), (2, 2 * PAGE / SECTOR));
        assert!(cut.kept > 0 && cut.lost > 0, "{cut:?}");
        for sector in left(&dir, 8192).chunks(SECTOR) {
            assert!(sector == [1; SECTOR] || sector == [2; SECTOR], "a sector is torn");
        }
    }

    #[test]
    fn what_is_written_or_flushed_after_the_cut_is_seen_and_not_left() {
        let dir = Dir::new("device").unwrap();
        let mut device = written(&dir);
        device.cut(Loss::Everything, &mut StdRng::seed_from_u64(1)).unwrap();

        device.write(8192, &[9; PAGE]).unwrap();
        device.flush().unwrap();

        let mut seen = [0; PAGE];
        device.read(8192, &mut seen).unwrap();
        assert_eq!((seen, left(&dir, 8192)), ([9; PAGE], vec![1; PAGE]));
    }
}

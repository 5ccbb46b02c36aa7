//! The only source of chance: which member of a queue group, how long to back off, in which order to close.
//! Nothing that is replicated or secret depends on it.

use std::sync::atomic::{AtomicU64, Ordering};

/// A small, fast stream of random numbers (splitmix64). Each task has its own.
#[derive(Clone, Debug)]
pub struct Chance(u64);

static SEED: AtomicU64 = AtomicU64::new(0);
const STEP: u64 = 0x9E37_79B9_7F4A_7C15;

/// Makes every `Chance` of this process a function of `seed`, for runs that have to repeat.
pub fn seed(seed: u64) {
    SEED.store(seed | 1, Ordering::Relaxed);
}

impl Chance {
    /// A stream of its own, seeded by the operating system unless [`seed`] was called.
    #[must_use]
    pub fn new() -> Self {
        let mut seed = SEED.load(Ordering::Relaxed);
        while seed == 0 {
            let drawn = rand::random::<u64>() | 1;
            seed = match SEED.compare_exchange(0, drawn, Ordering::Relaxed, Ordering::Relaxed) {
                Ok(_) => drawn,
                Err(other) => other,
            };
        }
        Self(SEED.fetch_add(STEP.wrapping_mul(2), Ordering::Relaxed) ^ seed.rotate_left(32))
    }

    /// The next number.
    #[inline]
    pub fn draw(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(STEP);
        let mut mixed = self.0;
        mixed = (mixed ^ (mixed >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
        mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
        mixed ^ (mixed >> 31)
    }

    /// A number below `bound`, which must not be 0.
    #[inline]
    pub fn below(&mut self, bound: usize) -> usize {
        // Multiply and shift: no division, and a bias of at most bound / 2^64.
        usize::try_from((u128::from(self.draw()) * bound as u128) >> 64).unwrap_or(0)
    }
}

impl Default for Chance {
    fn default() -> Self {
        Self::new()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_stay_below_their_bound_and_reach_all_of_it() {
        let mut chance = Chance::new();
        let mut seen = [false; 5];

        for _ in 0..1000 {
            seen[chance.below(5)] = true;
        }

        assert_eq!(seen, [true; 5]);
    }
}

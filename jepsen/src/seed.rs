//! Random numbers that are a function of a seed alone, so that a run can be made again.

/// A stream of random numbers (SplitMix64).
#[derive(Clone, Debug)]
pub(crate) struct Rng(u64);

impl Rng {
    /// The stream of a seed for one purpose; streams of different purposes have nothing to do with each other.
    pub(crate) fn new(seed: u64, purpose: u64) -> Self {
        let mut rng = Self(seed ^ purpose.wrapping_mul(0x9e37_79b9_7f4a_7c15));
        rng.next();
        Self(rng.next())
    }

    /// Any number.
    pub(crate) fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        mix(self.0)
    }

    /// A number in `[start, end)`; `start` when that is empty.
    pub(crate) fn range(&mut self, start: u64, end: u64) -> u64 {
        match end.saturating_sub(start) {
            0 => start,
            width => start + self.next() % width,
        }
    }

    /// True in `percent` of 100 cases.
    pub(crate) fn chance(&mut self, percent: u64) -> bool {
        self.range(0, 100) < percent
    }

    /// One of the items, or none of none.
    pub(crate) fn pick<'a, T>(&mut self, items: &'a [T]) -> Option<&'a T> {
        let at = self.range(0, items.len() as u64);
        items.get(usize::try_from(at).ok()?)
    }
}

/// A number that looks random and depends on every bit of `x`.
pub(crate) fn mix(x: u64) -> u64 {
    let x = (x ^ (x >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    let x = (x ^ (x >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    x ^ (x >> 31)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_seed_gives_the_same_numbers_again() {
        let numbers = |seed, purpose| {
            let mut rng = Rng::new(seed, purpose);
            [rng.next(), rng.next(), rng.range(3, 9)]
        };
        assert_eq!(numbers(7, 1), numbers(7, 1));
        assert_ne!(numbers(7, 1), numbers(7, 2));
        assert_ne!(numbers(7, 1), numbers(8, 1));
    }

    #[test]
    fn ranges_hold() {
        let mut rng = Rng::new(1, 1);
        assert!((0..1000).all(|_| (3..9).contains(&rng.range(3, 9))));
        assert_eq!(rng.range(5, 5), 5);
        assert_eq!(rng.pick::<u8>(&[]), None);
        let hits = (0..10_000).filter(|_| rng.chance(30)).count();
        assert!((2700..3300).contains(&hits), "{hits}");
    }
}

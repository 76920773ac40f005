//! Which parts of a chunk a disk has acknowledged.

use std::collections::BTreeSet;

/// Numbers of parts, which come about in order.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Acked {
    /// All before this one are in it.
    below: u32,
    /// Those after it that are.
    beyond: BTreeSet<u32>,
}

impl Acked {
    pub(super) fn insert(&mut self, number: u32) {
        if number > self.below {
            self.beyond.insert(number);
        } else if number == self.below {
            self.below += 1;
            while self.beyond.remove(&self.below) {
                self.below += 1;
            }
        }
    }

    /// Those of the first `count` that are not in it. Takes time for these only.
    pub(super) fn lacking(&self, count: u32) -> impl Iterator<Item = u32> {
        (self.below..count).filter(|number| !self.beyond.contains(number))
    }

    /// Whether the first `count` are in it.
    pub(super) const fn whole(&self, count: u32) -> bool {
        self.below >= count
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn it_is_a_set_of_numbers(numbers in prop::collection::vec(0u32..40, 0..60), count in 0u32..40) {
            let mut acked = Acked::default();
            numbers.iter().for_each(|number| acked.insert(*number));
            let set: BTreeSet<u32> = numbers.into_iter().collect();
            let lacking: Vec<u32> = (0..count).filter(|number| !set.contains(number)).collect();
            prop_assert_eq!(acked.whole(count), lacking.is_empty());
            prop_assert_eq!(acked.lacking(count).collect::<Vec<_>>(), lacking);
        }
    }
}
